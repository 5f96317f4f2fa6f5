//! The least that a retry can cost: one copy of the request, and one count in shared memory.

use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use pin_project::pin_project;
use tower_service::Service;

use crate::target::{Request, Response};

/// Counts the call.
#[derive(Clone, Debug)]
pub(crate) struct Counted<S> {
    inner: S,
    calls: Arc<AtomicU64>,
}

impl<S> Counted<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            calls: Arc::default(),
        }
    }
}

impl<S, R> Service<R> for Counted<S>
where
    S: Service<R>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.inner.call(request)
    }
}

/// Counts the call, and keeps a copy of the request until the call ends.
#[derive(Clone, Debug)]
pub(crate) struct Copied<S>(Counted<S>);

impl<S> Copied<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self(Counted::new(inner))
    }
}

impl<S, R> Service<R> for Copied<S>
where
    S: Service<R>,
    R: Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = WithCopy<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        WithCopy {
            // A copy that nobody looks at would be compiled away.
            _copy: black_box(request.clone()),
            future: self.0.call(request),
        }
    }
}

/// Holds a copy of the request.
#[pin_project]
#[derive(Debug)]
pub(crate) struct WithCopy<F, R> {
    #[pin]
    future: F,
    _copy: R,
}

impl<F: Future, R> Future for WithCopy<F, R> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}

/// Counts the call, and sends the copy when the answer is a server's error.
#[derive(Clone, Debug)]
pub(crate) struct Resent<S>(Counted<S>);

impl<S> Resent<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self(Counted::new(inner))
    }
}

impl<S> Service<Request> for Resent<S>
where
    S: Service<Request, Response = Response> + Clone,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Resending<S, Request>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        Resending {
            copy: Some(request.clone()),
            future: self.0.call(request),
            inner: self.0.inner.clone(),
        }
    }
}

/// Holds a copy of the request, and what it can be sent to.
#[pin_project]
#[derive(Debug)]
pub(crate) struct Resending<S, R>
where
    S: Service<R>,
{
    #[pin]
    future: S::Future,
    inner: S,
    copy: Option<R>,
}

impl<S, R> Future for Resending<S, R>
where
    S: Service<R, Response = Response>,
{
    type Output = Result<Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let response = ready!(this.future.as_mut().poll(cx))?;
            if !response.status().is_server_error() {
                return Poll::Ready(Ok(response));
            }
            let Some(copy) = this.copy.take() else {
                return Poll::Ready(Ok(response));
            };
            ready!(this.inner.poll_ready(cx))?;
            this.future.set(this.inner.call(copy));
        }
    }
}
