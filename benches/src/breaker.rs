//! What a breaker costs the calls that it lets through, and the ones that it refuses.

mod floor;
mod ours;
mod peers;

use tower_service::Service;

use self::floor::{Gated, Shut};
use crate::harness::{Goal, Group, Kind, Row};
use crate::target::{
    Answer, Client, NUMBER, Refusing, Request, Target, filled, refused, row, shared,
};

/// What a breaker goes by.
#[derive(Clone, Copy, Debug)]
enum Window {
    /// Five failures in a row.
    InARow,
    /// The share of failures among the last hundred calls.
    Calls,
    /// The share of failures in the last time, ten seconds or what the peer has by default.
    Time,
}

/// The bare service, the floor, our layer and its peers, for each kind of breaker and of request.
pub(crate) fn groups() -> Vec<Group> {
    vec![
        numbers("breaker, u64, failures in a row", Window::InARow),
        numbers("breaker, u64, count window", Window::Calls),
        numbers("breaker, u64, time window", Window::Time),
        http("breaker, GET, failures in a row", Window::InARow),
        http("breaker, GET, count window", Window::Calls),
        http("breaker, GET, time window", Window::Time),
        sizes(),
        open_numbers(),
        open_http(),
        threads("breaker, u64, 1 thread", 1, &[]),
        threads("breaker, u64, 2 threads", 2, SCALING),
        threads("breaker, u64, 4 threads", 4, &[]),
    ]
}

const FLOOR: Goal = Goal::times(2.0, "floor");

/// What a call should cost that is let through.
const CLOSED: &[Goal] = &[
    FLOOR,
    Goal::times(0.6, "recloser (no layer)"),
    Goal::times(0.1, "tower-resilience"),
];

/// No peer that is quick knows the time.
const TIMED: &[Goal] = &[FLOOR];

/// What a call should cost however many came before it.
const SIZES: &[Goal] = &[FLOOR, Goal::times(1.2, "buttress, 10^2 calls")];

/// What a refusal should cost.
const OPEN: &[Goal] = &[
    Goal::times(0.8, "failsafe (no layer)"),
    Goal::times(0.8, "recloser (no layer)"),
];

/// What a call should cost while another core makes one through the same breaker.
const SCALING: &[Goal] = &[Goal::times(2.5, "floor")];

fn number() -> u64 {
    NUMBER
}

fn get() -> impl FnMut() -> Request + Clone {
    let client = Client::get();
    move || client.request()
}

fn goals(window: Window) -> &'static [Goal] {
    match window {
        Window::InARow | Window::Calls => CLOSED,
        Window::Time => TIMED,
    }
}

fn numbers(name: &'static str, window: Window) -> Group {
    let mut rows = least(window, number);
    rows.push(row(
        "buttress",
        Kind::Ours,
        Target::new(),
        |target| ours::numbers(window, target),
        number,
    ));
    rows.extend(by_hand(
        window,
        number,
        peers::failsafe,
        peers::failsafe_timed,
        peers::recloser,
    ));
    rows.push(resilience(window, peers::resilience, number));
    Group {
        name,
        rows,
        goals: goals(window),
    }
}

fn http(name: &'static str, window: Window) -> Group {
    let mut rows = least(window, get());
    rows.push(row(
        "buttress",
        Kind::Ours,
        Target::new(),
        |target| ours::http(window, target),
        get(),
    ));
    rows.extend(by_hand(
        window,
        get(),
        peers::failsafe_http,
        peers::failsafe_timed_http,
        peers::recloser_http,
    ));
    rows.push(resilience(window, peers::resilience_http, get()));
    Group {
        name,
        rows,
        goals: goals(window),
    }
}

/// The bare service and the floor.
fn least<R>(window: Window, request: impl FnMut() -> R + Clone + 'static) -> Vec<Row>
where
    R: 'static,
    Target: Service<R, Response: Answer, Error = std::io::Error>,
{
    let (target, bare) = (Target::new, request.clone());
    vec![
        row("bare", Kind::Bare, target(), |target| target, bare),
        match window {
            Window::InARow | Window::Calls => {
                let wrap = |target| Gated::<_>::new(target);
                row("floor", Kind::Floor, target(), wrap, request)
            }
            Window::Time => {
                let wrap = |target| Gated::<_, true>::new(target);
                row("floor", Kind::Floor, target(), wrap, request)
            }
        },
    ]
}

/// The peers that have no layer: failsafe has no count window, and recloser nothing else.
fn by_hand<R, F, T, C>(
    window: Window,
    request: impl FnMut() -> R + Clone + 'static,
    failsafe: impl FnOnce(Target) -> F,
    failsafe_timed: impl FnOnce(Target) -> T,
    recloser: impl FnOnce(Target) -> C,
) -> Vec<Row>
where
    F: Service<R, Response: Answer> + 'static,
    T: Service<R, Response: Answer> + 'static,
    C: Service<R, Response: Answer> + 'static,
{
    let target = Target::new;
    let [in_a_row, ring] = ["failsafe (no layer)", "recloser (no layer)"];
    match window {
        Window::InARow => vec![
            row(in_a_row, Kind::Peer, target(), failsafe, request.clone()),
            row(ring, Kind::Peer, target(), recloser, request),
        ],
        Window::Calls => vec![row(ring, Kind::Peer, target(), recloser, request)],
        Window::Time => vec![row(in_a_row, Kind::Peer, target(), failsafe_timed, request)],
    }
}

/// tower-resilience looks at every call that is in its window of time, whenever one ends: there must not be too many.
fn resilience<S, R>(
    window: Window,
    wrap: fn(Window, Target) -> S,
    request: impl FnMut() -> R + Clone + 'static,
) -> Row
where
    S: Service<R, Response: Answer> + 'static,
{
    let wrap = move |target| wrap(window, target);
    match window {
        Window::InARow | Window::Calls => {
            row("tower-resilience", Kind::Peer, Target::new(), wrap, request)
        }
        Window::Time => filled(
            "tower-resilience, 10^2 calls",
            Kind::Peer,
            100,
            wrap,
            request,
        ),
    }
}

/// The cost of a call by how many are in a window of time. Without tower-resilience at 10^6, which takes a millisecond for
/// a call then, and minutes to get there.
fn sizes() -> Group {
    let ours = |name, calls| {
        let wrap = |target| ours::numbers(Window::Time, target);
        filled(name, Kind::Ours, calls, wrap, number)
    };
    let resilience = |name, calls| {
        let wrap = |target| peers::resilience(Window::Time, target);
        filled(name, Kind::Peer, calls, wrap, number)
    };
    let mut rows = least(Window::Time, number);
    rows.extend([
        ours("buttress, 10^2 calls", 100),
        ours("buttress, 10^4 calls", 10_000),
        ours("buttress, 10^6 calls", 1_000_000),
        resilience("tower-resilience, 10^2 calls", 100),
        resilience("tower-resilience, 10^4 calls", 10_000),
    ]);
    Group {
        name: "breaker, u64, calls in the time window",
        rows,
        goals: SIZES,
    }
}

fn open_numbers() -> Group {
    let ours = |target| ours::open(target);
    let rows = vec![
        refused("bare", Kind::Bare, |_| Refusing, number),
        refused("floor", Kind::Floor, |_| Shut::new(), number),
        refused("buttress", Kind::Ours, ours, number),
        refused(
            "failsafe (no layer)",
            Kind::Peer,
            peers::failsafe_open,
            number,
        ),
        refused(
            "recloser (no layer)",
            Kind::Peer,
            peers::recloser_open,
            number,
        ),
        refused(
            "tower-resilience",
            Kind::Peer,
            peers::resilience_open,
            number,
        ),
    ];
    Group {
        name: "breaker, u64, open",
        rows,
        goals: OPEN,
    }
}

fn open_http() -> Group {
    let rows = vec![
        refused("bare", Kind::Bare, |_| Refusing, get()),
        refused("floor", Kind::Floor, |_| Shut::new(), get()),
        refused("buttress", Kind::Ours, ours::open_http, get()),
        refused(
            "failsafe (no layer)",
            Kind::Peer,
            peers::failsafe_open_http,
            get(),
        ),
        refused(
            "recloser (no layer)",
            Kind::Peer,
            peers::recloser_open_http,
            get(),
        ),
        refused(
            "tower-resilience",
            Kind::Peer,
            peers::resilience_open_http,
            get(),
        ),
    ];
    Group {
        name: "breaker, GET, open",
        rows,
        goals: OPEN,
    }
}

/// All threads go through one breaker. Where they are more than the cores may be, without tower-resilience: its lock is
/// handed to a thread that does not run, and the others wait for the scheduler.
fn threads(name: &'static str, threads: u32, goals: &'static [Goal]) -> Group {
    let mut rows = vec![
        shared("bare", Kind::Bare, threads, |target| target, number),
        shared("floor", Kind::Floor, threads, Gated::<_>::new, number),
        shared(
            "buttress, in a row",
            Kind::Ours,
            threads,
            |target| ours::numbers(Window::InARow, target),
            number,
        ),
        shared(
            "buttress, count window",
            Kind::Ours,
            threads,
            |target| ours::numbers(Window::Calls, target),
            number,
        ),
        shared(
            "failsafe (no layer)",
            Kind::Peer,
            threads,
            peers::failsafe,
            number,
        ),
        shared(
            "recloser (no layer)",
            Kind::Peer,
            threads,
            peers::recloser,
            number,
        ),
    ];
    if threads <= 2 {
        let resilience = |target| peers::resilience(Window::Calls, target);
        rows.push(shared(
            "tower-resilience",
            Kind::Peer,
            threads,
            resilience,
            number,
        ));
    }
    Group { name, rows, goals }
}
