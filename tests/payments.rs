//! The example `payments`, as it is run by hand. It reads the ledger itself, and its exit code says what it has found.

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
};

/// Runs the example, which `cargo test` builds beside the tests. Where one test is asked for alone, it has to be built before.
fn payments(args: &[&str]) -> (Output, String) {
    let test = env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let name = format!("payments{}", env::consts::EXE_SUFFIX);
    let run = Command::new(profile.join("examples").join(name))
        .args(args)
        .output()
        .expect("`cargo build --example payments` builds it");
    let mut said = String::from_utf8_lossy(&run.stderr).into_owned();
    said += &String::from_utf8_lossy(&run.stdout);
    (run, said)
}

// promises: ST-6, ST-7
#[test]
fn every_payment_is_made_exactly_once_though_the_server_is_killed_twice() {
    let many = env::var_os("BUTTRESS_FULL").is_some();
    // The outages, and the probes after them, are what takes time.
    let (number, outage) = if many { ("10000", "1") } else { ("300", "0") };
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("payments.svg");
    let (run, said) = payments(&[
        "--payments",
        number,
        "--faults",
        "0.3",
        "--outage",
        outage,
        "--plot",
        plot.to_str().unwrap(),
    ]);
    assert!(run.status.success(), "{said}");
    assert_eq!(said.matches("│ a kill ").count(), 2, "{said}");
    let verdict = "OK: every payment is in the ledger exactly once.";
    assert!(said.contains(verdict), "{said}");
    let plot = fs::read_to_string(plot).unwrap();
    assert!(plot.starts_with("<svg "), "{plot}");
    assert!(plot.trim_end().ends_with("</svg>"), "{plot}");
    let lines = ["sends", "acknowledged", "retries"];
    let drawn = plot.matches(r#"stroke-width="2" points="#).count();
    assert_eq!(drawn, lines.len(), "{plot}");
    let others = ["breaker open", "per second", "server killed"];
    for text in lines.into_iter().chain(others) {
        assert!(plot.contains(&format!("\n{text}\n")), "{text}: {plot}");
    }
}

// promise: ST-7
#[test]
fn a_plot_that_cannot_be_written_is_refused_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing").join("payments.svg");
    let path = path.to_str().unwrap();
    let (run, said) = payments(&["--plot", path]);
    assert_eq!(run.status.code(), Some(2), "{said}");
    assert!(said.contains(path), "{said}");
    assert!(!said.contains("the job"), "{said}");
}

// promise: ST-6
#[test]
fn a_payment_that_is_made_twice_is_found_and_the_run_fails() {
    let (run, said) = payments(&["--payments", "300", "--kills", "0", "--forget-keys"]);
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(said.contains("FAILED: 0 lost, "), "{said}");
    assert!(!said.contains(" 0 duplicates"), "{said}");
}
