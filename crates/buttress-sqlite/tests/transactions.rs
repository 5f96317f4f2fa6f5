//! An effect and its completion in one transaction.

mod support;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Barrier, Mutex},
    thread,
    time::Duration,
};

use buttress_core::BoxError;
use buttress_idempotency::{
    Global, IdempotencyLayer, Lease, RequestBody, Store,
    record::{Answer, Claim, HeadPrint, Moment, Op, RecordKey, State, Token},
};
use buttress_sqlite::{
    CompleteError, OpenError, SqliteStore,
    rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use support::{LEASE, MS, TTL, Time, accept, claim, claim_as, complete, completion, key, win};
use tempfile::TempDir;
use tower::{Layer, ServiceExt, service_fn};

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
    pay_with(store, connection, (key, token), |transaction| {
        effect(transaction);
        Ok(())
    })
}

/// Pays as `complete_with` has it done, without a layer.
fn pay_with(
    store: &SqliteStore,
    connection: &mut Connection,
    (key, token): (&RecordKey, Token),
    effect: impl FnOnce(&Transaction<'_>) -> Result<(), BoxError>,
) -> Result<(), BoxError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    effect(&transaction)?;
    store.complete_in(&transaction, key, token, completion("paid"), TTL)?;
    Ok(transaction.commit()?)
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

// promises: ID-19, ID-21
#[tokio::test]
async fn a_completion_that_is_lost_with_the_end_of_the_file_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut connection) = open(&folder);
    win(&store, &key("a"), Token(1)).await;
    let backup = folder.path().join("backup.db");
    connection
        .execute("VACUUM INTO ?1", [backup.to_str()])
        .unwrap();
    pay(&store, &mut connection, &key("a"), Token(1)).unwrap();
    // As the layer does it before it answers.
    let completed = store.step(&key("a"), complete(Token(1), "paid")).await;
    assert_eq!(completed.unwrap(), Answer::Done(completion("paid")));
    drop((store, connection));
    let path = folder.path().join("x.db");
    fs::copy(&backup, &path).unwrap();
    let refused = SqliteStore::open(&path);
    assert!(matches!(refused, Err(OpenError::Older)), "{refused:?}");
}

// promise: ID-21
#[tokio::test]
async fn a_transaction_that_is_rolled_back_leaves_neither() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut connection) = open(&folder);
    win(&store, &key("a"), Token(1)).await;
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

/// What the handler does, below the layer.
type Handler = fn(&SqliteStore, &mut Connection, &Lease) -> Result<Response<Bytes>, BoxError>;

/// Asks for the same thing twice, and returns the answers, without the marker of a replay, and the effects.
async fn ask_twice(handler: Handler) -> (Vec<(u16, String, bool)>, u32) {
    let folder = tempfile::tempdir().unwrap();
    let (store, connection) = open(&folder);
    let connection = Arc::new(Mutex::new(connection));
    let layer = IdempotencyLayer::new(store.clone(), Global)
        .explicit_arm()
        .max_response(10);
    let books = connection.clone();
    let service = layer.layer(service_fn(
        move |request: Request<RequestBody<Full<Bytes>>>| {
            let (store, books) = (store.clone(), books.clone());
            async move {
                let lease = request.extensions().get::<Lease>().unwrap().clone();
                request.into_body().collect().await?;
                let answer = handler(&store, &mut books.lock().unwrap(), &lease);
                answer.map(|answer| answer.map(Full::new))
            }
        },
    ));
    let mut answers = Vec::new();
    for _ in 0..2 {
        let request = Request::post("/").header("idempotency-key", "k");
        let request = request.body(Full::from("apples")).unwrap();
        let answer = match service.clone().oneshot(request).await {
            Ok(response) => {
                let replayed = response.headers().contains_key("idempotency-replayed");
                let status = response.status().as_u16();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                (status, String::from_utf8(body.into()).unwrap(), replayed)
            }
            Err(error) => (0, error.to_string(), false),
        };
        answers.push(answer);
    }
    let count = effects(&connection.lock().unwrap());
    (answers, count)
}

// promise: ID-21
#[tokio::test]
async fn a_handler_s_effect_and_completion_are_one_and_the_layer_believes_it() {
    let (answers, effects) = ask_twice(|store, connection, lease| {
        store.complete_with(connection, lease, |transaction| {
            effect(transaction);
            Ok::<_, BoxError>(Response::builder().status(201).body("paid".into())?)
        })
    })
    .await;
    let paid = |replayed| (201, "paid".to_owned(), replayed);
    assert_eq!((answers, effects), (vec![paid(false), paid(true)], 1));
}

// promise: ID-21
#[tokio::test]
async fn what_a_handler_has_written_is_replayed_whatever_it_answers_then() {
    let (answers, effects) = ask_twice(|store, connection, lease| {
        store.complete_with(connection, lease, |transaction| {
            effect(transaction);
            Ok::<_, BoxError>(Response::new("longer than ten".into()))
        })?;
        Err("it has lost its way after that".into())
    })
    .await;
    let lost = (0, "it has lost its way after that".to_owned(), false);
    // Too long to be kept; but it is known that it was done.
    let replay = (200, String::new(), true);
    assert_eq!((answers, effects), (vec![lost, replay], 1));
}

// promise: ID-21
#[tokio::test]
async fn the_layer_does_not_overwrite_what_a_handler_has_written() {
    let (answers, effects) = ask_twice(|store, connection, lease| {
        store.complete_with(connection, lease, |transaction| {
            effect(transaction);
            Ok::<_, BoxError>(Response::new("paid".into()))
        })?;
        Ok(Response::new("something else".into()))
    })
    .await;
    let other = (200, "something else".to_owned(), false);
    let replay = (200, "paid".to_owned(), true);
    assert_eq!((answers, effects), (vec![other, replay], 1));
}

// promise: ID-21
#[tokio::test]
async fn an_effect_that_fails_is_rolled_back_and_may_be_tried_again() {
    let (answers, effects) = ask_twice(|store, connection, lease| {
        store.complete_with(connection, lease, |transaction| {
            effect(transaction);
            Err::<_, BoxError>("no money".into())
        })
    })
    .await;
    let failed = (0, "no money".to_owned(), false);
    assert_eq!((answers, effects), (vec![failed.clone(), failed], 0));
}

// promise: ID-21
#[tokio::test]
async fn an_effect_of_who_holds_nothing_any_more_is_not_even_tried() {
    let (answers, effects) = ask_twice(|store, connection, lease| {
        let mut tried = 0;
        let twice = [(); 2].map(|()| {
            store.complete_with(connection, lease, |transaction| {
                tried += 1;
                effect(transaction);
                Ok::<_, BoxError>(Response::new("paid".into()))
            })
        });
        assert_eq!(tried, 1);
        let [first, second] = twice;
        let error = second.unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(CompleteError::NotHeld)));
        first
    })
    .await;
    let paid = |replayed| (200, "paid".to_owned(), replayed);
    assert_eq!((answers, effects), (vec![paid(false), paid(true)], 1));
}

// promise: ID-16
#[tokio::test]
async fn a_completion_by_a_clock_that_is_behind_does_not_set_the_time_back() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut connection) = open(&folder);
    let (store, time) = Time::of(store);
    win(&store, &key("a"), Token(1)).await;
    win(&store, &key("b"), Token(1)).await;
    time.pass(LEASE + MS);
    win(&store, &key("c"), Token(1)).await;
    drop(store);
    let behind = || Time::of(open(&folder).0).0;
    pay(&behind(), &mut connection, &key("a"), Token(1)).unwrap();
    let late = behind().step(&key("b"), claim(Token(2))).await;
    assert_eq!(late.unwrap(), Answer::Unknown);
}

// promise: ID-21
#[tokio::test]
async fn nobody_else_writes_while_an_effect_is_at_work() {
    let (answers, effects) = ask_twice(|store, connection, lease| {
        let other = store.connect()?;
        other.busy_timeout(Duration::ZERO)?;
        store.complete_with(connection, lease, |transaction| {
            // Though it has not written itself so far.
            let busy = other.execute_batch("BEGIN IMMEDIATE").unwrap_err();
            let busy = busy.sqlite_error_code();
            assert_eq!(busy, Some(ErrorCode::DatabaseBusy));
            effect(transaction);
            Ok::<_, BoxError>(Response::new("paid".into()))
        })
    })
    .await;
    let paid = |replayed| (200, "paid".to_owned(), replayed);
    assert_eq!((answers, effects), (vec![paid(false), paid(true)], 1));
}

// promise: ID-21
#[tokio::test]
async fn an_effect_whose_lease_is_over_is_not_even_tried() {
    let (answers, effects) = ask_twice(|store, connection, lease| {
        // Time stands still after this, and the second lease is good.
        let store = store.clone().clock(|| Moment(1 << 60));
        let mut tried = false;
        let paid = store.complete_with(connection, lease, |transaction| {
            tried = true;
            effect(transaction);
            Ok::<_, BoxError>(Response::new("paid".into()))
        });
        assert_eq!(tried, paid.is_ok());
        paid
    })
    .await;
    let late = (0, CompleteError::NotHeld.to_string(), false);
    let paid = (200, "paid".to_owned(), false);
    assert_eq!((answers, effects), (vec![late, paid], 1));
}

// promise: ID-21
#[tokio::test]
async fn an_effect_whose_request_another_has_claimed_is_not_even_tried() {
    let (answers, effects) = ask_twice(|store, connection, lease| {
        let store = store.clone().clock(|| Moment(1 << 60));
        let other = || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().build().unwrap();
            runtime.block_on(win(&store, lease.key(), Token(9)))
        };
        thread::scope(|scope| scope.spawn(other).join().unwrap());
        store.complete_with(connection, lease, |_| panic!("it is tried"))
    })
    .await;
    let late = (0, CompleteError::NotHeld.to_string(), false);
    assert_eq!((&answers[0], effects), (&late, 0));
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
async fn a_transaction_that_its_effect_has_ended_completes_nothing() {
    for end in ["COMMIT", "ROLLBACK"] {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut connection) = open(&folder);
        win(&store, &key("a"), Token(1)).await;
        let held = (&key("a"), Token(1));
        let ended = pay_with(&store, &mut connection, held, |transaction| {
            Ok(transaction.execute_batch(end)?)
        });
        let error = ended.unwrap_err();
        assert!(
            matches!(error.downcast_ref(), Some(CompleteError::Ended)),
            "{error:?}"
        );
        let state = store.get(&key("a")).await.unwrap().unwrap().state;
        assert!(matches!(state, State::Running { .. }), "{state:?}");
        // The connection is as good as before.
        pay(&store, &mut connection, &key("a"), Token(1)).unwrap();
    }
}

// promise: ID-21
#[tokio::test]
async fn an_effect_that_panics_or_drops_the_tables_leaves_all_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut connection) = open(&folder);
    win(&store, &key("a"), Token(1)).await;
    let held = (&key("a"), Token(1));
    for table in ["buttress_records", "buttress_store"] {
        let dropped = pay_with(&store, &mut connection, held, |transaction| {
            effect(transaction);
            Ok(transaction.execute_batch(&format!("DROP TABLE {table}"))?)
        });
        dropped.unwrap_err();
    }
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        pay_with(&store, &mut connection, held, |transaction| {
            effect(transaction);
            assert_eq!(effects(transaction), 0, "on purpose");
            Ok(())
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(effects(&connection), 0);
    pay(&store, &mut connection, &key("a"), Token(1)).unwrap();
    assert_eq!(effects(&connection), 1);
    drop(store);
    open(&folder);
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
