//! What the memory store takes of the memory.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use buttress_idempotency::{
    MemoryStore, Store, StoreErrorKind,
    record::{
        Answer, BodyPrint, Claim, Completion, HeadPrint, Op, RecordKey, StoredResponse, Token,
    },
};
use bytes::Bytes;

const TTL: Duration = Duration::from_hours(24);

/// The memory store never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ready) => ready,
        Poll::Pending => panic!("it waits"),
    }
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

fn complete(headers: usize, body: Bytes) -> Op {
    let header = |number| (format!("x-{number}"), Bytes::from(vec![b'x'; 10]));
    let response = StoredResponse {
        status: 200,
        headers: (0..headers).map(header).collect(),
        body: Some(body),
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

/// Claims keys of scopes as named, and completes them, until there is no room: how many there were.
fn fill(
    store: &MemoryStore,
    scope: impl Fn(usize) -> String,
    answer: Option<(usize, usize)>,
) -> usize {
    for number in 0.. {
        let key = RecordKey::new(scope(number), &number.to_string());
        match now(store.step(&key, claim())) {
            Ok(Answer::Won { .. }) => {}
            Err(error) if error.kind() == StoreErrorKind::Full => return number,
            other => panic!("{other:?}"),
        }
        if let Some((headers, body)) = answer
            && let Err(error) = now(store.step(&key, complete(headers, Bytes::from(vec![7; body]))))
        {
            assert_eq!(error.kind(), StoreErrorKind::Full);
        }
    }
    unreachable!("the memory is bounded");
}

// promise: ID-23
#[test]
fn records_of_any_kind_take_no_more_memory_than_they_may() {
    for (case, scopes, answer) in [
        ("running, all in one scope", 1, None),
        ("running, each in its own scope", usize::MAX, None),
        ("small answers", 100, Some((3, 50))),
        ("many headers", 100, Some((100, 0))),
        ("large answers", 100, Some((3, 100_000))),
    ] {
        // The second is where the maps have just grown.
        for max in [8_000_000, 9_400_000] {
            let store = MemoryStore::new()
                .max_bytes(max)
                .max_bytes_per_scope(usize::MAX);
            let mut records = 0;
            let scope = |number| format!("{}", number % scopes);
            let taken = measure(|| records = fill(&store, scope, answer));
            println!("{case}: {records} records of {max} bytes take {taken:?}");
            let max = i64::try_from(max).unwrap();
            assert!(taken.bytes_current <= max, "{case}: {taken:?}");
            // What has no room is in memory too when it comes, and its copy.
            let comes = answer.map_or(0, |(_, body)| 2 * body as u64 + 10_000);
            assert!(
                taken.bytes_max <= max.unsigned_abs() + comes,
                "{case}: {taken:?}"
            );
            assert!(records > 50, "{case}: {records}");
        }
    }
}

#[test]
fn what_is_kept_does_not_keep_the_buffer_that_it_came_in() {
    let store = MemoryStore::new();
    let taken = measure(|| {
        for number in 0..100 {
            let key = RecordKey::new("", &number.to_string());
            now(store.step(&key, claim())).unwrap();
            let buffer = Bytes::from(vec![7; 100_000]);
            let done = complete(0, buffer.slice(50..60));
            assert_eq!(now(store.step(&key, done)).unwrap(), Answer::Accepted);
        }
    });
    assert!(taken.bytes_current < 200_000, "{taken:?}");
}
