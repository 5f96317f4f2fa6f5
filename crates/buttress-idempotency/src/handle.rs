//! What an operator sees of the records, and does to them.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use crate::{
    Store, StoreError,
    record::{Answer, Completion, Op, Record, RecordKey},
    shared::Shared,
};

/// The records of a layer, for their operator.
#[derive(Debug)]
pub struct Handle<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Store> Handle<T> {
    pub(crate) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared }
    }

    /// The record of a key.
    pub async fn get(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.shared.store.get(key).await
    }

    /// Up to so many records that are running or unknown, behind this key.
    pub async fn list_open(
        &self,
        after: Option<&RecordKey>,
        limit: usize,
    ) -> Result<Vec<(RecordKey, Record)>, StoreError> {
        self.shared.store.list_open(after, limit).await
    }

    /// Says what came of a request whose outcome is unknown: this, or that nothing was done. Returns false if it is not
    /// unknown.
    pub async fn settle(
        &self,
        key: &RecordKey,
        completion: Option<Completion>,
    ) -> Result<bool, StoreError> {
        let ttl = self.shared.settings.ttl;
        let settled = self
            .shared
            .step(key, Op::Settle { completion, ttl })
            .await?;
        Ok(settled == Answer::Accepted)
    }

    /// Forgets up to so many records that have expired.
    pub async fn purge_expired(&self, limit: usize) -> Result<usize, StoreError> {
        self.shared.store.purge_expired(limit).await
    }

    /// Waits for the handlers that are still running, for this time at most; those that take longer are cut off, and their
    /// outcome is unknown. Call it when the server takes no more requests. Returns whether all came to their end.
    pub async fn drain(&self, within: Duration) -> bool {
        let Shared { tasks, cut, .. } = &*self.shared;
        tasks.close();
        if timeout(within, tasks.wait()).await.is_ok() {
            return true;
        }
        cut.cancel();
        // They only say so to the store now.
        let _ = timeout(self.shared.settings.store_timeout, tasks.wait()).await;
        false
    }
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        let shared = self.shared.clone();
        Self { shared }
    }
}
