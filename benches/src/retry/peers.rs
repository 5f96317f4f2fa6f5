//! Other people's retries, set up as their own documentation does it: three sends at most, 50 ms doubling.

use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use tower::retry::backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff};
use tower::retry::budget::{Budget, TpsBudget};
use tower::util::rng::HasherRng;
use tower_layer::Layer;
use tower_resilience_retry::RetryLayer;
use tower_service::Service;

use crate::target::{Request, Response, Target, repeatable};

pub(crate) const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(20);
/// On top of the first send.
pub(crate) const RETRIES: u32 = 2;

/// A policy for tower's retry, with the budget and the backoff that tower brings. Its types say nothing of what may be
/// retried: that much has to be written for either kind of request.
#[derive(Clone, Debug)]
pub(crate) struct Policy<D = ExponentialBackoff> {
    budget: Arc<TpsBudget>,
    delays: D,
    retries: u32,
}

impl Policy {
    pub(crate) fn new(retries: u32) -> Self {
        let delays =
            ExponentialBackoffMaker::new(FIRST_DELAY, LONGEST_DELAY, 0.99, HasherRng::default());
        Self {
            budget: Arc::default(),
            delays: delays
                .expect("the first delay is the shorter one")
                .make_backoff(),
            retries,
        }
    }
}

impl Policy<NoDelay> {
    /// tower's own backoff cannot be zero, and its timer waits a millisecond at least.
    pub(crate) fn without_delay() -> Self {
        // The default reserve is spent after a hundred retries; here every call takes one, for a second or two.
        let budget = TpsBudget::new(Duration::from_secs(10), 100_000_000, 1.0);
        Self {
            budget: Arc::new(budget),
            delays: NoDelay,
            retries: RETRIES,
        }
    }
}

impl<D: Backoff> Policy<D> {
    fn judge(&mut self, failed: bool) -> Option<D::Future> {
        if !failed {
            self.budget.deposit();
            return None;
        }
        if self.retries == 0 || !self.budget.withdraw() {
            return None;
        }
        self.retries -= 1;
        Some(self.delays.next_backoff())
    }
}

impl<D: Backoff, E> tower::retry::Policy<u64, u64, E> for Policy<D> {
    type Future = D::Future;

    fn retry(&mut self, _: &mut u64, result: &mut Result<u64, E>) -> Option<D::Future> {
        self.judge(result.is_err())
    }

    fn clone_request(&mut self, request: &u64) -> Option<u64> {
        Some(*request)
    }
}

impl<D: Backoff, E> tower::retry::Policy<Request, Response, E> for Policy<D> {
    type Future = D::Future;

    fn retry(&mut self, _: &mut Request, result: &mut Result<Response, E>) -> Option<D::Future> {
        self.judge(failed(result))
    }

    fn clone_request(&mut self, request: &Request) -> Option<Request> {
        (self.retries > 0 && repeatable(request)).then(|| request.clone())
    }
}

/// Lets a retry follow at once.
#[derive(Clone, Debug)]
pub(crate) struct NoDelay;

impl Backoff for NoDelay {
    type Future = Ready<()>;

    fn next_backoff(&mut self) -> Ready<()> {
        ready(())
    }
}

/// tower-resilience, for requests that are numbers.
pub(crate) fn resilience(target: Target) -> impl Service<u64, Response = u64, Error = io::Error> {
    let layer = RetryLayer::<u64, u64, io::Error>::builder();
    layer
        .max_attempts(1 + RETRIES as usize)
        .exponential_backoff(FIRST_DELAY)
        .build()
        .layer(target)
}

/// tower-resilience, told which responses are failures and which requests may be sent again.
pub(crate) fn resilience_http(
    retries: u32,
    target: Target,
) -> impl Service<Request, Response = Response, Error = io::Error> {
    RetryLayer::<Request, Response, io::Error>::builder()
        .max_attempts_fn(move |request| {
            if repeatable(request) {
                1 + retries as usize
            } else {
                1
            }
        })
        .exponential_backoff(FIRST_DELAY)
        .retry_on_response(|response| response.status().is_server_error())
        .build()
        .layer(target)
}

/// backon around a call, which copies the request for each send and keeps the original.
pub(crate) fn backon(target: Target) -> impl Service<u64, Response = u64, Error = io::Error> {
    tower::service_fn(move |request| {
        let send = move || {
            let mut target = target;
            target.call(request)
        };
        send.retry(delays(RETRIES))
    })
}

/// backon, for which an answer is a failure only when the closure makes it an error.
pub(crate) fn backon_http(
    retries: u32,
    target: Target,
) -> impl Service<Request, Response = Response, Error = io::Result<Response>> {
    tower::service_fn(move |request: Request| {
        let retries = if repeatable(&request) { retries } else { 0 };
        let send = move || {
            let mut target = target;
            let answer = target.call(request.clone());
            async move {
                let result = answer.await;
                if failed(&result) {
                    Err(result)
                } else {
                    result.map_err(Err)
                }
            }
        };
        // A closure in the place of the timer, which waits a millisecond at least.
        send.retry(delays(retries)).sleep(|_| ready(()))
    })
}

fn delays(retries: u32) -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(LONGEST_DELAY)
        .with_max_times(retries as usize)
}

pub(crate) fn failed<E>(result: &Result<Response, E>) -> bool {
    result
        .as_ref()
        .map_or(true, |response| response.status().is_server_error())
}
