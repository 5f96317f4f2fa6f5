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

    /// A payment was called for so often, as none was before.
    pub(crate) fn calls(&self, most: u32) {
        let message = match most {
            1 => "in 1 call each".to_owned(),
            _ => format!("in up to {most} calls each"),
        };
        if self.0.is_hidden() && most.is_power_of_two() {
            let count = HumanCount(self.count());
            self.say(&format!("{count} acknowledged, {message}"));
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
