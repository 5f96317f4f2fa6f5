//! The progress bar.

use std::io::{self, Write};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

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
            self.say(&message);
        }
        self.0.set_message(message);
    }

    /// Says something in a line of its own.
    pub(crate) fn say(&self, what: &str) {
        if self.0.is_hidden() {
            let _ = writeln!(io::stderr(), "{what}");
        } else {
            self.0.println(what);
        }
    }

    pub(crate) fn acknowledged(&self) {
        self.0.inc(1);
    }

    /// How many payments were acknowledged.
    pub(crate) fn count(&self) -> u64 {
        self.0.position()
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
