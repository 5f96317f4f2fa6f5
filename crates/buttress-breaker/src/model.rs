//! The breaker once more, as plainly as it can be said in a hundred lines, and the real one held against it.

use std::time::Duration;

use buttress_core::clock::{self, Instant};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    State,
    circuit::Permit,
    settings::{Figures, Kind, Rules, Settings},
    shared::Shared,
};

// The model, from here to the other line.
struct Model {
    rules: Rules,
    state: State,
    /// Changes whenever what is under way becomes worthless.
    era: u64,
    start: Instant,
    until: Instant,
    /// All calls of this era that have ended: when, and whether they failed.
    ended: Vec<(Instant, bool)>,
    /// The probes in flight, and when their leases expire.
    flying: Vec<(u64, Instant)>,
    succeeded: u32,
}

impl Model {
    fn turn(&mut self, state: State) {
        *self = Self {
            state,
            era: self.era + 1,
            ended: Vec::new(),
            flying: Vec::new(),
            succeeded: 0,
            ..*self
        };
    }

    fn open(&mut self, drawn: Option<Duration>) {
        self.turn(State::Open);
        self.until = clock::now() + drawn.expect("the real one is open too");
    }

    /// The era and the number of the probe, if the call is let through.
    fn admit(&mut self, probe: u64) -> Option<(u64, u64)> {
        if self.state == State::Open && clock::now() >= self.until {
            self.turn(State::HalfOpen);
        }
        self.flying.retain(|(_, expires)| *expires > clock::now());
        let (first, then) = self.rules.in_flight;
        let most = if self.succeeded == 0 { first } else { then };
        match self.state {
            State::Closed | State::ForcedClosed => Some((self.era, 0)),
            State::HalfOpen if self.flying.len() < most.get() as usize => {
                let expires = clock::now() + self.rules.lease?;
                self.flying.push((probe, expires));
                Some((self.era, probe))
            }
            _ => None,
        }
    }

    /// Ends a call, of which nothing is known if there is no `failed`. Says whether it is still good.
    fn end(&mut self, call: (u64, u64), failed: Option<bool>, drawn: Option<Duration>) -> bool {
        self.flying.retain(|(_, expires)| *expires > clock::now());
        let is_probe = self.flying.iter().any(|(id, _)| *id == call.1);
        if call.0 != self.era || call.1 != 0 && !is_probe {
            return false;
        }
        self.flying.retain(|(id, _)| *id != call.1);
        match failed {
            None => {}
            Some(true) if is_probe => self.open(drawn),
            Some(false) if is_probe => {
                self.succeeded += 1;
                if self.succeeded == self.rules.probes.get() {
                    self.turn(State::Closed);
                }
            }
            Some(failed) => {
                self.ended.push((clock::now(), failed));
                if failed && self.state == State::Closed && self.is_bad() {
                    self.open(drawn);
                }
            }
        }
        true
    }

    fn is_bad(&self) -> bool {
        let (calls, failures, row) = self.figures();
        match (self.rules.window, self.rules.in_a_row) {
            (Kind::InARow(limit), _) => row >= limit.get().into(),
            _ if calls >= self.rules.min_calls.get().into() => failures * 2 >= calls,
            (_, limit) => limit.is_some_and(|limit| row >= limit.get().into()),
        }
    }

    /// The calls, the failures, and those in a row.
    fn figures(&self) -> (u64, u64, u64) {
        let ended = &self.ended;
        let row = ended.iter().rev().take_while(|(_, failed)| *failed).count();
        let since = |time: Instant| time.saturating_duration_since(self.start).as_nanos();
        let seen = match self.rules.window {
            Kind::InARow(_) => row,
            Kind::Calls(size) => ended.len().min(size.get() as usize),
            Kind::Time(length) => {
                let part = |time| since(time) / (length / 10).as_nanos();
                let young = |(time, _): &&(Instant, bool)| part(*time) + 10 > part(clock::now());
                ended.iter().rev().take_while(young).count()
            }
        };
        let failures = ended.iter().rev().take(seen).filter(|(_, failed)| *failed);
        (seen as u64, failures.count() as u64, row as u64)
    }
}
// The other line.

fn some(rng: &mut StdRng, most: u32) -> std::num::NonZeroU32 {
    rng.random_range(1..=most).try_into().unwrap()
}

/// Random rules.
fn rules(rng: &mut StdRng) -> Rules {
    let rules = Rules {
        window: match rng.random_range(0..3) {
            0 => Kind::Calls(some(rng, 12)),
            1 => Kind::Time(Duration::from_millis(rng.random_range(10..300))),
            _ => Kind::InARow(some(rng, 4)),
        },
        min_calls: some(rng, 8),
        in_a_row: rng.random_bool(0.5).then(|| some(rng, 4)),
        open_time: Duration::from_millis(rng.random_range(1..100)),
        max_open_time: Duration::from_millis(rng.random_range(100..200)),
        probes: some(rng, 4),
        in_flight: (some(rng, 3), some(rng, 3)),
        lease: Some(Duration::from_millis(rng.random_range(1..200))),
        ramp: false,
        ..Rules::default()
    };
    // A window of ten calls never holds twenty.
    match rules.window {
        Kind::Calls(size) => Rules {
            min_calls: rules.min_calls.min(size),
            ..rules
        },
        _ => rules,
    }
}

/// One random story of some calls, told to both.
async fn tell(rng: &mut StdRng) {
    let rules = rules(rng);
    let settings = Settings {
        rules,
        ..Settings::default()
    };
    let real = Shared::new(settings.into(), None);
    let now = clock::now();
    let mut model = Model {
        rules,
        state: State::Closed,
        era: 1,
        start: now,
        until: now,
        ended: Vec::new(),
        flying: Vec::new(),
        succeeded: 0,
    };
    let mut calls: Vec<(Permit, (u64, u64))> = Vec::new();
    let failing = rng.random_range(0.1..0.9);
    for _ in 0..rng.random_range(1..60) {
        let step = rng.random_range(0..100);
        match step {
            0..45 => {
                let permit = real.admit().ok();
                let probe = permit.map_or(0, |permit| permit.probe);
                let expected = model.admit(probe);
                assert_eq!(
                    permit.map(|permit| permit.probe),
                    expected.map(|call| call.1)
                );
                calls.extend(permit.zip(expected));
            }
            45..80 if !calls.is_empty() => {
                let (permit, call) = calls.swap_remove(rng.random_range(0..calls.len()));
                let failed = rng.random_bool(0.9).then(|| rng.random_bool(failing));
                let good = match failed {
                    Some(true) => real.failed(permit, false, None),
                    Some(false) => real.succeeded(permit, false),
                    // Ignored or cancelled.
                    None => real.give_back(permit),
                };
                assert_eq!(good, model.end(call, failed, drawn(&real)));
            }
            // Forgotten: nobody will ever hear of it.
            80..83 => drop(calls.pop()),
            83..97 => tokio::time::advance(Duration::from_millis(rng.random_range(0..60))).await,
            97 => {
                real.force(true);
                if model.state != State::ForcedOpen {
                    model.turn(State::ForcedOpen);
                }
            }
            98 => {
                real.force(false);
                if model.state != State::ForcedClosed {
                    model.turn(State::ForcedClosed);
                }
            }
            _ => {
                real.release();
                if matches!(model.state, State::ForcedOpen | State::ForcedClosed) {
                    model.turn(State::Closed);
                }
            }
        }
        real.look(|circuit, figures, now| {
            let Figures {
                calls,
                failures,
                in_a_row,
                ..
            } = figures;
            assert_eq!(circuit.state(), model.state);
            assert_eq!((calls, failures, in_a_row.into()), model.figures());
            assert_eq!(circuit.probes(now).1, model.succeeded);
        });
    }
}

/// How long the real one says that it stays open.
fn drawn(real: &Shared) -> Option<Duration> {
    real.look(|circuit, _, now| match circuit.phase {
        crate::circuit::Phase::Open { until } => Some(until.saturating_duration_since(now)),
        _ => None,
    })
}

// promise: BR-13
#[tokio::test(start_paused = true)]
async fn it_agrees_with_a_breaker_of_a_hundred_lines() {
    for seed in 0..100_000 {
        let story = Story(seed);
        tell(&mut StdRng::seed_from_u64(seed)).await;
        drop(story);
    }
}

/// Says which story it was that went wrong.
struct Story(u64);

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the story of seed {} is told in two ways", self.0);
        }
    }
}

// promise: BR-13
#[test]
fn the_model_has_at_most_a_hundred_lines() {
    let source = include_str!("model.rs");
    let model = source.split("other line.\n").nth(1).unwrap();
    let lines = model.lines().filter(|line| !line.is_empty()).count();
    assert!(lines <= 100, "{lines}");
}
