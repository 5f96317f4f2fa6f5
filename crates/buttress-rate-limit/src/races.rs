//! The order in which threads meet at a word and at the lock: every one of them.

use std::{num::NonZeroU32, sync::Arc, task::Waker, time::Duration};

use buttress_core::clock;
use loom::thread;

use crate::{
    Quota,
    limiter::{Ask, Asked, Limiter, SHARED},
    settings::Settings,
};

const PATIENT: Duration = Duration::from_hours(1_000);

/// One a day, so many at once.
fn daily(burst: u32) -> Quota {
    Quota::per_day(NonZeroU32::MIN).burst(burst.try_into().unwrap())
}

fn limiter(burst: u32, keys: usize, max_wait: Duration) -> Arc<Limiter> {
    of(daily(burst), keys, max_wait)
}

fn of(quota: Quota, keys: usize, max_wait: Duration) -> Arc<Limiter> {
    Arc::new(Limiter::new(Settings {
        max_wait,
        refuses: max_wait.is_zero(),
        max_keys: keys.try_into().ok(),
        ..Settings::new(quota)
    }))
}

fn ask(limiter: &Arc<Limiter>, tag: u64) -> Asked {
    let since = clock::now();
    if limiter.pass(tag, 1, since).is_some() {
        return Asked::Granted;
    }
    let ask = Ask {
        tag,
        cost: 1,
        quota: None,
        key: &|| None,
        due: &|| None,
        report: &|| None,
    };
    limiter.ask(&ask, since)
}

fn admits(limiter: &Arc<Limiter>, tag: u64) -> u64 {
    u64::from(matches!(ask(limiter, tag), Asked::Granted))
}

/// Explores every order of the steps in which no thread is interrupted more than thrice, while the clock stands still.
fn explore(work: impl Fn() + Send + Sync + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let runtime = runtime.unwrap();
    let _entered = runtime.enter();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(work);
}

/// What each of the other threads does with its number, and this one with it, which is number 0.
fn together<T: Send + 'static>(
    limiter: &Arc<Limiter>,
    threads: u64,
    work: fn(&Arc<Limiter>, u64) -> T,
) -> Vec<T> {
    let others: Vec<_> = (1..threads)
        .map(|number| {
            let limiter = limiter.clone();
            thread::spawn(move || work(&limiter, number))
        })
        .collect();
    let mut done = vec![work(limiter, 0)];
    done.extend(others.into_iter().map(|other| other.join().unwrap()));
    done
}

// promise: RL-6
#[test]
fn loom_exactly_what_there_is_is_given_out() {
    for (threads, burst) in [(2, 1), (3, 1), (3, 2)] {
        explore(move || {
            let limiter = limiter(burst, 0, Duration::ZERO);
            let granted = together(&limiter, threads, |limiter, _| admits(limiter, SHARED));
            assert_eq!(granted.into_iter().sum::<u64>(), u64::from(burst));
        });
    }
}

// promises: RL-6, RL-20
#[test]
fn loom_a_new_key_has_one_bucket() {
    explore(|| {
        let limiter = limiter(1, 1, Duration::ZERO);
        let granted = together(&limiter, 2, |limiter, _| admits(limiter, 7));
        assert_eq!(granted.into_iter().sum::<u64>(), 1);
        assert_eq!(admits(&limiter, 7), 0);
    });
}

// promises: RL-19, RL-20
#[test]
fn loom_a_key_that_is_forgotten_while_it_asks_loses_nothing() {
    explore(|| {
        let mut limiter = limiter(1, 1, Duration::ZERO);
        // The first key has a place, and nothing taken: the second takes it over, or another one if the first comes before.
        limiter.settle(1, 1, 0);
        let limit = Arc::get_mut(&mut limiter).unwrap();
        limit.step_clock_ahead(Duration::from_secs(1));
        let granted = together(&limiter, 2, |limiter, number| admits(limiter, number + 1));
        assert_eq!(granted, [1, 1]);
        assert_eq!([admits(&limiter, 1), admits(&limiter, 2)], [0, 0]);
    });
}

// promises: RL-6, RL-23
#[test]
fn loom_a_quota_that_is_changed_is_kept_to() {
    for (before, after) in [(1, 2), (2, 1), (2, 2)] {
        explore(move || {
            let limiter = limiter(before, 0, Duration::ZERO);
            let changing = {
                let limiter = limiter.clone();
                thread::spawn(move || assert!(limiter.set_quota(0, daily(after))))
            };
            let mut granted = admits(&limiter, SHARED) + admits(&limiter, SHARED);
            changing.join().unwrap();
            granted += (0..3).map(|_| admits(&limiter, SHARED)).sum::<u64>();
            assert!(granted >= u64::from(after), "{granted}");
            assert!(granted <= u64::from(before.max(after)), "{granted}");
        });
    }
}

// promises: RL-6, RL-22
#[test]
fn loom_who_looks_under_the_lock_loses_no_token() {
    explore(|| {
        let limiter = limiter(2, 0, Duration::ZERO);
        let granted = together(&limiter, 2, |limiter, number| match number {
            0 => admits(limiter, SHARED),
            _ => u64::from(limiter.look(SHARED).0 < 1),
        });
        assert_eq!(granted, [1, 0]);
        assert_eq!(limiter.look(SHARED).0, 1);
    });
}

// promise: RL-23
#[test]
fn loom_nobody_is_refused_by_half_a_quota() {
    const DAY: Duration = Duration::from_hours(24);

    explore(|| {
        // Three in a second, or three days' worth: either has something to give.
        let quota = Quota::per(NonZeroU32::new(3).unwrap(), Duration::from_nanos(1)).unwrap();
        let burst = NonZeroU32::new(3).unwrap();
        let mut limiter = of(quota.burst(burst), 0, Duration::ZERO);
        let limit = Arc::get_mut(&mut limiter).unwrap();
        limit.step_clock_ahead(2 * DAY);
        limiter.settle(SHARED, 0, 1);
        let limit = Arc::get_mut(&mut limiter).unwrap();
        limit.step_clock_ahead(DAY);
        let granted = together(&limiter, 2, |limiter, number| match number {
            0 => admits(limiter, SHARED),
            _ => limiter.set_quota(0, daily(3)).into(),
        });
        assert_eq!(granted, [1, 1]);
    });
}

// promises: RL-6, RL-10
#[test]
fn loom_what_a_waiter_leaves_is_there_for_others() {
    explore(|| {
        let limiter = limiter(1, 0, PATIENT);
        let granted = together(&limiter, 2, |limiter, _| match ask(limiter, SHARED) {
            Asked::Granted => 1,
            Asked::Waits(mut grant) => {
                assert!(
                    matches!(grant.poll(Waker::noop()), Ok(Some(_))),
                    "its turn is tomorrow"
                );
                0
            }
            Asked::Refused(_) => panic!("it may wait for that long"),
        });
        assert_eq!(granted.into_iter().sum::<u64>(), 1);
        // Nobody waits any more, and nothing more was taken.
        let (left, wait, waiters) = limiter.look(SHARED);
        assert_eq!((left, waiters), (0, 0));
        assert_eq!(wait, Duration::from_hours(24));
        limiter.settle(SHARED, 1, 0);
        assert_eq!(admits(&limiter, SHARED), 1, "without the lock again");
    });
}
