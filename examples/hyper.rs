//! The whole stack of a client around that of hyper-util.
//!
//! `cargo run --example hyper` starts a server that makes one payment and fails otherwise, and prints what the client does.

use std::{
    future::IntoFuture,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use axum::{Router, http::HeaderMap, routing::post};
use buttress::{
    BoxError, Rejected,
    breaker::{self, BreakerLayer},
    idempotency::IdempotencyKeyLayer,
    rate_limit::{Quota, RateLimitLayer},
    retry::{self, RetryLayer},
};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};

const PACE: Quota = Quota::per_second(NonZeroU32::new(90).unwrap());

/// The server: it makes the payment of the second request, and fails at all others.
async fn pay(headers: HeaderMap) -> StatusCode {
    static REQUESTS: AtomicU32 = AtomicU32::new(0);
    println!("  server: key {:?}", headers["idempotency-key"]);
    match REQUESTS.fetch_add(1, Relaxed) {
        1 => StatusCode::CREATED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/payments", listener.local_addr()?);
    let app = Router::new().route("/payments", post(pay));
    tokio::spawn(axum::serve(listener, app).into_future());

    let retry = RetryLayer::http().attempt_timeout(Duration::from_secs(2));
    let breaker = BreakerLayer::http().patience(Duration::from_millis(1_500));
    let client = ServiceBuilder::new()
        // A key for each call, which all its sends carry: so the server knows it again.
        .layer(IdempotencyKeyLayer::new())
        .layer(retry.on_event(|event| match event {
            retry::Event::Retry { delay, .. } => println!("  retry in {delay:.0?}"),
            retry::Event::Finished { outcome, .. } => println!("  {outcome:?}"),
            _ => {}
        }))
        // It sees each send. What it refuses is not sent again.
        .layer(breaker.name("payments").on_event(|event| {
            if let breaker::Event::Transition { to, .. } = event {
                println!("  the breaker is {to}");
            }
        }))
        // Each send waits for its turn, but for those that the breaker has refused.
        .layer(RateLimitLayer::http(PACE))
        .service(Client::builder(TokioExecutor::new()).build_http());
    let pay = || Request::post(&url).body(Full::<bytes::Bytes>::default());
    let call = || async { client.clone().oneshot(pay()?).await };

    println!("A payment, sent twice with one key:");
    println!("  {}", call().await?.status());
    println!("From now on the server fails. After five sends it is left alone:");
    let error = loop {
        match call().await {
            Err(error) if Rejected::find(&*error).is_some() => break error,
            other => println!("  {}", other?.status()),
        }
    };
    println!("\nWho calls now is told at once:\n{error}");
    Ok(())
}
