//! The ledger: a line for each time that a payment was made, in the file where the server's records are.

use std::{
    path::{Path, PathBuf},
    thread,
};

use buttress::{
    BoxError,
    idempotency::Lease,
    sqlite::{
        CompleteError, SqliteStore,
        rusqlite::{Connection, TransactionBehavior},
    },
};
use bytes::Bytes;
use http::Response;
use tokio::sync::{mpsc, oneshot};

use crate::server::Payment;

/// So many lines are one transaction at most.
const BATCH: usize = 256;

/// Writes lines. A disk is slow, so all that have come while it was busy are one transaction.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(mpsc::Sender<Entry>);

#[derive(Debug)]
struct Entry {
    payment: Payment,
    lease: Option<Lease>,
    answer: Response<Bytes>,
    reply: oneshot::Sender<Response<Bytes>>,
}

/// Where it is.
pub(crate) fn file(folder: &Path) -> PathBuf {
    folder.join("payments.db")
}

impl Ledger {
    /// Opens it. With the store that has the records of the leases, a line and the completion of its request are one.
    pub(crate) fn open(file: &Path, store: Option<SqliteStore>) -> Result<Self, BoxError> {
        let mut db = Connection::open(file)?;
        db.pragma_update(None, "journal_mode", "wal")?;
        db.pragma_update(None, "synchronous", "full")?;
        // Nothing in the table keeps a payment from being in it twice: that is left to the layer.
        db.execute_batch("CREATE TABLE IF NOT EXISTS ledger (payment INTEGER, amount INTEGER)")?;
        let (sender, mut entries) = mpsc::channel(BATCH);
        thread::spawn(move || {
            let mut batch = Vec::new();
            while entries.blocking_recv_many(&mut batch, BATCH) > 0 {
                match write(&mut db, store.as_ref(), &batch) {
                    Ok(done) => answer(batch.drain(..).zip(done)),
                    // Nothing was done, and who waits is told so by the end of his channel.
                    Err(error) => eprintln!("the ledger cannot be written: {error}"),
                }
                batch.clear();
            }
        });
        Ok(Self(sender))
    }

    /// Writes a line, and returns the answer when it is on the disk; nothing if it could not be written.
    pub(crate) async fn enter(
        &self,
        payment: Payment,
        lease: Option<Lease>,
        answer: Response<Bytes>,
    ) -> Option<Response<Bytes>> {
        let (reply, done) = oneshot::channel();
        let entry = Entry {
            payment,
            lease,
            answer,
            reply,
        };
        self.0.send(entry).await.ok()?;
        done.await.ok()
    }
}

/// Writes all of it or nothing, and says of each line whether it was written.
fn write(
    db: &mut Connection,
    store: Option<&SqliteStore>,
    batch: &[Entry],
) -> Result<Vec<bool>, BoxError> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut done = Vec::new();
    for entry in batch {
        let mut is_held = true;
        if let (Some(store), Some(lease)) = (store, &entry.lease) {
            let completion = lease.completion(&entry.answer);
            let (key, token) = (lease.key(), lease.token());
            match store.complete_in(&transaction, key, token, completion, lease.ttl()) {
                // Its lease was over, and somebody else may be at it.
                Err(CompleteError::NotHeld) => is_held = false,
                completed => completed?,
            }
        }
        if is_held {
            let Payment { id, amount } = entry.payment;
            transaction
                .prepare_cached("INSERT INTO ledger VALUES (?1, ?2)")?
                .execute((id.cast_signed(), amount.cast_signed()))?;
        }
        done.push(is_held);
    }
    transaction.commit()?;
    Ok(done)
}

fn answer(done: impl Iterator<Item = (Entry, bool)>) {
    for (entry, _) in done.filter(|(_, done)| *done) {
        // Nobody may wait any more: then it is found by who asks again.
        let _ = entry.reply.send(entry.answer);
    }
}

/// What the ledger says at the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Audit {
    pub(crate) lines: u64,
    pub(crate) duplicates: u64,
    /// Payments that are in no line.
    pub(crate) lost: u64,
}

/// Looks for each of the payments `0..payments`, in the file and with nothing but SQL.
pub(crate) fn audit(folder: &Path, payments: u64) -> Result<Audit, BoxError> {
    let count = "SELECT count(*), count(DISTINCT payment) FROM ledger";
    let db = Connection::open(file(folder))?;
    let (lines, made): (u32, u32) =
        db.query_row(count, (), |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (lines, made) = (u64::from(lines), u64::from(made));
    Ok(Audit {
        lines,
        duplicates: lines - made,
        lost: payments - made,
    })
}
