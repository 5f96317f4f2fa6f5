//! Do a request once, however often it is sent: on the server that does it, and on the client that sends it.
//!
//! # Example
//!
//! A server that takes payments. Each account has its own keys, and what was done is kept in memory, for as long as the
//! process lives; `buttress-sqlite` has a store for longer:
//!
//! ```
//! use axum::{Router, routing::post};
//! use buttress_idempotency::{IdempotencyLayer, MemoryStore};
//! use http::request::Parts;
//!
//! /// The account that a request is of. Who has none is refused.
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
//! // Three times the same request later:
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
//! | has broken off before its body was there, and was answered with another 4xx for it | a run of its own |
//! | was answered with 101, and has the connection for itself | 409 `idempotency-outcome-unknown` |
//! | was cut off, panicked, or was not heard of for a lease | 409 `idempotency-outcome-unknown`, until somebody [says](Handle::settle) or [knows](IdempotencyLayer::recover) what came of it; or it is [run again](Lapse::Rerun) |
//!
//! Requests are the same whose method, path, query, content type and body are. Of the body counts what the handler has read of
//! it: to one that reads none, all bodies are the same.
//!
//! Without a key where one is [required](IdempotencyLayer::required), or with one that is none, it is 400; without anybody
//! whose key it is, 403; while the store is down, 503. All of these are problems of RFC 9457 with a `code`.
//!
//! # What a handler can do
//!
//! Nothing has to be done in a handler. One that knows more may use its [`Lease`], which is among the extensions of its
//! request: it says with [`arm`](Lease::arm) from when on there may be effects, has a [`fence`](Lease::fence) for systems that
//! look at one, and can complete its request in the transaction of its own database, as `buttress-sqlite` shows.
//!
//! # What an operator can do
//!
//! [`Event`]s tell what happens, one by one, and [`Handle::counts`] how often. With the [`Handle`], or over HTTP with the
//! [`OperatorView`], he lists what is running or unknown, says what came of it, and lets the server end in peace.
//!
//! # Defaults
//!
//! | knob | default | from |
//! |---|---|---|
//! | [`ttl`](IdempotencyLayer::ttl) | 24 hours | Stripe, and most others |
//! | [`lease`](IdempotencyLayer::lease) | 30 s, renewed every 10 s for 10 minutes at most ([`ceiling`](IdempotencyLayer::ceiling)) | leases of 10 s without renewal run things twice |
//! | [`methods`](IdempotencyLayer::methods) | POST and PATCH | draft-ietf-httpapi-idempotency-key-header-07 |
//! | [`required`](IdempotencyLayer::required), [`wait`](IdempotencyLayer::wait), [`explicit_arm`](IdempotencyLayer::explicit_arm), [`release_5xx`](IdempotencyLayer::release_5xx), [`fail_open`](IdempotencyLayer::fail_open) | off | |
//! | [`canonical_json`](IdempotencyLayer::canonical_json) | off: a body is the same if its bytes are, and is hashed as it is read | |
//! | [`max_response`](IdempotencyLayer::max_response) | 1 MiB; a larger one is replayed without its body | |
//! | replayed headers | `content-*`, `location`, `etag`, `link`, and [others](IdempotencyLayer::replay_header) by choice; never `set-cookie`, credentials, `date` and those of a connection | |
//! | [`store_timeout`](IdempotencyLayer::store_timeout) | 2 s | |
//!
//! # State
//!
//! It is in the store. The layer has the runs of this process: all services that it makes share them, with their clones.
//!
//! # Errors
//!
//! Those of the service below, as they are. What the layer itself refuses is a response. It takes an error for a refusal, by
//! which nothing was done, if it is a [`Rejected`](buttress_core::Rejected) or a box with one inside; of any other the
//! outcome is unknown. A handler that has called [`Lease::arm`] was not refused by anybody: one that asks others through a
//! breaker of its own, and passes on what that says, has to call it, or to answer with a response.
//!
//! # Panics
//!
//! When a request with a key comes outside of a runtime of tokio.
//!
//! # Cancellation
//!
//! A request with a key is run by whoever polls its future. When that is dropped, it goes on in a task of tokio, and its
//! answer is kept; so is what is left of a body that is streamed. [`Handle::drain`] waits for both when a server ends. A
//! future that is kept and not polled any more is a run of which nothing is heard: when its lease is over, its outcome is
//! unknown. A request without a key is dropped as without this layer, and so is one that [waits](IdempotencyLayer::wait) for
//! another. A panic of the handler, or of the body of its response, is passed on to whoever waits for the answer or reads it.
//!
//! # Order in a stack
//!
//! Below what answers refusals (`AnswerLayer`) and what says who asks, above limits and breakers: what those refuse frees the
//! key. Above what takes a part of the path away, as axum's `nest` does for the layers of what it nests: a key belongs to the
//! path that this layer sees. On a client above retries, so that all attempts carry the same key.
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
