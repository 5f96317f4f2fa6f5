//! The memory store passes the suite of all stores, and a store with a flaw does not.

use std::{
    collections::BTreeMap,
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use buttress_idempotency::{
    MemoryStore, Store, StoreError,
    record::{Answer, Change, Moment, Op, Record, RecordKey, State, Token, step},
    testing::{self, Subject},
};

/// A clock that moves when it is told to.
#[derive(Clone)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_790_000_000_000_000)))
    }

    fn now(&self) -> Moment {
        Moment(self.0.load(Ordering::SeqCst))
    }

    fn pass(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap();
        self.0.fetch_add(micros, Ordering::SeqCst);
    }
}

struct Tested<S> {
    store: S,
    clock: Clock,
}

impl<S: Store> Subject for Tested<S> {
    type Store = S;

    fn store(&self) -> &S {
        &self.store
    }

    async fn pass(&self, time: Duration) {
        self.clock.pass(time);
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(1)
    }
}

fn memory() -> Tested<MemoryStore> {
    let clock = Clock::new();
    let shown = clock.clone();
    let store = MemoryStore::with_clock(move || shown.now());
    Tested { store, clock }
}

// promise: ID-6
// promise: ID-10
// promise: ID-11
// promise: ID-13
// promise: ID-16
// promise: ID-17
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_memory_store_passes_the_suite() {
    testing::conformance(memory()).await;
}

/// A store on the clock of the layers.
struct Paused(MemoryStore);

impl Subject for Paused {
    type Store = MemoryStore;

    fn store(&self) -> &MemoryStore {
        &self.0
    }

    async fn pass(&self, time: Duration) {
        tokio::time::advance(time).await;
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(1)
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_store_goes_by_the_clock_of_the_layers() {
    testing::conformance(Paused(MemoryStore::new())).await;
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    /// It takes every token for the right one.
    Tokens,
    /// It reads and writes, and others do so in between.
    Races,
    /// A record is gone with its lease.
    LeaseIsLife,
    /// Fences start again.
    Fences,
}

/// A store in a plain map, which may have a flaw.
struct Plain {
    flaw: Flaw,
    clock: Clock,
    kept: Mutex<(BTreeMap<RecordKey, Record>, u64)>,
}

impl Plain {
    fn tested(flaw: Flaw) -> Tested<Self> {
        let clock = Clock::new();
        let store = Self {
            flaw,
            clock: clock.clone(),
            kept: Mutex::default(),
        };
        Tested { store, clock }
    }
}

fn holder(record: &Record) -> Option<Token> {
    match record.state {
        State::Running { token, .. } | State::Unknown { token } => Some(token),
        State::Done { .. } => None,
    }
}

impl Store for Plain {
    async fn step(&self, key: &RecordKey, mut op: Op) -> Result<Answer, StoreError> {
        let now = self.clock.now();
        let (mut record, mut last) = {
            let kept = self.kept.lock().unwrap();
            (kept.0.get(key).cloned(), kept.1)
        };
        match self.flaw {
            Flaw::Tokens => {
                if let (
                    Some(holder),
                    Op::Heartbeat { token, .. }
                    | Op::Arm { token }
                    | Op::Complete { token, .. }
                    | Op::Release { token },
                ) = (record.as_ref().and_then(holder), &mut op)
                {
                    *token = holder;
                }
            }
            Flaw::Races => tokio::task::yield_now().await,
            Flaw::LeaseIsLife => {
                record = record.filter(|record| {
                    !matches!(record.state, State::Running { lease_until, .. } if lease_until <= now)
                });
            }
            Flaw::Fences => last = 0,
            Flaw::None => {}
        }
        let mut kept = self.kept.lock().unwrap();
        if matches!(self.flaw, Flaw::None | Flaw::Tokens) {
            (record, last) = (kept.0.get(key).cloned(), kept.1);
        }
        let (answer, change) = step(record.as_ref(), now, last, &op);
        match change {
            Change::Keep => {}
            Change::Put(record) => drop(kept.0.insert(key.clone(), record)),
            Change::Remove => drop(kept.0.remove(key)),
        }
        if let Answer::Won { fence } = answer {
            kept.1 = fence;
        }
        Ok(answer)
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        let kept = self.kept.lock().unwrap();
        let record = kept.0.get(key);
        Ok(record.and_then(|record| record.at(self.clock.now())))
    }

    async fn list_open(
        &self,
        after: Option<&RecordKey>,
        limit: usize,
    ) -> Result<Vec<(RecordKey, Record)>, StoreError> {
        let kept = self.kept.lock().unwrap();
        let behind = kept.0.iter().filter(|(key, _)| Some(*key) > after);
        let open = behind.filter_map(|(key, record)| {
            let record = record.at(self.clock.now())?;
            holder(&record).map(|_| (key.clone(), record))
        });
        Ok(open.take(limit).collect())
    }

    async fn purge_expired(&self, limit: usize) -> Result<usize, StoreError> {
        let mut kept = self.kept.lock().unwrap();
        let now = self.clock.now();
        let expired = kept.0.iter().filter(|(_, record)| record.at(now).is_none());
        let expired: Vec<_> = expired.take(limit).map(|(key, _)| key.clone()).collect();
        for key in &expired {
            kept.0.remove(key);
        }
        Ok(expired.len())
    }
}

/// What the suite says of a store with this flaw.
async fn verdict(flaw: Flaw) -> Option<String> {
    let suite = tokio::spawn(testing::conformance(Plain::tested(flaw)));
    let panic = suite.await.err()?.into_panic();
    Some(panic.downcast_ref::<String>().unwrap().clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_suite_passes_a_plain_store_and_names_the_checks_that_a_flawed_one_fails() {
    assert_eq!(verdict(Flaw::None).await, None);
    for (flaw, check) in [
        (Flaw::Tokens, "other_tokens_are_refused"),
        (Flaw::Races, "one_of_64_racers_wins"),
        (Flaw::LeaseIsLife, "a_late_completion_heals"),
        (Flaw::Fences, "fences_rise_across_release_and_expiry"),
    ] {
        let failed = verdict(flaw).await.unwrap_or_default();
        assert!(failed.contains(check), "{flaw:?}: {failed}");
    }
}

fn full(usual: usize, full: usize) -> usize {
    env::var_os("BUTTRESS_FULL").map_or(usual, |_| full)
}

// promise: ID-17
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_histories_of_the_memory_store_are_linearizable() {
    let histories = testing::histories(&Arc::new(memory()), full(1_000, 10_000)).await;
    assert!(histories.is_ok(), "{}", histories.unwrap_err());
}

// promise: ID-17
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_looks_at_no_token_is_caught_within_a_hundred_histories() {
    // By chance it might not be, once. It is, each time.
    for _ in 0..10 {
        let mutant = Arc::new(Plain::tested(Flaw::Tokens));
        assert!(testing::histories(&mutant, 100).await.is_err());
    }
}

// promise: ID-17
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_whose_operations_interleave_is_caught_within_a_hundred_histories() {
    for _ in 0..10 {
        let mutant = Arc::new(Plain::tested(Flaw::Races));
        assert!(testing::histories(&mutant, 100).await.is_err());
    }
}
