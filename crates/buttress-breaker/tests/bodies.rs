//! The promises of the layer where it tracks bodies.

mod support;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use buttress_breaker::{BreakerLayer, Outcome, Reason, State};
use buttress_core::{Applied, BoxError, Kind, Rejected, Verdict};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use support::{Log, count, millis, secs};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

/// A body as it is written down.
#[derive(Clone, Debug)]
struct Written(VecDeque<Piece>);

#[derive(Clone, Copy, Debug)]
enum Piece {
    Data,
    Wait,
    /// Trailers with this gRPC status.
    Status(&'static str),
    /// Trailers without one.
    Trailers,
    BreakOff,
    /// A layer below refuses to go on.
    Refuse,
    Panic,
}

use Piece::{BreakOff, Data, Panic, Refuse, Status, Trailers, Wait};

impl Body for Written {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(match self.0.pop_front() {
            None => None,
            Some(Data) => Some(Ok(Frame::data(Bytes::from_static(b"data")))),
            Some(Wait) => return Poll::Pending,
            Some(Trailers) => Some(Ok(Frame::trailers(HeaderMap::new()))),
            Some(Status(status)) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(status));
                Some(Ok(Frame::trailers(trailers)))
            }
            Some(BreakOff) => Some(Err("it broke off".into())),
            Some(Refuse) => Some(Err(Rejected::new("limiter", "full").into())),
            Some(Panic) => panic!("as it was told"),
        })
    }
}

/// A gRPC call whose response has this head and body, polled so many times: what is told of it before the body is
/// dropped, and after.
async fn told(
    head: Option<&'static str>,
    pieces: &[Piece],
    polls: usize,
) -> [Vec<(Outcome, Reason, bool)>; 2] {
    let log = Log::default();
    let layer = BreakerLayer::grpc().on_event(log.sink());
    let body = Written(pieces.iter().copied().collect());
    let service = layer.layer(service_fn(async |()| {
        let mut response = Response::new(body.clone());
        if let Some(status) = head {
            let value = HeaderValue::from_static(status);
            response.headers_mut().insert("grpc-status", value);
        }
        Ok::<_, BoxError>(response)
    }));
    let mut body = service.oneshot(()).await.unwrap().into_body();
    for _ in 0..polls {
        let mut cx = Context::from_waker(Waker::noop());
        let poll = AssertUnwindSafe(|| Pin::new(&mut body).poll_frame(&mut cx).is_ready());
        let _ = catch_unwind(poll);
    }
    let before = log.calls();
    drop(body);
    [before, log.calls()]
}

// promise: BR-8
#[tokio::test(start_paused = true)]
async fn a_body_s_end_is_the_end_of_its_call() {
    let good = (Outcome::Success, Reason::Body, true);
    let bad = (Outcome::Failure, Reason::Body, true);
    let nothing = (Outcome::Ignored, Reason::Body, false);
    for (pieces, expected) in [
        (&[][..], good),
        (&[Data, Wait, Data], good),
        (&[Data, Trailers], good),
        (&[Data, Status("0")], good),
        (&[Data, Status("14")], bad),
        (&[Status("2")], bad),
        (&[Data, Status("5")], nothing),
        (&[Data, Status("8")], nothing),
        (&[BreakOff], bad),
        (&[Data, Refuse], nothing),
        (&[Data, Wait, BreakOff, Data], bad),
        (&[Data, Panic], (Outcome::Failure, Reason::Panic, true)),
        (
            &[Panic, Panic, Status("14")],
            (Outcome::Failure, Reason::Panic, true),
        ),
    ] {
        // However often it is polled after that.
        for polls in [pieces.len() + 1, pieces.len() + 5] {
            let told = told(None, pieces, polls).await;
            assert_eq!(told, [vec![expected], vec![expected]], "{pieces:?}");
        }
    }
}

// promise: BR-8
#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_early_is_nothing_unless_its_head_was_a_failure() {
    let dropped = (Outcome::Cancelled, Reason::Dropped, false);
    for polls in 0..=3 {
        let told = told(None, &[Data, Data, Data, Status("14")], polls).await;
        assert_eq!(told, [vec![], vec![dropped]], "after {polls} polls");
    }
    for (status, outcome) in [("14", Outcome::Failure), ("5", Outcome::Ignored)] {
        let said = (outcome, Reason::Response, outcome == Outcome::Failure);
        for polls in [0, 1, 3] {
            let told = told(Some(status), &[Data, Status("0")], polls).await;
            assert_eq!(told, [vec![said], vec![said]]);
        }
    }
}

// promises: BR-6, BR-8
#[tokio::test(start_paused = true)]
async fn a_refusal_in_a_body_says_nothing_whatever_the_classifier_makes_of_it() {
    let failure = Verdict::new(Kind::Transient, Applied::Maybe);
    for (piece, failures) in [(Refuse, 0), (BreakOff, 1)] {
        let judge = move |result: Result<&Response<Written>, &BoxError>| match result {
            Ok(_) => Verdict::SUCCESS,
            Err(_) => failure,
        };
        let layer = BreakerLayer::new(judge).track_bodies();
        let service = layer.layer(service_fn(async |()| {
            Ok::<_, BoxError>(Response::new(Written([Data, piece].into())))
        }));
        let body = service.oneshot(()).await.unwrap().into_body();
        body.collect().await.unwrap_err();
        assert_eq!(layer.handle().snapshot().failures, failures, "{piece:?}");
    }
}

// promises: BR-7, BR-8, BR-9
#[tokio::test(start_paused = true)]
async fn a_body_may_take_its_time() {
    for (head, slow) in [(100, 0), (101, 1)] {
        let log = Log::default();
        let layer = BreakerLayer::http()
            .track_bodies()
            .slow_calls(millis(100), 1.0)
            .window(secs(100_000))
            .on_event(log.sink());
        let service = layer.layer(service_fn(async |()| {
            tokio::time::sleep(millis(head)).await;
            Ok::<_, BoxError>(Response::new(Written([Data, Data].into())))
        }));
        // Neither is it slow, nor has anybody lost his patience.
        let body = service.clone().oneshot(()).await.unwrap().into_body();
        advance(secs(3_600)).await;
        body.collect().await.unwrap();
        let body = service.clone().oneshot(()).await.unwrap().into_body();
        advance(secs(3_600)).await;
        drop(body);
        let ended = (Outcome::Success, Reason::Body, true);
        let dropped = (Outcome::Cancelled, Reason::Dropped, false);
        assert_eq!(log.calls(), [ended, dropped]);
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.calls, snapshot.slow), (1, slow), "{head} ms");
    }
}

// promises: BR-6, BR-8
#[tokio::test(start_paused = true)]
async fn a_body_that_goes_on_after_its_panic_has_failed_all_the_same() {
    for end in [Data, Trailers, Status("0")] {
        // Nobody listens.
        let layer = BreakerLayer::grpc();
        let service = layer.layer(service_fn(async |()| {
            Ok::<_, BoxError>(Response::new(Written([Panic, end].into())))
        }));
        let mut body = service.oneshot(()).await.unwrap().into_body();
        for poll in 0..3 {
            let mut cx = Context::from_waker(Waker::noop());
            let frame = AssertUnwindSafe(|| Pin::new(&mut body).poll_frame(&mut cx).is_ready());
            assert_eq!(catch_unwind(frame).is_err(), poll == 0);
        }
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.calls, snapshot.in_a_row), (1, 1), "{end:?}");
    }
}

// promise: BR-8
#[tokio::test(start_paused = true)]
async fn a_body_that_has_ended_with_its_head_is_not_waited_for() {
    let log = Log::default();
    let layer = BreakerLayer::http().track_bodies().on_event(log.sink());
    let empty = layer.layer(service_fn(async |()| {
        Ok::<_, BoxError>(Response::new(Empty::<Bytes>::new()))
    }));
    let response = empty.oneshot(()).await.unwrap();
    assert_eq!(log.calls(), [(Outcome::Success, Reason::Response, true)]);
    assert!(response.body().is_end_stream());
    assert!(format!("{:?}", response.body()).ends_with("is_tracked: false }"));

    // The last frame is enough, as who knows the length does not ask for more.
    log.clear();
    let full = layer.layer(service_fn(async |()| {
        Ok::<_, BoxError>(Response::new(Full::new(Bytes::from_static(b"data"))))
    }));
    let mut body = full.oneshot(()).await.unwrap().into_body();
    assert!(!body.is_end_stream());
    assert_eq!(body.size_hint().exact(), SizeHint::with_exact(4).exact());
    assert_eq!(log.calls(), []);
    assert!(format!("{body:?}").ends_with("is_tracked: true }"));
    body.frame().await.unwrap().unwrap();
    assert_eq!(log.calls(), [(Outcome::Success, Reason::Body, true)]);
    // Nothing of the breaker is kept.
    assert!(format!("{body:?}").ends_with("is_tracked: false }"));
}

// promises: BR-8, BR-12
#[tokio::test(start_paused = true)]
async fn a_probe_lasts_as_long_as_its_body() {
    let layer = BreakerLayer::grpc().consecutive_only(count(1)).ramp(false);
    let (handle, polls) = (layer.handle(), layer.clone());
    let service = polls.layer(service_fn(async |status: &'static str| {
        let pieces = [Data, Status(status)];
        Ok::<_, BoxError>(Response::new(Written(pieces.into())))
    }));
    let call = async |status| Ok::<_, BoxError>(service.clone().oneshot(status).await?.into_body());
    call("14").await.unwrap().collect().await.unwrap();
    assert_eq!(handle.state(), State::Open);
    advance(secs(5)).await;
    let streaming = call("0").await.unwrap();
    assert_eq!(handle.snapshot().probes_in_flight, 1);
    assert!(call("0").await.is_err(), "the slot is taken");
    drop(streaming);
    // A body that nobody will ever look at again.
    std::mem::forget(call("0").await.unwrap());
    assert!(call("0").await.is_err(), "the slot is taken");
    advance(secs(10)).await;
    for succeeded in 0..3 {
        assert_eq!(handle.snapshot().probes_succeeded, succeeded);
        call("0").await.unwrap().collect().await.unwrap();
    }
    assert_eq!(handle.state(), State::Closed);
}
