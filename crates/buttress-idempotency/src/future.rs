//! The future of a call.

use std::{
    fmt,
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project::pin_project;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::ResponseBody;

/// The response of an [`Idempotency`](crate::Idempotency) service.
///
/// It may be dropped at any time. A request without a key is dropped with it; one with a key is done all the same, and its
/// answer kept for when it comes again.
#[pin_project]
#[must_use = "a call does nothing until its future is polled"]
pub struct ResponseFuture<F, RB: Body, E> {
    #[pin]
    state: State<F, RB, E>,
}

#[pin_project(project = StateProj)]
enum State<F, RB: Body, E> {
    Passed(#[pin] F),
    Answered(Option<Response<Bytes>>),
    Running {
        reply: oneshot::Receiver<Result<Response<ResponseBody<RB>>, E>>,
        task: JoinHandle<()>,
        /// The answer if it is cut off.
        cut: Option<Response<Bytes>>,
    },
}

impl<F, RB: Body, E> ResponseFuture<F, RB, E> {
    pub(crate) fn passed(future: F) -> Self {
        let state = State::Passed(future);
        Self { state }
    }

    pub(crate) fn answered(response: Response<Bytes>) -> Self {
        let state = State::Answered(Some(response));
        Self { state }
    }

    pub(crate) fn running(
        reply: oneshot::Receiver<Result<Response<ResponseBody<RB>>, E>>,
        task: JoinHandle<()>,
        cut: Response<Bytes>,
    ) -> Self {
        let cut = Some(cut);
        let state = State::Running { reply, task, cut };
        Self { state }
    }
}

impl<F, RB, E> Future for ResponseFuture<F, RB, E>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: Body<Data = Bytes>,
{
    type Output = Result<Response<ResponseBody<RB>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const OVER: &str = "it was polled after its end";

        match self.project().state.project() {
            StateProj::Passed(future) => {
                let response = ready!(future.poll(cx))?;
                Poll::Ready(Ok(response.map(ResponseBody::of_service)))
            }
            StateProj::Answered(response) => {
                let response = response.take().expect(OVER);
                Poll::Ready(Ok(response.map(ResponseBody::whole)))
            }
            StateProj::Running { reply, task, cut } => {
                if let Ok(result) = ready!(Pin::new(reply).poll(cx)) {
                    return Poll::Ready(result);
                }
                // Without a reply it has panicked, which is whose business it would have been without this layer; or there
                // was no more time.
                if let Err(error) = ready!(Pin::new(task).poll(cx))
                    && let Ok(panic) = error.try_into_panic()
                {
                    resume_unwind(panic);
                }
                let response = cut.take().expect(OVER);
                Poll::Ready(Ok(response.map(ResponseBody::whole)))
            }
        }
    }
}

impl<F, RB: Body, E> fmt::Debug for ResponseFuture<F, RB, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Passed(_) => "Passed",
            State::Answered(_) => "Answered",
            State::Running { .. } => "Running",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
