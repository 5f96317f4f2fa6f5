//! What the client counts, from the events of its layers.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use buttress::{
    Applied,
    breaker::{self, ProbeResult, State},
    clock::{self, Instant},
    rate_limit,
    retry::{self, Cause, DelaySource, Outcome},
};

/// What the client counts.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<Totals>);

/// What it has counted.
#[derive(Debug, Default, Clone)]
pub(crate) struct Totals {
    /// Calls by their outcome.
    pub(crate) calls: BTreeMap<&'static str, u64>,
    /// Retries by what made them necessary.
    pub(crate) retries: BTreeMap<&'static str, u64>,
    /// Retries at a time that the server named.
    pub(crate) hinted: u64,
    /// The sum of the delays before retries.
    pub(crate) asleep: Duration,
    pub(crate) sends: u64,
    /// Sends that waited for their turn.
    pub(crate) waits: u64,
    /// The sum of their waits.
    pub(crate) waited: Duration,
    pub(crate) longest_wait: Duration,
    /// What never had its turn.
    pub(crate) not_sent: BTreeMap<&'static str, u64>,
    pub(crate) connections: u64,
    /// Calls that the breaker refused, by its state.
    pub(crate) refused: BTreeMap<&'static str, u64>,
    /// Its probes by their result.
    pub(crate) probes: BTreeMap<&'static str, u64>,
    /// Its transitions in their order.
    pub(crate) transitions: BTreeMap<u64, Transition>,
}

/// A transition of the breaker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transition {
    pub(crate) at: Instant,
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) cause: breaker::Cause,
}

impl Counts {
    pub(crate) fn totals(&self) -> Totals {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Totals> {
        self.0.lock().unwrap()
    }

    pub(crate) fn connection(&self) {
        self.lock().connections += 1;
    }

    pub(crate) fn breaker(&self, event: &breaker::Event) {
        let mut totals = self.lock();
        match event {
            breaker::Event::Refused { state, .. } => {
                let state = match state {
                    State::Open => "open",
                    State::HalfOpen => "half-open",
                    _ => "closed, but on its ramp",
                };
                *totals.refused.entry(state).or_default() += 1;
            }
            breaker::Event::Probe { result, .. } => {
                let result = match result {
                    ProbeResult::Ok => "ok",
                    ProbeResult::Failed => "failed",
                    ProbeResult::Ignored => "said nothing (429)",
                    ProbeResult::Cancelled => "given up",
                    ProbeResult::LeaseExpired => "out of time",
                    _ => "too late to count",
                };
                *totals.probes.entry(result).or_default() += 1;
            }
            breaker::Event::Transition {
                from,
                to,
                cause,
                number,
                ..
            } => {
                let transition = Transition {
                    at: clock::now(),
                    from: *from,
                    to: *to,
                    cause: *cause,
                };
                totals.transitions.insert(*number, transition);
            }
            _ => {}
        }
    }

    pub(crate) fn pace(&self, event: &rate_limit::Event) {
        let mut totals = self.lock();
        let why = match event {
            rate_limit::Event::Admitted { waited, .. } => {
                totals.sends += 1;
                totals.waits += u64::from(!waited.is_zero());
                totals.waited += *waited;
                totals.longest_wait = totals.longest_wait.max(*waited);
                return;
            }
            rate_limit::Event::Refused { .. } => "refused, as the line was too long",
            rate_limit::Event::Cancelled { .. } => "given up in the line",
            _ => return,
        };
        *totals.not_sent.entry(why).or_default() += 1;
    }

    pub(crate) fn retry(&self, event: &retry::Event) {
        let mut totals = self.lock();
        match event {
            retry::Event::Retry {
                delay,
                source,
                cause,
                verdict,
                ..
            } => {
                totals.asleep += *delay;
                totals.hinted += u64::from(*source == DelaySource::Hint);
                let cause = match cause {
                    Cause::Response(Some(status)) if *status == 409 => "409, in flight",
                    Cause::Response(Some(status)) if *status == 429 => "429",
                    Cause::Response(Some(status)) if *status == 500 => "500",
                    Cause::Response(Some(status)) if *status == 503 => "503",
                    Cause::Error if verdict.applied == Applied::No => "connect refused",
                    Cause::Error => "connection lost",
                    Cause::TimedOut => "no answer in time",
                    _ => "other",
                };
                *totals.retries.entry(cause).or_default() += 1;
            }
            retry::Event::Finished { outcome, .. } => {
                let outcome = match outcome {
                    Outcome::Ok => "ok",
                    Outcome::OkAfterRetry => "ok after retries",
                    Outcome::Attempts => "out of retries",
                    Outcome::Budget => "out of budget",
                    Outcome::Refused => "refused by a layer below",
                    _ => "other",
                };
                *totals.calls.entry(outcome).or_default() += 1;
            }
            _ => {}
        }
    }
}
