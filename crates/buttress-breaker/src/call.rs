//! One call, from the permit to the result: whatever becomes of it, the breaker hears of it exactly once.

use std::{mem, sync::Arc, time::Duration};

use buttress_core::{
    BoxError, Classify, Hint, Kind, Rejected, Verdict,
    clock::{self, Instant},
};

use crate::{Event, Outcome, ProbeResult, Reason, circuit::Permit, shared::Shared};

/// A call that was let through. Dropped before its end, it says so.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    permit: Permit,
    /// When it began; as a call that is over at once asks for no clock, when it first had to wait.
    started: Option<Instant>,
    stage: Stage,
    /// Did its head take too long?
    slow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The permit is held; there is no call yet.
    Reserved,
    /// The response is waited for.
    Waiting,
    /// The body of the response is waited for.
    Streaming,
    Over,
}

impl Call {
    /// Asks for a permit. In shadow mode a refusal is only told.
    pub(crate) fn begin(shared: &Arc<Shared>) -> Result<Self, Rejected> {
        match shared.admit() {
            Ok(permit) => Ok(Self::with(shared.clone(), permit)),
            Err(refusal) => {
                shared.tell_refused(refusal);
                if shared.settings.shadow {
                    Ok(Self::with(shared.clone(), Permit::UNCOUNTED))
                } else {
                    Err(shared.rejected(refusal))
                }
            }
        }
    }

    pub(crate) fn with(shared: Arc<Shared>, permit: Permit) -> Self {
        Self {
            shared,
            permit,
            started: None,
            stage: Stage::Reserved,
            slow: false,
        }
    }

    /// Does the probe's slot that was taken before the call still stand?
    pub(crate) fn is_good(&self) -> bool {
        self.shared.renew(self.permit)
    }

    /// Runs code of the service. If it panics, the call has failed.
    pub(crate) fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        /// Forgotten, unless it is dropped by a panic.
        struct Watch<'a>(&'a mut Call);

        impl Drop for Watch<'_> {
            fn drop(&mut self) {
                self.0.end(Outcome::Failure, Reason::Panic, None);
            }
        }

        let watch = Watch(self);
        let done = work();
        mem::forget(watch);
        done
    }

    /// The call begins.
    pub(crate) fn start(&mut self) {
        self.stage = Stage::Waiting;
        if self.shared.settings.rules.slow.is_some() {
            self.started = Some(clock::now());
        }
    }

    /// The response is not there yet.
    pub(crate) fn wait(&mut self) {
        if self.started.is_none() {
            self.started = Some(clock::now());
        }
    }

    /// The head of the response has come: a call whose body is waited for is slow or not by now.
    pub(crate) fn head(&mut self) {
        if let Some((threshold, _)) = self.shared.settings.rules.slow {
            self.slow = self.passed() > threshold;
        }
    }

    /// The body of the response is waited for.
    pub(crate) fn stream(&mut self) {
        self.stage = Stage::Streaming;
    }

    /// The call has come to this.
    pub(crate) fn judged(&mut self, verdict: Verdict, reason: Reason) {
        let outcome = match verdict.kind {
            Kind::Success => Outcome::Success,
            Kind::Transient => Outcome::Failure,
            Kind::Throttled if self.shared.settings.throttling_fails => Outcome::Failure,
            Kind::Throttled | Kind::Permanent | Kind::Ignored => Outcome::Ignored,
        };
        let hint = match verdict.hint {
            Hint::After(time) | Hint::Pushback(time) => Some(time),
            Hint::None | Hint::Never => None,
        };
        self.end(outcome, reason, hint);
    }

    pub(crate) fn end(&mut self, outcome: Outcome, reason: Reason, hint: Option<Duration>) {
        self.stage = Stage::Over;
        let (shared, permit, slow) = (&self.shared, self.permit, self.slow);
        let counted = permit != Permit::UNCOUNTED
            && match outcome {
                Outcome::Success => shared.succeeded(permit, slow),
                Outcome::Failure => shared.failed(permit, slow, hint),
                Outcome::Ignored | Outcome::Cancelled => shared.give_back(permit),
            };
        if shared.settings.events.is_empty() {
            return;
        }
        if permit.probe != 0 {
            shared.tell_probe(match outcome {
                _ if !counted => ProbeResult::Stale,
                Outcome::Success => ProbeResult::Ok,
                Outcome::Failure => ProbeResult::Failed,
                Outcome::Ignored => ProbeResult::Ignored,
                Outcome::Cancelled => ProbeResult::Cancelled,
            });
        }
        shared.settings.events.emit(&Event::Call {
            outcome,
            reason,
            slow,
            counted: counted && matches!(outcome, Outcome::Success | Outcome::Failure),
            key: shared.key.clone(),
        });
    }

    fn passed(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| {
            clock::now().saturating_duration_since(started)
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        match self.stage {
            Stage::Over => {}
            Stage::Reserved => {
                if self.shared.give_back(self.permit) && self.permit.probe != 0 {
                    self.shared.tell_probe(ProbeResult::Cancelled);
                }
            }
            Stage::Waiting if self.passed() > self.shared.settings.patience() => {
                self.head();
                self.end(Outcome::Failure, Reason::Patience, None);
            }
            Stage::Waiting | Stage::Streaming => {
                self.end(Outcome::Cancelled, Reason::Dropped, None);
            }
        }
    }
}

/// Judges an error. A refusal of a layer below says nothing of the service, whatever the classifier makes of it.
pub(crate) fn judge_error<Res>(classifier: &impl Classify<Res>, error: &BoxError) -> Verdict {
    match Rejected::find(&**error) {
        Some(rejected) => rejected.verdict(),
        None => classifier.classify(Err(error)),
    }
}
