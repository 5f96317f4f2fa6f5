//! Look at a breaker from outside, and overrule it.

use std::{sync::Arc, time::Duration};

use crate::{Cause, State, circuit::Phase, keys::Breakers, settings::Figures, shared::Shared};

/// One breaker, for its operator. See the [crate docs](crate) for an example.
///
/// A forced state outlasts everything but [`release`](Self::release), and every clone of the breaker's services keeps to
/// it from the moment that the method returns.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// The breakers of all keys, for their operator.
#[derive(Clone, Debug)]
pub struct Handles {
    breakers: Arc<Breakers>,
}

/// What a breaker knows at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The state.
    pub state: State,
    /// What brought the state about.
    pub cause: Cause,
    /// How long it has lasted.
    pub age: Duration,
    /// How long it is open for at least: nothing when it is not open, and zero when the next call is a probe.
    pub open_for: Option<Duration>,
    /// The percentage of calls that is let through: less than 100 when the breaker has just closed, 0 when it is open or
    /// half-open.
    pub percent: u8,
    /// The calls in the window; only the failures in a row, if the breaker goes by them alone.
    pub calls: u64,
    /// How many of them failed.
    pub failures: u64,
    /// How many of them were slow.
    pub slow: u64,
    /// How many failed since the last success.
    pub in_a_row: u32,
    /// The probes that are in flight.
    pub probes_in_flight: u32,
    /// The probes that have succeeded.
    pub probes_succeeded: u32,
    /// The transitions so far.
    pub transitions: u64,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The state. A breaker whose open time is over is open until somebody calls.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.look(|circuit, _, _| circuit.state())
    }

    /// The state with its figures.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.look(|circuit, figures, now| {
            let Figures {
                calls,
                failures,
                slow,
                in_a_row,
            } = figures;
            let (probes_in_flight, probes_succeeded) = circuit.probes(now);
            Snapshot {
                state: circuit.state(),
                cause: circuit.cause,
                age: now.saturating_duration_since(circuit.since),
                open_for: match circuit.phase {
                    Phase::Open { until } => Some(until.saturating_duration_since(now)),
                    _ => None,
                },
                percent: circuit.percent(now),
                calls,
                failures,
                slow,
                in_a_row,
                probes_in_flight,
                probes_succeeded,
                transitions: circuit.number,
            }
        })
    }

    /// The key, where there is a breaker for each.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.shared.key.as_deref()
    }

    /// Refuses every call from now on.
    pub fn force_open(&self) {
        self.shared.force(true);
    }

    /// Lets every call through from now on. They are counted, and nothing comes of it.
    pub fn force_closed(&self) {
        self.shared.force(false);
    }

    /// Ends a forced state: the breaker is closed, with nothing counted; if it was forced open it takes its load on step by
    /// step. Does nothing when nothing is forced.
    pub fn release(&self) {
        self.shared.release();
    }

    /// Forgets what was counted, in whatever state it is, and stays in that state.
    pub fn reset(&self) {
        self.shared.reset();
    }
}

impl Handles {
    pub(crate) fn new(breakers: Arc<Breakers>) -> Self {
        Self { breakers }
    }

    /// The breaker of a key, by the first 256 bytes of what its `Display` writes: for an authority that is `host:port` in
    /// lower case.
    ///
    /// There is none before the first call of the key, and none after it was idle for long: then the breaker is forgotten,
    /// and a handle that was taken before does not belong to the breaker that the next call makes.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Handle> {
        self.breakers.named(key).map(Handle::new)
    }

    /// The breakers of all keys that are known, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Handle> {
        let all = self.breakers.all().into_iter();
        all.map(Handle::new).collect()
    }
}
