//! The commands of this repository: `cargo xtask test` runs everything that CI runs.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser};

/// The crates that have loom models: every crate in which an atomic decides something, rather than counts.
const LOOM: &[&str] = &["buttress-breaker", "buttress-rate-limit", "buttress-retry"];

/// The error is what went wrong, in one line.
type Result<T> = std::result::Result<T, String>;

/// The commands of this repository.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
enum Cli {
    Test(Test),
}

/// Runs everything that CI runs, and stops at the first step that fails.
#[derive(Debug, Args)]
#[command(after_help = steps())]
struct Test {
    /// Run the sizes that are too slow for every run: ignored tests too, and all with `BUTTRESS_FULL=1`.
    #[arg(long)]
    full: bool,
    /// Run this step only; may be given more than once.
    #[arg(long, value_name = "STEP", value_parser = PossibleValuesParser::new(STEPS.iter().map(|(name, ..)| *name)))]
    only: Vec<String>,
    /// List the steps, and run none.
    #[arg(long)]
    list: bool,
}

/// A step: its name, what it looks at, and how it is run, given whether the sizes are full.
type Step = (&'static str, &'static str, fn(bool) -> Result<()>);

#[rustfmt::skip]
const STEPS: &[Step] = &[
    ("fmt", "the formatting", |_| fmt()),
    ("clippy", "lints on every target, benchmarks too, with every feature", |_| clippy("--workspace --all-targets --all-features")),
    ("test", "unit, integration and doc tests with every feature; the short examples are run", test),
    ("loom", "the loom models of what is kept in atomics", |_| loom()),
    ("doc", "the documentation, without a warning", |_| doc()),
    ("deny", "licences, bans and sources; `cargo deny check advisories` needs a network, so it is not part of this", |_| deny()),
    ("alone", "each library crate by itself, with its default features and with each feature alone", |_| alone()),
];

fn fmt() -> Result<()> {
    need_component("fmt", "rustfmt")?;
    run(&mut cargo("fmt --all --check"))
}

fn clippy(what: &str) -> Result<()> {
    need_component("clippy", "clippy")?;
    run(cargo("clippy")
        .args(what.split(' '))
        .args(["--", "-D", "warnings"]))
}

fn test(full: bool) -> Result<()> {
    let what = "--workspace --exclude buttress-bench --all-features";
    // `tests/examples.rs` runs them, so they are built as programs; `--all-targets` would build them as tests.
    let mut examples = cargo(&format!("build {what} --examples"));
    let mut targets = cargo(&format!("test {what} --tests"));
    let mut docs = cargo(&format!("test {what} --doc"));
    if full {
        // Not for the docs: an example that is ignored there is one that cannot run.
        targets.args(["--", "--include-ignored"]);
        targets.env("BUTTRESS_FULL", "1");
        // A hundred times as many random cases for each property.
        targets.env("PROPTEST_CASES", "25600");
        docs.env("BUTTRESS_FULL", "1");
    }
    run(&mut examples)?;
    run(&mut targets)?;
    run(&mut docs)
}

fn loom() -> Result<()> {
    // `RUSTFLAGS` reach every dependency, so what they build is kept apart from other builds.
    let common = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let folder = root().join(common).join("loom");
    let mut test = cargo("test --release --lib loom");
    test.args(LOOM.iter().flat_map(|name| ["-p", name]));
    test.env("CARGO_TARGET_DIR", folder);
    test.env("RUSTFLAGS", "--cfg buttress_loom");
    run(&mut test)?;
    // A filter that matches nothing passes, so look whether there was something to pass.
    let list = output(test.args(["--", "--list"]))?;
    let found = list.lines().any(|line| line.ends_with(": test"));
    found
        .then_some(())
        .ok_or_else(|| "no test has `loom` in its name".into())
}

fn doc() -> Result<()> {
    let what = "--workspace --exclude xtask --exclude buttress-bench --no-deps --all-features";
    run(cargo(&format!("doc {what}")).env("RUSTDOCFLAGS", "-D warnings"))
}

fn deny() -> Result<()> {
    // cargo looks for its subcommands in its own `bin` folder too, whether or not that is in PATH.
    if output(&mut cargo("deny --version")).is_err() {
        println!("    cargo-deny is missing; installing it takes some minutes, once");
        run(&mut cargo("install cargo-deny --locked"))?;
    }
    let check = "deny check --hide-inclusion-graph bans licenses sources";
    run(&mut cargo(check))
}

fn alone() -> Result<()> {
    for (name, manifest) in libraries().map_err(|error| error.to_string())? {
        clippy(&format!("-p {name}"))?;
        for feature in features(&manifest) {
            let only = format!("-p {name} --no-default-features --features {feature}");
            clippy(&only)?;
        }
    }
    Ok(())
}

/// The crates that a user may depend on, which is all of `crates/` but this one, and their manifests.
fn libraries() -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("crates"))? {
        let entry = entry?;
        if entry.path().join("src/lib.rs").is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(entry.path().join("Cargo.toml"))?));
        }
    }
    found.sort();
    Ok(found)
}

/// The names in a manifest's `[features]`, but for `default`.
fn features(manifest: &str) -> Vec<&str> {
    manifest
        .lines()
        .skip_while(|line| line.trim() != "[features]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with([' ', '#']))
        .filter_map(|line| Some(line.split_once('=')?.0.trim()))
        .filter(|name| *name != "default")
        .collect()
}

fn need_component(subcommand: &str, component: &str) -> Result<()> {
    match output(cargo(subcommand).arg("--version")) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("it is missing: `rustup component add {component}`")),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The cargo that runs this program, in the root of the repository.
fn cargo(arguments: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments.split(' '));
    command
}

fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("    {line}");
    let status = command
        .status()
        .map_err(|error| format!("`{line}` did not start: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{line}` ended with {status}"))
    }
}

fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("`{line}` did not start: {error}"))?;
    if !output.status.success() {
        return Err(format!("`{line}` ended with {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let arguments = command.get_args().map(OsStr::to_string_lossy);
    format!("cargo {}", arguments.collect::<Vec<_>>().join(" "))
}

#[expect(clippy::disallowed_methods, reason = "real time is what is asked for")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

/// The steps and what they do, a line each.
fn steps() -> String {
    let lines = STEPS
        .iter()
        .map(|(name, about, _)| format!("{name:<8}{about}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn main() -> ExitCode {
    let Cli::Test(Test { full, only, list }) = Cli::parse();
    if list {
        println!("{}", steps());
        return ExitCode::SUCCESS;
    }
    let asked = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    let mut times = Vec::new();
    for (name, about, run) in STEPS.iter().filter(|(name, ..)| asked(name)) {
        println!("{name:<8}{about}");
        let (result, time) = timed(|| run(full));
        times.push((*name, time));
        if let Err(problem) = result {
            report(&times);
            eprintln!("failed: {name}: {problem}");
            return ExitCode::FAILURE;
        }
    }
    report(&times);
    let names: Vec<_> = times.iter().map(|(name, _)| *name).collect();
    println!("passed: {}", names.join(", "));
    ExitCode::SUCCESS
}

fn report(times: &[(&str, Duration)]) {
    let total = times.iter().map(|(_, time)| time).sum();
    println!();
    for (name, time) in times.iter().chain([&("total", total)]) {
        println!("{name:<8}{:>7.1} s", time.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::features;

    #[test]
    fn features_are_read_without_default_comments_and_other_tables() {
        let manifest = "[features]\n# a = b\ndefault = [\"one\"]\none = [\n    \"dep:x\",\n]\n\ntwo = []\n[dependencies]\nx = \"1\"\n";
        assert_eq!(features(manifest), ["one", "two"]);
        assert!(features("[dependencies]\nx = \"1\"\n").is_empty());
    }
}
