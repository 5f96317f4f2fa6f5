//! Tell the time, the same time to every layer.
//!
//! In production it is read from the processor's time stamp counter, with the crate `quanta`. With the feature
//! `test-util` it is tokio's clock, which stands still in a test that pauses it.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

/// A moment, in nanoseconds since a start that each process has for itself: it means nothing to another process.
///
/// Arithmetic saturates, so no duration is too long for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

/// What the clock shows at first, so that a moment before the first reading exists too: a bit over a year.
const ORIGIN: u64 = 1 << 55;

/// Reads the clock. The first reading of a process measures the counter's speed, which takes up to 200 ms.
#[must_use]
pub fn now() -> Instant {
    Instant(nanos())
}

#[cfg(not(feature = "test-util"))]
fn nanos() -> u64 {
    use std::sync::LazyLock;

    static START: LazyLock<(quanta::Clock, u64)> = LazyLock::new(|| {
        let clock = quanta::Clock::new();
        let start = clock.raw();
        (clock, start)
    });
    let (clock, start) = &*START;
    ORIGIN.saturating_add(clock.delta_as_nanos(*start, clock.raw()))
}

#[cfg(feature = "test-util")]
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one clock that the others are asked to use"
)]
fn nanos() -> u64 {
    use std::sync::OnceLock;

    static START: OnceLock<tokio::time::Instant> = OnceLock::new();
    let now = tokio::time::Instant::now();
    let start = *START.get_or_init(|| now);
    // Each paused runtime has a clock of its own, and one of them may be behind the first.
    let ahead = now.saturating_duration_since(start);
    let behind = start.saturating_duration_since(now);
    ORIGIN
        .saturating_add(as_nanos(ahead))
        .saturating_sub(as_nanos(behind))
}

fn as_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Instant {
    /// The last moment there is, some 580 years from now.
    pub const MAX: Self = Self(u64::MAX);

    /// The inverse of [`to_bits`](Self::to_bits).
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The moment as a number, for an atomic: nanoseconds, so that later is more.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The time that has passed since `earlier`; zero if none has.
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// A moment later by `duration`, or the last moment there is, some 580 years from now.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(as_nanos(duration)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    /// A moment earlier by `duration`, or the first moment there is.
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(as_nanos(duration)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "test-util")]
    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_moves_when_it_is_told_to() {
        let before = now();
        assert_eq!(now(), before);
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(
            now().saturating_duration_since(before),
            Duration::from_millis(1_500)
        );
        assert_eq!(before.saturating_duration_since(now()), Duration::ZERO);
    }

    #[test]
    fn no_duration_is_too_long() {
        assert!(now() + Duration::MAX > now());
        assert_eq!(now() + Duration::MAX, now() + Duration::MAX + Duration::MAX);
    }
}
