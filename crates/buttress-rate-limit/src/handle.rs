//! Look at a limiter from outside, and change what it allows.

use std::{sync::Arc, time::Duration};

use crate::{Quota, limiter::Limiter};

/// A limiter, for its operator. See the [crate docs](crate) for an example.
#[derive(Clone, Debug)]
pub struct Handle {
    limiter: Arc<Limiter>,
}

impl Handle {
    pub(crate) fn new(limiter: Arc<Limiter>) -> Self {
        Self { limiter }
    }

    /// The tokens that can be taken at once, by the quota that has the fewest.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.limiter.look().0
    }

    /// How long a call would wait that came now and cost one token.
    #[must_use]
    pub fn next_free(&self) -> Duration {
        self.limiter.look().1
    }

    /// How many calls wait.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.limiter.look().2
    }

    /// One of the quotas, the first of which is number 0.
    #[must_use]
    pub fn quota(&self, number: usize) -> Option<Quota> {
        self.limiter.quota(number)
    }

    /// Changes a quota, the first of which is number 0. Returns false if there is none of that number.
    ///
    /// What was taken stays taken, so that no time sees more than the larger of the two would allow. Those who wait have
    /// their turn when the new one gives it to them.
    #[must_use = "it says whether there is such a quota"]
    pub fn set_quota(&self, number: usize, quota: Quota) -> bool {
        self.limiter.set_quota(number, quota)
    }

    /// Puts right what a call was charged, when it has turned out to cost something else. It may have cost more than there
    /// is: nobody is let through then until that is paid back.
    pub fn settle(&self, reserved: u64, used: u64) {
        self.limiter.settle(reserved, used);
    }
}
