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

/// Something that happened to a request with a key. See the [crate docs](crate) for an example.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The handler is run.
    #[non_exhaustive]
    Run {
        /// Which claim of its key it is.
        fence: u64,
    },
    /// The handler has answered, and the answer is kept.
    #[non_exhaustive]
    Completed {
        /// How long it took.
        took: Duration,
        /// Was the body too large to be kept?
        omitted: bool,
    },
    /// The handler never ran, or its answer is not one to keep: the key is free again.
    Released,
    /// It is not known what a run has done: it was cut off, it panicked, or its lease was over.
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
    /// There was no key where one is required, or none that can be one, or nobody whose it is.
    Rejected,
    /// The store could not do what it was asked for.
    #[non_exhaustive]
    StoreFailed {
        /// Why.
        kind: StoreErrorKind,
    },
    /// An operator looked at records, or did something to them.
    #[non_exhaustive]
    Operated {
        /// What.
        operation: Operation,
        /// Of which record, if of one.
        key: Option<RecordKey>,
        /// Who, if he has [said so](crate::Handle::by).
        by: Option<Arc<str>>,
        /// Was it done? Not if there is no such record, if its outcome is not unknown, or if the store failed.
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
    /// He has those forgotten that have expired.
    Purge,
}

/// How often what has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Handlers that were run.
    pub runs: u64,
    /// Answers of handlers that were kept.
    pub completed: u64,
    /// Keys that were freed, since the handler never ran or its answer is not one to keep.
    pub released: u64,
    /// Runs that were cut off, or panicked.
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
    /// Requests without a key where one is required, with none that can be one, or of nobody.
    pub rejected: u64,
    /// Operations that the store failed at.
    pub store_errors: u64,
}

/// Counts as it goes.
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
