//! The promises of the layer, call by call, on a paused clock.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use allocation_counter::measure;
use buttress_core::{BoxError, Deadline, LimitReport, clock};
use buttress_rate_limit::{Event, Quota, RateLimitLayer, Reason};
use futures_util::FutureExt;
use http::Request;
use support::*;
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

// promise: RL-7
#[tokio::test(start_paused = true)]
async fn a_thousand_who_wait_go_in_the_order_they_came() {
    let layer = RateLimitLayer::new(per_second(100, 1)).max_wait(Duration::from_mins(1));
    let backend = Backend::new();
    let service = layer.layer(backend.clone());
    let calls: Vec<_> = (0..1_000)
        .map(|number| service.clone().call(number))
        .collect();
    assert_eq!(layer.handle().waiters(), 999);
    // They are polled in another order than they came in.
    let mut tasks: Vec<_> = calls.into_iter().map(Some).collect();
    let mut running = Vec::new();
    for number in 0..1_000 {
        running.push(tokio::spawn(tasks[(number * 7) % 1_000].take().unwrap()));
    }
    for task in running {
        task.await.unwrap().unwrap();
    }
    let came: Vec<_> = (0..1_000)
        .map(|number| (number, u128::from(number) * 10))
        .collect();
    let close =
        |(got, want): (&(u64, u128), &(u64, u128))| got.0 == want.0 && got.1.abs_diff(want.1) <= 1;
    assert!(
        backend.came().iter().zip(&came).all(close),
        "{:?}",
        backend.came()
    );
}

// promise: RL-7
#[tokio::test(start_paused = true)]
async fn who_comes_late_does_not_overtake() {
    let layer = RateLimitLayer::new(per_second(100, 1)).max_wait(Duration::from_mins(1));
    let backend = Backend::new();
    let service = layer.layer(backend.clone());
    service.clone().oneshot(0).await.unwrap();
    let early = tokio::spawn(service.clone().oneshot(1));
    tokio::task::yield_now().await;
    for late in 2..202 {
        let call = tokio::spawn(service.clone().oneshot(late));
        advance(millis(10)).await;
        drop(call);
    }
    early.await.unwrap().unwrap();
    let order: Vec<_> = backend
        .came()
        .into_iter()
        .map(|(number, _)| number)
        .collect();
    assert!(order.is_sorted(), "{order:?}");
}

// promise: RL-7
#[tokio::test(start_paused = true)]
async fn those_who_never_look_do_not_hold_the_others_for_ever() {
    let layer = RateLimitLayer::new(per_second(10, 1)).max_wait(Duration::from_secs(9));
    let backend = Backend::new();
    let service = layer.layer(backend.clone());
    service.clone().oneshot(0).await.unwrap();
    let unpolled = service.clone().call(1);
    let forgotten = service.clone().call(2);
    std::mem::forget(forgotten);
    service.clone().oneshot(3).await.unwrap();
    assert!(backend.times()[1] < 1_000, "{:?}", backend.times());
    // His turn has come long ago.
    assert_eq!(unpolled.await.unwrap(), 1);
    assert_eq!(layer.handle().waiters(), 0);
}

/// How often those are polled who wait for a quota, by a timer of milliseconds.
async fn polls(quota: Quota, waiters: u64) -> usize {
    let layer = RateLimitLayer::new(quota).max_wait(Duration::from_mins(1));
    let backend = Backend::new();
    let service = layer.layer(backend.clone());
    let mut waiting: Vec<_> = (0..waiters)
        .map(|number| Some(task::spawn(service.clone().call(number))))
        .collect();
    let (mut polls, mut first) = (0, true);
    while (backend.came().len() as u64) < waiters {
        for slot in &mut waiting {
            if let Some(call) = slot
                && (first || call.is_woken())
            {
                polls += 1;
                if call.poll().is_ready() {
                    *slot = None;
                }
            }
        }
        first = false;
        // For the budget of tokio's scheduler.
        tokio::task::yield_now().await;
        advance(millis(1)).await;
    }
    polls
}

// promise: RL-8
#[tokio::test(start_paused = true)]
async fn a_thousand_who_wait_cost_three_events_each() {
    let polls = polls(per_second(100, 1), 1_000).await;
    assert!(polls <= 3_000, "{polls}");
}

// promise: RL-8
#[tokio::test(start_paused = true)]
async fn nor_do_they_cost_more_where_their_turns_are_between_two_milliseconds() {
    for rate in [15, 19, 70, 997] {
        let quota = Quota::per_second(count(rate));
        let polls = polls(quota, 200).await;
        assert!(polls <= 600, "{polls} at {rate} a second");
    }
}

// promise: RL-9
#[tokio::test(start_paused = true)]
async fn a_wait_that_would_be_too_long_is_refused_when_it_comes() {
    let layer = RateLimitLayer::new(per_second(10, 1)).name("api");
    let backend = Backend::new();
    let service = layer.layer(backend.clone());
    let waiting: Vec<_> = (0..6).map(|number| service.clone().call(number)).collect();
    let start = clock::now();
    let refused = refusal(service.clone().oneshot(6).await);
    assert_eq!(clock::now(), start, "in no time");
    assert_eq!((refused.by(), refused.name()), ("rate limit", Some("api")));
    assert_eq!(
        refused.to_string(),
        "refused by rate limit api: the quota is used up (10 per second); try again after 600.0ms"
    );
    assert_eq!(refused.retry_after(), Some(millis(600)));
    // It holds nothing: the next one would wait no longer.
    assert_eq!(
        refusal(service.clone().oneshot(7).await).retry_after(),
        Some(millis(600))
    );
    for call in waiting {
        call.await.unwrap();
    }
    assert_eq!(backend.came().len(), 6);
}

// promise: RL-9
#[tokio::test(start_paused = true)]
async fn a_deadline_is_a_limit_to_the_wait() {
    let layer = RateLimitLayer::http(per_second(10, 1));
    let service = layer.layer(service_fn(async |_: Request<()>| Ok::<_, BoxError>(())));
    let request = |wait: Option<u64>| {
        let mut request = Request::new(());
        if let Some(wait) = wait {
            request
                .extensions_mut()
                .insert(Deadline(clock::now() + millis(wait)));
        }
        request
    };
    service.clone().oneshot(request(None)).await.unwrap();
    let refused = refusal(service.clone().oneshot(request(Some(99))).await);
    assert_eq!(refused.retry_after(), Some(millis(100)));
    let start = clock::now();
    service.clone().oneshot(request(Some(100))).await.unwrap();
    assert!(clock::now().saturating_duration_since(start) >= millis(100));
}

// promise: RL-10
#[tokio::test(start_paused = true)]
async fn who_goes_away_leaves_his_place_to_those_behind_him() {
    for gone in 1..10 {
        let layer = RateLimitLayer::new(per_second(10, 1)).max_wait(Duration::from_secs(9));
        let backend = Backend::new();
        let service = layer.layer(backend.clone());
        let mut calls: Vec<_> = (0..10)
            .map(|number| Some(tokio::spawn(service.clone().call(number))))
            .collect();
        tokio::task::yield_now().await;
        advance(millis(50)).await;
        let call = calls[gone].take().unwrap();
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        for call in calls.into_iter().flatten() {
            call.await.unwrap().unwrap();
        }
        let times = backend.times();
        let expected = (0..9).map(|place| place * 100);
        assert!(
            times
                .iter()
                .zip(expected)
                .all(|(time, want)| time.abs_diff(want) <= 1),
            "without number {gone}: {times:?}"
        );
    }
}

// promise: RL-10
#[tokio::test(start_paused = true)]
async fn tokens_that_were_granted_and_not_spent_are_given_back() {
    let layer = RateLimitLayer::new(per_second(10, 1)).max_wait(Duration::from_secs(9));
    let stuck = service_fn(async |number: u64| Ok::<_, BoxError>(number));
    let limit = ServiceBuilder::new()
        .layer(layer.clone())
        .layer(ConcurrencyLimitLayer::new(1));
    let mut holder = limit.service(stuck);
    let free = holder.clone();
    let mut granted = task::spawn(free.clone().oneshot(1));
    let _ = assert_ready!(granted.poll());
    // It has to wait for its turn, and then for the service, which another one holds.
    let mut waiting = task::spawn(free.clone().oneshot(2));
    assert_pending!(waiting.poll());
    holder.ready().await.unwrap();
    advance(millis(101)).await;
    assert_pending!(waiting.poll());
    assert_eq!(layer.handle().remaining(), 0);
    drop(waiting);
    assert_eq!(layer.handle().remaining(), 1);
}

// promise: RL-11
#[tokio::test(start_paused = true)]
async fn who_waits_does_not_hold_the_service() {
    let layer = RateLimitLayer::new(per_second(10, 1));
    let inner = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service_fn(async |number: u64| Ok::<_, BoxError>(number));
    let mut service = layer.layer(inner.clone());
    service.ready().await.unwrap().call(1).await.unwrap();
    let mut waiting = task::spawn(service.ready().await.unwrap().call(2));
    assert_pending!(waiting.poll());
    // The one permit is free for somebody else.
    assert_eq!(inner.oneshot(3).await.unwrap(), 3);
    advance(millis(101)).await;
    assert!(waiting.is_woken());
    assert_eq!(assert_ready!(waiting.poll()).unwrap(), 2);
}

// promise: RL-12
#[tokio::test(start_paused = true)]
async fn to_be_ready_costs_nothing() {
    let layer = RateLimitLayer::new(per_second(10, 3));
    let service = layer.layer(Backend::new());
    for _ in 0..10 {
        let mut clone = service.clone();
        clone.ready().await.unwrap();
        drop(clone);
    }
    assert_eq!(layer.handle().remaining(), 3);
}

// promise: RL-4
#[tokio::test(start_paused = true)]
async fn a_request_that_is_too_large_is_refused_for_good() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let sink = log.clone();
    let layer = RateLimitLayer::new(per_second(10, 5))
        .cost(|cost: &u64| *cost)
        .on_event(move |event| sink.lock().unwrap().push(event.clone()));
    let service = layer.layer(Backend::new());
    let refused = refusal(service.clone().oneshot(6).await);
    assert_eq!(refused.retry_after(), None);
    assert_eq!(refused.reason(), "it costs more than a burst holds");
    assert!(matches!(
        log.lock().unwrap()[..],
        [Event::Refused {
            reason: Reason::TooLarge,
            cost: 6,
            retry_after: None,
            ..
        }]
    ));
    service.clone().oneshot(5).await.unwrap();
}

// promise: RL-21
#[tokio::test(start_paused = true)]
async fn several_quotas_are_charged_together_or_not_at_all() {
    let layer = RateLimitLayer::new(per_second(100, 100))
        .and(Quota::per_minute(count(10)).burst(count(10)))
        .refuse();
    let service = layer.layer(Backend::new());
    for number in 0..10 {
        service.clone().oneshot(number).await.unwrap();
    }
    for number in 0..50 {
        let refused = refusal(service.clone().oneshot(number).await);
        let limit = refused.limit().unwrap();
        assert_eq!((limit.bound, limit.remaining), (1, 0));
        assert_eq!(limit.policy().unwrap().name, "minute");
        assert_eq!(refused.retry_after(), Some(Duration::from_secs(6)));
    }
    // Nothing was taken from the first by what the second has refused.
    advance(Duration::from_secs(6)).await;
    service.clone().oneshot(0).await.unwrap();
}

// promise: RL-21
#[tokio::test(start_paused = true)]
async fn a_quota_has_a_burst_of_its_own_by_default() {
    let layer = RateLimitLayer::new(Quota::per_second(count(50)));
    assert_eq!(layer.handle().remaining(), 5);
    assert_eq!(layer.clone().refuse().handle().remaining(), 50);
    // A quota for the long run lets all come that it has.
    let hourly = Quota::per_hour(count(1_000));
    assert_eq!(layer.and(hourly).handle().remaining(), 5);
    assert_eq!(RateLimitLayer::new(hourly).handle().remaining(), 1);
    let both = RateLimitLayer::new(Quota::per_day(count(90_000)))
        .and(hourly)
        .refuse();
    assert!(both.handle().set_quota(1, Quota::per_hour(count(7))));
    assert_eq!(both.handle().remaining(), 1);
    let both = RateLimitLayer::new(Quota::per_second(count(90_000)))
        .and(hourly)
        .refuse();
    assert!(both.handle().set_quota(1, Quota::per_hour(count(7))));
    assert_eq!(both.handle().remaining(), 7);
}

// promise: RL-22
#[tokio::test(start_paused = true)]
async fn what_was_reserved_is_settled() {
    let layer = RateLimitLayer::new(per_second(100, 2_000))
        .cost(|cost: &u64| *cost)
        .refuse();
    let (service, handle) = (layer.layer(Backend::new()), layer.handle());
    service.clone().oneshot(1_000).await.unwrap();
    handle.settle(1_000, 200);
    assert_eq!(handle.remaining(), 1_800, "800 are back");
    service.clone().oneshot(1_000).await.unwrap();
    service.clone().oneshot(800).await.unwrap();
    handle.settle(1_000, 1_600);
    assert_eq!(handle.remaining(), 0);
    // 600 in debt: those are paid back first.
    assert_eq!(handle.next_free(), millis(6_010));
    service.clone().oneshot(0).await.unwrap_err();
    advance(millis(6_000)).await;
    service.clone().oneshot(0).await.unwrap();
    service.clone().oneshot(1).await.unwrap_err();
    assert_eq!(handle.remaining(), 0);
}

// promise: RL-23
#[tokio::test(start_paused = true)]
async fn a_handle_shows_and_changes_the_quota() {
    let layer = RateLimitLayer::new(per_second(10, 5)).max_wait(Duration::from_mins(1));
    let backend = Backend::new();
    let (service, handle) = (layer.layer(backend.clone()), layer.handle());
    assert_eq!(
        (handle.remaining(), handle.next_free(), handle.waiters()),
        (5, Duration::ZERO, 0)
    );
    let calls: Vec<_> = (0..15)
        .map(|number| tokio::spawn(service.clone().call(number)))
        .collect();
    tokio::task::yield_now().await;
    assert_eq!((handle.remaining(), handle.waiters()), (0, 10));
    assert_eq!(handle.next_free(), millis(1_100));
    assert!(!handle.set_quota(1, per_second(1, 1)));
    assert!(handle.set_quota(0, per_second(100, 5)));
    assert_eq!(handle.quota(0), Some(per_second(100, 5)));
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let times = backend.times();
    let expected = [0; 5].into_iter().chain((1..=10).map(|place| place * 10));
    assert!(
        times
            .iter()
            .zip(expected)
            .all(|(time, want)| time.abs_diff(want) <= 1),
        "{times:?}"
    );
    advance(Duration::from_hours(1)).await;
    assert_eq!(handle.remaining(), 5, "full after an hour");
}

// promise: RL-24
#[tokio::test(start_paused = true)]
async fn every_call_is_told_and_shadow_mode_only_tells() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let limit = || {
        let log = log.clone();
        RateLimitLayer::new(per_second(10, 1))
            .max_wait(millis(200))
            .on_event(move |event| log.lock().unwrap().push(event.clone()))
    };
    let service = limit().layer(Backend::new());
    let calls: Vec<_> = (0..5)
        .map(|number| service.clone().oneshot(number))
        .collect();
    for (number, call) in calls.into_iter().enumerate() {
        let mut call = task::spawn(call);
        let refused = match call.poll() {
            Poll::Ready(result) => result.is_err(),
            Poll::Pending => false,
        };
        assert!(!refused, "call {number}");
    }
    let told: Vec<_> = std::mem::take(&mut *log.lock().unwrap());
    assert!(matches!(
        told[0],
        Event::Admitted {
            waited: Duration::ZERO,
            cost: 1,
            ..
        }
    ));
    assert!(
        told[1..]
            .iter()
            .all(|event| matches!(event, Event::Cancelled { cost: 1, .. }))
    );
    assert_eq!(told.len(), 5);

    let backend = Backend::new();
    let shadow = limit().shadow().layer(backend.clone());
    for number in 0..5 {
        shadow.clone().oneshot(number).await.unwrap();
    }
    assert_eq!(backend.times(), [0; 5], "nobody waits");
    let told: Vec<_> = std::mem::take(&mut *log.lock().unwrap());
    let would: Vec<_> = told
        .iter()
        .filter_map(|event| match event {
            Event::WouldWait { wait, .. } => Some(*wait),
            Event::Refused {
                retry_after,
                shadow: true,
                ..
            } => *retry_after,
            _ => None,
        })
        .collect();
    assert_eq!(would, [millis(100), millis(200), millis(300), millis(300)]);
}

// promise: RL-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_get_exactly_what_there_is() {
    let layer = RateLimitLayer::new(Quota::per_day(count(1)).burst(count(1_000))).refuse();
    let granted = Arc::new(AtomicUsize::new(0));
    let tasks = (0..64).map(|_| {
        let (service, granted) = (layer.layer(Backend::new()), granted.clone());
        tokio::spawn(async move {
            for number in 0..100 {
                if service.clone().oneshot(number).await.is_ok() {
                    granted.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(granted.load(Ordering::Relaxed), 1_000);
}

// promise: RL-14
#[tokio::test(start_paused = true)]
async fn a_refusal_says_who_refused_whom_by_what_and_for_how_long() {
    let layer = RateLimitLayer::new(per_second(10, 5).name("burst"))
        .and(Quota::per_hour(count(7)).burst(count(7)))
        .by_key(|request: &u64| format!("customer {request}"))
        .refuse()
        .name("orders");
    let service = layer.layer(Backend::new());
    for _ in 0..5 {
        service.clone().oneshot(3).await.unwrap();
    }
    let refused = refusal(service.clone().oneshot(3).await);
    assert_eq!(
        (refused.by(), refused.name()),
        ("rate limit", Some("orders"))
    );
    assert_eq!(refused.key(), Some("customer 3"));
    assert_eq!(refused.retry_after(), Some(millis(100)));
    let limit = refused.limit().unwrap();
    let names: Vec<_> = limit.policies.iter().map(|policy| &*policy.name).collect();
    assert_eq!(names, ["burst", "hour"]);
    assert_eq!(
        (limit.bound, limit.remaining, limit.reset),
        (0, 0, millis(100))
    );
    assert_eq!(
        refused.to_string(),
        "refused by rate limit orders [customer 3]: the quota is used up (10 per second); try again after 100.0ms"
    );

    advance(millis(500)).await;
    for _ in 0..2 {
        service.clone().oneshot(3).await.unwrap();
    }
    let refused = refusal(service.clone().oneshot(3).await);
    assert_eq!(refused.limit().unwrap().bound, 1, "the hour is used up");
}

// promise: RL-14
#[tokio::test(start_paused = true)]
async fn a_key_is_shown_in_so_many_letters() {
    let layer = RateLimitLayer::new(per_second(1, 1))
        .by_key(|_: &u64| "ü".repeat(1_000))
        .refuse();
    let service = layer.layer(Backend::new());
    service.clone().oneshot(0).await.unwrap();
    let refused = refusal(service.clone().oneshot(0).await);
    assert_eq!(refused.key().map(str::len), Some(256));
}

/// Counts the allocations of a hundred calls, none of which has to wait.
fn allocations(mut service: impl Service<u64, Response = u64, Error = BoxError>) -> u64 {
    let info = measure(|| {
        for number in 0..100 {
            let response = service.call(number % 7).now_or_never();
            assert_eq!(response.unwrap().unwrap(), number % 7);
        }
    });
    info.count_total
}

// promise: RL-25
#[tokio::test(start_paused = true)]
async fn a_call_that_is_granted_allocates_nothing() {
    let plain = RateLimitLayer::new(per_second(100, 100));
    let two = plain
        .clone()
        .and(Quota::per_minute(count(1_000)).burst(count(1_000)))
        .refuse();
    let keyed = plain.clone().by_key(|request: &u64| *request);
    let service = service_fn(|number: u64| std::future::ready(Ok::<_, BoxError>(number)));
    assert_eq!(allocations(plain.layer(service)), 0);
    assert_eq!(allocations(two.layer(service)), 0);
    assert_eq!(allocations(keyed.layer(service)), 0);
}

// promise: RL-25
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_allocates_its_place_in_the_line_and_a_box() {
    let layer = RateLimitLayer::new(per_second(100, 1)).max_wait(Duration::from_mins(1));
    let service = layer.layer(service_fn(async |()| Ok::<_, BoxError>(())));
    service.clone().oneshot(()).await.unwrap();
    let mut calls = Vec::with_capacity(1_000);
    let mut services = vec![service; 1_000];
    let info = measure(|| {
        for service in &mut services {
            let call = Box::pin(service.call(()));
            calls.push(call);
        }
    });
    // The line doubles its room ten times, and each call is in a box of this test besides.
    assert!(info.count_total <= 2_000 + 15, "{info:?}");
    assert_eq!(layer.handle().waiters(), 1_000);
}

// promises: RL-15, RL-23
#[tokio::test(start_paused = true)]
async fn a_server_tells_whom_it_lets_through_how_he_stands() {
    let layer = RateLimitLayer::http(per_second(10, 3)).refuse();
    let service = layer.layer(service_fn(async |_: Request<()>| Ok::<_, BoxError>(())));
    let mut left = Vec::new();
    for _ in 0..3 {
        let report = LimitReport::default();
        let request = Request::builder()
            .extension(report.clone())
            .body(())
            .unwrap();
        service.clone().oneshot(request).await.unwrap();
        let said = report.take();
        assert_eq!(said.len(), 1);
        left.push((said[0].remaining, said[0].reset));
    }
    assert_eq!(left, [(2, millis(100)), (1, millis(100)), (0, millis(100))]);

    // A client's own limit is not the business of those whom it serves.
    let client = RateLimitLayer::http(per_second(10, 3));
    let service = client.layer(service_fn(async |_: Request<()>| Ok::<_, BoxError>(())));
    let report = LimitReport::default();
    let request = Request::builder()
        .extension(report.clone())
        .body(())
        .unwrap();
    service.oneshot(request).await.unwrap();
    assert_eq!(report.take(), []);
}

// promises: RL-1, RL-5, RL-6
#[tokio::test(start_paused = true)]
async fn who_was_held_up_between_the_clock_and_the_lock_has_nothing_forgotten_that_was_taken_meanwhile()
 {
    for quota in [per_second(10, 10), per_second(997, 500)] {
        let held_up = Arc::new(Mutex::new(None::<Box<dyn FnOnce() + Send>>));
        let meanwhile = held_up.clone();
        let layer = RateLimitLayer::new(quota)
            .max_wait(Duration::from_nanos(1))
            .deadline(move |_: &u64| {
                let meanwhile = meanwhile.lock().unwrap().take();
                if let Some(work) = meanwhile {
                    work();
                }
                None
            });
        let service = layer.layer(Backend::new());
        let handle = layer.handle();
        let take_all = move || {
            let calls = (0..1_000).map(|number| service.clone().oneshot(number).now_or_never());
            calls.filter(|call| matches!(call, Some(Ok(_)))).count() as u64
        };
        let burst = handle.remaining();
        assert_eq!(take_all(), burst);
        let (took, all) = (Arc::new(Mutex::new(0)), take_all.clone());
        let counted = took.clone();
        *held_up.lock().unwrap() = Some(Box::new(move || {
            let _ = advance(Duration::from_mins(1)).now_or_never();
            *counted.lock().unwrap() = all();
        }));
        assert_eq!(take_all(), 0, "of a full bucket that others have emptied");
        assert_eq!(*took.lock().unwrap(), burst);
        assert_eq!(handle.remaining(), 0);
    }
}

// promises: RL-1, RL-6
#[test]
fn threads_that_are_interrupted_anywhere_get_no_more_than_there_is() {
    // Of a burst that is short in time: a thread that is interrupted is late by more than that.
    let layer = RateLimitLayer::new(per_second(1_000_000, 1_000)).refuse();
    let start = clock::now();
    let threads = (0..8).map(|_| {
        let mut service = layer.layer(Backend::new());
        std::thread::spawn(move || {
            let calls = (0..50_000).map(|number| service.call(number).now_or_never());
            calls.filter(|call| matches!(call, Some(Ok(_)))).count() as u64
        })
    });
    let threads: Vec<_> = threads.collect();
    let granted: u64 = threads.into_iter().map(|it| it.join().unwrap()).sum();
    let micros = clock::now().saturating_duration_since(start).as_micros();
    assert!(
        u128::from(granted) <= 1_000 + micros,
        "{granted} in {micros}"
    );
}

// promises: RL-4, RL-22
#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_known_by_the_quota_of_today() {
    // In a form that has no words from the start, and in one that has them until the quota is changed.
    for before in [per_second(997, 5), per_second(10, 5)] {
        let layer = RateLimitLayer::new(before)
            .cost(|cost: &u64| *cost)
            .refuse();
        let service = layer.layer(Backend::new());
        assert!(layer.handle().set_quota(0, per_second(997, 100)));
        advance(Duration::from_secs(10)).await;
        service.clone().oneshot(10).await.unwrap();
    }
    // And by that of the key.
    let layer = RateLimitLayer::new(per_second(10, 5))
        .by_key(|request: &u64| request % 2)
        .quota(|_: &u64| per_second(100, 100))
        .cost(|cost: &u64| *cost)
        .refuse();
    let service = layer.layer(Backend::new());
    for _ in 0..2 {
        service.clone().oneshot(10).await.unwrap();
    }
}

// promise: RL-4
#[tokio::test(start_paused = true)]
async fn the_years_that_a_burst_takes_to_come_back_are_no_wait() {
    let layer = RateLimitLayer::new(Quota::per_day(count(1)).burst(count(140_000)))
        .cost(|cost: &u64| *cost)
        .refuse();
    let service = layer.layer(Backend::new());
    service.clone().oneshot(100_000).await.unwrap();
    service.clone().oneshot(40_000).await.unwrap();
    refusal(service.clone().oneshot(1).await);
}

// promises: RL-2, RL-23
#[tokio::test(start_paused = true)]
async fn however_often_a_quota_is_set_tokens_come_back() {
    let minutely = |tokens| Quota::per_minute(count(tokens)).burst(count(5));
    for (one, other) in [(60, 60), (60, 61), (60, 597)] {
        let layer = RateLimitLayer::new(minutely(one)).refuse();
        let (service, handle) = (layer.layer(Backend::new()), layer.handle());
        let mut granted = 0;
        for tenth in 0..1_000 {
            let tokens = if tenth % 2 == 0 { one } else { other };
            assert!(handle.set_quota(0, minutely(tokens)));
            granted += u32::from(service.clone().oneshot(tenth).await.is_ok());
            advance(millis(100)).await;
        }
        let most = 5 + 100 * (one + other) / 120;
        // But for what rounds to a nanosecond at each change.
        assert!((most - 1..=most).contains(&granted), "{granted} of {most}");
    }
}

// promises: RL-4, RL-7
#[tokio::test(start_paused = true)]
async fn those_who_wait_for_more_than_a_number_holds_are_let_through_in_order() {
    let quota = Quota::per(count(u32::MAX), Duration::from_nanos(1)).unwrap();
    let layer = RateLimitLayer::new(quota)
        .max_wait(Duration::from_mins(1))
        .cost(|cost: &u64| *cost);
    let (service, handle) = (layer.layer(Backend::new()), layer.handle());
    let burst = handle.remaining();
    // Each takes 100 ms to come back, and a hundred of them are more than 64 bits hold.
    let calls: Vec<_> = (0..=100).map(|_| service.clone().call(burst)).collect();
    assert_eq!(handle.waiters(), 100);
    assert_eq!(handle.next_free(), Duration::from_nanos(10_000_000_001));
    let start = clock::now();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(handle.waiters(), 0);
    let took = clock::now().saturating_duration_since(start);
    assert_eq!(took, Duration::from_secs(10));
}

// promises: RL-4, RL-23
#[tokio::test(start_paused = true)]
async fn a_handle_for_a_key_where_there_are_none_is_for_all() {
    let one = || RateLimitLayer::new(per_second(10, 5));
    for layer in [one(), one().and(per_second(20, 20))] {
        let nobody = layer.handle().of("nobody");
        nobody.settle(0, 1);
        assert_eq!(layer.handle().remaining(), 4);
        assert_eq!((nobody.remaining(), nobody.keys()), (4, 0));
    }
}

// promises: RL-4, RL-7, RL-23
#[tokio::test(start_paused = true)]
async fn who_asks_for_more_than_a_new_quota_holds_is_refused_and_in_nobodys_way() {
    for new in [per_second(10, 5), per_second(997, 5)] {
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = log.clone();
        let layer = RateLimitLayer::new(per_second(10, 10))
            .max_wait(Duration::from_secs(5))
            .cost(|cost: &u64| *cost)
            .on_event(move |event| sink.lock().unwrap().push(event.clone()));
        let (service, handle) = (layer.layer(Backend::new()), layer.handle());
        service.clone().oneshot(10).await.unwrap();
        let mut large = task::spawn(service.clone().oneshot(10));
        assert_pending!(large.poll());
        let mut gone = task::spawn(service.clone().oneshot(6));
        assert_pending!(gone.poll());
        let mut behind = task::spawn(service.clone().oneshot(1));
        assert_pending!(behind.poll());
        assert!(handle.set_quota(0, new));
        assert_eq!(handle.waiters(), 1);
        drop(gone);
        assert!(large.is_woken());
        let refused = refusal(assert_ready!(large.poll()));
        assert_eq!(refused.retry_after(), None);
        assert_eq!(refused.reason(), "it costs more than a burst holds");
        assert_pending!(behind.poll());
        advance(millis(101)).await;
        assert!(behind.is_woken());
        assert_ready!(behind.poll()).unwrap();
        // They have left nothing behind.
        assert_eq!(handle.waiters(), 0);
        advance(Duration::from_secs(1)).await;
        assert_eq!(handle.remaining(), 5);
        let told = log.lock().unwrap();
        let too_large = |event: &Event| {
            let reason = Reason::TooLarge;
            matches!(event, Event::Refused { reason: why, cost: 10, .. } if *why == reason)
        };
        assert_eq!(told.iter().filter(|event| too_large(event)).count(), 1);
        assert_eq!(told.len(), 4, "one for each call");
    }
}

// promises: RL-1, RL-10
#[tokio::test(start_paused = true)]
async fn what_has_come_back_long_ago_is_not_given_back_once_more() {
    let layer = RateLimitLayer::new(per_second(10, 1)).backpressure();
    let service = layer.layer(Backend::new());
    let mut held = service.clone();
    held.ready().await.unwrap();
    advance(Duration::from_mins(1)).await;
    let mut other = service.clone();
    other.ready().await.unwrap().call(0).await.unwrap();
    drop(held);
    let second = other.ready().now_or_never();
    assert!(second.is_none(), "no time has passed since the first call");
}

// promises: RL-9, RL-10, RL-23
#[tokio::test(start_paused = true)]
async fn who_comes_after_somebody_has_gone_waits_for_one_less() {
    let layer = RateLimitLayer::new(per_second(10, 1)).max_wait(millis(300));
    let (service, handle) = (layer.layer(Backend::new()), layer.handle());
    let mut calls: Vec<_> = (0..4).map(|number| service.clone().call(number)).collect();
    let refused = refusal(service.clone().oneshot(4).await);
    assert_eq!(refused.retry_after(), Some(millis(400)));
    // The one in the middle, who has not even looked.
    drop(calls.remove(2));
    assert_eq!(handle.next_free(), millis(300));
    calls.push(service.clone().call(5));
    assert_eq!((handle.waiters(), handle.next_free()), (3, millis(400)));
}
