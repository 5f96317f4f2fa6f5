//! Look at a limiter from outside, and change what it allows.

use std::{hash::Hash, sync::Arc, time::Duration};

use crate::{
    Quota, keys,
    limiter::{Limiter, SHARED},
};

/// A limiter, for its operator. See the [crate docs](crate) for an example.
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

    /// The handle for the limit of one key, of the type that [`by_key`](crate::RateLimitLayer::by_key) makes: its hash tells
    /// it from others. Without it, the handle of a limiter with keys is for the limit that those share who find no room. Where there
    /// are no keys, it is the same handle again.
    #[must_use]
    pub fn of<K: Hash + ?Sized>(&self, key: &K) -> Self {
        let tag = match self.limiter.settings.max_keys {
            Some(_) => keys::tag(key, &self.limiter.hasher),
            None => SHARED,
        };
        Self::new(self.limiter.clone(), tag)
    }

    /// How many keys have taken something that has not come back yet. It looks at the room of all, so ask seldom.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.limiter.keys()
    }

    /// The tokens that can be taken at once, by the quota that has the fewest.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.limiter.look(self.tag).0
    }

    /// How long a call would wait that came now and cost one token.
    #[must_use]
    pub fn next_free(&self) -> Duration {
        self.limiter.look(self.tag).1
    }

    /// How many calls wait.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.limiter.look(self.tag).2
    }

    /// One of the quotas, the first of which is number 0.
    #[must_use]
    pub fn quota(&self, number: usize) -> Option<Quota> {
        self.limiter.quota(number)
    }

    /// Changes a quota for all keys, the first of which is number 0. Returns false if there is none of that number. Keys that
    /// have a quota of their own keep it in place of number 0. It goes over all the room that there is for keys, and has
    /// calls wait for that: some milliseconds for a hundred thousand.
    ///
    /// What was taken stays taken, so that no time sees more than the larger of the two would allow. Those who wait have
    /// their turn when the new one gives it to them.
    #[must_use = "it says whether there is such a quota"]
    pub fn set_quota(&self, number: usize, quota: Quota) -> bool {
        self.limiter.set_quota(number, quota)
    }

    /// Puts right what a call was charged, when it has turned out to cost something else. It may have cost more than there
    /// is: nobody is let through then until that is paid back. Settle soon: what was reserved long ago has come back by
    /// itself, and would be given back twice.
    pub fn settle(&self, reserved: u64, used: u64) {
        self.limiter.settle(self.tag, reserved, used);
    }
}
