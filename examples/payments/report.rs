//! What the user sees at the end: a table, what the breaker did, and what to look at next.

use std::{fmt, time::Duration};

use buttress::{breaker::State, clock::Instant};
use comfy_table::Table;

use crate::{
    advice,
    args::Args,
    counts::Totals,
    ledger::Audit,
    outbox::Delivery,
    seen::Seen,
    table::{Rows, between, millis, ratio, seconds},
};

/// So many sends may be made for a payment, where no more than three in ten meet a fault.
const MOST_SENDS: f64 = 1.6;

/// Of fewer payments too many are under way when the server is killed to say so.
const MANY: u64 = 10_000;

/// How many lines of the timeline are shown.
const TIMELINE: usize = 30;

/// Everything that is known at the end.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) args: Args,
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
    pub(crate) delivery: Delivery,
    pub(crate) counts: Totals,
    pub(crate) seen: Seen,
    pub(crate) audit: Audit,
}

impl Report {
    fn table(&self) -> Table {
        let (counts, audit) = (&self.counts, self.audit);
        let refused: u64 = counts.refused.values().sum();
        let mut rows = Rows::new();
        rows.group("the job");
        rows.count("payments", self.args.payments);
        rows.text("time", &seconds(between(self.started, self.ended)));
        rows.group("calls");
        rows.counts("", &counts.calls);
        rows.count("all", counts.calls.values().sum());
        rows.count("for one payment, at most", self.delivery.most_calls.into());
        rows.group("retries");
        rows.counts("", &counts.retries);
        rows.count("all", counts.retries.values().sum());
        rows.count("at a time that the server named", counts.hinted);
        rows.text("asleep before them, in sum", &seconds(counts.asleep));
        rows.group("sends");
        rows.count("all", counts.sends);
        rows.text("per payment", &format!("{:.2}", self.amplification()));
        rows.count("connections opened", counts.connections);
        rows.group("the pace");
        rows.count("sends a second, at most", self.args.rate.get().into());
        rows.count("sends that waited for their turn", counts.waits);
        let waits = u32::try_from(counts.waits.max(1)).unwrap_or(u32::MAX);
        rows.text("waited, on average", &millis(counts.waited / waits));
        rows.text("waited, at most", &millis(counts.longest_wait));
        rows.counts("", &counts.not_sent);
        rows.group(if self.args.shadow {
            "in shadow"
        } else {
            "the breaker"
        });
        rows.count("opened", self.turns(State::Open));
        rows.count("closed again", self.turns(State::Closed));
        rows.text("open or half-open for, in sum", &seconds(self.not_closed()));
        rows.counts("refused, ", &counts.refused);
        rows.count("refused, all", refused);
        rows.counts("probes ", &counts.probes);
        for kill in &self.seen.kills {
            rows.group("a kill");
            if let Some(back) = kill.back {
                rows.text("the server was gone for", &seconds(between(kill.at, back)));
                if let Some(next) = kill.next {
                    rows.text("then to the next payment", &seconds(between(back, next)));
                }
            }
        }
        rows.group("faults met");
        rows.counts("", &self.seen.faults);
        rows.count("all", self.seen.faults.values().sum());
        rows.group("the server");
        rows.counts("", &self.seen.answers);
        rows.group("the ledger");
        rows.count("lines", audit.lines);
        rows.count("duplicates", audit.duplicates);
        rows.count("lost", audit.lost);
        rows.count("never acknowledged", self.delivery.left as u64);
        rows.table
    }

    /// How often the breaker came to this state.
    fn turns(&self, to: State) -> u64 {
        let turns = self.counts.transitions.values();
        turns.filter(|turn| turn.to == to).count() as u64
    }

    /// The states that the breaker came to, each with its beginning and its end.
    pub(crate) fn states(&self) -> impl Iterator<Item = (State, Instant, Instant)> {
        let turns = self.counts.transitions.values();
        let ends = turns.clone().skip(1).map(|turn| turn.at);
        turns
            .zip(ends.chain([self.ended]))
            .map(|(turn, end)| (turn.to, turn.at, end))
    }

    /// How long the breaker was open or half-open.
    fn not_closed(&self) -> Duration {
        self.states()
            .filter(|(state, ..)| *state != State::Closed)
            .map(|(_, from, to)| between(from, to))
            .sum()
    }

    /// What the breaker did, and why, with the kills beside it.
    fn timeline(&self) -> Vec<String> {
        let turns = self.counts.transitions.values();
        let turns = turns.map(|turn| {
            let states = format!("{} -> {}", turn.from, turn.to);
            (turn.at, format!("{states:<20}  {}", turn.cause))
        });
        let kills = self.seen.kills.iter().flat_map(|kill| {
            let back = kill.back.map(|at| (at, "THE SERVER IS BACK".into()));
            [(kill.at, "THE SERVER IS KILLED".into())]
                .into_iter()
                .chain(back)
        });
        let mut lines: Vec<(_, String)> = turns.chain(kills).collect();
        lines.sort_by_key(|(at, _)| *at);
        let line = |(at, what)| {
            let at = between(self.started, at).as_secs_f64();
            format!("{at:6.2} s  {what}")
        };
        lines.into_iter().map(line).collect()
    }

    /// How many sends a payment took, on average.
    fn amplification(&self) -> f64 {
        ratio(self.counts.sends, self.args.payments)
    }

    /// Was more sent than may be? In shadow, the breaker keeps nothing back.
    fn is_too_much(&self) -> bool {
        let Args {
            faults,
            payments,
            shadow,
            ..
        } = self.args;
        let counts = payments >= MANY && faults <= 0.3 && !shadow;
        counts && self.amplification() > MOST_SENDS
    }

    /// Whether every payment is in the ledger exactly once, and was acknowledged, without too many sends.
    pub(crate) fn is_good(&self) -> bool {
        let Audit {
            lost, duplicates, ..
        } = self.audit;
        lost == 0 && duplicates == 0 && self.delivery.left == 0 && !self.is_too_much()
    }

    fn verdict(&self) -> String {
        if self.is_good() {
            return "OK: every payment is in the ledger exactly once.".into();
        }
        let Audit {
            lost, duplicates, ..
        } = self.audit;
        let left = self.delivery.left;
        let sends = self.amplification();
        let counts = format!(
            "{lost} lost, {duplicates} duplicates, {left} never acknowledged, {sends:.2} sends per payment"
        );
        match &self.delivery.last_error {
            Some(error) if left > 0 => format!("FAILED: {counts}. The last call: {error}."),
            _ => format!("FAILED: {counts}."),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n", self.table(), self.verdict())?;
        let timeline = self.timeline();
        if !timeline.is_empty() {
            writeln!(f, "The breaker, as it went:")?;
            for line in timeline.iter().take(TIMELINE) {
                writeln!(f, "{line}")?;
            }
            if let Some(more) = timeline.len().checked_sub(TIMELINE + 1) {
                writeln!(f, "          ... and {} more", more + 1)?;
            }
            writeln!(f)?;
        }
        writeln!(f, "What to look at next:")?;
        let advice = advice::next(self);
        f.write_str(&advice.join("\n"))
    }
}
