//! How fast it opens; how fast it writes is a row of `benches/`. To be run by hand:
//! `cargo test --release -p buttress-sqlite --test speed -- --ignored --nocapture --test-threads 1`

mod support;

use std::{fs, time::Duration};

use buttress_core::clock;
use buttress_idempotency::record::Token;
use buttress_sqlite::SqliteStore;
use support::{key, win};
use tokio::task::JoinSet;

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
