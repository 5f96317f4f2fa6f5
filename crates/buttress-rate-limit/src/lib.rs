//! Keep to a rate: pace a client, in order, or refuse what comes too early.
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
//! Where calls do not cost the same, with what they turn out to have cost put right afterwards:
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
//! A server that gives each customer so much, and large ones more:
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
//! For limits by client address, which proxies may stand before, see [`client`]. What a refusal is in HTTP or gRPC is the
//! business of `AnswerLayer`, from `buttress-answer`.
//!
//! # Defaults
//!
//! | knob | default | from |
//! |---|---|---|
//! | [`max_wait`](RateLimitLayer::max_wait) | 500 ms, or until the [`Deadline`](buttress_core::Deadline) of an HTTP request; decided when the call comes | Sentinel |
//! | [`burst`](Quota::burst) | as many as come in 100 ms, or in a second where calls are refused, and one at least; of further quotas, all | |
//! | [`cost`](RateLimitLayer::cost) | one token | |
//! | [`refuse`](RateLimitLayer::refuse), [`shadow`](RateLimitLayer::shadow), [`backpressure`](RateLimitLayer::backpressure) | off | |
//! | quotas | one; [`and`](RateLimitLayer::and) adds more | |
//! | keys | none; [`by_key`](RateLimitLayer::by_key) makes them, [`max_keys`](RateLimitLayer::max_keys) is 65,536 | |
//!
//! The algorithm is GCRA (ITU-T I.371), a bucket of tokens as one moment, in whole numbers: the time of a token is kept as a
//! fraction.
//!
//! # State
//!
//! The limiter belongs to the layer: all services that it makes share it, with their clones and with the clones of the layer.
//! For a limiter of its own build another layer. Every setter makes a new one: set first, then clone and take handles.
//!
//! Where nobody waits, a call reads the clock and changes one atomic word. It takes a lock where somebody waits, at the
//! first call of a key, with several quotas, with quotas of the keys' own, and with a quota that 63 bits do not hold: one whose
//! tokens in a period, divided by what they have in common with its nanoseconds, are more than 16 (997 a second), or whose
//! burst takes years to come back.
//!
//! # Errors
//!
//! A refusal is a [`Rejected`](buttress_core::Rejected) in a box. It says when to come back, unless the call asks for more
//! than a burst holds: then it would be refused whenever it came. It has the quota that is used up, and the key. Errors of
//! the service below pass as they are.
//!
//! # Cancellation
//!
//! A call may be dropped at any time. While it waits, those behind it move up at once; its tokens are given back until the
//! call is made. A call that waits needs a tokio runtime with its timer. One that is kept and not polled has its tokens taken
//! when its turn comes or later, and may put off those behind it by as much again: poll it or drop it.
//!
//! # Order in a stack
//!
//! Below retries and a breaker, so that every attempt is paced and none waits that would be refused. A timeout above limits
//! the wait too, but cannot know beforehand that it would be too long: a deadline can. The time of an attempt, and the
//! patience of a breaker, include the wait: have [`max_wait`](RateLimitLayer::max_wait) well below them.
//!
//! On a server, limits by key stand above the limit of all. Who is over his own is refused then before he takes anything
//! from the others; the other way round one of them could use it up for everybody.
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
