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
pub(crate) struct Counters([AtomicU64; 11]);

impl Counters {
    pub(crate) fn count(&self, event: &Event) {
        let place = match event {
            Event::Run { .. } => 0,
            Event::Completed { .. } => 1,
            Event::Released => 2,
            Event::Abandoned => 3,
            Event::Superseded => 4,
            Event::Replayed => 5,
            Event::InFlight => 6,
            Event::OutcomeUnknown => 7,
            Event::Mismatch => 8,
            Event::Rejected => 9,
            Event::StoreFailed { .. } => 10,
            Event::Operated { .. } => return,
        };
        self.0[place].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Counts {
        let count = |place: usize| self.0[place].load(Ordering::Relaxed);
        Counts {
            runs: count(0),
            completed: count(1),
            released: count(2),
            abandoned: count(3),
            superseded: count(4),
            replays: count(5),
            in_flight: count(6),
            outcome_unknown: count(7),
            mismatches: count(8),
            rejected: count(9),
            store_errors: count(10),
        }
    }
}
