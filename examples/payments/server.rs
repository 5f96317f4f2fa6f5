//! The payments server: a handler, and the layers above it.

use std::{num::NonZeroU32, path::Path, time::Duration};

use axum::{
    Extension, Json, Router, body::Body, extract::State, response::Response, routing::post,
};
use buttress::{
    BoxError,
    answer::AnswerLayer,
    idempotency::{self, Global, IdempotencyLayer, Lease, MemoryStore},
    rate_limit::{Quota, RateLimitLayer},
    sqlite::SqliteStore,
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, net::TcpListener};
use tower::ServiceBuilder;

use crate::{
    args::{Args, Store},
    ledger::{self, Ledger},
};

/// How many requests the server takes. A fifth of a second's may come at once: as many as were held up
/// together on their way, though they were sent one after the other.
const LIMIT: Quota =
    Quota::per_second(NonZeroU32::new(1_500).unwrap()).burst(NonZeroU32::new(300).unwrap());

/// How long a payment that was under way when the server was killed may not be tried again.
const LEASE: Duration = Duration::from_secs(2);

/// What a client asks for, and the answer when it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Payment {
    pub(crate) id: u64,
    pub(crate) amount: u64,
}

/// Makes a payment. What it does is one transaction with the record that it was done: there are both, or neither.
async fn pay(
    State(ledger): State<Ledger>,
    lease: Option<Extension<Lease>>,
    Json(payment): Json<Payment>,
) -> Result<Response, StatusCode> {
    let answer = serde_json::to_vec(&payment).map_err(|_| StatusCode::BAD_REQUEST)?;
    let answer = http::Response::new(answer.into());
    let lease = lease.map(|Extension(lease)| lease);
    match ledger.enter(payment, lease, answer).await {
        Some(answer) => Ok(answer.map(Body::from)),
        // Nothing was done, and the key is free again.
        None => Err(StatusCode::SERVICE_UNAVAILABLE),
    }
}

fn app(folder: &Path, args: &Args) -> Result<Router, BoxError> {
    let file = ledger::file(folder);
    let answer = ServiceBuilder::new().layer(AnswerLayer::http());
    let limit = RateLimitLayer::http(LIMIT).refuse();
    let pay = |store| {
        let ledger = Ledger::open(&file, store)?;
        let app = Router::new().route("/payments", post(pay));
        Ok::<_, BoxError>(app.with_state(ledger))
    };
    Ok(match args.store {
        _ if args.forget_keys => pay(None)?.layer(answer.layer(limit)),
        Store::Memory => {
            let once = once(MemoryStore::new());
            pay(None)?.layer(answer.layer(once).layer(limit))
        }
        Store::Sqlite => {
            let store = SqliteStore::open(&file)?;
            // A handler that has died or failed before its transaction was committed has done nothing.
            let once = once(store.clone()).explicit_arm().release_5xx();
            pay(Some(store))?.layer(answer.layer(once).layer(limit))
        }
    })
}

/// Does a payment once, however often it is sent. There is one client here; a server with many says whose the keys are.
fn once<T: idempotency::Store + Clone>(store: T) -> IdempotencyLayer<T, Global> {
    IdempotencyLayer::new(store, Global).required().lease(LEASE)
}

/// Serves on a free port of the loopback interface, which it prints, until its input ends: then whoever started it is gone.
pub(crate) async fn serve(folder: &Path, args: &Args) -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let app = app(folder, args)?;
    println!("{}", listener.local_addr()?);
    let mut input = Vec::new();
    let mut stdin = tokio::io::stdin();
    tokio::select! {
        served = axum::serve(listener, app) => Ok(served?),
        _ = stdin.read_to_end(&mut input) => Ok(()),
    }
}
