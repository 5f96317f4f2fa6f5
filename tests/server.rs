//! Servers of axum and tonic, over TCP, whose layers refuse: nothing stands between the two and the layers.
//!
//! Each test has one thread, so that time passes when the test says so.

mod support;

use std::{
    convert::Infallible,
    future::{IntoFuture, pending},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, routing::get, serve::ListenerExt};
use buttress::{
    BoxError, Policies, Rejected, ServiceLimit,
    answer::AnswerLayer,
    breaker::BreakerLayer,
    rate_limit::{Quota, RateLimitLayer},
    retry::{DelaySource, Event, ReplayBody, RetryLayer},
};
use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use http::{Method, Request, Response, StatusCode, uri::PathAndQuery};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use sfv::{List, ListEntry, Parser};
use support::{Raw, Told, pass, within};
use tokio::{net::TcpListener, sync::Notify};
use tonic::{
    Code, Status,
    server::NamedService,
    transport::{Endpoint, Server, server::TcpIncoming},
};
use tower::{Service, ServiceBuilder, filter::FilterLayer, service_fn};

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

const ONE: NonZeroU32 = NonZeroU32::new(1).unwrap();
const TWO: NonZeroU32 = NonZeroU32::new(2).unwrap();
const THREE: NonZeroU32 = NonZeroU32::new(3).unwrap();
const FIVE: NonZeroU32 = NonZeroU32::new(5).unwrap();
const TEN: NonZeroU32 = NonZeroU32::new(10).unwrap();

type Web = Client<HttpConnector, Full<Bytes>>;

/// A client; one of HTTP/2 has one connection.
fn client(http2: bool) -> Web {
    Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .build_http()
}

/// Serves on a port of its own, as long as the test runs, and counts its connections.
async fn serve(app: Router) -> Result<(String, Arc<AtomicUsize>)> {
    let connections = Arc::new(AtomicUsize::new(0));
    let counts = connections.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let listener = listener.tap_io(move |_| {
        counts.fetch_add(1, Ordering::SeqCst);
    });
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok((format!("http://{address}/"), connections))
}

/// Sends a request, and waits for all of the response.
async fn send(client: &Web, method: Method, url: &str) -> Result<Response<Bytes>> {
    let request = Request::builder().method(method).uri(url);
    let response = within(client.request(request.body(Full::default())?)).await?;
    let (head, body) = response.into_parts();
    Ok(Response::from_parts(
        head,
        within(body.collect()).await?.to_bytes(),
    ))
}

fn field<'a>(response: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn seconds(response: &Response<Bytes>) -> Option<u64> {
    field(response, "retry-after")?.parse().ok()
}

/// What an independent parser reads of the one member of a field: its name, and a parameter.
fn read(response: &Response<Bytes>, name: &str, key: &str) -> Option<(String, i64)> {
    let list: List = Parser::new(field(response, name)?).parse().ok()?;
    let [ListEntry::Item(item)] = &list[..] else {
        return None;
    };
    let number = item.params.get(key)?.as_integer()?;
    Some((item.bare_item.as_string()?.to_string(), number.into()))
}

// promises: ST-2, RL-16
#[tokio::test]
async fn axum_takes_the_layers_as_they_are() -> Result {
    for http2 in [false, true] {
        let app = Router::new().route("/", get(async || StatusCode::INTERNAL_SERVER_ERROR));
        let app = app.layer(
            ServiceBuilder::new()
                .layer(AnswerLayer::http())
                .layer(RateLimitLayer::http(Quota::per_day(FIVE).burst(TWO)).refuse())
                .layer(BreakerLayer::http().consecutive_only(ONE)),
        );
        let (url, _) = serve(app).await?;
        let client = client(http2);

        let failed = send(&client, Method::GET, &url).await?;
        assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(failed.body(), "", "it is the handler's own");

        let open = send(&client, Method::GET, &url).await?;
        assert_eq!(open.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(matches!(seconds(&open), Some(1..=5)));
        let content_type = Some("application/problem+json");
        assert_eq!(field(&open, "content-type"), content_type);

        let full = send(&client, Method::GET, &url).await?;
        assert_eq!(full.status(), StatusCode::TOO_MANY_REQUESTS);
        // A fifth of a day.
        assert!(matches!(seconds(&full), Some(17_200..=17_280)));
        assert_eq!(field(&full, "content-type"), content_type);
        let problem: serde_json::Value = serde_json::from_slice(full.body())?;
        assert_eq!(problem["status"], 429);
        let quota_exceeded = "https://iana.org/assignments/http-problem-types#quota-exceeded";
        assert_eq!(problem["type"], quota_exceeded);
        let (name, _) = read(&full, "ratelimit-policy", "w").expect("it has a window");
        assert_eq!(problem["violated-policies"], serde_json::json!([name]));

        let head = send(&client, Method::HEAD, &url).await?;
        assert_eq!(head.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(head.body(), "");
        for name in ["content-type", "content-length", "ratelimit-policy"] {
            assert_eq!(field(&head, name), field(&full, name), "{name}");
            assert!(field(&head, name).is_some(), "{name}");
        }
    }
    Ok(())
}

// promise: ST-2
#[tokio::test]
async fn axum_takes_tower_s_own_layers_and_errors_of_any_other_kind() -> Result {
    let fails = FilterLayer::new(
        |request: axum::extract::Request| match request.uri().path() {
            "/fails" => Err(BoxError::from("a secret")),
            _ => Ok(request),
        },
    );
    let begun = Arc::new(Notify::new());
    let begins = begun.clone();
    let hangs = async move || {
        begins.notify_one();
        pending::<&str>().await
    };
    let app = Router::new().route("/hangs", get(hangs)).layer(
        ServiceBuilder::new()
            .layer(AnswerLayer::http())
            .load_shed()
            .concurrency_limit(1)
            .timeout(Duration::from_secs(3))
            .layer(fails),
    );
    let (url, _) = serve(app).await?;
    let client = client(true);
    let failed = send(&client, Method::GET, &format!("{url}fails")).await?;
    assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!String::from_utf8_lossy(failed.body()).contains("secret"));

    let url = format!("{url}hangs");
    let hangs = tokio::spawn({
        let (client, url) = (client.clone(), url.clone());
        async move {
            send(&client, Method::GET, &url)
                .await
                .map(|response| response.status())
        }
    });
    within(begun.notified()).await;
    let shed = send(&client, Method::GET, &url).await?;
    assert_eq!(shed.status(), StatusCode::SERVICE_UNAVAILABLE);
    pass(Duration::from_secs(3)).await;
    assert_eq!(within(hangs).await??, StatusCode::GATEWAY_TIMEOUT);
    Ok(())
}

// promise: RL-15
#[tokio::test]
async fn what_remains_never_rises_in_a_burst() -> Result {
    let layer = RateLimitLayer::http(Quota::per_hour(FIVE).burst(TEN)).refuse();
    let layers = ServiceBuilder::new()
        .layer(AnswerLayer::http())
        .layer(layer);
    let app = Router::new().route("/", get(async || "words"));
    let (url, _) = serve(app.layer(layers)).await?;
    let client = client(false);
    let mut left = Vec::new();
    for turn in 0..15 {
        let response = send(&client, Method::GET, &url).await?;
        assert_eq!(response.status() == StatusCode::OK, turn < 10);
        let (policy, _) = read(&response, "ratelimit-policy", "q").expect("a quota");
        let (name, remaining) = read(&response, "ratelimit", "r").expect("what remains");
        assert_eq!(name, policy);
        let (_, reset) = read(&response, "ratelimit", "t").expect("a time");
        let after = seconds(&response).map(i64::try_from).transpose()?;
        assert!(
            after.is_none_or(|after| after >= reset),
            "{after:?}, {reset}"
        );
        left.push(remaining);
    }
    assert_eq!(left, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0]);
    Ok(())
}

// promise: RL-17
#[tokio::test]
async fn the_connections_of_a_server_have_one_limiter() -> Result {
    // An hour for a second: no token comes while requests are under way.
    let layer = RateLimitLayer::http(Quota::per_hour(FIVE).burst(TEN)).refuse();
    let layers = ServiceBuilder::new()
        .layer(AnswerLayer::http())
        .layer(layer);
    let handled = Arc::new(AtomicUsize::new(0));
    let counts = handled.clone();
    let answer = async move || {
        counts.fetch_add(1, Ordering::SeqCst);
        "words"
    };
    let mut app = Router::new();
    for route in 0..5 {
        app = app.route(&format!("/{route}"), get(answer.clone()));
    }
    let (url, connections) = serve(app.layer(layers)).await?;

    let clients: Vec<Web> = (0..40).map(|_| client(true)).collect();
    let at_once = async || {
        let urls: Vec<_> = (0..5).map(|route| format!("{url}{route}")).collect();
        let turns = (0..1_500).map(|turn| (&clients[turn % 40], &urls[turn % 5]));
        let calls = turns.map(|(client, url)| send(client, Method::GET, url));
        join_all(calls)
            .await
            .into_iter()
            .collect::<Result<Vec<_>>>()
    };
    for (admitted, so_far) in [(10, 10), (5, 15)] {
        let answers = at_once().await?;
        let count = |status| {
            answers
                .iter()
                .filter(|answer| answer.status() == status)
                .count()
        };
        assert_eq!(count(StatusCode::OK), admitted);
        assert_eq!(count(StatusCode::TOO_MANY_REQUESTS), 1_500 - admitted);
        assert_eq!(handled.load(Ordering::SeqCst), so_far);
        assert_eq!(connections.load(Ordering::SeqCst), 40);
        pass(Duration::from_hours(1)).await;
    }
    Ok(())
}

type Grpc = tonic::body::Body;

/// A service as a generated one is. Whatever the method, the answer is the order.
#[derive(Clone, Debug)]
struct Shop;

impl NamedService for Shop {
    const NAME: &'static str = "shop.Shop";
}

impl Service<Request<Grpc>> for Shop {
    type Response = Response<Grpc>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Grpc>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Grpc>) -> Self::Future {
        let echo = service_fn(
            async |request: tonic::Request<Bytes>| match request.into_inner() {
                moon if moon == "the moon" => Err(Status::unavailable("not today")),
                order => Ok(tonic::Response::new(order)),
            },
        );
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).unary(echo, request).await) })
    }
}

const BUY: PathAndQuery = PathAndQuery::from_static("/shop.Shop/Buy");

/// Somewhere to serve the shop, and how to get there.
async fn listen() -> Result<(TcpIncoming, Endpoint)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    Ok((listener.into(), Endpoint::try_from(url)?))
}

/// The pushback of a status.
fn pushback(status: &Status) -> Option<i64> {
    let pushback = status.metadata().get("grpc-retry-pushback-ms")?;
    pushback.to_str().ok()?.parse().ok()
}

// promises: ST-2, RL-16
#[tokio::test]
async fn tonic_takes_the_layers_as_they_are() -> Result {
    let (incoming, endpoint) = listen().await?;
    let layers = ServiceBuilder::new()
        .layer(AnswerLayer::grpc())
        .layer(RateLimitLayer::http(Quota::per_day(FIVE).burst(THREE)).refuse())
        .layer(BreakerLayer::grpc().consecutive_only(ONE));
    let mut server = Server::builder().layer(layers);
    let server = server.add_service(Shop).serve_with_incoming(incoming);
    tokio::spawn(server);

    let mut client = tonic::client::Grpc::new(endpoint.connect().await?);
    let mut buy = async |what: &'static str| -> Result<Bytes, Status> {
        let ready = client.ready().await;
        ready.map_err(|error| Status::from_error(error.into()))?;
        let order = tonic::Request::new(Bytes::from(what));
        let call = client.unary(order, BUY, Raw);
        within(call).await.map(tonic::Response::into_inner)
    };
    assert_eq!(buy("apples").await?, "apples");
    let failed = buy("the moon").await.expect_err("it is not for sale");
    assert_eq!(failed.code(), Code::Unavailable);
    assert_eq!(failed.message(), "not today");

    let open = buy("apples").await.expect_err("the breaker is open");
    assert_eq!(open.code(), Code::Unavailable);
    assert_ne!(open.message(), "not today");
    assert!(matches!(pushback(&open), Some(1..=5_000)));

    let full = buy("apples").await.expect_err("the limit is reached");
    assert_eq!(full.code(), Code::ResourceExhausted);
    // A fifth of a day.
    assert!(matches!(pushback(&full), Some(17_200_000..=17_280_000)));
    Ok(())
}

// promise: RL-16
#[tokio::test]
async fn a_retry_of_ours_reads_what_a_grpc_answer_asks_for() -> Result {
    let wait = Duration::from_millis(7);
    for (retry_after, sends) in [(Some(wait), 2), (None, 1)] {
        let limit = ServiceLimit {
            policies: Policies::from_iter([]),
            bound: 0,
            remaining: 0,
            reset: Duration::ZERO,
        };
        let refusal = Rejected::new("rate limit", "it is the first").over(limit);
        let refusal = match retry_after {
            Some(retry_after) => refusal.after(retry_after),
            None => refusal,
        };
        let calls = Arc::new(AtomicUsize::new(0));
        let the_first = FilterLayer::new(move |request: Request<Grpc>| {
            match calls.fetch_add(1, Ordering::SeqCst) {
                0 => Err(BoxError::from(refusal.clone())),
                _ => Ok(request),
            }
        });
        let (incoming, endpoint) = listen().await?;
        let layers = ServiceBuilder::new()
            .layer(AnswerLayer::grpc())
            .layer(the_first);
        let mut server = Server::builder().layer(layers);
        let server = server.add_service(Shop).serve_with_incoming(incoming);
        tokio::spawn(server);

        let told = Told::default();
        let service = ServiceBuilder::new()
            .layer(RetryLayer::grpc().on_event(told.sink()))
            .map_request(|request: Request<ReplayBody<_>>| request.map(Grpc::new))
            .service(endpoint.connect().await?);
        let mut client = tonic::client::Grpc::new(service);
        client.ready().await?;
        // It may not be made twice, if it was made at all; a refusal with a pushback says that it was not.
        let order = tonic::Request::new(Bytes::from("apples"));
        let answer: Result<tonic::Response<Bytes>, Status> =
            within(client.unary(order, BUY, Raw)).await;
        assert_eq!(told.finished().map(|(_, sends)| sends), Some(sends));
        let delays = told.all().into_iter().filter_map(|event| match event {
            Event::Retry { delay, source, .. } => Some((delay, source)),
            _ => None,
        });
        let delays: Vec<_> = delays.collect();
        if sends == 2 {
            assert_eq!(delays, [(wait, DelaySource::Pushback)]);
            assert_eq!(answer?.into_inner(), "apples");
        } else {
            assert!(delays.is_empty());
            let refused = answer.expect_err("it is refused for good");
            assert_eq!(refused.code(), Code::ResourceExhausted);
        }
    }
    Ok(())
}
