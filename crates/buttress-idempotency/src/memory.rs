//! Records in the memory of this process.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    ops::Bound,
    sync::Arc,
    time::SystemTime,
};

use buttress_core::{
    clock,
    sync::{Mutex, lock},
};
use bytes::Bytes;

use crate::{
    record::{Answer, Change, Moment, Op, Record, RecordKey, State, step},
    store::{Store, StoreError, StoreErrorKind},
};

/// The bytes that all records together may have by default.
const MAX_BYTES: usize = 64 << 20;

/// The share of them that one scope may have by default.
const SHARE: usize = 8;

/// What a record takes besides what is in it: its places in the map and in the orders, and what those have to spare.
const OVERHEAD: usize = 1024;

/// What is kept free for the answer of a record from the beginning.
const RESERVED: usize = 512;

/// How many expired records an operation forgets on its way. It brings one at most, so that they become fewer.
const FORGOTTEN: usize = 2;

/// Keeps records in memory: nothing is durable, and a restart forgets them all.
///
/// It is for tests, and for a single process whose clients can live with a key that is new again after a restart. What
/// must not be done twice belongs in a store that outlives the process. Clones share their records.
///
/// # Bounds
///
/// A record counts with its scope, its headers and its body, and with 1.5 KiB at least, so that what was claimed can be
/// completed with a small answer: 64 MiB, the default, are room for some 40,000 records. Nothing is evicted that has not
/// expired. What has no room is refused, with [`ScopeFull`](StoreErrorKind::ScopeFull) or [`Full`](StoreErrorKind::Full): a
/// claim, or a completion whose answer is too large, which leaves the record as it was. It can be completed without the
/// body.
///
/// Records that have expired make room when it is needed, and otherwise a few at a time with each operation.
#[derive(Clone)]
pub struct MemoryStore {
    ledger: Arc<Mutex<Ledger>>,
    now: Arc<dyn Fn() -> Moment + Send + Sync>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ledger = lock(&self.ledger);
        f.debug_struct("MemoryStore")
            .field("records", &ledger.records.len())
            .field("bytes", &ledger.bytes)
            .field("max_bytes", &ledger.max_bytes)
            .finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the time of day is read once, so that fences are higher after a restart; it goes on by the one clock"
    )]
    pub fn new() -> Self {
        let day = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let started = Moment::default().after(day.unwrap_or_default());
        let origin = clock::now();
        Self::with_clock(move || started.after(clock::now().saturating_duration_since(origin)))
    }

    /// An empty store that goes by another clock, for a test that tells it when to move.
    #[must_use]
    pub fn with_clock(now: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        Self {
            ledger: Arc::new(Mutex::new(Ledger::default())),
            now: Arc::new(now),
        }
    }

    /// Lets all records together have so many bytes; 64 MiB by default.
    #[must_use]
    pub fn max_bytes(self, max: usize) -> Self {
        lock(&self.ledger).max_bytes = max;
        self
    }

    /// Lets the records of one scope have so many bytes together, so that a caller who fills his share is refused alone; an
    /// eighth of all by default. The empty scope, which is everybody's, may have all there is unless this is set.
    #[must_use]
    pub fn max_bytes_per_scope(self, max: usize) -> Self {
        lock(&self.ledger).max_bytes_per_scope = Some(max);
        self
    }

    /// The number of records, those too that have expired and are not forgotten yet.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.ledger).records.len()
    }

    /// Are there no records?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Store for MemoryStore {
    async fn step(&self, key: &RecordKey, mut op: Op) -> Result<Answer, StoreError> {
        cut_loose(&mut op);
        let mut ledger = lock(&self.ledger);
        // Under the lock, so that no operation is at an earlier moment than the one before.
        let now = (self.now)();
        ledger.step(key, now, &op).map_err(StoreError::new)
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        let ledger = lock(&self.ledger);
        let kept = ledger.records.get(key);
        Ok(kept.and_then(|kept| kept.record.at((self.now)())))
    }

    async fn list_open(
        &self,
        after: Option<&RecordKey>,
        limit: usize,
    ) -> Result<Vec<(RecordKey, Record)>, StoreError> {
        let ledger = lock(&self.ledger);
        Ok(ledger.list_open(after, limit, (self.now)()))
    }

    async fn purge_expired(&self, limit: usize) -> Result<usize, StoreError> {
        let mut ledger = lock(&self.ledger);
        Ok(ledger.forget_expired((self.now)(), limit))
    }
}

/// Copies what is to be kept: a few bytes that are part of a connection's buffer would keep all of it.
fn cut_loose(op: &mut Op) {
    let (Op::Complete { completion, .. }
    | Op::Settle {
        completion: Some(completion),
        ..
    }) = op
    else {
        return;
    };
    let response = &mut completion.response;
    let values = response.headers.iter_mut().map(|(_, value)| value);
    for bytes in values.chain(&mut response.body) {
        *bytes = Bytes::copy_from_slice(bytes);
    }
}

/// The records as plain data: no lock, no clock.
///
/// Each is in the map, among those that expire, and among those of its scope. Its bytes are in both sums.
#[derive(Debug)]
struct Ledger {
    // Its hasher is seeded: nobody can choose keys that meet. The orders below need no hasher.
    records: HashMap<Arc<RecordKey>, Kept>,
    /// Every record by when it is forgotten.
    expiries: BTreeSet<(Moment, Arc<RecordKey>)>,
    /// The keys of those that are running or unknown.
    open: BTreeSet<Arc<RecordKey>>,
    scopes: HashMap<String, Share>,
    bytes: usize,
    last_fence: u64,
    max_bytes: usize,
    max_bytes_per_scope: Option<usize>,
}

#[derive(Debug)]
struct Kept {
    record: Record,
    bytes: usize,
}

/// What a scope has.
#[derive(Debug, Default)]
struct Share {
    expiries: BTreeSet<(Moment, Arc<RecordKey>)>,
    bytes: usize,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            records: HashMap::new(),
            expiries: BTreeSet::new(),
            open: BTreeSet::new(),
            scopes: HashMap::new(),
            bytes: 0,
            last_fence: 0,
            max_bytes: MAX_BYTES,
            max_bytes_per_scope: None,
        }
    }
}

impl Ledger {
    fn step(&mut self, key: &RecordKey, now: Moment, op: &Op) -> Result<Answer, StoreErrorKind> {
        self.forget_expired(now, FORGOTTEN);
        let before = self.records.get(key).map(|kept| &kept.record);
        let (answer, change) = step(before, now, self.last_fence, op);
        match change {
            Change::Keep => {}
            Change::Put(record) => self.put(key, record, now)?,
            Change::Remove => drop(self.take(key)),
        }
        if let Answer::Won { fence } = answer {
            self.last_fence = fence;
        }
        Ok(answer)
    }

    fn list_open(
        &self,
        after: Option<&RecordKey>,
        limit: usize,
        now: Moment,
    ) -> Vec<(RecordKey, Record)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.open.range::<RecordKey, _>((from, Bound::Unbounded));
        let records = behind.filter_map(|key| {
            let record = self.records.get(key)?.record.at(now)?;
            Some((RecordKey::clone(key), record))
        });
        records.take(limit).collect()
    }

    /// Forgets up to so many records that have expired, those first that did so first.
    fn forget_expired(&mut self, now: Moment, limit: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < limit
            && let Some(key) = expired(&self.expiries, now)
        {
            self.take(&key);
            forgotten += 1;
        }
        forgotten
    }

    /// Puts a record in the place of the one before, or leaves everything as it was.
    fn put(&mut self, key: &RecordKey, record: Record, now: Moment) -> Result<(), StoreErrorKind> {
        let new = Kept {
            bytes: size(key, &record),
            record,
        };
        let (key, before) = match self.take(key) {
            Some((key, before)) => (key, Some(before)),
            None => (Arc::new(key.clone()), None),
        };
        // What does not grow has its room already.
        let had = before.as_ref().map_or(0, |before| before.bytes);
        let room = if new.bytes > had {
            self.make_room(&key.scope, new.bytes, now)
        } else {
            Ok(())
        };
        match room {
            Ok(()) => self.lay(key, new),
            Err(kind) => {
                if let Some(before) = before {
                    self.lay(key, before);
                }
                return Err(kind);
            }
        }
        Ok(())
    }

    /// Forgets what has expired until there is room. Each that is forgotten gives 1.5 KiB at least, so that no more are
    /// looked at than the new one is large.
    fn make_room(&mut self, scope: &str, bytes: usize, now: Moment) -> Result<(), StoreErrorKind> {
        let max = match self.max_bytes_per_scope {
            None if scope.is_empty() => usize::MAX,
            None => self.max_bytes / SHARE,
            Some(max) => max,
        };
        while let share = self.scopes.get(scope)
            && share.map_or(0, |share| share.bytes).saturating_add(bytes) > max
        {
            let key = share.and_then(|share| expired(&share.expiries, now));
            let key = key.ok_or(StoreErrorKind::ScopeFull)?;
            self.take(&key);
        }
        while self.bytes.saturating_add(bytes) > self.max_bytes {
            let key = expired(&self.expiries, now).ok_or(StoreErrorKind::Full)?;
            self.take(&key);
        }
        Ok(())
    }

    fn lay(&mut self, key: Arc<RecordKey>, kept: Kept) {
        let expiry = (kept.record.kept_until(), Arc::clone(&key));
        if !self.scopes.contains_key(&key.scope) {
            self.scopes.insert(key.scope.clone(), Share::default());
        }
        if let Some(share) = self.scopes.get_mut(&key.scope) {
            share.bytes += kept.bytes;
            share.expiries.insert(expiry.clone());
        }
        self.bytes += kept.bytes;
        self.expiries.insert(expiry);
        if !matches!(kept.record.state, State::Done(_)) {
            self.open.insert(Arc::clone(&key));
        }
        self.records.insert(key, kept);
    }

    fn take(&mut self, key: &RecordKey) -> Option<(Arc<RecordKey>, Kept)> {
        let (key, kept) = self.records.remove_entry(key)?;
        let expiry = (kept.record.kept_until(), Arc::clone(&key));
        if let Some(share) = self.scopes.get_mut(&key.scope) {
            share.bytes -= kept.bytes;
            share.expiries.remove(&expiry);
            if share.expiries.is_empty() {
                self.scopes.remove(&key.scope);
            }
        }
        self.bytes -= kept.bytes;
        self.expiries.remove(&expiry);
        self.open.remove(&key);
        Some((key, kept))
    }
}

/// The key that has expired first, if one has.
fn expired(expiries: &BTreeSet<(Moment, Arc<RecordKey>)>, now: Moment) -> Option<Arc<RecordKey>> {
    let (until, key) = expiries.first()?;
    (*until <= now).then(|| Arc::clone(key))
}

/// The bytes that a record counts.
fn size(key: &RecordKey, record: &Record) -> usize {
    let response = match &record.state {
        State::Done(completion) => {
            let response = &completion.response;
            let headers = response.headers.iter().map(|(name, value)| {
                // Each is a string and a handle of shared bytes, and both have an allocation of their own.
                name.len() + value.len() + 128
            });
            headers.sum::<usize>() + response.body.as_ref().map_or(0, Bytes::len)
        }
        State::Running { .. } | State::Unknown { .. } => 0,
    };
    // The scope is in the key, and by itself.
    OVERHEAD + 2 * key.scope.len() + response.max(RESERVED)
}
