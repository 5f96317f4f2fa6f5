//! What a retry layer says.

use std::sync::Arc;

use buttress_retry::{Cause, DelaySource, Event, Outcome};
use metrics::{Counter, Histogram};
use tracing::Level;

use crate::register::{Counters, Labels};

const TARGET: &str = "buttress::retry";

/// Listens to a retry layer: give it to `RetryLayer::on_event`. The name becomes the label `name` of its metrics, and
/// the field `buttress.name` of its lines. See the [crate docs](crate) for an example.
pub fn retry(name: impl Into<Arc<str>>) -> impl Fn(&Event) + Send + Sync + 'static {
    let name = name.into();
    let metrics = Metrics::new(&Labels::named(&name));
    move |event| {
        metrics.record(event);
        tell(&name, event);
    }
}

struct Metrics {
    calls: Counters,
    sends: Counter,
    retries: Counters,
    delays: Histogram,
}

impl Metrics {
    fn new(labels: &Labels) -> Self {
        Self {
            calls: labels.counters(
                "buttress_retry_calls_total",
                "outcome",
                &OUTCOMES.map(outcome),
                "Calls that have ended",
            ),
            sends: labels.counter(
                "buttress_retry_sends_total",
                "Requests that the service below the retry layer was given, by calls that have ended",
            ),
            retries: labels.counters(
                "buttress_retry_retries_total",
                "cause",
                &CAUSES.map(cause),
                "Retries that were due, by what the attempt before came to",
            ),
            delays: labels.seconds(
                "buttress_retry_delay_seconds",
                "Time between an attempt and its retry",
            ),
        }
    }

    fn record(&self, event: &Event) {
        match event {
            Event::Finished {
                outcome: how,
                sends,
                ..
            } => {
                self.calls.count(outcome(*how));
                self.sends.increment((*sends).into());
            }
            Event::Retry {
                cause: why, delay, ..
            } => {
                self.retries.count(cause(*why));
                self.delays.record(*delay);
            }
            _ => {}
        }
    }
}

fn tell(name: &str, event: &Event) {
    match event {
        Event::Finished {
            outcome: how @ (Outcome::Ok | Outcome::OkAfterRetry),
            sends,
            ..
        } => tracing::event!(
            name: "buttress.retry.succeeded",
            target: TARGET,
            Level::TRACE,
            buttress.name = name,
            outcome = outcome(*how),
            sends,
            "a call has succeeded"
        ),
        Event::Finished {
            outcome: how,
            sends,
            ..
        } => tracing::event!(
            name: "buttress.retry.failed",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            outcome = outcome(*how),
            sends,
            "a call has not succeeded"
        ),
        Event::Retry {
            number,
            delay,
            source: from,
            cause: why,
            ..
        } => tracing::event!(
            name: "buttress.retry.retry",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            http.request.resend_count = number,
            delay_seconds = delay.as_secs_f64(),
            delay_source = source(*from),
            cause = cause(*why),
            http.response.status_code = status(*why),
            "an attempt has failed, and a retry is due"
        ),
        _ => {}
    }
}

fn status(cause: Cause) -> Option<u16> {
    match cause {
        Cause::Response(status) => status.map(|status| status.as_u16()),
        _ => None,
    }
}

const OUTCOMES: [Outcome; 11] = [
    Outcome::Ok,
    Outcome::OkAfterRetry,
    Outcome::Attempts,
    Outcome::Budget,
    Outcome::Deadline,
    Outcome::NotRetryable,
    Outcome::NotIdempotent,
    Outcome::BodyNotReplayable,
    Outcome::Refused,
    Outcome::Vetoed,
    Outcome::Cancelled,
];

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::OkAfterRetry => "ok_after_retry",
        Outcome::Attempts => "attempts",
        Outcome::Budget => "budget",
        Outcome::Deadline => "deadline",
        Outcome::NotRetryable => "not_retryable",
        Outcome::NotIdempotent => "not_idempotent",
        Outcome::BodyNotReplayable => "body_not_replayable",
        Outcome::Refused => "refused",
        Outcome::Vetoed => "vetoed",
        Outcome::Cancelled => "cancelled",
        _ => "other",
    }
}

const CAUSES: [Cause; 4] = [
    Cause::Response(None),
    Cause::Error,
    Cause::TimedOut,
    Cause::Refused,
];

fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Response(_) => "response",
        Cause::Error => "error",
        Cause::TimedOut => "timed_out",
        Cause::Refused => "refused",
        _ => "other",
    }
}

fn source(source: DelaySource) -> &'static str {
    match source {
        DelaySource::Backoff => "backoff",
        DelaySource::Hint => "hint",
        DelaySource::Pushback => "pushback",
        _ => "other",
    }
}
