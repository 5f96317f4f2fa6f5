//! The promises of the layer for HTTP, over a service in memory and a paused clock.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use buttress_core::{BoxError, Deadline, Hint, Kind, Verdict, clock};
use buttress_retry::{Attempt, Backoff, Budget, Cause, DelaySource, Event, Outcome, RetryLayer};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use support::*;
use tokio_test::{assert_pending, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer};

// ---- backoff ----

// promise: RT-5
#[tokio::test(start_paused = true)]
async fn clones_draw_different_delays_and_a_seed_repeats_them() {
    async fn delays(layers: [RetryLayer; 2]) -> [Vec<Duration>; 2] {
        let mut drawn = [vec![], vec![]];
        for (layer, drawn) in layers.into_iter().zip(&mut drawn) {
            let log = Log::default();
            let service = layer.on_event(log.sink()).layer(Backend::new(|_| Lost));
            // Together they stay within the budget of 35 retries.
            for _ in 0..8 {
                call(&service, get(HOST)).await;
            }
            *drawn = log.delays();
            assert_eq!(drawn.len(), 16);
        }
        drawn
    }
    let layer = RetryLayer::http();
    let [one, other] = delays([layer.clone(), layer.clone()]).await;
    assert_ne!(one, other, "clones of a layer");
    let [one, other] = delays([RetryLayer::http(), RetryLayer::http()]).await;
    assert_ne!(one, other, "layers of their own");
    let seeded = RetryLayer::http().seed(7);
    let [one, other] = delays([seeded.clone(), seeded]).await;
    assert_ne!(
        one, other,
        "clones share the generator, so they do not repeat each other"
    );
    let [again, _] = delays([RetryLayer::http().seed(7), RetryLayer::http().seed(8)]).await;
    assert_eq!(one, again, "the same seed");
}

// ---- deadline and hints ----

// promise: RT-6
#[tokio::test(start_paused = true)]
async fn a_hint_beyond_the_deadline_gives_the_response_back_at_once() {
    let layer = RetryLayer::http().deadline(millis(1_000));
    let backend = Backend::new(|_| {
        after(
            200,
            with(503, &[("retry-after", "5"), ("x-request-id", "17")]),
        )
    });
    let service = layer.layer(backend.clone());
    let start = clock::now();
    let response = service.clone().oneshot(get(HOST)).await.unwrap();
    assert_eq!(clock::now().saturating_duration_since(start), millis(200));
    assert_eq!(response.status(), 503);
    assert_eq!(
        (
            &response.headers()["retry-after"],
            &response.headers()["x-request-id"]
        ),
        (&"5".parse().unwrap(), &"17".parse().unwrap())
    );
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "sorry"
    );
    assert_eq!(backend.sends(), 1);
    assert_eq!(
        affordable(&layer.deadline(Duration::MAX), HOST).await,
        35,
        "the budget is untouched"
    );
}

// promise: RT-7
#[tokio::test(start_paused = true)]
async fn no_backoff_is_slept_that_ends_after_the_deadline() {
    let layer = plain().deadline(millis(50));
    let backend = Backend::new(|_| status(503));
    assert_eq!(
        call(&layer.layer(backend.clone()), get(HOST)).await,
        (Got::status(503), 0)
    );
    assert_eq!(backend.sends(), 1);
    let backend = Backend::new(|_| status(503));
    let layer = layer.deadline(millis(51));
    assert_eq!(
        call(&layer.layer(backend.clone()), get(HOST)).await,
        (Got::status(503), 50)
    );
    assert_eq!(backend.times(), [0, 50]);
}

// promise: RT-7, RT-40
#[tokio::test(start_paused = true)]
async fn a_deadline_in_a_later_attempt_returns_the_last_real_outcome() {
    for (first, got) in [
        (status as fn(u16) -> Reply, Got::status(503)),
        (|_| Lost, Got::Error("connection reset".into())),
    ] {
        let log = Log::default();
        let layer = plain().deadline(millis(1_000)).on_event(log.sink());
        let backend = Backend::new(move |n| if n == 0 { after(200, first(503)) } else { Hang });
        assert_eq!(
            call(&layer.layer(backend.clone()), get(HOST)).await,
            (got, 1_000)
        );
        assert_eq!(log.outcomes(), [(Outcome::Deadline, 2)]);
    }
}

// promise: RT-7
#[tokio::test(start_paused = true)]
async fn a_deadline_before_any_outcome_is_an_error_that_says_so() {
    let service = plain()
        .deadline(millis(1_000))
        .layer(Backend::new(|_| Hang));
    let error = service.oneshot(get(HOST)).await.unwrap_err();
    assert!(error.is::<buttress_retry::TimedOut>(), "{error}");
}

// promise: RT-7
#[tokio::test(start_paused = true)]
async fn a_deadline_among_the_extensions_counts_where_it_is_earlier() {
    for (own, outer, took) in [
        (None, 300, 300),
        (Some(200), 300, 200),
        (Some(400), 300, 300),
    ] {
        let layer = own.map_or(plain(), |own| plain().deadline(millis(own)));
        let mut request = get(HOST);
        request
            .extensions_mut()
            .insert(Deadline(clock::now() + millis(outer)));
        let backend = Backend::new(|n| if n == 0 { status(500) } else { Hang });
        assert_eq!(
            call(&layer.layer(backend), request).await,
            (Got::status(500), took)
        );
    }
}

// promise: RT-8
#[tokio::test(start_paused = true)]
async fn the_attempt_timeout_covers_an_attempt_and_nothing_else() {
    // 900 ms for readiness and 900 ms of backoff are no part of an attempt of 1 s; the head comes after 900 ms, and its
    // body as late as it likes.
    let layer = RetryLayer::http()
        .backoff(Backoff::constant(millis(900)))
        .attempt_timeout(millis(1_000));
    let backend = Backend::new(|n| after(900, if n == 0 { status(500) } else { status(200) }));
    let slow_to_get_ready = tower::service_fn({
        let backend = backend.clone();
        move |request: Request<buttress_retry::ReplayBody<Full<Bytes>>>| {
            backend.clone().oneshot(request)
        }
    });
    let service = layer.layer(SlowlyReady {
        inner: slow_to_get_ready,
        timer: None,
    });
    assert_eq!(
        call(&service, get(HOST)).await,
        (Got::status(200), 900 + 900 + 900 + 900 + 900)
    );
    assert_eq!(backend.times(), [900, 3_600]);
}

/// Gets ready in 900 ms, for each call anew.
struct SlowlyReady<S> {
    inner: S,
    timer: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl<S: Clone> Clone for SlowlyReady<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            timer: None,
        }
    }
}

impl<S: Service<Req>, Req> Service<Req> for SlowlyReady<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), S::Error>> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(millis(900))));
        std::task::ready!(timer.as_mut().poll(cx));
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> S::Future {
        assert!(
            self.timer.take().is_some_and(|timer| timer.is_elapsed()),
            "called before it was ready"
        );
        self.inner.call(request)
    }
}

// promise: RT-8
#[tokio::test(start_paused = true)]
async fn an_attempt_that_times_out_is_transient_and_may_have_been_applied() {
    let layer = plain()
        .attempt_timeout(millis(1_000))
        .deadline(millis(2_350));
    let log = Log::default();
    let backend = Backend::new(|_| Hang);
    let service = layer
        .clone()
        .max_retries(9)
        .on_event(log.sink())
        .layer(backend.clone());
    let (got, took) = call(&service, get(HOST)).await;
    // The third attempt begins with 200 ms left.
    assert_eq!((backend.times(), took), (vec![0, 1_050, 2_150], 2_350));
    assert_eq!(got, Got::Error(buttress_retry::TimedOut.to_string()));
    assert_eq!(log.outcomes(), [(Outcome::Deadline, 3)]);
    let Event::Retry { cause, verdict, .. } = &log.events()[0] else {
        panic!("a retry comes first")
    };
    assert_eq!(
        (*cause, verdict.kind, verdict.applied),
        (
            Cause::TimedOut,
            Kind::Transient,
            buttress_core::Applied::Maybe
        )
    );

    let backend = Backend::new(|_| Hang);
    assert_eq!(
        call(&layer.layer(backend.clone()), post(HOST)).await.1,
        1_000
    );
    assert_eq!(backend.sends(), 1, "a POST may have been applied");
}

// promise: RT-9
#[tokio::test(start_paused = true)]
async fn a_retry_after_of_two_seconds_is_kept_within_three() {
    for seed in 0..200 {
        let backend = Backend::new(|n| {
            if n == 0 {
                with(429, &[("retry-after", "2")])
            } else {
                status(200)
            }
        });
        let service = RetryLayer::http().seed(seed).layer(backend.clone());
        assert_eq!(call(&service, get(HOST)).await.0, Got::status(200));
        let second = backend.times()[1];
        // A timer's tick is a millisecond.
        assert!((2_000..=3_001).contains(&second), "{second} ms");
    }
}

// promise: RT-12
#[tokio::test(start_paused = true)]
async fn a_veto_means_one_send_and_its_opposite_changes_nothing() {
    let sends = async |layer: RetryLayer, request: Request<Full<Bytes>>, reply: fn() -> Reply| {
        let backend = Backend::new(move |_| reply());
        call(&layer.layer(backend.clone()), request).await;
        backend.sends()
    };
    let no = || with(503, &[("x-should-retry", "false")]);
    let yes = || with(503, &[("x-should-retry", "true")]);
    assert_eq!(sends(plain(), get(HOST), no).await, 1);
    assert_eq!(sends(plain(), get(HOST), yes).await, 3, "attempts");
    assert_eq!(sends(plain(), post(HOST), yes).await, 1, "safety");
    assert_eq!(
        sends(plain().deadline(millis(60)), get(HOST), yes).await,
        2,
        "deadline"
    );
    let poor = plain().budget(Budget::tokens_of(count(1), count(1), count(1)));
    assert_eq!(sends(poor, get(HOST), yes).await, 2, "budget");
    assert_eq!(
        sends(plain(), get(HOST), || with(
            404,
            &[("x-should-retry", "true")]
        ))
        .await,
        1,
        "status"
    );
}

// ---- budget ----

// promise: RT-13
#[tokio::test(start_paused = true)]
async fn a_thousand_failing_calls_make_1035_sends_and_1100_when_throttled() {
    for (code, sends) in [(500, 1_035), (429, 1_100)] {
        let backend = Backend::new(move |_| status(code));
        let service = RetryLayer::http().layer(backend.clone());
        for _ in 0..1_000 {
            call(&service, get(HOST)).await;
        }
        assert_eq!(backend.sends(), sends, "{code}");
    }
}

// promise: RT-15
#[tokio::test(start_paused = true)]
async fn a_retry_that_is_not_sent_gives_back_what_it_took() {
    // Each scene schedules a retry that never reaches the service, with a budget that pays for two.
    let budget = || Budget::tokens_of(count(28), count(14), count(14));
    let rich = plain().budget(budget());
    let once_then =
        |reply: fn() -> Reply| Backend::new(move |n| if n == 0 { status(500) } else { reply() });

    // The caller drops it during the backoff.
    let mut cancelled = task::spawn(rich.layer(once_then(|| Hang)).oneshot(get(HOST)));
    assert_pending!(cancelled.poll());
    tokio::time::advance(millis(10)).await;
    assert_pending!(cancelled.poll());
    drop(cancelled);
    assert_eq!(affordable(&rich, HOST).await, 2, "cancelled");

    // A breaker below is open.
    let rich = plain().budget(budget());
    assert_eq!(
        call(&rich.layer(once_then(|| Refused)), get(HOST)).await,
        (Got::status(500), 50)
    );
    assert_eq!(affordable(&rich, HOST).await, 2, "refused");

    // The time is over before the service gets ready again.
    let rich = plain().budget(budget()).deadline(millis(100));
    let limited = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service(once_then(|| Hang));
    let service = rich.layer(limited);
    let first = call(&service, get(HOST));
    let blocker = async {
        tokio::time::sleep(millis(10)).await;
        call(&service, get(HOST)).await
    };
    let (first, _blocker) = tokio::join!(first, blocker);
    assert_eq!(first, (Got::status(500), 100));
    assert_eq!(
        affordable(&rich.deadline(Duration::MAX), HOST).await,
        2,
        "not ready in time"
    );

    // The service below has failed for good.
    let rich = plain().budget(budget());
    let broken = BreaksAfter {
        inner: once_then(|| Hang),
        ready: Arc::new(AtomicUsize::new(1)),
    };
    assert_eq!(
        call(&rich.layer(broken), get(HOST)).await,
        (Got::status(500), 50)
    );
    assert_eq!(affordable(&rich, HOST).await, 2, "readiness error");

    // One that was sent is paid for, though the caller goes away.
    let rich = plain().budget(budget());
    let mut sent = task::spawn(rich.layer(once_then(|| Hang)).oneshot(get(HOST)));
    assert_pending!(sent.poll());
    tokio::time::advance(millis(51)).await;
    assert_pending!(sent.poll());
    drop(sent);
    assert_eq!(affordable(&rich, HOST).await, 1, "sent");
}

/// Is ready so many times, then fails.
#[derive(Clone)]
struct BreaksAfter<S> {
    inner: S,
    ready: Arc<AtomicUsize>,
}

impl<S: Service<Req, Error = BoxError>, Req> Service<Req> for BreaksAfter<S> {
    type Response = S::Response;
    type Error = BoxError;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), BoxError>> {
        let left = self
            .ready
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        if left.is_err() {
            Poll::Ready(Err("the service has failed".into()))
        } else {
            self.inner.poll_ready(cx)
        }
    }

    fn call(&mut self, request: Req) -> S::Future {
        self.inner.call(request)
    }
}

// promise: RT-16
#[tokio::test(start_paused = true)]
async fn an_empty_budget_gives_the_outcome_back_without_a_sleep() {
    let log = Log::default();
    let layer = plain().budget(Budget::ratio(0.2)).on_event(log.sink());
    let backend = Backend::new(|_| after(5, status(503)));
    assert_eq!(
        call(&layer.layer(backend.clone()), get(HOST)).await,
        (Got::status(503), 5)
    );
    assert_eq!(
        (backend.sends(), log.outcomes()),
        (1, vec![(Outcome::Budget, 1)])
    );
}

// promise: RT-17
#[tokio::test(start_paused = true)]
async fn one_host_that_is_down_denies_nothing_to_another() {
    let layer = RetryLayer::http();
    let down = Backend::new(|_| status(500));
    let service = layer.layer(down.clone());
    for _ in 0..1_000 {
        call(&service, get("http://down.example/")).await;
    }
    assert_eq!(down.sends(), 1_035);
    assert_eq!(affordable(&layer, "http://up.example/").await, 35);
    assert_eq!(
        affordable(&layer, "http://down.example:8080/").await,
        35,
        "another port is another authority"
    );
    assert_eq!(affordable(&layer, "http://down.example/path").await, 0);

    // Without an authority in the URI, as a proxy sees it, the `Host` counts.
    let mut request = get("/");
    request
        .headers_mut()
        .insert("host", "third.example".parse().unwrap());
    let backend = Backend::new(|_| status(500));
    call(&layer.layer(backend.clone()), request).await;
    assert_eq!(backend.sends(), 3);
}

// promise: RT-18
#[tokio::test(start_paused = true)]
async fn in_a_long_outage_there_are_few_retries_unless_a_floor_grants_them() {
    const CALLS: usize = 1_000;
    for (budget, expected) in [
        (Budget::tokens(), 1.0..=1.02),
        (Budget::ratio(0.2), 1.0..=1.02),
        (Budget::tokens().floor(count(10)), 2.9..=3.0),
    ] {
        let backend = Backend::new(|_| status(500));
        let layer = RetryLayer::http()
            .backoff(Backoff::constant(Duration::ZERO))
            .budget(budget);
        affordable(&layer, HOST).await;
        let service = layer.layer(backend.clone());
        for _ in 0..CALLS {
            call(&service, get(HOST)).await;
            tokio::time::advance(millis(200)).await;
        }
        #[expect(clippy::cast_precision_loss, reason = "these are small")]
        let per_call = backend.sends() as f64 / CALLS as f64;
        assert!(expected.contains(&per_call), "{budget:?}: {per_call}");
    }
}

// promise: RT-13
#[tokio::test(start_paused = true)]
async fn successes_fill_the_budget_again_though_it_is_empty() {
    let layer = RetryLayer::http();
    assert_eq!(affordable(&layer, HOST).await, 35);
    let service = layer.layer(Backend::new(|_| status(200)));
    for _ in 0..42 {
        call(&service, get(HOST)).await;
    }
    // 10 were left of 500 - 35 * 14, and 52 pay for three.
    assert_eq!(affordable(&layer, HOST).await, 3);
}

// ---- what may be sent again ----

// promise: RT-20
#[tokio::test(start_paused = true)]
async fn a_keyed_post_is_retried_with_the_same_key() {
    for reply in [
        || status(408),
        || status(425),
        || status(429),
        || status(500),
        || status(502),
        || status(503),
        || status(504),
        || with(409, &[("retry-after", "1")]),
        || Lost,
        || Unsent,
    ] as [fn() -> Reply; 10]
    {
        let backend = Backend::new(move |n| if n < 2 { reply() } else { status(201) });
        assert_eq!(
            call(&plain().layer(backend.clone()), keyed(HOST)).await.0,
            Got::status(201)
        );
        let arrived = backend.arrived();
        assert_eq!(arrived.len(), 3);
        for request in arrived.iter() {
            assert_eq!(request.headers["idempotency-key"], "\"8e03978e\"");
            assert_eq!(request.headers.get_all("idempotency-key").iter().count(), 1);
            assert_eq!(request.body.as_deref(), Some(&b"amount=3"[..]));
        }
    }
    for code in [400, 422] {
        let backend = Backend::new(move |_| status(code));
        assert_eq!(
            call(&plain().layer(backend.clone()), keyed(HOST)).await,
            (Got::status(code), 0)
        );
        assert_eq!(backend.sends(), 1);
    }
    // Without a key a conflict is one.
    let backend = Backend::new(|_| status(409));
    let mut put = get(HOST);
    *put.method_mut() = http::Method::PUT;
    assert_eq!(
        call(&plain().layer(backend.clone()), put).await,
        (Got::status(409), 0)
    );
}

// promise: RT-20
#[tokio::test(start_paused = true)]
async fn a_call_that_still_runs_is_waited_for_as_long_as_the_server_says() {
    let backend = Backend::new(|n| {
        if n == 0 {
            with(409, &[("retry-after", "2")])
        } else {
            status(201)
        }
    });
    assert_eq!(
        call(&plain().layer(backend.clone()), keyed(HOST)).await.0,
        Got::status(201)
    );
    assert!((2_000..=3_001).contains(&backend.times()[1]));
}

// promise: RT-21
#[tokio::test(start_paused = true)]
async fn a_post_without_a_key_is_sent_once_whatever_the_answer() {
    let log = Log::default();
    let layer = plain().on_event(log.sink());
    for code in [408, 425, 429, 500, 501, 502, 503, 504, 505] {
        let backend = Backend::new(move |_| status(code));
        assert_eq!(
            call(&layer.layer(backend.clone()), post(HOST)).await,
            (Got::status(code), 0)
        );
        assert_eq!(backend.sends(), 1, "{code}");
    }
    let backend = Backend::new(|_| Lost);
    call(&layer.layer(backend.clone()), post(HOST)).await;
    assert_eq!(backend.sends(), 1, "a lost connection");
    let backend = Backend::new(|n| if n < 2 { Unsent } else { status(201) });
    assert_eq!(
        call(&layer.layer(backend.clone()), post(HOST)).await.0,
        Got::status(201),
        "one that never left"
    );
    let not_idempotent = log
        .outcomes()
        .iter()
        .filter(|(outcome, _)| *outcome == Outcome::NotIdempotent)
        .count();
    assert_eq!(not_idempotent, 8);
}

// promise: RT-21
#[tokio::test(start_paused = true)]
async fn upgrades_and_connect_are_not_retried_after_a_response_head() {
    let upgrade = || {
        Request::get(HOST)
            .header("upgrade", "websocket")
            .body(Full::default())
            .unwrap()
    };
    let connect = || {
        Request::connect("a.example:443")
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    let keyed_connect = || {
        let mut request = Request::connect("a.example:443")
            .body(Full::<Bytes>::default())
            .unwrap();
        request
            .headers_mut()
            .insert("idempotency-key", "k".parse().unwrap());
        request
    };
    for request in [upgrade, connect, keyed_connect] as [fn() -> Request<Full<Bytes>>; 3] {
        for reply in [|| status(503), || status(429), || status(409), || Lost] as [fn() -> Reply; 4]
        {
            let backend = Backend::new(move |_| reply());
            call(&plain().layer(backend.clone()), request()).await;
            assert_eq!(backend.sends(), 1, "{:?}", request());
        }
        let backend = Backend::new(|n| if n == 0 { Unsent } else { status(101) });
        call(&plain().layer(backend.clone()), request()).await;
        assert_eq!(backend.sends(), 2, "it never left");
    }
    // Not even when a classifier holds that it was not applied.
    let never_applied = RetryLayer::grpc().idempotent(|_: &Request<Full<Bytes>>| true);
    let backend = Backend::new(|_| with(200, &[("grpc-status", "14")]));
    call(&never_applied.layer(backend.clone()), upgrade()).await;
    assert_eq!(backend.sends(), 1);
}

// promise: RT-39
#[tokio::test(start_paused = true)]
async fn every_other_4xx_is_sent_once() {
    for code in (400..600).filter(|code| ![408, 425, 429, 500, 502, 503, 504].contains(code)) {
        let backend = Backend::new(move |_| status(code));
        assert_eq!(
            call(&plain().layer(backend.clone()), get(HOST)).await,
            (Got::status(code), 0)
        );
        assert_eq!(backend.sends(), 1, "{code}");
    }
}

// promise: RT-40
#[tokio::test(start_paused = true)]
async fn after_the_last_attempt_the_caller_gets_its_outcome() {
    let codes = |n: usize| [500, 502, 503][n];
    let backend = Backend::new(move |n| status(codes(n)));
    assert_eq!(
        call(&plain().layer(backend.clone()), get(HOST)).await,
        (Got::status(503), 150)
    );
    assert_eq!(backend.times(), [0, 50, 150]);
    let backend = Backend::new(move |n| if n == 2 { Lost } else { status(500) });
    assert_eq!(
        call(&plain().layer(backend), get(HOST)).await.0,
        Got::Error("connection reset".into())
    );
    // A limit of our own is no outcome.
    let backend = Backend::new(move |n| if n == 0 { status(500) } else { Hang });
    assert_eq!(
        call(
            &plain().attempt_timeout(millis(10)).layer(backend),
            get(HOST)
        )
        .await,
        (Got::status(500), 170)
    );
}

// ---- bodies ----

// promise: RT-23
#[tokio::test(start_paused = true)]
async fn a_body_that_says_it_is_too_large_is_sent_once_and_untouched() {
    let log = Log::default();
    let layer = plain().on_event(log.sink());
    for (size, sends) in [(65_536, 3), (65_537, 1)] {
        let backend = Backend::new(|_| status(503));
        let body = Full::new(Bytes::from(vec![7; size]));
        let (got, _) = call(&layer.layer(backend.clone()), keyed(HOST).map(|_| body)).await;
        assert_eq!((got, backend.sends()), (Got::status(503), sends));
        let whole =
            |request: &Arrived| request.body.as_ref().is_some_and(|body| body.len() == size);
        assert!(backend.arrived().iter().all(whole));
    }
    assert_eq!(
        log.outcomes(),
        [(Outcome::Attempts, 3), (Outcome::BodyNotReplayable, 1)]
    );
}

// promise: RT-23, RT-24
#[tokio::test(start_paused = true)]
async fn a_streaming_body_is_neither_delayed_nor_cut_short() {
    for (chunks, sends) in [(64, 3), (65, 1)] {
        let backend = Backend::new(|_| status(503));
        // A chunk of 1 KiB every 10 ms, and nobody knows how many there will be.
        let stream = futures_util::stream::unfold(0, move |sent| async move {
            if sent == chunks {
                return None;
            }
            tokio::time::sleep(millis(10)).await;
            Some((
                Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; 1_024]))),
                sent + 1,
            ))
        });
        let request = keyed(HOST).map(|_| StreamBody::new(Box::pin(stream)));
        let service = plain().layer(backend.clone());
        let (got, took) = call(&service, request).await;
        assert_eq!(
            (got, backend.sends()),
            (Got::status(503), sends),
            "{chunks} KiB"
        );
        // Only the first attempt waits for the chunks, each of which takes a tick of the timer more.
        let backoff = if sends == 3 { 150 } else { 0 };
        assert!(
            (10 * chunks + backoff..=12 * chunks + backoff).contains(&(took as usize)),
            "{took} ms"
        );
        let whole =
            |request: &Arrived| request.body.as_ref().map(Bytes::len) == Some(1_024 * chunks);
        assert!(backend.arrived().iter().all(whole));
    }
}

// ---- the response that is retried away ----

// promise: RT-27
#[tokio::test(start_paused = true)]
async fn no_response_is_alive_during_a_backoff_and_a_stalled_one_costs_50_ms() {
    let alive = Arc::new(());
    let layer = RetryLayer::http().backoff(Backoff::constant(millis(20)));
    let backend = Backend::new({
        let alive = alive.clone();
        move |n| {
            if n == 0 {
                Reply::Response(stalled(10, &alive))
            } else {
                status(200)
            }
        }
    });
    assert_eq!(
        call(&layer.layer(backend.clone()), get(HOST)).await.0,
        Got::status(200)
    );
    let second = backend.times()[1];
    assert!(
        (50..=51).contains(&second),
        "drained for 50 ms, in which the backoff of 20 ms has passed: {second}"
    );

    // With a longer backoff the drain is a part of it, and the response is gone while the rest is slept.
    let layer = RetryLayer::http().backoff(Backoff::constant(millis(200)));
    let backend = Backend::new({
        let alive = alive.clone();
        move |n| {
            if n == 0 {
                Reply::Response(stalled(10, &alive))
            } else {
                status(200)
            }
        }
    });
    let idle = Arc::strong_count(&alive);
    let mut future = task::spawn(layer.layer(backend.clone()).oneshot(get(HOST)));
    assert_pending!(future.poll());
    assert_eq!(Arc::strong_count(&alive), idle + 1, "it is being read");
    tokio::time::advance(millis(52)).await;
    assert_pending!(future.poll());
    assert_eq!(Arc::strong_count(&alive), idle, "it is gone");
    tokio::time::advance(millis(147)).await;
    assert_pending!(future.poll());
    assert_eq!(backend.sends(), 1);
    tokio::time::advance(millis(2)).await;
    let _ = future.poll();
    assert_eq!(backend.sends(), 2);
}

// promise: RT-27, RT-29
#[tokio::test(start_paused = true)]
async fn a_response_that_was_drained_comes_back_whole_and_a_cut_one_says_so() {
    let body = async |size: usize, stall: bool| {
        let backend = Backend::new(move |n| match n {
            0 if stall => Reply::Response(stalled(size, &Arc::new(()))),
            0 => Reply::Response(
                Response::builder()
                    .status(500)
                    .body(full(vec![b'x'; size]))
                    .unwrap(),
            ),
            _ => Refused,
        });
        let (got, _) = call(&plain().layer(backend), get(HOST)).await;
        match got {
            Got::Response { status: 500, body } => body.map(|body| body.len()),
            got => panic!("{got:?}"),
        }
    };
    assert_eq!(body(65_536, false).await, Some(65_536), "exactly the limit");
    assert_eq!(
        body(65_537, false).await,
        None,
        "one byte more ends with an error"
    );
    assert_eq!(body(10, true).await, None, "so does one that stalled");
}

// promise: RT-27
#[tokio::test(start_paused = true)]
async fn a_response_without_an_end_is_left() {
    for chunk in ["", "x"] {
        let endless = move || {
            let frame = Frame::data(Bytes::from_static(chunk.as_bytes()));
            let frames = futures_util::stream::repeat_with(move || {
                Ok(Frame::data(frame.data_ref().unwrap().clone()))
            });
            Response::builder()
                .status(500)
                .body(StreamBody::new(frames).boxed_unsync())
                .unwrap()
        };
        let backend = Backend::new(move |n| {
            if n == 0 {
                Reply::Response(endless())
            } else {
                status(200)
            }
        });
        assert_eq!(
            call(&plain().layer(backend.clone()), get(HOST)).await.0,
            Got::status(200)
        );
        assert_eq!(backend.sends(), 2);
    }
}

// promise: RT-26, RT-27
#[tokio::test(start_paused = true)]
async fn responses_are_kept_in_the_same_memory_and_dropped_when_there_is_none() {
    let layer = plain().replay_memory(1_000);
    let large = || {
        Response::builder()
            .status(500)
            .body(full(vec![b'x'; 2_000]))
            .unwrap()
    };
    let backend = Backend::new(move |n| {
        if n == 0 {
            Reply::Response(large())
        } else {
            Refused
        }
    });
    let (got, _) = call(&layer.layer(backend.clone()), get(HOST)).await;
    assert_eq!(
        got,
        Got::Response {
            status: 500,
            body: None
        },
        "its status is kept, its body says that it is cut"
    );
    assert_eq!(backend.sends(), 2, "but it was no reason not to try again");
}

// ---- tower's contract ----

// promise: RT-28
#[tokio::test(start_paused = true)]
async fn no_readiness_is_held_during_a_backoff() {
    let backend = Backend::new(|n| if n == 0 { status(500) } else { status(200) });
    let limited = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service(backend.clone());
    let service = RetryLayer::http()
        .backoff(Backoff::constant(millis(100)))
        .layer(limited);
    let other = async {
        tokio::time::sleep(millis(10)).await;
        call(&service, get(HOST)).await
    };
    let (first, other) = tokio::join!(call(&service, get(HOST)), other);
    assert_eq!(
        other,
        (Got::status(200), 0),
        "the other call completes meanwhile"
    );
    assert_eq!(first, (Got::status(200), 100));
}

// promise: RT-29
#[tokio::test(start_paused = true)]
async fn what_fails_on_this_side_after_a_backoff_never_replaces_the_outcome() {
    let log = Log::default();
    let layer = plain().on_event(log.sink());
    let backend = Backend::new(|n| if n == 0 { status(503) } else { Refused });
    assert_eq!(
        call(&layer.layer(backend), get(HOST)).await,
        (Got::status(503), 50),
        "an open breaker"
    );

    let broken = BreaksAfter {
        inner: Backend::new(|_| status(503)),
        ready: Arc::new(AtomicUsize::new(1)),
    };
    assert_eq!(
        call(&layer.layer(broken), get(HOST)).await,
        (Got::status(503), 50),
        "a readiness error"
    );
    assert_eq!(
        log.outcomes(),
        [(Outcome::Refused, 2), (Outcome::Refused, 1)]
    );
}

// promise: RT-29
#[tokio::test(start_paused = true)]
async fn readiness_is_waited_for_no_longer_than_the_time_left() {
    let backend = Backend::new(|n| if n == 0 { status(503) } else { Hang });
    let limited = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service(backend);
    let service = plain().deadline(millis(400)).layer(limited);
    let first = call(&service, get(HOST));
    let blocker = async {
        tokio::time::sleep(millis(10)).await;
        call(&service, get(HOST)).await
    };
    let (first, _) = tokio::join!(first, blocker);
    assert_eq!(first, (Got::status(503), 400));
}

// promise: RT-30
#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_retried_costs_nothing_and_takes_no_time() {
    let log = Log::default();
    let layer = plain().on_event(log.sink());
    let backend = Backend::new(|_| Refused);
    let (got, took) = call(&layer.layer(backend.clone()), get(HOST)).await;
    assert_eq!(
        (got, took),
        (
            Got::Error("refused by breaker: open; try again after 7.0s".into()),
            0
        )
    );
    assert_eq!(
        (backend.sends(), log.outcomes()),
        (1, vec![(Outcome::Refused, 1)])
    );
    assert_eq!(affordable(&layer, HOST).await, 35);
}

// promise: RT-30
#[tokio::test(start_paused = true)]
async fn a_refusal_is_retried_when_it_is_asked_for_at_the_time_that_it_names() {
    let backend = Backend::new(|n| if n == 0 { Refused } else { status(200) });
    let service = plain().retry_refusals(true).layer(backend.clone());
    assert_eq!(call(&service, post(HOST)).await.0, Got::status(200));
    assert!(
        (7_000..=10_501).contains(&backend.times()[1]),
        "{:?}",
        backend.times()
    );
}

#[derive(Clone, Debug, PartialEq)]
struct Outer(&'static str);

#[derive(Clone, Debug, PartialEq)]
struct Inner(u32);

// promise: RT-31
#[tokio::test(start_paused = true)]
async fn each_attempt_gets_the_request_as_the_caller_made_it() {
    let backend = Backend::new(|n| if n < 2 { status(500) } else { status(200) });
    // A layer below leaves its mark on what it gets, and must not find it again.
    let marks = tower::util::MapRequestLayer::new(
        |mut request: Request<buttress_retry::ReplayBody<Full<Bytes>>>| {
            assert_eq!(request.extensions().get::<Inner>(), None);
            request.extensions_mut().insert(Inner(1));
            request
                .headers_mut()
                .insert("x-inner", "1".parse().unwrap());
            request
        },
    );
    let service = ServiceBuilder::new()
        .layer(plain())
        .layer(marks)
        .service(backend.clone());
    let mut request = Request::put("http://a.example/b?c=d")
        .version(http::Version::HTTP_10)
        .header("x-b", "1")
        .header("x-a", "2")
        .header("x-b", "3")
        .body(Full::from("whole"))
        .unwrap();
    request.extensions_mut().insert(Outer("trace"));
    let before = request.headers().clone();
    call(&service, request).await;

    let arrived = backend.arrived();
    assert_eq!(arrived.len(), 3);
    for (number, request) in (1..).zip(arrived.iter()) {
        assert_eq!(request.extensions.get(), Some(&Outer("trace")));
        let expected = (number > 1).then_some((number, 3));
        assert_eq!(
            request
                .attempt()
                .map(|Attempt { number, max, .. }| (number, max)),
            expected
        );
        assert_eq!(
            (&request.method, request.uri.to_string().as_str()),
            (&http::Method::PUT, "http://a.example/b?c=d")
        );
        let mut headers = request.headers.clone();
        headers.remove("x-inner");
        assert!(headers.iter().eq(&before), "{headers:?}");
        assert_eq!(request.body.as_deref(), Some(&b"whole"[..]));
    }
}

// promise: RT-33
#[tokio::test(start_paused = true)]
async fn dropped_in_a_backoff_nothing_more_is_sent() {
    let log = Log::default();
    let layer = plain().on_event(log.sink());
    let backend = Backend::new(|_| status(500));
    let mut future = task::spawn(layer.layer(backend.clone()).oneshot(get(HOST)));
    assert_pending!(future.poll());
    drop(future);
    tokio::time::advance(Duration::from_mins(1)).await;
    assert_eq!(backend.sends(), 1);
    assert_eq!(log.outcomes(), [(Outcome::Cancelled, 1)]);
    assert_eq!(affordable(&layer, HOST).await, 35);
}

// promise: RT-33
#[tokio::test(start_paused = true)]
async fn an_attempt_is_dropped_with_its_call_and_at_its_timeout() {
    let alive = Arc::new(());
    let hang = {
        let alive = alive.clone();
        tower::service_fn(move |_: Request<buttress_retry::ReplayBody<Full<Bytes>>>| {
            let alive = alive.clone();
            async move {
                std::future::pending::<()>().await;
                drop(alive);
                Ok::<_, BoxError>(Response::new(full("")))
            }
        })
    };
    let mut future = task::spawn(
        plain()
            .attempt_timeout(millis(100))
            .layer(hang)
            .oneshot(get(HOST)),
    );
    assert_pending!(future.poll());
    assert_eq!(Arc::strong_count(&alive), 3);
    tokio::time::advance(millis(101)).await;
    assert_pending!(future.poll());
    assert_eq!(
        Arc::strong_count(&alive),
        2,
        "the attempt is gone in the poll that ends it"
    );
    tokio::time::advance(millis(51)).await;
    assert_pending!(future.poll());
    assert_eq!(Arc::strong_count(&alive), 3, "the second attempt");
    drop(future);
    assert_eq!(Arc::strong_count(&alive), 1);
}

// promise: RT-33
#[tokio::test(start_paused = true)]
async fn dropped_at_any_poll_nothing_is_leaked() {
    for polls in 0..20 {
        let log = Log::default();
        let layer = plain()
            .budget(Budget::tokens_of(count(28), count(14), count(14)))
            .on_event(log.sink());
        let backend = Backend::new(|n| after(10, status([500, 500, 200][n])));
        let mut future = Some(task::spawn(layer.layer(backend.clone()).oneshot(get(HOST))));
        for _ in 0..polls {
            if let Some(running) = &mut future
                && running.poll().is_ready()
            {
                future = None;
            }
            tokio::time::advance(millis(11)).await;
        }
        drop(future);
        let sends = backend.sends();
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(backend.sends(), sends, "dropped after {polls} polls");
        let outcomes = log.outcomes();
        assert_eq!(
            outcomes.len(),
            usize::from(polls > 0),
            "dropped after {polls} polls"
        );
        // Each retry that was sent is paid for, unless the call succeeded, which gives the last one back.
        let paid = match outcomes.first() {
            None => 0,
            Some((Outcome::OkAfterRetry, sends)) => sends - 2,
            Some((_, sends)) => sends - 1,
        };
        assert_eq!(
            affordable(&layer, HOST).await,
            2 - paid as usize,
            "dropped after {polls} polls"
        );
    }
}

// promise: RT-34
#[tokio::test(start_paused = true)]
async fn grpc_unavailable_is_retried_and_a_pushback_is_exact() {
    let backend = Backend::new(|n| match n {
        0 => with(200, &[("grpc-status", "14")]),
        1 => with(
            200,
            &[("grpc-status", "8"), ("grpc-retry-pushback-ms", "777")],
        ),
        _ => with(200, &[("grpc-status", "0")]),
    });
    let layer = RetryLayer::grpc().backoff(Backoff::constant(millis(50)));
    assert_eq!(
        call(&layer.layer(backend.clone()), post(HOST)).await.0,
        Got::status(200)
    );
    assert_eq!(backend.times(), [0, 50, 827]);
    let previous = |n: usize| {
        backend.arrived()[n]
            .headers
            .get("grpc-previous-rpc-attempts")
            .cloned()
    };
    assert_eq!(
        [previous(0), previous(1), previous(2)],
        [None, Some("1".parse().unwrap()), Some("2".parse().unwrap())]
    );

    for (reply, sends) in [
        (with as fn(_, _) -> _, 1),
        (|_, _| Lost, 1),
        (|_, _| with(200, &[("grpc-status", "13")]), 1),
        (
            |_, _| {
                with(
                    200,
                    &[("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")],
                )
            },
            1,
        ),
        (|_, _| Unsent, 3),
    ]
        as [(
            fn(u16, &'static [(&'static str, &'static str)]) -> Reply,
            usize,
        ); 5]
    {
        let backend = Backend::new(move |_| reply(200, &[("grpc-status", "3")]));
        call(&layer.layer(backend.clone()), post(HOST)).await;
        assert_eq!(backend.sends(), sends);
    }
    let backend = Backend::new(|_| with(200, &[("grpc-status", "13")]));
    let layer = layer.idempotent(|_: &Request<Full<Bytes>>| true);
    call(&layer.layer(backend.clone()), post(HOST)).await;
    assert_eq!(backend.sends(), 3, "an idempotent method");
}

// promise: RT-34
#[tokio::test(start_paused = true)]
async fn the_head_of_a_streaming_response_is_not_held_back() {
    let layer = RetryLayer::grpc();
    let backend = Backend::new(|_| {
        let mut response = stalled(10, &Arc::new(()));
        *response.status_mut() = StatusCode::OK;
        Reply::Response(response)
    });
    let mut future = task::spawn(layer.layer(backend).oneshot(post(HOST)));
    let Poll::Ready(Ok(response)) = future.poll() else {
        panic!("its head is there at once")
    };
    let mut body = response.into_body();
    let frame = task::spawn(body.frame()).poll();
    assert!(matches!(frame, Poll::Ready(Some(Ok(frame))) if frame.data_ref().unwrap().len() == 10));
}

// promise: RT-35
#[tokio::test(start_paused = true)]
async fn a_resend_header_is_absent_at_first_and_then_exact() {
    let numbers = async |layer: RetryLayer, request: Request<Full<Bytes>>| {
        let backend = Backend::new(|_| status(500));
        call(&layer.layer(backend.clone()), request).await;
        let header = |request: &Arrived| {
            let lines = request.headers.get_all("x-resend").iter();
            lines
                .map(|line| line.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
                .join(", ")
        };
        backend.arrived().iter().map(header).collect::<Vec<_>>()
    };
    let on = || plain().resend_header(http::HeaderName::from_static("x-resend"));
    assert_eq!(
        numbers(plain(), get(HOST)).await,
        ["", "", ""],
        "off by default"
    );
    assert_eq!(numbers(on(), get(HOST)).await, ["", "1", "2"]);
    let mut proxied = get(HOST);
    proxied
        .headers_mut()
        .append("x-resend", "7".parse().unwrap());
    proxied
        .headers_mut()
        .append("x-resend", "8".parse().unwrap());
    assert_eq!(numbers(on(), proxied).await, ["", "1", "2"], "never twice");
}

// ---- saying what happened ----

// promise: RT-36
#[tokio::test(start_paused = true)]
async fn the_outcomes_add_up_to_the_calls_and_the_sends_to_calls_and_retries() {
    let log = Log::default();
    let layer = plain().replay_limit(8).on_event(log.sink());
    let scene =
        async |layer: RetryLayer, request: Request<Full<Bytes>>, script: fn(usize) -> Reply| {
            let backend = Backend::new(script);
            call(&layer.layer(backend.clone()), request).await;
            backend.sends()
        };
    let mut sends = 0;
    let mut expected = vec![];
    for (outcome, layer, request, script) in [
        (
            Outcome::Ok,
            layer.clone(),
            get(HOST),
            (|_| status(200)) as fn(usize) -> Reply,
        ),
        (Outcome::OkAfterRetry, layer.clone(), get(HOST), |n| {
            status([503, 200][n])
        }),
        (Outcome::Attempts, layer.clone(), get(HOST), |_| status(500)),
        (
            Outcome::Budget,
            layer.clone().budget(Budget::ratio(1.0)),
            get(HOST),
            |_| Lost,
        ),
        (
            Outcome::Deadline,
            layer.clone().deadline(millis(60)),
            get(HOST),
            |_| status(500),
        ),
        (Outcome::NotRetryable, layer.clone(), get(HOST), |_| {
            status(404)
        }),
        (Outcome::NotIdempotent, layer.clone(), post(HOST), |_| {
            status(500)
        }),
        (
            Outcome::BodyNotReplayable,
            layer.clone(),
            keyed(HOST).map(|_| Full::from("123456789")),
            |_| status(500),
        ),
        (Outcome::Refused, layer.clone(), get(HOST), |n| {
            if n == 0 { Lost } else { Refused }
        }),
        (Outcome::Vetoed, layer.clone(), get(HOST), |_| {
            with(503, &[("x-should-retry", "false")])
        }),
        (Outcome::Vetoed, layer.clone(), get(HOST), |_| {
            with(503, &[("retry-after", "3600")])
        }),
    ] {
        sends += scene(layer, request, script).await;
        expected.push(outcome);
    }
    let mut cancelled = task::spawn(layer.layer(Backend::new(|_| Lost)).oneshot(get(HOST)));
    assert_pending!(cancelled.poll());
    drop(cancelled);
    sends += 1;
    expected.push(Outcome::Cancelled);

    let outcomes = log.outcomes();
    assert_eq!(
        outcomes
            .iter()
            .map(|(outcome, _)| *outcome)
            .collect::<Vec<_>>(),
        expected
    );
    assert_eq!(
        outcomes
            .iter()
            .map(|(_, sends)| *sends as usize)
            .sum::<usize>(),
        sends
    );
    // Of the retries, one was cancelled before it was sent.
    assert_eq!(sends, expected.len() + log.delays().len() - 1);
}

// promise: RT-36
#[tokio::test(start_paused = true)]
async fn a_retry_event_says_which_why_and_when() {
    let log = Log::default();
    let layer = plain().max_retries(3).on_event(log.sink());
    let backend = Backend::new(|n| match n {
        0 => status(503),
        1 => Lost,
        2 => with(429, &[("retry-after", "9")]),
        _ => status(200),
    });
    call(&layer.layer(backend), get(HOST)).await;
    let retries: Vec<_> = log.events();
    let [first, second, third, _] = &retries[..] else {
        panic!("{retries:?}")
    };
    let said = |event: &Event| match event {
        Event::Retry {
            number,
            delay,
            source,
            cause,
            verdict,
            ..
        } => (*number, delay.as_millis(), *source, *cause, verdict.kind),
        event => panic!("{event:?}"),
    };
    let answer = |status| Cause::Response(StatusCode::from_u16(status).ok());
    assert_eq!(
        said(first),
        (1, 50, DelaySource::Backoff, answer(503), Kind::Transient)
    );
    assert_eq!(
        said(second),
        (2, 100, DelaySource::Backoff, Cause::Error, Kind::Transient)
    );
    let (number, delay, source, cause, kind) = said(third);
    assert_eq!(
        (number, source, cause, kind),
        (3, DelaySource::Hint, answer(429), Kind::Throttled)
    );
    assert!((9_000..=13_500).contains(&delay));
}

// promise: RT-37
#[tokio::test(start_paused = true)]
async fn a_panicking_sink_or_classifier_poisons_nothing() {
    let layer = plain().on_event(|event| panic!("this sink panics at {event:?}"));
    let backend = Backend::new(|n| if n % 2 == 0 { status(500) } else { status(200) });
    let service = layer.layer(backend);
    for _ in 0..3 {
        assert_eq!(call(&service, get(HOST)).await.0, Got::status(200));
    }

    let calls = Arc::new(AtomicUsize::new(0));
    let log = Log::default();
    let classifier = {
        let calls = calls.clone();
        move |result: Result<&u32, &BoxError>| {
            assert_ne!(
                calls.fetch_add(1, Ordering::SeqCst),
                1,
                "this classifier panics"
            );
            match result {
                Ok(0) => {
                    Verdict::new(Kind::Transient, buttress_core::Applied::No).with_hint(Hint::None)
                }
                _ => Verdict::SUCCESS,
            }
        }
    };
    let layer = RetryLayer::new(classifier)
        .seed(1)
        .max_retries(1)
        .on_event(log.sink());
    let budget = Budget::tokens_of(count(28), count(14), count(14));
    let service = layer
        .budget(budget)
        .layer(tower::service_fn(async |number: u32| {
            Ok::<_, BoxError>(number)
        }));
    // The second attempt of the first call is judged by the panicking classifier.
    let panicked = tokio::spawn(service.clone().oneshot(0)).await;
    assert!(panicked.unwrap_err().is_panic());
    assert_eq!(
        service.clone().oneshot(0).await.unwrap(),
        0,
        "the last of its budget"
    );
    assert_eq!(service.clone().oneshot(1).await.unwrap(), 1);
    assert_eq!(
        log.outcomes(),
        [
            (Outcome::Cancelled, 2),
            (Outcome::Attempts, 2),
            (Outcome::Ok, 1)
        ]
    );
}
