//! The outbox: the payments that nobody has acknowledged yet.
//!
//! Retries are for the seconds in which a call runs. What is left when they give up waits here, and
//! is sent again later under the same key, as a job queue or an outbox table would do it.

use std::{collections::VecDeque, time::Duration};

use buttress::{
    BoxError, Rejected,
    clock::{self, Instant},
};
use http::{Request, header::CONTENT_TYPE};
use http_body_util::Full;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{task::JoinSet, time::sleep};
use tower::ServiceExt;
use uuid::{Builder, Uuid};

use crate::{client::Payer, progress::Progress, server::Payment};

/// The header that names a payment: two requests with one key are the same payment.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Calls at a time.
const CONCURRENCY: usize = 96;

/// How often a payment is called for. Three faults in ten need about seven calls, nine some 100.
const MAX_CALLS: u32 = 1_000;

/// How long a payment waits at least after a call that failed.
const PAUSE: Duration = Duration::from_millis(200);

/// A payment and its key. The key is made once, with the payment, and never again.
#[derive(Debug)]
pub(crate) struct Order {
    key: Uuid,
    payment: Payment,
    /// How often it was called for.
    calls: u32,
    /// When the next call may be.
    due: Instant,
}

/// How the sending ended.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    /// How often the payment was called for that needed it most.
    pub(crate) most_calls: u32,
    /// Payments that nobody acknowledged.
    pub(crate) left: usize,
    /// Why the last call failed, if one did.
    pub(crate) last_error: Option<BoxError>,
}

/// Makes payments with the ids `0..payments`.
pub(crate) fn fill(payments: u64, seed: u64) -> VecDeque<Order> {
    let due = clock::now();
    let mut rng = StdRng::seed_from_u64(seed);
    let order = |id| Order {
        key: Builder::from_random_bytes(rng.random()).into_uuid(),
        payment: Payment {
            id,
            amount: rng.random_range(1..=100_000),
        },
        calls: 0,
        due,
    };
    (0..payments).map(order).collect()
}

/// Sends the payments until all are acknowledged. One whose call failed goes to the end of the line.
pub(crate) async fn deliver(
    mut orders: VecDeque<Order>,
    client: Payer,
    progress: &Progress,
) -> Delivery {
    let mut delivery = Delivery::default();
    let mut calls = JoinSet::new();
    loop {
        while calls.len() < CONCURRENCY
            && let Some(order) = orders.pop_front()
        {
            calls.spawn(call(client.clone(), order));
        }
        let Some(ended) = calls.join_next().await else {
            return delivery;
        };
        let (order, result) = ended.expect("no call panics");
        if order.calls > delivery.most_calls {
            delivery.most_calls = order.calls;
            progress.calls(order.calls);
        }
        let Err(error) = result else {
            progress.acknowledged();
            continue;
        };
        delivery.last_error = Some(error);
        if order.calls < MAX_CALLS {
            orders.push_back(order);
        } else {
            delivery.left += 1;
        }
    }
}

/// Sends a payment when it is due.
async fn call(client: Payer, mut order: Order) -> (Order, Result<(), BoxError>) {
    sleep(order.due.saturating_duration_since(clock::now())).await;
    let result = pay(client, &order).await;
    order.calls += 1;
    order.due = clock::now() + PAUSE;
    if let Err(error) = &result
        && let Some(refused) = Rejected::find(&**error)
    {
        // The next in line would be refused just as fast. So this call is not over until it is worth
        // asking again.
        sleep(refused.retry_after().unwrap_or(PAUSE)).await;
    }
    (order, result)
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
