//! A run as a picture: what went through and what was sent for it, beside the state of the breaker and the server's deaths.

use std::{convert::Infallible, path::Path, time::Duration};

use buttress::{BoxError, breaker::State, clock};
use plotters::{coord::Shift, prelude::*};
use tokio::time::sleep;

use crate::{counts::Counts, progress::Progress, report::Report, table::between};

/// How often the counts are looked at.
const EVERY: Duration = Duration::from_millis(250);

/// In pixels; the server's deaths have a strip of their own above the rest.
const SIZE: (u32, u32) = (960, 440);
const STRIP: i32 = 24;
const LEFT: i32 = 64;
const RIGHT: i32 = 16;
const INK: RGBColor = RGBColor(51, 51, 51);

/// What is counted, and its colour. Sends come first, so that the others are drawn over them.
const LINES: [(&str, RGBColor); 3] = [
    ("sends", RGBColor(0, 114, 178)),
    ("acknowledged", RGBColor(0, 158, 115)),
    ("retries", RGBColor(204, 51, 17)),
];
const STATES: [(State, RGBColor); 2] = [
    (State::Open, RGBColor(250, 218, 208)),
    (State::HalfOpen, RGBColor(240, 180, 60)),
];

/// What was counted from the start of a run until then, in the order of the lines.
#[derive(Debug)]
pub(crate) struct Sample(clock::Instant, [u64; LINES.len()]);

/// Takes samples as long as it is polled.
pub(crate) async fn watch(
    samples: &mut Vec<Sample>,
    counts: &Counts,
    progress: &Progress,
) -> Infallible {
    loop {
        let totals = counts.totals();
        let counted = [
            totals.sends,
            progress.count(),
            totals.retries.values().sum(),
        ];
        samples.push(Sample(clock::now(), counted));
        sleep(EVERY).await;
    }
}

/// What was counted a second between each two samples, and when: a point of this line is in the middle of its time.
fn rates(
    samples: &[Sample],
    line: usize,
    since: impl Fn(clock::Instant) -> f64,
) -> Vec<(f64, f64)> {
    let rate = |(Sample(from, before), Sample(to, after)): (&Sample, &Sample)| {
        let (from, to) = (since(*from), since(*to));
        #[expect(clippy::cast_precision_loss, reason = "less than a pixel")]
        let count = (after[line] - before[line]) as f64;
        (f64::midpoint(from, to), count / (to - from))
    };
    let next = samples.iter().skip(1);
    samples.iter().zip(next).map(rate).collect()
}

/// Writes the plot of a run to this file, as SVG.
pub(crate) fn write(path: &Path, report: &Report, samples: &[Sample]) -> Result<(), BoxError> {
    let since = |at| between(report.started, at).as_secs_f64();
    let end = since(report.ended);
    let lines = [0, 1, 2].map(|line| rates(samples, line, since));
    let all = lines.iter().flatten();
    let top = all.fold(100.0, |top: f64, (_, rate)| top.max(*rate)) * 1.05;

    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    // Without it the page behind would show through, and it may be dark.
    root.fill(&WHITE)?;
    let (head, below) = root.split_vertically(30);
    legend(&head.margin(8, 0, LEFT, RIGHT), report.args.shadow)?;
    let (strip, below) = below.split_vertically(STRIP);
    let mut chart = ChartBuilder::on(&below)
        .margin_right(RIGHT)
        .x_label_area_size(44)
        .margin_left(8)
        .y_label_area_size(LEFT - 8)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    // About two pixels: a probe may be over in less, and would not be seen.
    let least = 2.0 * end / f64::from(SIZE.0);
    for (shown, colour) in STATES {
        let spans = report.states().filter(|(state, ..)| *state == shown);
        chart.draw_series(spans.map(|(_, from, to)| {
            let (from, to) = (since(from), since(to));
            let corners = [(from, 0.0), (to.max(from + least), top)];
            Rectangle::new(corners, colour.filled())
        }))?;
    }
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK)
        .label_style(text(13))
        .axis_desc_style(text(14))
        .x_desc("time since the start, in seconds")
        .y_desc("per second")
        .x_labels(12)
        .x_label_formatter(&|x| ((x * 100.0).round() / 100.0).to_string())
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
    let mut free = 0;
    for kill in &report.seen.kills {
        let edges = [kill.at, kill.back.unwrap_or(report.ended)].map(since);
        chart.draw_series(edges.map(|x| PathElement::new([(x, 0.0), (x, top)], INK)))?;
        let [from, to] = edges.map(|x| chart.backend_coord(&(x, top)).0);
        let gone = [(from, STRIP - 6), (to, STRIP)];
        strip.draw(&Rectangle::new(gone, INK.filled()))?;
        // Not over the words of the kill before.
        if from >= free {
            strip.draw(&Text::new("server killed", (from, 2), text(13)))?;
            free = from + 90;
        }
    }
    for ((_, colour), line) in LINES.into_iter().zip(lines) {
        chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
    }
    Ok(root.present()?)
}

/// Says which colour is what, in a line.
fn legend(area: &DrawingArea<SVGBackend, Shift>, shadow: bool) -> Result<(), BoxError> {
    let is = if shadow { "would be" } else { "breaker" };
    let lines = LINES.map(|(name, colour)| (name.to_owned(), colour, 2));
    let bands = STATES.map(|(state, colour)| (format!("{is} {state}"), colour, 7));
    let entries = lines.into_iter().chain(bands);
    for ((name, colour, half), place) in entries.zip(area.split_evenly((1, 5))) {
        let swatch = [(0, 8 - half), (22, 8 + half)];
        place.draw(&Rectangle::new(swatch, colour.filled()))?;
        place.draw(&Text::new(name, (30, 2), text(14)))?;
    }
    Ok(())
}

fn text(pixels: i32) -> TextStyle<'static> {
    ("sans-serif", pixels).into_font().color(&INK)
}
