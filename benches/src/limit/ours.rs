//! Our layer, as its users write it.

use std::num::NonZeroUsize;
use std::time::Duration;

use buttress::answer::AnswerLayer;
use buttress::rate_limit::{Quota, RateLimitLayer};
use tower_layer::Layer;
use tower_service::Service;

use super::waiting::{A_SECOND, BURST};
use super::{A_BILLION, ONE, YEAR, get, number, of_a_key, spend};
use crate::target::{Answer, Key, Request, Target};

const PLENTY: Quota = Quota::per_second(A_BILLION).burst(A_BILLION);
const HARDLY: Quota = Quota::per(ONE, YEAR).expect("a year is not zero");

pub(crate) fn granted(target: Target) -> impl Service<u64, Response: Answer> + Clone + Send {
    RateLimitLayer::new(PLENTY).layer(target)
}

pub(crate) fn granted_http(target: Target) -> impl Service<Request, Response: Answer> {
    RateLimitLayer::http(PLENTY).layer(target)
}

/// The one request of the year has come.
pub(crate) fn refused(target: Target) -> impl Service<u64, Response: Answer> {
    let mut service = RateLimitLayer::new(HARDLY).refuse().layer(target);
    spend(&mut service, number);
    service
}

/// As the other, with the answer to it.
pub(crate) fn answered(target: Target) -> impl Service<Request, Response: Answer> {
    let limit = RateLimitLayer::http(HARDLY).refuse();
    let mut service = AnswerLayer::http().layer(limit.layer(target));
    spend(&mut service, get());
    service
}

/// With room for as many keys as there are.
pub(crate) fn keyed(
    keys: u32,
    target: Target,
) -> impl Service<Key, Response: Answer> + Clone + Send {
    let (period, burst) = of_a_key(keys);
    let quota = Quota::per(ONE, period).expect("there are keys");
    let keys = usize::try_from(keys).ok().and_then(NonZeroUsize::new);
    let layer = RateLimitLayer::new(quota.burst(burst)).refuse();
    let layer = layer.by_key(|request: &Key| request.0);
    layer.max_keys(keys.expect("not zero")).layer(target)
}

/// Everybody waits as long as it takes.
pub(crate) fn waiting() -> impl Service<u64, Error: Send, Future: Send> + Clone + Send {
    let layer = RateLimitLayer::new(Quota::per_second(A_SECOND).burst(BURST));
    layer.max_wait(Duration::from_hours(1)).layer(Target::new())
}
