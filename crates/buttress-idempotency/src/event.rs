//! What the layer does, for those who watch it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;

use crate::{StoreErrorKind, record::RecordKey};

/// Something that happened to a request with a key, as [`on_event`](crate::IdempotencyLayer::on_event) reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The handler is run.
    #[non_exhaustive]
    Run {
        /// The number of the claim: higher than that of each earlier claim of this key.
        fence: u64,
    },
    /// The handler has answered, and the answer is kept.
    #[non_exhaustive]
    Completed {
        /// How long it took to answer, with the body as far as that is kept.
        took: Duration,
        /// Was the body left out, since it is too large to be kept?
        omitted: bool,
    },
    /// The handler never ran, or its answer is not one to keep: the key is free again.
    Released,
    /// It is not known what a run has done: it was cut off, panicked, ended with an error, or answered with 1xx; or its
    /// answer could not be stored.
    Abandoned,
    /// A handler has answered whose key was meanwhile run again, settled or forgotten: its own client has the answer, and
    /// nobody else ever gets it. Its effects may be there twice.
    Superseded,
    /// A duplicate got the answer to the first request.
    Replayed,
    /// A duplicate came while the first request was running.
    InFlight,
    /// A duplicate came whose first run has an unknown outcome.
    OutcomeUnknown,
    /// The key belongs to another request.
    Mismatch,
    /// There was no key where one is required, or an invalid one, or it is not known whose key it is.
    Rejected,
    /// An operation of the store has failed.
    #[non_exhaustive]
    StoreFailed {
        /// Why.
        kind: StoreErrorKind,
    },
    /// An operator looked at records, or changed them.
    #[non_exhaustive]
    Operated {
        /// What he did.
        operation: Operation,
        /// The key of the record, if it was about one.
        key: Option<RecordKey>,
        /// Who he is, if the [handle says so](crate::Handle::by).
        by: Option<Arc<str>>,
        /// Was it done? It was not if there is no such record, if its outcome is not unknown, or if the store failed.
        done: bool,
    },
}

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// He lists the records that are open.
    List,
    /// He looks at one.
    Show,
    /// He says that it was done.
    Settle,
    /// He says that nothing was done.
    Release,
    /// He removes records that have expired.
    Purge,
}

/// How often each thing has happened in this process, since the layer was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Handlers that were run.
    pub runs: u64,
    /// Answers of handlers that were kept.
    pub completed: u64,
    /// Keys that were freed, since the handler never ran or its answer is not one to keep.
    pub released: u64,
    /// Runs of which it is not known what they have done.
    pub abandoned: u64,
    /// Handlers that answered when their key was not theirs any more.
    pub superseded: u64,
    /// Duplicates that got the answer to the first request.
    pub replays: u64,
    /// Duplicates that came while the first request was running.
    pub in_flight: u64,
    /// Duplicates whose first run has an unknown outcome.
    pub outcome_unknown: u64,
    /// Requests whose key belongs to another one.
    pub mismatches: u64,
    /// Requests without a key where one is required, with an invalid one, or with one of which it is not known whose it is.
    pub rejected: u64,
    /// Operations of the store that have failed.
    pub store_errors: u64,
}

/// The counts so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    runs: AtomicU64,
    completed: AtomicU64,
    released: AtomicU64,
    abandoned: AtomicU64,
    superseded: AtomicU64,
    replays: AtomicU64,
    in_flight: AtomicU64,
    outcome_unknown: AtomicU64,
    mismatches: AtomicU64,
    rejected: AtomicU64,
    store_errors: AtomicU64,
}

impl Counters {
    pub(crate) fn count(&self, event: &Event) {
        let counter = match event {
            Event::Run { .. } => &self.runs,
            Event::Completed { .. } => &self.completed,
            Event::Released => &self.released,
            Event::Abandoned => &self.abandoned,
            Event::Superseded => &self.superseded,
            Event::Replayed => &self.replays,
            Event::InFlight => &self.in_flight,
            Event::OutcomeUnknown => &self.outcome_unknown,
            Event::Mismatch => &self.mismatches,
            Event::Rejected => &self.rejected,
            Event::StoreFailed { .. } => &self.store_errors,
            Event::Operated { .. } => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Counts {
        let so_far = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            runs: so_far(&self.runs),
            completed: so_far(&self.completed),
            released: so_far(&self.released),
            abandoned: so_far(&self.abandoned),
            superseded: so_far(&self.superseded),
            replays: so_far(&self.replays),
            in_flight: so_far(&self.in_flight),
            outcome_unknown: so_far(&self.outcome_unknown),
            mismatches: so_far(&self.mismatches),
            rejected: so_far(&self.rejected),
            store_errors: so_far(&self.store_errors),
        }
    }
}
