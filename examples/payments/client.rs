//! The client: a stack of layers on an HTTP client.

use std::{io, net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use buttress::{
    BoxError, Classify, Verdict,
    breaker::{self, BreakerLayer},
    rate_limit::{Quota, RateLimitLayer},
    retry::RetryLayer,
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

use crate::{args::Args, counts::Counts, injector::Injector};

/// How long one send may take. A server that hangs costs this much, not the whole call.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(250);

/// The breaker looks at the sends of this last time; here they are some hundreds.
const WINDOW: Duration = Duration::from_secs(1);

/// It takes no fewer for a reason to open. They would be those of a moment when all calls start, or
/// the last ones end, and of these too many have failed: a failure comes before the successes, or long
/// after them.
const MIN_CALLS: NonZeroU32 = NonZeroU32::new(200).unwrap();

/// When the breaker counts a send that was given up as a failure: a bit before it is given up.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long the breaker is open at first, and at most: so long may the end of an outage go unnoticed.
const OPEN_TIME: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(1));

/// How long a send may wait for its turn. All calls in one line do not wait so long, unless `--rate` is
/// low. The breaker's patience has room for it and for a send: to wait in line is no failure.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// A client that answers with whole bodies.
pub(crate) type Payer = BoxCloneService<Request<Full<Bytes>>, Response<Bytes>, BoxError>;

/// Builds the client that sends the payments through the proxy.
pub(crate) fn stack(
    proxy: SocketAddr,
    injector: Arc<Injector>,
    counts: &Arc<Counts>,
    args: &Args,
) -> Payer {
    let connected = counts.clone();
    let connector = service_fn(move |_: Uri| {
        let (injector, connected) = (injector.clone(), connected.clone());
        // The HTTP client asks for a future that is `Unpin`.
        Box::pin(async move {
            let stream = injector.connect(proxy).await?;
            connected.connection();
            Ok::<_, io::Error>(TokioIo::new(stream))
        })
    });
    let http = Client::builder(TokioExecutor::new()).build(connector);

    let (retries, states, turns) = (counts.clone(), counts.clone(), counts.clone());
    let retry = RetryLayer::http()
        .max_retries(3)
        .attempt_timeout(ATTEMPT_TIMEOUT)
        .seed(args.seed)
        .on_event(move |event| retries.retry(event));
    let mut breaker = BreakerLayer::new(health)
        .name("payments")
        .window(WINDOW)
        .min_calls(MIN_CALLS)
        .consecutive(None)
        .patience(PATIENCE)
        .open_time(OPEN_TIME.0, OPEN_TIME.1)
        .on_event(move |event| states.breaker(event));
    if args.shadow {
        breaker = breaker.shadow();
    }
    let pace = RateLimitLayer::http(Quota::per_second(args.rate))
        .max_wait(MAX_WAIT)
        .on_event(move |event| turns.pace(event));
    ServiceBuilder::new()
        // Without an outbox, which gives each payment its key, an `IdempotencyKeyLayer` stands here.
        .layer(retry)
        // Below the retries, where it sees every send. What it refuses is not sent again.
        .layer(breaker)
        // Below the breaker: what that refuses does not wait for its turn. What is sent does, each time.
        .layer(pace)
        .service(http)
        .and_then(whole)
        .boxed_clone()
}

/// What an answer says of the server's health. A breaker ignores replays, since a memory may be well where the handler is not.
/// Here they are one database, and an outbox asks for so many of them that what fails would be most of what is left.
fn health<B>(result: Result<&Response<B>, &BoxError>) -> Verdict {
    match result {
        Ok(response) if response.status().is_success() => Verdict::SUCCESS,
        _ => breaker::Http.classify(result),
    }
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
