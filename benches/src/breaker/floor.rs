//! The least that a breaker can cost: one look at whether it is open, and one count in shared memory.

use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use buttress::clock;
use pin_project::pin_project;
use tower_service::Service;

/// What is read by all and written by nobody here, and what is written by all, on lines of their own.
#[derive(Debug, Default)]
struct Shared {
    open: Apart<AtomicBool>,
    calls: Apart<AtomicU64>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart<T>(T);

/// Counts the answer of a call, and when `TIMED` looks at the clock. A breaker would have to refuse where this panics.
#[derive(Clone, Debug)]
pub(crate) struct Gated<S, const TIMED: bool = false> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, const TIMED: bool> Gated<S, TIMED> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            shared: Arc::default(),
        }
    }
}

impl<S, R, const TIMED: bool> Service<R> for Gated<S, TIMED>
where
    S: Service<R>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Counting<S::Future, TIMED>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        assert!(!self.shared.open.0.load(Ordering::Acquire));
        Counting {
            shared: self.shared.clone(),
            future: self.inner.call(request),
        }
    }
}

/// It may outlive the service, and so it owns a share of what it counts in.
#[pin_project]
#[derive(Debug)]
pub(crate) struct Counting<F, const TIMED: bool> {
    shared: Arc<Shared>,
    #[pin]
    future: F,
}

impl<F: Future, const TIMED: bool> Future for Counting<F, TIMED> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let output = ready!(this.future.poll(cx));
        if TIMED {
            black_box(clock::now());
        }
        this.shared.calls.0.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(output)
    }
}
