//! The generic cell rate algorithm (ITU-T I.371) in whole numbers, as plain data: no lock, no clock, no I/O.
//!
//! A bucket of tokens is one moment: the one at which it will be full again. Every token taken moves it on by the time that
//! a token takes to come back; a bucket is empty when that moment is as far ahead as the burst is long. That time is a
//! fraction of nanoseconds, so moments are counted in units of which a nanosecond has a whole number, and nothing is ever
//! rounded but a wait, which is rounded up.

use std::time::Duration;

use crate::Quota;

/// A quota in units of `1 / scale` nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// The units of a nanosecond: at most 2^32.
    pub(crate) scale: u64,
    /// The units that a token takes to come back.
    pub(crate) token: u128,
    /// The tokens of a full bucket.
    pub(crate) burst: u64,
    /// The units that an empty bucket takes to be full.
    pub(crate) capacity: u128,
}

/// Why a call is not let through now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It would be, after this time.
    For(Duration),
    /// It asks for more than a full bucket holds.
    Forever,
}

impl Rate {
    /// The rate of a quota, whose burst is that of so much time if it has none of its own.
    pub(crate) fn new(quota: Quota, burst: Duration) -> Self {
        let (tokens, period) = (u128::from(quota.tokens.get()), quota.period.as_nanos());
        let divisor = gcd(tokens, period);
        let default = burst.as_nanos().saturating_mul(tokens) / period;
        let burst = quota
            .burst
            .map_or(u64::try_from(default).unwrap_or(u64::MAX).max(1), |burst| {
                burst.get().into()
            });
        let token = period / divisor;
        Self {
            scale: u64::try_from(tokens / divisor).unwrap_or(u64::MAX),
            token,
            burst,
            capacity: token.saturating_mul(burst.into()),
        }
    }

    /// Are its moments words of 63 bits, for as long as a program runs? They are then for 18 years, or for less than 2^60
    /// units where bursts are long.
    pub(crate) fn fits(&self) -> bool {
        self.scale <= 16 && self.capacity <= 1 << 60
    }

    /// A moment, given in nanoseconds, in units.
    pub(crate) fn units(&self, nanos: u64) -> u128 {
        u128::from(nanos) * u128::from(self.scale)
    }

    /// Takes `cost` tokens at `now` out of a bucket that is full at `full`, behind those who are to take so many before: it
    /// would be full then at the moment returned.
    pub(crate) fn take(
        &self,
        full: u128,
        now: u128,
        ahead: u128,
        cost: u64,
    ) -> Result<u128, Denied> {
        if cost > self.burst {
            return Err(Denied::Forever);
        }
        let tokens = ahead.saturating_add(cost.into());
        let then = full.max(now).saturating_add(self.time(tokens));
        let most = now.saturating_add(self.capacity);
        if then <= most {
            Ok(then)
        } else {
            Err(Denied::For(self.duration(then - most)))
        }
    }

    /// When a bucket will be full out of which so many tokens are taken, though it may owe some of them.
    pub(crate) fn charge(&self, full: u128, now: u128, tokens: u64) -> u128 {
        full.max(now).saturating_add(self.time(tokens.into()))
    }

    /// The tokens that are there; 0 if some are owed.
    pub(crate) fn left(&self, full: u128, now: u128) -> u64 {
        let taken = full.saturating_sub(now).div_ceil(self.token);
        self.burst
            .saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX))
    }

    /// How long until one more token is there; zero if the bucket is full.
    pub(crate) fn next(&self, full: u128, now: u128) -> Duration {
        let taken = full.saturating_sub(now);
        // A rate of words that is being changed may be of two: whoever reports it then says what is neither, at worst.
        let last = self.capacity.saturating_sub(self.token);
        self.duration(if taken > last {
            taken - last
        } else {
            taken.checked_sub(1).map_or(0, |rest| rest % self.token + 1)
        })
    }

    /// Takes a bucket over from another rate: what was taken stays taken, as far as the bucket holds it now, and what is
    /// owed is owed. So is the part of a token that has come back: however often it is taken over, they all come back.
    pub(crate) fn take_over(&self, old: &Self, full: u128, now: u64) -> u128 {
        let gone = full.saturating_sub(old.units(now));
        let taken = gone.min(old.capacity);
        let (taken, owed) = (
            self.as_long_as(old, taken),
            self.as_long_as(old, gone - taken),
        );
        let gone = taken.min(self.capacity).saturating_add(owed);
        self.units(now).saturating_add(gone)
    }

    /// The units in which as many tokens come back as by another rate in so many of its units, rounded up.
    fn as_long_as(&self, old: &Self, units: u128) -> u128 {
        let (tokens, rest) = (units / old.token, units % old.token);
        let rest = rest.checked_mul(self.token);
        let rest = rest.map_or(self.token, |rest| rest.div_ceil(old.token));
        tokens.saturating_mul(self.token).saturating_add(rest)
    }

    /// The units that so many tokens take to come back.
    pub(crate) fn time(&self, tokens: u128) -> u128 {
        if tokens == 1 {
            return self.token;
        }
        tokens.saturating_mul(self.token)
    }

    /// A number of units as time, rounded up.
    pub(crate) fn duration(&self, units: u128) -> Duration {
        // A division of 128 bits takes its time.
        let nanos = u64::try_from(units).map_or_else(
            |_| u64::try_from(units.div_ceil(self.scale.into())).unwrap_or(u64::MAX),
            |units| units.div_ceil(self.scale),
        );
        Duration::from_nanos(nanos)
    }
}

const fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    fn count(count: u32) -> NonZeroU32 {
        count.try_into().unwrap()
    }

    fn rate(tokens: u32, period: Duration, burst: u32) -> Rate {
        let quota = Quota::per(count(tokens), period).unwrap();
        Rate::new(quota.burst(count(burst)), Duration::ZERO)
    }

    /// Asks at these nanoseconds, and returns how often it got a token.
    fn greedy(rate: &Rate, times: impl IntoIterator<Item = u64>) -> u64 {
        let (mut full, mut granted) = (0, 0);
        for time in times {
            if let Ok(then) = rate.take(full, rate.units(time), 0, 1) {
                (full, granted) = (then, granted + 1);
            }
        }
        granted
    }

    // promise: RL-1
    #[test]
    fn no_window_sees_more_than_the_burst_and_what_comes_in_it() {
        for seed in 0..100_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let burst = rng.random_range(1..8);
            let (tokens, period) = (rng.random_range(1..20), rng.random_range(1..200));
            let rate = rate(tokens, Duration::from_nanos(period), burst);
            let (mut full, mut now) = (0, 0_u64);
            let mut granted: Vec<(u64, u64)> = Vec::new();
            for _ in 0..rng.random_range(1..40) {
                now += rng.random_range(0..period);
                let cost = rng.random_range(1..=u64::from(burst));
                if rng.random_bool(0.1) {
                    // One who goes away before the call gives his tokens back.
                    full -= granted.pop().map_or(0, |(_, cost)| rate.time(cost.into()));
                } else if let Ok(then) = rate.take(full, rate.units(now), 0, cost) {
                    full = then;
                    granted.push((now, cost));
                }
            }
            for (place, (start, _)) in granted.iter().enumerate() {
                let mut sum = 0;
                for (end, cost) in &granted[place..] {
                    sum += cost;
                    let came = u64::from(tokens) * (end - start) / period;
                    assert!(sum <= u64::from(burst) + came, "seed {seed}: {granted:?}");
                }
            }
        }
    }

    proptest! {
        // promise: RL-2
        #[test]
        fn who_always_asks_gets_what_comes_in_any_window(
            tokens in 1..50_u32, period in 1..400_u64, burst in 1..9_u32, start in 0..100_u64, length in 0..400_u64,
        ) {
            let rate = rate(tokens, Duration::from_nanos(period), burst);
            let mut full = 0;
            let mut granted = 0;
            // He asks at the very moment, which need not be a whole nanosecond.
            for unit in 0..=rate.units(start + length) {
                // As often as there is anything to get.
                while let Ok(then) = rate.take(full, unit, 0, 1) {
                    full = then;
                    granted += u64::from(unit >= rate.units(start));
                }
            }
            prop_assert!(granted >= u64::from(tokens) * length / period);
        }

        // promise: RL-4
        #[test]
        fn no_quota_panics_or_wraps(
            tokens in prop::sample::select(vec![1, 2, 1 << 31, u32::MAX]),
            period in prop::sample::select(vec![
                Duration::from_nanos(1), Duration::from_secs(1), Duration::from_secs(u32::MAX.into()), Duration::MAX,
            ]),
            burst in prop::sample::select(vec![1, 2, u32::MAX]),
            cost in prop::sample::select(vec![0, 1, u64::from(u32::MAX), u64::MAX]),
            now in prop::sample::select(vec![0, 1, u64::MAX]),
            full in prop::sample::select(vec![0, 1, u128::from(u64::MAX), u128::MAX]),
        ) {
            let rate = rate(tokens, period, burst);
            let now = rate.units(now);
            let taken = rate.take(full, now, 0, cost);
            if cost > u64::from(burst) {
                prop_assert_eq!(taken, Err(Denied::Forever));
            } else if full <= now {
                prop_assert!(taken.is_ok(), "a full bucket has its burst");
            }
            prop_assert!(rate.left(full, now) <= burst.into());
        }
    }

    // promise: RL-3
    #[test]
    fn one_a_day_is_one_a_day() {
        const DAY: u64 = 86_400_000_000_000;

        let daily = rate(1, Duration::from_nanos(DAY), 1);
        assert_eq!(greedy(&daily, [5]), 1);
        assert_eq!(greedy(&daily, [5, DAY + 4]), 1);
        assert_eq!(greedy(&daily, [5, DAY + 5]), 2);
        let full = daily.take(0, 0, 0, 1).unwrap();
        let second = daily.take(full, daily.units(DAY - 1), 0, 1);
        assert_eq!(second, Err(Denied::For(Duration::from_nanos(1))));

        let burst = rate(1, Duration::from_nanos(DAY), 300_000);
        assert_eq!(greedy(&burst, (0..1_000_000).map(|_| 0)), 300_000);
    }

    // promise: RL-3
    #[test]
    fn millions_a_second_are_that_many() {
        // A token of a third of a microsecond does not come at a whole nanosecond. With a burst of one nothing makes up for
        // the rest until the next one.
        for (tokens, burst, step) in [
            (10_000_000, 1, 100),
            (3_000_000, 2, 170),
            (3_000_000, 300_000, 300),
        ] {
            let rate = rate(tokens, Duration::from_secs(1), burst);
            // More often than tokens come, over a whole second.
            let granted = greedy(&rate, (0..=1_000_000_000).step_by(step));
            let wanted = u64::from(tokens) + u64::from(burst);
            assert!(granted.abs_diff(wanted) <= 1, "{granted} of {wanted}");
        }
    }
}
