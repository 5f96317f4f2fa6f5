//! What a limiter keeps for every key.

use std::hint::black_box;

use tower_service::Service;

use super::keys::Keys;
use super::{GOVERNOR, ours, peers};
use crate::alloc;
use crate::figures::{Figure, Limit, Measure};
use crate::harness::Kind;
use crate::target::{Key, Target};

/// Each key is used once.
pub(crate) fn measures() -> Vec<Measure> {
    let sizes = [
        ("limiter, memory, 10^6 keys", 1_000_000),
        ("limiter, memory, 10^7 keys", 10_000_000),
    ];
    let rows = |(group, keys)| {
        [
            of(group, "buttress", Kind::Ours, keys, ours::keyed),
            of(group, GOVERNOR, Kind::Peer, keys, peers::governor_keyed),
        ]
    };
    sizes.into_iter().flat_map(rows).collect()
}

const AT_MOST: f64 = 24.0;

#[expect(clippy::cast_precision_loss, reason = "gigabytes at most")]
fn of<S: Service<Key>>(
    group: &'static str,
    row: &'static str,
    kind: Kind,
    keys: u32,
    wrap: impl Fn(u32, Target) -> S + 'static,
) -> Measure {
    let heap = move |keys| {
        let mut service = None;
        let heap = alloc::count(|| Keys::all(keys, service.insert(wrap(keys, Target::new()))));
        black_box(&service);
        heap
    };
    let take = move || {
        let (one, all) = (heap(1), heap(keys));
        let a_key = |name, more: i64| Figure {
            name,
            value: more as f64 / f64::from(keys - 1),
            goal: Some(Limit::AtMost(AT_MOST)),
        };
        Ok(vec![
            a_key("bytes a key", all.held - one.held),
            a_key("bytes a key, at most", all.most - one.held),
        ])
    };
    Measure {
        group,
        row,
        kind,
        only_if_asked: keys > 1_000_000,
        take: Box::new(take),
    }
}
