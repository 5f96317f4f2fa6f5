//! Counts the instructions of a call: this program runs itself under valgrind, twice for every row.
//!
//! Only the loop that makes the calls is looked at, for a clock that is calibrated takes as many instructions as it
//! likes. What a row does before costs the same with few and with many calls, so the difference is the calls alone.

use std::error::Error;
use std::io::ErrorKind;
use std::process::Command;

use crate::harness::Group;

const FEW: u32 = 500;
const MANY: u32 = 1_500;

/// Says so when valgrind is missing, before minutes were spent on the other figures.
pub(crate) fn check() -> Result<(), Box<dyn Error>> {
    match Command::new("valgrind").arg("--version").output() {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err("--instructions needs valgrind, which is not installed".into())
        }
        Err(error) => Err(format!("valgrind does not run: {error}").into()),
    }
}

/// The instructions of one call over the bare service's, for each row.
pub(crate) fn count(group: &Group) -> Result<Vec<Option<f64>>, Box<dyn Error>> {
    let mut counts = Vec::new();
    for row in &group.rows {
        // Valgrind has one thread run at a time, so there is nothing to see of them.
        if row.threads > 1 {
            return Ok(vec![None; group.rows.len()]);
        }
        let path = format!("{} / {}", group.name, row.name);
        let spent = collect(&path, MANY)? - collect(&path, FEW)?;
        counts.push(spent / f64::from(MANY - FEW));
    }
    Ok(counts.iter().map(|count| Some(count - counts[0])).collect())
}

/// All instructions of a process that makes that many calls.
fn collect(path: &str, calls: u32) -> Result<f64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*Calls*make")
        .arg(std::env::current_exe()?)
        .args(["--only", path, "--calls", &calls.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines()
        .filter(|_| output.status.success())
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
        .ok_or_else(|| format!("valgrind has no count for \"{path}\": {said}").into())
}
