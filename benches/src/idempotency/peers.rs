//! axum-idempotent, the one other crate for it: with the session layer that it cannot do without.

use std::sync::Arc;

use axum::body::Body;
use axum_idempotent::{IdempotentLayer, IdempotentOptions};
use http::{Request, Response};
use ruts::store::moka::MokaStore;
use ruts::{CookieOptions, SessionLayer};
use tower_cookies::CookieManagerLayer;
use tower_layer::Layer;
use tower_service::Service;

use super::handler::{Handler, Runs};

const DAY: i64 = 24 * 60 * 60;

fn with(
    options: IdempotentOptions,
    runs: Runs,
) -> impl Service<Request<Body>, Response = Response<Body>> {
    let store = Arc::new(MokaStore::builder().build());
    let idempotent = IdempotentLayer::<MokaStore>::new(options.expire_after(DAY));
    let session = SessionLayer::new(store);
    let session = session.with_cookie_options(CookieOptions::build().name("session"));
    let service = session.layer(idempotent.layer(Handler::new(runs)));
    CookieManagerLayer::new().layer(service)
}

/// By the key alone: a body is not looked at.
pub(crate) fn by_key(runs: Runs) -> impl Service<Request<Body>, Response = Response<Body>> {
    let options = IdempotentOptions::default();
    with(options.use_idempotency_key_header(None, true), runs)
}

/// By the whole request, its body too.
pub(crate) fn by_hash(runs: Runs) -> impl Service<Request<Body>, Response = Response<Body>> {
    with(IdempotentOptions::default(), runs)
}
