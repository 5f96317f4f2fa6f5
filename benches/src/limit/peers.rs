//! What other libraries offer for the same job.
//!
//! governor and ratelimit have no layer and are asked by the least service that there can be. leaky-bucket is awaited, and
//! is not told to be unfair.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use governor::clock::{DefaultClock, QuantaInstant};
use governor::{DefaultDirectRateLimiter, NotUntil, Quota, RateLimiter};
use leaky_bucket::RateLimiter as LeakyBucket;
use ratelimit::{Ratelimiter, TryWaitError};
use tower::limit::RateLimit;
use tower::limit::rate::Rate;
use tower::util::MapResponse;
use tower_governor::GovernorLayer;
use tower_governor::governor::GovernorConfigBuilder;
use tower_governor::key_extractor::GlobalKeyExtractor;
use tower_layer::Layer;
use tower_resilience_ratelimiter::RateLimiterLayer;
use tower_service::Service;

use super::asking::{Asking, Said};
use super::waiting::{A_SECOND, BURST};
use super::{A_BILLION, ONE, YEAR, get, number, of_a_key, spend};
use crate::target::{Answer, Key, Request, Response, Target};

const SECOND: Duration = Duration::from_secs(1);

type TooEarly = Said<NotUntil<QuantaInstant>>;

fn plenty() -> Quota {
    Quota::per_second(A_BILLION)
}

fn hardly() -> Quota {
    Quota::with_period(YEAR)
        .expect("a year is not zero")
        .allow_burst(ONE)
}

fn with_governor<S, R>(
    quota: Quota,
    inner: S,
) -> impl Service<R, Response = S::Response, Error = TooEarly, Future: Send> + Clone + Send
where
    S: Service<R, Error = io::Error, Future: Send> + Clone + Send,
{
    let limiter: Arc<DefaultDirectRateLimiter> = Arc::new(RateLimiter::direct(quota));
    Asking::new(inner, move |_: &_| limiter.check().map_err(Said::Refused))
}

pub(crate) fn governor(target: Target) -> impl Service<u64, Response: Answer> + Clone + Send {
    with_governor(plenty(), target)
}

pub(crate) fn governor_http(target: Target) -> impl Service<Request, Response: Answer> {
    with_governor(plenty(), target)
}

pub(crate) fn governor_refused(target: Target) -> impl Service<u64, Response: Answer> {
    let mut service = with_governor(hardly(), target);
    spend(&mut service, number);
    service
}

pub(crate) fn governor_waiting() -> Arc<DefaultDirectRateLimiter> {
    let quota = Quota::per_second(A_SECOND).allow_burst(BURST);
    Arc::new(RateLimiter::direct(quota))
}

/// Its default store, a dashmap, and its default hasher.
pub(crate) fn governor_keyed(
    keys: u32,
    target: Target,
) -> impl Service<Key, Response: Answer> + Clone + Send {
    let (period, burst) = of_a_key(keys);
    let quota = Quota::with_period(period).expect("there are keys");
    let quota = quota.allow_burst(burst);
    let limiter = Arc::new(RateLimiter::<u64, _, DefaultClock>::keyed(quota));
    Asking::new(target, move |key: &Key| {
        limiter.check_key(&key.0).map_err(Said::Refused)
    })
}

/// With the answer that it makes for axum.
pub(crate) fn governor_answered(target: Target) -> impl Service<Request, Response: Answer> {
    let config = GovernorConfigBuilder::default()
        .period(YEAR)
        .burst_size(1)
        .key_extractor(GlobalKeyExtractor)
        .finish();
    let config = config.expect("one a year is not none");
    let target = MapResponse::new(target, |response: Response| response.map(Body::new));
    let mut service = GovernorLayer::new(config).layer(target);
    spend(&mut service, get());
    service
}

fn with_ratelimit<S, R>(
    limiter: Ratelimiter,
    inner: S,
) -> impl Service<R, Response = S::Response, Error = Said<TryWaitError>, Future: Send> + Clone + Send
where
    S: Service<R, Error = io::Error, Future: Send> + Clone + Send,
{
    let limiter = Arc::new(limiter);
    Asking::new(inner, move |_: &_| {
        limiter.try_wait().map_err(Said::Refused)
    })
}

fn plenty_of_ratelimit() -> Ratelimiter {
    let plenty = A_BILLION.get().into();
    let builder = Ratelimiter::builder(plenty).initial_available(plenty);
    builder
        .build()
        .expect("it begins with no more than a burst")
}

pub(crate) fn ratelimit(target: Target) -> impl Service<u64, Response: Answer> + Clone + Send {
    with_ratelimit(plenty_of_ratelimit(), target)
}

pub(crate) fn ratelimit_http(target: Target) -> impl Service<Request, Response: Answer> {
    with_ratelimit(plenty_of_ratelimit(), target)
}

/// It begins with nothing.
pub(crate) fn ratelimit_refused(target: Target) -> impl Service<u64, Response: Answer> {
    let limiter = Ratelimiter::builder(1).period(YEAR).build();
    with_ratelimit(limiter.expect("a year is not zero"), target)
}

fn plenty_of_leaky_bucket() -> &'static LeakyBucket {
    let plenty = A_BILLION.get() as usize;
    let limiter = LeakyBucket::builder()
        .max(plenty)
        .initial(plenty)
        .refill(plenty)
        .interval(SECOND)
        .build();
    // Kinder than to share it as long as a call is under way.
    Box::leak(Box::new(limiter))
}

pub(crate) fn leaky_bucket<R>(target: Target) -> impl Service<R, Response: Answer> + Clone + Send
where
    Target: Service<R, Response: Answer, Error = io::Error>,
{
    let limiter = plenty_of_leaky_bucket();
    tower::service_fn(move |request| acquire(limiter, target, request))
}

async fn acquire<R, T>(limiter: &LeakyBucket, mut target: Target, request: R) -> io::Result<T>
where
    Target: Service<R, Response = T, Error = io::Error>,
{
    limiter.acquire_one().await;
    target.call(request).await
}

/// The tokens of a millisecond at a time, because its timer has no finer ones.
pub(crate) fn leaky_bucket_waiting() -> Arc<LeakyBucket> {
    let burst = BURST.get() as usize;
    let limiter = LeakyBucket::builder()
        .max(burst)
        .initial(burst)
        .refill(A_SECOND.get() as usize / 1_000)
        .interval(Duration::from_millis(1))
        .build();
    Arc::new(limiter)
}

/// tower's own. It counts for one service, of which there are no clones.
pub(crate) fn tower<R>(target: Target) -> impl Service<R, Response: Answer>
where
    Target: Service<R, Response: Answer>,
{
    RateLimit::new(target, Rate::new(A_BILLION.get().into(), SECOND))
}

/// tower-resilience as a bucket of tokens. Without a handle each of its services has a limiter of its own.
pub(crate) fn resilience(target: Target) -> impl Service<u64, Response: Answer> + Clone + Send {
    plenty_of_resilience().layer(target)
}

pub(crate) fn resilience_http(target: Target) -> impl Service<Request, Response: Answer> {
    plenty_of_resilience().layer(target)
}

fn plenty_of_resilience() -> RateLimiterLayer {
    let builder = RateLimiterLayer::per_second(A_BILLION.get() as usize).burst_size(0);
    builder.build().expect("more than nothing")
}

pub(crate) fn resilience_refused(target: Target) -> impl Service<u64, Response: Answer> {
    let builder = RateLimiterLayer::builder()
        .limit_for_period(1)
        .refresh_period(YEAR)
        .burst_size(0)
        .timeout_duration(Duration::ZERO);
    let mut service = builder.build().expect("more than nothing").layer(target);
    spend(&mut service, number);
    service
}
