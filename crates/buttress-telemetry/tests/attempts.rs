//! The spans of attempts.

mod support;

use std::{
    future::{Future, Ready, pending, poll_fn, ready},
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use buttress_core::{BoxError, Rejected};
use buttress_retry::{Backoff, ReplayBody, RetryLayer};
use buttress_telemetry::{AttemptSpanLayer, retry};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use support::{Fields, Line, Log};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_test::mock;

const URL: &str = "http://user:password@pay.example:8080/payments?token=secret";

fn text(line: &Line, field: &'static str) -> String {
    line.fields.get(field).cloned().unwrap_or_default()
}

/// A request is answered so, by a status or by an error.
type Answer = Result<u16, BoxError>;

/// Sends a request through an attempt span, and tells of it.
async fn span_of(layer: AttemptSpanLayer, request: Request<()>, answer: Answer) -> Fields {
    let (log, _log) = Log::listen();
    let mut answer = Some(answer);
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let answer = answer.take().unwrap();
        async move { Ok::<_, BoxError>(Response::builder().status(answer?).body(())?) }
    }));
    let _ = service.oneshot(request).await;
    let [span] = log.take().try_into().unwrap();
    assert_eq!((span.name, span.target), ("attempt", "buttress::attempt"));
    span.fields
}

fn fields<'a>(fields: impl IntoIterator<Item = (&'static str, &'a str)>) -> Fields {
    let owned = |(name, value): (_, &str)| (name, value.to_owned());
    fields.into_iter().map(owned).collect()
}

// promise: ST-10
#[tokio::test(start_paused = true)]
async fn each_attempt_of_a_call_has_a_span_and_those_after_the_first_say_which_they_are() {
    let (log, _log) = Log::listen();
    let number = Arc::new(AtomicU32::new(0));
    let backend = service_fn(move |_: Request<ReplayBody<Full<Bytes>>>| {
        let number = number.fetch_add(1, Relaxed);
        async move {
            if number == 1 {
                pending::<()>().await;
            }
            let status = if number == 2 { 200 } else { 503 };
            let body = Full::new(Bytes::new());
            Ok::<_, BoxError>(Response::builder().status(status).body(body)?)
        }
    });
    let client = ServiceBuilder::new()
        .layer(
            RetryLayer::http()
                .backoff(Backoff::internal())
                .attempt_timeout(Duration::from_secs(1))
                .on_event(retry("payments")),
        )
        .layer(AttemptSpanLayer::new())
        .service(backend);
    let request = Request::put(URL).body(Full::new(Bytes::new())).unwrap();
    assert_eq!(client.oneshot(request).await.unwrap().status(), 200);

    let lines = log.take();
    let spans: Vec<_> = lines.iter().filter(|line| line.name == "attempt").collect();
    let of = |field: &'static str| {
        spans
            .iter()
            .map(|span| text(span, field))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("http.request.resend_count"), ["", "1", "2"]);
    assert_eq!(of("http.response.status_code"), ["503", "", "200"]);
    assert_eq!(of("error.type"), ["503", "cancelled", ""]);
    assert_eq!(of("otel.status_code"), ["ERROR", "ERROR", ""]);
    // The number is the one of the line that has told of the retry.
    let retries = lines
        .iter()
        .filter(|line| line.name == "buttress.retry.retry");
    let retries: Vec<_> = retries
        .map(|line| text(line, "http.request.resend_count"))
        .collect();
    assert_eq!(retries, ["1", "2"]);
}

// promise: ST-10
#[tokio::test]
async fn a_span_has_the_fields_of_opentelemetry_and_no_credentials() {
    let request = || Request::get(URL).body(()).unwrap();
    let expected = fields([
        ("otel.name", "GET"),
        ("otel.kind", "client"),
        ("http.request.method", "GET"),
        ("server.address", "pay.example"),
        ("server.port", "8080"),
        ("url.full", "http://pay.example:8080/payments"),
        ("http.response.status_code", "200"),
    ]);
    assert_eq!(
        span_of(AttemptSpanLayer::new(), request(), Ok(200)).await,
        expected
    );

    let span = span_of(AttemptSpanLayer::new().query(), request(), Ok(200)).await;
    assert_eq!(
        span["url.full"],
        "http://pay.example:8080/payments?token=secret"
    );
}

// promise: ST-10
#[tokio::test]
async fn a_server_is_named_by_the_url_or_else_by_the_host() {
    for (uri, host, address, port, url) in [
        (
            "https://a.example",
            None,
            "a.example",
            "443",
            "https://a.example/",
        ),
        ("http://[::1]:81/x", None, "::1", "81", "http://[::1]:81/x"),
        (
            "http://a.example/",
            Some("b.example:1"),
            "a.example",
            "80",
            "http://a.example/",
        ),
        ("/x", Some("user:pw@b.example:82"), "b.example", "82", ""),
        ("/x", Some("b.example"), "b.example", "", ""),
        ("/x", Some("no host at all"), "", "", ""),
        ("/x", None, "", "", ""),
    ] {
        let mut request = Request::get(uri).body(()).unwrap();
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().unwrap());
        }
        let span = span_of(AttemptSpanLayer::new(), request, Ok(200)).await;
        let field = |name| span.get(name).map_or("", String::as_str);
        let found = (
            field("server.address"),
            field("server.port"),
            field("url.full"),
        );
        assert_eq!(found, (address, port, url), "{uri} {host:?}");
    }
}

// promise: ST-10
#[tokio::test]
async fn a_method_that_nobody_knows_is_told_by_another_name() {
    let request = Request::builder().method("BREW").uri(URL).body(()).unwrap();
    let span = span_of(AttemptSpanLayer::new(), request, Ok(200)).await;
    let names = [
        "otel.name",
        "http.request.method",
        "http.request.method_original",
    ];
    assert_eq!(names.map(|name| &*span[name]), ["HTTP", "_OTHER", "BREW"]);
}

// promise: ST-10
#[tokio::test]
async fn what_has_failed_is_told_in_a_word_that_is_one_of_few() {
    let wrapped = io::Error::other(io::Error::from(io::ErrorKind::ConnectionReset));
    let refused = Rejected::new("breaker", "open");
    for (answer, word) in [
        (Ok(404), "404"),
        (Ok(500), "500"),
        (Err(refused.into()), "rejected"),
        (
            Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
            "ConnectionRefused",
        ),
        (Err(wrapped.into()), "ConnectionReset"),
        (Err("the password is hunter2".into()), "_OTHER"),
        (Err(io::Error::other("hunter2").into()), "_OTHER"),
    ] {
        let request = Request::get(URL).body(()).unwrap();
        let span = span_of(AttemptSpanLayer::new(), request, answer).await;
        assert_eq!(
            (&*span["error.type"], &*span["otel.status_code"]),
            (word, "ERROR")
        );
    }
    let request = Request::get(URL).body(()).unwrap();
    let span = span_of(AttemptSpanLayer::new(), request, Ok(302)).await;
    assert!(!span.contains_key("error.type"));
}

// promise: ST-10
#[tokio::test]
async fn what_is_told_during_an_attempt_is_in_its_span_and_nothing_else_is() {
    let (log, _log) = Log::listen();
    let service = AttemptSpanLayer::new().layer(service_fn(|_: Request<()>| {
        tracing::info!("called");
        async {
            tracing::info!("polled");
            tokio::task::yield_now().await;
            tracing::info!("polled again");
            Ok::<_, BoxError>(Response::new(()))
        }
    }));
    let mut call = task::spawn(service.oneshot(Request::new(())));
    assert_pending!(call.poll());
    tracing::info!("between");
    assert_ready_ok!(call.poll());
    tracing::info!("after");
    // The span has ended though the future is still there.
    let spans = log.take();
    let spans: Vec<_> = spans
        .iter()
        .map(|line| {
            (
                line.fields.get("message").map_or("", |text| text),
                line.span,
            )
        })
        .collect();
    let inside = Some("attempt");
    assert_eq!(
        spans,
        [
            ("called", inside),
            ("polled", inside),
            ("between", None),
            ("polled again", inside),
            ("", None),
            ("after", None),
        ]
    );
}

/// Says so when it is dropped, as a call of a breaker does.
struct Tells;

impl Drop for Tells {
    fn drop(&mut self) {
        tracing::info!("dropped");
    }
}

// promise: ST-10
#[tokio::test]
async fn what_is_told_as_an_attempt_is_dropped_is_in_its_span() {
    let (log, _log) = Log::listen();
    let mut service = AttemptSpanLayer::new().layer(service_fn(|_: Request<()>| {
        let tells = Tells;
        async move {
            pending::<()>().await;
            drop(tells);
            Ok::<_, BoxError>(Response::new(()))
        }
    }));
    for polls in 0..2 {
        let mut call = task::spawn(service.call(Request::new(())));
        for _ in 0..polls {
            assert_pending!(call.poll());
        }
        drop(call);
        let [told, span] = log.take().try_into().unwrap();
        assert_eq!(
            (text(&told, "message").as_str(), told.span),
            ("dropped", Some("attempt"))
        );
        assert_eq!(text(&span, "error.type"), "cancelled");
    }
}

// promise: ST-10
#[tokio::test]
async fn the_span_of_an_attempt_ends_with_it_though_its_future_is_kept() {
    let (log, _log) = Log::listen();
    let mut service = AttemptSpanLayer::new().layer(service_fn(|_: Request<()>| {
        let tells = Tells;
        poll_fn(move |_| {
            let _ = &tells;
            Poll::Ready(Ok::<_, BoxError>(Response::new(())))
        })
    }));
    let mut call = task::spawn(service.call(Request::new(())));
    assert!(call.poll().is_ready());
    let [told, span] = log.take().try_into().unwrap();
    assert_eq!(
        (text(&told, "message").as_str(), told.span),
        ("dropped", Some("attempt"))
    );
    assert_eq!(span.fields.get("error.type"), None);
    drop(call);
    assert_eq!(log.take().len(), 0);
}

// promise: ST-10
#[tokio::test]
async fn the_service_below_is_called_when_it_is_ready_and_dropped_with_the_call() {
    let (mut service, mut handle) =
        mock::spawn_layer::<Request<()>, Response<()>, _>(AttemptSpanLayer::new());
    handle.allow(0);
    assert_pending!(service.poll_ready());
    handle.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(Request::new(())));
    assert_pending!(call.poll());
    let (_, answer) = handle.next_request().await.unwrap();
    answer.send_response(Response::new(()));
    assert_ready_ok!(call.poll());

    let alive = Arc::new(());
    let guard = alive.clone();
    let mut service = AttemptSpanLayer::new().layer(service_fn(move |_: Request<()>| {
        let guard = guard.clone();
        async move {
            pending::<()>().await;
            drop(guard);
            Ok::<_, BoxError>(Response::new(()))
        }
    }));
    let call = service.call(Request::new(()));
    assert_eq!(Arc::strong_count(&alive), 3);
    drop(call);
    assert_eq!(Arc::strong_count(&alive), 2);
}

// promise: ST-10
#[test]
fn a_span_that_nobody_wants_allocates_nothing() {
    fn answer(_: Request<()>) -> Ready<Result<Response<()>, BoxError>> {
        ready(Ok(Response::new(())))
    }
    let mut service = AttemptSpanLayer::new().layer(service_fn(answer));
    let mut request = Some(Request::get(URL).body(()).unwrap());
    let allocations = measure(|| {
        let mut call = pin!(service.call(request.take().unwrap()));
        let polled = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_ready());
    });
    assert_eq!(allocations.count_total, 0);
}

// promise: ST-10
#[tokio::test]
async fn a_sink_allocates_nothing_itself() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let keep = heard.clone();
    let layer = RetryLayer::http().on_event(move |event| keep.lock().unwrap().push(event.clone()));
    let backend = service_fn(async |_: Request<ReplayBody<Full<Bytes>>>| {
        Ok::<_, BoxError>(Response::new(Full::new(Bytes::new())))
    });
    let request = Request::get(URL).body(Full::new(Bytes::new())).unwrap();
    layer.layer(backend).oneshot(request).await.unwrap();
    let sink = retry("payments");
    let event = heard.lock().unwrap()[0].clone();
    assert_eq!(measure(|| sink(&event)).count_total, 0);
}
