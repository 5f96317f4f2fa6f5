//! What it costs to do a request with a key once, and to answer it again.

mod asking;
mod claims;
mod floor;
mod handler;
mod ours;
mod peers;

use std::io;
use std::rc::Rc;

use tokio::runtime::{Builder, Runtime};

use self::asking::{Turn, row};
use self::handler::{Done, Handler};
use crate::figures::Measure;
use crate::harness::{Goal, Group, Kind};
use crate::target::{self, Client, Target};

/// The layers below spawn tasks and make timers: their calls are made in a task, and those of their peers too.
type InRuntime = Rc<Runtime>;

/// The layer over requests that it has nothing to do with, and with records in memory, beside its peers.
pub(crate) fn groups() -> io::Result<Vec<Group>> {
    let runtime = Rc::new(Builder::new_current_thread().enable_time().build()?);
    Ok(vec![without_key(), first(&runtime), again(&runtime)])
}

/// Records in a file.
pub(crate) fn measures() -> Vec<Measure> {
    claims::measures()
}

const BY_KEY: &str = "axum-idempotent";
const BY_HASH: &str = "axum-idempotent, by hash";

/// What a request should cost that the layer has nothing to do with.
const NOTHING: &[Goal] = &[Goal::nanoseconds(20.0, "floor")];
/// What it should cost to keep what a request came to.
const ONCE: &[Goal] = &[Goal::times(0.5, BY_KEY), Goal::times(0.5, BY_HASH)];
/// What it should cost to answer it again.
const AGAIN: &[Goal] = &[Goal::times(0.4, BY_KEY), Goal::times(0.4, BY_HASH)];

/// A POST, which might have a key.
fn without_key() -> Group {
    let post = || {
        let client = Client::post();
        move || client.request()
    };
    Group {
        name: "idempotency, POST without a key",
        rows: vec![
            target::row("bare", Kind::Bare, Target::new(), |target| target, post()),
            target::row("floor", Kind::Floor, Target::new(), floor::passing, post()),
            target::row("buttress", Kind::Ours, Target::new(), ours::passing, post()),
        ],
        goals: NOTHING,
    }
}

/// Each request has another key, and is done.
fn first(runtime: &InRuntime) -> Group {
    let of = Turn::First;
    Group {
        name: "idempotency, first run",
        rows: vec![
            row("bare", Kind::Bare, runtime, Turn::Without, Handler::new),
            row("floor", Kind::Floor, runtime, of, floor::keeping),
            row("buttress", Kind::Ours, runtime, of, ours::keeping),
            row(BY_KEY, Kind::Peer, runtime, of, peers::by_key),
            row(BY_HASH, Kind::Peer, runtime, of, peers::by_hash),
        ],
        goals: ONCE,
    }
}

/// Each request was done before, and is answered as it was then. The bare service has no answer to make.
fn again(runtime: &InRuntime) -> Group {
    let of = Turn::Again;
    Group {
        name: "idempotency, replay",
        rows: vec![
            row("bare", Kind::Bare, runtime, Turn::Without, |_| Done),
            row("floor", Kind::Floor, runtime, of, floor::keeping),
            row("buttress", Kind::Ours, runtime, of, ours::keeping),
            row(BY_KEY, Kind::Peer, runtime, of, peers::by_key),
            row(BY_HASH, Kind::Peer, runtime, of, peers::by_hash),
        ],
        goals: AGAIN,
    }
}
