//! What a call holds that waits for its tokens, or has them and is not made yet.

use std::{sync::Arc, task::Waker, time::Duration};

use buttress_core::{
    BoxError, LimitReport,
    clock::{self, Instant},
    sync::wake,
};

use crate::{Event, limiter::Limiter};

/// The tokens of one call, or its place in the line. Dropped before they are [spent](Self::spend), they are given back.
#[derive(Debug)]
pub(crate) struct Grant {
    limiter: Arc<Limiter>,
    /// Whose bucket it is.
    tag: u64,
    cost: u64,
    /// Nothing once its turn has come.
    ticket: Option<u64>,
    since: Instant,
    open: bool,
}

impl Grant {
    /// A place in the line of a tag.
    pub(crate) fn new(
        limiter: Arc<Limiter>,
        tag: u64,
        cost: u64,
        ticket: u64,
        since: Instant,
    ) -> Self {
        Self {
            limiter,
            tag,
            cost,
            ticket: Some(ticket),
            since,
            open: true,
        }
    }

    /// The moment to look again; nothing if the tokens are there. An error if they never will be, by a quota that was changed.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Result<Option<Instant>, BoxError> {
        let Some(ticket) = self.ticket else {
            return Ok(None);
        };
        let (mut mine, mut old) = (waker.clone(), Waker::noop().clone());
        let due = self.limiter.step(self.tag, |buckets, line, now| {
            if line.was_turned_away(ticket) {
                return None;
            }
            // Whoever looks need not be woken.
            line.wait(ticket, &mut old, buckets, now);
            let woken = line.advance(buckets, now);
            Some((line.wait(ticket, &mut mine, buckets, now), woken))
        });
        let due = match due {
            Some(Some((due, woken))) => {
                woken.into_iter().for_each(wake);
                due
            }
            Some(None) => {
                self.open = false;
                return Err(self.limiter.turn_away(self.tag, self.cost));
            }
            None => None,
        };
        if due.is_none() {
            self.ticket = None;
        }
        Ok(due.map(|due| self.limiter.moment(due)))
    }

    /// Are the tokens there?
    pub(crate) fn is_granted(&self) -> bool {
        self.ticket.is_none()
    }

    /// The call is made.
    pub(crate) fn spend<'a>(mut self, report: impl FnOnce() -> Option<&'a LimitReport>) {
        self.open = false;
        if self.limiter.settings.refuses
            && let Some(report) = report()
        {
            self.limiter.report_to(report, self.tag);
        }
        self.limiter.admitted(self.cost, || self.waited());
    }

    fn waited(&self) -> Duration {
        clock::now().saturating_duration_since(self.since)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let (ticket, cost) = (self.ticket, self.cost);
        // If there is no bucket any more, it was full, and has all its tokens.
        let _waker = self.limiter.step(self.tag, |buckets, line, now| {
            let left = ticket.and_then(|ticket| line.leave(ticket));
            if left.is_none() {
                buckets.give_back(now, cost);
            }
            left
        });
        let waited = self.waited();
        let events = &self.limiter.settings.events;
        events.emit(&Event::Cancelled { waited, cost });
    }
}
