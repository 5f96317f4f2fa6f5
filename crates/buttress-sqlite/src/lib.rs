//! Keep idempotency records in a file, with SQLite, and the handler's own data in one transaction with them if you like.
//!
//! # Example
//!
//! A store, and what a layer does with it for each request:
//!
//! ```
//! use std::time::Duration;
//!
//! use buttress_idempotency::{
//!     Store,
//!     record::{Answer, Claim, HeadPrint, Op, RecordKey, Token},
//! };
//! use buttress_sqlite::SqliteStore;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("payments.db");
//! let store = SqliteStore::open(path)?.timeout(Duration::from_secs(1));
//!
//! let key = RecordKey::new("alice", "order:123");
//! let claim = Claim {
//!     head: HeadPrint([0; 32]),
//!     token: Token::random(),
//!     lease: Duration::from_secs(30),
//!     ttl: Duration::from_hours(24),
//!     armed: true,
//!     rerun: false,
//! };
//! let answer = store.step(&key, Op::Claim(claim)).await?;
//! assert!(matches!(answer, Answer::Won { .. }));
//! # Ok(())
//! # }
//! ```
//!
//! A server whose handler books a payment and the completion of its request in one transaction. Whenever the process is
//! killed, there are both afterwards or neither:
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use axum::{Extension, Router, extract::State, response::IntoResponse, routing::post};
//! use buttress_core::BoxError;
//! use buttress_idempotency::{Global, IdempotencyLayer, Lease};
//! use buttress_sqlite::{SqliteStore, rusqlite::Connection};
//! use bytes::Bytes;
//! use http::{Response, StatusCode};
//!
//! type Books = (SqliteStore, Arc<Mutex<Connection>>);
//!
//! /// Pays so many cents. The order is read to its end before that, by the last argument.
//! async fn pay(
//!     State((store, connection)): State<Books>,
//!     Extension(lease): Extension<Lease>,
//!     cents: String,
//! ) -> axum::response::Response {
//!     let paid = move || {
//!         let mut connection = connection.lock().unwrap();
//!         store.complete_with(&mut connection, &lease, |transaction| {
//!             transaction.execute("INSERT INTO payments VALUES (?1)", [&cents])?;
//!             Ok::<_, BoxError>(Response::builder().status(201).body("paid".into())?)
//!         })
//!     };
//!     // SQLite blocks.
//!     match tokio::task::spawn_blocking(paid).await {
//!         Ok(Ok(answer)) => answer.map(Into::into),
//!         _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("payments.db");
//! let store = SqliteStore::open(path)?;
//! let connection = store.connect()?;
//! connection.execute_batch("CREATE TABLE IF NOT EXISTS payments (cents INTEGER)")?;
//! let once = IdempotencyLayer::new(store.clone(), Global)
//!     .required()
//!     // A handler that has died or failed before its transaction was committed has done nothing.
//!     .explicit_arm()
//!     .release_5xx();
//! let app: Router = Router::new()
//!     .route("/payments", post(pay))
//!     .with_state((store, Arc::new(Mutex::new(connection))))
//!     .layer(once);
//! # for replayed in [false, true] {
//! #     let request = http::Request::post("/payments").header("idempotency-key", "7");
//! #     let request = request.body(axum::body::Body::from("1200"))?;
//! #     let answer = tower::ServiceExt::oneshot(app.clone(), request).await?;
//! #     assert_eq!(answer.status(), 201);
//! #     assert_eq!(answer.headers().contains_key("idempotency-replayed"), replayed);
//! # }
//! # Ok(())
//! # }
//! ```
//!
//! A handler that does all it does in that transaction has no reason to [arm](buttress_idempotency::Lease::arm) its lease:
//! where it dies, nothing was done, and the request is run again when the lease is over. What has been committed stays done,
//! whatever the handler answers after that.
//!
//! # Defaults
//!
//! | knob | default |
//! |---|---|
//! | [`timeout`](SqliteStore::timeout) | 2 s |
//! | [`max_records`](SqliteStore::max_records), [`max_records_per_scope`](SqliteStore::max_records_per_scope) | no limit |
//! | operations that wait | 4,096, each of them until its timeout |
//! | operations in one transaction | 1,024 at most |
//!
//! # State
//!
//! Two threads belong to a store and its clones: one writes, one reads. All operations that have come while a transaction was
//! being written are the next one; each of them is answered when it is on the disk (`WAL`, `synchronous = FULL`).
//! With the last clone the store is closed: its `drop` waits until what has been asked for is done.
//!
//! Several processes may open the same file, and several stores in one process.
//!
//! # Files
//!
//! Beside the database `x.db` and what SQLite keeps there (`x.db-wal`, `x.db-shm`) is the file `x.db-epoch`. It knows which
//! database it is, and how often it has been written, so that one that is gone, was truncated, or has been replaced by a
//! backup is told from one that never was: see [`open`](SqliteStore::open). Of a completion in a transaction of yours it hears
//! with the store's next operation, and the layer's is asked for before the client is answered.
//!
//! Take a backup with SQLite's own means, and keep
//! the `-epoch` file out of it.
//!
//! When it is opened, the whole file is looked through, or, where it has tables of yours too, all that belongs to the store:
//! a record that has gone missing is noticed then, whatever it was that took it away. A record whose bytes are not those that
//! were written is [`Damaged`](buttress_idempotency::StoreErrorKind::Damaged) wherever it is asked for, and never none.
//! What happens to the file behind the back of a running process is noticed when it is opened the next time, or earlier.
//! Once it is removed or another is in its place, on Unix, or it was restored to what it was before, or to another store, all
//! that would be written is [`Unavailable`](buttress_idempotency::StoreErrorKind::Unavailable): a process that lives on with
//! the old one does not win what is claimed in the new one.
//!
//! The records are in the table `buttress_records`, and an operator may look at it with the `sqlite3` shell:
//!
//! ```sql
//! SELECT scope, hex(hash), state, fence, datetime(expires_at / 1000000, 'unixepoch') FROM buttress_records
//! WHERE state IN ('armed', 'unknown') AND lease_until < unixepoch() * 1000000;
//! ```
//!
//! Look, but do not touch: a row that was changed by hand is damage.
//!
//! # Time
//!
//! It is the machine's when the store is opened, and from then on that of its steady clock, so that a clock that is set
//! changes nothing. The latest moment is kept in the database: no later one is earlier than that, in whatever process and after
//! whatever restart, and fences rise always.
//!
//! A process whose machine's clock is ahead when it opens the file takes all others on it with it, from its first operation
//! on, and the time does not come back. The leases that end meanwhile are over at once. What was armed is unknown then, and
//! who is at it yet may complete it or send a heartbeat; what was not armed is free, and may be done by another. Records are
//! forgotten that much earlier. Keep the clocks of processes that share a file together: where one is an hour ahead, a record
//! may be forgotten an hour before its time.
//!
//! # Errors
//!
//! A disk that is full or cannot be written, or a writer elsewhere that does not come to an end, are
//! [`Unavailable`](buttress_idempotency::StoreErrorKind::Unavailable) or
//! [`TimedOut`](buttress_idempotency::StoreErrorKind::TimedOut). The next operation tries again.
//!
//! # Cancellation
//!
//! An operation whose future is dropped is done as a whole or not at all. A claim that nobody waits for any more when its
//! turn comes is not done; everything else is.
//!
//! A timeout is tokio's, and the threads are not: a test that pauses tokio's clock has its timeouts at once.

#![doc(test(attr(deny(dead_code))))]

mod clock;
mod epoch;
mod open;
mod place;
mod queue;
mod reader;
mod seal;
mod store;
mod table;
mod transaction;
mod writer;

pub use open::OpenError;
pub use rusqlite;
pub use store::SqliteStore;
pub use transaction::CompleteError;
