//! Retry what may safely be sent again, as often as it helps and no oftener.
//!
//! # Example
//!
//! A client that retries, over any service that takes `http` requests:
//!
//! ```
//! use std::time::Duration;
//!
//! use buttress_retry::RetryLayer;
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), buttress_core::BoxError> {
//! # let mut answers = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK].into_iter();
//! # let http_client = service_fn(move |_: Request<buttress_retry::ReplayBody<Full<Bytes>>>| {
//! #     let mut response = Response::new(Full::new(Bytes::from("paid")));
//! #     *response.status_mut() = answers.next().unwrap();
//! #     async { Ok::<_, std::io::Error>(response) }
//! # });
//! let client = ServiceBuilder::new()
//!     .layer(RetryLayer::http().deadline(Duration::from_secs(10)))
//!     .service(http_client);
//!
//! let request = Request::post("http://pay.example/payments")
//!     .header("idempotency-key", "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"")
//!     .body(Full::new(Bytes::from("amount=3")))?;
//! let response = client.oneshot(request).await?;
//! assert_eq!(response.into_body().collect().await?.to_bytes(), "paid");
//! # Ok(())
//! # }
//! ```
//!
//! The service below gets `Request<`[`ReplayBody`]`<B>>` for the caller's `Request<B>`, and the caller gets
//! `Response<`[`ResponseBody`]`<B>>`. The body has to be `Unpin`: box a stream that is not. hyper-util's client takes any
//! body. A client with types of its own needs a line or two more, below the retry layer:
//!
//! ```
//! use buttress_retry::{ReplayBody, RetryLayer};
//! use http::{Request, Response};
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), buttress_core::BoxError> {
//! # let endpoint = tonic::transport::Endpoint::from_static("http://127.0.0.1:1");
//! let tonic = ServiceBuilder::new()
//!     .layer(RetryLayer::grpc())
//!     .map_request(|request: Request<ReplayBody<_>>| request.map(tonic::body::Body::new))
//!     .service(endpoint.connect_lazy());
//!
//! // reqwest retries some refusals by itself: once is enough.
//! let client = reqwest::Client::builder().retry(reqwest::retry::never()).build()?;
//! let reqwest = ServiceBuilder::new()
//!     .layer(RetryLayer::http())
//!     .filter(|request: Request<ReplayBody<_>>| {
//!         reqwest::Request::try_from(request.map(reqwest::Body::wrap))
//!     })
//!     .map_response(Response::<reqwest::Body>::from)
//!     .service(client);
//! # fn is_service<B>(_: &impl tower::Service<Request<B>>) {}
//! # is_service::<tonic::body::Body>(&tonic);
//! # is_service::<reqwest::Body>(&reqwest);
//! # Ok(())
//! # }
//! ```
//!
//! Without HTTP, with a [classifier](buttress_core::Classify) of your own, and with an ear for what happens:
//!
//! ```
//! use buttress_core::{Applied, BoxError, Kind, Verdict};
//! use buttress_retry::{Backoff, Event, RetryLayer};
//!
//! let layer = RetryLayer::new(|result: Result<&u64, &BoxError>| match result {
//!     Ok(_) => Verdict::SUCCESS,
//!     Err(_) => Verdict::new(Kind::Transient, Applied::Maybe),
//! })
//! .max_retries(4)
//! .backoff(Backoff::internal())
//! .on_event(|event| match event {
//!     Event::Retry { number, delay, .. } => println!("retry {number} in {delay:?}"),
//!     Event::Finished { outcome, sends, .. } => println!("{outcome:?} after {sends} sends"),
//!     _ => {}
//! });
//! ```
//!
//! # Defaults
//!
//! | knob | default | from |
//! |---|---|---|
//! | [`max_retries`](RetryLayer::max_retries) | 2, so three sends in all | Google's SRE book, the AWS SDKs, resilience4j |
//! | [`backoff`](RetryLayer::backoff) | full jitter from 50 ms, doubling, at most 20 s | AWS SDK retry behaviour 2.1 |
//! | [`throttled_backoff`](RetryLayer::throttled_backoff) | the same from 1 s, after a 429 or a failure with a hint | AWS SDK retry behaviour 2.1 |
//! | [`budget`](RetryLayer::budget) | 500 tokens for each authority, filled by successes | AWS SDK retry behaviour 2.1 |
//! | which responses | 408, 425, 429, 500, 502, 503, 504 | RFC 9110, the AWS SDKs, failsafe-go |
//! | which requests ([`idempotent`](RetryLayer::idempotent)) | GET, HEAD, OPTIONS, TRACE, PUT, DELETE; POST and PATCH with an `Idempotency-Key`; any other that was provably not sent | RFC 9110, 9.2.2 |
//! | a server's hint | the least delay, with up to half as much again of jitter | Envoy |
//! | [`max_hint`](RetryLayer::max_hint) | 60 s: a longer one means to give up | the `OpenAI` and Anthropic SDKs |
//! | [`deadline`](RetryLayer::deadline), [`attempt_timeout`](RetryLayer::attempt_timeout) | none | |
//! | [`replay_limit`](RetryLayer::replay_limit), [`replay_memory`](RetryLayer::replay_memory) | 64 KiB a request, 16 MiB a layer | linkerd, gRPC proposal A6 |
//! | [`drain_limit`](RetryLayer::drain_limit) | 64 KiB and 50 ms | |
//! | [`retry_refusals`](RetryLayer::retry_refusals), [`resend_header`](RetryLayer::resend_header) | off | |
//!
//! # State
//!
//! The budget and the memory for copies belong to the layer: all services that it makes share them, with their clones
//! and with the clones of the layer. For a budget of its own build another layer: for each gRPC channel, for example, as
//! tonic's requests have no authority yet where the layer sees them.
//!
//! The service that was polled ready makes the first attempt of a call, and a new clone each retry. The clones are made of one
//! service that is kept for that and never called, under a lock: a `Clone` of your own must not wait for other calls.
//!
//! # Errors
//!
//! The caller gets the last real outcome: a response as the server sent it, or the error of the service below, boxed.
//! The error is [`TimedOut`] only when a time limit ended the call before there was any outcome, or when the only one was
//! that nothing had been sent: the attempt that timed out may have been applied, and the error must not hide that.
//!
//! # Cancellation
//!
//! A call may be dropped at any time. The attempt under way is dropped with it, nothing more is sent, and the budget gets
//! back what it paid for a retry that was not sent.
//!
//! Delays and time limits need a tokio runtime with its timer; a call that has neither needs none.
//!
//! # Order in a stack
//!
//! Above a breaker and a limiter, so that each attempt is counted and paced, and their refusals are not retried. Below
//! whatever gives a call its idempotency key, so that all attempts carry the same one. A timeout above limits the call, but
//! loses the last outcome when it strikes: prefer [`deadline`](RetryLayer::deadline).
//!
//! # Promises
//!
//! What it promises in detail, with a number for each, is in [`promises`].

#![doc(test(attr(deny(dead_code))))]

mod backoff;
mod body;
mod budget;
mod drain;
mod event;
pub mod future;
mod head;
mod layer;
mod policy;
#[doc = include_str!("../PROMISES.md")]
pub mod promises {}
pub mod replay;
mod service;

pub use backoff::Backoff;
pub use body::ReplayBody;
pub use budget::Budget;
pub use drain::ResponseBody;
pub use event::{Cause, DelaySource, Event, Outcome};
pub use future::TimedOut;
pub use layer::RetryLayer;
pub use replay::{Attempt, Idempotent};
pub use service::Retry;
