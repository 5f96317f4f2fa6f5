//! Our layer, as its users write it.

use std::time::Duration;

use buttress::retry::{Backoff, Budget, RetryLayer};
use buttress::{Applied, BoxError, Kind, Verdict};
use tower_layer::Layer;
use tower_service::Service;

use crate::target::{Answer, Request, Target};

pub(crate) fn numbers(target: Target) -> impl Service<u64, Response = u64> {
    RetryLayer::new(judge).layer(target)
}

fn judge(result: Result<&u64, &BoxError>) -> Verdict {
    match result {
        Ok(_) => Verdict::SUCCESS,
        Err(_) => Verdict::new(Kind::Transient, Applied::Maybe),
    }
}

pub(crate) fn http(retries: u32, target: Target) -> impl Service<Request, Response: Answer> {
    RetryLayer::http().max_retries(retries).layer(target)
}

/// Nothing holds the retry back: every call of a row has one.
pub(crate) fn without_delay(target: Target) -> impl Service<Request, Response: Answer> {
    let at_once = Backoff::constant(Duration::ZERO);
    RetryLayer::http()
        .backoff(at_once)
        .budget(Budget::unlimited())
        .layer(target)
}
