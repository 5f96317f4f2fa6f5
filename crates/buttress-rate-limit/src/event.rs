//! What the layer does, for those who watch it.

use std::{fmt, sync::Arc, time::Duration};

/// Something that happened to a call or a key, as [`on_event`](crate::RateLimitLayer::on_event) reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A call was let through.
    #[non_exhaustive]
    Admitted {
        /// How long it had to wait; zero if it did not.
        waited: Duration,
        /// The tokens that it took.
        cost: u64,
    },
    /// A call was refused; in shadow mode, it would have been.
    #[non_exhaustive]
    Refused {
        /// Why.
        reason: Reason,
        /// Which of the layer's quotas it was, from 0.
        quota: usize,
        /// The tokens that it asked for.
        cost: u64,
        /// How long until it would be let through; nothing if it never would be.
        retry_after: Option<Duration>,
        /// Whose limit it is, where there is one for each key. It is missing where a call that waited is refused, since a
        /// quota was changed meanwhile.
        key: Option<Arc<str>>,
        /// Is this shadow mode? Then the call was let through.
        shadow: bool,
    },
    /// In shadow mode a call was let through that would have had to wait.
    #[non_exhaustive]
    WouldWait {
        /// How long.
        wait: Duration,
        /// The tokens that it took.
        cost: u64,
    },
    /// A call was dropped while it waited, or before it was made.
    #[non_exhaustive]
    Cancelled {
        /// How long it had waited.
        waited: Duration,
        /// The tokens that it has given back.
        cost: u64,
    },
    /// A key was forgotten to make room for another one. It had all its tokens, so it loses nothing.
    Evicted,
    /// A call came whose key found no room. Until it finds some, it shares one limit with all other keys that found none.
    Overflow,
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// There are not enough tokens, and the call may not wait long enough for them.
    Exceeded,
    /// It costs more than a burst holds, and is always refused.
    TooLarge,
}

impl Reason {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Exceeded => "the quota is used up",
            Self::TooLarge => "it costs more than a burst holds",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exceeded => "exceeded",
            Self::TooLarge => "too_large",
        })
    }
}
