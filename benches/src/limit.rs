//! What a limiter costs the calls that it lets through, and the ones that it refuses.

mod asking;
mod floor;
mod keys;
mod memory;
mod ours;
mod peers;
mod waiting;

use std::num::NonZeroU32;
use std::time::Duration;

use tower_service::Service;

pub(crate) use self::asking::Asking;
pub(crate) use self::floor::{Apart, Bucket};
use self::keys::Keys;
use crate::figures::Measure;
use crate::harness::{Goal, Group, Kind, Row, call};
use crate::target::{
    Answer, Client, Key, NUMBER, Refusing, Request, Target, late, refused, row, shared,
};

/// More than a core can make in a second, and less than the time of one in nanoseconds can count.
pub(crate) const A_BILLION: NonZeroU32 = NonZeroU32::new(1_000_000_000).expect("not zero");
const ONE: NonZeroU32 = NonZeroU32::MIN;
/// Longer than a run.
const YEAR: Duration = Duration::from_hours(24 * 365);

/// The bare service, the floor, our layer and its peers, for what is granted and what is refused.
pub(crate) fn groups() -> Vec<Group> {
    vec![
        granted_numbers(),
        granted_http(),
        refused_numbers(),
        answered(),
        keyed("limiter, keyed, 1 key", 1),
        keyed("limiter, keyed, 10^3 keys", 1_000),
        keyed("limiter, keyed, 10^6 keys", 1_000_000),
        threads("limiter, u64, 1 thread", 1, &[]),
        threads("limiter, u64, 2 threads", 2, SCALING),
        threads("limiter, u64, 4 threads", 4, &[]),
        keyed_threads("limiter, keyed, 2 threads", 2),
    ]
}

/// What a key is kept in, and what many who wait cost.
pub(crate) fn measures() -> Vec<Measure> {
    let mut measures = memory::measures();
    measures.extend(waiting::measures());
    measures
}

/// What a call should cost that does not wait, or that is refused.
const FLOOR: &[Goal] = &[Goal::times(1.5, "floor")];

/// What a refusal should cost with its answer, which is about 600 ns.
const ANSWERED: &[Goal] = &[Goal::times(3.0, "floor")];

/// What a call should cost where each key has a limit of its own.
const KEYED: &[Goal] = &[Goal::times(0.6, GOVERNOR)];

/// What a call should cost while another core makes one through the same limiter.
const SCALING: &[Goal] = &[Goal::times(2.5, "floor")];

const GOVERNOR: &str = "governor (no layer)";
const LEAKY_BUCKET: &str = "leaky-bucket (no layer)";
const RATELIMIT: &str = "ratelimit (no layer)";
const TOWER: &str = "tower (no clones)";
const RESILIENCE: &str = "tower-resilience";

/// The time of a token, and the burst, of each of so many keys: over a run no key that has been used is full again and may
/// be forgotten, nor is it empty.
fn of_a_key(keys: u32) -> (Duration, NonZeroU32) {
    let burst = NonZeroU32::new(A_BILLION.get() / keys);
    (
        Duration::from_secs(keys.into()),
        burst.expect("less than a billion keys"),
    )
}

fn number() -> u64 {
    NUMBER
}

fn get() -> impl FnMut() -> Request + Clone {
    let client = Client::get();
    move || client.request()
}

/// Makes the one call that is granted. That the next is refused is seen by those that are measured.
fn spend<S: Service<R>, R>(service: &mut S, mut request: impl FnMut() -> R) {
    call(service, request(), || panic!("it does not wait"), |_| ());
}

fn granted_numbers() -> Group {
    Group {
        name: "limiter, u64, granted",
        rows: vec![
            granted("bare", Kind::Bare, |target| target),
            granted("floor", Kind::Floor, floor::granted),
            granted("buttress", Kind::Ours, ours::granted),
            granted(GOVERNOR, Kind::Peer, peers::governor),
            granted(RATELIMIT, Kind::Peer, peers::ratelimit),
            granted(LEAKY_BUCKET, Kind::Peer, peers::leaky_bucket),
            granted(TOWER, Kind::Peer, peers::tower),
            granted(RESILIENCE, Kind::Peer, peers::resilience),
        ],
        goals: FLOOR,
    }
}

fn granted<S>(name: &'static str, kind: Kind, wrap: impl FnOnce(Target) -> S) -> Row
where
    S: Service<u64, Response: Answer> + 'static,
{
    row(name, kind, Target::new(), wrap, number)
}

fn granted_http() -> Group {
    fn granted<S>(name: &'static str, kind: Kind, wrap: impl FnOnce(Target) -> S) -> Row
    where
        S: Service<Request, Response: Answer> + 'static,
    {
        row(name, kind, Target::new(), wrap, get())
    }
    Group {
        name: "limiter, GET, granted",
        rows: vec![
            granted("bare", Kind::Bare, |target| target),
            granted("floor", Kind::Floor, floor::granted),
            granted("buttress", Kind::Ours, ours::granted_http),
            granted(GOVERNOR, Kind::Peer, peers::governor_http),
            granted(RATELIMIT, Kind::Peer, peers::ratelimit_http),
            granted(LEAKY_BUCKET, Kind::Peer, peers::leaky_bucket),
            granted(TOWER, Kind::Peer, peers::tower),
            granted(RESILIENCE, Kind::Peer, peers::resilience_http),
        ],
        goals: FLOOR,
    }
}

/// Without tower, which does not refuse, and leaky-bucket, which makes no error of it.
fn refused_numbers() -> Group {
    fn empty<S>(name: &'static str, kind: Kind, wrap: impl FnOnce(Target) -> S) -> Row
    where
        S: Service<u64, Response: Answer> + 'static,
    {
        refused(name, kind, wrap, number)
    }
    Group {
        name: "limiter, u64, refused",
        rows: vec![
            empty("bare", Kind::Bare, |_| Refusing),
            empty("floor", Kind::Floor, floor::refused),
            empty("buttress", Kind::Ours, ours::refused),
            empty(GOVERNOR, Kind::Peer, peers::governor_refused),
            empty(RATELIMIT, Kind::Peer, peers::ratelimit_refused),
            empty(RESILIENCE, Kind::Peer, peers::resilience_refused),
        ],
        goals: FLOOR,
    }
}

/// What a server sends to whom it refuses.
fn answered() -> Group {
    fn answered<S>(name: &'static str, kind: Kind, wrap: impl FnOnce(Target) -> S) -> Row
    where
        S: Service<Request, Response: Answer> + 'static,
    {
        refused(name, kind, wrap, get())
    }
    Group {
        name: "limiter, GET, answered with 429",
        rows: vec![
            answered("bare", Kind::Bare, |_| Refusing),
            answered("floor", Kind::Floor, floor::answered),
            answered("buttress", Kind::Ours, ours::answered),
            answered("tower_governor", Kind::Peer, peers::governor_answered),
        ],
        goals: ANSWERED,
    }
}

/// All threads go through one limiter, which tower's cannot.
fn threads(name: &'static str, threads: u32, goals: &'static [Goal]) -> Group {
    fn of<S>(threads: u32, name: &'static str, kind: Kind, wrap: impl FnOnce(Target) -> S) -> Row
    where
        S: Service<u64, Response: Answer> + Clone + Send + 'static,
    {
        shared(name, kind, threads, wrap, number)
    }
    Group {
        name,
        rows: vec![
            of(threads, "bare", Kind::Bare, |target| target),
            of(threads, "floor", Kind::Floor, floor::granted),
            of(threads, "buttress", Kind::Ours, ours::granted),
            of(threads, GOVERNOR, Kind::Peer, peers::governor),
            of(threads, RATELIMIT, Kind::Peer, peers::ratelimit),
            of(threads, LEAKY_BUCKET, Kind::Peer, peers::leaky_bucket),
            of(threads, RESILIENCE, Kind::Peer, peers::resilience),
        ],
        goals,
    }
}

/// Every key has been used before, and has plenty left.
fn keyed(name: &'static str, number: u32) -> Group {
    fn of<S>(
        name: &'static str,
        kind: Kind,
        number: u32,
        wrap: impl FnOnce(Target) -> S + 'static,
    ) -> Row
    where
        S: Service<Key, Response: Answer> + 'static,
    {
        let mut keys = Keys::new(number);
        let used = move |target| {
            let mut service = wrap(target);
            Keys::all(number, &mut service);
            service
        };
        late(name, kind, used, move || keys.next())
    }
    Group {
        name,
        rows: vec![
            of("bare", Kind::Bare, number, |target| target),
            of("floor", Kind::Floor, number, move |target| {
                floor::keyed(number, target)
            }),
            of("buttress", Kind::Ours, number, move |target| {
                ours::keyed(number, target)
            }),
            of(GOVERNOR, Kind::Peer, number, move |target| {
                peers::governor_keyed(number, target)
            }),
        ],
        goals: KEYED,
    }
}

/// The threads take different ones of 10^3 keys.
fn keyed_threads(name: &'static str, threads: u32) -> Group {
    const NUMBER: u32 = 1_000;

    fn of<S>(
        threads: u32,
        name: &'static str,
        kind: Kind,
        wrap: impl FnOnce(Target) -> S + 'static,
    ) -> Row
    where
        S: Service<Key, Response: Answer> + Clone + Send + 'static,
    {
        let mut keys = Keys::new(NUMBER);
        shared(name, kind, threads, wrap, move || keys.next())
    }
    Group {
        name,
        rows: vec![
            of(threads, "bare", Kind::Bare, |target| target),
            of(threads, "floor", Kind::Floor, |target| {
                floor::keyed(NUMBER, target)
            }),
            of(threads, "buttress", Kind::Ours, |target| {
                ours::keyed(NUMBER, target)
            }),
            of(threads, GOVERNOR, Kind::Peer, |target| {
                peers::governor_keyed(NUMBER, target)
            }),
        ],
        goals: KEYED,
    }
}
