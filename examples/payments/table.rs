//! A table of counts and times, and how these are written.

use std::{collections::BTreeMap, mem, time::Duration};

use buttress::clock::Instant;
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::HumanCount;

/// A table whose rows come in groups; a group's name stands beside its first row.
pub(crate) struct Rows {
    pub(crate) table: Table,
    group: &'static str,
}

impl Rows {
    pub(crate) fn new() -> Self {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        Self { table, group: "" }
    }

    pub(crate) fn group(&mut self, name: &'static str) {
        if self.table.row_count() > 0 {
            self.table.add_row([""]);
        }
        self.group = name;
    }

    pub(crate) fn text(&mut self, what: &str, value: &str) {
        let value = Cell::new(value).set_alignment(CellAlignment::Right);
        let group = Cell::new(mem::take(&mut self.group));
        self.table.add_row([group, Cell::new(what), value]);
    }

    pub(crate) fn count(&mut self, what: &str, count: u64) {
        self.text(what, &HumanCount(count).to_string());
    }

    pub(crate) fn counts(&mut self, what: &str, counts: &BTreeMap<&'static str, u64>) {
        for (more, count) in counts {
            self.count(&format!("{what}{more}"), *count);
        }
    }
}

pub(crate) fn between(from: Instant, to: Instant) -> Duration {
    to.saturating_duration_since(from)
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

pub(crate) fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

#[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}
