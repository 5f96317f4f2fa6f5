//! Stop calling what fails, and find out with a few calls when it is well again.
//!
//! This is a circuit breaker. It is *closed* while it lets calls through and counts how they end. When too many fail it
//! *opens*, and refuses every call for a time, the open time. Then it is *half-open*: it lets a few calls through, the
//! *probes*, and closes when enough of them succeed, or opens again when one fails.
//!
//! # Example
//!
//! A client with a breaker for each host, over any service that takes `http` requests:
//!
//! ```
//! use buttress_breaker::{BreakerLayer, Event, State};
//! use buttress_core::Rejected;
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), buttress_core::BoxError> {
//! # let http_client = service_fn(async |_: Request<String>| {
//! #     let mut response = Response::new(String::new());
//! #     *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
//! #     Ok::<_, std::io::Error>(response)
//! # });
//! let breaker = BreakerLayer::http()
//!     .name("payments")
//!     .by_authority()
//!     .on_event(|event| {
//!         if let Event::Transition { from, to, cause, .. } = event {
//!             println!("{from} -> {to}: {cause}");
//!         }
//!     });
//! let operator = breaker.handles();
//! let client = ServiceBuilder::new().layer(breaker).service(http_client);
//!
//! let get = || Request::get("http://pay.example/status").body(String::new());
//! for _ in 0..5 {
//!     assert_eq!(client.clone().oneshot(get()?).await?.status(), 503);
//! }
//! // Five failures in a row are enough while there are few calls.
//! let error = client.clone().oneshot(get()?).await.unwrap_err();
//! let refusal = Rejected::find(&*error).expect("the breaker is open");
//! println!("{refusal}");
//! // refused by breaker payments [pay.example:80]: open: 5 calls failed in a row; try again after 3.3s
//!
//! let breaker = operator.get("pay.example:80").expect("it is in use");
//! assert_eq!(breaker.state(), State::Open);
//! breaker.force_closed();
//! assert_eq!(client.oneshot(get()?).await?.status(), 503);
//! # Ok(())
//! # }
//! ```
//!
//! Without HTTP, with a [classifier](buttress_core::Classify) of your own:
//!
//! ```
//! use std::time::Duration;
//!
//! use buttress_breaker::BreakerLayer;
//! use buttress_core::{Applied, BoxError, Kind, Verdict};
//!
//! fn judge(result: Result<&u64, &BoxError>) -> Verdict {
//!     match result {
//!         Ok(_) => Verdict::SUCCESS,
//!         Err(_) => Verdict::new(Kind::Transient, Applied::Maybe),
//!     }
//! }
//!
//! let layer = BreakerLayer::new(judge)
//!     .count_window(100.try_into().unwrap())
//!     .slow_calls(Duration::from_millis(500), 0.8)
//!     .open_time(Duration::from_secs(1), Duration::from_secs(30));
//! let breaker = layer.handle();
//! assert_eq!(breaker.snapshot().calls, 0);
//! ```
//!
//! # Defaults
//!
//! | knob | default | from |
//! |---|---|---|
//! | [`window`](BreakerLayer::window), [`count_window`](BreakerLayer::count_window), [`consecutive_only`](BreakerLayer::consecutive_only) | the last 10 s | Hystrix, linkerd, finagle |
//! | [`failure_rate`](BreakerLayer::failure_rate), [`min_calls`](BreakerLayer::min_calls) | half of at least 20 calls | at 10 % of errors it opens by mistake in 7 of a million windows; a tenth of 100 calls, at 5 %, in 28 of a thousand (exact binomial) |
//! | [`consecutive`](BreakerLayer::consecutive) | 5 in a row, while there are fewer calls | the only rule that can fire where calls are rare; on busy keys it would fire by mistake |
//! | [`slow_calls`](BreakerLayer::slow_calls) | off | |
//! | [`open_time`](BreakerLayer::open_time) | 5 s, doubling up to 60 s, with up to half of it taken off by chance; forgiven one by one | Hystrix, Polly, finagle; Envoy for the forgiving |
//! | [`probes`](BreakerLayer::probes), [`probes_in_flight`](BreakerLayer::probes_in_flight) | 3 must succeed; 1 in flight at first, then 2 | one probe closes on a service that still fails half of its calls every other time, three do one time in eight |
//! | [`probe_lease`](BreakerLayer::probe_lease) | twice the open time, 10 s at most | resilience4j, where it is off |
//! | [`ramp`](BreakerLayer::ramp) | 10, 25, 50, 100 % over one open time | asked for since Hystrix |
//! | [`max_hint`](BreakerLayer::max_hint) | `Retry-After` and pushback are the open time, up to 300 s | Envoy, linkerd |
//! | what fails | 500, 502, 503, 504 and errors; for gRPC `UNAVAILABLE`, `DEADLINE_EXCEEDED`, `INTERNAL`, `UNKNOWN`, `DATA_LOSS`, in trailers too | |
//! | what is ignored | every other 4xx and 5xx, 429 ([`throttling_fails`](BreakerLayer::throttling_fails)), every other gRPC status, refusals of layers below, replays of an idempotency layer | |
//! | [`patience`](BreakerLayer::patience) | a call that is dropped after the slow threshold, or else 10 s, has failed | |
//! | [`by_authority`](BreakerLayer::by_authority), [`by_key`](BreakerLayer::by_key) | one breaker for all; else [1,000 keys](BreakerLayer::max_keys), forgotten after [5 min](BreakerLayer::idle) | Semian |
//! | [`track_bodies`](BreakerLayer::track_bodies) | off; on for gRPC | |
//! | [`backpressure`](BreakerLayer::backpressure), [`shadow`](BreakerLayer::shadow) | off | |
//!
//! # When it does harm
//!
//! A breaker guards against a service that is down or drowning, by failing early and leaving it alone. It makes things worse
//!
//! - where a *part* of a service fails: one route of four, one shard, one customer. One breaker for all then refuses what
//!   would have succeeded: with one of four routes down, goodput falls from 75 % to a third (a simulation). Have a
//!   breaker for whatever fails together: [`by_key`](BreakerLayer::by_key).
//! - where there are too few calls to tell: with a call a minute, five failures in a row take five minutes to come, and the
//!   calls that find it open are a good part of all. A deadline and a retry budget do more.
//! - where the caller has nothing to do instead. If every refused call is simply lost, a limit for calls in flight
//!   protects the service as well, and lets those through that it can take.
//! - with these defaults, where many calls begin together: failures that are quicker than successes, such as refused
//!   connections, come back first, and five of them are in a row before anything has succeeded. A client with 64 calls in
//!   flight does well with [`min_calls`](BreakerLayer::min_calls) above 64, without the
//!   [`consecutive`](BreakerLayer::consecutive) rule, and with a window of a second or two, or of calls: a window of ten
//!   good seconds only opens when half of all that it holds has failed.
//! - where much fails all the time: if one call in four fails, three probes in a row succeed only four times in ten.
//!
//! Try it in [shadow mode](BreakerLayer::shadow) first: its events say what it would have refused.
//!
//! # Where others go wrong
//!
//! What the published crates do, run in November 2026: tower-resilience-circuitbreaker 0.14.0, failsafe 1.3.0 and recloser
//! 1.4.0, each set to open after five failures (recloser: six) and to wait 60 ms.
//!
//! | situation | here | tower-resilience | failsafe | recloser |
//! |---|---|---|---|---|
//! | 100 callers at the first instant of half-open: how many get through? | as many as may be in flight (BR-10) | as many | 100 | 100 |
//! | Every probe is forgotten, or hangs for ever: does anybody get through again? | yes, after a lease (BR-12) | never: 0 of 120 calls in the next 20 open times | yes: nothing limits the probes | as failsafe |
//! | A probe is dropped | its slot is free at once, nothing is counted (BR-11) | its slot is free | nothing to free | nothing to free |
//! | Calls from before it opened succeed while it is half-open | change nothing (BR-13) | the first closes it, or the third of three, though no probe has ended | the first closes it | the 11th closes it |
//! | They fail while it is half-open | change nothing (BR-13) | the first opens it | the first opens it | the 11th opens it |
//! | A timeout above it, a service that hangs: when does it open? | at once, by its rules (BR-7) | never: 1,000 of 1,000 calls time out | never | never |
//! | Five axum routes, three failures in a row open it: what does the handler see of 40 failing calls? | 3 (BR-21) | 40 with `build()`, 3 with `build_with_handle()` | no layer | no layer |
//! | 200 responses with status 500 | open it | do not: only an error counts | as tower-resilience | as tower-resilience |
//! | 200 refusals of a layer below | say nothing (BR-6) | open it | open it | open it |
//!
//! How to see it: open the breaker with failing calls, wait for longer than the open time, and make the calls of the row from
//! as many tasks, with a service that counts.
//!
//! # State
//!
//! The breaker belongs to the layer: all services that it makes share it, with their clones and with the clones of the layer,
//! so that axum's routes and a server's connections do too. For a breaker of its own build another layer, or have one for
//! each [key](BreakerLayer::by_key). Every setter makes a new breaker: set first, then clone and take handles.
//!
//! A closed breaker is one atomic load on the way in, and one atomic change on the way out. Failures, slow calls, probes and
//! the ramp take a lock for a moment, and so does finding the breaker of a key.
//!
//! # Errors
//!
//! A refusal is a [`Rejected`](buttress_core::Rejected), boxed. An error of the service below is passed on, boxed but
//! otherwise as it is. `poll_ready` fails only where that of the service below does.
//!
//! # Cancellation
//!
//! A call may be dropped at any time. If it was a probe, its slot is free at once. It counts for nothing, unless it has
//! waited longer than the breaker's [patience](BreakerLayer::patience): then it is a failure, or a timeout above would hide a
//! service that hangs for ever. A call that panics is a failure.
//!
//! # Order in a stack
//!
//! Below a retry layer, so that each attempt is counted, and a refusal is not retried. Above a limiter, so that a call that
//! waits for its turn does not hold one while the breaker is open; what a limiter below refuses is not counted. A timeout
//! does best below it; with one above, set the patience to less than that. On a server it stands above what it guards, and
//! below the layer that makes an answer of its refusals.
//!
//! A refused call uses up nothing below: a service that was ready and has refused keeps the readiness of the one below, such
//! as a permit of tower's `ConcurrencyLimit`, for its next call or until it is dropped. Where services are kept between
//! calls, have such a limit above the breaker; a clone for each call, as `oneshot` and axum take, is dropped with it.
//!
//! # Promises
//!
//! What it promises in detail, with a number for each, is in [`promises`].

#![doc(test(attr(deny(dead_code))))]

mod call;
mod circuit;
mod classify;
mod event;
pub mod future;
mod gate;
mod handle;
mod keys;
mod layer;
#[cfg(test)]
mod model;
#[doc = include_str!("../PROMISES.md")]
pub mod promises {}
mod queue;
mod service;
mod settings;
mod shared;
mod track;
mod window;

pub use classify::Http;
pub use event::{Cause, Event, Outcome, ProbeResult, Reason, State};
pub use handle::{Handle, Handles, Snapshot};
pub use keys::{ByAuthority, ByKey, Keys, One};
pub use layer::BreakerLayer;
pub use service::Breaker;
pub use track::{Bodies, HeadOnly, Track, TrackedBody};
