//! The promises of the layer, call by call, on a paused clock.

mod support;

use std::{
    cell::Cell,
    collections::HashSet,
    future::Future,
    io,
    rc::Rc,
    sync::{Arc, Barrier},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use allocation_counter::measure;
use buttress_breaker::{
    BreakerLayer, ByKey, Cause, Event, Http, Outcome, ProbeResult, Reason, State,
};
use buttress_core::{Applied, BoxError, Classify, Hint, Kind, Rejected, Verdict};
use http::{Request, Response};
use support::*;
use tokio::time::{advance, timeout};
use tower::{Layer, Service, ServiceExt, service_fn, timeout::TimeoutLayer};

// promise: BR-1
#[tokio::test(start_paused = true)]
async fn the_fiftieth_failure_of_the_last_hundred_calls_opens_it() {
    let layer = layer().count_window(count(100));
    let (backend, handle) = (Backend::default(), layer.handle());
    let service = over(&layer, &backend);
    calls(&service, 1_000_000, || Succeed).await;
    calls(&service, 49, || Fail).await;
    assert_eq!(handle.state(), State::Closed);
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.calls, snapshot.failures), (100, 49));
    calls(&service, 1, || Fail).await;
    assert_eq!(handle.state(), State::Open);
    let cause = Cause::FailureRate {
        failures: 50,
        calls: 100,
    };
    assert_eq!(handle.snapshot().cause, cause);
    assert_eq!(call(&service, Succeed).await, None);
    assert_eq!(backend.calls(), 1_000_050);
}

// promise: BR-1
#[tokio::test(start_paused = true)]
async fn nine_failures_are_too_few_and_the_tenth_is_enough() {
    let ten = count(10);
    for layer in [
        layer().count_window(count(100)).min_calls(ten),
        layer().window(secs(10)).min_calls(ten),
        // A window of ten calls never holds twenty.
        layer().count_window(ten).min_calls(count(20)),
    ] {
        let layer = layer.consecutive(None);
        let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
        calls(&service, 9, || Fail).await;
        assert_eq!(handle.state(), State::Closed);
        calls(&service, 1, || Fail).await;
        assert_eq!(handle.state(), State::Open);
    }
}

// promise: BR-1
#[tokio::test(start_paused = true)]
async fn it_opens_at_the_share_that_was_set() {
    let layer = layer().count_window(count(100)).failure_rate(0.8);
    let layer = layer.min_calls(count(100)).consecutive(None);
    let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
    calls(&service, 21, || Succeed).await;
    calls(&service, 79, || Fail).await;
    assert_eq!(handle.state(), State::Closed);
    calls(&service, 1, || Fail).await;
    assert_eq!(handle.state(), State::Open);
}

// promise: BR-2
#[tokio::test(start_paused = true)]
async fn a_window_is_as_long_as_it_was_set() {
    for (later, calls) in [(53, 1), (67, 0)] {
        let layer = layer().window(secs(60));
        call(&over(&layer, &Backend::default()), Fail).await;
        advance(secs(later)).await;
        assert_eq!(layer.handle().snapshot().calls, calls, "after {later} s");
    }
}

// promise: BR-2
#[tokio::test(start_paused = true)]
async fn a_failure_counts_for_nine_seconds_and_not_for_eleven() {
    for (later, calls, failures) in [(9_000, 1, 1), (11_000, 0, 0)] {
        // Whatever part of a second the breaker began at.
        for phase in [0, 1, 333, 999] {
            let layer = layer();
            let service = over(&layer, &Backend::default());
            advance(millis(phase)).await;
            call(&service, Fail).await;
            advance(millis(later)).await;
            let snapshot = layer.handle().snapshot();
            assert_eq!((snapshot.calls, snapshot.failures), (calls, failures));
        }
    }
}

// promise: BR-3
#[tokio::test(start_paused = true)]
async fn after_years_one_failure_is_one_of_one() {
    for layer in [layer(), layer().consecutive_only(count(2))] {
        let service = over(&layer, &Backend::default());
        call(&service, Succeed).await;
        advance(secs(10 * 365 * 24 * 60 * 60)).await;
        call(&service, Break).await;
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.calls, snapshot.failures), (1, 1));
    }
}

// promise: BR-4
#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_open_a_quiet_breaker_and_not_a_busy_one() {
    let layer = layer();
    let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
    calls(&service, 10, || Succeed).await;
    calls(&service, 4, || Fail).await;
    call(&service, Succeed).await;
    calls(&service, 4, || Fail).await;
    assert_eq!(handle.snapshot().in_a_row, 4);
    // 19 calls: the next one makes it busy, and 9 of 20 are less than half.
    call(&service, Fail).await;
    assert_eq!(handle.state(), State::Closed);

    advance(secs(60)).await;
    call(&service, Succeed).await;
    // Failures that are a minute apart are in a row too.
    for _ in 0..5 {
        assert_eq!(handle.state(), State::Closed);
        call(&service, Fail).await;
        advance(secs(60)).await;
    }
    assert_eq!(handle.snapshot().cause, Cause::InARow { failures: 5 });
}

// promise: BR-4
#[tokio::test(start_paused = true)]
async fn as_many_failures_in_a_row_open_it_as_were_set() {
    for failures in [1, 3, 12] {
        let layer = layer().consecutive(Some(count(failures)));
        let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
        calls(&service, failures as usize - 1, || Fail).await;
        assert_eq!(handle.state(), State::Closed);
        call(&service, Fail).await;
        assert_eq!(handle.snapshot().cause, Cause::InARow { failures });
    }
}

// promise: BR-5
#[tokio::test(start_paused = true)]
async fn what_is_ignored_is_in_no_share_and_closes_nothing() {
    let layer = layer().count_window(count(20)).min_calls(count(4));
    let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
    for _ in 0..2 {
        calls(&service, 30, || TurnDown).await;
        calls(&service, 30, || Throttle).await;
        call(&service, Succeed).await;
        call(&service, Fail).await;
    }
    let cause = Cause::FailureRate {
        failures: 2,
        calls: 4,
    };
    assert_eq!(handle.snapshot().cause, cause);
    assert_eq!(handle.state(), State::Open);
    advance(secs(5)).await;
    for _ in 0..10 {
        assert_eq!(call(&service, TurnDown).await, Some(Ok(TurnDown)));
        let snapshot = handle.snapshot();
        assert_eq!(snapshot.state, State::HalfOpen);
        assert_eq!(
            (snapshot.probes_in_flight, snapshot.probes_succeeded),
            (0, 0)
        );
    }
}

// promise: BR-5
#[tokio::test(start_paused = true)]
async fn throttling_counts_where_it_is_asked_for() {
    let layer = layer().throttling_fails(true).consecutive_only(count(2));
    let not = layer.clone().throttling_fails(false);
    for (layer, state) in [(layer, State::Open), (not, State::Closed)] {
        let service = over(&layer, &Backend::default());
        calls(&service, 2, || Throttle).await;
        assert_eq!(layer.handle().state(), state);
    }
}

// promise: BR-5
#[test]
fn a_client_s_error_is_no_failure_of_the_server() {
    let kind = |status: u16, header: Option<&'static str>| {
        let mut response = Response::new(());
        *response.status_mut() = status.try_into().unwrap();
        if let Some(name) = header {
            let value = http::HeaderValue::from_static("true");
            response.headers_mut().insert(name, value);
        }
        Http.classify(Ok(&response)).kind
    };
    for status in 100..600 {
        let counts = match kind(status, None) {
            Kind::Success => status < 400,
            Kind::Transient => matches!(status, 500 | 502 | 503 | 504),
            Kind::Throttled => status == 429,
            Kind::Permanent | Kind::Ignored => {
                status >= 400 && !matches!(status, 429 | 500 | 502 | 503 | 504)
            }
        };
        assert!(counts, "{status}");
        // From the memory of an idempotency layer.
        assert_eq!(kind(status, Some("idempotency-replayed")), Kind::Ignored);
    }
}

// promise: BR-6
#[tokio::test(start_paused = true)]
async fn a_panic_is_one_failure_and_frees_its_slot() {
    for todo in [|| Panic, || PanicAtOnce] {
        let log = Log::default();
        let layer = layer().consecutive_only(count(2)).on_event(log.sink());
        let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
        for expected in [1, 2] {
            let service = service.clone();
            let call = tokio::spawn(async move { call(&service, todo()).await });
            assert!(call.await.unwrap_err().is_panic());
            let seen = vec![(Outcome::Failure, Reason::Panic, true); expected];
            assert_eq!(log.calls(), seen);
        }
        assert_eq!(handle.state(), State::Open);
        advance(secs(5)).await;
        let probe = tokio::spawn(async move { call(&service, todo()).await });
        assert!(probe.await.unwrap_err().is_panic());
        assert_eq!(handle.snapshot().cause, Cause::ProbeFailed);
        assert_eq!(log.probes(), [ProbeResult::Failed]);
    }
}

// promise: BR-6
#[tokio::test(start_paused = true)]
async fn a_future_that_outlives_its_panic_has_freed_its_slot() {
    let layer = layer().consecutive_only(count(1));
    let service = over(&layer, &Backend::default());
    let mut call = Box::pin(service.clone().oneshot(Panic));
    let poll = std::panic::AssertUnwindSafe(|| {
        let mut cx = Context::from_waker(Waker::noop());
        call.as_mut().poll(&mut cx).is_ready()
    });
    std::panic::catch_unwind(poll).unwrap_err();
    assert_eq!(layer.handle().state(), State::Open);
    drop(call);
    assert_eq!(layer.handle().snapshot().transitions, 1);
}

// promise: BR-6
#[tokio::test(start_paused = true)]
async fn what_is_polled_after_its_panic_has_failed_once() {
    let log = Log::default();
    let layer = layer().on_event(log.sink());
    let mut call = Box::pin(over(&layer, &Backend::default()).call(Panic));
    for _ in 0..3 {
        // The future of the service panics every time.
        let poll = std::panic::AssertUnwindSafe(|| {
            let mut cx = Context::from_waker(Waker::noop());
            call.as_mut().poll(&mut cx).is_ready()
        });
        std::panic::catch_unwind(poll).unwrap_err();
    }
    drop(call);
    assert_eq!(layer.handle().snapshot().failures, 1);
    assert_eq!(log.calls(), [(Outcome::Failure, Reason::Panic, true)]);
}

// promise: BR-6
#[tokio::test(start_paused = true)]
async fn what_goes_on_after_its_panic_has_failed_all_the_same() {
    let layer = layer().consecutive_only(count(2));
    let mut service = layer.layer(service_fn(|()| {
        let mut polls = 0;
        std::future::poll_fn(move |_| {
            polls += 1;
            assert_ne!(polls, 1, "as it was told");
            Poll::Ready(Ok::<_, BoxError>(Succeed))
        })
    }));
    let mut call = Box::pin(service.call(()));
    for _ in 0..3 {
        let poll = std::panic::AssertUnwindSafe(|| {
            let mut cx = Context::from_waker(Waker::noop());
            call.as_mut().poll(&mut cx).is_ready()
        });
        std::panic::catch_unwind(poll).unwrap_err();
    }
    drop(call);
    // No success has come after it.
    assert_eq!(layer.handle().snapshot().in_a_row, 1);
}

// promise: BR-6
#[tokio::test(start_paused = true)]
async fn a_refusal_of_a_layer_below_says_nothing() {
    let log = Log::default();
    let layer = layer().consecutive_only(count(1)).on_event(log.sink());
    let service = over(&layer, &Backend::default());
    for _ in 0..10 {
        let answer = call(&service, Refuse).await;
        assert_eq!(answer, Some(Err("refused by limiter: full".into())));
    }
    assert_eq!(layer.handle().snapshot().calls, 0);
    assert_eq!(log.calls(), [(Outcome::Ignored, Reason::Error, false); 10]);
}

// promise: BR-7
#[tokio::test(start_paused = true)]
async fn a_timeout_above_it_opens_it_and_an_impatient_caller_does_not() {
    let layer = layer().consecutive_only(count(5)).patience(millis(50));
    let (backend, handle) = (Backend::default(), layer.handle());
    let service = over(&layer, &backend);
    for _ in 0..100 {
        let gone = timeout(millis(1), service.clone().oneshot(Hang)).await;
        assert!(gone.is_err());
    }
    assert_eq!(handle.snapshot().failures, 0);

    let outer = TimeoutLayer::new(millis(100)).layer(service);
    for _ in 0..5 {
        let error = outer.clone().oneshot(Hang).await.unwrap_err();
        assert!(Rejected::find(&*error).is_none(), "{error}");
    }
    let error = outer.clone().oneshot(Hang).await.unwrap_err();
    assert!(
        Rejected::find(&*error).is_some(),
        "the sixth call is refused"
    );
    assert_eq!(backend.calls(), 105);
}

// promise: BR-7
#[tokio::test(start_paused = true)]
async fn patience_is_the_slow_threshold_or_ten_seconds() {
    for (layer, patience) in [
        (layer(), secs(10)),
        (layer().slow_calls(millis(300), 1.0), millis(300)),
        (
            layer().slow_calls(millis(300), 1.0).patience(secs(1)),
            secs(1),
        ),
    ] {
        let layer = layer.count_window(count(100));
        let service = over(&layer, &Backend::default());
        for (wait, failures) in [(patience, 0), (patience + millis(1), 1)] {
            let gone = timeout(wait, service.clone().oneshot(Hang)).await;
            assert!(gone.is_err());
            assert_eq!(layer.handle().snapshot().failures, failures);
        }
    }
}

// promise: BR-7
#[tokio::test(start_paused = true)]
async fn a_call_that_ends_after_its_patience_is_judged_by_its_end() {
    for (todo, figures) in [
        (Succeed, (1, 0)),
        (Fail, (1, 1)),
        (Break, (1, 1)),
        (TurnDown, (0, 0)),
    ] {
        let layer = layer();
        let service = over(&layer, &Backend::default());
        call(&service, after(secs(11), todo)).await;
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.calls, snapshot.failures), figures);
    }
}

// promise: BR-9
#[tokio::test(start_paused = true)]
async fn a_call_is_slow_from_the_moment_that_it_is_made() {
    /// Lets this time pass before anybody else runs.
    fn spend(time: u64) {
        let mut cx = Context::from_waker(Waker::noop());
        let _ = std::pin::pin!(advance(millis(time))).poll(&mut cx);
    }

    // In the call itself, before the first poll of its future, in it, and after it.
    for times in [
        [101, 0, 0, 0],
        [0, 101, 0, 0],
        [0, 0, 101, 0],
        [0, 0, 0, 101],
    ] {
        let layer = layer().slow_calls(millis(100), 0.5);
        let [made, unpolled, first, last] = times;
        let mut service = layer.layer(service_fn(|todo: Do| {
            spend(made);
            async move {
                spend(first);
                tokio::task::yield_now().await;
                Ok::<_, BoxError>(todo)
            }
        }));
        let mut call = tokio_test::task::spawn(service.call(Succeed));
        spend(unpolled);
        assert!(call.poll().is_pending());
        spend(last);
        assert!(call.poll().is_ready());
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.calls, snapshot.slow), (1, 1), "{times:?}");
    }
}

// promise: BR-9
#[tokio::test(start_paused = true)]
async fn eighty_slow_calls_of_a_hundred_open_it_though_all_succeed() {
    let layers = [
        layer().count_window(count(100)),
        layer().window(secs(10_000)),
    ];
    for layer in layers {
        let layer = layer.slow_calls(millis(100), 0.8).min_calls(count(100));
        let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
        for number in 0..99 {
            // Every fifth is as long as a call may be.
            let time = millis(if number % 5 == 0 { 100 } else { 101 });
            assert!(call(&service, after(time, Succeed)).await.is_some());
        }
        assert_eq!(handle.snapshot().slow, 79);
        assert_eq!(handle.state(), State::Closed);
        call(&service, after(millis(101), Succeed)).await;
        let cause = Cause::SlowRate {
            slow: 80,
            calls: 100,
        };
        assert_eq!(handle.snapshot().cause, cause);
        assert_eq!(handle.state(), State::Open);
    }
}

// promise: BR-9
#[tokio::test(start_paused = true)]
async fn seventy_nine_slow_calls_of_a_hundred_are_too_few() {
    let layer = layer()
        .count_window(count(100))
        .slow_calls(millis(100), 0.8)
        .min_calls(count(100));
    let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
    calls(&service, 21, || Succeed).await;
    calls(&service, 79, || after(millis(101), Succeed)).await;
    assert_eq!(handle.snapshot().slow, 79);
    assert_eq!(handle.state(), State::Closed);
    call(&service, after(millis(101), Succeed)).await;
    assert_eq!(handle.state(), State::Open);
}

// promise: BR-9
#[tokio::test(start_paused = true)]
async fn where_failures_in_a_row_decide_slow_probes_close_it() {
    let layer = layer()
        .consecutive_only(count(1))
        .slow_calls(millis(10), 0.5);
    let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
    calls(&service, 50, || after(millis(20), Succeed)).await;
    assert_eq!(handle.state(), State::Closed);
    half_open(&service).await;
    calls(&service, 3, || after(millis(20), Succeed)).await;
    assert_eq!(handle.state(), State::Closed);
}

/// The callers that get through at the first instant of half-open, of this many on two threads.
fn race(callers: usize, slots: u32) -> usize {
    let layer = BreakerLayer::new(Judge)
        .consecutive_only(count(1))
        .probes_in_flight(count(slots), count(slots))
        .probe_lease(secs(3_600));
    let backend = Backend::default();
    let service = over(&layer, &backend);
    let poll = |mut service: buttress_breaker::Breaker<Backend, Judge>, todo| {
        let mut call = Box::pin(service.call(todo));
        let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        call
    };
    // Open for no time at all: whoever comes next finds it half-open.
    drop(poll(service.clone(), FailFor(Duration::ZERO)));
    assert_eq!(layer.handle().state(), State::Open);
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let race = || {
            let services: Vec<_> = (0..callers / 2).map(|_| service.clone()).collect();
            start.wait();
            let calls: Vec<_> = services
                .into_iter()
                .map(|service| poll(service, Hang))
                .collect();
            // No slot is given back before everybody has come.
            start.wait();
            drop(calls);
        };
        scope.spawn(race);
        scope.spawn(race);
    });
    backend.calls() - 1
}

// promise: BR-10
#[test]
fn of_ten_thousand_callers_exactly_as_many_get_through_as_may() {
    let rounds = if full() { 1_000 } else { 4 };
    for slots in [1, 2, 3, 10, 100] {
        for _ in 0..rounds {
            assert_eq!(race(10_000, slots), slots as usize);
        }
    }
}

/// Opens a breaker and waits until it would let a probe through.
async fn half_open<C>(service: &buttress_breaker::Breaker<Backend, C>)
where
    C: Classify<Do> + Clone,
{
    while call(service, Fail).await.is_some() {}
    advance(secs(60)).await;
}

// promise: BR-11
#[tokio::test(start_paused = true)]
async fn a_dropped_probe_frees_its_slot_at_once_and_counts_for_nothing() {
    let log = Log::default();
    let layer = layer().on_event(log.sink());
    let (backend, handle) = (Backend::default(), layer.handle());
    let mut service = over(&layer, &backend);
    half_open(&service).await;
    log.clear();

    // Before its first poll.
    let unpolled = service.ready().await.unwrap().call(Succeed);
    assert_eq!(call(&service, Succeed).await, None, "the slot is taken");
    drop(unpolled);
    // In mid-flight.
    let mut probe = tokio_test::task::spawn(service.ready().await.unwrap().call(Hang));
    assert!(probe.poll().is_pending());
    assert_eq!(call(&service, Succeed).await, None, "the slot is taken");
    drop(probe);
    // Ready, and no call.
    let mut ready = service.clone();
    ready.ready().await.unwrap();
    drop(ready);
    assert_eq!(handle.snapshot().probes_in_flight, 0);
    assert_eq!(handle.snapshot().probes_succeeded, 0);
    assert_eq!(call(&service, Succeed).await, Some(Ok(Succeed)));
    assert_eq!(handle.snapshot().probes_succeeded, 1);
    let dropped = ProbeResult::Cancelled;
    assert_eq!(log.probes(), [dropped, dropped, ProbeResult::Ok]);
}

// promise: BR-11
#[tokio::test(start_paused = true)]
async fn a_dropped_probe_is_gone_before_its_slot_is_free() {
    let (gone, told) = (Arc::new(()), Log::default());
    let (watch, sink) = (Arc::downgrade(&gone), told.sink());
    let layer = layer().on_event(move |event| {
        if matches!(event, Event::Probe { .. }) {
            assert_eq!(watch.strong_count(), 0);
            sink(event);
        }
    });
    let backend = Backend::default();
    half_open(&over(&layer, &backend)).await;
    let mut service = layer.layer(service_fn(move |_: Do| {
        let held = gone.clone();
        async move {
            std::future::pending::<()>().await;
            drop(held);
            Ok::<_, BoxError>(Succeed)
        }
    }));
    let mut probe = tokio_test::task::spawn(service.call(Hang));
    drop(service);
    assert!(probe.poll().is_pending());
    drop(probe);
    assert_eq!(told.probes(), [ProbeResult::Cancelled]);
}

// promise: BR-10
#[tokio::test(start_paused = true)]
async fn as_many_probes_are_in_flight_as_were_set() {
    let layer = layer()
        .probes(count(5))
        .probes_in_flight(count(2), count(4));
    let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
    half_open(&service).await;
    let mut probes: Vec<_> = (0..10)
        .map(|_| tokio_test::task::spawn(service.clone().oneshot(after(secs(1), Succeed))))
        .collect();
    probes.retain_mut(|probe| probe.poll().is_pending());
    assert_eq!(probes.len(), 2, "before one has succeeded");
    for succeeded in 1..=4 {
        assert!(call_probe(&mut probes).await);
        assert_eq!(handle.snapshot().probes_succeeded, succeeded);
        assert_eq!(handle.state(), State::HalfOpen);
        let mut more: Vec<_> = (0..10)
            .map(|_| tokio_test::task::spawn(service.clone().oneshot(after(secs(1), Succeed))))
            .collect();
        more.retain_mut(|probe| probe.poll().is_pending());
        probes.append(&mut more);
        assert_eq!(probes.len(), 4, "after {succeeded}");
    }
    assert!(call_probe(&mut probes).await);
    assert_eq!(handle.state(), State::Closed);
}

/// Lets the first of these probes come to its end. Returns whether it succeeded.
async fn call_probe<F>(probes: &mut Vec<tokio_test::task::Spawn<F>>) -> bool
where
    F: Future<Output = Result<Do, BoxError>>,
{
    probes.remove(0).await.is_ok()
}

// promise: BR-12
#[tokio::test(start_paused = true)]
async fn a_probe_has_as_much_time_as_was_set() {
    for (lease, time, succeeded) in [(30, 29, 1), (30, 31, 0), (3, 2, 1), (3, 4, 0)] {
        let layer = layer().probe_lease(secs(lease));
        let service = over(&layer, &Backend::default());
        half_open(&service).await;
        call(&service, after(secs(time), Succeed)).await;
        let snapshot = layer.handle().snapshot();
        assert_eq!(
            (snapshot.state, snapshot.probes_succeeded),
            (State::HalfOpen, succeeded),
            "{time} of {lease} s"
        );
    }
}

// promise: BR-12
#[tokio::test(start_paused = true)]
async fn a_forgotten_probe_frees_its_slot_at_its_lease() {
    let log = Log::default();
    let layer = layer().on_event(log.sink());
    let (handle, mut service) = (layer.handle(), over(&layer, &Backend::default()));
    half_open(&service).await;
    std::mem::forget(service.ready().await.unwrap().call(Succeed));
    for _ in 0..3 {
        let mut hanging = tokio_test::task::spawn(service.clone().oneshot(Hang));
        // The lease of the one before.
        assert_eq!(call(&service, Succeed).await, None);
        advance(millis(9_999)).await;
        assert_eq!(call(&service, Succeed).await, None);
        advance(millis(1)).await;
        assert!(hanging.poll().is_pending());
        assert_eq!(handle.snapshot().probes_in_flight, 1);
        std::mem::forget(hanging);
    }
    advance(secs(10)).await;
    let late = service.ready().await.unwrap().call(Succeed);
    advance(secs(10)).await;
    late.await.unwrap();
    let expired = vec![ProbeResult::LeaseExpired; 5];
    assert_eq!(log.probes(), [expired, vec![ProbeResult::Stale]].concat());
    assert_eq!(handle.state(), State::HalfOpen);
    calls(&service, 3, || Succeed).await;
    assert_eq!(handle.state(), State::Closed);
}

// promises: BR-12, BR-26
#[tokio::test(start_paused = true)]
async fn every_lease_that_expires_is_told() {
    let log = Log::default();
    let layer = layer()
        .probes_in_flight(count(3), count(3))
        .on_event(log.sink());
    let mut service = over(&layer, &Backend::default());
    half_open(&service).await;
    for _ in 0..3 {
        std::mem::forget(service.ready().await.unwrap().call(Succeed));
    }
    assert_eq!(call(&service, Succeed).await, None);
    advance(secs(10)).await;
    assert!(call(&service, Succeed).await.is_some());
    let expired = vec![ProbeResult::LeaseExpired; 3];
    assert_eq!(log.probes(), [expired, vec![ProbeResult::Ok]].concat());
}

// promise: BR-12
#[tokio::test(start_paused = true)]
async fn a_service_that_is_slower_than_a_short_lease_is_found_to_be_well() {
    let layer = layer()
        .consecutive_only(count(1))
        .open_time(millis(100), secs(60));
    let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
    call(&service, Fail).await;
    for _ in 0..100 {
        let service = service.clone();
        tokio::spawn(async move { call(&service, after(millis(700), Succeed)).await });
        advance(millis(100)).await;
    }
    assert_eq!(handle.state(), State::Closed);
}

// promise: BR-13
#[tokio::test(start_paused = true)]
async fn a_thousand_calls_from_before_it_opened_leave_half_open_as_it_is() {
    for todo in [|| Fail, || Succeed, || Break] {
        for window in [
            layer(),
            layer().count_window(count(100)),
            layer().consecutive_only(count(5)),
        ] {
            let log = Log::default();
            let layer = window.on_event(log.sink());
            let (handle, backend) = (layer.handle(), Backend::default());
            let service = over(&layer, &backend);
            let stragglers: Vec<_> = (0..1_000)
                .map(|_| tokio::spawn(service.clone().oneshot(after(secs(61), todo()))))
                .collect();
            while backend.calls() < 1_000 {
                tokio::task::yield_now().await;
            }
            half_open(&service).await;
            assert!(call(&service, Succeed).await.is_some());
            let before = handle.snapshot();
            log.clear();
            advance(secs(2)).await;
            for straggler in stragglers {
                let _ = straggler.await.unwrap();
            }
            assert_eq!(log.calls().len(), 1_000);
            let after = handle.snapshot();
            assert_eq!((after.state, after.probes_succeeded), (State::HalfOpen, 1));
            assert_eq!((after.calls, after.failures), (0, 0));
            assert_eq!(after.transitions, before.transitions);
            assert!(log.calls().iter().all(|(.., counted)| !counted));
            calls(&service, 2, || Succeed).await;
            assert_eq!(handle.state(), State::Closed);
        }
    }
}

// promise: BR-14
#[tokio::test(start_paused = true)]
async fn it_closes_after_three_probes_that_are_farther_apart_than_its_window() {
    for layer in [layer(), layer().ramp(true)] {
        let layer = layer.window(millis(200));
        let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
        half_open(&service).await;
        for probe in 1..=3 {
            assert_ne!(handle.state(), State::Closed, "after {probe} probes");
            assert!(call(&service, Succeed).await.is_some());
            advance(millis(120)).await;
        }
        assert_eq!(handle.state(), State::Closed);
    }
}

// promise: BR-15
#[tokio::test(start_paused = true)]
async fn a_thousand_breakers_that_open_together_do_not_probe_together() {
    let mut open = Vec::new();
    for _ in 0..1_000 {
        let layer = layer().consecutive_only(count(1));
        call(&over(&layer, &Backend::default()), Fail).await;
        open.push(layer.handle().snapshot().open_for.unwrap());
    }
    open.sort();
    assert!(open[0] >= millis(2_500) && open[999] <= secs(5));
    assert!(open[999].abs_diff(open[0]) >= secs(2), "40 % of 5 s");
    // Evenly: in no tenth of the time there is twice the share.
    for tenth in 0..10 {
        let from = millis(2_500 + 250 * tenth);
        let within = open
            .iter()
            .filter(|time| (from..from + millis(250)).contains(time));
        assert!(within.count() < 200);
    }
}

// promise: BR-15
#[tokio::test(start_paused = true)]
async fn the_open_time_doubles_from_the_first_to_the_longest_that_were_set() {
    for first in [1, 100] {
        let layer = layer()
            .consecutive_only(count(1))
            .open_time(secs(first), secs(4 * first));
        let service = over(&layer, &Backend::default());
        for times in [1, 2, 4, 4, 4, 4, 4, 4] {
            let full = secs(times * first);
            call(&service, Fail).await;
            let open_for = layer.handle().snapshot().open_for.unwrap();
            let expected = full / 2..=full;
            assert!(expected.contains(&open_for), "{open_for:?} of {full:?}");
            advance(open_for).await;
        }
    }
}

// promise: BR-16
#[tokio::test(start_paused = true)]
async fn a_server_s_hint_is_the_open_time() {
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (lines, least, most) in [
        (&["120"][..], 120, 132),
        (&["Sun, 06 Nov 1994 08:51:37 GMT"], 120, 132),
        (&["0"], 0, 0),
        (&["Sun, 06 Nov 1994 08:49:36 GMT"], 0, 0),
        (&["1000000000000000000"], 300, 300),
        (&["40", "50"], 40, 44),
        // Nonsense: the breaker's own open time.
        (&["-1"], 2, 5),
        (&["abc"], 2, 5),
        (&[""], 2, 5),
    ] {
        let layer = BreakerLayer::http().consecutive_only(count(1)).ramp(false);
        let service = layer.layer(service_fn(async |(): ()| {
            let mut response = Response::builder().status(503).header("date", DATE);
            for line in lines {
                response = response.header("retry-after", *line);
            }
            Ok::<_, BoxError>(response.body(()).unwrap())
        }));
        for state in ["closed", "half-open"] {
            service.clone().oneshot(()).await.unwrap();
            let open_for = layer.handle().snapshot().open_for.unwrap();
            let (least, most) = if state == "half-open" && least == 2 {
                (5, 10)
            } else {
                (least, most)
            };
            assert!(
                open_for >= secs(least) && open_for <= secs(most),
                "{lines:?}: {open_for:?}"
            );
            assert_eq!(layer.handle().state(), State::Open);
            advance(open_for).await;
        }
    }
}

// promise: BR-16
#[tokio::test(start_paused = true)]
async fn a_server_is_taken_at_its_word_up_to_the_longest_hint_that_was_set() {
    for (hint, least, most) in [(10, 10, 11), (40, 40, 40), (1_000, 40, 40)] {
        let layer = layer().consecutive_only(count(1)).max_hint(secs(40));
        let service = over(&layer, &Backend::default());
        call(&service, FailFor(secs(hint))).await;
        let open_for = layer.handle().snapshot().open_for.unwrap();
        let expected = secs(least)..=secs(most);
        assert!(expected.contains(&open_for), "{hint} s: {open_for:?}");
    }
}

// promise: BR-16
#[tokio::test(start_paused = true)]
async fn a_server_s_pushback_is_the_open_time_too() {
    for (pushback, least, most) in [("40000", 40, 44), ("0", 0, 0), ("-1", 2, 5), ("x", 2, 5)] {
        let layer = BreakerLayer::grpc().consecutive_only(count(1));
        let service = layer.layer(service_fn(async |()| {
            let response = Response::builder()
                .header("grpc-status", "14")
                .header("grpc-retry-pushback-ms", pushback);
            Ok::<_, BoxError>(
                response
                    .body(http_body_util::Empty::<bytes::Bytes>::new())
                    .unwrap(),
            )
        }));
        service.oneshot(()).await.unwrap();
        let open_for = layer.handle().snapshot().open_for.unwrap();
        let expected = secs(least)..=secs(most);
        assert!(expected.contains(&open_for), "{pushback}: {open_for:?}");
    }
}

// promise: BR-16
#[test]
fn a_quota_s_reset_is_no_hint_for_a_breaker() {
    for (name, value, hint) in [
        ("retry-after", "7", Hint::After(secs(7))),
        ("retry-after-ms", "70", Hint::After(millis(70))),
        ("x-ratelimit-reset", "0", Hint::None),
        ("ratelimit", "\"day\";r=0;t=3600", Hint::None),
        ("x-should-retry", "false", Hint::None),
    ] {
        let response = Response::builder().status(500).header(name, value);
        let verdict = Http.classify(Ok(&response.body(()).unwrap()));
        assert_eq!(
            (verdict.kind, verdict.hint),
            (Kind::Transient, hint),
            "{name}"
        );
    }
}

// promise: BR-17
#[tokio::test(start_paused = true)]
async fn after_closing_it_takes_its_load_on_step_by_step() {
    let log = Log::default();
    let layer = layer().ramp(true).on_event(log.sink());
    let backend = Backend::default();
    let service = over(&layer, &backend);
    half_open(&service).await;
    calls(&service, 3, || Succeed).await;
    for percent in [10, 25, 50, 100, 100] {
        let before = backend.calls();
        calls(&service, 10_000, || Succeed).await;
        let through = backend.calls() - before;
        assert!(
            through.abs_diff(percent * 100) <= 200,
            "{through} of {percent} %"
        );
        assert_eq!(usize::from(layer.handle().snapshot().percent), percent);
        advance(millis(1_250)).await;
    }
    let steps: Vec<_> = log
        .events()
        .iter()
        .filter_map(|event| match event {
            Event::Ramp { percent, .. } => Some(*percent),
            _ => None,
        })
        .collect();
    assert_eq!(steps, [10, 25, 50, 100, 100]);
    let refused = log.refusals();
    assert_eq!(refused.last().unwrap().0, State::Closed);
}

// promise: BR-18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_transition_is_told_once_though_64_tasks_race_for_it() {
    let log = Log::default();
    let layer = layer()
        .consecutive_only(count(1))
        .probes(count(1))
        .probes_in_flight(count(64), count(64))
        .on_event(log.sink());
    let service = over(&layer, &Backend::default());
    let rounds = if full() { 1_000 } else { 50 };
    let tasks = (0..64).map(|task| {
        let service = service.clone();
        tokio::spawn(async move {
            for round in 0..rounds {
                let todo = if (task + round) % 3 == 0 {
                    FailFor(Duration::ZERO)
                } else {
                    Succeed
                };
                call(&service, todo).await;
                tokio::task::yield_now().await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let mut told = log.transitions();
    told.sort_by_key(|(.., number)| *number);
    let numbers: Vec<_> = told.iter().map(|(.., number)| *number).collect();
    let all: Vec<_> = (1..=layer.handle().snapshot().transitions).collect();
    assert_eq!(numbers, all);
    assert!(all.len() > 100, "{}", all.len());
    // Each begins where the one before has ended: there is one state at a time.
    let mut state = State::Closed;
    for (from, to, ..) in told {
        assert_eq!(from, state);
        assert_ne!(from, to);
        state = to;
    }
    assert_eq!(state, layer.handle().state());
}

// promise: BR-18
#[test]
fn twenty_calls_are_in_a_slow_sink_at_the_same_time() {
    // A sink that comes back when 20 are in it: it never does if calls wait for each other.
    let together = Arc::new(Barrier::new(20));
    let sink = {
        let together = together.clone();
        move |event: &Event| {
            if matches!(event, Event::Call { .. }) {
                together.wait();
            }
        }
    };
    let layer = layer().consecutive_only(count(1)).on_event(sink);
    let service = over(&layer, &Backend::default());
    let admitted = Barrier::new(20);
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let mut call = Box::pin(service.clone().call(Fail));
                admitted.wait();
                let done = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert!(done.is_ready());
            });
        }
    });
    assert_eq!(layer.handle().snapshot().transitions, 1);
}

// promise: BR-18
#[test]
fn a_sink_may_look_at_the_breaker_and_force_it_and_make_a_call() {
    type Slot = std::sync::OnceLock<(
        buttress_breaker::Handle,
        buttress_breaker::Breaker<Backend, Judge>,
    )>;
    let slot = Arc::new(Slot::new());
    let sink = {
        let slot = slot.clone();
        // Whatever it hears of: it would wait for ever if the breaker's lock was held.
        move |event: &Event| {
            let Some((handle, service)) = slot.get() else {
                return;
            };
            let _ = handle.snapshot();
            if let Event::Transition {
                to: State::Open, ..
            } = event
            {
                handle.force_closed();
                let mut call = Box::pin(service.clone().call(Fail));
                let done = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert!(done.is_ready());
            }
        }
    };
    let layer = layer().consecutive_only(count(1)).on_event(sink);
    let (handle, backend) = (layer.handle(), Backend::default());
    let service = over(&layer, &backend);
    assert!(slot.set((handle.clone(), service.clone())).is_ok());
    let mut call = Box::pin(service.clone().call(Fail));
    let done = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(done.is_ready());
    assert_eq!(handle.state(), State::ForcedClosed);
    assert_eq!(backend.calls(), 2);
}

// promise: BR-18
#[tokio::test(start_paused = true)]
async fn a_sink_that_panics_breaks_nothing() {
    let layer = layer().on_event(|_| panic!("this sink panics"));
    let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
    half_open(&service).await;
    calls(&service, 3, || Succeed).await;
    assert_eq!(handle.state(), State::Closed);
}

// promise: BR-19
#[tokio::test(start_paused = true)]
async fn a_refusal_says_who_and_why_and_when_to_come_back() {
    let layer = layer()
        .count_window(count(20))
        .consecutive(None)
        .name("cards");
    let service = over(&layer, &Backend::default());
    calls(&service, 8, || Succeed).await;
    calls(&service, 12, || Fail).await;
    let error: BoxError =
        io::Error::other(service.clone().oneshot(Succeed).await.unwrap_err()).into();
    let refusal = Rejected::find(&*error).unwrap();
    assert_eq!((refusal.by(), refusal.name()), ("breaker", Some("cards")));
    assert_eq!(refusal.reason(), "open: 12 of 20 calls failed");
    let left = layer.handle().snapshot().open_for;
    assert_eq!(refusal.retry_after(), left);
    assert!(left <= Some(secs(5)));
    let text = refusal.to_string();
    assert!(
        text.starts_with("refused by breaker cards: open: 12 of 20 calls failed; try again after ")
    );
    assert_eq!(text.lines().count(), 1);

    advance(left.unwrap()).await;
    let probe = tokio_test::task::spawn(service.clone().oneshot(Hang));
    let mut probe = probe;
    assert!(probe.poll().is_pending());
    let error = service.clone().oneshot(Succeed).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "refused by breaker cards: half-open: its probes are under way"
    );
    drop(probe);
    layer.handle().force_open();
    let error = service.clone().oneshot(Succeed).await.unwrap_err();
    assert_eq!(error.to_string(), "refused by breaker cards: forced open");
}

// promises: BR-19, BR-27
#[tokio::test(start_paused = true)]
async fn a_closed_breaker_allocates_nothing_and_an_open_one_a_box() {
    for layer in [
        layer(),
        layer().count_window(count(100)),
        layer().consecutive_only(count(5)),
    ] {
        let layer = layer.name("cards");
        let mut service = layer.layer(service_fn(|todo: Do| {
            std::future::ready(Ok::<_, BoxError>(todo))
        }));
        let mut once = |todo| {
            let mut call = std::pin::pin!(service.call(todo));
            let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        };
        once(Succeed);
        assert_eq!(measure(|| once(Succeed)).count_total, 0);
        assert_eq!(measure(|| once(TurnDown)).count_total, 0);
        for _ in 0..20 {
            once(Fail);
        }
        assert_eq!(layer.handle().state(), State::Open);
        assert_eq!(measure(|| once(Succeed)).count_total, 1);
    }
}

// promise: BR-22
#[tokio::test(start_paused = true)]
async fn a_handle_shows_and_forces_and_releases() {
    let log = Log::default();
    let layer = layer().on_event(log.sink());
    let (handle, backend) = (layer.handle(), Backend::default());
    let clones: Vec<_> = (0..10).map(|_| over(&layer, &backend).clone()).collect();
    calls(&clones[0], 2, || Succeed).await;
    calls(&clones[1], 1, || Fail).await;
    let snapshot = handle.snapshot();
    assert_eq!(
        (snapshot.calls, snapshot.failures, snapshot.in_a_row),
        (3, 1, 1)
    );
    assert_eq!(
        (snapshot.state, snapshot.cause),
        (State::Closed, Cause::New)
    );

    let hanging = clones[0].clone().oneshot(after(secs(1), Fail));
    handle.force_open();
    for clone in &clones {
        assert_eq!(call(clone, Succeed).await, None);
    }
    assert_eq!(backend.calls(), 3);
    drop(hanging);
    advance(secs(1_000_000)).await;
    assert_eq!(call(&clones[0], Succeed).await, None);
    assert_eq!(handle.snapshot().age, secs(1_000_000));

    handle.force_closed();
    for clone in &clones {
        calls(clone, 30, || Fail).await;
    }
    assert_eq!(backend.calls(), 303);
    assert_eq!(handle.state(), State::ForcedClosed);
    assert_eq!(handle.snapshot().failures, 300);
    handle.release();
    assert_eq!(handle.state(), State::Closed);
    assert_eq!(handle.snapshot().calls, 0);
    handle.release();
    calls(&clones[0], 4, || Fail).await;
    handle.reset();
    assert_eq!(handle.snapshot().failures, 0);
    calls(&clones[0], 4, || Fail).await;
    assert_eq!(handle.state(), State::Closed);
    call(&clones[0], Fail).await;
    assert_eq!(handle.state(), State::Open);
    let states: Vec<_> = log.transitions().iter().map(|(_, to, ..)| *to).collect();
    assert_eq!(
        states,
        [
            State::ForcedOpen,
            State::ForcedClosed,
            State::Closed,
            State::Open
        ]
    );
}

// promise: BR-22
#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_what_time_has_ended_though_nobody_called() {
    let layer = layer().ramp(true);
    let (handle, mut service) = (layer.handle(), over(&layer, &Backend::default()));
    half_open(&service).await;
    std::mem::forget(service.ready().await.unwrap().call(Succeed));
    assert_eq!(handle.snapshot().probes_in_flight, 1);
    advance(secs(10)).await;
    assert_eq!(handle.snapshot().probes_in_flight, 0);
    calls(&service, 3, || Succeed).await;
    for percent in [10, 25, 50, 100, 100] {
        assert_eq!(handle.snapshot().percent, percent);
        assert_eq!(handle.snapshot().open_for, None, "it has closed");
        advance(millis(1_250)).await;
    }
}

// promise: BR-23
#[tokio::test(start_paused = true)]
async fn what_shadow_mode_would_have_refused_is_what_is_refused() {
    let refused = Log::default();
    // The open time is drawn by chance, unless a hint is as long as it may be.
    let layers = || {
        layer()
            .ramp(true)
            .count_window(count(10))
            .min_calls(count(3))
            .max_hint(millis(100))
    };
    let real = layers();
    let shadow = layers().shadow().on_event(refused.sink());
    let (inner, shadowed) = (Backend::default(), Backend::default());
    let (real, shadow) = (over(&real, &inner), over(&shadow, &shadowed));
    let (mut told, mut refusals) = (0, 0);
    for number in 0..10_000_usize {
        let todo = || match (number * number / 7 + number / 50) % 5 {
            0 | 1 => FailFor(secs(1)),
            2 => TurnDown,
            _ => Succeed,
        };
        let is_refused = call(&real, todo()).await.is_none();
        assert!(call(&shadow, todo()).await.is_some(), "it refuses nothing");
        let now = refused.refusals().len();
        assert_eq!(now - told, usize::from(is_refused), "call {number}");
        (told, refusals) = (now, refusals + usize::from(is_refused));
        advance(millis(7)).await;
    }
    assert!(refused.refusals().iter().all(|(.., shadow)| *shadow));
    assert!(refusals > 1_000 && refusals < 9_000, "{refusals}");
    assert_eq!(shadowed.calls(), 10_000);
    assert_eq!(inner.calls(), 10_000 - refusals);
}

fn to(host: &str) -> Request<Do> {
    Request::get(format!("http://{host}/"))
        .body(Succeed)
        .unwrap()
}

/// Fails for the hosts whose name begins with "bad".
fn hosts(request: &Request<Do>) -> std::future::Ready<Result<Response<()>, BoxError>> {
    let bad = request.uri().host().unwrap().starts_with("bad");
    let mut response = Response::new(());
    if bad {
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    }
    std::future::ready(Ok(response))
}

async fn is_refused<S, R>(service: &S, request: R) -> Option<Rejected>
where
    S: Service<R, Error = BoxError> + Clone,
{
    let error = service.clone().oneshot(request).await.err()?;
    Rejected::find(&*error).cloned()
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn ten_million_hosts_take_no_more_memory_than_a_thousand() {
    let number = if full() { 10_000_000 } else { 200_000 };
    let layer = BreakerLayer::http().by_authority();
    let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
    let call = |host: &str| {
        let mut call = std::pin::pin!(service.clone().call(to(host)));
        let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    };
    let grown = measure(|| {
        for host in 0..number {
            call(&format!("host-{host}.example"));
        }
    });
    assert!(grown.bytes_current <= 2 << 20, "{grown:?}");
    assert!(grown.bytes_max <= 2 << 20, "{grown:?}");
    assert_eq!(layer.handles().all().len(), 1_000);
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_not_forgotten_for_a_new_key() {
    let log = Log::default();
    let layer = BreakerLayer::http()
        .by_authority()
        .max_keys(100.try_into().unwrap())
        .open_time(secs(3_600), secs(3_600))
        .on_event(log.sink());
    let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
    for bad in 0..99 {
        for _ in 0..5 {
            assert!(
                is_refused(&service, to(&format!("bad-{bad}.example")))
                    .await
                    .is_none()
            );
        }
    }
    for host in 0..10_000 {
        assert!(
            is_refused(&service, to(&format!("host-{host}.example")))
                .await
                .is_none()
        );
    }
    for bad in 0..99 {
        let refusal = is_refused(&service, to(&format!("BAD-{bad}.example:80")))
            .await
            .unwrap();
        assert_eq!(refusal.key(), Some(&*format!("bad-{bad}.example:80")));
    }
    assert_eq!(log.untracked(), 0);

    // When all are open, a new one counts as closed, and that is said.
    for _ in 0..5 {
        assert!(is_refused(&service, to("bad-99.example")).await.is_none());
    }
    assert_eq!(
        layer.handles().get("bad-99.example:80").unwrap().state(),
        State::Open
    );
    for _ in 0..50 {
        assert!(is_refused(&service, to("bad-100.example")).await.is_none());
    }
    assert_eq!(log.untracked(), 50);
    // When they have been idle for long, and their open time is over, there is room again.
    advance(secs(3_601)).await;
    assert!(is_refused(&service, to("bad-101.example")).await.is_none());
    assert_eq!(log.untracked(), 50);
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn a_forced_key_is_kept_and_an_idle_one_is_not() {
    let layer = by_path();
    let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
    let at = |path: &str| {
        Request::get(format!("http://a{path}"))
            .body(Succeed)
            .unwrap()
    };
    for path in ["/open", "/closed", "/idle"] {
        assert!(is_refused(&service, at(path)).await.is_none());
    }
    let handles = layer.handles();
    handles.get("/open").unwrap().force_open();
    handles.get("/closed").unwrap().force_closed();
    advance(secs(301)).await;
    for path in 0..10 {
        assert!(
            is_refused(&service, at(&format!("/{path}")))
                .await
                .is_none()
        );
    }
    assert!(handles.get("/idle").is_none());
    assert_eq!(handles.get("/closed").unwrap().state(), State::ForcedClosed);
    for path in 0..5_000 {
        assert!(
            is_refused(&service, at(&format!("/{path}")))
                .await
                .is_none()
        );
    }
    assert_eq!(handles.get("/closed").unwrap().state(), State::ForcedClosed);
    assert!(is_refused(&service, at("/open")).await.is_some());
}

/// A layer with a breaker for each path.
fn by_path() -> BreakerLayer<Http, ByKey<impl Fn(&Request<Do>) -> String + Clone>> {
    BreakerLayer::http().by_key(|request: &Request<Do>| request.uri().path().to_owned())
}

/// A request that fails, where there is a breaker for each path.
fn at(path: &str) -> Request<Do> {
    let uri = format!("http://bad.example{path}");
    Request::get(uri).body(Succeed).unwrap()
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn as_many_keys_are_kept_as_were_set() {
    for max in [10, 3_000] {
        let layer = by_path().max_keys(max.try_into().unwrap());
        let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
        for key in 0..max + 100 {
            is_refused(&service, at(&format!("/{key}"))).await;
        }
        assert_eq!(layer.handles().all().len(), max);
    }
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn whoever_listens_is_told_of_every_key_that_is_forgotten() {
    let log = Log::default();
    let layer = by_path()
        .max_keys(10.try_into().unwrap())
        .on_event(log.sink());
    let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
    for key in 0..100 {
        is_refused(&service, at(&format!("/{key}"))).await;
    }
    // Nobody asks for the ten that are left in so long a time.
    advance(secs(301)).await;
    for _ in 0..3 {
        is_refused(&service, at("/100")).await;
        is_refused(&service, at("/101")).await;
    }
    let mut forgotten = log.forgotten();
    let kept = layer.handles().all().len();
    assert_eq!(forgotten.len() + kept, 102);
    forgotten.sort_unstable();
    forgotten.dedup();
    assert_eq!(forgotten.len() + kept, 102, "nobody twice");
    assert!(
        forgotten
            .iter()
            .all(|key| layer.handles().get(key).is_none())
    );
    assert!(kept < 10, "{kept}: those that were idle are forgotten too");
}

// promise: BR-26
#[tokio::test(start_paused = true)]
async fn the_breaker_of_a_key_that_is_forgotten_tells_of_its_calls_and_of_no_state() {
    let log = Log::default();
    let layer = by_path()
        .max_keys(1.try_into().unwrap())
        .on_event(log.sink());
    // They end when the key has made room for another.
    let late = layer.layer(service_fn(async |_: Request<Do>| {
        tokio::time::sleep(secs(1)).await;
        Ok::<_, BoxError>(Response::builder().status(503).body(())?)
    }));
    let late: Vec<_> = (0..5)
        .map(|_| tokio::spawn(late.clone().oneshot(at("/a"))))
        .collect();
    tokio::task::yield_now().await;
    let old = layer.handles().get("/a").unwrap();
    let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
    is_refused(&service, at("/b")).await;
    assert_eq!(log.forgotten(), ["/a"]);

    log.clear();
    for call in late {
        call.await.unwrap().unwrap();
    }
    assert_eq!(old.state(), State::Open);
    old.force_open();
    old.release();
    assert_eq!(log.calls().len(), 5);
    assert_eq!(log.events().len(), 5, "{:?}", log.events());
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn a_key_is_idle_after_the_time_that_was_set() {
    for idle in [10, 1_000] {
        let layer = by_path().idle(secs(idle));
        let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
        is_refused(&service, at("/idle")).await;
        for (wait, is_kept) in [(idle, true), (1, false)] {
            advance(secs(wait)).await;
            for key in 0..20 {
                is_refused(&service, at(&format!("/{wait}/{key}"))).await;
            }
            let handle = layer.handles().get("/idle");
            assert_eq!(handle.is_some(), is_kept, "{idle} s");
        }
    }
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn of_a_long_key_no_more_than_256_bytes_are_kept() {
    let layer = by_path();
    let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
    let long = format!("/{}", "x".repeat(255));
    for rest in ["", "y", "z"] {
        assert!(
            is_refused(&service, at(&format!("{long}{rest}")))
                .await
                .is_none()
        );
    }
    // They look the same, and are not.
    let all = layer.handles().all();
    assert_eq!(all.len(), 3);
    for handle in all {
        assert_eq!(handle.key(), Some(&*long));
        assert_eq!(handle.snapshot().failures, 1);
    }

    // Never a part of a character.
    let wide = BreakerLayer::http().by_key(|wide: &&str| wide.repeat(100));
    let service = wide.layer(service_fn(async |_: &str| {
        Ok::<_, BoxError>(Response::new(()))
    }));
    service.oneshot("\u{20ac}").await.unwrap();
    assert!(wide.handles().get(&"\u{20ac}".repeat(85)).is_some());
}

// promise: BR-27
#[tokio::test(start_paused = true)]
async fn the_closed_breaker_of_a_key_that_is_known_allocates_nothing() {
    let layer = BreakerLayer::new(Judge).by_key(|_: &Do| "cards");
    let mut service = layer.layer(service_fn(|todo: Do| {
        std::future::ready(Ok::<_, BoxError>(todo))
    }));
    let mut once = || {
        let mut call = std::pin::pin!(service.call(Succeed));
        let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    };
    once();
    assert_eq!(measure(&mut once).count_total, 0);
}

// promise: BR-17
#[tokio::test(start_paused = true)]
async fn the_breaker_of_a_key_takes_its_load_on_step_by_step_too() {
    let layer = BreakerLayer::new(Judge).by_key(|_: &Do| "cards");
    let service = layer.layer(Backend::default());
    calls(&service, 5, || Fail).await;
    advance(secs(5)).await;
    calls(&service, 3, || Succeed).await;
    let snapshot = layer.handles().get("cards").unwrap().snapshot();
    assert_eq!((snapshot.state, snapshot.percent), (State::Closed, 10));
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn keys_that_are_written_alike_have_a_breaker_each() {
    #[derive(Hash)]
    struct Route(u32);

    impl std::fmt::Display for Route {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("route")
        }
    }

    let layer = BreakerLayer::http()
        .by_key(|route: &u32| Route(*route))
        .consecutive_only(count(1));
    let service = layer.layer(service_fn(async |route: u32| {
        let status = if route == 0 { 503 } else { 200 };
        Ok::<_, BoxError>(Response::builder().status(status).body(()).unwrap())
    }));
    for route in 0..1_000 {
        assert!(is_refused(&service, route).await.is_none(), "{route}");
    }
    assert!(is_refused(&service, 0).await.is_some());
    assert_eq!(layer.handles().all().len(), 1_000);
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn a_key_that_is_asked_for_now_and_then_is_not_idle() {
    let layer = by_path();
    let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
    for round in 0..5 {
        assert!(is_refused(&service, at("/used")).await.is_none());
        advance(secs(200)).await;
        // A new key is when others are forgotten.
        assert!(
            is_refused(&service, at(&format!("/{round}")))
                .await
                .is_none()
        );
    }
    // Its failures are in a row, however far apart.
    let used = layer.handles().get("/used").unwrap();
    assert_eq!(used.snapshot().cause, Cause::InARow { failures: 5 });
    assert_eq!(
        layer.handles().all().len(),
        3,
        "it, and those of 200 and 0 s ago"
    );
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn a_new_key_takes_the_place_of_the_one_that_was_not_used_for_longest() {
    let layer = by_path().max_keys(4.try_into().unwrap());
    let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
    for path in ["/a", "/b", "/c", "/d", "/a", "/c", "/e"] {
        assert!(is_refused(&service, at(path)).await.is_none());
        advance(secs(1)).await;
    }
    let handles = layer.handles();
    assert!(handles.get("/b").is_none());
    for path in ["/a", "/c", "/d", "/e"] {
        assert!(handles.get(path).is_some(), "{path}");
    }
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn requests_without_an_authority_share_a_breaker() {
    let layer = BreakerLayer::http().by_authority();
    let service = layer.layer(service_fn(async |_: Request<Do>| {
        let answer = Response::builder().status(503).body(());
        Ok::<_, BoxError>(answer.unwrap())
    }));
    let to = |host: Option<&[u8]>| {
        let mut request = Request::get("/").body(Succeed).unwrap();
        if let Some(host) = host {
            let host = http::HeaderValue::from_bytes(host).unwrap();
            request.headers_mut().insert("host", host);
        }
        request
    };
    // What no host can be called is none.
    for host in [
        None,
        Some(&b""[..]),
        Some(b"a b"),
        Some(b"\xff"),
        Some(b"a,b/c"),
    ] {
        assert!(is_refused(&service, to(host)).await.is_none());
    }
    assert!(is_refused(&service, to(None)).await.is_some());
    assert!(
        is_refused(&service, to(Some(b"pay.example")))
            .await
            .is_none()
    );
    let handles = layer.handles();
    assert_eq!(handles.get("").unwrap().state(), State::Open);
    assert_eq!(handles.all().len(), 2);
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn an_open_key_is_kept_until_its_open_time_is_over_however_idle() {
    let layer = by_path()
        .consecutive_only(count(1))
        .open_time(secs(10_000), secs(10_000));
    let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
    assert!(is_refused(&service, at("/open")).await.is_none());
    for (wait, is_kept) in [(301, true), (4_000, true), (10_000, false)] {
        advance(secs(wait)).await;
        for key in 0..20 {
            is_refused(&service, at(&format!("/{wait}/{key}"))).await;
        }
        assert_eq!(layer.handles().get("/open").is_some(), is_kept);
    }
}

// promise: BR-24
#[tokio::test(start_paused = true)]
async fn an_idle_key_makes_room_wherever_it_is() {
    for idle in 0..20 {
        let log = Log::default();
        let layer = by_path()
            .consecutive_only(count(1))
            .max_keys(20.try_into().unwrap())
            .on_event(log.sink());
        let service = layer.layer(service_fn(|request: Request<Do>| hosts(&request)));
        for round in ["new", "used"] {
            for key in (0..20).filter(|key| round == "new" || *key != idle) {
                is_refused(&service, at(&format!("/{key}"))).await;
            }
            advance(secs(200)).await;
        }
        assert!(is_refused(&service, at("/another")).await.is_none());
        assert_eq!(log.untracked(), 0, "key {idle} was not asked for in 400 s");
        assert!(layer.handles().get(&format!("/{idle}")).is_none());
    }
}

// promise: BR-25
#[test]
fn what_makes_no_sense_cannot_be_built() {
    let built = |build: fn() -> BreakerLayer<Judge>| std::panic::catch_unwind(build).is_ok();
    assert!(built(|| layer()
        .failure_rate(1.0)
        .slow_calls(secs(0), 1e-300)));
    assert!(built(|| layer()
        .window(millis(10))
        .open_time(millis(1), millis(1))));
    for build in [
        || layer().failure_rate(f64::NAN),
        || layer().failure_rate(0.0),
        || layer().failure_rate(-0.5),
        || layer().failure_rate(1.000_001),
        || layer().failure_rate(f64::INFINITY),
        || layer().slow_calls(secs(1), f64::NAN),
        || layer().slow_calls(secs(1), 0.0),
        || layer().window(Duration::ZERO),
        || layer().window(millis(9)),
        || layer().open_time(Duration::ZERO, secs(1)),
        || layer().open_time(secs(2), secs(1)),
        || layer().probe_lease(Duration::ZERO),
    ] {
        assert!(!built(build));
    }
}

// promise: BR-25
#[tokio::test(start_paused = true)]
async fn the_most_extreme_values_neither_panic_nor_wedge() {
    let max = count(u32::MAX);
    for layer in [
        layer()
            .window(Duration::MAX)
            .open_time(Duration::MAX, Duration::MAX),
        layer()
            .count_window(max)
            .min_calls(max)
            .consecutive(Some(max)),
        layer()
            .count_window(count(1))
            .min_calls(count(1))
            .probes(max),
        layer().consecutive_only(max).probes_in_flight(max, max),
        layer()
            .consecutive_only(count(1))
            .probe_lease(Duration::MAX)
            .max_hint(Duration::MAX),
        layer()
            .slow_calls(Duration::ZERO, f64::MIN_POSITIVE)
            .patience(Duration::ZERO),
        layer()
            .slow_calls(Duration::MAX, 1.0)
            .patience(Duration::MAX)
            .ramp(true),
    ] {
        let (handle, service) = (layer.handle(), over(&layer, &Backend::default()));
        for _ in 0..20 {
            for todo in [Fail, Succeed, FailFor(Duration::MAX), TurnDown, Fail, Fail] {
                call(&service, todo).await;
                let _ = handle.snapshot();
                advance(secs(1 << 20)).await;
            }
        }
        handle.force_open();
        handle.release();
        assert!(call(&service, Succeed).await.is_some());
    }
}

// promise: BR-26
#[tokio::test(start_paused = true)]
async fn the_events_add_up() {
    let log = Log::default();
    let layer = layer().on_event(log.sink());
    let backend = Backend::default();
    let service = over(&layer, &backend);
    let mut made = 0;
    for round in 0..20 {
        let patience = secs(if round % 2 == 0 { 1 } else { 11 });
        let gone = timeout(patience, service.clone().oneshot(Hang)).await;
        made += 1;
        drop(gone);
        for todo in [
            TurnDown, Break, Refuse, Throttle, Succeed, Succeed, Fail, Succeed, Fail, Fail, Fail,
            Fail, Fail, Fail,
        ] {
            call(&service, todo).await;
            made += 1;
        }
        advance(secs(61)).await;
    }
    let (seen, refused) = (log.calls(), log.refusals());
    assert_eq!(seen.len() + refused.len(), made);
    assert_eq!(seen.len(), backend.calls());
    let kinds: HashSet<_> = seen
        .iter()
        .map(|(outcome, reason, _)| (*outcome, *reason))
        .collect();
    for kind in [
        (Outcome::Success, Reason::Response),
        (Outcome::Failure, Reason::Response),
        (Outcome::Failure, Reason::Error),
        (Outcome::Ignored, Reason::Response),
        (Outcome::Ignored, Reason::Error),
        (Outcome::Cancelled, Reason::Dropped),
        (Outcome::Failure, Reason::Patience),
    ] {
        assert!(kinds.contains(&kind), "{kind:?} of {kinds:?}");
    }
    let transitions = log.transitions();
    assert!(transitions.len() > 5);
    for pair in transitions.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "one state follows the other");
        assert_eq!(pair[0].3 + 1, pair[1].3);
    }
    for event in log.events() {
        if let Event::Transition { to, open_for, .. } = event {
            assert_eq!(open_for.is_some(), to == State::Open);
        }
    }
}

// promise: BR-28
#[tokio::test(start_paused = true)]
async fn nothing_need_be_clone_or_send() {
    struct Odd(Rc<Cell<u32>>);

    let layer = BreakerLayer::new(|result: Result<&Odd, &BoxError>| match result {
        Ok(_) => Verdict::SUCCESS,
        Err(_) => Verdict::new(Kind::Transient, Applied::Maybe),
    });
    let mut service = layer.layer(service_fn(async |odd: Odd| {
        odd.0.update(|calls| calls + 1);
        if odd.0.get() == 1 {
            Ok(odd)
        } else {
            Err("sour")
        }
    }));
    let odd = Odd(Rc::default());
    let odd = service.ready().await.unwrap().call(odd).await.unwrap();
    let error = service.ready().await.unwrap().call(odd).await.err();
    assert_eq!(error.unwrap().to_string(), "sour");
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.calls, snapshot.failures), (2, 1));
}

// promise: BR-28
#[tokio::test(start_paused = true)]
async fn a_call_can_be_spawned() {
    fn judge(_: Result<&u32, &BoxError>) -> Verdict {
        Verdict::SUCCESS
    }

    let service = BreakerLayer::new(judge).layer(service_fn(async |n: u32| Ok::<_, io::Error>(n)));
    let call = tokio::spawn(async move { service.oneshot(7).await });
    assert_eq!(call.await.unwrap().unwrap(), 7);
}
