//! Our layers, as their users write them.

use std::num::NonZeroU32;
use std::time::Duration;

use buttress::breaker::BreakerLayer;
use buttress::rate_limit::{Quota, RateLimitLayer};
use buttress::retry::RetryLayer;
use buttress::{Applied, BoxError, Kind, Verdict};
use tower::ServiceBuilder;
use tower_service::Service;

use super::TIMEOUT;
use crate::limit::A_BILLION;
use crate::target::{Answer, Request, Target};

const PLENTY: Quota = Quota::per_second(A_BILLION).burst(A_BILLION);
const FIVE: NonZeroU32 = NonZeroU32::new(5).expect("not zero");
const DEADLINE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_millis(1_500);

fn judge(result: Result<&u64, &BoxError>) -> Verdict {
    match result {
        Ok(_) => Verdict::SUCCESS,
        Err(_) => Verdict::new(Kind::Transient, Applied::Maybe),
    }
}

/// With a breaker that goes by failures in a row, as the peers' does.
pub(crate) fn numbers(target: Target) -> impl Service<u64, Response: Answer> {
    ServiceBuilder::new()
        .layer(RetryLayer::new(judge).attempt_timeout(TIMEOUT))
        .layer(BreakerLayer::new(judge).consecutive_only(FIVE))
        .layer(RateLimitLayer::new(PLENTY))
        .service(target)
}

/// As the other.
pub(crate) fn http(target: Target) -> impl Service<Request, Response: Answer> {
    ServiceBuilder::new()
        .layer(RetryLayer::http().attempt_timeout(TIMEOUT))
        .layer(BreakerLayer::http().consecutive_only(FIVE))
        .layer(RateLimitLayer::http(PLENTY))
        .service(target)
}

/// With the breaker's window of time, a time limit for the whole call too, and the attempts counted which were given up.
pub(crate) fn whole(target: Target) -> impl Service<u64, Response: Answer> {
    let retry = RetryLayer::new(judge).deadline(DEADLINE);
    ServiceBuilder::new()
        .layer(retry.attempt_timeout(TIMEOUT))
        .layer(BreakerLayer::new(judge).patience(PATIENCE))
        .layer(RateLimitLayer::new(PLENTY))
        .service(target)
}

/// As the other.
pub(crate) fn whole_http(target: Target) -> impl Service<Request, Response: Answer> {
    let retry = RetryLayer::http().deadline(DEADLINE);
    ServiceBuilder::new()
        .layer(retry.attempt_timeout(TIMEOUT))
        .layer(BreakerLayer::http().patience(PATIENCE))
        .layer(RateLimitLayer::http(PLENTY))
        .service(target)
}
