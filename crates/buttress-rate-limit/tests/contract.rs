//! The promises of the layer over `tower-test`'s mock, and those of backpressure.

mod support;

use std::{
    future::{Future, poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use buttress_core::{BoxError, clock};
use buttress_rate_limit::{One, RateLimit, RateLimitLayer};
use support::*;
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, buffer::BufferLayer, limit::ConcurrencyLimitLayer,
    load_shed::LoadShedLayer, service_fn,
};
use tower_test::{assert_request_eq, mock};

/// A waker that counts.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// promise: RL-25
#[tokio::test(start_paused = true)]
async fn a_call_goes_to_the_value_that_was_ready() {
    // The mock panics when it is called without having been polled ready.
    let (service, mut handle) = mock::pair::<&str, &str>();
    handle.allow(0);
    let mut service = RateLimitLayer::new(per_second(10, 1)).layer(service);
    let mut ready = task::spawn(service.ready());
    assert_pending!(ready.poll());
    handle.allow(1);
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
    drop(ready);
    let mut response = task::spawn(service.call("pay"));
    assert_request_eq!(handle, "pay").send_response("paid");
    assert_eq!(assert_ready_ok!(response.poll()), "paid");
}

// promises: RL-11, RL-25
#[tokio::test(start_paused = true)]
async fn a_call_that_has_waited_polls_the_service_ready_again() {
    let (service, mut handle) = mock::pair::<&str, &str>();
    handle.allow(1);
    let mut service = RateLimitLayer::new(per_second(10, 1)).layer(service);
    let mut first = task::spawn(service.ready().await.unwrap().call("first"));
    assert_pending!(first.poll());
    assert_request_eq!(handle, "first").send_response("done");
    handle.allow(1);
    let mut second = task::spawn(service.ready().await.unwrap().call("second"));
    handle.allow(0);
    assert_pending!(second.poll());
    advance(millis(100)).await;
    assert!(second.is_woken());
    assert_pending!(second.poll());
    handle.allow(1);
    assert!(second.is_woken());
    assert_pending!(second.poll());
    assert_request_eq!(handle, "second").send_response("done");
    assert_eq!(assert_ready_ok!(second.poll()), "done");
}

// promise: RL-25
#[tokio::test(start_paused = true)]
async fn errors_of_the_service_pass_as_they_are() {
    let (service, mut handle) = mock::pair::<&str, &str>();
    let mut service = RateLimitLayer::new(per_second(10, 5)).layer(service);
    let mut call = task::spawn(service.ready().await.unwrap().call("pay"));
    assert_pending!(call.poll());
    assert_request_eq!(handle, "pay").send_error("no route");
    assert_eq!(assert_ready_err!(call.poll()).to_string(), "no route");
    handle.send_error("gone");
    let mut ready = task::spawn(service.ready());
    assert_eq!(assert_ready_err!(ready.poll()).to_string(), "gone");
}

// promise: ST-4
#[tokio::test(start_paused = true)]
async fn a_call_whose_turn_came_early_is_not_woken_for_the_time_that_it_was_due() {
    let (service, mut handle) = mock::pair::<&str, &str>();
    handle.allow(2);
    let layer = RateLimitLayer::new(per_second(10, 1));
    let mut service = layer.layer(service);
    let _first = service.ready().await.unwrap().call("first");
    let mut second = task::spawn(service.ready().await.unwrap().call("second"));
    handle.allow(0);
    assert_pending!(second.poll());
    layer.handle().settle(1, 0);
    assert!(second.is_woken());
    assert_pending!(second.poll());
    advance(millis(200)).await;
    assert!(!second.is_woken(), "it waits for the service");
    handle.allow(1);
    assert!(second.is_woken());
}

/// Polls it once more, which is a mistake of the caller.
fn is_over<F: Future>(call: &mut task::Spawn<F>) -> bool {
    catch_unwind(AssertUnwindSafe(|| drop(call.poll()))).is_err()
}

// promises: RL-10, RL-25
#[tokio::test(start_paused = true)]
async fn a_call_that_has_waited_in_vain_keeps_nothing_though_its_future_is_kept() {
    type Request = (u64, Arc<()>);
    let kept = Arc::new(());
    let layer = RateLimitLayer::new(per_second(10, 10))
        .max_wait(Duration::from_mins(1))
        .cost(|(cost, _): &Request| *cost);
    let handle = layer.handle();

    // It costs more than there is by now.
    let (service, mut below) = mock::pair::<Request, ()>();
    below.allow(2);
    let mut service = layer.layer(service);
    let _first = service.ready().await.unwrap().call((10, kept.clone()));
    drop(below.next_request().await);
    let ready = service.ready().await.unwrap();
    let mut call = task::spawn(ready.call((10, kept.clone())));
    assert_pending!(call.poll());
    assert!(handle.set_quota(0, per_second(10, 1)));
    refusal(assert_ready!(call.poll()));
    assert_eq!(Arc::strong_count(&kept), 1);
    assert!(is_over(&mut call));
    assert_pending!(below.poll_request());

    // The service below fails when the token is there.
    advance(Duration::from_secs(1)).await;
    let (service, mut below) = mock::pair::<Request, ()>();
    below.allow(2);
    let mut service = layer.layer(service);
    let _first = service.ready().await.unwrap().call((1, kept.clone()));
    drop(below.next_request().await);
    let ready = service.ready().await.unwrap();
    let mut call = task::spawn(ready.call((1, kept.clone())));
    assert_pending!(call.poll());
    below.send_error("gone");
    advance(millis(100)).await;
    assert_eq!(assert_ready_err!(call.poll()).to_string(), "gone");
    assert_eq!((Arc::strong_count(&kept), handle.remaining()), (1, 1));
    assert!(is_over(&mut call));
}

// promises: RL-10, RL-12
#[tokio::test(start_paused = true)]
async fn dropped_at_any_poll_a_call_leaves_nothing_behind() {
    for last in 0..20 {
        let layer = RateLimitLayer::new(per_second(10, 1)).max_wait(Duration::from_mins(1));
        let stack = ServiceBuilder::new()
            .layer(layer.clone())
            .layer(BufferLayer::new(3))
            .layer(ConcurrencyLimitLayer::new(1))
            .service_fn(async |number: u64| {
                tokio::time::sleep(millis(30)).await;
                Ok::<_, BoxError>(number)
            });
        let _first = stack.clone().oneshot(0).await.unwrap();
        let mut call = Box::pin(stack.clone().oneshot(1));
        for _ in 0..last {
            let done = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_ready())).await;
            if done {
                break;
            }
            advance(millis(20)).await;
        }
        drop(call);
        assert_eq!(layer.handle().waiters(), 0, "after poll {last}");
        // Whatever the call held is there again, within the time that it may have taken.
        let start = clock::now();
        assert_eq!(stack.oneshot(2).await.unwrap(), 2);
        let waited = clock::now().saturating_duration_since(start);
        assert!(
            waited <= millis(100 + 30 + 30),
            "after poll {last}: {waited:?}"
        );
    }
}

type Waiting<S> = RateLimit<S, One<true>>;

fn waiting(rate: u32) -> (RateLimitLayer<One<true>>, Backend) {
    (
        RateLimitLayer::new(per_second(rate, 1)).backpressure(),
        Backend::new(),
    )
}

// promises: RL-7, RL-13
#[tokio::test(start_paused = true)]
async fn with_backpressure_a_service_is_ready_when_there_is_a_token() {
    let (layer, backend) = waiting(10);
    let service = layer.layer(backend.clone());
    let calls: Vec<_> = (0..1_000)
        .map(|number| {
            let service = service.clone();
            tokio::spawn(async move {
                let mut service = service;
                service.ready().await.unwrap().call(number).await.unwrap();
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    for (place, (number, time)) in backend.came().into_iter().enumerate() {
        assert_eq!(number, place as u64);
        assert!(
            time.abs_diff(u128::from(number) * 100) <= 1,
            "{number} came at {time}"
        );
    }
}

// promises: RL-8, RL-13
#[tokio::test(start_paused = true)]
async fn with_backpressure_too_who_waits_costs_three_polls() {
    let (layer, backend) = waiting(100);
    let service = layer.layer(backend);
    let mut waiting: Vec<_> = (0..200)
        .map(|_| mock::Spawn::new(service.clone()))
        .map(Some)
        .collect();
    let (mut polls, mut first, mut done) = (0, true, 0);
    while done < 200 {
        for slot in &mut waiting {
            if let Some(service) = slot
                && (first || service.is_woken())
            {
                polls += 1;
                if service.poll_ready::<u64>().is_ready() {
                    let mut service = slot.take().unwrap();
                    let call = service.call(done);
                    assert_eq!(call.await.unwrap(), done);
                    done += 1;
                }
            }
        }
        first = false;
        advance(millis(1)).await;
    }
    assert!(polls <= 600, "{polls}");
}

// promise: RL-13
#[tokio::test(start_paused = true)]
async fn with_backpressure_what_is_dropped_gives_its_place_back() {
    for what in ["ready", "woken", "waiting"] {
        let (layer, backend) = waiting(10);
        let service = layer.layer(backend.clone());
        let mut first = mock::Spawn::new(service.clone());
        assert_ready_ok!(first.poll_ready::<u64>());
        let mut gone = mock::Spawn::new(service.clone());
        assert_pending!(gone.poll_ready::<u64>());
        let mut last = mock::Spawn::new(service.clone());
        assert_pending!(last.poll_ready::<u64>());
        match what {
            "ready" => {
                first.call(0).await.unwrap();
                advance(millis(100)).await;
                assert_ready_ok!(gone.poll_ready::<u64>());
                // Readiness does not cost another token, and a clone has none.
                assert_ready_ok!(gone.poll_ready::<u64>());
                let mut clone = mock::Spawn::new(gone.get_ref().clone());
                assert_pending!(clone.poll_ready::<u64>());
                drop((gone, clone));
            }
            "woken" => {
                first.call(0).await.unwrap();
                advance(millis(100)).await;
                assert!(gone.is_woken());
                drop(gone);
            }
            _ => {
                drop(gone);
                first.call(0).await.unwrap();
                advance(millis(100)).await;
            }
        }
        assert!(last.is_woken(), "{what}");
        assert_ready_ok!(last.poll_ready::<u64>(), "{what}");
        last.call(1).await.unwrap();
        assert_eq!(backend.times(), [0, 100], "{what}");
        assert_eq!(layer.handle().waiters(), 0);
        advance(Duration::from_hours(1)).await;
        assert_eq!(layer.handle().remaining(), 1);
    }
}

// promises: RL-11, RL-13
#[tokio::test(start_paused = true)]
async fn with_backpressure_who_waits_does_not_hold_the_service_either() {
    let layer = RateLimitLayer::new(per_second(10, 1)).backpressure();
    let inner = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service_fn(async |number: u64| Ok::<_, BoxError>(number));
    let mut service = layer.layer(inner.clone());
    service.ready().await.unwrap().call(1).await.unwrap();
    let mut waiting = mock::Spawn::new(service.clone());
    assert_pending!(waiting.poll_ready::<u64>());
    assert_eq!(inner.oneshot(2).await.unwrap(), 2);
}

// promise: RL-13
#[tokio::test(start_paused = true)]
async fn with_backpressure_load_is_shed_and_an_error_takes_no_token() {
    let (layer, backend) = waiting(10);
    let shed = ServiceBuilder::new()
        .layer(LoadShedLayer::new())
        .layer(layer.clone())
        .service(backend);
    assert_eq!(shed.clone().oneshot(1).await.unwrap(), 1);
    let error = shed.clone().oneshot(2).await.unwrap_err();
    assert!(error.is::<tower::load_shed::error::Overloaded>());
    advance(millis(100)).await;
    assert_eq!(
        layer.handle().remaining(),
        1,
        "who was shed has left the line"
    );

    let (service, mut handle) = mock::pair::<u64, u64>();
    handle.send_error("gone");
    let mut service = mock::Spawn::new(layer.layer(service));
    assert_ready_err!(service.poll_ready());
    assert_eq!(layer.handle().remaining(), 1);
}

// promise: RL-13
#[tokio::test(start_paused = true)]
async fn with_backpressure_nobody_polls_an_idle_waiter() {
    let (layer, backend) = waiting(1);
    let mut first: Waiting<_> = layer.layer(backend);
    first.ready().await.unwrap().call(0).await.unwrap();
    let count = Arc::new(Wakes::default());
    let waker = Waker::from(count.clone());
    let mut waiting = first.clone();
    let cx = &mut Context::from_waker(&waker);
    assert!(Service::<u64>::poll_ready(&mut waiting, cx).is_pending());
    for _ in 0..99 {
        advance(millis(10)).await;
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
    }
    advance(millis(11)).await;
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(Service::<u64>::poll_ready(&mut waiting, cx).is_ready());
}

// promise: RL-25
#[test]
fn what_is_shared_between_threads_can_be() {
    fn is_shared<T: Send + Sync + Clone + std::fmt::Debug>(_: &T) {}
    fn is_sent<T: Send>(_: T) {}

    let service = service_fn(|_: u64| ready(Ok::<_, BoxError>(())));
    let layer = RateLimitLayer::new(per_second(1, 1));
    is_shared(&layer);
    is_shared(&layer.handle());
    let by_key = layer
        .clone()
        .by_key(|key: &u64| *key)
        .quota(|_: &u64| per_second(1, 1));
    let mut services = (layer.layer(service), by_key.layer(service));
    is_sent(services.0.clone());
    is_sent(services.1.clone());
    is_sent(services.0.call(1));
    is_sent(services.1.call(1));
    is_sent(layer.backpressure().layer(service));
}
