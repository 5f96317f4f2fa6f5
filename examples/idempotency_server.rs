//! A server whose every POST with the same key is done once, for conformance suites and for curl.
//!
//! `cargo run --example idempotency_server -- --port 8080`, and then
//! `curl -i -X POST -H 'Idempotency-Key: "1"' -d apples http://127.0.0.1:8080/echo` twice.

use std::{
    future::IntoFuture,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use buttress::{
    BoxError,
    answer::AnswerLayer,
    idempotency::{Global, IdempotencyLayer, MemoryStore, Store},
    sqlite::SqliteStore,
};
use bytes::Bytes;
use clap::Parser;
use serde_json::json;
use tokio::net::TcpListener;
use tower::ServiceBuilder;

/// Serves `POST /echo`, `/status/{code}`, `/slow?ms=N` and `/large?bytes=N`, all of which need an Idempotency-Key and are
/// counted when they are run; `GET /counter`; and `POST /reset`.
#[derive(Debug, Parser)]
struct Options {
    /// The port, or 0 for a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How many seconds a request is remembered.
    #[arg(long, default_value_t = 86_400)]
    ttl: u64,
    /// Where what was done is kept, so that it survives a crash; by default it is in memory.
    #[arg(long, value_name = "FILE")]
    sqlite: Option<PathBuf>,
}

type Counter = Arc<AtomicU64>;

#[derive(serde::Deserialize)]
struct Amount {
    #[serde(alias = "ms", alias = "bytes")]
    amount: u64,
}

/// Counts what is run.
async fn count(State(counter): State<Counter>, request: Request, next: Next) -> Response {
    counter.fetch_add(1, Ordering::SeqCst);
    next.run(request).await
}

async fn echo(headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    let content_type = headers.get(CONTENT_TYPE).cloned();
    let headers: HeaderMap = content_type
        .map(|it| (CONTENT_TYPE, it))
        .into_iter()
        .collect();
    (StatusCode::CREATED, headers, body)
}

fn app<T: Store + Clone>(store: T, ttl: Duration, counter: &Counter) -> Router {
    let stack = ServiceBuilder::new()
        .layer(AnswerLayer::http())
        // Everybody has the same keys here. A server with users says whose they are.
        .layer(IdempotencyLayer::new(store, Global).ttl(ttl).required());
    let once = Router::new()
        .route("/echo", post(echo))
        .route(
            "/status/{code}",
            post(async |Path(code): Path<u16>| {
                StatusCode::from_u16(code).map_err(|_| StatusCode::NOT_FOUND)
            }),
        )
        .route(
            "/slow",
            post(async |Query(time): Query<Amount>| {
                tokio::time::sleep(Duration::from_millis(time.amount)).await;
            }),
        )
        .route(
            "/large",
            post(async |Query(size): Query<Amount>| {
                vec![b'x'; usize::try_from(size.amount).unwrap_or(0)]
            }),
        )
        .layer(from_fn_with_state(counter.clone(), count))
        .layer(stack);
    Router::new()
        .route(
            "/counter",
            get(async |State(it): State<Counter>| {
                Json(json!({ "count": it.load(Ordering::SeqCst) }))
            }),
        )
        .route(
            "/reset",
            post(async |State(it): State<Counter>| {
                it.store(0, Ordering::SeqCst);
                StatusCode::NO_CONTENT
            }),
        )
        .with_state(counter.clone())
        .merge(once)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let Options { port, ttl, sqlite } = Options::parse();
    let (ttl, counter) = (Duration::from_secs(ttl), Counter::default());
    let app = match sqlite {
        Some(file) => app(SqliteStore::open(file)?, ttl, &counter),
        None => app(MemoryStore::new(), ttl, &counter),
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on http://{}/", listener.local_addr()?);
    Ok(axum::serve(listener, app).into_future().await?)
}
