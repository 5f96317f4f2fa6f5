//! The least that a limiter can cost: one look at the clock, and one word in shared memory that is compared and swapped.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use buttress::clock::Instant;
use buttress::{BoxError, clock};
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use tower::ServiceExt;
use tower_service::Service;

use super::asking::{Asking, Said};
use super::{A_BILLION, YEAR, get, number, of_a_key, spend};
use crate::target::{Answer, Key, Request, Response, Target};

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;
const YEAR_NANOS: u64 = YEAR.as_secs() * SECOND;

/// A bucket of tokens as the moment at which it will be full again, for tokens that take whole nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Bucket(AtomicU64);

impl Bucket {
    fn take(&self, token: u64, burst: u64) -> Result<(), Left> {
        self.take_at(clock::now(), token, burst)
    }

    /// The same for who has looked at the clock himself.
    pub(crate) fn take_at(&self, now: Instant, token: u64, burst: u64) -> Result<(), Left> {
        let now = now.to_bits();
        let most = now + token * burst;
        let mut full = self.0.load(Ordering::Relaxed);
        loop {
            let then = full.max(now) + token;
            if then > most {
                return Err(Left(Duration::from_nanos(then - most)));
            }
            let swapped =
                self.0
                    .compare_exchange_weak(full, then, Ordering::Relaxed, Ordering::Relaxed);
            match swapped {
                Ok(_) => return Ok(()),
                Err(other) => full = other,
            }
        }
    }
}

/// What is on a line of its own, such as a bucket.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Apart<T = Bucket>(pub(crate) T);

/// A billion a second.
pub(crate) fn granted<S, R>(
    inner: S,
) -> impl Service<R, Response = S::Response, Error = BoxError, Future: Send> + Clone + Send
where
    S: Service<R, Error: Into<BoxError>, Future: Send> + Clone + Send,
{
    let bucket = Arc::new(Apart::<Bucket>::default());
    Asking::new(inner, move |_: &_| {
        bucket
            .0
            .take(1, A_BILLION.get().into())
            .map_err(BoxError::from)
    })
}

/// One a year, and that one is gone. The error is one number in a box.
pub(crate) fn refused(target: Target) -> impl Service<u64, Response: Answer> {
    let bucket = Bucket::default();
    let mut service = Asking::new(target, move |_: &_| {
        bucket.take(YEAR_NANOS, 1).map_err(BoxError::from)
    });
    spend(&mut service, number);
    service
}

/// As the other. The answer is a status, and one number in a header.
pub(crate) fn answered(target: Target) -> impl Service<Request, Response: Answer> {
    let bucket = Bucket::default();
    let limited = Asking::new(target, move |_: &_| {
        bucket.take(YEAR_NANOS, 1).map_err(Said::Refused)
    });
    let mut service = limited.map_result(|result| match result {
        Err(Said::Refused(left)) => Ok(too_many(&left)),
        other => other,
    });
    spend(&mut service, get());
    service
}

fn too_many(left: &Left) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let seconds = HeaderValue::from(left.0.as_secs() + 1);
    response.headers_mut().insert(RETRY_AFTER, seconds);
    response
}

/// A bucket for all keys whose hashes end alike, of which there are at least as many as keys.
pub(crate) fn keyed(
    keys: u32,
    target: Target,
) -> impl Service<Key, Response: Answer> + Clone + Send {
    let buckets = (0..keys.next_power_of_two()).map(|_| Bucket::default());
    let buckets: Arc<[_]> = buckets.collect();
    let (period, burst) = of_a_key(keys);
    let token = period.as_secs() * SECOND;
    let last = u64::from(keys.next_power_of_two() - 1);
    Asking::new(target, move |key: &Key| {
        let place = usize::try_from(hash(key.0) & last).expect("a place in memory");
        let result = buckets[place].take(token, burst.get().into());
        result.map_err(BoxError::from)
    })
}

/// One multiplication. Its upper half depends on all bits of the key.
fn hash(key: u64) -> u64 {
    let product = u128::from(key) * 0x9e37_79b9_7f4a_7c15;
    u64::try_from(product >> 64).expect("half of the bits")
}

/// The error: the time that is left.
#[derive(Debug)]
pub(crate) struct Left(Duration);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing left for {:?}", self.0)
    }
}

impl Error for Left {}
