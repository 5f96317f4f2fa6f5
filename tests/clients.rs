//! The layers over every client that people have, in a form to paste from.

mod support;

use std::{
    error::Error,
    fmt,
    future::{self, Future},
    io,
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, error_handling::HandleErrorLayer, extract::Request};
use buttress::{
    Applied, BoxError, Kind, Rejected, Verdict,
    breaker::{BreakerLayer, State, TrackedBody},
    rate_limit::{self, Quota, RateLimitLayer},
    retry::{Backoff, DelaySource, Event, Outcome, ReplayBody, ResponseBody, RetryLayer},
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{StatusCode, uri::PathAndQuery};
use http_body_util::{
    BodyExt, Empty, Full, StreamBody,
    combinators::{BoxBody, UnsyncBoxBody},
};
use hyper::body::{Body, Frame};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use support::{Raw, Told, within};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Notify,
};
use tonic::{Code, Status, metadata::MetadataValue, transport::Endpoint};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

const SOON: Backoff = Backoff::constant(Duration::from_millis(1));
const TWO: NonZeroU32 = NonZeroU32::new(2).unwrap();

/// Serves on a port of its own, as long as the test runs.
async fn serve(app: Router) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(format!("http://{address}/"))
}

/// Answers 503 to the first request, to the third and so on, and to the others what they brought.
async fn echo() -> Result<String> {
    let turns = Arc::new(AtomicUsize::new(0));
    serve(Router::new().fallback(move |body: Bytes| {
        let again = turns.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        let status = if again {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        future::ready((status, body))
    }))
    .await
}

/// A service is cloned and sent to where its calls are made, and so are its calls.
fn goes_anywhere<S, R>(service: &S)
where
    S: Service<R, Future: Send + 'static> + Clone + Send + Sync + 'static,
{
    let _ = service.clone();
}

// promise: RT-38
#[tokio::test]
async fn the_client_of_hyper_util() -> Result {
    let (url, told) = (echo().await?, Told::default());

    let client = Client::builder(TokioExecutor::new()).build_http();
    let service = ServiceBuilder::new()
        .layer(RetryLayer::http().backoff(SOON).on_event(told.sink()))
        .service(client);

    goes_anywhere(&service);
    let put = http::Request::put(url).body(Full::new(Bytes::from("words")))?;
    let answer = within(service.oneshot(put)).await?;
    assert_eq!(answer.into_body().collect().await?.to_bytes(), "words");
    assert_eq!(told.finished(), Some((Outcome::OkAfterRetry, 2)));
    Ok(())
}

// promise: RT-38
#[tokio::test]
async fn the_client_of_hyper_util_with_any_body() -> Result {
    async fn sends<B>(url: &str, body: B, expected: &str) -> Result
    where
        B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let told = Told::default();
        let service = ServiceBuilder::new()
            .layer(RetryLayer::http().backoff(SOON).on_event(told.sink()))
            .service(Client::builder(TokioExecutor::new()).build_http());
        let answer = within(service.oneshot(http::Request::put(url).body(body)?)).await?;
        assert_eq!(answer.into_body().collect().await?.to_bytes(), expected);
        assert_eq!(told.finished(), Some((Outcome::OkAfterRetry, 2)));
        Ok(())
    }

    let url = echo().await?;
    sends(&url, Empty::<Bytes>::new(), "").await?;
    sends(&url, "words".to_owned(), "words").await?;
    sends(&url, axum::body::Body::from("words"), "words").await?;
    let chunk = |chunk| Ok::<_, io::Error>(Frame::data(Bytes::from(chunk)));
    let chunks = || StreamBody::new(stream::iter(["wo", "rds"]).map(chunk));
    sends(&url, BoxBody::new(chunks()), "words").await?;
    sends(&url, UnsyncBoxBody::new(chunks()), "words").await
}

// promise: RT-38
#[tokio::test]
async fn the_client_of_reqwest() -> Result {
    let (url, told) = (echo().await?, Told::default());

    let service = ServiceBuilder::new()
        .layer(RetryLayer::http().backoff(SOON).on_event(told.sink()))
        .filter(|request: http::Request<ReplayBody<_>>| {
            reqwest::Request::try_from(request.map(reqwest::Body::wrap))
        })
        .map_response(http::Response::<reqwest::Body>::from)
        .service(reqwest::Client::new());

    goes_anywhere(&service);
    let put = http::Request::put(url).body(reqwest::Body::from("words"))?;
    let answer = within(service.oneshot(put)).await?;
    assert_eq!(answer.into_body().collect().await?.to_bytes(), "words");
    assert_eq!(told.finished(), Some((Outcome::OkAfterRetry, 2)));
    Ok(())
}

/// Answers 503 to every request, and counts them.
async fn down() -> Result<(String, Arc<AtomicUsize>)> {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let url = serve(Router::new().fallback(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        future::ready((StatusCode::SERVICE_UNAVAILABLE, "words"))
    }))
    .await?;
    Ok((url, requests))
}

/// A breaker that opens after two failures refuses the third call.
async fn refuses_the_third<S, R>(service: S, request: impl Fn() -> Result<R>) -> Result
where
    S: Service<R, Error = BoxError> + Clone,
{
    for _ in 0..2 {
        let answer = within(service.clone().oneshot(request()?)).await;
        if let Err(error) = answer {
            assert!(Rejected::find(&*error).is_none(), "{error}");
        }
    }
    let answer = within(service.oneshot(request()?)).await;
    let error = answer.err().ok_or("it is let through")?;
    assert!(Rejected::find(&*error).is_some(), "{error}");
    Ok(())
}

// promise: BR-28
#[tokio::test]
async fn the_client_of_hyper_util_behind_a_breaker() -> Result {
    let (url, requests) = down().await?;

    let client = Client::builder(TokioExecutor::new()).build_http();
    let service = ServiceBuilder::new()
        .layer(BreakerLayer::http().consecutive_only(TWO))
        .service(client);

    goes_anywhere(&service);
    let put = || Ok(http::Request::put(&url).body(Full::new(Bytes::from("words")))?);
    refuses_the_third(service, put).await?;
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    Ok(())
}

// promise: BR-28
#[tokio::test]
async fn the_client_of_hyper_util_behind_a_breaker_for_each_server_that_sees_bodies_end() -> Result
{
    let (url, requests) = down().await?;

    let layer = BreakerLayer::http()
        .consecutive_only(TWO)
        .track_bodies()
        .by_authority();
    let handles = layer.handles();
    let service = ServiceBuilder::new()
        .map_response(|answer: http::Response<TrackedBody<_, _>>| answer.map(BoxBody::new))
        .layer(layer)
        .service(Client::builder(TokioExecutor::new()).build_http());

    goes_anywhere(&service);
    let get = |url: &str| Ok::<_, BoxError>(http::Request::get(url).body(Empty::<Bytes>::new())?);
    refuses_the_third(service.clone(), || get(&url)).await?;
    assert_eq!(requests.load(Ordering::SeqCst), 2);

    // The other one is closed, and its body is what it was.
    let echo = echo().await?;
    for _ in 0..2 {
        let put = http::Request::put(&echo).body(Empty::new())?;
        let answer = within(service.clone().oneshot(put)).await?;
        within(answer.into_body().collect()).await?;
    }
    let state = |url: &str| {
        let authority = url.trim_start_matches("http://").trim_end_matches('/');
        handles.get(authority).map(|handle| handle.state())
    };
    assert_eq!(state(&url), Some(State::Open));
    assert_eq!(state(&echo), Some(State::Closed));
    Ok(())
}

// promise: BR-28
#[tokio::test]
async fn the_client_of_reqwest_behind_a_breaker() -> Result {
    let (url, requests) = down().await?;

    let service = ServiceBuilder::new()
        .layer(BreakerLayer::http().consecutive_only(TWO))
        .map_response(http::Response::<reqwest::Body>::from)
        .service(reqwest::Client::new());

    goes_anywhere(&service);
    let post = || {
        let post = reqwest::Client::new().post(&url);
        Ok(post.body("words").build()?)
    };
    refuses_the_third(service, post).await?;
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    Ok(())
}

// promise: BR-28
#[tokio::test]
async fn the_client_of_reqwest_behind_a_breaker_for_each_server() -> Result {
    let (url, requests) = down().await?;

    let service = ServiceBuilder::new()
        .layer(
            BreakerLayer::http()
                .consecutive_only(TWO)
                .track_bodies()
                .by_authority(),
        )
        .filter(reqwest::Request::try_from)
        .map_response(http::Response::<reqwest::Body>::from)
        .service(reqwest::Client::new());

    goes_anywhere::<_, http::Request<String>>(&service);
    let put = |url: &str| Ok::<_, BoxError>(http::Request::put(url).body("words".to_owned())?);
    refuses_the_third(service.clone(), || put(&url)).await?;
    assert_eq!(requests.load(Ordering::SeqCst), 2);

    let answer = within(service.oneshot(put(&echo().await?)?)).await?;
    let body = reqwest::Response::from(answer.map(reqwest::Body::wrap));
    assert_eq!(within(body.text()).await?, "words");
    Ok(())
}

/// One at once and one every 20 ms, whose calls that had to wait are counted.
fn pace() -> (RateLimitLayer, Arc<AtomicUsize>) {
    let waited = Arc::new(AtomicUsize::new(0));
    let sink = waited.clone();
    let quota = Quota::per(NonZeroU32::MIN, Duration::from_millis(20)).expect("it is some time");
    let layer = RateLimitLayer::new(quota.burst(NonZeroU32::MIN)).on_event(move |event| {
        if let rate_limit::Event::Admitted { waited, .. } = event
            && !waited.is_zero()
        {
            sink.fetch_add(1, Ordering::SeqCst);
        }
    });
    (layer, waited)
}

/// Five calls that come at once go one after the other.
async fn paces_five<S, R>(
    service: S,
    waited: &AtomicUsize,
    request: impl Fn() -> Result<R>,
) -> Result
where
    S: Service<R, Error = BoxError> + Clone,
{
    let requests = (0..5).map(|_| request()).collect::<Result<Vec<_>>>()?;
    let calls = requests
        .into_iter()
        .map(|request| service.clone().oneshot(request));
    within(futures_util::future::try_join_all(calls)).await?;
    // The machine may take longer over one call than the next one has to wait.
    assert!((1..=4).contains(&waited.load(Ordering::SeqCst)));
    Ok(())
}

// promise: RL-25
#[tokio::test]
async fn the_client_of_hyper_util_behind_a_limit() -> Result {
    let (url, requests) = down().await?;
    let (layer, waited) = pace();

    let client = Client::builder(TokioExecutor::new()).build_http();
    let service = ServiceBuilder::new().layer(layer).service(client);

    goes_anywhere(&service);
    let put = || Ok(http::Request::put(&url).body(Full::new(Bytes::from("words")))?);
    paces_five(service, &waited, put).await?;
    assert_eq!(requests.load(Ordering::SeqCst), 5);
    Ok(())
}

// promise: RL-25
#[tokio::test]
async fn the_client_of_reqwest_behind_a_limit() -> Result {
    let (url, requests) = down().await?;
    let (layer, waited) = pace();

    let client = reqwest::Client::new();
    let service = ServiceBuilder::new().layer(layer).service(client.clone());

    goes_anywhere(&service);
    paces_five(service, &waited, || Ok(client.get(&url).build()?)).await?;
    assert_eq!(requests.load(Ordering::SeqCst), 5);
    Ok(())
}

// promise: RL-25
#[tokio::test]
async fn the_channel_of_tonic_behind_a_limit() -> Result {
    let method = service_fn(|request: tonic::Request<Bytes>| {
        future::ready(Ok::<_, Status>(tonic::Response::new(request.into_inner())))
    });
    let url = serve(Router::new().fallback(move |request: Request| async move {
        tonic::server::Grpc::new(Raw).unary(method, request).await
    }))
    .await?;
    let channel = Endpoint::try_from(url)?.connect_lazy();
    let limit = RateLimitLayer::http(Quota::per_hour(TWO))
        .name("shop")
        .refuse();
    let service = ServiceBuilder::new()
        .layer(limit.by_key(|_: &http::Request<tonic::body::Body>| "till 1"))
        .service(channel);
    goes_anywhere(&service);
    let mut client = tonic::client::Grpc::new(service);
    client.ready().await?;
    let bought = within(client.unary(message("apples"), BUY, Raw)).await?;
    assert_eq!(bought.into_inner(), "apples");
    client.ready().await?;
    let status = within(client.unary::<_, Bytes, _>(message("pears"), BUY, Raw)).await;
    let status = status.expect_err("it is used up");
    let rejected = Rejected::find(&status).ok_or("the refusal is lost")?;
    assert_eq!(
        (rejected.name(), rejected.key()),
        (Some("shop"), Some("till 1"))
    );
    Ok(())
}

// promise: RL-25
#[tokio::test]
async fn a_function_of_which_nothing_can_be_cloned_behind_a_limit() -> Result {
    let (layer, waited) = pace();
    let shop = service_fn(|Order(apples)| {
        future::ready(if apples == 0 {
            Err(Closed)
        } else {
            Ok(Receipt(apples))
        })
    });
    let service = layer.layer(shop);
    goes_anywhere(&service);
    paces_five(service.clone(), &waited, || Ok(Order(3))).await?;
    let error = within(service.oneshot(Order(0))).await;
    assert!(error.expect_err("it is closed").is::<Closed>());
    Ok(())
}

// promise: BR-28
#[tokio::test]
async fn a_server_of_axum_behind_a_breaker() -> Result {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let handler = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        future::ready(StatusCode::BAD_GATEWAY)
    };

    let refused =
        |error: BoxError| future::ready((StatusCode::SERVICE_UNAVAILABLE, error.to_string()));
    let app = Router::new().fallback(handler).layer(
        ServiceBuilder::new()
            .layer(HandleErrorLayer::new(refused))
            .layer(BreakerLayer::http().name("cards").consecutive_only(TWO)),
    );

    let url = serve(app).await?;
    let get = || reqwest::get(&url);
    for _ in 0..2 {
        assert_eq!(within(get()).await?.status(), StatusCode::BAD_GATEWAY);
    }
    let answer = within(get()).await?;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let why = "refused by breaker cards: open: 2 calls failed in a row";
    assert!(within(answer.text()).await?.starts_with(why));
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    Ok(())
}

/// Neither it nor its error can be cloned.
#[derive(Debug, PartialEq)]
struct Receipt(u32);

#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shop is closed")
    }
}

impl Error for Closed {}

// promise: RT-38
#[tokio::test]
async fn a_function_that_does_not_speak_http() -> Result {
    let (told, calls) = (Told::default(), Arc::new(AtomicUsize::new(0)));

    let shop = service_fn(move |apples: u32| {
        let open = calls.fetch_add(1, Ordering::SeqCst) > 0;
        future::ready(if open {
            Ok(Receipt(apples))
        } else {
            Err(Closed)
        })
    });
    let classify = |result: Result<&Receipt, &BoxError>| match result {
        Ok(_) => Verdict::SUCCESS,
        Err(_) => Verdict::new(Kind::Transient, Applied::No),
    };
    let service = ServiceBuilder::new()
        .layer(
            RetryLayer::new(classify)
                .backoff(SOON)
                .on_event(told.sink()),
        )
        .service(shop);

    goes_anywhere(&service);
    assert_eq!(within(service.oneshot(3)).await?, Receipt(3));
    assert_eq!(told.finished(), Some((Outcome::OkAfterRetry, 2)));
    Ok(())
}

/// It cannot be cloned either.
#[derive(Debug)]
struct Order(u32);

// promise: BR-28
#[tokio::test]
async fn a_function_of_which_nothing_can_be_cloned_behind_a_breaker() -> Result {
    let shop = service_fn(|Order(apples)| {
        future::ready(if apples == 0 {
            Err(Closed)
        } else {
            Ok(Receipt(apples))
        })
    });
    let classify = |result: Result<&Receipt, &BoxError>| match result {
        Ok(_) => Verdict::SUCCESS,
        Err(error) if error.is::<Closed>() => Verdict::new(Kind::Transient, Applied::No),
        Err(_) => Verdict::new(Kind::Ignored, Applied::No),
    };
    let service = ServiceBuilder::new()
        .layer(BreakerLayer::new(classify).consecutive_only(TWO))
        .service(shop);

    goes_anywhere(&service);
    let answer = within(service.clone().oneshot(Order(3))).await?;
    assert_eq!(answer, Receipt(3));
    let error = within(service.clone().oneshot(Order(0))).await;
    assert!(error.expect_err("it is closed").is::<Closed>());
    within(service.clone().oneshot(Order(3))).await?;
    refuses_the_third(service, || Ok(Order(0))).await
}

const BUY: PathAndQuery = PathAndQuery::from_static("/shop.Shop/Buy");
const GET_PRICE: PathAndQuery = PathAndQuery::from_static("/shop.Shop/GetPrice");

/// Serves a method of gRPC, which gets the number of the attempt and what it says of those before it.
async fn serve_grpc<F>(
    answer: impl Fn(usize, Option<String>, Bytes) -> F + Clone + Send + Sync + 'static,
) -> Result<String>
where
    F: Future<Output = Result<Bytes, Status>> + Send + 'static,
{
    let turns = Arc::new(AtomicUsize::new(0));
    let method = service_fn(move |request: tonic::Request<Bytes>| {
        let before = request.metadata().get("grpc-previous-rpc-attempts");
        let before = before
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let answer = answer(
            turns.fetch_add(1, Ordering::SeqCst),
            before,
            request.into_inner(),
        );
        async move { Ok(tonic::Response::new(answer.await?)) }
    });
    serve(Router::new().fallback(move |request: Request| async move {
        tonic::server::Grpc::new(Raw).unary(method, request).await
    }))
    .await
}

// promise: RT-38
// promise: RT-34
#[tokio::test]
async fn the_channel_of_tonic() -> Result {
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let (seen, told) = (attempts.clone(), Told::default());
    let url = serve_grpc(move |turn, before, message| {
        seen.lock().unwrap().push(before);
        future::ready(if turn < 2 {
            Err(Status::unavailable("come again"))
        } else {
            Ok(message)
        })
    })
    .await?;

    let channel = Endpoint::try_from(url)?.connect_lazy();
    let service = ServiceBuilder::new()
        .layer(RetryLayer::grpc().backoff(SOON).on_event(told.sink()))
        .map_request(|request: http::Request<ReplayBody<_>>| request.map(tonic::body::Body::new))
        .service(channel);
    let mut client = tonic::client::Grpc::new(service.clone());

    goes_anywhere(&service);
    client.ready().await?;
    let call = client.unary(message("apples"), BUY, Raw);
    assert_eq!(within(call).await?.into_inner(), "apples");
    assert_eq!(told.finished(), Some((Outcome::OkAfterRetry, 3)));
    let attempts = attempts.lock().unwrap().clone();
    assert_eq!(attempts, [None, Some("1".to_owned()), Some("2".to_owned())]);
    Ok(())
}

// promise: BR-28
#[tokio::test]
async fn no_client_s_breaker_takes_a_refused_connection_for_anything_else() -> Result {
    // Nobody else gets a port that is bound, and nobody is let in before it listens.
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let url = format!("http://{}/", socket.local_addr()?);

    let layer = BreakerLayer::http().consecutive_only(TWO);
    let service = layer.layer(Client::builder(TokioExecutor::new()).build_http());
    let get = || Ok(http::Request::get(&url).body(Full::<Bytes>::default())?);
    refuses_the_third(service, get).await?;

    let service = ServiceBuilder::new()
        .layer(BreakerLayer::http().consecutive_only(TWO))
        .map_response(http::Response::<reqwest::Body>::from)
        .service(reqwest::Client::new());
    let get = || Ok(reqwest::Client::new().get(&url).build()?);
    refuses_the_third(service, get).await?;

    let layer = BreakerLayer::grpc().consecutive_only(TWO);
    let service = layer.layer(Endpoint::try_from(url.clone())?.connect_lazy());
    let get = || Ok(http::Request::get(&url).body(tonic::body::Body::empty())?);
    refuses_the_third(service, get).await
}

// promise: BR-28
#[tokio::test]
async fn the_channel_of_tonic_behind_a_breaker() -> Result {
    // The one kind of failure is all there is to the response, the other comes in the trailers.
    let failures: [fn() -> Result<_, Status>; 2] = [
        || Err(Status::unavailable("come again")),
        || {
            let messages = [Ok(Bytes::from("apples")), Err(Status::internal("no"))];
            Ok(tonic::Response::new(stream::iter(messages)))
        },
    ];
    for failure in failures {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let method = service_fn(move |_: tonic::Request<Bytes>| {
            counted.fetch_add(1, Ordering::SeqCst);
            future::ready(failure())
        });
        let url = serve(Router::new().fallback(move |request: Request| async move {
            tonic::server::Grpc::new(Raw)
                .server_streaming(method, request)
                .await
        }))
        .await?;

        let channel = Endpoint::try_from(url)?.connect_lazy();
        let service = ServiceBuilder::new()
            .layer(BreakerLayer::grpc().name("shop").consecutive_only(TWO))
            .service(channel);
        let mut client = tonic::client::Grpc::new(service.clone());

        goes_anywhere(&service);
        let mut statuses = Vec::new();
        for _ in 0..3 {
            client.ready().await?;
            let call = client.server_streaming(message("all"), BUY, Raw);
            let answer: Result<tonic::Response<tonic::Streaming<Bytes>>, Status> =
                within(call).await;
            let end = match answer {
                Ok(answer) => within(answer.into_inner().try_collect::<Vec<_>>()).await,
                Err(status) => Err(status),
            };
            statuses.push(end.expect_err("it fails"));
        }
        assert_eq!(requests.load(Ordering::SeqCst), 2);
        assert!(Rejected::find(&statuses[1]).is_none());
        let rejected = Rejected::find(&statuses[2]).ok_or("the refusal is lost")?;
        assert_eq!(rejected.name(), Some("shop"));
    }
    Ok(())
}

// promise: BR-28
#[tokio::test]
async fn the_channel_of_tonic_behind_a_breaker_and_a_retry() -> Result {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let url = serve_grpc(move |_, _, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        future::ready(Err(Status::unavailable("come again")))
    })
    .await?;

    let channel = Endpoint::try_from(url)?.connect_lazy();
    let service = ServiceBuilder::new()
        .layer(RetryLayer::grpc().backoff(SOON))
        .layer(BreakerLayer::grpc().by_authority().consecutive_only(TWO))
        .map_request(|request: http::Request<ReplayBody<_>>| request.map(tonic::body::Body::new))
        .service(channel);
    let mut client = tonic::client::Grpc::new(service.clone());

    goes_anywhere(&service);
    client.ready().await?;
    let call = client.unary(message("apples"), BUY, Raw);
    let answer: Result<tonic::Response<Bytes>, Status> = within(call).await;
    let status = answer.expect_err("it fails");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "come again")
    );
    assert_eq!(requests.load(Ordering::SeqCst), 2, "the third is refused");
    Ok(())
}

type Shop = tonic::client::Grpc<
    BoxCloneService<
        http::Request<tonic::body::Body>,
        http::Response<ResponseBody<tonic::body::Body>>,
        BoxError,
    >,
>;

/// A client whose calls of a `Get` method may be made twice, connected and ready for a call.
async fn shop(url: String, told: &Told<Event>) -> Result<Shop> {
    let get = |request: &http::Request<_>| request.uri().path().starts_with("/shop.Shop/Get");
    let service = ServiceBuilder::new()
        .boxed_clone()
        .layer(
            RetryLayer::grpc()
                .idempotent(get)
                .backoff(SOON)
                .on_event(told.sink()),
        )
        .map_request(|request: http::Request<ReplayBody<_>>| request.map(tonic::body::Body::new))
        .service(Endpoint::try_from(url)?.connect().await?);
    let mut client = tonic::client::Grpc::new(service);
    client.ready().await?;
    Ok(client)
}

fn message(text: &'static str) -> tonic::Request<Bytes> {
    tonic::Request::new(Bytes::from(text))
}

// promise: RT-34
#[tokio::test]
async fn a_grpc_server_says_to_the_millisecond_when_to_come_back() -> Result {
    for code in [Code::Unavailable, Code::ResourceExhausted] {
        let mut status = Status::new(code, "come again");
        let pushback = MetadataValue::from(7);
        status
            .metadata_mut()
            .insert("grpc-retry-pushback-ms", pushback);
        let url = serve_grpc(move |turn, _, message| {
            future::ready(if turn == 0 {
                Err(status.clone())
            } else {
                Ok(message)
            })
        })
        .await?;

        let told = Told::default();
        let mut client = shop(url, &told).await?;
        let call = client.unary(message("apples"), BUY, Raw);
        assert_eq!(within(call).await?.into_inner(), "apples");
        let [Event::Retry { delay, source, .. }, Event::Finished { .. }] = &told.all()[..] else {
            panic!("{:?}", told.all())
        };
        assert_eq!(
            (*delay, *source),
            (Duration::from_millis(7), DelaySource::Pushback)
        );
    }
    Ok(())
}

// promise: RT-34
#[tokio::test]
async fn what_a_grpc_server_may_have_done_is_done_again_where_that_changes_nothing() -> Result {
    for code in [
        Code::Internal,
        Code::Unknown,
        Code::DeadlineExceeded,
        Code::DataLoss,
    ] {
        for (method, sends) in [(BUY, 1), (GET_PRICE, 3)] {
            let told = Told::default();
            let url =
                serve_grpc(move |_, _, _| future::ready(Err(Status::new(code, "no")))).await?;
            let mut client = shop(url, &told).await?;
            let call = client.unary(message("apples"), method, Raw);
            let status: Result<tonic::Response<Bytes>, Status> = within(call).await;
            let status = status.expect_err("it fails");
            assert_eq!((status.code(), status.message()), (code, "no"));
            assert_eq!(
                told.finished().map(|(_, sends)| sends),
                Some(sends),
                "{code:?}"
            );
        }
    }
    Ok(())
}

// promise: RT-34
#[tokio::test]
async fn a_stream_of_grpc_begins_before_its_messages_are_there() -> Result {
    let (go_on, told) = (Arc::new(Notify::new()), Told::default());
    let goes_on = go_on.clone();
    let turns = Arc::new(AtomicUsize::new(0));
    let method = service_fn(move |_: tonic::Request<Bytes>| {
        let goes_on = goes_on.clone();
        let messages = stream::iter(["one", "two"]).then(move |message| {
            let goes_on = goes_on.clone();
            async move {
                goes_on.notified().await;
                Ok(Bytes::from(message))
            }
        });
        let last = stream::iter([Err(Status::unavailable("in the trailers"))]);
        future::ready(match turns.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Status::unavailable("come again")),
            _ => Ok(tonic::Response::new(messages.chain(last).boxed())),
        })
    });
    let url = serve(Router::new().fallback(move |request: Request| async move {
        tonic::server::Grpc::new(Raw)
            .server_streaming(method, request)
            .await
    }))
    .await?;

    let mut client = shop(url, &told).await?;
    let call = client.server_streaming(message("all"), BUY, Raw);
    let mut messages = within(call).await?.into_inner();
    assert_eq!(
        told.finished(),
        Some((Outcome::OkAfterRetry, 2)),
        "the head is there"
    );
    for expected in ["one", "two"] {
        go_on.notify_one();
        assert_eq!(
            within(messages.message()).await?.as_deref(),
            Some(expected.as_bytes())
        );
    }
    // Once messages have come, a call is not made again (gRPC proposal A6).
    let end = within(messages.message())
        .await
        .expect_err("it fails in the end");
    assert_eq!(end.message(), "in the trailers");
    Ok(())
}
