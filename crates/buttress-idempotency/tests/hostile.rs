//! What the server layer does where the handler, its bodies, the store or the settings are not as one would wish.

mod support;

use std::{
    future::ready,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use buttress_core::{BoxError, Rejected};
use buttress_idempotency::{
    Global, IdempotencyLayer, Lapse, Lease, MemoryStore, Refusal, RequestBody, Store,
    record::{Op, State, StoredResponse},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use support::*;
use tokio::time::sleep;
use tower::{Layer, Service, ServiceExt, service_fn};

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

// promise: ID-26
#[tokio::test(start_paused = true)]
async fn what_may_be_refused_though_it_is_set_otherwise_is_published() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store).fail_open().on_lapse(Lapse::Rerun);
    let service = layer.layer(service_fn(slow(&effects, Duration::from_hours(1))));
    let ask = || tokio::spawn(service.clone().oneshot(post("k", "apples")));
    store.be(Mood::Damaged);
    let damaged = ask().await.unwrap().unwrap();
    store.be(Mood::Well);
    let cut = ask();
    sleep(SHORT).await;
    assert!(!layer.handle().drain(SECOND).await);
    let policy = layer.policy();
    let published: Vec<_> = policy.refusals().map(Refusal::code).collect();
    for (answer, status) in [(damaged, 503), (cut.await.unwrap().unwrap(), 409)] {
        let (answered, body, _) = read(answer).await;
        assert_eq!(answered, status);
        assert!(published.contains(&&*code(&body)), "{body}");
    }
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

// promises: ID-1, ID-11
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_run_that_was_superseded_gets_the_answer_of_the_other() {
    let (store, effects) = (Records::new(), Effects::default());
    let layers = [(); 2].map(|()| {
        let layer = layer(&store).on_lapse(Lapse::Rerun);
        layer.wait(Duration::from_mins(5))
    });
    let services = layers.map(|layer| layer.layer(service_fn(slow(&effects, 100 * SECOND))));
    let ask = |place: usize| tokio::spawn(services[place].clone().oneshot(post("k", "apples")));
    store.be(Mood::Deaf);
    let first = ask(0);
    sleep(SECOND).await;
    let waits = ask(0);
    // Nothing is heard of the first for a lease, and another process runs it again.
    sleep(30 * SECOND).await;
    let second = ask(1);
    sleep(SECOND).await;
    store.be(Mood::Well);
    let answer = async |call: tokio::task::JoinHandle<Result<Response<_>, _>>| {
        read(call.await.unwrap().unwrap()).await.1
    };
    assert_eq!(answer(first).await, "run 1 of 6 bytes");
    assert_eq!(answer(second).await, "run 2 of 6 bytes");
    assert_eq!(answer(waits).await, "run 2 of 6 bytes");
    assert_eq!(effects.begun(), 2);
}

// promises: ID-1, ID-11
#[tokio::test(start_paused = true)]
async fn a_run_that_was_superseded_is_not_in_the_way_of_the_other() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store).on_lapse(Lapse::Rerun);
    let layer = layer.wait(Duration::from_mins(5));
    let service = layer.layer(service_fn(slow(&effects, 100 * SECOND)));
    let ask = || tokio::spawn(service.clone().oneshot(post("k", "apples")));
    store.be(Mood::Deaf);
    let first = ask();
    sleep(31 * SECOND).await;
    first.abort();
    let second = ask();
    sleep(SECOND).await;
    store.be(Mood::Well);
    // The first one's heartbeat is refused. From then on only the second one's come.
    sleep(18 * SECOND).await;
    let asked = store.asked();
    sleep(40 * SECOND).await;
    assert_eq!(store.asked() - asked, 4);
    // It ends, and whoever comes then hears of the second by it, and asks no store for it again and again.
    sleep(15 * SECOND).await;
    assert_eq!(effects.ended(), 1);
    let asked = store.asked();
    let waits = ask();
    for call in [second, waits] {
        let answer = read(call.await.unwrap().unwrap()).await.1;
        assert_eq!(answer, "run 2 of 6 bytes");
    }
    let asked = store.asked() - asked;
    assert!(asked <= 5, "a claim, a completion and heartbeats: {asked}");
    assert_eq!(effects.begun(), 2);
}

// promises: ID-1, ID-21
#[tokio::test(start_paused = true)]
async fn who_waits_gets_what_the_handler_has_completed_by_itself() {
    let store = Records::new();
    let own = store.clone();
    let handler = move |request: Request<RequestBody<Body>>| {
        let own = own.clone();
        async move {
            let lease = request.extensions().get::<Lease>().unwrap().clone();
            request.into_body().collect().await?;
            sleep(SECOND).await;
            let completion = lease.completion(&Response::new("kept".into()));
            let complete = Op::Complete {
                token: lease.token(),
                completion,
                ttl: lease.ttl(),
            };
            own.step(lease.key(), complete).await?;
            Ok::<_, BoxError>(Response::new(body("another")))
        }
    };
    // It is as large as it may be.
    let layer = layer(&store).wait(2 * SECOND).max_response("kept".len());
    let service = layer.layer(service_fn(handler));
    let ask = || tokio::spawn(service.clone().oneshot(post("k", "apples")));
    let (first, waits) = (ask(), ask());
    let first = read(first.await.unwrap().unwrap()).await.1;
    let waits = read(waits.await.unwrap().unwrap()).await.1;
    assert_eq!((&*first, &*waits), ("another", "kept"));
    // Two claims and two completions: one who waits is told as many are.
    assert_eq!(store.asked(), 4);
}

// promise: ID-4
#[tokio::test(start_paused = true)]
async fn a_replay_without_its_body_does_not_say_how_that_is_compressed() {
    for (most, encoding) in [(3, None), (4, Some("gzip"))] {
        let service = layer(&Records::new()).max_response(most);
        let service = service.layer(service_fn(async |_: Request<RequestBody<Body>>| {
            let response = Response::builder().header("content-encoding", "gzip");
            Ok::<_, BoxError>(response.header("etag", "1").body(body("1234"))?)
        }));
        let ask = || service.clone().oneshot(post("k", "apples"));
        assert_eq!(read(ask().await.unwrap()).await.1, "1234");
        sleep(SECOND).await;
        let replay = ask().await.unwrap();
        let has = |name: &str| replay.headers().get(name).map(|it| it.to_str().unwrap());
        assert_eq!(
            (has("content-encoding"), has("etag")),
            (encoding, Some("1"))
        );
    }
}

// promise: ID-20
#[tokio::test(start_paused = true)]
async fn a_store_that_never_comes_back_is_given_up_in_the_end() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store);
    let service = layer.layer(service_fn(slow(&effects, SHORT)));
    store.be(Mood::Half);
    let ask = service.clone().oneshot(post("k", "apples"));
    assert_eq!(ask.await.unwrap().status(), 201);
    store.be(Mood::Fails);
    let ask = service.oneshot(post("j", "apples"));
    assert_eq!(ask.await.unwrap().status(), 503);
    sleep(Duration::from_mins(11)).await;
    let asked = store.asked();
    sleep(Duration::from_hours(1)).await;
    assert_eq!(store.asked(), asked);
    assert!(layer.handle().drain(Duration::ZERO).await);
    let counts = layer.handle().counts();
    assert_eq!((counts.completed, counts.abandoned), (0, 1));
}

/// It is ready when it was polled, as long as there is something left of it, and refuses the first call after a second.
struct Picky {
    left: Arc<Mutex<usize>>,
    ready: bool,
}

impl Clone for Picky {
    fn clone(&self) -> Self {
        let left = self.left.clone();
        Self { left, ready: false }
    }
}

impl Service<Request<RequestBody<Body>>> for Picky {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Handler;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let mut left = self.left.lock().unwrap();
        if *left == 0 {
            return Poll::Ready(Err("nothing is left".into()));
        }
        *left -= usize::from(!self.ready);
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody<Body>>) -> Handler {
        assert!(std::mem::take(&mut self.ready), "it was not polled");
        let refuses = request.headers().contains_key("x-first");
        Box::pin(async move {
            sleep(SECOND).await;
            if refuses {
                return Err(Rejected::new("limit", "busy").into());
            }
            Ok(Response::new(body("done")))
        })
    }
}

// promises: ID-1, ID-14
#[tokio::test(start_paused = true)]
async fn who_has_waited_and_runs_it_himself_asks_whether_the_service_is_ready() {
    // The first and the one who waits; and one more for the run of the latter, or not.
    for (left, is_done) in [(3, true), (2, false)] {
        let store = Records::new();
        let picky = Picky {
            left: Arc::new(Mutex::new(left)),
            ready: false,
        };
        let service = layer(&store).wait(5 * SECOND).layer(picky);
        let mut request = post("k", "apples");
        let first = request.headers_mut();
        first.insert("x-first", "1".parse().unwrap());
        let refused = tokio::spawn(service.clone().oneshot(request));
        sleep(SHORT).await;
        let answer = service.oneshot(post("k", "apples")).await;
        assert!(refused.await.unwrap().is_err());
        assert_eq!(answer.is_ok(), is_done);
        assert_eq!(store.len(), usize::from(is_done), "its key is free if not");
    }
}

// promise: ID-4
#[tokio::test(start_paused = true)]
async fn who_has_read_a_body_to_its_end_and_asks_again_has_it_again() {
    let store = Records::new();
    let handler = |_: Request<RequestBody<Body>>| {
        let frames = ["one ", "two "].into_iter();
        ready(Ok::<_, BoxError>(Response::new(each(SHORT, frames))))
    };
    let service = layer(&store).layer(service_fn(handler));
    let ask = || service.clone().oneshot(post("k", "apples"));
    store.be(Mood::Slow);
    for _ in 0..2 {
        assert_eq!(read(ask().await.unwrap()).await.1, "one two ");
    }
}

// promise: ID-8
#[tokio::test(start_paused = true)]
async fn what_is_of_the_path_is_not_of_the_query() {
    let (store, effects) = (Records::new(), Effects::default());
    let service = layer(&store).layer(service_fn(slow(&effects, SHORT)));
    let ask = |uri: &str| {
        let mut request = post("k", "apples");
        *request.uri_mut() = uri.parse().unwrap();
        service.clone().oneshot(request)
    };
    assert_eq!(ask("/ab?c=d").await.unwrap().status(), 201);
    for uri in ["/a?bc=d", "/abc=d", "/abc?=d", "/?abc=d"] {
        assert_eq!(ask(uri).await.unwrap().status(), 422, "{uri}");
    }
    assert_eq!(effects.begun(), 1);
}

// promise: ID-14
#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_in_no_box_frees_the_key_too() {
    let store = Records::new();
    let refuse = async |_: Request<RequestBody<Body>>| {
        Err::<Response<Body>, _>(Rejected::new("breaker", "open"))
    };
    let service = layer(&store).layer(service_fn(refuse));
    let refused = service.oneshot(post("k", "apples")).await.unwrap_err();
    assert!(refused.to_string().contains("breaker"), "{refused}");
    assert_eq!(store.len(), 0);
}

// promise: ID-9
#[tokio::test(start_paused = true)]
async fn a_body_that_shows_its_end_was_read_to_it() {
    // The handler asks for no frame of an empty body, and for no second one of a body that has one.
    for (first, frames) in [("", 0), ("apples", 1)] {
        let (store, effects) = (Records::new(), Effects::default());
        let counted = effects.clone();
        let handler = move |request: Request<RequestBody<Body>>| {
            counted.begin();
            async move {
                let mut read = request.into_body();
                for _ in 0..frames {
                    read.frame().await;
                }
                Ok::<_, BoxError>(Response::new(body("done")))
            }
        };
        let service = layer(&store).layer(service_fn(handler));
        let ask = |bytes| service.clone().oneshot(post("k", bytes));
        assert_eq!(ask(first).await.unwrap().status(), 200);
        assert_eq!(ask(first).await.unwrap().status(), 200);
        assert_eq!(ask("apples and pears").await.unwrap().status(), 422);
        assert_eq!(effects.begun(), 1);
    }
}

// promises: ID-1, ID-23
#[tokio::test(start_paused = true)]
async fn who_is_told_to_come_again_is_told_to_wait_a_second_at_least() {
    let (store, effects) = (Records::new(), Effects::default());
    let layer = layer(&store).lease(SECOND / 2);
    let service = layer.layer(service_fn(slow(&effects, SECOND)));
    let ask = || tokio::spawn(service.clone().oneshot(post("k", "apples")));
    let first = ask();
    sleep(SHORT).await;
    let second = ask().await.unwrap().unwrap();
    assert_eq!(second.status(), 409);
    assert_eq!(second.headers()[header::RETRY_AFTER], "1");
    first.await.unwrap().unwrap();
    // Whose share is full is told no time: it is not known when there is room.
    let store = MemoryStore::new().max_bytes_per_scope(0);
    let layer = IdempotencyLayer::new(store, Global);
    let service = layer.layer(service_fn(slow(&effects, SECOND)));
    let refused = service.oneshot(post("k", "apples")).await.unwrap();
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers().get(header::RETRY_AFTER), None);
    assert_eq!(effects.begun(), 1);
}
