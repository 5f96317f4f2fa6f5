//! What is remembered of the calls that have ended.
//!
//! Successes are counted in atomics, without a lock: they never open a circuit. Failures and slow calls are kept in
//! [`Faults`], under the circuit's lock, and only they make anybody look at the figures.
//!
//! A count belongs to a generation of the circuit, and a result of another one changes nothing: a word that counts
//! carries the generation's last bits, or stands for a time that no other generation has.

use std::collections::VecDeque;

use buttress_core::{
    clock::Instant,
    sync::{Apart, AtomicU64, Ordering},
};

use crate::settings::{Figures, Kind, figure};

/// How many buckets a ring has: more than a window is made of, as a power of two needs no division.
const RING: usize = 16;

/// The successes.
#[derive(Debug)]
pub(crate) enum Window {
    /// The calls that have ended, and the size of the window.
    Calls(Apart<Counter>, u64),
    Time(Apart<Buckets>),
    /// The failures in a row, and how many are one too many.
    InARow(Apart<Counter>),
}

/// The failures and slow calls.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Of a window of calls: those that are in it.
    recent: VecDeque<Numbered>,
    /// How many of them failed, and how many were slow.
    failures: u64,
    slow: u64,
    /// Of a window of time.
    buckets: Vec<Bucket>,
    /// The failures since the last success before `last`.
    in_a_row: u32,
    /// Where the last failure was: the number of a call; a tick and the successes within.
    last: (u64, u64),
}

/// A call that failed or was slow, or both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) failed: bool,
    pub(crate) slow: bool,
}

#[derive(Debug)]
struct Numbered {
    number: u64,
    fault: Fault,
}

/// What is not in the atomic of the same time.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    tick: u64,
    calls: u64,
    failures: u64,
    slow: u64,
}

/// What became of a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    Yes,
    /// It is of another generation.
    Stale,
    /// There is no room for it here: it has to be recorded under the lock.
    Full,
}

impl Window {
    pub(crate) fn new(kind: Kind, now: Instant) -> Self {
        match kind {
            Kind::Calls(size) => Self::Calls(Apart(Counter::new()), size.get().into()),
            Kind::Time(length) => Self::Time(Apart(Buckets::new(length.as_nanos(), now))),
            Kind::InARow(_) => Self::InARow(Apart(Counter::new())),
        }
    }

    /// Counts a success, at a moment that need be known only where time matters.
    #[inline]
    pub(crate) fn succeed(&self, generation: u64, now: Option<Instant>) -> Counted {
        match self {
            Self::Calls(Apart(calls), _) => calls.change(generation, |calls| calls + 1),
            Self::Time(Apart(buckets)) => match now {
                Some(now) => buckets.succeed(buckets.tick(generation, now)),
                None => Counted::Full,
            },
            Self::InARow(Apart(row)) => row.change(generation, |_| 0),
        }
    }

    /// Counts a call and says what the window then holds. Under the lock, and of the generation that is there.
    pub(crate) fn record(
        &self,
        faults: &mut Faults,
        generation: u64,
        now: Instant,
        fault: Fault,
    ) -> Figures {
        match self {
            Self::Calls(Apart(calls), size) => {
                if calls.change(generation, |calls| calls + 1) == Counted::Full {
                    let gone = Counter::MOST - size;
                    faults.renumber(gone);
                    calls.set(generation, size + 1);
                }
                faults.push(calls.get(), fault);
            }
            Self::Time(Apart(buckets)) => {
                let tick = buckets.tick(generation, now);
                faults.add(buckets, tick, fault);
            }
            Self::InARow(Apart(row)) => {
                let next = |row: u64| if fault.failed { row + 1 } else { 0 };
                // More failures than it can count are as good as the most that it can.
                row.change(generation, next);
            }
        }
        self.figures(faults, generation, now)
    }

    /// What the window holds. Under the lock.
    pub(crate) fn figures(&self, faults: &mut Faults, generation: u64, now: Instant) -> Figures {
        match self {
            Self::Calls(Apart(calls), size) => faults.of_calls(calls.get(), *size),
            Self::Time(Apart(buckets)) => {
                let tick = buckets.tick(generation, now);
                faults.of_time(buckets, tick)
            }
            Self::InARow(Apart(row)) => Figures {
                calls: row.get(),
                failures: row.get(),
                slow: 0,
                in_a_row: figure(row.get()),
            },
        }
    }

    /// Begins with nothing. Under the lock, before anybody is let through in this generation.
    pub(crate) fn begin(&self, faults: &mut Faults, generation: u64) {
        match self {
            Self::Calls(Apart(counter), _) | Self::InARow(Apart(counter)) => {
                counter.set(generation, 0);
            }
            // No other generation has the ticks of this one, but a word from many generations ago would pass for a newer one.
            Self::Time(Apart(buckets)) => buckets.begin(generation),
        }
        *faults = Faults::default();
    }
}

/// A count within a generation: 24 bits of the generation, 40 of the count.
///
/// All accesses are relaxed: whoever is let through in a generation has read it from the circuit's word, which is written
/// after this one is set to it; and figures are only read under the lock, where a success that somebody has already
/// heard of is seen by the coherence of this one word. For a result of an old generation to pass for one of the new, its
/// task would have to stand still between the two lines of `change` for 2^24 generations, each of them an open time.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    const BITS: u32 = 40;
    const MOST: u64 = (1 << Self::BITS) - 1;

    fn new() -> Self {
        Self(AtomicU64::new(1 << Self::BITS))
    }

    #[inline]
    fn change(&self, generation: u64, next: impl Fn(u64) -> u64) -> Counted {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word >> Self::BITS != generation & (u64::MAX >> Self::BITS) {
                return Counted::Stale;
            }
            let count = word & Self::MOST;
            let next = next(count);
            if next > Self::MOST {
                return Counted::Full;
            }
            if next == count {
                return Counted::Yes;
            }
            match self.0.compare_exchange_weak(
                word,
                word - count + next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Counted::Yes,
                Err(now) => word = now,
            }
        }
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed) & Self::MOST
    }

    fn set(&self, generation: u64, count: u64) {
        let word = generation << Self::BITS | count;
        // A swap, as it has its place among the changes, where a store would have one of its own.
        self.0.swap(word, Ordering::Relaxed);
    }
}

/// Successes by time: a ring of words, each with the time it counts for, in ticks, and the count.
///
/// The ticks of a generation are ahead of the clock by twice the ring for each generation before it. A result that was
/// let through in an earlier one is thus too old for the window, whenever it comes.
#[derive(Debug)]
pub(crate) struct Buckets {
    ring: [AtomicU64; RING],
    /// The ticks of a nanosecond, in parts of 2^64, rounded up: to multiply is several times as fast as to divide, and in
    /// a century a tick comes early by less than a fifth.
    per_nano: u64,
    /// The bits of a word that are the count; the others are the last ones of the tick.
    count_bits: u32,
    start: Instant,
}

impl Buckets {
    /// How many buckets a window is made of: its edge is off by one of them at most.
    const NUMBER: u64 = 10;

    /// How many ticks a generation is ahead of the one before.
    const AHEAD: u64 = 2 * RING as u64;

    fn new(length: u128, start: Instant) -> Self {
        /// A tick comes back after this time at the earliest.
        const CENTURY: u64 = 100 * 365 * 24 * 60 * 60 * 1_000_000_000;

        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let width = (length / Self::NUMBER).max(1);
        let ticks = (CENTURY / width).next_power_of_two().max(1 << 8);
        Self {
            ring: std::array::from_fn(|_| AtomicU64::new(0)),
            per_nano: (u64::MAX / width).saturating_add(1),
            count_bits: u64::BITS - ticks.ilog2(),
            start,
        }
    }

    pub(crate) fn tick(&self, generation: u64, now: Instant) -> u64 {
        let passed = now.to_bits().saturating_sub(self.start.to_bits());
        let ticks = (u128::from(passed) * u128::from(self.per_nano)) >> u64::BITS;
        generation
            .wrapping_mul(Self::AHEAD)
            .wrapping_add(u64::try_from(ticks).unwrap_or(u64::MAX))
    }

    /// Leaves words that are as old as the generation, and count nothing.
    fn begin(&self, generation: u64) {
        let first = generation.wrapping_mul(Self::AHEAD);
        for bucket in &self.ring {
            // A swap, as in `Counter::set`.
            bucket.swap(first << self.count_bits, Ordering::Relaxed);
        }
    }

    /// Counts a success. Relaxed, as in [`Counter`].
    #[inline]
    pub(crate) fn succeed(&self, tick: u64) -> Counted {
        let bucket = self.bucket(tick);
        let mut word = bucket.load(Ordering::Relaxed);
        loop {
            let next = match self.age(word, tick) {
                0 if word & self.most() == self.most() => return Counted::Full,
                0 => word + 1,
                // Somebody who came later was here before, and this one is too old for the window.
                age if age > self.ticks() / 2 => return Counted::Stale,
                _ => tick << self.count_bits | 1,
            };
            match bucket.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Counted::Yes,
                Err(now) => word = now,
            }
        }
    }

    /// The successes at a tick.
    fn at(&self, tick: u64) -> u64 {
        let word = self.bucket(tick).load(Ordering::Relaxed);
        if self.age(word, tick) == 0 {
            word & self.most()
        } else {
            0
        }
    }

    fn bucket(&self, tick: u64) -> &AtomicU64 {
        &self.ring[Self::place(tick)]
    }

    /// Where in a ring a tick is.
    fn place(tick: u64) -> usize {
        usize::try_from(tick % RING as u64).unwrap_or(0)
    }

    /// By how many ticks a word is older than the tick; by very many if it is newer.
    fn age(&self, word: u64, tick: u64) -> u64 {
        tick.wrapping_sub(word >> self.count_bits) & (self.ticks() - 1)
    }

    fn ticks(&self) -> u64 {
        1 << (u64::BITS - self.count_bits)
    }

    fn most(&self) -> u64 {
        (1 << self.count_bits) - 1
    }

    /// The ticks in the window.
    fn window(tick: u64) -> impl Iterator<Item = u64> {
        (0..Self::NUMBER).map(move |back| tick.wrapping_sub(back))
    }
}

impl Faults {
    fn push(&mut self, number: u64, fault: Fault) {
        if fault.failed {
            let follows = self.last.0 + 1 == number;
            self.in_a_row = if follows {
                self.in_a_row.saturating_add(1)
            } else {
                1
            };
            self.last.0 = number;
        }
        if fault.failed || fault.slow {
            self.failures += u64::from(fault.failed);
            self.slow += u64::from(fault.slow);
            self.recent.push_back(Numbered { number, fault });
        }
    }

    fn of_calls(&mut self, calls: u64, size: u64) -> Figures {
        self.forget(calls.saturating_sub(size));
        Figures {
            calls: calls.min(size),
            failures: self.failures,
            slow: self.slow,
            in_a_row: if self.last.0 == calls {
                self.in_a_row
            } else {
                0
            },
        }
    }

    /// Forgets the calls up to this number.
    fn forget(&mut self, number: u64) {
        while let Some(first) = self.recent.front()
            && first.number <= number
        {
            self.failures -= u64::from(first.fault.failed);
            self.slow -= u64::from(first.fault.slow);
            self.recent.pop_front();
        }
    }

    /// So many calls before the window are forgotten, and the others count from there.
    fn renumber(&mut self, gone: u64) {
        self.forget(gone);
        for call in &mut self.recent {
            call.number -= gone;
        }
        self.last.0 = self.last.0.saturating_sub(gone);
    }

    fn add(&mut self, buckets: &Buckets, tick: u64, fault: Fault) {
        if fault.failed {
            let since = self.succeeded_since(buckets, tick);
            self.in_a_row = if since {
                1
            } else {
                self.in_a_row.saturating_add(1)
            };
            self.last = (tick, buckets.at(tick));
        } else {
            self.in_a_row = 0;
        }
        self.buckets.resize(RING, Bucket::default());
        let bucket = &mut self.buckets[Buckets::place(tick)];
        if bucket.tick != tick {
            *bucket = Bucket {
                tick,
                ..Bucket::default()
            };
        }
        bucket.calls += 1;
        bucket.failures += u64::from(fault.failed);
        bucket.slow += u64::from(fault.slow);
    }

    fn of_time(&mut self, buckets: &Buckets, tick: u64) -> Figures {
        let mut figures = Figures {
            in_a_row: if self.succeeded_since(buckets, tick) {
                0
            } else {
                self.in_a_row
            },
            ..Figures::default()
        };
        for tick in Buckets::window(tick) {
            figures.calls += buckets.at(tick);
        }
        for bucket in &self.buckets {
            if tick.wrapping_sub(bucket.tick) < Buckets::NUMBER {
                figures.calls += bucket.calls;
                figures.failures += bucket.failures;
                figures.slow += bucket.slow;
            }
        }
        figures
    }

    /// Whether anything has succeeded since the last failure. A word that is newer than that says so, and a word is only
    /// ever overwritten by a newer one.
    fn succeeded_since(&self, buckets: &Buckets, tick: u64) -> bool {
        let (last, before) = self.last;
        let passed = tick.wrapping_sub(last);
        buckets.at(last) > before
            || buckets.ring.iter().any(|bucket| {
                let word = bucket.load(Ordering::Relaxed);
                word & buckets.most() > 0 && buckets.age(word, tick) < passed
            })
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use proptest::prelude::*;

    use super::*;

    const GOOD: Fault = Fault {
        failed: false,
        slow: false,
    };
    const BAD: Fault = Fault {
        failed: true,
        slow: false,
    };

    fn at(millis: u64) -> Instant {
        Instant::from_bits(1 << 40) + Duration::from_millis(millis)
    }

    fn calls(size: u32) -> Window {
        Window::new(Kind::Calls(NonZeroU32::new(size).unwrap()), at(0))
    }

    fn time(millis: u64) -> Window {
        Window::new(Kind::Time(Duration::from_millis(millis)), at(0))
    }

    // promise: BR-3
    #[test]
    fn a_count_that_is_full_goes_on_with_what_is_in_the_window() {
        let (window, mut faults) = (calls(10), Faults::default());
        let Window::Calls(Apart(counter), _) = &window else {
            unreachable!();
        };
        counter.set(1, Counter::MOST - 12);
        for fault in [BAD, GOOD, BAD, BAD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD] {
            window.record(&mut faults, 1, at(0), fault);
        }
        assert_eq!(counter.get(), Counter::MOST - 2);
        assert_eq!(window.succeed(1, None), Counted::Yes);
        assert_eq!(window.succeed(1, None), Counted::Yes);
        assert_eq!(window.succeed(1, None), Counted::Full);
        assert_eq!(window.figures(&mut faults, 1, at(0)).failures, 2);
        // Of the last ten calls the first is the second of two failures.
        let figures = window.record(&mut faults, 1, at(0), GOOD);
        assert_eq!((figures.calls, figures.failures), (10, 1));
        assert_eq!(counter.get(), 11);
        for row in 1..=3 {
            assert_eq!(window.record(&mut faults, 1, at(0), BAD).in_a_row, row);
        }
        assert_eq!(window.figures(&mut faults, 1, at(0)).failures, 3);
    }

    // promise: BR-3
    #[test]
    fn failures_are_in_a_row_across_a_count_that_is_full() {
        let (window, mut faults) = (calls(10), Faults::default());
        let Window::Calls(Apart(counter), _) = &window else {
            unreachable!();
        };
        counter.set(1, Counter::MOST - 2);
        for row in 1..=4 {
            assert_eq!(window.record(&mut faults, 1, at(0), BAD).in_a_row, row);
        }
    }

    // promise: BR-3
    #[test]
    fn a_success_that_is_told_too_late_takes_nothing_from_the_window() {
        let (window, mut faults) = (time(1_000), Faults::default());
        assert_eq!(window.succeed(1, Some(at(1_600))), Counted::Yes);
        // A whole round of the ring before, by a clock that was read before.
        assert_eq!(window.succeed(1, Some(at(0))), Counted::Stale);
        assert_eq!(window.figures(&mut faults, 1, at(1_600)).calls, 1);
    }

    // promise: BR-3
    #[test]
    fn a_bucket_that_is_full_counts_on_under_the_lock() {
        let (window, mut faults) = (time(10), Faults::default());
        let Window::Time(Apart(buckets)) = &window else {
            unreachable!();
        };
        let tick = buckets.tick(1, at(0));
        let full = (tick << buckets.count_bits) | (buckets.most() - 1);
        buckets.bucket(tick).store(full, Ordering::Relaxed);
        assert_eq!(window.succeed(1, Some(at(0))), Counted::Yes);
        assert_eq!(window.succeed(1, Some(at(0))), Counted::Full);
        let figures = window.record(&mut faults, 1, at(0), GOOD);
        assert_eq!(figures.calls, buckets.most() + 1);
        assert!(buckets.most() > 4_000_000, "in a millisecond");
    }

    // promise: BR-3
    #[test]
    fn after_years_without_a_call_one_failure_is_one_of_one() {
        for idle in [0, 11, 1 << 32, 1 << 36, 1 << 41] {
            for window in [time(10), time(10_000), time(u64::MAX), calls(10)] {
                let mut faults = Faults::default();
                assert_ne!(window.succeed(1, Some(at(0))), Counted::Stale);
                window.record(&mut faults, 1, at(0), BAD);
                let figures = window.record(&mut faults, 1, at(idle), BAD);
                let gone = matches!(window, Window::Time(_)) && idle > 10_000;
                if gone
                    && !matches!(&window, Window::Time(Apart(buckets)) if buckets.per_nano < 1 << 5)
                {
                    assert_eq!((figures.calls, figures.failures), (1, 1), "after {idle} ms");
                }
                // Whether anything has succeeded in between does not depend on the time.
                assert_eq!(figures.in_a_row, 2, "after {idle} ms");
            }
        }
    }

    // promise: BR-13
    #[test]
    fn what_was_let_through_in_another_generation_changes_nothing() {
        for window in [
            calls(10),
            time(1_000),
            Window::new(Kind::InARow(NonZeroU32::MIN), at(0)),
        ] {
            let mut faults = Faults::default();
            for generation in 1..50 {
                window.begin(&mut faults, generation);
                window.record(&mut faults, generation, at(generation), BAD);
                for stale in 0..generation {
                    // It was let through then, and its clock was read then at the latest.
                    window.succeed(stale, Some(at(stale + 1)));
                    let figures = window.figures(&mut faults, generation, at(generation));
                    assert_eq!((figures.calls, figures.in_a_row), (1, 1));
                }
                let later = window.record(&mut faults, generation, at(100_000), BAD);
                assert_eq!(later.in_a_row, 2);
            }
        }
    }

    // promise: BR-25
    #[test]
    fn a_success_counts_however_many_generations_came_before_it() {
        for window in [calls(10), time(10), time(10_000), time(u64::MAX)] {
            let mut faults = Faults::default();
            for generation in (1..300).chain([1 << 24, 1 << 26, 1 << 40, 1 << 61]) {
                window.begin(&mut faults, generation);
                // None in some of them.
                if generation % 11 < 2 {
                    assert_eq!(window.succeed(generation, Some(at(0))), Counted::Yes);
                    assert_eq!(window.figures(&mut faults, generation, at(0)).calls, 1);
                    assert_eq!(
                        window.record(&mut faults, generation, at(0), BAD).in_a_row,
                        1
                    );
                }
            }
        }
    }

    /// What a window of time holds, as plainly as it can be said: the parts that are not ten parts old.
    fn naive(ended: &[(u64, Fault)], now: u64, width: u64) -> Figures {
        let young = |(time, _): &&(u64, Fault)| time / width + 10 > now / width;
        let count = |which: fn(&Fault) -> bool| {
            let seen = ended.iter().filter(young);
            seen.filter(|(_, fault)| which(fault)).count() as u64
        };
        let row = ended.iter().rev().take_while(|(_, fault)| fault.failed);
        Figures {
            calls: count(|_| true),
            failures: count(|fault| fault.failed),
            slow: count(|fault| fault.slow),
            in_a_row: u32::try_from(row.count()).unwrap(),
        }
    }

    proptest! {
        // promise: BR-2
        #[test]
        fn a_window_of_time_agrees_with_a_list(
            steps in prop::collection::vec((0..300_u64, any::<bool>(), any::<bool>()), 1..200),
            pace in 1..4_u64,
        ) {
            let (window, mut faults) = (time(1_000), Faults::default());
            let (mut now, mut ended) = (0, Vec::new());
            for (wait, failed, slow) in steps {
                now += wait / pace.pow(3);
                let fault = Fault { failed, slow };
                ended.push((now, fault));
                if failed || slow {
                    window.record(&mut faults, 1, at(now), fault);
                } else {
                    prop_assert_eq!(window.succeed(1, Some(at(now))), Counted::Yes);
                }
                prop_assert_eq!(window.figures(&mut faults, 1, at(now)), naive(&ended, now, 100));
            }
        }

        // promise: BR-1
        #[test]
        fn a_window_of_calls_agrees_with_a_list(
            steps in prop::collection::vec((any::<bool>(), any::<bool>()), 1..200),
            size in 1..50_u32,
        ) {
            let (window, mut faults) = (calls(size), Faults::default());
            let mut ended = Vec::new();
            for (failed, slow) in steps {
                let fault = Fault { failed, slow };
                ended.push((0, fault));
                if failed || slow {
                    window.record(&mut faults, 1, at(0), fault);
                } else {
                    prop_assert_eq!(window.succeed(1, None), Counted::Yes);
                }
                let last = &ended[ended.len().saturating_sub(size as usize)..];
                let expected = Figures { in_a_row: naive(&ended, 0, 1).in_a_row, ..naive(last, 0, 1) };
                prop_assert_eq!(window.figures(&mut faults, 1, at(0)), expected);
            }
        }
    }

    // promise: BR-2
    #[test]
    fn a_window_takes_the_same_memory_however_many_calls_it_holds() {
        let (window, mut faults) = (time(1_000), Faults::default());
        let counted = allocation_counter::measure(|| {
            for call in 0..1_000_000_u64 {
                let now = at(call / 1_000);
                assert_eq!(window.succeed(1, Some(now)), Counted::Yes);
                window.record(&mut faults, 1, now, BAD);
            }
        });
        assert_eq!(counted.count_total, 1, "the buckets, at the first failure");
        assert!(counted.bytes_max < 1_000);
        assert!(window.figures(&mut faults, 1, at(999)).calls > 1_900_000);
    }
}
