//! What those take of the memory who wait for the answer to another request.

mod support;

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use buttress_core::BoxError;
use buttress_idempotency::{
    Global, IdempotencyLayer, MemoryStore, RequestBody, ResponseBody, future::ResponseFuture,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use support::*;
use tokio::{runtime::Builder, sync::Notify, task::yield_now};
use tower::{Layer, Service, service_fn};

const BODY: usize = 1 << 20;

type Call = Pin<Box<ResponseFuture<Handler, Body, BoxError>>>;
type Answered = Response<ResponseBody<Body>>;

/// Polls a call whose wakers nobody needs, as everything runs in one thread.
fn poll(call: &mut Call) -> Poll<Result<Answered, BoxError>> {
    call.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// The most memory that is taken until so many others wait for one answer of a mebibyte, and from then on until all have it.
fn peaks(waiters: usize) -> [u64; 2] {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let (go, effects) = (Arc::new(Notify::new()), Effects::default());
    let (told, counted) = (go.clone(), effects.clone());
    let handler = move |_: Request<RequestBody<Body>>| -> Handler {
        let told = told.clone();
        counted.begin();
        Box::pin(async move {
            told.notified().await;
            Ok(Response::new(body(vec![7; BODY])))
        })
    };
    let layer = IdempotencyLayer::new(MemoryStore::new(), Global).wait(Duration::from_secs(5));
    let mut service = layer.layer(service_fn(handler));
    // A request is the client's, and is there whether it waits or not.
    let requests: Vec<_> = (0..=waiters).map(|_| post("k", "apples")).collect();
    let calls = RefCell::new(Vec::with_capacity(waiters + 1));
    let waiting = measure(|| {
        runtime.block_on(async {
            for request in requests {
                let mut call: Call = Box::pin(service.call(request));
                // Until it waits itself: a task is at it before that.
                for _ in 0..3 {
                    assert!(poll(&mut call).is_pending());
                    yield_now().await;
                }
                calls.borrow_mut().push(call);
            }
        });
    });
    let mut answers = Vec::with_capacity(waiters + 1);
    let answered = measure(|| {
        go.notify_one();
        runtime.block_on(async {
            for mut call in calls.take() {
                let answer = loop {
                    match poll(&mut call) {
                        Poll::Ready(answer) => break answer.unwrap(),
                        Poll::Pending => yield_now().await,
                    }
                };
                answers.push(answer);
            }
        });
    });
    assert_eq!((effects.begun(), answers.len()), (1, waiters + 1));
    let mut replayed = 0;
    let mut all: Vec<Bytes> = Vec::new();
    for answer in answers {
        replayed += usize::from(answer.headers().contains_key("idempotency-replayed"));
        let body = runtime.block_on(answer.into_body().collect()).unwrap();
        all.push(body.to_bytes());
    }
    assert_eq!(replayed, waiters);
    assert!(all.iter().all(|body| body.len() == BODY));
    let shared = |two: &[Bytes]| two[0].as_ptr() == two[1].as_ptr();
    assert!(all.windows(2).all(shared), "they have the same bytes");
    let kept = u64::try_from(waiting.bytes_current).unwrap();
    [waiting.bytes_max, kept + answered.bytes_max]
}

// promise: ID-23
#[test]
fn a_thousand_who_wait_take_less_than_a_mebibyte_and_one_body() {
    let alone = peaks(0);
    let thousand = peaks(1_000);
    println!("alone {alone:?}, with a thousand who wait {thousand:?}");
    assert!(thousand[0] - alone[0] < 1 << 20);
    assert!(thousand[1] - alone[1] < (1 << 20) + BODY as u64);
}
