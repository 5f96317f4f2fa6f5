//! Do a request once, however often it is sent: on the server that does it, and on the client that sends it.
//!
//! # Example
//!
//! A server that takes payments. Each account has its own keys, and records are kept in memory, for as long as the process
//! lives; `buttress-sqlite` has a store that outlives it:
//!
//! ```
//! use axum::{Router, routing::post};
//! use buttress_idempotency::{IdempotencyLayer, MemoryStore};
//! use http::request::Parts;
//!
//! /// The account that a request is from. A request without one is refused.
//! fn account(parts: &Parts) -> Option<String> {
//!     let account = parts.headers.get("x-account")?;
//!     account.to_str().ok().map(Into::into)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let once = IdempotencyLayer::new(MemoryStore::new(), account).required();
//! let app: Router = Router::new()
//!     // It is paid here, once.
//!     .route("/payments", post(async |order: String| format!("paid for {order}")))
//!     .layer(once.clone());
//!
//! # let ask = || {
//! #     let request = http::Request::post("/payments").header("x-account", "alice");
//! #     let request = request.header("idempotency-key", "\"order-7\"");
//! #     tower::ServiceExt::oneshot(app.clone(), request.body("apples".to_owned()).unwrap())
//! # };
//! # for _ in 0..3 {
//! #     assert_eq!(ask().await?.status(), 200);
//! # }
//! // After the same request has come three times:
//! let counts = once.handle().counts();
//! assert_eq!((counts.runs, counts.replays), (1, 2));
//! # Ok(())
//! # }
//! ```
//!
//! For clients see [`IdempotencyKeyLayer`].
//!
//! # What a duplicate gets
//!
//! | the first request | the duplicate gets |
//! |---|---|
//! | is running | 409 `idempotency-in-flight` with `Retry-After`; or it [waits](IdempotencyLayer::wait) |
//! | has been answered | the same answer, with `Idempotency-Replayed: true` |
//! | was another request | 422 `idempotency-key-reused` |
//! | was refused by a layer below, or answered with 408, 425 or 429 | a run of its own |
//! | had a body that broke off, and was answered with 4xx | a run of its own |
//! | was answered with 101, and has the connection for itself | 409 `idempotency-outcome-unknown` |
//! | failed, panicked, was cut off, or was not heard of for a lease | 409 `idempotency-outcome-unknown`, until somebody [says](Handle::settle) or [knows](IdempotencyLayer::recover) what came of it; or it is [run again](Lapse::Rerun) |
//!
//! Requests are the same whose method, path, query, content type and body are. Of the body counts what the handler has read of
//! it: to one that reads none, all bodies are the same.
//!
//! A request without a key where one is [required](IdempotencyLayer::required), or with an invalid one, gets 400; one whose
//! [`Scope`] is not known gets 403; while the store is down or full, it is 503; and 429 where the scope alone has used up its
//! share of the store. All of these are problem details (RFC 9457) with a `code`: see [`Refusal`].
//!
//! # What a handler can do
//!
//! A handler need not do anything. One that wants more uses the [`Lease`] among the extensions of its request: it says with
//! [`arm`](Lease::arm) from when on it may have effects, passes the [`fence`](Lease::fence) on to systems that check one, and
//! can complete its request in a transaction of its own database, as `buttress-sqlite` shows.
//!
//! # What an operator can do
//!
//! [`Event`]s tell what happens, and [`Handle::counts`] how often. With the [`Handle`], or over HTTP with the
//! [`OperatorView`], an operator lists the requests that are running or unknown, and says what came of them.
//! [`Handle::drain`] waits for the handlers when the server ends.
//!
//! # Defaults
//!
//! | knob | default | from |
//! |---|---|---|
//! | [`ttl`](IdempotencyLayer::ttl) | 24 hours | Stripe, and most others |
//! | [`lease`](IdempotencyLayer::lease) | 30 s, renewed every 10 s for 10 minutes at most ([`ceiling`](IdempotencyLayer::ceiling)) | leases of 10 s without renewal run things twice |
//! | [`on_lapse`](IdempotencyLayer::on_lapse) | [`Lapse::Refuse`]: what has an unknown outcome is not run again | |
//! | [`methods`](IdempotencyLayer::methods) | POST and PATCH | draft-ietf-httpapi-idempotency-key-header-07 |
//! | [`required`](IdempotencyLayer::required), [`wait`](IdempotencyLayer::wait), [`recover`](IdempotencyLayer::recover), [`explicit_arm`](IdempotencyLayer::explicit_arm), [`release_5xx`](IdempotencyLayer::release_5xx), [`fail_open`](IdempotencyLayer::fail_open), [`policy_url`](IdempotencyLayer::policy_url) | off | |
//! | [`canonical_json`](IdempotencyLayer::canonical_json) | off: bodies are compared by their bytes | |
//! | [`max_response`](IdempotencyLayer::max_response) | 1 MiB; a larger one is replayed without its body | |
//! | replayed headers | `content-*`, `location`, `etag`, `link`, and [others](IdempotencyLayer::replay_header) by choice; never `set-cookie`, credentials, `date` and those of a connection | |
//! | [`store_timeout`](IdempotencyLayer::store_timeout) | 2 s | |
//!
//! # State
//!
//! Records are in the store. The layer knows the runs of this process: all services that it makes share them, with their
//! clones.
//!
//! # Errors
//!
//! Errors of the service below pass as they are. What the layer itself refuses is a response.
//!
//! An error that is a [`Rejected`](buttress_core::Rejected), or a box with one in its chain of causes, is taken for a refusal by
//! a layer below: nothing was done, and the key is free. After any other error the outcome is unknown. A run that has called
//! [`Lease::arm`] is never taken for refused. A handler that asks another service through a breaker of its own, and passes its
//! refusal on as an error, must have called it; or it answers with a response instead.
//!
//! # Panics
//!
//! Panics when a request with a key is called outside of a tokio runtime.
//!
//! # Cancellation
//!
//! A request with a key is run by whoever polls its future. When the future is dropped, the run goes on in a tokio task, and
//! its answer is kept; so is the rest of a streamed body. [`Handle::drain`] waits for both when a server ends. A future that
//! is kept but not polled is a run of which nothing is heard: when its lease is over, its outcome is unknown.
//!
//! A request without a key is dropped as without this layer, and so is one that [waits](IdempotencyLayer::wait) for another.
//! A panic of the handler, or of the body of its response, is passed on to whoever waits for the answer or reads it.
//!
//! # Order in a stack
//!
//! On a server, below the layer that answers refusals (`AnswerLayer`) and below authentication; above limits and breakers,
//! since what they refuse frees the key. Above what takes a part of the path away, as axum's `nest` does for the layers of
//! what it nests: a key belongs to the path that this layer sees. On a client, [`IdempotencyKeyLayer`] stands above retries,
//! so that all attempts carry the same key.
//!
//! # Promises
//!
//! What it promises in detail, with a number for each, is in [`promises`].

#![doc(test(attr(deny(dead_code))))]

mod body;
pub mod client;
pub mod encode;
mod event;
pub mod future;
mod handle;
mod json;
mod key;
mod layer;
mod lease;
mod memory;
mod operator;
mod policy;
mod problem;
#[doc = include_str!("../PROMISES.md")]
pub mod promises {}
pub mod record;
mod recover;
mod run;
mod service;
mod settings;
mod shared;
mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use body::{RequestBody, ResponseBody};
pub use client::{IdempotencyKey, IdempotencyKeyLayer};
pub use event::{Counts, Event, Operation};
pub use handle::Handle;
pub use key::{Key, KeyError};
pub use layer::{Global, IdempotencyLayer, Scope};
pub use lease::{Lease, LeaseError};
pub use memory::MemoryStore;
pub use operator::{OperatorFuture, OperatorView};
pub use policy::{Policy, Refusal};
pub use recover::Recovered;
pub use service::Idempotency;
pub use settings::Lapse;
pub use store::{Store, StoreError, StoreErrorKind};
