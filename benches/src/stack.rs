//! What the four parts of a client cost together, for a call whose first try succeeds: retries, a time limit for each
//! attempt, a breaker and a rate limit.

mod floor;
mod ours;
mod peers;

use std::time::Duration;

use tower_service::Service;

use crate::harness::{Goal, Group, Kind, Row};
use crate::target::{Answer, Client, NUMBER, Request, Target, row};

/// What an attempt may take.
const TIMEOUT: Duration = Duration::from_secs(2);

const BY_HAND: &str = "by hand";
const RESILIENCE: &str = "tower-resilience";

const GOALS: &[Goal] = &[
    Goal::times(2.0, "floor"),
    Goal::times(0.4, BY_HAND),
    Goal::times(0.1, RESILIENCE),
];

/// The bare service, the floor, our layers and the peers', for each kind of request.
pub(crate) fn groups() -> Vec<Group> {
    vec![numbers(), http()]
}

fn numbers() -> Group {
    fn of<S>(name: &'static str, kind: Kind, wrap: impl FnOnce(Target) -> S) -> Row
    where
        S: Service<u64, Response: Answer> + 'static,
    {
        row(name, kind, Target::new(), wrap, || NUMBER)
    }
    Group {
        name: "client stack, u64",
        rows: vec![
            of("bare", Kind::Bare, |target| target),
            of("floor", Kind::Floor, floor::Stack::new),
            of("buttress", Kind::Ours, ours::numbers),
            of("buttress, as in the README", Kind::Ours, ours::whole),
            of(BY_HAND, Kind::Peer, peers::by_hand),
            of(RESILIENCE, Kind::Peer, peers::resilience),
        ],
        goals: GOALS,
    }
}

fn http() -> Group {
    fn of<S>(name: &'static str, kind: Kind, wrap: impl FnOnce(Target) -> S) -> Row
    where
        S: Service<Request, Response: Answer> + 'static,
    {
        let client = Client::get();
        row(name, kind, Target::new(), wrap, move || client.request())
    }
    Group {
        name: "client stack, GET",
        rows: vec![
            of("bare", Kind::Bare, |target| target),
            of("floor", Kind::Floor, floor::Stack::new),
            of("buttress", Kind::Ours, ours::http),
            of("buttress, as in the README", Kind::Ours, ours::whole_http),
            of(BY_HAND, Kind::Peer, peers::by_hand_http),
            of(RESILIENCE, Kind::Peer, peers::resilience_http),
        ],
        goals: GOALS,
    }
}
