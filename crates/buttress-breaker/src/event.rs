//! What the layer does, for those who watch it.

use std::{fmt, sync::Arc, time::Duration};

/// Something that happened to a breaker. See the [crate docs](crate) for an example.
///
/// Sinks run on the task that the event happened on, after the breaker's lock is released. Where two tasks bring about
/// two transitions, the sinks may hear of them in either order: their numbers tell which came first.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A call that was let through has ended.
    #[non_exhaustive]
    Call {
        /// How.
        outcome: Outcome,
        /// What says so.
        reason: Reason,
        /// Did it take longer than a call should ([`slow_calls`](crate::BreakerLayer::slow_calls))?
        slow: bool,
        /// Did it count, as a success or a failure? What says nothing of the service does not, nor does a call that was
        /// let through before a change of state and ended after it, one that shadow mode would have refused, or one
        /// without a breaker.
        counted: bool,
        /// Whose breaker it is, where there is one for each key.
        key: Option<Arc<str>>,
    },
    /// A call was refused; in shadow mode, it would have been.
    #[non_exhaustive]
    Refused {
        /// The state that refuses. A closed breaker does so in its ramp.
        state: State,
        /// What brought that state about.
        cause: Cause,
        /// Is this shadow mode? Then the call was let through.
        shadow: bool,
        /// Whose breaker it is, where there is one for each key.
        key: Option<Arc<str>>,
    },
    /// The breaker has gone from one state to another.
    #[non_exhaustive]
    Transition {
        /// The state before.
        from: State,
        /// The state now.
        to: State,
        /// What brought it about.
        cause: Cause,
        /// How long it stays open at least, if it has opened.
        open_for: Option<Duration>,
        /// Which transition of this breaker it is: 1, 2, and so on.
        number: u64,
        /// Whose breaker it is, where there is one for each key.
        key: Option<Arc<str>>,
    },
    /// A probe has ended, or its lease has.
    #[non_exhaustive]
    Probe {
        /// How.
        result: ProbeResult,
        /// Whose breaker it is, where there is one for each key.
        key: Option<Arc<str>>,
    },
    /// The share of calls that is let through after closing has changed.
    #[non_exhaustive]
    Ramp {
        /// The share in percent; 100 when the ramp is over.
        percent: u8,
        /// Whose breaker it is, where there is one for each key.
        key: Option<Arc<str>>,
    },
    /// The breaker of a key was forgotten: nobody had asked for it in a long time, or it was closed and made room for that of
    /// another key. The next call of the key has a new one, which is closed. Calls that the old one has let through may be
    /// told of after this, but not what becomes of its state.
    #[non_exhaustive]
    Forgotten {
        /// Whose breaker it was.
        key: Arc<str>,
    },
    /// A call was let through without a breaker: its key is new, and every key that is kept has a breaker that is not closed
    /// and may not be forgotten ([`max_keys`](crate::BreakerLayer::max_keys)).
    Untracked,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It succeeded.
    Success,
    /// It failed, in a way that speaks of the service.
    Failure,
    /// It says nothing of the service.
    Ignored,
    /// The caller dropped it.
    Cancelled,
}

/// What an outcome was seen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The response, or the head of one.
    Response,
    /// The error in its place.
    Error,
    /// The end of the body, or the trailers there.
    Body,
    /// The service panicked.
    Panic,
    /// The caller dropped it after more than its [`patience`](crate::BreakerLayer::patience): a failure.
    Patience,
    /// The caller dropped it.
    Dropped,
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProbeResult {
    /// It succeeded.
    Ok,
    /// It failed, and the breaker is open again.
    Failed,
    /// It said nothing of the service.
    Ignored,
    /// It was dropped.
    Cancelled,
    /// It took longer than its lease: its slot is free again, and what comes of it will be stale.
    LeaseExpired,
    /// It ended after its lease, or after the breaker had gone on without it.
    Stale,
}

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Calls are let through, and counted; right after closing only a share of them.
    Closed,
    /// Calls are refused.
    Open,
    /// Some calls are let through, to see how they fare.
    HalfOpen,
    /// Calls are refused until somebody says otherwise.
    ForcedOpen,
    /// Calls are let through until somebody says otherwise.
    ForcedClosed,
}

impl State {
    const ALL: [Self; 5] = [
        Self::Closed,
        Self::Open,
        Self::HalfOpen,
        Self::ForcedOpen,
        Self::ForcedClosed,
    ];

    /// The name of the state, for a label: `closed`, `open`, `half_open`, `forced_open` or `forced_closed`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What brought a state about. Its `Display` is the reason in a few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Nothing has happened yet.
    New,
    /// Too many of the calls in the window failed.
    FailureRate {
        /// The calls that failed.
        failures: u32,
        /// All calls in the window.
        calls: u32,
    },
    /// Too many of the calls in the window were slow.
    SlowRate {
        /// The slow calls.
        slow: u32,
        /// All calls in the window.
        calls: u32,
    },
    /// Too many calls failed in a row.
    InARow {
        /// How many.
        failures: u32,
    },
    /// The open time was over, and somebody called.
    OpenTimeOver,
    /// A probe failed.
    ProbeFailed,
    /// The probes succeeded, but too many of them were slow.
    ProbesSlow {
        /// The slow ones.
        slow: u32,
        /// All that succeeded.
        probes: u32,
    },
    /// As many probes succeeded as it takes.
    ProbesSucceeded {
        /// How many.
        probes: u32,
    },
    /// Somebody forced it.
    Forced,
    /// Somebody released it.
    Released,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("nothing has happened yet"),
            Self::FailureRate { failures, calls } => {
                write!(f, "{failures} of {calls} calls failed")
            }
            Self::SlowRate { slow, calls } => write!(f, "{slow} of {calls} calls were slow"),
            Self::InARow { failures } => write!(f, "{failures} calls failed in a row"),
            Self::OpenTimeOver => f.write_str("the open time is over"),
            Self::ProbeFailed => f.write_str("a probe failed"),
            Self::ProbesSlow { slow, probes } => write!(f, "{slow} of {probes} probes were slow"),
            Self::ProbesSucceeded { probes } => write!(f, "{probes} probes succeeded"),
            Self::Forced => f.write_str("by force"),
            Self::Released => f.write_str("it was released"),
        }
    }
}

/// Why a call is refused, as one number: an atomic holds it, and a refusal takes it along to be written out later.
///
/// From the top: 4 bits for the state, 4 for the kind of cause, 28 for each of its two figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Why {
    pub(crate) state: State,
    pub(crate) cause: Cause,
}

impl Why {
    const FIGURE: u32 = 28;
    const MOST: u64 = (1 << Self::FIGURE) - 1;

    pub(crate) fn pack(self) -> u64 {
        let (kind, first, second) = match self.cause {
            Cause::New => (0, 0, 0),
            Cause::FailureRate { failures, calls } => (1, failures, calls),
            Cause::SlowRate { slow, calls } => (2, slow, calls),
            Cause::InARow { failures } => (3, failures, 0),
            Cause::OpenTimeOver => (4, 0, 0),
            Cause::ProbeFailed => (5, 0, 0),
            Cause::ProbesSlow { slow, probes } => (6, slow, probes),
            Cause::ProbesSucceeded { probes } => (7, probes, 0),
            Cause::Forced => (8, 0, 0),
            Cause::Released => (9, 0, 0),
        };
        let figure = |figure: u32| u64::from(figure).min(Self::MOST);
        (self.state as u64) << 60 | kind << 56 | figure(first) << Self::FIGURE | figure(second)
    }

    pub(crate) fn unpack(bits: u64) -> Self {
        let figure = |bits: u64| u32::try_from(bits & Self::MOST).unwrap_or(u32::MAX);
        let (first, second) = (figure(bits >> Self::FIGURE), figure(bits));
        let cause = match bits >> 56 & 15 {
            1 => Cause::FailureRate {
                failures: first,
                calls: second,
            },
            2 => Cause::SlowRate {
                slow: first,
                calls: second,
            },
            3 => Cause::InARow { failures: first },
            4 => Cause::OpenTimeOver,
            5 => Cause::ProbeFailed,
            6 => Cause::ProbesSlow {
                slow: first,
                probes: second,
            },
            7 => Cause::ProbesSucceeded { probes: first },
            8 => Cause::Forced,
            9 => Cause::Released,
            _ => Cause::New,
        };
        let state = State::ALL
            .into_iter()
            .find(|state| *state as u64 == bits >> 60);
        Self {
            state: state.unwrap_or(State::Open),
            cause,
        }
    }

    /// Is it the state that is open for a time?
    pub(crate) const fn is_open(bits: u64) -> bool {
        bits >> 60 == State::Open as u64
    }

    /// Writes a packed reason out.
    pub(crate) fn describe(bits: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, cause } = Self::unpack(bits);
        match state {
            State::Closed => write!(f, "closed, and taking calls on step by step: {cause}"),
            State::HalfOpen => f.write_str("half-open: its probes are under way"),
            State::ForcedOpen => f.write_str("forced open"),
            _ => write!(f, "open: {cause}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_being_packed() {
        let causes = [
            Cause::New,
            Cause::FailureRate {
                failures: 12,
                calls: 20,
            },
            Cause::SlowRate {
                slow: 1 << 27,
                calls: (1 << 28) - 1,
            },
            Cause::InARow { failures: 5 },
            Cause::OpenTimeOver,
            Cause::ProbeFailed,
            Cause::ProbesSlow { slow: 3, probes: 3 },
            Cause::ProbesSucceeded { probes: 3 },
            Cause::Forced,
            Cause::Released,
        ];
        for state in State::ALL {
            for cause in causes {
                let why = Why { state, cause };
                assert_eq!(Why::unpack(why.pack()), why);
            }
        }
        let many = Cause::FailureRate {
            failures: u32::MAX,
            calls: u32::MAX,
        };
        let why = Why {
            state: State::Open,
            cause: many,
        };
        assert_eq!(
            Why::unpack(why.pack()).cause.to_string(),
            "268435455 of 268435455 calls failed"
        );
    }
}
