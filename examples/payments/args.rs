//! What can be changed on the command line.

use std::{fs::File, num::NonZeroU32, path::PathBuf, time::Duration};

use clap::{CommandFactory, Parser, error::ErrorKind};

/// Send payments through a network that fails, to a server that is killed, and check that each of them was made exactly once.
#[derive(Debug, Parser)]
#[command(name = "payments")]
pub(crate) struct Args {
    /// How many payments to make
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) payments: u64,

    /// The share of sends that meet a fault, 0.0 to 0.4, with --shadow to 0.9; half as many connects
    /// are refused
    #[arg(long, value_name = "SHARE", default_value_t = 0.3,
          value_parser = share, allow_negative_numbers = true)]
    pub(crate) faults: f64,

    /// Seeds the faults, the keys and the backoff: the same seed meets the same faults
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Where the server keeps what it has done, to know a payment that comes again: `sqlite`, or
    /// `memory`, which a kill empties
    #[arg(long, value_name = "STORE", default_value = "sqlite", value_parser = store)]
    pub(crate) store: Store,

    /// How often the server is killed, evenly spread over the payments; by default 2, with `--store memory` 0
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=10))]
    kills: Option<u64>,

    /// How long the server is gone each time, before it is started again
    #[arg(long, value_name = "SECONDS", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(0..=60))]
    outage: u64,

    /// How many sends a second the client allows itself; the server takes 1,500 requests, and answers
    /// 429 to more
    #[arg(long, value_name = "N", default_value = "1400",
          value_parser = clap::value_parser!(NonZeroU32))]
    pub(crate) rate: NonZeroU32,

    /// Let the breaker refuse nothing, and only count what it would refuse
    #[arg(long)]
    pub(crate) shadow: bool,

    /// Let the server ignore the keys, to see what they are for (this run is meant to fail)
    #[arg(long)]
    pub(crate) forget_keys: bool,

    /// Draw the run into this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,

    /// Be the server, with these files. The program runs itself so.
    #[arg(long, value_name = "FOLDER", hide = true)]
    pub(crate) serve: Option<PathBuf>,
}

/// A store of idempotency records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// In the server's memory.
    Memory,
    /// In the file that has the ledger.
    Sqlite,
}

impl Args {
    /// Reads them, or says what is wrong with them and ends the program.
    pub(crate) fn read() -> Self {
        let args = Self::parse();
        if args.faults > 0.4 && !args.shadow {
            // Of three probes in a row one fails nearly every time.
            let error = "with more faults than 0.4 the breaker hardly ever closes; add --shadow";
            Self::command()
                .error(ErrorKind::ValueValidation, error)
                .exit();
        }
        // Now, not after the run. A picture that is there stays until there is a new one.
        if let Some(path) = &args.plot
            && let Err(error) = File::options().create(true).append(true).open(path)
        {
            let error = format!("cannot write {}: {error}", path.display());
            Self::command().error(ErrorKind::Io, error).exit();
        }
        args
    }

    pub(crate) fn kills(&self) -> u64 {
        self.kills.unwrap_or(match self.store {
            Store::Memory => 0,
            Store::Sqlite => 2,
        })
    }

    pub(crate) fn outage(&self) -> Duration {
        Duration::from_secs(self.outage)
    }
}

/// Reads a share of faults. Above 0.9 hardly anything arrives and the run would take hours.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        // A NaN is in no range.
        Ok(share) if (0.0..=0.9).contains(&share) => Ok(share),
        _ => Err("a share from 0.0 to 0.9 is needed, such as 0.3".into()),
    }
}

fn store(text: &str) -> Result<Store, String> {
    match text {
        "memory" => Ok(Store::Memory),
        "sqlite" => Ok(Store::Sqlite),
        _ => Err("there are `sqlite` and `memory`".into()),
    }
}
