//! The same POST, twice and a thousand times, to a server of axum over TCP.

mod support;

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, routing::post};
use buttress::{
    BoxError,
    answer::AnswerLayer,
    idempotency::{Global, IdempotencyLayer, MemoryStore},
    rate_limit::{Quota, RateLimitLayer},
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::within;
use tokio::{io::AsyncWriteExt, net::TcpListener, net::TcpStream, time::sleep};
use tower::ServiceBuilder;

type Result<T = (), E = BoxError> = std::result::Result<T, E>;
type Runs = Arc<AtomicUsize>;

const SHORT: Duration = Duration::from_millis(50);

/// A handler that takes a moment, and answers with which run of it this is.
async fn pay(State(runs): State<Runs>, order: Bytes) -> (StatusCode, String) {
    let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
    sleep(SHORT).await;
    (
        StatusCode::CREATED,
        format!("run {run} of {} bytes", order.len()),
    )
}

/// Serves on a port of its own, as long as the test runs.
async fn serve(layer: IdempotencyLayer<MemoryStore, Global>) -> Result<(String, Runs)> {
    let runs = Runs::default();
    let app = Router::new().route("/", post(pay)).with_state(runs.clone());
    let app = app.layer(
        ServiceBuilder::new()
            .layer(AnswerLayer::http())
            .layer(layer),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok((format!("http://{address}/"), runs))
}

fn layer() -> IdempotencyLayer<MemoryStore, Global> {
    IdempotencyLayer::new(MemoryStore::new(), Global)
}

async fn ask(
    client: &Client<HttpConnector, Full<Bytes>>,
    url: &str,
) -> Result<(StatusCode, bool, Bytes)> {
    let request = Request::post(url).header("idempotency-key", "\"k\"");
    let request = request.body(Full::new(Bytes::from("apples")))?;
    let response = within(client.request(request)).await?;
    let status = response.status();
    let replayed = response.headers().contains_key("idempotency-replayed");
    let wait = response.headers().get("retry-after");
    let wait = wait.map(|wait| wait.to_str().unwrap_or_default().parse::<u64>());
    assert!(status != StatusCode::CONFLICT || wait.is_some_and(|wait| wait.is_ok_and(|it| it > 0)));
    let body = within(response.into_body().collect()).await?.to_bytes();
    Ok((status, replayed, body))
}

// promise: ID-1
#[tokio::test]
async fn a_thousand_posts_over_eight_connections_are_one() -> Result {
    for (http2, waits) in [(false, false), (false, true), (true, false), (true, true)] {
        let layer = if waits {
            layer().wait(Duration::from_secs(5))
        } else {
            layer()
        };
        let (url, runs) = serve(layer).await?;
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let mut client = Client::builder(TokioExecutor::new());
                client.http2_only(http2).pool_max_idle_per_host(1);
                client.build_http()
            })
            .collect();
        let calls = (0..1_000).map(|number| ask(&clients[number % 8], &url));
        let mut counts = (0, 0, 0);
        for answer in join_all(calls).await {
            match answer? {
                (StatusCode::CREATED, false, _) => counts.0 += 1,
                (StatusCode::CREATED, true, body) => {
                    assert_eq!(body, "run 1 of 6 bytes");
                    counts.1 += 1;
                }
                (StatusCode::CONFLICT, ..) => counts.2 += 1,
                (status, ..) => return Err(format!("{status}").into()),
            }
        }
        assert_eq!(counts.0, 1, "one has the answer itself");
        assert_eq!(counts.0 + counts.1 + counts.2, 1_000);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        if waits {
            assert_eq!(counts.2, 0);
        }
        for answer in join_all((0..1_000).map(|number| ask(&clients[number % 8], &url))).await {
            assert_eq!(
                answer?,
                (StatusCode::CREATED, true, "run 1 of 6 bytes".into())
            );
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }
    Ok(())
}

// promise: ID-3
#[tokio::test]
async fn a_connection_that_is_gone_has_not_taken_the_handler_with_it() -> Result {
    let (url, runs) = serve(layer()).await?;
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut connection = TcpStream::connect(address).await?;
    let head = format!(
        "POST / HTTP/1.1\r\nhost: {address}\r\nidempotency-key: \"k\"\r\ncontent-length: 6\r\n\r\napples"
    );
    connection.write_all(head.as_bytes()).await?;
    while runs.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // With a reset: there are bytes that nobody reads any more, or will.
    connection.set_zero_linger()?;
    drop(connection);
    let client = Client::builder(TokioExecutor::new()).build_http();
    loop {
        match ask(&client, &url).await? {
            (StatusCode::CONFLICT, ..) => sleep(Duration::from_millis(5)).await,
            (status, replayed, body) => {
                assert_eq!(
                    (status, replayed, &*body),
                    (StatusCode::CREATED, true, &b"run 1 of 6 bytes"[..])
                );
                break;
            }
        }
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    Ok(())
}

// promises: ST-2, ID-14
#[tokio::test]
async fn what_a_limit_below_refuses_is_answered_and_frees_the_key() -> Result {
    let runs = Runs::default();
    let hour = Quota::per_hour(1.try_into()?);
    let app = Router::new().route("/", post(pay)).with_state(runs.clone());
    let app = app.layer(
        ServiceBuilder::new()
            .layer(layer())
            .layer(AnswerLayer::http())
            .layer(RateLimitLayer::http(hour).refuse()),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, app).into_future());
    let client = Client::builder(TokioExecutor::new()).build_http();
    let other = Request::post(&url).header("idempotency-key", "other");
    let other = other.body(Full::new(Bytes::from("apples")))?;
    assert_eq!(
        within(client.request(other)).await?.status(),
        StatusCode::CREATED
    );
    for _ in 0..3 {
        let (status, replayed, _) = ask(&client, &url).await?;
        assert_eq!((status, replayed), (StatusCode::TOO_MANY_REQUESTS, false));
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    Ok(())
}
