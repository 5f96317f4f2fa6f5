//! Asking the world outside what came of a run.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{Response, request::Parts};

/// What came of a run whose outcome is unknown, as [`recover`](crate::IdempotencyLayer::recover) finds out.
#[derive(Clone, Debug)]
pub enum Recovered {
    /// It was done, and this is its answer.
    Done(Response<Bytes>),
    /// Nothing was done: the request is run again.
    NotDone,
    /// It cannot be found out either.
    Unknown,
}

type Asked = Pin<Box<dyn Future<Output = Recovered> + Send>>;

/// Somebody who can be asked, with the head of a request that is the same.
#[derive(Clone)]
pub(crate) struct Recover(Arc<dyn Fn(Parts) -> Asked + Send + Sync>);

impl Recover {
    pub(crate) fn new<F, A>(ask: F) -> Self
    where
        F: Fn(Parts) -> A + Send + Sync + 'static,
        A: Future<Output = Recovered> + Send + 'static,
    {
        Self(Arc::new(move |parts| Box::pin(ask(parts))))
    }

    pub(crate) fn ask(&self, parts: Parts) -> Asked {
        (self.0)(parts)
    }
}

impl fmt::Debug for Recover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recover")
    }
}
