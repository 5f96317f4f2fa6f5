//! What a call holds that waits for its tokens, or has them and is not made yet.

use std::{sync::Arc, task::Waker, time::Duration};

use buttress_core::{
    BoxError, LimitReport,
    clock::{self, Instant},
    sync::wake,
};

use crate::{Event, bucket::BackAt, limiter::Limiter, line::Fate};

/// The tokens of one call, or its place in the line. Dropped before they are [spent](Self::spend), they are given back.
#[derive(Debug)]
pub(crate) struct Grant {
    limiter: Arc<Limiter>,
    /// Whose bucket it is.
    tag: u64,
    cost: u64,
    state: State,
    since: Instant,
    /// Is it neither spent nor refused? Then it gives back what it has when it is dropped.
    open: bool,
}

#[derive(Debug)]
enum State {
    /// It holds this ticket, and has not heard that its turn has come.
    Waits(u64),
    /// It has its tokens, which will have come back by then: from then on there is nothing to give back.
    Has(BackAt),
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
            state: State::Waits(ticket),
            since,
            open: true,
        }
    }

    /// The moment to look again; nothing if the tokens are there. An error if they never will be, by a quota that was changed.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Result<Option<Instant>, BoxError> {
        let State::Waits(ticket) = self.state else {
            return Ok(None);
        };
        let (mut mine, mut old) = (waker.clone(), Waker::noop().clone());
        let looked = self.limiter.step(self.tag, |buckets, line, now| {
            // Whoever looks need not be woken.
            line.wait(ticket, &mut old, buckets, now);
            let woken = line.advance(buckets, now);
            let due = line.wait(ticket, &mut mine, buckets, now);
            (due, line.fate(ticket), woken)
        });
        let (due, fate, woken) = looked.unwrap_or_default();
        woken.into_iter().for_each(wake);
        match (due, fate) {
            (Some(due), _) => Ok(Some(self.limiter.moment(due))),
            (None, Some(Fate::TurnedAway)) => {
                self.open = false;
                Err(self.limiter.turn_away(self.tag, self.cost))
            }
            (None, Some(Fate::Granted(back_at))) => {
                self.state = State::Has(back_at);
                Ok(None)
            }
            // A place is not given to another key before everybody there knows his fate.
            (None, None) => {
                self.state = State::Has(BackAt::default());
                Ok(None)
            }
        }
    }

    /// Are the tokens there?
    pub(crate) fn is_granted(&self) -> bool {
        matches!(self.state, State::Has(_))
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
        let (state, cost) = (&self.state, self.cost);
        // If there is no bucket any more, it was full, and has all its tokens.
        let _waker = self
            .limiter
            .step(self.tag, |buckets, line, now| match state {
                State::Waits(ticket) => {
                    if let Some(Fate::Granted(back_at)) = line.fate(*ticket) {
                        buckets.give_back_until(now, cost, &back_at);
                    }
                    line.leave(*ticket)
                }
                State::Has(back_at) => {
                    buckets.give_back_until(now, cost, back_at);
                    None
                }
            });
        let waited = self.waited();
        let events = &self.limiter.settings.events;
        events.emit(&Event::Cancelled { waited, cost });
    }
}
