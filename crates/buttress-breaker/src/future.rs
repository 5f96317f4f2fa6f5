//! The future of a call.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use buttress_core::{BoxError, Classify};
use pin_project::pin_project;

use crate::{
    Reason,
    call::Call,
    track::{Track, Watched},
};

/// The response of a [`Breaker`](crate::Breaker) service.
///
/// It may be dropped at any time: a probe's slot is free again at once, and the call counts for nothing, unless it has
/// taken longer than the breaker's [`patience`](crate::BreakerLayer::patience).
#[pin_project]
#[must_use = "a call does nothing until its future is polled"]
pub struct ResponseFuture<F, C, T> {
    #[pin]
    state: State<F>,
    classifier: C,
    track: T,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Called {
        #[pin]
        future: F,
        // Dropped after the future, whose slot is free when it is gone.
        call: Option<Call>,
    },
    Refused(Option<BoxError>),
}

impl<F, C, T> ResponseFuture<F, C, T> {
    pub(crate) fn called(future: F, call: Call, classifier: C, track: T) -> Self {
        Self {
            state: State::Called {
                future,
                call: Some(call),
            },
            classifier,
            track,
        }
    }

    pub(crate) fn refused(error: BoxError, classifier: C, track: T) -> Self {
        Self {
            state: State::Refused(Some(error)),
            classifier,
            track,
        }
    }
}

impl<F, C, T, Res, E> Future for ResponseFuture<F, C, T>
where
    F: Future<Output = Result<Res, E>>,
    E: Into<BoxError>,
    C: Classify<Res>,
    T: Track<Res, C>,
{
    type Output = Result<T::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (future, slot) = match this.state.project() {
            StateProj::Called { future, call } => (future, call),
            StateProj::Refused(error) => {
                let error = error.take().expect("it was polled after its end");
                return Poll::Ready(Err(error));
            }
        };
        let call = slot.as_mut().filter(|call| !call.is_over());
        let call = call.expect("it was polled after its end");
        let Poll::Ready(result) = call.run(|| future.poll(cx)) else {
            call.wait();
            return Poll::Pending;
        };
        let (track, classifier) = (this.track, this.classifier);
        // Judged where it is: to move a large response would take longer.
        if let Ok(response) = &result {
            track.judge(classifier, response, Watched(slot));
        }
        match result {
            Ok(response) => Poll::Ready(Ok(track.pass(classifier, response, Watched(slot)))),
            Err(error) => {
                let error = error.into();
                if let Some(call) = slot {
                    call.fail(classifier, &error, Reason::Error);
                }
                Poll::Ready(Err(error))
            }
        }
    }
}

impl<F, C, T> fmt::Debug for ResponseFuture<F, C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Called {
                call: Some(call), ..
            } if !call.is_over() => "Called",
            State::Called { .. } => "Ended",
            State::Refused(_) => "Refused",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
