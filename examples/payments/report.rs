//! What the user sees: a progress bar, a table, and what to look at next.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    mem,
    time::Duration,
};

use buttress::{breaker::State, clock::Instant};
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::{
    Args, counts::Totals, injector::DOWN, outage::Outage, outbox::Delivery, server::Audit,
};

/// A bar on a terminal; elsewhere, in a log for one, a plain line now and then.
#[derive(Debug, Clone)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(payments: u64) -> Self {
        let style = "{elapsed:>4} {bar:30} {human_pos} of {human_len} acknowledged, {msg}";
        // The template is a constant; a bad one would only cost the looks.
        let style = ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar());
        Self(ProgressBar::new(payments).with_style(style))
    }

    pub(crate) fn round(&self, round: u32, outbox: usize) {
        let message = format!("round {round}: {} in the outbox", HumanCount(outbox as u64));
        if self.0.is_hidden() && round.is_power_of_two() {
            let _ = writeln!(io::stderr(), "{message}");
        }
        self.0.set_message(message);
    }

    pub(crate) fn acknowledged(&self) {
        self.0.inc(1);
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Everything that is known at the end.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) args: Args,
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
    pub(crate) outage: &'a Outage,
    pub(crate) delivery: Delivery,
    pub(crate) counts: Totals,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) audit: Audit,
}

impl Report<'_> {
    fn table(&self) -> Table {
        let (counts, audit) = (&self.counts, self.audit);
        let refused: u64 = counts.refused.values().sum();
        let mut rows = Rows::new();
        rows.group("the job");
        rows.count("payments", self.args.payments);
        rows.text("time", &seconds(between(self.started, self.ended)));
        rows.count("rounds of the outbox", self.delivery.rounds.into());
        rows.group("calls");
        rows.counts(&counts.calls);
        rows.count("all", counts.calls.values().sum());
        rows.group("retries");
        rows.counts(&counts.retries);
        rows.count("all", counts.retries.values().sum());
        rows.count("at a time that the server named", counts.hinted);
        rows.text("asleep before them, in sum", &seconds(counts.asleep));
        rows.group("sends");
        rows.count("all", counts.sends);
        rows.text("per payment", &ratio(counts.sends, self.args.payments));
        rows.count("connections opened", counts.connections);
        rows.group("the pace");
        rows.count("sends a second, at most", self.args.rate.get().into());
        rows.count("sends that waited for their turn", counts.waits);
        let waits = u32::try_from(counts.waits.max(1)).unwrap_or(u32::MAX);
        rows.text("waited, on average", &millis(counts.waited / waits));
        rows.text("waited, at most", &millis(counts.longest_wait));
        rows.counts(&counts.not_sent);
        rows.count("answered 429 by the server's limit", audit.refused);
        rows.group(if self.args.shadow {
            "in shadow"
        } else {
            "the breaker"
        });
        rows.count("opened", self.turns(State::Open));
        rows.count("closed again", self.turns(State::Closed));
        rows.text("open or half-open for, in sum", &seconds(self.not_closed()));
        rows.counts_with("refused, ", &counts.refused);
        rows.count("refused, all", refused);
        rows.counts_with("probes ", &counts.probes);
        if let (Some(began), Some(end)) = (self.outage.began(), self.outage.end()) {
            let met = self.faults.get(DOWN).copied().unwrap_or_default();
            rows.group("the outage");
            rows.text("the server was gone for", &seconds(between(began, end)));
            rows.count("sends meanwhile", met);
            if let Some(recovered) = self.outage.recovered() {
                let gap = between(end, recovered);
                rows.text("from its end to the next payment", &seconds(gap));
            }
        }
        rows.group("faults met");
        rows.counts(&self.faults);
        rows.count("all", self.faults.values().sum());
        rows.group("the ledger");
        rows.count("lines", audit.lines as u64);
        rows.count("sends answered from memory", audit.replays);
        rows.count("duplicates", audit.duplicates as u64);
        rows.count("lost", audit.lost);
        rows.count("never acknowledged", self.delivery.left as u64);
        rows.table
    }

    /// How often the breaker came to this state.
    fn turns(&self, to: State) -> u64 {
        let turns = self.counts.transitions.values();
        turns.filter(|turn| turn.to == to).count() as u64
    }

    /// How long the breaker was open or half-open.
    fn not_closed(&self) -> Duration {
        let turns = self.counts.transitions.values();
        let ends = turns.clone().skip(1).map(|turn| turn.at);
        turns
            .zip(ends.chain([self.ended]))
            .filter(|(turn, _)| turn.to != State::Closed)
            .map(|(turn, end)| between(turn.at, end))
            .sum()
    }

    /// What the breaker did, and why, with the outage beside it.
    fn timeline(&self) -> Vec<String> {
        let turns = self.counts.transitions.values();
        let turns = turns.map(|turn| {
            let states = format!("{} -> {}", turn.from, turn.to);
            (turn.at, format!("{states:<20}  {}", turn.cause))
        });
        let began = self.outage.began().map(|at| (at, "THE SERVER IS GONE"));
        let end = self.outage.end().map(|at| (at, "THE SERVER IS BACK"));
        let outage = began.into_iter().chain(end);
        let mut lines: Vec<_> = turns
            .chain(outage.map(|(at, what)| (at, what.into())))
            .collect();
        lines.sort_by_key(|(at, _)| *at);
        let line = |(at, what)| {
            let at = between(self.started, at).as_secs_f64();
            format!("{at:6.2} s  {what}")
        };
        lines.into_iter().map(line).collect()
    }

    /// Whether every payment is in the ledger exactly once, and was acknowledged.
    pub(crate) fn is_good(&self) -> bool {
        self.audit.lost == 0 && self.audit.duplicates == 0 && self.delivery.left == 0
    }

    fn verdict(&self) -> String {
        if self.is_good() {
            return "OK: every payment is in the ledger exactly once.".into();
        }
        let Audit {
            lost, duplicates, ..
        } = self.audit;
        let left = self.delivery.left;
        let counts = format!("{lost} lost, {duplicates} duplicates, {left} never acknowledged");
        match &self.delivery.last_error {
            Some(error) if left > 0 => format!("FAILED: {counts}. The last call: {error}."),
            _ => format!("FAILED: {counts}."),
        }
    }
}

impl fmt::Display for Report<'_> {
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
        let shadow = if self.args.shadow { UNSHADOW } else { SHADOW };
        writeln!(f, "- {shadow}")?;
        if let Some(calls) = self.counts.calls.get("out of budget") {
            writeln!(f, "- {} {BUDGET}", HumanCount(*calls))?;
        }
        let keys = if self.args.forget_keys {
            WITH_KEYS
        } else {
            WITHOUT_KEYS
        };
        let pace = if self.audit.refused > 0 {
            PACED
        } else {
            UNPACED
        };
        write!(f, "- {keys}\n- {pace}\n- {STACK}")
    }
}

const BUDGET: &str = "calls ended because the retry budget was spent: when this much fails,
  more retries only add to the load. The outbox sent them later. Try `--faults 0.05`.";
const SHADOW: &str = "`--shadow`: the same run, but the breaker only says what it would refuse.
  Compare the sends to the server while it is gone.";
const UNSHADOW: &str = "The same run without `--shadow`: far fewer sends while the server is gone.";
const WITH_KEYS: &str = "The same run without `--forget-keys`; `Ledger::enter` in server.rs.";
const WITHOUT_KEYS: &str = "`--forget-keys`: the same run, but the server knows no payment again.";
const PACED: &str = "The same run at a lower `--rate`: the server refuses none of the sends.";
const UNPACED: &str =
    "`--rate 5000`: the same run, but the client does not keep to the server's limit.
  Compare the time and the sends, and what the server's limit answered.";
const STACK: &str = "The stack, in examples/payments/client.rs: change a line, and run it again.";

/// How many lines of the timeline are shown.
const TIMELINE: usize = 30;

fn between(from: Instant, to: Instant) -> Duration {
    to.saturating_duration_since(from)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

#[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
fn ratio(part: u64, whole: u64) -> String {
    format!("{:.2}", part as f64 / whole as f64)
}

/// A table whose rows come in groups; a group's name stands beside its first row.
struct Rows {
    table: Table,
    group: &'static str,
}

impl Rows {
    fn new() -> Self {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        Self { table, group: "" }
    }

    fn group(&mut self, name: &'static str) {
        if self.table.row_count() > 0 {
            self.table.add_row([""]);
        }
        self.group = name;
    }

    fn text(&mut self, what: &str, value: &str) {
        let value = Cell::new(value).set_alignment(CellAlignment::Right);
        let group = Cell::new(mem::take(&mut self.group));
        self.table.add_row([group, Cell::new(what), value]);
    }

    fn count(&mut self, what: &str, count: u64) {
        self.text(what, &HumanCount(count).to_string());
    }

    fn counts_with(&mut self, what: &str, counts: &BTreeMap<&'static str, u64>) {
        for (more, count) in counts {
            self.count(&format!("{what}{more}"), *count);
        }
    }

    fn counts(&mut self, counts: &BTreeMap<&'static str, u64>) {
        for (what, count) in counts {
            self.count(what, *count);
        }
    }
}
