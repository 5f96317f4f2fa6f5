//! Our layer, as its users write it.

use axum::body::Body;
use buttress::idempotency::{Global, IdempotencyLayer, MemoryStore, ResponseBody};
use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::handler::{Handler, Runs};
use crate::target::{Answer, Request as Post, Target};

pub(crate) fn passing(target: Target) -> impl Service<Post, Response: Answer> {
    IdempotencyLayer::new(MemoryStore::new(), Global).layer(target)
}

pub(crate) fn keeping(
    runs: Runs,
) -> impl Service<Request<Body>, Response = Response<ResponseBody<Body>>> {
    IdempotencyLayer::new(MemoryStore::new(), Global).layer(Handler::new(runs))
}
