//! A server of axum that makes a payment once, however often it is sent, and holds its clients to a limit.
//!
//! `cargo run --example axum` sends it some payments and prints what it answers.

use std::{
    future::IntoFuture,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use axum::{Router, http::StatusCode, routing::post};
use buttress::{
    BoxError,
    answer::AnswerLayer,
    idempotency::{Global, IdempotencyLayer, MemoryStore},
    rate_limit::{Quota, RateLimitLayer},
};
use tokio::net::TcpListener;
use tower::ServiceBuilder;

/// Two payments a minute, both at once if somebody likes. Yours will be larger.
const LIMIT: Quota = Quota::per_minute(TWO).burst(TWO);
const TWO: NonZeroU32 = NonZeroU32::new(2).unwrap();

static PAYMENTS: AtomicU32 = AtomicU32::new(0);

/// The handler. It knows nothing of keys and limits.
async fn pay(order: String) -> (StatusCode, String) {
    let number = PAYMENTS.fetch_add(1, Relaxed) + 1;
    (StatusCode::CREATED, format!("payment {number}: {order}"))
}

fn app() -> Router {
    let layers = ServiceBuilder::new()
        // Outermost, it makes responses of what the others refuse.
        .layer(AnswerLayer::http())
        // Whose a key is says the second argument: here all clients share them. `SqliteStore` outlives the process.
        .layer(IdempotencyLayer::new(MemoryStore::new(), Global).required())
        // Below that: a payment that was made before costs nothing, and what is refused may come again.
        .layer(RateLimitLayer::http(LIMIT).refuse());
    Router::new().route("/payments", post(pay)).layer(layers)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/payments", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, app()).into_future());

    println!("A payment is made:");
    send(&url, "\"a\"", "3 apples").await?;
    println!("It is sent again, since its answer might have been lost. Nothing is paid twice:");
    send(&url, "\"a\"", "3 apples").await?;
    println!("Another payment has another key. With the key of the first it would be refused:");
    send(&url, "\"b\"", "5 pears").await?;
    send(&url, "\"a\"", "5 pears").await?;
    println!("Two in a minute are enough:");
    send(&url, "\"c\"", "8 figs").await?;
    println!("\nThe handler has run {} times.", PAYMENTS.load(Relaxed));
    Ok(())
}

/// Sends a payment, and prints the answer.
async fn send(url: &str, key: &str, order: &'static str) -> Result<(), BoxError> {
    let request = reqwest::Client::new().post(url).body(order);
    let answer = request.header("idempotency-key", key).send().await?;
    println!("  POST, key {key}, {order}: {}", answer.status());
    for name in ["Idempotency-Replayed", "RateLimit", "Retry-After"] {
        if let Some(value) = answer.headers().get(name) {
            println!("      {name}: {}", value.to_str()?);
        }
    }
    println!("      {}", answer.text().await?);
    Ok(())
}
