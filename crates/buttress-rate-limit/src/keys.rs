//! One limit for all calls, or one for each key.

use std::{
    fmt::{self, Display},
    hash::{BuildHasher, Hash, RandomState},
    sync::Arc,
};

use crate::Quota;

/// The bytes of a key that are shown.
const LONGEST_TEXT: usize = 256;

pub(crate) mod sealed {
    pub trait Sealed {
        /// Do callers wait in `poll_ready`?
        const WAITS: bool = false;
    }

    impl<const WAITS: bool> Sealed for super::One<WAITS> {
        const WAITS: bool = WAITS;
    }

    impl<F, Q> Sealed for super::ByKey<F, Q> {}
}

/// Which limit a request falls under. [`One`] and [`ByKey`] implement it, and nothing else can.
pub trait Keys<Req>: sealed::Sealed {
    #[doc(hidden)]
    type Key;

    #[doc(hidden)]
    fn key(&self, request: &Req) -> Self::Key;

    /// Its hash; 0 for all who share one limit.
    #[doc(hidden)]
    fn tag(key: &Self::Key, hasher: &RandomState) -> u64;

    /// The key's own quota.
    #[doc(hidden)]
    fn quota(&self, key: &Self::Key) -> Option<Quota>;

    #[doc(hidden)]
    fn text(key: &Self::Key) -> Option<Arc<str>>;
}

/// All calls fall under one limit, and wait for it in the call, or in `poll_ready` with
/// [`backpressure`](crate::RateLimitLayer::backpressure).
#[derive(Clone, Copy, Debug, Default)]
pub struct One<const WAITS: bool = false>;

/// Each request falls under the limit of its key, as [`by_key`](crate::RateLimitLayer::by_key) sets it.
#[derive(Clone, Copy)]
pub struct ByKey<F, Q = SameQuota> {
    pub(crate) key: F,
    pub(crate) quota: Q,
}

/// Says what a key's quota is. A function or closure from a key to a [`Quota`] does too.
pub trait QuotaOf<K> {
    /// Its quota; that of the layer if it has none of its own.
    fn quota_of(&self, key: &K) -> Option<Quota>;
}

/// Every key has the quota of the layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct SameQuota;

impl<K> QuotaOf<K> for SameQuota {
    fn quota_of(&self, _: &K) -> Option<Quota> {
        None
    }
}

impl<K, F: Fn(&K) -> Quota> QuotaOf<K> for F {
    fn quota_of(&self, key: &K) -> Option<Quota> {
        Some(self(key))
    }
}

impl<Req, const WAITS: bool> Keys<Req> for One<WAITS> {
    type Key = ();

    fn key(&self, _: &Req) {}

    fn tag((): &(), _: &RandomState) -> u64 {
        0
    }

    fn quota(&self, (): &()) -> Option<Quota> {
        None
    }

    fn text((): &()) -> Option<Arc<str>> {
        None
    }
}

impl<Req, F, K, Q> Keys<Req> for ByKey<F, Q>
where
    F: Fn(&Req) -> K,
    K: Hash + Display,
    Q: QuotaOf<K>,
{
    type Key = K;

    fn key(&self, request: &Req) -> K {
        (self.key)(request)
    }

    fn tag(key: &K, hasher: &RandomState) -> u64 {
        tag(key, hasher)
    }

    fn quota(&self, key: &K) -> Option<Quota> {
        self.quota.quota_of(key)
    }

    fn text(key: &K) -> Option<Arc<str>> {
        let mut text = key.to_string();
        // Whoever makes up keys makes them as long as he likes.
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        Some(text.into())
    }
}

/// The hash of a key, which is never 0. The hasher has a seed of its own, so that nobody can aim at another's place.
pub(crate) fn tag<K: Hash + ?Sized>(key: &K, hasher: &RandomState) -> u64 {
    hasher.hash_one(key).max(1)
}

impl<F, Q> fmt::Debug for ByKey<F, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByKey")
    }
}
