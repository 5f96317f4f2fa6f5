//! What the user sets, as plain data, and what follows from it alone.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use buttress_core::Events;
use rand::{Rng, RngExt};

use crate::{Cause, Event};

/// What a layer and all its breakers know.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) rules: Rules,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) patience: Option<Duration>,
    pub(crate) throttling_fails: bool,
    pub(crate) shadow: bool,
    pub(crate) max_keys: NonZeroUsize,
    pub(crate) idle: Duration,
    pub(crate) events: Events<Event>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            name: None,
            patience: None,
            throttling_fails: false,
            shadow: false,
            max_keys: NonZeroUsize::new(1_000).unwrap(),
            idle: Duration::from_mins(5),
            events: Events::none(),
        }
    }
}

impl Settings {
    /// A call that is dropped after more than this has failed.
    pub(crate) fn patience(&self) -> Duration {
        let slow = self.rules.slow.map(|(threshold, _)| threshold);
        self.patience.or(slow).unwrap_or(Duration::from_secs(10))
    }
}

/// The numbers that the circuit goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) window: Kind,
    pub(crate) failure_rate: Share,
    pub(crate) min_calls: NonZeroU32,
    /// So many failures in a row open it while the window holds fewer calls than `min_calls`.
    pub(crate) in_a_row: Option<NonZeroU32>,
    pub(crate) slow: Option<(Duration, Share)>,
    pub(crate) open_time: Duration,
    pub(crate) max_open_time: Duration,
    pub(crate) max_hint: Duration,
    pub(crate) probes: NonZeroU32,
    /// How many probes may be in flight before one has succeeded, and after that.
    pub(crate) in_flight: (NonZeroU32, NonZeroU32),
    pub(crate) lease: Option<Duration>,
    pub(crate) ramp: bool,
}

/// What the window is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Time(Duration),
    Calls(NonZeroU32),
    /// No window: so many failures in a row.
    InARow(NonZeroU32),
}

/// A share between 0, excluded, and 1, in billionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share(u32);

/// What the window holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) slow: u64,
    pub(crate) in_a_row: u32,
}

impl Default for Rules {
    fn default() -> Self {
        const fn count(count: u32) -> NonZeroU32 {
            NonZeroU32::new(count).unwrap()
        }
        Self {
            window: Kind::Time(Duration::from_secs(10)),
            failure_rate: Share::new(0.5),
            min_calls: count(20),
            in_a_row: Some(count(5)),
            slow: None,
            open_time: Duration::from_secs(5),
            max_open_time: Duration::from_mins(1),
            max_hint: Duration::from_mins(5),
            probes: count(3),
            in_flight: (count(1), count(2)),
            lease: None,
            ramp: true,
        }
    }
}

impl Rules {
    /// Whether the window is a reason to open.
    pub(crate) fn judge(&self, figures: Figures) -> Option<Cause> {
        let Figures {
            calls,
            failures,
            slow,
            in_a_row,
        } = figures;
        let row = |limit: NonZeroU32| {
            (in_a_row >= limit.get()).then_some(Cause::InARow { failures: in_a_row })
        };
        let needed = match self.window {
            Kind::InARow(limit) => return row(limit),
            Kind::Time(_) => self.min_calls,
            // A window of ten calls never holds twenty.
            Kind::Calls(size) => self.min_calls.min(size),
        };
        if calls < u64::from(needed.get()) {
            return self.in_a_row.and_then(row);
        }
        if self.failure_rate.is_met(failures, calls) {
            return Some(Cause::FailureRate {
                failures: figure(failures),
                calls: figure(calls),
            });
        }
        self.judge_slow(slow, calls).then_some(Cause::SlowRate {
            slow: figure(slow),
            calls: figure(calls),
        })
    }

    /// Whether too many calls are slow. Where only failures in a row open it, slow probes do not keep it open.
    pub(crate) fn judge_slow(&self, slow: u64, calls: u64) -> bool {
        !matches!(self.window, Kind::InARow(_))
            && self.slow.is_some_and(|(_, rate)| rate.is_met(slow, calls))
    }

    /// The full open time after so many openings that are not forgiven yet.
    pub(crate) fn open_time(&self, level: u32) -> Duration {
        let full = self.open_time.as_nanos().saturating_mul(1 << level.min(63));
        nanos(full.min(self.max_open_time.as_nanos()))
    }

    /// The open time with its jitter. A server that names one is taken at its word, and gets up to a tenth more.
    pub(crate) fn draw(&self, level: u32, hint: Option<Duration>, rng: &mut impl Rng) -> Duration {
        let (least, most) = match hint {
            Some(hint) => {
                let hint = hint.min(self.max_hint);
                (hint, hint.saturating_add(hint / 10).min(self.max_hint))
            }
            None => (self.open_time(level) / 2, self.open_time(level)),
        };
        nanos(rng.random_range(least.as_nanos()..=most.as_nanos()))
    }

    /// How many of so many openings are left after a time without one: one less for each open time that has passed.
    pub(crate) fn forgive(&self, mut level: u32, mut clean: Duration) -> u32 {
        while let Some(below) = level.checked_sub(1)
            && let Some(rest) = clean.checked_sub(self.open_time(below))
        {
            (level, clean) = (below, rest);
        }
        level
    }

    /// One opening more, unless the open time does not grow any further.
    pub(crate) fn raise(&self, level: u32) -> u32 {
        level.saturating_add(u32::from(self.open_time(level) < self.max_open_time))
    }

    pub(crate) fn lease(&self, level: u32) -> Duration {
        let default = self.open_time(level).saturating_mul(2);
        self.lease.unwrap_or(default.min(self.longest_lease()))
    }

    /// A lease that expires is followed by one that is twice as long, up to this.
    pub(crate) fn longest_lease(&self) -> Duration {
        self.lease.unwrap_or(Duration::from_secs(10))
    }
}

impl Share {
    const WHOLE: u32 = 1_000_000_000;

    /// # Panics
    ///
    /// When the share is not a number, not above 0, or above 1.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most a billion"
    )]
    pub(crate) const fn new(share: f64) -> Self {
        assert!(
            share > 0.0 && share <= 1.0,
            "a share is above 0 and at most 1"
        );
        // Rounded down, so that two of three calls are two thirds.
        let billionths = (share * Self::WHOLE as f64) as u32;
        Self(if billionths == 0 { 1 } else { billionths })
    }

    /// Whether `part` is at least this share of `whole`.
    pub(crate) fn is_met(self, part: u64, whole: u64) -> bool {
        u128::from(part) * u128::from(Self::WHOLE) >= u128::from(whole) * u128::from(self.0)
    }
}

pub(crate) fn figure(figure: u64) -> u32 {
    u32::try_from(figure).unwrap_or(u32::MAX)
}

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    // promise: BR-15
    #[test]
    fn the_open_time_doubles_up_to_its_cap_with_half_of_it_left_to_chance() {
        let rules = Rules::default();
        let mut rng = StdRng::seed_from_u64(1);
        for level in 0..=64 {
            let full = (u128::from(5_u32) << level).min(60);
            let full = secs(u64::try_from(full).unwrap());
            assert_eq!(rules.open_time(level), full);
            let drawn: Vec<_> = (0..1_000)
                .map(|_| rules.draw(level, None, &mut rng))
                .collect();
            let (least, most) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
            assert!(*least >= full / 2 && *most <= full);
            // A thousand breakers that have opened at once come back spread out.
            assert!(
                most.abs_diff(*least) >= full * 2 / 5,
                "{least:?} to {most:?}"
            );
        }
        assert_eq!(rules.open_time(u32::MAX), secs(60));
    }

    // promise: BR-15
    #[test]
    fn openings_are_forgiven_one_by_one() {
        let rules = Rules::default();
        let mut level = 0;
        for expected in [1, 2, 3, 4, 4, 4] {
            level = rules.raise(level);
            assert_eq!(
                level, expected,
                "an open time that cannot grow is not counted"
            );
        }
        // It was open for 5, 10, 20 and 40 s, and is forgiven in the same times, the last one first.
        for (clean, left) in [
            (39, 4),
            (40, 3),
            (59, 3),
            (60, 2),
            (69, 2),
            (70, 1),
            (74, 1),
            (75, 0),
            (1_000_000, 0),
        ] {
            assert_eq!(rules.forgive(4, secs(clean)), left, "after {clean} s");
        }
        assert_eq!(rules.forgive(0, Duration::MAX), 0);
    }

    // promise: BR-16
    #[test]
    fn a_hint_is_the_least_open_time_and_five_minutes_are_the_most() {
        let rules = Rules::default();
        let mut rng = StdRng::seed_from_u64(2);
        for (hint, least, most) in [
            (secs(0), secs(0), secs(0)),
            (secs(30), secs(30), secs(33)),
            (secs(120), secs(120), secs(132)),
            (secs(290), secs(290), secs(300)),
            (secs(300), secs(300), secs(300)),
            (secs(1_000_000_000_000_000_000), secs(300), secs(300)),
            (Duration::MAX, secs(300), secs(300)),
        ] {
            let drawn: Vec<_> = (0..200)
                .map(|_| rules.draw(3, Some(hint), &mut rng))
                .collect();
            assert!(drawn.iter().all(|time| (least..=most).contains(time)));
            let (first, last) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
            assert!(
                last.abs_diff(*first) >= most.abs_diff(least) / 2,
                "jitter adds"
            );
        }
    }

    // promise: BR-1
    #[test]
    fn a_share_that_is_exactly_met_is_met() {
        for whole in 1..=1_000_u32 {
            for part in 1..=whole {
                let share = Share::new(f64::from(part) / f64::from(whole));
                assert!(share.is_met(part.into(), whole.into()), "{part} of {whole}");
                assert!(!share.is_met(u64::from(part) - 1, whole.into()));
            }
        }
        assert!(Share::new(1.0).is_met(u64::MAX, u64::MAX));
        assert!(Share::new(f64::MIN_POSITIVE).is_met(1, 1_000_000_000));
        assert!(!Share::new(f64::MIN_POSITIVE).is_met(0, 1));
    }

    // promise: BR-4
    #[test]
    fn failures_in_a_row_count_while_the_window_is_quiet_only() {
        let rules = Rules::default();
        let figures = |calls, in_a_row: u32| Figures {
            calls,
            failures: in_a_row.into(),
            slow: 0,
            in_a_row,
        };
        for calls in 5..20 {
            assert_eq!(rules.judge(figures(calls, 4)), None);
            let cause = Cause::InARow { failures: 5 };
            assert_eq!(rules.judge(figures(calls, 5)), Some(cause));
        }
        for calls in 20..100 {
            assert_eq!(rules.judge(figures(calls, 9)), None);
        }
        let cause = Cause::FailureRate {
            failures: 10,
            calls: 20,
        };
        assert_eq!(rules.judge(figures(20, 10)), Some(cause));
        let never = Rules {
            in_a_row: None,
            ..rules
        };
        assert_eq!(never.judge(figures(19, 19)), None);
    }

    proptest! {
        // promise: BR-25
        #[test]
        fn no_rules_panic_or_wrap(
            open_time in 1..=u64::MAX, max in 0..=u64::MAX, hint in any::<Option<u64>>(), level in any::<u32>(),
            calls in any::<u64>(), failures in any::<u64>(), slow in any::<u64>(), share in 0.0..1.0_f64,
        ) {
            let open_time = Duration::from_millis(open_time);
            let share = Share::new(1.0 - share);
            let rules = Rules {
                open_time,
                max_open_time: open_time.saturating_add(Duration::from_secs(max)),
                max_hint: Duration::MAX,
                slow: Some((Duration::ZERO, share)),
                failure_rate: share,
                ..Rules::default()
            };
            rules.draw(level, hint.map(Duration::from_secs), &mut rand::rng());
            prop_assert!(rules.lease(level) <= Duration::from_secs(10));
            prop_assert!(rules.lease(level) > Duration::ZERO);
            prop_assert!(rules.open_time(level) >= rules.open_time(0));
            prop_assert!(rules.raise(level) >= level);
            prop_assert!(rules.forgive(level % 100, Duration::MAX) <= level % 100);
            rules.judge(Figures { calls, failures, slow, in_a_row: level });
        }
    }
}
