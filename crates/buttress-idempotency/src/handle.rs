//! What an operator sees of the records, and does to them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;
use tokio::time::timeout;

use crate::{
    Counts, Event, Operation, Store, StoreError,
    body::Reading,
    record::{Answer, Completion, Op, Record, RecordKey},
    shared::Shared,
};

/// The records of a layer, for their operator. Each operation on records is an [`Event::Operated`], which says
/// [who](Self::by) did it.
///
/// Each operation waits for the store as long as [`store_timeout`](crate::IdempotencyLayer::store_timeout) says. One whose
/// future is dropped may be done or not, and is no event.
#[derive(Debug)]
pub struct Handle<T> {
    shared: Arc<Shared<T>>,
    operator: Option<Arc<str>>,
}

impl<T: Store> Handle<T> {
    pub(crate) fn new(shared: Arc<Shared<T>>) -> Self {
        let operator = None;
        Self { shared, operator }
    }

    /// The same for this operator, who is named in the events of what is done with it.
    #[must_use]
    pub fn by(&self, operator: impl Into<Arc<str>>) -> Self {
        Self {
            shared: self.shared.clone(),
            operator: Some(operator.into()),
        }
    }

    /// The record of a key, if there is one.
    pub async fn get(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        let record = self.shared.ask(self.shared.store.get(key)).await;
        let done = matches!(record, Ok(Some(_)));
        self.report(Operation::Show, Some(key), done);
        record
    }

    /// Up to `limit` records that are running or unknown, in the order of keys: those after this key, or from the first on.
    pub async fn list_open(
        &self,
        after: Option<&RecordKey>,
        limit: usize,
    ) -> Result<Vec<(RecordKey, Record)>, StoreError> {
        let asked = self.shared.store.list_open(after, limit);
        let records = self.shared.ask(asked).await;
        self.report(Operation::List, None, records.is_ok());
        records
    }

    /// Says that a request whose outcome is unknown was done, and which answer its duplicates get from now on. Returns false,
    /// and changes nothing, if its outcome is not unknown.
    ///
    /// Of the answer's headers those are kept that are kept of a handler's answer; its body is kept however large it is. As
    /// nobody knows what body the request had, duplicates get this answer whatever their body is.
    pub async fn settle(
        &self,
        key: &RecordKey,
        answer: Response<Bytes>,
    ) -> Result<bool, StoreError> {
        let (head, body) = answer.into_parts();
        let settings = &self.shared.settings;
        let completion = Completion {
            body: Reading::new(None).print(),
            response: settings.keep(head.status, &head.headers, Some(body)),
        };
        self.end(Operation::Settle, key, Some(completion)).await
    }

    /// Says that nothing was done of a request whose outcome is unknown: the next one with its key is run. Returns false, and
    /// changes nothing, if its outcome is not unknown.
    pub async fn release(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.end(Operation::Release, key, None).await
    }

    async fn end(
        &self,
        operation: Operation,
        key: &RecordKey,
        completion: Option<Completion>,
    ) -> Result<bool, StoreError> {
        let ttl = self.shared.settings.ttl;
        let settle = Op::Settle { completion, ttl };
        let settled = self.shared.step(key, settle).await;
        let settled = settled.map(|answer| answer == Answer::Accepted);
        self.report(operation, Some(key), matches!(settled, Ok(true)));
        settled
    }

    /// Removes up to `limit` records that have expired, and returns how many it has removed.
    pub async fn purge_expired(&self, limit: usize) -> Result<usize, StoreError> {
        let asked = self.shared.store.purge_expired(limit);
        let purged = self.shared.ask(asked).await;
        self.report(Operation::Purge, None, purged.is_ok());
        purged
    }

    fn report(&self, operation: Operation, key: Option<&RecordKey>, done: bool) {
        self.shared.emit(&Event::Operated {
            operation,
            key: key.cloned(),
            by: self.operator.clone(),
            done,
        });
    }

    /// What has happened since the layer was made, in this process.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counters.read()
    }

    pub(crate) fn answer_limit(&self) -> usize {
        self.shared.settings.max_response
    }

    /// Waits for the handlers that are still running, and for streamed bodies that are still to be kept, for this time at most.
    /// Returns whether all came to their end.
    ///
    /// Those that take longer are cut off, and their outcome is unknown. If there are any, the layer runs nothing more from
    /// then on, and answers 409 to each request with a key. Call it when the server takes no more requests.
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
        Self {
            shared: self.shared.clone(),
            operator: self.operator.clone(),
        }
    }
}
