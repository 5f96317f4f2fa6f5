//! An effect and its completion in one transaction.

mod support;

use std::{sync::Barrier, thread, time::Duration};

use buttress_core::BoxError;
use buttress_idempotency::{
    Store,
    record::{Answer, Claim, HeadPrint, Op, RecordKey, State, Token},
};
use buttress_sqlite::{
    CompleteError, SqliteStore,
    rusqlite::{Connection, Transaction, TransactionBehavior},
};
use support::{LEASE, MS, TTL, Time, accept, claim, claim_as, complete, completion, key, win};
use tempfile::TempDir;

fn open(folder: &TempDir) -> (SqliteStore, Connection) {
    let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
    let connection = store.connect().unwrap();
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS effects (x)")
        .unwrap();
    (store, connection)
}

fn effect(transaction: &Transaction<'_>) {
    transaction
        .execute("INSERT INTO effects VALUES (1)", ())
        .unwrap();
}

fn effects(connection: &Connection) -> u32 {
    let count = "SELECT count(*) FROM effects";
    connection.query_row(count, (), |row| row.get(0)).unwrap()
}

fn pay(
    store: &SqliteStore,
    connection: &mut Connection,
    key: &RecordKey,
    token: Token,
) -> Result<(), BoxError> {
    store.complete_with(connection, key, token, TTL, |transaction| {
        effect(transaction);
        Ok((completion("paid"), ()))
    })
}

fn is_not_held(result: &Result<(), BoxError>) -> bool {
    let error = result.as_ref().err().and_then(|error| error.downcast_ref());
    matches!(error, Some(CompleteError::NotHeld))
}

// promise: ID-21
#[tokio::test]
async fn an_effect_and_its_completion_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut connection) = open(&folder);
    win(&store, &key("a"), Token(1)).await;
    pay(&store, &mut connection, &key("a"), Token(1)).unwrap();
    assert_eq!(effects(&connection), 1);
    let again = store.step(&key("a"), claim(Token(2))).await.unwrap();
    assert_eq!(again, Answer::Done(completion("paid")));
    // The store writes on, and what all that comes to is right.
    win(&store, &key("b"), Token(1)).await;
    drop(store);
    open(&folder);
}

// promise: ID-21
#[tokio::test]
async fn a_transaction_that_is_rolled_back_leaves_neither() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut connection) = open(&folder);
    win(&store, &key("a"), Token(1)).await;
    let failed = store.complete_with(&mut connection, &key("a"), Token(1), TTL, |transaction| {
        effect(transaction);
        Err::<(_, ()), BoxError>("no money".into())
    });
    assert_eq!(failed.unwrap_err().to_string(), "no money");
    let transaction = connection.transaction().unwrap();
    effect(&transaction);
    let done = completion("paid");
    store
        .complete_in(&transaction, &key("a"), Token(1), done, TTL)
        .unwrap();
    drop(transaction);
    assert_eq!(effects(&connection), 0);
    let state = store.get(&key("a")).await.unwrap().unwrap().state;
    assert!(matches!(state, State::Running { .. }), "{state:?}");
    pay(&store, &mut connection, &key("a"), Token(1)).unwrap();
    assert_eq!(effects(&connection), 1);
}

// promise: ID-21
#[tokio::test]
async fn who_does_not_hold_the_request_has_no_effect() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut connection) = open(&folder);
    let (store, time) = Time::of(store);
    assert!(is_not_held(&pay(
        &store,
        &mut connection,
        &key("a"),
        Token(1)
    )));
    win(&store, &key("a"), Token(1)).await;
    assert!(is_not_held(&pay(
        &store,
        &mut connection,
        &key("a"),
        Token(2)
    )));
    accept(&store, &key("a"), complete(Token(1), "made")).await;
    assert!(is_not_held(&pay(
        &store,
        &mut connection,
        &key("a"),
        Token(1)
    )));
    // A claim that was not armed, and has lapsed: another may have run by now.
    let unarmed = store.step(&key("b"), claim_as(Token(1), false)).await;
    assert!(matches!(unarmed, Ok(Answer::Won { .. })), "{unarmed:?}");
    time.pass(LEASE + MS);
    assert!(is_not_held(&pay(
        &store,
        &mut connection,
        &key("b"),
        Token(1)
    )));
    assert_eq!(effects(&connection), 0);
    // It is not even tried.
    let tried = store.complete_with(&mut connection, &key("b"), Token(1), TTL, |_| {
        panic!("an effect of somebody who does not hold the request")
    });
    assert!(is_not_held(&tried));
    let transaction = connection.transaction().unwrap();
    for (name, token) in [("a", 1), ("b", 1), ("b", 2), ("c", 1)] {
        let done = completion("paid");
        let refused = store.complete_in(&transaction, &key(name), Token(token), done, TTL);
        assert!(
            matches!(refused, Err(CompleteError::NotHeld)),
            "{refused:?}"
        );
    }
}

// promise: ID-21
#[tokio::test]
async fn a_transaction_of_another_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _connection) = open(&folder);
    win(&store, &key("a"), Token(1)).await;
    let mut none = Connection::open_in_memory().unwrap();
    let other = tempfile::tempdir().unwrap();
    let (_other_store, mut other) = open(&other);
    // One that is beside it is not in one transaction with it, as far as a power failure goes.
    let mut beside = Connection::open_in_memory().unwrap();
    let path = folder.path().join("x.db");
    beside
        .execute("ATTACH ?1 AS beside", [path.to_str()])
        .unwrap();
    for connection in [&mut none, &mut other, &mut beside] {
        let transaction = connection.transaction().unwrap();
        let done = completion("paid");
        let refused = store.complete_in(&transaction, &key("a"), Token(1), done, TTL);
        assert!(
            matches!(refused, Err(CompleteError::OtherDatabase)),
            "{refused:?}"
        );
    }
}

// promise: ID-21
#[tokio::test]
async fn a_transaction_that_has_seen_an_older_state_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut connection) = open(&folder);
    win(&store, &key("a"), Token(1)).await;
    let deferred = TransactionBehavior::Deferred;
    let transaction = connection.transaction_with_behavior(deferred).unwrap();
    assert_eq!(effects(&transaction), 0);
    accept(&store, &key("a"), Op::Release { token: Token(1) }).await;
    let done = completion("paid");
    let refused = store.complete_in(&transaction, &key("a"), Token(1), done, TTL);
    assert!(
        matches!(refused, Err(CompleteError::Sqlite(_))),
        "{refused:?}"
    );
}

// promise: ID-21
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_20_racing_transactions_one_has_an_effect() {
    for rerun in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (store, connection) = open(&folder);
        let store = store.timeout(TTL);
        let start = Barrier::new(20);
        let runtime = tokio::runtime::Handle::current();
        let race = |racer: u128| {
            let mut connection = store.connect().unwrap();
            connection.busy_timeout(TTL).unwrap();
            start.wait();
            let op = Op::Claim(Claim {
                head: HeadPrint([1; 32]),
                token: Token(racer),
                // Over as soon as it has begun: each of them takes it from the one before.
                lease: if rerun { Duration::ZERO } else { LEASE },
                ttl: TTL,
                armed: true,
                rerun,
            });
            let claimed = runtime.block_on(store.step(&key("a"), op)).unwrap();
            let won = matches!(claimed, Answer::Won { .. });
            // Whether or not it has won.
            let paid = pay(&store, &mut connection, &key("a"), Token(racer)).is_ok();
            assert!(won || !paid);
            (u32::from(won), u32::from(paid))
        };
        let race = &race;
        let (won, paid) = thread::scope(|scope| {
            let racers: Vec<_> = (0..20)
                .map(|racer| scope.spawn(move || race(racer)))
                .collect();
            let ends = racers.into_iter().map(|racer| racer.join().unwrap());
            ends.fold((0, 0), |(won, paid), end| (won + end.0, paid + end.1))
        });
        assert_eq!(
            (paid, effects(&connection)),
            (1, 1),
            "{won} have claimed it"
        );
        assert!(won == 1 || rerun);
    }
}
