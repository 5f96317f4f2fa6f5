//! What the tests of the layer have in common.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "it is a module of each test, which needs some of it"
)]

use std::{
    future::{Ready, ready},
    num::NonZeroU32,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use buttress_core::{BoxError, Rejected, clock};
use buttress_rate_limit::Quota;
use tower::Service;

pub fn count(count: u32) -> NonZeroU32 {
    count.try_into().unwrap()
}

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn per_second(tokens: u32, burst: u32) -> Quota {
    Quota::per_second(count(tokens)).burst(count(burst))
}

/// A service that writes down which request came when, in milliseconds. Its requests are numbers.
#[derive(Clone)]
pub struct Backend {
    start: clock::Instant,
    came: Arc<Mutex<Vec<(u64, u128)>>>,
}

impl Backend {
    pub fn new() -> Self {
        Self {
            start: clock::now(),
            came: Arc::default(),
        }
    }

    pub fn came(&self) -> Vec<(u64, u128)> {
        self.came.lock().unwrap().clone()
    }

    pub fn times(&self) -> Vec<u128> {
        self.came().into_iter().map(|(_, time)| time).collect()
    }
}

impl Service<u64> for Backend {
    type Response = u64;
    type Error = BoxError;
    type Future = Ready<Result<u64, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u64) -> Self::Future {
        let time = clock::now().saturating_duration_since(self.start);
        self.came.lock().unwrap().push((request, time.as_millis()));
        ready(Ok(request))
    }
}

pub fn refusal<T>(result: Result<T, BoxError>) -> Rejected {
    let error = result.err().expect("it is refused");
    Rejected::find(&*error).expect("by the limiter").clone()
}
