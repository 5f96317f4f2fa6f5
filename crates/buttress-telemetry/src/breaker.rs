//! What a breaker says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Once, PoisonError},
};

use buttress_breaker::{Event, Outcome, ProbeResult, Reason, State};
use metrics::{Counter, Gauge};
use tracing::Level;

use crate::{
    register::{Counters, Labels},
    states::Heard,
};

const TARGET: &str = "buttress::breaker";

/// Listens to a breaker: give it to `BreakerLayer::on_event`. The name becomes the label `name` of its metrics, and the
/// field `buttress.name` of its lines. See the [crate docs](crate) for an example.
///
/// For a layer with a breaker for each key, the counters count the calls of all keys. There is no one state then: from the
/// first event of a key on all gauges are 0, and each key has its own with [`breaker_by_key`].
pub fn breaker(name: impl Into<Arc<str>>) -> impl Fn(&Event) + Send + Sync + 'static {
    let name = name.into();
    let labels = Labels::named(&name);
    let (metrics, gauges) = (Metrics::new(&labels), Gauges::new(&labels));
    let keys = Keys::new(&labels);
    let many = Once::new();
    move |event| {
        keys.record(event);
        metrics.record(event);
        if key(event).is_some() {
            many.call_once(|| gauges.end());
        } else {
            gauges.record(event);
        }
        tell(&name, event);
    }
}

/// As [`breaker`], for a layer with a breaker for each key: each key has metrics of its own, with the label `key`.
///
/// Nothing bounds their number, neither here nor in most systems that collect them: use it for keys that are few, as the
/// authorities of services that you run, and never for what a stranger may choose. The metrics of a key are made at its
/// first event. When the layer forgets a key, its gauges are those of a closed breaker, which is what its next call has.
pub fn breaker_by_key(name: impl Into<Arc<str>>) -> impl Fn(&Event) + Send + Sync + 'static {
    let name = name.into();
    let labels = Labels::named(&name);
    let keys = Keys::new(&labels);
    let each = Mutex::new(HashMap::<Arc<str>, Arc<(Metrics, Gauges)>>::new());
    move |event| {
        keys.record(event);
        let lock = || each.lock().unwrap_or_else(PoisonError::into_inner);
        if let Event::Forgotten { key, .. } = event {
            let of_key = lock().remove(key);
            of_key.inspect(|of_key| of_key.1.begin());
        } else if let Some(key) = key(event) {
            let mut each = lock();
            let known = each.get(key).cloned();
            let of_key = known.unwrap_or_else(|| {
                let labels = labels.with("key", key.clone());
                let new = Arc::new((Metrics::new(&labels), Gauges::new(&labels)));
                each.insert(key.clone(), new.clone());
                new
            });
            drop(each);
            of_key.0.record(event);
            of_key.1.record(event);
        }
        tell(&name, event);
    }
}

/// Whose breaker it is, where there is one for each key.
fn key(event: &Event) -> Option<&Arc<str>> {
    match event {
        Event::Call { key, .. }
        | Event::Refused { key, .. }
        | Event::Transition { key, .. }
        | Event::Probe { key, .. }
        | Event::Ramp { key, .. } => key.as_ref(),
        Event::Forgotten { key, .. } => Some(key),
        _ => None,
    }
}

/// What becomes of keys.
struct Keys {
    forgotten: Counter,
    untracked: Counter,
}

impl Keys {
    fn new(labels: &Labels) -> Self {
        Self {
            forgotten: labels.counter(
                "buttress_breaker_forgotten_keys_total",
                "Keys that were forgotten, as nobody had asked for them in a long time, or to make room for others",
            ),
            untracked: labels.counter(
                "buttress_breaker_untracked_calls_total",
                "Calls that were let through without a breaker, as there was no room for that of their key",
            ),
        }
    }

    fn record(&self, event: &Event) {
        match event {
            Event::Forgotten { .. } => self.forgotten.increment(1),
            Event::Untracked => self.untracked.increment(1),
            _ => {}
        }
    }
}

struct Metrics {
    calls: Counters,
    slow: Counter,
    refusals: Counters,
    shadow_refusals: Counters,
    transitions: Counters,
    probes: Counters,
}

impl Metrics {
    fn new(labels: &Labels) -> Self {
        let refusing = [
            State::Closed,
            State::Open,
            State::HalfOpen,
            State::ForcedOpen,
        ];
        let refusing = refusing.map(State::as_str);
        Self {
            calls: labels.counters(
                "buttress_breaker_calls_total",
                "outcome",
                &OUTCOMES.map(outcome),
                "Calls that were let through and have ended",
            ),
            slow: labels.counter(
                "buttress_breaker_slow_calls_total",
                "Calls among them that took longer than a call should",
            ),
            refusals: labels.counters(
                "buttress_breaker_refusals_total",
                "state",
                &refusing,
                "Calls that were refused",
            ),
            shadow_refusals: labels.counters(
                "buttress_breaker_shadow_refusals_total",
                "state",
                &refusing,
                "Calls that would have been refused if it were not for shadow mode",
            ),
            transitions: labels.counters(
                "buttress_breaker_transitions_total",
                "to",
                &STATES.map(State::as_str),
                "Transitions, by the state that they led to",
            ),
            probes: labels.counters(
                "buttress_breaker_probes_total",
                "result",
                &RESULTS.map(result),
                "Probes that have ended, or whose lease has",
            ),
        }
    }

    fn record(&self, event: &Event) {
        match event {
            Event::Call {
                outcome: how, slow, ..
            } => {
                self.calls.count(outcome(*how));
                self.slow.increment((*slow).into());
            }
            Event::Refused {
                state,
                shadow: false,
                ..
            } => self.refusals.count(state.as_str()),
            Event::Refused { state, .. } => self.shadow_refusals.count(state.as_str()),
            Event::Transition { to, .. } => self.transitions.count(to.as_str()),
            Event::Probe { result: what, .. } => self.probes.count(result(*what)),
            _ => {}
        }
    }
}

/// The gauges of one breaker.
struct Gauges {
    states: [(State, Gauge); 5],
    ramp: Gauge,
    /// The state that is shown, and what was heard of; locked while they are set.
    shown: Mutex<(State, Heard)>,
}

impl Gauges {
    fn new(labels: &Labels) -> Self {
        metrics::describe_gauge!(
            "buttress_breaker_state",
            "1 for the state that the breaker is in, and 0 for the others"
        );
        metrics::describe_gauge!(
            "buttress_breaker_ramp_ratio",
            "Share of the calls that a closed breaker lets through, which is below 1 right after it has closed"
        );
        let states = STATES.map(|state| {
            let labels = labels.with("state", state.as_str());
            (
                state,
                metrics::gauge!("buttress_breaker_state", labels.get()),
            )
        });
        let gauges = Self {
            states,
            ramp: metrics::gauge!("buttress_breaker_ramp_ratio", labels.get()),
            shown: Mutex::new((State::Closed, Heard::default())),
        };
        gauges.begin();
        gauges
    }

    /// Shows a new breaker. The gauges may have been those of another, so that all are 0 first.
    fn begin(&self) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = (State::Closed, Heard::default());
        self.end();
        self.set(State::Closed, 1.0);
        self.ramp.set(1.0);
    }

    fn record(&self, event: &Event) {
        match event {
            Event::Transition { to, number, .. } => self.show(*to, *number),
            Event::Ramp { percent, .. } => self.ramp.set(f64::from(*percent) / 100.0),
            _ => {}
        }
    }

    /// Shows a state, unless a newer one is shown. Two gauges cannot be set at once: for a moment none is 1, but never two.
    fn show(&self, state: State, number: u64) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.1.is_newest(number) {
            self.set(shown.0, 0.0);
            self.set(state, 1.0);
            shown.0 = state;
            // If it has closed to a part of the calls, that is told next.
            self.ramp.set(1.0);
        }
    }

    fn set(&self, state: State, value: f64) {
        let gauge = self.states.iter().find(|(known, _)| *known == state);
        if let Some((_, gauge)) = gauge {
            gauge.set(value);
        }
    }

    /// There is no one breaker to show.
    fn end(&self) {
        for (_, gauge) in &self.states {
            gauge.set(0.0);
        }
        self.ramp.set(0.0);
    }
}

fn tell(name: &str, event: &Event) {
    let key = key(event).map(|key| &**key);
    match event {
        Event::Call {
            outcome: how,
            reason: why,
            slow,
            counted,
            ..
        } => tracing::event!(
            name: "buttress.breaker.call",
            target: TARGET,
            Level::TRACE,
            buttress.name = name,
            key,
            outcome = outcome(*how),
            reason = reason(*why),
            slow,
            counted,
            "a call has ended"
        ),
        Event::Refused {
            state,
            cause,
            shadow,
            ..
        } => tracing::event!(
            name: "buttress.breaker.refused",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            key,
            state = state.as_str(),
            %cause,
            shadow,
            "a call was refused"
        ),
        Event::Transition { .. } => tell_transition(name, key, event),
        Event::Probe { result: what, .. } => tracing::event!(
            name: "buttress.breaker.probe",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            key,
            result = result(*what),
            "a probe has ended"
        ),
        Event::Ramp { percent, .. } => tracing::event!(
            name: "buttress.breaker.ramp",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            key,
            percent,
            "the share of calls that is let through has changed"
        ),
        Event::Forgotten { .. } => tracing::event!(
            name: "buttress.breaker.forgotten",
            target: TARGET,
            Level::TRACE,
            buttress.name = name,
            key,
            "a key was forgotten"
        ),
        Event::Untracked => tracing::event!(
            name: "buttress.breaker.untracked",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            "there was no room for the breaker of a call"
        ),
        _ => {}
    }
}

fn tell_transition(name: &str, key: Option<&str>, event: &Event) {
    match event {
        Event::Transition {
            from,
            to: to @ State::Open,
            cause,
            open_for,
            number,
            ..
        } => tracing::event!(
            name: "buttress.breaker.opened",
            target: TARGET,
            Level::WARN,
            buttress.name = name,
            key,
            from = from.as_str(),
            to = to.as_str(),
            %cause,
            open_for_seconds = open_for.map(|time| time.as_secs_f64()),
            number,
            "the breaker has opened"
        ),
        Event::Transition {
            from,
            to,
            cause,
            number,
            ..
        } => tracing::event!(
            name: "buttress.breaker.changed",
            target: TARGET,
            Level::INFO,
            buttress.name = name,
            key,
            from = from.as_str(),
            to = to.as_str(),
            %cause,
            number,
            "the breaker has changed its state"
        ),
        _ => {}
    }
}

const STATES: [State; 5] = [
    State::Closed,
    State::Open,
    State::HalfOpen,
    State::ForcedOpen,
    State::ForcedClosed,
];

const OUTCOMES: [Outcome; 4] = [
    Outcome::Success,
    Outcome::Failure,
    Outcome::Ignored,
    Outcome::Cancelled,
];

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Success => "success",
        Outcome::Failure => "failure",
        Outcome::Ignored => "ignored",
        Outcome::Cancelled => "cancelled",
        _ => "other",
    }
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Response => "response",
        Reason::Error => "error",
        Reason::Body => "body",
        Reason::Panic => "panic",
        Reason::Patience => "patience",
        Reason::Dropped => "dropped",
        _ => "other",
    }
}

const RESULTS: [ProbeResult; 6] = [
    ProbeResult::Ok,
    ProbeResult::Failed,
    ProbeResult::Ignored,
    ProbeResult::Cancelled,
    ProbeResult::LeaseExpired,
    ProbeResult::Stale,
];

fn result(result: ProbeResult) -> &'static str {
    match result {
        ProbeResult::Ok => "ok",
        ProbeResult::Failed => "failed",
        ProbeResult::Ignored => "ignored",
        ProbeResult::Cancelled => "cancelled",
        ProbeResult::LeaseExpired => "lease_expired",
        ProbeResult::Stale => "stale",
        _ => "other",
    }
}
