//! The same from other libraries: tower's retry and timeout around failsafe around governor, and all four of
//! tower-resilience. In the same order, and set as where each is measured by itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use buttress::BoxError;
use failsafe::futures::CircuitBreaker;
use failsafe::{Config, Error, backoff, failure_policy};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tower::ServiceBuilder;
use tower::retry::Retry;
use tower::timeout::Timeout;
use tower_resilience_circuitbreaker::CircuitBreakerLayer;
use tower_resilience_ratelimiter::{RateLimiterLayer, RateLimiterServiceError};
use tower_resilience_retry::RetryLayer;
use tower_resilience_timelimiter::TimeLimiterLayer;
use tower_service::Service;

use super::TIMEOUT;
use crate::limit::{A_BILLION, Asking};
use crate::retry::{FIRST_DELAY, Policy, RETRIES, failed};
use crate::target::{Answer, Request, Response, Target, repeatable};

/// Longer than a run.
const HOUR: Duration = Duration::from_hours(1);

fn governor<R>(
    target: Target,
) -> impl Service<R, Response = <Target as Service<R>>::Response, Error = BoxError, Future: Send>
+ Clone
+ Send
where
    Target: Service<R, Error = io::Error, Future: Send>,
{
    let limiter: Arc<DefaultDirectRateLimiter> =
        Arc::new(RateLimiter::direct(Quota::per_second(A_BILLION)));
    Asking::new(target, move |_: &_| {
        limiter.check().map_err(|_| BoxError::from("too early"))
    })
}

fn breaker() -> impl CircuitBreaker + Clone {
    let policy = failure_policy::consecutive_failures(5, backoff::constant(HOUR));
    Config::new().failure_policy(policy).build()
}

pub(crate) fn by_hand(target: Target) -> impl Service<u64, Response: Answer> {
    let (breaker, limited) = (breaker(), governor(target));
    let broken = tower::service_fn(move |request: u64| {
        let mut limited = limited.clone();
        let sent = breaker.call(async move { limited.call(request).await });
        async move {
            sent.await.map_err(|error| match error {
                Error::Inner(error) => error,
                Error::Rejected => "open".into(),
            })
        }
    });
    Retry::new(Policy::new(RETRIES), Timeout::new(broken, TIMEOUT))
}

/// failsafe knows no HTTP: a response that is a failure is an error to it, and a response again to the retry.
pub(crate) fn by_hand_http(target: Target) -> impl Service<Request, Response: Answer> {
    let (breaker, limited) = (breaker(), governor::<Request>(target));
    let broken = tower::service_fn(move |request: Request| {
        let mut limited = limited.clone();
        let sent = breaker.call(async move {
            let result = limited.call(request).await;
            if failed(&result) {
                Err(result)
            } else {
                result.map_err(Err)
            }
        });
        async move {
            sent.await.or_else(|error| match error {
                Error::Inner(result) => result,
                Error::Rejected => Err(BoxError::from("open")),
            })
        }
    });
    Retry::new(Policy::new(RETRIES), Timeout::new(broken, TIMEOUT))
}

/// tower-resilience, for requests that are numbers.
pub(crate) fn resilience(target: Target) -> impl Service<u64, Response: Answer> {
    let retry = RetryLayer::<u64, u64, _>::builder()
        .max_attempts(1 + RETRIES as usize)
        .exponential_backoff(FIRST_DELAY);
    let breaker = CircuitBreakerLayer::builder().consecutive_failures(5);
    ServiceBuilder::new()
        .layer(retry.build())
        .layer(timeout())
        .layer(breaker.build().expect("a good window"))
        .layer(plenty())
        .service(target)
}

/// tower-resilience, told which responses are failures and which requests may be sent again.
pub(crate) fn resilience_http(target: Target) -> impl Service<Request, Response: Answer> {
    let retry = RetryLayer::<Request, Response, _>::builder()
        .max_attempts_fn(|request| {
            if repeatable(request) {
                1 + RETRIES as usize
            } else {
                1
            }
        })
        .exponential_backoff(FIRST_DELAY)
        .retry_on_response(|response: &Response| response.status().is_server_error());
    let breaker = CircuitBreakerLayer::builder()
        .consecutive_failures(5)
        .failure_classifier(failed::<RateLimiterServiceError<io::Error>>);
    ServiceBuilder::new()
        .layer(retry.build())
        .layer(timeout())
        .layer(breaker.build().expect("a good window"))
        .layer(plenty())
        .service(target)
}

fn timeout() -> TimeLimiterLayer<tower_resilience_timelimiter::FixedTimeout> {
    let builder = TimeLimiterLayer::builder().timeout_duration(TIMEOUT);
    builder.cancel_running_future(true).build()
}

fn plenty() -> RateLimiterLayer {
    let builder = RateLimiterLayer::per_second(A_BILLION.get() as usize).burst_size(0);
    builder.build().expect("more than nothing")
}
