//! The main job: send payments through a network that fails, and run each of them exactly once.
//!
//! ```text
//! outbox -> retry -> breaker -> rate limit -> HTTP client
//!     -> [fault injector] -> answer -> rate limit -> server -> ledger
//! ```
//!
//! Everything talks over real TCP on the loopback interface. After a third of the payments the server
//! is gone for some seconds, and the breaker keeps the calls away from it until it is back. When the
//! outbox is empty the ledger is read line by line; the program exits non-zero when a payment is
//! missing or is in it twice.
//!
//! Start reading in `client.rs`: it has the stack. `cargo run --release --example payments -- --help`

mod client;
mod counts;
mod injector;
mod outage;
mod outbox;
mod report;
mod server;

use std::{
    io::{self, Write},
    num::NonZeroU32,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use buttress::{BoxError, clock};
use clap::{CommandFactory, Parser, error::ErrorKind};

use crate::{
    counts::Counts,
    injector::Injector,
    outage::Outage,
    report::{Progress, Report},
    server::Ledger,
};

/// Send payments through a network that fails, and check that each of them ran exactly once.
#[derive(Debug, Parser)]
#[command(name = "payments")]
pub(crate) struct Args {
    /// How many payments to make
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    payments: u64,

    /// The share of sends that meet a fault, 0.0 to 0.4, with --shadow to 0.9; half as many connects
    /// are refused
    #[arg(long, value_name = "SHARE", default_value_t = 0.3,
          value_parser = share, allow_negative_numbers = true)]
    faults: f64,

    /// Seeds the faults, the keys and the backoff: the same seed meets the same faults
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// How long the server is gone, once a third of the payments was sent; 0 if never
    #[arg(long, value_name = "SECONDS", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(0..=60))]
    outage: u64,

    /// How many sends a second the client allows itself; the server takes 1,500 requests, and answers
    /// 429 to more
    #[arg(long, value_name = "N", default_value = "1400",
          value_parser = clap::value_parser!(NonZeroU32))]
    rate: NonZeroU32,

    /// Let the breaker refuse nothing, and only count what it would refuse
    #[arg(long)]
    shadow: bool,

    /// Let the server ignore the keys, to see what they are for (this run is meant to fail)
    #[arg(long)]
    forget_keys: bool,
}

/// Reads a share of faults. Above 0.9 hardly anything arrives and the run would take hours.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        // A NaN is in no range.
        Ok(share) if (0.0..=0.9).contains(&share) => Ok(share),
        _ => Err("a share from 0.0 to 0.9 is needed, such as 0.3".into()),
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let args = Args::parse();
    if args.faults > 0.4 && !args.shadow {
        // Of three probes in a row one fails nearly every time.
        let error = "with more faults than 0.4 the breaker hardly ever closes; add --shadow";
        Args::command()
            .error(ErrorKind::ValueValidation, error)
            .exit();
    }
    let started = clock::now();

    let ledger = Arc::new(Ledger::new(!args.forget_keys));
    let server = server::start(ledger.clone()).await?;
    let outage = Outage::new(
        usize::try_from(args.payments / 3)?,
        Duration::from_secs(args.outage),
    );
    let injector = Arc::new(Injector::new(server, args.faults, args.seed, outage)?);
    let proxy = injector.clone().start().await?;

    let counts = Arc::new(Counts::default());
    let client = client::stack(proxy, injector.clone(), &counts, &args);
    let progress = Progress::new(args.payments);
    let orders = outbox::fill(args.payments, args.seed);
    let delivery = outbox::deliver(orders, client, &progress).await;
    progress.finish();

    let report = Report {
        started,
        ended: clock::now(),
        audit: ledger.audit(args.payments),
        faults: injector.faults(),
        outage: injector.outage(),
        counts: counts.totals(),
        delivery,
        args,
    };
    // The run was good or bad, whether or not anybody still reads about it (`| head` does not).
    let _ = writeln!(io::stdout(), "{report}");
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
