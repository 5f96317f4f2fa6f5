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
#[derive(Debug, Default)]
pub(crate) struct Probes {
    pub(crate) in_flight: VecDeque<Probe>,
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
#[derive(Debug)]
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
            self.turn(
                Phase::HalfOpen(Probes::default()),
                Cause::OpenTimeOver,
                now,
                happened,
            );
        }
        self.tick(now, happened);
        let generation = self.generation;
        let probe = match &mut self.phase {
            Phase::Closed(None) | Phase::ForcedClosed => 0,
            Phase::Closed(Some(ramp)) => ramp.takes().then_some(0)?,
            Phase::HalfOpen(probes) if probes.free(rules) > 0 => {
                probes.begin(now + rules.lease(self.level.saturating_sub(1)))
            }
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
            _ => {
                self.level = rules.forgive(self.level, now.saturating_duration_since(self.since));
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

    /// The probes in flight, and those that have succeeded.
    pub(crate) fn probes(&self) -> (u32, u32) {
        match &self.phase {
            Phase::HalfOpen(probes) => (figure(probes.in_flight.len() as u64), probes.succeeded),
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

    /// The percentage of calls that is let through.
    pub(crate) fn percent(&self) -> u8 {
        match &self.phase {
            Phase::Closed(ramp) => ramp.as_ref().map_or(100, Ramp::percent),
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
        happened.percent = ramp.as_ref().map(Ramp::percent);
        self.turn(Phase::Closed(ramp), cause, now, happened);
    }

    fn turn(&mut self, phase: Phase, cause: Cause, now: Instant, happened: &mut Happened) {
        let from = self.state();
        self.phase = phase;
        self.generation += 1;
        self.since = now;
        self.cause = cause;
        self.number += 1;
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
    /// How many more may be in flight.
    fn free(&self, rules: &Rules) -> usize {
        let (first, then) = rules.in_flight;
        let most = if self.succeeded == 0 { first } else { then };
        (most.get() as usize).saturating_sub(self.in_flight.len())
    }

    fn begin(&mut self, expires: Instant) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
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
        let expired = self.in_flight.partition_point(|probe| probe.expires <= now);
        self.in_flight.drain(..expired);
        expired
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
