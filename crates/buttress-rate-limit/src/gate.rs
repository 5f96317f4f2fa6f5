//! Waiting in `poll_ready` instead of in the call.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use buttress_core::clock;
use tokio::time::{Sleep, sleep};

use crate::{grant::Grant, limiter::Limiter};

/// What a service holds that waits in `poll_ready`. Dropped, it gives everything back.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// The token, from readiness to the call, or the place in the line before.
    grant: Option<Grant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Gate {
    pub(crate) fn poll(&mut self, limiter: &Arc<Limiter>, cx: &mut Context<'_>) -> Poll<()> {
        let grant = self.grant.get_or_insert_with(|| limiter.join());
        // It costs one token, and no quota holds less.
        while let Ok(Some(until)) = grant.poll(cx.waker()) {
            let left = until.saturating_duration_since(clock::now());
            let timer = self.timer.insert(Box::pin(sleep(left)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        self.timer = None;
        Poll::Ready(())
    }

    /// Waits no more, and gives back what it has.
    pub(crate) fn leave(&mut self) {
        *self = Self::default();
    }

    /// The token, if the service was polled until it was ready.
    pub(crate) fn take(&mut self) -> Option<Grant> {
        self.grant.take().filter(Grant::is_granted)
    }
}
