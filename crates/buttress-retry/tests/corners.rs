//! The corners of the promises for HTTP: where something else is true than one would think.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use buttress_core::{Applied, BoxError, Deadline, Kind, Verdict, classify, clock};
use buttress_retry::{Backoff, Budget, Outcome, RetryLayer};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use support::*;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer};

// promise: RT-40
#[tokio::test(start_paused = true)]
async fn an_attempt_that_may_have_been_applied_is_not_hidden_behind_one_that_never_left() {
    let limits = [
        plain().attempt_timeout(millis(100)),
        plain().deadline(millis(200)),
    ];
    for layer in limits {
        let backend = Backend::new(|n| if n == 0 { Unsent } else { Hang });
        let service = layer.layer(backend.clone());
        let error = service.oneshot(post(HOST)).await.unwrap_err();
        assert_eq!(backend.arrived().len(), 2, "the second was read whole");
        let verdict = classify::error(&*error);
        assert_ne!(verdict.applied, Applied::No, "{error}");
    }
}

// promise: RT-24, RT-26
#[tokio::test(start_paused = true)]
async fn an_upload_that_cannot_be_replayed_goes_on_after_an_early_answer() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let early = tower::service_fn(|request: Request<buttress_retry::ReplayBody<_>>| {
        let sender = sender.lock().unwrap().take();
        async move {
            let mut body = request.into_body();
            body.frame().await.unwrap().unwrap();
            body.frame().await.unwrap().unwrap();
            let _ = sender.unwrap().send(body);
            let answer = Response::builder().status(503).body(full("sorry"));
            Ok::<_, BoxError>(answer.unwrap())
        }
    });
    let chunks =
        ["12345", "12345", "12345"].map(|chunk| Ok::<_, BoxError>(Frame::data(Bytes::from(chunk))));
    let body = StreamBody::new(futures_util::stream::iter(chunks));
    let request = Request::put(HOST).body(body).unwrap();
    let response = plain()
        .replay_limit(8)
        .layer(early)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(response.status(), 503);
    let mut rest = receiver.await.unwrap();
    let rest = rest
        .frame()
        .await
        .unwrap()
        .map(|frame| frame.into_data().unwrap());
    assert_eq!(rest.unwrap(), "12345");
}

// promise: RT-7, RT-27
#[tokio::test(start_paused = true)]
async fn a_drain_does_not_outlast_the_deadline() {
    for (backoff, deadline, drain) in [(10, 30, 50), (10, 1_000, 10_000)] {
        let layer = RetryLayer::http()
            .backoff(Backoff::constant(millis(backoff)))
            .drain_limit(65_536, millis(drain))
            .deadline(millis(deadline));
        let backend = Backend::new(|n| match n {
            0 => Reply::Response(stalled(10, &Arc::new(()))),
            _ => status(200),
        });
        let (_, took) = call(&layer.layer(backend.clone()), get(HOST)).await;
        assert!(took <= u128::from(deadline) + 1, "{took} of {deadline} ms");
        assert!(
            backend.times().iter().all(|&at| at < u128::from(deadline)),
            "{:?}",
            backend.times()
        );
    }
}

// promise: RT-7, RT-15
#[tokio::test(start_paused = true)]
async fn nothing_is_sent_when_the_time_is_over() {
    // The task that has the call is not run for a while.
    let layer = plain().deadline(millis(100));
    let backend = Backend::new(|_| status(503));
    let mut call = task::spawn(layer.layer(backend.clone()).oneshot(get(HOST)));
    assert_pending!(call.poll());
    tokio::time::advance(Duration::from_secs(10)).await;
    let Poll::Ready(Ok(response)) = call.poll() else {
        panic!("the time is over")
    };
    assert_eq!((response.status().as_u16(), backend.sends()), (503, 1));
    assert_eq!(affordable(&layer.deadline(Duration::MAX), HOST).await, 35);
}

// promise: RT-7
#[tokio::test(start_paused = true)]
async fn a_call_whose_time_was_over_before_it_began_is_not_sent() {
    let mut request = post(HOST);
    request
        .extensions_mut()
        .insert(Deadline(clock::now() - millis(5)));
    let backend = Backend::new(|_| status(201));
    let _ = call(&plain().layer(backend.clone()), request).await;
    assert_eq!(backend.arrived().len(), 0);
}

// promise: RT-3, RT-10
#[tokio::test(start_paused = true)]
async fn no_hint_is_too_long() {
    let layer = RetryLayer::http().max_hint(Duration::MAX);
    for hint in ["18446744073709551615", "9999999999999999999"] {
        let reply = move || {
            Response::builder()
                .status(429)
                .header("retry-after", hint)
                .body(full(""))
                .unwrap()
        };
        let backend = Backend::new(move |_| Reply::Response(reply()));
        let mut call = task::spawn(layer.layer(backend).oneshot(get(HOST)));
        assert_pending!(call.poll());
    }
}

// promise: RT-17
#[tokio::test(start_paused = true)]
async fn an_authority_is_one_however_it_is_spelled() {
    let layer = RetryLayer::http();
    affordable(&layer, "http://down.example/").await;
    for uri in [
        "http://DOWN.example/",
        "http://me@down.example/",
        "http://down.example:80/",
    ] {
        assert_eq!(affordable(&layer, uri).await, 0, "{uri}");
    }
}

// promise: RT-17
#[tokio::test(start_paused = true)]
async fn other_hosts_do_not_take_what_a_host_has_saved_up() {
    let budget = Budget::ratio(0.2).max_keys(100.try_into().unwrap());
    let layer = RetryLayer::http().budget(budget);
    let service = layer.layer(Backend::new(|_| status(200)));
    for _ in 0..1_000 {
        call(&service, get(HOST)).await;
    }
    for host in 0..1_000 {
        call(&service, get(&format!("http://{host}.example/"))).await;
    }
    assert_eq!(affordable(&layer, HOST).await, 200);
}

// promise: RT-19
#[tokio::test(start_paused = true)]
async fn what_was_applied_for_certain_is_not_sent_again() {
    let calls = AtomicUsize::new(0);
    let applied = |_: Result<&u32, &BoxError>| Verdict::new(Kind::Transient, Applied::Yes);
    let service = RetryLayer::new(applied)
        .idempotent(|_: &u32| false)
        .layer(tower::service_fn(async |n: u32| {
            calls.fetch_add(1, Ordering::SeqCst);
            Ok::<_, BoxError>(n)
        }));
    let _ = service.oneshot(0).await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

// promise: RT-2
#[tokio::test(start_paused = true)]
async fn a_decorrelated_delay_grows_from_the_one_before() {
    let (mut over, mut fresh) = (0, 0);
    for seed in 0..200 {
        let log = Log::default();
        let backoff = Backoff::decorrelated(millis(10), Duration::from_secs(20));
        let layer = RetryLayer::grpc()
            .seed(seed)
            .max_retries(4)
            .backoff(backoff)
            .on_event(log.sink());
        let backend = Backend::new(|n| match n {
            2 => with(
                200,
                &[("grpc-status", "14"), ("grpc-retry-pushback-ms", "1")],
            ),
            _ => with(200, &[("grpc-status", "14")]),
        });
        call(&layer.layer(backend), post(HOST)).await;
        let delays = log.delays();
        over += u32::from(delays[1] > millis(30));
        fresh = fresh.max(delays[3].as_millis());
    }
    assert!(
        over > 20,
        "the second delay is up to three times the first: {over}"
    );
    assert!(fresh <= 30, "after a pushback it begins anew: {fresh}");
}

// promise: RT-1
#[tokio::test(start_paused = true)]
async fn the_defaults_are_what_they_are_said_to_be() {
    for (code, top) in [(500, 50), (429, 1_000)] {
        let log = Log::default();
        let layer = RetryLayer::http()
            .seed(1)
            .max_retries(20)
            .budget(Budget::unlimited())
            .on_event(log.sink());
        let service = layer.layer(Backend::new(move |_| status(code)));
        for _ in 0..100 {
            call(&service, get(HOST)).await;
        }
        let delays = log.delays();
        let first = delays.iter().step_by(20).max().unwrap();
        assert!(
            (top * 9 / 10..=top).contains(&first.as_millis()),
            "{first:?}"
        );
        let longest = delays.iter().max().unwrap();
        assert!(
            (19_000..=20_000).contains(&longest.as_millis()),
            "{longest:?}"
        );
    }
}

// promise: RT-18
#[tokio::test(start_paused = true)]
async fn a_floor_pays_though_nothing_is_left() {
    let layer = plain().budget(Budget::tokens_of(count(1), count(1), count(1)).floor(count(1)));
    assert_eq!(affordable(&layer, HOST).await, 2, "the token and the floor");
    tokio::time::advance(millis(1_100)).await;
    assert_eq!(affordable(&layer, HOST).await, 1, "the floor");
}

// promise: RT-13
#[tokio::test(start_paused = true)]
async fn a_ratio_gives_nothing_back_and_saves_up_ten_thousand() {
    let layer = plain().budget(Budget::ratio(0.5));
    let service = layer.layer(Backend::new(|n| status(if n == 4 { 500 } else { 200 })));
    for _ in 0..5 {
        call(&service, get(HOST)).await;
    }
    // Four successes made two retries, one was sent, and its success paid half of one.
    assert_eq!(affordable(&layer, HOST).await, 1);
    let layer = plain()
        .backoff(Backoff::constant(Duration::ZERO))
        .max_retries(20_000)
        .budget(Budget::ratio(1.0));
    let service = layer.layer(Backend::new(|_| status(200)));
    for _ in 0..10_100 {
        call(&service, get(HOST)).await;
    }
    assert_eq!(affordable(&layer, HOST).await, 10_000);
}

// promise: RT-26
#[tokio::test(start_paused = true)]
async fn exactly_the_memory_that_there_is_is_used() {
    let chunk = 8 + size_of::<Bytes>();
    for (memory, sends) in [(chunk, 3), (chunk - 1, 1)] {
        let backend = Backend::new(|_| Lost);
        call(
            &plain().replay_memory(memory).layer(backend.clone()),
            keyed(HOST),
        )
        .await;
        assert_eq!(backend.sends(), sends);
    }
}

// promise: RT-15
#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_replayed_costs_nothing() {
    let two = Budget::tokens_of(count(2), count(1), count(1));
    let layer = plain().replay_limit(8).budget(two);
    let chunks = ["12345", "12345"].map(|chunk| Ok::<_, BoxError>(Frame::data(Bytes::from(chunk))));
    let request = keyed(HOST).map(|_| StreamBody::new(futures_util::stream::iter(chunks)));
    let backend = Backend::new(|_| status(503));
    call(&layer.layer(backend.clone()), request).await;
    assert_eq!(backend.sends(), 1);
    assert_eq!(affordable(&layer, HOST).await, 2);
}

// promise: RT-36
#[tokio::test(start_paused = true)]
async fn a_deadline_is_called_one_wherever_it_strikes() {
    let log = Log::default();
    let layer = plain().deadline(millis(400)).on_event(log.sink());
    call(&layer.layer(Backend::new(|_| Hang)), post(HOST)).await;
    assert_eq!(
        log.outcomes(),
        [(Outcome::Deadline, 1)],
        "in the attempt of a POST"
    );
    let backend = Backend::new(|n| if n == 0 { status(503) } else { Hang });
    let service = layer.layer(
        ServiceBuilder::new()
            .layer(ConcurrencyLimitLayer::new(1))
            .service(backend),
    );
    let blocker = async {
        tokio::time::sleep(millis(10)).await;
        call(&service, get(HOST)).await
    };
    tokio::join!(call(&service, get(HOST)), blocker);
    assert_eq!(
        log.outcomes()[1],
        (Outcome::Deadline, 1),
        "while it got ready"
    );
}

// promise: RT-40
#[tokio::test(start_paused = true)]
async fn of_two_errors_the_later_counts() {
    let backend = Backend::new(|n| match n {
        0 => Unsent,
        1 => Lost,
        _ => Refused,
    });
    let (got, _) = call(&plain().layer(backend), get(HOST)).await;
    assert_eq!(got, Got::Error("connection reset".into()));
}

// promise: RT-29
#[tokio::test(start_paused = true)]
async fn a_response_that_broke_off_does_not_come_back_as_a_whole_one() {
    let broken = || {
        let frames = [
            Ok(Frame::data(Bytes::from("sor"))),
            Err(BoxError::from("broken")),
        ];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Response::builder()
            .status(500)
            .body(body.boxed_unsync())
            .unwrap()
    };
    let backend = Backend::new(move |n| {
        if n == 0 {
            Reply::Response(broken())
        } else {
            Refused
        }
    });
    let response = plain().layer(backend).oneshot(get(HOST)).await.unwrap();
    let mut body = response.into_body();
    assert!(!body.is_end_stream());
    assert_eq!(body.size_hint().exact(), None);
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "sor"
    );
    assert!(!body.is_end_stream());
    assert_eq!(
        body.frame().await.unwrap().unwrap_err().to_string(),
        "broken"
    );
    assert!(body.frame().await.is_none() && body.is_end_stream());
}

// promise: RT-27
#[tokio::test(start_paused = true)]
async fn the_drain_limit_is_for_the_sum_of_the_frames() {
    for (size, whole) in [(4, true), (5, false)] {
        let reply = move || {
            let frames = [0; 2].map(|_| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; size]))));
            let body = StreamBody::new(futures_util::stream::iter(frames));
            Response::builder()
                .status(500)
                .body(body.boxed_unsync())
                .unwrap()
        };
        let backend = Backend::new(move |n| {
            if n == 0 {
                Reply::Response(reply())
            } else {
                Refused
            }
        });
        let layer = plain().drain_limit(8, millis(50));
        let response = layer.layer(backend).oneshot(get(HOST)).await.unwrap();
        assert_eq!(response.into_body().collect().await.is_ok(), whole);
    }
}

// promise: RT-21
#[tokio::test(start_paused = true)]
async fn connect_is_no_exception_when_everything_is_idempotent() {
    let layer = plain().idempotent(|_: &Request<Full<Bytes>>| true);
    for code in [429, 503] {
        let backend = Backend::new(move |_| status(code));
        let connect = Request::connect("a.example:443")
            .body(Full::default())
            .unwrap();
        call(&layer.layer(backend.clone()), connect).await;
        assert_eq!(backend.sends(), 1);
    }
}

// promise: RT-20
#[tokio::test(start_paused = true)]
async fn a_keyed_patch_waits_for_the_one_that_still_runs() {
    let mut patch = keyed(HOST);
    *patch.method_mut() = http::Method::PATCH;
    let backend = Backend::new(|n| status([409, 200][n]));
    assert_eq!(
        call(&plain().layer(backend), patch).await.0,
        Got::status(200)
    );
}

// promise: RT-31
#[tokio::test(start_paused = true)]
async fn a_head_of_thirty_thousand_lines_comes_back() {
    let mut request = get(HOST);
    for line in 0..30_000_u32 {
        let name = http::HeaderName::try_from(format!("x-{}", line % 3)).unwrap();
        request.headers_mut().append(name, line.into());
    }
    let before = request.headers().clone();
    let backend = Backend::new(|_| Lost);
    call(&plain().layer(backend.clone()), request).await;
    assert_eq!(backend.sends(), 3);
    assert!(
        backend
            .arrived()
            .iter()
            .all(|request| request.headers == before)
    );
}

#[tokio::test(start_paused = true)]
async fn the_order_in_which_a_layer_is_built_does_not_matter() {
    let name = http::HeaderName::from_static("x-resend");
    let layer = plain()
        .resend_header(name)
        .drain_limit(8, millis(7))
        .idempotent(|_: &Request<Full<Bytes>>| true);
    let backend = Backend::new(|n| match n {
        0 => Reply::Response(
            Response::builder()
                .status(500)
                .body(full("12345678"))
                .unwrap(),
        ),
        _ => Refused,
    });
    let (got, _) = call(&layer.layer(backend.clone()), get(HOST)).await;
    assert_eq!(
        got,
        Got::Response {
            status: 500,
            body: Some("12345678".into())
        }
    );
    assert_eq!(backend.arrived()[1].headers["x-resend"], "1");
}

// promise: RT-25
#[tokio::test(start_paused = true)]
async fn a_body_knows_what_is_left_of_it() {
    let state = std::sync::Mutex::new(vec![]);
    let reads = tower::service_fn(|request: Request<buttress_retry::ReplayBody<_>>| {
        let state = &state;
        async move {
            let mut body = request.into_body();
            let mut seen = vec![(body.is_end_stream(), body.size_hint().lower())];
            while let Some(frame) = body.frame().await {
                frame.unwrap();
                seen.push((body.is_end_stream(), body.size_hint().lower()));
            }
            seen.push((body.is_end_stream(), body.size_hint().lower()));
            state.lock().unwrap().push(seen);
            Ok::<_, BoxError>(Response::builder().status(503).body(full("")).unwrap())
        }
    });
    let trailers = http::HeaderMap::from_iter([(http::header::ETAG, "1".parse().unwrap())]);
    let frames = [
        Ok::<_, BoxError>(Frame::data(Bytes::from("123"))),
        Ok(Frame::data(Bytes::from("45"))),
        Ok(Frame::trailers(trailers)),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let _ = plain()
        .layer(reads)
        .oneshot(Request::put(HOST).body(body).unwrap())
        .await;
    let replay = vec![(false, 5), (false, 2), (false, 0), (true, 0), (true, 0)];
    let state = state.lock().unwrap();
    assert_eq!(state[1..], [replay.clone(), replay]);
}

// promise: RT-23
#[tokio::test(start_paused = true)]
async fn a_body_that_passes_says_what_it_said() {
    let said = std::sync::Mutex::new(vec![]);
    let service = tower::service_fn(
        |request: Request<buttress_retry::ReplayBody<Full<Bytes>>>| {
            let body = request.body();
            said.lock()
                .unwrap()
                .push((body.is_end_stream(), body.size_hint().exact()));
            std::future::ready(Ok::<_, BoxError>(Response::new(full(""))))
        },
    );
    let service = plain().max_retries(0).layer(service);
    let _ = service.clone().oneshot(post(HOST)).await;
    let _ = service.clone().oneshot(get(HOST)).await;
    assert_eq!(*said.lock().unwrap(), [(false, Some(8)), (true, Some(0))]);
}

// promise: RT-40
#[tokio::test(start_paused = true)]
async fn a_response_never_comes_back_with_a_hole() {
    let reply = || {
        let frames =
            [400, 1].map(|size| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; size]))));
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Response::builder()
            .status(500)
            .body(body.boxed_unsync())
            .unwrap()
    };
    let backend = Backend::new(move |n| {
        if n == 0 {
            Reply::Response(reply())
        } else {
            Refused
        }
    });
    let response = plain()
        .replay_memory(300)
        .layer(backend)
        .oneshot(get(HOST))
        .await
        .unwrap();
    assert!(response.into_body().collect().await.is_err());
}

// promise: RT-15, RT-34
#[tokio::test(start_paused = true)]
async fn a_pushback_is_exact_though_the_answer_stalls() {
    let backend = Backend::new(|n| match n {
        0 => {
            let mut answer = stalled(10, &Arc::new(()));
            *answer.status_mut() = http::StatusCode::OK;
            answer.headers_mut().insert("grpc-status", 14.into());
            answer
                .headers_mut()
                .insert("grpc-retry-pushback-ms", 10.into());
            Reply::Response(answer)
        }
        _ => with(200, &[("grpc-status", "0")]),
    });
    call(&RetryLayer::grpc().layer(backend.clone()), post(HOST)).await;
    assert!(
        (10..=11).contains(&backend.times()[1]),
        "{:?}",
        backend.times()
    );
}

// promise: RT-13
#[tokio::test(start_paused = true)]
async fn a_success_that_the_floor_has_paid_for_fills_the_tokens() {
    let layer = plain().budget(Budget::tokens_of(count(2), count(2), count(2)).floor(count(1)));
    assert_eq!(
        affordable(&layer, HOST).await,
        2,
        "the tokens and the floor"
    );
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(2)).await;
        let backend = Backend::new(|n| if n == 0 { Lost } else { status(200) });
        assert_eq!(
            call(&layer.layer(backend), get(HOST)).await.0,
            Got::status(200)
        );
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(affordable(&layer, HOST).await, 2, "both are there again");
}
