//! The main job: send payments through a network that fails, to a server that is killed, and make each of them exactly once.
//!
//! ```text
//! outbox -> retry -> breaker -> rate limit -> HTTP client
//!     -> [fault injector] -> answer -> idempotency -> rate limit -> handler -> ledger
//! ```
//!
//! Everything talks over real TCP on the loopback interface. The server is a process of its own, this program once more. It is
//! killed twice, without a word, while payments are under way, and started again on the same file. When the outbox is empty
//! it is killed for good, and the ledger is read from its file: the program exits non-zero when a payment is missing or
//! is in it twice, or when more was sent than may be.
//!
//! Start reading in `client.rs` and `server.rs`: they have the stacks. `cargo run --release --example payments -- --help`

mod advice;
mod args;
mod client;
mod counts;
mod injector;
mod kills;
mod ledger;
mod message;
mod outbox;
mod plot;
mod progress;
mod report;
mod seen;
mod server;
mod table;

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
};

use buttress::{BoxError, clock};
use tokio::signal;

use crate::{
    args::Args, counts::Counts, injector::Injector, kills::Server, progress::Progress,
    report::Report,
};

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let args = Args::read();
    if let Some(folder) = &args.serve {
        server::serve(folder, &args).await?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::select! {
        code = run(args) => code,
        // What the run has made goes with it: the server, and its files.
        _ = signal::ctrl_c() => Ok(ExitCode::from(130)),
    }
}

async fn run(args: Args) -> Result<ExitCode, BoxError> {
    let started = clock::now();
    let folder = tempfile::Builder::new().prefix("payments-").tempdir()?;
    let progress = Progress::new(args.payments);
    let (server, address) = Server::start(folder.path()).await?;
    let injector = Arc::new(Injector::new(address, args.faults, args.seed)?);
    let proxy = injector.clone().start().await?;

    let counts = Arc::new(Counts::default());
    let client = client::stack(proxy, injector.clone(), &counts, &args);
    let orders = outbox::fill(args.payments, args.seed);
    let run = async {
        tokio::join!(
            outbox::deliver(orders, client, &progress),
            kills::now_and_then(server, folder.path(), &injector, &args, &progress),
        )
    };
    let mut samples = Vec::new();
    let (delivery, server) = tokio::select! {
        ended = run => ended,
        never = plot::watch(&mut samples, &counts, &progress) => match never {},
    };
    server?.kill().await?;
    progress.finish();

    let report = Report {
        started,
        ended: clock::now(),
        audit: ledger::audit(folder.path(), args.payments)?,
        seen: injector.seen().clone(),
        counts: counts.totals(),
        delivery,
        args,
    };
    // The run was good or bad, whether or not anybody still reads about it (`| head` does not).
    let _ = writeln!(io::stdout(), "{report}");
    if let Some(path) = &report.args.plot {
        plot::write(path, &report, &samples)?;
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
