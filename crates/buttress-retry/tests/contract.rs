//! The promises of the layer over `tower-test`'s mock, and for requests that are not HTTP.

use std::{
    cell::Cell,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use allocation_counter::measure;
use buttress_core::{Applied, BoxError, Kind, Verdict, clock};
use buttress_retry::{Backoff, Budget, Event, RetryLayer};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{
    Layer, Service, ServiceExt, limit::ConcurrencyLimit, service_fn, util::BoxCloneService,
};
use tower_test::{assert_request_eq, mock};

/// Zero is a success, everything else may pass.
fn classify(result: Result<&u32, &BoxError>) -> Verdict {
    match result {
        Ok(0) => Verdict::SUCCESS,
        Ok(_) => Verdict::new(Kind::Transient, Applied::Maybe),
        Err(_) => Verdict::new(Kind::Transient, Applied::No),
    }
}

type Classify = fn(Result<&u32, &BoxError>) -> Verdict;

fn layer() -> RetryLayer<Classify, buttress_retry::replay::CloneReplay> {
    RetryLayer::new(classify as Classify).backoff(Backoff::constant(Duration::from_millis(10)))
}

// promise: RT-28
#[tokio::test(start_paused = true)]
async fn every_attempt_follows_one_readiness_on_the_same_instance() {
    // The mock panics when it is called without having been polled ready.
    let (service, mut handle) = mock::pair::<&str, u32>();
    handle.allow(0);
    let mut service = layer().layer(service);
    let mut ready = task::spawn(service.ready());
    assert_pending!(ready.poll());
    handle.allow(1);
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
    drop(ready);

    let mut response = task::spawn(service.call("pay"));
    assert_pending!(response.poll());
    assert_request_eq!(handle, "pay").send_response(1);
    assert_pending!(response.poll());
    tokio::time::advance(Duration::from_millis(11)).await;
    assert_pending!(response.poll());
    assert_pending!(
        handle.poll_request(),
        "the service is not ready, so nothing is sent"
    );
    handle.allow(1);
    assert!(response.is_woken());
    assert_pending!(response.poll());
    assert_request_eq!(handle, "pay").send_response(0);
    assert_eq!(assert_ready_ok!(response.poll()), 0);
}

// promise: RT-28
#[tokio::test(start_paused = true)]
async fn a_readiness_error_is_passed_on() {
    let (service, mut handle) = mock::pair::<&str, u32>();
    let mut service = layer().layer(service);
    handle.send_error("the service is gone");
    let mut ready = task::spawn(service.ready());
    assert_eq!(
        assert_ready_err!(ready.poll()).to_string(),
        "the service is gone"
    );
}

// promise: RT-29
#[tokio::test(start_paused = true)]
async fn a_service_that_fails_during_the_backoff_gives_the_outcome_back() {
    let (service, mut handle) = mock::pair::<&str, u32>();
    let mut response = task::spawn(layer().layer(service).oneshot("pay"));
    assert_pending!(response.poll());
    assert_request_eq!(handle, "pay").send_response(7);
    assert_pending!(response.poll());
    drop(handle);
    tokio::time::advance(Duration::from_millis(11)).await;
    assert_eq!(assert_ready_ok!(response.poll()), 7);
}

// promise: ST-4
#[tokio::test(start_paused = true)]
async fn a_call_is_not_woken_before_its_backoff_is_over() {
    let service = service_fn(async |_: u32| Ok::<_, io::Error>(1));
    let service = layer()
        .backoff(Backoff::constant(Duration::from_secs(10)))
        .layer(service);
    let mut response = task::spawn(service.oneshot(0));
    assert_pending!(response.poll());
    for _ in 0..9 {
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!response.is_woken());
    }
    tokio::time::advance(Duration::from_millis(1_001)).await;
    assert!(response.is_woken());
}

/// A request that counts its clones, or what a service is made of.
#[derive(Debug)]
struct Counted<'a>(&'a AtomicUsize);

impl Clone for Counted<'_> {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::SeqCst);
        Self(self.0)
    }
}

// promise: RT-32
#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_retried_is_not_cloned() {
    let failing = service_fn(async |_: Counted<'_>| Ok::<_, io::Error>(1));
    let clones = AtomicUsize::new(0);

    assert_eq!(
        layer()
            .max_retries(0)
            .layer(failing)
            .oneshot(Counted(&clones))
            .await
            .unwrap(),
        1
    );
    assert_eq!(clones.load(Ordering::SeqCst), 0, "one attempt");

    let poor = layer().budget(Budget::ratio(0.1));
    assert_eq!(
        poor.layer(failing).oneshot(Counted(&clones)).await.unwrap(),
        1
    );
    assert_eq!(clones.load(Ordering::SeqCst), 0, "an empty budget");

    assert_eq!(
        layer()
            .layer(failing)
            .oneshot(Counted(&clones))
            .await
            .unwrap(),
        1
    );
    assert_eq!(
        clones.load(Ordering::SeqCst),
        3,
        "one to keep, and one for each retry"
    );
}

// promise: RT-32
#[tokio::test(start_paused = true)]
async fn a_service_is_cloned_for_each_retry_and_for_nothing_else() {
    let clones = AtomicUsize::new(0);
    let counted = Counted(&clones);
    let service = service_fn(move |answer: u32| {
        let _ = &counted;
        std::future::ready(Ok::<_, BoxError>(answer))
    });
    let mut service = layer().layer(service);
    clones.store(0, Ordering::SeqCst);
    for (answer, retries) in [(0, 0), (1, 2), (0, 0)] {
        let response = service.ready().await.unwrap().call(answer);
        assert_eq!(response.await.unwrap(), answer);
        assert_eq!(clones.swap(0, Ordering::SeqCst), retries);
    }
}

/// A part of a service that cannot always be cloned.
struct Fragile(Arc<AtomicBool>);

impl Clone for Fragile {
    fn clone(&self) -> Self {
        assert!(!self.0.load(Ordering::SeqCst), "this clone panics");
        Self(self.0.clone())
    }
}

// promise: RT-37
#[tokio::test(start_paused = true)]
async fn a_clone_of_the_service_that_panics_takes_down_its_own_call_only() {
    let panics = Arc::new(AtomicBool::new(false));
    let fragile = Fragile(panics.clone());
    let service = service_fn(move |answer: u32| {
        let _ = &fragile;
        std::future::ready(Ok::<_, BoxError>(answer))
    });
    let count = |count: u32| count.try_into().unwrap();
    let sends = Arc::new(AtomicUsize::new(0));
    let counted = sends.clone();
    let mut service = layer()
        .budget(Budget::tokens_of(count(2), count(1), count(1)))
        .on_event(move |event| {
            if let Event::Finished { sends, .. } = event {
                counted.fetch_add(*sends as usize, Ordering::SeqCst);
            }
        })
        .layer(service);
    let call = service.ready().await.unwrap().call(1);
    panics.store(true, Ordering::SeqCst);
    assert!(tokio::spawn(call).await.unwrap_err().is_panic());
    assert_eq!(sends.swap(0, Ordering::SeqCst), 1);
    // The retry that was not sent has cost nothing.
    panics.store(false, Ordering::SeqCst);
    assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 1);
    assert_eq!(sends.load(Ordering::SeqCst), 3);
}

// promise: RT-28
#[tokio::test(start_paused = true)]
async fn a_call_that_is_over_holds_no_readiness_though_its_future_is_kept() {
    for answer in [Ok(0), Ok(1), Err("no answer")] {
        let service = service_fn(move |_: u32| std::future::ready(answer.map_err(BoxError::from)));
        let mut service = layer().layer(ConcurrencyLimit::new(service, 1));
        let mut response = task::spawn(service.ready().await.unwrap().call(0));
        while response.poll().is_pending() {
            tokio::time::advance(Duration::from_millis(11)).await;
        }
        assert!(task::spawn(service.ready()).poll().is_ready(), "{answer:?}");
    }
}

// promise: RT-32
#[test]
fn a_call_that_succeeds_at_first_allocates_nothing_beyond_its_copy() {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut allocations = |service: &mut dyn FnMut(&mut std::task::Context<'_>) -> bool| {
        assert!(service(&mut cx), "the first call warms up");
        measure(|| assert!(service(&mut cx))).count_total
    };

    let mut plain = layer().layer(service_fn(|_: u64| {
        std::future::ready(Ok::<_, BoxError>(0))
    }));
    let mut call_plain = |cx: &mut std::task::Context<'_>| {
        let _ = plain.poll_ready(cx);
        matches!(task_poll(plain.call(7), cx), Poll::Ready(Ok(0)))
    };
    assert_eq!(
        allocations(&mut call_plain),
        0,
        "a number has a copy that needs no memory"
    );

    // The copy of a head is one allocation, however many headers it has. A clone would be four or more.
    let http = RetryLayer::http();
    let mut http = http.layer(service_fn(
        |request: Request<buttress_retry::ReplayBody<Full<Bytes>>>| {
            drop(request);
            std::future::ready(Ok::<_, BoxError>(Response::new(Full::<Bytes>::default())))
        },
    ));
    let mut call_http = |request: Request<Full<Bytes>>| {
        let mut request = Some(request);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        measure(|| {
            let _ = http.poll_ready(&mut cx);
            let response = task_poll(http.call(request.take().unwrap()), &mut cx);
            assert!(matches!(response, Poll::Ready(Ok(_))));
        })
        .count_total
    };
    let get = || Request::get("http://a.example/");
    let with_headers = || {
        let headers = get()
            .header("accept", "text/html")
            .header("x-request-id", "17");
        headers.body(Full::default()).unwrap()
    };
    let bare = || get().body(Full::default()).unwrap();
    for (what, request) in [
        ("bare", &bare as &dyn Fn() -> _),
        ("with headers", &with_headers),
    ] {
        call_http(request());
        assert_eq!(call_http(request()), 1, "{what}");
    }
}

fn task_poll<F: Future>(future: F, cx: &mut std::task::Context<'_>) -> Poll<F::Output> {
    std::pin::pin!(future).poll(cx)
}

// promise: RT-8
#[tokio::test(start_paused = true)]
async fn an_attempt_has_its_time_from_the_call_on_whenever_it_is_first_polled() {
    const A_MOMENT: Duration = Duration::from_millis(1);
    let almost = Duration::from_millis(999);
    let layer = layer().max_retries(0).attempt_timeout(almost + A_MOMENT);
    let mut service = layer.layer(service_fn(|_: u64| {
        std::future::pending::<Result<u32, BoxError>>()
    }));
    let mut call = task::spawn(service.call(7));
    tokio::time::advance(almost).await;
    assert_pending!(call.poll());
    tokio::time::advance(A_MOMENT).await;
    assert!(call.is_woken());
    assert_ready_err!(call.poll());

    let mut call = task::spawn(service.call(7));
    tokio::time::advance(almost + A_MOMENT).await;
    assert_ready_err!(call.poll());
}

/// A response and an error that can do nothing.
struct Opaque;

#[derive(Debug)]
struct Failure;

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failure")
    }
}

impl std::error::Error for Failure {}

// promise: RT-38
#[tokio::test(start_paused = true)]
async fn nothing_need_be_clone_or_send_but_what_is_sent_again() {
    // Neither the service, its future, its response nor the request is `Send`.
    let calls = Rc::new(Cell::new(0));
    let service = service_fn({
        let calls = calls.clone();
        move |_request: Rc<str>| {
            let calls = calls.clone();
            async move {
                calls.set(calls.get() + 1);
                if calls.get() < 3 {
                    Err(Failure)
                } else {
                    Ok(Opaque)
                }
            }
        }
    });
    let classifier = |result: Result<&Opaque, &BoxError>| match result {
        Ok(Opaque) => Verdict::SUCCESS,
        Err(error) if error.is::<Failure>() => Verdict::new(Kind::Transient, Applied::Maybe),
        Err(_) => Verdict::new(Kind::Permanent, Applied::Maybe),
    };
    let service = RetryLayer::new(classifier).layer(service);
    assert!(service.oneshot("pay".into()).await.is_ok());
    assert_eq!(calls.get(), 3);
}

// promise: RT-38
#[test]
fn layers_services_and_futures_are_send_where_their_parts_are() {
    fn send<T: Send>(_: &T) {}
    fn send_sync_clone<T: Send + Sync + Clone>(_: &T) {}
    let layer = RetryLayer::http();
    send_sync_clone(&layer);
    let mut service = layer.layer(service_fn(
        |_: Request<buttress_retry::ReplayBody<Full<Bytes>>>| {
            std::future::ready(Ok::<_, BoxError>(Response::new(Full::<Bytes>::default())))
        },
    ));
    send_sync_clone(&service);
    send(&service.call(Request::new(Full::default())));

    // A service in this box is not `Sync`.
    let mut boxed = layer.layer(BoxCloneService::new(service_fn(
        async |_: Request<buttress_retry::ReplayBody<Full<Bytes>>>| {
            Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()))
        },
    )));
    send(&boxed);
    send(&boxed.call(Request::new(Full::default())));
}

// promise: RT-19
#[tokio::test(start_paused = true)]
async fn only_what_was_not_applied_is_sent_again_when_a_request_is_not_idempotent() {
    let calls = AtomicUsize::new(0);
    let service = service_fn(async |request: &'static str| {
        calls.fetch_add(1, Ordering::SeqCst);
        if request == "unsent" {
            Err(io::Error::from(io::ErrorKind::ConnectionRefused))
        } else {
            Ok(1)
        }
    });
    let service = layer()
        .idempotent(|request: &&str| *request == "read")
        .layer(service);
    for (request, sends) in [("read", 3), ("write", 1), ("unsent", 3)] {
        let start = clock::now();
        let _ = service.clone().oneshot(request).await;
        assert_eq!(calls.swap(0, Ordering::SeqCst), sends, "{request}");
        assert_eq!(
            clock::now().saturating_duration_since(start).as_millis(),
            10 * (sends as u128 - 1)
        );
    }
}
