//! What a rate limiter tells of itself, to those who write it into an answer.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// A quota of a limiter, as the field `RateLimit-Policy` has it (draft-ietf-httpapi-ratelimit-headers-10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaPolicy {
    /// What tells it from the other quotas: "hour".
    pub name: Cow<'static, str>,
    /// The tokens that come in a window.
    pub tokens: u64,
    /// The window.
    pub window: Duration,
}

impl fmt::Display for QuotaPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SECOND: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_mins(1);
        const HOUR: Duration = Duration::from_hours(1);
        const DAY: Duration = Duration::from_hours(24);

        write!(f, "{} per ", self.tokens)?;
        match self.window {
            SECOND => f.write_str("second"),
            MINUTE => f.write_str("minute"),
            HOUR => f.write_str("hour"),
            DAY => f.write_str("day"),
            window => write!(f, "{window:?}"),
        }
    }
}

/// Where a caller stands with a limiter, as the field `RateLimit` has it (draft-ietf-httpapi-ratelimit-headers-10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceLimit {
    /// All its quotas.
    pub policies: Arc<[QuotaPolicy]>,
    /// Which of them bounds the caller most: a place among `policies`.
    pub bound: usize,
    /// The tokens that are there by that one.
    pub remaining: u64,
    /// The time until one more is there; zero if it is full.
    pub reset: Duration,
}

impl ServiceLimit {
    /// The quota that bounds the caller most.
    #[must_use]
    pub fn policy(&self) -> Option<&QuotaPolicy> {
        self.policies.get(self.bound)
    }
}

/// Where limiters say how a caller stands whom they let through. Put it into a request's extensions; once the request is
/// answered, [`take`](Self::take) has what was said.
#[derive(Clone, Debug, Default)]
pub struct LimitReport(Arc<Mutex<Vec<ServiceLimit>>>);

impl LimitReport {
    /// Says how the caller stands with one limiter.
    pub fn add(&self, limit: ServiceLimit) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.push(limit);
    }

    /// What was said since the last time, from the outermost limiter on.
    #[must_use]
    pub fn take(&self) -> Vec<ServiceLimit> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut said)
    }
}
