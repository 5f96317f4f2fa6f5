//! A span for each attempt.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use buttress_core::{BoxError, Rejected, chain};
use buttress_retry::Attempt;
use http::{Method, Request, Response, Uri, header::HOST, uri::Authority};
use pin_project::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use tracing::{
    Instrument, Span,
    field::{Empty, display},
    instrument::Instrumented,
};

/// Makes a span of each attempt, for HTTP clients: put it below a retry layer. See the [crate docs](crate#spans) for what
/// is in it.
///
/// It lasts from the call until the head of the response is there, or the error in its place, or the attempt is dropped.
/// Where nobody listens to the span, nothing is allocated or written.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttemptSpanLayer {
    query: bool,
}

impl AttemptSpanLayer {
    /// Makes spans, without the query of the URL.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the query of the URL into `url.full`, as it is; by default it is left out, as some put tokens there.
    #[must_use]
    pub fn query(mut self) -> Self {
        self.query = true;
        self
    }
}

impl<S> Layer<S> for AttemptSpanLayer {
    type Service = AttemptSpan<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AttemptSpan {
            inner,
            query: self.query,
        }
    }
}

/// The service of an [`AttemptSpanLayer`]. See the [crate docs](crate) for an example.
#[derive(Clone, Debug)]
pub struct AttemptSpan<S> {
    inner: S,
    query: bool,
}

impl<S, B, R> Service<Request<B>> for AttemptSpan<S>
where
    S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>>,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = AttemptFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let span = span(&request, self.query);
        let future = span.in_scope(|| self.inner.call(request));
        AttemptFuture {
            future: Some(future.instrument(span.clone())),
            watch: Watch { span, over: false },
        }
    }
}

/// The response of an [`AttemptSpan`] service. It may be dropped at any time, and the call below is dropped with it.
#[pin_project]
#[must_use = "a call does nothing until its future is polled"]
#[derive(Debug)]
pub struct AttemptFuture<F> {
    // What it tells when it is dropped is in the span, too. It is gone when it is over: the caller may keep this for longer.
    #[pin]
    future: Option<Instrumented<F>>,
    watch: Watch,
}

impl<F, R, E> Future for AttemptFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<R>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let future = this.future.as_mut().as_pin_mut();
        let future = future.expect("it was polled after its end");
        let result = ready!(future.poll(cx)).map_err(Into::into);
        this.watch.end(&result);
        this.future.set(None);
        Poll::Ready(result)
    }
}

/// The span of an attempt. Dropped before its end, it says so.
#[derive(Debug)]
struct Watch {
    span: Span,
    over: bool,
}

impl Watch {
    fn end<R>(&mut self, result: &Result<Response<R>, BoxError>) {
        self.over = true;
        if !self.span.is_disabled() {
            match result {
                Ok(response) => {
                    let status = response.status();
                    self.span
                        .record("http.response.status_code", status.as_u16());
                    if status.is_client_error() || status.is_server_error() {
                        self.fail(status.as_str());
                    }
                }
                Err(error) => self.fail(&error_type(error)),
            }
        }
        self.span = Span::none();
    }

    fn fail(&self, error_type: &str) {
        self.span.record("error.type", error_type);
        self.span.record("otel.status_code", "ERROR");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.over {
            self.fail("cancelled");
        }
    }
}

/// What OpenTelemetry says that a span of an HTTP client has.
fn span<B>(request: &Request<B>, query: bool) -> Span {
    let (uri, method) = (request.uri(), known(request.method()));
    let span = tracing::info_span!(
        target: "buttress::attempt",
        "attempt",
        otel.name = method.unwrap_or("HTTP"),
        otel.kind = "client",
        http.request.method = method.unwrap_or("_OTHER"),
        http.request.method_original = Empty,
        http.request.resend_count = Empty,
        server.address = Empty,
        server.port = Empty,
        url.full = Empty,
        http.response.status_code = Empty,
        error.type = Empty,
        otel.status_code = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    if method.is_none() {
        span.record("http.request.method_original", request.method().as_str());
    }
    if let Some(attempt) = request.extensions().get::<Attempt>() {
        span.record("http.request.resend_count", attempt.number - 1);
    }
    let host = request.headers().get(HOST);
    let named = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    if let Some(authority) = uri.authority().or(named.as_ref()) {
        let address = authority.host().trim_matches(['[', ']']);
        span.record("server.address", address);
        let port = authority.port_u16().or(match uri.scheme_str() {
            Some("http") => Some(80),
            Some("https") => Some(443),
            _ => None,
        });
        if let Some(port) = port {
            span.record("server.port", port);
        }
    }
    if uri.scheme().is_some() {
        span.record("url.full", display(Full { uri, query }));
    }
    span
}

/// The methods of RFC 9110 and RFC 5789; others are spelled as their senders like.
fn known(method: &Method) -> Option<&'static str> {
    let known = [
        "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT",
    ];
    known.into_iter().find(|known| method == known)
}

/// A URL without its credentials.
struct Full<'a> {
    uri: &'a Uri,
    query: bool,
}

impl fmt::Display for Full<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        write!(f, "{scheme}://{}", self.uri.host().unwrap_or_default())?;
        if let Some(port) = self.uri.port_u16() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.uri.path())?;
        match self.uri.query() {
            Some(query) if self.query => write!(f, "?{query}"),
            _ => Ok(()),
        }
    }
}

/// The kind of an error, in a word that is one of few.
fn error_type(error: &BoxError) -> Cow<'static, str> {
    if Rejected::find(&**error).is_some() {
        return "rejected".into();
    }
    let kinds = chain(&**error).filter_map(|error| error.downcast_ref::<io::Error>());
    // The innermost says most.
    match kinds.map(io::Error::kind).last() {
        // OpenTelemetry's word for what is none of the known.
        None | Some(io::ErrorKind::Other) => "_OTHER".into(),
        Some(kind) => format!("{kind:?}").into(),
    }
}
