//! Where records are kept.

use std::{error::Error, fmt, future::Future};

use buttress_core::BoxError;

use crate::record::{Answer, Op, Record, RecordKey};

/// Keeps records. Every operation is atomic, takes one round trip, and goes by the store's own clock.
///
/// What an operation does is what [`step`](crate::record::step) says. A store in this process can call it; one in a database
/// may say the same in that database's language. The conformance suite, the module `testing` of the feature of that name,
/// tells whether it does.
///
/// Besides its records a store remembers the last fence that it gave out, across a restart if its records outlive one. Where
/// its clock is coarser than a microsecond, it rounds leases, and what is left of them, up.
///
/// A record is kept until it expires, and as long as its lease lasts. The lease is a field of the record, and must not be
/// used as its time to live in the database. A damaged record is an error, and must never look like no record.
///
/// # Cancellation
///
/// An operation whose future is dropped, as after a timeout, may be done or not. It must not be done after another one that
/// is asked for later: a claim that is done after its own release would hold a key for nobody.
pub trait Store: Send + Sync + 'static {
    /// Does one operation on the record of a key, or where there is none.
    fn step(
        &self,
        key: &RecordKey,
        op: Op,
    ) -> impl Future<Output = Result<Answer, StoreError>> + Send;

    /// The record of a key, as it is now: one that has expired is none.
    fn get(
        &self,
        key: &RecordKey,
    ) -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// Up to `limit` records that are running or unknown, for an operator: those after this key, or from the first on, in the
    /// order of [`RecordKey`].
    fn list_open(
        &self,
        after: Option<&RecordKey>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(RecordKey, Record)>, StoreError>> + Send;

    /// Removes up to `limit` records that have expired, and returns how many it has removed.
    fn purge_expired(&self, limit: usize)
    -> impl Future<Output = Result<usize, StoreError>> + Send;
}

/// An operation of a store has failed. It may have been done all the same, but not with [`Full`](StoreErrorKind::Full) or
/// [`ScopeFull`](StoreErrorKind::ScopeFull).
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    source: Option<BoxError>,
}

/// Why an operation of a store has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store cannot be reached, or fails.
    Unavailable,
    /// The store did not answer in time.
    TimedOut,
    /// The record is damaged, or of an unknown version.
    Damaged,
    /// The scope has used up its share of the store: only this scope is refused.
    ScopeFull,
    /// The store has no room for another record, or for this answer; it may have room for the answer without its body.
    Full,
}

impl StoreError {
    /// An error of this kind.
    #[must_use]
    pub fn new(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// Adds what has caused it, its [`source`](Error::source).
    #[must_use]
    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Why the operation has failed.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            StoreErrorKind::Unavailable => "the store is not available",
            StoreErrorKind::TimedOut => "the store did not answer in time",
            StoreErrorKind::Damaged => "the record is damaged",
            StoreErrorKind::ScopeFull => "the scope has too many records",
            StoreErrorKind::Full => "the store is full",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
