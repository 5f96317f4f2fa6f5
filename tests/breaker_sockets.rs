//! What the breaker makes of real connections: hyper-util's client, and axum's server, over TCP.
//!
//! Each test has one thread, so that time passes when the test says so.

mod support;

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::{self, IntoFuture},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    error_handling::HandleErrorLayer,
    response::{IntoResponse, Response},
    routing::get,
    serve::ListenerExt,
};
use buttress::{
    BoxError, Rejected,
    breaker::{
        BreakerLayer, Event,
        Outcome::{Cancelled, Failure, Ignored, Success},
        ProbeResult, Reason, State,
    },
    retry::{ReplayBody, RetryLayer},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, channel::Channel};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::{Server, Told, pass, within};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Notify, mpsc},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

const ONE: NonZeroU32 = NonZeroU32::new(1).unwrap();
const THREE: NonZeroU32 = NonZeroU32::new(3).unwrap();

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wire {
    Http1,
    Http2,
}

use Wire::{Http1, Http2};

fn client<B>(wire: Wire) -> Client<HttpConnector, B>
where
    B: hyper::body::Body<Data: Send, Error: Into<BoxError>> + Send + Unpin,
{
    let mut client = Client::builder(TokioExecutor::new());
    client.http2_only(wire == Http2).build_http()
}

fn request(url: &str) -> Result<Request<Full<Bytes>>> {
    Ok(Request::get(url).body(Full::default())?)
}

/// What is left to send of a response's body.
type Sender = http_body_util::channel::Sender<Bytes, BoxError>;

/// A server whose responses have this status, and a body that the test sends piece by piece.
async fn streaming(status: u16) -> Result<(String, mpsc::UnboundedReceiver<Sender>)> {
    let (begun, bodies) = mpsc::unbounded_channel();
    let url = serve(Router::new().fallback(move || {
        let (sender, body) = Channel::<Bytes, BoxError>::new(1);
        let _ = begun.send(sender);
        let status = StatusCode::from_u16(status).unwrap();
        future::ready((status, axum::body::Body::new(body)))
    }))
    .await?;
    Ok((url, bodies))
}

/// Serves on a port of its own, as long as the test runs.
async fn serve(app: Router) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(format!("http://{address}/"))
}

/// The next piece of a body.
async fn next<B>(body: &mut B) -> Result<Option<Bytes>>
where
    B: hyper::body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    match within(body.frame()).await {
        Some(frame) => Ok(frame.map_err(Into::into)?.into_data().ok()),
        None => Ok(None),
    }
}

// promise: BR-8
#[tokio::test]
async fn a_body_that_breaks_off_is_a_failure_where_bodies_are_tracked() -> Result {
    let sized = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let closed = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
    for (head, body, whole) in [
        (sized, "words", false),
        (sized, "two words", true),
        (chunked, "5\r\nwords\r\n", false),
        (chunked, "5\r\nwo", false),
        (chunked, "5\r\nwords\r\n0\r\n\r\n", true),
        // Where nothing says how long it is, nothing says that it is not over.
        (closed, "words", true),
    ] {
        let server = Server::start(move |mut connection| async move {
            connection.read().await?;
            connection.write([head, body].concat()).await?;
            connection.finish().await
        })
        .await?;

        let told = Told::default();
        let layer = BreakerLayer::http()
            .consecutive_only(ONE)
            .on_event(told.sink())
            .track_bodies();
        let handle = layer.handle();
        let service = layer.layer(client(Http1));
        let answer = within(service.oneshot(request(&server.url())?)).await?;
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(told.calls().is_empty(), "the body is not there yet");
        let body = within(answer.into_body().collect()).await;
        assert_eq!(body.is_ok(), whole);
        let (outcome, state) = if whole {
            (Success, State::Closed)
        } else {
            (Failure, State::Open)
        };
        assert_eq!(told.calls(), [(outcome, Reason::Body)]);
        assert_eq!(handle.state(), state);

        let told = Told::default();
        let layer = BreakerLayer::http()
            .consecutive_only(ONE)
            .on_event(told.sink());
        let service = layer.layer(client(Http1));
        let answer = within(service.oneshot(request(&server.url())?)).await?;
        assert_eq!(told.calls(), [(Success, Reason::Response)]);
        assert_eq!(
            within(answer.into_body().collect()).await.is_ok(),
            whole,
            "untracked"
        );
        assert_eq!(told.calls().len(), 1, "untracked");
        assert_eq!(layer.handle().state(), State::Closed, "untracked");
    }
    Ok(())
}

// promise: BR-8
#[tokio::test]
async fn a_body_that_its_server_gives_up_is_a_failure() -> Result {
    for wire in [Http1, Http2] {
        let (url, mut bodies) = streaming(200).await?;
        let told = Told::default();
        let layer = BreakerLayer::http()
            .consecutive_only(ONE)
            .on_event(told.sink())
            .track_bodies();
        let service = layer.layer(client(wire));
        let mut body = within(service.oneshot(request(&url)?)).await?.into_body();
        let mut sender = within(bodies.recv()).await.ok_or("there is no body")?;
        sender.send_data(Bytes::from("words")).await?;
        assert_eq!(next(&mut body).await?.as_deref(), Some(&b"words"[..]));
        sender.abort("it is broken".into());
        assert!(next(&mut body).await.is_err(), "{wire:?}");
        assert_eq!(told.calls(), [(Failure, Reason::Body)], "{wire:?}");
        assert_eq!(layer.handle().state(), State::Open, "{wire:?}");
        // The caller has the error, and nothing more comes of dropping what is left.
        drop(body);
        assert_eq!(told.calls().len(), 1, "{wire:?}");
    }
    Ok(())
}

// promise: BR-8
#[tokio::test]
async fn a_body_passes_as_it_comes() -> Result {
    for wire in [Http1, Http2] {
        let (url, mut bodies) = streaming(200).await?;
        let told = Told::default();
        let layer = BreakerLayer::http().on_event(told.sink()).track_bodies();
        let service = layer.layer(client(wire));
        let mut body = within(service.oneshot(request(&url)?)).await?.into_body();
        let mut sender = within(bodies.recv()).await.ok_or("there is no body")?;
        for piece in ["one", "two", "three"] {
            // Nothing of what comes after it has been sent.
            sender.send_data(Bytes::from(piece)).await?;
            assert_eq!(next(&mut body).await?.as_deref(), Some(piece.as_bytes()));
            assert!(told.calls().is_empty(), "{wire:?}: it goes on");
        }
        drop(sender);
        assert!(within(body.collect()).await?.to_bytes().is_empty());
        assert_eq!(told.calls(), [(Success, Reason::Body)], "{wire:?}");
    }
    Ok(())
}

// promise: BR-8
#[tokio::test]
async fn a_body_that_is_dropped_early_counts_for_nothing_unless_its_head_said_failure() -> Result {
    for wire in [Http1, Http2] {
        for (status, dropped, state) in [
            (200, (Cancelled, Reason::Dropped), State::Closed),
            (503, (Failure, Reason::Response), State::Open),
            (404, (Ignored, Reason::Response), State::Closed),
        ] {
            let (url, mut bodies) = streaming(status).await?;
            let told = Told::default();
            let layer = BreakerLayer::http()
                .consecutive_only(THREE)
                .on_event(told.sink())
                .track_bodies();
            let handle = layer.handle();
            let service = layer.layer(client(wire));
            for calls in 1..=3 {
                let answer = within(service.clone().oneshot(request(&url)?)).await?;
                let mut body = answer.into_body();
                let mut sender = within(bodies.recv()).await.ok_or("there is no body")?;
                sender.send_data(Bytes::from("words")).await?;
                assert!(next(&mut body).await?.is_some());
                drop(body);
                assert_eq!(told.calls(), vec![dropped; calls], "{wire:?} {status}");
            }
            assert_eq!(handle.state(), state, "{wire:?} {status}");
        }
    }
    Ok(())
}

// promises: BR-8, BR-11
#[tokio::test]
async fn a_probe_ends_with_its_body() -> Result {
    for wire in [Http1, Http2] {
        let ((down, _), (up, mut bodies)) = (streaming(503).await?, streaming(200).await?);
        let told = Told::default();
        let layer = BreakerLayer::http()
            .consecutive_only(ONE)
            .on_event(told.sink())
            .track_bodies();
        let service = layer.layer(client(wire));
        let call = async |url: &str| within(service.clone().oneshot(request(url)?)).await;

        call(&down).await?;
        pass(Duration::from_secs(5)).await;
        let probe = call(&up).await?;
        let refused = call(&up).await.err().ok_or("the probe is under way")?;
        assert!(Rejected::find(&*refused).is_some(), "{refused}");
        drop(probe);
        assert_eq!(told.probes(), [ProbeResult::Cancelled], "{wire:?}");
        within(bodies.recv()).await.ok_or("there is no body")?;

        let probe = call(&up).await?;
        drop(within(bodies.recv()).await);
        within(probe.into_body().collect()).await?;
        assert_eq!(told.probes()[1..], [ProbeResult::Ok], "{wire:?}");

        let probe = call(&up).await?;
        assert_eq!(layer.handle().state(), State::HalfOpen, "{wire:?}");
        let sender = within(bodies.recv()).await.ok_or("there is no body")?;
        sender.abort("it is broken".into());
        assert!(within(probe.into_body().collect()).await.is_err());
        assert_eq!(told.probes()[2..], [ProbeResult::Failed], "{wire:?}");
        assert_eq!(layer.handle().state(), State::Open, "{wire:?}");
    }
    Ok(())
}

// promise: BR-5
#[tokio::test]
async fn an_upload_that_fails_says_nothing_of_the_server() -> Result {
    for wire in [Http1, Http2] {
        // The server waits for the whole of it.
        let server = Router::new().fallback(async |_: Bytes| "words");
        let url = serve(server).await?;
        let told = Told::default();
        let layer = BreakerLayer::http()
            .consecutive_only(ONE)
            .on_event(told.sink());
        let service = layer.layer(client(wire));
        let (mut sender, upload) = Channel::<Bytes, BoxError>::new(1);
        let call = service.oneshot(Request::post(&url).body(upload)?);
        let upload = async {
            sender.send_data(Bytes::from("words")).await?;
            sender.abort("it is broken".into());
            Ok::<_, BoxError>(())
        };
        let (answer, uploaded) = within(async { tokio::join!(call, upload) }).await;
        uploaded?;
        assert!(answer.is_err(), "{wire:?}");
        assert_eq!(told.calls(), [(Ignored, Reason::Error)], "{wire:?}");
        assert_eq!(layer.handle().state(), State::Closed, "{wire:?}");
    }
    Ok(())
}

// promise: BR-5
#[tokio::test]
async fn an_upload_that_fails_during_the_answer_says_nothing_of_the_server() -> Result {
    let echo = async |request: axum::extract::Request| Response::new(request.into_body());
    let url = serve(Router::new().fallback(echo)).await?;
    let told = Told::default();
    let layer = BreakerLayer::http()
        .consecutive_only(ONE)
        .on_event(told.sink())
        .track_bodies();
    // In HTTP/1 hyper has the same error for whatever ends a connection.
    let service = layer.layer(client(Http2));
    let (mut sender, upload) = Channel::<Bytes, BoxError>::new(1);
    sender.send_data(Bytes::from("words")).await?;
    let call = service.oneshot(Request::post(&url).body(upload)?);
    let mut body = within(call).await?.into_body();
    assert_eq!(next(&mut body).await?.as_deref(), Some(&b"words"[..]));
    sender.abort("it is broken".into());
    assert!(next(&mut body).await.is_err());
    assert_eq!(told.calls(), [(Ignored, Reason::Body)]);
    assert_eq!(layer.handle().state(), State::Closed);
    Ok(())
}

/// A server of gRPC whose responses have a message and, after a word from the test, these trailers.
async fn grpc(trailers: HeaderMap) -> Result<(String, Arc<Notify>)> {
    let end = Arc::new(Notify::new());
    let ends = end.clone();
    let url = serve(Router::new().fallback(move || {
        let (ends, trailers) = (ends.clone(), trailers.clone());
        let message = Frame::data(Bytes::from_static(&[0, 0, 0, 0, 1, 7]));
        let message = stream::iter([Ok::<_, Infallible>(message)]);
        let last = stream::once(async move {
            ends.notified().await;
            Ok(Frame::trailers(trailers))
        });
        let head = [("content-type", "application/grpc")];
        let body = StreamBody::new(message.chain(last));
        future::ready((head, axum::body::Body::new(body)))
    }))
    .await?;
    Ok((url, end))
}

fn trailers<const N: usize>(lines: [(&'static str, &'static str); N]) -> HeaderMap {
    let line = |(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    lines.into_iter().map(line).collect()
}

/// A call through this layer, to the end of its stream.
async fn to_the_end<C>(
    layer: &BreakerLayer<C, buttress::breaker::One, buttress::breaker::Bodies>,
    told: &Told<Event>,
    trailers: HeaderMap,
) -> Result<HeaderMap>
where
    C: buttress::Classify<Response<Incoming>> + Clone,
{
    let (url, end) = grpc(trailers).await?;
    let service = layer.layer(client(Http2));
    let answer = within(service.oneshot(request(&url)?)).await?;
    let mut body = answer.into_body();
    assert_eq!(next(&mut body).await?.map(|message| message.len()), Some(6));
    assert!(told.calls().is_empty(), "the stream goes on");
    end.notify_one();
    let last = within(body.frame())
        .await
        .ok_or("there are no trailers")??;
    Ok(last.into_trailers().map_err(|_| "there are no trailers")?)
}

// promise: BR-8
#[tokio::test]
async fn a_status_in_the_trailers_counts_at_the_end_of_the_stream() -> Result {
    for (status, outcome) in [
        ("0", Success),
        ("1", Ignored),
        ("2", Failure),
        ("3", Ignored),
        ("4", Failure),
        ("5", Ignored),
        ("8", Ignored),
        ("13", Failure),
        ("14", Failure),
        ("15", Failure),
    ] {
        let told = Told::default();
        let layer = BreakerLayer::grpc()
            .consecutive_only(ONE)
            .on_event(told.sink());
        let end = to_the_end(&layer, &told, trailers([("grpc-status", status)])).await?;
        assert_eq!(end["grpc-status"], status, "the caller sees it too");
        assert_eq!(told.calls(), [(outcome, Reason::Body)], "{status}");
        let opens = layer.handle().state() == State::Open;
        assert_eq!(opens, outcome == Failure, "{status}");
    }
    Ok(())
}

// promises: BR-8, BR-16
#[tokio::test]
async fn a_pushback_in_the_trailers_sets_the_open_time() -> Result {
    let told = Told::default();
    let layer = BreakerLayer::grpc()
        .consecutive_only(ONE)
        .on_event(told.sink());
    let lines = [("grpc-status", "14"), ("grpc-retry-pushback-ms", "30000")];
    to_the_end(&layer, &told, trailers(lines)).await?;
    assert_thirty(&told);
    Ok(())
}

// promise: BR-8
#[tokio::test]
async fn trailers_say_nothing_against_a_head_where_nobody_asked_for_them() -> Result {
    let told = Told::default();
    let layer = BreakerLayer::http()
        .consecutive_only(ONE)
        .on_event(told.sink())
        .track_bodies();
    to_the_end(&layer, &told, trailers([("grpc-status", "13")])).await?;
    assert_eq!(told.calls(), [(Success, Reason::Body)]);
    Ok(())
}

/// What the server says, and at most a tenth more.
fn assert_thirty(told: &Told<Event>) {
    let thirty = Duration::from_secs(30)..=Duration::from_secs(33);
    let open_for = told.open_for().expect("it has opened");
    assert!(thirty.contains(&open_for), "{open_for:?}");
}

// promise: BR-16
#[tokio::test]
async fn a_server_says_how_long_the_breaker_is_open() -> Result {
    // By the server's own clock, which is decades behind.
    let date = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\nretry-after: Sun, 06 Nov 1994 08:50:07 GMT";
    for (status, hint) in [
        (503, "retry-after: 30"),
        (503, date),
        (500, "retry-after: 30\r\nretry-after: 99"),
        (504, "retry-after-ms: 30000\r\nretry-after: 99"),
    ] {
        let server = Server::start(move |mut connection| async move {
            // The first is to open it, the next ones find it half-open.
            while connection.arrives().await? {
                connection.read().await?;
                let head = format!("HTTP/1.1 {status} _\r\n{hint}\r\ncontent-length: 0\r\n\r\n");
                connection.write(head).await?;
            }
            Ok(())
        })
        .await?;

        let told = Told::default();
        let layer = BreakerLayer::http()
            .consecutive_only(ONE)
            .on_event(told.sink());
        let handle = layer.handle();
        let service = layer.layer(client(Http1));
        for transition in [1, 3] {
            let answer = within(service.clone().oneshot(request(&server.url())?)).await?;
            assert_eq!(
                answer.status().as_u16(),
                status,
                "the answer is the server's"
            );
            let snapshot = handle.snapshot();
            assert_eq!(
                (snapshot.state, snapshot.transitions),
                (State::Open, transition),
                "{hint}"
            );
            assert_thirty(&told);
            assert!(snapshot.open_for <= told.open_for());

            let refused = within(service.clone().oneshot(request(&server.url())?)).await;
            let refused = refused.expect_err("it is open");
            let retry_after = Rejected::find(&*refused).and_then(Rejected::retry_after);
            assert!(retry_after.is_some() && retry_after <= told.open_for());
            pass(Duration::from_secs(33)).await;
        }
        assert_eq!(server.seen().len(), 2);
    }
    Ok(())
}

// promise: BR-16
#[tokio::test]
async fn a_server_that_makes_no_sense_is_open_as_long_as_any_other() -> Result {
    for (hint, least, most) in [
        ("retry-after: soon", 2_500, 5_000),
        ("retry-after: -1", 2_500, 5_000),
        ("retry-after: 1.5", 2_500, 5_000),
        ("retry-after: 1000000000000000000", 300_000, 300_000),
        ("retry-after: 0", 0, 0),
        (
            "date: Sun, 06 Nov 1994 08:49:37 GMT\r\nretry-after: Sun, 06 Nov 1994 08:49:07 GMT",
            0,
            0,
        ),
    ] {
        let server = Server::start(move |mut connection| async move {
            connection.read().await?;
            let head = format!("HTTP/1.1 503 _\r\n{hint}\r\ncontent-length: 0\r\n\r\n");
            connection.write(head).await
        })
        .await?;
        let told = Told::default();
        let layer = BreakerLayer::http()
            .consecutive_only(ONE)
            .on_event(told.sink());
        within(layer.layer(client(Http1)).oneshot(request(&server.url())?)).await?;
        let open_for = told.open_for().ok_or("it has not opened")?;
        let millis = Duration::from_millis;
        assert!(
            (millis(least)..=millis(most)).contains(&open_for),
            "{hint}: {open_for:?}"
        );
    }
    Ok(())
}

/// What a user's own client wraps around whatever went wrong.
#[derive(Debug)]
struct ShopError(BoxError);

impl fmt::Display for ShopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shop cannot be reached")
    }
}

impl Error for ShopError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

// promise: BR-19
#[tokio::test]
async fn a_refusal_is_found_at_the_top_of_a_stack() -> Result {
    // Nobody else gets a port that is bound, and nobody is let in before it listens.
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let address = socket.local_addr()?;
    let told = Told::default();
    let layer = BreakerLayer::http()
        .name("cards")
        .consecutive_only(THREE)
        .on_event(told.sink())
        .by_authority();
    let handles = layer.handles();
    let mut service = ServiceBuilder::new()
        .map_err(|error| ShopError(Box::new(ShopError(error))))
        .buffer::<Request<Full<Bytes>>>(4)
        .timeout(Duration::from_mins(1))
        .load_shed()
        .layer(RetryLayer::http().max_retries(0))
        .concurrency_limit(4)
        .layer(layer)
        .service(client::<ReplayBody<_>>(Http1));

    let url = format!("http://{address}/pay");
    for _ in 0..3 {
        let call = service.ready().await?.call(request(&url)?);
        let error = within(call).await.expect_err("nobody listens");
        assert!(Rejected::find(&error).is_none(), "{error:?}");
    }
    assert_eq!(told.calls(), [(Failure, Reason::Error); 3]);

    let call = service.ready().await?.call(request(&url)?);
    let error = within(call).await.expect_err("it is open");
    let rejected = Rejected::find(&error).ok_or("the refusal is lost")?;
    assert_eq!(rejected.by(), "breaker");
    assert_eq!(rejected.name(), Some("cards"));
    assert_eq!(rejected.key(), Some(&*address.to_string()));
    assert_eq!(rejected.reason(), "open: 3 calls failed in a row");
    let retry_after = rejected.retry_after().ok_or("it is known")?;
    assert!(Some(retry_after) <= told.open_for(), "{retry_after:?}");
    assert_eq!(
        rejected.to_string(),
        format!(
            "refused by breaker cards [{address}]: open: 3 calls failed in a row; try again after \
             {retry_after:.1?}"
        )
    );
    let handle = handles.get(&address.to_string()).ok_or("it is known")?;
    assert_eq!(handle.state(), State::Open);

    // Who comes when the time is over that a refusal names is not refused.
    pass(retry_after).await;
    let call = service.ready().await?.call(request(&url)?);
    let error = within(call).await.expect_err("still nobody listens");
    assert!(Rejected::find(&error).is_none(), "{error:?}");
    Ok(())
}

/// What the handlers of a server have seen, and its clients.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    handled: AtomicUsize,
}

/// Five routes that fail behind a layer, on a port of their own.
async fn five_routes<L>(layer: L, counts: &Arc<Counts>) -> Result<String>
where
    L: Layer<axum::routing::Route> + Clone + Send + Sync + 'static,
    L::Service: Service<axum::extract::Request, Error = BoxError> + Clone + Send + Sync + 'static,
    <L::Service as Service<axum::extract::Request>>::Response: IntoResponse + Send + 'static,
    <L::Service as Service<axum::extract::Request>>::Future: Send + 'static,
{
    let handled = counts.clone();
    let fails = move || {
        handled.handled.fetch_add(1, Ordering::SeqCst);
        future::ready(StatusCode::INTERNAL_SERVER_ERROR)
    };
    let refuses = |error: BoxError| {
        let refused = Rejected::find(&*error).is_some();
        assert!(refused, "{error}");
        future::ready(StatusCode::SERVICE_UNAVAILABLE)
    };
    let mut app = Router::new();
    for route in 0..5 {
        app = app.route(&format!("/{route}"), get(fails.clone()));
    }
    let app = app.layer(
        ServiceBuilder::new()
            .layer(HandleErrorLayer::new(refuses))
            .layer(layer),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let connections = counts.clone();
    let listener = listener.tap_io(move |_| {
        connections.connections.fetch_add(1, Ordering::SeqCst);
    });
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(format!("http://{address}/"))
}

/// Sends a request on each of forty connections, which stay open, and says what the answers were.
async fn on_forty_connections(url: &str) -> Result<Vec<StatusCode>> {
    let mut clients = Vec::new();
    let mut answers = Vec::new();
    for turn in 0..40 {
        let client = client(Http1);
        let call = client.request(request(&format!("{url}{}", turn % 5))?);
        answers.push(within(call).await?.status());
        clients.push(client);
    }
    Ok(answers)
}

// promise: BR-21
#[tokio::test]
async fn the_routes_and_connections_of_a_server_have_one_breaker() -> Result {
    let layer = BreakerLayer::http().consecutive_only(THREE);
    let (handle, counts) = (layer.handle(), Arc::default());
    let url = five_routes(layer, &counts).await?;
    let answers = on_forty_connections(&url).await?;
    assert!(answers[..3].iter().all(|status| *status == 500));
    assert!(answers[3..].iter().all(|status| *status == 503));
    assert_eq!(counts.handled.load(Ordering::SeqCst), 3);
    assert_eq!(counts.connections.load(Ordering::SeqCst), 40);
    assert_eq!(handle.state(), State::Open);

    let layer = BreakerLayer::http().consecutive_only(THREE).track_bodies();
    let (handle, counts) = (layer.handle(), Arc::default());
    let url = five_routes(layer, &counts).await?;
    on_forty_connections(&url).await?;
    assert_eq!(counts.handled.load(Ordering::SeqCst), 3, "tracked");
    assert_eq!(handle.state(), State::Open, "tracked");
    Ok(())
}

// promise: BR-21
#[tokio::test]
async fn the_routes_of_a_server_can_have_a_breaker_each() -> Result {
    let layer = BreakerLayer::http()
        .consecutive_only(THREE)
        .by_key(|request: &axum::extract::Request| request.uri().path().to_owned());
    let (handles, counts) = (layer.handles(), Arc::default());
    let url = five_routes(layer, &counts).await?;
    on_forty_connections(&url).await?;
    assert_eq!(counts.handled.load(Ordering::SeqCst), 15, "three on each");
    let open = handles.all().into_iter();
    assert_eq!(open.filter(|one| one.state() == State::Open).count(), 5);
    Ok(())
}
