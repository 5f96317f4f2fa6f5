//! Servers that are killed with SIGKILL, over TCP: each is this program itself, run once more, and stands still at the point
//! where it is killed. What it has done is counted from outside.
//!
//! Another durable store needs a child of its own, as `child_over_sqlite` is one, and a test that names it.

mod support;

#[path = "idempotency_crash/child.rs"]
mod child;
#[path = "idempotency_crash/parent.rs"]
mod parent;

use std::{fs, path::Path, time::Duration};

use axum::{Extension, routing::post};
use buttress::{
    BoxError,
    sqlite::{
        SqliteStore,
        rusqlite::{Connection, OpenFlags},
    },
};
use child::Desk;
use futures_util::future::join_all;
use parent::{Effects, Rig, Told};

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

/// Long enough for a slow disk to be heard of in time, and short enough for many rounds.
const LEASE: Duration = Duration::from_secs(2);
/// Says in a request at which point it is to stop.
const STOP: &str = "x-stop";

/// From when on a key counts as armed, and what becomes of one whose run was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The default.
    ArmedAtOnce,
    /// With `explicit_arm`.
    ArmedByHandler,
    /// With `explicit_arm` too, and a handler whose effect is in the transaction of its completion.
    NeverArmed,
    /// Such a handler again, with `Lapse::Rerun`.
    Rerun,
}

impl Mode {
    const ALL: [Self; 4] = [
        Self::ArmedAtOnce,
        Self::ArmedByHandler,
        Self::NeverArmed,
        Self::Rerun,
    ];

    /// Is there the effect with the completion, or neither?
    fn is_all_or_nothing(self) -> bool {
        matches!(self, Self::NeverArmed | Self::Rerun)
    }
}

/// Where a request stops for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    BeforeClaim,
    AfterClaim,
    /// Not armed yet, after a heartbeat.
    HeardOfUnarmed,
    BeforeArm,
    Armed,
    AfterEffect,
    /// After the effect and a heartbeat.
    HeardOf,
    BeforeComplete,
    AfterComplete,
    MidResponse,
    /// In one that is too large to be kept, when that is written down.
    MidLargeResponse,
    /// The effect is written, and not yet the completion.
    InTransaction,
    /// Both are written.
    BeforeCommit,
    AfterCommit,
}

impl Point {
    fn is_amid_the_response(self) -> bool {
        matches!(self, Self::MidResponse | Self::MidLargeResponse)
    }

    /// Does nobody else get anything written meanwhile?
    fn holds_the_store(self) -> bool {
        matches!(self, Self::InTransaction | Self::BeforeCommit)
    }

    /// What those who ask are told in the end of a request that stood here, and how often it had run.
    fn comes_to(self, mode: Mode) -> (Told, u32) {
        match self {
            Self::AfterClaim if mode == Mode::ArmedAtOnce => (Told::Unknown, 0),
            Self::BeforeClaim
            | Self::AfterClaim
            | Self::HeardOfUnarmed
            | Self::BeforeArm
            | Self::InTransaction
            | Self::BeforeCommit => (Told::Fresh, 0),
            Self::Armed => (Told::Unknown, 0),
            Self::AfterEffect | Self::HeardOf | Self::BeforeComplete | Self::MidResponse => {
                (Told::Unknown, 1)
            }
            Self::AfterComplete | Self::MidLargeResponse | Self::AfterCommit => (Told::Replayed, 1),
        }
    }
}

/// How many there are, if all is tested and usually.
fn size(full: usize, usual: usize) -> usize {
    std::env::var_os("BUTTRESS_FULL").map_or(usual, |_| full)
}

/// Kills such a server at each of these points, at all of them at the same time.
async fn kill(rig: Rig, points: &[Point], rounds: usize) {
    join_all(points.iter().map(|point| rig.kill(*point, rounds))).await;
}

fn open(desk: &Desk) -> SqliteStore {
    let store = SqliteStore::open(desk.folder.join("x.db")).unwrap();
    store.timeout(Duration::from_secs(30))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_over_sqlite() {
    if let Some(desk) = Desk::of_child() {
        let store = open(&desk);
        child::serve(desk, store, post(child::pay)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_pays_in_a_transaction() {
    if let Some(desk) = Desk::of_child() {
        let store = open(&desk);
        let table = "CREATE TABLE IF NOT EXISTS effects (name TEXT)";
        store.connect().unwrap().execute_batch(table).unwrap();
        let pay = post(child::pay_in_a_transaction).layer(Extension(store.clone()));
        child::serve(desk, store, pay).await;
    }
}

/// Counts the lines of the ledger.
fn in_ledger(folder: &Path) -> Effects {
    let mut effects = Effects::new();
    for name in fs::read_to_string(folder.join("ledger")).unwrap().lines() {
        *effects.entry(name.into()).or_default() += 1;
    }
    effects
}

/// Counts the rows of the handler's table, past the store.
fn in_table(folder: &Path) -> Effects {
    let read_only = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = Connection::open_with_flags(folder.join("x.db"), read_only).unwrap();
    let count = "SELECT name, count(*) FROM effects GROUP BY name";
    let mut rows = connection.prepare(count).unwrap();
    let row = rows.query_map((), |row| Ok((row.get(0)?, row.get(1)?)));
    row.unwrap().map(std::result::Result::unwrap).collect()
}

// promise: ID-12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_has_no_effect_a_second_time() {
    let rig = Rig {
        child: "child_over_sqlite",
        mode: Mode::ArmedAtOnce,
        effects: in_ledger,
    };
    let points = [
        Point::BeforeClaim,
        Point::AfterClaim,
        Point::Armed,
        Point::AfterEffect,
        Point::HeardOf,
        Point::BeforeComplete,
        Point::AfterComplete,
        Point::MidResponse,
        Point::MidLargeResponse,
    ];
    kill(rig, &points, size(20, 1)).await;
}

// promises: ID-12, ID-13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_before_it_arms_a_key_leaves_it_free() {
    let rig = Rig {
        child: "child_over_sqlite",
        mode: Mode::ArmedByHandler,
        effects: in_ledger,
    };
    let points = [
        Point::BeforeClaim,
        Point::AfterClaim,
        Point::HeardOfUnarmed,
        Point::BeforeArm,
        Point::Armed,
        Point::AfterEffect,
        Point::HeardOf,
        Point::BeforeComplete,
        Point::AfterComplete,
        Point::MidResponse,
        Point::MidLargeResponse,
    ];
    kill(rig, &points, size(20, 1)).await;
}

// promises: ID-12, ID-21
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_in_a_transaction_has_done_and_completed_it_or_neither() {
    for mode in [Mode::NeverArmed, Mode::Rerun] {
        let rig = Rig {
            child: "child_that_pays_in_a_transaction",
            mode,
            effects: in_table,
        };
        let points = [
            Point::BeforeClaim,
            Point::AfterClaim,
            Point::InTransaction,
            Point::BeforeCommit,
            Point::AfterCommit,
        ];
        kill(rig, &points, size(20, 1)).await;
    }
}
