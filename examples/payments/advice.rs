//! What to look at next, after a run.

use indicatif::HumanCount;

use crate::{args::Store, report::Report};

/// A line or two for each thing that is worth a look.
pub(crate) fn next(report: &Report) -> Vec<String> {
    let args = &report.args;
    let shadow = if args.shadow { UNSHADOW } else { SHADOW };
    let mut advice = vec![shadow.to_owned()];
    if let Some(calls) = report.counts.calls.get("out of budget") {
        advice.push(format!("- {} {BUDGET}", HumanCount(*calls)));
    }
    let keys = if args.forget_keys {
        WITH_KEYS
    } else {
        WITHOUT_KEYS
    };
    let store = match args.store {
        Store::Memory => SQLITE,
        Store::Sqlite => MEMORY,
    };
    let pace = if report
        .seen
        .answers
        .keys()
        .any(|what| what.starts_with("429"))
    {
        PACED
    } else {
        UNPACED
    };
    advice.extend([keys, store, pace, STACKS].map(Into::into));
    advice
}

const SHADOW: &str = "- `--shadow`: the same run, but the breaker only says what it would refuse.
  Compare the sends to the server while it is gone.";
const UNSHADOW: &str =
    "- The same run without `--shadow`: far fewer sends while the server is gone.";
const BUDGET: &str = "calls ended because the retry budget was spent: when this much fails,
  more retries only add to the load. The outbox sent them later. Try `--faults 0.05`.";
const WITH_KEYS: &str = "- The same run without `--forget-keys`; `once` in server.rs.";
const WITHOUT_KEYS: &str =
    "- `--forget-keys`: the same run, but the server knows no payment again.";
const MEMORY: &str =
    "- `--store memory --kills 2`: the same run, but what the server knows dies with it.
  Compare `write` in ledger.rs, where a line and its key are one transaction.";
const SQLITE: &str =
    "- The same run without `--store memory`: what the server knows survives its death.";
const PACED: &str = "- The same run at a lower `--rate`: the server refuses none of the sends.";
const UNPACED: &str =
    "- `--rate 5000`: the same run, but the client does not keep to the server's limit.
  Compare the time and the sends, and what the server's limit answered.";
const STACKS: &str = "- The stacks, in client.rs and server.rs of examples/payments: change a line, and run it again.";
