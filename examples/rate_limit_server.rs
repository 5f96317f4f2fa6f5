//! A server that holds its clients to limits, and tells them of these.
//!
//! `cargo run --example rate_limit_server` asks it too often and prints what it answers. With
//! `-- --serve` it stays, for you to ask.

use std::{env, future::IntoFuture, net::SocketAddr, num::NonZeroU32, time::Duration};

use axum::{Router, extract::ConnectInfo, routing::get};
use buttress::{
    BoxError,
    answer::AnswerLayer,
    rate_limit::{Quota, RateLimitLayer, client},
};
use reqwest::{Response, StatusCode, header::RETRY_AFTER};
use tokio::net::TcpListener;
use tower::ServiceBuilder;

/// What each client may do: 2 requests a second, and after a pause 5 at once; but 100 in an hour.
const A_SECOND: Quota = Quota::per_second(number(2)).burst(number(5));
const AN_HOUR: Quota = Quota::per_hour(number(100));
/// What the server can do for all of them together.
const FOR_ALL: Quota = Quota::per_second(number(50)).name("all");

const fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // A client is an IP address. Behind proxies these tell it: there take `client::x_forwarded_for`.
    let client = client::peer(|peer: &ConnectInfo<SocketAddr>| peer.0.ip());
    let each = RateLimitLayer::http(A_SECOND).and(AN_HOUR).by_key(client);
    let app = Router::new().route("/", get(async || "hello\n")).layer(
        ServiceBuilder::new()
            // Outermost, it makes responses of what the others refuse.
            .layer(AnswerLayer::http())
            // Then each client's own limit: one who floods the server is refused there, before he
            // can use up what is for all.
            .layer(each.refuse())
            .layer(RateLimitLayer::http(FOR_ALL).refuse()),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let server = tokio::spawn(axum::serve(listener, app).into_future());
    if env::args().any(|arg| arg == "--serve") {
        println!("Ask me, more than 5 times in a row:\n\n  curl -i {url}\n");
        return Ok(server.await??);
    }

    println!("Each client may ask {A_SECOND}, 5 at once, and {AN_HOUR}; all clients {FOR_ALL}.");
    println!(
        "One asks until it is refused. r is what is left, t the seconds until there is more:\n"
    );
    let refusal = loop {
        let answer = ask(&url).await?;
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            break answer;
        }
    };
    let seconds = refusal.headers()[RETRY_AFTER].to_str()?.parse()?;
    println!("\nThe refusal says why:\n\n  {}", refusal.text().await?);
    println!("\nIt said to come back after {seconds} s. The client does:\n");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    ask(&url).await.map(drop)
}

/// Sends a request, and prints what the answer tells of the limits.
async fn ask(url: &str) -> Result<Response, BoxError> {
    let answer = reqwest::get(url).await?;
    println!("  {}", answer.status());
    for name in ["RateLimit", "Retry-After"] {
        if let Some(value) = answer.headers().get(name) {
            println!("      {name}: {}", value.to_str()?);
        }
    }
    Ok(answer)
}
