//! Waiting for a breaker instead of being refused.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use buttress_core::clock;
use tokio::time::{Sleep, sleep};

use crate::{call::Call, circuit::Permit, shared::Shared};

/// What a service holds that waits in `poll_ready`. Dropped, it gives everything back.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// The slot of a probe, from readiness to the call.
    held: Option<Call>,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    shared: Arc<Shared>,
    ticket: Option<u64>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Gate {
    pub(crate) fn poll(&mut self, shared: &Arc<Shared>, cx: &mut Context<'_>) -> Poll<()> {
        self.held = self.held.take().filter(Call::is_good);
        if self.held.is_some() || shared.pass().is_some() {
            self.waiting = None;
            return Poll::Ready(());
        }
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            shared: shared.clone(),
            ticket: None,
            timer: None,
        });
        loop {
            let until = match shared.admit_or_wait(&mut waiting.ticket, cx.waker()) {
                Ok(permit) => {
                    self.held = Some(Call::reserved(shared.clone(), permit));
                    self.waiting = None;
                    return Poll::Ready(());
                }
                Err(None) => {
                    waiting.timer = None;
                    return Poll::Pending;
                }
                Err(Some(until)) => until,
            };
            let left = until.saturating_duration_since(clock::now());
            let timer = waiting.timer.insert(Box::pin(sleep(left)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Waits no more.
    pub(crate) fn leave(&mut self) {
        self.waiting = None;
    }

    /// The slot that was taken, if it is still good.
    #[inline(never)]
    pub(crate) fn take(&mut self) -> Option<Permit> {
        let held = self.held.take().filter(Call::is_good);
        held.map(Call::into_permit)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.shared.leave(ticket);
        }
    }
}
