//! Turn what the layers of buttress say into metrics and traces.
//!
//! There is a function for each layer, behind the feature of its name; what it returns is a sink for the layer's `on_event`.
//! It counts with the crate [`metrics`], and writes lines with [`tracing`], so any recorder of the one and any subscriber of
//! the other gets them. The [names](#metrics) of all of them are below, and are as stable as the crate's functions are.
//!
//! # Example
//!
//! A client whose layers are watched, with a span for each attempt:
//!
//! ```
//! use buttress_breaker::BreakerLayer;
//! use buttress_core::BoxError;
//! use buttress_rate_limit::{Quota, RateLimitLayer};
//! use buttress_retry::RetryLayer;
//! use buttress_telemetry::{AttemptSpanLayer, breaker, rate_limit, retry};
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! # let http_client = service_fn(async |_: Request<buttress_retry::ReplayBody<Full<Bytes>>>| {
//! #     Ok::<_, BoxError>(Response::new(Full::new(Bytes::from("paid"))))
//! # });
//! // First of all set up the recorder of `metrics`, and the subscriber of `tracing`. Then:
//! let client = ServiceBuilder::new()
//!     .layer(RetryLayer::http().on_event(retry("payments")))
//!     .layer(AttemptSpanLayer::new())
//!     .layer(BreakerLayer::http().on_event(breaker("payments")))
//!     .layer(
//!         RateLimitLayer::http(Quota::per_second(90.try_into()?)).on_event(rate_limit("payments")),
//!     )
//!     .service(http_client);
//!
//! let request = Request::put("http://pay.example/payments/7").body(Full::new(Bytes::new()))?;
//! assert_eq!(client.oneshot(request).await?.status(), 200);
//! # Ok(())
//! # }
//! ```
//!
//! # State
//!
//! A sink makes its metrics when it is made, so that each is there from the start with 0, and an event costs no look-up.
//! Set the recorder of `metrics` first: the metrics of a sink that was made before go nowhere.
//!
//! Two sinks of the same kind and name share their metrics. Counters then count for both; the gauges of two breakers make
//! no sense together, so give each layer a name of its own.
//!
//! # What is told of whom
//!
//! No label has values without a bound: `name` is what you give, the others are in the table. Only [`breaker_by_key`] has
//! more, by choice.
//!
//! An idempotency key is in no metric and in no line. The scope of a record, which says whose request it is, is told only
//! when an operator looked at the record or changed it, in a line that names him: that is an audit. The keys of a rate
//! limiter are in no line, as they may be addresses or tokens; those of breakers are, as they name the service that is not
//! well. None of this holds for what other crates write: hyper-util's lines for debugging have a URL with its password.
//!
//! # The state of a breaker
//!
//! `buttress_breaker_state` is a gauge for each state. The breaker is in one, so exactly one of them is 1, from the
//! beginning on, and whatever the order is in which threads tell of their transitions: one that is heard late changes
//! nothing. Two gauges cannot be set at once: while a transition is being written, which takes some nanoseconds, none is
//! 1, and there are never two. What a scrape sees depends on the recorder too: one that reads the gauges one after the
//! other may read some before a transition and some after it. An alert is on one state, which is always right:
//! `buttress_breaker_state{state="open"} == 1`.
//!
//! # Spans
//!
//! [`AttemptSpanLayer`] makes a span `attempt` (target `buttress::attempt`, level INFO) of each attempt, with the names of
//! OpenTelemetry's [semantic conventions for HTTP clients]:
//!
//! | field | what |
//! |---|---|
//! | `otel.name`, `otel.kind` | the method, and `client`: what `tracing-opentelemetry` makes of the span |
//! | `http.request.method` | the method, or `_OTHER` for one that is not in RFC 9110 or 5789, which is then in `http.request.method_original` |
//! | `http.request.resend_count` | 1 in the first retry, and so on; the first attempt has none |
//! | `server.address`, `server.port` | from the URL, or else from `Host` |
//! | `url.full` | without user and password, and without the query unless [asked for](AttemptSpanLayer::query) |
//! | `http.response.status_code` | if there is a response |
//! | `error.type` | a status from 400 on; `rejected` if a layer below refuses; the kind of an I/O error, as `ConnectionRefused`; `cancelled` if the attempt is dropped, as by its time limit; or else `_OTHER` |
//! | `otel.status_code` | `ERROR` where there is an `error.type` |
//!
//! Directly below the retry layer, a span includes the time that an attempt waits for a limiter, and there is one for an
//! attempt that a breaker refuses. Innermost, around the client, it is what is sent. It has to be below the retry layer to
//! be of an attempt and not of a call.
//!
//! [semantic conventions for HTTP clients]: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
//!
//! # Cost
//!
//! A breaker or limiter makes an event of each call only if it has a sink. A sink allocates nothing itself, but the recorder
//! and the subscriber may; that of [`breaker_by_key`] does when a key is new.
//!
#![doc = include_str!("../NAMES.md")]
//!
//! # Promises
//!
//! What it promises in detail, with a number for each, is in [`promises`].

#![doc(test(attr(deny(dead_code))))]

#[cfg(feature = "retry")]
mod attempt;
#[cfg(feature = "breaker")]
mod breaker;
#[cfg(feature = "idempotency")]
mod idempotency;
#[doc = include_str!("../PROMISES.md")]
pub mod promises {}
#[cfg(feature = "rate-limit")]
mod rate_limit;
#[cfg(any(
    feature = "breaker",
    feature = "idempotency",
    feature = "rate-limit",
    feature = "retry"
))]
mod register;
#[cfg(feature = "retry")]
mod retry;
#[cfg(feature = "breaker")]
mod states;

#[cfg(feature = "retry")]
pub use attempt::{AttemptFuture, AttemptSpan, AttemptSpanLayer};
#[cfg(feature = "breaker")]
pub use breaker::{breaker, breaker_by_key};
#[cfg(feature = "idempotency")]
pub use idempotency::idempotency;
#[cfg(feature = "rate-limit")]
pub use rate_limit::rate_limit;
#[cfg(feature = "retry")]
pub use retry::retry;
