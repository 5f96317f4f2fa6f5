//! How fast it is, beside what it cannot be faster than. To be run by hand:
//! `cargo test --release -p buttress-sqlite --test speed -- --ignored --nocapture --test-threads 1`

mod support;

use std::{fs, path::Path, thread, time::Duration};

use buttress_core::clock;
use buttress_idempotency::record::{RecordKey, Token};
use buttress_sqlite::{
    SqliteStore,
    rusqlite::{Connection, TransactionBehavior},
};
use support::{key, win};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

const SUBMITTERS: u64 = 64;
const EACH: u64 = 200;
/// The bytes of a record that is running.
const RECORD: usize = 102;

/// Claims per second, of so many submitters who wait for each of theirs.
async fn per_second<F: Future<Output = ()> + Send>(
    round: u64,
    claim: impl Fn(u64) -> F + Clone + Send + 'static,
) -> f64 {
    let start = clock::now();
    let mut all = JoinSet::new();
    for submitter in 0..SUBMITTERS {
        let claim = claim.clone();
        all.spawn(async move {
            for number in 0..EACH {
                claim((round << 32) + (submitter << 16) + number).await;
            }
        });
    }
    all.join_all().await;
    let took = clock::now().saturating_duration_since(start);
    let claims = u32::try_from(SUBMITTERS * EACH).unwrap();
    f64::from(claims) / took.as_secs_f64()
}

type Job = (RecordKey, oneshot::Sender<()>);

/// The least that a durable writer of batches does: it looks whether a key is there, and writes a row like ours.
fn bare(path: &Path) -> mpsc::Sender<Job> {
    let mut db = Connection::open(path).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = wal; PRAGMA synchronous = full; \
         CREATE TABLE records (scope TEXT, hash BLOB, state TEXT, lease_until INTEGER, expires_at INTEGER, \
         fence INTEGER, checksum BLOB, record BLOB, PRIMARY KEY (scope, hash)) WITHOUT ROWID; CREATE INDEX by_expiry ON records (expires_at)",
    )
    .unwrap();
    let (jobs, mut waiting) = mpsc::channel::<Job>(4_096);
    thread::spawn(move || {
        let mut batch = Vec::new();
        let mut now = 1_i64 << 50;
        while waiting.blocking_recv_many(&mut batch, 1_024) > 0 {
            let immediate = TransactionBehavior::Immediate;
            let transaction = db.transaction_with_behavior(immediate).unwrap();
            for (key, _) in &batch {
                let find = "SELECT record FROM records WHERE scope = ?1 AND hash = ?2";
                let mut find = transaction.prepare_cached(find).unwrap();
                assert!(!find.exists((&key.scope, key.hash)).unwrap());
                let write =
                    "INSERT INTO records VALUES (?1, ?2, 'armed', ?3, ?3, ?3, zeroblob(16), ?4)";
                let mut write = transaction.prepare_cached(write).unwrap();
                now += 1;
                let record = [0_u8; RECORD];
                write.execute((&key.scope, key.hash, now, record)).unwrap();
            }
            transaction.commit().unwrap();
            for (_, reply) in batch.drain(..) {
                reply.send(()).unwrap();
            }
        }
    });
    jobs
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, and says nothing of right or wrong"]
async fn claims_per_second_beside_a_bare_writer() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
    let store = store.timeout(Duration::from_mins(1));
    let bare = bare(&folder.path().join("bare.db"));
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..11 {
        let jobs = bare.clone();
        let floor = per_second(round, move |name| {
            let jobs = jobs.clone();
            async move {
                let (reply, answer) = oneshot::channel();
                jobs.send((key(name), reply)).await.unwrap();
                answer.await.unwrap();
            }
        })
        .await;
        let store = store.clone();
        let own = per_second(round, move |name| {
            let store = store.clone();
            async move {
                // As long as a random one.
                win(&store, &key(name), Token(u128::MAX - u128::from(name))).await;
            }
        })
        .await;
        ours.push(own);
        theirs.push(floor);
        ratios.push(own / floor);
    }
    println!(
        "claims per second: {:.0}, a bare writer {:.0}; {:.2} of it in the median round",
        median(ours),
        median(theirs),
        median(ratios)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, and says nothing of right or wrong"]
async fn the_time_to_open_100_000_records() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    let store = SqliteStore::open(&path).unwrap();
    let store = store.timeout(Duration::from_mins(1));
    let mut all = JoinSet::new();
    for submitter in 0..1_000_u32 {
        let store = store.clone();
        all.spawn(async move {
            for number in 0..100_u32 {
                let name = submitter * 100 + number;
                win(&store, &key(name), Token(name.into())).await;
                let op = support::complete(Token(name.into()), "made ".repeat(20));
                support::accept(&store, &key(name), op).await;
            }
        });
    }
    all.join_all().await;
    // As a process leaves it that is killed: with its log.
    let killed = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), killed.path().join(entry.file_name())).unwrap();
    }
    drop(store);
    for (folder, what) in [(&killed, "killed"), (&folder, "closed"), (&killed, "again")] {
        let start = clock::now();
        let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
        let took = clock::now().saturating_duration_since(start);
        println!("100,000 records, {what}: open in {took:?}");
        drop(store);
    }
}
