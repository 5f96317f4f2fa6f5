//! The payments server: one handler, and a ledger in memory.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, extract::State, routing::post};
use buttress::{
    answer::AnswerLayer,
    rate_limit::{Event, Quota, RateLimitLayer},
};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower::ServiceBuilder;

/// The header that names a payment: two requests with one key are the same payment.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// How many requests the server takes. A fifth of a second's may come at once: as many as were held up
/// together on their way, though they were sent one after the other.
const LIMIT: Quota =
    Quota::per_second(NonZeroU32::new(1_500).unwrap()).burst(NonZeroU32::new(300).unwrap());

/// How long a payment takes before it is written to the ledger.
const WORK: Duration = Duration::from_millis(5);

/// What a client asks for, and the answer when it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Payment {
    pub(crate) id: u64,
    pub(crate) amount: u64,
}

/// One line per payment that ran, and the answer to each key.
#[derive(Debug)]
pub(crate) struct Ledger {
    honours_keys: bool,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    lines: Vec<Payment>,
    answers: HashMap<String, Payment>,
    replays: u64,
    refused: u64,
}

/// What the ledger says at the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Audit {
    pub(crate) lines: usize,
    pub(crate) duplicates: usize,
    /// Payments that are in no line.
    pub(crate) lost: u64,
    /// Requests that were answered from memory.
    pub(crate) replays: u64,
    /// Requests that came too fast, and were answered with 429.
    pub(crate) refused: u64,
}

/// Starts the server on a free port of the loopback interface.
pub(crate) async fn start(ledger: Arc<Ledger>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let book = ledger.clone();
    let limit = RateLimitLayer::http(LIMIT).refuse().on_event(move |event| {
        if let Event::Refused { .. } = event {
            book.refuse();
        }
    });
    let app = Router::new()
        .route("/payments", post(pay))
        // What the limit refuses, the layer above makes an answer of.
        .layer(
            ServiceBuilder::new()
                .layer(AnswerLayer::http())
                .layer(limit),
        )
        .with_state(ledger);
    tokio::spawn(async { axum::serve(listener, app).await });
    Ok(address)
}

async fn pay(
    State(ledger): State<Arc<Ledger>>,
    headers: HeaderMap,
    Json(payment): Json<Payment>,
) -> Result<Json<Payment>, (StatusCode, &'static str)> {
    let key = headers
        .get(IDEMPOTENCY_KEY)
        .and_then(|key| key.to_str().ok())
        .ok_or((StatusCode::BAD_REQUEST, "an Idempotency-Key is needed\n"))?;
    tokio::time::sleep(WORK).await;
    Ok(Json(ledger.enter(key, payment)))
}

impl Ledger {
    pub(crate) fn new(honours_keys: bool) -> Self {
        Self {
            honours_keys,
            books: Mutex::default(),
        }
    }

    /// Counts a request that came too fast.
    fn refuse(&self) {
        self.books.lock().unwrap().refused += 1;
    }

    /// Runs a payment, or repeats the answer that its key already has.
    fn enter(&self, key: &str, payment: Payment) -> Payment {
        // One lock around the look-up and the effect: of two sends with one key, however close, one
        // runs. Only this makes it safe to send a payment again.
        let mut books = self.books.lock().unwrap();
        if let Some(answer) = books.answers.get(key).cloned()
            && self.honours_keys
        {
            books.replays += 1;
            return answer;
        }
        books.lines.push(payment.clone());
        books.answers.insert(key.into(), payment.clone());
        payment
    }

    /// Looks for each of the payments `0..payments` in the lines.
    pub(crate) fn audit(&self, payments: u64) -> Audit {
        let books = self.books.lock().unwrap();
        let mut seen = HashSet::new();
        let again = books.lines.iter().filter(|line| !seen.insert(line.id));
        Audit {
            lines: books.lines.len(),
            duplicates: again.count(),
            lost: (0..payments).filter(|id| !seen.contains(id)).count() as u64,
            replays: books.replays,
            refused: books.refused,
        }
    }
}
