//! The future of a call.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project::pin_project;
use tokio::runtime::Handle;

use crate::ResponseBody;

/// The response of an [`Idempotency`](crate::Idempotency) service.
///
/// It may be dropped at any time. A request without a key is dropped with it, and so is one that
/// [waits](crate::IdempotencyLayer::wait) for the answer to another. Any other request with a key is done all the same, and
/// its answer is kept for duplicates.
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
    Keyed(Keyed<RB, E>),
}

/// A request with a key. It is run by whoever waits for it, and when nobody does any more, in a task of its own.
struct Keyed<RB: Body, E> {
    /// Nothing while it is polled, so that what has panicked is not run on, and after its end.
    next: Option<Next<RB, E>>,
    runtime: Handle,
}

/// What comes next of a request with a key.
pub(crate) enum Next<RB: Body, E> {
    /// Its answer.
    Answer(Result<Response<ResponseBody<RB>>, E>),
    /// It is run.
    Runs(Pin<Box<dyn Run<Self>>>),
    /// It waits for another one.
    Waits(Pin<Box<dyn Future<Output = Self> + Send>>),
}

/// A future that can be given to a runtime, whatever its output.
pub(crate) trait Run<O>: Future<Output = O> + Send {
    fn run_on(self: Pin<Box<Self>>, runtime: &Handle);
}

impl<R> Run<R::Output> for R
where
    R: Future<Output: Send> + Send + 'static,
{
    fn run_on(self: Pin<Box<Self>>, runtime: &Handle) {
        runtime.spawn(self);
    }
}

impl<RB: Body, E> Drop for Keyed<RB, E> {
    fn drop(&mut self) {
        if let Some(Next::Runs(run)) = self.next.take() {
            run.run_on(&self.runtime);
        }
    }
}

impl<RB: Body, E> Keyed<RB, E> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<ResponseBody<RB>>, E>> {
        loop {
            let mut now = self.next.take().expect(OVER);
            let next = match &mut now {
                Next::Runs(run) => run.as_mut().poll(cx),
                Next::Waits(waiting) => waiting.as_mut().poll(cx),
                Next::Answer(_) => unreachable!("it is given away at once"),
            };
            match next {
                Poll::Pending => {
                    self.next = Some(now);
                    return Poll::Pending;
                }
                Poll::Ready(Next::Answer(answer)) => return Poll::Ready(answer),
                Poll::Ready(next) => self.next = Some(next),
            }
        }
    }
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

    /// # Panics
    ///
    /// Outside of a runtime of tokio.
    pub(crate) fn keyed(next: Next<RB, E>) -> Self {
        let state = State::Keyed(Keyed {
            next: Some(next),
            runtime: Handle::current(),
        });
        Self { state }
    }
}

const OVER: &str = "it was polled after its end";

impl<F, RB, E> Future for ResponseFuture<F, RB, E>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: Body<Data = Bytes>,
{
    type Output = Result<Response<ResponseBody<RB>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Passed(future) => {
                let response = ready!(future.poll(cx))?;
                Poll::Ready(Ok(response.map(ResponseBody::of_service)))
            }
            StateProj::Answered(response) => {
                let response = response.take().expect(OVER);
                Poll::Ready(Ok(response.map(ResponseBody::whole)))
            }
            StateProj::Keyed(keyed) => keyed.poll(cx),
        }
    }
}

impl<F, RB: Body, E> fmt::Debug for ResponseFuture<F, RB, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Passed(_) => "Passed",
            State::Answered(_) => "Answered",
            State::Keyed(_) => "Keyed",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
