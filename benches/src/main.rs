//! Prints one table: what every layer costs over the bare service, beside its floor and its peers, in one run.

mod alloc;
mod breaker;
mod figures;
mod harness;
mod idempotency;
mod instructions;
mod limit;
mod report;
mod retry;
mod stack;
mod target;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::harness::{Group, Kind};

/// Measures what every layer costs over the bare service, beside its floor and its peers.
///
/// All figures of a group come from the same minute on the same machine: compare them with each other, not with
/// another run. A row that cannot be measured is marked, and makes the exit code 1.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Only the rows whose "group / row" contains this text, with the bare service and the floor of their groups
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,

    /// Also write the figures to this file, as tab-separated values
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,

    /// Also count the instructions of a call; takes a minute, and valgrind
    #[arg(long)]
    instructions: bool,

    /// Only makes this many calls of the row whose "group / row" is given by --only; what valgrind runs
    #[arg(long, value_name = "CALLS", requires = "only", hide = true)]
    calls: Option<u32>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    // Some layers ask for a runtime when they make a timer; none of the rows waits for one.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let _entered = runtime.enter();

    let mut groups = retry::groups();
    groups.extend(breaker::groups());
    groups.extend(limit::groups());
    groups.extend(stack::groups());
    groups.extend(idempotency::groups()?);
    if let (Some(path), Some(calls)) = (&options.only, options.calls) {
        return make_calls(&mut groups, path, calls);
    }
    let mut measures = limit::measures();
    measures.extend(idempotency::measures());
    measures.retain(|measure| measure.is_wanted(options.only.as_deref()));
    if let Some(pattern) = &options.only {
        keep(&mut groups, pattern);
        if groups.is_empty() && measures.is_empty() {
            return Err(format!("no row contains \"{pattern}\"").into());
        }
    }
    if options.instructions {
        instructions::check()?;
    }

    let mut lines = Vec::new();
    for group in &mut groups {
        eprintln!("{}: {} rows", group.name, group.rows.len());
        let costs = harness::measure(&mut group.rows);
        let counts = if options.instructions {
            instructions::count(group)?
        } else {
            vec![None; costs.len()]
        };
        lines.extend(report::lines(group, costs, &counts));
    }
    if !lines.is_empty() {
        println!("{}", report::table(&lines));
    }
    let figures = figures::take(measures);
    if !figures.is_empty() {
        println!("{}", figures::table(&figures));
    }
    if let Some(path) = &options.tsv {
        std::fs::write(path, report::tsv(&lines, &figures))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let failed = lines.iter().any(|line| line.cost.is_err())
        || figures.iter().any(|line| line.figures.is_err());
    Ok(ExitCode::from(u8::from(failed)))
}

/// Keeps what the pattern names, and what it is measured against.
fn keep(groups: &mut Vec<Group>, pattern: &str) {
    for group in groups.iter_mut() {
        let named = |row: &harness::Row| format!("{} / {}", group.name, row.name).contains(pattern);
        if group.rows.iter().any(named) {
            group
                .rows
                .retain(|row| named(row) || matches!(row.kind, Kind::Bare | Kind::Floor));
        } else {
            group.rows.clear();
        }
    }
    groups.retain(|group| !group.rows.is_empty());
}

fn make_calls(groups: &mut [Group], path: &str, calls: u32) -> Result<ExitCode, Box<dyn Error>> {
    for group in groups {
        for row in &mut group.rows {
            if path == format!("{} / {}", group.name, row.name) {
                (row.run)(calls)?;
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    Err(format!("no row is called \"{path}\"").into())
}
