//! The circuit as plain data: no lock, no clock, no I/O.
//!
//! ```text
//!             the window is a reason                    the open time is over
//!   closed ------------------------------> open -------------------------------> half-open
//!     ^  ^                                  ^                                      |    |
//!     |  +-- ramp: 10, 25, 50, 100 % -------+                      a probe fails   |    |
//!     |       (two bad steps reopen it)     +--------------------------------------+    |
//!     +---------------------------------------------------------------------------------+
//!                                   enough probes succeed
//! ```

use std::{collections::VecDeque, time::Duration};

use buttress_core::clock::Instant;
use rand::Rng;

use crate::{
    Cause, State,
    event::Why,
    settings::{Figures, Rules, figure},
};

/// The percentages of calls that are let through after closing, a quarter of the open time each.
const STEPS: [u8; 4] = [10, 25, 50, 100];

/// A circuit. Every change that makes the results under way worthless begins a new generation.
#[derive(Debug)]
pub(crate) struct Circuit {
    pub(crate) phase: Phase,
    pub(crate) generation: u64,
    /// When this state began, and why.
    pub(crate) since: Instant,
    pub(crate) cause: Cause,
    /// The transitions so far.
    pub(crate) number: u64,
    /// The openings that are not forgiven yet.
    pub(crate) level: u32,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Closed(Option<Ramp>),
    Open { until: Instant },
    HalfOpen(Probes),
    ForcedOpen,
    ForcedClosed,
}

/// The probes of a half-open circuit. Invariant: `in_flight` is in the order of ids, and so of expiry.
#[derive(Debug)]
pub(crate) struct Probes {
    pub(crate) in_flight: VecDeque<Probe>,
    /// Never shorter than it was, whatever becomes of the level: the order of the probes depends on it.
    lease: Duration,
    longest_lease: Duration,
    last_id: u64,
    pub(crate) succeeded: u32,
    slow: u32,
}

#[derive(Debug)]
pub(crate) struct Probe {
    id: u64,
    expires: Instant,
}

/// How a circuit that has just closed takes on its load again. Invariant: `step < STEPS.len()`, `credit < 100`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ramp {
    step: usize,
    since: Instant,
    /// How long a step takes.
    length: Duration,
    /// Each call adds the step's percentage; a hundred is a call let through.
    credit: u8,
    /// Has a step failed before?
    failed: bool,
}

/// The right to make one call, and to have it counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permit {
    pub(crate) generation: u64,
    /// The number of the probe, from 1; 0 for a call that is none.
    pub(crate) probe: u64,
}

/// What a step has brought about, beside what it returns.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Happened {
    pub(crate) transition: Option<Transition>,
    /// Probes whose lease has expired.
    pub(crate) expired: usize,
    /// The percentage of calls that is now let through.
    pub(crate) percent: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) cause: Cause,
    pub(crate) open_for: Option<Duration>,
    pub(crate) number: u64,
}

/// What the next call will meet, for those who would rather not take the lock to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// It is let through.
    Pass,
    /// It is refused until this moment, and must ask from then on.
    Refuse(Instant),
    /// It must ask.
    Ask,
}

impl Circuit {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Closed(None),
            generation: 1,
            since: now,
            cause: Cause::New,
            number: 0,
            level: 0,
        }
    }

    pub(crate) fn state(&self) -> State {
        match self.phase {
            Phase::Closed(_) => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen(_) => State::HalfOpen,
            Phase::ForcedOpen => State::ForcedOpen,
            Phase::ForcedClosed => State::ForcedClosed,
        }
    }

    pub(crate) fn why(&self) -> Why {
        Why {
            state: self.state(),
            cause: self.cause,
        }
    }

    pub(crate) fn outlook(&self, rules: &Rules) -> Outlook {
        match &self.phase {
            Phase::Closed(None) | Phase::ForcedClosed => Outlook::Pass,
            Phase::Closed(Some(_)) => Outlook::Ask,
            Phase::Open { until } => Outlook::Refuse(*until),
            Phase::HalfOpen(probes) => match probes.in_flight.front() {
                Some(first) if probes.free(rules) == 0 => Outlook::Refuse(first.expires),
                _ => Outlook::Ask,
            },
            Phase::ForcedOpen => Outlook::Refuse(Instant::MAX),
        }
    }

    /// Lets a call through, or does not.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        rules: &Rules,
        happened: &mut Happened,
    ) -> Option<Permit> {
        if let Phase::Open { until } = self.phase
            && until <= now
        {
            let lease = rules.lease(self.level.saturating_sub(1));
            let probes = Probes::new(lease, rules.longest_lease());
            self.turn(Phase::HalfOpen(probes), Cause::OpenTimeOver, now, happened);
        }
        self.tick(now, happened);
        let generation = self.generation;
        let probe = match &mut self.phase {
            Phase::Closed(None) | Phase::ForcedClosed => 0,
            Phase::Closed(Some(ramp)) => ramp.takes().then_some(0)?,
            Phase::HalfOpen(probes) if probes.free(rules) > 0 => probes.begin(now),
            Phase::HalfOpen(_) | Phase::Open { .. } | Phase::ForcedOpen => return None,
        };
        Some(Permit { generation, probe })
    }

    /// Ends what time has ended: leases, and steps of the ramp.
    fn tick(&mut self, now: Instant, happened: &mut Happened) {
        match &mut self.phase {
            Phase::HalfOpen(probes) => happened.expired += probes.expire(now),
            Phase::Closed(ramp @ Some(_)) => {
                let (before, after) = (
                    ramp.as_ref().map(|ramp| ramp.step),
                    Ramp::at(ramp.take(), now),
                );
                *ramp = after;
                if ramp.as_ref().map(|ramp| ramp.step) != before {
                    happened.percent = Some(ramp.as_ref().map_or(100, Ramp::percent));
                }
            }
            _ => {}
        }
    }

    /// Acts on what the window holds after a result was added to it.
    pub(crate) fn judge(
        &mut self,
        now: Instant,
        rules: &Rules,
        figures: Figures,
        hint: Option<Duration>,
        rng: &mut impl Rng,
        happened: &mut Happened,
    ) {
        self.tick(now, happened);
        let Phase::Closed(ramp) = &mut self.phase else {
            return;
        };
        let Some(cause) = rules.judge(figures) else {
            return;
        };
        match ramp {
            Some(ramp) if !ramp.failed => {
                ramp.step_back(now);
                happened.percent = Some(ramp.percent());
                // What is under way belongs to the step that failed.
                self.generation += 1;
            }
            ramp => {
                // What fails before it has all its load back has not been well yet.
                if ramp.is_none() {
                    let clean = now.saturating_duration_since(self.since);
                    self.level = rules.forgive(self.level, clean);
                }
                self.open(now, rules, cause, hint, rng, happened);
            }
        }
    }

    /// A probe has succeeded. Returns false if it is none any more.
    pub(crate) fn probe_succeeded(
        &mut self,
        now: Instant,
        rules: &Rules,
        permit: Permit,
        slow: bool,
        rng: &mut impl Rng,
        happened: &mut Happened,
    ) -> bool {
        let Some(probes) = self.end_probe(now, permit, happened) else {
            return false;
        };
        probes.succeeded += 1;
        probes.slow += u32::from(slow);
        let (succeeded, slow) = (probes.succeeded, probes.slow);
        if succeeded < rules.probes.get() {
            return true;
        }
        if rules.judge_slow(slow.into(), succeeded.into()) {
            let cause = Cause::ProbesSlow {
                slow,
                probes: succeeded,
            };
            self.open(now, rules, cause, None, rng, happened);
        } else {
            let cause = Cause::ProbesSucceeded { probes: succeeded };
            self.close(now, rules, cause, happened);
        }
        true
    }

    /// A probe has failed. Returns false if it is none any more.
    pub(crate) fn probe_failed(
        &mut self,
        now: Instant,
        rules: &Rules,
        permit: Permit,
        hint: Option<Duration>,
        rng: &mut impl Rng,
        happened: &mut Happened,
    ) -> bool {
        let is_one = self.end_probe(now, permit, happened).is_some();
        if is_one {
            self.open(now, rules, Cause::ProbeFailed, hint, rng, happened);
        }
        is_one
    }

    /// Takes a probe out of the flight. Returns nothing if it is none any more.
    pub(crate) fn end_probe(
        &mut self,
        now: Instant,
        permit: Permit,
        happened: &mut Happened,
    ) -> Option<&mut Probes> {
        if permit.generation != self.generation {
            return None;
        }
        self.tick(now, happened);
        match &mut self.phase {
            Phase::HalfOpen(probes) => probes.end(permit.probe).then_some(probes),
            _ => None,
        }
    }

    /// Is a permit for a probe still good?
    pub(crate) fn has_probe(
        &mut self,
        now: Instant,
        permit: Permit,
        happened: &mut Happened,
    ) -> bool {
        self.tick(now, happened);
        match &self.phase {
            Phase::HalfOpen(probes) if permit.generation == self.generation => {
                probes.place(permit.probe).is_ok()
            }
            _ => false,
        }
    }

    /// Forces the circuit open or closed, whatever it thinks itself.
    pub(crate) fn force(&mut self, now: Instant, open: bool, happened: &mut Happened) {
        match (&self.phase, open) {
            (Phase::ForcedOpen, true) | (Phase::ForcedClosed, false) => {}
            (_, true) => self.turn(Phase::ForcedOpen, Cause::Forced, now, happened),
            (_, false) => self.turn(Phase::ForcedClosed, Cause::Forced, now, happened),
        }
    }

    /// Ends a forced state: the circuit is closed, after a forced opening with a ramp.
    pub(crate) fn release(&mut self, now: Instant, rules: &Rules, happened: &mut Happened) {
        match self.phase {
            Phase::ForcedOpen => self.close(now, rules, Cause::Released, happened),
            Phase::ForcedClosed => self.turn(Phase::Closed(None), Cause::Released, now, happened),
            _ => {}
        }
    }

    /// Forgets what was counted, and stays in its state.
    pub(crate) fn reset(&mut self) {
        self.level = 0;
        match &mut self.phase {
            Phase::HalfOpen(probes) => (probes.succeeded, probes.slow) = (0, 0),
            // What is under way began before the window that is now empty.
            Phase::Closed(_) | Phase::ForcedClosed => self.generation += 1,
            Phase::Open { .. } | Phase::ForcedOpen => {}
        }
    }

    /// The probes in flight, and those that have succeeded. Nobody need have noticed yet that a lease has expired.
    pub(crate) fn probes(&self, now: Instant) -> (u32, u32) {
        match &self.phase {
            Phase::HalfOpen(probes) => {
                let in_flight = probes.in_flight.len() - probes.expired(now);
                (figure(in_flight as u64), probes.succeeded)
            }
            _ => (0, 0),
        }
    }

    /// How many more probes may be in flight.
    pub(crate) fn free_slots(&self, rules: &Rules) -> usize {
        match &self.phase {
            Phase::HalfOpen(probes) => probes.free(rules),
            _ => 0,
        }
    }

    /// The percentage of calls that is let through. Nobody need have noticed yet that a step is over.
    pub(crate) fn percent(&self, now: Instant) -> u8 {
        match &self.phase {
            Phase::Closed(ramp) => Ramp::at(*ramp, now).as_ref().map_or(100, Ramp::percent),
            Phase::ForcedClosed => 100,
            _ => 0,
        }
    }

    fn open(
        &mut self,
        now: Instant,
        rules: &Rules,
        cause: Cause,
        hint: Option<Duration>,
        rng: &mut impl Rng,
        happened: &mut Happened,
    ) {
        let open_for = rules.draw(self.level, hint, rng);
        self.level = rules.raise(self.level);
        let until = now + open_for;
        self.turn(Phase::Open { until }, cause, now, happened);
        if let Some(transition) = &mut happened.transition {
            transition.open_for = Some(open_for);
        }
    }

    fn close(&mut self, now: Instant, rules: &Rules, cause: Cause, happened: &mut Happened) {
        let ramp = rules.ramp.then(|| Ramp {
            step: 0,
            since: now,
            length: rules.open_time(self.level.saturating_sub(1)) / 4,
            credit: 100 - STEPS[0],
            failed: false,
        });
        let percent = ramp.as_ref().map(Ramp::percent);
        self.turn(Phase::Closed(ramp), cause, now, happened);
        happened.percent = percent;
    }

    fn turn(&mut self, phase: Phase, cause: Cause, now: Instant, happened: &mut Happened) {
        let from = self.state();
        self.phase = phase;
        self.generation += 1;
        self.since = now;
        self.cause = cause;
        self.number += 1;
        // A step of a ramp that ended in the same moment is of no interest any more.
        happened.percent = None;
        happened.transition = Some(Transition {
            from,
            to: self.state(),
            cause,
            open_for: None,
            number: self.number,
        });
    }
}

impl Probes {
    fn new(lease: Duration, longest_lease: Duration) -> Self {
        Self {
            in_flight: VecDeque::new(),
            lease,
            longest_lease,
            last_id: 0,
            succeeded: 0,
            slow: 0,
        }
    }

    /// How many more may be in flight.
    fn free(&self, rules: &Rules) -> usize {
        let (first, then) = rules.in_flight;
        let most = if self.succeeded == 0 { first } else { then };
        (most.get() as usize).saturating_sub(self.in_flight.len())
    }

    fn begin(&mut self, now: Instant) -> u64 {
        self.last_id += 1;
        let (id, expires) = (self.last_id, now + self.lease);
        self.in_flight.push_back(Probe { id, expires });
        id
    }

    fn end(&mut self, id: u64) -> bool {
        self.place(id)
            .is_ok_and(|place| self.in_flight.remove(place).is_some())
    }

    fn place(&self, id: u64) -> Result<usize, usize> {
        self.in_flight.binary_search_by_key(&id, |probe| probe.id)
    }

    fn expire(&mut self, now: Instant) -> usize {
        let expired = self.expired(now);
        self.in_flight.drain(..expired);
        if expired > 0 {
            // Or else a service that takes longer than a short lease would never have a probe that counts.
            self.lease = self.lease.saturating_mul(2).min(self.longest_lease);
        }
        expired
    }

    /// How many of them, from the first on, have no lease any more.
    fn expired(&self, now: Instant) -> usize {
        self.in_flight.partition_point(|probe| probe.expires <= now)
    }
}

impl Ramp {
    fn percent(&self) -> u8 {
        STEPS[self.step]
    }

    /// The ramp at a later moment; nothing when it is over.
    fn at(ramp: Option<Self>, now: Instant) -> Option<Self> {
        let mut ramp = ramp?;
        while now.saturating_duration_since(ramp.since) >= ramp.length {
            ramp.step += 1;
            if ramp.step == STEPS.len() {
                return None;
            }
            ramp.since = ramp.since + ramp.length;
            ramp.credit = 100 - ramp.percent();
        }
        Some(ramp)
    }

    fn takes(&mut self) -> bool {
        let credit = self.credit + self.percent();
        self.credit = credit % 100;
        credit >= 100
    }

    fn step_back(&mut self, now: Instant) {
        self.step = self.step.saturating_sub(1);
        self.since = now;
        self.credit = 100 - self.percent();
        self.failed = true;
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const BAD: Figures = Figures {
        calls: 20,
        failures: 20,
        slow: 0,
        in_a_row: 20,
    };

    struct Story {
        circuit: Circuit,
        rules: Rules,
        now: Instant,
        rng: StdRng,
        happened: Happened,
    }

    impl Story {
        fn new(rules: Rules) -> Self {
            let now = Instant::from_bits(1 << 50);
            Self {
                circuit: Circuit::new(now),
                rules,
                now,
                rng: StdRng::seed_from_u64(3),
                happened: Happened::default(),
            }
        }

        fn wait(&mut self, time: Duration) {
            self.now = self.now + time;
        }

        fn admit(&mut self) -> Option<Permit> {
            self.circuit
                .admit(self.now, &self.rules, &mut self.happened)
        }

        fn judge(&mut self, figures: Figures) {
            let Self {
                circuit,
                rules,
                now,
                rng,
                happened,
            } = self;
            circuit.judge(*now, rules, figures, None, rng, happened);
        }

        fn succeed(&mut self, permit: Permit) -> bool {
            let Self {
                circuit,
                rules,
                now,
                rng,
                happened,
            } = self;
            circuit.probe_succeeded(*now, rules, permit, false, rng, happened)
        }

        fn fail(&mut self, permit: Permit) -> bool {
            let Self {
                circuit,
                rules,
                now,
                rng,
                happened,
            } = self;
            circuit.probe_failed(*now, rules, permit, None, rng, happened)
        }

        /// Waits until the open time is over.
        fn sit_out(&mut self) -> Duration {
            let Phase::Open { until } = self.circuit.phase else {
                panic!("{:?}", self.circuit);
            };
            let left = until.saturating_duration_since(self.now);
            self.now = until;
            left
        }

        /// Opens, waits, and closes with three probes.
        fn recover(&mut self) {
            self.judge(BAD);
            self.sit_out();
            for _ in 0..3 {
                let permit = self.admit().unwrap();
                assert!(self.succeed(permit));
            }
            assert_eq!(self.circuit.state(), State::Closed);
        }

        /// The calls of 10,000 that are let through.
        fn share(&mut self) -> u32 {
            (0..10_000).map(|_| u32::from(self.admit().is_some())).sum()
        }
    }

    // promise: BR-17
    #[test]
    fn the_ramp_lets_its_shares_through() {
        let mut story = Story::new(Rules::default());
        story.recover();
        for share in [1_000, 2_500, 5_000, 10_000, 10_000] {
            assert_eq!(story.share(), share);
            story.wait(Duration::from_millis(1_250));
        }
        assert!(matches!(story.circuit.phase, Phase::Closed(None)));
        assert_eq!(
            story.circuit.outlook(&story.rules),
            Outlook::Pass,
            "the ramp takes no lock when it is over"
        );
    }

    // promise: BR-17
    #[test]
    fn a_failing_step_goes_back_by_one_and_a_second_failure_reopens() {
        for step in 0..4_u32 {
            let mut story = Story::new(Rules::default());
            story.recover();
            story.wait(Duration::from_millis(1_250) * step);
            let before = story.admit().unwrap();
            story.judge(BAD);
            assert_eq!(story.circuit.state(), State::Closed);
            assert_eq!(story.share(), [1_000, 1_000, 2_500, 5_000][step as usize]);
            assert!(
                before.generation < story.circuit.generation,
                "what is under way belongs to the step that failed"
            );
            story.wait(Duration::from_millis(1_250));
            assert_eq!(story.share(), [2_500, 2_500, 5_000, 10_000][step as usize]);
            story.judge(BAD);
            assert_eq!(story.circuit.state(), State::Open);
            assert_eq!(story.circuit.level, 2);
        }
    }

    // promise: BR-17
    #[test]
    fn a_step_that_is_gone_back_to_takes_its_full_time() {
        let mut story = Story::new(Rules::default());
        story.recover();
        story.wait(Duration::from_millis(1_250 + 600));
        story.judge(BAD);
        story.wait(Duration::from_millis(1_249));
        assert_eq!(story.share(), 1_000);
        story.wait(Duration::from_millis(1));
        assert_eq!(story.share(), 2_500);
    }

    // promise: BR-17
    #[test]
    fn a_ramp_that_was_slept_through_is_over() {
        let mut story = Story::new(Rules::default());
        story.recover();
        story.wait(Duration::from_secs(5));
        story.judge(BAD);
        assert_eq!(story.circuit.state(), State::Open);
        let mut flat = Story::new(Rules {
            ramp: false,
            ..Rules::default()
        });
        flat.recover();
        assert_eq!(flat.share(), 10_000);
    }

    // promise: BR-15
    #[test]
    fn the_open_time_grows_while_probes_fail_and_decays_while_all_is_well() {
        let mut story = Story::new(Rules {
            ramp: false,
            ..Rules::default()
        });
        story.judge(BAD);
        for full in [5, 10, 20, 40, 60, 60, 60] {
            let full = Duration::from_secs(full);
            let until = story.sit_out();
            assert!(until >= full / 2 && until <= full, "{until:?} of {full:?}");
            let permit = story.admit().unwrap();
            assert!(story.fail(permit));
        }
        story.sit_out();
        for _ in 0..3 {
            let permit = story.admit().unwrap();
            assert!(story.succeed(permit));
        }
        // 40 s without an opening take one back, and 20 s another.
        story.wait(Duration::from_mins(1));
        story.judge(BAD);
        let until = story.sit_out();
        assert!(until > Duration::from_secs(10) && until <= Duration::from_secs(20));
    }

    // promise: BR-15
    #[test]
    fn a_call_is_refused_to_the_last_and_admitted_at_the_drawn_time() {
        let mut story = Story::new(Rules::default());
        story.judge(BAD);
        let left = story.happened.transition.unwrap().open_for.unwrap();
        story.wait(left.saturating_sub(Duration::from_nanos(1)));
        assert_eq!(story.admit(), None);
        story.wait(Duration::from_nanos(1));
        assert!(story.admit().is_some());
        assert_eq!(story.admit(), None, "one probe at first");
    }

    // promise: BR-13
    #[test]
    fn a_thousand_stragglers_leave_half_open_as_it_is() {
        for failing in [true, false] {
            let mut story = Story::new(Rules::default());
            let stragglers: Vec<_> = (0..1_000).map(|_| story.admit().unwrap()).collect();
            story.judge(BAD);
            story.sit_out();
            let probe = story.admit().unwrap();
            for straggler in stragglers {
                assert!(
                    !(if failing {
                        story.fail(straggler)
                    } else {
                        story.succeed(straggler)
                    })
                );
            }
            assert_eq!(story.circuit.probes(story.now), (1, 0));
            assert!(story.succeed(probe));
            assert!(!story.succeed(probe), "a result counts once");
            assert_eq!(story.circuit.probes(story.now), (0, 1));
        }
    }

    // promise: BR-12
    #[test]
    fn a_probe_s_slot_returns_at_its_lease_and_its_result_is_stale() {
        let mut story = Story::new(Rules::default());
        story.judge(BAD);
        story.sit_out();
        let forgotten = story.admit().unwrap();
        // Twice the open time would be just as long.
        story.wait(Duration::from_nanos(9_999_999_999));
        assert_eq!(story.admit(), None);
        story.wait(Duration::from_nanos(1));
        let next = story.admit().unwrap();
        assert_eq!(story.happened.expired, 1);
        assert!(!story.fail(forgotten), "too late");
        assert_eq!(story.circuit.state(), State::HalfOpen);
        assert!(story.succeed(next));
        // Without anybody to notice, the lease is over too.
        let late = story.admit().unwrap();
        story.wait(Duration::from_secs(10));
        assert!(!story.succeed(late));
    }

    // promise: BR-12
    #[test]
    fn a_reset_between_two_probes_changes_neither_s_lease() {
        let mut story = Story::new(Rules {
            open_time: Duration::from_secs(1),
            in_flight: (2.try_into().unwrap(), 2.try_into().unwrap()),
            ..Rules::default()
        });
        story.judge(BAD);
        for _ in 0..2 {
            story.sit_out();
            let permit = story.admit().unwrap();
            assert!(story.fail(permit));
        }
        // The third opening: its lease is twice 4 s, and that of a first one is twice 1 s.
        story.sit_out();
        let first = story.admit().unwrap();
        story.circuit.reset();
        let second = story.admit().unwrap();
        story.wait(Duration::from_secs(8) - Duration::from_nanos(1));
        assert_eq!(story.admit(), None);
        assert_eq!(story.happened.expired, 0);
        assert!(story.succeed(first));
        story.wait(Duration::from_nanos(1));
        assert!(!story.succeed(second));
        assert_eq!(story.happened.expired, 1);
    }

    // promise: BR-26
    #[test]
    fn a_step_that_ends_as_the_breaker_opens_is_not_told() {
        let mut story = Story::new(Rules::default());
        story.recover();
        story.happened = Happened::default();
        story.judge(BAD);
        assert_eq!(story.happened.percent, Some(10), "it is told again");
        story.wait(Duration::from_millis(1_250));
        story.happened = Happened::default();
        story.judge(BAD);
        assert_eq!(story.happened.transition.unwrap().to, State::Open);
        assert_eq!(story.happened.percent, None, "it would be told last");
    }

    // promise: BR-9
    #[test]
    fn probes_that_succeed_slowly_do_not_close() {
        for (slow, state) in [(2, State::Closed), (3, State::Open)] {
            let mut story = Story::new(Rules {
                slow: Some((Duration::ZERO, crate::settings::Share::new(0.8))),
                ..Rules::default()
            });
            story.judge(BAD);
            story.sit_out();
            for number in 1..=3 {
                let permit = story.admit().unwrap();
                let Story {
                    circuit,
                    rules,
                    now,
                    rng,
                    happened,
                } = &mut story;
                assert!(circuit.probe_succeeded(
                    *now,
                    rules,
                    permit,
                    number <= slow,
                    rng,
                    happened
                ));
            }
            assert_eq!(story.circuit.state(), state, "{slow} of 3");
        }
    }

    // promise: BR-22
    #[test]
    fn a_reset_forgets_the_counts_of_every_state_and_keeps_the_state() {
        let mut story = Story::new(Rules::default());
        story.judge(BAD);
        story.circuit.reset();
        assert_eq!(
            (story.circuit.state(), story.circuit.level),
            (State::Open, 0)
        );
        story.sit_out();
        let first = story.admit().unwrap();
        assert!(story.succeed(first));
        let second = story.admit().unwrap();
        story.circuit.reset();
        assert_eq!(story.circuit.state(), State::HalfOpen);
        assert_eq!(
            story.circuit.probes(story.now),
            (1, 0),
            "a probe in flight is no count"
        );
        assert!(story.succeed(second));
        for _ in 0..2 {
            let permit = story.admit().unwrap();
            assert!(story.succeed(permit));
        }
        let before = story.admit().unwrap();
        story.circuit.reset();
        assert_eq!(story.circuit.state(), State::Closed);
        assert!(before.generation < story.circuit.generation);
    }

    // promise: BR-22
    #[test]
    fn a_reset_forgets_that_a_probe_was_slow() {
        let mut story = Story::new(Rules {
            slow: Some((Duration::ZERO, crate::settings::Share::new(0.3))),
            ..Rules::default()
        });
        story.judge(BAD);
        story.sit_out();
        let slow = story.admit().unwrap();
        let Story {
            circuit,
            rules,
            now,
            rng,
            happened,
        } = &mut story;
        assert!(circuit.probe_succeeded(*now, rules, slow, true, rng, happened));
        circuit.reset();
        for _ in 0..3 {
            let permit = story.admit().unwrap();
            assert!(story.succeed(permit));
        }
        assert_eq!(story.circuit.state(), State::Closed);
    }

    // promise: BR-13
    #[test]
    fn a_slot_of_another_half_open_era_is_none() {
        let mut story = Story::new(Rules::default());
        story.judge(BAD);
        story.sit_out();
        let old = story.admit().unwrap();
        story.circuit.force(story.now, true, &mut story.happened);
        story
            .circuit
            .release(story.now, &story.rules, &mut story.happened);
        story.wait(Duration::from_mins(1));
        story.judge(BAD);
        story.sit_out();
        let new = story.admit().unwrap();
        assert_eq!(old.probe, new.probe);
        for (permit, is_one) in [(old, false), (new, true)] {
            let has = story
                .circuit
                .has_probe(story.now, permit, &mut story.happened);
            assert_eq!(has, is_one);
        }
        assert!(!story.fail(old));
    }

    // promise: BR-22
    #[test]
    fn a_forced_state_is_left_by_release_alone() {
        for open in [true, false] {
            let mut story = Story::new(Rules::default());
            story.circuit.force(story.now, open, &mut story.happened);
            let forced = story.circuit.state();
            let number = story.circuit.number;
            story.judge(BAD);
            story.wait(Duration::from_hours(1_000));
            assert_eq!(story.admit().is_some(), !open);
            story.judge(BAD);
            story.circuit.reset();
            story.circuit.force(story.now, open, &mut story.happened);
            assert_eq!(story.circuit.state(), forced);
            assert_eq!(story.circuit.number, number, "nothing happens twice");
            story
                .circuit
                .release(story.now, &story.rules, &mut story.happened);
            assert_eq!(story.circuit.state(), State::Closed);
            assert_eq!(story.share(), if open { 1_000 } else { 10_000 });
        }
    }
}
