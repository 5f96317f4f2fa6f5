//! The promises of the layer over `tower-test`'s mock, and those of backpressure.

mod support;

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use buttress_breaker::{BreakerLayer, Event, Outcome, ProbeResult, Reason, State};
use buttress_core::{BoxError, Rejected, clock};
use support::*;
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, buffer::BufferLayer, limit::ConcurrencyLimitLayer,
};
use tower_test::{assert_request_eq, mock};

fn judge(result: Result<&&str, &BoxError>) -> buttress_core::Verdict {
    use buttress_core::{Applied, Kind, Verdict};
    match result {
        Ok(&"good") => Verdict::SUCCESS,
        _ => Verdict::new(Kind::Transient, Applied::Maybe),
    }
}

type JudgeStr = fn(Result<&&str, &BoxError>) -> buttress_core::Verdict;

fn strings() -> BreakerLayer<JudgeStr> {
    BreakerLayer::new(judge as JudgeStr)
        .consecutive_only(count(1))
        .ramp(false)
}

// promise: BR-28
#[tokio::test(start_paused = true)]
async fn a_call_goes_to_the_value_that_was_ready() {
    // The mock panics when it is called without having been polled ready.
    let (service, mut handle) = mock::pair::<&str, &str>();
    handle.allow(0);
    let mut service = strings().layer(service);
    let mut ready = task::spawn(service.ready());
    assert_pending!(ready.poll());
    handle.allow(1);
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
    drop(ready);
    let mut response = task::spawn(service.call("pay"));
    assert_request_eq!(handle, "pay").send_response("good");
    assert_eq!(assert_ready_ok!(response.poll()), "good");
}

// promise: BR-28
#[tokio::test(start_paused = true)]
async fn an_error_of_readiness_is_passed_on_and_counts_for_nothing() {
    let (service, mut handle) = mock::pair::<&str, &str>();
    let layer = strings();
    let mut service = layer.layer(service);
    handle.send_error("the service is gone");
    let mut ready = task::spawn(service.ready());
    let error = assert_ready_err!(ready.poll());
    assert_eq!(error.to_string(), "the service is gone");
    assert_eq!(layer.handle().state(), State::Closed);
}

// promise: BR-19
#[tokio::test(start_paused = true)]
async fn a_refused_call_reaches_nobody_and_an_open_breaker_is_ready() {
    let (service, mut handle) = mock::pair::<&str, &str>();
    let layer = strings();
    let mut service = layer.layer(service);
    layer.handle().force_open();
    handle.allow(10);
    for _ in 0..10 {
        // Being open is no error of readiness: such an error is final.
        let refused = service.ready().await.unwrap().call("pay").await;
        assert!(Rejected::find(&*refused.unwrap_err()).is_some());
    }
    let mut requests = task::spawn(async move { handle.next_request().await });
    assert_pending!(requests.poll());
}

// promise: BR-11
#[tokio::test(start_paused = true)]
async fn a_probe_may_be_dropped_at_every_poll() {
    for polls in 0..20 {
        let layer = layer();
        let service = ServiceBuilder::new()
            .layer(layer.clone())
            .layer(ConcurrencyLimitLayer::new(1))
            .service(Backend::default());
        while call(&service, Fail).await.is_some() {}
        advance(secs(5)).await;
        let slow = (0..10).fold(Succeed, |todo, _| after(millis(1), todo));
        let mut probe = task::spawn(service.clone().oneshot(slow));
        for _ in 0..polls {
            if probe.poll().is_ready() {
                break;
            }
            advance(millis(1)).await;
        }
        drop(probe);
        let snapshot = layer.handle().snapshot();
        assert_eq!(snapshot.probes_in_flight, 0, "after {polls} polls");
        assert!(call(&service, Succeed).await.is_some());
    }
}

/// A service that waits, open for 5 s at most.
fn waiting(backend: &Backend) -> (BreakerLayer<Judge, buttress_breaker::One<true>>, Waits) {
    let layer = layer().backpressure();
    let service = layer.layer(backend.clone());
    (layer, service)
}

type Waits = buttress_breaker::Breaker<Backend, Judge, buttress_breaker::One<true>>;

/// Fails until it is open, and says for how long it is.
async fn open(service: &Waits) -> Duration {
    calls(service, 5, || Fail).await;
    secs(5)
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_not_ready_until_its_time_is_over() {
    let backend = Backend::default();
    let (layer, service) = waiting(&backend);
    open(&service).await;
    let left = layer.handle().snapshot().open_for.unwrap();
    let mut other = service.clone();
    let mut ready = task::spawn(other.ready());
    assert_pending!(ready.poll());
    advance(left.saturating_sub(millis(2))).await;
    assert!(!ready.is_woken());
    advance(millis(3)).await;
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
    assert_eq!(layer.handle().snapshot().probes_in_flight, 1);
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn fifty_callers_behind_a_buffer_get_fifty_answers() {
    let backend = Backend::default();
    let (layer, service) = waiting(&backend);
    let service = ServiceBuilder::new()
        .layer(BufferLayer::new(64))
        .service(service);
    for _ in 0..5 {
        service.clone().oneshot(Fail).await.unwrap();
    }
    assert_eq!(layer.handle().state(), State::Open);
    let callers =
        (0..50).map(|_| tokio::spawn(service.clone().oneshot(after(millis(20), Succeed))));
    for caller in callers.collect::<Vec<_>>() {
        assert_eq!(caller.await.unwrap().unwrap(), Succeed);
    }
    assert_eq!(layer.handle().state(), State::Closed);
    assert_eq!(backend.calls(), 55);
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn a_thousand_who_wait_for_a_probe_are_polled_three_times_each() {
    let backend = Backend::default();
    let (layer, service) = waiting(&backend);
    open(&service).await;
    let mut waiters: Vec<_> = (0..1_000)
        .map(|_| {
            let mut service = service.clone();
            let ready = async move {
                service.ready().await.unwrap();
                service
            };
            Some((task::spawn(ready), 0))
        })
        .collect();
    let (mut calls, mut most) = (Vec::new(), 0);
    let mut first = true;
    while backend.calls() < 1_005 {
        for waiter in &mut waiters {
            let Some((ready, polls)) = waiter else {
                continue;
            };
            if first || ready.is_woken() {
                *polls += 1;
                most = most.max(*polls);
                if let Poll::Ready(mut service) = ready.poll() {
                    let call = service.call(after(secs(2), Succeed));
                    calls.push(tokio::spawn(call));
                    *waiter = None;
                }
            }
        }
        first = false;
        tokio::task::yield_now().await;
        advance(millis(100)).await;
    }
    assert_eq!(most, 3);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), Succeed, "nobody is refused");
    }
    assert_eq!(layer.handle().state(), State::Closed);
}

/// A waker that does this.
fn waker(wake: impl Fn() + Send + Sync + 'static) -> Waker {
    struct Wakes<F>(F);

    impl<F: Fn() + Send + Sync> Wake for Wakes<F> {
        fn wake(self: Arc<Self>) {
            self.0();
        }
    }

    Arc::new(Wakes(wake)).into()
}

fn woken<F: Future>(waiters: &[task::Spawn<F>]) -> Vec<usize> {
    let numbers = 0..waiters.len();
    numbers
        .filter(|number| waiters[*number].is_woken())
        .collect()
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn ready_and_dropped_holds_no_slot_and_a_free_slot_wakes_exactly_one() {
    let backend = Backend::default();
    let (layer, service) = waiting(&backend);
    let wait = open(&service).await;
    advance(wait).await;
    let mut holder = service.clone();
    holder.ready().await.unwrap();
    assert_eq!(layer.handle().snapshot().probes_in_flight, 1);
    let mut waiters: Vec<_> = (0..20)
        .map(|_| {
            let mut service = service.clone();
            task::spawn(async move {
                service.ready().await.unwrap();
                service
            })
        })
        .collect();
    for waiter in &mut waiters {
        assert_pending!(waiter.poll());
    }
    // A clone has no readiness, and takes none along.
    drop(holder.clone());
    assert!(waiters.iter().all(|waiter| !waiter.is_woken()));
    drop(holder);
    assert_eq!(woken(&waiters), [0], "the first who came");
    // One who is woken and goes away hands it on.
    drop(waiters.remove(0));
    assert_eq!(woken(&waiters), [0]);
    // And so does one who is let through and never calls.
    let through = tokio_test::assert_ready!(waiters[0].poll());
    assert_eq!(layer.handle().snapshot().probes_in_flight, 1);
    drop(waiters.remove(0));
    assert_eq!(woken(&waiters), [] as [usize; 0]);
    drop(through);
    assert_eq!(woken(&waiters), [0]);
    assert_eq!(layer.handle().snapshot().probes_in_flight, 0);
}

// promises: BR-20, BR-26
#[tokio::test(start_paused = true)]
async fn readiness_that_comes_to_nothing_is_told_of_its_probe_and_of_no_call() {
    let log = Log::default();
    let layer = layer().backpressure().on_event(log.sink());
    let service = layer.layer(Backend::default());
    advance(open(&service).await).await;
    log.clear();
    let mut ready = service.clone();
    ready.ready().await.unwrap();
    drop(ready);
    assert_eq!(log.probes(), [ProbeResult::Cancelled]);
    // Where its lease has expired, that is all that is told.
    let mut ready = service.clone();
    ready.ready().await.unwrap();
    advance(secs(10)).await;
    drop(ready);
    let told = [ProbeResult::Cancelled, ProbeResult::LeaseExpired];
    assert_eq!(log.probes(), told);
    // And where it is called, the call is all.
    let mut ready = service.clone();
    assert_eq!(
        ready.ready().await.unwrap().call(Succeed).await.unwrap(),
        Succeed
    );
    assert_eq!(log.probes()[2..], [ProbeResult::Ok]);
    assert_eq!(log.calls(), [(Outcome::Success, Reason::Response, true)]);
}

/// This many who wait for a service, polled once.
fn waiters(service: &Waits, number: usize) -> Vec<task::Spawn<impl Future<Output = Waits>>> {
    let mut waiters: Vec<_> = (0..number)
        .map(|_| {
            let mut service = service.clone();
            task::spawn(async move {
                service.ready().await.unwrap();
                service
            })
        })
        .collect();
    for waiter in &mut waiters {
        assert_pending!(waiter.poll());
    }
    waiters
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn one_who_was_woken_and_goes_away_leaves_nobody_asleep() {
    let (layer, service) = waiting(&Backend::default());
    let handle = layer.handle();
    handle.force_open();
    let mut waiters = waiters(&service, 4);
    // All are woken, but by the time that they look it is open again, and two have not looked yet.
    handle.force_closed();
    handle.force_open();
    assert_pending!(waiters[0].poll());
    assert_pending!(waiters[1].poll());
    drop(waiters.remove(2));
    assert_eq!(
        woken(&waiters),
        [0, 2],
        "the next of them, and one from before"
    );
    assert_pending!(waiters[0].poll());
    handle.release();
    assert_eq!(woken(&waiters), [0, 1, 2]);
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn one_who_was_not_woken_wakes_nobody_when_he_goes() {
    let (layer, service) = waiting(&Backend::default());
    layer.handle().force_open();
    let mut waiters = waiters(&service, 3);
    drop(waiters.remove(1));
    assert_eq!(woken(&waiters), [] as [usize; 0]);
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn the_first_in_the_queue_is_there_when_the_open_time_is_over_and_so_is_the_next_if_he_goes()
{
    let time = millis(20);
    let layer = layer().open_time(time, time).backpressure();
    let service = layer.layer(Backend::default());
    open(&service).await;
    let mut waiters = waiters(&service, 3);
    drop(waiters.remove(0));
    assert_eq!(woken(&waiters), [0], "he keeps the time now");
    assert_pending!(waiters[0].poll());
    advance(time + millis(1)).await;
    assert_eq!(woken(&waiters), [0]);
    let _ready = tokio_test::assert_ready!(waiters[0].poll());
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn a_first_in_the_queue_who_does_not_come_does_not_keep_up_the_others_for_long() {
    let time = millis(20);
    let layer = layer().open_time(time, time).backpressure();
    let service = layer.layer(Backend::default());
    open(&service).await;
    let mut waiters = waiters(&service, 3);
    advance(millis(248)).await;
    assert_eq!(woken(&waiters), [0]);
    advance(millis(3)).await;
    assert_eq!(woken(&waiters), [0, 1, 2], "they look by themselves");
    assert!(waiters[2].poll().is_ready());
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn one_who_was_woken_for_a_slot_that_another_took_is_woken_again() {
    let (_, service) = waiting(&Backend::default());
    advance(open(&service).await).await;
    let mut holder = service.clone();
    holder.ready().await.unwrap();
    let mut waiters = waiters(&service, 2);
    drop(holder);
    assert_eq!(woken(&waiters), [0]);
    let mut faster = service.clone();
    faster.ready().await.unwrap();
    assert_pending!(waiters[0].poll());
    assert_eq!(woken(&waiters), [] as [usize; 0]);
    drop(faster);
    assert_eq!(woken(&waiters), [0]);
}

// promises: BR-12, BR-20
#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_probe_that_is_forgotten_are_there_at_the_end_of_its_lease() {
    let (layer, service) = waiting(&Backend::default());
    advance(open(&service).await).await;
    let mut holder = service.clone();
    holder.ready().await.unwrap();
    std::mem::forget(holder);
    let mut waiters = waiters(&service, 3);
    advance(millis(9_998)).await;
    assert_eq!(woken(&waiters), [] as [usize; 0]);
    advance(millis(3)).await;
    assert_eq!(woken(&waiters), [0, 1, 2]);
    assert!(waiters[2].poll().is_ready());
    assert_eq!(
        layer.handle().snapshot().probes_in_flight,
        0,
        "it was dropped at once"
    );
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn one_who_waits_for_a_release_keeps_no_timer() {
    let (layer, service) = waiting(&Backend::default());
    open(&service).await;
    let mut waiters = waiters(&service, 1);
    layer.handle().force_open();
    assert_eq!(woken(&waiters), [0]);
    assert_pending!(waiters[0].poll());
    advance(secs(1_000_000)).await;
    assert_eq!(woken(&waiters), [] as [usize; 0]);
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn one_who_has_become_ready_waits_no_more() {
    let (layer, service) = waiting(&Backend::default());
    layer.handle().force_open();
    let mut first = waiters(&service, 1).remove(0);
    layer.handle().release();
    // It is ready, and nobody calls it.
    let _ready = tokio_test::assert_ready!(first.poll());
    advance(open(&service).await).await;
    let mut holder = service.clone();
    holder.ready().await.unwrap();
    let waiters = waiters(&service, 1);
    drop(holder);
    assert_eq!(woken(&waiters), [0]);
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn one_whose_service_is_gone_by_the_time_that_he_is_woken_hands_it_on() {
    let layer = layer().backpressure();
    let (inner, mut handle) = mock::pair::<Do, Do>();
    let (service, mut broken) = (layer.layer(Backend::default()), layer.layer(inner));
    advance(open(&service).await).await;
    let mut holder = service.clone();
    holder.ready().await.unwrap();
    let mut first = task::spawn(broken.ready());
    assert_pending!(first.poll());
    let waiters = waiters(&service, 1);
    handle.send_error("the service is gone");
    drop(holder);
    assert_eq!(woken(&waiters), [] as [usize; 0]);
    assert!(first.is_woken());
    assert_ready_err!(first.poll());
    // It is still there.
    drop(first);
    assert_eq!(woken(&waiters), [0]);
    drop(broken);
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn as_many_are_woken_as_there_are_slots() {
    let (_, service) = waiting(&Backend::default());
    advance(open(&service).await).await;
    let mut probe = service.clone();
    probe.ready().await.unwrap();
    let waiters = waiters(&service, 5);
    // After the first success there are two.
    probe.call(Succeed).await.unwrap();
    assert_eq!(woken(&waiters), [0, 1]);
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_leaves_nobody_asleep() {
    let (layer, service) = waiting(&Backend::default());
    layer.handle().force_open();
    let mut first = service.clone();
    let bad = waker(|| panic!("this waker panics"));
    let ready = Service::<Do>::poll_ready(&mut first, &mut Context::from_waker(&bad));
    assert!(ready.is_pending());
    let waiters = waiters(&service, 2);
    layer.handle().release();
    assert_eq!(woken(&waiters), [0, 1]);
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn a_waker_may_drop_another_who_waits() {
    let (layer, service) = waiting(&Backend::default());
    layer.handle().force_open();
    let wait = |waker: &Waker| {
        let mut service = service.clone();
        let ready = Service::<Do>::poll_ready(&mut service, &mut Context::from_waker(waker));
        assert!(ready.is_pending());
        service
    };
    let other = Mutex::new(Some(wait(Waker::noop())));
    let gone = Arc::new(AtomicBool::new(false));
    let waker = {
        let gone = gone.clone();
        waker(move || {
            drop(other.lock().unwrap().take());
            gone.store(true, Ordering::SeqCst);
        })
    };
    let _first = wait(&waker);
    layer.handle().release();
    assert!(gone.load(Ordering::SeqCst));
}

// promise: BR-18
#[tokio::test(start_paused = true)]
async fn a_slow_sink_does_not_hold_up_those_who_wait() {
    let woken = Arc::new(AtomicBool::new(false));
    let before = Arc::new(AtomicBool::new(false));
    let sink = {
        let (woken, before) = (woken.clone(), before.clone());
        move |event: &Event| {
            if let Event::Transition {
                to: State::Closed, ..
            } = event
            {
                before.store(woken.load(Ordering::SeqCst), Ordering::SeqCst);
            }
        }
    };
    let layer = layer().on_event(sink).backpressure();
    let mut service = layer.layer(Backend::default());
    layer.handle().force_open();
    let waker = waker(move || woken.store(true, Ordering::SeqCst));
    let ready = Service::<Do>::poll_ready(&mut service, &mut Context::from_waker(&waker));
    assert!(ready.is_pending());
    layer.handle().release();
    assert!(before.load(Ordering::SeqCst), "the sink came first");
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn when_a_probe_fails_those_who_wait_are_there_at_the_end_of_the_new_open_time() {
    let backend = Backend::default();
    let (layer, service) = waiting(&backend);
    let wait = open(&service).await;
    advance(wait).await;
    let mut probe = task::spawn(service.clone().oneshot(after(millis(10), FailFor(secs(1)))));
    assert_pending!(probe.poll());
    let waiters: Vec<_> = (0..10)
        .map(|_| tokio::spawn(service.clone().oneshot(Succeed)))
        .collect();
    tokio::task::yield_now().await;
    advance(millis(11)).await;
    assert_ready_ok!(probe.poll());
    let open_for = layer.handle().snapshot().open_for.unwrap();
    assert!(
        open_for < secs(2),
        "less than the lease that they have waited for"
    );
    let start = clock::now();
    for waiter in waiters {
        waiter.await.unwrap().unwrap();
    }
    let passed = clock::now().saturating_duration_since(start);
    assert!(passed < secs(3), "{passed:?}");
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_forced_breaker_are_woken_by_its_release() {
    let backend = Backend::default();
    let (layer, service) = waiting(&backend);
    layer.handle().force_open();
    let mut waiters: Vec<_> = (0..10)
        .map(|_| task::spawn(service.clone().oneshot(Succeed)))
        .collect();
    for waiter in &mut waiters {
        assert_pending!(waiter.poll());
    }
    advance(secs(1_000_000)).await;
    assert!(waiters.iter().all(|waiter| !waiter.is_woken()));
    layer.handle().release();
    for waiter in &mut waiters {
        assert!(waiter.is_woken());
        assert_ready_ok!(waiter.poll());
    }
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn one_who_was_ready_before_it_opened_is_refused() {
    let backend = Backend::default();
    let (_, service) = waiting(&backend);
    let mut ready = service.clone();
    ready.ready().await.unwrap();
    open(&service).await;
    let error = ready.call(Succeed).await.unwrap_err();
    assert!(Rejected::find(&*error).is_some());
    assert_eq!(backend.calls(), 5);
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn a_slot_whose_lease_expires_before_the_call_is_asked_for_again() {
    let backend = Backend::default();
    let (layer, service) = waiting(&backend);
    let wait = open(&service).await;
    advance(wait).await;
    let mut slow = service.clone();
    slow.ready().await.unwrap();
    advance(secs(10)).await;
    // Still ready, with another slot.
    slow.ready().await.unwrap();
    assert_eq!(layer.handle().snapshot().probes_in_flight, 1);
    advance(secs(10)).await;
    // Called without being asked again: there is a slot, so it gets one.
    assert_eq!(slow.call(Succeed).await.unwrap(), Succeed);
    assert_eq!(layer.handle().snapshot().probes_succeeded, 1);
    // And where there is none, it is refused.
    slow.ready().await.unwrap();
    advance(secs(10)).await;
    let mut holders: Vec<_> = (0..2)
        .map(|_| task::spawn(service.clone().oneshot(Hang)))
        .collect();
    for holder in &mut holders {
        assert_pending!(holder.poll());
    }
    let error = slow.call(Succeed).await.unwrap_err();
    assert!(Rejected::find(&*error).is_some());
}

// promises: BR-17, BR-20
#[tokio::test(start_paused = true)]
async fn who_waits_is_spared_the_ramp() {
    for layer in [
        BreakerLayer::new(Judge).backpressure(),
        BreakerLayer::new(Judge).backpressure().ramp(true),
    ] {
        let service = layer.layer(Backend::default());
        advance(open(&service).await).await;
        calls(&service, 3, || Succeed).await;
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.state, snapshot.percent), (State::Closed, 100));
        // None of them waits, and none is refused.
        for _ in 0..100 {
            let mut service = service.clone();
            assert_ready_ok!(task::spawn(service.ready()).poll());
            assert_eq!(service.call(Succeed).await.unwrap(), Succeed);
        }
    }
}

// promise: BR-23
#[tokio::test(start_paused = true)]
async fn shadow_mode_waits_for_nothing() {
    let backend = Backend::default();
    let layer = layer().backpressure().shadow();
    let service = layer.layer(backend.clone());
    for _ in 0..50 {
        // The clock runs on where somebody waits.
        let mut service = service.clone();
        assert_ready_ok!(task::spawn(service.ready()).poll());
        service.call(Fail).await.unwrap();
    }
    assert_eq!(layer.handle().state(), State::Open);
    assert_eq!(backend.calls(), 50);
}
