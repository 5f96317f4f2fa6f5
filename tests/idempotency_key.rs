//! A key for each call: all its attempts carry it, whatever sends them.

mod support;

use std::{
    future::ready,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use buttress::{
    BoxError, clock,
    idempotency::IdempotencyKeyLayer,
    retry::{Backoff, Outcome, RetryLayer},
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use reqwest::{
    Url,
    redirect::{Action, Attempt, Policy},
};
use support::{Seen, Server, Told, within};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_http::follow_redirect::FollowRedirectLayer;
use uuid::Uuid;

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

const SOON: Duration = Duration::from_millis(1);

fn retry() -> RetryLayer {
    let soon = Backoff::constant(SOON);
    RetryLayer::http().backoff(soon).throttled_backoff(soon)
}

fn post(url: &str) -> Result<Request<Full<Bytes>>> {
    Ok(Request::post(url).body(Full::from("amount=3"))?)
}

/// What a backend answers: a status and a `Retry-After`, or a lost connection.
#[derive(Clone, Copy, Debug)]
enum Reply {
    Status(u16),
    After(u16, u32),
    Lost,
}

/// A backend on this side of the wire that answers each call by a script, the last line of it for ever, and keeps the heads.
#[derive(Clone, Debug)]
struct Backend {
    script: &'static [Reply],
    heads: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Backend {
    fn new(script: &'static [Reply]) -> Self {
        Self {
            script,
            heads: Arc::default(),
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> io::Result<Response<Full<Bytes>>> {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = heads.len().min(self.script.len() - 1);
        heads.push(request.headers().clone());
        let response = match self.script[turn] {
            Reply::Status(status) => Response::builder().status(status),
            Reply::After(status, after) => Response::builder()
                .status(status)
                .header("retry-after", after),
            Reply::Lost => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        response.body(Full::default()).map_err(io::Error::other)
    }

    /// The keys of what has come, each of them a UUID in quotes; none for a request without.
    fn keys(&self) -> Vec<Option<Uuid>> {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.iter().map(key).collect()
    }
}

fn key(headers: &HeaderMap) -> Option<Uuid> {
    let mut values = headers.get_all("idempotency-key").iter();
    let value = values.next()?.to_str().ok();
    assert_eq!(values.next(), None, "there is one field");
    Some(quoted(value.expect("it is ASCII")))
}

fn quoted(value: &str) -> Uuid {
    let text = value.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
    text.and_then(|text| text.parse().ok())
        .expect("a key is a UUID in quotes")
}

// promise: ID-24
#[tokio::test(start_paused = true)]
async fn three_attempts_carry_one_key_and_three_calls_have_three() -> Result {
    use Reply::{Lost, Status};
    for method in [Method::POST, Method::PATCH] {
        let mut keys = Vec::new();
        let layer = IdempotencyKeyLayer::new();
        for script in [
            &[Status(503), Lost, Status(201)],
            &[Lost, Status(409), Status(201)],
            &[Status(500), Status(429), Status(201)],
        ] {
            let (told, backend) = (Told::default(), Backend::new(script));
            let served = backend.clone();
            let service = ServiceBuilder::new()
                .layer(layer.clone())
                .layer(retry().on_event(told.sink()))
                .service(service_fn(move |request| ready(served.answer(&request))));
            let mut request = post("http://a.example/")?;
            *request.method_mut() = method.clone();
            let answer = service.oneshot(request).await?;
            assert_eq!(answer.status(), StatusCode::CREATED);
            assert_eq!(told.finished(), Some((Outcome::OkAfterRetry, 3)));
            let [Some(first), second, third] = backend.keys()[..] else {
                panic!("three attempts, and the first with a key");
            };
            assert_eq!((second, third), (Some(first), Some(first)));
            keys.push(first);
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 3);
    }
    Ok(())
}

// promise: ID-24
#[tokio::test(start_paused = true)]
async fn all_attempts_carry_the_key_that_the_caller_has_set() -> Result {
    for value in ["\"order:123\"", "order:123"] {
        let backend = Backend::new(&[Reply::Lost, Reply::Status(201)]);
        let served = backend.clone();
        let service = ServiceBuilder::new()
            .layer(IdempotencyKeyLayer::new())
            .layer(retry())
            .service(service_fn(move |request| ready(served.answer(&request))));
        let mut request = post("http://a.example/")?;
        request
            .headers_mut()
            .insert("idempotency-key", value.parse()?);
        assert_eq!(service.oneshot(request).await?.status(), 201);
        let heads = backend.heads.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(heads.len(), 2);
        for head in &*heads {
            let values = head.get_all("idempotency-key").iter();
            assert_eq!(values.collect::<Vec<_>>(), [value]);
        }
    }
    Ok(())
}

// promise: ID-25
#[tokio::test(start_paused = true)]
async fn a_call_that_is_in_flight_is_waited_for_as_told_with_the_same_key() -> Result {
    let backend = Backend::new(&[Reply::Lost, Reply::After(409, 3), Reply::Status(201)]);
    let served = backend.clone();
    let service = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new())
        .layer(retry())
        .service(service_fn(move |request| ready(served.answer(&request))));
    let begun = clock::now();
    let answer = service.oneshot(post("http://a.example/")?).await?;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let waited = clock::now().saturating_duration_since(begun).as_millis();
    assert!((3_001..=4_510).contains(&waited), "{waited} ms");
    let keys = backend.keys();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| key.is_some() && *key == keys[0]));
    Ok(())
}

// promise: ID-25
#[tokio::test(start_paused = true)]
async fn what_the_server_says_of_the_key_is_not_asked_twice() -> Result {
    for script in [&[Reply::Status(400)], &[Reply::Status(422)]] {
        let (told, backend) = (Told::default(), Backend::new(script));
        let served = backend.clone();
        let service = ServiceBuilder::new()
            .layer(IdempotencyKeyLayer::new())
            .layer(retry().on_event(told.sink()))
            .service(service_fn(move |request| ready(served.answer(&request))));
        service.oneshot(post("http://a.example/")?).await?;
        assert_eq!(backend.keys().len(), 1, "{script:?}");
        assert_eq!(told.finished(), Some((Outcome::NotRetryable, 1)));
    }
    Ok(())
}

// promise: ID-25
#[tokio::test(start_paused = true)]
async fn a_post_without_a_key_is_not_sent_again_where_it_may_have_been_applied() -> Result {
    use Reply::{After, Lost, Status};
    let scripts: [&[Reply]; 6] = [
        &[Lost],
        &[Status(500)],
        &[Status(503)],
        &[After(503, 1)],
        &[After(429, 1)],
        &[After(409, 1)],
    ];
    for script in scripts {
        let nothing = |_: &Request<Full<Bytes>>| false;
        // None is asked for here, or the layer stands where the retry layer does not see what it does.
        for below in [false, true] {
            let backend = Backend::new(script);
            let served = backend.clone();
            let served = service_fn(move |request| ready(served.answer(&request)));
            let request = post("http://a.example/")?;
            let answer = if below {
                let service = ServiceBuilder::new()
                    .layer(retry())
                    .layer(IdempotencyKeyLayer::new())
                    .service(served);
                service.oneshot(request).await
            } else {
                let service = ServiceBuilder::new()
                    .layer(IdempotencyKeyLayer::new().keyed(nothing))
                    .layer(retry())
                    .service(served);
                service.oneshot(request).await
            };
            assert_eq!(answer.is_err(), matches!(script, [Lost]));
            let keys = backend.keys();
            assert_eq!(keys.len(), 1, "{script:?}");
            assert_eq!(keys[0].is_some(), below);
        }
    }
    Ok(())
}

fn key_on_the_wire(seen: &Seen) -> Option<Uuid> {
    let value = seen.header("idempotency-key")?;
    Some(quoted(&String::from_utf8_lossy(value)))
}

// promise: ID-24
#[tokio::test]
async fn on_the_wire_three_attempts_carry_one_key_and_three_calls_have_three() -> Result {
    // Of each three attempts one loses its connection, one is refused, and one is answered.
    let server = Server::start(|mut connection| async move {
        loop {
            connection.read().await?;
            match connection.turn() % 3 {
                0 => return connection.reset(),
                1 => connection.answer(503, b"").await?,
                _ => connection.answer(201, b"paid").await?,
            }
        }
    })
    .await?;
    let service = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new().v7())
        .layer(retry())
        .service(Client::builder(TokioExecutor::new()).build_http());
    for _ in 0..3 {
        let answer = within(service.clone().oneshot(post(&server.url())?)).await?;
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
    let keys: Vec<_> = server.seen().iter().map(key_on_the_wire).collect();
    assert_eq!(keys.len(), 9);
    let mut calls = Vec::new();
    for attempts in keys.chunks(3) {
        assert!(attempts[0].is_some());
        assert!(attempts.iter().all(|key| *key == attempts[0]));
        calls.push(attempts[0]);
    }
    calls.dedup();
    assert_eq!(calls.len(), 3);
    Ok(())
}

// promise: ID-24
#[tokio::test(start_paused = true)]
async fn calls_at_once_over_clones_of_a_service_have_a_key_each() -> Result {
    let backend = Backend::new(&[Reply::Status(201)]);
    let served = backend.clone();
    let service = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new())
        .service(service_fn(move |request| ready(served.answer(&request))));
    let requests: Result<Vec<_>> = (0..100).map(|_| post("http://a.example/")).collect();
    let calls = requests?.into_iter();
    join_all(calls.map(|request| service.clone().oneshot(request))).await;
    let mut keys = backend.keys();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 100);
    assert!(keys.iter().all(Option::is_some));
    Ok(())
}

/// Two servers: the first redirects to the second, which is another origin.
async fn redirects(status: u16) -> Result<(Server, Server)> {
    let second = Server::start(|mut connection| async move {
        loop {
            connection.read().await?;
            connection.answer(200, b"").await?;
        }
    })
    .await?;
    let url = second.url();
    let first = Server::start(move |mut connection| {
        let head = format!("HTTP/1.1 {status} _\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n");
        async move {
            loop {
                connection.read().await?;
                connection.write(&head).await?;
            }
        }
    })
    .await?;
    Ok((first, second))
}

/// As the documentation of `buttress_idempotency::client` has it.
fn within_the_origin(attempt: Attempt<'_>) -> Action {
    let from = attempt.previous().last().map(Url::origin);
    if from == Some(attempt.url().origin()) {
        Policy::default().redirect(attempt)
    } else {
        attempt.stop()
    }
}

// promise: ID-24
#[tokio::test]
async fn reqwest_sends_the_key_to_another_origin_unless_its_policy_says_no() -> Result {
    for status in [302, 303, 307, 308] {
        // If the other policy does as well one day, this one is not needed any more.
        for (policy, expected) in [
            (Policy::custom(within_the_origin), 0),
            (Policy::default(), 1),
        ] {
            let (first, second) = redirects(status).await?;
            let client = reqwest::Client::builder().redirect(policy).build()?;
            let service = ServiceBuilder::new()
                .layer(IdempotencyKeyLayer::new())
                .filter(|request: Request<reqwest::Body>| reqwest::Request::try_from(request))
                .map_response(Response::<reqwest::Body>::from)
                .service(client);
            let request = post(&first.url())?.map(|_| reqwest::Body::from("amount=3"));
            let answer = within(service.oneshot(request)).await?;
            let keys = |server: &Server| {
                let seen = server.seen();
                seen.iter().filter_map(key_on_the_wire).count()
            };
            assert_eq!(keys(&first), 1);
            assert_eq!(keys(&second), expected, "{status}");
            if expected == 0 {
                assert_eq!(answer.status(), status, "it is the caller's to follow");
                assert_eq!(second.seen().len(), 0);
            }
        }
    }
    Ok(())
}

// promise: ID-24
#[tokio::test]
async fn with_redirects_followed_above_it_no_origin_sees_the_key_of_another() -> Result {
    for (status, keyed) in [(302, false), (303, false), (307, true), (308, true)] {
        let (first, second) = redirects(status).await?;
        let service = ServiceBuilder::new()
            .layer(FollowRedirectLayer::new())
            .layer(IdempotencyKeyLayer::new())
            .service(Client::builder(TokioExecutor::new()).build_http());
        let request = Request::post(first.url()).body(String::new())?;
        let answer = within(service.oneshot(request)).await?;
        assert_eq!(answer.status(), StatusCode::OK);
        let (first, second) = (first.seen(), second.seen());
        assert_eq!((first.len(), second.len()), (1, 1));
        let keys = [&first[0], &second[0]].map(key_on_the_wire);
        assert!(keys[0].is_some());
        assert_eq!(keys[1].is_some(), keyed, "{status}");
        assert_ne!(keys[0], keys[1], "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn with_redirects_followed_below_it_the_key_goes_to_another_origin() -> Result {
    // So says the documentation. If it is not true any more, that has to change.
    let (first, second) = redirects(307).await?;
    let service = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new())
        .layer(FollowRedirectLayer::new())
        .service(Client::builder(TokioExecutor::new()).build_http());
    let request = Request::post(first.url()).body(String::new())?;
    within(service.oneshot(request)).await?;
    let keys = [first.seen(), second.seen()].map(|seen| key_on_the_wire(&seen[0]));
    assert!(keys[0].is_some() && keys[0] == keys[1]);
    Ok(())
}
