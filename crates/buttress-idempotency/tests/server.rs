//! The promises of the server layer, on a paused clock, over a store that does as it is told.

mod support;

use std::{
    convert::Infallible,
    fmt::{Debug, Write},
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress_core::{BoxError, Rejected, clock};
use buttress_idempotency::{
    Global, IdempotencyLayer, Lapse, Lease, Recovered, RequestBody, Store,
    record::{Op, State},
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response, header, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use support::*;
use tokio::time::{advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

const SHORT: Duration = Duration::from_millis(50);

fn layer(store: &Records) -> IdempotencyLayer<Records, Global> {
    IdempotencyLayer::new(store.clone(), Global)
}

/// Lets tasks run that have something to do.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

// promise: ID-1
#[tokio::test(start_paused = true)]
async fn a_thousand_who_ask_for_the_same_have_it_done_once() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store).layer(service_fn(slow(&effects, SHORT)));
    let ask = || service.clone().oneshot(post("\"k\"", "apples"));
    let mut answers = Vec::new();
    for answer in join_all((0..1_000).map(|_| tokio::spawn(ask()))).await {
        answers.push(read(answer.unwrap().unwrap()).await);
    }
    let conflicts = answers.iter().filter(|(status, ..)| *status == 409);
    for (_, body, headers) in conflicts.clone() {
        assert_eq!(code(body), "idempotency-in-flight");
        let wait = headers.iter().find(|(name, _)| name == "retry-after");
        assert!(wait.unwrap().1.parse::<u32>().unwrap() >= 1);
    }
    assert_eq!(conflicts.count(), 999);
    assert_eq!(effects.begun(), 1);
    // And now they have its answer, all the same one.
    for _ in 0..1_000 {
        let (status, body, headers) = read(ask().await.unwrap()).await;
        assert_eq!((status, &*body), (201, "run 1 of 6 bytes"));
        assert!(headers.contains(&("idempotency-replayed".into(), "true".into())));
    }
    assert_eq!(effects.begun(), 1);
}

// promise: ID-1
#[tokio::test(start_paused = true)]
async fn a_thousand_who_wait_for_it_get_the_same_answer() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store).wait(Duration::from_secs(5));
    let service = layer.layer(service_fn(slow(&effects, SHORT)));
    let calls = (0..1_000).map(|_| tokio::spawn(service.clone().oneshot(post("k", "apples"))));
    let mut replayed = 0;
    for answer in join_all(calls).await {
        let (status, body, headers) = read(answer.unwrap().unwrap()).await;
        assert_eq!((status, &*body), (201, "run 1 of 6 bytes"));
        let marked = headers
            .iter()
            .filter(|(name, _)| name == "idempotency-replayed");
        replayed += marked.count();
    }
    assert_eq!((replayed, effects.begun()), (999, 1));
    // None polls the store: each asks when it comes, and the first says when it is done.
    assert_eq!(store.asked(), 1_000 + 1);
}

// promise: ID-1
#[tokio::test(start_paused = true)]
async fn who_waits_for_what_comes_to_nothing_has_a_run_of_his_own() {
    let (store, effects) = (Records::new(), Effects::default());
    let counted = effects.clone();
    let handler = move |_: Request<RequestBody<Body>>| {
        let run = counted.begin();
        async move {
            sleep(SHORT).await;
            if run < 3 {
                return Err(Rejected::new("limit", "busy").into());
            }
            Ok::<_, BoxError>(Response::new(body(run.to_string())))
        }
    };
    let layer = layer(&store).wait(Duration::from_secs(5));
    let service = layer.layer(service_fn(handler));
    let ask = || tokio::spawn(service.clone().oneshot(post("k", "apples")));
    let calls: Vec<_> = (0..10).map(|_| ask()).collect();
    let (mut refused, mut answered) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => {
                assert_eq!(read(answer).await.1, "3");
                answered += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert_eq!((refused, answered, effects.begun()), (2, 8, 3));
}

// promises: ID-1, ID-8
#[tokio::test(start_paused = true)]
async fn who_waits_waits_no_longer_than_he_may_and_only_for_the_same() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store).wait(Duration::from_secs(5));
    let service = layer.layer(service_fn(slow(&effects, Duration::from_secs(8))));
    let ask = |bytes| tokio::spawn(service.clone().oneshot(post("k", bytes)));
    let first = ask("apples");
    settle().await;
    let start = clock::now();
    let early = ask("apples");
    let (status, answer, _) = read(early.await.unwrap().unwrap()).await;
    assert_eq!((status, &*code(&answer)), (409, "idempotency-in-flight"));
    let waited = clock::now().saturating_duration_since(start);
    assert!((4_990..5_100).contains(&waited.as_millis()), "{waited:?}");
    // Whoever goes away while he waits leaves nothing behind.
    let gone = ask("apples");
    settle().await;
    gone.abort();
    let (late, other) = (ask("apples"), ask("pears!"));
    assert_eq!(
        read(late.await.unwrap().unwrap()).await.1,
        "run 1 of 6 bytes"
    );
    let (status, answer, _) = read(other.await.unwrap().unwrap()).await;
    assert_eq!((status, &*code(&answer)), (422, "idempotency-key-reused"));
    assert_eq!(first.await.unwrap().unwrap().status(), 201);
    assert_eq!(effects.begun(), 1);
}

// promise: ID-8
#[tokio::test(start_paused = true)]
async fn who_waits_does_not_get_the_answer_to_another_request_that_has_got_the_key() {
    let (store, effects) = (Records::new(), Effects::default());
    let counted = effects.clone();
    let handler = move |_: Request<RequestBody<Body>>| {
        let run = counted.begin();
        async move {
            sleep(SHORT).await;
            if run == 1 {
                return Err(Rejected::new("limit", "busy").into());
            }
            Ok::<_, BoxError>(Response::new(body("it is another's")))
        }
    };
    let layer = layer(&store).wait(Duration::from_secs(5));
    let mut service = layer.layer(service_fn(handler));
    let first = tokio::spawn(service.clone().oneshot(post("k", "apples")));
    settle().await;
    // It is to wait for the first, and is not polled before that has come to nothing and the key is somebody else's.
    let waiting = service.call(post("k", "apples"));
    settle().await;
    assert!(first.await.unwrap().is_err());
    let mut other = post("k", "apples");
    *other.uri_mut() = "/refunds".parse().unwrap();
    let other = tokio::spawn(service.clone().oneshot(other));
    settle().await;
    let (status, answer, _) = read(waiting.await.unwrap()).await;
    assert_eq!((status, &*code(&answer)), (422, "idempotency-key-reused"));
    assert_eq!(other.await.unwrap().unwrap().status(), 200);
    assert_eq!(effects.begun(), 2);
}

// promise: ID-2
#[tokio::test(start_paused = true)]
async fn every_key_is_done_once_however_its_attempts_are_mixed() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store).wait(Duration::from_secs(5));
    let service = layer.layer(service_fn(slow(&effects, SHORT)));
    let keys = std::env::var_os("BUTTRESS_FULL").map_or(1_000, |_| 10_000);
    let calls = (0..keys * 5).map(|number| {
        // All the first attempts of some keys come before the others.
        let key = (number * 7) % keys;
        tokio::spawn(service.clone().oneshot(post(&key.to_string(), "apples")))
    });
    for answer in join_all(calls).await {
        assert_eq!(answer.unwrap().unwrap().status(), 201);
    }
    assert_eq!((effects.begun(), store.len()), (keys, keys));
}

// promise: ID-3
#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_finds_the_answer_when_it_comes_back() {
    for polls in 0..5 {
        let (store, effects) = (Records::new(), Effects::default());
        let service = layer(&store).layer(service_fn(slow(&effects, SHORT)));
        let call = service.clone().oneshot(post("k", "apples"));
        let mut call = tokio_test::task::spawn(call);
        for _ in 0..=polls {
            assert!(call.poll().is_pending());
            settle().await;
        }
        drop(call);
        sleep(2 * SHORT).await;
        assert_eq!(effects.ended(), 1, "it goes on by itself");
        let (_, body, _) = read(service.oneshot(post("k", "apples")).await.unwrap()).await;
        assert_eq!((&*body, effects.begun()), ("run 1 of 6 bytes", 1));
    }
}

/// A handler that takes a few polls.
fn dawdling(effects: &Effects) -> impl Fn(Request<RequestBody<Body>>) -> Handler + Clone + use<> {
    let effects = effects.clone();
    move |request| {
        let effects = effects.clone();
        Box::pin(async move {
            let run = effects.begin();
            dawdle().await;
            let read = request.into_body().collect().await?.to_bytes();
            effects.end();
            let answer = format!("run {run} of {} bytes", read.len());
            Ok(Response::new(body(answer)))
        })
    }
}

// promises: ID-3, ID-14
#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_at_any_poll_is_done_once_and_leaves_no_key_that_is_held() {
    let mut pending = 0;
    for polls in 0..=20 {
        for wait in [None, Some(SHORT)] {
            let (store, effects) = (Records::new(), Effects::default());
            store.be(Mood::Dawdles);
            let mut layer = layer(&store);
            if let Some(wait) = wait {
                layer = layer.wait(wait);
            }
            let service = layer.layer(service_fn(dawdling(&effects)));
            let call = service.clone().oneshot(post("k", "apples"));
            let mut call = tokio_test::task::spawn(call);
            let done = (0..polls).any(|_| call.poll().is_ready());
            pending += u32::from(!done);
            drop(call);
            // A client that asks again while it goes on, and goes away too.
            let mut again = tokio_test::task::spawn(service.clone().oneshot(post("k", "apples")));
            let _ = (0..polls).any(|_| again.poll().is_ready());
            drop(again);
            sleep(2 * SHORT).await;
            let record = store.only();
            // A future that was never polled was never a call.
            if polls > 0 {
                assert!(
                    matches!(record.map(|record| record.state), Some(State::Done { .. })),
                    "{polls} polls"
                );
                assert_eq!((effects.begun(), effects.ended()), (1, 1), "{polls} polls");
            }
            let answer = service.oneshot(post("k", "apples")).await.unwrap();
            let (status, body, _) = read(answer).await;
            assert_eq!((status, &*body), (200, "run 1 of 6 bytes"), "{polls} polls");
            assert_eq!(effects.begun(), 1, "{polls} polls");
        }
    }
    assert!(pending > 20, "most of them were dropped before their end");
}

// promise: ID-3
#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_polled_is_done_all_the_same() {
    let (store, effects) = (Records::new(), Effects::default());
    let mut service = layer(&store).layer(service_fn(dawdling(&effects)));
    drop(service.call(post("k", "apples")));
    settle().await;
    assert_eq!(effects.ended(), 1);
    assert!(matches!(store.only().unwrap().state, State::Done { .. }));
}

// promises: ID-3, ID-14
#[tokio::test(start_paused = true)]
async fn a_call_whose_future_is_dropped_outside_of_the_runtime_goes_on_in_it() {
    let (store, effects) = (Records::new(), Effects::default());
    let mut service = layer(&store).layer(service_fn(dawdling(&effects)));
    let call = service.call(post("k", "apples"));
    std::thread::spawn(move || drop(call)).join().unwrap();
    settle().await;
    assert_eq!(effects.ended(), 1);
    assert!(matches!(store.only().unwrap().state, State::Done { .. }));
}

fn dies() -> Result<Response<Body>, BoxError> {
    panic!("it dies");
}

fn set(request: &mut Request<Body>, name: &'static str, value: &'static str) {
    let value = header::HeaderValue::from_static(value);
    request.headers_mut().insert(name, value);
}

/// A body of so many parts of a kilobyte, between which there is some time.
fn stream(parts: usize) -> Body {
    let parts = futures_util::stream::unfold(0, move |part| async move {
        if part == parts {
            return None;
        }
        sleep(Duration::from_millis(10)).await;
        let data = Bytes::from(vec![u8::try_from(part % 128).unwrap(); 1_024]);
        Some((Ok(Frame::data(data)), part + 1))
    });
    StreamBody::new(parts).boxed_unsync()
}

// promises: ID-3, ID-4
#[tokio::test(start_paused = true)]
async fn what_is_streamed_comes_at_once_and_is_kept_whoever_reads_it() {
    let (store, effects) = (Records::new(), Effects::default());
    let counted = effects.clone();
    let handler = move |_: Request<RequestBody<Body>>| {
        counted.begin();
        std::future::ready(Ok::<_, BoxError>(Response::new(stream(100))))
    };
    let service = layer(&store).layer(service_fn(handler));
    let response = service.clone().oneshot(post("k", "apples")).await.unwrap();
    let mut body = response.into_body();
    let start = clock::now();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first.len(), 1_024);
    assert!(clock::now().saturating_duration_since(start) <= Duration::from_millis(11));
    // He reads no more, and keeps the connection.
    sleep(Duration::from_secs(5)).await;
    assert!(matches!(store.only().unwrap().state, State::Done { .. }));
    let (_, replay, _) = read(service.oneshot(post("k", "apples")).await.unwrap()).await;
    let rest = body.collect().await.unwrap().to_bytes();
    assert_eq!((replay.len(), rest.len()), (100 * 1_024, 99 * 1_024));
    assert_eq!(effects.begun(), 1);
}

// promise: ID-4
#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_passed_on_and_never_done_again() {
    let (store, effects) = (Records::new(), Effects::default());
    let counted = effects.clone();
    let handler = move |_: Request<RequestBody<Body>>| {
        counted.begin();
        let response = Response::builder()
            .status(202)
            .header("etag", "\"1\"")
            .body(stream(10_240));
        std::future::ready(response.map_err(BoxError::from))
    };
    let service = layer(&store).layer(service_fn(handler));
    let response = service.clone().oneshot(post("k", "apples")).await.unwrap();
    let (_, whole, _) = read(response).await;
    assert_eq!(whole.len(), 10 << 20);
    settle().await;
    let (status, body, headers) = read(service.oneshot(post("k", "apples")).await.unwrap()).await;
    assert_eq!((status, &*body, effects.begun()), (202, "", 1));
    assert!(headers.contains(&("etag".into(), "\"1\"".into())));
}

// promises: ID-4, ID-5
#[tokio::test(start_paused = true)]
async fn a_replay_is_the_same_but_for_what_belongs_to_one_response() {
    for status in [200, 201, 204, 302, 404, 500, 503] {
        let store = Records::new();
        let handler = move |_: Request<RequestBody<Body>>| {
            let response = Response::builder()
                .status(status)
                .header("location", "/payments/1")
                .header("link", "</a>; rel=x")
                .header("link", "</b>; rel=y")
                .header("content-type", "text/plain")
                .header("cache-control", "no-store")
                .header("x-request-id", "7")
                .header("date", "Wed, 25 Nov 2026 21:00:00 GMT")
                .header("set-cookie", "session=alice")
                .header("connection", "close")
                .body(body(if status == 204 { "" } else { "words" }));
            std::future::ready(response.map_err(BoxError::from))
        };
        let layer = layer(&store).replay_header("cache-control".parse().unwrap());
        let service = layer.layer(service_fn(handler));
        let ask = || service.clone().oneshot(post("k", "apples"));
        let first = read(ask().await.unwrap()).await;
        let mut second = read(ask().await.unwrap()).await;
        let last = second.2.pop();
        assert_eq!(last, Some(("idempotency-replayed".into(), "true".into())));
        let gone = ["x-request-id", "date", "set-cookie", "connection"];
        let kept = first.2.iter().filter(|(name, _)| !gone.contains(&&**name));
        assert_eq!(second.2, kept.cloned().collect::<Vec<_>>());
        assert_eq!((second.0, second.1), (first.0, first.1));
    }
}

// promise: ID-6
#[tokio::test(start_paused = true)]
async fn what_needs_no_key_asks_no_store() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store).layer(service_fn(slow(&effects, SHORT)));
    for _ in 0..2 {
        let mut get = post("k", "");
        *get.method_mut() = Method::GET;
        assert_eq!(service.clone().oneshot(get).await.unwrap().status(), 201);
        let mut without = post("k", "");
        without.headers_mut().remove("idempotency-key");
        assert_eq!(
            service.clone().oneshot(without).await.unwrap().status(),
            201
        );
    }
    assert_eq!((effects.begun(), store.asked()), (4, 0));

    let service = layer(&store)
        .required()
        .layer(service_fn(slow(&effects, SHORT)));
    let mut without = post("k", "");
    without.headers_mut().remove("idempotency-key");
    let (status, body, _) = read(service.clone().oneshot(without).await.unwrap()).await;
    assert_eq!((status, &*code(&body)), (400, "idempotency-key-missing"));
    // Nor does what is no key.
    for key in ["\"k", "", "k k", "k,k"] {
        let (status, body, _) = read(service.clone().oneshot(post(key, "")).await.unwrap()).await;
        assert_eq!((status, &*code(&body)), (400, "idempotency-key-invalid"));
    }
    let mut two = post("k", "");
    two.headers_mut()
        .append("idempotency-key", "k".parse().unwrap());
    let (status, body, _) = read(service.oneshot(two).await.unwrap()).await;
    assert_eq!((status, &*code(&body)), (400, "idempotency-key-invalid"));
    assert_eq!((effects.begun(), store.asked()), (4, 0));
}

// promise: ID-6
#[tokio::test(start_paused = true)]
async fn a_key_is_remembered_to_the_millisecond() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store).ttl(Duration::from_hours(1));
    let service = layer.layer(service_fn(slow(&effects, Duration::ZERO)));
    let ask = || service.clone().oneshot(post("k", "apples"));
    ask().await.unwrap();
    advance(Duration::from_hours(1).saturating_sub(Duration::from_millis(1))).await;
    assert_eq!(read(ask().await.unwrap()).await.1, "run 1 of 6 bytes");
    advance(Duration::from_millis(1)).await;
    assert_eq!(read(ask().await.unwrap()).await.1, "run 2 of 6 bytes");
}

// promise: ID-8
#[tokio::test(start_paused = true)]
async fn a_key_belongs_to_one_request() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store).layer(service_fn(slow(&effects, SHORT)));
    let ask = |request| {
        let service = service.clone();
        async move { read(service.oneshot(request).await.unwrap()).await }
    };
    ask(post("k", "apples")).await;
    let change = |change: fn(&mut Request<Body>)| {
        let mut request = post("k", "apples");
        change(&mut request);
        request
    };
    let others = [
        change(|it| *it.method_mut() = Method::PATCH),
        change(|it| *it.uri_mut() = "/refunds?currency=eur".parse().unwrap()),
        change(|it| *it.uri_mut() = "/payments?currency=usd".parse().unwrap()),
        change(|it| *it.body_mut() = body("apple")),
        change(|it| *it.body_mut() = body("appless")),
        change(|it| *it.body_mut() = body("applez")),
        change(|it| *it.body_mut() = body("")),
        change(|it| drop(it.headers_mut().remove(header::CONTENT_TYPE))),
        change(|it| set(it, "content-type", "application/json; charset=utf-8")),
        change(|it| *it.uri_mut() = "/payments".parse().unwrap()),
        change(|it| *it.uri_mut() = "/payments/?currency=eur".parse().unwrap()),
    ];
    for other in others {
        let (status, body, _) = ask(other).await;
        assert_eq!((status, &*code(&body)), (422, "idempotency-key-reused"));
    }
    let same = [
        post("k", "apples"),
        change(|it| set(it, "traceparent", "00-1")),
        change(|it| set(it, "authorization", "Bearer 2")),
        change(|it| set(it, "user-agent", "another/2")),
        change(|it| set(it, "date", "Sat, 28 Nov 2026 14:00:00 GMT")),
    ];
    for same in same {
        assert_eq!(ask(same).await.1, "run 1 of 6 bytes");
    }
    assert_eq!(effects.begun(), 1);
}

// promise: ID-8
#[tokio::test(start_paused = true)]
async fn to_a_handler_that_reads_no_body_all_are_the_same() {
    let (store, effects) = (Records::new(), Effects::default());
    let counted = effects.clone();
    let handler = move |_: Request<RequestBody<Body>>| {
        counted.begin();
        std::future::ready(Ok::<_, BoxError>(Response::new(body("done"))))
    };
    let service = layer(&store).layer(service_fn(handler));
    for order in ["apples", "pears", ""] {
        let answer = service.clone().oneshot(post("k", order)).await.unwrap();
        assert_eq!(read(answer).await.0, 200);
    }
    assert_eq!(effects.begun(), 1);
}

// promise: ID-9
#[tokio::test(start_paused = true)]
async fn a_body_is_the_same_in_one_part_or_in_a_thousand() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store).layer(service_fn(slow(&effects, Duration::ZERO)));
    let bytes = Bytes::from(vec![7; 100_000]);
    let parts = |size: usize| {
        let parts: Vec<_> = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
        let frames = parts.into_iter().map(|part| Ok(Frame::data(part)));
        StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
    };
    for size in [100_000, 100, 99_999, 1] {
        let request = post("k", "").map(|_| parts(size));
        let (_, answer, _) = read(service.clone().oneshot(request).await.unwrap()).await;
        assert_eq!(answer, "run 1 of 100000 bytes");
    }
}

// promise: ID-9
#[tokio::test(start_paused = true)]
async fn a_handler_that_reads_no_body_or_half_of_it_is_not_run_again_for_it() {
    for frames in [0, 1, 2] {
        let (store, effects) = (Records::new(), Effects::default());
        let counted = effects.clone();
        let handler = move |request: Request<RequestBody<Body>>| {
            let run = counted.begin();
            async move {
                let mut read = request.into_body();
                for _ in 0..frames {
                    read.frame().await;
                }
                Ok::<_, BoxError>(Response::new(body(run.to_string())))
            }
        };
        let service = layer(&store).layer(service_fn(handler));
        let halves = |second: &'static str| {
            let halves = [
                Ok(Frame::data("half ".into())),
                Ok(Frame::data(second.into())),
            ];
            let body = StreamBody::new(futures_util::stream::iter(halves)).boxed_unsync();
            service.clone().oneshot(post("k", "").map(|_| body))
        };
        assert_eq!(read(halves("one").await.unwrap()).await.1, "1");
        assert_eq!(read(halves("one").await.unwrap()).await.1, "1");
        // What nobody has read is nobody's difference.
        let (status, ..) = read(halves("two").await.unwrap()).await;
        assert_eq!(status, if frames == 2 { 422 } else { 200 });
        assert_eq!(effects.begun(), 1);
    }
}

/// A request with this content type and body, which comes in two parts.
fn typed(content_type: &'static str, text: &str) -> Request<Body> {
    let (one, two) = text.as_bytes().split_at(text.len() / 2);
    let parts = [one, two].map(|part| Ok(Frame::data(Bytes::copy_from_slice(part))));
    let body = StreamBody::new(futures_util::stream::iter(parts)).boxed_unsync();
    let mut request = post("k", "").map(|_| body);
    set(&mut request, "content-type", content_type);
    request
}

// promise: ID-9
#[tokio::test(start_paused = true)]
async fn the_same_json_is_the_same_request_where_that_is_asked_for() {
    let first = r#"{"amount": 10.50, "to": {"iban": "DE02", "name": "Zoë"}}"#;
    let same = [
        first,
        r#"{"to":{"name":"Zoë","iban":"DE02"},"amount":10.5}"#,
        " {\"to\" :{\"name\":\"Zo\\u00eb\" , \"iban\":\"DE02\"},\r\n\"amount\":1050e-2}\n",
    ];
    let others = [
        r#"{"to":{"name":"Zoë","iban":"DE02"},"amount":10.51}"#,
        r#"{"to":{"name":"Zoë","iban":"DE02"},"amount":"10.5"}"#,
        r#"{"to":{"name":"Zoë","iban":"DE02"},"amount":10.500000000000000001}"#,
        r#"{"to":{"name":"Zoë"},"iban":"DE02","amount":10.5}"#,
        r#"{"to":{"name":"Zoë","iban":"DE02"},"amount":10.5,"amount":10.5}"#,
        "",
    ];
    for (content_type, canonical, counts) in [
        ("application/json", true, true),
        ("Application/JSON ; charset=utf-8", true, true),
        ("application/vnd.api+json", true, true),
        ("application/json", false, false),
        ("text/plain", true, false),
        ("application/json-seq", true, false),
    ] {
        let (store, effects) = (Records::new(), Effects::default());
        let mut layer = layer(&store);
        if canonical {
            layer = layer.canonical_json(1_024);
        }
        let service = layer.layer(service_fn(slow(&effects, Duration::ZERO)));
        let ask = |text| service.clone().oneshot(typed(content_type, text));
        assert_eq!(ask(first).await.unwrap().status(), 201);
        for (place, text) in same.iter().enumerate() {
            let status = if counts || place == 0 { 201 } else { 422 };
            assert_eq!(ask(text).await.unwrap().status(), status, "{text}");
        }
        for text in others {
            assert_eq!(ask(text).await.unwrap().status(), 422, "{text}");
        }
        assert_eq!(effects.begun(), 1);
    }
}

// promise: ID-9
#[tokio::test(start_paused = true)]
async fn json_that_has_no_form_is_compared_by_its_bytes() {
    let long = format!("{{\"a\":1,\"b\":\"{}\"}}", "x".repeat(1_100));
    let deep = format!("{{\"a\":1,\"b\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let wide = format!("{{\"a\":1,{}\"b\":2}}", " ".repeat(1_010));
    for (first, other) in [
        (&*long, format!("{long} ")),
        (&*deep, format!("{deep} ")),
        (&*wide, format!("{wide} ")),
        // It fits, and the other one does not, though it says the same.
        (r#"{"a":1,"b":2}"#, wide.clone() + &" ".repeat(20)),
        (r#"{"a":1,"a":2}"#, r#"{"a":1, "a":2}"#.into()),
        (r#"{"a":1,"a":2}"#, r#"{"a":2}"#.into()),
        (r#"{"a":NaN}"#, r#"{"a": NaN}"#.into()),
        (
            r#"{"a":9007199254740993}"#,
            r#"{"a":9007199254740992}"#.into(),
        ),
        ("", " ".into()),
    ] {
        let (store, effects) = (Records::new(), Effects::default());
        let layer = layer(&store).canonical_json(1_024);
        let service = layer.layer(service_fn(slow(&effects, Duration::ZERO)));
        let ask = |text: &str| service.clone().oneshot(typed("application/json", text));
        assert_eq!(ask(first).await.unwrap().status(), 201);
        assert_eq!(ask(first).await.unwrap().status(), 201, "{first}");
        let is_wide = first == wide;
        let status = if is_wide { 201 } else { 422 };
        assert_eq!(ask(&other).await.unwrap().status(), status, "{first}");
        assert_eq!(effects.begun(), 1);
    }
}

// promise: ID-9
#[tokio::test(start_paused = true)]
async fn json_that_was_not_read_to_its_end_is_compared_by_what_was_read() {
    let (store, effects) = (Records::new(), Effects::default());
    let counted = effects.clone();
    // It reads the first part, which is a whole JSON by itself.
    let handler = move |request: Request<RequestBody<Body>>| {
        let run = counted.begin();
        async move {
            let mut read = request.into_body();
            read.frame().await;
            Ok::<_, BoxError>(Response::new(body(run.to_string())))
        }
    };
    let layer = layer(&store).canonical_json(1_024);
    let service = layer.layer(service_fn(handler));
    let ask = |text: &str| service.clone().oneshot(typed("application/json", text));
    assert_eq!(ask("[1][2]").await.unwrap().status(), 200);
    for (text, status) in [
        ("[1][2]", 200),
        ("[1][3]", 200),
        ("[1]", 200),
        ("[2][1]", 422),
        (" [1] [2] ", 422),
        ("[1.0][2.0]", 422),
        ("[1", 422),
    ] {
        assert_eq!(ask(text).await.unwrap().status(), status, "{text}");
    }
    assert_eq!(effects.begun(), 1);
}

// promise: ID-9
#[tokio::test(start_paused = true)]
async fn what_was_kept_before_json_was_asked_for_is_replayed_after_it() {
    let (store, effects) = (Records::new(), Effects::default());
    let handler = || service_fn(slow(&effects, Duration::ZERO));
    let ask = |text, canonical| {
        let mut layer = layer(&store);
        if canonical {
            layer = layer.canonical_json(1_024);
        }
        layer
            .layer(handler())
            .oneshot(typed("application/json", text))
    };
    assert_eq!(ask("[1, 2]", false).await.unwrap().status(), 201);
    assert_eq!(ask("[1, 2]", true).await.unwrap().status(), 201);
    assert_eq!(ask("[1,2]", true).await.unwrap().status(), 422);
    assert_eq!(effects.begun(), 1);
}

// promise: ID-9
#[tokio::test(start_paused = true)]
async fn the_handler_reads_json_as_it_comes() {
    let store = Records::new();
    let handler = async |request: Request<RequestBody<Body>>| {
        let mut read = request.into_body();
        let start = clock::now();
        let first = read.frame().await.unwrap()?.into_data().unwrap();
        let waited = clock::now().saturating_duration_since(start);
        assert!(waited <= Duration::from_millis(11), "{waited:?}");
        let rest = read.collect().await?.to_bytes();
        let length = first.len() + rest.len();
        Ok::<_, BoxError>(Response::new(body(length.to_string())))
    };
    let layer = layer(&store).canonical_json(1 << 20);
    let service = layer.layer(service_fn(handler));
    let request = post("k", "").map(|_| stream(100));
    assert_eq!(
        read(service.oneshot(request).await.unwrap()).await.1,
        "102400"
    );
}

// promise: ID-10
#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_five_leases_is_run_once() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store).layer(service_fn(slow(&effects, Duration::from_secs(150))));
    let first = tokio::spawn(service.clone().oneshot(post("k", "apples")));
    for _ in 0..14 {
        sleep(Duration::from_secs(10)).await;
        let (status, body, _) =
            read(service.clone().oneshot(post("k", "apples")).await.unwrap()).await;
        assert_eq!((status, &*code(&body)), (409, "idempotency-in-flight"));
    }
    assert_eq!(
        read(first.await.unwrap().unwrap()).await.1,
        "run 1 of 6 bytes"
    );
    assert_eq!(effects.begun(), 1);
}

// promise: ID-10
#[tokio::test(start_paused = true)]
async fn an_outcome_is_unknown_until_it_is_heard_of_after_all() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store).layer(service_fn(slow(&effects, Duration::from_secs(100))));
    let first = tokio::spawn(service.clone().oneshot(post("k", "apples")));
    settle().await;
    store.be(Mood::Deaf);
    sleep(Duration::from_secs(31)).await;
    for _ in 0..3 {
        let (status, body, _) =
            read(service.clone().oneshot(post("k", "apples")).await.unwrap()).await;
        assert_eq!(
            (status, &*code(&body)),
            (409, "idempotency-outcome-unknown")
        );
    }
    sleep(Duration::from_mins(1)).await;
    store.be(Mood::Well);
    assert_eq!(
        read(first.await.unwrap().unwrap()).await.1,
        "run 1 of 6 bytes"
    );
    settle().await;
    let (_, body, _) = read(service.oneshot(post("k", "apples")).await.unwrap()).await;
    assert_eq!((&*body, effects.begun()), ("run 1 of 6 bytes", 1));
}

// promise: ID-11
#[tokio::test(start_paused = true)]
async fn a_second_run_is_the_one_that_counts() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store).on_lapse(Lapse::Rerun);
    let service = layer.layer(service_fn(slow(&effects, Duration::from_secs(100))));
    let ask = || tokio::spawn(service.clone().oneshot(post("k", "apples")));
    let first = ask();
    settle().await;
    let fence = store.only().unwrap().fence;
    store.be(Mood::Deaf);
    sleep(Duration::from_secs(31)).await;
    store.be(Mood::Well);
    let second = ask();
    settle().await;
    assert!(store.only().unwrap().fence > fence);
    // The first one's client has its own answer, which nobody else ever gets.
    assert_eq!(
        read(first.await.unwrap().unwrap()).await.1,
        "run 1 of 6 bytes"
    );
    assert_eq!(read(ask().await.unwrap().unwrap()).await.0, 409);
    assert_eq!(
        read(second.await.unwrap().unwrap()).await.1,
        "run 2 of 6 bytes"
    );
    for _ in 0..3 {
        assert_eq!(
            read(ask().await.unwrap().unwrap()).await.1,
            "run 2 of 6 bytes"
        );
    }
    let counts = layer.handle().counts();
    assert_eq!(
        (counts.runs, counts.superseded, counts.completed),
        (2, 1, 1)
    );
}

// promise: ID-13
#[tokio::test(start_paused = true)]
async fn what_dies_before_it_is_armed_leaves_the_key_free() {
    for arms in [false, true] {
        let (store, effects) = (Records::new(), Effects::default());
        let counted = effects.clone();
        let handler = move |request: Request<RequestBody<Body>>| {
            let run = counted.begin();
            async move {
                let lease = request.extensions().get::<Lease>().unwrap().clone();
                if arms {
                    lease.arm().await?;
                }
                assert!(run > 1, "it dies");
                lease.arm().await?;
                Ok::<_, BoxError>(Response::new(body("done")))
            }
        };
        let layer = layer(&store).explicit_arm();
        let service = layer.layer(service_fn(handler));
        let ask = || tokio::spawn(service.clone().oneshot(post("k", "apples")));
        assert!(
            ask().await.unwrap_err().is_panic(),
            "it is the caller's panic"
        );
        settle().await;
        let (status, ..) = read(ask().await.unwrap().unwrap()).await;
        assert_eq!(status, if arms { 409 } else { 200 });
        assert_eq!(effects.begun(), if arms { 1 } else { 2 });
    }
}

// promises: ID-13, ID-14
#[tokio::test(start_paused = true)]
async fn a_panic_leaves_an_outcome_that_is_unknown_at_once_and_can_be_settled() {
    let store = Records::new();
    let layer = layer(&store);
    let service = layer.layer(service_fn(async |_: Request<RequestBody<Body>>| dies()));
    let ask = || tokio::spawn(service.clone().oneshot(post("k", "apples")));
    assert!(ask().await.unwrap_err().is_panic());
    settle().await;
    let (status, answer, _) = read(ask().await.unwrap().unwrap()).await;
    assert_eq!(
        (status, &*code(&answer)),
        (409, "idempotency-outcome-unknown")
    );
    let (handle, key) = (layer.handle(), store.only_key().unwrap());
    assert!(handle.release(&key).await.unwrap());
    assert!(!handle.release(&key).await.unwrap());
    assert!(handle.get(&key).await.unwrap().is_none());
    assert!(ask().await.unwrap_err().is_panic(), "it is run again");
}

// promise: ID-13
#[tokio::test(start_paused = true)]
async fn the_world_outside_may_know_what_came_of_it() {
    for (recovered, expected, runs) in [
        (0, (201, "it was done"), 1),
        (1, (200, "run 2"), 2),
        (2, (409, ""), 1),
    ] {
        let (store, effects) = (Records::new(), Effects::default());
        let counted = effects.clone();
        let handler = move |_: Request<RequestBody<Body>>| {
            let run = counted.begin();
            async move {
                assert!(run > 1, "it dies");
                Ok::<_, BoxError>(Response::new(body(format!("run {run}"))))
            }
        };
        let layer = layer(&store).recover(move |parts| async move {
            assert_eq!(parts.headers["idempotency-key"], "k");
            match recovered {
                0 => {
                    let done = Response::builder().status(201).body("it was done".into());
                    Recovered::Done(done.unwrap())
                }
                1 => Recovered::NotDone,
                _ => Recovered::Unknown,
            }
        });
        let service = layer.layer(service_fn(handler));
        let ask = || tokio::spawn(service.clone().oneshot(post("k", "apples")));
        assert!(ask().await.unwrap_err().is_panic());
        settle().await;
        for _ in 0..3 {
            let (status, body, _) = read(ask().await.unwrap().unwrap()).await;
            assert_eq!(status, expected.0);
            assert!(body.contains(expected.1), "{body}");
        }
        assert_eq!(effects.begun(), runs);
    }
}

// promise: ID-14
#[tokio::test(start_paused = true)]
async fn what_a_layer_below_refuses_frees_the_key() {
    type Refusal = fn() -> Result<Response<Body>, BoxError>;
    let refusals: [Refusal; 3] = [
        || Err(Rejected::new("breaker", "open").into()),
        || Err(std::io::Error::other(Rejected::new("breaker", "open")).into()),
        || {
            let mut response = Response::new(body("busy"));
            response
                .extensions_mut()
                .insert(Rejected::new("load shed", "busy"));
            Ok(response)
        },
    ];
    for refusal in refusals {
        let store = Records::new();
        let refuse = move |_: Request<RequestBody<Body>>| std::future::ready(refusal());
        let service = layer(&store).layer(service_fn(refuse));
        for key in 0..10_000 {
            let answer = service
                .clone()
                .oneshot(post(&key.to_string(), "apples"))
                .await;
            assert!(answer.is_err() || answer.unwrap().status() == 200);
        }
        assert_eq!(store.len(), 0);
    }
    for status in [408, 425, 429] {
        let store = Records::new();
        let later = move |_: Request<RequestBody<Body>>| {
            let response = Response::builder().status(status).body(body("later"));
            std::future::ready(response.map_err(BoxError::from))
        };
        let service = layer(&store).layer(service_fn(later));
        service.oneshot(post("k", "apples")).await.unwrap();
        assert_eq!(store.len(), 0, "{status} says to ask again");
    }
}

// promise: ID-14
#[tokio::test(start_paused = true)]
async fn an_error_of_which_nobody_knows_what_was_done_is_an_unknown_outcome() {
    let store = Records::new();
    let service = layer(&store).layer(service_fn(async |_: Request<RequestBody<Body>>| {
        Err::<Response<Body>, BoxError>("it took too long".into())
    }));
    let error = service
        .clone()
        .oneshot(post("k", "apples"))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "it took too long");
    settle().await;
    let answer = service.oneshot(post("k", "apples")).await.unwrap();
    assert_eq!(code(&read(answer).await.1), "idempotency-outcome-unknown");
}

// promise: ID-14
#[tokio::test(start_paused = true)]
async fn five_hundred_is_an_answer_unless_it_is_said_that_it_is_none() {
    for release in [false, true] {
        let (store, effects) = (Records::new(), Effects::default());
        let counted = effects.clone();
        let handler = move |_: Request<RequestBody<Body>>| {
            counted.begin();
            let response = Response::builder().status(500).body(body("no"));
            std::future::ready(response.map_err(BoxError::from))
        };
        let mut layer = layer(&store);
        if release {
            layer = layer.release_5xx();
        }
        let service = layer.layer(service_fn(handler));
        for _ in 0..2 {
            let answer = service.clone().oneshot(post("k", "apples")).await.unwrap();
            assert_eq!(answer.status(), 500);
        }
        assert_eq!(effects.begun(), if release { 2 } else { 1 });
    }
}

// promise: ID-15
#[tokio::test(start_paused = true)]
async fn a_server_that_ends_waits_for_its_handlers_and_cuts_the_others() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store);
    let service = layer.layer(service_fn(slow(&effects, Duration::from_secs(20))));
    let call = tokio::spawn(service.clone().oneshot(post("k", "apples")));
    settle().await;
    call.abort();
    assert!(layer.handle().drain(Duration::from_secs(30)).await);
    assert_eq!(effects.ended(), 1);

    let store = Records::new();
    let layer = IdempotencyLayer::new(store.clone(), Global);
    let service = layer.layer(service_fn(async |_: Request<RequestBody<Body>>| {
        pending::<Result<Response<Body>, BoxError>>().await
    }));
    let call = tokio::spawn(service.oneshot(post("k", "apples")));
    settle().await;
    assert!(!layer.handle().drain(Duration::from_secs(30)).await);
    let record = store.only().expect("it is not free");
    assert!(matches!(record.state, State::Unknown { .. }));
    let (status, body, _) = read(call.await.unwrap().unwrap()).await;
    assert_eq!(
        (status, &*code(&body)),
        (409, "idempotency-outcome-unknown")
    );
}

// promise: ID-15
#[tokio::test(start_paused = true)]
async fn a_server_that_ends_waits_for_a_call_at_any_poll_whoever_runs_it() {
    for polls in 1..=12 {
        for dropped in [false, true] {
            let (store, effects) = (Records::new(), Effects::default());
            store.be(Mood::Dawdles);
            let layer = layer(&store);
            let service = layer.layer(service_fn(dawdling(&effects)));
            let mut call = tokio_test::task::spawn(service.oneshot(post("k", "apples")));
            if (0..polls).any(|_| call.poll().is_ready()) {
                break;
            }
            let handle = layer.handle();
            let mut drain = tokio_test::task::spawn(handle.drain(Duration::from_secs(30)));
            assert!(drain.poll().is_pending(), "{polls} polls");
            if dropped {
                drop(call);
                settle().await;
            } else {
                while call.poll().is_pending() {
                    assert!(drain.poll().is_pending(), "{polls} polls");
                }
            }
            settle().await;
            assert!(drain.await, "{polls} polls");
            assert_eq!(effects.ended(), 1, "{polls} polls");
            assert!(matches!(store.only().unwrap().state, State::Done { .. }));
        }
    }
}

// promise: ID-15
#[tokio::test(start_paused = true)]
async fn what_is_streamed_while_a_server_ends_is_waited_for_and_cut_when_there_is_no_more_time() {
    for (parts, is_done) in [(100, true), (10_000, false)] {
        let store = Records::new();
        let layer = layer(&store);
        let handler = move |_: Request<RequestBody<Body>>| {
            std::future::ready(Ok::<_, BoxError>(Response::new(stream(parts))))
        };
        let service = layer.layer(service_fn(handler));
        let response = service.oneshot(post("k", "apples")).await.unwrap();
        let drained = layer.handle().drain(Duration::from_secs(5)).await;
        assert_eq!(drained, is_done);
        let state = store.only().unwrap().state;
        assert_eq!(matches!(state, State::Done { .. }), is_done, "{state:?}");
        assert_eq!(matches!(state, State::Unknown { .. }), !is_done);
        drop(response);
    }
}

// promise: ID-20
#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_given_up_in_its_time() {
    for mood in [Mood::Hangs, Mood::Fails, Mood::Forgets] {
        let (store, effects) = (Records::new(), Effects::default());
        let layer = layer(&store).store_timeout(Duration::from_millis(200));
        let service = layer.layer(service_fn(slow(&effects, SHORT)));
        store.be(mood);
        let start = clock::now();
        let answer = service.clone().oneshot(post("k", "apples")).await.unwrap();
        assert!(clock::now().saturating_duration_since(start) <= Duration::from_millis(250));
        let (status, body, headers) = read(answer).await;
        assert_eq!(
            (status, &*code(&body)),
            (503, "idempotency-store-unavailable")
        );
        assert!(headers.contains(&("retry-after".into(), "1".into())));
        assert_eq!(effects.begun(), 0);
        // What it may have claimed all the same is given up when it answers again.
        store.be(Mood::Well);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(store.len(), 0, "{mood:?}");
        let answer = service.oneshot(post("k", "apples")).await.unwrap();
        assert_eq!(read(answer).await.0, 201);
    }
}

// promise: ID-20
#[tokio::test(start_paused = true)]
async fn who_would_rather_have_it_twice_than_not_at_all_says_so() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store)
        .fail_open()
        .layer(service_fn(slow(&effects, SHORT)));
    store.be(Mood::Fails);
    let answer = service.oneshot(post("k", "apples")).await.unwrap();
    let (status, _, headers) = read(answer).await;
    assert_eq!((status, effects.begun()), (201, 1));
    assert!(headers.contains(&("idempotency-unprotected".into(), "true".into())));
}

// promise: ID-20
#[tokio::test(start_paused = true)]
async fn a_completion_that_fails_is_made_later_and_the_client_has_its_answer() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store).layer(service_fn(slow(&effects, SHORT)));
    store.be(Mood::Half);
    let answer = service.clone().oneshot(post("k", "apples")).await.unwrap();
    assert_eq!(read(answer).await.1, "run 1 of 6 bytes");
    assert!(matches!(store.only().unwrap().state, State::Running { .. }));
    // For longer than a lease.
    sleep(Duration::from_secs(90)).await;
    store.be(Mood::Well);
    sleep(Duration::from_secs(10)).await;
    let answer = service.oneshot(post("k", "apples")).await.unwrap();
    assert_eq!(
        (&*read(answer).await.1, effects.begun()),
        ("run 1 of 6 bytes", 1)
    );
}

// promise: ID-20
#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_freed_at_once_is_freed_later_and_the_client_has_its_answer() {
    for refuses in [true, false] {
        let store = Records::new();
        let layer = layer(&store).explicit_arm();
        let answer = move |_: Request<RequestBody<Body>>| {
            let refused = Response::builder().status(429).body(body("")).unwrap();
            std::future::ready(refuses.then_some(refused).ok_or(BoxError::from("broken")))
        };
        let service = layer.layer(service_fn(answer));
        store.be(Mood::Half);
        let start = clock::now();
        let answer = service.oneshot(post("k", "apples")).await;
        assert_eq!(answer.is_ok(), refuses);
        assert_eq!(clock::now(), start, "nobody has waited for the store");
        assert_eq!(store.len(), 1);
        store.be(Mood::Well);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(store.len(), 0);
    }
}

// promises: ID-4, ID-23
#[tokio::test(start_paused = true)]
async fn an_answer_for_which_there_is_no_room_is_remembered_without_its_body() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store).layer(service_fn(slow(&effects, SHORT)));
    store.be(Mood::Full);
    let ask = || service.clone().oneshot(post("k", "apples"));
    assert_eq!(read(ask().await.unwrap()).await.1, "run 1 of 6 bytes");
    settle().await;
    let (status, body, _) = read(ask().await.unwrap()).await;
    assert_eq!((status, &*body, effects.begun()), (201, "", 1));
}

// promise: ID-22
#[tokio::test(start_paused = true)]
async fn nobody_gets_what_is_somebody_elses() {
    let (store, effects) = (Records::new(), Effects::default());
    let user = |parts: &Parts| {
        let user = parts.headers.get("x-user")?;
        Some(user.to_str().ok()?.to_owned())
    };
    let layer = IdempotencyLayer::new(store.clone(), user);
    let service = layer.layer(service_fn(slow(&effects, SHORT)));
    let ask = |user: Option<&str>| {
        let mut request = post("\"secret-key-of-alice\"", "apples");
        if let Some(user) = user {
            request
                .headers_mut()
                .insert("x-user", user.parse().unwrap());
        }
        service.clone().oneshot(request)
    };
    assert_eq!(
        read(ask(Some("alice")).await.unwrap()).await.1,
        "run 1 of 6 bytes"
    );
    assert_eq!(
        read(ask(Some("mallory")).await.unwrap()).await.1,
        "run 2 of 6 bytes"
    );
    assert_eq!(
        read(ask(Some("alice")).await.unwrap()).await.1,
        "run 1 of 6 bytes"
    );
    let (status, body, _) = read(ask(None).await.unwrap()).await;
    assert_eq!((status, &*code(&body)), (403, "idempotency-scope-missing"));
    assert_eq!(effects.begun(), 2);
    assert!(!store.text().contains("secret-key"));
    assert!(!body.contains("secret-key"));
}

/// Writes down what `Debug` has of something.
fn shows(text: &Arc<Mutex<String>>) -> impl Fn(&dyn Debug) + Clone + use<> {
    let text = text.clone();
    move |what| writeln!(text.lock().unwrap(), "{what:?} {what:#?}").unwrap()
}

// promise: ID-22
#[tokio::test(start_paused = true)]
async fn a_key_is_in_no_store_event_answer_or_debug_output() {
    const SECRET: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";
    let shown = Arc::new(Mutex::new(String::new()));
    let show = shows(&shown);
    let (store, effects) = (Records::new(), Effects::default());
    let (counted, seen) = (effects.clone(), show.clone());
    let handler = move |request: Request<RequestBody<Body>>| {
        let run = counted.begin();
        seen(&request);
        seen(&request.extensions().get::<Lease>());
        let seen = seen.clone();
        async move {
            sleep(SHORT).await;
            if run == 1 {
                return dies();
            }
            let response = Response::new(body("done"));
            seen(&response);
            Ok::<_, BoxError>(response)
        }
    };
    let (told, asked) = (show.clone(), show.clone());
    let user = |parts: &Parts| Some(parts.headers.get("x-user")?.to_str().ok()?.to_owned());
    let layer = IdempotencyLayer::new(store.clone(), user)
        .canonical_json(1_024)
        .on_event(move |event| told(event))
        .recover(move |parts| {
            asked(&parts);
            std::future::ready(Recovered::Unknown)
        });
    let (service, handle) = (layer.layer(service_fn(handler)), layer.handle());
    show(&layer);
    show(&layer.policy());
    let statuses = Mutex::new(Vec::new());
    let ask = async |user: Option<&'static str>, key: String, mood: Mood| {
        let mut request = post(&key, "[1]");
        if let Some(user) = user {
            set(&mut request, "x-user", user);
        }
        store.be(mood);
        let mut service = service.clone();
        let call = service.call(request);
        show(&service);
        show(&call);
        let answer = tokio::spawn(call).await;
        store.be(Mood::Well);
        match answer {
            Ok(answer) => {
                let answer = answer.unwrap();
                show(&answer);
                let (status, body, headers) = read(answer).await;
                show(&(body, headers));
                statuses.lock().unwrap().push(status);
            }
            Err(error) => show(&error),
        }
        settle().await;
        show(&(&store.text(), &handle));
    };
    ask(Some("alice"), SECRET.into(), Mood::Well).await;
    ask(Some("alice"), SECRET.into(), Mood::Well).await;
    ask(Some("mallory"), SECRET.into(), Mood::Well).await;
    ask(Some("mallory"), format!("\"{SECRET}\""), Mood::Well).await;
    ask(Some("mallory"), format!("\"{SECRET}"), Mood::Well).await;
    ask(None, SECRET.into(), Mood::Well).await;
    ask(Some("bob"), SECRET.into(), Mood::Fails).await;
    tokio::join!(
        ask(Some("carol"), SECRET.into(), Mood::Well),
        ask(Some("carol"), SECRET.into(), Mood::Well)
    );
    let mut statuses = statuses.into_inner().unwrap();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 400, 403, 409, 409, 503]);
    for key in store.keys() {
        let record = handle.get(&key).await.unwrap();
        show(&(&key, record));
        let claim = Op::Settle {
            completion: None,
            ttl: SHORT,
        };
        show(&(store.step(&key, claim.clone()).await, claim));
    }
    let shown = shown.lock().unwrap();
    for told in [
        "Run",
        "Replayed",
        "InFlight",
        "Rejected",
        "StoreFailed",
        "Abandoned",
    ] {
        assert!(shown.contains(told), "{told}");
    }
    for part in [SECRET, &SECRET[..8], &SECRET[24..]] {
        let place = shown.find(part);
        let around = place.map(|place| &shown[place.saturating_sub(300)..place + 50]);
        assert_eq!(around, None);
    }
}

// promise: ID-26
#[test]
fn what_is_published_is_what_is_set() {
    let layer = IdempotencyLayer::new(Records::new(), Global)
        .required()
        .methods([Method::POST])
        .ttl(Duration::from_hours(72))
        .wait(Duration::from_secs(5))
        .on_lapse(Lapse::Rerun)
        .canonical_json(65_536)
        .max_response(4_096);
    let policy: serde_json::Value = serde_json::from_str(&layer.policy().to_json()).unwrap();
    assert_eq!(policy["required"], true);
    assert_eq!(policy["methods"], serde_json::json!(["POST"]));
    assert_eq!(policy["expires_after_seconds"], 72 * 3_600);
    assert_eq!(policy["wait_seconds"], 5);
    assert_eq!(policy["outcome_unknown"], "run again");
    assert_eq!(policy["canonical_json_limit_bytes"], 65_536);
    assert_eq!(policy["replay"]["body_limit_bytes"], 4_096);
}

// promise: ID-14
#[test]
fn its_error_is_that_of_the_service_below() {
    fn takes<S: Service<Request<Body>, Error = Infallible, Future: Send> + Clone + Send>(_: S) {}

    let service = service_fn(async |_: Request<RequestBody<Body>>| {
        Ok::<_, Infallible>(Response::new(body("")))
    });
    takes(IdempotencyLayer::new(Records::new(), Global).layer(service));
    let shared: Arc<dyn Send> = Arc::new(layer(&Records::new()));
    drop(shared);
}
