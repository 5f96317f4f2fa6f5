//! The future of a call.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use buttress_core::{BoxError, clock};
use pin_project::pin_project;
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use crate::{Due, NoDeadline, grant::Grant};

/// The response of a [`RateLimit`](crate::RateLimit) service.
///
/// It may be dropped at any time: while it waits, its tokens are there for those behind it at once.
#[pin_project]
#[must_use = "a call does nothing until its future is polled"]
pub struct ResponseFuture<S, Req, D = NoDeadline>
where
    S: Service<Req>,
{
    #[pin]
    state: State<S::Future>,
    waiting: Option<Waiting<S, Req, D>>,
    #[pin]
    timer: Option<Sleep>,
}

#[pin_project(project = StateProj)]
enum State<F> {
    /// There is no call yet.
    Waiting,
    Called(#[pin] F),
    Refused(Option<BoxError>),
}

/// What a call that waits is made of.
struct Waiting<S, Req, D> {
    service: S,
    request: Req,
    grant: Grant,
    deadline: D,
}

impl<S, Req, D> ResponseFuture<S, Req, D>
where
    S: Service<Req>,
{
    pub(crate) fn called(future: S::Future) -> Self {
        Self::of(State::Called(future), None)
    }

    pub(crate) fn refused(error: BoxError) -> Self {
        Self::of(State::Refused(Some(error)), None)
    }

    pub(crate) fn waiting(service: S, request: Req, grant: Grant, deadline: D) -> Self {
        let waiting = Waiting {
            service,
            request,
            grant,
            deadline,
        };
        Self::of(State::Waiting, Some(waiting))
    }

    fn of(state: State<S::Future>, waiting: Option<Waiting<S, Req, D>>) -> Self {
        Self {
            state,
            waiting,
            timer: None,
        }
    }
}

impl<S, Req, D> Future for ResponseFuture<S, Req, D>
where
    S: Service<Req, Error: Into<BoxError>>,
    D: Due<Req>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Called(future) => return future.poll(cx).map_err(Into::into),
                StateProj::Refused(error) => {
                    let error = error.take().expect("it was polled after its end");
                    return Poll::Ready(Err(error));
                }
                StateProj::Waiting => {}
            }
            let waiting = this.waiting.as_mut();
            let waiting = waiting.expect("it was polled after its end");
            while let Some(until) = waiting.grant.poll(cx.waker()) {
                let left = until.saturating_duration_since(clock::now());
                this.timer.set(Some(sleep(left)));
                if let Some(timer) = this.timer.as_mut().as_pin_mut() {
                    ready!(timer.poll(cx));
                }
            }
            this.timer.set(None);
            if let Err(error) = ready!(waiting.service.poll_ready(cx)) {
                *this.waiting = None;
                return Poll::Ready(Err(error.into()));
            }
            if let Some(Waiting {
                mut service,
                request,
                grant,
                deadline,
            }) = this.waiting.take()
            {
                grant.spend(|| deadline.report(&request));
                this.state.set(State::Called(service.call(request)));
            }
        }
    }
}

impl<S, Req, D> fmt::Debug for ResponseFuture<S, Req, D>
where
    S: Service<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting => "Waiting",
            State::Called(_) => "Called",
            State::Refused(_) => "Refused",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
