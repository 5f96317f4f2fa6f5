//! The retry layer over every client that people have, in a form to paste from.

mod support;

use std::{
    error::Error,
    fmt,
    future::{self, Future},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::Request};
use buttress::{
    Applied, BoxError, Kind, Verdict,
    retry::{Backoff, DelaySource, Event, Outcome, ReplayBody, ResponseBody, RetryLayer},
};
use bytes::{Buf, BufMut, Bytes};
use futures_util::{StreamExt, stream};
use http::{StatusCode, uri::PathAndQuery};
use http_body_util::{
    BodyExt, Empty, Full, StreamBody,
    combinators::{BoxBody, UnsyncBoxBody},
};
use hyper::body::{Body, Frame};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use support::{Told, within};
use tokio::{net::TcpListener, sync::Notify};
use tonic::{
    Code, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataValue,
    transport::Endpoint,
};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

const SOON: Backoff = Backoff::constant(Duration::from_millis(1));

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

/// A message of gRPC as it is.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
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

type Shop = tonic::client::Grpc<
    BoxCloneService<
        http::Request<tonic::body::Body>,
        http::Response<ResponseBody<tonic::body::Body>>,
        BoxError,
    >,
>;

/// A client whose calls of a `Get` method may be made twice, connected and ready for a call.
async fn shop(url: String, told: &Told) -> Result<Shop> {
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
