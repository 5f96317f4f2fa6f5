//! How many retries the successes pay for.
//!
//! [`Rules`] is the arithmetic, as plain data; [`Pool`] holds the accounts, one for each authority, behind one lock.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use buttress_core::{
    Keyed,
    clock::{self, Instant},
    sync::{AtomicUsize, Mutex, Ordering, lock},
};

/// A token in the unit of account, fine enough for a ratio with six decimals.
const TOKEN: u64 = 1_000_000;

const DEFAULT_KEYS: NonZeroUsize = NonZeroUsize::new(1_024).unwrap();

/// Bounds the retries by what successful calls pay in, so that retries do not keep a service down.
///
/// | | starts with | a success pays in | a retry costs |
/// |---|---|---|---|
/// | [`Budget::tokens`], the default | 500 | 1; after retries, what the last of them took of the tokens | 14, or 5 when throttled |
/// | [`Budget::ratio`] | nothing | the ratio | 1 |
/// | [`Budget::unlimited`] | | | nothing |
///
/// Each authority (`host:port`) has an account of its own. An account is kept while it differs from a new one, for at
/// most [`max_keys`](Self::max_keys) authorities; beyond those, the one among eight that differs least is forgotten.
///
/// Deposits come from successes alone. A budget that is funded by *requests*, as Finagle's is, still pays for retries when
/// everything fails, and so keeps a service down that has lost capacity for a moment. The numbers of the default are those
/// of the AWS SDKs' retry behaviour 2.1 (2026).
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    rules: Option<Rules>,
    max_keys: NonZeroUsize,
}

impl Budget {
    /// 500 tokens for each authority. A retry costs 14, or 5 after throttling. A success pays in 1, or, if it took retries,
    /// what the last of them took.
    #[must_use]
    pub const fn tokens() -> Self {
        const fn count(tokens: u32) -> NonZeroU32 {
            NonZeroU32::new(tokens).unwrap()
        }
        Self::tokens_of(count(500), count(14), count(5))
    }

    /// [`tokens`](Self::tokens) with numbers of your own: how many tokens an authority has, what a retry costs, and what a
    /// retry after throttling costs.
    #[must_use]
    pub const fn tokens_of(
        capacity: NonZeroU32,
        cost: NonZeroU32,
        throttled_cost: NonZeroU32,
    ) -> Self {
        let capacity = capacity.get() as u64 * TOKEN;
        Self::of(Rules {
            capacity,
            start: capacity,
            deposit: TOKEN,
            cost: cost.get() as u64 * TOKEN,
            throttled_cost: throttled_cost.get() as u64 * TOKEN,
            refunds: true,
            floor: None,
        })
    }

    /// One retry for every `1 / ratio` successes: `0.2` is one for every five. At first there are none; at most 10,000
    /// retries are saved up.
    ///
    /// # Panics
    ///
    /// When the ratio is not in `[0.000001, 1]`, or is not a number.
    #[must_use]
    pub const fn ratio(ratio: f64) -> Self {
        assert!(
            ratio >= 0.000_001 && ratio <= 1.0,
            "the ratio of a budget is not in [0.000001, 1]"
        );
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "it is in [1, TOKEN]"
        )]
        let deposit = (ratio * TOKEN as f64).round() as u64;
        Self::of(Rules {
            capacity: 10_000 * TOKEN,
            start: 0,
            deposit,
            cost: TOKEN,
            throttled_cost: TOKEN,
            refunds: false,
            floor: None,
        })
    }

    /// Every retry is granted. The number of attempts is the only bound: with three of them an outage triples the load.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self {
            rules: None,
            max_keys: DEFAULT_KEYS,
        }
    }

    /// Grants this many retries a second, for each authority, even when nothing is left; by default none. It changes
    /// nothing for [`unlimited`](Self::unlimited).
    ///
    /// Finagle and tower do so. For a client that sends fewer requests than that it is no limit at all: with 5 requests a
    /// second that all fail, three attempts and a floor of 10, nearly three times as many are sent.
    #[must_use]
    pub const fn floor(mut self, per_second: NonZeroU32) -> Self {
        if let Some(rules) = &mut self.rules {
            rules.floor = Some(Duration::from_nanos(
                1_000_000_000 / per_second.get() as u64,
            ));
        }
        self
    }

    /// Keeps the accounts of at most this many authorities; by default 1,024.
    #[must_use]
    pub const fn max_keys(mut self, max_keys: NonZeroUsize) -> Self {
        self.max_keys = max_keys;
        self
    }

    const fn of(rules: Rules) -> Self {
        Self {
            rules: Some(rules),
            max_keys: DEFAULT_KEYS,
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::tokens()
    }
}

/// The numbers of a budget, in millionths of a token.
#[derive(Clone, Copy, Debug)]
struct Rules {
    capacity: u64,
    start: u64,
    deposit: u64,
    cost: u64,
    throttled_cost: u64,
    refunds: bool,
    /// The time that earns one retry when the balance does not.
    floor: Option<Duration>,
}

/// The balance of one authority. Invariant: `balance <= capacity`.
#[derive(Clone, Copy, Debug)]
struct Account {
    balance: u64,
    /// The floor has been drawn on up to here, at most a second ahead.
    floor_until: Option<Instant>,
}

/// What a retry has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payment {
    Free,
    Balance(u64),
    Floor,
}

impl Rules {
    const fn open(&self) -> Account {
        Account {
            balance: self.start,
            floor_until: None,
        }
    }

    /// The clock, if a floor asks for it.
    fn now(&self) -> Option<Instant> {
        self.floor.map(|_| clock::now())
    }

    /// Where the floor would be after one more retry, if it grants one.
    fn next_floor(&self, account: &Account, now: Option<Instant>) -> Option<Instant> {
        let (period, now) = (self.floor?, now?);
        let next = account.floor_until.map_or(now, |until| until.max(now)) + period;
        (next <= now + Duration::from_secs(1)).then_some(next)
    }

    fn affords(&self, account: &Account, now: Option<Instant>) -> bool {
        account.balance >= self.cost.min(self.throttled_cost)
            || self.next_floor(account, now).is_some()
    }

    fn withdraw(
        &self,
        account: &mut Account,
        throttled: bool,
        now: Option<Instant>,
    ) -> Option<Payment> {
        let cost = if throttled {
            self.throttled_cost
        } else {
            self.cost
        };
        if let Some(rest) = account.balance.checked_sub(cost) {
            account.balance = rest;
            return Some(Payment::Balance(cost));
        }
        account.floor_until = Some(self.next_floor(account, now)?);
        Some(Payment::Floor)
    }

    fn pay_in(&self, account: &mut Account, payment: Payment) {
        match payment {
            Payment::Free => {}
            Payment::Balance(amount) => {
                account.balance = account.balance.saturating_add(amount).min(self.capacity);
            }
            Payment::Floor => {
                let period = self.floor.unwrap_or_default();
                account.floor_until = account.floor_until.map(|until| until - period);
            }
        }
    }

    /// How much would be forgotten with an account: what it has spent, or saved up.
    fn worth(&self, account: &Account) -> u64 {
        match account.floor_until {
            Some(_) => u64::MAX,
            None => account.balance.abs_diff(self.start),
        }
    }

    fn is_as_new(&self, account: &Account, now: Option<Instant>) -> bool {
        account.balance == self.start
            && account
                .floor_until
                .is_none_or(|until| now.is_none_or(|now| until <= now))
    }
}

/// The accounts of all authorities.
#[derive(Debug)]
pub(crate) struct Pool {
    rules: Option<Rules>,
    hasher: RandomState,
    accounts: Mutex<Keyed<Account>>,
    /// The number of accounts, for those who would find none: while all is well, a call takes no lock.
    known: AtomicUsize,
}

impl Pool {
    pub(crate) fn new(budget: Budget) -> Self {
        Self {
            rules: budget.rules,
            hasher: RandomState::new(),
            accounts: Mutex::new(Keyed::new(budget.max_keys)),
            known: AtomicUsize::new(0),
        }
    }

    /// The key of an authority.
    pub(crate) fn key(&self, authority: impl Hash) -> u64 {
        self.hasher.hash_one(authority)
    }

    /// Is every account full? Then there is nothing to pay in, and a retry is affordable.
    pub(crate) fn is_full(&self) -> bool {
        match &self.rules {
            None => true,
            // Relaxed: nothing is read on the strength of it. It pairs with the store in `with`; whoever misses one
            // that happens at the same moment has come before it.
            Some(rules) => rules.start == rules.capacity && self.known.load(Ordering::Relaxed) == 0,
        }
    }

    /// Would a retry be granted now? A request for which none would be is not worth a copy.
    pub(crate) fn affords(&self, key: u64) -> bool {
        let Some(rules) = &self.rules else {
            return true;
        };
        let now = rules.now();
        let account = lock(&self.accounts).get_mut(key).copied();
        rules.affords(&account.unwrap_or(rules.open()), now)
    }

    /// Takes the cost of a retry.
    pub(crate) fn withdraw(&self, key: u64, throttled: bool) -> Option<Payment> {
        self.with(key, |rules, account, now| {
            rules.withdraw(account, throttled, now)
        })
        .unwrap_or(Some(Payment::Free))
    }

    /// Gives back what a retry has cost that was not sent.
    pub(crate) fn give_back(&self, key: u64, payment: Payment) {
        self.with(key, |rules, account, _| rules.pay_in(account, payment));
    }

    /// Pays in for a success; `last` is the payment for the retry that it took, if it took one.
    pub(crate) fn succeeded(&self, key: u64, last: Option<Payment>) {
        self.with(key, |rules, account, _| {
            let deposit = Payment::Balance(rules.deposit);
            let refund = last.filter(|last| rules.refunds && *last != Payment::Floor);
            rules.pay_in(account, refund.unwrap_or(deposit));
        });
    }

    /// Works on an account, and forgets it when it is as a new one.
    fn with<T>(
        &self,
        key: u64,
        work: impl FnOnce(&Rules, &mut Account, Option<Instant>) -> T,
    ) -> Option<T> {
        let rules = self.rules.as_ref()?;
        let now = rules.now();
        let mut accounts = lock(&self.accounts);
        let account = accounts.entry(key, || rules.open(), |account| rules.worth(account));
        let done = work(rules, account, now);
        if rules.is_as_new(account, now) {
            accounts.remove(key);
        }
        // Relaxed: see `is_full`. The lock orders the stores among themselves.
        self.known.store(accounts.len(), Ordering::Relaxed);
        Some(done)
    }

    /// What is left for an authority, in millionths of a token.
    #[cfg(test)]
    pub(crate) fn balance(&self, key: u64) -> Option<u64> {
        let rules = self.rules.as_ref()?;
        Some(
            lock(&self.accounts)
                .get_mut(key)
                .map_or(rules.start, |account| account.balance),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Instant as StdInstant};

    use super::*;

    fn count(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    fn grants(pool: &Pool, key: u64, throttled: bool, tries: u32) -> u32 {
        (0..tries)
            .map(|_| u32::from(pool.withdraw(key, throttled).is_some()))
            .sum()
    }

    // promise: RT-13
    #[test]
    fn the_default_pays_for_35_retries_or_100_of_throttled_calls() {
        assert_eq!(grants(&Pool::new(Budget::tokens()), 0, false, 1_000), 35);
        assert_eq!(grants(&Pool::new(Budget::tokens()), 0, true, 1_000), 100);
    }

    // promise: RT-13
    #[test]
    fn a_ratio_grants_its_share_of_the_successes() {
        for (ratio, share) in [
            (0.15, 1_500),
            (0.3, 3_000),
            (0.35, 3_500),
            (0.6, 6_000),
            (0.75, 7_500),
            (0.9, 9_000),
            (0.99, 9_900),
        ] {
            let pool = Pool::new(Budget::ratio(ratio));
            assert_eq!(grants(&pool, 0, false, 1), 0, "it starts with nothing");
            (0..10_000).for_each(|_| pool.succeeded(0, None));
            let granted = grants(&pool, 0, false, 20_000);
            assert!(granted.abs_diff(share) <= 1, "{ratio}: {granted}");
        }
    }

    // promise: RT-14
    #[test]
    fn two_threads_share_one_retry() {
        const BUDGETS: usize = 200_000;
        let one = Budget::tokens_of(count(1), count(1), count(1));
        // In slices, as each pool has a table of its own.
        let granted: u32 = (0..20)
            .map(|_| {
                let pools: Vec<_> = (0..BUDGETS / 20).map(|_| Pool::new(one)).collect();
                let race = || {
                    pools
                        .iter()
                        .map(|pool| grants(pool, 7, false, 1))
                        .sum::<u32>()
                };
                thread::scope(|scope| {
                    let other = scope.spawn(race);
                    race() + other.join().unwrap()
                })
            })
            .sum();
        assert_eq!(granted as usize, BUDGETS);
    }

    // promise: RT-14
    #[tokio::test(start_paused = true)]
    async fn thirty_idle_days_cost_no_more_than_none() {
        // The fastest of many, as a share of the same without the idle days: a loop over the time that has passed
        // would be slower by orders of magnitude.
        #[expect(
            clippy::disallowed_methods,
            reason = "it measures the work, not the clock of the budget"
        )]
        fn fastest(pools: &[Pool]) -> Duration {
            let first = |pool: &Pool| {
                let start = StdInstant::now();
                assert!(pool.withdraw(0, false).is_some());
                start.elapsed()
            };
            pools.iter().map(first).min().unwrap()
        }
        let pools = || -> Vec<_> {
            let pools = (0..500).map(|_| Pool::new(Budget::ratio(0.2).floor(count(10))));
            pools
                .inspect(|pool| assert_eq!(grants(pool, 0, false, 20), 10))
                .collect()
        };
        let (idle, fresh) = (pools(), pools());
        tokio::time::advance(Duration::from_secs(1)).await;
        let fresh = fastest(&fresh);
        tokio::time::advance(Duration::from_hours(30 * 24)).await;
        assert!(fastest(&idle) < fresh * 20);
    }

    // promise: RT-15
    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_is_all_there() {
        for budget in [
            Budget::tokens(),
            Budget::tokens().floor(count(10)),
            Budget::ratio(0.3),
            Budget::ratio(0.3).floor(count(10)),
            Budget::tokens_of(count(1), count(1), count(u32::MAX)).floor(count(u32::MAX)),
        ] {
            let pool = Pool::new(budget);
            (0..40).for_each(|_| pool.succeeded(0, None));
            let all = grants(&pool, 0, false, 1_000);
            (0..40).for_each(|_| pool.succeeded(0, None));
            tokio::time::advance(Duration::from_secs(5)).await;
            let before = pool.balance(0);
            let payments: Vec<_> = (0..5).map_while(|_| pool.withdraw(0, false)).collect();
            assert!(all == 0 || !payments.is_empty());
            for payment in payments {
                pool.give_back(0, payment);
            }
            assert_eq!(pool.balance(0), before, "{budget:?}");
            // The floor is whole again too: it grants a second's worth at once.
            if let Some(rules) = budget
                .rules
                .filter(|rules| rules.floor == Some(Duration::from_millis(100)))
            {
                let paid = before.unwrap() / rules.cost;
                assert_eq!(
                    u64::from(grants(&pool, 0, false, 1_000)),
                    paid + 10,
                    "{budget:?}"
                );
            }
        }
    }

    // promise: RT-17
    #[test]
    fn a_hundred_thousand_authorities_stay_within_the_keys() {
        let pool = Pool::new(Budget::tokens().max_keys(NonZeroUsize::new(100).unwrap()));
        for host in 0..100_000 {
            let key = pool.key(host);
            assert!(
                pool.withdraw(key, false).is_some(),
                "host {host} pays for nobody else"
            );
            assert!(lock(&pool.accounts).len() <= 100);
        }
        assert_eq!(lock(&pool.accounts).len(), 100);
    }

    // promise: RT-17
    #[test]
    fn the_poorest_authority_is_remembered_the_longest() {
        let pool = Pool::new(Budget::tokens().max_keys(NonZeroUsize::new(100).unwrap()));
        let down = pool.key("down.example");
        assert_eq!(grants(&pool, down, false, 1_000), 35);
        for host in 0..10_000 {
            assert!(pool.withdraw(pool.key(host), false).is_some());
        }
        assert_eq!(
            pool.withdraw(down, false),
            None,
            "crowding it out would refill its budget"
        );
    }

    #[test]
    fn a_full_account_is_forgotten() {
        let pool = Pool::new(Budget::tokens());
        assert!(pool.is_full());
        let payment = pool.withdraw(1, false).unwrap();
        assert!(!pool.is_full());
        (0..13).for_each(|_| pool.succeeded(1, None));
        assert_eq!(pool.balance(1), Some(499 * TOKEN));
        pool.succeeded(1, None);
        assert!(pool.is_full());
        assert_eq!(lock(&pool.accounts).len(), 0);
        pool.give_back(1, payment);
        assert_eq!(
            pool.balance(1),
            Some(500 * TOKEN),
            "never more than it holds"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_whose_floor_is_whole_again_is_forgotten() {
        let pool = Pool::new(Budget::ratio(0.2).floor(count(10)));
        assert_eq!(pool.withdraw(1, false), Some(Payment::Floor));
        tokio::time::advance(Duration::from_secs(5)).await;
        let payment = pool.withdraw(1, false).unwrap();
        pool.give_back(1, payment);
        assert_eq!(lock(&pool.accounts).len(), 0);
    }

    // promise: RT-17
    #[test]
    fn an_account_whose_floor_is_in_use_is_remembered_the_longest() {
        let keys = NonZeroUsize::new(8).unwrap();
        let pool = Pool::new(Budget::ratio(0.2).floor(count(1)).max_keys(keys));
        assert_eq!(pool.withdraw(0, false), Some(Payment::Floor));
        (1..100).for_each(|host| pool.succeeded(host, None));
        assert_eq!(pool.withdraw(0, false), None);
    }

    #[test]
    fn a_success_after_retries_gives_the_last_cost_back() {
        let pool = Pool::new(Budget::tokens());
        let payment = pool.withdraw(1, false);
        assert_eq!(pool.balance(1), Some(486 * TOKEN));
        pool.succeeded(1, payment);
        assert_eq!(pool.balance(1), Some(500 * TOKEN));
    }

    #[test]
    fn a_ratio_that_makes_no_sense_cannot_be_built() {
        for ratio in [f64::NAN, 0.0, -0.1, 1.01, f64::INFINITY, 1e-9] {
            assert!(
                std::panic::catch_unwind(|| Budget::ratio(ratio)).is_err(),
                "{ratio}"
            );
        }
    }
}

#[cfg(all(test, buttress_loom))]
mod loom_tests {
    use loom::{sync::Arc, thread};

    use super::*;

    /// Withdrawals are all or nothing, and a deposit that races with one is either before it or after it.
    #[test]
    fn loom_no_token_is_lost_or_made() {
        loom::model(|| {
            let three = NonZeroU32::new(3).unwrap();
            let pool = Arc::new(Pool::new(Budget::tokens_of(three, three, three)));
            let other = {
                let pool = pool.clone();
                thread::spawn(move || {
                    if !pool.is_full() {
                        pool.succeeded(1, None);
                    }
                    pool.withdraw(1, false).is_some()
                })
            };
            let here = pool.withdraw(1, false).is_some();
            let there = other.join().unwrap();
            assert!(here ^ there, "one of the two is granted");
            assert!(!pool.is_full());
            assert!(pool.balance(1).unwrap() <= TOKEN);
        });
    }
}
