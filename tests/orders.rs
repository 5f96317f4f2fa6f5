//! The four layers of a client in each of their 24 orders, over each client: what holds in all of them, and what the
//! wrong ones cost.

mod support;

use std::{
    error::Error,
    future::{IntoFuture, pending, ready},
    io, iter,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, extract::Request as Incoming};
use buttress::{
    Applied, BoxError, Kind, Rejected, Verdict,
    breaker::{self, BreakerLayer},
    classify, clock,
    idempotency::IdempotencyKeyLayer,
    rate_limit::{HttpDeadline, One, OneToken, Quota, RateLimitLayer},
    retry::{
        Backoff, ReplayBody, RetryLayer,
        replay::{ByMethod, HttpReplay},
    },
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::within;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc,
};
use tonic::transport::Endpoint;
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, buffer::Buffer, service_fn, util::BoxCloneService,
};

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

const ONE: NonZeroU32 = NonZeroU32::new(1).unwrap();
const TEN: NonZeroU32 = NonZeroU32::new(10).unwrap();
const MANY: NonZeroU32 = NonZeroU32::new(1_000_000).unwrap();

/// What a client does with a request, once it is boxed: `BoxError` is the error of the stack as it is.
type Stack = BoxCloneService<Request<Full<Bytes>>, StatusCode, BoxError>;

/// Makes a list of what `$stack!` makes of each order of the four layers, the outermost first. The first order is the
/// right one.
macro_rules! orders {
    ($stack:ident) => {
        vec![
            $stack!(key retry breaker limit), $stack!(key retry limit breaker),
            $stack!(key breaker retry limit), $stack!(key breaker limit retry),
            $stack!(key limit retry breaker), $stack!(key limit breaker retry),
            $stack!(retry key breaker limit), $stack!(retry key limit breaker),
            $stack!(retry breaker key limit), $stack!(retry breaker limit key),
            $stack!(retry limit key breaker), $stack!(retry limit breaker key),
            $stack!(breaker key retry limit), $stack!(breaker key limit retry),
            $stack!(breaker retry key limit), $stack!(breaker retry limit key),
            $stack!(breaker limit key retry), $stack!(breaker limit retry key),
            $stack!(limit key retry breaker), $stack!(limit key breaker retry),
            $stack!(limit retry key breaker), $stack!(limit retry breaker key),
            $stack!(limit breaker key retry), $stack!(limit breaker retry key),
        ]
    };
}

/// The layers for HTTP, or those for gRPC.
struct Layers<R = RetryLayer, B = BreakerLayer> {
    key: IdempotencyKeyLayer,
    retry: R,
    breaker: B,
    limit: RateLimitLayer<One, OneToken, HttpDeadline>,
}

type GrpcLayers = Layers<
    RetryLayer<classify::Grpc, HttpReplay<ByMethod>>,
    BreakerLayer<classify::Grpc, breaker::One, breaker::Bodies>,
>;

/// What the layers of a test are to refuse.
#[derive(Clone, Copy, Debug)]
enum Refuse {
    Nothing,
    /// What comes after a failure.
    AfterAFailure,
    /// What comes after a call.
    AfterACall,
}

const NO_WAIT: Backoff = Backoff::constant(Duration::ZERO);

impl Refuse {
    fn failures(self) -> NonZeroU32 {
        match self {
            Self::AfterAFailure => ONE,
            _ => MANY,
        }
    }

    fn limit(self) -> RateLimitLayer<One, OneToken, HttpDeadline> {
        let quota = match self {
            Self::AfterACall => Quota::per_hour(ONE).burst(ONE),
            _ => Quota::per_second(MANY).burst(MANY),
        };
        RateLimitLayer::http(quota).name("shop").refuse()
    }

    fn http(self) -> Layers {
        Layers {
            key: IdempotencyKeyLayer::new(),
            retry: RetryLayer::http().backoff(NO_WAIT),
            breaker: BreakerLayer::http()
                .name("shop")
                .consecutive_only(self.failures()),
            limit: self.limit(),
        }
    }

    /// Every call of gRPC is a POST, and its metadata are the fields of that: a key is one of them. The retry layer for gRPC
    /// asks for none unless it is told to, as here: this is for servers that know the key of a call by its metadata.
    fn grpc(self) -> GrpcLayers {
        Layers {
            key: IdempotencyKeyLayer::new(),
            retry: RetryLayer::grpc().idempotent(ByMethod).backoff(NO_WAIT),
            breaker: BreakerLayer::grpc()
                .name("shop")
                .consecutive_only(self.failures()),
            limit: self.limit(),
        }
    }
}

fn boxed<S, B>(service: S) -> Stack
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
    B: 'static,
{
    BoxCloneService::new(service.map_response(|response: Response<B>| response.status()))
}

/// The layers in each order, over a client of HTTP.
fn stacks<S, B>(refuse: Refuse, client: &S) -> Vec<(&'static str, Stack)>
where
    S: Service<Request<ReplayBody<Full<Bytes>>>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: hyper::body::Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    macro_rules! stack {
        ($($layer:ident)*) => {{
            let layers = refuse.http();
            let stack = ServiceBuilder::new()
                $(.layer(layers.$layer))*
                .service(client.clone());
            (stringify!($($layer)*), boxed(stack))
        }};
    }
    orders!(stack)
}

/// The layers in each order, over a channel of tonic.
fn grpc_stacks(refuse: Refuse, channel: &tonic::transport::Channel) -> Vec<(&'static str, Stack)> {
    macro_rules! stack {
        ($($layer:ident)*) => {{
            let layers = refuse.grpc();
            let stack = ServiceBuilder::new()
                $(.layer(layers.$layer))*
                .map_request(|request: Request<ReplayBody<_>>| request.map(tonic::body::Body::new))
                .service(channel.clone());
            (stringify!($($layer)*), boxed(stack))
        }};
    }
    orders!(stack)
}

fn hyper_util<B>() -> Client<HttpConnector, B>
where
    B: hyper::body::Body<Data: Send> + Send,
{
    Client::builder(TokioExecutor::new()).build_http()
}

/// reqwest's client as a service of `http` types, with which the layers stand in any order.
fn reqwest_client() -> impl Service<
    Request<ReplayBody<Full<Bytes>>>,
    Response = Response<reqwest::Body>,
    Error = BoxError,
    Future: Send,
> + Clone
+ Send
+ 'static {
    ServiceBuilder::new()
        .filter(|request: Request<ReplayBody<_>>| {
            reqwest::Request::try_from(request.map(reqwest::Body::wrap))
        })
        .map_response(Response::<reqwest::Body>::from)
        .service(reqwest::Client::new())
}

/// A function in place of a client: it refuses to connect to port 1, and answers otherwise as the server does.
fn function() -> impl Service<
    Request<ReplayBody<Full<Bytes>>>,
    Response = Response<Full<Bytes>>,
    Error = io::Error,
    Future: Send,
> + Clone
+ Send
+ 'static {
    service_fn(|request: Request<ReplayBody<Full<Bytes>>>| {
        let is_dead = request.uri().port_u16() == Some(1);
        ready(if is_dead {
            Err(io::ErrorKind::ConnectionRefused.into())
        } else {
            let mut response = Response::new(Full::default());
            *response.status_mut() = answer(request.headers());
            Ok(response)
        })
    })
}

/// The answer of a server that wants a key.
fn answer(headers: &HeaderMap) -> StatusCode {
    if headers.contains_key("idempotency-key") {
        StatusCode::OK
    } else {
        StatusCode::BAD_REQUEST
    }
}

/// A server that is there, as long as the test runs.
async fn live() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let app = Router::new().fallback(|request: Incoming| ready(answer(request.headers())));
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(url)
}

/// A port that nobody listens at, and nobody else gets while the socket is kept.
fn dead() -> Result<(TcpSocket, String)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let url = format!("http://{}/", socket.local_addr()?);
    Ok((socket, url))
}

async fn post(stack: &Stack, url: &str) -> Result<StatusCode> {
    let request = Request::post(url).body(Full::from("amount=3"))?;
    within(stack.clone().oneshot(request)).await
}

/// In each order a server that is there gets a request with a key, and where there is none, the sources of the error lead
/// to that of the socket.
async fn all_orders_work(stacks: Vec<(&'static str, Stack)>, live: &str, dead: &str) -> Result {
    assert_eq!(stacks.len(), 24);
    for (order, stack) in stacks {
        assert_eq!(post(&stack, live).await?, StatusCode::OK, "{order}");
        let error = post(&stack, dead).await.expect_err("nobody listens");
        let top: &(dyn Error + 'static) = &*error;
        let io = iter::successors(Some(top), |&error| error.source())
            .find_map(|error| error.downcast_ref::<io::Error>());
        let kind = io.map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::ConnectionRefused), "{order}");
    }
    Ok(())
}

// promise: ST-1
#[tokio::test]
async fn all_orders_over_the_client_of_hyper_util() -> Result {
    let (live, (_socket, dead)) = (live().await?, dead()?);
    all_orders_work(stacks(Refuse::Nothing, &hyper_util()), &live, &dead).await
}

// promise: ST-1
#[tokio::test]
async fn all_orders_over_the_client_of_reqwest() -> Result {
    let (live, (_socket, dead)) = (live().await?, dead()?);
    all_orders_work(stacks(Refuse::Nothing, &reqwest_client()), &live, &dead).await
}

// promise: ST-1
#[tokio::test]
async fn all_orders_over_the_channel_of_tonic() -> Result {
    let (live, (_socket, dead)) = (live().await?, dead()?);
    // A channel has one server.
    let there = Endpoint::try_from(live.clone())?.connect_lazy();
    let gone = Endpoint::try_from(dead.clone())?.connect_lazy();
    let pairs = iter::zip(
        grpc_stacks(Refuse::Nothing, &there),
        grpc_stacks(Refuse::Nothing, &gone),
    );
    let both = pairs.map(|((order, there), (_, gone))| (order, one_of(there, gone, dead.clone())));
    all_orders_work(both.collect(), &live, &dead).await
}

/// Calls the second service for this address, and the first for all others.
fn one_of(first: Stack, second: Stack, address: String) -> Stack {
    let service = service_fn(move |request: Request<Full<Bytes>>| {
        let is_second = request.uri() == address.as_str();
        let service = if is_second { &second } else { &first };
        service.clone().oneshot(request)
    });
    BoxCloneService::new(service)
}

// promise: ST-1
#[tokio::test]
async fn all_orders_over_a_function() -> Result {
    let (live, dead) = ("http://a.example/", "http://a.example:1/");
    all_orders_work(stacks(Refuse::Nothing, &function()), live, dead).await
}

/// The refusal of a call: who, his name, and when to come back.
fn refusal(error: &BoxError) -> Option<(&'static str, Option<&str>, Duration)> {
    let rejected = Rejected::find(&**error)?;
    let after = rejected.retry_after().expect("it is known");
    Some((rejected.by(), rejected.name(), after))
}

/// In each order, bare and below a buffer, a refusal is found, with who refused and when to come back.
async fn refusals_are_found(
    stacks: impl Fn(Refuse) -> Vec<(&'static str, Stack)>,
    url: &str,
    refuse: Refuse,
) -> Result {
    for buffered in [false, true] {
        for (order, mut stack) in stacks(refuse) {
            if buffered {
                stack = BoxCloneService::new(Buffer::new(stack, 4));
            }
            let first = post(&stack, url).await;
            let error = post(&stack, url).await.expect_err("it is refused");
            let found = refusal(&error);
            if let Refuse::AfterAFailure = refuse {
                let error = first.expect_err("it fails");
                assert_eq!(refusal(&error), None, "{order}: the failure is not hidden");
                let open = Duration::from_millis(1)..=Duration::from_secs(5);
                assert!(
                    matches!(found, Some(("breaker", Some("shop"), time)) if open.contains(&time)),
                    "{order}: {found:?}"
                );
            } else {
                assert_eq!(first?, StatusCode::OK, "{order}");
                let hour = Duration::from_mins(59)..=Duration::from_hours(1);
                assert!(
                    matches!(found, Some(("rate limit", Some("shop"), time)) if hour.contains(&time)),
                    "{order}: {found:?}"
                );
            }
        }
    }
    Ok(())
}

// promise: ST-8
#[tokio::test]
async fn who_refused_and_when_to_come_back_is_known_at_the_top_of_each_stack() -> Result {
    let (live, (_socket, dead)) = (live().await?, dead()?);
    let urls = [(Refuse::AfterAFailure, &dead), (Refuse::AfterACall, &live)];
    for (refuse, url) in urls {
        refusals_are_found(|refuse| stacks(refuse, &hyper_util()), url, refuse).await?;
        refusals_are_found(|refuse| stacks(refuse, &reqwest_client()), url, refuse).await?;
        let channel = Endpoint::try_from(url.clone())?.connect_lazy();
        refusals_are_found(|refuse| grpc_stacks(refuse, &channel), url, refuse).await?;
    }
    Ok(())
}

/// A service that is refused before it is called: the error of its readiness is final, and so is the buffer above it.
#[derive(Clone, Copy, Debug)]
struct Refused;

impl Service<()> for Refused {
    type Response = ();
    type Error = BoxError;
    type Future = std::future::Pending<Result>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result> {
        let rejected = Rejected::new("licence", "it has expired").after(Duration::from_secs(3));
        Poll::Ready(Err(rejected.into()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        pending()
    }
}

// promise: ST-8
#[tokio::test]
async fn a_refusal_that_a_buffer_has_wrapped_is_found() {
    let service = Buffer::new(Refused, 4);
    for _ in 0..2 {
        let error = within(service.clone().oneshot(())).await;
        let error = error.expect_err("it is refused");
        assert!(!error.is::<Rejected>(), "the buffer has wrapped it");
        let found = refusal(&error);
        assert_eq!(found, Some(("licence", None, Duration::from_secs(3))));
    }
}

type Judge<Res> = fn(Result<&Res, &BoxError>) -> Verdict;

/// A breaker for connecting: it opens at the first connection that fails.
fn connecting<Res>() -> BreakerLayer<Judge<Res>> {
    let judge: Judge<Res> = |result| match result {
        Ok(_) => Verdict::SUCCESS,
        Err(_) => Verdict::new(Kind::Transient, Applied::No),
    };
    BreakerLayer::new(judge).name("shop").consecutive_only(ONE)
}

/// The second call is refused below the client, whose own error says so at the top.
async fn the_second_is_refused<S, R>(client: S, request: impl Fn() -> Result<R>) -> Result
where
    S: Service<R, Error: Into<BoxError>> + Clone,
{
    for turn in 0..2 {
        let answer = within(client.clone().oneshot(request()?)).await;
        let error = answer.err().ok_or("nobody listens")?.into();
        assert!(!error.is::<Rejected>(), "the client has wrapped it");
        let found = refusal(&error).map(|(by, name, _)| (by, name));
        assert_eq!(found, (turn == 1).then_some(("breaker", Some("shop"))));
    }
    Ok(())
}

// promise: ST-8
#[tokio::test]
async fn a_refusal_below_a_client_is_found_in_the_client_s_own_error() -> Result {
    let (_socket, url) = dead()?;
    let get = || Ok(Request::get(&url).body(Full::<Bytes>::default())?);
    let connector = connecting().layer(HttpConnector::new());
    let client = Client::builder(TokioExecutor::new()).build(connector);
    the_second_is_refused(client, get).await?;

    let client = reqwest::Client::builder().connector_layer(connecting());
    let client = client.build()?;
    the_second_is_refused(client.clone(), || Ok(client.get(&url).build()?)).await?;

    let connector = connecting().layer(HttpConnector::new());
    let channel = Endpoint::try_from(url.clone())?.connect_with_connector_lazy(connector);
    the_second_is_refused(channel, || Ok(get()?.map(tonic::body::Body::new))).await
}

/// A backend on this side of the wire that always answers so, and counts.
fn backend<B: Send + 'static>(
    status: StatusCode,
) -> (
    Arc<AtomicUsize>,
    impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = io::Error, Future: Send>
    + Clone
    + Send
    + 'static,
) {
    let sends = Arc::new(AtomicUsize::new(0));
    let counted = sends.clone();
    let service = service_fn(move |_: Request<B>| {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        ready(Ok(response))
    });
    (sends, service)
}

fn retry() -> RetryLayer {
    RetryLayer::http().backoff(NO_WAIT)
}

fn get() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

// promise: ST-1
#[tokio::test]
async fn below_the_retries_each_attempt_has_a_key_of_its_own() -> Result {
    for below in [false, true] {
        // It is provably not sent, so it is sent again with a key or without.
        let (heads, mut seen) = mpsc::unbounded_channel();
        let refused = service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
            let key = request.headers()["idempotency-key"].clone();
            let _ = heads.send(key);
            let error = io::Error::from(io::ErrorKind::ConnectionRefused);
            ready(Err::<Response<Full<Bytes>>, _>(error))
        });
        let (key, retry) = (IdempotencyKeyLayer::new(), retry());
        let stack = if below {
            boxed(
                ServiceBuilder::new()
                    .layer(retry)
                    .layer(key)
                    .service(refused),
            )
        } else {
            boxed(
                ServiceBuilder::new()
                    .layer(key)
                    .layer(retry)
                    .service(refused),
            )
        };
        let request = Request::post("http://a.example/").body(Full::default())?;
        assert!(stack.oneshot(request).await.is_err());
        let mut keys: Vec<_> = iter::from_fn(|| seen.try_recv().ok()).collect();
        assert_eq!(keys.len(), 3);
        keys.dedup();
        assert_eq!(keys.len(), if below { 3 } else { 1 });
    }
    Ok(())
}

// promise: ST-1
#[tokio::test]
async fn above_the_retries_a_breaker_opens_after_three_times_the_sends() {
    for above in [false, true] {
        let (sends, backend) = backend(StatusCode::SERVICE_UNAVAILABLE);
        let breaker = BreakerLayer::http();
        let stack = if above {
            boxed(
                ServiceBuilder::new()
                    .layer(breaker)
                    .layer(retry())
                    .service(backend),
            )
        } else {
            boxed(
                ServiceBuilder::new()
                    .layer(retry())
                    .layer(breaker)
                    .service(backend),
            )
        };
        let mut calls = 0;
        while stack.clone().oneshot(get()).await.is_ok() {
            calls += 1;
        }
        let expected = if above { (5, 15) } else { (2, 5) };
        assert_eq!((calls, sends.load(Ordering::SeqCst)), expected);
    }
}

// promise: ST-1
#[tokio::test(start_paused = true)]
async fn above_the_retries_a_breaker_that_opens_stops_no_call_that_is_under_way() {
    for above in [false, true] {
        let (sends, backend) = backend(StatusCode::SERVICE_UNAVAILABLE);
        let breaker = BreakerLayer::http();
        let handle = breaker.handle();
        let retry = retry().backoff(Backoff::constant(Duration::from_secs(1)));
        let stack = if above {
            boxed(
                ServiceBuilder::new()
                    .layer(breaker)
                    .layer(retry)
                    .service(backend),
            )
        } else {
            boxed(
                ServiceBuilder::new()
                    .layer(retry)
                    .layer(breaker)
                    .service(backend),
            )
        };
        let call = tokio::spawn(stack.oneshot(get()));
        tokio::time::sleep(Duration::from_millis(500)).await;
        handle.force_open();
        let answer = call.await.unwrap().unwrap();
        assert_eq!(answer, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(sends.load(Ordering::SeqCst), if above { 3 } else { 1 });
    }
}

// promise: ST-1
#[tokio::test(start_paused = true)]
async fn above_the_retries_a_limit_lets_three_times_the_sends_through() {
    for above in [false, true] {
        let (sends, backend) = backend(StatusCode::SERVICE_UNAVAILABLE);
        let limit = RateLimitLayer::http(Quota::per_hour(TEN).burst(TEN)).refuse();
        let stack = if above {
            boxed(
                ServiceBuilder::new()
                    .layer(limit)
                    .layer(retry())
                    .service(backend),
            )
        } else {
            boxed(
                ServiceBuilder::new()
                    .layer(retry())
                    .layer(limit)
                    .service(backend),
            )
        };
        join_all((0..30).map(|_| stack.clone().oneshot(get()))).await;
        assert_eq!(sends.load(Ordering::SeqCst), if above { 30 } else { 10 });
    }
}

// promise: ST-1
#[tokio::test(start_paused = true)]
async fn above_a_breaker_a_limit_has_what_that_refuses_wait_and_pay() {
    for above in [false, true] {
        let (sends, backend) = backend(StatusCode::OK);
        let breaker = BreakerLayer::http();
        let quota = Quota::per_second(TEN).burst(ONE);
        let limit = RateLimitLayer::http(quota).max_wait(Duration::from_mins(1));
        let (breaker_handle, limit_handle) = (breaker.handle(), limit.handle());
        let stack = if above {
            boxed(
                ServiceBuilder::new()
                    .layer(limit)
                    .layer(breaker)
                    .service(backend),
            )
        } else {
            boxed(
                ServiceBuilder::new()
                    .layer(breaker)
                    .layer(limit)
                    .service(backend),
            )
        };
        breaker_handle.force_open();
        let begun = clock::now();
        let calls = join_all((0..11).map(|_| stack.clone().oneshot(get()))).await;
        assert!(calls.iter().all(Result::is_err));
        assert_eq!(sends.load(Ordering::SeqCst), 0);
        let waited = clock::now().saturating_duration_since(begun).as_millis();
        let left = limit_handle.remaining();
        if above {
            assert!((1_000..1_010).contains(&waited), "{waited} ms");
            assert_eq!(left, 0);
        } else {
            assert_eq!((waited, left), (0, 1));
        }
    }
}

// promise: ST-1
#[tokio::test(start_paused = true)]
async fn below_a_breaker_a_limit_s_wait_is_part_of_the_call_that_it_judges() {
    for below in [false, true] {
        let (_, backend) = backend(StatusCode::OK);
        let breaker = BreakerLayer::http()
            .count_window(TEN)
            .slow_calls(Duration::from_millis(100), 0.5);
        let handle = breaker.handle();
        let quota = Quota::per_second(ONE).burst(ONE);
        let limit = RateLimitLayer::http(quota).max_wait(Duration::from_mins(1));
        let stack = if below {
            boxed(
                ServiceBuilder::new()
                    .layer(breaker)
                    .layer(limit)
                    .service(backend),
            )
        } else {
            boxed(
                ServiceBuilder::new()
                    .layer(limit)
                    .layer(breaker)
                    .service(backend),
            )
        };
        for _ in 0..3 {
            stack.clone().oneshot(get()).await.unwrap();
        }
        assert_eq!(handle.snapshot().slow, if below { 2 } else { 0 });
    }
}
