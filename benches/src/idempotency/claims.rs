//! How many claims a file takes, beside the least that a durable writer of batches does.

use std::path::Path;
use std::thread;
use std::time::Duration;

use buttress::BoxError;
use buttress::idempotency::Store;
use buttress::idempotency::record::{
    Answer, BodyPrint, Claim, Completion, HeadPrint, Op, RecordKey, StoredResponse, Token,
};
use buttress::sqlite::SqliteStore;
use buttress::sqlite::rusqlite::{Connection, TransactionBehavior};
use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::handler::ANSWER;
use crate::figures::{Figure, Limit, Measure};
use crate::harness::{Kind, Spread, now};

const SUBMITTERS: u32 = 64;
/// Claims of each submitter in a round.
const EACH: u32 = 200;
/// The two take turns, so that a busy moment of the disk hits both.
const ROUNDS: u32 = 11;
/// The bytes of a record that is running.
const RECORD: usize = 102;

const LEASE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_hours(24);

/// Both writers are in one measure: its figure is the ratio in the median round.
pub(crate) fn measures() -> Vec<Measure> {
    let measure = |group, take: fn() -> Result<Vec<Figure>, BoxError>| Measure {
        group,
        row: "buttress",
        kind: Kind::Ours,
        only_if_asked: false,
        take: Box::new(move || take().map_err(|error| error.to_string())),
    };
    vec![
        measure("idempotency, SQLite, claims", fresh),
        measure("idempotency, SQLite, replays", replays),
    ]
}

fn figure(name: &'static str, values: Vec<f64>, goal: Option<Limit>) -> Figure {
    Figure {
        name,
        value: Spread::of(values).median,
        goal,
    }
}

fn runtime() -> Result<Runtime, BoxError> {
    let mut threads = Builder::new_multi_thread();
    Ok(threads.worker_threads(2).enable_time().build()?)
}

fn fresh() -> Result<Vec<Figure>, BoxError> {
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::open(folder.path().join("ours.db"))?;
    let store = store.timeout(Duration::from_mins(1));
    let bare = bare(&folder.path().join("bare.db"))?;
    let runtime = runtime()?;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let bare = bare.clone();
        let theirs_now = runtime.block_on(per_second(round, move |name| {
            let bare = bare.clone();
            async move {
                let (reply, answer) = oneshot::channel();
                bare.send((key(name), reply)).await.is_ok() && answer.await.is_ok()
            }
        }))?;
        let store = store.clone();
        let ours_now = runtime.block_on(per_second(round, move |name| {
            let store = store.clone();
            async move {
                // As long as a random one.
                let token = Token(u128::MAX - u128::from(name));
                let answer = store.step(&key(name), claim(token)).await;
                matches!(answer, Ok(Answer::Won { .. }))
            }
        }))?;
        ours.push(ours_now);
        theirs.push(theirs_now);
        ratios.push(ours_now / theirs_now);
    }
    Ok(vec![
        figure("claims a second", ours, None),
        figure("those of a bare writer", theirs, None),
        figure("of a bare writer's", ratios, Some(Limit::AtLeast(0.9))),
    ])
}

/// Requests that were done, and are asked for again and again.
fn replays() -> Result<Vec<Figure>, BoxError> {
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::open(folder.path().join("ours.db"))?;
    let store = store.timeout(Duration::from_mins(1));
    let runtime = runtime()?;
    runtime.block_on(async {
        for name in 0..u64::from(SUBMITTERS) {
            let token = Token(name.into());
            store.step(&key(name), claim(token)).await?;
            store.step(&key(name), complete(token)).await?;
        }
        Ok::<_, BoxError>(())
    })?;
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let store = store.clone();
        all.push(runtime.block_on(per_second(round, move |name| {
            let store = store.clone();
            async move {
                let claim = claim(Token(u128::MAX));
                let answer = store.step(&key(name % u64::from(SUBMITTERS)), claim).await;
                matches!(answer, Ok(Answer::Done(_)))
            }
        }))?);
    }
    Ok(vec![figure("replays a second", all, None)])
}

/// Operations per second, of so many submitters who wait for each of theirs.
async fn per_second<F>(
    round: u32,
    claim: impl Fn(u64) -> F + Clone + Send + 'static,
) -> Result<f64, BoxError>
where
    F: Future<Output = bool> + Send,
{
    let start = now();
    let mut all = JoinSet::new();
    for submitter in 0..SUBMITTERS {
        let claim = claim.clone();
        all.spawn(async move {
            let mut failed = 0;
            for number in 0..EACH {
                let name =
                    (u64::from(round) << 32) + (u64::from(number) << 16) + u64::from(submitter);
                failed += u32::from(!claim(name).await);
            }
            failed
        });
    }
    let failed: u32 = all.join_all().await.into_iter().sum();
    let took = start.elapsed();
    if failed > 0 {
        return Err(format!("{failed} of {} operations", SUBMITTERS * EACH).into());
    }
    Ok(f64::from(SUBMITTERS * EACH) / took.as_secs_f64())
}

type Job = (RecordKey, oneshot::Sender<()>);

/// The least that a durable writer of batches does: it looks whether a key is there, and writes a row like ours.
fn bare(path: &Path) -> Result<mpsc::Sender<Job>, BoxError> {
    let mut db = Connection::open(path)?;
    db.execute_batch(
        "PRAGMA journal_mode = wal; PRAGMA synchronous = full; \
         CREATE TABLE records (scope TEXT, hash BLOB, state TEXT, lease_until INTEGER, expires_at INTEGER, \
         fence INTEGER, checksum BLOB, record BLOB, PRIMARY KEY (scope, hash)) WITHOUT ROWID; \
         CREATE INDEX by_expiry ON records (expires_at)",
    )?;
    let (jobs, mut waiting) = mpsc::channel(4_096);
    thread::spawn(move || {
        let mut batch = Vec::new();
        let mut now = 1 << 50;
        while waiting.blocking_recv_many(&mut batch, 1_024) > 0 {
            // Whoever waits for what is not written hears that nobody answers.
            let is_written = write(&mut db, &mut now, &batch).is_ok();
            for (_, reply) in batch.drain(..).filter(|_| is_written) {
                let _ = reply.send(());
            }
        }
    });
    Ok(jobs)
}

fn write(db: &mut Connection, now: &mut i64, batch: &[Job]) -> Result<(), BoxError> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (key, _) in batch {
        let find = "SELECT record FROM records WHERE scope = ?1 AND hash = ?2";
        let mut find = transaction.prepare_cached(find)?;
        if find.exists((&key.scope, key.hash))? {
            return Err("it was there".into());
        }
        let write = "INSERT INTO records VALUES (?1, ?2, 'armed', ?3, ?3, ?3, zeroblob(16), ?4)";
        let mut write = transaction.prepare_cached(write)?;
        *now += 1;
        write.execute((&key.scope, key.hash, *now, [0_u8; RECORD]))?;
    }
    transaction.commit()?;
    Ok(())
}

fn key(name: u64) -> RecordKey {
    RecordKey::new("alice", &name.to_string())
}

fn claim(token: Token) -> Op {
    Op::Claim(Claim {
        head: HeadPrint([1; 32]),
        token,
        lease: LEASE,
        ttl: DAY,
        armed: true,
        rerun: false,
    })
}

fn complete(token: Token) -> Op {
    let body = BodyPrint {
        hash: [2; 32],
        length: 1024,
        whole: true,
    };
    let response = StoredResponse {
        status: 201,
        headers: vec![("location".into(), Bytes::from_static(b"/v1/payments/5"))],
        body: Some(Bytes::from_static(ANSWER)),
    };
    Op::Complete {
        token,
        completion: Completion { body, response },
        ttl: DAY,
    }
}
