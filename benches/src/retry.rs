//! What a retry layer costs the calls that need no retry, and the ones that do.

mod floor;
mod ours;
mod peers;

use tower::retry::Retry;

use self::floor::{Copied, Counted, Resent};
pub(crate) use self::peers::{FIRST_DELAY, Policy, RETRIES, failed};
use crate::harness::{Goal, Group, Kind, Row};
use crate::target::{Client, NUMBER, Request, Target, row};

/// The bare service, the floor, our layer and its peers, for each kind of request.
pub(crate) fn groups() -> Vec<Group> {
    let copied = Client::get().request();
    // The first copy turns values into counted references, in the original too.
    drop(copied.clone());
    vec![
        numbers(),
        first_try("retry, GET", requests(Client::get())),
        first_try("retry, GET copied from another", move || copied.clone()),
        first_try(
            "retry, POST with key, 1 KiB",
            requests(Client::keyed_post()),
        ),
        no_retry(
            "retry, POST without key, 1 KiB",
            RETRIES,
            requests(Client::post()),
        ),
        no_retry("retry, GET, none allowed", 0, requests(Client::get())),
        one_retry("retry, GET, 503 at first", requests(Client::get())),
    ]
}

fn requests(client: Client) -> impl FnMut() -> Request + Clone {
    move || client.request()
}

/// What a call should cost that could be retried and need not be.
const GOALS: &[Goal] = &[Goal::times(2.0, "floor"), Goal::times(0.5, "tower")];

fn numbers() -> Group {
    let target = Target::new;
    let number = || NUMBER;
    let tower = |target| Retry::new(Policy::new(RETRIES), target);
    let rows = vec![
        row("bare", Kind::Bare, target(), |target| target, number),
        row("floor", Kind::Floor, target(), Copied::new, number),
        row("buttress", Kind::Ours, target(), ours::numbers, number),
        row("tower", Kind::Peer, target(), tower, number),
        row(
            "tower-resilience",
            Kind::Peer,
            target(),
            peers::resilience,
            number,
        ),
        row(
            "backon (no layer)",
            Kind::Peer,
            target(),
            peers::backon,
            number,
        ),
    ];
    Group {
        name: "retry, u64",
        rows,
        goals: GOALS,
    }
}

/// The first answer is good, and the request was copied in vain.
fn first_try(name: &'static str, request: impl FnMut() -> Request + Clone + 'static) -> Group {
    let floor = row(
        "floor",
        Kind::Floor,
        Target::new(),
        Copied::new,
        request.clone(),
    );
    let rows = http(RETRIES, floor, request);
    Group {
        name,
        rows,
        goals: GOALS,
    }
}

/// The request will not be sent again whatever the answer is, so it need not be copied.
fn no_retry(
    name: &'static str,
    retries: u32,
    request: impl FnMut() -> Request + Clone + 'static,
) -> Group {
    let floor = row(
        "floor",
        Kind::Floor,
        Target::new(),
        Counted::new,
        request.clone(),
    );
    let rows = http(retries, floor, request);
    Group {
        name,
        rows,
        goals: &[],
    }
}

fn http(retries: u32, floor: Row, request: impl FnMut() -> Request + Clone + 'static) -> Vec<Row> {
    let target = Target::new;
    let buttress = move |target| ours::http(retries, target);
    let tower = move |target| Retry::new(Policy::new(retries), target);
    let resilience = move |target| peers::resilience_http(retries, target);
    let backon = move |target| peers::backon_http(retries, target);
    vec![
        row(
            "bare",
            Kind::Bare,
            target(),
            |target| target,
            request.clone(),
        ),
        floor,
        row("buttress", Kind::Ours, target(), buttress, request.clone()),
        row("tower", Kind::Peer, target(), tower, request.clone()),
        row(
            "tower-resilience",
            Kind::Peer,
            target(),
            resilience,
            request.clone(),
        ),
        row("backon (no layer)", Kind::Peer, target(), backon, request),
    ]
}

/// The first answer is a failure, and the second send follows at once. Without tower-resilience, whose timer waits a
/// millisecond where the delay is zero. The bare service is sent one request, for it has no second one to send.
fn one_retry(name: &'static str, request: impl FnMut() -> Request + Clone + 'static) -> Group {
    let target = Target::first_fails;
    let tower = |target| Retry::new(Policy::without_delay(), target);
    let backon = |target| peers::backon_http(RETRIES, target);
    let rows = vec![
        row(
            "bare",
            Kind::Bare,
            Target::new(),
            |target| target,
            request.clone(),
        ),
        row("floor", Kind::Floor, target(), Resent::new, request.clone()),
        row(
            "buttress",
            Kind::Ours,
            target(),
            ours::without_delay,
            request.clone(),
        ),
        row(
            "tower (no delay)",
            Kind::Peer,
            target(),
            tower,
            request.clone(),
        ),
        row("backon (no layer)", Kind::Peer, target(), backon, request),
    ];
    Group {
        name,
        rows,
        goals: &[],
    }
}
