//! What a rate limiter tells of its quotas, for those who write it into a response.

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
    /// The name that tells it from the limiter's other quotas, for example "hour".
    pub name: Cow<'static, str>,
    /// How many tokens come in each window.
    pub tokens: u64,
    /// How long a window is.
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

/// The quotas of a limiter, as a shared list: a clone is cheap. Make one with `collect`, and read it as a slice.
#[derive(Clone, Debug)]
pub struct Policies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    list: Box<[QuotaPolicy]>,
    kept: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Policies {
    /// Are both clones of one list, of one limiter, and not just equal?
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What `write` makes of the list. The first result is kept for the next time, and only for its type: another type is
    /// written anew each time.
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
    /// All quotas of the limiter.
    pub policies: Policies,
    /// Which of them bounds the caller most: an index into `policies`.
    pub bound: usize,
    /// The tokens that are left in that quota.
    pub remaining: u64,
    /// The time until that quota has one token more; zero if it is full.
    pub reset: Duration,
}

impl ServiceLimit {
    /// The quota that bounds the caller most; `None` if `bound` is no index into `policies`.
    #[must_use]
    pub fn policy(&self) -> Option<&QuotaPolicy> {
        self.policies.get(self.bound)
    }
}

/// Collects where a caller stands with the limiters that let him through. Put it into a request's extensions, and
/// [`take`](Self::take) what the limiters below have added once there is a response.
#[derive(Clone, Debug, Default)]
pub struct LimitReport(Arc<Mutex<Vec<ServiceLimit>>>);

impl LimitReport {
    /// Adds where the caller stands with one limiter.
    pub fn add(&self, limit: ServiceLimit) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.push(limit);
    }

    /// Takes what was added since the last time, the outermost limiter first.
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
