//! Each short example runs by itself, ends, and prints what it is there to show.

use std::{env, fs, path::Path, process::Stdio, time::Duration};

use buttress::BoxError;
use tokio::{process::Command, time::timeout};

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

/// The examples, and of each a line that shows what it is about.
const SHORT: &[(&str, &str)] = &[
    ("attempt_spans", "It is answered with 201 Created."),
    ("axum", "      Idempotency-Replayed: true"),
    ("breaker", "  event: open -> half_open"),
    ("hyper", "  the breaker is open"),
    ("rate_limit_server", "  429 Too Many Requests"),
    (
        "prometheus",
        r#"buttress_breaker_state{name="payments",state="closed"} 1"#,
    ),
    (
        "reqwest",
        "All of them are paid: one each 50 ms, and the first in the end.",
    ),
    ("tonic", "  OkAfterRetry, sends: 2"),
];

/// These do not end by themselves, or take their time.
const OTHERS: &[&str] = &["idempotency_server", "payments"];

#[tokio::test]
async fn each_short_example_ends_well_and_shows_what_it_is_about() -> Result {
    // Examples lie beside the folder that has the tests.
    let test = env::current_exe()?;
    let folder = test.ancestors().nth(2).ok_or("it is in no target folder")?;
    let run = |name: &str| {
        let program = folder.join("examples").join(name);
        let program = program.with_extension(env::consts::EXE_EXTENSION);
        assert!(
            program.is_file(),
            "{name} is built by `cargo build --examples`"
        );
        // All at once: they mostly wait.
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).kill_on_drop(true);
        tokio::spawn(async move { command.output().await })
    };
    let running: Vec<_> = SHORT.iter().map(|(name, _)| run(name)).collect();
    for ((name, line), output) in SHORT.iter().zip(running) {
        let output = timeout(Duration::from_mins(1), output).await???;
        let printed = String::from_utf8(output.stdout)?;
        let failed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {failed}\n{printed}");
        assert_eq!(failed, "", "{name}");
        assert!(printed.lines().any(|it| it == *line), "{name}:\n{printed}");
    }
    Ok(())
}

#[test]
fn each_example_is_run_here_or_known_not_to_be() -> Result {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().ok_or("it has a name")?;
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    let known = SHORT.iter().map(|(name, _)| name).chain(OTHERS);
    let mut known: Vec<_> = known.map(ToString::to_string).collect();
    known.sort();
    assert_eq!(names, known);
    Ok(())
}
