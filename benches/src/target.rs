//! The bare service, and the requests it gets.

use std::cell::LazyCell;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER,
    USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use http_body_util::Full;
use tower_service::Service;

use crate::alloc;
use crate::harness::{Kind, Row, call, now};

pub(crate) type Request = http::Request<Full<Bytes>>;
pub(crate) type Response = http::Response<Full<Bytes>>;

/// Answers at once. Copying it costs nothing, which flatters the layers that copy their inner service for every call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    state: &'static State,
    first_fails: bool,
}

#[derive(Debug, Default)]
struct State {
    counts: AtomicBool,
    sent: AtomicU64,
}

impl Target {
    pub(crate) fn new() -> Self {
        Self {
            state: Box::leak(Box::default()),
            first_fails: false,
        }
    }

    /// Answers every other request with a failure, beginning with the first.
    pub(crate) fn first_fails() -> Self {
        Self {
            first_fails: true,
            ..Self::new()
        }
    }

    /// Does what is sent in the meantime, and says how much that was.
    fn count(self, work: impl FnOnce()) -> u64 {
        let before = self.state.sent.load(Ordering::Relaxed);
        self.state.counts.store(true, Ordering::Relaxed);
        work();
        self.state.counts.store(false, Ordering::Relaxed);
        self.state.sent.load(Ordering::Relaxed) - before
    }

    /// Whether this request fails.
    fn take(self) -> bool {
        // Counting makes every call wait for the one before, behind which a thin layer would hide all that it costs.
        if !self.first_fails && !self.state.counts.load(Ordering::Relaxed) {
            return false;
        }
        let sent = self.state.sent.load(Ordering::Relaxed);
        self.state.sent.store(sent + 1, Ordering::Relaxed);
        self.first_fails && sent.is_multiple_of(2)
    }
}

impl Service<u64> for Target {
    type Response = u64;
    type Error = io::Error;
    type Future = Ready<io::Result<u64>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    // A real client is too large to become part of the layer around it.
    #[inline(never)]
    fn call(&mut self, request: u64) -> Self::Future {
        ready(if self.take() {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(black_box(request))
        })
    }
}

/// A request that a limiter has a bucket for. The answer is the one to a [`NUMBER`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key(pub(crate) u64);

impl Service<Key> for Target {
    type Response = u64;
    type Error = io::Error;
    type Future = Ready<io::Result<u64>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, request: Key) -> Self::Future {
        black_box(request);
        self.take();
        ready(Ok(NUMBER))
    }
}

impl<B> Service<http::Request<B>> for Target {
    type Response = Response;
    type Error = io::Error;
    type Future = Ready<io::Result<Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        black_box(&request);
        let mut response = Response::default();
        if self.take() {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        ready(Ok(response))
    }
}

/// An answer, which a caller was waiting for or not.
pub(crate) trait Answer {
    fn is_good(&self) -> bool;

    /// Does it say that the call was refused? So does every error.
    fn is_refusal(&self) -> bool {
        false
    }
}

impl Answer for u64 {
    fn is_good(&self) -> bool {
        *self == NUMBER
    }
}

impl<B> Answer for http::Response<B> {
    fn is_good(&self) -> bool {
        self.status() == StatusCode::OK
    }

    fn is_refusal(&self) -> bool {
        self.status() == StatusCode::TOO_MANY_REQUESTS && self.headers().contains_key(RETRY_AFTER)
    }
}

/// Refuses at once, with an error that costs nothing: the bare service of those that refuse.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusing;

impl<R> Service<R> for Refusing {
    type Response = u64;
    type Error = io::Error;
    type Future = Ready<io::Result<u64>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, request: R) -> Self::Future {
        black_box(&request);
        ready(Err(io::ErrorKind::ConnectionRefused.into()))
    }
}

/// What is made of the calls of a row: a service, and the requests it gets.
#[derive(Clone, Debug)]
struct Calls<S, F> {
    service: S,
    request: F,
    /// Whether a call is refused, instead of answered.
    refused: bool,
}

impl<S, F> Calls<S, F> {
    /// Makes that many calls, and says how many did not end as they should. The instructions of a row are counted by its
    /// name.
    #[inline(never)]
    fn make<R>(&mut self, calls: u32, wait: impl Fn()) -> u32
    where
        S: Service<R, Response: Answer>,
        F: FnMut() -> R,
    {
        let mut failed = 0;
        for _ in 0..calls {
            // The black boxes keep the compiler from seeing what is asked, and that nobody needs the answer.
            let request = black_box((self.request)());
            let as_expected = call(&mut self.service, request, &wait, |result| match result {
                Ok(answer) if self.refused => answer.is_refusal(),
                Ok(answer) => answer.is_good(),
                Err(_) => self.refused,
            });
            failed += u32::from(!as_expected);
            // In life a call stands among other work. Here the processor would begin it while the one before is still
            // under way, and a thin layer would seem to cost nothing.
            fence(Ordering::SeqCst);
        }
        failed
    }

    /// As [`make`](Self::make), by a thread alone, for which nothing has to wait.
    fn make_alone<R>(&mut self, calls: u32) -> u32
    where
        S: Service<R, Response: Answer>,
        F: FnMut() -> R,
    {
        self.make(calls, || {
            panic!("the call waits, and a timer would be measured")
        })
    }

    /// Makes that many calls with a look at what is sent, and says how long they took.
    fn run<R>(&mut self, target: Target, calls: u32) -> Result<Duration, String>
    where
        S: Service<R, Response: Answer>,
        F: FnMut() -> R,
    {
        let mut failed = 0;
        let start = now();
        let sent = target.count(|| failed += self.make_alone(1));
        failed += self.make_alone(calls - 1);
        let time = start.elapsed();
        let expected = if self.refused {
            0
        } else {
            1 + u64::from(target.first_fails)
        };
        if failed > 0 {
            Err(format!("{failed} of {calls} calls"))
        } else if sent != expected {
            Err(format!("{sent} sends per call, not {expected}"))
        } else {
            Ok(time)
        }
    }
}

/// A row that makes its calls through whatever `wrap` puts around the target.
///
/// It fails when an answer is not the one that was waited for, or when getting it took more or fewer sends than it
/// should.
pub(crate) fn row<S, R>(
    name: &'static str,
    kind: Kind,
    target: Target,
    wrap: impl FnOnce(Target) -> S,
    request: impl FnMut() -> R + 'static,
) -> Row
where
    S: Service<R, Response: Answer> + 'static,
{
    ending(name, kind, target, wrap, request, false)
}

/// As [`row`], but what `wrap` makes takes its time or its space, and so it is made when it is first called. That is neither
/// timed nor counted.
pub(crate) fn late<S, R>(
    name: &'static str,
    kind: Kind,
    wrap: impl FnOnce(Target) -> S + 'static,
    request: impl FnMut() -> R + 'static,
) -> Row
where
    S: Service<R, Response: Answer> + 'static,
{
    let target = Target::new();
    let mut calls = LazyCell::new(move || {
        alloc::uncounted(|| Calls {
            service: wrap(target),
            request,
            refused: false,
        })
    });
    Row {
        name,
        kind,
        future: size_of::<S::Future>(),
        threads: 1,
        batch: BATCH,
        run: Box::new(move |number| LazyCell::force_mut(&mut calls).run(target, number)),
    }
}

/// A row whose calls are refused, with an error or with an answer that says so. It fails when one is not, or was sent.
pub(crate) fn refused<S, R>(
    name: &'static str,
    kind: Kind,
    wrap: impl FnOnce(Target) -> S,
    request: impl FnMut() -> R + 'static,
) -> Row
where
    S: Service<R, Response: Answer> + 'static,
{
    ending(name, kind, Target::new(), wrap, request, true)
}

fn ending<S, R>(
    name: &'static str,
    kind: Kind,
    target: Target,
    wrap: impl FnOnce(Target) -> S,
    request: impl FnMut() -> R + 'static,
    refused: bool,
) -> Row
where
    S: Service<R, Response: Answer> + 'static,
{
    let mut calls = Calls {
        service: wrap(target),
        request,
        refused,
    };
    Row {
        name,
        kind,
        future: size_of::<S::Future>(),
        threads: 1,
        batch: BATCH,
        run: Box::new(move |number| calls.run(target, number)),
    }
}

/// A batch is never smaller, nor larger.
const BATCH: (u32, u32) = (1 << 6, 1 << 20);
/// Threads do not begin and end at the same moment, and that has to be little beside the batch.
const BATCH_OF_THREADS: (u32, u32) = (1 << 12, 1 << 20);

/// A row whose service remembers between `before` calls and twice as many when it is measured: what `wrap` makes is
/// called that often, and made anew when it has been called as often again. None of that is timed or counted.
pub(crate) fn filled<S, R>(
    name: &'static str,
    kind: Kind,
    before: u32,
    wrap: impl Fn(Target) -> S + 'static,
    request: impl FnMut() -> R + Clone + 'static,
) -> Row
where
    S: Service<R, Response: Answer> + 'static,
{
    let target = Target::new();
    let fill = move || {
        let mut calls = Calls {
            service: wrap(target),
            request: request.clone(),
            refused: false,
        };
        match calls.make_alone(before) {
            0 => Ok((calls, 0)),
            failed => Err(format!("{failed} of the first {before} calls")),
        }
    };
    let mut filled = None;
    let run = move |number| {
        let (mut calls, made) = match filled.take() {
            Some((calls, made)) if made + number <= before => (calls, made),
            old => alloc::uncounted(|| {
                drop(old);
                fill()
            })?,
        };
        let spent = calls.run(target, number)?;
        filled = Some((calls, made + number));
        Ok(spent)
    };
    Row {
        name,
        kind,
        future: size_of::<S::Future>(),
        threads: 1,
        batch: (BATCH.0.min(before), BATCH.1.min(before)),
        run: Box::new(run),
    }
}

/// A row whose calls are made by threads at the same time, through clones of one service.
///
/// The time of a call is that of a core: where threads have to share cores, waiting for one is no part of it.
pub(crate) fn shared<S, R>(
    name: &'static str,
    kind: Kind,
    threads: u32,
    wrap: impl FnOnce(Target) -> S,
    request: impl FnMut() -> R + Clone + Send + 'static,
) -> Row
where
    S: Service<R, Response: Answer> + Clone + Send + 'static,
{
    let calls = Calls {
        service: wrap(Target::new()),
        request,
        refused: false,
    };
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    let cores = u32::try_from(ids.len()).map_or(threads, |cores| cores.clamp(1, threads));
    let run = move |number| {
        let arrived = AtomicU32::new(0);
        let work = |mut calls: Calls<S, _>, core| {
            // Left to the system, they may take turns on one core while another has nothing to do.
            core_affinity::set_for_current(core);
            arrived.fetch_add(1, Ordering::Relaxed);
            // Woken by the system, they would begin one after the other.
            while arrived.load(Ordering::Relaxed) < threads {
                thread::yield_now();
            }
            let start = now();
            // A lock that is asked for by `await` is asked again at once: no runtime is faster.
            let failed = calls.make(number, thread::yield_now);
            (start, now(), failed)
        };
        let done: Vec<_> = thread::scope(|scope| {
            let spawn = |core: &core_affinity::CoreId| {
                let (calls, core) = (calls.clone(), *core);
                let work = &work;
                scope.spawn(move || work(calls, core))
            };
            let of_threads = ids.iter().cycle().take(threads as usize);
            let workers: Vec<_> = of_threads.map(spawn).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, _>| worker.join().expect("no panic");
            workers.into_iter().map(join).collect()
        });
        let start = done.iter().map(|(start, ..)| *start).min();
        let end = done.iter().map(|(_, end, _)| *end).max();
        let failed: u32 = done.iter().map(|(.., failed)| failed).sum();
        match start.zip(end) {
            Some((start, end)) if failed == 0 => Ok((end - start) * cores / threads),
            _ => Err(format!("{failed} of {} calls", threads * number)),
        }
    };
    Row {
        name,
        kind,
        future: size_of::<S::Future>(),
        threads,
        batch: if threads > 1 { BATCH_OF_THREADS } else { BATCH },
        run: Box::new(run),
    }
}

/// A request that is a number, and its answer.
pub(crate) const NUMBER: u64 = 7;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Makes requests as a client does, because how a header value came to be decides what a copy of it costs.
///
/// Eight headers. Those that every request shares are cloned with the client's map of them: constants, whose copy
/// touches no counter, and the host and the token, which were parsed once and are counted references by now. The
/// trace and the identifiers are made for the one request: nobody has copied them before, and the first to do so
/// allocates a counter for each. (They are copied from a constant instead of being formatted; the outcome is the
/// same.) The URI was parsed from a `String`, as it is in any client that puts an identifier into the path.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    shared: HeaderMap,
    own: Vec<(HeaderName, &'static [u8])>,
    method: Method,
    uri: Uri,
    /// Serialized for the one request, as the identifiers are.
    body: &'static [u8],
}

impl Client {
    pub(crate) fn get() -> Self {
        let mut client = Self::post();
        client.method = Method::GET;
        client.body = b"";
        client.shared.remove(CONTENT_TYPE);
        client
            .shared
            .insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, br"));
        client
            .shared
            .insert(ACCEPT_LANGUAGE, HeaderValue::from_static("en"));
        client
    }

    pub(crate) fn post() -> Self {
        let mut token = HeaderValue::try_from(format!("Bearer {}", "t0k3n".repeat(12)))
            .expect("no control characters");
        token.set_sensitive(true);
        let shared = [
            (
                HOST,
                HeaderValue::try_from("api.payments.example").expect("no control characters"),
            ),
            (ACCEPT, HeaderValue::from_static("application/json")),
            (
                USER_AGENT,
                HeaderValue::from_static("payments-client/1.4.2"),
            ),
            (AUTHORIZATION, token),
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        ];
        let own: [(_, &[u8]); 2] = [
            (
                TRACEPARENT,
                b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ),
            (X_REQUEST_ID, b"0b2f7d1e-5c0a-4a39-9f5e-0d6f2a1c7b88"),
        ];
        let uri = String::from("https://api.payments.example/v1/payments/8c1f3d5e");
        Self {
            shared: shared.into_iter().collect(),
            own: own.into(),
            method: Method::POST,
            uri: uri.try_into().expect("a URI"),
            body: &[b'{'; 1024],
        }
    }

    pub(crate) fn keyed_post() -> Self {
        let mut client = Self::post();
        client
            .own
            .push((IDEMPOTENCY_KEY, b"6f1a0c52-1d7e-4b1e-8d0c-3b9a7e5f4c21"));
        client
    }

    fn body(&self) -> Full<Bytes> {
        match self.body {
            b"" => Full::default(),
            body => Full::new(Bytes::copy_from_slice(body)),
        }
    }

    pub(crate) fn request(&self) -> Request {
        let mut request = Request::new(self.body());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.shared.clone();
        for (name, value) in &self.own {
            let value = HeaderValue::from_bytes(value).expect("no control characters");
            request.headers_mut().insert(name.clone(), value);
        }
        request
    }
}

/// Whether a request may be sent again, as far as a careful user of any retry library would look.
pub(crate) fn repeatable<B>(request: &http::Request<B>) -> bool {
    let method = request.method();
    method.is_idempotent() || request.headers().contains_key(IDEMPOTENCY_KEY)
}
