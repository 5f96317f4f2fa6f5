//! What a handler holds while it runs: its key, until it has answered.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::Response;

use crate::{
    Store, StoreError,
    body::Reading,
    record::{Answer, Completion, Op, RecordKey, Token},
    shared::Shared,
};

/// What a handler holds until it has answered: the claim of its request's key. It is among the extensions of the request.
///
/// With axum it is `Extension<Lease>`. A request without a key, or one that is run without protection, has none.
#[derive(Clone)]
pub struct Lease(Arc<dyn Held>);

/// What it is a lease of, whatever the store is.
trait Held: Send + Sync {
    fn arm(&self) -> Armed;
    fn has_armed(&self) -> bool;
    fn key(&self) -> &RecordKey;
    fn token(&self) -> Token;
    fn fence(&self) -> u64;
    fn ttl(&self) -> Duration;
    fn completion(&self, response: &Response<Bytes>) -> Completion;
}

type Armed = Pin<Box<dyn Future<Output = Result<(), LeaseError>> + Send>>;

pub(crate) struct Claim<T> {
    pub(crate) shared: Arc<Shared<T>>,
    pub(crate) key: RecordKey,
    pub(crate) token: Token,
    pub(crate) fence: u64,
    pub(crate) reading: Reading,
    /// Set once the handler has armed the lease, or has tried to.
    pub(crate) said: OnceLock<()>,
}

impl<T: Store> Held for Claim<T> {
    fn arm(&self) -> Armed {
        self.said.get_or_init(|| ());
        let (shared, key, token) = (self.shared.clone(), self.key.clone(), self.token);
        Box::pin(async move {
            match shared.step(&key, Op::Arm { token }).await {
                Ok(Answer::Accepted) => Ok(()),
                Ok(_) => Err(LeaseError::Lost),
                Err(error) => Err(LeaseError::Store(error)),
            }
        })
    }

    fn has_armed(&self) -> bool {
        self.said.get().is_some()
    }

    fn key(&self) -> &RecordKey {
        &self.key
    }

    fn token(&self) -> Token {
        self.token
    }

    fn fence(&self) -> u64 {
        self.fence
    }

    fn ttl(&self) -> Duration {
        self.shared.settings.ttl
    }

    fn completion(&self, response: &Response<Bytes>) -> Completion {
        let settings = &self.shared.settings;
        let body = response.body();
        let body = (body.len() <= settings.max_response).then(|| body.clone());
        Completion {
            body: self.reading.print(),
            response: settings.keep(response.status(), response.headers(), body),
        }
    }
}

impl Lease {
    pub(crate) fn of<T: Store>(claim: Claim<T>) -> Self {
        Self(Arc::new(claim))
    }

    /// Says, in one write to the store, that from now on the handler may have effects that others see. Have none before it
    /// has returned, and none at all if it fails.
    ///
    /// It matters with [`explicit_arm`](crate::IdempotencyLayer::explicit_arm): after a crash that comes before it, the key is
    /// free; after one that comes later, the outcome is unknown. With or without that, an error or a response that comes later
    /// is never taken for a refusal by a layer below. If its future is dropped, it may have been written or not.
    ///
    /// # Errors
    ///
    /// [`Lost`](LeaseError::Lost) if the lease is over, and [`Store`](LeaseError::Store) if the store has failed.
    pub async fn arm(&self) -> Result<(), LeaseError> {
        self.0.arm().await
    }

    /// Has the handler armed it, or tried to?
    pub(crate) fn has_armed(&self) -> bool {
        self.0.has_armed()
    }

    /// The key of the record that is held.
    #[must_use]
    pub fn key(&self) -> &RecordKey {
        self.0.key()
    }

    /// The token that proves the claim to the store. Keep it out of logs.
    #[must_use]
    pub fn token(&self) -> Token {
        self.0.token()
    }

    /// The number of this claim, higher than that of each earlier claim of this key: a fencing token, for systems that
    /// refuse a lower one than they have seen.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.0.fence()
    }

    /// How long the request is remembered after it is done.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.0.ttl()
    }

    /// The completion of the request with this response: what is kept of the response, and the hash of what the handler has
    /// read of the request so far.
    ///
    /// It is for a handler that writes its completion itself, in one transaction with its effect. Read the whole request
    /// first: a duplicate is compared with what was read. The layer's own completion changes nothing then, so answer with this
    /// same response.
    #[must_use]
    pub fn completion(&self, response: &Response<Bytes>) -> Completion {
        self.0.completion(response)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is not for logs: who has it may complete the record.
        f.debug_struct("Lease")
            .field("key", self.key())
            .field("fence", &self.fence())
            .finish_non_exhaustive()
    }
}

/// A lease could not be [armed](Lease::arm): the handler must not have any effect.
#[derive(Debug)]
#[non_exhaustive]
pub enum LeaseError {
    /// The lease is over, and another run may have the key.
    Lost,
    /// The store has failed: whether the lease is armed is not known.
    Store(StoreError),
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "the lease of the key was over",
            Self::Store(_) => "the key could not be armed",
        })
    }
}

impl std::error::Error for LeaseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lost => None,
            Self::Store(error) => Some(error),
        }
    }
}
