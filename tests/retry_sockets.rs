//! What the retry layer does when real connections fail: hyper-util's client, and h2, over TCP.
//!
//! Each test has one thread. With several a retry without a delay may meet the connection of the attempt before while it
//! ends, or before its pool has it back, and what happens then is a matter of luck.

mod support;

use std::{
    io, iter,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use buttress::{
    Applied, BoxError, Kind, classify,
    retry::{Backoff, Budget, Cause, Event, Outcome, ReplayBody, RetryLayer},
};
use bytes::Bytes;
use futures_util::stream;
use h2::Reason;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, channel::Channel};
use hyper::body::Frame;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{
            HttpConnector,
            dns::{GaiResolver, Name},
        },
    },
    rt::{TokioExecutor, TokioIo},
};
use support::{Connection, Http2Connection, Seen, Server, Told, bytes, causes, within};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{Notify, mpsc},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wire {
    Http1,
    Http2,
}

use Wire::{Http1, Http2};

/// What a server does in place of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    /// It closes the connection when something has arrived, but reads nothing of it.
    CloseUnread,
    /// It reads the request, and ends the connection with a FIN.
    Fin,
    /// It reads the request, and ends the connection with a RST.
    Reset,
    /// It reads the request, and ends the connection within the head of its answer.
    PartialHead,
    /// It reads the request, and resets its stream.
    RstStream(Reason),
    /// It reads the request, and leaves its stream out of those that it will look at.
    GoAwayAbove(Reason),
    /// It reads the request, says that this is the last stream that it will look at, and ends the connection.
    GoAwayAt(Reason),
}

/// A layer that does not wait.
fn at_once() -> RetryLayer {
    RetryLayer::http()
        .backoff(Backoff::constant(Duration::ZERO))
        .throttled_backoff(Backoff::constant(Duration::ZERO))
        .budget(Budget::unlimited())
}

fn client<B>(wire: Wire, own_retries: bool) -> Client<HttpConnector, ReplayBody<B>>
where
    B: hyper::body::Body<Error: Into<BoxError>> + Send + Unpin,
{
    let mut client = Client::builder(TokioExecutor::new());
    client
        .http2_only(wire == Http2)
        .retry_canceled_requests(own_retries);
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    client.build(connector)
}

/// Answers requests, and fails `good..good + 2` of them.
async fn failing(wire: Wire, failure: Failure, good: usize) -> io::Result<Server> {
    let fails = move |turn| (good..good + 2).contains(&turn);
    Server::start(move |connection| async move {
        match wire {
            Http1 => fail_in_http1(connection, failure, fails).await,
            Http2 => fail_in_http2(connection, failure, fails).await,
        }
    })
    .await
}

async fn fail_in_http1(
    mut connection: Connection,
    failure: Failure,
    fails: impl Fn(usize) -> bool,
) -> io::Result<()> {
    while connection.arrives().await? {
        let turn = connection.turn();
        if !fails(turn) {
            connection.read().await?;
            connection.answer(200, b"").await?;
            continue;
        }
        if failure == Failure::CloseUnread {
            return Ok(());
        }
        connection.read().await?;
        return match failure {
            Failure::Reset => connection.reset(),
            Failure::PartialHead => {
                connection.write("HTTP/1.1 200 OK\r\ncontent-le").await?;
                connection.finish().await
            }
            _ => connection.finish().await,
        };
    }
    Ok(())
}

async fn fail_in_http2(
    mut connection: Connection,
    failure: Failure,
    fails: impl Fn(usize) -> bool,
) -> io::Result<()> {
    if failure == Failure::CloseUnread {
        connection.arrives().await?;
        if fails(connection.turn()) {
            return Ok(());
        }
    }
    let mut connection = Http2Connection::accept(connection, &[]).await?;
    loop {
        let (stream, _) = connection.read().await?;
        if !fails(connection.0.turn()) {
            connection.answer(stream, true).await?;
            continue;
        }
        match failure {
            Failure::RstStream(reason) => connection.rst_stream(stream, reason).await?,
            Failure::GoAwayAbove(reason) => {
                connection.go_away(stream.saturating_sub(2), reason).await?;
                return connection.0.closes().await.map(drop);
            }
            Failure::GoAwayAt(reason) => {
                connection.go_away(stream, reason).await?;
                return connection.0.finish().await;
            }
            Failure::Reset => return connection.0.reset(),
            _ => return connection.0.finish().await,
        }
    }
}

/// What became of a call, and of its requests.
#[derive(Debug)]
struct Trial {
    result: Result<StatusCode, String>,
    outcome: Outcome,
    sends: u32,
    /// What the server has read.
    seen: Vec<Seen>,
}

async fn trial(
    (wire, failure): (Wire, Failure),
    used: bool,
    own_retries: bool,
    request: Request<Full<Bytes>>,
) -> Result<Trial> {
    let server = failing(wire, failure, usize::from(used)).await?;
    let told = Told::default();
    let mut service = ServiceBuilder::new()
        .layer(at_once().on_event(told.sink()))
        .service(client(wire, own_retries));

    if used {
        let before = Request::get(server.url()).body(Full::default())?;
        let answer = within(service.ready().await?.call(before)).await?;
        answer.into_body().collect().await?;
    }
    let (mut parts, body) = request.into_parts();
    parts.uri = server.url().parse()?;
    let answer = within(
        service
            .ready()
            .await?
            .call(Request::from_parts(parts, body)),
    )
    .await;
    let (outcome, sends) = told.finished().ok_or("the call has not ended")?;
    Ok(Trial {
        result: answer
            .map(|answer| answer.status())
            .map_err(|error| causes(&error)),
        outcome,
        sends,
        seen: server.seen().split_off(usize::from(used)),
    })
}

fn post(body: &Bytes) -> Result<Request<Full<Bytes>>> {
    Ok(Request::post("/").body(Full::new(body.clone()))?)
}

/// A row of the table: what a POST without a key and a GET come to when their connection fails twice, on a connection of
/// their own and on one that was used before, with hyper-util's own retries and without.
async fn row(wire: Wire, failure: Failure, post_again: bool) -> Result {
    let read = failure != Failure::CloseUnread;
    for (used, own_retries) in [(false, false), (false, true), (true, false), (true, true)] {
        // In HTTP/2 more arrives on a used connection than requests.
        if used && wire == Http2 && !read {
            continue;
        }
        let fails = |request| trial((wire, failure), used, own_retries, request);

        let get = fails(Request::get("/").body(Full::default())?).await?;
        let what = format!("{wire:?} {failure:?} used:{used} own_retries:{own_retries}");
        assert_eq!(get.outcome, Outcome::OkAfterRetry, "GET {what}: {get:?}");
        assert_eq!(
            (get.result, get.sends),
            (Ok(StatusCode::OK), 3),
            "GET {what}"
        );

        for body in [bytes(5), bytes(4_000), bytes(20_000)] {
            let trial = fails(post(&body)?).await?;
            let what = format!("POST {} {what}: {:?}", body.len(), trial.result);
            assert!(trial.seen.iter().all(|seen| seen.body == body), "{what}");
            if post_again {
                assert_eq!(trial.outcome, Outcome::OkAfterRetry, "{what}");
                assert_eq!((trial.sends, trial.seen.len()), (3, 3), "{what}");
            } else {
                assert_eq!(trial.outcome, Outcome::NotIdempotent, "{what}");
                assert_eq!(
                    (trial.sends, trial.seen.len()),
                    (1, usize::from(read)),
                    "{what}"
                );
            }
        }
    }
    Ok(())
}

// promise: RT-19
#[tokio::test]
async fn a_connection_that_ends_before_it_is_read_may_have_been_read() -> Result {
    row(Http1, Failure::CloseUnread, false).await?;
    row(Http2, Failure::CloseUnread, false).await
}

// promise: RT-19
#[tokio::test]
async fn a_connection_that_ends_at_once_may_have_been_read() -> Result {
    // The client may have begun to write, or may have seen the end before: it makes no difference.
    for wire in [Http1, Http2] {
        for method in [Method::POST, Method::GET] {
            let server = Server::start(move |connection| async move {
                if connection.number < 2 {
                    Ok(())
                } else {
                    answering(wire, connection).await
                }
            })
            .await?;
            let told = Told::default();
            let service = at_once().on_event(told.sink()).layer(client(wire, false));
            let request = Request::builder().method(&method).uri(server.url());
            let answer = within(service.oneshot(request.body(Full::new(bytes(5)))?)).await;
            let (outcome, applied) = if method == Method::GET {
                assert!(answer.is_ok());
                ((Outcome::OkAfterRetry, 3), 1)
            } else {
                assert!(answer.is_err());
                ((Outcome::NotIdempotent, 1), 0)
            };
            assert_eq!(told.finished(), Some(outcome), "{wire:?} {method}");
            assert_eq!(server.seen().len(), applied, "{wire:?} {method}");
        }
    }
    Ok(())
}

// promise: RT-19
#[tokio::test]
async fn a_request_that_was_read_before_the_connection_ended_may_have_been_applied() -> Result {
    row(Http1, Failure::Fin, false).await?;
    row(Http2, Failure::Fin, false).await
}

// promise: RT-19
#[tokio::test]
async fn a_request_that_was_read_before_the_connection_was_reset_may_have_been_applied() -> Result {
    row(Http1, Failure::Reset, false).await?;
    row(Http2, Failure::Reset, false).await
}

// promise: RT-19
#[tokio::test]
async fn a_request_whose_answer_had_begun_may_have_been_applied() -> Result {
    row(Http1, Failure::PartialHead, false).await
}

// promise: RT-19
#[tokio::test]
async fn a_refused_stream_was_not_looked_at() -> Result {
    row(Http2, Failure::RstStream(Reason::REFUSED_STREAM), true).await
}

// promise: RT-19
#[tokio::test]
async fn a_stream_that_was_reset_for_another_reason_may_have_been_applied() -> Result {
    row(Http2, Failure::RstStream(Reason::CANCEL), false).await?;
    row(Http2, Failure::RstStream(Reason::INTERNAL_ERROR), false).await
}

// promise: RT-19
#[tokio::test]
async fn a_stream_above_a_goaway_was_not_looked_at() -> Result {
    for reason in [
        Reason::NO_ERROR,
        Reason::INTERNAL_ERROR,
        Reason::ENHANCE_YOUR_CALM,
    ] {
        row(Http2, Failure::GoAwayAbove(reason), true).await?;
    }
    Ok(())
}

// promise: RT-19
#[tokio::test]
async fn a_stream_at_or_below_a_goaway_may_have_been_applied() -> Result {
    for reason in [
        Reason::NO_ERROR,
        Reason::INTERNAL_ERROR,
        Reason::ENHANCE_YOUR_CALM,
    ] {
        row(Http2, Failure::GoAwayAt(reason), false).await?;
    }
    Ok(())
}

// promise: RT-19
#[tokio::test]
async fn what_met_a_refused_connection_was_not_sent() -> Result {
    for wire in [Http1, Http2] {
        for request in [
            Request::get("/").body(Full::default())?,
            post(&bytes(5))?,
            post(&bytes(20_000))?,
        ] {
            // Nobody else gets a port that is bound, and nobody is let in before it listens.
            let socket = TcpSocket::new_v4()?;
            socket.bind("127.0.0.1:0".parse()?)?;
            let address = socket.local_addr()?;
            let (socket, server) = (Mutex::new(Some(socket)), Arc::new(Mutex::new(None)));
            let opened = server.clone();
            let open = move |event: &Event| {
                if let Event::Retry { number: 2, .. } = event {
                    let socket = socket.lock().unwrap().take().unwrap();
                    let listener = socket.listen(8).unwrap();
                    let server =
                        Server::on(listener, move |connection| answering(wire, connection));
                    *opened.lock().unwrap() = Some(server.unwrap());
                }
            };
            let told = Told::default();
            let layer = at_once().on_event(told.sink()).on_event(open);
            let service = layer.layer(client(wire, true));

            let (mut parts, body) = request.into_parts();
            parts.uri = format!("http://{address}/").parse()?;
            let expected = body.clone().collect().await?.to_bytes();
            let answer = within(service.oneshot(Request::from_parts(parts, body))).await?;
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(told.finished(), Some((Outcome::OkAfterRetry, 3)));
            let seen = server.lock().unwrap().as_ref().unwrap().seen();
            assert_eq!((seen.len(), &seen[0].body[..]), (1, &expected[..]));
        }
    }
    Ok(())
}

/// Answers every request.
async fn answering(wire: Wire, connection: Connection) -> io::Result<()> {
    match wire {
        Http1 => fail_in_http1(connection, Failure::Fin, |_| false).await,
        Http2 => fail_in_http2(connection, Failure::Fin, |_| false).await,
    }
}

// promise: RT-19
#[tokio::test]
async fn what_met_an_unknown_name_was_not_sent() -> Result {
    let server = Server::start(|connection| answering(Http1, connection)).await?;
    let (lookups, address) = (Arc::new(AtomicUsize::new(0)), server.address);
    let looked_up = lookups.clone();
    let third_time = service_fn(move |_: Name| {
        let found = looked_up.fetch_add(1, Ordering::SeqCst) % 3 == 2;
        let unknown = || io::Error::other("Name or service not known");
        std::future::ready(if found {
            Ok(iter::once(address))
        } else {
            Err(unknown())
        })
    });
    let client = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(HttpConnector::new_with_resolver(third_time));
    let service = at_once().layer(client);

    for method in [Method::POST, Method::GET] {
        let request = Request::builder()
            .method(method)
            .uri("http://shop.invalid/");
        let answer = within(
            service
                .clone()
                .oneshot(request.body(Full::<Bytes>::default())?),
        )
        .await?;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert_eq!(
        (lookups.load(Ordering::SeqCst), server.seen().len()),
        (6, 2)
    );
    Ok(())
}

// promise: RT-19
#[tokio::test]
async fn a_name_that_the_system_does_not_know_is_asked_for_again() -> Result {
    let lookups = Arc::new(AtomicUsize::new(0));
    let looked_up = lookups.clone();
    let system = service_fn(move |name: Name| {
        looked_up.fetch_add(1, Ordering::SeqCst);
        GaiResolver::new().oneshot(name)
    });
    let client =
        Client::builder(TokioExecutor::new()).build(HttpConnector::new_with_resolver(system));
    let told = Told::default();
    let service = at_once().on_event(told.sink()).layer(client);

    // A label of more than 63 letters is refused before the network is asked.
    let name = format!("http://{}.invalid/", "x".repeat(64));
    let post = Request::post(name).body(Full::<Bytes>::default())?;
    let answer = within(service.oneshot(post)).await;
    assert!(answer.is_err());
    assert_eq!(told.finished(), Some((Outcome::Attempts, 3)));
    assert_eq!(lookups.load(Ordering::SeqCst), 3);
    Ok(())
}

// promise: RT-19
#[tokio::test]
async fn what_met_no_connection_of_a_connector_of_one_s_own_was_not_sent() -> Result {
    let connects = Arc::new(AtomicUsize::new(0));
    let connected = connects.clone();
    let connector = service_fn(move |_| {
        connected.fetch_add(1, Ordering::SeqCst);
        let failed = io::Error::other("the certificate has expired");
        std::future::ready(Err::<TokioIo<TcpStream>, _>(failed))
    });
    let service = at_once().layer(Client::builder(TokioExecutor::new()).build(connector));
    let post = Request::post("http://shop.invalid/").body(Full::<Bytes>::default())?;
    assert!(within(service.oneshot(post)).await.is_err());
    assert_eq!(connects.load(Ordering::SeqCst), 3);
    Ok(())
}

/// Lets three requests go to one HTTP/2 connection that takes one at a time, and ends the connection: the first is under
/// way then, the second waits for its turn, and the third has not got that far.
async fn in_a_queue(
    own_retries: bool,
    last: Method,
) -> Result<Vec<(Option<StatusCode>, Outcome, u32)>> {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    let (started, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (start, ended) = (started.clone(), end.clone());
    let server = Server::start(move |connection| {
        let (start, ended) = (start.clone(), ended.clone());
        async move {
            let mut connection =
                Http2Connection::accept(connection, &[(MAX_CONCURRENT_STREAMS, 1)]).await?;
            loop {
                let (stream, _) = connection.read().await?;
                if connection.0.number > 0 || connection.0.turn() == 0 {
                    connection.answer(stream, true).await?;
                } else {
                    start.notify_one();
                    ended.notified().await;
                    return connection.0.finish().await;
                }
            }
        }
    })
    .await?;

    let client = client(Http2, own_retries);
    let call = |method| {
        let request = Request::builder()
            .method(method)
            .uri(server.url())
            .body(Full::<Bytes>::default());
        let told = Told::default();
        let service = at_once().on_event(told.sink()).layer(client.clone());
        async move {
            let answer = within(service.oneshot(request?)).await;
            let (outcome, sends) = told.finished().ok_or("the call has not ended")?;
            Ok((answer.map(|answer| answer.status()).ok(), outcome, sends))
        }
    };
    call(Method::GET).await?;
    let queue = async {
        within(started.notified()).await;
        let end = async {
            // Each of them goes as far as it can.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            end.notify_one();
        };
        tokio::join!(call(Method::GET), call(last), end)
    };
    let (first, (second, third, ())) = tokio::join!(call(Method::GET), queue);
    [first, second, third].into_iter().collect()
}

// promise: RT-19
#[tokio::test]
async fn a_request_that_waits_for_its_turn_is_sent_again_when_its_connection_ends() -> Result {
    for method in [Method::GET, Method::POST] {
        for own_retries in [false, true] {
            let calls = in_a_queue(own_retries, method.clone()).await?;
            let ok = Some(StatusCode::OK);
            assert_eq!(
                calls[0],
                (ok, Outcome::OkAfterRetry, 2),
                "{method} {own_retries}"
            );
            assert_eq!(
                calls[1],
                (ok, Outcome::OkAfterRetry, 2),
                "{method} {own_retries}"
            );
            // This one hyper-util gets back as it was, and sends again by itself unless told not to.
            let third = match (own_retries, &method) {
                (true, _) => (ok, Outcome::Ok, 1),
                (false, &Method::POST) => (None, Outcome::NotIdempotent, 1),
                (false, _) => (ok, Outcome::OkAfterRetry, 2),
            };
            assert_eq!(calls[2], third, "{method} {own_retries}");
        }
    }
    Ok(())
}

/// The same request by three clients, each of which wraps the errors of hyper and h2 in its own way.
#[derive(Clone, Copy, Debug)]
enum By {
    HyperUtil,
    Reqwest,
    Tonic,
}

impl By {
    /// Sends a POST, and says how its error is judged.
    async fn judged(self, wire: Wire, url: &str, broken_body: bool) -> Result<(Kind, Applied)> {
        let chunk = Ok(Frame::data(bytes(5)));
        let end = broken_body.then(|| Err(io::Error::other("the caller cannot read its file")));
        let body = StreamBody::new(stream::iter([chunk].into_iter().chain(end)));
        let error = match self {
            Self::HyperUtil => {
                let mut client = Client::builder(TokioExecutor::new());
                let client = client.http2_only(wire == Http2).build_http();
                let answer = within(client.request(Request::post(url).body(body)?)).await;
                BoxError::from(answer.expect_err("it fails"))
            }
            Self::Reqwest => {
                let mut client = reqwest::Client::builder()
                    .retry(reqwest::retry::never())
                    .no_proxy();
                if wire == Http2 {
                    client = client.http2_prior_knowledge();
                }
                let request = client.build()?.post(url).body(reqwest::Body::wrap(body));
                BoxError::from(within(request.send()).await.expect_err("it fails"))
            }
            Self::Tonic => {
                let channel = tonic::transport::Endpoint::try_from(url.to_owned())?.connect_lazy();
                let request = Request::post(url).body(tonic::body::Body::new(body))?;
                BoxError::from(
                    within(channel.oneshot(request))
                        .await
                        .expect_err("it fails"),
                )
            }
        };
        let verdict = classify::error(&*error);
        Ok((verdict.kind, verdict.applied))
    }
}

const UNSENT: (Kind, Applied) = (Kind::Transient, Applied::No);
const LOST: (Kind, Applied) = (Kind::Transient, Applied::Maybe);
const OURS: (Kind, Applied) = (Kind::Ignored, Applied::Maybe);

// promise: RT-22
#[tokio::test]
async fn what_happened_is_found_in_the_errors_of_every_client() -> Result {
    for (wire, failure, verdict) in [
        (Http1, Failure::Fin, LOST),
        (Http1, Failure::Reset, LOST),
        (Http1, Failure::PartialHead, LOST),
        (Http2, Failure::Fin, LOST),
        (Http2, Failure::RstStream(Reason::CANCEL), LOST),
        (Http2, Failure::GoAwayAt(Reason::NO_ERROR), LOST),
        (Http2, Failure::GoAwayAbove(Reason::NO_ERROR), UNSENT),
        (
            Http2,
            Failure::GoAwayAbove(Reason::ENHANCE_YOUR_CALM),
            UNSENT,
        ),
        (Http2, Failure::RstStream(Reason::REFUSED_STREAM), UNSENT),
    ] {
        for by in [By::HyperUtil, By::Reqwest, By::Tonic] {
            if wire == Http1 && matches!(by, By::Tonic) {
                continue;
            }
            let server = failing(wire, failure, 0).await?;
            let judged = by.judged(wire, &server.url(), false).await?;
            assert_eq!(judged, verdict, "{by:?} {failure:?}");
        }
    }
    Ok(())
}

// promise: RT-22
#[tokio::test]
async fn a_connection_that_was_not_made_is_found_in_the_errors_of_every_client() -> Result {
    let closed = TcpSocket::new_v4()?;
    closed.bind("127.0.0.1:0".parse()?)?;
    let refused = format!("http://{}/", closed.local_addr()?);
    let unknown = format!("http://{}.invalid/", "x".repeat(64));
    for url in [refused, unknown] {
        for by in [By::HyperUtil, By::Reqwest, By::Tonic] {
            assert_eq!(by.judged(Http2, &url, false).await?, UNSENT, "{by:?} {url}");
        }
    }
    Ok(())
}

// promise: RT-22
#[tokio::test]
async fn a_body_that_fails_on_this_side_is_found_in_the_errors_of_every_client() -> Result {
    for wire in [Http1, Http2] {
        for by in [By::HyperUtil, By::Reqwest, By::Tonic] {
            if wire == Http1 && matches!(by, By::Tonic) {
                continue;
            }
            let server = Server::start(move |connection| answering(wire, connection)).await?;
            assert_eq!(
                by.judged(wire, &server.url(), true).await?,
                OURS,
                "{by:?} {wire:?}"
            );
        }
    }
    Ok(())
}

/// Answers the first requests with these statuses, and the later ones with 200.
async fn answers(statuses: &'static [u16]) -> io::Result<Server> {
    Server::start(move |mut connection| async move {
        while connection.arrives().await? {
            connection.read().await?;
            let status = statuses.get(connection.turn()).copied().unwrap_or(200);
            connection.answer(status, b"").await?;
        }
        Ok(())
    })
    .await
}

// promise: RT-21
#[tokio::test]
async fn a_post_without_a_key_is_sent_once_whatever_the_answer() -> Result {
    for statuses in [&[500][..], &[501], &[505], &[429], &[503]] {
        let (server, told) = (answers(statuses).await?, Told::default());
        let service = at_once().on_event(told.sink()).layer(client(Http1, true));
        let post = Request::post(server.url()).body(Full::new(bytes(5)))?;
        let answer = within(service.oneshot(post)).await?;
        assert_eq!(answer.status(), statuses[0]);
        assert_eq!(
            told.finished().map(|(_, sends)| sends),
            Some(1),
            "{statuses:?}"
        );
        assert_eq!(server.seen().len(), 1, "{statuses:?}");
    }
    Ok(())
}

// promise: RT-21
#[tokio::test]
async fn a_tunnel_is_not_asked_for_again_after_an_answer() -> Result {
    for statuses in [&[429][..], &[502], &[503], &[504]] {
        for method in [Method::GET, Method::PUT, Method::POST, Method::CONNECT] {
            let (server, told) = (answers(statuses).await?, Told::default());
            let service = at_once().on_event(told.sink()).layer(client(Http1, true));
            let request = Request::builder().method(&method);
            let request = if method == Method::CONNECT {
                request.uri(server.address.to_string())
            } else {
                request
                    .uri(server.url())
                    .header("connection", "upgrade")
                    .header("upgrade", "websocket")
                    .header("idempotency-key", "1")
            };
            let answer = within(service.oneshot(request.body(Full::<Bytes>::default())?)).await?;
            assert_eq!(answer.status(), statuses[0]);
            assert_eq!(
                told.finished().map(|(_, sends)| sends),
                Some(1),
                "{method} {statuses:?}"
            );
            assert_eq!(server.seen().len(), 1, "{method} {statuses:?}");
        }
    }
    Ok(())
}

const KEY: &[u8] = b"\"8e03978e-40d5-43dd-bc93-6894a57f9324\" \xe9 a  B";

fn keyed_post(url: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
    let request = Request::post(url).header("idempotency-key", KEY);
    Ok(request.body(Full::new(body))?)
}

// promise: RT-20
#[tokio::test]
async fn a_post_with_a_key_is_sent_again_with_the_same_one() -> Result {
    let statuses: [&[u16]; 8] = [
        &[408, 408],
        &[409, 409],
        &[425, 425],
        &[429, 429],
        &[500, 500],
        &[502, 502],
        &[503, 503],
        &[504, 504],
    ];
    for statuses in statuses {
        let (server, told) = (answers(statuses).await?, Told::default());
        let wait = Backoff::constant(Duration::from_millis(1));
        let layer = at_once()
            .backoff(wait)
            .throttled_backoff(wait)
            .on_event(told.sink());
        let service = layer.layer(client(Http1, true));
        let answer = within(service.oneshot(keyed_post(&server.url(), bytes(5_000))?)).await?;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(
            told.finished(),
            Some((Outcome::OkAfterRetry, 3)),
            "{statuses:?}"
        );
        for event in told.all() {
            if let Event::Retry { delay, cause, .. } = event {
                assert_eq!(delay, wait.cap(), "{statuses:?}");
                let status = StatusCode::from_u16(statuses[0])?;
                assert_eq!(cause, Cause::Response(Some(status)));
            }
        }
        let seen = server.seen();
        assert_eq!(seen.len(), 3);
        for request in seen {
            assert_eq!(request.header("idempotency-key"), Some(KEY));
            assert_eq!(request.body, bytes(5_000));
        }
    }
    Ok(())
}

// promise: RT-20
#[tokio::test]
async fn a_post_with_a_key_is_sent_once_when_the_server_has_decided() -> Result {
    for statuses in [&[400][..], &[422], &[501]] {
        let (server, told) = (answers(statuses).await?, Told::default());
        let service = at_once().on_event(told.sink()).layer(client(Http1, true));
        let answer = within(service.oneshot(keyed_post(&server.url(), bytes(5))?)).await?;
        assert_eq!(answer.status(), statuses[0]);
        assert_eq!(
            told.finished(),
            Some((Outcome::NotRetryable, 1)),
            "{statuses:?}"
        );
        assert_eq!(server.seen().len(), 1, "{statuses:?}");
    }
    Ok(())
}

// promise: RT-20
#[tokio::test]
async fn a_post_with_a_key_is_sent_again_when_it_may_have_been_applied() -> Result {
    for (wire, failure) in [
        (Http1, Failure::CloseUnread),
        (Http1, Failure::Fin),
        (Http1, Failure::Reset),
        (Http1, Failure::PartialHead),
        (Http2, Failure::Fin),
        (Http2, Failure::RstStream(Reason::CANCEL)),
        (Http2, Failure::RstStream(Reason::INTERNAL_ERROR)),
        (Http2, Failure::GoAwayAt(Reason::NO_ERROR)),
    ] {
        let trial = trial((wire, failure), true, true, keyed_post("/", bytes(5_000))?).await?;
        assert_eq!(
            (trial.outcome, trial.sends),
            (Outcome::OkAfterRetry, 3),
            "{failure:?}"
        );
        let read = if failure == Failure::CloseUnread {
            1
        } else {
            3
        };
        assert_eq!(trial.seen.len(), read, "{failure:?}");
        for request in trial.seen {
            assert_eq!(request.body, bytes(5_000), "{failure:?}");
            if wire == Http1 {
                assert_eq!(request.header("idempotency-key"), Some(KEY), "{failure:?}");
            }
        }
    }
    Ok(())
}

const CHECKSUM: HeaderName = HeaderName::from_static("x-checksum");

/// The chunks of an upload.
fn chunks(all: &Bytes) -> impl Iterator<Item = Bytes> {
    (0..all.len())
        .step_by(1_000)
        .map(|start| all.slice(start..all.len().min(start + 1_000)))
}

fn put<B>(url: &str, body: B) -> Result<Request<B>> {
    Ok(Request::put(url)
        .header("trailer", "x-checksum")
        .body(body)?)
}

// promise: RT-25
#[tokio::test]
async fn an_upload_that_breaks_off_half_way_is_sent_again_to_the_letter() -> Result {
    for wire in [Http1, Http2] {
        let all = bytes(12_000);
        let (failed, mut fails) = mpsc::unbounded_channel();
        let server = Server::start(move |mut connection| {
            let failed = failed.clone();
            async move {
                // The first attempt ends after 4 chunks, the second after 8.
                let number = connection.number;
                let part = 4 * (number + 1);
                match (wire, number) {
                    (Http1, 2) => {
                        connection.read().await?;
                        connection.answer(200, b"").await
                    }
                    (Http1, _) => {
                        connection.head().await?;
                        for _ in 0..part {
                            connection.chunk().await?;
                        }
                        let ended = connection.reset();
                        let _ = failed.send(());
                        ended
                    }
                    (Http2, 2) => {
                        let mut connection = Http2Connection::accept(connection, &[]).await?;
                        let (stream, _) = connection.read().await?;
                        connection.answer(stream, true).await
                    }
                    (Http2, _) => {
                        let mut connection = Http2Connection::accept(connection, &[]).await?;
                        connection.read_up_to(part * 1_000).await?;
                        let ended = connection.0.reset();
                        let _ = failed.send(());
                        ended
                    }
                }
            }
        })
        .await?;

        let told = Told::default();
        let service = at_once().on_event(told.sink()).layer(client(wire, true));
        let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
        let upload = async {
            for (number, chunk) in chunks(&all).enumerate() {
                if number == 4 || number == 8 {
                    fails.recv().await;
                }
                sender.send_data(chunk).await?;
            }
            let checksum = HeaderMap::from_iter([(CHECKSUM, HeaderValue::from_static("of all"))]);
            sender.send_trailers(checksum).await?;
            drop(sender);
            Ok::<_, BoxError>(())
        };
        let call = service.oneshot(put(&server.url(), body)?);
        let (answer, uploaded) = within(async { tokio::join!(call, upload) }).await;
        uploaded?;
        assert_eq!(answer?.status(), StatusCode::OK);
        assert_eq!(told.finished(), Some((Outcome::OkAfterRetry, 3)));
        let seen = server.seen();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].body, all);
        if wire == Http1 {
            assert_eq!(seen[0].trailers, b"x-checksum: of all\r\n\r\n");
        } else {
            assert!(!seen[0].trailers.is_empty());
        }
    }
    Ok(())
}

// promise: RT-25
#[tokio::test]
async fn every_replay_is_the_same_to_the_letter() -> Result {
    for wire in [Http1, Http2] {
        let server = failing(wire, Failure::Fin, 0).await?;
        let checksum = HeaderMap::from_iter([(CHECKSUM, HeaderValue::from_static("of all"))]);
        let all = bytes(12_000);
        let frames = chunks(&all)
            .map(Frame::data)
            .chain([Frame::trailers(checksum)]);
        let frames = frames.map(Ok::<_, BoxError>).collect::<Vec<_>>();
        let service = at_once().layer(client(wire, true));
        let upload = put(&server.url(), StreamBody::new(stream::iter(frames)))?;
        let answer = within(service.oneshot(upload)).await?;
        assert_eq!(answer.status(), StatusCode::OK);

        // On connections of their own even the compressed headers of HTTP/2 are the same.
        let seen = server.seen();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|request| *request == seen[0]), "{wire:?}");
        assert_eq!(seen[0].body, all);
        assert!(!seen[0].trailers.is_empty());
    }
    Ok(())
}

// promise: RT-25
#[tokio::test]
async fn a_replay_has_the_length_that_was_announced() -> Result {
    let server = failing(Http1, Failure::Reset, 0).await?;
    let service = at_once().layer(client(Http1, true));
    let upload = Request::put(server.url()).body(Full::new(bytes(12_000)))?;
    within(service.oneshot(upload)).await?;
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| *request == seen[0]));
    assert_eq!(seen[0].header("content-length"), Some(&b"12000"[..]));
    Ok(())
}

// promise: RT-26
#[tokio::test]
async fn an_answer_during_an_upload_moves_the_upload_to_the_next_attempt() -> Result {
    for wire in [Http1, Http2] {
        let all = bytes(12_000);
        let (went_on, mut goes_on) = mpsc::unbounded_channel();
        let (ended, mut ends) = mpsc::unbounded_channel();
        let server = Server::start(move |mut connection| {
            let (went_on, ended) = (went_on.clone(), ended.clone());
            async move {
                let first = connection.turn() == 0;
                match wire {
                    Http1 if first => {
                        connection.head().await?;
                        for _ in 0..4 {
                            connection.chunk().await?;
                        }
                        connection.answer(503, b"").await?;
                        // The upload goes on only when this attempt has given it up.
                        let _ = ended.send(connection.closes().await?);
                        let _ = went_on.send(());
                        Ok(())
                    }
                    Http1 => {
                        connection.read().await?;
                        connection.answer(200, b"").await
                    }
                    Http2 => {
                        let mut connection = Http2Connection::accept(connection, &[]).await?;
                        let (stream, _) = connection.read_up_to(4_000).await?;
                        connection.answer(stream, false).await?;
                        let _ = went_on.send(());
                        // What comes of the first stream is passed over.
                        let (stream, _) = connection.read().await?;
                        connection.answer(stream, true).await
                    }
                }
            }
        })
        .await?;

        let told = Told::default();
        let service = at_once().on_event(told.sink()).layer(client(wire, true));
        let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
        let upload = async {
            for (number, chunk) in chunks(&all).enumerate() {
                if number == 4 {
                    goes_on.recv().await;
                }
                sender.send_data(chunk).await?;
            }
            drop(sender);
            Ok::<_, BoxError>(())
        };
        let call = service.oneshot(Request::put(server.url()).body(body)?);
        let (answer, uploaded) = within(async { tokio::join!(call, upload) }).await;
        uploaded?;
        assert_eq!(answer?.status(), StatusCode::OK);
        assert_eq!(told.finished(), Some((Outcome::OkAfterRetry, 2)));
        let seen = server.seen();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].body, all);
        if wire == Http1 {
            // Neither the rest of the upload nor the mark of its end.
            assert_eq!(within(ends.recv()).await, Some(Vec::new()));
        }
    }
    Ok(())
}

// promise: RT-26
#[tokio::test]
async fn an_answer_to_an_upload_that_is_stuck_moves_the_upload_to_the_next_attempt() -> Result {
    const ALL: usize = 8 << 20;
    let done = Arc::new(Notify::new());
    let is_done = done.clone();
    let server = Server::start(move |mut connection| {
        let done = is_done.clone();
        async move {
            if connection.number == 0 {
                // It answers the head, and reads nothing more while the other attempt is under way.
                connection.head().await?;
                connection.answer(503, b"").await?;
                done.notified().await;
                return Ok(());
            }
            connection.read().await?;
            connection.answer(200, b"").await
        }
    })
    .await?;

    let all = bytes(ALL);
    let chunks = (0..ALL)
        .step_by(64 << 10)
        .map(|start| all.slice(start..start + (64 << 10)));
    let frames = chunks
        .map(Frame::data)
        .map(Ok::<_, BoxError>)
        .collect::<Vec<_>>();
    let service = at_once().replay_limit(ALL).layer(client(Http1, true));
    let upload = Request::put(server.url()).body(StreamBody::new(stream::iter(frames)))?;
    let answer = within(service.oneshot(upload)).await?;
    done.notify_one();
    assert_eq!(answer.status(), StatusCode::OK);
    let seen = server.seen();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].body == all, "the upload was changed");
    Ok(())
}

// promise: RT-27
#[tokio::test]
async fn thirty_requests_that_fail_need_one_connection() -> Result {
    for size in [100, 1_024, 16 * 1_024, 64 * 1_024] {
        let body = bytes(size);
        let expected = body.clone();
        let head_seen = Arc::new(Notify::new());
        let seen = head_seen.clone();
        let server = Server::start(move |mut connection| {
            let (head_seen, body) = (head_seen.clone(), body.clone());
            async move {
                while connection.arrives().await? {
                    connection.read().await?;
                    let head = format!("HTTP/1.1 503 _\r\ncontent-length: {size}\r\n\r\n");
                    connection.write(head).await?;
                    head_seen.notified().await;
                    connection.write(&body).await?;
                }
                Ok(())
            }
        })
        .await?;

        let told = Told::default();
        // The connection must be back in its pool by then.
        let wait = Backoff::constant(Duration::from_millis(5));
        let mut service = ServiceBuilder::new()
            .layer(
                at_once()
                    .backoff(wait)
                    // A busy machine may need more than 50 ms for what takes much less elsewhere.
                    .drain_limit(64 << 10, Duration::from_secs(5))
                    .on_event(told.sink()),
            )
            .map_response(move |answer| {
                seen.notify_one();
                answer
            })
            .service(client(Http1, true));
        for _ in 0..10 {
            let get = Request::get(server.url()).body(Full::<Bytes>::default())?;
            let answer = within(service.ready().await?.call(get)).await?;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(told.finished(), Some((Outcome::Attempts, 3)));
            let body = within(answer.into_body().collect()).await?.to_bytes();
            assert_eq!(body, expected);
            tokio::time::sleep(wait.cap()).await;
        }
        assert_eq!(
            (server.seen().len(), server.connections()),
            (30, 1),
            "{size} bytes"
        );
    }
    Ok(())
}

/// A server whose first answer announces `announced` bytes and has `arriving`, after which it waits for the client to
/// hang up. The other answers are 200.
async fn never_ending(
    announced: usize,
    arriving: usize,
) -> io::Result<(Server, mpsc::UnboundedReceiver<usize>)> {
    let (hung_up, hang_ups) = mpsc::unbounded_channel();
    let server = Server::start(move |mut connection| {
        let hung_up = hung_up.clone();
        async move {
            connection.read().await?;
            if connection.number > 0 {
                return connection.answer(200, b"").await;
            }
            let head = format!("HTTP/1.1 503 _\r\ncontent-length: {announced}\r\n\r\n");
            connection.write(head).await?;
            // It hangs up with a RST if there is something that it has not read.
            if connection.write(bytes(arriving)).await.is_ok() {
                let _ = connection.closes().await;
            }
            let _ = hung_up.send(connection.number);
            Ok(())
        }
    })
    .await?;
    Ok((server, hang_ups))
}

// promise: RT-27
#[tokio::test]
async fn an_answer_that_does_not_end_is_dropped_before_the_backoff() -> Result {
    for (announced, arriving) in [
        (200, 100),
        (65_536, 65_535),
        (1 << 20, 65_537),
        (1 << 20, 1 << 20),
    ] {
        let (server, mut hang_ups) = never_ending(announced, arriving).await?;
        let told = Told::default();
        let wait = Backoff::constant(Duration::from_hours(1));
        let service = at_once()
            .backoff(wait)
            .on_event(told.sink())
            .layer(client(Http1, true));
        let get = Request::get(server.url()).body(Full::<Bytes>::default())?;
        let mut call = Box::pin(service.oneshot(get));
        let hung_up = within(async {
            tokio::select! {
                _ = &mut call => None,
                number = hang_ups.recv() => number,
            }
        });
        assert_eq!(hung_up.await, Some(0), "{arriving} of {announced}");
        drop(call);
        assert_eq!(
            told.finished(),
            Some((Outcome::Cancelled, 1)),
            "it was in its backoff"
        );
    }
    Ok(())
}

// promise: RT-27
#[tokio::test]
async fn an_answer_that_does_not_end_does_not_end_the_call() -> Result {
    for (announced, arriving) in [
        (200, 100),
        (65_536, 65_535),
        (1 << 20, 65_537),
        (1 << 20, 1 << 20),
    ] {
        let (server, mut hang_ups) = never_ending(announced, arriving).await?;
        let service = at_once().layer(client(Http1, true));
        let get = Request::get(server.url()).body(Full::<Bytes>::default())?;
        let answer = within(service.oneshot(get)).await?;
        assert_eq!(answer.status(), StatusCode::OK, "{arriving} of {announced}");
        assert_eq!(server.connections(), 2);
        assert_eq!(within(hang_ups.recv()).await, Some(0));
    }
    Ok(())
}
