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
/// It may be dropped at any time. If it waits, those behind it move up at once; its tokens are given back until the call to
/// the service below is made.
#[pin_project]
#[must_use = "a call does nothing until its future is polled"]
pub struct ResponseFuture<S, Req, D = NoDeadline>
where
    S: Service<Req>,
{
    #[pin]
    state: State<S, Req, D>,
}

#[pin_project(project = StateProj)]
enum State<S, Req, D>
where
    S: Service<Req>,
{
    Called(#[pin] S::Future),
    Refused(Option<BoxError>),
    /// There is no call yet. What it needs is in a box: the future of a call that need not wait is to be small.
    Waiting(Pin<Box<Waiting<S, Req, D>>>),
}

#[pin_project]
struct Waiting<S, Req, D> {
    parts: Option<Parts<S, Req, D>>,
    /// There is one from the first poll on.
    #[pin]
    timer: Option<Sleep>,
}

/// What a call that waits is made of.
struct Parts<S, Req, D> {
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
        let state = State::Called(future);
        Self { state }
    }

    pub(crate) fn refused(error: BoxError) -> Self {
        let state = State::Refused(Some(error));
        Self { state }
    }

    pub(crate) fn waiting(service: S, request: Req, grant: Grant, deadline: D) -> Self {
        let parts = Some(Parts {
            service,
            request,
            grant,
            deadline,
        });
        let timer = None;
        let state = State::Waiting(Box::pin(Waiting { parts, timer }));
        Self { state }
    }
}

impl<S, Req, D> Future for ResponseFuture<S, Req, D>
where
    S: Service<Req, Error: Into<BoxError>>,
    D: Due<Req>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let waiting = match state.as_mut().project() {
                StateProj::Called(future) => return future.poll(cx).map_err(Into::into),
                StateProj::Refused(error) => {
                    let error = error.take().expect("it was polled after its end");
                    return Poll::Ready(Err(error));
                }
                StateProj::Waiting(waiting) => waiting.as_mut().project(),
            };
            let (parts, mut timer) = (waiting.parts, waiting.timer);
            let waits = parts.as_mut().expect("it was polled after its end");
            loop {
                let until = match waits.grant.poll(cx.waker()) {
                    Ok(Some(until)) => until,
                    Ok(None) => break,
                    Err(refused) => {
                        *parts = None;
                        return Poll::Ready(Err(refused));
                    }
                };
                let left = until.saturating_duration_since(clock::now());
                timer.set(Some(sleep(left)));
                if let Some(timer) = timer.as_mut().as_pin_mut() {
                    ready!(timer.poll(cx));
                }
            }
            timer.set(None);
            if let Err(error) = ready!(waits.service.poll_ready(cx)) {
                *parts = None;
                return Poll::Ready(Err(error.into()));
            }
            if let Some(Parts {
                mut service,
                request,
                grant,
                deadline,
            }) = parts.take()
            {
                grant.spend(|| deadline.report(&request));
                state.set(State::Called(service.call(request)));
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
            State::Waiting(_) => "Waiting",
            State::Called(_) => "Called",
            State::Refused(_) => "Refused",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
