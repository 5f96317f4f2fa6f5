//! One call that is sent three times, as its traces show it.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use axum::{Router, routing::put};
use buttress::{
    BoxError,
    retry::{Backoff, RetryLayer},
    telemetry::{self, AttemptSpanLayer},
};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{net::TcpListener, time::sleep};
use tower::{ServiceBuilder, ServiceExt};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{self, format::FmtSpan},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// The server: it fails once, hangs once, and is well from then on.
async fn pay() -> StatusCode {
    static REQUESTS: AtomicU32 = AtomicU32::new(0);
    match REQUESTS.fetch_add(1, Relaxed) {
        0 => StatusCode::SERVICE_UNAVAILABLE,
        1 => {
            sleep(Duration::from_mins(1)).await;
            StatusCode::CREATED
        }
        _ => StatusCode::CREATED,
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // A line for each event, and one for each span when it ends. For OpenTelemetry, the layer of `tracing-opentelemetry`
    // takes the place of this one. What hyper says is left out: its lines for debugging have the URL as it is.
    let lines = fmt::layer().with_span_events(FmtSpan::CLOSE);
    tracing_subscriber::registry()
        .with(lines.with_ansi(false).without_time())
        .with(Targets::new().with_target("buttress", LevelFilter::DEBUG))
        .init();

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let server = listener.local_addr()?;
    let app = Router::new().route("/payments/7", put(pay));
    tokio::spawn(async { axum::serve(listener, app).await });

    let client = ServiceBuilder::new()
        .layer(
            RetryLayer::http()
                .backoff(Backoff::internal())
                .attempt_timeout(Duration::from_millis(300))
                .on_event(telemetry::retry("payments")),
        )
        .layer(AttemptSpanLayer::new())
        .service(Client::builder(TokioExecutor::new()).build_http());

    println!("One payment. The credentials and the query of its URL are in no trace:\n");
    let url = format!("http://user:password@{server}/payments/7?token=secret");
    let response = client
        .oneshot(Request::put(url).body(Full::<Bytes>::default())?)
        .await?;
    println!("\nIt is answered with {}.", response.status());
    Ok(())
}
