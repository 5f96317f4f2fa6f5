//! Files that are not what they were: each key answers right or with an error, and none is free.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use buttress_idempotency::{
    Store, StoreErrorKind,
    record::{Answer, Token},
};
use buttress_sqlite::{OpenError, SqliteStore, rusqlite::Connection};
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use support::{TTL, Time, claim, complete, completion, key, size, win};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// Half of them are done, one of them with an answer of several pages.
const KEYS: usize = 150;

/// A store as a process leaves it that is killed, or, if it is closed, that has ended well: its files, by name.
async fn files(folder: &TempDir, closed: bool) -> Vec<(PathBuf, Vec<u8>)> {
    let path = folder.path().join("x.db");
    let store = SqliteStore::open(&path).unwrap();
    // Some in a transaction of their own, most of them with others.
    let mut all = JoinSet::new();
    for number in 0..KEYS {
        let store = store.clone();
        all.spawn(async move {
            win(&store, &key(number), token(number)).await;
            if number % 2 == 0 {
                let op = complete(token(number), answer(number));
                support::accept(&store, &key(number), op).await;
            }
        });
        if number < 5 {
            all.join_next().await.unwrap().unwrap();
        }
    }
    all.join_all().await;
    let mut left = Some(store);
    if closed {
        left = None;
    }
    let names = fs::read_dir(folder.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name());
    let files = names.map(|name| {
        let bytes = fs::read(folder.path().join(&name)).unwrap();
        (name.into(), bytes)
    });
    let files = files.collect();
    drop(left);
    files
}

fn token(number: usize) -> Token {
    Token(number as u128)
}

fn answer(number: usize) -> String {
    "made ".repeat(if number == 100 { 5_000 } else { 10 })
}

/// Lays the files, and opens the store among them. Returns whether it opened; each of its keys has answered right then, or
/// said that it is damaged.
async fn is_never_free(files: &[(PathBuf, Vec<u8>)], what: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let Ok(store) = SqliteStore::open(folder.path().join("x.db")) else {
        return false;
    };
    for number in 0..KEYS {
        let got = store.get(&key(number)).await;
        assert!(!matches!(got, Ok(None)), "{what}: {number} is not there");
        match store.step(&key(number), claim(Token::random())).await {
            Ok(Answer::Done(done)) if number % 2 == 0 => {
                assert_eq!(done, completion(answer(number)), "{what}: {number}");
            }
            // Unknown, when the test has taken longer than a lease.
            Ok(Answer::InFlight { .. } | Answer::Unknown) if number % 2 == 1 => {}
            Err(error) => assert_ne!(error.kind(), StoreErrorKind::TimedOut, "{what}: {number}"),
            other => panic!("{what}: {number} is {other:?}"),
        }
    }
    true
}

fn file<'a>(files: &'a mut [(PathBuf, Vec<u8>)], name: &str) -> &'a mut Vec<u8> {
    let mut files = files.iter_mut();
    let (_, bytes) = files.find(|(other, _)| other == Path::new(name)).unwrap();
    bytes
}

/// Flips bits in one file: in the head of every page, or frame, and at random.
async fn flip(closed: bool, name: &str, page: usize, offset: usize) {
    let folder = tempfile::tempdir().unwrap();
    let files = files(&folder, closed).await;
    assert!(is_never_free(&files, "nothing").await);
    let mut random = SmallRng::seed_from_u64(7);
    let length = file(&mut files.clone(), name).len();
    let mut places: Vec<_> = (0..size(40, 1_000))
        .map(|_| random.random_range(0..length))
        .collect();
    for start in (offset..length).step_by(page) {
        let heads = start..length.min(start + size(2, 24));
        places.extend(heads);
    }
    places.extend(0..size(20, 100).min(length));
    let mut opened = 0;
    for place in &places {
        let mut files = files.clone();
        let bit = 1_u8 << (random.next_u32() % 8);
        file(&mut files, name)[*place] ^= bit;
        let what = format!("{name} at {place} by {bit:#x}");
        opened += usize::from(is_never_free(&files, &what).await);
    }
    println!(
        "{name}: of {} flips {opened} left a store that opens",
        places.len()
    );
}

// promise: ID-19
#[tokio::test]
async fn a_flipped_bit_of_the_database_frees_no_key() {
    flip(true, "x.db", 4_096, 0).await;
}

// promise: ID-19
#[tokio::test]
async fn a_flipped_bit_of_a_log_that_was_left_behind_frees_no_key() {
    flip(false, "x.db-wal", 4_096 + 24, 32).await;
}

// promise: ID-19
#[tokio::test]
async fn a_flipped_bit_of_the_epoch_file_frees_no_key() {
    flip(true, "x.db-epoch", 1, 0).await;
}

/// Cuts one file at many lengths, or takes it away.
async fn cut(closed: bool, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let files = files(&folder, closed).await;
    let length = file(&mut files.clone(), name).len();
    let mut random = SmallRng::seed_from_u64(7);
    let mut lengths = vec![
        0,
        1,
        15,
        16,
        99,
        100,
        512,
        4_095,
        4_096,
        4_097,
        length - 1,
        length - 4_096,
    ];
    lengths.extend((0..size(30, 500)).map(|_| random.random_range(0..length)));
    for cut in lengths {
        let mut files = files.clone();
        file(&mut files, name).truncate(cut);
        let opens = is_never_free(&files, &format!("{cut} bytes of {name}")).await;
        // The end of the last page may be nothing that counts.
        assert!(!opens || cut > length - 4_096, "{cut} of {length} bytes");
    }
    let mut files = files.clone();
    files.retain(|(other, _)| other != Path::new(name));
    assert!(!is_never_free(&files, &format!("no {name}")).await);
}

// promise: ID-19
#[tokio::test]
async fn a_database_that_was_cut_frees_no_key() {
    cut(true, "x.db").await;
}

// promise: ID-19
#[tokio::test]
async fn a_log_that_was_cut_frees_no_key() {
    cut(false, "x.db-wal").await;
}

// promise: ID-19
#[tokio::test]
async fn pages_that_were_overwritten_or_have_changed_places_free_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(&folder, true).await;
    let pages = file(&mut files.clone(), "x.db").len() / 4_096;
    let mut random = SmallRng::seed_from_u64(7);
    for round in 0..size(40, 1_000) {
        let mut files = files.clone();
        let (one, other) = (random.random_range(0..pages), random.random_range(0..pages));
        let bytes = file(&mut files, "x.db");
        match round % 3 {
            0 => bytes[one * 4_096..][..4_096].fill(0),
            1 => bytes.copy_within(one * 4_096..(one + 1) * 4_096, other * 4_096),
            _ => {
                let page = bytes[one * 4_096..][..4_096].to_vec();
                bytes.copy_within(other * 4_096..(other + 1) * 4_096, one * 4_096);
                bytes[other * 4_096..][..4_096].copy_from_slice(&page);
            }
        }
        let what = format!("page {one} for {other}, {}", round % 3);
        is_never_free(&files, &what).await;
    }
}

// promise: ID-19
#[tokio::test]
async fn a_row_that_is_gone_or_another_is_noticed_though_sqlite_finds_nothing_wrong() {
    let spoil = [
        "DELETE FROM buttress_records WHERE fence = (SELECT max(fence) FROM buttress_records)",
        "INSERT INTO buttress_records SELECT 'bob', hash, state, lease_until, expires_at, fence, checksum, record \
         FROM buttress_records LIMIT 1",
        "UPDATE buttress_records SET state = 'done' WHERE state = 'armed'",
        "UPDATE buttress_records SET expires_at = 1",
        "UPDATE buttress_records SET fence = fence + 1",
        "UPDATE buttress_records SET scope = 'bob'",
        "UPDATE buttress_records SET hash = randomblob(32)",
        "UPDATE buttress_records SET lease_until = lease_until + 1 WHERE state = 'armed'",
        "UPDATE buttress_records SET checksum = zeroblob(16)",
        "UPDATE buttress_store SET writes = writes + 1",
        "UPDATE buttress_store SET moment = moment - 1",
        "UPDATE buttress_store SET fence = fence - 1",
        "UPDATE buttress_store SET records = records - 1",
        "UPDATE buttress_store SET epoch = zeroblob(16)",
        "UPDATE buttress_store SET sum = zeroblob(16)",
        "DELETE FROM buttress_store",
        "DROP INDEX buttress_records_by_expiry",
    ];
    let folder = tempfile::tempdir().unwrap();
    let files = files(&folder, true).await;
    for spoil in spoil {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in &files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        let path = folder.path().join("x.db");
        let changed = Connection::open(&path).unwrap().execute(spoil, ());
        assert!(changed.unwrap() > 0 || spoil.starts_with("DROP"), "{spoil}");
        for open in [SqliteStore::open, SqliteStore::create] {
            let refused = open(&path);
            assert!(
                matches!(refused, Err(OpenError::Damaged(_))),
                "{spoil}: {refused:?}"
            );
        }
    }
}

// promise: ID-19
#[tokio::test]
async fn a_row_that_does_not_say_what_its_record_says_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    let store = SqliteStore::open(&path).unwrap();
    win(&store, &key("a"), token(1)).await;
    // As if it had expired: it must not be purged. And in a state that there is not.
    for spoil in ["expires_at = 1", "state = 'gone'"] {
        let spoil = format!("UPDATE buttress_records SET {spoil}");
        let db = Connection::open(&path).unwrap();
        db.execute(&spoil, ()).unwrap();
        let damaged = Some(StoreErrorKind::Damaged);
        assert_eq!(support::kind(store.get(&key("a")).await), damaged);
        assert_eq!(support::kind(store.purge_expired(9).await), damaged);
        let claimed = store.step(&key("a"), claim(token(2))).await;
        assert_eq!(support::kind(claimed), damaged);
    }
}

// promise: ID-19
#[tokio::test]
async fn a_damaged_record_does_not_keep_others_that_have_expired() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    let (store, time) = Time::of(SqliteStore::open(&path).unwrap().max_records(20));
    for name in 0..20 {
        win(&store, &key(name), token(1)).await;
    }
    let spoil = "UPDATE buttress_records SET expires_at = 1 WHERE hash = ?1";
    let db = Connection::open(&path).unwrap();
    assert_eq!(db.execute(spoil, [key(0).hash]).unwrap(), 1);
    time.pass(TTL);
    // There is room for another, and the rest goes too.
    win(&store, &key("another"), token(1)).await;
    time.pass(TTL);
    assert_eq!(store.purge_expired(9).await.unwrap(), 1);
    let damaged = Some(StoreErrorKind::Damaged);
    assert_eq!(support::kind(store.purge_expired(9).await), damaged);
    assert_eq!(support::kind(store.get(&key(0)).await), damaged);
}

// promise: ID-19
#[tokio::test]
async fn an_index_that_lacks_records_or_is_of_something_else_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(&folder, true).await;
    let index = "buttress_records_by_expiry";
    for shared in [false, true] {
        let lay = |file: &[u8]| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.db");
            fs::write(&path, file).unwrap();
            if shared {
                let db = Connection::open(&path).unwrap();
                db.execute_batch("CREATE TABLE mine (x)").unwrap();
            }
            folder
        };
        let refused = |folder: &TempDir| {
            let refused = SqliteStore::open(folder.path().join("x.db"));
            matches!(refused, Err(OpenError::Damaged(_)))
        };
        let mut bytes = file(&mut files.clone(), "x.db").clone();
        let whole = lay(&bytes);
        let db = Connection::open(whole.path().join("x.db")).unwrap();
        let root = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        let root: u32 = db.query_row(root, [index], |row| row.get(0)).unwrap();
        // An index of the same name, as good as any, but not this one.
        db.execute_batch(&format!(
            "DROP INDEX {index}; CREATE INDEX {index} ON buttress_records (fence)"
        ))
        .unwrap();
        drop(db);
        assert!(refused(&whole), "it is another");

        // A page that is as it should be, but has none of the records.
        let page = &mut bytes[(root as usize - 1) * 4_096..][..4_096];
        page.fill(0);
        page[0] = 10;
        page[5..7].copy_from_slice(&4_096_u16.to_be_bytes());
        assert!(refused(&lay(&bytes)), "it is empty");
    }
}

// promise: ID-19
#[tokio::test]
async fn a_damaged_epoch_file_is_an_error_until_somebody_decides() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    drop(SqliteStore::open(&path).unwrap());
    let epoch = folder.path().join("x.db-epoch");
    let whole = fs::read(&epoch).unwrap();
    let flipped = [&whole[..24], &[whole[24] ^ 1], &whole[25..]].concat();
    for bytes in [
        &[][..],
        &whole[..55],
        &[&whole[..], &[0]].concat(),
        &flipped,
    ] {
        fs::write(&epoch, bytes).unwrap();
        let refused = SqliteStore::open(&path);
        assert!(
            matches!(refused, Err(OpenError::DamagedEpoch)),
            "{refused:?}"
        );
        drop(SqliteStore::create(&path).unwrap());
        drop(SqliteStore::open(&path).unwrap());
    }
}
