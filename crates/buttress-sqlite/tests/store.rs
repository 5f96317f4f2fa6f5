//! What the store does while all is well, and while it is not.

mod support;

use std::{
    fs,
    future::{Future, poll_fn},
    path::Path,
    pin::pin,
    sync::Barrier,
    task::Poll,
    thread,
    time::Duration,
};

use buttress_core::clock;
use buttress_idempotency::{
    Store, StoreErrorKind,
    record::{Answer, Op, RecordKey, State, Token},
};
use buttress_sqlite::{OpenError, SqliteStore, rusqlite::Connection};
use rand::seq::SliceRandom;
use support::{
    LEASE, MS, TTL, Time, accept, claim, claim_as, complete, completion, key, kind, size, win,
};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn what_was_done_is_there_after_a_restart() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let store = SqliteStore::open(&path).unwrap();
    let token = Token::random();
    win(&store, &key("a"), token).await;
    accept(&store, &key("a"), complete(token, "made")).await;
    win(&store, &key("b"), token).await;
    drop(store);

    let store = SqliteStore::open(&path).unwrap();
    let again = store.step(&key("a"), claim(Token::random())).await.unwrap();
    assert_eq!(again, Answer::Done(completion("made")));
    let again = store.step(&key("b"), claim(Token::random())).await.unwrap();
    assert!(matches!(again, Answer::InFlight { .. }));
    let record = store.get(&key("a")).await.unwrap().unwrap();
    assert!(
        matches!(record.state, State::Done { completion: done, .. } if done == completion("made"))
    );
    assert_eq!(store.get(&key("c")).await.unwrap(), None);
}

#[tokio::test]
async fn an_operator_can_read_the_table() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let store = SqliteStore::open(&path).unwrap();
    let fence = win(&store, &key("a"), Token(1)).await;
    let table = Connection::open(&path).unwrap();
    let read = "SELECT scope, state, fence, lease_until < expires_at, hash FROM buttress_records";
    let row = table.query_row(read, (), |row| {
        Ok((
            row.get(0)?,
            row.get(1)?,
            row.get(2)?,
            row.get(3)?,
            row.get(4)?,
        ))
    });
    let expected = (
        "alice".to_owned(),
        "armed".to_owned(),
        i64::try_from(fence).unwrap(),
        true,
        key("a").hash,
    );
    assert_eq!(row.unwrap(), expected);
}

// promise: ID-19
#[tokio::test]
async fn a_database_that_is_gone_or_empty_is_an_error_until_somebody_decides() {
    type Lose = fn(&Path);
    let ways: [Lose; 4] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, "").unwrap(),
        // A database, but not the store's.
        |path| {
            fs::remove_file(path).unwrap();
            let other = Connection::open(path).unwrap();
            other.execute_batch("CREATE TABLE mine (x)").unwrap();
        },
        |path| {
            let db = Connection::open(path).unwrap();
            db.execute_batch("DROP TABLE buttress_records; DROP TABLE buttress_store")
                .unwrap();
        },
    ];
    for lose in ways {
        let folder = folder();
        let path = folder.path().join("x.db");
        let store = SqliteStore::open(&path).unwrap();
        let before = win(&store, &key("a"), Token::random()).await;
        drop(store);
        lose(&path);

        for _ in 0..2 {
            let refused = SqliteStore::open(&path);
            assert!(matches!(refused, Err(OpenError::Missing)), "{refused:?}");
        }
        let store = SqliteStore::create(&path).unwrap();
        assert!(win(&store, &key("a"), Token::random()).await > before);
        drop(store);
        let store = SqliteStore::open(&path).unwrap();
        assert!(store.get(&key("a")).await.unwrap().is_some());
    }
}

// promise: ID-19
#[tokio::test]
async fn a_log_without_its_database_is_a_store_that_is_gone() {
    let folder = folder();
    let path = folder.path().join("x.db");
    fs::write(folder.path().join("x.db-wal"), [1; 5_000]).unwrap();
    let refused = SqliteStore::open(&path);
    assert!(matches!(refused, Err(OpenError::Missing)), "{refused:?}");
}

// promise: ID-19
#[tokio::test]
async fn a_backup_lacks_what_came_after_it() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let backup = folder.path().join("backup.db");
    let store = SqliteStore::open(&path).unwrap();
    win(&store, &key("before"), Token::random()).await;
    drop(store);
    fs::copy(&path, &backup).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    win(&store, &key("after"), Token::random()).await;
    drop(store);
    fs::copy(&backup, &path).unwrap();

    let refused = SqliteStore::open(&path);
    assert!(matches!(refused, Err(OpenError::Older)), "{refused:?}");
    let store = SqliteStore::create(&path).unwrap();
    assert!(store.get(&key("before")).await.unwrap().is_some());
}

// promise: ID-16
#[tokio::test]
async fn fences_rise_past_a_backup_or_another_store_that_is_taken_for_the_first() {
    let folder = folder();
    let (path, other) = (folder.path().join("x.db"), folder.path().join("y.db"));
    let backup = folder.path().join("backup.db");
    drop(SqliteStore::open(&other).unwrap());
    let (store, _) = Time::of(SqliteStore::open(&path).unwrap());
    let mut last = win(&store, &key("before"), Token(1)).await;
    drop(store);
    fs::copy(&path, &backup).unwrap();
    for taken in [&backup, &other] {
        let (store, time) = Time::of(SqliteStore::open(&path).unwrap());
        time.pass(Duration::from_hours(1));
        last = last.max(win(&store, &key("a"), Token(1)).await);
        // It is written more often than what comes in its place.
        for name in 0..9 {
            let taken = RecordKey::new(taken.to_str().unwrap(), &name.to_string());
            last = last.max(win(&store, &taken, Token(1)).await);
        }
        drop(store);
        let newest = fs::read(&path).unwrap();
        fs::copy(taken, &path).unwrap();
        SqliteStore::open(&path).unwrap_err();
        // Its clock is behind: what is left to go by is what was written down.
        let (store, _) = Time::of(SqliteStore::create(&path).unwrap());
        let fence = win(&store, &key("a"), Token(1)).await;
        assert!(fence > last, "{fence} after {last}");
        last = fence;
        drop(store);
        // And what it has replaced does not come back unnoticed.
        let present = fs::read(&path).unwrap();
        fs::write(&path, newest).unwrap();
        SqliteStore::open(&path).unwrap_err();
        fs::write(&path, present).unwrap();
        let (store, _) = Time::of(SqliteStore::create(&path).unwrap());
        accept(&store, &key("a"), Op::Release { token: Token(1) }).await;
    }
}

// promise: ID-19
#[tokio::test]
async fn another_store_in_the_place_of_the_first_is_an_error() {
    let folder = folder();
    let (path, other) = (folder.path().join("x.db"), folder.path().join("y.db"));
    drop(SqliteStore::open(&path).unwrap());
    drop(SqliteStore::open(&other).unwrap());
    fs::copy(&other, &path).unwrap();
    let refused = SqliteStore::open(&path);
    assert!(matches!(refused, Err(OpenError::Replaced)), "{refused:?}");
}

// promise: ID-19
#[cfg(unix)]
#[tokio::test]
async fn a_process_whose_file_is_gone_or_another_wins_nothing_more() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let old = SqliteStore::open(&path).unwrap();
    win(&old, &key("a"), Token(1)).await;
    for file in ["x.db", "x.db-wal", "x.db-shm"] {
        fs::remove_file(folder.path().join(file)).unwrap();
    }
    let gone = old.step(&key("b"), claim(Token(1))).await;
    assert_eq!(kind(gone), Some(StoreErrorKind::Unavailable));
    let new = SqliteStore::create(&path).unwrap();
    let replaced = old.step(&key("b"), claim(Token(1))).await;
    assert_eq!(kind(replaced), Some(StoreErrorKind::Unavailable));
    win(&new, &key("b"), Token(2)).await;
    drop(old);
    win(&new, &key("c"), Token(2)).await;
    drop(new);
    let new = SqliteStore::open(&path).unwrap();
    assert!(new.get(&key("b")).await.unwrap().is_some());
}

// promise: ID-19
#[tokio::test]
async fn a_process_whose_file_was_restored_from_another_or_a_backup_wins_nothing_more() {
    for backup in [false, true] {
        let folder = folder();
        let (path, other) = (folder.path().join("x.db"), folder.path().join("y.db"));
        let store = SqliteStore::open(&path).unwrap();
        win(&store, &key("a"), Token(1)).await;
        let db = Connection::open(&path).unwrap();
        if backup {
            db.execute("VACUUM INTO ?1", [other.to_str()]).unwrap();
        } else {
            let other = SqliteStore::open(&other).unwrap();
            for name in 0..9 {
                win(&other, &key(name), Token(1)).await;
            }
        }
        win(&store, &key("b"), Token(1)).await;
        // It stays the same file, as it does with the shell's `.restore`.
        db.execute("ATTACH ?1 AS other", [other.to_str()]).unwrap();
        db.execute_batch(
            "BEGIN; \
             DELETE FROM buttress_store; INSERT INTO buttress_store SELECT * FROM other.buttress_store; \
             DELETE FROM buttress_records; INSERT INTO buttress_records SELECT * FROM other.buttress_records; \
             COMMIT",
        )
        .unwrap();
        for _ in 0..2 {
            let again = store.step(&key("b"), claim(Token(2))).await;
            assert_eq!(kind(again), Some(StoreErrorKind::Unavailable));
        }
        drop(store);
        let refused = SqliteStore::open(&path).unwrap_err();
        let expected = if backup { "Older" } else { "Replaced" };
        assert_eq!(format!("{refused:?}"), expected);
    }
}

#[tokio::test]
async fn a_store_that_has_lost_only_its_epoch_file_opens() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let store = SqliteStore::open(&path).unwrap();
    win(&store, &key("a"), Token::random()).await;
    drop(store);
    fs::remove_file(folder.path().join("x.db-epoch")).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    assert!(store.get(&key("a")).await.unwrap().is_some());
    drop(store);
    fs::remove_file(&path).unwrap();
    let refused = SqliteStore::open(&path);
    assert!(matches!(refused, Err(OpenError::Missing)), "{refused:?}");
}

// promise: ID-19
#[tokio::test]
async fn a_version_of_the_tables_or_of_a_record_that_is_not_known_is_an_error() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let store = SqliteStore::open(&path).unwrap();
    win(&store, &key("a"), Token::random()).await;
    win(&store, &key("b"), Token::random()).await;
    let db = Connection::open(&path).unwrap();
    let spoil = "UPDATE buttress_records SET record = x'09' || substr(record, 2) WHERE hash = ?1";
    assert_eq!(db.execute(spoil, [key("a").hash]).unwrap(), 1);
    // While it is open, and when it is opened: the row says of the record what it did.
    for store in [store, SqliteStore::open(&path).unwrap()] {
        let damaged = Some(StoreErrorKind::Damaged);
        assert_eq!(kind(store.get(&key("a")).await), damaged);
        let claimed = store.step(&key("a"), claim(Token::random())).await;
        assert_eq!(kind(claimed), damaged);
        assert_eq!(kind(store.list_open(None, 9).await), damaged);
        // The others are as well as before.
        assert!(store.get(&key("b")).await.unwrap().is_some());
    }
    db.execute("UPDATE buttress_store SET version = 2", ())
        .unwrap();
    let refused = SqliteStore::open(&path);
    assert!(matches!(refused, Err(OpenError::Version(2))), "{refused:?}");
}

// promise: ID-16
#[tokio::test]
async fn a_clock_that_is_set_back_changes_nothing_across_restarts() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let (store, time) = Time::of(SqliteStore::open(&path).unwrap());
    let first = win(&store, &key("a"), Token(1)).await;
    accept(&store, &key("a"), Op::Release { token: Token(1) }).await;
    time.set_back(Duration::from_hours(1));
    let second = win(&store, &key("a"), Token(1)).await;
    assert!(second > first);
    // Its lease is as long as any.
    time.pass(LEASE + MS);
    let late = store.step(&key("a"), claim(Token(2))).await.unwrap();
    assert_eq!(late, Answer::Unknown);
    time.pass(TTL + MS);
    assert_eq!(store.purge_expired(9).await.unwrap(), 1);
    drop(store);

    // The clock of this one is a day behind.
    let (store, time) = Time::of(SqliteStore::open(&path).unwrap());
    let third = win(&store, &key("a"), Token(3)).await;
    assert!(third > second);
    time.pass(LEASE + MS);
    let late = store.step(&key("a"), claim(Token(4))).await.unwrap();
    assert_eq!(late, Answer::Unknown);
}

// promise: ID-16
#[tokio::test]
async fn a_moment_at_which_somebody_only_looked_is_not_forgotten_by_a_restart() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let (store, time) = Time::of(SqliteStore::open(&path).unwrap());
    win(&store, &key("a"), Token(1)).await;
    win(&store, &key("b"), Token(1)).await;
    accept(&store, &key("b"), complete(Token(1), "made")).await;
    time.pass(LEASE + MS);
    let again = store.step(&key("b"), claim(Token(2))).await.unwrap();
    assert_eq!(again, Answer::Done(completion("made")));
    drop(store);
    // The clock of this one is behind that.
    let (store, _) = Time::of(SqliteStore::open(&path).unwrap());
    let late = store.step(&key("a"), claim(Token(2))).await.unwrap();
    assert_eq!(late, Answer::Unknown);
}

#[tokio::test]
async fn a_process_whose_clock_is_ahead_ends_the_leases_of_the_others() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let (store, _) = Time::of(SqliteStore::open(&path).unwrap());
    win(&store, &key("armed"), Token(1)).await;
    let unarmed = store.step(&key("unarmed"), claim_as(Token(1), false)).await;
    assert!(matches!(unarmed, Ok(Answer::Won { .. })), "{unarmed:?}");
    let (ahead, time) = Time::of(SqliteStore::open(&path).unwrap());
    time.pass(Duration::from_hours(1));
    win(&ahead, &key("another"), Token(2)).await;
    // From now on the time of all is that of the one that is ahead.
    for store in [&ahead, &store] {
        let late = store.step(&key("armed"), claim(Token(3))).await.unwrap();
        assert_eq!(late, Answer::Unknown);
    }
    win(&store, &key("unarmed"), Token(3)).await;
    // Who is at it yet completes what was armed, and has lost what was not.
    accept(&store, &key("armed"), complete(Token(1), "made")).await;
    let lost = store
        .step(&key("unarmed"), complete(Token(1), "made"))
        .await;
    assert_eq!(lost.unwrap(), Answer::Refused);
    // What is claimed from now on has its whole lease.
    win(&store, &key("new"), Token(1)).await;
    let again = ahead.step(&key("new"), claim(Token(2))).await.unwrap();
    assert_eq!(again, Answer::InFlight { lease_left: LEASE });
}

// promise: ID-16
#[tokio::test]
async fn fences_rise_where_two_stores_write_one_file_by_different_clocks() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let (one, _) = Time::of(SqliteStore::open(&path).unwrap());
    let (other, time) = Time::of(SqliteStore::open(&path).unwrap());
    time.set_back(Duration::from_hours(1));
    let mut last = 0;
    for round in 0..20 {
        let store = if round % 3 == 0 { &one } else { &other };
        let token = Token::random();
        let fence = win(store, &key("a"), token).await;
        assert!(fence > last, "{fence} after {last}");
        last = fence;
        accept(store, &key("a"), Op::Release { token }).await;
    }
}

#[test]
fn all_who_race_to_make_a_store_have_it() {
    for _ in 0..size(60, 300) {
        let folder = folder();
        let path = folder.path().join("x.db");
        let start = Barrier::new(4);
        let open = || {
            start.wait();
            SqliteStore::open(&path)
        };
        thread::scope(|scope| {
            let opened = [(); 4].map(|()| scope.spawn(open));
            // Each of them goes when it is there, while others still come.
            for opened in opened {
                drop(opened.join().unwrap().unwrap());
            }
        });
    }
}

// promise: ID-18
#[test]
fn a_connection_brings_all_it_commits_to_the_disk() {
    let folder = folder();
    let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
    let connection = store.connect().unwrap();
    for (pragma, expected) in [("synchronous", 2), ("fullfsync", 1), ("cell_size_check", 1)] {
        let set: i64 = connection
            .pragma_query_value(None, pragma, |row| row.get(0))
            .unwrap();
        assert_eq!(set, expected, "{pragma}");
    }
}

// promise: ID-20
#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_times_out_and_recovers() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let store = SqliteStore::open(&path).unwrap();
    let timeout = Duration::from_millis(300);
    let hasty = store.clone().timeout(timeout);
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = clock::now();
    let hung = hasty.step(&key("a"), claim(Token(1))).await;
    assert_eq!(kind(hung), Some(StoreErrorKind::TimedOut));
    let took = clock::now().saturating_duration_since(start);
    assert!(took <= timeout + Duration::from_millis(50), "{took:?}");
    // Its threads are not tokio's: from here on time is real.
    tokio::time::resume();
    other.execute_batch("COMMIT").unwrap();
    win(&store, &key("a"), Token(2)).await;
}

/// Asks, and goes away before there is an answer.
async fn ask_and_go(asked: impl Future) {
    // Otherwise tokio has it wait now and then, to let others have their turn.
    let mut asked = pin!(tokio::task::unconstrained(asked));
    poll_fn(|context| {
        assert!(asked.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
}

// promise: ID-20
#[tokio::test]
async fn a_completion_that_nobody_waits_for_is_done_and_a_claim_is_not() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let store = SqliteStore::open(&path).unwrap();
    win(&store, &key("a"), Token(1)).await;
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    ask_and_go(store.step(&key("a"), complete(Token(1), "made"))).await;
    ask_and_go(store.step(&key("b"), claim(Token(2)))).await;
    other.execute_batch("COMMIT").unwrap();
    let again = store.step(&key("a"), claim(Token(3))).await.unwrap();
    assert_eq!(again, Answer::Done(completion("made")));
    win(&store, &key("b"), Token(3)).await;
}

#[tokio::test]
async fn the_last_clone_waits_until_all_is_done() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let store = SqliteStore::open(&path).unwrap();
    for number in 0..500 {
        win(&store, &key(number), Token(number)).await;
    }
    for number in 0..500 {
        ask_and_go(store.step(&key(number), complete(Token(number), number))).await;
    }
    drop(store.clone());
    drop(store);
    assert!(!folder.path().join("x.db-wal").exists());
    let store = SqliteStore::open(&path).unwrap();
    for number in 0..500 {
        let record = store.get(&key(number)).await.unwrap().unwrap();
        let (token, completion) = (Some(Token(number)), completion(number));
        assert_eq!(record.state, State::Done { token, completion });
    }
}

#[tokio::test]
async fn a_scope_has_its_limit_and_the_others_do_not_feel_it() {
    let folder = folder();
    let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
    let (store, time) = Time::of(store.max_records_per_scope(3));
    let of = |scope: &str, name: u8| RecordKey::new(scope, &name.to_string());
    let full = Some(StoreErrorKind::ScopeFull);
    for name in 0..3 {
        win(&store, &of("mallory", name), Token(1)).await;
    }
    for _ in 0..2 {
        let more = store.step(&of("mallory", 3), claim(Token(1))).await;
        assert_eq!(kind(more), full);
    }
    win(&store, &of("alice", 0), Token(1)).await;
    // What is there goes on: a claim of a known key, a completion.
    let again = store.step(&of("mallory", 0), claim(Token(2))).await;
    assert!(matches!(again, Ok(Answer::InFlight { .. })), "{again:?}");
    accept(&store, &of("mallory", 0), complete(Token(1), "made")).await;
    // One that is released makes room for one.
    accept(&store, &of("mallory", 1), Op::Release { token: Token(1) }).await;
    win(&store, &of("mallory", 4), Token(1)).await;
    assert_eq!(
        kind(store.step(&of("mallory", 5), claim(Token(1))).await),
        full
    );
    // Those that have expired too, whether or not they have been purged.
    time.pass(TTL + MS);
    for name in 10..13 {
        win(&store, &of("mallory", name), Token(1)).await;
    }
    // Nor is there room for one whose row is there yet.
    for name in [13, 0] {
        let more = store.step(&of("mallory", name), claim(Token(1))).await;
        assert_eq!(kind(more), full);
    }
}

#[tokio::test]
async fn a_scope_has_room_when_any_of_its_records_is_gone_and_not_only_the_oldest() {
    type Lose = fn(Token) -> Op;
    let ways: [(Lose, Duration); 6] = [
        // A claim that was not armed is free when its lease is over.
        (
            |token| Op::Heartbeat {
                token,
                lease: LEASE,
            },
            LEASE,
        ),
        (|token| Op::Heartbeat { token, lease: MS }, MS),
        (|token| Op::Release { token }, Duration::ZERO),
        (|token| Op::Abandon { token }, Duration::ZERO),
        (
            |_| Op::Settle {
                completion: None,
                ttl: TTL,
            },
            LEASE,
        ),
        (
            |token| Op::Complete {
                token,
                completion: completion("made"),
                ttl: MS,
            },
            MS,
        ),
    ];
    for (way, (lose, time_to_go)) in ways.into_iter().enumerate() {
        let folder = folder();
        let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
        let (store, time) = Time::of(store.max_records_per_scope(2));
        win(&store, &key("old"), Token(1)).await;
        let unarmed = store.step(&key("new"), claim_as(Token(2), false)).await;
        assert!(matches!(unarmed, Ok(Answer::Won { .. })), "{unarmed:?}");
        for _ in 0..2 {
            let full = store.step(&key("more"), claim(Token(3))).await;
            assert_eq!(kind(full), Some(StoreErrorKind::ScopeFull), "{way}");
        }
        store.step(&key("new"), lose(Token(2))).await.unwrap();
        time.pass(time_to_go);
        win(&store, &key("more"), Token(3)).await;
        let full = store.step(&key("most"), claim(Token(3))).await;
        assert_eq!(kind(full), Some(StoreErrorKind::ScopeFull), "{way}");
    }
}

#[tokio::test]
async fn a_claim_that_lapses_makes_room_though_the_scope_was_counted_before_it() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let (store, time) = Time::of(SqliteStore::open(&path).unwrap());
    win(&store, &key("old"), Token(1)).await;
    let store = store.max_records_per_scope(2);
    let unarmed = store.step(&key("new"), claim_as(Token(2), false)).await;
    assert!(matches!(unarmed, Ok(Answer::Won { .. })), "{unarmed:?}");
    time.pass(LEASE);
    win(&store, &key("more"), Token(3)).await;
}

#[tokio::test]
async fn a_full_store_says_so_and_purges_what_has_expired() {
    let folder = folder();
    let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
    let (store, time) = Time::of(store.max_records(3));
    for name in 0..3 {
        win(&store, &key(name), Token(1)).await;
    }
    let more = store.step(&key(3), claim(Token(1))).await;
    assert_eq!(kind(more), Some(StoreErrorKind::Full));
    time.pass(TTL + MS);
    win(&store, &key(3), Token(1)).await;
    assert_eq!(store.purge_expired(9).await.unwrap(), 0);
}

#[tokio::test]
async fn a_key_that_has_expired_is_claimed_again_in_its_own_room() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let (store, time) = Time::of(SqliteStore::open(&path).unwrap().max_records(1));
    win(&store, &key("a"), Token(1)).await;
    time.pass(TTL + MS);
    win(&store, &key("a"), Token(2)).await;
    let again = store.step(&key("a"), claim(Token(3))).await.unwrap();
    assert_eq!(again, Answer::InFlight { lease_left: LEASE });
    drop(store);
    SqliteStore::open(&path).unwrap();
}

#[tokio::test]
async fn a_purge_takes_as_many_as_it_may_and_none_that_is_open() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let (store, time) = Time::of(SqliteStore::open(&path).unwrap());
    for name in 0..10 {
        win(&store, &key(name), Token(1)).await;
    }
    let unarmed = claim_as(Token(1), false);
    let unarmed = store.step(&key("unarmed"), unarmed).await;
    assert!(matches!(unarmed, Ok(Answer::Won { .. })), "{unarmed:?}");
    time.pass(LEASE + MS);
    assert_eq!(store.purge_expired(99).await.unwrap(), 1);
    time.pass(TTL.abs_diff(LEASE * 2));
    let lease = TTL;
    let token = Token(1);
    accept(&store, &key(0), Op::Heartbeat { token, lease }).await;
    time.pass(LEASE);
    assert_eq!(store.purge_expired(4).await.unwrap(), 4);
    assert_eq!(store.purge_expired(99).await.unwrap(), 5);
    assert!(store.get(&key(0)).await.unwrap().is_some());
    drop(store);
    drop(SqliteStore::open(&path).unwrap());
}

#[tokio::test]
async fn those_that_are_open_are_listed_in_order() {
    let folder = folder();
    let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
    let mut keys: Vec<_> = (0..20).map(key).collect();
    keys.shuffle(&mut rand::rng());
    for key in &keys {
        win(&store, key, Token(1)).await;
    }
    accept(&store, &keys[0], complete(Token(1), "made")).await;
    let mut expected = keys.split_off(1);
    expected.sort();
    let mut listed = Vec::new();
    loop {
        let more = store.list_open(listed.last(), 6).await.unwrap();
        assert!(more.len() <= 6);
        if more.is_empty() {
            break;
        }
        listed.extend(more.into_iter().map(|(key, _)| key));
    }
    assert_eq!(listed, expected);
}

// promise: ID-27
#[tokio::test]
async fn what_has_lapsed_is_listed_as_unknown_if_it_was_armed_and_else_not_at_all() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let (store, time) = Time::of(SqliteStore::open(path).unwrap());
    win(&store, &key("armed"), Token(1)).await;
    let unarmed = store.step(&key("unarmed"), claim_as(Token(1), false)).await;
    assert!(matches!(unarmed, Ok(Answer::Won { .. })), "{unarmed:?}");
    win(&store, &key("given up"), Token(1)).await;
    let token = Token(1);
    accept(&store, &key("given up"), Op::Abandon { token }).await;
    assert_eq!(store.list_open(None, 9).await.unwrap().len(), 3);
    time.pass(LEASE + MS);
    let open = store.list_open(None, 9).await.unwrap();
    let mut expected = [key("armed"), key("given up")];
    expected.sort();
    let unknown = State::Unknown { token };
    let expected = expected.each_ref().map(|key| (key, &unknown));
    let open: Vec<_> = open.iter().map(|(key, it)| (key, &it.state)).collect();
    assert_eq!(open, expected);
}

#[tokio::test]
async fn it_shares_a_database_and_leaves_the_rest_alone() {
    let folder = folder();
    let path = folder.path().join("x.db");
    let mine = Connection::open(&path).unwrap();
    mine.execute_batch("CREATE TABLE mine (x); INSERT INTO mine VALUES (5)")
        .unwrap();
    let store = SqliteStore::open(&path).unwrap();
    win(&store, &key("a"), Token(1)).await;
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    assert!(store.get(&key("a")).await.unwrap().is_some());
    let five: i64 = mine
        .query_row("SELECT x FROM mine", (), |row| row.get(0))
        .unwrap();
    assert_eq!(five, 5);
}
