//! How a handler says from when on its effects are seen.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use crate::{
    Store, StoreError,
    record::{Answer, Op, RecordKey, Token},
    shared::Shared,
};

type Armed = Pin<Box<dyn Future<Output = Result<(), ArmError>> + Send>>;

/// Among the extensions of a request whose key was claimed: says that from now on something may be done that others see.
///
/// It matters with [`explicit_arm`](crate::IdempotencyLayer::explicit_arm): before it, a crash frees the key; after it, the
/// outcome is unknown.
#[derive(Clone)]
pub struct Arm(Arc<dyn Fn() -> Armed + Send + Sync>);

impl Arm {
    pub(crate) fn new<T: Store>(shared: Arc<Shared<T>>, key: RecordKey, token: Token) -> Self {
        Self(Arc::new(move || {
            let (shared, key) = (shared.clone(), key.clone());
            Box::pin(async move {
                match shared.step(&key, Op::Arm { token }).await {
                    Ok(Answer::Accepted) => Ok(()),
                    Ok(_) => Err(ArmError::Lost),
                    Err(error) => Err(ArmError::Store(error)),
                }
            })
        }))
    }

    /// Says so, in one write to the store. Do nothing that others see before it has returned, and nothing at all if it fails.
    pub async fn arm(&self) -> Result<(), ArmError> {
        (self.0)().await
    }
}

impl fmt::Debug for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Arm")
    }
}

/// A key could not be armed: the handler must not do anything that others see.
#[derive(Debug)]
#[non_exhaustive]
pub enum ArmError {
    /// The lease was over, and the key may be somebody else's.
    Lost,
    /// The store could not be asked.
    Store(StoreError),
}

impl fmt::Display for ArmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "the lease of the key was over",
            Self::Store(_) => "the key could not be armed",
        })
    }
}

impl std::error::Error for ArmError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lost => None,
            Self::Store(error) => Some(error),
        }
    }
}
