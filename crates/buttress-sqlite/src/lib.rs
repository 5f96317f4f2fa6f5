//! Keep idempotency records in a file, with SQLite; if you like, in one transaction with the handler's own data.
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
//! A server whose handler writes a payment and the completion of its request in one transaction. Whenever the process is
//! killed, both are there afterwards, or neither:
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
//! /// Pays this many cents. The last argument has read the request to its end by then.
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
//! A handler whose effects are all in that transaction need not [arm](buttress_idempotency::Lease::arm) its lease: if it dies,
//! nothing was done, and the request can be run again when the lease is over. What has been committed stays done, whatever
//! the handler answers after that.
//!
//! # Defaults
//!
//! | knob | default |
//! |---|---|
//! | [`timeout`](SqliteStore::timeout) | 2 s |
//! | [`max_records`](SqliteStore::max_records), [`max_records_per_scope`](SqliteStore::max_records_per_scope) | no limit |
//! | operations that wait for a thread | 4,096; more wait for a place among these, and each only until its timeout |
//! | operations in one transaction | 1,024 at most |
//!
//! # State
//!
//! Two threads belong to a store and its clones: one writes, one reads. All operations that come while a transaction is being
//! written make up the next one; each is answered when it is on the disk (`WAL`, `synchronous = FULL`). The `drop` of the
//! last clone closes the store: it blocks until what has been asked for is done.
//!
//! Several processes may open the same file, and several stores in one process.
//!
//! # Files
//!
//! Beside the database `x.db` and the files that SQLite adds (`x.db-wal`, `x.db-shm`) there is the file `x.db-epoch`. It says
//! which database belongs there, and how often that has been written. So a database that is gone, was truncated, or was
//! replaced by a backup is not taken for a new one: see [`open`](SqliteStore::open). A completion in a transaction of yours is
//! noted there with the store's next operation; the layer asks for one before the client is answered.
//!
//! Take a backup with SQLite's own means, and keep the `-epoch` file out of it.
//!
//! [`open`](SqliteStore::open) checks the whole file, or, where it has tables of yours too, all that belongs to the store. It
//! notices every record that is missing, for whatever reason. A record whose bytes are not those that were written is
//! [`Damaged`](buttress_idempotency::StoreErrorKind::Damaged) wherever it is asked for, and never taken for no record.
//!
//! What happens to the file while a process has it open is noticed when it is opened the next time, or earlier. If the file
//! was restored to an older state, or has become another store, every write is
//! [`Unavailable`](buttress_idempotency::StoreErrorKind::Unavailable); on Unix also if it was removed, or another file is in
//! its place. So a process that still has the old file wins no claim beside those that have the new one.
//!
//! The records are in the table `buttress_records`, which an operator can read with the `sqlite3` shell. This shows what was
//! cut off:
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
//! A store reads the machine's clock when it is opened, and then goes on by a steady clock, so that setting the machine's
//! clock changes nothing. The latest moment is kept in the database, and time never goes back behind it, in any process or
//! after any restart. So fences always rise.
//!
//! Keep the clocks of machines that share a file together. If one is ahead when its process opens the file, the time of all
//! processes jumps ahead with that process's first operation, and does not come back. Leases that end within the jump are over
//! at once: what was armed is unknown then, until its holder completes it or sends a heartbeat; what was not armed is free,
//! and may be done by another. Records are forgotten as much earlier: an hour before their time, if that clock is an hour
//! ahead.
//!
//! # Errors
//!
//! A disk that is full or cannot be written, or another writer that does not come to an end, is
//! [`Unavailable`](buttress_idempotency::StoreErrorKind::Unavailable) or
//! [`TimedOut`](buttress_idempotency::StoreErrorKind::TimedOut). The next operation tries again.
//!
//! # Cancellation
//!
//! An operation whose future is dropped is done as a whole or not at all. A claim that nobody waits for any more when its
//! turn comes is not done; every other operation that has got a place among those that wait is done.
//!
//! Timeouts go by tokio's clock, and the threads do not: in a test that pauses that clock, operations time out at once.
//!
//! # Promises
//!
//! Those that [`buttress_idempotency`] makes for its stores, in [`promises`](buttress_idempotency::promises): above all ID-12
//! and ID-16 to ID-21.

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
