//! What a layer can say is what telemetry knows of, to the last variant.

use std::{fs, path::Path};

/// The layers and their enums whose variants are values of a label or a field.
const LAYERS: [(&str, &[(&str, &str)]); 4] = [
    (
        "retry",
        &[
            ("event.rs", "Outcome"),
            ("event.rs", "Cause"),
            ("event.rs", "DelaySource"),
        ],
    ),
    (
        "breaker",
        &[
            ("event.rs", "Outcome"),
            ("event.rs", "Reason"),
            ("event.rs", "ProbeResult"),
        ],
    ),
    ("rate-limit", &[("event.rs", "Reason")]),
    (
        "idempotency",
        &[("event.rs", "Operation"), ("store.rs", "StoreErrorKind")],
    ),
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(path).unwrap()
}

/// The variants of an enum, as its source has them.
fn variants(source: &str, name: &str) -> Vec<String> {
    let start = source.find(&format!("pub enum {name} {{")).unwrap();
    let body = source[start..].split("\n}").next().unwrap();
    let lines = body.lines().skip(1);
    // A variant is indented by four; its fields are by more.
    let words = lines.filter_map(|line| line.strip_prefix("    "));
    let words = words.map(|word| word.split(|c: char| !c.is_alphanumeric()).next().unwrap());
    let words = words.filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()));
    words.map(Into::into).collect()
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

// promise: ST-10
#[test]
fn every_event_and_every_value_that_a_layer_has_is_known_by_its_name() {
    let mut seen = 0;
    for (layer, enums) in LAYERS {
        let telemetry = format!(
            "crates/buttress-telemetry/src/{}.rs",
            layer.replace('-', "_")
        );
        let telemetry = read(&telemetry);
        let layer = format!("crates/buttress-{layer}/src");
        for event in variants(&read(&format!("{layer}/event.rs")), "Event") {
            // Once where it is counted, and once where it is told.
            let known = telemetry.matches(&format!("Event::{event}")).count();
            assert!(known >= 2, "{layer}: {event} is not counted or not told");
            seen += 1;
        }
        for (file, name) in enums {
            for variant in variants(&read(&format!("{layer}/{file}")), name) {
                let text = snake(&variant);
                let plain = format!("{name}::{variant} => \"{text}\"");
                let full = format!("{name}::{variant}(_) => \"{text}\"");
                assert!(
                    telemetry.contains(&plain) || telemetry.contains(&full),
                    "{layer}: {name}::{variant} is not called {text}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 60, "{seen}");
}
