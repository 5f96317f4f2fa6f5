//! Those who wait for tokens, in the order they came. Plain data, but for the wakers.

use std::{collections::VecDeque, mem, task::Waker, time::Duration};

use crate::bucket::{BackAt, Buckets, after};

/// Nobody is let through before all who came earlier.
#[derive(Debug, Default)]
pub(crate) struct Line {
    waiting: VecDeque<Waiter>,
    /// What they all wait for.
    cost: u128,
    /// Who waits no more, and does not know it yet.
    fates: Vec<(u64, Fate)>,
}

/// What has become of one who has waited.
#[derive(Debug)]
pub(crate) enum Fate {
    /// His turn came, and what he was given will have come back by then.
    Granted(BackAt),
    /// He asks for more than there is by now.
    TurnedAway,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    cost: u64,
    waker: Waker,
    /// When it looks by itself whether its turn has come.
    due: u64,
    /// Has it been polled? Then it looks again by itself when it is due.
    polled: bool,
}

impl Line {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Is there nobody left, neither one who waits nor one who is still to be told?
    pub(crate) fn is_deserted(&self) -> bool {
        self.waiting.is_empty() && self.fates.is_empty()
    }

    /// What has become of a ticket's holder, if he waits no more. He is told once.
    pub(crate) fn fate(&mut self, ticket: u64) -> Option<Fate> {
        let place = self.fates.iter().position(|(other, _)| *other == ticket)?;
        Some(self.fates.swap_remove(place).1)
    }

    /// What those who wait are waiting for.
    pub(crate) fn cost(&self) -> u128 {
        self.cost
    }

    /// Joins the end of the line, with a ticket that is higher than all that were given out before.
    pub(crate) fn join(&mut self, ticket: u64, cost: u64, now: u64, wait: Duration) {
        let due = looks_at(now, wait, self.len());
        self.cost += u128::from(cost);
        self.waiting.push_back(Waiter {
            ticket,
            cost,
            waker: Waker::noop().clone(),
            due,
            polled: false,
        });
    }

    /// Leaves the line before one's turn. Returns the waker, or nothing if one's turn has come.
    pub(crate) fn leave(&mut self, ticket: u64) -> Option<Waker> {
        let place = self.place(ticket)?;
        let left = self.waiting.remove(place)?;
        self.cost -= u128::from(left.cost);
        Some(left.waker)
    }

    /// When a ticket's holder is to look whether his turn has come; nothing if it has. He is woken by `waker` if it comes
    /// earlier. The waker from before is put in its place.
    pub(crate) fn wait(
        &mut self,
        ticket: u64,
        waker: &mut Waker,
        buckets: &Buckets<'_>,
        now: u64,
    ) -> Option<u64> {
        let place = self.place(ticket)?;
        if self.waiting[place].due <= now {
            // Somebody before has not come when his turn was, and has put everybody off.
            let ahead = self
                .waiting
                .iter()
                .take(place)
                .map(|waiter| u128::from(waiter.cost));
            let (ahead, cost) = (ahead.sum(), self.waiting[place].cost);
            self.waiting[place].due = match buckets.wait(now, ahead, cost) {
                Ok((_, wait)) => looks_at(now, wait, place),
                Err(_) => u64::MAX,
            };
        }
        let waiter = &mut self.waiting[place];
        waiter.polled = true;
        mem::swap(&mut waiter.waker, waker);
        Some(waiter.due)
    }

    /// Lets those through whose turn has come, and returns whom to wake: them, and the one who is then the first if he
    /// would look too late by himself.
    pub(crate) fn advance(&mut self, buckets: &mut Buckets<'_>, now: u64) -> Vec<Waker> {
        let mut woken = Vec::new();
        while let Some(first) = self.waiting.front_mut() {
            let Err(denial) = buckets.take(now, first.cost) else {
                self.cost -= u128::from(first.cost);
                let back_at = buckets.back_at(now);
                self.fates.push((first.ticket, Fate::Granted(back_at)));
                woken.extend(self.waiting.pop_front().map(|waiter| waiter.waker));
                continue;
            };
            let due = denial.due(now);
            if mem::replace(&mut first.due, due) > due && first.polled {
                woken.push(first.take_waker());
            }
            break;
        }
        woken
    }

    /// Reckons anew when everybody's turn will come, and returns them all: they have to look again. Who asks for more than
    /// there is now is turned away, and in nobody's way.
    pub(crate) fn reckon(&mut self, buckets: &Buckets<'_>, now: u64) -> Vec<Waker> {
        let woken = self.waiting.iter_mut().map(Waiter::take_waker).collect();
        let (mut ahead, fates) = (0, &mut self.fates);
        self.waiting.retain_mut(|waiter| {
            let Ok((_, wait)) = buckets.wait(now, ahead, waiter.cost) else {
                fates.push((waiter.ticket, Fate::TurnedAway));
                return false;
            };
            waiter.due = looks_at(now, wait, usize::from(ahead > 0));
            ahead += u128::from(waiter.cost);
            true
        });
        self.cost = ahead;
        woken
    }

    fn place(&self, ticket: u64) -> Option<usize> {
        self.waiting
            .binary_search_by_key(&ticket, |waiter| waiter.ticket)
            .ok()
    }
}

/// When somebody looks by himself whose turn is after this time: the first one then, and those behind him somewhat later.
/// Each of them is woken when he is the first; timers of milliseconds make everybody late, and all would look in vain.
fn looks_at(now: u64, wait: Duration, place: usize) -> u64 {
    let slack = if place == 0 {
        Duration::ZERO
    } else {
        wait / 4 + Duration::from_millis(2)
    };
    after(now, wait.saturating_add(slack))
}

impl Waiter {
    /// Takes the waker, to be woken outside the lock: a clone would be made within, by code of somebody else. Who comes back
    /// brings a new one.
    fn take_waker(&mut self) -> Waker {
        mem::replace(&mut self.waker, Waker::noop().clone())
    }
}
