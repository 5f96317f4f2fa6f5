//! The future of a call.

use std::{
    fmt,
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
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
/// answer kept for when it comes again, unless it [waits](crate::IdempotencyLayer::wait) for another one that is.
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
    Keyed(Next<RB, E>, Arc<dyn Cut>),
}

/// What comes next of a request with a key.
pub(crate) enum Next<RB: Body, E> {
    /// Its answer.
    Answer(Result<Response<ResponseBody<RB>>, E>),
    /// A task has it.
    Runs(Running<RB, E>),
    /// It waits for another one.
    Waits(Pin<Box<dyn Future<Output = Self> + Send>>),
}

pub(crate) struct Running<RB: Body, E> {
    /// Ends without a word if the task is cut off.
    pub(crate) said: oneshot::Receiver<Next<RB, E>>,
    pub(crate) task: JoinHandle<()>,
}

/// Knows the answer to a request that was cut off.
pub(crate) trait Cut: Send + Sync {
    fn answer(&self) -> Response<Bytes>;
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

    pub(crate) fn running(running: Running<RB, E>, cut: Arc<dyn Cut>) -> Self {
        let state = State::Keyed(Next::Runs(running), cut);
        Self { state }
    }
}

impl<RB: Body, E> Running<RB, E> {
    fn poll(&mut self, cx: &mut Context<'_>, cut: &dyn Cut) -> Poll<Next<RB, E>> {
        if let Ok(next) = ready!(Pin::new(&mut self.said).poll(cx)) {
            return Poll::Ready(next);
        }
        // Without a word it has panicked, which is whose business it would have been without this layer; or there was no
        // more time.
        if let Err(error) = ready!(Pin::new(&mut self.task).poll(cx))
            && let Ok(panic) = error.try_into_panic()
        {
            resume_unwind(panic);
        }
        let response = cut.answer().map(ResponseBody::whole);
        Poll::Ready(Next::Answer(Ok(response)))
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
            StateProj::Keyed(state, cut) => loop {
                let next = match state {
                    Next::Runs(running) => ready!(running.poll(cx, &**cut)),
                    Next::Waits(waiting) => ready!(waiting.as_mut().poll(cx)),
                    Next::Answer(_) => unreachable!("{OVER}"),
                };
                match next {
                    Next::Answer(answer) => return Poll::Ready(answer),
                    next => *state = next,
                }
            },
        }
    }
}

impl<F, RB: Body, E> fmt::Debug for ResponseFuture<F, RB, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Passed(_) => "Passed",
            State::Answered(_) => "Answered",
            State::Keyed(..) => "Keyed",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
