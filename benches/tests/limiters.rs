//! What the README says that other limiters do, as their newest versions do it.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::num::NonZeroU32;
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use governor::clock::FakeRelativeClock;
use governor::{Quota, RateLimiter};
use tower::limit::RateLimitLayer;
use tower::service_fn;
use tower_layer::Layer;
use tower_resilience_ratelimiter::RateLimiterLayer;
use tower_service::Service;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);

fn count(count: u32) -> NonZeroU32 {
    count.try_into().expect("not zero")
}

/// The share of pairs of which the later one came first.
fn inverted(order: &[usize]) -> f64 {
    let (mut pairs, mut inverted) = (0, 0);
    for (place, one) in order.iter().enumerate() {
        for later in &order[place + 1..] {
            pairs += 1;
            inverted += u32::from(later < one);
        }
    }
    f64::from(inverted) / f64::from(pairs)
}

/// The order in which they get their tokens who begin to wait one after the other, in tasks of one thread.
async fn order<F>(waiters: usize, wait: impl Fn() -> F) -> Vec<usize>
where
    F: Future<Output = ()> + Send + 'static,
{
    let order = Arc::new(Mutex::new(Vec::new()));
    let tasks: Vec<_> = (0..waiters)
        .map(|number| {
            let (wait, order) = (wait(), order.clone());
            tokio::spawn(async move {
                wait.await;
                order.lock().expect("nobody panics").push(number);
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("nobody panics");
    }
    let order = order.lock().expect("nobody panics");
    order.clone()
}

/// How many calls a service answers at once, of so many.
fn answered<S: Service<(), Response = ()>>(service: &mut S, calls: u32) -> u32 {
    let mut cx = Context::from_waker(Waker::noop());
    let mut answered = 0;
    for _ in 0..calls {
        if !service.poll_ready(&mut cx).is_ready() {
            break;
        }
        let mut call = Box::pin(service.call(()));
        answered += u32::from(matches!(call.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
    }
    answered
}

fn inner()
-> impl Service<(), Response = (), Error = Infallible, Future: Send> + Clone + Send + 'static {
    service_fn(|()| ready(Ok(())))
}

#[test]
fn governor_cannot_reckon_with_long_bursts() {
    let granted = catch_unwind(|| {
        let quota = Quota::with_period(DAY).expect("not zero");
        let quota = quota.allow_burst(count(300_000));
        let limiter = RateLimiter::direct_with_clock(quota, FakeRelativeClock::default());
        (0..300_000).filter(|_| limiter.check().is_ok()).count()
    });
    // 300,000 days are more nanoseconds than its word holds.
    if cfg!(debug_assertions) {
        assert!(granted.is_err(), "overflow is looked for");
    } else {
        assert_eq!(granted.ok(), Some(86_496));
    }
}

#[test]
fn governor_rounds_the_time_of_a_token_down() {
    let clock = FakeRelativeClock::default();
    let quota = Quota::per_second(count(3_000_000)).allow_burst(count(1));
    let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
    let mut granted = 0;
    for _ in 0..SECOND.as_nanos() / 333 {
        granted += u32::from(limiter.check().is_ok());
        clock.advance(Duration::from_nanos(333));
    }
    assert_eq!(granted, 3_003_003);
}

#[test]
fn governor_keeps_keys_until_it_is_told_not_to() {
    let clock = FakeRelativeClock::default();
    let limiter = RateLimiter::dashmap_with_clock(Quota::per_second(count(10)), clock.clone());
    for key in 0..100_000 {
        limiter.check_key(&key).expect("the first");
    }
    clock.advance(DAY);
    limiter.check_key(&0).expect("a day later");
    assert_eq!(limiter.len(), 100_000);
    limiter.retain_recent();
    assert_eq!(limiter.len(), 1);
}

#[tokio::test]
async fn governor_lets_go_who_wakes_first() {
    let quota = Quota::per_second(count(1_000)).allow_burst(count(1));
    let limiter = Arc::new(RateLimiter::direct(quota));
    let order = order(500, || {
        let limiter = limiter.clone();
        async move { limiter.until_ready().await }
    });
    // Of two, the one who came later goes first about as often as not.
    let inverted = inverted(&order.await);
    assert!((0.3..0.7).contains(&inverted), "{inverted} of all pairs");
}

#[tokio::test(start_paused = true)]
async fn leaky_bucket_keeps_the_order_or_lets_the_first_go_last() {
    let order = async |fair| {
        let limiter = leaky_bucket::RateLimiter::builder()
            .max(1)
            .initial(0)
            .refill(1)
            .interval(Duration::from_millis(10))
            .fair(fair)
            .build();
        let limiter = Arc::new(limiter);
        let order = order(1_000, || {
            let limiter = limiter.clone();
            async move { limiter.acquire_one().await }
        });
        order.await
    };
    assert!(order(true).await.is_sorted());
    assert_eq!(order(false).await.last(), Some(&0));
}

#[tokio::test(start_paused = true)]
async fn each_service_of_a_layer_of_tower_has_a_limit_of_its_own() {
    let layer = RateLimitLayer::new(5, SECOND);
    let answered = (0..64).map(|_| answered(&mut layer.layer(inner()), 100));
    assert_eq!(answered.sum::<u32>(), 64 * 5);
}

#[tokio::test(start_paused = true)]
async fn tower_lets_twice_as_many_through_around_the_end_of_a_window() {
    let mut service = RateLimitLayer::new(5, SECOND).layer(inner());
    tokio::time::advance(Duration::from_millis(100)).await;
    assert_eq!(answered(&mut service, 1), 1);
    tokio::time::advance(Duration::from_millis(998)).await;
    let before = answered(&mut service, 100);
    tokio::time::advance(Duration::from_millis(4)).await;
    assert_eq!(before + answered(&mut service, 100), 9);
}

#[tokio::test(start_paused = true)]
async fn each_service_of_a_layer_of_tower_resilience_has_a_limit_of_its_own_unless_there_is_a_handle()
 {
    let builder = || RateLimiterLayer::per_second(5).timeout_duration(Duration::ZERO);
    let layer = builder().build().expect("a good limit");
    let sum = (0..64).map(|_| answered(&mut layer.layer(inner()), 100));
    assert_eq!(sum.sum::<u32>(), 64 * 5);

    let (layer, _handle) = builder().build_with_handle().expect("a good limit");
    let sum = (0..64).map(|_| answered(&mut layer.layer(inner()), 100));
    assert_eq!(sum.sum::<u32>(), 5);
}

#[test]
fn ratelimit_begins_with_nothing() {
    let limiter = ratelimit::Ratelimiter::new(1_000);
    assert!(limiter.try_wait().is_err());
}
