//! The client: a stack of layers on an HTTP client, and what is counted on the way.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use buttress::{
    Applied, BoxError,
    retry::{Cause, DelaySource, Event, Outcome, RetryLayer},
};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tower::{ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};

use crate::injector::Injector;

/// How long one send may take. A server that hangs costs this much, not the whole call.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(250);

/// A client that answers with whole bodies.
pub(crate) type Payer = BoxCloneService<Request<Full<Bytes>>, Response<Bytes>, BoxError>;

/// Builds the client that sends the payments through the proxy.
pub(crate) fn stack(
    proxy: SocketAddr,
    injector: Arc<Injector>,
    counts: Arc<Counts>,
    seed: u64,
) -> Payer {
    let connected = counts.clone();
    let connector = service_fn(move |_: Uri| {
        let (injector, connected) = (injector.clone(), connected.clone());
        // The HTTP client asks for a future that is `Unpin`.
        Box::pin(async move {
            let stream = injector.connect(proxy).await?;
            connected.lock().connections += 1;
            Ok::<_, io::Error>(TokioIo::new(stream))
        })
    });
    let http = Client::builder(TokioExecutor::new()).build(connector);

    let retry = RetryLayer::http()
        .max_retries(3)
        .attempt_timeout(ATTEMPT_TIMEOUT)
        .seed(seed)
        .on_event(move |event| counts.count(event));
    ServiceBuilder::new()
        .layer(retry)
        // A breaker and a rate limit go here, below the retries: they see every send.
        .service(http)
        .and_then(whole)
        .boxed_clone()
}

/// Reads an answer to its end, because only that is an acknowledgment. A layer gives an answer away
/// with its head: if the body is cut after that, the call fails here and no retry sees it. The
/// payment stays in the outbox.
async fn whole<B>(response: Response<B>) -> Result<Response<Bytes>, BoxError>
where
    B: Body<Error: Into<BoxError>>,
{
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(Into::into)?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

/// What the client counts.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<Totals>);

/// What it has counted.
#[derive(Debug, Default, Clone)]
pub(crate) struct Totals {
    /// Calls by their outcome.
    pub(crate) calls: BTreeMap<&'static str, u64>,
    /// Retries by what made them necessary.
    pub(crate) retries: BTreeMap<&'static str, u64>,
    /// Retries at a time that the server named.
    pub(crate) hinted: u64,
    /// The sum of the delays before retries.
    pub(crate) asleep: Duration,
    pub(crate) sends: u64,
    pub(crate) connections: u64,
}

impl Counts {
    pub(crate) fn totals(&self) -> Totals {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Totals> {
        self.0.lock().unwrap()
    }

    fn count(&self, event: &Event) {
        let mut totals = self.lock();
        match event {
            Event::Retry {
                delay,
                source,
                cause,
                verdict,
                ..
            } => {
                totals.asleep += *delay;
                totals.hinted += u64::from(*source == DelaySource::Hint);
                let cause = match cause {
                    Cause::Response(Some(status)) if *status == 429 => "429",
                    Cause::Response(Some(status)) if *status == 500 => "500",
                    Cause::Response(Some(status)) if *status == 503 => "503",
                    Cause::Error if verdict.applied == Applied::No => "connect refused",
                    Cause::Error => "connection lost",
                    Cause::TimedOut => "no answer in time",
                    _ => "other",
                };
                *totals.retries.entry(cause).or_default() += 1;
            }
            Event::Finished { outcome, sends, .. } => {
                totals.sends += u64::from(*sends);
                let outcome = match outcome {
                    Outcome::Ok => "ok",
                    Outcome::OkAfterRetry => "ok after retries",
                    Outcome::Attempts => "out of retries",
                    Outcome::Budget => "out of budget",
                    _ => "other",
                };
                *totals.calls.entry(outcome).or_default() += 1;
            }
            _ => {}
        }
    }
}
