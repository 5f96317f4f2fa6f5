//! What a layer needs to know of a call that has ended.

use std::time::Duration;

/// What became of a call: whether and how it failed, whether it was applied, and what the server said of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Did it fail, and how?
    pub kind: Kind,
    /// Has the server acted on it?
    pub applied: Applied,
    /// What the server asked for.
    pub hint: Hint,
}

/// Whether a call failed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It did what was asked.
    Success,
    /// It failed for a reason that may pass: a lost connection, a 503.
    Transient,
    /// The server has too much to do, or this caller has asked too often: a 429.
    Throttled,
    /// It failed, and the same request would fail again: a 404, a 501.
    Permanent,
    /// It says nothing of the service: a layer on this side refused it, or the caller gave up.
    Ignored,
}

/// Whether the server may have acted on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Applied {
    /// Provably not: the request never left, or the protocol says that it was not looked at.
    No,
    /// Nobody knows, for example when the connection broke after the request was sent.
    Maybe,
    /// Yes: the server said so.
    Yes,
}

/// What a server asked of the next attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hint {
    /// Nothing.
    #[default]
    None,
    /// Not to come back before this time has passed (`Retry-After` and its kin).
    After(Duration),
    /// To come back after exactly this time (`grpc-retry-pushback-ms`).
    Pushback(Duration),
    /// Not to try again (`x-should-retry: false`, a negative pushback).
    Never,
}

impl Verdict {
    /// The call did what was asked.
    pub const SUCCESS: Self = Self::new(Kind::Success, Applied::Yes);

    /// A layer on this side refused the call: the service never saw it.
    pub const REFUSED: Self = Self::new(Kind::Ignored, Applied::No);

    /// A verdict without a hint.
    #[must_use]
    pub const fn new(kind: Kind, applied: Applied) -> Self {
        Self {
            kind,
            applied,
            hint: Hint::None,
        }
    }

    /// The same verdict with what the server asked for.
    #[must_use]
    pub const fn with_hint(self, hint: Hint) -> Self {
        Self { hint, ..self }
    }
}
