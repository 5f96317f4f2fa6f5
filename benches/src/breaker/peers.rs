//! What other libraries offer for the same job.
//!
//! failsafe and recloser have no layer: they wrap a future, which must do nothing before it is polled, and judge its
//! error. An HTTP response that is a failure is made an error for them.

use std::future::ready;
use std::io;
use std::time::Duration;

use failsafe::failure_policy::{
    ConsecutiveFailures, SuccessRateOverTimeWindow, consecutive_failures,
};
use failsafe::futures::CircuitBreaker;
use failsafe::{Config, FailurePolicy, StateMachine, backoff};
use recloser::{AsyncRecloser, Recloser};
use tower_layer::Layer;
use tower_resilience_circuitbreaker::{
    CircuitBreakerConfigBuilder, CircuitBreakerLayer, SlidingWindowType,
};
use tower_service::Service;

use super::Window;
use crate::harness::call;
use crate::target::{Answer, Client, NUMBER, Request, Response, Target};

/// Longer than a run.
const HOUR: Duration = Duration::from_hours(1);

fn of<C>(
    builder: CircuitBreakerConfigBuilder<C>,
    window: Window,
) -> CircuitBreakerConfigBuilder<C> {
    let ten_seconds = Duration::from_secs(10);
    match window {
        Window::InARow => builder.consecutive_failures(5),
        Window::Calls => builder.sliding_window_size(100),
        Window::Time => builder
            .sliding_window_type(SlidingWindowType::TimeBased)
            .sliding_window_duration(ten_seconds),
    }
}

/// tower-resilience, for which errors are failures.
pub(crate) fn resilience(
    window: Window,
    target: Target,
) -> impl Service<u64, Response: Answer> + Clone + Send {
    let builder = of(CircuitBreakerLayer::builder(), window);
    builder.build().expect("a good window").layer(target)
}

/// tower-resilience, told which responses are failures.
pub(crate) fn resilience_http(
    window: Window,
    target: Target,
) -> impl Service<Request, Response: Answer> {
    let builder = of(CircuitBreakerLayer::builder(), window).failure_classifier(failed);
    builder.build().expect("a good window").layer(target)
}

/// tower-resilience after five failures.
pub(crate) fn resilience_open(target: Target) -> impl Service<u64, Response: Answer> {
    let builder = of(CircuitBreakerLayer::builder(), Window::InARow).wait_duration_in_open(HOUR);
    // Without a handle, each service has a breaker of its own.
    let (layer, _handle) = builder.build_with_handle().expect("a good window");
    let failing = layer.layer(tower::service_fn(|_| ready(Err::<u64, _>(broken()))));
    fail(failing, || NUMBER);
    layer.layer(target)
}

/// As the other.
pub(crate) fn resilience_open_http(target: Target) -> impl Service<Request, Response: Answer> {
    let builder = of(CircuitBreakerLayer::builder(), Window::InARow).wait_duration_in_open(HOUR);
    let builder = builder.failure_classifier(failed);
    let (layer, _handle) = builder.build_with_handle().expect("a good window");
    let failing = layer.layer(tower::service_fn(|_| ready(Err::<Response, _>(broken()))));
    let client = Client::get();
    fail(failing, || client.request());
    layer.layer(target)
}

fn in_a_row() -> StateMachine<ConsecutiveFailures<backoff::Constant>, ()> {
    let policy = consecutive_failures(5, backoff::constant(HOUR));
    Config::new().failure_policy(policy).build()
}

/// failsafe's own default but for the failures in a row: a moving average over 30 s, with a count of the calls in them.
fn timed() -> StateMachine<SuccessRateOverTimeWindow<backoff::EqualJittered>, ()> {
    let policy = SuccessRateOverTimeWindow::default();
    Config::new().failure_policy(policy).build()
}

fn opened() -> StateMachine<ConsecutiveFailures<backoff::Constant>, ()> {
    let breaker = in_a_row();
    for _ in 0..5 {
        breaker.on_error();
    }
    breaker
}

pub(crate) fn failsafe(target: Target) -> impl Service<u64, Response: Answer> + Clone + Send {
    with_failsafe(in_a_row(), target)
}

pub(crate) fn failsafe_timed(target: Target) -> impl Service<u64, Response: Answer> {
    with_failsafe(timed(), target)
}

pub(crate) fn failsafe_open(target: Target) -> impl Service<u64, Response: Answer> {
    with_failsafe(opened(), target)
}

pub(crate) fn failsafe_http(target: Target) -> impl Service<Request, Response: Answer> {
    with_failsafe_http(in_a_row(), target)
}

pub(crate) fn failsafe_timed_http(target: Target) -> impl Service<Request, Response: Answer> {
    with_failsafe_http(timed(), target)
}

pub(crate) fn failsafe_open_http(target: Target) -> impl Service<Request, Response: Answer> {
    with_failsafe_http(opened(), target)
}

fn with_failsafe<P: FailurePolicy + Send + Sync>(
    breaker: StateMachine<P, ()>,
    target: Target,
) -> impl Service<u64, Response: Answer> + Clone + Send {
    tower::service_fn(move |request| breaker.call(send(target, request)))
}

fn with_failsafe_http<P: FailurePolicy + Send + Sync>(
    breaker: StateMachine<P, ()>,
    target: Target,
) -> impl Service<Request, Response: Answer> {
    tower::service_fn(move |request| breaker.call(send_http(target, request)))
}

/// recloser's default: the last hundred calls.
pub(crate) fn recloser(target: Target) -> impl Service<u64, Response: Answer> + Clone + Send {
    with_recloser(Recloser::default(), target)
}

pub(crate) fn recloser_open(target: Target) -> impl Service<u64, Response: Answer> {
    with_recloser(opened_recloser(), target)
}

pub(crate) fn recloser_http(target: Target) -> impl Service<Request, Response: Answer> {
    with_recloser_http(Recloser::default(), target)
}

pub(crate) fn recloser_open_http(target: Target) -> impl Service<Request, Response: Answer> {
    with_recloser_http(opened_recloser(), target)
}

fn opened_recloser() -> Recloser {
    let breaker = Recloser::custom().open_wait(HOUR).build();
    // It looks at its window when that is full, and one call more has come.
    for _ in 0..101 {
        let _ = breaker.call(|| Err::<(), _>(()));
    }
    breaker
}

fn with_recloser(
    breaker: Recloser,
    target: Target,
) -> impl Service<u64, Response: Answer> + Clone + Send {
    let breaker = AsyncRecloser::from(breaker);
    tower::service_fn(move |request| breaker.call(send(target, request)))
}

fn with_recloser_http(
    breaker: Recloser,
    target: Target,
) -> impl Service<Request, Response: Answer> {
    let breaker = AsyncRecloser::from(breaker);
    tower::service_fn(move |request| breaker.call(send_http(target, request)))
}

async fn send(mut target: Target, request: u64) -> io::Result<u64> {
    target.call(request).await
}

async fn send_http(mut target: Target, request: Request) -> Result<Response, io::Result<Response>> {
    let result = target.call(request).await;
    if failed(&result) {
        Err(result)
    } else {
        result.map_err(Err)
    }
}

fn failed(result: &io::Result<Response>) -> bool {
    result
        .as_ref()
        .map_or(true, |response| response.status().is_server_error())
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

fn fail<S: Service<R>, R>(mut service: S, request: impl Fn() -> R) {
    for _ in 0..5 {
        // That the breaker is open now is seen by the calls that are measured.
        call(
            &mut service,
            request(),
            || panic!("it answers at once"),
            |_| (),
        );
    }
}
