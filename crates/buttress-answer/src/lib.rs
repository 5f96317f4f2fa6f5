//! Turn the refusals and errors of the layers below into proper HTTP or gRPC responses.
//!
//! # Example
//!
//! An axum server behind a rate limiter, without a `HandleErrorLayer`:
//!
//! ```
//! use std::num::NonZeroU32;
//!
//! use axum::{Router, body::Body, routing::post};
//! use buttress_answer::AnswerLayer;
//! use buttress_rate_limit::{Quota, RateLimitLayer};
//! use http::Request;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! const QUOTA: Quota = Quota::per_day(NonZeroU32::new(100).unwrap()).burst(NonZeroU32::MIN);
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), buttress_core::BoxError> {
//! let app = Router::new().route("/payments", post(async || "paid")).layer(
//!     ServiceBuilder::new()
//!         .layer(AnswerLayer::http())
//!         .layer(RateLimitLayer::http(QUOTA).refuse()),
//! );
//!
//! let pay = || Request::post("/payments").body(Body::empty());
//! let paid = app.clone().oneshot(pay()?).await?;
//! assert_eq!(paid.status(), 200);
//! assert_eq!(paid.headers()["ratelimit-policy"], r#""day";q=100;w=86400"#);
//! assert_eq!(paid.headers()["ratelimit"], r#""day";r=0;t=864"#);
//!
//! let refused = app.oneshot(pay()?).await?;
//! assert_eq!(refused.status(), 429);
//! assert_eq!(refused.headers()["retry-after"], "864");
//! assert_eq!(refused.headers()["content-type"], "application/problem+json");
//! # Ok(())
//! # }
//! ```
//!
//! For a tonic server use [`AnswerLayer::grpc`], with `Server::builder().layer(..)`.
//!
//! # Defaults
//!
//! | knob | default |
//! |---|---|
//! | [`AnswerLayer::http`] or [`AnswerLayer::grpc`] | one of the two |
//! | [`on_error`](AnswerLayer::on_error) | 500 or `UNKNOWN`, which show nothing of the error |
//!
//! # What becomes what
//!
//! | what comes from below | HTTP | gRPC |
//! |---|---|---|
//! | a response | as it is, with `RateLimit-Policy` and `RateLimit` added if a limiter reports | as it is |
//! | a refusal ([`Rejected`]) by a limiter | 429, `Retry-After`, the two fields | 8 `RESOURCE_EXHAUSTED`, pushback, or -1 where coming back is of no use |
//! | any other refusal | 503, `Retry-After` if it is known | 14 `UNAVAILABLE`, pushback if it is known |
//! | tower's [`Overloaded`] | 503 | 14 `UNAVAILABLE` |
//! | tower's [`Elapsed`] | 504 | 4 `DEADLINE_EXCEEDED` |
//! | every other error | [`on_error`](AnswerLayer::on_error), or 500 | [`on_error`](AnswerLayer::on_error), or 2 `UNKNOWN` |
//!
//! | what is sent | value | source |
//! |---|---|---|
//! | `Retry-After` | seconds, rounded up; at least 1, and never less than `t` | RFC 9110, 10.2.3; the draft, 6 |
//! | `RateLimit-Policy` | `"burst";q=10;w=1, "hour";q=1000;w=3600`: all quotas; `w` in seconds, rounded up, at least 1 | [the draft], 3 |
//! | `RateLimit` | `"hour";r=100;t=3`: the quota that bounds most; `t` in seconds, rounded up | the draft, 4 |
//! | names and numbers in these | what is not printable ASCII is `_`; 999,999,999,999,999 at most | RFC 9651, 3.3.1 and 3.3.3 |
//! | the body of 429 | `application/problem+json`, type `quota-exceeded`, with `violated-policies` | RFC 9457; the draft, 5.1 |
//! | the body of 500, 503, 504 | `application/problem+json`, type `about:blank` | RFC 9457, 4.2.1 |
//! | `grpc-status`, `grpc-message` | in the head, with HTTP status 200 and no body | gRPC over HTTP/2 |
//! | `grpc-retry-pushback-ms` | rounded up; from 1 to 2,147,483,647, or -1 for "do not" | gRPC proposal A6 |
//! | `UNKNOWN` for other errors | a server's code ended the call with something other than a status | gRPC's status codes |
//!
//! [the draft]: https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-10.txt
//!
//! Where several limiters report, each has a member of `RateLimit`; where two have the same name, a number is added to the
//! second. The fields are not added where the handler has set one of them, and there is no `t` where it has set
//! `Retry-After`. When the layer answers a HEAD request itself, it sends the same head and no body.
//!
//! # State
//!
//! There is none. [`AnswerLayer::http`] puts a [`LimitReport`] among the extensions of each request, which is all that a
//! response costs. The limiters below write into it how the caller stands (`RateLimitLayer::http` with `refuse` does). If
//! there is one already, the layer that put it there writes the fields. A proxy that sends a request on with its extensions
//! has to take it out first: its client's own limits are not those of its callers.
//!
//! # Errors
//!
//! None: the error of the service is [`Infallible`](std::convert::Infallible). A refusal or a timeout is found anywhere in an
//! error's chain of causes; the outermost one counts.
//!
//! The answer to a refusal has the [`Rejected`] among its extensions, which tells layers above that the handler never ran.
//! After a timeout it may have run, so that answer has no such mark. A handler may itself be a client, with layers of its own
//! that refuse. It must not pass such an error on, but has to make a response or another error of it: it *has* run, and the
//! quota that is used up is not one of its callers.
//!
//! An error of `poll_ready` is final: it is the answer to every later call of that service. A clone polls its own inner
//! service, and servers clone for each connection or request. An [`on_error`](AnswerLayer::on_error) finds the original
//! error among the causes of the one that it gets.
//!
//! # Cancellation
//!
//! A call may be dropped at any time, and the call below is dropped with it.
//!
//! # Order in a stack
//!
//! Outermost on a server: above the idempotency layer, which has to see a refusal as one and not as a response to be kept,
//! and above every limit, breaker, load shedding and timeout. Layers that only look, such as traces, may stand above it.
//!
//! # Promises
//!
//! What it promises in detail, with a number for each, is in [`promises`].
//!
//! [`Rejected`]: buttress_core::Rejected
//! [`LimitReport`]: buttress_core::LimitReport
//! [`Overloaded`]: tower::load_shed::error::Overloaded
//! [`Elapsed`]: tower::timeout::error::Elapsed

#![doc(test(attr(deny(dead_code))))]

mod answers;
mod body;
mod failure;
mod fields;
pub mod future;
mod grpc;
mod layer;
mod problem;
#[doc = include_str!("../PROMISES.md")]
pub mod promises {}
mod service;

pub use body::AnswerBody;
pub use layer::AnswerLayer;
pub use service::Answer;
