//! A limiter as its calls share it: buckets and a line, behind a lock.

use std::{sync::Arc, task::Waker, time::Duration};

use buttress_core::{
    Events, Rejected,
    clock::{self, Instant},
    sync::{Mutex, lock},
};

use crate::{
    Event, Quota, Reason,
    bucket::{Buckets, Denial, after},
    gcra::{Denied, Rate},
    line::Line,
};

/// What the user sets.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) quotas: Vec<Quota>,
    /// How long a call may wait; nothing where it is refused at once.
    pub(crate) max_wait: Duration,
    pub(crate) refuses: bool,
    pub(crate) shadow: bool,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) events: Events<Event>,
}

impl Settings {
    fn rate(&self, quota: Quota) -> Rate {
        let burst = if self.refuses {
            Duration::from_secs(1)
        } else {
            Duration::from_millis(100)
        };
        Rate::new(quota, burst)
    }
}

#[derive(Debug)]
pub(crate) struct Limiter {
    start: Instant,
    locked: Mutex<Locked>,
    pub(crate) settings: Settings,
}

#[derive(Debug)]
struct Locked {
    quotas: Vec<Quota>,
    buckets: Buckets,
    line: Line,
}

/// What becomes of a call.
#[derive(Debug)]
pub(crate) enum Asked {
    Granted(Grant),
    Waits(Grant),
    Refused(Rejected),
}

/// The tokens of one call, or its place in the line. Dropped before they are [spent](Self::spend), they are given back.
#[derive(Debug)]
pub(crate) struct Grant {
    limiter: Arc<Limiter>,
    cost: u64,
    /// Nothing for a call that did not have to wait.
    ticket: Option<u64>,
    since: Instant,
    open: bool,
}

impl Limiter {
    pub(crate) fn new(settings: Settings) -> Self {
        let buckets = Buckets::new(settings.quotas.iter().map(|quota| settings.rate(*quota)));
        Self {
            start: clock::now(),
            locked: Mutex::new(Locked {
                quotas: settings.quotas.clone(),
                buckets,
                line: Line::default(),
            }),
            settings,
        }
    }

    /// Nanoseconds since it was made. A clock that steps back stands still.
    fn nanos(&self, now: Instant) -> u64 {
        now.to_bits().saturating_sub(self.start.to_bits())
    }

    /// Asks for tokens, and waits for them no longer than it may: that is known at once.
    pub(crate) fn ask(self: &Arc<Self>, cost: u64, deadline: Option<Instant>) -> Asked {
        let since = clock::now();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(since));
        let longest = left.map_or(self.settings.max_wait, |left| {
            left.min(self.settings.max_wait)
        });
        let (outcome, woken) = {
            let mut locked = lock(&self.locked);
            let now = self.nanos(since);
            let Locked { buckets, line, .. } = &mut *locked;
            let woken = line.advance(buckets, now);
            (self.decide(buckets, line, now, cost, longest), woken)
        };
        woken.into_iter().for_each(Waker::wake);
        let grant = |ticket, open| Grant {
            limiter: self.clone(),
            cost,
            ticket,
            since,
            open,
        };
        match outcome {
            Decision::Granted => Asked::Granted(grant(None, true)),
            Decision::WouldWait(wait) => {
                self.settings.events.emit(&Event::WouldWait { wait, cost });
                Asked::Granted(grant(None, true))
            }
            Decision::Waits(ticket) => Asked::Waits(grant(Some(ticket), true)),
            Decision::Denied(denial) => {
                let retry_after = match denial.denied {
                    Denied::For(wait) => Some(wait),
                    Denied::Forever => None,
                };
                let reason = if retry_after.is_some() {
                    Reason::Exceeded
                } else {
                    Reason::TooLarge
                };
                self.settings.events.emit(&Event::Refused {
                    reason,
                    quota: denial.quota,
                    cost,
                    retry_after,
                    shadow: self.settings.shadow,
                });
                if self.settings.shadow {
                    // Nothing is taken that would not have been.
                    return Asked::Granted(grant(None, false));
                }
                Asked::Refused(self.rejected(denial.quota, cost, retry_after))
            }
        }
    }

    fn decide(
        &self,
        buckets: &mut Buckets,
        line: &mut Line,
        now: u64,
        cost: u64,
        longest: Duration,
    ) -> Decision {
        match buckets.wait(now, line.cost(), cost) {
            Err(denial) => Decision::Denied(denial),
            // A call that costs nothing looks whether there is something, and waits for nobody.
            Ok((_, wait)) if wait.is_zero() && (line.len() == 0 || cost == 0) => {
                buckets.charge(now, cost);
                Decision::Granted
            }
            Ok((quota, wait)) if wait > longest => Decision::Denied(Denial {
                quota,
                denied: Denied::For(wait),
            }),
            Ok((_, wait)) if self.settings.shadow => {
                buckets.charge(now, cost);
                Decision::WouldWait(wait)
            }
            Ok((_, wait)) => Decision::Waits(line.join(cost, after(now, wait))),
        }
    }

    fn rejected(&self, quota: usize, cost: u64, retry_after: Option<Duration>) -> Rejected {
        let quota = self.quota(quota);
        let reason = match (retry_after, quota) {
            (Some(_), Some(quota)) => format!("the quota of {quota} is used up"),
            (_, Some(quota)) => format!("{cost} tokens are more than a burst of {quota} holds"),
            (_, None) => String::from("the quota is used up"),
        };
        let mut rejected = Rejected::new("rate limit", reason);
        if let Some(name) = &self.settings.name {
            rejected = rejected.named(name.clone());
        }
        match retry_after {
            Some(retry_after) => rejected.after(retry_after),
            None => rejected,
        }
    }

    /// Works on buckets and line, and wakes whose turn has come by that.
    fn step<T>(&self, work: impl FnOnce(&mut Locked, u64) -> T) -> T {
        let mut locked = lock(&self.locked);
        let now = self.nanos(clock::now());
        let done = work(&mut locked, now);
        let Locked { buckets, line, .. } = &mut *locked;
        let woken = line.advance(buckets, now);
        drop(locked);
        woken.into_iter().for_each(Waker::wake);
        done
    }

    pub(crate) fn quota(&self, quota: usize) -> Option<Quota> {
        lock(&self.locked).quotas.get(quota).copied()
    }

    pub(crate) fn set_quota(&self, place: usize, quota: Quota) -> bool {
        let rate = self.settings.rate(quota);
        let mut locked = lock(&self.locked);
        let now = self.nanos(clock::now());
        let Locked {
            quotas,
            buckets,
            line,
        } = &mut *locked;
        let Some(old) = quotas.get_mut(place) else {
            return false;
        };
        *old = quota;
        buckets.set(place, rate, now);
        let woken = line.reckon(buckets, now);
        drop(locked);
        woken.into_iter().for_each(Waker::wake);
        true
    }

    /// Puts right what a call was charged that has turned out to cost something else.
    pub(crate) fn settle(&self, reserved: u64, used: u64) {
        self.step(|locked, now| {
            if let Some(more) = used.checked_sub(reserved) {
                locked.buckets.charge(now, more);
            } else {
                locked.buckets.give_back(reserved - used);
            }
        });
    }

    /// The tokens that are there, how long until there is one, and how many wait.
    pub(crate) fn look(&self) -> (u64, Duration, usize) {
        self.step(|locked, now| {
            let line = &locked.line;
            let wait = locked.buckets.wait(now, line.cost(), 1);
            let wait = wait.map_or(Duration::ZERO, |(_, wait)| wait);
            (locked.buckets.left(now), wait, line.len())
        })
    }
}

enum Decision {
    Granted,
    Waits(u64),
    WouldWait(Duration),
    Denied(Denial),
}

impl Grant {
    /// The moment to look again; nothing if the tokens are there.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Option<Instant> {
        let ticket = self.ticket?;
        let (mut mine, mut old) = (waker.clone(), Waker::noop().clone());
        let due = self.limiter.step(|locked, now| {
            let Locked { buckets, line, .. } = locked;
            // Whoever looks need not be woken.
            line.wait(ticket, &mut old, buckets, now);
            let woken = line.advance(buckets, now);
            (line.wait(ticket, &mut mine, buckets, now), woken)
        });
        let (due, woken) = due;
        woken.into_iter().for_each(Waker::wake);
        if due.is_none() {
            self.ticket = None;
        }
        due.map(|due| self.limiter.start + Duration::from_nanos(due))
    }

    /// The call is made.
    pub(crate) fn spend(mut self) {
        self.open = false;
        let waited = clock::now().saturating_duration_since(self.since);
        self.limiter.settings.events.emit(&Event::Admitted {
            waited,
            cost: self.cost,
        });
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let (ticket, cost) = (self.ticket, self.cost);
        let _left = self.limiter.step(|locked, _| {
            let left = ticket.and_then(|ticket| locked.line.leave(ticket));
            if left.is_none() {
                locked.buckets.give_back(cost);
            }
            left
        });
        let waited = clock::now().saturating_duration_since(self.since);
        self.limiter
            .settings
            .events
            .emit(&Event::Cancelled { waited, cost });
    }
}
