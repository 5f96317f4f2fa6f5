//! A completion in a transaction of the user's own.

use std::{error::Error, fmt, time::Duration};

use buttress_idempotency::{
    Lease, StoreError,
    record::{Answer, Completion, Moment, Op, RecordKey, State, Token},
};
use bytes::Bytes;
use http::Response;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::{SqliteStore, open::has_store, seal::Seal, table};

/// A request could not be completed in this transaction, which has to be rolled back.
#[derive(Debug)]
#[non_exhaustive]
pub enum CompleteError {
    /// The token does not hold the record any more: the lease was over before it was armed, another run has claimed the
    /// record, or it has expired or is completed already.
    NotHeld,
    /// The transaction is of another database than the store.
    OtherDatabase,
    /// The transaction has ended already: its effect has committed it or rolled it back.
    Ended,
    /// The record is damaged.
    Store(StoreError),
    /// SQLite has failed, or another writer was in the way.
    Sqlite(rusqlite::Error),
}

impl fmt::Display for CompleteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHeld => "the request is not held any more",
            Self::OtherDatabase => "the transaction is of another database than the store",
            Self::Ended => "the transaction has ended before the request was completed",
            Self::Store(_) => "the request's record cannot be read",
            Self::Sqlite(_) => "the request's record cannot be written",
        })
    }
}

impl Error for CompleteError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NotHeld | Self::OtherDatabase | Self::Ended => None,
            Self::Store(error) => Some(error),
            Self::Sqlite(error) => Some(error),
        }
    }
}

impl From<rusqlite::Error> for CompleteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl SqliteStore {
    /// Does something and completes its request, in one transaction: both are done, or neither.
    ///
    /// It begins a transaction that may write, looks whether the lease still holds the request, has `effect` do its work, and
    /// completes the request with the response that this returns. If anything fails, or `effect` panics, it is rolled back.
    /// Answer with that response: it is what a duplicate gets. Read the whole request first, since a duplicate is compared with
    /// what was read of it.
    ///
    /// While `effect` is at work nobody else writes, not even the store: do not wait in it for anything but this connection. It
    /// must neither commit nor roll back the transaction: after a `COMMIT` its work would be done, and its request would not.
    ///
    /// It blocks, as SQLite does. A connection of your own does as well as one from [`connect`](Self::connect), if it is to the
    /// same file. See the [crate docs](crate) for an example.
    ///
    /// # Errors
    ///
    /// Those of `effect`, and any [`CompleteError`]. [`NotHeld`](CompleteError::NotHeld) may come before `effect` is called.
    pub fn complete_with<E: From<CompleteError>>(
        &self,
        connection: &mut Connection,
        lease: &Lease,
        effect: impl FnOnce(&Transaction<'_>) -> Result<Response<Bytes>, E>,
    ) -> Result<Response<Bytes>, E> {
        let (key, token) = (lease.key(), lease.token());
        let immediate = TransactionBehavior::Immediate;
        let transaction = connection.transaction_with_behavior(immediate);
        let transaction = transaction.map_err(CompleteError::Sqlite)?;
        self.must_hold(&transaction, key, token)?;
        let response = effect(&transaction)?;
        let completion = lease.completion(&response);
        self.complete_in(&transaction, key, token, completion, lease.ttl())?;
        transaction.commit().map_err(CompleteError::Sqlite)?;
        Ok(response)
    }

    /// Completes a request in this transaction, which you have to commit then. [`complete_with`](Self::complete_with) does it
    /// all for one request; this is for a transaction that has several. A [`Lease`] has the arguments.
    ///
    /// # Errors
    ///
    /// Any [`CompleteError`]: roll the transaction back. Only with [`NotHeld`](CompleteError::NotHeld) nothing was written, and
    /// a transaction of several requests may go on without this one's effect.
    ///
    /// It fails where the transaction has only read so far, and somebody else has written since; begin it as
    /// [`Immediate`](TransactionBehavior::Immediate) to avoid that.
    pub fn complete_in(
        &self,
        transaction: &Transaction<'_>,
        key: &RecordKey,
        token: Token,
        completion: Completion,
        ttl: Duration,
    ) -> Result<(), CompleteError> {
        let (mut seal, now) = self.seal(transaction)?;
        let op = Op::Complete {
            token,
            completion,
            ttl,
        };
        // A record that is held is there, and needs no more room.
        let answer = table::step(transaction, &mut seal, now, key, &op, |_, _| Ok(Ok(())))?;
        match answer.map_err(CompleteError::Store)? {
            Answer::Accepted => {}
            // He may have completed it already, and his effect is there.
            _ => return Err(CompleteError::NotHeld),
        }
        seal.write(transaction, now)?;
        Ok(())
    }

    /// Who has completed a request does not hold it any more: his effect is there.
    fn must_hold(
        &self,
        transaction: &Transaction<'_>,
        key: &RecordKey,
        token: Token,
    ) -> Result<(), CompleteError> {
        let (_, now) = self.seal(transaction)?;
        let kept = table::find(transaction, key)?.map_err(CompleteError::Store)?;
        match kept
            .and_then(|kept| kept.record.at(now))
            .map(|record| record.state)
        {
            Some(State::Running { token: holder, .. } | State::Unknown { token: holder })
                if holder == token =>
            {
                Ok(())
            }
            _ => Err(CompleteError::NotHeld),
        }
    }

    /// The seal of the database of this transaction, if it is the store's, and the moment it is now.
    fn seal(&self, transaction: &Transaction<'_>) -> Result<(Seal, Moment), CompleteError> {
        // Each statement would be a transaction of its own, and what was read for one of them old at the next.
        if transaction.is_autocommit() {
            return Err(CompleteError::Ended);
        }
        if !has_store(transaction)? {
            return Err(CompleteError::OtherDatabase);
        }
        let seal = Seal::read(transaction)?;
        if seal.epoch != self.inner.shared.epoch {
            return Err(CompleteError::OtherDatabase);
        }
        let now = self.inner.shared.clock().now(seal.moment);
        Ok((seal, now))
    }
}
