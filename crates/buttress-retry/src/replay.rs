//! What a protocol knows of sending a request again: which requests may be sent twice, and how to make the second.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use buttress_core::{Authority, BoxError, Deadline, Kind, Verdict};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{HOST, UPGRADE},
};
use http_body::Body;

use crate::{
    body::{self, Memory, ReplayBody},
    budget::Pool,
    drain::{Draining, ResponseBody},
    head::Head,
};

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Which attempt a request is, and of how many: an extension of every request that is sent again.
///
/// The first attempt of a call has none, as it would be an allocation for every call that succeeds at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Attempt {
    /// The number of the attempt: 2 is the first retry.
    pub number: u32,
    /// How many attempts the call may have, the first included.
    pub max: u32,
}

/// Says which requests may be sent again though the first may have been applied, because applying one twice changes no
/// more than applying it once. A function or closure of the same shape is one too.
pub trait Idempotent<Req> {
    /// May the request be sent again though it may have been applied?
    fn idempotent(&self, request: &Req) -> bool;
}

impl<Req, F> Idempotent<Req> for F
where
    F: Fn(&Req) -> bool,
{
    fn idempotent(&self, request: &Req) -> bool {
        self(request)
    }
}

/// Every request is idempotent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Always;

impl<Req> Idempotent<Req> for Always {
    fn idempotent(&self, _: &Req) -> bool {
        true
    }
}

/// No request is idempotent: it is sent again only when it was provably not applied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl<Req> Idempotent<Req> for Never {
    fn idempotent(&self, _: &Req) -> bool {
        false
    }
}

/// GET, HEAD, OPTIONS, TRACE, PUT and DELETE are idempotent (RFC 9110, 9.2.2), and so are POST and PATCH with an
/// `Idempotency-Key`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByMethod;

impl<B> Idempotent<Request<B>> for ByMethod {
    fn idempotent(&self, request: &Request<B>) -> bool {
        request.method().is_idempotent() || is_keyed(request)
    }
}

fn is_keyed<B>(request: &Request<B>) -> bool {
    can_be_keyed(request.method()) && request.headers().contains_key(&IDEMPOTENCY_KEY)
}

fn can_be_keyed(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PATCH)
}

/// What a request says of its call, read before the request is sent.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub(crate) idempotent: bool,
    pub(crate) deadline: Option<Deadline>,
}

/// What a request says that matters only when it has failed.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Special {
    /// It has an idempotency key: a 409 means that the first attempt still runs.
    keyed: bool,
    /// It is a CONNECT or an upgrade: after a response head the connection belongs to the caller.
    pub(crate) tunnel: bool,
}

mod sealed {
    pub trait Sealed {}
    impl<I> Sealed for super::CloneReplay<I> {}
    impl<I> Sealed for super::HttpReplay<I> {}
}

/// How requests are sent again. [`HttpReplay`] and [`CloneReplay`] implement it.
pub trait Replay<Req>: sealed::Sealed {
    /// What the service below gets.
    type Request;
    /// What another one is made from.
    type Copy;

    #[doc(hidden)]
    fn plan(&self, request: &Req) -> Plan;
    #[doc(hidden)]
    fn special(&self, copy: &Self::Copy) -> Special;
    /// Is it small enough for a copy?
    #[doc(hidden)]
    fn can_keep(&self, request: &Req) -> bool;
    /// The request for the first attempt; what later ones are made from is put into `copy`.
    #[doc(hidden)]
    fn send(&self, request: Req, copy: &mut Option<Self::Copy>) -> Self::Request;
    /// The request for the only attempt.
    #[doc(hidden)]
    fn send_once(&self, request: Req) -> Self::Request;
    /// Is all there that has been sent, so that it can be sent again?
    #[doc(hidden)]
    fn is_whole(&self, copy: &Self::Copy) -> bool;
    /// Takes it away from the attempt that has it, if it can be sent again.
    #[doc(hidden)]
    fn reclaim(&self, copy: &Self::Copy) -> bool;
    #[doc(hidden)]
    fn send_again(&self, copy: &Self::Copy, attempt: Attempt) -> Self::Request;
    #[doc(hidden)]
    fn key(&self, request: &Req, keys: &KeyMaker<'_>) -> u64;
    #[doc(hidden)]
    fn key_of_copy(&self, copy: &Self::Copy, keys: &KeyMaker<'_>) -> u64;
}

/// How a response is handed to the caller, or put aside for a retry. [`HttpReplay`] and [`CloneReplay`] implement it.
pub trait Settle<Res>: sealed::Sealed {
    /// What the caller gets.
    type Response;
    #[doc(hidden)]
    type Draining;

    #[doc(hidden)]
    fn status(&self, response: &Res) -> Option<StatusCode>;
    #[doc(hidden)]
    fn review(&self, special: Special, response: &Res, verdict: Verdict) -> Verdict;
    #[doc(hidden)]
    fn pass(&self, response: Res) -> Self::Response;
    #[doc(hidden)]
    fn drain(&self, response: Res) -> Self::Draining;
    #[doc(hidden)]
    fn poll_drain(draining: &mut Self::Draining, cx: &mut Context<'_>) -> Poll<()>;
    #[doc(hidden)]
    fn drained(draining: Self::Draining) -> Self::Response;
    #[doc(hidden)]
    fn drain_time(&self) -> Duration;
}

/// Makes the budget's key of an authority.
#[doc(hidden)]
#[derive(Debug)]
pub struct KeyMaker<'a>(pub(crate) &'a Pool);

impl KeyMaker<'_> {
    /// The key of an HTTP request: its authority, or its `Host`; all requests that have neither share one.
    fn http(&self, uri: &Uri, host: Option<&[u8]>) -> u64 {
        self.0.key(Authority::named(uri, host))
    }

    fn one(&self) -> u64 {
        self.0.key(None::<Authority>)
    }
}

/// Clones requests, and hands responses on as they are. All requests share one budget.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneReplay<I = Always> {
    pub(crate) idempotent: I,
}

impl<Req, I> Replay<Req> for CloneReplay<I>
where
    Req: Clone,
    I: Idempotent<Req>,
{
    type Request = Req;
    type Copy = Req;

    fn plan(&self, request: &Req) -> Plan {
        Plan {
            idempotent: self.idempotent.idempotent(request),
            deadline: None,
        }
    }

    fn special(&self, _: &Req) -> Special {
        Special::default()
    }

    fn can_keep(&self, _: &Req) -> bool {
        true
    }

    fn send(&self, request: Req, copy: &mut Option<Req>) -> Req {
        *copy = Some(request.clone());
        request
    }

    fn send_once(&self, request: Req) -> Req {
        request
    }

    fn is_whole(&self, _: &Req) -> bool {
        true
    }

    fn reclaim(&self, _: &Req) -> bool {
        true
    }

    fn send_again(&self, copy: &Req, _: Attempt) -> Req {
        copy.clone()
    }

    fn key(&self, _: &Req, keys: &KeyMaker<'_>) -> u64 {
        keys.one()
    }

    fn key_of_copy(&self, _: &Req, keys: &KeyMaker<'_>) -> u64 {
        keys.one()
    }
}

impl<Res, I> Settle<Res> for CloneReplay<I> {
    type Response = Res;
    type Draining = Res;

    fn status(&self, _: &Res) -> Option<StatusCode> {
        None
    }

    fn review(&self, _: Special, _: &Res, verdict: Verdict) -> Verdict {
        verdict
    }

    fn pass(&self, response: Res) -> Res {
        response
    }

    fn drain(&self, response: Res) -> Res {
        response
    }

    fn poll_drain(_: &mut Res, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn drained(draining: Res) -> Res {
        draining
    }

    fn drain_time(&self) -> Duration {
        Duration::ZERO
    }
}

/// Keeps a copy of the head of HTTP requests and of their bodies as they are sent, and reads the responses that are
/// retried to their end. Each authority has a budget of its own.
#[derive(Clone, Debug)]
pub struct HttpReplay<I = ByMethod> {
    pub(crate) idempotent: I,
    pub(crate) resend_header: Option<HeaderName>,
    pub(crate) body_limit: usize,
    pub(crate) memory: Arc<Memory>,
    pub(crate) drain_limit: usize,
    pub(crate) drain_time: Duration,
}

/// What an HTTP request is made from once more.
#[doc(hidden)]
#[derive(Debug)]
pub struct HttpCopy<B> {
    head: Head,
    body: body::Copy<B>,
}

impl<I> HttpReplay<I> {
    pub(crate) fn new(idempotent: I) -> Self {
        const KIB: usize = 1_024;
        Self {
            idempotent,
            resend_header: None,
            body_limit: 64 * KIB,
            memory: Memory::new(16 * KIB * KIB),
            drain_limit: 64 * KIB,
            drain_time: Duration::from_millis(50),
        }
    }

    /// Takes the resend header off a first attempt: it is to say what this layer has done, and no other.
    #[inline]
    fn without_resends(&self, headers: &mut HeaderMap) {
        if let Some(name) = &self.resend_header {
            headers.remove(name);
        }
    }
}

impl<B, I> Replay<Request<B>> for HttpReplay<I>
where
    B: Body<Error: Into<BoxError>> + Unpin,
    I: Idempotent<Request<B>>,
{
    type Request = Request<ReplayBody<B>>;
    type Copy = HttpCopy<B>;

    fn plan(&self, request: &Request<B>) -> Plan {
        Plan {
            idempotent: self.idempotent.idempotent(request),
            deadline: request.extensions().get().copied(),
        }
    }

    fn special(&self, copy: &HttpCopy<B>) -> Special {
        let method = copy.head.method();
        Special {
            keyed: can_be_keyed(method) && copy.head.header(&IDEMPOTENCY_KEY).is_some(),
            tunnel: *method == Method::CONNECT || copy.head.header(&UPGRADE).is_some(),
        }
    }

    fn can_keep(&self, request: &Request<B>) -> bool {
        request.body().size_hint().lower() <= self.body_limit as u64
    }

    fn send(&self, request: Request<B>, copy: &mut Option<HttpCopy<B>>) -> Self::Request {
        let kept = Head::keep(&request);
        let (mut head, body) = request.into_parts();
        self.without_resends(&mut head.headers);
        let (sent, body) = ReplayBody::copied(body, self.body_limit, &self.memory);
        *copy = Some(HttpCopy { head: kept, body });
        Request::from_parts(head, sent)
    }

    fn send_once(&self, request: Request<B>) -> Self::Request {
        let (mut head, body) = request.into_parts();
        self.without_resends(&mut head.headers);
        Request::from_parts(head, ReplayBody::passing(body))
    }

    fn is_whole(&self, copy: &HttpCopy<B>) -> bool {
        copy.body.is_whole()
    }

    fn reclaim(&self, copy: &HttpCopy<B>) -> bool {
        copy.body.reclaim()
    }

    fn send_again(&self, copy: &HttpCopy<B>, attempt: Attempt) -> Self::Request {
        let mut parts = copy.head.parts();
        if let Some(name) = &self.resend_header {
            // A head that has no room for it goes without.
            let count = HeaderValue::from(attempt.number - 1);
            let _ = parts.headers.try_insert(name, count);
        }
        parts.extensions.insert(attempt);
        Request::from_parts(parts, copy.body.replay())
    }

    fn key(&self, request: &Request<B>, keys: &KeyMaker<'_>) -> u64 {
        let host = request.headers().get(HOST).map(HeaderValue::as_bytes);
        keys.http(request.uri(), host)
    }

    fn key_of_copy(&self, copy: &HttpCopy<B>, keys: &KeyMaker<'_>) -> u64 {
        keys.http(&copy.head.uri(), copy.head.header(&HOST))
    }
}

impl<B, I> Settle<Response<B>> for HttpReplay<I>
where
    B: Body<Error: Into<BoxError>>,
{
    type Response = Response<ResponseBody<B>>;
    type Draining = Draining<B>;

    fn status(&self, response: &Response<B>) -> Option<StatusCode> {
        Some(response.status())
    }

    fn review(&self, special: Special, response: &Response<B>, verdict: Verdict) -> Verdict {
        let kind = match verdict.kind {
            Kind::Transient | Kind::Throttled if special.tunnel => Kind::Permanent,
            Kind::Permanent
                if special.keyed
                    && !special.tunnel
                    && response.status() == StatusCode::CONFLICT =>
            {
                Kind::Transient
            }
            kind => kind,
        };
        Verdict { kind, ..verdict }
    }

    fn pass(&self, response: Response<B>) -> Self::Response {
        response.map(ResponseBody::arriving)
    }

    fn drain(&self, response: Response<B>) -> Draining<B> {
        Draining::new(response, self.drain_limit, &self.memory)
    }

    fn poll_drain(draining: &mut Draining<B>, cx: &mut Context<'_>) -> Poll<()> {
        draining.poll(cx)
    }

    fn drained(draining: Draining<B>) -> Self::Response {
        draining.into_response()
    }

    fn drain_time(&self) -> Duration {
        self.drain_time
    }
}
