//! The example `payments`, as it is run by hand. It reads the ledger itself, and its exit code says what it has found.

use std::{
    env,
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
    let number = if many { "10000" } else { "600" };
    let (run, said) = payments(&["--payments", number, "--faults", "0.3"]);
    assert!(run.status.success(), "{said}");
    assert_eq!(said.matches("│ a kill ").count(), 2, "{said}");
    let verdict = "OK: every payment is in the ledger exactly once.";
    assert!(said.contains(verdict), "{said}");
}

// promise: ST-6
#[test]
fn a_payment_that_is_made_twice_is_found_and_the_run_fails() {
    let (run, said) = payments(&["--payments", "300", "--kills", "0", "--forget-keys"]);
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(said.contains("FAILED: 0 lost, "), "{said}");
    assert!(!said.contains(" 0 duplicates"), "{said}");
}
