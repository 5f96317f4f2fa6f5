//! The thread that reads.

use buttress_idempotency::{
    StoreError, StoreErrorKind,
    record::{Record, RecordKey},
};
use rusqlite::Connection;
use tokio::sync::mpsc;

use crate::{
    queue::Reply,
    seal::Seal,
    table::{self, Each},
    writer::Shared,
};

#[derive(Debug)]
pub(crate) enum Query {
    Get {
        key: RecordKey,
        reply: Reply<Option<Record>>,
    },
    ListOpen {
        after: Option<RecordKey>,
        limit: usize,
        reply: Reply<Vec<(RecordKey, Record)>>,
    },
}

pub(crate) fn work(db: &Connection, shared: &Shared, mut queries: mpsc::Receiver<Query>) {
    let now = || Seal::read(db).map(|seal| shared.clock().now(seal.moment));
    while let Some(query) = queries.blocking_recv() {
        // Who asked may be gone.
        match query {
            Query::Get { reply, .. } if reply.is_closed() => {}
            Query::ListOpen { reply, .. } if reply.is_closed() => {}
            Query::Get { key, reply } => {
                let found = now().and_then(|now| {
                    let found = table::find(db, &key)?;
                    Ok(found.map(|kept| kept.and_then(|kept| kept.record.at(now))))
                });
                drop(reply.send(flat(found)));
            }
            Query::ListOpen {
                after,
                limit,
                reply,
            } => {
                let open = now().and_then(|now| table::list_open(db, now, after.as_ref(), limit));
                drop(reply.send(flat(open)));
            }
        }
    }
}

fn flat<T>(each: Each<T>) -> Result<T, StoreError> {
    each.map_err(|error| StoreError::new(StoreErrorKind::Unavailable).because(error))?
}
