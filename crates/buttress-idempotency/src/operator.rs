//! What an operator sees of the records, and does to them, over HTTP.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use buttress_core::BoxError;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower_service::Service;

use crate::{
    Handle, Key, Refusal, Store, StoreError,
    problem::problem,
    record::{Moment, Record, RecordKey, State},
};

/// The most records that are listed at once, and how many if nobody says.
const MOST: usize = 1_000;
const USUAL: usize = 100;

/// A layer's [`Handle`] over HTTP: a service that shows an operator the records, and takes his word on what came of them. It
/// can be mounted in any server, with axum by `nest_service`.
///
/// | request | does |
/// |---|---|
/// | `GET /records?limit=100&after_scope=S&after_hash=H` | lists those that are running or unknown: 100 by default, 1,000 at most. With `state=unknown` or `state=running` it leaves the others of these out. `next` has the scope and hash after which the next page begins, or `null` |
/// | `GET /record?scope=S&hash=H` | shows one |
/// | `PUT /record?scope=S&hash=H` | says that it was done, with this answer: `{"status":201,"headers":[["location","/payments/7"]],"body":"paid"}` |
/// | `DELETE /record?scope=S&hash=H` | says that nothing was done |
/// | `POST /purge?limit=100` | removes those that have expired: up to 100 by default, 1,000 at most |
/// | `GET /counts` | the [`Counts`](crate::Counts) of this process |
///
/// In place of `hash` a request may have the `Idempotency-Key` itself, in its header. PUT and DELETE are for a record whose
/// outcome is unknown, and are answered with 409 for any other. Of an answer that is kept, a record shows the status, the
/// headers and the size of the body, but not the body. Times are in seconds since 1970, on the store's clock.
///
/// A function says who may do this, as with [`Scope`](crate::Scope): it is given the head of the request, and names the
/// operator. A request for which it names nobody gets 403, and each operation on records is an
/// [`Event::Operated`](crate::Event::Operated) with the name. What can do harm is a PUT or a DELETE: a form on a page of
/// another origin cannot send these.
///
/// ```
/// use axum::Router;
/// use buttress_idempotency::{Global, IdempotencyLayer, MemoryStore, OperatorView};
/// use http::request::Parts;
///
/// /// Whoever the proxy in front of this server says that it is. It lets nobody else set this header.
/// fn operator(parts: &Parts) -> Option<String> {
///     let name = parts.headers.get("x-operator")?;
///     name.to_str().ok().map(Into::into)
/// }
///
/// let layer = IdempotencyLayer::new(MemoryStore::new(), Global);
/// let view = OperatorView::new(layer.handle(), operator);
/// let app: Router = Router::new().nest_service("/idempotency", view);
/// # let _ = app;
/// ```
pub struct OperatorView<T, W> {
    handle: Handle<T>,
    who: W,
}

impl<T, W> OperatorView<T, W>
where
    T: Store,
    W: Fn(&Parts) -> Option<String>,
{
    /// Shows the records of this handle to operators whom `who` names.
    #[must_use]
    pub fn new(handle: Handle<T>, who: W) -> Self {
        Self { handle, who }
    }
}

impl<T, W, B> Service<Request<B>> for OperatorView<T, W>
where
    T: Store,
    W: Fn(&Parts) -> Option<String>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = OperatorFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> OperatorFuture {
        let (parts, body) = request.into_parts();
        let who = (self.who)(&parts);
        let handle = who.map(|who| self.handle.by(who));
        OperatorFuture(Box::pin(async move {
            let answer = match handle {
                Some(handle) => answer(&handle, &parts, body).await,
                None => Err(Fault::Nobody),
            };
            answer.unwrap_or_else(Fault::response).map(Full::new)
        }))
    }
}

type Answer = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

/// The response of an [`OperatorView`]. Dropped, it may or may not have been done.
#[must_use = "nothing is done until it is polled"]
pub struct OperatorFuture(Answer);

impl Future for OperatorFuture {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

/// What is wrong with what an operator asks for.
enum Fault {
    Nobody,
    NoPath,
    Method(&'static str),
    Query(&'static str),
    Answer(&'static str),
    NotUnknown,
    NoRecord,
    Store,
}

impl Fault {
    fn response(self) -> Response<Bytes> {
        let (status, code, title) = match self {
            Self::Nobody => (403, "operator-unknown", "You are no operator here."),
            Self::NoPath => (404, "path-unknown", "There is nothing here."),
            Self::Method(allowed) => {
                let title = "This is not done with this method.";
                let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, "method-unknown", title);
                let allowed = header::HeaderValue::from_static(allowed);
                response.headers_mut().insert(header::ALLOW, allowed);
                return response;
            }
            Self::Query(title) => (400, "query-invalid", title),
            Self::Answer(title) => (400, "answer-invalid", title),
            Self::NotUnknown => (
                409,
                "record-not-unknown",
                "There is no record of this key whose outcome is unknown.",
            ),
            Self::NoRecord => (404, "record-unknown", "There is no record of this key."),
            Self::Store => (
                503,
                Refusal::StoreDown.code(),
                "The store has failed. Whether it was done is not known.",
            ),
        };
        problem(
            StatusCode::from_u16(status).unwrap_or_default(),
            code,
            title,
        )
    }
}

impl From<StoreError> for Fault {
    fn from(_: StoreError) -> Self {
        Self::Store
    }
}

async fn answer<T, B>(handle: &Handle<T>, parts: &Parts, body: B) -> Result<Response<Bytes>, Fault>
where
    T: Store,
    B: Body<Error: Into<BoxError>>,
{
    let query = Query::read(parts)?;
    let (path, method) = (parts.uri.path().trim_end_matches('/'), &parts.method);
    match path {
        "/records" if method == Method::GET => list(handle, query).await,
        "/record" if method == Method::GET => {
            let key = query.key(parts)?;
            let record = handle.get(&key).await?.ok_or(Fault::NoRecord)?;
            Ok(page(&show(&key, &record)))
        }
        "/record" if method == Method::PUT => {
            let key = query.key(parts)?;
            let answer = read(body, handle.answer_limit()).await?;
            ended(handle.settle(&key, answer).await?)
        }
        "/record" if method == Method::DELETE => ended(handle.release(&query.key(parts)?).await?),
        "/purge" if method == Method::POST => {
            let purged = handle.purge_expired(query.limit).await?;
            Ok(page(&json!({ "purged": purged })))
        }
        "/counts" if method == Method::GET => Ok(page(&handle.counts())),
        "/records" | "/counts" => Err(Fault::Method("GET")),
        "/record" => Err(Fault::Method("GET, PUT, DELETE")),
        "/purge" => Err(Fault::Method("POST")),
        _ => Err(Fault::NoPath),
    }
}

async fn list<T: Store>(handle: &Handle<T>, query: Query) -> Result<Response<Bytes>, Fault> {
    let after = match (query.after_scope, query.after_hash) {
        (None, None) => None,
        (scope, Some(hash)) => Some(RecordKey {
            scope: scope.unwrap_or_default(),
            hash,
        }),
        (Some(_), None) => return Err(Fault::Query("After_scope needs an after_hash.")),
    };
    let records = handle.list_open(after.as_ref(), query.limit).await?;
    // Fewer than there may be: there are no more.
    let next = records.last().filter(|_| records.len() == query.limit);
    let next = next.map(|(key, _)| json!({ "scope": key.scope, "hash": hex(key.hash) }));
    let shown = |(_, record): &&(RecordKey, Record)| {
        let state = query.state.as_deref();
        state.is_none_or(|state| state == name(&record.state))
    };
    let records = records.iter().filter(shown);
    let records: Vec<_> = records.map(|(key, record)| show(key, record)).collect();
    Ok(page(&json!({ "records": records, "next": next })))
}

fn name(state: &State) -> &'static str {
    match state {
        State::Running { .. } => "running",
        State::Unknown { .. } => "unknown",
        State::Done { .. } => "done",
    }
}

fn hex(hash: [u8; 32]) -> String {
    blake3::Hash::from(hash).to_hex().to_string()
}

fn show(key: &RecordKey, record: &Record) -> Value {
    let seconds = |moment: Moment| moment.0 / 1_000_000;
    let mut shown = json!({
        "scope": key.scope,
        "hash": hex(key.hash),
        "state": name(&record.state),
        "fence": record.fence,
        "first_seen": seconds(record.first_seen),
        "expires_at": seconds(record.expires_at),
    });
    match &record.state {
        State::Running {
            lease_until, armed, ..
        } => {
            shown["lease_until"] = seconds(*lease_until).into();
            shown["armed"] = (*armed).into();
        }
        State::Unknown { .. } => {}
        State::Done { completion, .. } => {
            let response = &completion.response;
            let headers = response.headers.iter();
            let headers = headers.map(|(name, value)| (name, String::from_utf8_lossy(value)));
            shown["response"] = json!({
                "status": response.status,
                "headers": headers.collect::<Vec<_>>(),
                // None if it was too large to be kept.
                "body_bytes": response.body.as_ref().map(Bytes::len),
            });
        }
    }
    shown
}

fn page(value: &impl Serialize) -> Response<Bytes> {
    let body = serde_json::to_vec_pretty(value).expect("it is text and numbers");
    let mut response = Response::new(Bytes::from(body));
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn ended(done: bool) -> Result<Response<Bytes>, Fault> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    done.then_some(response).ok_or(Fault::NotUnknown)
}

/// The answer that a request has from now on.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settled {
    status: u16,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    body: String,
}

async fn read<B: Body<Error: Into<BoxError>>>(
    body: B,
    limit: usize,
) -> Result<Response<Bytes>, Fault> {
    // In JSON a character may take six.
    let limit = limit.saturating_mul(6).saturating_add(1 << 16);
    let body = Limited::new(body, limit).collect().await;
    let body =
        body.map_err(|_| Fault::Answer("It could not be read to its end, or is too large."))?;
    let settled: Settled = serde_json::from_slice(&body.to_bytes())
        .map_err(|_| Fault::Answer("It is not an object with status, headers and body."))?;
    // No answer of a handler has another: those before are no answers yet.
    if !(200..=599).contains(&settled.status) {
        return Err(Fault::Answer("Its status is not from 200 to 599."));
    }
    let mut response = Response::builder().status(settled.status);
    for (name, value) in settled.headers {
        response = response.header(name, value);
    }
    response
        .body(settled.body.into())
        .map_err(|_| Fault::Answer("One of its headers cannot be one."))
}

/// What an operator asks for, as far as he has said it.
#[derive(Default)]
struct Query {
    scope: Option<String>,
    hash: Option<[u8; 32]>,
    after_scope: Option<String>,
    after_hash: Option<[u8; 32]>,
    state: Option<String>,
    limit: usize,
}

impl Query {
    fn read(parts: &Parts) -> Result<Self, Fault> {
        let hash = |value: &str| match blake3::Hash::from_hex(value) {
            Ok(hash) => Ok(Some(hash.into())),
            Err(_) => Err(Fault::Query("A hash has 64 hexadecimal digits.")),
        };
        let mut read = Self {
            limit: USUAL,
            ..Self::default()
        };
        let query = parts.uri.query().unwrap_or_default();
        let mut names = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if names.contains(&name) {
                return Err(Fault::Query("A parameter is there twice."));
            }
            match &*name {
                "scope" => read.scope = Some(value.into()),
                "hash" => read.hash = hash(&value)?,
                "after_scope" => read.after_scope = Some(value.into()),
                "after_hash" => read.after_hash = hash(&value)?,
                "state" if ["running", "unknown"].contains(&&*value) => {
                    read.state = Some(value.into());
                }
                "state" => return Err(Fault::Query("A state is running or unknown.")),
                "limit" => {
                    let limit = value.parse().ok();
                    let limit = limit.filter(|limit| (1..=MOST).contains(limit));
                    read.limit = limit.ok_or(Fault::Query("A limit is from 1 to 1,000."))?;
                }
                // What is ignored may have been meant to leave something out.
                _ => return Err(Fault::Query("There is a parameter that is not known.")),
            }
            names.push(name);
        }
        Ok(read)
    }

    /// The record that is asked for.
    fn key(&self, parts: &Parts) -> Result<RecordKey, Fault> {
        let scope = self.scope.clone();
        let scope = scope.ok_or(Fault::Query("A scope is needed; it may be empty."))?;
        match (self.hash, Key::of(&parts.headers)) {
            (Some(hash), Ok(None)) => Ok(RecordKey { scope, hash }),
            (None, Ok(Some(key))) => Ok(RecordKey::new(scope, key.as_str())),
            (Some(_), Ok(Some(_))) => Err(Fault::Query("It has both a hash and a key.")),
            (None, Ok(None)) => Err(Fault::Query("A hash is needed, or an Idempotency-Key.")),
            (_, Err(_)) => Err(Fault::Query("The Idempotency-Key is not a valid key.")),
        }
    }
}

impl<T, W: Clone> Clone for OperatorView<T, W> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            who: self.who.clone(),
        }
    }
}

impl<T, W> fmt::Debug for OperatorView<T, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorView")
    }
}

impl fmt::Debug for OperatorFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorFuture")
    }
}
