//! One call, from the permit to the result: whatever becomes of it, the breaker hears of it exactly once.

use std::{mem, sync::Arc, time::Duration};

use buttress_core::{
    BoxError, Classify, Hint, Kind, Rejected, Verdict,
    clock::{self, Instant},
};

use crate::{Outcome, ProbeResult, Reason, circuit::Permit, shared::Shared};

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
    /// Makes the call that the permit is for. If the service panics, it has failed.
    ///
    /// The call is put together when its future is there: it would be moved otherwise, which takes longer than the rest.
    #[inline]
    pub(crate) fn make<F>(
        shared: &Arc<Shared>,
        permit: Permit,
        make: impl FnOnce() -> F,
    ) -> (F, Self) {
        /// Forgotten, unless it is dropped by a panic.
        struct Watch<'a>(&'a Shared, Permit);

        impl Drop for Watch<'_> {
            #[inline]
            fn drop(&mut self) {
                let outcome = Outcome::Failure;
                self.0.end(self.1, false, outcome, Reason::Panic, None);
            }
        }

        let watch = Watch(shared, permit);
        let started = (!shared.plain).then(|| shared.begun()).flatten();
        let future = make();
        mem::forget(watch);
        let call = Self {
            shared: shared.clone(),
            permit,
            started,
            stage: Stage::Waiting,
            slow: false,
        };
        (future, call)
    }

    /// The permit, to make the call with.
    pub(crate) fn into_permit(mut self) -> Permit {
        self.stage = Stage::Over;
        self.permit
    }

    /// Holds a permit for a call that is yet to be made.
    pub(crate) fn reserved(shared: Arc<Shared>, permit: Permit) -> Self {
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
    #[inline]
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

    /// The response is not there yet.
    #[inline(never)]
    pub(crate) fn wait(&mut self) {
        if self.started.is_none() {
            self.started = Some(clock::now());
        }
    }

    /// The head of the response has come, or never will: by now the call is slow or not.
    fn head(&mut self) {
        if let Some((threshold, _)) = self.shared.settings.rules.slow
            && self.stage == Stage::Waiting
        {
            self.slow = self.passed() > threshold;
        }
    }

    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// The body of the response is waited for.
    pub(crate) fn stream(&mut self) {
        self.head();
        self.stage = Stage::Streaming;
    }

    /// The call has come to this.
    #[inline]
    pub(crate) fn judged(&mut self, verdict: Verdict, reason: Reason) {
        // The short way for most calls.
        if verdict.kind == Kind::Success && self.shared.succeeded_plainly(self.permit) {
            self.stage = Stage::Over;
        } else {
            self.judged_otherwise(verdict, reason);
        }
    }

    #[inline(never)]
    fn judged_otherwise(&mut self, verdict: Verdict, reason: Reason) {
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
        // A future or body that is polled again after its panic panics again, or even ends.
        if self.stage == Stage::Over {
            return;
        }
        self.head();
        self.stage = Stage::Over;
        self.shared
            .end(self.permit, self.slow, outcome, reason, hint);
    }

    fn passed(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| {
            clock::now().saturating_duration_since(started)
        })
    }

    /// There is an error in place of a response, or of the rest of one. A refusal of a layer below says nothing of the
    /// service, whatever the classifier makes of it.
    #[inline(never)]
    pub(crate) fn fail<Res>(
        &mut self,
        classifier: &impl Classify<Res>,
        error: &BoxError,
        reason: Reason,
    ) {
        let verdict = match Rejected::find(&**error) {
            Some(rejected) => rejected.verdict(),
            None => classifier.classify(Err(error)),
        };
        self.judged_otherwise(verdict, reason);
    }

    #[inline(never)]
    fn dropped(&mut self) {
        match self.stage {
            Stage::Over => {}
            Stage::Reserved => {
                if self.shared.give_back(self.permit) && self.permit.probe != 0 {
                    self.shared.tell_probe(ProbeResult::Cancelled);
                }
            }
            Stage::Waiting if self.passed() > self.shared.settings.patience() => {
                self.end(Outcome::Failure, Reason::Patience, None);
            }
            Stage::Waiting | Stage::Streaming => {
                self.end(Outcome::Cancelled, Reason::Dropped, None);
            }
        }
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        if self.stage != Stage::Over {
            self.dropped();
        }
    }
}
