//! A service that answers as it is told, and remembers what it was sent.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    future::Future,
    io, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use buttress_core::{BoxError, Rejected, clock};
use buttress_retry::{Attempt, Backoff, Event, Outcome, ReplayBody, RetryLayer};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tower::{Layer, Service, ServiceExt};

pub(crate) const HOST: &str = "http://a.example/";

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn count(count: u32) -> std::num::NonZeroU32 {
    count.try_into().unwrap()
}

/// Delays that a test can name: 50 ms, 100 ms and so on.
pub(crate) fn plain() -> RetryLayer {
    let backoff = Backoff::exponential(millis(50), Duration::from_secs(20));
    RetryLayer::http()
        .backoff(backoff)
        .throttled_backoff(backoff)
}

/// A body that sends some bytes, then nothing more for as long as it lives; it counts those alive.
pub(crate) fn stalled(sent: usize, alive: &Arc<()>) -> Response<AnswerBody> {
    let guard = alive.clone();
    let chunk = Frame::data(Bytes::from(vec![b'x'; sent]));
    let stream = then_nothing(chunk, guard);
    Response::builder()
        .status(500)
        .body(StreamBody::new(stream).boxed_unsync())
        .unwrap()
}

fn then_nothing(
    chunk: Frame<Bytes>,
    guard: Arc<()>,
) -> impl futures_core::Stream<Item = Result<Frame<Bytes>, BoxError>> + Send {
    let mut chunk = Some(chunk);
    futures_util::stream::poll_fn(move |_| {
        let _ = &guard;
        chunk
            .take()
            .map_or(Poll::Pending, |chunk| Poll::Ready(Some(Ok(chunk))))
    })
}

/// The body of an answer.
pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

/// What the service does with a request.
pub(crate) enum Reply {
    /// Answers with a status and headers, and `sorry` as the body of a failure.
    Status(u16, &'static [(&'static str, &'static str)]),
    /// Answers so.
    Response(Response<AnswerBody>),
    /// The connection breaks after the request was sent.
    Lost,
    /// There is no connection.
    Unsent,
    /// A layer below refuses.
    Refused,
    /// No answer comes.
    Hang,
    /// The reply takes its time.
    After(Duration, Box<Reply>),
}

pub(crate) use Reply::{Hang, Lost, Refused, Unsent};

pub(crate) fn status(status: u16) -> Reply {
    Reply::Status(status, &[])
}

pub(crate) fn with(status: u16, headers: &'static [(&'static str, &'static str)]) -> Reply {
    Reply::Status(status, headers)
}

pub(crate) fn after(millis: u64, reply: Reply) -> Reply {
    Reply::After(Duration::from_millis(millis), Box::new(reply))
}

/// A request as it arrived.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// When, since the backend was made.
    pub(crate) at: Duration,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) extensions: http::Extensions,
    /// Its bytes, or nothing if its body failed.
    pub(crate) body: Option<Bytes>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Arrived {
    pub(crate) fn attempt(&self) -> Option<Attempt> {
        self.extensions.get().copied()
    }
}

type Script = dyn Fn(usize) -> Reply + Send + Sync;

/// The service. It panics when it is called without having been polled ready.
pub(crate) struct Backend {
    script: Arc<Script>,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    calls: Arc<Mutex<usize>>,
    start: clock::Instant,
    ready: bool,
}

impl Backend {
    /// Answers request `n`, from 0, with `script(n)`.
    pub(crate) fn new(script: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Self {
        Self {
            script: Arc::new(script),
            arrived: Arc::default(),
            calls: Arc::default(),
            start: clock::now(),
            ready: false,
        }
    }

    /// How many requests it was given, those among them that never left.
    pub(crate) fn sends(&self) -> usize {
        *self.calls.lock().unwrap()
    }

    pub(crate) fn arrived(&self) -> MutexGuard<'_, Vec<Arrived>> {
        self.arrived.lock().unwrap()
    }

    /// When each request was sent, in milliseconds.
    pub(crate) fn times(&self) -> Vec<u128> {
        self.arrived()
            .iter()
            .map(|request| request.at.as_millis())
            .collect()
    }
}

impl Clone for Backend {
    fn clone(&self) -> Self {
        Self {
            script: self.script.clone(),
            arrived: self.arrived.clone(),
            calls: self.calls.clone(),
            start: self.start,
            ready: false,
        }
    }
}

impl<B> Service<Request<ReplayBody<B>>> for Backend
where
    B: Body<Error: Into<BoxError>> + Unpin + Send + 'static,
{
    type Response = Response<AnswerBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReplayBody<B>>) -> Self::Future {
        assert!(
            mem::take(&mut self.ready),
            "it was called without having been polled ready"
        );
        let this = self.clone();
        let number = self.sends();
        *self.calls.lock().unwrap() += 1;
        Box::pin(async move {
            let at = clock::now().saturating_duration_since(this.start);
            let (parts, body) = request.into_parts();
            let body = body.collect().await.ok();
            let trailers = body.as_ref().and_then(|body| body.trailers().cloned());
            this.arrived().push(Arrived {
                at,
                method: parts.method,
                uri: parts.uri,
                headers: parts.headers,
                extensions: parts.extensions,
                body: body.map(http_body_util::Collected::to_bytes),
                trailers,
            });
            let mut reply = (this.script)(number);
            while let Reply::After(delay, then) = reply {
                tokio::time::sleep(delay).await;
                reply = *then;
            }
            match reply {
                Reply::Status(status, headers) => {
                    let mut response = Response::builder().status(status);
                    for (name, value) in headers {
                        response = response.header(*name, *value);
                    }
                    let body = if status < 400 { "" } else { "sorry" };
                    Ok(response.body(full(body)).unwrap())
                }
                Reply::Response(response) => Ok(response),
                Lost => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
                Unsent => Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
                Refused => Err(Rejected::new("breaker", "open")
                    .after(Duration::from_secs(7))
                    .into()),
                Hang | Reply::After(..) => std::future::pending().await,
            }
        })
    }
}

pub(crate) fn full(body: impl Into<Bytes>) -> AnswerBody {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(crate) fn get(uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).body(Full::default()).unwrap()
}

pub(crate) fn post(uri: &str) -> Request<Full<Bytes>> {
    Request::post(uri).body(Full::from("amount=3")).unwrap()
}

pub(crate) fn keyed(uri: &str) -> Request<Full<Bytes>> {
    let mut request = post(uri);
    request
        .headers_mut()
        .insert("idempotency-key", "\"8e03978e\"".parse().unwrap());
    request
}

/// What a call came to.
#[derive(Debug, PartialEq)]
pub(crate) enum Got {
    Response { status: u16, body: Option<Bytes> },
    Error(String),
}

impl Got {
    pub(crate) fn status(status: u16) -> Self {
        Self::Response {
            status,
            body: Some(Bytes::from_static(if status < 400 {
                b""
            } else {
                b"sorry"
            })),
        }
    }
}

/// Calls a service once, reads what it answers, and says how long it took, in milliseconds.
pub(crate) async fn call<S, Req, B>(service: &S, request: Req) -> (Got, u128)
where
    S: Service<Req, Response = Response<B>, Error = BoxError> + Clone,
    B: Body,
{
    let start = clock::now();
    let result = service.clone().oneshot(request).await;
    let took = clock::now().saturating_duration_since(start).as_millis();
    let got = match result {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let body = body
                .collect()
                .await
                .ok()
                .map(http_body_util::Collected::to_bytes);
            Got::Response {
                status: parts.status.as_u16(),
                body,
            }
        }
        Err(error) => Got::Error(error.to_string()),
    };
    (got, took)
}

/// The events of a layer.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    pub(crate) fn sink(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let events = self.0.clone();
        move |event| events.lock().unwrap().push(event.clone())
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn outcomes(&self) -> Vec<(Outcome, u32)> {
        let finished = |event: &Event| match event {
            Event::Finished { outcome, sends, .. } => Some((*outcome, *sends)),
            _ => None,
        };
        self.events().iter().filter_map(finished).collect()
    }

    pub(crate) fn delays(&self) -> Vec<Duration> {
        let delay = |event: &Event| match event {
            Event::Retry { delay, .. } => Some(*delay),
            _ => None,
        };
        self.events().iter().filter_map(delay).collect()
    }
}

/// Counts the retries that an authority's budget still pays for: it spends them.
pub(crate) async fn affordable(layer: &RetryLayer, uri: &str) -> usize {
    let backend = Backend::new(|_| Unsent);
    let service = layer.layer(backend.clone());
    let mut calls = 0;
    loop {
        let before = backend.sends();
        call(&service, post(uri)).await;
        calls += 1;
        if backend.sends() == before + 1 {
            return backend.sends() - calls;
        }
    }
}
