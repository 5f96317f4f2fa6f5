//! Keep to a rate: have a client's calls wait their turn, or refuse those that come too early at a server.
//!
//! # Example
//!
//! A client that keeps below a server's limit of 50 requests a second and 10,000 an hour:
//!
//! ```
//! use std::num::NonZeroU32;
//!
//! use buttress_rate_limit::{Quota, RateLimitLayer};
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! const A_SECOND: Quota = Quota::per_second(NonZeroU32::new(50).unwrap());
//! const AN_HOUR: Quota = Quota::per_hour(NonZeroU32::new(10_000).unwrap());
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), buttress_core::BoxError> {
//! # let http_client = service_fn(async |_: Request<String>| {
//! #     Ok::<_, std::io::Error>(Response::new(String::new()))
//! # });
//! let limit = RateLimitLayer::http(A_SECOND).and(AN_HOUR).name("exchange");
//! let operator = limit.handle();
//! let client = ServiceBuilder::new().layer(limit).service(http_client);
//!
//! let request = Request::get("http://exchange.example/rates").body(String::new())?;
//! assert_eq!(client.oneshot(request).await?.status(), 200);
//! println!("{} left, {} waiting", operator.remaining(), operator.waiters());
//! # Ok(())
//! # }
//! ```
//!
//! Where calls do not cost the same, and what each has cost is known only afterwards:
//!
//! ```
//! use std::num::NonZeroU32;
//!
//! use buttress_rate_limit::{Quota, RateLimitLayer};
//!
//! let tokens = Quota::per_minute(NonZeroU32::new(90_000).unwrap())
//!     .burst(NonZeroU32::new(30_000).unwrap());
//! let layer = RateLimitLayer::new(tokens).cost(|prompt: &String| prompt.len() as u64);
//! let ledger = layer.handle();
//! // The prompt was estimated at 1,000 tokens, and has taken 1,600.
//! ledger.settle(1_000, 1_600);
//! # tower::Layer::layer(&layer, ());
//! ```
//!
//! A server that gives each customer a limit, and a large customer a higher one:
//!
//! ```
//! use std::num::NonZeroU32;
//!
//! use buttress_rate_limit::{Quota, RateLimitLayer};
//! use http::Request;
//!
//! fn customer(request: &Request<String>) -> String {
//!     let id = request.headers().get("x-customer");
//!     id.and_then(|id| id.to_str().ok()).unwrap_or("nobody").into()
//! }
//!
//! fn quota(customer: &String) -> Quota {
//!     let per_second = if customer == "acme" { 500 } else { 20 };
//!     Quota::per_second(NonZeroU32::new(per_second).unwrap())
//! }
//!
//! let layer = RateLimitLayer::http(Quota::per_second(NonZeroU32::new(20).unwrap()))
//!     .by_key(customer)
//!     .quota(quota)
//!     .refuse();
//! # tower::Layer::layer(&layer, ());
//! ```
//!
//! For limits by the client's address, with or without proxies in front of the server, see [`client`]. `AnswerLayer`, from
//! `buttress-answer`, makes HTTP or gRPC responses of refusals.
//!
//! # Defaults
//!
//! | knob | default | from |
//! |---|---|---|
//! | [`max_wait`](RateLimitLayer::max_wait) | 500 ms; a call that would wait longer is refused when it comes | Sentinel |
//! | [`deadline`](RateLimitLayer::deadline) | with [`http`](RateLimitLayer::http), no wait beyond the request's [`Deadline`](buttress_core::Deadline); with [`new`](RateLimitLayer::new), none | |
//! | [`burst`](Quota::burst) of the first quota | the tokens of 100 ms, or of a second with [`refuse`](RateLimitLayer::refuse); at least one | |
//! | [`burst`](Quota::burst) of further quotas | all the tokens of the period | |
//! | [`cost`](RateLimitLayer::cost) | one token | |
//! | [`refuse`](RateLimitLayer::refuse), [`shadow`](RateLimitLayer::shadow), [`backpressure`](RateLimitLayer::backpressure) | off | |
//! | quotas | one; [`and`](RateLimitLayer::and) adds more | |
//! | keys | none; [`by_key`](RateLimitLayer::by_key) makes them, [`max_keys`](RateLimitLayer::max_keys) is 65,536 then | |
//!
//! The algorithm is GCRA (ITU-T I.371), a token bucket that is kept as one moment: the one at which it will be full again.
//! It reckons in whole numbers, with the time of a token as a fraction, and rounds nothing but a wait.
//!
//! # State
//!
//! The limiter belongs to the layer: all services that it makes share it, with their clones and with the clones of the layer.
//! For a separate limiter build another layer. Every setter makes a new one: set first, then clone and take handles.
//!
//! Usually a call reads the clock and changes one atomic word. It takes a lock in these cases:
//!
//! - somebody waits for the same bucket;
//! - it is the first call of a key;
//! - there are several quotas, or the keys have [quotas of their own](RateLimitLayer::quota);
//! - the quota does not fit into 63 bits. That is so where the tokens per period and the period in nanoseconds, as a fraction
//!   in lowest terms, have a numerator above 16 (997 a second, for example), or where an empty bucket takes years to fill.
//!
//! # Errors
//!
//! A refusal is a [`Rejected`](buttress_core::Rejected) in a box. It says when to come back, unless the call costs more than
//! a burst holds: such a call is always refused. It has the quota that is used up, and the key unless the call was refused
//! as it waited, because an operator had lowered its quota. Errors of the service below pass as they are.
//!
//! # Panics
//!
//! A call that has to wait panics when it is polled outside of a tokio runtime with its timer; so does `poll_ready` with
//! [`backpressure`](RateLimitLayer::backpressure).
//!
//! # Cancellation
//!
//! A call may be dropped at any time. If it waits, those behind it move up at once. Until the call to the service below is
//! made, its tokens are given back. A waiting call that is kept but not polled still takes its tokens, when its turn comes
//! or later, and may delay those behind it by as much again: poll it or drop it.
//!
//! # Order in a stack
//!
//! Below retries and a breaker, so that every attempt is paced, and none waits that the breaker would refuse. A timeout above
//! limits the wait too, but cannot know beforehand that it would be too long: a deadline can. The wait counts in a retry's
//! `attempt_timeout`, and in a breaker's `slow_calls` and `patience`: have [`max_wait`](RateLimitLayer::max_wait) well below
//! them.
//!
//! On a server, limits by key stand above the limit of all. A caller that is over its own limit is then refused before it
//! takes anything from the others; the other way round, one caller could use up the limit of all.
//!
//! # Promises
//!
//! What it promises in detail, with a number for each, is in [`promises`].

#![doc(test(attr(deny(dead_code))))]

mod bucket;
pub mod client;
mod event;
pub mod future;
mod gate;
mod gcra;
mod grant;
mod handle;
mod keys;
mod layer;
mod limiter;
mod line;
#[doc = include_str!("../PROMISES.md")]
pub mod promises {}
mod quota;
#[cfg(all(test, buttress_loom))]
mod races;
mod service;
mod settings;
mod table;

pub use event::{Event, Reason};
pub use handle::Handle;
pub use keys::{ByKey, Keys, One, QuotaOf, SameQuota};
pub use layer::{Cost, Due, HttpDeadline, NoDeadline, OneToken, RateLimitLayer};
pub use quota::Quota;
pub use service::RateLimit;
