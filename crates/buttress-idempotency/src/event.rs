//! What the layer does, for those who watch it.

use std::time::Duration;

use crate::StoreErrorKind;

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
}
