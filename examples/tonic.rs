//! A client and a server of tonic: the server holds its clients to a limit, and the client comes back when it is told to.
//!
//! The service is gRPC's own health check; the layers stand the same way around whatever tonic generates for you.

use std::num::NonZeroU32;

use buttress::{
    BoxError,
    answer::AnswerLayer,
    breaker::BreakerLayer,
    rate_limit::{Quota, RateLimitLayer},
    retry::{Event, ReplayBody, RetryLayer},
};
use http::Request;
use tokio::net::TcpListener;
use tonic::{
    body::Body,
    transport::{Endpoint, Server, server::TcpIncoming},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::ServiceBuilder;

/// Two calls a second, both at once if somebody likes.
const LIMIT: Quota = Quota::per_second(TWO).burst(TWO);
const TWO: NonZeroU32 = NonZeroU32::new(2).unwrap();

/// Serves on a port of its own, and says at which address.
async fn serve() -> Result<String, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let layers = ServiceBuilder::new()
        // Outermost, it makes a status of what the limit refuses, and says when to come back.
        .layer(AnswerLayer::grpc())
        .layer(RateLimitLayer::http(LIMIT).refuse());
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(layers).add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    Ok(url)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let channel = Endpoint::try_from(serve().await?)?.connect().await?;
    let layers = ServiceBuilder::new()
        // A call that the server has refused was not made, so it is made again, whatever it is.
        .layer(RetryLayer::grpc().on_event(|event| match event {
            Event::Retry { delay, source, .. } => {
                println!("  refused; the client comes back in {delay:.0?}, by {source:?}");
            }
            Event::Finished { outcome, sends, .. } => println!("  {outcome:?}, sends: {sends}"),
            _ => {}
        }))
        // Below the retries, where it sees each send. A server that is busy is not one that is down.
        .layer(BreakerLayer::grpc().name("health"))
        .map_request(|request: Request<ReplayBody<_>>| request.map(Body::new));
    let mut client = HealthClient::new(layers.service(channel));

    for number in 1..=4 {
        println!("Call {number}:");
        let answer = client.check(HealthCheckRequest::default()).await?;
        println!("  the server says {:?}", answer.into_inner().status());
    }
    println!("\nEach call was answered, and the server made two a second of them.");
    Ok(())
}
