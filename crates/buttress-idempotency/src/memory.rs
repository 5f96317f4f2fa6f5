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
const OVERHEAD: usize = 832;

/// What is kept free for the answer of a record from the beginning.
const RESERVED: usize = 512;

/// How many expired records an operation forgets on its way. It brings one at most, so that they become fewer.
const FORGOTTEN: usize = 2;

/// Keeps records in memory: nothing is durable, and a restart forgets them all.
///
/// It is for tests, and for a single process whose clients can live with a key that is new again after a restart. For what
/// must not be done twice, take a store that outlives the process. Clones share their records.
///
/// # Bounds
///
/// A record counts with its scope, its headers and its body, and with at least 1.25 KiB, so that every claim can be completed
/// with a small answer: 64 MiB, the default, have room for some 50,000 records. No record is removed before it has expired.
/// A claim without room is refused, with [`ScopeFull`](StoreErrorKind::ScopeFull) or [`Full`](StoreErrorKind::Full). So is a
/// completion whose answer is too large, which leaves the record as it was: it can be completed without the body.
///
/// Records that have expired are removed when room is needed, and otherwise a few at a time with each operation.
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

    /// An empty store that goes by this clock, for a test that moves it.
    #[must_use]
    pub fn with_clock(now: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        Self {
            ledger: Arc::new(Mutex::new(Ledger::default())),
            now: Arc::new(now),
        }
    }

    /// Lets all records together have this many bytes; by default 64 MiB.
    #[must_use]
    pub fn max_bytes(self, max: usize) -> Self {
        lock(&self.ledger).max_bytes = max;
        self
    }

    /// Lets the records of one scope have this many bytes together, so that a caller that fills its share is refused alone; by
    /// default an eighth of [all](Self::max_bytes). The empty scope, which is everybody's, has no such limit by default.
    #[must_use]
    pub fn max_bytes_per_scope(self, max: usize) -> Self {
        lock(&self.ledger).max_bytes_per_scope = Some(max);
        self
    }

    /// The number of records, with those that have expired and are not removed yet.
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
    place: Place,
}

/// Where a record is in the orders, and what it counts.
#[derive(Clone, Copy, Debug)]
struct Place {
    until: Moment,
    bytes: usize,
    is_open: bool,
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
        let mut found = self.records.get_key_value(key);
        // What has expired must not make room for itself. Its fence is not above the last.
        if found.is_some_and(|(_, kept)| kept.place.until <= now) {
            self.take(key);
            found = None;
        }
        let record = found.map(|(_, kept)| &kept.record);
        let (answer, change) = step(record, now, self.last_fence, op);
        let before = found.map(|(key, kept)| (Arc::clone(key), kept.place));
        match change {
            Change::Keep => {}
            Change::Put(record) => self.put(key, before, record, now)?,
            Change::Remove => self.take(key),
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

    /// Puts a record in the place of the one before, or leaves that as it was.
    fn put(
        &mut self,
        key: &RecordKey,
        before: Option<(Arc<RecordKey>, Place)>,
        record: Record,
        now: Moment,
    ) -> Result<(), StoreErrorKind> {
        let place = Place {
            until: record.kept_until(),
            bytes: size(key, &record),
            is_open: !matches!(record.state, State::Done { .. }),
        };
        // What does not grow has its room already.
        let had = before.as_ref().map_or(0, |(_, place)| place.bytes);
        if place.bytes > had {
            self.make_room(&key.scope, place.bytes - had, now)?;
        }
        let (key, before) = match before {
            Some((key, before)) => (key, Some(before)),
            None => (Arc::new(key.clone()), None),
        };
        self.list(&key, before, Some(place));
        self.records.insert(key, Kept { record, place });
        Ok(())
    }

    /// Forgets what has expired until there is room. Each that is forgotten gives 1.25 KiB at least, so that no more are
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

    fn take(&mut self, key: &RecordKey) {
        if let Some((key, kept)) = self.records.remove_entry(key) {
            self.list(&key, Some(kept.place), None);
        }
    }

    /// Moves a key from one place in the orders and sums to another.
    fn list(&mut self, key: &Arc<RecordKey>, before: Option<Place>, after: Option<Place>) {
        // One with a record is there.
        if before.is_none() && !self.scopes.contains_key(&key.scope) {
            self.scopes.insert(key.scope.clone(), Share::default());
        }
        let Some(share) = self.scopes.get_mut(&key.scope) else {
            return;
        };
        let bytes = |place: Option<Place>| place.map_or(0, |place| place.bytes);
        for sum in [&mut self.bytes, &mut share.bytes] {
            *sum = *sum + bytes(after) - bytes(before);
        }
        let until = |place: Option<Place>| place.map(|place| place.until);
        if until(before) != until(after) {
            for expiries in [&mut self.expiries, &mut share.expiries] {
                if let Some(until) = until(before) {
                    expiries.remove(&(until, Arc::clone(key)));
                }
                if let Some(until) = until(after) {
                    expiries.insert((until, Arc::clone(key)));
                }
            }
        }
        let is_open = |place: Option<Place>| place.is_some_and(|place| place.is_open);
        match (is_open(before), is_open(after)) {
            (false, true) => drop(self.open.insert(Arc::clone(key))),
            (true, false) => drop(self.open.remove(key)),
            _ => {}
        }
        if share.expiries.is_empty() {
            self.scopes.remove(&key.scope);
        }
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
        State::Done { completion, .. } => {
            let response = &completion.response;
            let headers = response.headers.iter().map(|(name, value)| {
                // Each is a string and a handle of shared bytes, and both have an allocation of their own.
                name.len() + value.len() + 96
            });
            headers.sum::<usize>() + response.body.as_ref().map_or(0, Bytes::len)
        }
        State::Running { .. } | State::Unknown { .. } => 0,
    };
    // The scope is in the key, and by itself.
    OVERHEAD + 2 * key.scope.len() + response.max(RESERVED)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
        time::Duration,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::record::{BodyPrint, Claim, Completion, HeadPrint, StoredResponse, Token};

    const TTL: Duration = Duration::from_hours(24);
    const NOW: Moment = Moment(1_790_000_000_000_000);

    /// The least that a record of Alice's or Bob's counts.
    const LEAST: usize = OVERHEAD + RESERVED + 10;

    fn key(scope: &str, number: usize) -> RecordKey {
        RecordKey::new(scope, &number.to_string())
    }

    fn claim() -> Op {
        Op::Claim(Claim {
            head: HeadPrint([1; 32]),
            token: Token(1),
            lease: TTL,
            ttl: TTL,
            armed: true,
            rerun: false,
        })
    }

    fn complete(body: usize) -> Op {
        let response = StoredResponse {
            status: 200,
            headers: vec![("content-type".to_owned(), Bytes::from_static(b"text/plain"))],
            body: (body > 0).then(|| Bytes::from(vec![7; body])),
        };
        let body = BodyPrint {
            hash: [2; 32],
            length: 0,
            whole: true,
        };
        Op::Complete {
            token: Token(1),
            completion: Completion { body, response },
            ttl: TTL,
        }
    }

    /// A ledger with room for so many records of the least size.
    fn ledger(records: usize) -> Ledger {
        Ledger {
            max_bytes: records * LEAST,
            max_bytes_per_scope: Some(usize::MAX),
            ..Ledger::default()
        }
    }

    fn wins(ledger: &mut Ledger, key: &RecordKey, now: Moment) -> Result<(), StoreErrorKind> {
        match ledger.step(key, now, &claim())? {
            Answer::Won { .. } => Ok(()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_has_not_expired_is_never_evicted() {
        let mut ledger = ledger(10);
        for number in 0..10 {
            assert_eq!(wins(&mut ledger, &key("alice", number), NOW), Ok(()));
        }
        for number in 0..5 {
            let done = ledger.step(&key("alice", number), NOW, &complete(0));
            assert_eq!(done, Ok(Answer::Accepted));
        }
        let late = NOW.after(TTL.saturating_sub(Duration::from_micros(1)));
        for number in 10..100 {
            let refused = wins(&mut ledger, &key("alice", number), late);
            assert_eq!(refused, Err(StoreErrorKind::Full));
        }
        for number in 0..10 {
            let answer = ledger.step(&key("alice", number), late, &claim()).unwrap();
            assert_eq!(matches!(answer, Answer::Done(_)), number < 5, "{answer:?}");
        }
    }

    #[test]
    fn what_has_expired_makes_room_at_once_however_much_is_needed() {
        let mut ledger = ledger(100);
        for number in 0..100 {
            wins(&mut ledger, &key("alice", number), NOW).unwrap();
        }
        let later = NOW.after(TTL);
        wins(&mut ledger, &key("bob", 0), later).unwrap();
        assert!(ledger.records.len() > 90, "it looks at a few only");
        let large = ledger.step(&key("bob", 0), later, &complete(80 * LEAST));
        assert_eq!(large, Ok(Answer::Accepted));
        assert!(ledger.bytes <= ledger.max_bytes);
        assert!(ledger.records.len() > 10, "no more than it needs");
    }

    #[test]
    fn what_has_expired_is_forgotten_a_few_at_a_time_by_whatever_is_done() {
        let mut ledger = ledger(100);
        for number in 0..20 {
            wins(&mut ledger, &key("alice", number), NOW).unwrap();
        }
        let later = NOW.after(TTL);
        for left in (0..20).rev().step_by(FORGOTTEN) {
            let refused = ledger.step(&key("bob", 0), later, &complete(0));
            assert_eq!(refused, Ok(Answer::Refused));
            assert_eq!(ledger.records.len(), left - (FORGOTTEN - 1));
        }
        assert_eq!((ledger.bytes, ledger.scopes.len()), (0, 0));
    }

    // promise: ID-23
    #[test]
    fn a_caller_who_fills_his_share_is_refused_alone() {
        let mut ledger = ledger(40);
        ledger.max_bytes_per_scope = None;
        for number in 0..5 {
            assert_eq!(wins(&mut ledger, &key("alice", number), NOW), Ok(()));
        }
        for number in 5..100 {
            let refused = wins(&mut ledger, &key("alice", number), NOW);
            assert_eq!(refused, Err(StoreErrorKind::ScopeFull));
        }
        for number in 0..5 {
            assert_eq!(wins(&mut ledger, &key("bob", number), NOW), Ok(()));
        }
        // What she has is hers, and what she gives back she can have again.
        let again = ledger.step(&key("alice", 0), NOW, &claim());
        assert!(matches!(again, Ok(Answer::InFlight { .. })), "{again:?}");
        let released = ledger.step(&key("alice", 1), NOW, &Op::Release { token: Token(1) });
        assert_eq!(released, Ok(Answer::Accepted));
        assert_eq!(wins(&mut ledger, &key("alice", 5), NOW), Ok(()));
    }

    // promise: ID-23
    #[test]
    fn the_share_of_a_caller_is_free_again_when_it_has_expired_whatever_others_have() {
        let mut ledger = ledger(1000);
        for number in 0..500 {
            wins(&mut ledger, &key("bob", number), NOW).unwrap();
        }
        let soon = NOW.after(Duration::from_secs(1));
        ledger.max_bytes_per_scope = Some(5 * LEAST + 10);
        for number in 0..5 {
            wins(&mut ledger, &key("alice", number), soon).unwrap();
        }
        // Bob's have expired before hers, and there are more of them than one operation looks at.
        assert_eq!(wins(&mut ledger, &key("alice", 5), soon.after(TTL)), Ok(()));
        assert!(ledger.records.len() > 490);
    }

    #[test]
    fn the_scope_that_is_everybodys_may_have_all_there_is_unless_it_is_told_otherwise() {
        let mut ledger = ledger(10);
        ledger.max_bytes_per_scope = None;
        for number in 0..10 {
            assert_eq!(wins(&mut ledger, &key("", number), NOW), Ok(()));
        }
        assert_eq!(
            wins(&mut ledger, &key("", 10), NOW),
            Err(StoreErrorKind::Full)
        );
        ledger.max_bytes_per_scope = Some(10 * LEAST);
        ledger.max_bytes *= 2;
        let refused = wins(&mut ledger, &key("", 10), NOW);
        assert_eq!(refused, Err(StoreErrorKind::ScopeFull));
    }

    #[test]
    fn an_answer_that_has_no_room_is_refused_and_there_is_room_for_it_without_its_body() {
        let mut ledger = ledger(2);
        for number in 0..2 {
            wins(&mut ledger, &key("alice", number), NOW).unwrap();
        }
        let before = ledger.records[&key("alice", 0)].record.clone();
        let refused = ledger.step(&key("alice", 0), NOW, &complete(1000));
        assert_eq!(refused, Err(StoreErrorKind::Full));
        assert_eq!(ledger.records[&key("alice", 0)].record, before);
        let accepted = ledger.step(&key("alice", 0), NOW, &complete(0));
        assert_eq!(accepted, Ok(Answer::Accepted));
    }

    // promise: ID-23
    #[test]
    fn keys_that_meet_in_one_process_do_not_in_another() {
        // As an attacker would look for them who knows the hasher: their lowest eight bits are the same.
        let known = BuildHasherDefault::<DefaultHasher>::default();
        let crafted: Vec<_> = (0..)
            .map(|number| key("", number))
            .filter(|key| known.hash_one(key).trailing_zeros() >= 8)
            .take(256)
            .collect();
        let places = |ledger: &Ledger| {
            let hashes = crafted
                .iter()
                .map(|key| ledger.records.hasher().hash_one(key));
            let mut places: Vec<_> = hashes.map(|hash| hash % 256).collect();
            places.sort_unstable();
            places.dedup();
            places.len()
        };
        for _ in 0..10 {
            // Of 256 places that many keys meet by chance, they take some 162.
            let places = places(&Ledger::default());
            assert!((130..190).contains(&places), "{places} places");
        }
    }

    // promise: ID-16
    #[tokio::test]
    async fn fences_are_as_high_as_the_time_of_day_so_that_they_rise_across_a_restart() {
        let store = MemoryStore::new();
        let answer = store.step(&key("alice", 0), claim()).await.unwrap();
        assert!(matches!(answer, Answer::Won { fence } if fence > 1_750_000_000_000_000));
    }

    #[derive(Clone, Copy, Debug)]
    enum Do {
        Claim {
            armed: bool,
            rerun: bool,
            lease: u64,
            ttl: u64,
        },
        Complete {
            body: usize,
            ttl: u64,
        },
        Release,
        Pass(u64),
        Purge(usize),
    }

    fn dos() -> impl Strategy<Value = (usize, Do)> {
        let claim =
            (any::<[bool; 2]>(), 0..50_u64, 0..100_u64).prop_map(|([armed, rerun], lease, ttl)| {
                Do::Claim {
                    armed,
                    rerun,
                    lease,
                    ttl,
                }
            });
        let one = prop_oneof![
            4 => claim,
            2 => (0..6_usize, 0..100_u64).prop_map(|(body, ttl)| Do::Complete { body: body * 600, ttl }),
            1 => Just(Do::Release),
            1 => (0..40_u64).prop_map(Do::Pass),
            1 => (0..4_usize).prop_map(Do::Purge),
        ];
        (0..30_usize, one)
    }

    proptest! {
        // What is expired and forgotten makes no difference, and what is refused has changed nothing.
        #[test]
        fn it_says_what_a_plain_map_says_and_its_sums_are_right(dos in prop::collection::vec(dos(), 1..150)) {
            let mut ledger = ledger(15);
            ledger.max_bytes_per_scope = Some(9 * LEAST);
            let mut plain: BTreeMap<RecordKey, Record> = BTreeMap::new();
            let (mut now, mut last_fence) = (NOW, 0);
            let micros = Duration::from_micros;
            for (number, what) in dos {
                let key = key(["alice", "bob"][number % 2], number);
                let op = match what {
                    Do::Pass(time) => {
                        now = now.after(micros(time));
                        continue;
                    }
                    Do::Purge(limit) => {
                        prop_assert!(ledger.forget_expired(now, limit) <= limit);
                        continue;
                    }
                    Do::Claim { armed, rerun, lease, ttl } => Op::Claim(Claim {
                        head: HeadPrint([1; 32]),
                        token: Token(1),
                        lease: micros(lease),
                        ttl: micros(ttl),
                        armed,
                        rerun,
                    }),
                    Do::Complete { body, ttl } => match complete(body) {
                        Op::Complete { token, completion, .. } => Op::Complete { token, completion, ttl: micros(ttl) },
                        other => other,
                    },
                    Do::Release => Op::Release { token: Token(1) },
                };
                let (expected, change) = step(plain.get(&key), now, last_fence, &op);
                match ledger.step(&key, now, &op) {
                    Ok(answer) => {
                        prop_assert_eq!(&answer, &expected);
                        if let Answer::Won { fence } = answer {
                            last_fence = fence;
                        }
                        match change {
                            Change::Keep => {}
                            Change::Put(record) => drop(plain.insert(key, record)),
                            Change::Remove => drop(plain.remove(&key)),
                        }
                    }
                    Err(kind) => {
                        // It was right to refuse: there is too much that has not expired.
                        let of = |scope: Option<&str>| {
                            let live = plain.iter().filter(|(key, record)| {
                                record.at(now).is_some() && scope.is_none_or(|scope| key.scope == scope)
                            });
                            live.map(|(key, record)| size(key, record)).sum::<usize>()
                        };
                        let Change::Put(record) = change else { panic!("{kind:?}") };
                        let had = plain.get(&key).filter(|record| record.at(now).is_some());
                        let more = size(&key, &record) - had.map_or(0, |had| size(&key, had));
                        match kind {
                            StoreErrorKind::ScopeFull => prop_assert!(of(Some(&key.scope)) + more > 9 * LEAST),
                            _ => prop_assert!(of(None) + more > 15 * LEAST),
                        }
                    }
                }
                let shown = |record: Option<&Record>| record.and_then(|record| record.at(now));
                for (key, record) in &plain {
                    let kept = ledger.records.get(key).map(|kept| &kept.record);
                    prop_assert_eq!(shown(kept), shown(Some(record)));
                }
                let bytes: usize = ledger.records.values().map(|kept| kept.place.bytes).sum();
                prop_assert_eq!(ledger.bytes, bytes);
                prop_assert!(bytes <= ledger.max_bytes);
                prop_assert_eq!(ledger.expiries.len(), ledger.records.len());
                let shares = ledger.scopes.values();
                let (places, shared) = shares.fold((0, 0), |(places, bytes), share| {
                    (places + share.expiries.len(), bytes + share.bytes)
                });
                prop_assert_eq!((places, shared), (ledger.records.len(), bytes));
                let open = plain.iter().filter_map(|(key, record)| {
                    let record = record.at(now)?;
                    (!matches!(record.state, State::Done { .. })).then(|| (key.clone(), record))
                });
                prop_assert_eq!(ledger.list_open(None, usize::MAX, now), open.collect::<Vec<_>>());
            }
        }
    }
}
