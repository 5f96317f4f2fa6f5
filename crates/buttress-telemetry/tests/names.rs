//! What is emitted is what the table says, and the reverse.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::{Future, pending},
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress_breaker::BreakerLayer;
use buttress_core::BoxError;
use buttress_idempotency::{
    IdempotencyLayer, Lapse, MemoryStore, RequestBody, Store, StoreError, StoreErrorKind,
    record::{Answer, Op, Record, RecordKey},
};
use buttress_rate_limit::{Quota, RateLimitLayer};
use buttress_retry::RetryLayer;
use buttress_telemetry::{
    AttemptSpanLayer, breaker, breaker_by_key, idempotency, rate_limit, retry,
};
use bytes::Bytes;
use http::{Request, Response, StatusCode, request::Parts};
use http_body_util::{BodyExt, Full};
use metrics_util::{
    MetricKind,
    debugging::{DebugValue, DebuggingRecorder, Snapshotter},
};
use support::{Line, Log};
use tokio::{
    task::yield_now,
    time::{advance, sleep, timeout},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

/// What nobody is to be told: a key, a scope, a token as the key of a limit, credentials and the query of a URL.
const KEY: &str = "key-8e03978e";
const SCOPE: &str = "alice-in-accounting";
const TOKEN: &str = "bearer-4711";
const URL: &str = "http://admin:hunter2@pay.example/payments?signature=cafe";

/// A metric: its kind, the values of its label, and what it is.
type Metric = (String, BTreeSet<String>, String);

/// A line of the log: its level and its fields.
type Shape = (String, BTreeSet<String>);

/// The rows of the table that has this heading, cell by cell.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let text = include_str!("../NAMES.md");
    let table = text.lines().skip_while(|line| !line.starts_with(heading));
    let table = table.skip(2).take_while(|line| line.starts_with('|'));
    let cells = table.map(|line| line.trim_matches('|').split('|').map(str::trim).collect());
    cells.collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(Into::into).collect()
}

fn metrics_of_table() -> BTreeMap<String, Metric> {
    let rows = rows("| metric |").into_iter().map(|row| {
        let labels = match row[2].split_once(':') {
            Some((label, values)) => {
                let label = label.trim_matches('`');
                let values = quoted(values).into_iter();
                values.map(|value| format!("{label}={value}")).collect()
            }
            None => BTreeSet::from([String::new()]),
        };
        (
            row[0].trim_matches('`').to_owned(),
            (row[1].to_owned(), labels, row[3].to_owned()),
        )
    });
    rows.collect()
}

fn lines_of_table() -> BTreeMap<String, Shape> {
    let rows = rows("| event |").into_iter().map(|row| {
        let name = row[0].trim_matches('`').to_owned();
        (name, (row[1].to_owned(), quoted(row[2])))
    });
    rows.collect()
}

/// A recorder for the metrics that are made on this thread.
fn recorder() -> (Snapshotter, metrics::LocalRecorderGuard<'static>) {
    let recorder = Box::leak(Box::new(DebuggingRecorder::new()));
    let snapshotter = recorder.snapshotter();
    (snapshotter, metrics::set_default_local_recorder(recorder))
}

/// A metric's name, kind, labels, what it is, and its value.
type Seen = (String, &'static str, Vec<(String, String)>, String, f64);

/// What there is, and whether it has ever moved. A second look finds counters at 0.
fn seen(snapshotter: &Snapshotter) -> Vec<Seen> {
    let all = snapshotter.snapshot().into_vec().into_iter();
    let seen = all.map(|(key, _, about, value)| {
        let kind = match key.kind() {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        #[expect(clippy::cast_precision_loss, reason = "they are small")]
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(value) => value.0,
            DebugValue::Histogram(values) => values.len() as f64,
        };
        let labels = key.key().labels();
        let labels = labels.map(|label| (label.key().to_owned(), label.value().to_owned()));
        (
            key.key().name().to_owned(),
            kind,
            labels.collect(),
            about.unwrap_or_default().into_owned(),
            value,
        )
    });
    seen.collect()
}

/// As the table has it. Each has the name that it was made with.
fn metrics_of(seen: &[Seen], name: &str) -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::new();
    for (metric, kind, labels, about, _) in seen {
        assert_eq!(labels[0], ("name".into(), name.into()), "{metric}");
        let label = match &labels[1..] {
            [] => String::new(),
            [(label, value)] => format!("{label}={value}"),
            _ => panic!("{metric} has {labels:?}"),
        };
        let new = || ((*kind).to_owned(), BTreeSet::new(), about.clone());
        let metric: &mut Metric = metrics.entry(metric.clone()).or_insert_with(new);
        metric.1.insert(label);
    }
    metrics
}

// promise: ST-10
#[test]
fn every_metric_of_the_table_is_there_from_the_start_and_no_other() {
    let (snapshotter, _recorder) = recorder();
    let _sinks = (
        retry("payments"),
        breaker("payments"),
        rate_limit("payments"),
        idempotency("payments"),
    );
    let seen = seen(&snapshotter);
    assert_eq!(metrics_of(&seen, "payments"), metrics_of_table());
    for (metric, _, labels, _, value) in &seen {
        let closed = metric == "buttress_breaker_state" && labels[1].1 == "closed";
        let one = closed || metric == "buttress_breaker_ramp_ratio";
        assert_eq!(*value > 0.0, one, "{metric} {labels:?}");
    }
}

// promise: ST-10
#[test]
fn the_ramp_of_a_breaker_is_shown_until_it_leaves_the_state_that_has_it() {
    let (snapshotter, _recorder) = recorder();
    // A line that is first told where nobody listens is off for other threads too.
    let _listening = Log::listen();
    let layer = BreakerLayer::http().on_event(breaker("payments"));
    let ramp_is = |expected: f64| {
        let ramps = seen(&snapshotter).into_iter();
        let mut ramps = ramps.filter(|(metric, ..)| metric == "buttress_breaker_ramp_ratio");
        let (.., value) = ramps.next().unwrap();
        assert!((value - expected).abs() < 1e-9, "{value}");
    };
    layer.handle().force_open();
    layer.handle().release();
    ramp_is(0.1);
    layer.handle().force_closed();
    ramp_is(1.0);
}

// promise: ST-10
#[test]
fn names_are_those_that_prometheus_asks_for() {
    let metrics = metrics_of_table();
    assert_eq!(
        metrics.len(),
        rows("| metric |").len(),
        "none is there twice"
    );
    for (name, (kind, ..)) in metrics {
        assert!(name.starts_with("buttress_"), "{name}");
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{name}"
        );
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        assert_eq!(name.ends_with("_seconds"), kind == "histogram", "{name}");
    }
}

// promise: ST-10
#[tokio::test(start_paused = true)]
async fn every_event_moves_its_metric_and_has_its_line_and_tells_no_secret() {
    let (log, _log) = Log::listen();
    let (snapshotter, _recorder) = recorder();
    retries().await;
    breakers().await;
    limits().await;
    requests().await;

    let seen = seen(&snapshotter);
    let mut still: BTreeSet<_> = metrics_of_table().into_keys().collect();
    let table = metrics_of_table();
    for (metric, _, labels, _, value) in &seen {
        if *value > 0.0 {
            still.remove(metric);
        }
        for (label, value) in labels {
            let known = table[metric].1.contains(&format!("{label}={value}"));
            assert!(
                known || label == "name" || label == "key",
                "{metric} {label} {value}"
            );
        }
    }
    assert_eq!(still, BTreeSet::new(), "these have never moved");

    let lines = log.take();
    let mut shapes: BTreeMap<String, Shape> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.name != "attempt") {
        let [_, layer, _] = *line.name.split('.').collect::<Vec<_>>() else {
            panic!("{} says nothing of its layer", line.name)
        };
        assert_eq!(line.target, format!("buttress::{layer}"));
        assert_eq!(line.fields["buttress.name"], "payments");
        let new = || (line.level.to_string(), BTreeSet::new());
        let shape = shapes.entry(line.name.to_owned()).or_insert_with(new);
        assert_eq!(line.level.to_string(), shape.0);
        let fields = line.fields.keys().map(|&field| field.to_owned());
        shape
            .1
            .extend(fields.filter(|field| field != "message" && field != "buttress.name"));
    }
    assert_eq!(shapes, lines_of_table());

    tells_no_secret(&seen, &lines);
}

fn tells_no_secret(seen: &[Seen], lines: &[Line]) {
    let secrets = [KEY, TOKEN, "admin", "hunter2", "signature", "cafe"];
    for line in lines {
        let text = format!("{line:?}");
        let told = secrets.iter().find(|secret| text.contains(**secret));
        assert_eq!(told, None, "{text}");
        // Who did what to whose record is an audit.
        let audit = line.name == "buttress.idempotency.operated";
        assert!(audit || !text.contains(SCOPE), "{text}");
    }
    let text = format!("{seen:?}");
    for secret in secrets.into_iter().chain([SCOPE]) {
        assert!(!text.contains(secret), "{text}");
    }
}

/// Answers with these statuses, one after the other; 0 is an answer that never comes.
fn answers<B>(
    statuses: &[u16],
) -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
+ Clone
+ Send
+ 'static
+ use<B> {
    let statuses: Vec<_> = statuses.iter().rev().copied().collect();
    let statuses = Arc::new(Mutex::new(statuses));
    service_fn(move |_| {
        let status = statuses.lock().unwrap().pop().unwrap();
        async move {
            if status == 0 {
                pending::<()>().await;
            }
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::from_u16(status)?;
            Ok(response)
        }
    })
}

fn put() -> Request<Full<Bytes>> {
    Request::put(URL).body(Full::default()).unwrap()
}

async fn retries() {
    for statuses in [&[200][..], &[503, 429, 200], &[404], &[503, 503, 503]] {
        let client = ServiceBuilder::new()
            .layer(RetryLayer::http().on_event(retry("payments")))
            .layer(AttemptSpanLayer::new())
            .service(answers(statuses));
        let status = client.oneshot(put()).await.unwrap().status();
        assert_eq!(status, *statuses.last().unwrap());
    }
}

async fn breakers() {
    let always = |status: u16| answers::<()>(&[status; 50]);
    // A key of its own, and a part of the calls that may not pass.
    let layer = BreakerLayer::http()
        .by_key(|_: &Request<()>| "cards")
        .slow_calls(Duration::from_secs(1), 1.0)
        .on_event(breaker_by_key("payments"))
        .on_event(breaker("payments"));
    let mut calls = layer.layer(always(503));
    for _ in 0..10 {
        let _ = calls.ready().await.unwrap().call(Request::new(())).await;
    }
    advance(Duration::from_secs(5)).await;
    let mut calls = layer.layer(always(200));
    for _ in 0..10 {
        let _ = calls.ready().await.unwrap().call(Request::new(())).await;
    }
    let handle = &layer.handles().all()[0];
    handle.force_closed();
    let slow = layer.layer(service_fn(async |_| {
        sleep(Duration::from_secs(2)).await;
        Ok::<_, BoxError>(Response::new(()))
    }));
    slow.oneshot(Request::new(())).await.unwrap();

    // Only one key has room. The first has to make it for the second, whose breaker opens and stays.
    let layer = BreakerLayer::http()
        .by_key(|request: &Request<()>| request.uri().path().to_owned())
        .max_keys(1.try_into().unwrap())
        .on_event(breaker("payments"));
    let mut calls = layer.layer(always(503));
    for path in ["/c", "/a", "/a", "/a", "/a", "/a", "/b"] {
        let request = Request::get(path).body(()).unwrap();
        let _ = calls.ready().await.unwrap().call(request).await;
    }

    // One for all, so that its state is shown; in shadow mode.
    let layer = BreakerLayer::http().shadow().on_event(breaker("payments"));
    let mut calls = layer.layer(always(503));
    for _ in 0..7 {
        let _ = calls.ready().await.unwrap().call(Request::new(())).await;
    }
}

async fn limits() {
    let done = || service_fn(async |_: &'static str| Ok::<_, Infallible>(()));
    let quota = Quota::per_second(10.try_into().unwrap()).burst(2.try_into().unwrap());
    let sink = || rate_limit("payments");

    let layer = RateLimitLayer::new(quota).on_event(sink());
    for _ in 0..3 {
        layer.layer(done()).oneshot("").await.unwrap();
    }
    let waits = layer.layer(done()).oneshot("");
    assert!(timeout(Duration::from_millis(50), waits).await.is_err());

    let layer = RateLimitLayer::new(quota).refuse().on_event(sink());
    let layer = layer.by_key(|token: &&'static str| *token);
    let layer = layer.max_keys(1.try_into().unwrap());
    for _ in 0..3 {
        let _ = layer.layer(done()).oneshot(TOKEN).await;
    }
    for keys in [["a", "b", "c", "d", "e", "f", "g", "h", "i"]; 2] {
        for key in keys {
            let _ = layer.layer(done()).oneshot(key).await;
        }
        advance(Duration::from_secs(10)).await;
    }

    let layer = RateLimitLayer::new(quota).shadow().on_event(sink());
    for _ in 0..3 {
        layer.layer(done()).oneshot("").await.unwrap();
    }
    let layer = RateLimitLayer::new(quota).refuse().shadow();
    let layer = layer.on_event(sink());
    for _ in 0..3 {
        layer.layer(done()).oneshot("").await.unwrap();
    }
}

/// A store that fails when it is told to.
#[derive(Clone)]
struct Moody(MemoryStore, Arc<Mutex<Mood>>);

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    Fails,
    /// It knows nothing of heartbeats and completions.
    Deaf,
}

impl Moody {
    fn be(&self, mood: Mood) {
        *self.1.lock().unwrap() = mood;
    }

    fn answers(&self, late: bool) -> Result<(), StoreError> {
        let mood = *self.1.lock().unwrap();
        if mood == Mood::Fails || mood == Mood::Deaf && late {
            return Err(StoreError::new(StoreErrorKind::Unavailable));
        }
        Ok(())
    }
}

impl Store for Moody {
    async fn step(&self, key: &RecordKey, op: Op) -> Result<Answer, StoreError> {
        self.answers(matches!(op, Op::Heartbeat { .. } | Op::Complete { .. }))?;
        self.0.step(key, op).await
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.answers(false)?;
        self.0.get(key).await
    }

    async fn list_open(
        &self,
        after: Option<&RecordKey>,
        limit: usize,
    ) -> Result<Vec<(RecordKey, Record)>, StoreError> {
        self.answers(false)?;
        self.0.list_open(after, limit).await
    }

    async fn purge_expired(&self, limit: usize) -> Result<usize, StoreError> {
        self.answers(false)?;
        self.0.purge_expired(limit).await
    }
}

type Shop = IdempotencyLayer<Moody, fn(&Parts) -> Option<String>>;

/// Sends an order to a handler that takes so many seconds and answers with this status and length, or fails if the status is 0.
fn order(
    layer: &Shop,
    key: &str,
    order: &'static str,
    (seconds, status, length): (u64, u16, usize),
) -> impl Future<Output = u16> + use<> {
    let handler = service_fn(
        move |request: Request<RequestBody<Full<Bytes>>>| async move {
            request.into_body().collect().await?;
            sleep(Duration::from_secs(seconds)).await;
            let mut response = Response::new(Full::new(Bytes::from(vec![b'x'; length])));
            *response.status_mut() = StatusCode::from_u16(status)?;
            Ok::<_, BoxError>(response)
        },
    );
    let request = Request::post(URL)
        .header("idempotency-key", key)
        .body(Full::new(Bytes::from_static(order.as_bytes())))
        .unwrap();
    let answer = tokio::spawn(layer.layer(handler).oneshot(request));
    async move {
        answer
            .await
            .unwrap()
            .map_or(0, |answer| answer.status().as_u16())
    }
}

async fn requests() {
    let store = Moody(MemoryStore::new(), Arc::new(Mutex::new(Mood::Well)));
    let scope: fn(&Parts) -> Option<String> = |_| Some(SCOPE.into());
    let layer: Shop = IdempotencyLayer::new(store.clone(), scope)
        .required()
        .max_response(4)
        .on_event(idempotency("payments"));
    let operator = layer.handle().by("olga");
    let record = RecordKey::new(SCOPE, KEY);

    // Run, in flight, completed without its body, replayed, another request, and no key.
    let first = order(&layer, KEY, "apples", (5, 201, 10));
    sleep(Duration::from_secs(1)).await;
    let ask = (0, 201, 0);
    assert_eq!(order(&layer, KEY, "apples", ask).await, 409);
    assert_eq!(first.await, 201);
    yield_now().await;
    assert_eq!(order(&layer, KEY, "apples", ask).await, 201);
    assert_eq!(order(&layer, KEY, "pears", ask).await, 422);
    assert_eq!(order(&layer, "", "apples", ask).await, 400);
    // Released.
    order(&layer, "other", "apples", (0, 429, 0)).await;

    // Abandoned, as the handler fails, and unknown from then on; and then an operator.
    assert_eq!(order(&layer, "fails", "apples", (0, 0, 0)).await, 0);
    yield_now().await;
    assert_eq!(order(&layer, "fails", "apples", ask).await, 409);
    operator.list_open(None, 10).await.unwrap();
    operator.get(&record).await.unwrap();
    operator.release(&record).await.unwrap();
    operator.settle(&record, Response::default()).await.unwrap();
    operator.purge_expired(10).await.unwrap();

    // Superseded: a second run has the key.
    let again = layer.clone().on_lapse(Lapse::Rerun);
    let first = order(&again, "again", "apples", (100, 201, 0));
    sleep(Duration::from_secs(1)).await;
    store.be(Mood::Deaf);
    sleep(Duration::from_secs(31)).await;
    store.be(Mood::Well);
    let second = order(&again, "again", "apples", (100, 201, 0));
    assert_eq!(first.await, 201);
    assert_eq!(second.await, 201);

    // The store is down, or full.
    store.be(Mood::Fails);
    assert_eq!(order(&layer, "down", "apples", ask).await, 503);
    let full = Moody(
        MemoryStore::new().max_bytes(1),
        Arc::new(Mutex::new(Mood::Well)),
    );
    let full: Shop = IdempotencyLayer::new(full, scope).on_event(idempotency("payments"));
    order(&full, KEY, "apples", ask).await;
}
