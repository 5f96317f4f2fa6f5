//! The buckets of several quotas, taken from all together or not at all. Plain data: no lock, no clock, no I/O.

use std::{iter, time::Duration};

use crate::{
    Quota,
    gcra::{Denied, Rate},
};

/// A quota, and how it is reckoned with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) quota: Quota,
    pub(crate) rate: Rate,
}

/// The buckets of one key, or of all calls: one for each quota. Moments are nanoseconds since the limiter was made.
#[derive(Debug)]
pub(crate) struct Buckets<'a> {
    terms: &'a [Terms],
    /// The terms of the first quota, where each key has its own.
    own: Option<Terms>,
    /// When each will be full again, in units of its rate.
    full: &'a mut [u128],
    /// When everything will be paid back that was charged and was not there.
    owed_until: u64,
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

/// When what was taken from each bucket has come back, though nothing is given back. There is mostly one, which needs no list.
#[derive(Clone, Debug, Default)]
pub(crate) struct BackAt {
    first: u64,
    others: Vec<u64>,
}

/// A moment that is later by this much.
pub(crate) fn after(now: u64, wait: Duration) -> u64 {
    now.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}

impl<'a> Buckets<'a> {
    pub(crate) fn new(
        terms: &'a [Terms],
        own: Option<Terms>,
        full: &'a mut [u128],
        owed_until: u64,
    ) -> Self {
        Self {
            terms,
            own,
            full,
            owed_until,
        }
    }

    pub(crate) fn own(&self) -> Option<Terms> {
        self.own
    }

    pub(crate) fn owed_until(&self) -> u64 {
        self.owed_until
    }

    /// Changes the terms of the first quota to these, where each key has its own. Returns whether its quota is another now.
    pub(crate) fn set_own(&mut self, own: Terms, now: u64) -> bool {
        let Some(old) = self.own.replace(own) else {
            return false;
        };
        if let Some(full) = self.full.first_mut()
            && old.quota != own.quota
        {
            *full = own.rate.take_over(&old.rate, *full, now);
        }
        old.quota != own.quota
    }

    /// Takes `cost` tokens out of each bucket, or none out of any.
    pub(crate) fn take(&mut self, now: u64, cost: u64) -> Result<(), Denial> {
        let (quota, wait) = self.wait(now, 0, cost)?;
        if wait.is_zero() {
            self.charge(now, cost);
            return Ok(());
        }
        let denied = Denied::For(wait);
        Err(Denial { quota, denied })
    }

    /// How long `cost` tokens have to be waited for behind those who wait for so many already, and for which quota.
    pub(crate) fn wait(
        &self,
        now: u64,
        ahead: u128,
        cost: u64,
    ) -> Result<(usize, Duration), Denial> {
        let mut longest = (0, Duration::ZERO);
        for (quota, (Terms { rate, .. }, full)) in self.each().enumerate() {
            match rate.take(full, rate.units(now), ahead, cost) {
                Err(Denied::For(wait)) if wait > longest.1 => longest = (quota, wait),
                Ok(_) | Err(Denied::For(_)) => {}
                Err(denied @ Denied::Forever) => return Err(Denial { quota, denied }),
            }
        }
        Ok(longest)
    }

    /// Takes `cost` tokens out of each bucket, though it may owe them then.
    pub(crate) fn charge(&mut self, now: u64, cost: u64) {
        let mut owed_until = self.owed_until;
        for (Terms { rate, .. }, full) in self.each_mut() {
            *full = rate.charge(*full, rate.units(now), cost);
            let empty = rate.units(now).saturating_add(rate.capacity);
            if *full > empty {
                owed_until = owed_until.max(after(now, rate.duration(*full - empty)));
            }
        }
        self.owed_until = owed_until;
    }

    /// Puts tokens back that were taken and came to nothing, as far as the bucket holds them.
    pub(crate) fn give_back(&mut self, now: u64, cost: u64) {
        let never = BackAt {
            first: u64::MAX,
            others: vec![u64::MAX; self.terms.len()],
        };
        self.give_back_until(now, cost, &never);
    }

    /// Puts tokens back, but for those that have come back by themselves.
    pub(crate) fn give_back_until(&mut self, now: u64, cost: u64, back_at: &BackAt) {
        let back_at = iter::once(&back_at.first).chain(&back_at.others);
        for ((Terms { rate, .. }, full), back_at) in self.each_mut().zip(back_at) {
            if now < *back_at {
                let floor = rate.units(now).min(*full);
                *full = full.saturating_sub(rate.time(cost.into())).max(floor);
            }
        }
    }

    /// When everything that was taken so far has come back.
    pub(crate) fn back_at(&self, now: u64) -> BackAt {
        let mut each = self.each().map(|(Terms { rate, .. }, full)| {
            after(now, rate.duration(full.saturating_sub(rate.units(now))))
        });
        BackAt {
            first: each.next().unwrap_or_default(),
            others: each.collect(),
        }
    }

    /// The quota of which the fewest tokens can be taken at once.
    pub(crate) fn fewest(&self, now: u64) -> usize {
        let left = self
            .each()
            .map(|(Terms { rate, .. }, full)| rate.left(full, rate.units(now)));
        let fewest = left.enumerate().min_by_key(|(_, left)| *left);
        fewest.map_or(0, |(quota, _)| quota)
    }

    /// The tokens that are there by one quota, and how long until there is one more.
    pub(crate) fn standing(&self, quota: usize, now: u64) -> (u64, Duration) {
        let Some((Terms { rate, .. }, full)) = self.each().nth(quota) else {
            return (0, Duration::ZERO);
        };
        let now = rate.units(now);
        (rate.left(full, now), rate.next(full, now))
    }

    /// Lets nobody wait for longer than an empty bucket takes to be full, or until what was owed is paid back: where a bucket
    /// says otherwise, the clock has stepped back.
    pub(crate) fn keep_within(&mut self, now: u64) {
        let latest = now.max(self.owed_until);
        for (Terms { rate, .. }, full) in self.each_mut() {
            *full = (*full).min(rate.units(latest).saturating_add(rate.capacity));
        }
    }

    fn each(&self) -> impl Iterator<Item = (&Terms, u128)> {
        theirs(self.own.as_ref(), self.terms).zip(self.full.iter().copied())
    }

    fn each_mut(&mut self) -> impl Iterator<Item = (&Terms, &mut u128)> {
        theirs(self.own.as_ref(), self.terms).zip(&mut *self.full)
    }
}

fn theirs<'a>(own: Option<&'a Terms>, terms: &'a [Terms]) -> impl Iterator<Item = &'a Terms> {
    let shared = terms.iter().skip(usize::from(own.is_some()));
    iter::chain(own, shared)
}

/// Are all the buckets of a place full? Then it is as if nobody had ever taken anything.
pub(crate) fn are_full(own: Option<&Terms>, terms: &[Terms], full: &[u128], now: u64) -> bool {
    let mut each = theirs(own, terms).zip(full);
    each.all(|(Terms { rate, .. }, full)| *full <= rate.units(now))
}
