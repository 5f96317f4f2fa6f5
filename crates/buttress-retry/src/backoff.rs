//! How long to wait before the next attempt, as plain arithmetic.

use std::time::Duration;

use rand::{Rng, RngExt};

/// How the delays between attempts grow, and how much of each is left to chance.
///
/// With a base `B`, a cap `C` and the number `n` of the retry, from 0, the full delay is `c = min(C, B * 2^n)`:
///
/// | strategy | delay | when |
/// |---|---|---|
/// | [`full_jitter`](Self::full_jitter) | anywhere in `[0, c)` | the default: the fewest collisions |
/// | [`equal_jitter`](Self::equal_jitter) | anywhere in `[c/2, c]` | a minimal pause must be kept |
/// | [`decorrelated`](Self::decorrelated) | anywhere in `[B, 3 * the delay before]`, at most `C` | long series of retries |
/// | [`exponential`](Self::exponential) | `c` | one client alone, or tests |
/// | [`constant`](Self::constant) | `B` | one client alone, or tests |
///
/// The formulas are those of Marc Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015). The cap is
/// applied before the jitter: applied after it, most of the delays of a long series would be equal to the cap.
///
/// ```
/// use std::time::Duration;
/// use buttress_retry::Backoff;
///
/// const GENTLE: Backoff = Backoff::equal_jitter(Duration::from_millis(200), Duration::from_secs(30));
/// assert_eq!(GENTLE.cap(), Duration::from_secs(30));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    jitter: Jitter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jitter {
    None,
    Full,
    Equal,
    Decorrelated,
}

impl Backoff {
    /// Anywhere in `[0, min(cap, base * 2^n))`.
    ///
    /// # Panics
    ///
    /// When `cap` is below `base`.
    #[must_use]
    pub const fn full_jitter(base: Duration, cap: Duration) -> Self {
        Self::checked(base, cap, Jitter::Full)
    }

    /// Anywhere in the upper half of `min(cap, base * 2^n)`.
    ///
    /// # Panics
    ///
    /// When `cap` is below `base`.
    #[must_use]
    pub const fn equal_jitter(base: Duration, cap: Duration) -> Self {
        Self::checked(base, cap, Jitter::Equal)
    }

    /// Anywhere between `base` and three times the delay before, at most `cap`.
    ///
    /// # Panics
    ///
    /// When `cap` is below `base`.
    #[must_use]
    pub const fn decorrelated(base: Duration, cap: Duration) -> Self {
        Self::checked(base, cap, Jitter::Decorrelated)
    }

    /// `min(cap, base * 2^n)`, the same for every caller: many of them come back as one herd.
    ///
    /// # Panics
    ///
    /// When `cap` is below `base`.
    #[must_use]
    pub const fn exponential(base: Duration, cap: Duration) -> Self {
        Self::checked(base, cap, Jitter::None)
    }

    /// Always the same delay.
    #[must_use]
    pub const fn constant(delay: Duration) -> Self {
        Self::checked(delay, delay, Jitter::None)
    }

    /// For calls inside one data centre: full jitter from 25 ms to 250 ms, as Envoy and linkerd have it.
    #[must_use]
    pub const fn internal() -> Self {
        Self::full_jitter(Duration::from_millis(25), Duration::from_millis(250))
    }

    /// No delay is longer than this.
    #[must_use]
    pub const fn cap(&self) -> Duration {
        self.cap
    }

    const fn checked(base: Duration, cap: Duration, jitter: Jitter) -> Self {
        assert!(
            base.as_nanos() <= cap.as_nanos(),
            "the cap of a backoff is below its base"
        );
        Self { base, cap, jitter }
    }

    /// The delay before retry `n`, from 0. `previous` is the delay before retry `n - 1`, or zero.
    pub(crate) fn delay(&self, n: u32, previous: Duration, rng: &mut impl Rng) -> Duration {
        let (base, cap) = (self.base.as_nanos(), self.cap.as_nanos());
        // 2^n wraps a long way above any cap; a cap has fewer than 94 bits.
        let full = if n < base.leading_zeros() {
            (base << n).min(cap)
        } else {
            cap
        };
        nanos(match self.jitter {
            Jitter::None => full,
            Jitter::Full if full == 0 => 0,
            Jitter::Full => rng.random_range(0..full),
            Jitter::Equal => rng.random_range(full / 2..=full),
            Jitter::Decorrelated => {
                let highest = previous
                    .max(self.base)
                    .as_nanos()
                    .saturating_mul(3)
                    .min(cap);
                rng.random_range(base..=highest.max(base))
            }
        })
    }
}

/// The inverse of [`Duration::as_nanos`].
pub(crate) fn nanos(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    u64::try_from(nanos / SECOND).map_or(Duration::MAX, |seconds| {
        let rest = u32::try_from(nanos % SECOND).unwrap_or_default();
        Duration::new(seconds, rest)
    })
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const BASE: Duration = Duration::from_millis(50);
    const CAP: Duration = Duration::from_secs(20);

    fn draws(backoff: Backoff, n: u32, count: usize) -> Vec<Duration> {
        let mut rng = StdRng::seed_from_u64(u64::from(n));
        (0..count)
            .map(|_| backoff.delay(n, Duration::ZERO, &mut rng))
            .collect()
    }

    // promise: RT-1
    #[test]
    fn full_jitter_is_uniform_below_the_capped_delay() {
        const DRAWS: u32 = 10_000;
        // 50 ms * 2^9 = 25.6 s is above the cap of 20 s.
        for n in 0..=12 {
            let top = (BASE * 2_u32.pow(n)).min(CAP).as_secs_f64();
            let mut draws: Vec<_> = draws(Backoff::full_jitter(BASE, CAP), n, DRAWS as usize)
                .iter()
                .map(Duration::as_secs_f64)
                .collect();
            draws.sort_by(f64::total_cmp);
            assert!(draws[0] >= 0.0 && draws[draws.len() - 1] < top, "n = {n}");

            // Kolmogorov-Smirnov: the largest distance between the empirical and the uniform distribution function.
            let distance = (0_u32..).zip(&draws).map(|(below, draw)| {
                let at = draw / top;
                let (before, after) = (
                    f64::from(below) / f64::from(DRAWS),
                    f64::from(below + 1) / f64::from(DRAWS),
                );
                (at - before).abs().max((after - at).abs())
            });
            let critical_at_1_percent = 1.628 / f64::from(DRAWS).sqrt();
            assert!(
                distance.fold(0.0, f64::max) < critical_at_1_percent,
                "n = {n}"
            );
        }
    }

    // promise: RT-2
    #[test]
    fn equal_jitter_keeps_the_upper_half() {
        for n in [0, 1, 5, 20] {
            let full = BASE.saturating_mul(2_u32.pow(n)).min(CAP);
            let draws = draws(Backoff::equal_jitter(BASE, CAP), n, 10_000);
            assert!(
                draws.iter().all(|draw| (full / 2..=full).contains(draw)),
                "n = {n}"
            );
            assert!(
                draws.iter().any(|draw| *draw < full * 52 / 100),
                "n = {n}: the lower end is reached"
            );
            assert!(
                draws.iter().any(|draw| *draw > full * 98 / 100),
                "n = {n}: the upper end is reached"
            );
        }
    }

    // promise: RT-2
    #[test]
    fn decorrelated_jitter_stays_below_three_times_the_delay_before_and_can_go_down() {
        let backoff = Backoff::decorrelated(BASE, CAP);
        let mut rng = StdRng::seed_from_u64(2);
        let (mut previous, mut down, mut capped) = (Duration::ZERO, 0, 0);
        for n in 0..10_000 {
            let delay = backoff.delay(n, previous, &mut rng);
            assert!(
                delay >= BASE && delay <= CAP.min(3 * previous.max(BASE)),
                "{delay:?} after {previous:?}"
            );
            down += u32::from(delay < previous);
            capped += u32::from(3 * previous > CAP);
            previous = delay;
        }
        assert!(
            down > 1_000 && capped > 1_000,
            "down {down} times, {capped} times near the cap"
        );
    }

    // promise: RT-3
    #[test]
    fn no_strategy_exceeds_its_cap_and_no_value_overflows() {
        let mut rng = StdRng::seed_from_u64(3);
        for (base, cap) in [
            (Duration::ZERO, Duration::ZERO),
            (Duration::ZERO, Duration::MAX),
            (Duration::from_nanos(1), Duration::MAX),
            (Duration::MAX, Duration::MAX),
            (BASE, CAP),
        ] {
            for backoff in [
                Backoff::full_jitter(base, cap),
                Backoff::equal_jitter(base, cap),
                Backoff::decorrelated(base, cap),
                Backoff::exponential(base, cap),
                Backoff::constant(base),
            ] {
                for n in [0, 31, 32, 62, 63, 64, 1_023, 1_024, u32::MAX] {
                    for previous in [Duration::ZERO, base, cap] {
                        let delay = backoff.delay(n, previous, &mut rng);
                        assert!(delay <= backoff.cap(), "{backoff:?}, n = {n}: {delay:?}");
                    }
                }
            }
            let exponential = Backoff::exponential(base, cap);
            let last = exponential.delay(u32::MAX, Duration::ZERO, &mut rng);
            assert_eq!(last, cap, "{base:?}: it has grown to the cap");
        }
    }

    // promise: RT-4
    #[test]
    fn whole_seconds_keep_their_fractions() {
        let delays = draws(Backoff::full_jitter(Duration::from_secs(1), CAP), 0, 1_000);
        let fractions: std::collections::HashSet<_> =
            delays.iter().map(Duration::subsec_micros).collect();
        assert!(
            fractions.len() > 900,
            "{} of 1,000 are distinct",
            fractions.len()
        );
        assert_eq!(nanos(Duration::MAX.as_nanos()), Duration::MAX);
        assert_eq!(nanos(1_234_567_890), Duration::new(1, 234_567_890));
    }

    // promise: RT-5
    #[test]
    fn a_thousand_calls_that_fail_at_once_come_back_spread_out() {
        // Each seed is a process of its own that has never drawn before.
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut buckets = [0; 50];
            for _ in 0..1_000 {
                let delay = Backoff::full_jitter(BASE, CAP).delay(0, Duration::ZERO, &mut rng);
                buckets[usize::try_from(delay.as_millis()).unwrap()] += 1;
            }
            assert!(buckets.iter().all(|&count| count <= 60), "{buckets:?}");
        }
    }

    #[test]
    #[should_panic(expected = "below its base")]
    fn a_cap_below_the_base_cannot_be_built() {
        let _ = Backoff::full_jitter(CAP, BASE);
    }
}
