//! The buckets of several quotas, taken from all together or not at all. Plain data: no lock, no clock, no I/O.

use std::time::Duration;

use crate::gcra::{Denied, Rate};

/// A bucket for each quota. Moments are nanoseconds since the limiter was made.
#[derive(Clone, Debug)]
pub(crate) struct Buckets(Vec<Bucket>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    /// When it will be full again, in units of its rate.
    full: u128,
}

/// A call that is not let through now: by which quota, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    pub(crate) quota: usize,
    pub(crate) denied: Denied,
}

impl Denial {
    /// The moment from which on it would be let through.
    pub(crate) fn due(&self, now: u64) -> u64 {
        match self.denied {
            Denied::For(wait) => after(now, wait),
            Denied::Forever => u64::MAX,
        }
    }
}

/// A moment that is later by this much.
pub(crate) fn after(now: u64, wait: Duration) -> u64 {
    now.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}

impl Buckets {
    pub(crate) fn new(rates: impl IntoIterator<Item = Rate>) -> Self {
        Self(
            rates
                .into_iter()
                .map(|rate| Bucket { rate, full: 0 })
                .collect(),
        )
    }

    /// Takes `cost` tokens out of each bucket, or none out of any.
    pub(crate) fn take(&mut self, now: u64, cost: u64) -> Result<(), Denial> {
        let wait = self.wait(now, 0, cost)?;
        if wait.1.is_zero() {
            self.charge(now, cost);
            return Ok(());
        }
        Err(Denial {
            quota: wait.0,
            denied: Denied::For(wait.1),
        })
    }

    /// How long `cost` tokens have to be waited for behind those who wait for so many already, and for which quota.
    pub(crate) fn wait(
        &self,
        now: u64,
        ahead: u64,
        cost: u64,
    ) -> Result<(usize, Duration), Denial> {
        let mut longest = (0, Duration::ZERO);
        for (quota, bucket) in self.0.iter().enumerate() {
            match bucket.wait(now, ahead, cost) {
                Ok(wait) if wait > longest.1 => longest = (quota, wait),
                Ok(_) => {}
                Err(denied) => return Err(Denial { quota, denied }),
            }
        }
        Ok(longest)
    }

    /// Takes `cost` tokens out of each bucket, though it may owe them then.
    pub(crate) fn charge(&mut self, now: u64, cost: u64) {
        for Bucket { rate, full } in &mut self.0 {
            *full = rate.units(now).max(*full).saturating_add(rate.time(cost));
        }
    }

    /// Puts tokens back that were taken and came to nothing.
    pub(crate) fn give_back(&mut self, cost: u64) {
        for Bucket { rate, full } in &mut self.0 {
            *full = full.saturating_sub(rate.time(cost));
        }
    }

    /// The tokens that can be taken at once.
    pub(crate) fn left(&self, now: u64) -> u64 {
        let left = self
            .0
            .iter()
            .map(|Bucket { rate, full }| rate.left(*full, rate.units(now)));
        left.min().unwrap_or(0)
    }

    /// Changes a quota. What was taken stays taken, as far as the new bucket holds it.
    pub(crate) fn set(&mut self, quota: usize, rate: Rate, now: u64) {
        let Some(bucket) = self.0.get_mut(quota) else {
            return;
        };
        let old = bucket.rate;
        let taken = bucket
            .full
            .saturating_sub(old.units(now))
            .div_ceil(old.token);
        let taken = u64::try_from(taken).unwrap_or(u64::MAX).min(rate.burst);
        *bucket = Bucket {
            rate,
            full: rate.units(now).saturating_add(rate.time(taken)),
        };
    }
}

impl Bucket {
    fn wait(&self, now: u64, ahead: u64, cost: u64) -> Result<Duration, Denied> {
        let Self { rate, full } = self;
        match rate.take(*full, rate.units(now), ahead, cost) {
            Ok(_) => Ok(Duration::ZERO),
            Err(Denied::For(wait)) => Ok(wait),
            Err(Denied::Forever) => Err(Denied::Forever),
        }
    }
}
