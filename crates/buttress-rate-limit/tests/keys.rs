//! The promises of limits by key, on a paused clock.

mod support;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use allocation_counter::measure;
use buttress_core::BoxError;
use buttress_rate_limit::{Event, Quota, QuotaOf, RateLimitLayer};
use futures_util::FutureExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use support::*;
use tokio::time::advance;
use tokio_test::task;
use tower::{Layer, Service, ServiceExt, service_fn};

/// The sizes of the specification, where somebody has asked for them, or else these.
fn size(full: u64, usual: u64) -> u64 {
    std::env::var_os("BUTTRESS_FULL").map_or(usual, |_| full)
}

/// Is a call let through? It must not have to wait.
fn admits<S: Service<u64, Error = BoxError>>(service: &mut S, request: u64) -> bool {
    service
        .call(request)
        .now_or_never()
        .expect("it does not wait")
        .is_ok()
}

fn nothing() -> impl Service<u64, Response = (), Error = BoxError, Future: Send> + Clone {
    service_fn(|_: u64| std::future::ready(Ok::<_, BoxError>(())))
}

// promise: RL-19
#[tokio::test(start_paused = true)]
async fn no_flood_of_keys_takes_memory_or_relieves_a_key_that_is_over_its_limit() {
    let (keys, places) = (size(10_000_000, 60_000), size(1 << 20, 1 << 12));
    let quotas = [
        Quota::per_hour(count(3)).burst(count(3)),
        per_second(1_000, 3),
    ];
    for quota in quotas {
        let layer = || {
            RateLimitLayer::new(quota)
                .by_key(|request: &u64| *request)
                .refuse()
        };
        let places = usize::try_from(places).unwrap().try_into().unwrap();
        let mut service = None;
        let start = measure(|| service = Some(layer().max_keys(places).layer(nothing())));
        assert!(start.bytes_max <= 32 * places.get() as u64, "{start:?}");
        let mut service = service.unwrap();

        let over = u64::MAX;
        for _ in 0..3 {
            assert!(admits(&mut service, over));
        }
        let slow = quota == quotas[0];
        let mut relieved = 0;
        let flood = measure(|| {
            for key in 0..keys {
                // Whoever is let through is so without a trace on the heap.
                let _ = admits(&mut service, key);
                if slow && key % 100 == 0 {
                    relieved += u64::from(admits(&mut service, over));
                }
            }
        });
        assert_eq!(relieved, 0);
        // Refusals are made and dropped; nothing is kept.
        assert_eq!(flood.bytes_current, 0, "{flood:?}");
        assert!(flood.bytes_max < 1_024, "{flood:?}");
        advance(Duration::from_hours(1)).await;
        assert!(admits(&mut service, over), "its tokens have come back");
    }
}

// promise: RL-19
#[tokio::test(start_paused = true)]
async fn keys_that_find_no_room_share_one_limit() {
    let log = Arc::new(Mutex::new(HashMap::new()));
    let sink = log.clone();
    let layer = RateLimitLayer::new(per_second(1, 2))
        .by_key(|request: &u64| *request)
        .max_keys(count(1).try_into().unwrap())
        .refuse()
        .on_event(move |event| {
            let name = match event {
                Event::Evicted => "evicted",
                Event::Overflow => "overflow",
                Event::Admitted { .. } => "admitted",
                _ => "refused",
            };
            *sink.lock().unwrap().entry(name).or_insert(0) += 1;
        });
    let mut service = layer.layer(nothing());
    // There is room for eight.
    for key in 0..8 {
        assert!(admits(&mut service, key));
    }
    let handle = layer.handle();
    assert_eq!(handle.keys(), 8);
    let shared: Vec<_> = (8..12).map(|key| admits(&mut service, key)).collect();
    assert_eq!(shared, [true, true, false, false]);
    assert_eq!((handle.remaining(), handle.of(&0_u64).remaining()), (0, 1));
    for key in 0..8 {
        assert!(admits(&mut service, key), "it has its own limit");
        assert!(!admits(&mut service, key));
    }
    let took = |name| log.lock().unwrap().remove(name);
    assert_eq!((took("overflow"), took("evicted")), (Some(4), None));
    assert_eq!((took("admitted"), took("refused")), (Some(18), Some(10)));
    // Whose tokens have come back is forgotten for others.
    advance(Duration::from_secs(3)).await;
    assert_eq!(handle.keys(), 0);
    for key in 20..28 {
        assert!(admits(&mut service, key));
    }
    assert_eq!((took("overflow"), took("evicted")), (None, Some(8)));
}

/// A bucket for each key that there ever was, refilled in the simplest way: with a list of when which token comes back.
#[derive(Default)]
struct Reference(HashMap<u64, Vec<u64>>);

impl Reference {
    /// Lets at most `burst` tokens be out at a time, each of which comes back `period` after the one before.
    fn admits(&mut self, key: u64, now: u64, period: u64, burst: usize) -> bool {
        let out = self.0.entry(key).or_default();
        out.retain(|back| *back > now);
        let granted = out.len() < burst;
        if granted {
            let last = out.last().map_or(now, |last| now.max(*last));
            out.push(last + period);
        }
        granted
    }

    fn live(&mut self, now: u64) -> usize {
        self.0.retain(|_, out| out.iter().any(|back| *back > now));
        self.0.len()
    }
}

// promise: RL-20
#[tokio::test(start_paused = true)]
async fn to_forget_a_key_changes_no_decision() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let burst = rng.random_range(1..4);
        // Tokens come every 100 ms. The second quota is never used up: it is there for the other form of the buckets.
        let mut layer = RateLimitLayer::new(per_second(10, burst));
        if seed % 2 == 1 {
            layer = layer.and(Quota::per_second(count(u32::MAX)));
        }
        let notes = Arc::new(Mutex::new((0, 0)));
        let sink = notes.clone();
        let layer = layer
            .by_key(|request: &u64| *request)
            .max_keys(count(5).try_into().unwrap())
            .refuse()
            .on_event(move |event| match event {
                Event::Evicted => sink.lock().unwrap().0 += 1,
                Event::Overflow => sink.lock().unwrap().1 += 1,
                _ => {}
            });
        let mut service = layer.layer(nothing());
        let (mut reference, mut now) = (Reference::default(), 0);
        for step in 0..2_000 {
            let pause = rng.random_range(0..60_000_000);
            advance(Duration::from_nanos(pause)).await;
            now += pause;
            // As many keys as there is room for, however they fall.
            let key = rng.random_range(0..30);
            if reference.live(now) >= 8 && !reference.0.contains_key(&key) {
                continue;
            }
            let wanted = reference.admits(key, now, 100_000_000, burst as usize);
            assert_eq!(
                admits(&mut service, key),
                wanted,
                "seed {seed}, step {step}"
            );
            assert_eq!(
                layer.handle().keys(),
                reference.live(now),
                "seed {seed}, step {step}"
            );
        }
        let (evicted, overflown) = *notes.lock().unwrap();
        assert_eq!(overflown, 0, "there is room");
        assert!(evicted > 100, "keys were forgotten");
    }
}

// promise: RL-21
#[tokio::test(start_paused = true)]
async fn an_attacker_takes_nothing_from_a_victim() {
    // Each has 12 a second and 400 a minute; all together have 100 a second. A refusal by one charges none.
    let customers = RateLimitLayer::new(per_second(12, 12))
        .and(Quota::per_minute(count(400)).burst(count(400)))
        .by_key(|request: &u64| *request)
        .refuse();
    let everybody = RateLimitLayer::new(per_second(100, 100)).refuse();
    let mut service = customers.layer(everybody.layer(nothing()));
    let (mut victim, mut attacker) = (0, 0);
    for tenth in 0..300 {
        // A thousand requests a second, before and after the victim's ten.
        for _ in 0..50 {
            attacker += u64::from(admits(&mut service, 1));
        }
        victim += u64::from(admits(&mut service, 2));
        for _ in 0..50 {
            attacker += u64::from(admits(&mut service, 1));
        }
        advance(millis(100)).await;
        assert!(attacker <= 12 + tenth * 12 / 10 + 1, "{attacker}");
    }
    assert_eq!(victim, 300);
    // 12 at once and 12 a second, of which the minute's 400 and what comes of those in half a minute is less than enough.
    assert!((360..=372).contains(&attacker), "{attacker}");
}

// promise: RL-21
#[tokio::test(start_paused = true)]
async fn every_key_may_have_a_quota_of_its_own() {
    let gold = Arc::new(Mutex::new(vec![1]));
    let those = gold.clone();
    let layer = RateLimitLayer::new(per_second(1, 1))
        .by_key(|request: &u64| *request)
        .quota(move |key: &u64| {
            let is_gold = those.lock().unwrap().contains(key);
            if is_gold {
                per_second(100, 10)
            } else {
                per_second(10, 2)
            }
        })
        .refuse();
    let mut service = layer.layer(nothing());
    let mut all = |key| (0..20).filter(|_| admits(&mut service, key)).count();
    assert_eq!((all(1), all(2)), (10, 2));
    // A key that is promoted has what it has taken counted in its new quota; one that loses its own does too.
    gold.lock().unwrap().push(2);
    assert_eq!(all(2), 8);
    *gold.lock().unwrap() = vec![2];
    assert_eq!(all(1), 0);
    let refused = refusal(layer.layer(nothing()).oneshot(1).await);
    let limit = refused.limit().unwrap();
    assert_eq!(limit.policy().map(|policy| policy.tokens), Some(10));
    assert_eq!(refused.retry_after(), Some(millis(100)));
    advance(millis(100)).await;
    assert_eq!(all(1), 1);
    assert_eq!(all(2), 10);
}

// promises: RL-7, RL-21
#[tokio::test(start_paused = true)]
async fn each_key_has_a_line_of_its_own() {
    let layer = RateLimitLayer::new(per_second(10, 1))
        .by_key(|request: &u64| request % 3)
        .max_wait(Duration::from_secs(9));
    let backend = Backend::new();
    let service = layer.layer(backend.clone());
    let calls: Vec<_> = (0..30)
        .map(|number| tokio::spawn(service.clone().call(number)))
        .collect();
    tokio::task::yield_now().await;
    let handle = layer.handle();
    assert_eq!((handle.waiters(), handle.of(&1_u64).waiters()), (0, 9));
    for call in calls {
        call.await.unwrap().unwrap();
    }
    for (number, time) in backend.came() {
        let due = u128::from(number / 3) * 100;
        assert!(time.abs_diff(due) <= 1, "{:?}", backend.came());
    }
    assert_eq!(handle.of(&1_u64).waiters(), 0);
}

// promises: RL-22, RL-23
#[tokio::test(start_paused = true)]
async fn a_handle_is_for_one_key() {
    let layer = RateLimitLayer::new(per_second(10, 5))
        .by_key(|request: &u64| *request)
        .refuse();
    let mut service = layer.layer(nothing());
    for _ in 0..3 {
        assert!(admits(&mut service, 1));
    }
    let handle = layer.handle();
    let (one, two) = (handle.of(&1_u64), handle.of(&2_u64));
    assert_eq!((one.remaining(), two.remaining(), handle.keys()), (2, 5, 1));
    // A key that has not asked yet can be charged, and one that has can be refunded.
    two.settle(0, 7);
    one.settle(2, 0);
    assert_eq!((one.remaining(), two.remaining(), handle.keys()), (4, 0, 2));
    assert_eq!(two.next_free(), millis(300), "two are owed");
    assert!(handle.set_quota(0, per_second(100, 50)));
    assert_eq!((one.remaining(), two.remaining()), (49, 43));
    assert_eq!(handle.of(&3_u64).remaining(), 50);
    advance(Duration::from_hours(1)).await;
    assert_eq!(
        (one.remaining(), two.remaining(), handle.keys()),
        (50, 50, 0)
    );
}

// promise: RL-23
#[tokio::test(start_paused = true)]
async fn a_quota_of_any_form_can_be_changed_to_one_of_any_other() {
    // The first two fit into a word, the others do not: by their rate, and by their burst.
    let quotas = [
        per_second(10, 4),
        Quota::per_minute(count(30)).burst(count(6)),
        per_second(997, 5),
        Quota::per_day(count(1)).burst(count(300_000)),
    ];
    for keyed in [0, 1] {
        for before in quotas {
            for after in quotas {
                let layer = RateLimitLayer::new(before)
                    .by_key(move |request: &u64| request * keyed)
                    .refuse();
                let mut service = layer.layer(nothing());
                for _ in 0..3 {
                    assert!(admits(&mut service, 1));
                }
                let handle = layer.handle().of(&keyed);
                assert!(handle.set_quota(0, after));
                let burst = u64::from(match after {
                    after if after == quotas[0] => 4_u32,
                    after if after == quotas[1] => 6,
                    after if after == quotas[2] => 5,
                    _ => 300_000,
                });
                assert_eq!(handle.remaining(), burst - 3, "{before} to {after}");
                // A nanosecond may be missing to the last one. A large burst is not emptied here.
                let least = (burst - 4).min(1_000);
                assert!((0..least).all(|_| admits(&mut service, 1)));
                if burst < 1_000 {
                    let more = (0..9).filter(|_| admits(&mut service, 1)).count();
                    assert!(more <= 1, "{before} to {after}: {more}");
                }
            }
        }
    }
}

/// Only odd keys have a quota of their own.
#[derive(Clone)]
struct Odd;

impl QuotaOf<u64> for Odd {
    fn quota_of(&self, key: &u64) -> Option<Quota> {
        (key % 2 == 1).then_some(per_second(100, 100))
    }
}

// promises: RL-21, RL-23
#[tokio::test(start_paused = true)]
async fn a_key_without_a_quota_of_its_own_has_the_layers_of_today() {
    let layer = RateLimitLayer::new(per_second(1, 5))
        .by_key(|key: &u64| *key)
        .quota(Odd)
        .refuse();
    let (mut service, handle) = (layer.layer(nothing()), layer.handle());
    for key in [1, 2] {
        assert!(admits(&mut service, key));
    }
    assert!(handle.set_quota(0, per_second(10, 20)));
    for key in [1, 2] {
        assert!(admits(&mut service, key));
    }
    assert_eq!(handle.of(&1_u64).remaining(), 98);
    assert_eq!(handle.of(&2_u64).remaining(), 18);
}

// promises: RL-8, RL-21
#[tokio::test(start_paused = true)]
async fn who_waits_by_a_quota_of_his_own_is_woken_for_nobody_who_comes() {
    let layer = RateLimitLayer::new(per_second(1, 1))
        .by_key(|_: &u64| 1)
        .quota(|_: &u64| per_second(100, 1))
        .max_wait(Duration::from_mins(1));
    let service = layer.layer(nothing());
    let mut waiting: Vec<_> = (0..100)
        .map(|number| {
            let mut call = task::spawn(service.clone().call(number));
            let waits = call.poll().is_pending();
            assert_eq!(waits, number > 0);
            call
        })
        .collect();
    assert!(waiting.iter().all(|call| !call.is_woken()));
    advance(millis(11)).await;
    assert!(waiting[1].is_woken());
    assert!(waiting[1].poll().is_ready());
}

// promise: RL-23
#[tokio::test(start_paused = true)]
async fn a_key_counts_until_the_very_moment_at_which_it_has_everything_again() {
    let one = || RateLimitLayer::new(per_second(10, 10));
    let also = Quota::per_minute(count(600)).burst(count(10));
    for layer in [one(), one().and(also)] {
        let layer = layer.by_key(|key: &u64| *key).refuse();
        let (mut service, handle) = (layer.layer(nothing()), layer.handle());
        assert!(admits(&mut service, 1));
        advance(millis(99)).await;
        assert_eq!(handle.keys(), 1);
        advance(millis(1)).await;
        assert_eq!((handle.of(&1_u64).remaining(), handle.keys()), (10, 0));
    }
}

// promises: RL-1, RL-19
#[tokio::test(start_paused = true)]
async fn a_key_that_finds_room_after_all_has_not_two_limits() {
    // In words, and under the lock.
    for second in [None, Some(Quota::per_second(count(u32::MAX)))] {
        let mut layer = RateLimitLayer::new(per_second(1, 10));
        if let Some(second) = second {
            layer = layer.and(second);
        }
        let layer = layer
            .by_key(|request: &u64| *request)
            .max_keys(count(1).try_into().unwrap())
            .refuse();
        let mut service = layer.layer(nothing());
        // There is room for eight, each of which has taken one token.
        for key in 0..8 {
            assert!(admits(&mut service, key));
        }
        let late = 99;
        let shared = (0..20).filter(|_| admits(&mut service, late)).count();
        assert_eq!(shared, 10);
        advance(millis(1_100)).await;
        assert_eq!(layer.handle().keys(), 0);
        let own = (0..20).filter(|_| admits(&mut service, late)).count();
        assert_eq!(own, 1, "what came back in a second");
    }
}

// promises: RL-22, RL-24
#[tokio::test(start_paused = true)]
async fn to_settle_what_was_right_takes_no_place_and_what_takes_one_is_told() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let sink = log.clone();
    let layer = RateLimitLayer::new(per_second(1, 5))
        .by_key(|request: &u64| *request)
        .max_keys(count(1).try_into().unwrap())
        .refuse()
        .on_event(move |event| sink.lock().unwrap().push(event.clone()));
    let handle = layer.handle();
    for key in 0..20_u64 {
        handle.of(&key).settle(7, 7);
    }
    assert_eq!((handle.keys(), log.lock().unwrap().len()), (0, 0));
    for key in 0..9_u64 {
        handle.of(&key).settle(0, 1);
    }
    // There is room for eight.
    assert_eq!(handle.keys(), 8);
    assert_eq!(*log.lock().unwrap(), [Event::Overflow]);
}
