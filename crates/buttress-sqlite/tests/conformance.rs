//! The suite that every store has to pass.

mod support;

use std::time::Duration;

use buttress_idempotency::testing::{self, Subject};
use buttress_sqlite::SqliteStore;
use support::{MS, Time};

struct Sqlite(SqliteStore, Time);

impl Subject for Sqlite {
    type Store = SqliteStore;

    fn store(&self) -> &SqliteStore {
        &self.0
    }

    async fn pass(&self, time: Duration) {
        self.1.pass(time);
    }

    fn tick(&self) -> Duration {
        MS
    }
}

// promises: ID-6, ID-10, ID-11, ID-13, ID-16, ID-17
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_passes_the_suite_and_is_whole_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    let (store, time) = Time::of(SqliteStore::open(&path).unwrap());
    testing::conformance(Sqlite(store, time)).await;
    SqliteStore::open(&path).unwrap();
}
