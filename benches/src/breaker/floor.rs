//! The least that a breaker can cost: one look at whether it is open, and one count in shared memory.

use std::error::Error;
use std::fmt;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use buttress::clock::Instant;
use buttress::{BoxError, clock};
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

/// Counts the answer of a call, and when `TIMED` looks at the clock. It may refuse, and so its error is a boxed one.
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
    S: Service<R, Error: Into<BoxError>>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Counting<S::Future, TIMED>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: R) -> Self::Future {
        if self.shared.open.0.load(Ordering::Acquire) {
            return Counting::Refused;
        }
        Counting::Called {
            shared: self.shared.clone(),
            future: self.inner.call(request),
        }
    }
}

/// It may outlive the service, and so it owns a share of what it counts in.
#[pin_project(project = CountingProj)]
#[derive(Debug)]
#[expect(private_interfaces, reason = "nobody looks inside")]
pub(crate) enum Counting<F, const TIMED: bool> {
    Called {
        shared: Arc<Shared>,
        #[pin]
        future: F,
    },
    Refused,
}

impl<F, T, E, const TIMED: bool> Future for Counting<F, TIMED>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let CountingProj::Called { shared, future } = self.project() else {
            return Poll::Ready(Err("open".into()));
        };
        let output = std::task::ready!(future.poll(cx));
        if TIMED {
            black_box(clock::now());
        }
        shared.calls.0.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(output.map_err(Into::into))
    }
}

/// Refuses every call for a year, with an error that says for how much longer: one look at the clock, and one box.
#[derive(Clone, Debug)]
pub(crate) struct Shut(Instant);

impl Shut {
    pub(crate) fn new() -> Self {
        Self(clock::now() + Duration::from_hours(24 * 365))
    }
}

impl<R> Service<R> for Shut {
    type Response = u64;
    type Error = BoxError;
    type Future = Ready<Result<u64, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: R) -> Self::Future {
        let left = self.0.saturating_duration_since(clock::now());
        ready(Err(Box::new(Left(left))))
    }
}

/// The error: the time that is left.
#[derive(Debug)]
struct Left(Duration);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shut for {:?}", self.0)
    }
}

impl Error for Left {}
