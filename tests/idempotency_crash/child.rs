//! The server that is killed.

use std::{
    collections::HashMap,
    env,
    fs::{File, OpenOptions},
    future::pending,
    io::{Read, Write},
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use buttress::{
    BoxError,
    idempotency::{
        Global, IdempotencyLayer, Lapse, Lease, Store, StoreError,
        record::{Answer, Op, Record, RecordKey},
    },
    sqlite::{SqliteStore, rusqlite::TransactionBehavior},
};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{HeaderMap, Request, StatusCode};
use tokio::{net::TcpListener, task::spawn_blocking};
use tower::ServiceBuilder;

use crate::{LEASE, Mode, Point, Result, STOP};

/// Where a child finds its files, and how its layer is set.
const FOLDER: &str = "BUTTRESS_CRASH_FOLDER";
const MODE: &str = "BUTTRESS_CRASH_MODE";

/// Longer than any child lives. Nothing is given up because it stands at a point.
const LONG: Duration = Duration::from_hours(1);
/// What is kept of a response: less than a large one has.
const KEPT: usize = 1 << 14;

/// What a process needs to be a child, and not a test that has nothing to do.
pub(crate) fn variables(folder: &Path, mode: Mode) -> [(&'static str, PathBuf); 2] {
    [(FOLDER, folder.into()), (MODE, format!("{mode:?}").into())]
}

/// What all parts of the child know of each other.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) folder: PathBuf,
    mode: Mode,
    /// The points at which requests stop.
    stops: Arc<Mutex<HashMap<RecordKey, String>>>,
    ledger: Arc<File>,
    notes: Arc<File>,
}

impl Desk {
    /// The desk of a child; nothing in a process that is none.
    pub(crate) fn of_child() -> Option<Self> {
        let folder = PathBuf::from(env::var_os(FOLDER)?);
        let mode = env::var(MODE).unwrap();
        let is_it = |known: &Mode| format!("{known:?}") == mode;
        let open = |name| {
            let mut options = OpenOptions::new();
            options.create(true).append(true);
            Arc::new(options.open(folder.join(name)).unwrap())
        };
        Some(Self {
            mode: Mode::ALL.into_iter().find(is_it).unwrap(),
            stops: Arc::default(),
            ledger: open("ledger"),
            notes: open("notes"),
            folder,
        })
    }

    /// Hears at which point a request is to stop, before anybody else sees it.
    fn hear<B>(&self, request: Request<B>) -> Request<B> {
        if let Some(point) = request.headers().get(STOP) {
            let point = point.to_str().unwrap().into();
            lock(&self.stops).insert(key(&name(request.headers())), point);
        }
        request
    }

    fn stops_at(&self, key: &RecordKey, point: Point) -> bool {
        lock(&self.stops).get(key).map(String::as_str) == Some(&format!("{point:?}"))
    }

    /// Goes no further if this is the point.
    async fn pass(&self, key: &RecordKey, point: Point) {
        if self.stops_at(key, point) {
            say(&format!("stands {key:?}"));
            pending::<()>().await;
        }
    }

    /// Goes no further either, and leaves it to the store to say so.
    async fn wait(&self, key: &RecordKey, point: Point) {
        if self.stops_at(key, point) {
            pending::<()>().await;
        }
    }

    /// Goes no further if this is the point, on a thread that may block.
    fn pass_blocking(&self, key: &RecordKey, point: Point) {
        if self.stops_at(key, point) {
            say(&format!("stands {key:?}"));
            loop {
                thread::park();
            }
        }
    }

    /// Writes down what has become of a key. A kill takes nothing away that was written, whether it is on the disk or not.
    fn notes(&self, what: &str, key: &RecordKey) {
        write(&*self.notes, &format!("{what}: {key:?}"));
    }

    /// What cannot be undone.
    fn has_effect(&self, name: &str) {
        write(&*self.ledger, name);
        self.ledger.sync_all().unwrap();
    }
}

/// One write, so that no line is torn unless the process is.
fn write(mut to: impl Write, line: &str) {
    to.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Tells the parent something, on a line of its own: the harness has begun one.
fn say(line: &str) {
    write(std::io::stdout().lock(), &format!("\n{line}"));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(headers: &HeaderMap) -> String {
    let name = headers.get("idempotency-key").unwrap();
    name.to_str().unwrap().into()
}

pub(crate) fn key(name: &str) -> RecordKey {
    RecordKey::new("", name)
}

/// A store that stops before or after it does something.
#[derive(Clone)]
struct Stopping<T> {
    store: T,
    desk: Desk,
}

impl<T: Store> Store for Stopping<T> {
    async fn step(&self, key: &RecordKey, op: Op) -> Result<Answer, StoreError> {
        let desk = &self.desk;
        let (before, after) = match &op {
            Op::Claim(_) => (Point::BeforeClaim, Point::AfterClaim),
            Op::Arm { .. } => (Point::BeforeArm, Point::Armed),
            Op::Complete { .. } => (Point::BeforeComplete, Point::AfterComplete),
            Op::Heartbeat { .. } => {
                let answer = self.store.step(key, op).await?;
                let waits = |point| desk.stops_at(key, point);
                if waits(Point::HeardOfUnarmed) || waits(Point::HeardOf) {
                    say(&format!("stands {key:?}"));
                }
                return Ok(answer);
            }
            _ => return self.store.step(key, op).await,
        };
        desk.pass(key, before).await;
        let arms = match &op {
            Op::Claim(claim) => claim.armed,
            _ => after == Point::Armed,
        };
        if arms {
            desk.notes("may be armed", key);
        }
        let answer = self.store.step(key, op).await?;
        if arms && matches!(answer, Answer::Won { .. } | Answer::Accepted) {
            desk.notes("is armed", key);
        }
        desk.pass(key, after).await;
        if after == Point::AfterComplete && desk.stops_at(key, Point::MidLargeResponse) {
            // It is the body that goes no further.
            say(&format!("stands {key:?}"));
        }
        Ok(answer)
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.store.get(key).await
    }

    async fn list_open(
        &self,
        after: Option<&RecordKey>,
        limit: usize,
    ) -> Result<Vec<(RecordKey, Record)>, StoreError> {
        self.store.list_open(after, limit).await
    }

    async fn purge_expired(&self, limit: usize) -> Result<usize, StoreError> {
        self.store.purge_expired(limit).await
    }
}

/// Serves until it is killed.
pub(crate) async fn serve(desk: Desk, store: impl Store + Clone, pay: MethodRouter<Desk>) {
    thread::spawn(|| {
        // A parent that is gone has closed it.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        process::exit(0);
    });
    let store = Stopping {
        store,
        desk: desk.clone(),
    };
    let layer = IdempotencyLayer::new(store, Global)
        .lease(LEASE)
        .store_timeout(LONG)
        .max_response(KEPT);
    let layer = match desk.mode {
        Mode::ArmedAtOnce => layer,
        Mode::ArmedByHandler | Mode::NeverArmed => layer.explicit_arm(),
        Mode::Rerun => layer.on_lapse(Lapse::Rerun),
    };
    let app = Router::new().route("/", pay).with_state(desk.clone());
    let app = app.layer(
        ServiceBuilder::new()
            .map_request(move |request| desk.hear(request))
            .layer(layer),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    say(&format!("serves {}", listener.local_addr().unwrap()));
    axum::serve(listener, app).await.unwrap();
}

/// A handler whose effect is a line in the ledger.
pub(crate) async fn pay(
    State(desk): State<Desk>,
    Extension(lease): Extension<Lease>,
    headers: HeaderMap,
    _order: Bytes,
) -> Response {
    let name = name(&headers);
    let key = key(&name);
    desk.wait(&key, Point::HeardOfUnarmed).await;
    if desk.mode == Mode::ArmedByHandler {
        lease.arm().await.unwrap();
    }
    desk.pass(&key, Point::Armed).await;
    desk.has_effect(&name);
    desk.pass(&key, Point::AfterEffect).await;
    desk.wait(&key, Point::HeardOf).await;
    let paid = Bytes::from(format!("paid {name}"));
    let body = if desk.stops_at(&key, Point::MidResponse) {
        let begun = stream::iter([Ok::<_, BoxError>(paid)]);
        let rest = stream::once(async move {
            desk.pass(&key, Point::MidResponse).await;
            Ok(Bytes::new())
        });
        Body::from_stream(begun.chain(rest))
    } else if desk.stops_at(&key, Point::MidLargeResponse) {
        let begun = stream::iter([Ok::<_, BoxError>(Bytes::from(vec![b'.'; KEPT + 1]))]);
        Body::from_stream(begun.chain(stream::pending()))
    } else {
        Body::from(paid)
    };
    (StatusCode::CREATED, body).into_response()
}

/// A handler whose effect is a row of the store's own database, written together with the completion.
pub(crate) async fn pay_in_a_transaction(
    State(desk): State<Desk>,
    Extension(store): Extension<SqliteStore>,
    Extension(lease): Extension<Lease>,
    headers: HeaderMap,
    _order: Bytes,
) -> Response {
    let name = name(&headers);
    let (at, key) = (desk.clone(), key(&name));
    let done = spawn_blocking(move || {
        let paid = http::Response::builder().status(201);
        let paid = paid.body(Bytes::from(format!("paid {name}")))?;
        let mut connection = store.connect()?;
        let book = "INSERT INTO effects VALUES (?1)";
        if at.stops_at(lease.key(), Point::BeforeCommit) {
            let immediate = TransactionBehavior::Immediate;
            let transaction = connection.transaction_with_behavior(immediate)?;
            transaction.execute(book, [name])?;
            let (completion, ttl) = (lease.completion(&paid), lease.ttl());
            store.complete_in(&transaction, lease.key(), lease.token(), completion, ttl)?;
            at.pass_blocking(lease.key(), Point::BeforeCommit);
            transaction.commit()?;
            return Ok(paid);
        }
        store.complete_with(&mut connection, &lease, |transaction| {
            transaction.execute(book, [name])?;
            at.pass_blocking(lease.key(), Point::InTransaction);
            Ok::<_, BoxError>(paid)
        })
    });
    let paid = done.await.unwrap().unwrap();
    desk.pass(&key, Point::AfterCommit).await;
    paid.map(Body::from)
}
