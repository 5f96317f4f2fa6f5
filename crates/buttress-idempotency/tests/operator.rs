//! What an operator sees and does, over HTTP and by functions.

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::Router;
use buttress_idempotency::{
    Event, Global, IdempotencyLayer, MemoryStore, Operation, OperatorView, RequestBody,
    record::RecordKey,
};
use http::{Method, Request, Response, request::Parts};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use support::*;
use tokio::time::{advance, sleep};
use tower::{Layer, ServiceExt, service_fn};

fn operator(parts: &Parts) -> Option<String> {
    let name = parts.headers.get("x-operator")?;
    name.to_str().ok().map(Into::into)
}

/// Asks as an operator; the answer is JSON, or nothing.
async fn ask(app: &Router, method: Method, path: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("x-operator", "olga").header("host", "here");
    send(app, request.body(axum::body::Body::from(body.to_owned()))).await
}

async fn send(app: &Router, request: http::Result<Request<axum::body::Body>>) -> (u16, Value) {
    let response = app.clone().oneshot(request.unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    (status, body)
}

/// Panics, hangs or answers, as the body says.
async fn handle(request: Request<RequestBody<Body>>) -> Result<Response<Body>, String> {
    let asked = request.into_body().collect().await.unwrap().to_bytes();
    match &*asked {
        b"fail" => return Err("it failed, and nobody knows how far it got".into()),
        b"hang" => sleep(Duration::from_hours(1)).await,
        _ => {}
    }
    Ok(Response::new(body("done")))
}

async fn idle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// What was done, of whose record, by whom, and was it?
type Heard = Arc<Mutex<Vec<(Operation, Option<String>, Option<String>, bool)>>>;

/// Each path is an account with its own keys.
fn by_account(heard: &Heard) -> IdempotencyLayer<MemoryStore, fn(&Parts) -> Option<String>> {
    let heard = heard.clone();
    let account: fn(&Parts) -> Option<String> =
        |parts| Some(parts.uri.path().trim_start_matches('/').to_owned());
    IdempotencyLayer::new(MemoryStore::new(), account).on_event(move |event| {
        if let Event::Operated {
            operation,
            key,
            by,
            done,
            ..
        } = event
        {
            let scope = key.as_ref().map(|key| key.scope.clone());
            let by = by.as_deref().map(ToOwned::to_owned);
            heard.lock().unwrap().push((*operation, scope, by, *done));
        }
    })
}

// promise: ID-27
#[tokio::test(start_paused = true)]
async fn an_operator_sees_what_is_open_and_says_what_came_of_it() {
    let heard = Heard::default();
    let layer = by_account(&heard);
    let service = layer.layer(service_fn(handle));
    let view = OperatorView::new(layer.handle(), operator);
    let app = Router::new().nest_service("/idempotency", view);
    let pay = |account: &str, body: &'static str| {
        let mut request = post("secret-key", body);
        *request.uri_mut() = format!("/{account}").parse().unwrap();
        tokio::spawn(service.clone().oneshot(request))
    };

    assert!(pay("alice", "fail").await.unwrap().is_err());
    assert!(pay("bob", "fail").await.unwrap().is_err());
    assert!(pay("carol", "well").await.unwrap().is_ok());
    let hangs = pay("dave", "hang");
    idle().await;

    let (status, list) = ask(&app, Method::GET, "/idempotency/records", "").await;
    assert_eq!(status, 200);
    let records = list["records"].as_array().unwrap();
    let state = |it: &Value| {
        let text = |name: &str| it[name].as_str().unwrap().to_owned();
        format!("{} {}", text("scope"), text("state"))
    };
    let open: Vec<_> = records.iter().map(state).collect();
    assert_eq!(open, ["alice unknown", "bob unknown", "dave running"]);
    assert!(!list.to_string().contains("secret-key"));
    assert_eq!(list["next"], Value::Null);
    let (_, unknown) = ask(&app, Method::GET, "/idempotency/records?state=unknown", "").await;
    assert_eq!(unknown["records"].as_array().unwrap().len(), 2);

    // Alice was paid, Bob was not.
    let hash = records[0]["hash"].as_str().unwrap();
    let alice = format!("/idempotency/record?scope=alice&hash={hash}");
    let answer = json!({
        "status": 201,
        "headers": [["location", "/payments/7"], ["set-cookie", "a=b"]],
        "body": "it was done",
    });
    let (status, _) = ask(&app, Method::PUT, &alice, &answer.to_string()).await;
    assert_eq!(status, 204);
    let (status, problem) = ask(&app, Method::PUT, &alice, &answer.to_string()).await;
    assert_eq!(
        (status, &problem["code"]),
        (409, &"record-not-unknown".into())
    );
    let (_, shown) = ask(&app, Method::GET, &alice, "").await;
    assert_eq!(shown["state"], "done");
    let kept = json!({ "status": 201, "headers": [["location", "/payments/7"]], "body_bytes": 11 });
    assert_eq!(shown["response"], kept);
    let (status, body, headers) = read(pay("alice", "fail").await.unwrap().unwrap()).await;
    assert_eq!((status, &*body), (201, "it was done"));
    assert!(headers.contains(&("idempotency-replayed".into(), "true".into())));

    let by_key = |method: Method| {
        let request = Request::builder().method(method);
        let request = request.uri("/idempotency/record?scope=bob");
        let request = request.header("idempotency-key", "\"secret-key\"");
        request
            .header("x-operator", "olga")
            .body(axum::body::Body::empty())
    };
    let (_, shown) = send(&app, by_key(Method::GET)).await;
    assert_eq!(
        (&shown["state"], &shown["scope"]),
        (&"unknown".into(), &"bob".into())
    );
    assert_eq!(send(&app, by_key(Method::DELETE)).await.0, 204);
    assert_eq!(send(&app, by_key(Method::DELETE)).await.0, 409);
    assert_eq!(send(&app, by_key(Method::GET)).await.0, 404);
    assert!(pay("bob", "well").await.unwrap().is_ok(), "it is run again");

    // What is running is nobody's to settle.
    let hash = records[2]["hash"].as_str().unwrap();
    let dave = format!("/idempotency/record?scope=dave&hash={hash}");
    assert_eq!(ask(&app, Method::DELETE, &dave, "").await.0, 409);
    hangs.abort();

    let audit = std::mem::take(&mut *heard.lock().unwrap());
    let said = |operation, scope: &str, done| {
        let scope = (!scope.is_empty()).then(|| scope.to_owned());
        (operation, scope, Some("olga".to_owned()), done)
    };
    assert_eq!(
        audit,
        [
            said(Operation::List, "", true),
            said(Operation::List, "", true),
            said(Operation::Settle, "alice", true),
            said(Operation::Settle, "alice", false),
            said(Operation::Show, "alice", true),
            said(Operation::Show, "bob", true),
            said(Operation::Release, "bob", true),
            said(Operation::Release, "bob", false),
            said(Operation::Show, "bob", false),
            said(Operation::Release, "dave", false),
        ]
    );
}

// promise: ID-27
#[tokio::test(start_paused = true)]
async fn pages_come_one_behind_the_other_and_what_has_expired_is_purged() {
    let layer = IdempotencyLayer::new(MemoryStore::new(), Global).ttl(Duration::from_mins(20));
    let service = layer.layer(service_fn(handle));
    for number in 0..25 {
        let key = format!("key-{number}");
        assert!(service.clone().oneshot(post(&key, "fail")).await.is_err());
    }
    idle().await;
    let app = OperatorView::new(layer.handle(), operator);
    let app = Router::new().route_service("/{*path}", app);
    let (mut path, mut pages, mut seen) = ("/records?limit=10".to_owned(), 0, Vec::new());
    loop {
        let (status, list) = ask(&app, Method::GET, &path, "").await;
        assert_eq!(status, 200);
        pages += 1;
        for record in list["records"].as_array().unwrap() {
            seen.push(record["hash"].as_str().unwrap().to_owned());
        }
        let Some(hash) = list["next"]["hash"].as_str() else {
            break;
        };
        path = format!("/records?limit=10&after_scope=&after_hash={hash}");
    }
    assert_eq!((pages, seen.len()), (3, 25));
    assert!(seen.is_sorted(), "and none comes twice");
    seen.dedup();
    assert_eq!(seen.len(), 25);

    assert_eq!(
        ask(&app, Method::POST, "/purge", "").await,
        (200, json!({ "purged": 0 }))
    );
    advance(Duration::from_hours(1)).await;
    let purged = ask(&app, Method::POST, "/purge?limit=20", "").await;
    assert_eq!(purged, (200, json!({ "purged": 20 })));
    let purged = ask(&app, Method::POST, "/purge", "").await;
    assert_eq!(purged, (200, json!({ "purged": 5 })));
}

// promise: ID-27
#[tokio::test(start_paused = true)]
async fn nobody_else_is_told_anything_and_nonsense_is_refused() {
    let layer = IdempotencyLayer::new(Records::new(), Global).max_response(1_000);
    let hash = "0".repeat(64);
    let record = format!("/record?scope=&hash={hash}");
    let view = OperatorView::new(layer.handle(), operator);
    let app = Router::new().route_service("/{*path}", view);
    for (method, path) in [
        (Method::GET, "/records"),
        (Method::GET, &*record),
        (Method::PUT, &record),
        (Method::DELETE, &record),
        (Method::POST, "/purge"),
        (Method::GET, "/counts"),
        (Method::GET, "/else"),
    ] {
        let request = Request::builder().method(method.clone()).uri(path);
        let (status, problem) = send(&app, request.body(axum::body::Body::empty())).await;
        assert_eq!(
            (status, &problem["code"]),
            (403, &"operator-unknown".into())
        );
        let (status, _) = ask(&app, Method::TRACE, path, "").await;
        let expected = if path == "/else" { 404 } else { 405 };
        assert_eq!(status, expected, "{path}");
    }
    for query in [
        "?limit=0",
        "?limit=1001",
        "?limit=-1",
        "?limit=",
        "?state=done",
        "?after_hash=12",
        "?after_hash=%00",
        "?after_scope=a",
        "?what=1",
        "?limit=1&limit=1",
        "?state=unknown&%73tate=running",
    ] {
        let path = format!("/records{query}");
        let (status, problem) = ask(&app, Method::GET, &path, "").await;
        assert_eq!(
            (status, &problem["code"]),
            (400, &"query-invalid".into()),
            "{query}"
        );
    }
    let twice = format!("?scope=&hash={hash}&scope=alice");
    for query in ["", "?scope=", &format!("?hash={hash}"), &twice] {
        let (status, _) = ask(&app, Method::GET, &format!("/record{query}"), "").await;
        assert_eq!(status, 400, "{query}");
    }
    let too_large = json!({ "status": 200, "body": "x".repeat(80_000) });
    for body in [
        "",
        "[]",
        "{",
        r#"{"status":99}"#,
        r#"{"status":100}"#,
        r#"{"status":600}"#,
        r#"{"status":200,"headers":[["a b","c"]]}"#,
        r#"{"status":200,"headers":[["a","b\n"]]}"#,
        r#"{"status":200,"else":1}"#,
        &too_large.to_string(),
    ] {
        let (status, problem) = ask(&app, Method::PUT, &record, body).await;
        assert_eq!((status, &problem["code"]), (400, &"answer-invalid".into()));
    }
    assert_eq!(
        ask(&app, Method::PUT, &record, r#"{"status":200}"#).await.0,
        409
    );
}

// promise: ID-27
#[tokio::test(start_paused = true)]
async fn what_happens_is_counted() {
    let store = Records::new();
    let layer = IdempotencyLayer::new(store.clone(), Global).required();
    let (service, handle) = (layer.layer(service_fn(handle)), layer.handle());
    let ask = |key: &str, body: &'static str| {
        let call = tokio::spawn(service.clone().oneshot(post(key, body)));
        async { drop(call.await.unwrap()) }
    };
    ask("a", "well").await;
    ask("a", "well").await;
    ask("a", "other").await;
    ask("", "well").await;
    ask("b", "fail").await;
    idle().await;
    ask("b", "fail").await;
    let hangs = ask("c", "hang");
    idle().await;
    ask("c", "hang").await;
    drop(hangs);
    store.be(Mood::Fails);
    ask("d", "well").await;
    idle().await;
    let view = OperatorView::new(handle.clone(), operator);
    let app = Router::new().route_service("/{*path}", view);
    let (_, counts) = self::ask(&app, Method::GET, "/counts", "").await;
    assert_eq!(
        counts,
        json!({
            "runs": 3, "completed": 1, "released": 0, "abandoned": 1, "superseded": 0, "replays": 1, "in_flight": 1,
            "outcome_unknown": 1, "mismatches": 1, "rejected": 1,
            // The claim, and what undoes it in case.
            "store_errors": 2,
        })
    );
    let key = RecordKey::new("", "a");
    assert!(handle.get(&key).await.is_err());
    assert_eq!(handle.counts().store_errors, 3, "the operator's count too");
    let (status, _) = self::ask(&app, Method::POST, "/purge", "").await;
    assert_eq!(status, 503);
}

// promises: ID-20, ID-27
#[tokio::test(start_paused = true)]
async fn an_operator_waits_for_a_store_no_longer_than_others() {
    let store = Records::new();
    store.be(Mood::Hangs);
    let layer = IdempotencyLayer::new(store, Global).store_timeout(Duration::from_secs(3));
    let view = OperatorView::new(layer.handle(), operator);
    let app = Router::new().route_service("/{*path}", view);
    let start = buttress_core::clock::now();
    let path = format!("/record?scope=&hash={}", "0".repeat(64));
    let (status, _) = ask(&app, Method::DELETE, &path, "").await;
    assert_eq!(status, 503);
    let took = buttress_core::clock::now().saturating_duration_since(start);
    assert!(took < Duration::from_millis(3_050), "{took:?}");
}
