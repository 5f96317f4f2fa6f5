//! Those who wait for a breaker that lets nobody through, in the order they came.

use std::{collections::VecDeque, task::Waker};

/// Each waiter keeps a timer for the moment that is known, those behind the first [less exactly](Self::is_first), and is told
/// here if something happens earlier.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: VecDeque<Waiter>,
    last_ticket: u64,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    waker: Waker,
    /// Has it been woken, and not come back since?
    told: bool,
}

impl Queue {
    /// Waits under a ticket, a new one at first. Returns a waker that is not needed any more: to drop one may run code of
    /// somebody else, which the lock must not see.
    pub(crate) fn wait(&mut self, ticket: &mut Option<u64>, mut waker: Waker) -> Option<Waker> {
        if let Some(place) = ticket.and_then(|ticket| self.place(ticket)) {
            let waiter = &mut self.waiting[place];
            waiter.told = false;
            std::mem::swap(&mut waiter.waker, &mut waker);
            return Some(waker);
        }
        self.last_ticket += 1;
        *ticket = Some(self.last_ticket);
        self.waiting.push_back(Waiter {
            ticket: self.last_ticket,
            waker,
            told: false,
        });
        None
    }

    /// Is this the one whose turn is next? Only he need look the moment that a slot may be free: where a breaker is open for a
    /// few milliseconds at a time, all would look again and again in vain.
    pub(crate) fn is_first(&self, ticket: u64) -> bool {
        let first = self.waiting.front();
        first.is_some_and(|first| first.ticket == ticket)
    }

    /// Leaves the queue. Returns one's own waker, and who is to be told now: somebody has to be if one was and goes without a
    /// permit, or was the first, who keeps the time for all.
    pub(crate) fn leave(&mut self, ticket: u64, admitted: bool) -> [Option<Waker>; 2] {
        let was_first = self.is_first(ticket);
        let Some(left) = self
            .place(ticket)
            .and_then(|place| self.waiting.remove(place))
        else {
            return [None, None];
        };
        let next = if (left.told || was_first) && !admitted {
            self.tell(1).pop()
        } else {
            None
        };
        [Some(left.waker), next]
    }

    /// Tells so many, from the front on, who have not been told yet. One who was told and has not come back since may
    /// have gone elsewhere, and does not hold up those behind him again.
    pub(crate) fn tell(&mut self, number: usize) -> Vec<Waker> {
        let untold = self.waiting.iter_mut().filter(|waiter| !waiter.told);
        untold.take(number).map(Waiter::tell).collect()
    }

    fn place(&self, ticket: u64) -> Option<usize> {
        self.waiting
            .binary_search_by_key(&ticket, |waiter| waiter.ticket)
            .ok()
    }
}

impl Waiter {
    /// Takes the waker, to be woken outside the lock: a clone would be made within, by code of somebody else. Who comes back
    /// brings a new one.
    fn tell(&mut self) -> Waker {
        self.told = true;
        std::mem::replace(&mut self.waker, Waker::noop().clone())
    }
}
