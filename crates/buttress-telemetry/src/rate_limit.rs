//! What a limiter says.

use std::sync::Arc;

use buttress_rate_limit::{Event, Reason};
use metrics::{Counter, Histogram};
use tracing::Level;

use crate::register::{Counters, Labels};

const TARGET: &str = "buttress::rate_limit";

/// Listens to a limiter: give it to `RateLimitLayer::on_event`. The name becomes the label `name` of its metrics, and the
/// field `buttress.name` of its lines. See the [crate docs](crate) for an example.
///
/// Where there is a limit for each key, the key is in no metric and in no line: it may be somebody's address or token. A
/// sink of your own hears of it.
pub fn rate_limit(name: impl Into<Arc<str>>) -> impl Fn(&Event) + Send + Sync + 'static {
    let name = name.into();
    let metrics = Metrics::new(&Labels::named(&name));
    move |event| {
        metrics.record(event);
        tell(&name, event);
    }
}

struct Metrics {
    admissions: Counter,
    tokens: Counter,
    waits: Histogram,
    refusals: Counters,
    shadow_refusals: Counters,
    shadow_waits: Histogram,
    cancellations: Counter,
    evictions: Counter,
    overflows: Counter,
}

impl Metrics {
    fn new(labels: &Labels) -> Self {
        let reasons = REASONS.map(reason);
        Self {
            admissions: labels.counter(
                "buttress_rate_limit_admissions_total",
                "Calls that were let through",
            ),
            tokens: labels.counter(
                "buttress_rate_limit_tokens_total",
                "Tokens that the calls that were let through have taken",
            ),
            waits: labels.seconds(
                "buttress_rate_limit_wait_seconds",
                "Time that a call had to wait until it was let through",
            ),
            refusals: labels.counters(
                "buttress_rate_limit_refusals_total",
                "reason",
                &reasons,
                "Calls that were refused",
            ),
            shadow_refusals: labels.counters(
                "buttress_rate_limit_shadow_refusals_total",
                "reason",
                &reasons,
                "Calls that would have been refused if it were not for shadow mode",
            ),
            shadow_waits: labels.seconds(
                "buttress_rate_limit_shadow_wait_seconds",
                "Time that a call would have had to wait if it were not for shadow mode",
            ),
            cancellations: labels.counter(
                "buttress_rate_limit_cancellations_total",
                "Calls that were dropped while they waited, or before they were made",
            ),
            evictions: labels.counter(
                "buttress_rate_limit_evictions_total",
                "Keys that were forgotten to make room for others",
            ),
            overflows: labels.counter(
                "buttress_rate_limit_overflows_total",
                "Times that there was no room for a key, and its call fell under a limit that it shares",
            ),
        }
    }

    fn record(&self, event: &Event) {
        match event {
            Event::Admitted { waited, cost, .. } => {
                self.admissions.increment(1);
                self.tokens.increment(*cost);
                self.waits.record(*waited);
            }
            Event::Refused {
                reason: why,
                shadow: false,
                ..
            } => self.refusals.count(reason(*why)),
            Event::Refused { reason: why, .. } => self.shadow_refusals.count(reason(*why)),
            Event::WouldWait { wait, .. } => self.shadow_waits.record(*wait),
            Event::Cancelled { .. } => self.cancellations.increment(1),
            Event::Evicted => self.evictions.increment(1),
            Event::Overflow => self.overflows.increment(1),
            _ => {}
        }
    }
}

fn tell(name: &str, event: &Event) {
    match event {
        Event::Admitted { waited, cost, .. } => tracing::event!(
            name: "buttress.rate_limit.admitted",
            target: TARGET,
            Level::TRACE,
            buttress.name = name,
            waited_seconds = waited.as_secs_f64(),
            tokens = cost,
            "a call was let through"
        ),
        Event::Refused {
            reason: why,
            quota,
            cost,
            retry_after,
            shadow,
            ..
        } => tracing::event!(
            name: "buttress.rate_limit.refused",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            reason = reason(*why),
            quota,
            tokens = cost,
            retry_after_seconds = retry_after.map(|time| time.as_secs_f64()),
            shadow,
            "a call was refused"
        ),
        Event::WouldWait { wait, cost, .. } => tracing::event!(
            name: "buttress.rate_limit.would_wait",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            wait_seconds = wait.as_secs_f64(),
            tokens = cost,
            "a call would have had to wait"
        ),
        Event::Cancelled { waited, cost, .. } => tracing::event!(
            name: "buttress.rate_limit.cancelled",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            waited_seconds = waited.as_secs_f64(),
            tokens = cost,
            "a call was dropped before it was let through"
        ),
        Event::Evicted => tracing::event!(
            name: "buttress.rate_limit.evicted",
            target: TARGET,
            Level::TRACE,
            buttress.name = name,
            "a key was forgotten to make room for another one"
        ),
        Event::Overflow => tracing::event!(
            name: "buttress.rate_limit.overflow",
            target: TARGET,
            Level::DEBUG,
            buttress.name = name,
            "there was no room for a key"
        ),
        _ => {}
    }
}

const REASONS: [Reason; 2] = [Reason::Exceeded, Reason::TooLarge];

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Exceeded => "exceeded",
        Reason::TooLarge => "too_large",
        _ => "other",
    }
}
