//! What an idempotency layer says.

use std::sync::Arc;

use buttress_idempotency::{Event, Operation, StoreErrorKind};
use metrics::{Counter, Histogram};
use tracing::Level;

use crate::register::{Counters, Labels};

const TARGET: &str = "buttress::idempotency";

/// Listens to an idempotency layer of a server: give it to `IdempotencyLayer::on_event`. The name becomes the label `name`
/// of its metrics, and the field `buttress.name` of its lines. See the [crate docs](crate) for an example.
///
/// What an operator does is a line that says who did what to which record: whose it is (its scope), and the hash of its
/// key. No other line and no metric says whose a request is, and the key itself is in none.
pub fn idempotency(name: impl Into<Arc<str>>) -> impl Fn(&Event) + Send + Sync + 'static {
    let name = name.into();
    let metrics = Metrics::new(&Labels::named(&name));
    move |event| {
        metrics.record(event);
        tell(&name, event);
    }
}

struct Metrics {
    runs: Counter,
    run_ends: Counters,
    run_times: Histogram,
    omitted: Counter,
    duplicates: Counters,
    rejections: Counter,
    store_errors: Counters,
    operations: Counters,
}

impl Metrics {
    fn new(labels: &Labels) -> Self {
        Self {
            runs: labels.counter("buttress_idempotency_runs_total", "Handlers that were run"),
            run_ends: labels.counters(
                "buttress_idempotency_run_ends_total",
                "outcome",
                &["completed", "released", "abandoned", "superseded"],
                "What became of the runs",
            ),
            run_times: labels.seconds(
                "buttress_idempotency_run_seconds",
                "Time until a handler had answered, and its answer was kept",
            ),
            omitted: labels.counter(
                "buttress_idempotency_omitted_bodies_total",
                "Answers that were kept without their bodies, which were too large",
            ),
            duplicates: labels.counters(
                "buttress_idempotency_duplicates_total",
                "outcome",
                &["replayed", "in_flight", "outcome_unknown", "mismatch"],
                "Requests with a key that was there before, by what they got",
            ),
            rejections: labels.counter(
                "buttress_idempotency_rejections_total",
                "Requests without a key or with none that can be one, or of nobody",
            ),
            store_errors: labels.counters(
                "buttress_idempotency_store_errors_total",
                "kind",
                &KINDS.map(kind),
                "Operations that the store failed at",
            ),
            operations: labels.counters(
                "buttress_idempotency_operations_total",
                "operation",
                &OPERATIONS.map(operation),
                "What operators did, or tried to do",
            ),
        }
    }

    fn record(&self, event: &Event) {
        match event {
            Event::Run { .. } => self.runs.increment(1),
            Event::Completed { took, omitted, .. } => {
                self.run_ends.count("completed");
                self.run_times.record(*took);
                self.omitted.increment((*omitted).into());
            }
            Event::Released => self.run_ends.count("released"),
            Event::Abandoned => self.run_ends.count("abandoned"),
            Event::Superseded => self.run_ends.count("superseded"),
            Event::Replayed => self.duplicates.count("replayed"),
            Event::InFlight => self.duplicates.count("in_flight"),
            Event::OutcomeUnknown => self.duplicates.count("outcome_unknown"),
            Event::Mismatch => self.duplicates.count("mismatch"),
            Event::Rejected => self.rejections.increment(1),
            Event::StoreFailed { kind: why, .. } => self.store_errors.count(kind(*why)),
            Event::Operated {
                operation: what, ..
            } => self.operations.count(operation(*what)),
            _ => {}
        }
    }
}

fn tell(name: &str, event: &Event) {
    match event {
        Event::Run { .. } | Event::Completed { .. } | Event::Released => tell_run(name, event),
        Event::Abandoned => tracing::event!(
            name: "buttress.idempotency.abandoned",
            target: TARGET,
            Level::WARN,
            buttress.name = name,
            "a run has ended, and it is not known what it has done"
        ),
        Event::Superseded => tracing::event!(
            name: "buttress.idempotency.superseded",
            target: TARGET,
            Level::ERROR,
            buttress.name = name,
            "a run has ended whose key was not its own any more: its effects may be there twice"
        ),
        Event::OutcomeUnknown => tracing::event!(
            name: "buttress.idempotency.outcome_unknown",
            target: TARGET,
            Level::WARN,
            buttress.name = name,
            "a duplicate has come, and it is not known what the first request has done"
        ),
        Event::StoreFailed {
            kind: why @ (StoreErrorKind::Full | StoreErrorKind::ScopeFull),
            ..
        } => tracing::event!(
            name: "buttress.idempotency.store_full",
            target: TARGET,
            Level::WARN,
            buttress.name = name,
            error.type = kind(*why),
            "the store has no room"
        ),
        Event::StoreFailed { kind: why, .. } => tracing::event!(
            name: "buttress.idempotency.store_failed",
            target: TARGET,
            Level::ERROR,
            buttress.name = name,
            error.type = kind(*why),
            "the store has failed"
        ),
        Event::Operated {
            operation: what,
            key,
            by,
            done,
            ..
        } => tracing::event!(
            name: "buttress.idempotency.operated",
            target: TARGET,
            Level::INFO,
            buttress.name = name,
            operation = operation(*what),
            by = by.as_deref(),
            record = key.as_ref().map(tracing::field::debug),
            done,
            "an operator has done something"
        ),
        _ => tell_answer(name, event),
    }
}

fn tell_run(name: &str, event: &Event) {
    match event {
        Event::Run { fence, .. } => tracing::event!(
            name: "buttress.idempotency.run",
            target: TARGET,
            Level::TRACE,
            buttress.name = name,
            fence,
            "the handler is run"
        ),
        Event::Completed { took, omitted, .. } => tracing::event!(
            name: "buttress.idempotency.completed",
            target: TARGET,
            Level::TRACE,
            buttress.name = name,
            took_seconds = took.as_secs_f64(),
            omitted,
            "the handler has answered, and its answer is kept"
        ),
        Event::Released => tracing::event!(
            name: "buttress.idempotency.released",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            "a key is free again"
        ),
        _ => {}
    }
}

/// What a request got without a run.
fn tell_answer(name: &str, event: &Event) {
    match event {
        Event::Replayed => tracing::event!(
            name: "buttress.idempotency.replayed",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            "a duplicate got the answer to the first request"
        ),
        Event::InFlight => tracing::event!(
            name: "buttress.idempotency.in_flight",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            "a duplicate came while the first request was running"
        ),
        Event::Mismatch => tracing::event!(
            name: "buttress.idempotency.mismatch",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            "a key belongs to another request"
        ),
        Event::Rejected => tracing::event!(
            name: "buttress.idempotency.rejected",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            "a request has no key, or none that can be one, or is nobody's"
        ),
        _ => {}
    }
}

const KINDS: [StoreErrorKind; 5] = [
    StoreErrorKind::Unavailable,
    StoreErrorKind::TimedOut,
    StoreErrorKind::Damaged,
    StoreErrorKind::ScopeFull,
    StoreErrorKind::Full,
];

fn kind(kind: StoreErrorKind) -> &'static str {
    match kind {
        StoreErrorKind::Unavailable => "unavailable",
        StoreErrorKind::TimedOut => "timed_out",
        StoreErrorKind::Damaged => "damaged",
        StoreErrorKind::ScopeFull => "scope_full",
        StoreErrorKind::Full => "full",
        _ => "other",
    }
}

const OPERATIONS: [Operation; 5] = [
    Operation::List,
    Operation::Show,
    Operation::Settle,
    Operation::Release,
    Operation::Purge,
];

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::List => "list",
        Operation::Show => "show",
        Operation::Settle => "settle",
        Operation::Release => "release",
        Operation::Purge => "purge",
        _ => "other",
    }
}
