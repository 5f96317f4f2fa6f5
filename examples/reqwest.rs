//! The whole stack of a client around that of reqwest.
//!
//! `cargo run --example reqwest` starts a server that hangs once, sends it a burst, and prints when what was sent.

use std::{
    future::IntoFuture,
    num::NonZeroU32,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use axum::{Router, routing::post};
use buttress::{
    BoxError,
    breaker::BreakerLayer,
    clock,
    idempotency::IdempotencyKeyLayer,
    rate_limit::{Quota, RateLimitLayer},
    retry::{Event, ReplayBody, RetryLayer},
};
use futures_util::future::try_join_all;
use http::{Request, Response};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};

/// One every 50 ms.
const PACE: Quota = Quota::per_second(NonZeroU32::new(20).unwrap()).burst(NonZeroU32::MIN);

/// The server: the first request that comes is not answered.
async fn pay() -> &'static str {
    static HUNG: AtomicBool = AtomicBool::new(false);
    if !HUNG.swap(true, Relaxed) {
        std::future::pending::<()>().await;
    }
    "paid"
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/payments", listener.local_addr()?);
    let app = Router::new().route("/payments", post(pay));
    tokio::spawn(axum::serve(listener, app).into_future());

    // reqwest retries some refusals by itself: once is enough.
    let client = reqwest::Client::builder().retry(reqwest::retry::never());
    let retry = RetryLayer::http().attempt_timeout(Duration::from_secs(1));
    let client = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new())
        .layer(retry.on_event(|event| {
            if let Event::Retry { cause, delay, .. } = event {
                println!("  a retry in {delay:.0?}, as the last send came to {cause:?}");
            }
        }))
        .layer(BreakerLayer::http().patience(Duration::from_millis(800)))
        .layer(RateLimitLayer::http(PACE))
        // The two lines between the layers' requests and responses, and reqwest's.
        .filter(|it: Request<ReplayBody<_>>| {
            reqwest::Request::try_from(it.map(reqwest::Body::wrap))
        })
        .map_response(Response::<reqwest::Body>::from)
        .service(client.build()?);

    println!("Five payments at once, of which the first is lost on its way:");
    let begun = clock::now();
    let calls = (1..=5).map(|number| {
        let (client, request) = (client.clone(), Request::post(&url));
        async move {
            let request = request.body(reqwest::Body::from(format!("payment {number}")))?;
            let answer = client.oneshot(request).await?.status();
            let time = clock::now().saturating_duration_since(begun);
            println!("  payment {number}: {answer} after {time:.0?}");
            Ok::<_, BoxError>(())
        }
    });
    try_join_all(calls).await?;
    println!("\nAll of them are paid: one each 50 ms, and the first in the end.");
    Ok(())
}
