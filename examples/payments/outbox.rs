//! The outbox: the payments that nobody has acknowledged yet.
//!
//! Retries are for the seconds in which a call runs. What is left when they give up waits here, and
//! is sent again later under the same key, as a job queue or an outbox table would do it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
    vec,
};

use buttress::{BoxError, Rejected};
use http::{Request, header::CONTENT_TYPE};
use http_body_util::Full;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;
use tower::ServiceExt;
use uuid::{Builder, Uuid};

use crate::{client::Payer, progress::Progress, server::Payment};

/// The header that names a payment: two requests with one key are the same payment.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Calls at a time.
const CONCURRENCY: usize = 96;

/// How often the outbox is worked through. Three faults in ten need about ten rounds, nine some 200.
const MAX_ROUNDS: u32 = 1_000;

/// The wait between two rounds.
const PAUSE: Duration = Duration::from_millis(200);

/// A payment and its key. The key is made once, with the payment, and never again.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    key: Uuid,
    payment: Payment,
}

/// How the sending ended.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) rounds: u32,
    /// Payments that nobody acknowledged.
    pub(crate) left: usize,
    /// Why the last call failed, if one did.
    pub(crate) last_error: Option<BoxError>,
}

/// Makes payments with the ids `0..payments`.
pub(crate) fn fill(payments: u64, seed: u64) -> Vec<Order> {
    let mut rng = StdRng::seed_from_u64(seed);
    let order = |id| Order {
        key: Builder::from_random_bytes(rng.random()).into_uuid(),
        payment: Payment {
            id,
            amount: rng.random_range(1..=100_000),
        },
    };
    (0..payments).map(order).collect()
}

/// Sends the payments, round after round, until all are acknowledged.
pub(crate) async fn deliver(
    mut orders: Vec<Order>,
    client: Payer,
    progress: &Progress,
) -> Delivery {
    let mut rounds = 0;
    let mut last_error = None;
    while !orders.is_empty() && rounds < MAX_ROUNDS {
        if rounds > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        rounds += 1;
        progress.round(rounds, orders.len());
        let queue = Arc::new(Mutex::new(orders.into_iter()));
        let workers: JoinSet<_> = (0..CONCURRENCY)
            .map(|_| work(client.clone(), queue.clone(), progress.clone()))
            .collect();
        orders = Vec::new();
        for (order, error) in workers.join_all().await.into_iter().flatten() {
            orders.push(order);
            last_error = Some(error);
        }
    }
    let left = orders.len();
    Delivery {
        rounds,
        left,
        last_error,
    }
}

/// Sends one payment after the other; returns those that were not acknowledged.
async fn work(
    client: Payer,
    queue: Arc<Mutex<vec::IntoIter<Order>>>,
    progress: Progress,
) -> Vec<(Order, BoxError)> {
    // The lock is held while the next payment is taken, not while it is sent.
    let next = || queue.lock().unwrap().next();
    let mut failed = Vec::new();
    while let Some(order) = next() {
        match pay(client.clone(), &order).await {
            Ok(()) => progress.acknowledged(),
            Err(error) => {
                let refused = Rejected::find(&*error);
                let pause = refused.map(|refused| refused.retry_after().unwrap_or(PAUSE));
                failed.push((order, error));
                // No call came of it: all others would be refused just as fast.
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
    failed
}

/// Sends one payment; returns when the server has acknowledged it.
async fn pay(client: Payer, order: &Order) -> Result<(), BoxError> {
    let request = Request::post("http://payments.internal/payments")
        .header(CONTENT_TYPE, "application/json")
        .header(IDEMPOTENCY_KEY, order.key.to_string())
        .body(Full::from(serde_json::to_vec(&order.payment)?))?;
    let answer = client.oneshot(request).await?;
    if !answer.status().is_success() {
        return Err(format!("the server answered {}", answer.status()).into());
    }
    let paid: Payment = serde_json::from_slice(answer.body())?;
    if paid != order.payment {
        return Err("the server acknowledged another payment".into());
    }
    Ok(())
}
