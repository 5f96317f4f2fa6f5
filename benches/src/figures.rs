//! Figures that are no time of a call: what is kept, and what waiting costs.

use comfy_table::{CellAlignment, Table, presets};

use crate::harness::Kind;

/// One way to do the job of its group, and what is to be known of it.
pub(crate) struct Measure {
    pub(crate) group: &'static str,
    pub(crate) row: &'static str,
    pub(crate) kind: Kind,
    /// It takes so long, or so much memory, that it has to be asked for.
    pub(crate) only_if_asked: bool,
    pub(crate) take: Box<dyn Fn() -> Result<Vec<Figure>, String>>,
}

/// A number, and what it is of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    /// What it should be for ours.
    pub(crate) goal: Option<Limit>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Measure {
    /// Whether the pattern names it.
    pub(crate) fn is_wanted(&self, pattern: Option<&str>) -> bool {
        match pattern {
            Some(pattern) => format!("{} / {}", self.group, self.row).contains(pattern),
            None => !self.only_if_asked,
        }
    }
}

/// A line of the report: the measure it is of, and a figure, or why there is none.
pub(crate) struct Line {
    measure: Measure,
    pub(crate) figures: Result<Vec<Figure>, String>,
}

/// Takes what is wanted, one after the other.
pub(crate) fn take(measures: Vec<Measure>) -> Vec<Line> {
    let take = |measure: Measure| {
        eprintln!("{}: {}", measure.group, measure.row);
        Line {
            figures: (measure.take)(),
            measure,
        }
    };
    measures.into_iter().map(take).collect()
}

/// The table that is printed.
pub(crate) fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_header(["group", "row", "figure", "value", "goal"]);
    for line in lines {
        let (group, row) = (line.measure.group, line.measure.row);
        match &line.figures {
            Err(failure) => {
                table.add_row([group, row, &format!("FAILED: {failure}")]);
            }
            Ok(figures) => {
                for figure in figures {
                    let value = format!("{:.2}", figure.value);
                    table.add_row([group, row, figure.name, &value, &line.goal(figure)]);
                }
            }
        }
    }
    if let Some(values) = table.column_mut(3) {
        values.set_cell_alignment(CellAlignment::Right);
    }
    table
}

impl Line {
    fn goal(&self, figure: &Figure) -> String {
        let (is_reached, goal) = match figure.goal {
            Some(Limit::AtMost(most)) => (figure.value <= most, format!("at most {most}")),
            Some(Limit::AtLeast(least)) => (figure.value >= least, format!("at least {least}")),
            None => return String::new(),
        };
        match self.measure.kind {
            Kind::Ours if is_reached => format!("yes: {goal}"),
            Kind::Ours => format!("NO: {goal}"),
            _ => String::new(),
        }
    }

    /// A line for each figure, in the columns that the rows of calls have, and two more.
    pub(crate) fn tsv(&self) -> String {
        let line = |goal: &str, failure: &str, figure: &str, value: &str| {
            let (group, row) = (self.measure.group, self.measure.row);
            let kind = format!("{:?}", self.measure.kind).to_lowercase();
            let costs = "\t".repeat(11);
            format!("{group}\t{row}\t{kind}\t{costs}\t{goal}\t{failure}\t{figure}\t{value}\n")
        };
        match &self.figures {
            Err(failure) => line("", failure, "", ""),
            Ok(figures) => figures
                .iter()
                .map(|figure| {
                    let value = format!("{:.3}", figure.value);
                    line(&self.goal(figure), "", figure.name, &value)
                })
                .collect(),
        }
    }
}
