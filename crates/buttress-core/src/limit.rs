//! What a rate limiter tells of itself, to those who write it into an answer.

use std::{
    any::Any,
    borrow::Cow,
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, OnceLock, PoisonError},
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

/// The quotas of a limiter, which it shares with whomever it tells of itself: a list that can be collected and iterated.
#[derive(Clone, Debug)]
pub struct Policies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    list: Box<[QuotaPolicy]>,
    kept: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Policies {
    /// Are they those of the same limiter, and not just equal?
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What `write` makes of them, which is kept for the next time: that of the first type that was asked for.
    #[doc(hidden)]
    pub fn written<T: Send + Sync + 'static>(&self, write: fn(&[QuotaPolicy]) -> T) -> Arc<T> {
        let kept = self.0.kept.get_or_init(|| Arc::new(write(self)));
        let kept = kept.clone().downcast();
        kept.unwrap_or_else(|_| Arc::new(write(self)))
    }
}

impl Deref for Policies {
    type Target = [QuotaPolicy];

    fn deref(&self) -> &[QuotaPolicy] {
        &self.0.list
    }
}

impl FromIterator<QuotaPolicy> for Policies {
    fn from_iter<I: IntoIterator<Item = QuotaPolicy>>(policies: I) -> Self {
        Self(Arc::new(Shared {
            list: policies.into_iter().collect(),
            kept: OnceLock::new(),
        }))
    }
}

impl PartialEq for Policies {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Policies {}

/// Where a caller stands with a limiter, as the field `RateLimit` has it (draft-ietf-httpapi-ratelimit-headers-10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceLimit {
    /// All its quotas.
    pub policies: Policies,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_of_policies_is_written_once_and_in_another_type_each_time() {
        let policy = QuotaPolicy {
            name: "hour".into(),
            tokens: 5,
            window: Duration::from_hours(1),
        };
        let policies = Policies::from_iter([policy]);
        let shared = policies.clone();
        let number = policies.written(<[_]>::len);
        assert!(Arc::ptr_eq(&number, &shared.written(|_| 7)));
        assert_eq!(*shared.written(|_| "day"), "day");
        assert_eq!(*shared.written(|_| "hour"), "hour");
    }
}
