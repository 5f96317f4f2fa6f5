//! What a layer can say is what telemetry knows of, to the last variant.

use std::{collections::HashSet, fs, path::Path};

/// Enums of events that are written as their layer writes them, and need no name here.
const IN_THEIR_OWN_WORDS: [(&str, &str); 2] = [("breaker", "Cause"), ("breaker", "State")];

/// An enum that is a value of a label, and is elsewhere.
const ELSEWHERE: (&str, &str, &str) = ("idempotency", "store.rs", "StoreErrorKind");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The layers that have events, by the names of their crates.
fn layers() -> Vec<String> {
    let crates = fs::read_dir(root().join("crates")).unwrap();
    let crates = crates.map(|entry| entry.unwrap());
    let with_events = crates.filter(|entry| entry.path().join("src/event.rs").exists());
    let names = with_events.map(|entry| entry.file_name().into_string().unwrap());
    let layers = names.filter_map(|name| Some(name.strip_prefix("buttress-")?.to_owned()));
    layers.collect()
}

/// The enums of a source but for the events themselves, by their names.
fn enums(source: &str) -> impl Iterator<Item = &str> {
    let starts = source.split("\npub enum ").skip(1);
    let names = starts.map(|start| start.split(' ').next().unwrap());
    names.filter(|name| *name != "Event")
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

/// The events that a source knows in the functions whose names begin like this.
fn events_in<'a>(source: &'a str, function: &str) -> HashSet<&'a str> {
    let functions = source.split("fn ").skip(1);
    let these = functions.filter(|text| text.starts_with(function));
    let names = these.flat_map(|text| text.split("Event::").skip(1));
    names
        .filter_map(|text| text.split(|c: char| !c.is_alphanumeric()).next())
        .collect()
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
    for layer in layers() {
        let telemetry = layer.replace('-', "_");
        let telemetry = read(format!("crates/buttress-telemetry/src/{telemetry}.rs"));
        let source = |file: &str| read(format!("crates/buttress-{layer}/src/{file}"));
        let events = source("event.rs");
        let (counted, told) = (
            events_in(&telemetry, "record("),
            events_in(&telemetry, "tell"),
        );
        for event in variants(&events, "Event") {
            assert!(counted.contains(&*event), "{layer}: {event} is not counted");
            assert!(told.contains(&*event), "{layer}: {event} is not told");
            seen += 1;
        }
        let mut labels: Vec<_> = enums(&events).map(|name| (name, events.clone())).collect();
        labels.retain(|(name, _)| !IN_THEIR_OWN_WORDS.contains(&(&layer, name)));
        if layer == ELSEWHERE.0 {
            labels.push((ELSEWHERE.2, source(ELSEWHERE.1)));
        }
        for (name, source) in labels {
            for variant in variants(&source, name) {
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
