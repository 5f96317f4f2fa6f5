//! A client over a server that is not always well, and what Prometheus sees of it.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use axum::{Router, routing};
use buttress::{
    BoxError,
    breaker::BreakerLayer,
    retry::{Backoff, RetryLayer},
    telemetry,
};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};

static IS_DOWN: AtomicBool = AtomicBool::new(false);

/// The server: every fifth request fails, and while it is down each.
async fn pay() -> StatusCode {
    static REQUESTS: AtomicU32 = AtomicU32::new(1);
    let is_fifth = REQUESTS.fetch_add(1, Relaxed).is_multiple_of(5);
    if is_fifth || IS_DOWN.load(Relaxed) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::CREATED
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The recorder comes first: what is made before it is never heard of.
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &[0.01, 0.1, 1.0])?
        .install_recorder()?;

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let server = format!("http://{}", listener.local_addr()?);
    let app = Router::new()
        .route("/{order}", routing::put(pay))
        .route("/metrics", routing::get(async move || recorder.render()));
    tokio::spawn(async { axum::serve(listener, app).await });

    let backoff = Backoff::exponential(Duration::from_millis(5), Duration::from_millis(50));
    let open_time = Duration::from_millis(100);
    let breaker = BreakerLayer::http().open_time(open_time, open_time);
    let retry = RetryLayer::http().backoff(backoff);
    let client = ServiceBuilder::new()
        .layer(retry.on_event(telemetry::retry("payments")))
        .layer(breaker.on_event(telemetry::breaker("payments")))
        .service(Client::builder(TokioExecutor::new()).build_http());
    for order in 0..300 {
        IS_DOWN.store((100..140).contains(&order), Relaxed);
        let order = Request::put(format!("{server}/{order}")).body(Full::new(Bytes::new()))?;
        // How it ends is in the metrics.
        let _ = client.clone().oneshot(order).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    println!("300 orders; for 40 the server was down. What Prometheus scrapes, less what is 0:\n");
    let answer = reqwest::get(format!("{server}/metrics")).await?;
    let text = answer.text().await?;
    let lines = text.lines().filter(|line| line.starts_with("buttress"));
    let mut lines: Vec<_> = lines.filter(|line| !line.ends_with(" 0")).collect();
    lines.sort_unstable();
    println!("{}", lines.join("\n"));
    Ok(())
}
