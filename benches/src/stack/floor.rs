//! The least that the four can cost, in one layer: a copy of the request, a look at whether the breaker is open, one at the
//! clock for the token and the time limit, one word that is compared and swapped, and one count when the answer is there.

use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use buttress::clock::Instant;
use buttress::{BoxError, clock};
use pin_project::pin_project;
use tower_service::Service;

use super::TIMEOUT;
use crate::limit::{A_BILLION, Apart, Bucket};

/// One count does for the breaker and for the budget of the retries.
#[derive(Debug, Default)]
struct Shared {
    open: Apart<AtomicBool>,
    bucket: Apart<Bucket>,
    calls: Apart<AtomicU64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Stack<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Stack<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            shared: Arc::default(),
        }
    }
}

impl<S, R> Service<R> for Stack<S>
where
    S: Service<R, Error: Into<BoxError>>,
    R: Clone,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Call<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: R) -> Self::Future {
        if self.shared.open.0.load(Ordering::Acquire) {
            return Call::Refused(Some("open".into()));
        }
        let now = clock::now();
        let taken = self.shared.bucket.0.take_at(now, 1, A_BILLION.get().into());
        if let Err(error) = taken {
            return Call::Refused(Some(error.into()));
        }
        Call::Sent {
            // A copy that nobody looks at would be compiled away, and so would a time.
            _copy: black_box(request.clone()),
            _until: black_box(now + TIMEOUT),
            shared: self.shared.clone(),
            future: self.inner.call(request),
        }
    }
}

/// It has no timer: a call that does not wait needs none.
#[pin_project(project = CallProj)]
#[derive(Debug)]
#[expect(private_interfaces, reason = "nobody looks inside")]
pub(crate) enum Call<F, R> {
    Sent {
        #[pin]
        future: F,
        shared: Arc<Shared>,
        _until: Instant,
        _copy: R,
    },
    Refused(Option<BoxError>),
}

impl<F, T, E, R> Future for Call<F, R>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            CallProj::Sent { future, shared, .. } => {
                let output = ready!(future.poll(cx));
                shared.calls.0.fetch_add(1, Ordering::Relaxed);
                Poll::Ready(output.map_err(Into::into))
            }
            CallProj::Refused(error) => {
                Poll::Ready(Err(error.take().expect("it was polled after its end")))
            }
        }
    }
}
