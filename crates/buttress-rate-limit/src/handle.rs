//! Look at a limiter from outside, and change what it allows.

use std::{hash::Hash, sync::Arc, time::Duration};

use crate::{
    Quota, keys,
    limiter::{Limiter, SHARED},
};

/// A limiter, for its operator: shows how it stands, and changes what it allows. See the [crate docs](crate) for an example.
#[derive(Clone, Debug)]
pub struct Handle {
    limiter: Arc<Limiter>,
    /// Whose limit is meant.
    tag: u64,
}

impl Handle {
    pub(crate) fn new(limiter: Arc<Limiter>, tag: u64) -> Self {
        Self { limiter, tag }
    }

    /// The handle for the limit of one key. Give it the very type that [`by_key`](crate::RateLimitLayer::by_key) makes, or one
    /// with the same hash.
    ///
    /// A handle that is not made by this is, where there are keys, for the limit that is shared by those that find no room.
    /// Where there are no keys, this returns the same handle again.
    #[must_use]
    pub fn of<K: Hash + ?Sized>(&self, key: &K) -> Self {
        let tag = match self.limiter.settings.max_keys {
            Some(_) => keys::tag(key, &self.limiter.hasher),
            None => SHARED,
        };
        Self::new(self.limiter.clone(), tag)
    }

    /// How many keys lack tokens. It looks at the places of all keys, so ask seldom.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.limiter.keys()
    }

    /// The tokens that can be taken at once, by the quota that has the fewest.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.limiter.look(self.tag).0
    }

    /// How long a call of one token would wait if it came now, behind those that wait already.
    #[must_use]
    pub fn next_free(&self) -> Duration {
        self.limiter.look(self.tag).1
    }

    /// How many calls are waiting, for the same limit.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.limiter.look(self.tag).2
    }

    /// One of the layer's quotas; `None` if there is none of this number. The first is number 0, and each
    /// [`and`](crate::RateLimitLayer::and) adds the next.
    #[must_use]
    pub fn quota(&self, number: usize) -> Option<Quota> {
        self.limiter.quota(number)
    }

    /// Changes a quota for all keys; the first one is number 0. Returns false if there is none of that number. Keys with a
    /// quota of their own keep it in place of number 0.
    ///
    /// What was taken stays taken, so that no window of time sees more than the larger of the two would allow. Calls that
    /// wait get their turn by the new quota; one that costs more than its burst is refused then.
    ///
    /// It goes over the places of all keys, and calls wait for that: some milliseconds for a hundred thousand keys.
    #[must_use = "it says whether there is such a quota"]
    pub fn set_quota(&self, number: usize, quota: Quota) -> bool {
        self.limiter.set_quota(number, quota)
    }

    /// Corrects what a call was charged: it `reserved` so many tokens, and has `used` so many.
    ///
    /// It may have used more than there are: then tokens are owed, and no call is let through until they are paid back.
    /// Settle soon: tokens that were reserved long ago have come back by themselves, and would be given back twice.
    pub fn settle(&self, reserved: u64, used: u64) {
        self.limiter.settle(self.tag, reserved, used);
    }
}
