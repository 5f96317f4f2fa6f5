//! What the tests of the store have in common.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "each test file is a crate of its own, and uses some of this; names are numbers or words"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use buttress_idempotency::{
    Store, StoreError, StoreErrorKind,
    record::{
        Answer, BodyPrint, Claim, Completion, HeadPrint, Moment, Op, RecordKey, StoredResponse,
        Token,
    },
};
use buttress_sqlite::SqliteStore;
use bytes::Bytes;

pub const LEASE: Duration = Duration::from_secs(30);
/// A bit more than nothing.
pub const MS: Duration = Duration::from_millis(1);
pub const TTL: Duration = Duration::from_hours(24);

/// How many there are, usually, and if all is tested.
pub fn size(usual: usize, full: usize) -> usize {
    std::env::var_os("BUTTRESS_FULL").map_or(usual, |_| full)
}

pub fn key(name: impl ToString) -> RecordKey {
    RecordKey::new("alice", &name.to_string())
}

pub fn claim(token: Token) -> Op {
    claim_as(token, true)
}

pub fn claim_as(token: Token, armed: bool) -> Op {
    Op::Claim(Claim {
        head: HeadPrint([1; 32]),
        token,
        lease: LEASE,
        ttl: TTL,
        armed,
        rerun: false,
    })
}

pub fn completion(body: impl ToString) -> Completion {
    let body = Bytes::from(body.to_string());
    Completion {
        body: BodyPrint {
            hash: [2; 32],
            length: 5,
            whole: true,
        },
        response: StoredResponse {
            status: 201,
            headers: vec![("location".into(), Bytes::from_static(b"/orders/5"))],
            body: Some(body),
        },
    }
}

pub fn complete(token: Token, body: impl ToString) -> Op {
    Op::Complete {
        token,
        completion: completion(body),
        ttl: TTL,
    }
}

/// Claims a key that is free.
pub async fn win(store: &SqliteStore, key: &RecordKey, token: Token) -> u64 {
    match store.step(key, claim(token)).await {
        Ok(Answer::Won { fence }) => fence,
        other => panic!("{key:?}: {other:?}"),
    }
}

/// Does something to a record that is as it should be.
pub async fn accept(store: &SqliteStore, key: &RecordKey, op: Op) {
    let answer = store.step(key, op).await.unwrap();
    assert_eq!(answer, Answer::Accepted);
}

pub fn kind<T>(result: Result<T, StoreError>) -> Option<StoreErrorKind> {
    result.err().map(|error| error.kind())
}

/// A clock that moves when it is told to.
#[derive(Clone, Debug)]
pub struct Time(Arc<AtomicU64>);

impl Time {
    pub fn of(store: SqliteStore) -> (SqliteStore, Self) {
        let time = Self(Arc::new(AtomicU64::new(1 << 50)));
        let source = time.clone();
        let store = store.clock(move || Moment(source.0.load(Ordering::Relaxed)));
        (store, time)
    }

    pub fn pass(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap();
        self.0.fetch_add(micros, Ordering::Relaxed);
    }

    pub fn set_back(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap();
        self.0.fetch_sub(micros, Ordering::Relaxed);
    }
}
