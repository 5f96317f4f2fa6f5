//! The idempotency layer over what belongs below it, in a server of axum over TCP.

mod support;

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, extract::State, routing::post};
use buttress::{
    BoxError,
    answer::AnswerLayer,
    idempotency::{Global, IdempotencyLayer, MemoryStore},
    rate_limit::{Quota, RateLimitLayer},
};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::within;
use tokio::net::TcpListener;
use tower::ServiceBuilder;

type Result<T = (), E = BoxError> = std::result::Result<T, E>;
type Runs = Arc<AtomicUsize>;

async fn pay(State(runs): State<Runs>) -> StatusCode {
    runs.fetch_add(1, Ordering::SeqCst);
    StatusCode::CREATED
}

/// The status of the answer, and whether it is a replay.
async fn ask(
    client: &Client<HttpConnector, Full<Bytes>>,
    url: &str,
    key: &str,
) -> Result<(StatusCode, bool)> {
    let request = Request::post(url).header("idempotency-key", key);
    let request = request.body(Full::new(Bytes::from("apples")))?;
    let response = within(client.request(request)).await?;
    let replayed = response.headers().contains_key("idempotency-replayed");
    Ok((response.status(), replayed))
}

// promises: ST-2, ID-14
#[tokio::test]
async fn what_a_limit_below_refuses_is_answered_and_frees_the_key() -> Result {
    let runs = Runs::default();
    let hour = Quota::per_hour(1.try_into()?);
    let app = Router::new().route("/", post(pay)).with_state(runs.clone());
    let app = app.layer(
        ServiceBuilder::new()
            .layer(IdempotencyLayer::new(MemoryStore::new(), Global))
            .layer(AnswerLayer::http())
            .layer(RateLimitLayer::http(hour).refuse()),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, app).into_future());
    let client = Client::builder(TokioExecutor::new()).build_http();
    assert_eq!(
        ask(&client, &url, "other").await?,
        (StatusCode::CREATED, false)
    );
    for _ in 0..3 {
        let refused = (StatusCode::TOO_MANY_REQUESTS, false);
        assert_eq!(ask(&client, &url, "\"k\"").await?, refused);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    Ok(())
}
