//! The calls of a row, made in a task: a layer may go on in another.

use std::future::poll_fn;
use std::hint::black_box;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::COOKIE;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tower_service::Service;

use super::InRuntime;
use super::handler::{ANSWER, Runs};
use crate::alloc;
use crate::harness::{Kind, Row, now};
use crate::target::Client;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: &str = "idempotency-replayed";

/// A service has between none and so many records; then it is made anew, as one is whose records expire.
const MOST: u32 = 20_000;
/// So many keys belong to one session of axum-idempotent, which looks at all of them whenever it writes one down.
const IN_A_SESSION: u32 = 16;
/// The bounds of a batch.
const BATCH: (u32, u32) = (1 << 6, 1 << 12);

/// Which request of its key a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    First,
    Again,
    /// There is nobody who keeps anything.
    Without,
}

/// A row that makes its calls through whatever `wrap` puts around a handler.
///
/// It fails when an answer is not the one that was waited for, or when the handler was not run as often as it should be.
pub(crate) fn row<S, RB>(
    name: &'static str,
    kind: Kind,
    runtime: &InRuntime,
    turn: Turn,
    wrap: impl Fn(Runs) -> S + 'static,
) -> Row
where
    S: Service<Request<Body>, Response = Response<RB>> + 'static,
    RB: http_body::Body<Data = Bytes>,
{
    let runtime = runtime.clone();
    let client = Client::post();
    let mut calls = None;
    let run = move |number| {
        let is_full = |calls: &Calls<S>| turn == Turn::First && calls.next + number > MOST;
        let calls = match &mut calls {
            Some(calls) if !is_full(calls) => calls,
            old => alloc::uncounted(|| {
                let mut fresh = Calls::new(client.clone(), &wrap);
                if turn == Turn::Again {
                    fresh.make(&runtime, Turn::First, IN_A_SESSION);
                }
                old.insert(fresh)
            }),
        };
        calls.run(&runtime, turn, number)
    };
    Row {
        name,
        kind,
        future: size_of::<S::Future>(),
        threads: 1,
        batch: BATCH,
        run: Box::new(run),
    }
}

struct Calls<S> {
    service: S,
    runs: Runs,
    client: Client,
    next: u32,
}

impl<S> Calls<S> {
    fn new(client: Client, wrap: impl Fn(Runs) -> S) -> Self {
        let runs = Runs::default();
        Self {
            service: wrap(runs.clone()),
            runs,
            client,
            next: 0,
        }
    }

    /// A request with a key and a session, made for it alone.
    fn request(&self, number: u32) -> Request<Body> {
        let key = format!("6f1a0c52-1d7e-4b1e-8d0c-{number:012x}");
        let session = format!("session={:021}A", number / IN_A_SESSION);
        let mut request = self.client.request().map(Body::new);
        for (name, text) in [(IDEMPOTENCY_KEY, key), (COOKIE, session)] {
            let value = HeaderValue::try_from(text).expect("no control characters");
            request.headers_mut().insert(name, value);
        }
        request
    }

    /// Makes that many calls, and says how many did not end as they should. The instructions of a row are counted by its
    /// name.
    #[inline(never)]
    fn make<RB>(&mut self, runtime: &Runtime, turn: Turn, calls: u32) -> u32
    where
        S: Service<Request<Body>, Response = Response<RB>>,
        RB: http_body::Body<Data = Bytes>,
    {
        runtime.block_on(async {
            let mut failed = 0;
            for _ in 0..calls {
                let number = match turn {
                    Turn::Again => self.next % IN_A_SESSION,
                    Turn::First | Turn::Without => self.next,
                };
                self.next = self.next.wrapping_add(1);
                let request = black_box(self.request(number));
                let ready = poll_fn(|cx| self.service.poll_ready(cx)).await.is_ok();
                let is_good = match self.service.call(request).await {
                    Ok(response) => is_answer(response, turn).await,
                    Err(_) => false,
                };
                failed += u32::from(!(ready && is_good));
                // As for the calls of the other groups.
                fence(Ordering::SeqCst);
            }
            failed
        })
    }

    fn run<RB>(&mut self, runtime: &Runtime, turn: Turn, calls: u32) -> Result<Duration, String>
    where
        S: Service<Request<Body>, Response = Response<RB>>,
        RB: http_body::Body<Data = Bytes>,
    {
        let before = self.runs.load(Ordering::Relaxed);
        let start = now();
        let failed = self.make(runtime, turn, calls);
        let time = start.elapsed();
        let runs = self.runs.load(Ordering::Relaxed) - before;
        if failed > 0 {
            Err(format!("{failed} of {calls} calls"))
        } else if turn == Turn::First && runs != calls || turn == Turn::Again && runs > 0 {
            Err(format!("{runs} runs of the handler for {calls} calls"))
        } else {
            Ok(time)
        }
    }
}

/// Reads an answer as a server does that sends it. A replay says that it is one.
async fn is_answer<RB>(response: Response<RB>, turn: Turn) -> bool
where
    RB: http_body::Body<Data = Bytes>,
{
    let (head, body) = response.into_parts();
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let is_replay = head.headers.contains_key(REPLAYED);
    let is_right = turn == Turn::Without || body.is_ok_and(|body| body == ANSWER);
    head.status == StatusCode::CREATED && is_right && is_replay == (turn == Turn::Again)
}
