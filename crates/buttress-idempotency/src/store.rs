//! Where records are kept.

use std::{error::Error, fmt, future::Future};

use buttress_core::BoxError;

use crate::record::{Answer, Op, Record, RecordKey};

/// Keeps records. Every operation is atomic, takes one round trip, and goes by the store's own clock.
///
/// What an operation does is what [`step`](crate::record::step) says, whether the store calls it, as those in this process
/// do, or says the same in another language. The conformance kit (feature `testing`) tells whether it does.
///
/// Besides its records it remembers the last fence that it gave out, through a restart too if they live through one. Where its
/// clock is coarser than a microsecond, leases and what is left of them are rounded up.
///
/// A record is kept until it expires, and as long as somebody is at it: its lease is a field of it, and is never its time to
/// live. A record that is damaged is an error, and never none.
///
/// An operation that is given up, since it took too long, may be done or not. It must not be done after another one that is
/// asked for later: a claim that comes behind its own release would hold a key that nobody is at.
pub trait Store: Send + Sync + 'static {
    /// Does one operation on one record.
    fn step(
        &self,
        key: &RecordKey,
        op: Op,
    ) -> impl Future<Output = Result<Answer, StoreError>> + Send;

    /// The record of a key, as it is now.
    fn get(
        &self,
        key: &RecordKey,
    ) -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// Up to so many records that are running or unknown, for an operator: those behind this key, in the order of keys.
    fn list_open(
        &self,
        after: Option<&RecordKey>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(RecordKey, Record)>, StoreError>> + Send;

    /// Forgets up to so many records that have expired, and returns how many.
    fn purge_expired(&self, limit: usize)
    -> impl Future<Output = Result<usize, StoreError>> + Send;
}

/// A store could not do what it was asked for. Whether it has is not known, unless it or the scope is
/// [`Full`](StoreErrorKind::Full): then it has not.
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    source: Option<BoxError>,
}

/// What a store could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// It cannot be reached, or fails.
    Unavailable,
    /// It did not answer in time.
    TimedOut,
    /// The record is damaged, or of a version that is not known.
    Damaged,
    /// This scope has as much as it may have: no other is refused for it.
    ScopeFull,
    /// It has no room for another record, or for this answer: it may have room for it without its body.
    Full,
}

impl StoreError {
    /// An error of this kind.
    #[must_use]
    pub fn new(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// Adds what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What it is.
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
