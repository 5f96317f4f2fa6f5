//! A breaker as its calls share it: the circuit behind a lock, and beside it what most calls need not lock for.

use std::{sync::Arc, task::Waker, time::Duration};

use buttress_core::{
    BoxError, Rejected,
    clock::{self, Instant},
    sync::{Apart, AtomicU64, Mutex, Ordering, lock, wake},
};

use crate::{
    Event, Outcome, ProbeResult, Reason, State,
    circuit::{Circuit, Happened, Outlook, Permit},
    event::Why,
    queue::Queue,
    settings::{Figures, Settings},
    window::{Counted, Fault, Faults, Window},
};

/// One breaker.
#[derive(Debug)]
pub(crate) struct Shared {
    hot: Apart<Hot>,
    window: Window,
    locked: Mutex<Locked>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) key: Option<Arc<str>>,
    /// Does nobody listen, and does nobody ask how long a call takes?
    pub(crate) plain: bool,
}

/// What a call reads first, written under the lock only.
///
/// The word is stored with release after the other two and after the window was made ready, and loaded with acquire
/// before them: whoever reads a word sees all that belongs to it, or something newer.
#[derive(Debug)]
struct Hot {
    /// The generation, and in the last two bits what a call is to do.
    word: AtomicU64,
    /// The moment until which calls are refused.
    until: AtomicU64,
    /// A packed [`Why`].
    why: AtomicU64,
}

const PASS: u64 = 0;
const REFUSE: u64 = 1;
const ASK: u64 = 2;
const MODE: u64 = 3;

/// How often one who waits behind others looks by himself, at most.
const LOOKS_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Locked {
    circuit: Circuit,
    faults: Faults,
    queue: Queue,
    /// Is there no more asking for it? Then its state is nobody's: its key has a new breaker, or none.
    forgotten: bool,
}

/// Why a call is refused, packed, and when to come back if that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    why: u64,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// When to come back is only known of a breaker that is open and was not forced to be.
    fn new(why: u64, until: Instant, now: Instant) -> Self {
        // While it is being forced open, the end of time may stand beside the reason that was there before.
        let timed = Why::is_open(why) && until < Instant::MAX;
        Self {
            why,
            retry_after: timed.then(|| until.saturating_duration_since(now)),
        }
    }
}

impl Permit {
    /// The right to make a call that nobody counts.
    pub(crate) const UNCOUNTED: Self = Self {
        generation: 0,
        probe: 0,
    };
}

impl Shared {
    pub(crate) fn new(settings: Arc<Settings>, key: Option<Arc<str>>) -> Self {
        let now = clock::now();
        let circuit = Circuit::new(now);
        Self {
            hot: Apart(Hot {
                word: AtomicU64::new(circuit.generation << 2 | PASS),
                until: AtomicU64::new(0),
                why: AtomicU64::new(circuit.why().pack()),
            }),
            window: Window::new(settings.rules.window, now),
            locked: Mutex::new(Locked {
                circuit,
                faults: Faults::default(),
                queue: Queue::default(),
                forgotten: false,
            }),
            plain: settings.events.is_empty() && settings.rules.slow.is_none(),
            settings,
            key,
        }
    }

    /// Lets a call through if the breaker is closed.
    #[inline]
    pub(crate) fn pass(&self) -> Option<Permit> {
        let word = self.hot.0.word.load(Ordering::Acquire);
        (word & MODE == PASS).then_some(Permit {
            generation: word >> 2,
            probe: 0,
        })
    }

    /// Lets a call through, or says why not. A closed breaker is one load; an open one takes no lock either.
    pub(crate) fn admit(&self) -> Result<Permit, Refusal> {
        match self.pass() {
            Some(permit) => Ok(permit),
            None => self.refuse().map_or_else(|| self.ask(), Err),
        }
    }

    /// Refuses a call if the breaker is open.
    pub(crate) fn refuse(&self) -> Option<Refusal> {
        let word = self.hot.0.word.load(Ordering::Acquire);
        let open = word & MODE == REFUSE;
        open.then(|| self.refusal(clock::now())).flatten()
    }

    /// The refusal, if there is one without the lock. The word has been read before.
    fn refusal(&self, now: Instant) -> Option<Refusal> {
        // Acquire: the reason is as new as the moment, or newer. Otherwise they are ordered by the word.
        let until = Instant::from_bits(self.hot.0.until.load(Ordering::Acquire));
        (now < until).then(|| {
            let why = self.hot.0.why.load(Ordering::Relaxed);
            Refusal::new(why, until, now)
        })
    }

    fn ask(&self) -> Result<Permit, Refusal> {
        self.step(|shared, locked, now, happened| {
            let permit = locked.circuit.admit(now, &shared.settings.rules, happened);
            permit.ok_or_else(|| {
                let until = match locked.circuit.outlook(&shared.settings.rules) {
                    Outlook::Refuse(until) => until,
                    Outlook::Pass | Outlook::Ask => now,
                };
                Refusal::new(locked.circuit.why().pack(), until, now)
            })
        })
    }

    /// As [`admit`](Self::admit), for one who waits: he is in the queue under his ticket until he is let through. Says when
    /// he is to try again, if that is known.
    pub(crate) fn admit_or_wait(
        &self,
        ticket: &mut Option<u64>,
        waker: &Waker,
    ) -> Result<Permit, Option<Instant>> {
        let waker = waker.clone();
        // Dropped at the end, outside the lock: that may run code of somebody else.
        let (admitted, _unneeded) = self.step(|shared, locked, now, happened| {
            let rules = &shared.settings.rules;
            let Locked { circuit, queue, .. } = locked;
            if let Some(permit) = circuit.admit(now, rules, happened) {
                let [own, _] = ticket
                    .take()
                    .map_or([None, None], |ticket| queue.leave(ticket, true));
                return (Ok(permit), [own, Some(waker)]);
            }
            let old = queue.wait(ticket, waker);
            let until = match circuit.outlook(rules) {
                Outlook::Refuse(until) if until < Instant::MAX => Some(until),
                _ => None,
            };
            let is_first = ticket.is_some_and(|ticket| queue.is_first(ticket));
            // Who is not the first looks by himself too, lest one who does not come keep up all.
            let earliest = if is_first { now } else { now + LOOKS_EVERY };
            (Err(until.map(|until| until.max(earliest))), [old, None])
        });
        admitted
    }

    /// Leaves the queue without a permit.
    pub(crate) fn leave(&self, ticket: u64) {
        let [_own, next] = lock(&self.locked).queue.leave(ticket, false);
        next.into_iter().for_each(wake);
    }

    /// Would a call with this permit still count?
    pub(crate) fn is_current(&self, permit: Permit) -> bool {
        // Relaxed: a word that changes at this moment changes before or after, and the lock or the counter decides.
        self.hot.0.word.load(Ordering::Relaxed) >> 2 == permit.generation
    }

    /// Does a permit still stand for a slot? Its lease may have expired.
    pub(crate) fn renew(&self, permit: Permit) -> bool {
        self.step(|_, locked, now, happened| locked.circuit.has_probe(now, permit, happened))
    }

    /// Records a success where that is all there is to do. Returns false if there is more, or nothing.
    #[inline]
    pub(crate) fn succeeded_plainly(&self, permit: Permit) -> bool {
        self.plain && permit.probe == 0 && self.count(permit) == Counted::Yes
    }

    /// Records a success. Returns whether it counts.
    pub(crate) fn succeeded(&self, permit: Permit, slow: bool) -> bool {
        if permit.probe == 0 && !slow {
            match self.count(permit) {
                Counted::Yes => return true,
                Counted::Stale => return false,
                Counted::Full => {}
            }
        }
        let fault = Fault {
            failed: false,
            slow,
        };
        self.record(permit, fault, None)
    }

    #[inline]
    fn count(&self, permit: Permit) -> Counted {
        match &self.window {
            // The clock comes before the look at the generation: `Buckets` relies on it.
            Window::Time(Apart(buckets)) => {
                let tick = buckets.tick(permit.generation, clock::now());
                if self.is_current(permit) {
                    buckets.succeed(tick)
                } else {
                    Counted::Stale
                }
            }
            window if self.is_current(permit) => window.succeed(permit.generation, None),
            _ => Counted::Stale,
        }
    }

    /// When a call begins, if it matters.
    #[inline(never)]
    pub(crate) fn begun(&self) -> Option<Instant> {
        self.settings.rules.slow.is_some().then(clock::now)
    }

    /// Records a failure, with the time after which the server is to be asked again. Returns whether it counts.
    pub(crate) fn failed(&self, permit: Permit, slow: bool, hint: Option<Duration>) -> bool {
        self.record(permit, Fault { failed: true, slow }, hint)
    }

    fn record(&self, permit: Permit, fault: Fault, hint: Option<Duration>) -> bool {
        self.step(|shared, locked, now, happened| {
            let (circuit, rules) = (&mut locked.circuit, &shared.settings.rules);
            let rng = &mut rand::rng();
            if permit.probe != 0 {
                return if fault.failed {
                    circuit.probe_failed(now, rules, permit, hint, rng, happened)
                } else {
                    circuit.probe_succeeded(now, rules, permit, fault.slow, rng, happened)
                };
            }
            if permit.generation != circuit.generation {
                return false;
            }
            let (faults, generation) = (&mut locked.faults, permit.generation);
            let figures = shared.window.record(faults, generation, now, fault);
            if fault.failed || fault.slow {
                circuit.judge(now, rules, figures, hint, rng, happened);
            }
            true
        })
    }

    /// Takes a permit back that comes to nothing. Returns whether it was still good.
    pub(crate) fn give_back(&self, permit: Permit) -> bool {
        if permit.probe == 0 {
            return self.is_current(permit);
        }
        self.step(|_, locked, now, happened| {
            locked.circuit.end_probe(now, permit, happened).is_some()
        })
    }

    pub(crate) fn force(&self, open: bool) {
        self.step(|_, locked, now, happened| locked.circuit.force(now, open, happened));
    }

    pub(crate) fn release(&self) {
        self.step(|shared, locked, now, happened| {
            locked
                .circuit
                .release(now, &shared.settings.rules, happened);
        });
    }

    pub(crate) fn reset(&self) {
        self.step(|_, locked, _, _| locked.circuit.reset());
    }

    /// Looks at the circuit, and at what its window holds.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Circuit, Figures, Instant) -> T) -> T {
        let mut locked = lock(&self.locked);
        let now = clock::now();
        let Locked {
            circuit, faults, ..
        } = &mut *locked;
        let figures = self.window.figures(faults, circuit.generation, now);
        look(circuit, figures, now)
    }

    /// Is it closed, without a ramp, and of its own accord?
    pub(crate) fn is_closed(&self) -> bool {
        // Acquire: it pairs with the store in `publish`.
        let word = self.hot.0.word.load(Ordering::Acquire);
        word & MODE == PASS && self.published().state == State::Closed
    }

    /// Would it be a loss to forget it, however long nobody has asked for it?
    pub(crate) fn must_stay(&self, now: Instant) -> bool {
        // Acquire: as above.
        let refuses = self.hot.0.word.load(Ordering::Acquire) & MODE == REFUSE;
        let forced = matches!(
            self.published().state,
            State::ForcedOpen | State::ForcedClosed
        );
        forced || refuses && self.refusal(now).is_some()
    }

    fn published(&self) -> Why {
        // Relaxed: it is ordered by the word, which has been read before.
        Why::unpack(self.hot.0.why.load(Ordering::Relaxed))
    }

    /// Does one step of the circuit under the lock, and tells afterwards what has happened.
    fn step<T>(&self, work: impl FnOnce(&Self, &mut Locked, Instant, &mut Happened) -> T) -> T {
        let mut happened = Happened::default();
        let mut locked = lock(&self.locked);
        let rules = &self.settings.rules;
        let (before, free_before) = (locked.circuit.generation, locked.circuit.free_slots(rules));
        let done = work(self, &mut locked, clock::now(), &mut happened);
        let generation = locked.circuit.generation;
        if generation != before {
            self.window.begin(&mut locked.faults, generation);
        }
        self.publish(&locked.circuit);
        let Locked { circuit, queue, .. } = &mut *locked;
        let woken = queue.tell(match circuit.outlook(rules) {
            Outlook::Pass => usize::MAX,
            Outlook::Ask => circuit.free_slots(rules).saturating_sub(free_before),
            // When it has opened anew, one has to see how long there is to wait now.
            Outlook::Refuse(_) => usize::from(happened.transition.is_some()),
        });
        if locked.forgotten {
            (happened.transition, happened.percent) = (None, None);
        }
        drop(locked);

        // Before the sinks: a slow one is to hold up nobody else.
        woken.into_iter().for_each(wake);
        self.tell(&happened);
        done
    }

    /// Writes down what the next call will meet.
    fn publish(&self, circuit: &Circuit) {
        let Hot { word, until, why } = &self.hot.0;
        let (mode, end) = match circuit.outlook(&self.settings.rules) {
            Outlook::Pass => (PASS, Instant::from_bits(0)),
            Outlook::Ask => (ASK, Instant::from_bits(0)),
            Outlook::Refuse(end) => (REFUSE, end),
        };
        let new = circuit.generation << 2 | mode;
        // Relaxed: only the holder of the lock writes them.
        let was = (word.load(Ordering::Relaxed), until.load(Ordering::Relaxed));
        if was == (new, end.to_bits()) {
            return;
        }
        why.store(circuit.why().pack(), Ordering::Relaxed);
        // Release: it pairs with the load in `refusal`.
        until.store(end.to_bits(), Ordering::Release);
        // Release: it pairs with the loads in `pass`, `refuse`, `is_closed` and `must_stay`.
        word.store(new, Ordering::Release);
    }

    fn tell(&self, happened: &Happened) {
        if self.settings.events.is_empty() {
            return;
        }
        for _ in 0..happened.expired {
            self.tell_probe(ProbeResult::LeaseExpired);
        }
        if let Some(transition) = happened.transition {
            self.settings.events.emit(&Event::Transition {
                from: transition.from,
                to: transition.to,
                cause: transition.cause,
                open_for: transition.open_for,
                number: transition.number,
                key: self.key.clone(),
            });
        }
        if let Some(percent) = happened.percent {
            self.settings.events.emit(&Event::Ramp {
                percent,
                key: self.key.clone(),
            });
        }
    }

    /// Its key has it no more. From now on it tells of its calls only.
    pub(crate) fn forget(&self) {
        lock(&self.locked).forgotten = true;
        if let Some(key) = self.key.clone() {
            self.settings.events.emit(&Event::Forgotten { key });
        }
    }

    pub(crate) fn tell_probe(&self, result: ProbeResult) {
        self.settings.events.emit(&Event::Probe {
            result,
            key: self.key.clone(),
        });
    }

    pub(crate) fn tell_refused(&self, refusal: Refusal) {
        if self.settings.events.is_empty() {
            return;
        }
        let Why { state, cause } = Why::unpack(refusal.why);
        self.settings.events.emit(&Event::Refused {
            state,
            cause,
            shadow: self.settings.shadow,
            key: self.key.clone(),
        });
    }

    /// What a refused call comes to; in shadow mode nothing, for it is made all the same.
    pub(crate) fn refused(&self, refusal: Refusal) -> Option<BoxError> {
        self.tell_refused(refusal);
        (!self.settings.shadow).then(|| self.rejected(refusal).into())
    }

    /// A call that was let through has come to its end.
    pub(crate) fn end(
        &self,
        permit: Permit,
        slow: bool,
        outcome: Outcome,
        reason: Reason,
        hint: Option<Duration>,
    ) {
        let counted = permit != Permit::UNCOUNTED
            && match outcome {
                Outcome::Success => self.succeeded(permit, slow),
                Outcome::Failure => self.failed(permit, slow, hint),
                Outcome::Ignored | Outcome::Cancelled => self.give_back(permit),
            };
        if !self.settings.events.is_empty() {
            self.tell_end(permit, slow, outcome, reason, counted);
        }
    }

    #[inline(never)]
    fn tell_end(
        &self,
        permit: Permit,
        slow: bool,
        outcome: Outcome,
        reason: Reason,
        counted: bool,
    ) {
        if permit.probe != 0 {
            self.tell_probe(match outcome {
                _ if !counted => ProbeResult::Stale,
                Outcome::Success => ProbeResult::Ok,
                Outcome::Failure => ProbeResult::Failed,
                Outcome::Ignored => ProbeResult::Ignored,
                Outcome::Cancelled => ProbeResult::Cancelled,
            });
        }
        self.settings.events.emit(&Event::Call {
            outcome,
            reason,
            slow,
            counted: counted && matches!(outcome, Outcome::Success | Outcome::Failure),
            key: self.key.clone(),
        });
    }

    fn rejected(&self, refusal: Refusal) -> Rejected {
        let mut rejected = Rejected::with_figures("breaker", refusal.why, Why::describe);
        if let Some(name) = &self.settings.name {
            rejected = rejected.named(name.clone());
        }
        if let Some(key) = &self.key {
            rejected = rejected.keyed(key.clone());
        }
        match refusal.retry_after {
            Some(retry_after) => rejected.after(retry_after),
            None => rejected,
        }
    }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use super::*;
    use crate::settings::Kind;

    // promises: BR-19, BR-27
    #[test]
    fn neither_a_closed_breaker_nor_an_open_one_takes_the_lock() {
        let size = 10.try_into().unwrap();
        let kinds = [
            Kind::Time(Duration::from_secs(10)),
            Kind::Calls(size),
            Kind::InARow(size),
        ];
        for window in kinds {
            let mut settings = Settings::default();
            settings.rules.window = window;
            let shared = Shared::new(settings.into(), None);
            let locked = lock(&shared.locked);
            // Whoever wants the lock now waits for ever.
            for _ in 0..100 {
                let permit = shared.admit().unwrap();
                assert!(shared.succeeded(permit, false));
                let permit = shared.admit().unwrap();
                assert!(shared.give_back(permit));
            }
            drop(locked);
            shared.force(true);
            let _locked = lock(&shared.locked);
            let refusal = shared.admit().unwrap_err();
            shared.tell_refused(refusal);
            assert_eq!(shared.rejected(refusal).reason(), "forced open");
        }
    }

    // promise: BR-19
    #[tokio::test(start_paused = true)]
    async fn a_half_open_breaker_without_a_slot_takes_no_lock_to_refuse() {
        let shared = Shared::new(Settings::default().into(), None);
        for _ in 0..5 {
            let permit = shared.admit().unwrap();
            assert!(shared.failed(permit, false, None));
        }
        for _ in 0..3 {
            // The open time is over, or the lease of the probe before.
            tokio::time::advance(Duration::from_secs(10)).await;
            assert_ne!(shared.admit().unwrap().probe, 0);
            let _locked = lock(&shared.locked);
            let refusal = shared.admit().unwrap_err();
            assert_eq!(refusal.retry_after, None);
        }
    }

    // promise: BR-19
    #[test]
    fn nobody_is_told_to_come_back_at_the_end_of_time() {
        let shared = Shared::new(Settings::default().into(), None);
        for _ in 0..5 {
            let permit = shared.admit().unwrap();
            assert!(shared.failed(permit, false, None));
        }
        let left = shared.admit().unwrap_err().retry_after;
        assert!(left.is_some_and(|left| left <= Duration::from_secs(5)));
        // It is being forced open, and the reason from before is still there.
        let end = Instant::MAX.to_bits();
        shared.hot.0.until.store(end, Ordering::Relaxed);
        assert_eq!(shared.admit().unwrap_err().retry_after, None);
    }
}

#[cfg(all(test, buttress_loom))]
mod loom_tests {
    use loom::{sync::Arc, thread};

    use super::*;
    use crate::settings::{Kind, Rules};

    fn breaker(window: Kind, in_flight: u32) -> Arc<Shared> {
        let count = |count: u32| count.try_into().unwrap();
        let rules = Rules {
            window,
            open_time: Duration::from_millis(1),
            // The clock stands still, so a hint of nothing is what ends an open time.
            max_hint: Duration::ZERO,
            in_flight: (count(in_flight), count(in_flight)),
            probes: count(2),
            ramp: false,
            ..Rules::default()
        };
        let settings = Settings {
            rules,
            ..Settings::default()
        };
        Arc::new(Shared::new(settings.into(), None))
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

    fn one() -> Kind {
        Kind::InARow(1.try_into().unwrap())
    }

    /// Opens it, so that the next call is a probe.
    fn open(shared: &Shared) {
        let permit = shared.admit().unwrap();
        assert!(shared.failed(permit, false, Some(Duration::ZERO)));
    }

    /// What each of the other threads does, and this one with it.
    fn together(shared: &Arc<Shared>, threads: usize, work: fn(&Shared) -> u64) -> u64 {
        let others: Vec<_> = (1..threads)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || work(&shared))
            })
            .collect();
        let here = work(shared);
        here + others
            .into_iter()
            .map(|other| other.join().unwrap())
            .sum::<u64>()
    }

    // promise: BR-10
    #[test]
    fn loom_exactly_so_many_probes_are_let_through() {
        for (threads, slots) in [(2, 1), (3, 1), (3, 2)] {
            explore(move || {
                let shared = breaker(one(), slots);
                open(&shared);
                let admitted = together(&shared, threads, |shared| shared.admit().is_ok().into());
                assert_eq!(admitted, u64::from(slots));
            });
        }
    }

    // promise: BR-10
    #[test]
    fn loom_a_slot_that_is_given_back_is_there_again() {
        explore(|| {
            let shared = breaker(one(), 1);
            open(&shared);
            together(&shared, 3, |shared| {
                shared
                    .admit()
                    .is_ok_and(|permit| shared.give_back(permit))
                    .into()
            });
            assert!(shared.admit().is_ok(), "all are given back");
        });
    }

    // promise: BR-10
    #[test]
    fn loom_a_failure_and_a_success_are_one_after_the_other() {
        let size = 4.try_into().unwrap();
        for window in [one(), Kind::Calls(size), Kind::Time(Duration::from_secs(1))] {
            explore(move || {
                let shared = breaker(window, 1);
                let permits = [(); 2].map(|()| shared.admit().unwrap());
                let failing = {
                    let shared = shared.clone();
                    thread::spawn(move || shared.failed(permits[0], false, None))
                };
                let counted = shared.succeeded(permits[1], false);
                assert!(
                    failing.join().unwrap(),
                    "nothing comes before it but the success"
                );
                shared.look(|circuit, figures, _| match circuit.state() {
                    // It may have come too late.
                    State::Open => assert_eq!(window, one()),
                    _ => {
                        assert!(counted);
                        assert_eq!((figures.calls, figures.failures), (2, 1));
                    }
                });
            });
        }
    }

    // promise: BR-10
    #[test]
    fn loom_a_straggler_never_counts_in_another_era() {
        explore(|| {
            let shared = breaker(Kind::Calls(4.try_into().unwrap()), 1);
            let straggler = shared.admit().unwrap();
            let late = {
                let shared = shared.clone();
                thread::spawn(move || shared.succeeded(straggler, false))
            };
            shared.force(true);
            shared.release();
            late.join().unwrap();
            shared.look(|_, figures, _| assert_eq!(figures, Figures::default()));
            let permit = shared.admit().unwrap();
            assert!(shared.succeeded(permit, false));
            shared.look(|_, figures, _| assert_eq!(figures.calls, 1));
        });
    }

    // promise: BR-22
    #[test]
    fn loom_a_forced_state_is_seen_before_the_call_returns() {
        explore(|| {
            let shared = breaker(one(), 1);
            let other = {
                let shared = shared.clone();
                thread::spawn(move || {
                    if let Ok(permit) = shared.admit() {
                        shared.failed(permit, false, None);
                    }
                })
            };
            shared.force(true);
            assert!(shared.admit().is_err());
            other.join().unwrap();
            assert!(shared.admit().is_err());
        });
    }
}
