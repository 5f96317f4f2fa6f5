//! The store as its users have it.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use buttress_idempotency::{
    Store, StoreError, StoreErrorKind,
    record::{Answer, Moment, Op, Record, RecordKey},
};
use rusqlite::Connection;

use crate::{
    OpenError,
    clock::Clock,
    open::{self, Opened},
    queue::Queue,
    reader::{self, Query},
    writer::{Job, Limits, Shared, Writer},
};

/// Keeps records in a file. See the [crate docs](crate) for an example.
///
/// All clones are the same store. The `drop` of the last one blocks until all is done.
#[derive(Clone)]
pub struct SqliteStore {
    pub(crate) inner: Arc<Inner>,
    timeout: Duration,
    limits: Limits,
}

pub(crate) struct Inner {
    path: PathBuf,
    pub(crate) shared: Arc<Shared>,
    // The reader first: who closes the file last puts its log into it, and that must be one who writes.
    reader: Queue<Query>,
    pub(crate) writer: Queue<Job>,
}

impl SqliteStore {
    /// Opens the store in this file, or makes it where there never was one.
    ///
    /// The file may be a database of your own: the store adds its tables to it, and makes its journal a write-ahead log.
    ///
    /// It blocks, and the longer the more records there are: it checks all of them.
    ///
    /// # Errors
    ///
    /// Where records may be lost, an operator has to decide whether requests may be done again that were done already. A
    /// database that is gone or empty is [`Missing`](OpenError::Missing); one that has lost its end, or is an older backup, is
    /// [`Older`](OpenError::Older); another store is [`Replaced`](OpenError::Replaced); where the `-epoch` file is damaged, it
    /// is [`DamagedEpoch`](OpenError::DamagedEpoch). If the store is to be used all the same, call [`create`](Self::create)
    /// once. One with other damage is [`Damaged`](OpenError::Damaged): move it away before that.
    ///
    /// If the `-epoch` file is gone too, as with the whole folder, it is as if there had never been a store.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::start(open::open(path.as_ref(), false)?)
    }

    /// Opens the store in this file even if it is older than it was or another one, or makes a new one if it is gone. What is
    /// lost is lost: call it when somebody has decided so, and not at every start. It blocks as [`open`](Self::open) does.
    ///
    /// # Errors
    ///
    /// A store that is there is never overwritten: if it is [`Damaged`](OpenError::Damaged), move it away first.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::start(open::open(path.as_ref(), true)?)
    }

    fn start(opened: Opened) -> Result<Self, OpenError> {
        let Opened {
            place,
            db,
            file,
            seal,
        } = opened;
        let shared = Arc::new(Shared::new(seal.epoch, Clock::of_the_machine()));
        let path = place.path.clone();
        let readers = open::connect(&path)?;
        let writer = Writer::new(db, place, file, shared.clone());
        let reads = shared.clone();
        let inner = Inner {
            path,
            reader: Queue::new("buttress-sqlite read", move |queries| {
                reader::work(&readers, &reads, queries);
            })?,
            writer: Queue::new("buttress-sqlite write", move |jobs| writer.work(jobs))?,
            shared,
        };
        Ok(Self {
            inner: Arc::new(inner),
            timeout: Duration::from_secs(2),
            limits: Limits::default(),
        })
    }

    /// Waits this long for an operation that is asked for through this value and its clones; by default 2 s. Then it is
    /// [`TimedOut`](StoreErrorKind::TimedOut), and may still be done later.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Keeps this many records at most; by default as many as the disk has room for. Another one is refused as
    /// [`Full`](StoreErrorKind::Full).
    ///
    /// It is the limit of claims that are made through this value and its clones. Some of the records that have expired are
    /// removed first.
    #[must_use]
    pub fn max_records(mut self, max: u64) -> Self {
        self.limits.records = Some(max);
        self
    }

    /// Keeps this many records of each scope at most that have not expired; by default as many as the disk has room for.
    /// Another one is refused as [`ScopeFull`](StoreErrorKind::ScopeFull).
    ///
    /// It is the limit of claims that are made through this value and its clones. Where several processes write, they may go
    /// beyond it: each counts the records of the others only now and then.
    #[must_use]
    pub fn max_records_per_scope(mut self, max: u64) -> Self {
        self.limits.per_scope = Some(max);
        self
    }

    /// Takes the time from this clock, for a test; by default from the machine. Where it is behind the latest moment in the
    /// database, the store goes on from that moment. All clones get this clock, those that exist already too.
    #[must_use]
    pub fn clock(self, clock: impl Fn() -> Moment + Send + 'static) -> Self {
        self.inner.shared.clock().set_source(Box::new(clock));
        self
    }

    /// Opens another connection to the database, for transactions in which a request is [completed](Self::complete_with). Its
    /// write-ahead log is brought to the disk at each commit, and it waits 2 s for other writers.
    pub fn connect(&self) -> rusqlite::Result<Connection> {
        open::connect(&self.inner.path)
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let done = tokio::time::timeout(self.timeout, work).await;
        done.unwrap_or_else(|_| Err(StoreError::new(StoreErrorKind::TimedOut)))
    }
}

impl Store for SqliteStore {
    async fn step(&self, key: &RecordKey, op: Op) -> Result<Answer, StoreError> {
        let (key, limits) = (key.clone(), self.limits);
        let ask = self.inner.writer.ask(|reply| Job::Step {
            key,
            op,
            limits,
            reply,
        });
        self.within(ask).await
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        let key = key.clone();
        let ask = self.inner.reader.ask(|reply| Query::Get { key, reply });
        self.within(ask).await
    }

    async fn list_open(
        &self,
        after: Option<&RecordKey>,
        limit: usize,
    ) -> Result<Vec<(RecordKey, Record)>, StoreError> {
        let after = after.cloned();
        let ask = self.inner.reader.ask(|reply| Query::ListOpen {
            after,
            limit,
            reply,
        });
        self.within(ask).await
    }

    async fn purge_expired(&self, limit: usize) -> Result<usize, StoreError> {
        let ask = self.inner.writer.ask(|reply| Job::Purge { limit, reply });
        self.within(ask).await
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.inner.path)
            .field("timeout", &self.timeout)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
