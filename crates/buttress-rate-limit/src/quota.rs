//! How many tokens come in which time.

use std::{borrow::Cow, fmt, num::NonZeroU32, time::Duration};

use buttress_core::QuotaPolicy;

/// How many tokens come in a period, and how many of them can be taken at once. A call costs one token, unless the layer has
/// a [`cost`](crate::RateLimitLayer::cost).
///
/// No quota is invalid: neither the tokens nor the period can be zero. One that is known at compile time can be a `const`.
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
    /// By default it depends on the place in the layer, and on whether that refuses.
    pub(crate) burst: Option<NonZeroU32>,
    name: Option<&'static str>,
}

impl Quota {
    /// This many a second.
    #[must_use]
    pub const fn per_second(tokens: NonZeroU32) -> Self {
        Self::of(tokens, Duration::from_secs(1))
    }

    /// This many a minute.
    #[must_use]
    pub const fn per_minute(tokens: NonZeroU32) -> Self {
        Self::of(tokens, Duration::from_mins(1))
    }

    /// This many an hour.
    #[must_use]
    pub const fn per_hour(tokens: NonZeroU32) -> Self {
        Self::of(tokens, Duration::from_hours(1))
    }

    /// This many in 24 hours.
    #[must_use]
    pub const fn per_day(tokens: NonZeroU32) -> Self {
        Self::of(tokens, Duration::from_hours(24))
    }

    /// This many in a period of your own; `None` if the period is zero.
    #[must_use]
    pub const fn per(tokens: NonZeroU32, period: Duration) -> Option<Self> {
        if period.is_zero() {
            None
        } else {
            Some(Self::of(tokens, period))
        }
    }

    /// Lets this many tokens be taken at once after a time without calls.
    ///
    /// By default it is, for the first quota of a layer, the tokens that come in 100 ms, or in a second where calls are
    /// [refused](crate::RateLimitLayer::refuse), and at least one: of a thousand an hour, one. For a quota that is
    /// [added](crate::RateLimitLayer::and) it is all the tokens of the period.
    ///
    /// A client that sends more than a few hundred calls a second needs a burst of several: timers are accurate to a
    /// millisecond, and only within the burst is a late wake-up made up for.
    #[must_use]
    pub const fn burst(self, burst: NonZeroU32) -> Self {
        Self {
            burst: Some(burst),
            ..self
        }
    }

    /// Names it in refusals and reports, where it has to be told from the other quotas of its layer; by default `second`,
    /// `minute`, `hour`, `day`, or else its period, as in `5s`.
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
