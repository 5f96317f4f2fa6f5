//! Lays the figures out, for people and for spreadsheets.

use comfy_table::{CellAlignment, Table, presets};

use crate::figures;
use crate::harness::{Bound, Cost, Group, Kind, Row, Spread};

/// A row of the report.
pub(crate) struct Line {
    group: &'static str,
    row: &'static str,
    kind: Kind,
    pub(crate) cost: Result<Cost, String>,
    future: usize,
    instructions: Option<f64>,
    to_floor: Option<f64>,
    to_best_peer: Option<f64>,
    goal: String,
}

/// The report of one group.
pub(crate) fn lines(
    group: &Group,
    costs: Vec<Result<Cost, String>>,
    instructions: &[Option<f64>],
) -> Vec<Line> {
    let cheapest = |wanted: &dyn Fn(&Row) -> bool| {
        let rows = group.rows.iter().zip(&costs);
        let wanted = rows.filter(|(row, _)| wanted(row));
        let spreads = wanted.filter_map(|(_, cost)| Some(cost.as_ref().ok()?.over_bare));
        spreads.min_by(|one, other| one.median.total_cmp(&other.median))
    };
    let floor = cheapest(&|row| row.kind == Kind::Floor);
    let best_peer = cheapest(&|row| row.kind == Kind::Peer);
    let goals: Vec<_> = group
        .goals
        .iter()
        .map(|goal| (goal, cheapest(&|row| row.name == goal.of)))
        .collect();

    let rows = group.rows.iter().zip(costs).zip(instructions);
    rows.map(|((row, cost), instructions)| {
        let to = |other| match row.kind {
            Kind::Bare => None,
            _ => Some(cost.as_ref().ok()?.over_bare.median / denominator(other?)?),
        };
        let goals = goals.iter().filter(|_| row.kind == Kind::Ours);
        let more = |other: Option<Spread>| {
            let own = cost.as_ref().ok()?.over_bare.median;
            Some(own - other?.median)
        };
        let goals = goals.map(|(goal, other)| {
            let (reached, at_most, unit) = match goal.at_most {
                Bound::Times(at_most) => (to(*other), at_most, "x"),
                Bound::Nanoseconds(at_most) => (more(*other), at_most, "ns more than"),
            };
            let reached = match reached {
                Some(figure) if figure <= at_most => format!("yes: {figure:.2}"),
                Some(figure) => format!("NO: {figure:.2}"),
                None => "?".to_owned(),
            };
            format!("{reached} of {at_most} {unit} {}", goal.of)
        });
        Line {
            group: group.name,
            row: row.name,
            kind: row.kind,
            future: row.future,
            instructions: *instructions,
            to_floor: to(floor),
            to_best_peer: to(best_peer),
            goal: goals.collect::<Vec<_>>().join("; "),
            cost,
        }
    })
    .collect()
}

/// None where there is nothing to divide by: a cost that drowns in the noise, or that is a few cycles, which the
/// processor spends beside the rest of the call.
fn denominator(spread: Spread) -> Option<f64> {
    const LEAST: f64 = 3.0;
    (spread.low > 0.0 && spread.median >= LEAST).then_some(spread.median)
}

/// The table that is printed.
pub(crate) fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "group",
        "row",
        "ns",
        "quartiles",
        "allocs",
        "bytes",
        "future",
        "instr",
        "/ floor",
        "/ best peer",
        "goal",
    ]);
    for line in lines {
        let group = line.group.to_owned();
        let row = line.row.to_owned();
        let cells = match &line.cost {
            Err(failure) => vec![group, row, format!("FAILED: {failure}")],
            Ok(cost) => {
                // Everything else is over the bare service, whose own time says how much it hides.
                let ns = match line.kind {
                    Kind::Bare => cost.whole,
                    _ => cost.over_bare,
                };
                vec![
                    group,
                    row,
                    format!("{:.1}", ns.median),
                    format!("{:.1} to {:.1}", ns.low, ns.high),
                    count(cost.allocations),
                    count(cost.bytes),
                    line.future.to_string(),
                    line.instructions
                        .map_or_else(dash, |count| format!("{count:.0}")),
                    line.to_floor
                        .map_or_else(dash, |ratio| format!("{ratio:.2}")),
                    line.to_best_peer
                        .map_or_else(dash, |ratio| format!("{ratio:.2}")),
                    line.goal.clone(),
                ]
            }
        };
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(2).take(8) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The same, a line per row and one per figure, and the quartiles of the whole call too.
pub(crate) fn tsv(lines: &[Line], figures: &[figures::Line]) -> String {
    let mut text = String::from(
        "group\trow\tkind\tns\tns_low\tns_high\tover_bare\tover_bare_low\tover_bare_high\tallocations\tbytes\tfuture\
         \tinstructions\tto_floor\tto_best_peer\tgoal\tfailure\tfigure\tvalue\n",
    );
    for line in lines {
        let optional = |figure: Option<f64>| {
            figure
                .map(|figure| format!("{figure:.3}"))
                .unwrap_or_default()
        };
        let figures = match &line.cost {
            Ok(cost) => {
                let (whole, over) = (cost.whole, cost.over_bare);
                let spreads = [
                    whole.median,
                    whole.low,
                    whole.high,
                    over.median,
                    over.low,
                    over.high,
                ];
                let all = spreads.into_iter().chain([cost.allocations, cost.bytes]);
                all.map(|figure| format!("{figure:.3}"))
                    .collect::<Vec<_>>()
                    .join("\t")
            }
            Err(_) => "\t".repeat(7),
        };
        let cells = [
            line.group.to_owned(),
            line.row.to_owned(),
            format!("{:?}", line.kind).to_lowercase(),
            figures,
            line.future.to_string(),
            optional(line.instructions),
            optional(line.to_floor),
            optional(line.to_best_peer),
            line.goal.clone(),
            line.cost.as_ref().err().cloned().unwrap_or_default(),
            "\t".to_owned(),
        ];
        text.push_str(&cells.join("\t"));
        text.push('\n');
    }
    text.extend(figures.iter().map(figures::Line::tsv));
    text
}

/// Most counts are whole, and those that are not should be seen.
fn count(figure: f64) -> String {
    if figure.fract() == 0.0 {
        format!("{figure:.0}")
    } else {
        format!("{figure:.2}")
    }
}

fn dash() -> String {
    "-".to_owned()
}
