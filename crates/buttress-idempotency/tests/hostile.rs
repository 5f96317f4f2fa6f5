//! What the server layer does where the handler, its bodies, the store or the settings are not as one would wish.

mod support;

use std::{future::ready, time::Duration};

use buttress_core::{BoxError, Rejected};
use buttress_idempotency::{
    Global, IdempotencyLayer, Lapse, Lease, RequestBody,
    record::{State, StoredResponse},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use support::*;
use tokio::time::sleep;
use tower::{Layer, ServiceExt, service_fn};

const SHORT: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);

type Frames = Vec<Result<Frame<Bytes>, BoxError>>;

fn layer(store: &Records) -> IdempotencyLayer<Records, Global> {
    IdempotencyLayer::new(store.clone(), Global)
}

fn part(bytes: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(bytes.as_bytes()))
}

/// A body whose frames come one in so long.
fn each(pause: Duration, frames: impl Iterator<Item = &'static str> + Send + 'static) -> Body {
    let frames = stream::iter(frames).then(move |frame| async move {
        sleep(pause).await;
        assert_ne!(frame, "dies", "it dies");
        Ok(part(frame))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn broken(frames: Frames) -> Body {
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

/// What is kept of the answer to the one request.
fn kept(store: &Records) -> Option<StoredResponse> {
    match store.only()?.state {
        State::Done { completion, .. } => Some(completion.response),
        _ => None,
    }
}

// promises: ID-4, ID-14
#[tokio::test(start_paused = true)]
async fn a_body_that_panics_does_not_look_as_if_it_were_whole() {
    let store = Records::new();
    let handler = |_: Request<RequestBody<Body>>| {
        let frames = ["one", "two", "dies"].into_iter();
        ready(Ok::<_, BoxError>(Response::new(each(SHORT, frames))))
    };
    let service = layer(&store).layer(service_fn(handler));
    let response = service.oneshot(post("k", "apples")).await.unwrap();
    let whole = tokio::spawn(response.into_body().collect()).await;
    assert!(whole.unwrap_err().is_panic(), "it is the reader's panic");
    sleep(SECOND).await;
    let state = store.only().unwrap().state;
    assert!(matches!(state, State::Unknown { .. }));
}

// promises: ID-4, ID-15
#[tokio::test(start_paused = true)]
async fn a_body_that_is_cut_off_from_its_record_still_comes_whole() {
    let store = Records::new();
    let handler = |_: Request<RequestBody<Body>>| {
        let frames = std::iter::repeat_n("part ", 100);
        ready(Ok::<_, BoxError>(Response::new(each(SHORT, frames))))
    };
    let layer = layer(&store);
    let service = layer.layer(service_fn(handler));
    let response = service.oneshot(post("k", "apples")).await.unwrap();
    let whole = tokio::spawn(response.into_body().collect());
    assert!(!layer.handle().drain(SECOND).await);
    let state = store.only().unwrap().state;
    assert!(matches!(state, State::Unknown { .. }));
    let whole = whole.await.unwrap().unwrap().to_bytes();
    assert_eq!(whole.len(), 500);
}

// promises: ID-4, ID-14
#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_does_not_hold_its_key_for_ever() {
    for reads in [true, false] {
        let store = Records::new();
        let handler = |_: Request<RequestBody<Body>>| {
            let frames = std::iter::repeat("tick ");
            ready(Ok::<_, BoxError>(Response::new(each(SECOND, frames))))
        };
        let layer = layer(&store).ceiling(Duration::from_mins(2));
        let service = layer.layer(service_fn(handler));
        let ask = || service.clone().oneshot(post("k", "apples"));
        let mut body = ask().await.unwrap().into_body();
        if !reads {
            drop(std::mem::take(&mut body));
        }
        sleep(Duration::from_secs(119)).await;
        assert_eq!(ask().await.unwrap().status(), 409);
        sleep(2 * SECOND).await;
        let kept = kept(&store).expect("it is answered");
        assert_eq!((kept.status, kept.body), (200, None));
        assert_eq!(ask().await.unwrap().status(), 200);
        assert!(layer.handle().drain(Duration::ZERO).await);
        for _ in 0..200 * usize::from(reads) {
            let frame = body.frame().await.expect("it goes on").unwrap();
            assert_eq!(frame.into_data().unwrap(), "tick ");
        }
    }
}

// promise: ID-10
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_remembered_though_the_run_took_longer_than_the_time_of_a_record() {
    let (store, effects) = (Records::new(), Effects::default());
    let ttl = Duration::from_mins(1);
    let layer = layer(&store).ttl(ttl);
    let service = layer.layer(service_fn(slow(&effects, Duration::from_mins(20))));
    let ask = || tokio::spawn(service.clone().oneshot(post("k", "apples")));
    let first = ask();
    // The ceiling, and a lease.
    sleep(Duration::from_secs(10 * 60 + 41)).await;
    for _ in 0..5 {
        let (status, body, _) = read(ask().await.unwrap().unwrap()).await;
        let expected = (409, "idempotency-outcome-unknown");
        assert_eq!((status, &*code(&body)), expected);
        sleep(ttl / 6).await;
    }
    sleep(Duration::from_hours(1)).await;
    assert_eq!(first.await.unwrap().unwrap().status(), 201);
    assert_eq!(effects.begun(), 1);
}

// promises: ID-19, ID-20
#[tokio::test(start_paused = true)]
async fn a_damaged_record_is_never_run_without_protection() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store)
        .fail_open()
        .layer(service_fn(slow(&effects, SHORT)));
    let ask = || service.clone().oneshot(post("k", "apples"));
    store.be(Mood::Damaged);
    let (status, body, _) = read(ask().await.unwrap()).await;
    let expected = (503, "idempotency-store-unavailable");
    assert_eq!((status, &*code(&body)), expected);
    assert_eq!((effects.begun(), store.asked()), (0, 1));
    // What could not be read was not claimed either: nothing has to be undone.
    sleep(Duration::from_mins(1)).await;
    assert_eq!(store.asked(), 1);
}

// promises: ID-14, ID-20
#[tokio::test(start_paused = true)]
async fn an_outage_leaves_no_crowd_of_tasks_behind() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store);
    let service = layer.layer(service_fn(slow(&effects, SHORT)));
    store.be(Mood::Fails);
    for key in 0..10_000 {
        let answer = service.clone().oneshot(post(&key.to_string(), "apples"));
        assert_eq!(answer.await.unwrap().status(), 503);
    }
    // A store that is down is not asked more often for what few of them may have left in it.
    let asked = store.asked();
    sleep(Duration::from_mins(1)).await;
    let again = store.asked() - asked;
    assert!((1..10_000).contains(&again), "{again}");
    store.be(Mood::Well);
    assert!(layer.handle().drain(Duration::from_secs(10)).await);
    assert_eq!((store.len(), effects.begun()), (0, 0));
}

// promises: ID-13, ID-14
#[tokio::test(start_paused = true)]
async fn who_was_armed_was_not_refused_by_a_layer_below() {
    for (arms, in_response, expected) in [
        (false, false, 200),
        (false, true, 200),
        (true, false, 409),
        (true, true, 503),
    ] {
        let (store, effects) = (Records::new(), Effects::default());
        let counted = effects.clone();
        // It asks another service through a breaker of its own, and passes on what that says.
        let handler = move |request: Request<RequestBody<Body>>| {
            let run = counted.begin();
            async move {
                if arms {
                    request.extensions().get::<Lease>().unwrap().arm().await?;
                }
                let rejected = Rejected::new("breaker", "open");
                let mut response = Response::new(body("done"));
                if run == 1 && in_response {
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                    response.extensions_mut().insert(rejected);
                } else if run == 1 {
                    return Err(BoxError::from(rejected));
                }
                Ok(response)
            }
        };
        let service = layer(&store).layer(service_fn(handler));
        let ask = || service.clone().oneshot(post("k", "apples"));
        assert_eq!(ask().await.is_ok(), in_response);
        assert_eq!(ask().await.unwrap().status(), expected);
        assert_eq!(effects.begun(), if arms { 1 } else { 2 });
    }
}

// promise: ID-9
#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_no_other_request_than_the_whole_one() {
    let (store, effects) = (Records::new(), Effects::default());
    let counted = effects.clone();
    // It reads on where there is nothing more.
    let handler = move |request: Request<RequestBody<Body>>| {
        counted.begin();
        async move {
            let mut read = request.into_body();
            while let Some(frame) = read.frame().await {
                drop(frame);
            }
            Ok::<_, BoxError>(Response::new(body("stored")))
        }
    };
    let service = layer(&store).layer(service_fn(handler));
    let ask = |frames| {
        let request = post("k", "").map(|_| broken(frames));
        service.clone().oneshot(request)
    };
    let half = vec![Ok(part("app")), Err("reset".into())];
    assert_eq!(ask(half).await.unwrap().status(), 200);
    let whole = ask(vec![Ok(part("apples"))]).await.unwrap();
    assert_eq!(read(whole).await.1, "stored");
    assert_eq!(ask(vec![Ok(part("pears"))]).await.unwrap().status(), 422);
    assert_eq!(effects.begun(), 1);
}

// promises: ID-3, ID-9
#[tokio::test(start_paused = true)]
async fn what_is_refused_since_its_body_has_broken_off_is_run_when_it_comes_whole() {
    for (refusal, again) in [(400, 201), (413, 201), (500, 500), (200, 200)] {
        let (store, effects) = (Records::new(), Effects::default());
        let counted = effects.clone();
        let handler = move |request: Request<RequestBody<Body>>| {
            counted.begin();
            async move {
                let whole = request.into_body().collect().await;
                let status = if whole.is_ok() { 201 } else { refusal };
                let response = Response::builder().status(status);
                Ok::<_, BoxError>(response.body(body("answer"))?)
            }
        };
        let service = layer(&store).layer(service_fn(handler));
        let ask = |frames| {
            let request = post("k", "").map(|_| broken(frames));
            service.clone().oneshot(request)
        };
        let half = vec![Ok(part("app")), Err("reset".into())];
        assert_eq!(ask(half).await.unwrap().status(), refusal);
        for _ in 0..2 {
            let answer = ask(vec![Ok(part("app")), Ok(part("les"))]).await.unwrap();
            assert_eq!(answer.status(), again);
        }
        assert_eq!(effects.begun(), if again == 201 { 2 } else { 1 });
    }
}

// promise: ID-11
#[tokio::test(start_paused = true)]
async fn a_completion_that_comes_too_late_is_said_to_be_superseded() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store).on_lapse(Lapse::Rerun);
    let service = layer.layer(service_fn(slow(&effects, SHORT)));
    let ask = || service.clone().oneshot(post("k", "apples"));
    store.be(Mood::Deaf);
    assert_eq!(read(ask().await.unwrap()).await.1, "run 1 of 6 bytes");
    // Nothing is heard of it for a lease. Then another run has the key.
    sleep(Duration::from_secs(31)).await;
    let second = tokio::spawn(ask());
    sleep(SHORT / 2).await;
    store.be(Mood::Well);
    assert_eq!(
        read(second.await.unwrap().unwrap()).await.1,
        "run 2 of 6 bytes"
    );
    sleep(Duration::from_secs(10)).await;
    let counts = layer.handle().counts();
    assert_eq!((counts.superseded, counts.completed), (1, 1));
}

// promise: ID-15
#[tokio::test(start_paused = true)]
async fn when_the_time_is_over_nothing_is_begun_any_more() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store);
    let service = layer.layer(service_fn(slow(&effects, Duration::from_hours(1))));
    let ask = |key: usize| tokio::spawn(service.clone().oneshot(post(&key.to_string(), "apples")));
    let first = ask(0);
    sleep(SHORT).await;
    assert!(!layer.handle().drain(SECOND).await);
    assert_eq!(first.await.unwrap().unwrap().status(), 409);
    for key in 1..50 {
        assert_eq!(ask(key).await.unwrap().unwrap().status(), 409);
    }
    assert_eq!((effects.begun(), store.len()), (1, 1));
}

// promise: ID-15
#[tokio::test(start_paused = true)]
async fn what_is_cut_off_while_it_tells_the_store_is_unknown_at_once() {
    for status in [200, 429] {
        let store = Records::new();
        let handler = move |_: Request<RequestBody<Body>>| async move {
            sleep(SHORT).await;
            let response = Response::builder().status(status);
            response.body(body("")).map_err(BoxError::from)
        };
        let layer = layer(&store);
        let service = layer.layer(service_fn(handler));
        let first = tokio::spawn(service.oneshot(post("k", "apples")));
        sleep(SHORT / 2).await;
        store.be(Mood::Hangs);
        assert!(!layer.handle().drain(SECOND).await);
        assert_eq!(first.await.unwrap().unwrap().status(), 409);
        store.be(Mood::Well);
        sleep(Duration::from_secs(6)).await;
        let state = store.only().unwrap().state;
        assert!(matches!(state, State::Unknown { .. }), "{state:?}");
    }
}

// promise: ID-5
#[tokio::test(start_paused = true)]
async fn a_switch_of_protocols_is_no_answer_that_could_be_given_twice() {
    let (store, effects) = (Records::new(), Effects::default());
    let counted = effects.clone();
    let handler = move |_: Request<RequestBody<Body>>| {
        counted.begin();
        let response = Response::builder()
            .status(101)
            .header(header::UPGRADE, "chat");
        ready(response.body(body("")).map_err(BoxError::from))
    };
    let service = layer(&store).layer(service_fn(handler));
    let ask = || service.clone().oneshot(post("k", "apples"));
    let first = ask().await.unwrap();
    assert_eq!(first.status(), 101);
    assert_eq!(first.headers()[header::UPGRADE], "chat");
    let (status, body, _) = read(ask().await.unwrap()).await;
    let expected = (409, "idempotency-outcome-unknown");
    assert_eq!((status, &*code(&body)), expected);
    assert_eq!(effects.begun(), 1);
}

// promise: ID-14
#[tokio::test(start_paused = true)]
async fn no_setting_makes_it_hang_or_panic() {
    const TIMES: [Duration; 3] = [Duration::ZERO, Duration::from_nanos(1), Duration::MAX];
    for time in TIMES {
        for setting in 0..5 {
            let (store, effects) = (Records::new(), Effects::default());
            let layer = layer(&store);
            let layer = match setting {
                0 => layer.ttl(time),
                1 => layer.lease(time),
                2 => layer.ceiling(time),
                3 => layer.wait(time),
                _ => layer.store_timeout(time),
            };
            let service = layer.layer(service_fn(slow(&effects, SHORT)));
            let ask = || service.clone().oneshot(post("k", "apples"));
            let (first, second) = tokio::join!(tokio::spawn(ask()), tokio::spawn(ask()));
            assert_eq!(first.unwrap().unwrap().status(), 201);
            second.unwrap().unwrap();
            assert_eq!(effects.begun(), 1, "setting {setting} of {time:?}");
            assert!(layer.handle().drain(Duration::MAX).await);
            if (setting, time) != (0, Duration::ZERO) && (setting, time.as_nanos()) != (0, 1) {
                assert_eq!(ask().await.unwrap().status(), 201);
                assert_eq!(effects.begun(), 1, "setting {setting} of {time:?}");
            }
        }
    }
}
