//! The outage: for some seconds the server is gone, and then it is back.

use std::{sync::OnceLock, time::Duration};

use buttress::clock::{self, Instant};

/// When the server is gone. It goes when so many payments have been sent, whatever the time is then.
#[derive(Debug)]
pub(crate) struct Outage {
    payments: usize,
    length: Duration,
    began: OnceLock<Instant>,
    /// When the first answer after it was given.
    recovered: OnceLock<Instant>,
}

impl Outage {
    /// An outage of this length after so many payments. One without a length never comes.
    pub(crate) fn new(payments: usize, length: Duration) -> Self {
        Self {
            payments,
            length,
            began: OnceLock::new(),
            recovered: OnceLock::new(),
        }
    }

    /// Is the server gone, now that so many payments were sent?
    pub(crate) fn is_on(&self, payments: usize) -> bool {
        if payments < self.payments || self.length.is_zero() {
            return false;
        }
        let now = clock::now();
        now < *self.began.get_or_init(|| now) + self.length
    }

    /// A payment got its answer.
    pub(crate) fn answered(&self) {
        if self.end().is_some_and(|end| end <= clock::now()) {
            self.recovered.get_or_init(clock::now);
        }
    }

    /// When it began, if it did.
    pub(crate) fn began(&self) -> Option<Instant> {
        self.began.get().copied()
    }

    /// When it ends or ended, if it ever began.
    pub(crate) fn end(&self) -> Option<Instant> {
        self.began().map(|began| began + self.length)
    }

    /// When the first answer after it was given.
    pub(crate) fn recovered(&self) -> Option<Instant> {
        self.recovered.get().copied()
    }
}
