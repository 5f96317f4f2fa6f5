//! The least service around a limiter.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project::pin_project;
use tower_service::Service;

/// Asks whether a request may pass, and has the error of who says no.
#[derive(Clone, Debug)]
pub(crate) struct Asking<S, F> {
    inner: S,
    ask: F,
}

impl<S, F> Asking<S, F> {
    pub(crate) fn new(inner: S, ask: F) -> Self {
        Self { inner, ask }
    }
}

impl<S, R, F, E> Service<R> for Asking<S, F>
where
    S: Service<R, Error: Into<E>>,
    F: Fn(&R) -> Result<(), E>,
{
    type Response = S::Response;
    type Error = E;
    type Future = Asked<S::Future, E>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        match (self.ask)(&request) {
            Ok(()) => Asked::Called(self.inner.call(request)),
            Err(error) => Asked::Refused(Some(error)),
        }
    }
}

#[pin_project(project = AskedProj)]
#[derive(Debug)]
pub(crate) enum Asked<F, E> {
    Called(#[pin] F),
    Refused(Option<E>),
}

impl<F, T, D, E> Future for Asked<F, E>
where
    F: Future<Output = Result<T, D>>,
    D: Into<E>,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            AskedProj::Called(future) => future.poll(cx).map_err(Into::into),
            AskedProj::Refused(error) => {
                Poll::Ready(Err(error.take().expect("it was polled after its end")))
            }
        }
    }
}

/// An error as the limiter made it, or as it came from below.
#[derive(Debug)]
pub(crate) enum Said<E> {
    Refused(E),
    Below(#[expect(dead_code, reason = "nobody reads it")] io::Error),
}

impl<E> From<io::Error> for Said<E> {
    fn from(error: io::Error) -> Self {
        Self::Below(error)
    }
}
