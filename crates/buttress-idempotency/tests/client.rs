//! The client's layer and the contract of tower: over a service that panics if it is called unready.

use std::{pin::pin, task::Poll};

use buttress_idempotency::{IdempotencyKeyLayer, Key};
use http::{Request, Response};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, Service};
use tower_test::mock;

#[tokio::test]
async fn readiness_and_responses_pass_and_the_rest_of_a_request_stays() {
    let (service, handle) = mock::pair::<Request<&str>, Response<&str>>();
    let mut handle = pin!(handle);
    handle.allow(0);
    let mut service = IdempotencyKeyLayer::new().layer(service);
    let mut ready = task::spawn(());
    assert_pending!(ready.enter(|cx, _| service.poll_ready(cx)));
    handle.allow(1);
    assert!(ready.is_woken());
    assert_ready_ok!(ready.enter(|cx, _| service.poll_ready(cx)));

    let request = Request::patch("http://a.example/b?c")
        .header("x-other", "1")
        .extension(7_u8);
    let mut call = task::spawn(service.call(request.body("words").unwrap()));
    assert_pending!(call.poll());
    let (request, answer) = handle.next_request().await.unwrap();
    assert_eq!(request.uri(), "http://a.example/b?c");
    assert_eq!(request.headers()["x-other"], "1");
    assert_eq!(request.headers().len(), 2);
    assert!(matches!(Key::of(request.headers()), Ok(Some(_))));
    assert_eq!(request.extensions().get(), Some(&7_u8));
    assert_eq!(request.into_body(), "words");
    answer.send_response(Response::new("paid"));
    let response = assert_ready_ok!(call.poll());
    assert_eq!(response.into_body(), "paid");
}

#[tokio::test]
async fn errors_pass_as_they_are() {
    let (service, handle) = mock::pair::<Request<&str>, Response<&str>>();
    let mut handle = pin!(handle);
    let mut service = IdempotencyKeyLayer::new().layer(service);
    let mut ready = task::spawn(());
    assert_ready_ok!(ready.enter(|cx, _| service.poll_ready(cx)));
    let mut call = task::spawn(service.call(Request::post("/").body("").unwrap()));
    assert_pending!(call.poll());
    let (_, answer) = handle.next_request().await.unwrap();
    answer.send_error("lost");
    let Poll::Ready(Err(error)) = call.poll() else {
        panic!("it is an error");
    };
    assert_eq!(error.to_string(), "lost");

    handle.send_error("closed");
    let Poll::Ready(Err(error)) = ready.enter(|cx, _| service.poll_ready(cx)) else {
        panic!("it is an error");
    };
    assert_eq!(error.to_string(), "closed");
}
