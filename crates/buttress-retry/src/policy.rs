//! When to try again, and after how long: a pure step from what an attempt came to.

use std::time::Duration;

use buttress_core::{Applied, Hint, Kind, Verdict};
use rand::{Rng, RngExt};

use crate::{Backoff, DelaySource, Outcome, backoff::nanos};

/// What the user has set. Invariant: neither `deadline` nor `attempt_timeout` is zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) max_retries: u32,
    pub(crate) backoff: Backoff,
    pub(crate) throttled_backoff: Backoff,
    pub(crate) max_hint: Duration,
    pub(crate) deadline: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) retry_refusals: bool,
}

/// Where a call stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// The retries so far.
    pub(crate) retries: u32,
    /// The retries since the backoff began anew.
    step: u32,
    /// The delay before the last of them.
    previous: Duration,
}

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Stop(Outcome),
    Retry {
        delay: Duration,
        source: DelaySource,
        throttled: bool,
    },
}

impl Progress {
    /// How a call ends that succeeds now.
    pub(crate) const fn succeeded(&self) -> Outcome {
        if self.retries == 0 {
            Outcome::Ok
        } else {
            Outcome::OkAfterRetry
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        const CAP: Duration = Duration::from_secs(20);
        Self {
            max_retries: 2,
            backoff: Backoff::full_jitter(Duration::from_millis(50), CAP),
            throttled_backoff: Backoff::full_jitter(Duration::from_secs(1), CAP),
            max_hint: Duration::from_mins(1),
            deadline: None,
            attempt_timeout: None,
            retry_refusals: false,
        }
    }
}

impl Policy {
    /// Decides what follows a verdict, for a call that has `time_left` if its time is limited.
    pub(crate) fn decide(
        &self,
        progress: &mut Progress,
        verdict: Verdict,
        idempotent: bool,
        time_left: Option<Duration>,
        rng: &mut impl Rng,
    ) -> Decision {
        match verdict.kind {
            Kind::Success => return Decision::Stop(progress.succeeded()),
            Kind::Permanent | Kind::Ignored => return Decision::Stop(Outcome::NotRetryable),
            Kind::Transient | Kind::Throttled => {}
        }
        if verdict.hint == Hint::Never {
            return Decision::Stop(Outcome::Vetoed);
        }
        if verdict.applied != Applied::No && !idempotent {
            return Decision::Stop(Outcome::NotIdempotent);
        }
        if progress.retries >= self.max_retries {
            return Decision::Stop(Outcome::Attempts);
        }
        let throttled = verdict.kind == Kind::Throttled || matches!(verdict.hint, Hint::After(_));
        match self.delay(progress, verdict.hint, throttled, time_left, rng) {
            Ok((delay, source)) => {
                progress.retries += 1;
                Decision::Retry {
                    delay,
                    source,
                    throttled,
                }
            }
            Err(outcome) => Decision::Stop(outcome),
        }
    }

    fn delay(
        &self,
        progress: &mut Progress,
        hint: Hint,
        throttled: bool,
        time_left: Option<Duration>,
        rng: &mut impl Rng,
    ) -> Result<(Duration, DelaySource), Outcome> {
        // An attempt needs time of its own: a delay that ends with the call's time is too long.
        let in_time = |delay: Duration| time_left.is_none_or(|left| delay < left);
        if let Hint::After(wait) | Hint::Pushback(wait) = hint {
            if wait > self.max_hint {
                return Err(Outcome::Vetoed);
            }
            if !in_time(wait) {
                return Err(Outcome::Deadline);
            }
        }
        if let Hint::Pushback(wait) = hint {
            (progress.step, progress.previous) = (0, Duration::ZERO);
            return Ok((wait, DelaySource::Pushback));
        }

        let backoff = if throttled {
            &self.throttled_backoff
        } else {
            &self.backoff
        };
        let drawn = backoff.delay(progress.step, progress.previous, rng);
        if !in_time(drawn) {
            return Err(Outcome::Deadline);
        }
        progress.step = progress.step.saturating_add(1);
        progress.previous = drawn;
        match hint {
            Hint::After(wait) if wait > Duration::ZERO => {
                // Honoured to the moment, it would bring every client back in the same moment.
                let latest = wait.saturating_add(wait / 2);
                let latest = time_left.map_or(latest, |left| {
                    latest.min(left.saturating_sub(Duration::from_nanos(1)))
                });
                let spread = nanos(rng.random_range(wait.as_nanos()..=latest.as_nanos()));
                if spread > drawn {
                    Ok((spread, DelaySource::Hint))
                } else {
                    Ok((drawn, DelaySource::Backoff))
                }
            }
            _ => Ok((drawn, DelaySource::Backoff)),
        }
    }

    /// How long an attempt may take from now on.
    pub(crate) fn attempt_limit(
        &self,
        retries: u32,
        time_left: Option<Duration>,
    ) -> Option<Duration> {
        match (self.attempt_timeout, time_left) {
            // The last attempt gets all that is left: nobody else needs it.
            (Some(_), Some(left)) if retries >= self.max_retries => Some(left),
            (Some(timeout), Some(left)) => Some(timeout.min(left)),
            (timeout, left) => timeout.or(left),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const TRANSIENT: Verdict = Verdict::new(Kind::Transient, Applied::Maybe);
    const THROTTLED: Verdict = Verdict::new(Kind::Throttled, Applied::Maybe);

    fn decide(verdict: Verdict, left: Option<Duration>, seed: u64) -> Decision {
        let mut rng = StdRng::seed_from_u64(seed);
        Policy::default().decide(&mut Progress::default(), verdict, true, left, &mut rng)
    }

    fn delay(verdict: Verdict, left: Option<Duration>, seed: u64) -> (Duration, DelaySource) {
        match decide(verdict, left, seed) {
            Decision::Retry { delay, source, .. } => (delay, source),
            Decision::Stop(outcome) => panic!("stopped: {outcome:?}"),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    // promise: RT-6
    #[test]
    fn a_hint_beyond_the_time_left_or_a_minute_means_give_up() {
        let hint = |wait| TRANSIENT.with_hint(Hint::After(wait));
        assert_eq!(
            decide(hint(seconds(5)), Some(Duration::from_millis(800)), 0),
            Decision::Stop(Outcome::Deadline)
        );
        assert_eq!(
            decide(hint(seconds(61)), None, 0),
            Decision::Stop(Outcome::Vetoed)
        );
        assert_eq!(
            decide(hint(seconds(u64::MAX)), None, 0),
            Decision::Stop(Outcome::Vetoed)
        );
        assert!(delay(hint(seconds(60)), None, 0).0 >= seconds(60));
    }

    // promise: RT-7
    #[test]
    fn no_delay_reaches_the_end_of_the_call_s_time() {
        let mut stopped = 0;
        for seed in 0..1_000 {
            for (verdict, left) in [
                (TRANSIENT, Duration::from_millis(25)),
                (THROTTLED, Duration::from_millis(500)),
                (
                    TRANSIENT.with_hint(Hint::After(seconds(2))),
                    Duration::from_millis(2_001),
                ),
                (TRANSIENT.with_hint(Hint::Pushback(seconds(2))), seconds(2)),
            ] {
                match decide(verdict, Some(left), seed) {
                    Decision::Retry { delay, .. } => assert!(delay < left),
                    Decision::Stop(outcome) => {
                        assert_eq!(outcome, Outcome::Deadline);
                        stopped += 1;
                    }
                }
            }
        }
        assert!((1_500..3_500).contains(&stopped), "{stopped} of 4,000");
    }

    // promise: RT-8
    #[test]
    fn an_attempt_gets_the_least_of_its_limit_and_the_time_left() {
        let policy = Policy {
            attempt_timeout: Some(seconds(1)),
            ..Policy::default()
        };
        assert_eq!(
            policy.attempt_limit(0, Some(Duration::from_millis(300))),
            Some(Duration::from_millis(300))
        );
        assert_eq!(policy.attempt_limit(0, Some(seconds(9))), Some(seconds(1)));
        assert_eq!(
            policy.attempt_limit(2, Some(seconds(9))),
            Some(seconds(9)),
            "the last has all the time"
        );
        assert_eq!(policy.attempt_limit(2, None), Some(seconds(1)));
        assert_eq!(
            Policy::default().attempt_limit(0, Some(seconds(9))),
            Some(seconds(9))
        );
        assert_eq!(Policy::default().attempt_limit(0, None), None);
    }

    // promise: RT-9
    #[test]
    fn a_hint_is_a_floor_with_half_as_much_again_of_jitter() {
        let two = TRANSIENT.with_hint(Hint::After(seconds(2)));
        let draws: Vec<_> = (0..10_000).map(|seed| delay(two, None, seed)).collect();
        assert!(
            draws
                .iter()
                .all(|(delay, _)| (seconds(2)..=seconds(3)).contains(delay))
        );
        assert!(draws.iter().all(|(_, source)| *source == DelaySource::Hint));
        let early = draws
            .iter()
            .filter(|(delay, _)| *delay < Duration::from_millis(2_500))
            .count();
        assert!(
            (4_500..5_500).contains(&early),
            "{early} of 10,000 in the first half"
        );

        let zero = THROTTLED.with_hint(Hint::After(Duration::ZERO));
        for seed in 0..100 {
            assert_eq!(
                delay(zero, None, seed),
                delay(THROTTLED, None, seed),
                "0 is the computed backoff"
            );
        }
    }

    // promise: RT-9
    #[test]
    fn a_hint_never_shortens_a_backoff() {
        let policy = Policy {
            throttled_backoff: Backoff::constant(seconds(10)),
            ..Policy::default()
        };
        for seed in 0..100 {
            let mut rng = StdRng::seed_from_u64(seed);
            let verdict = THROTTLED.with_hint(Hint::After(seconds(1)));
            let decision = policy.decide(&mut Progress::default(), verdict, true, None, &mut rng);
            let drawn = Decision::Retry {
                delay: seconds(10),
                source: DelaySource::Backoff,
                throttled: true,
            };
            assert_eq!(decision, drawn);
        }
    }

    // promise: RT-34
    #[test]
    fn a_pushback_is_exact_and_the_backoff_begins_anew() {
        let policy = Policy {
            max_retries: 10,
            backoff: Backoff::exponential(Duration::from_millis(50), seconds(20)),
            ..Policy::default()
        };
        let (mut progress, mut rng) = (Progress::default(), StdRng::seed_from_u64(0));
        let push = TRANSIENT.with_hint(Hint::Pushback(Duration::from_millis(777)));
        let delays = [TRANSIENT, TRANSIENT, push, TRANSIENT, TRANSIENT].map(|verdict| match policy
            .decide(&mut progress, verdict, true, None, &mut rng)
        {
            Decision::Retry { delay, .. } => delay.as_millis(),
            Decision::Stop(outcome) => panic!("stopped: {outcome:?}"),
        });
        assert_eq!(delays, [50, 100, 777, 50, 100]);
    }

    #[test]
    fn the_reason_to_stop_is_the_one_that_weighs_most() {
        let stop = |verdict, idempotent, retries| {
            let mut progress = Progress {
                retries,
                ..Progress::default()
            };
            let mut rng = StdRng::seed_from_u64(0);
            match Policy::default().decide(&mut progress, verdict, idempotent, None, &mut rng) {
                Decision::Stop(outcome) => Some(outcome),
                Decision::Retry { .. } => None,
            }
        };
        let unsent = Verdict::new(Kind::Transient, Applied::No);
        assert_eq!(stop(Verdict::SUCCESS, false, 0), Some(Outcome::Ok));
        assert_eq!(
            stop(Verdict::SUCCESS, false, 2),
            Some(Outcome::OkAfterRetry)
        );
        assert_eq!(
            stop(Verdict::new(Kind::Permanent, Applied::No), true, 0),
            Some(Outcome::NotRetryable)
        );
        assert_eq!(stop(Verdict::REFUSED, true, 0), Some(Outcome::NotRetryable));
        assert_eq!(
            stop(TRANSIENT.with_hint(Hint::Never), true, 0),
            Some(Outcome::Vetoed)
        );
        assert_eq!(stop(TRANSIENT, false, 0), Some(Outcome::NotIdempotent));
        assert_eq!(stop(unsent, false, 0), None);
        assert_eq!(stop(TRANSIENT, true, 1), None);
        assert_eq!(stop(TRANSIENT, true, 2), Some(Outcome::Attempts));
        assert_eq!(stop(unsent, false, 2), Some(Outcome::Attempts));
    }
}
