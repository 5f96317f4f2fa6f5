//! How much is allowed.

use std::{borrow::Cow, fmt, num::NonZeroU32, time::Duration};

use buttress_core::QuotaPolicy;

/// So many calls in so much time, and how many of them may come at once.
///
/// It cannot be wrong: it is built of what is not zero, and in a `const` where it is known before.
///
/// ```
/// use std::num::NonZeroU32;
///
/// use buttress_rate_limit::Quota;
///
/// const API: Quota = Quota::per_second(NonZeroU32::new(50).unwrap());
/// const EXPORTS: Quota = Quota::per_day(NonZeroU32::MIN).burst(NonZeroU32::MIN);
/// assert_eq!(API.to_string(), "50 per second");
/// assert_eq!(EXPORTS.to_string(), "1 per day");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    pub(crate) tokens: NonZeroU32,
    /// Not zero.
    pub(crate) period: Duration,
    /// By default as the role of the layer has it.
    pub(crate) burst: Option<NonZeroU32>,
    name: Option<&'static str>,
}

impl Quota {
    /// So many a second.
    #[must_use]
    pub const fn per_second(tokens: NonZeroU32) -> Self {
        Self::of(tokens, Duration::from_secs(1))
    }

    /// So many a minute.
    #[must_use]
    pub const fn per_minute(tokens: NonZeroU32) -> Self {
        Self::of(tokens, Duration::from_mins(1))
    }

    /// So many an hour.
    #[must_use]
    pub const fn per_hour(tokens: NonZeroU32) -> Self {
        Self::of(tokens, Duration::from_hours(1))
    }

    /// So many a day of 24 hours.
    #[must_use]
    pub const fn per_day(tokens: NonZeroU32) -> Self {
        Self::of(tokens, Duration::from_hours(24))
    }

    /// So many in this time; nothing if it is no time at all.
    #[must_use]
    pub const fn per(tokens: NonZeroU32, period: Duration) -> Option<Self> {
        if period.is_zero() {
            None
        } else {
            Some(Self::of(tokens, period))
        }
    }

    /// Lets this many come at once after a time without any.
    ///
    /// By default the first quota of a layer lets as many come at once as come in 100 ms, or in a second where calls are
    /// refused, and one at least: of a thousand an hour, one. A quota that is [added](crate::RateLimitLayer::and) to it lets
    /// all come at once that come in its period.
    ///
    /// A client that sends more than some hundred a second needs a burst: it is woken by a timer of milliseconds, and what is
    /// late is only made up for within the burst.
    #[must_use]
    pub const fn burst(self, burst: NonZeroU32) -> Self {
        Self {
            burst: Some(burst),
            ..self
        }
    }

    /// Tells it from the other quotas of a layer, to those who are refused or told what is left; by default `second`,
    /// `minute`, `hour`, `day`, or the time that it is for.
    #[must_use]
    pub const fn name(self, name: &'static str) -> Self {
        Self {
            name: Some(name),
            ..self
        }
    }

    /// How others are told of it.
    pub(crate) fn policy(&self) -> QuotaPolicy {
        const SECOND: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_mins(1);
        const HOUR: Duration = Duration::from_hours(1);
        const DAY: Duration = Duration::from_hours(24);

        QuotaPolicy {
            name: match (self.name, self.period) {
                (Some(name), _) => name.into(),
                (None, SECOND) => "second".into(),
                (None, MINUTE) => "minute".into(),
                (None, HOUR) => "hour".into(),
                (None, DAY) => "day".into(),
                (None, period) => Cow::Owned(format!("{period:?}")),
            },
            tokens: self.tokens.get().into(),
            window: self.period,
        }
    }

    const fn of(tokens: NonZeroU32, period: Duration) -> Self {
        Self {
            tokens,
            period,
            burst: None,
            name: None,
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.policy().fmt(f)
    }
}
