//! What becomes what, over services that do as the test says.

use std::{
    convert::Infallible,
    fmt, future, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use buttress_answer::{Answer, AnswerBody, AnswerLayer, future::ResponseFuture};
use buttress_core::{
    BoxError, Classify, Hint, LimitReport, Policies, QuotaPolicy, Rejected, ServiceLimit, Verdict,
    classify, hint,
};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use sfv::{BareItem, List, ListEntry, Parser};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, buffer::Buffer, limit::ConcurrencyLimit,
    load_shed::LoadShedLayer, service_fn, spawn_ready::SpawnReady, timeout::TimeoutLayer,
};
use tower_test::mock;

type Body = Full<Bytes>;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn get() -> Request<()> {
    Request::new(())
}

/// A limiter of 10 a second and 1,000 an hour, of which the second has these left and the next in this time.
fn limit(remaining: u64, reset: Duration) -> ServiceLimit {
    limit_of(
        [("burst", 10, 1), ("hour", 1_000, 3_600)],
        1,
        remaining,
        reset,
    )
}

fn limit_of<const N: usize>(
    policies: [(&'static str, u64, u64); N],
    bound: usize,
    remaining: u64,
    reset: Duration,
) -> ServiceLimit {
    let policy = |(name, tokens, window): (&'static str, _, _)| QuotaPolicy {
        name: name.into(),
        tokens,
        window: secs(window),
    };
    ServiceLimit {
        policies: policies.into_iter().map(policy).collect(),
        bound,
        remaining,
        reset,
    }
}

fn over(limit: ServiceLimit) -> Rejected {
    Rejected::new("rate limit", "the quota is used up").over(limit)
}

/// The answer to a request whose call fails so.
fn answer_to(
    request: Request<()>,
    layer: &AnswerLayer,
    error: impl Into<BoxError>,
) -> Response<AnswerBody<Body>> {
    let fails = future::ready(Err::<Response<Body>, BoxError>(error.into()));
    let mut fails = Some(fails);
    let service = layer.layer(service_fn(move |_| fails.take().expect("one call")));
    let answer = service.oneshot(request).now_or_never();
    answer
        .expect("it need not wait")
        .unwrap_or_else(|no| match no {})
}

fn http(error: impl Into<BoxError>) -> Response<AnswerBody<Body>> {
    answer_to(get(), &AnswerLayer::http(), error)
}

fn grpc(error: impl Into<BoxError>) -> Response<AnswerBody<Body>> {
    answer_to(get(), &AnswerLayer::grpc(), error)
}

/// What comes of a call whose limiters report this.
fn reported(
    limits: Vec<ServiceLimit>,
    result: Result<Response<Body>, BoxError>,
) -> Response<AnswerBody<Body>> {
    let mut result = Some(result);
    let service = service_fn(move |request: Request<()>| {
        let report = request.extensions().get::<LimitReport>();
        let report = report.expect("the layer puts it there");
        limits.iter().cloned().for_each(|limit| report.add(limit));
        future::ready(result.take().expect("one call"))
    });
    let call = AnswerLayer::http().layer(service).oneshot(get());
    let answer = call.now_or_never().expect("it need not wait");
    answer.unwrap_or_else(|no| match no {})
}

fn field<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    let mut values = response.headers().get_all(name).iter();
    let value = values.next();
    assert!(values.next().is_none(), "two lines of {name}");
    value.map(|value| value.to_str().unwrap())
}

fn bytes<B>(response: Response<B>) -> Bytes
where
    B: http_body::Body<Data = Bytes, Error: fmt::Debug>,
{
    let body = response.into_body().collect().now_or_never();
    body.expect("it is all there").unwrap().to_bytes()
}

fn json(response: Response<AnswerBody<Body>>) -> serde_json::Value {
    serde_json::from_slice(&bytes(response)).unwrap()
}

/// A field as an independent parser has it: names, each with its parameters.
fn parsed<B>(response: &Response<B>, name: &str) -> Vec<(String, Vec<(String, u64)>)> {
    let Some(value) = field(response, name) else {
        return Vec::new();
    };
    let list: List = Parser::new(value).parse().unwrap();
    let item = |entry: &ListEntry| {
        let ListEntry::Item(item) = entry else {
            panic!("{entry:?} is no item")
        };
        let name = item.bare_item.as_string().expect("a string").to_string();
        let number = |value: &BareItem| u64::try_from(i64::from(value.as_integer().unwrap()));
        let parameters = item.params.iter();
        let parameters = parameters.map(|(key, value)| (key.to_string(), number(value).unwrap()));
        (name, parameters.collect())
    };
    list.iter().map(item).collect()
}

// promises: RL-15, RL-16
#[test]
fn what_a_limiter_refuses_is_429_with_its_quotas_and_a_problem() {
    let response = http(over(limit(100, Duration::from_millis(2_400))).after(secs(3)));
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let policies = r#""burst";q=10;w=1, "hour";q=1000;w=3600"#;
    assert_eq!(field(&response, "ratelimit-policy"), Some(policies));
    assert_eq!(field(&response, "ratelimit"), Some(r#""hour";r=100;t=3"#));
    assert_eq!(field(&response, "retry-after"), Some("3"));
    let content_type = field(&response, "content-type");
    assert_eq!(content_type, Some("application/problem+json"));
    let expected = serde_json::json!({
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Request cannot be satisfied as assigned quota has been exceeded",
        "status": 429,
        "violated-policies": ["hour"],
    });
    assert_eq!(json(response), expected);
}

// promise: ST-2
#[test]
fn what_anything_else_refuses_is_503() {
    let refusal = Rejected::new("breaker", "open");
    let response = http(refusal.clone().after(Duration::from_millis(2_001)));
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(field(&response, "retry-after"), Some("3"));
    assert_eq!(field(&response, "ratelimit-policy"), None);
    assert_eq!(field(&response, "ratelimit"), None);
    let content_type = field(&response, "content-type");
    assert_eq!(content_type, Some("application/problem+json"));
    let expected = serde_json::json!({
        "type": "about:blank", "title": "Service Unavailable", "status": 503,
    });
    assert_eq!(json(response), expected);

    assert_eq!(field(&http(refusal), "retry-after"), None);
}

// promise: RL-14
#[test]
fn retry_after_is_rounded_up_and_at_least_a_second() {
    for (wait, expected) in [
        (Duration::ZERO, "1"),
        (Duration::from_nanos(1), "1"),
        (secs(1), "1"),
        (Duration::from_nanos(1_000_000_001), "2"),
        (secs(86_400), "86400"),
        (Duration::MAX, "999999999999999"),
    ] {
        let full = over(limit(0, Duration::ZERO)).after(wait);
        assert_eq!(
            field(&http(full), "retry-after"),
            Some(expected),
            "{wait:?}"
        );
        let open = Rejected::new("breaker", "open").after(wait);
        assert_eq!(
            field(&http(open), "retry-after"),
            Some(expected),
            "{wait:?}"
        );
    }
    assert_eq!(field(&http(over(limit(0, secs(1)))), "retry-after"), None);
}

// promise: RL-15
#[test]
fn retry_after_is_not_before_the_reset() {
    let response = http(over(limit(0, secs(9))).after(secs(2)));
    assert_eq!(field(&response, "ratelimit"), Some(r#""hour";r=0;t=9"#));
    assert_eq!(field(&response, "retry-after"), Some("9"));
}

// promise: RL-15
#[test]
fn names_and_figures_are_what_a_structured_field_can_hold() {
    let mut limit = limit(u64::MAX, Duration::MAX);
    limit.policies = Policies::from_iter([
        QuotaPolicy {
            name: "je \"Stück\" \\\r\n".into(),
            tokens: u64::MAX,
            window: Duration::MAX,
        },
        QuotaPolicy {
            name: "".into(),
            tokens: 0,
            window: Duration::from_millis(1_001),
        },
        QuotaPolicy {
            name: "fast".into(),
            tokens: 1,
            window: Duration::ZERO,
        },
    ]);
    limit.bound = 0;
    let response = http(over(limit.clone()));
    let most = "999999999999999";
    let policies = format!(r#""je \"St_ck\" \\__";q={most};w={most}, "";q=0;w=2, "fast";q=1;w=1"#);
    assert_eq!(field(&response, "ratelimit-policy"), Some(&*policies));
    let bound = format!(r#""je \"St_ck\" \\__";r={most};t={most}"#);
    assert_eq!(field(&response, "ratelimit"), Some(&*bound));
    // The problem has the name that is in the fields.
    let violated = &json(response)["violated-policies"];
    assert_eq!(*violated, serde_json::json!([r#"je "St_ck" \__"#]));
    let policies = parsed(&http(over(limit)), "ratelimit-policy");
    assert_eq!(policies[0].0, r#"je "St_ck" \__"#);
}

// promise: RL-15
#[test]
fn a_limiter_without_policies_has_no_fields() {
    for limit in [
        limit_of([], 0, 3, secs(1)),
        limit_of([("hour", 5, 3_600)], 1, 3, secs(1)),
    ] {
        let response = http(over(limit.clone()).after(secs(2)));
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(field(&response, "ratelimit"), None);
        let policies = parsed(&response, "ratelimit-policy");
        assert_eq!(policies.len(), limit.policies.len());
        assert_eq!(json(response)["violated-policies"], serde_json::json!([]));
        let response = reported(vec![limit], Ok(Response::default()));
        assert_eq!(field(&response, "ratelimit"), None);
    }
}

fn any_limit() -> impl Strategy<Value = ServiceLimit> {
    let policy = (any::<String>(), any::<u64>(), any::<Duration>());
    let policy = policy.prop_map(|(name, tokens, window)| QuotaPolicy {
        name: name.into(),
        tokens,
        window,
    });
    let policies = prop::collection::vec(policy, 0..4);
    let figures = (policies, 0_usize..5, any::<u64>(), any::<Duration>());
    figures.prop_map(|(policies, bound, remaining, reset)| ServiceLimit {
        policies: policies.into_iter().collect(),
        bound,
        remaining,
        reset,
    })
}

fn parameter(parameters: &[(String, u64)], name: &str) -> Option<u64> {
    let found = parameters.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| *value)
}

proptest! {
    // promise: RL-15
    #[test]
    fn whatever_limiters_say_parses(
        limits in prop::collection::vec(any_limit(), 0..4),
        refuses in any_limit(),
        wait in prop::option::of(any::<Duration>()),
    ) {
        const MOST: u64 = 999_999_999_999_999;
        let ceil = |time: Duration| time.as_nanos().div_ceil(1_000_000_000).min(MOST.into());
        let mut refusal = over(refuses.clone());
        if let Some(wait) = wait {
            refusal = refusal.after(wait);
        }
        let refused = http(refusal);
        let answered = reported(limits.clone(), Ok(Response::default()));
        for (limits, response) in [(vec![refuses], &refused), (limits, &answered)] {
            let policies = parsed(response, "ratelimit-policy");
            let given: Vec<_> = limits.iter().flat_map(|limit| limit.policies.iter()).collect();
            prop_assert_eq!(policies.len(), given.len());
            for ((_, said), policy) in policies.iter().zip(given) {
                prop_assert_eq!(parameter(said, "q"), Some(policy.tokens.min(MOST)));
                let window = parameter(said, "w").map(u128::from);
                prop_assert_eq!(window, Some(ceil(policy.window).max(1)));
            }
            let bounds = parsed(response, "ratelimit");
            let given: Vec<_> = limits.iter().filter(|limit| limit.policy().is_some()).collect();
            prop_assert_eq!(bounds.len(), given.len());
            for ((name, said), limit) in bounds.iter().zip(given) {
                prop_assert!(policies.iter().any(|(policy, _)| policy == name));
                prop_assert_eq!(parameter(said, "r"), Some(limit.remaining.min(MOST)));
                let reset = parameter(said, "t");
                prop_assert_eq!(reset.map(u128::from), Some(ceil(limit.reset)));
                let after = field(response, "retry-after").map(|after| after.parse().unwrap());
                prop_assert!(after.is_none_or(|after: u64| Some(after) >= reset));
            }
            let mut names: Vec<_> = policies.iter().map(|(name, _)| name).collect();
            names.sort();
            names.dedup();
            prop_assert_eq!(names.len(), policies.len());
        }
        prop_assert_eq!(field(&refused, "retry-after").is_some(), wait.is_some());
    }
}

// promise: ST-2
#[test]
fn a_refusal_is_found_however_deep() {
    let deep = io::Error::other(io::Error::other(over(limit(0, secs(1)))));
    assert_eq!(http(deep).status(), StatusCode::TOO_MANY_REQUESTS);
    let deep = io::Error::other(tower::load_shed::error::Overloaded::new());
    assert_eq!(http(deep).status(), StatusCode::SERVICE_UNAVAILABLE);
    let deep = io::Error::other(tower::timeout::error::Elapsed::new());
    assert_eq!(http(deep).status(), StatusCode::GATEWAY_TIMEOUT);
}

// promise: RL-16
#[test]
fn an_answer_to_a_refusal_has_it_among_its_extensions() {
    let refusal = || over(limit(0, secs(1))).named("api").keyed("10.0.0.1");
    for response in [http(refusal()), grpc(refusal())] {
        let mark = response.extensions().get::<Rejected>();
        let mark = mark.expect("the handler never ran");
        assert_eq!((mark.name(), mark.key()), (Some("api"), Some("10.0.0.1")));
    }
    for error in [
        io::Error::other(tower::timeout::error::Elapsed::new()),
        io::Error::other("anything else"),
    ] {
        // The handler may have run.
        assert!(http(error).extensions().get::<Rejected>().is_none());
    }
}

/// All that is sent of a response.
fn sent(response: Response<AnswerBody<Body>>) -> String {
    let headers = format!("{:?}", response.headers());
    let body = bytes(response);
    format!("{headers}{}", String::from_utf8_lossy(&body))
}

// promise: ST-2
#[test]
fn nothing_is_told_of_an_error_or_of_who_refused_by_which_key() {
    let refusal = Rejected::new("secret layer", "for a secret reason");
    let refusal = refusal.named("secret name").keyed("secret key");
    for layer in [AnswerLayer::http(), AnswerLayer::grpc()] {
        for error in [
            refusal.clone().into(),
            refusal.clone().over(limit(0, secs(1))).into(),
            io::Error::other("a secret").into(),
            BoxError::from("a secret"),
        ] {
            let sent = sent(answer_to(get(), &layer, error));
            assert!(!sent.contains("secret"), "{sent}");
        }
    }
}

// promise: ST-2
#[test]
fn an_answer_to_head_has_the_head_and_no_body() {
    let head = || Request::head("/").body(()).unwrap();
    let layer = AnswerLayer::http().on_error(|error| {
        let text = error.to_string();
        (text == "mine").then(|| Response::new(text.into()))
    });
    for error in [
        || over(limit(0, secs(1))).after(secs(1)).into(),
        || BoxError::from("mine"),
        || BoxError::from("not mine"),
    ] {
        let get = answer_to(get(), &layer, error());
        let mut head = answer_to(head(), &layer, error());
        assert_eq!(head.status(), get.status());
        let length = head.headers_mut().remove("content-length");
        assert_eq!(head.headers(), get.headers());
        assert!(http_body::Body::is_end_stream(head.body()));
        assert_eq!(bytes(head), "");
        let body = bytes(get);
        assert!(!body.is_empty());
        // A server sets it for a body that is there.
        assert_eq!(length.unwrap(), body.len().to_string());
    }
    let empty = AnswerLayer::http().on_error(|_| Some(Response::default()));
    let head = answer_to(head(), &empty, "anything");
    assert_eq!(field(&head, "content-length"), None);
}

// promise: ST-2
#[test]
fn every_other_error_goes_to_the_user_s_handler() {
    let layer = AnswerLayer::http().on_error(|error| {
        let error = error.downcast::<io::Error>().ok()?;
        let mut answer = Response::new(error.to_string().into());
        *answer.status_mut() = StatusCode::BAD_GATEWAY;
        Some(answer)
    });
    let response = answer_to(get(), &layer, io::Error::other("it is gone"));
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(bytes(response), "it is gone");

    for response in [answer_to(get(), &layer, "something"), http("something")] {
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(field(&response, "retry-after"), None);
        let expected = serde_json::json!({
            "type": "about:blank", "title": "Internal Server Error", "status": 500,
        });
        assert_eq!(json(response), expected);
    }

    let layer = AnswerLayer::http().on_error(|error| panic!("{error} is not his"));
    let refused = answer_to(get(), &layer, io::Error::other(Rejected::new("x", "y")));
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let late = answer_to(get(), &layer, tower::timeout::error::Elapsed::new());
    assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
}

// promise: ST-2
#[tokio::test(start_paused = true)]
async fn tower_s_own_load_shed_and_timeout_are_answered_for() {
    type Layers<'a> = [(&'a AnswerLayer, u16, Option<&'a str>, u16, Option<&'a str>); 2];
    let (http, grpc) = (AnswerLayer::http(), AnswerLayer::grpc());
    let layers: Layers<'_> = [
        (&http, 503, None, 504, None),
        (&grpc, 200, Some("14"), 200, Some("4")),
    ];
    for (layer, shed, shed_code, late, late_code) in layers {
        let (service, mut handle) = mock::pair::<Request<()>, Response<Body>>();
        handle.allow(0);
        let mut service = ServiceBuilder::new()
            .layer(layer.clone())
            .layer(LoadShedLayer::new())
            .service(service);
        let response = service.ready().await.unwrap().call(get()).await.unwrap();
        assert_eq!(response.status(), shed);
        assert_eq!(field(&response, "grpc-status"), shed_code);
        assert_eq!(field(&response, "retry-after"), None);
        let mark = response.extensions().get::<Rejected>();
        assert_eq!(mark.map(Rejected::by), Some("load shed"));

        let hangs = service_fn(|_| future::pending::<Result<Response<Body>, BoxError>>());
        let service = ServiceBuilder::new()
            .layer(layer.clone())
            .layer(TimeoutLayer::new(secs(3)))
            .service(hangs);
        let response = service.oneshot(get()).await.unwrap();
        assert_eq!(response.status(), late);
        assert_eq!(field(&response, "grpc-status"), late_code);
        assert!(response.extensions().get::<Rejected>().is_none());
    }
}

// promise: RL-15
#[test]
fn a_response_says_how_the_caller_stands() {
    let response = reported(vec![limit(100, secs(3))], Ok(Response::default()));
    assert_eq!(response.status(), StatusCode::OK);
    let policies = r#""burst";q=10;w=1, "hour";q=1000;w=3600"#;
    assert_eq!(field(&response, "ratelimit-policy"), Some(policies));
    assert_eq!(field(&response, "ratelimit"), Some(r#""hour";r=100;t=3"#));
    assert_eq!(field(&response, "retry-after"), None);

    let response = reported(Vec::new(), Ok(Response::default()));
    assert!(response.headers().is_empty());
}

// promise: RL-15
#[test]
fn two_limiters_have_a_member_each_and_no_two_names_are_the_same() {
    let all = limit_of([("default", 100, 1)], 0, 99, secs(0));
    let each = limit_of([("default", 10, 1), ("default-2", 50, 60)], 0, 4, secs(1));
    let response = reported(vec![all, each.clone()], Ok(Response::default()));
    let policies = r#""default";q=100;w=1, "default-2";q=10;w=1, "default-2-2";q=50;w=60"#;
    assert_eq!(field(&response, "ratelimit-policy"), Some(policies));
    let limits = r#""default";r=99;t=0, "default-2";r=4;t=1"#;
    assert_eq!(field(&response, "ratelimit"), Some(limits));

    // Asked by a retry, for example.
    let again = ServiceLimit {
        remaining: 3,
        ..each.clone()
    };
    let response = reported(vec![each, again], Ok(Response::default()));
    assert_eq!(field(&response, "ratelimit"), Some(r#""default";r=3;t=1"#));
}

// promise: RL-15
#[test]
fn what_the_handler_says_of_its_limits_stays() {
    for (name, value) in [
        ("ratelimit", r#""mine";r=1"#),
        ("ratelimit-policy", r#""mine";q=1"#),
    ] {
        let response = Response::builder().header(name, value);
        let response = response.body(Body::default()).unwrap();
        let response = reported(vec![limit(100, secs(3))], Ok(response));
        assert_eq!(field(&response, name), Some(value));
        assert_eq!(response.headers().len(), 1, "they go together");
    }
    // It asks for less than `t`, and the draft does not allow both.
    let response = Response::builder().header("retry-after", "1");
    let response = response.body(Body::default()).unwrap();
    let response = reported(vec![limit(100, secs(3))], Ok(response));
    assert_eq!(field(&response, "retry-after"), Some("1"));
    assert_eq!(field(&response, "ratelimit"), Some(r#""hour";r=100"#));
}

// promise: RL-15
#[test]
fn an_answer_tells_of_the_limiters_that_let_the_call_through_unless_one_refused_it() {
    let report = || vec![limit(100, secs(3))];
    let failed = reported(report(), Err("something".into()));
    assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(field(&failed, "ratelimit"), Some(r#""hour";r=100;t=3"#));

    let open = Rejected::new("breaker", "open").after(secs(2));
    let open = reported(report(), Err(open.into()));
    assert_eq!(field(&open, "retry-after"), Some("2"));
    assert_eq!(field(&open, "ratelimit"), Some(r#""hour";r=100"#));

    let full = over(limit_of([("key", 5, 1)], 0, 0, secs(1))).after(secs(1));
    let full = reported(report(), Err(full.into()));
    assert_eq!(field(&full, "ratelimit-policy"), Some(r#""key";q=5;w=1"#));
    assert_eq!(field(&full, "ratelimit"), Some(r#""key";r=0;t=1"#));
}

/// Lets everything through and says so.
#[derive(Clone, Debug)]
struct Says<S>(S, ServiceLimit);

impl<S: Service<Request<B>>, B> Service<Request<B>> for Says<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        if let Some(report) = request.extensions().get::<LimitReport>() {
            report.add(self.1.clone());
        }
        self.0.call(request)
    }
}

// promise: RL-15
#[tokio::test]
async fn the_outermost_of_nested_layers_tells_of_all_limiters() {
    let handler =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Body::default())));
    let inner = Says(handler, limit_of([("inner", 5, 1)], 0, 4, secs(1)));
    let inner = AnswerLayer::http().layer(inner);
    let outer = Says(inner, limit_of([("outer", 7, 1)], 0, 6, secs(1)));
    let service = AnswerLayer::http().layer(outer);
    let response = service.clone().oneshot(get()).await.unwrap();
    let limits = r#""outer";r=6;t=1, "inner";r=4;t=1"#;
    assert_eq!(field(&response, "ratelimit"), Some(limits));
    assert_eq!(parsed(&response, "ratelimit-policy").len(), 2);
}

// promise: RL-16
#[test]
fn what_a_limiter_refuses_is_resource_exhausted_with_pushback() {
    for (wait, pushback) in [
        (Some(Duration::ZERO), "1"),
        (Some(Duration::from_nanos(1)), "1"),
        (Some(Duration::from_millis(7)), "7"),
        (Some(Duration::from_micros(7_001)), "8"),
        // A signed number of 32 bits.
        (Some(Duration::MAX), "2147483647"),
        // It will never be let through.
        (None, "-1"),
    ] {
        let mut refusal = over(limit(0, secs(1)));
        if let Some(wait) = wait {
            refusal = refusal.after(wait);
        }
        let response = grpc(refusal);
        assert_eq!(field(&response, "grpc-status"), Some("8"));
        let said = field(&response, "grpc-retry-pushback-ms");
        assert_eq!(said, Some(pushback), "{wait:?}");
        let read = match pushback.parse() {
            Ok(millis) => Hint::Pushback(Duration::from_millis(millis)),
            Err(_) => Hint::Never,
        };
        assert_eq!(hint::grpc(response.headers()), read);
    }
}

// promise: ST-2
#[test]
fn answers_of_grpc_are_trailers_in_the_head() {
    let open = || Rejected::new("breaker", "open");
    let over = || over(limit(0, secs(1))).after(secs(1));
    for (response, status, pushback) in [
        (grpc(over()), "8", Some("1000")),
        (grpc(open()), "14", None),
        (grpc(open().after(secs(2))), "14", Some("2000")),
        (grpc(tower::load_shed::error::Overloaded::new()), "14", None),
        (grpc(tower::timeout::error::Elapsed::new()), "4", None),
        (grpc("something"), "2", None),
    ] {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(field(&response, "content-type"), Some("application/grpc"));
        assert_eq!(field(&response, "grpc-status"), Some(status));
        assert_eq!(field(&response, "grpc-retry-pushback-ms"), pushback);
        assert_eq!(field(&response, "ratelimit"), None);
        assert_eq!(field(&response, "ratelimit-policy"), None);
        let message = field(&response, "grpc-message").unwrap();
        // Nothing in it has to be percent-encoded.
        assert!(
            message
                .bytes()
                .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'%')
        );
        assert!(http_body::Body::is_end_stream(response.body()));
        assert_eq!(bytes(response), "");
    }
    // What a client with our layers makes of it.
    let verdict = |response| classify::Grpc.classify(Ok(&response));
    assert_eq!(verdict(grpc(open())).applied, Verdict::REFUSED.applied);
    assert_eq!(verdict(grpc(over())).applied, Verdict::REFUSED.applied);
}

// promise: ST-2
#[test]
fn in_grpc_the_user_s_handler_may_answer_as_tonic_does() {
    let layer = AnswerLayer::grpc().on_error(|error| {
        let status = tonic::Status::try_from_error(error).ok()?;
        Some(status.into_http())
    });
    let response = answer_to(get(), &layer, tonic::Status::aborted("50 % done"));
    assert_eq!(field(&response, "grpc-status"), Some("10"));
    assert_eq!(field(&response, "grpc-message"), Some("50%20%25%20done"));
    let response = answer_to(get(), &layer, "something");
    assert_eq!(field(&response, "grpc-status"), Some("2"));
}

// promise: RL-16
#[tokio::test]
async fn in_grpc_nobody_is_asked_for_his_limits() {
    let asked = service_fn(async |request: Request<()>| {
        let asked = request.extensions().get::<LimitReport>().is_some();
        Ok::<_, Infallible>(Response::new(Body::from(asked.to_string())))
    });
    let service = AnswerLayer::grpc().layer(asked);
    assert_eq!(bytes(service.oneshot(get()).await.unwrap()), "false");
}

// promise: ST-2
#[tokio::test(start_paused = true)]
async fn a_call_goes_to_the_value_that_was_ready_and_a_clone_is_not() {
    // The mock panics when it is called without having been polled ready.
    let (service, mut handle) = mock::pair::<Request<()>, Response<Body>>();
    handle.allow(0);
    let mut service = AnswerLayer::http().layer(service);
    let mut ready = task::spawn(service.ready());
    assert_pending!(ready.poll());
    handle.allow(1);
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
    drop(ready);

    let mut clone = service.clone();
    let mut call = task::spawn(service.call(get()));
    let mut ready = task::spawn(clone.ready());
    assert_pending!(ready.poll());
    let (_, send) = assert_ready!(task::spawn(handle.next_request()).poll()).unwrap();
    assert_pending!(call.poll());
    send.send_response(Response::new(Body::from("words")));
    assert_eq!(bytes(assert_ready_ok!(call.poll())), "words");
}

// promise: ST-2
#[tokio::test(start_paused = true)]
async fn an_error_of_readiness_is_the_answer_to_every_call() {
    for (error, status) in [
        (BoxError::from("it is gone"), 500),
        (Rejected::new("breaker", "open").into(), 503),
        (io::Error::other(over(limit(0, secs(1)))).into(), 429),
    ] {
        let (service, mut handle) = mock::pair::<Request<()>, Response<Body>>();
        handle.send_error(error);
        let mut service = AnswerLayer::http().layer(service);
        for _ in 0..3 {
            let response = service.ready().await.unwrap().call(get()).await.unwrap();
            assert_eq!(response.status(), status);
        }
        // The mock serves a clone.
        handle.allow(1);
        let mut clone = service.clone();
        let mut call = task::spawn(clone.ready().await.unwrap().call(get()));
        assert_pending!(call.poll());
        let (_, send) = handle.next_request().await.unwrap();
        send.send_response(Response::default());
        assert_eq!(assert_ready_ok!(call.poll()).status(), StatusCode::OK);
    }
}

/// Is not ready at first, and then fails.
#[derive(Debug, Default)]
struct FailsLater {
    polled: bool,
}

impl Service<Request<()>> for FailsLater {
    type Response = Response<Body>;
    type Error = io::Error;
    type Future = future::Ready<io::Result<Response<Body>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.polled {
            return Poll::Ready(Err(io::Error::other("broken")));
        }
        self.polled = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        unreachable!("it is never ready")
    }
}

// promise: ST-2
#[tokio::test(start_paused = true)]
async fn a_buffer_whose_worker_has_died_is_answered_for() {
    let service = ServiceBuilder::new()
        .layer(AnswerLayer::http())
        .service(Buffer::new(FailsLater::default(), 3));
    let mut kept = service.clone();
    for _ in 0..5 {
        // As axum does, which clones for each request, and as a client does, which keeps its service.
        let response = service.clone().oneshot(get()).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let response = kept.ready().await.unwrap().call(get()).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}

// promise: ST-2
#[tokio::test(start_paused = true)]
async fn a_service_that_panics_when_it_is_polled_after_its_error_is_not() {
    let mut dies = SpawnReady::new(FailsLater::default());
    assert!(ServiceExt::<Request<()>>::ready(&mut dies).await.is_err());
    let polled = tokio::spawn(async move { dies.ready().await.map(drop) }).await;
    assert!(polled.unwrap_err().is_panic(), "tower's own one");

    let dies = SpawnReady::new(FailsLater::default());
    let mut service = AnswerLayer::http().layer(dies);
    for _ in 0..3 {
        let response = service.ready().await.unwrap().call(get()).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}

// promise: ST-2
#[tokio::test(start_paused = true)]
async fn a_call_may_be_dropped_at_every_poll() {
    let slow = service_fn(async |_: Request<()>| {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        Ok::<_, BoxError>(Response::new(Body::default()))
    });
    let service = AnswerLayer::http().layer(ConcurrencyLimit::new(slow, 1));
    for polls in 0..20 {
        let mut call = task::spawn(service.clone().oneshot(get()));
        for _ in 0..polls {
            if call.poll().is_ready() {
                break;
            }
        }
        drop(call);
        let ready = task::spawn(service.clone().ready_oneshot())
            .poll()
            .is_ready();
        assert!(ready, "after {polls} polls");
    }
}

/// A body of two frames and trailers that says of itself what no other would.
#[derive(Clone, Debug)]
struct Odd(usize);

impl http_body::Body for Odd {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<http_body::Frame<Bytes>>>> {
        self.0 += 1;
        match self.0 {
            1 => Poll::Ready(Some(Ok(http_body::Frame::data("words".into())))),
            2 => Poll::Pending,
            3 => {
                let trailers = HeaderMap::from_iter([("x".parse().unwrap(), "y".parse().unwrap())]);
                Poll::Ready(Some(Ok(http_body::Frame::trailers(trailers))))
            }
            _ => Poll::Ready(Some(Err(io::Error::other("broken")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 3
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let mut hint = http_body::SizeHint::new();
        hint.set_lower(17);
        hint.set_upper(71);
        hint
    }
}

// promise: ST-2
#[tokio::test]
async fn a_response_of_the_service_passes_as_it_is() {
    let handler = service_fn(async |_: Request<()>| {
        let response = Response::builder().status(418).header("x", "y");
        Ok::<_, Infallible>(response.extension(7_u8).body(Odd(0)).unwrap())
    });
    for layer in [AnswerLayer::http(), AnswerLayer::grpc()] {
        for method in [Method::GET, Method::HEAD] {
            let mut request = get();
            *request.method_mut() = method;
            let response = layer.layer(handler).oneshot(request).await.unwrap();
            assert_eq!(response.status(), 418);
            assert_eq!(response.headers().len(), 1);
            assert_eq!(response.extensions().get(), Some(&7_u8));
            let mut body = task::spawn(response.into_body());
            assert_eq!(http_body::Body::size_hint(&*body).lower(), 17);
            assert_eq!(http_body::Body::size_hint(&*body).upper(), Some(71));
            let mut poll = || body.enter(|cx, body| http_body::Body::poll_frame(body, cx));
            let frame = assert_ready!(poll()).unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "words");
            assert_pending!(poll());
            let frame = assert_ready!(poll()).unwrap().unwrap();
            assert_eq!(frame.into_trailers().unwrap()["x"], "y");
            assert!(http_body::Body::is_end_stream(&*body));
            let mut poll = || body.enter(|cx, body| http_body::Body::poll_frame(body, cx));
            let error = assert_ready!(poll()).unwrap().unwrap_err();
            assert_eq!(error.to_string(), "broken");
            assert!(!http_body::Body::is_end_stream(&*body));
        }
    }
}

// promise: ST-2
#[test]
fn an_answer_s_own_body_knows_its_size_and_its_end() {
    let body = http("something").into_body();
    let size = http_body::Body::size_hint(&body).exact();
    let all = bytes(Response::new(body.clone()));
    assert_eq!(size, Some(all.len() as u64));
    assert!(!http_body::Body::is_end_stream(&body));
    let mut body = task::spawn(body);
    let mut poll = || body.enter(|cx, body| http_body::Body::poll_frame(body, cx));
    let frame = assert_ready!(poll()).unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), all);
    assert!(assert_ready!(poll()).is_none());
    assert!(http_body::Body::is_end_stream(&*body));
    let none = AnswerBody::<Body>::default();
    assert_eq!(http_body::Body::size_hint(&none).exact(), Some(0));
}

// promise: RL-16
#[test]
fn a_response_costs_no_more_memory_than_the_report() {
    fn count(mut call: impl FnMut()) -> u64 {
        call();
        allocation_counter::measure(call).count_total
    }

    let handler = || {
        service_fn(|_: Request<()>| {
            future::ready(Ok::<_, Infallible>(Response::new(http_body_util::Empty::<
                Bytes,
            >::new())))
        })
    };
    let by_hand = count(|| {
        let mut request = get();
        let report = LimitReport::default();
        request.extensions_mut().insert(report.clone());
        assert!(handler().oneshot(request).now_or_never().is_some());
        assert!(report.take().is_empty());
    });
    let http = AnswerLayer::http();
    let counted = count(|| {
        let call = http.layer(handler()).oneshot(get());
        assert!(call.now_or_never().is_some());
    });
    assert_eq!(counted, by_hand);
    let grpc = AnswerLayer::grpc();
    let counted = count(|| {
        let call = grpc.layer(handler()).oneshot(get());
        assert!(call.now_or_never().is_some());
    });
    assert_eq!(counted, 0);
}

// promise: RL-16
#[test]
fn what_is_the_same_in_all_answers_of_a_limiter_is_written_once() {
    let said = limit(7, secs(3));
    let allocations = || {
        let measured = allocation_counter::measure(|| {
            let response = reported(vec![said.clone()], Ok(Response::default()));
            assert_eq!(field(&response, "ratelimit"), Some(r#""hour";r=7;t=3"#));
        });
        measured.count_total
    };
    let (first, second) = (allocations(), allocations());
    // Of these, five are the request's extensions and the list in this test.
    assert!(second <= 10, "{second}, and {first} before");
}

// promise: ST-2
#[test]
fn its_types_go_where_those_below_go() {
    fn anywhere<T: Send + Sync + Unpin + fmt::Debug>() {}
    fn cloned<T: Clone>() {}
    anywhere::<AnswerLayer>();
    anywhere::<Answer<()>>();
    anywhere::<AnswerBody<Body>>();
    anywhere::<ResponseFuture<future::Ready<()>>>();
    cloned::<(AnswerLayer, Answer<()>, AnswerBody<Body>)>();
    // For layers above that make an empty body, such as those of tower-http.
    let _: fn() -> AnswerBody<Infallible> = Default::default;

    let count = Arc::new(AtomicUsize::new(0));
    let counts = count.clone();
    let layer = AnswerLayer::http().on_error(move |_| {
        counts.fetch_add(1, Ordering::SeqCst);
        None
    });
    let text = format!("{layer:?} {:?}", layer.layer(()));
    assert!(text.contains("on_error: true"), "{text}");
    answer_to(get(), &layer.clone(), "something");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}
