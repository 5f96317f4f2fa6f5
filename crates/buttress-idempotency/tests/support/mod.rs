//! What the tests of the layer have in common: a store that does as it is told, and a handler that counts.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "it is a module of each test, which needs some of it"
)]

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use buttress_core::{BoxError, clock};
use buttress_idempotency::{
    RequestBody, ResponseBody, Store, StoreError, StoreErrorKind,
    record::{Answer, Change, Moment, Op, Record, RecordKey, step},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

/// What the store does for the next operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mood {
    Well,
    Fails,
    /// It never answers.
    Hangs,
    /// It takes its time, before and after it does what it is asked for.
    Dawdles,
    /// It does what it is asked for, and says nothing.
    Forgets,
    /// It knows nothing of heartbeats and completions.
    Deaf,
    /// It fails at whatever ends a run.
    Half,
    /// It has no room for the body of an answer.
    Full,
    /// It takes a second for whatever ends a run.
    Slow,
    /// What it has of the record cannot be read.
    Damaged,
}

/// A store in memory, which counts what it is asked.
#[derive(Clone, Debug)]
pub struct Records(Arc<Mutex<Inside>>);

#[derive(Debug)]
struct Inside {
    records: HashMap<RecordKey, Record>,
    last_fence: u64,
    asked: usize,
    mood: Mood,
}

impl Records {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Inside {
            records: HashMap::new(),
            last_fence: 0,
            asked: 0,
            mood: Mood::Well,
        })))
    }

    pub fn asked(&self) -> usize {
        self.0.lock().unwrap().asked
    }

    pub fn be(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().records.len()
    }

    /// The one record there is.
    pub fn only(&self) -> Option<Record> {
        let inside = self.0.lock().unwrap();
        assert!(inside.records.len() <= 1);
        inside
            .records
            .values()
            .next()
            .and_then(|record| record.at(now()))
    }

    pub fn only_key(&self) -> Option<RecordKey> {
        self.0.lock().unwrap().records.keys().next().cloned()
    }

    /// Is it in the mood to answer?
    async fn answers(&self) -> Result<(), StoreError> {
        let mood = self.0.lock().unwrap().mood;
        match mood {
            Mood::Fails => Err(StoreError::new(StoreErrorKind::Unavailable)),
            Mood::Hangs => pending().await,
            _ => Ok(()),
        }
    }

    pub fn keys(&self) -> Vec<RecordKey> {
        self.0.lock().unwrap().records.keys().cloned().collect()
    }

    pub fn text(&self) -> String {
        format!("{:?}", self.0.lock().unwrap())
    }
}

fn now() -> Moment {
    Moment(clock::now().to_bits() / 1_000)
}

impl Store for Records {
    async fn step(&self, key: &RecordKey, op: Op) -> Result<Answer, StoreError> {
        let failed = || Err(StoreError::new(StoreErrorKind::Unavailable));
        let is_late = matches!(op, Op::Heartbeat { .. } | Op::Complete { .. });
        let is_end = matches!(
            op,
            Op::Complete { .. } | Op::Release { .. } | Op::Abandon { .. }
        );
        let mood = {
            let mut inside = self.0.lock().unwrap();
            inside.asked += 1;
            inside.mood
        };
        match mood {
            Mood::Fails => return failed(),
            Mood::Half if is_end => return failed(),
            Mood::Full if matches!(&op, Op::Complete { completion, .. } if completion.response.body.is_some()) =>
            {
                return Err(StoreError::new(StoreErrorKind::ScopeFull));
            }
            Mood::Hangs => return pending().await,
            Mood::Dawdles => dawdle().await,
            Mood::Slow if is_end => tokio::time::sleep(Duration::from_secs(1)).await,
            Mood::Damaged => return Err(StoreError::new(StoreErrorKind::Damaged)),
            Mood::Deaf if is_late => return failed(),
            _ => {}
        }
        let answer = {
            let mut inside = self.0.lock().unwrap();
            let (answer, change) = step(inside.records.get(key), now(), inside.last_fence, &op);
            if let Answer::Won { fence } = answer {
                inside.last_fence = fence;
            }
            match change {
                Change::Keep => {}
                Change::Put(record) => drop(inside.records.insert(key.clone(), record)),
                Change::Remove => drop(inside.records.remove(key)),
            }
            answer
        };
        match mood {
            Mood::Forgets => return pending().await,
            Mood::Dawdles => dawdle().await,
            _ => {}
        }
        Ok(answer)
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.answers().await?;
        let inside = self.0.lock().unwrap();
        Ok(inside.records.get(key).and_then(|record| record.at(now())))
    }

    async fn list_open(
        &self,
        _: Option<&RecordKey>,
        _: usize,
    ) -> Result<Vec<(RecordKey, Record)>, StoreError> {
        self.answers().await?;
        Ok(Vec::new())
    }

    async fn purge_expired(&self, _: usize) -> Result<usize, StoreError> {
        self.answers().await?;
        Ok(0)
    }
}

/// Waits for a few polls.
pub async fn dawdle() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

pub type Body = UnsyncBoxBody<Bytes, BoxError>;

pub fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

pub fn post(key: &str, bytes: &'static str) -> Request<Body> {
    Request::post("/payments?currency=eur")
        .header("idempotency-key", key)
        .header("content-type", "application/json")
        .body(body(bytes))
        .unwrap()
}

/// How often the handler has run, and how often it has come to its end.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    attempt: Arc<AtomicU32>,
}

impl Effects {
    pub fn begin(&self) -> usize {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn end(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }
}

pub type Handler = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

/// A handler that reads the request, takes so long, and answers with which run of it this is.
pub fn slow(
    effects: &Effects,
    time: Duration,
) -> impl Fn(Request<RequestBody<Body>>) -> Handler + Clone + Send + Sync + 'static {
    let effects = effects.clone();
    move |request| {
        let effects = effects.clone();
        Box::pin(async move {
            let run = effects.begin();
            let read = request.into_body().collect().await?.to_bytes();
            tokio::time::sleep(time).await;
            effects.end();
            let answer = format!("run {run} of {} bytes", read.len());
            let response = Response::builder()
                .status(201)
                .header("location", "/payments/1");
            Ok(response.body(body(answer))?)
        })
    }
}

/// A response as one can compare it.
pub async fn read(response: Response<ResponseBody<Body>>) -> (u16, String, Vec<(String, String)>) {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let headers = parts.headers.iter();
    let headers = headers.map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes());
        (name.to_string(), value.into_owned())
    });
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (parts.status.as_u16(), text, headers.collect())
}

/// The code of a problem.
pub fn code(body: &str) -> String {
    let problem: serde_json::Value = serde_json::from_str(body).unwrap();
    problem["code"].as_str().unwrap().to_owned()
}
