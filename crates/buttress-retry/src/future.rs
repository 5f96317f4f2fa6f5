//! The future of a call: attempts, and what lies between them.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use buttress_core::{
    Applied, BoxError, Classify, Kind, Rejected, Verdict,
    clock::{self, Instant},
    sync::lock,
};
use pin_project::pin_project;
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use crate::{
    Cause, DelaySource, Event, Outcome,
    budget::Payment,
    layer::{Base, Shared},
    policy::{Decision, Progress},
    replay::{Attempt, KeyMaker, Plan, Replay, Settle},
};

/// The response of a [`Retry`](crate::Retry) service, after as many attempts as it takes.
///
/// It may be dropped at any time: the attempt under way is dropped with it, nothing more is sent, and the budget gets back
/// what it paid for a retry that was not sent.
#[pin_project]
#[must_use = "a call does nothing until its future is polled"]
pub struct ResponseFuture<Req, S, C, R>
where
    R: Replay<Req> + Settle<S::Response>,
    S: Service<R::Request>,
{
    #[pin]
    state: State<S, S::Future, R::Draining>,
    /// Ends the state early, or is the whole of it.
    #[pin]
    timer: Timer,
    call: Call<S, C, R, R::Copy, R::Response>,
}

/// A time limit. To make tokio's timer costs more than all the rest of a call that succeeds at once, so it is made only
/// when there is something to wait for.
#[pin_project(project = TimerProj)]
enum Timer {
    /// It never fires.
    Off,
    /// It fires at this moment; nobody has waited for it yet.
    Set(Instant),
    Running(#[pin] Sleep),
}

impl Timer {
    fn after(now: Instant, limit: Option<Duration>) -> Self {
        limit.map_or(Self::Off, |limit| Self::Set(now + limit))
    }

    fn of(limit: Option<Duration>) -> Self {
        limit.map_or(Self::Off, |limit| Self::Running(sleep(limit)))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Set(at) = *self {
            let left = at.saturating_duration_since(clock::now());
            self.set(Self::Running(sleep(left)));
        }
        match self.project() {
            TimerProj::Running(timer) => timer.poll(cx),
            TimerProj::Off | TimerProj::Set(_) => Poll::Pending,
        }
    }
}

#[pin_project(project = StateProj)]
enum State<S, F, D> {
    /// An attempt is under way; the timer is its limit.
    Attempting(#[pin] F),
    /// A response that is retried is read to its end; the timer is the limit for that.
    Draining(Option<Box<D>>),
    /// The timer is the backoff.
    Sleeping,
    /// The service below gets ready for another attempt; the timer is the end of the call's time.
    Readying(S),
    /// The call's time was over before it began.
    Late,
    Ended,
}

/// What a call knows beyond its attempts. What only a retry needs is in boxes: the future of a call that succeeds at
/// once is to be small. Dropped before its end, it gives back what it holds and says so.
pub(crate) struct Call<S, C, R, Copy, Res> {
    base: Arc<Base<S, C, R>>,
    plan: Plan,
    /// What another attempt sends, or why there is none.
    again: Result<Copy, Outcome>,
    key: Option<u64>,
    deadline: Option<Instant>,
    progress: Progress,
    sends: u32,
    /// What the last retry has cost.
    payment: Option<Payment>,
    /// When the backoff ends, while it lasts: the retry that was paid for has not been sent.
    wake_at: Option<Instant>,
    /// Is the server to see the retry at that moment, and no later?
    exact: bool,
    /// The last real outcome, for the case that nothing better comes.
    last: Option<Box<Result<Res, BoxError>>>,
    /// Does it say that nothing was sent? Then it must not stand for a later attempt, which was sent.
    last_unsent: bool,
    ended: bool,
}

/// What an attempt came to, in short.
struct Ended {
    cause: Cause,
    verdict: Verdict,
}

enum Next {
    Retry,
    Stop(Outcome),
}

impl<S, C, R, Copy, Res> Call<S, C, R, Copy, Res> {
    fn time_left(&self) -> Option<Duration> {
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(clock::now()))
    }

    fn is_over(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline <= clock::now())
    }

    fn next_attempt(&self) -> Attempt {
        Attempt {
            number: self.progress.retries.saturating_add(1),
            max: self.base.shared.policy.max_retries.saturating_add(1),
        }
    }

    /// The timer of the next attempt.
    fn attempt_timer(&self) -> Timer {
        let policy = &self.base.shared.policy;
        Timer::of(policy.attempt_limit(self.progress.retries, self.time_left()))
    }

    fn backoff_left(&self) -> Option<Duration> {
        self.wake_at
            .map(|wake_at| wake_at.saturating_duration_since(clock::now()))
    }

    /// The timer of the backoff, if any of it is left.
    fn backoff_timer(&self) -> Timer {
        Timer::of(self.backoff_left().filter(|left| !left.is_zero()))
    }

    /// How long the rest of a response may be read before it is given up.
    fn drain_time(&self, most: Duration) -> Duration {
        let backoff = self.backoff_left().filter(|_| self.exact);
        let limits = [self.time_left(), backoff];
        limits.into_iter().flatten().fold(most, Duration::min)
    }

    /// Gives back what a retry has cost that was not sent.
    fn give_back(&mut self) {
        if let (Some(payment), Some(key)) = (self.payment.take(), self.key) {
            self.base.shared.pool.give_back(key, payment);
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.ended = true;
        self.again = Err(outcome);
        self.base.shared.events.emit(&Event::Finished {
            outcome,
            sends: self.sends,
        });
    }

    /// Ends a call whose retry was paid for, but not sent.
    fn give_up(&mut self, outcome: Outcome, error: BoxError) -> Result<Res, BoxError> {
        self.give_back();
        self.end(outcome);
        self.last.take().map_or(Err(error), |last| *last)
    }
}

impl<S, C, R, Copy, Res> Call<S, C, R, Copy, Res> {
    /// Judges a response.
    fn judge_response<Req>(&self, response: &S::Response) -> Ended
    where
        R: Replay<Req, Copy = Copy> + Settle<S::Response, Response = Res>,
        C: Classify<S::Response>,
        S: Service<R::Request>,
    {
        let Shared {
            classifier, replay, ..
        } = &self.base.shared;
        let mut verdict = classifier.classify(Ok(response));
        if verdict.kind != Kind::Success
            && let Ok(copy) = &self.again
        {
            verdict = replay.review(replay.special(copy), response, verdict);
        }
        Ended {
            cause: Cause::Response(replay.status(response)),
            verdict,
        }
    }

    /// Judges an attempt that came to no response.
    fn judge_error<Res2>(&self, error: &BoxError, timed_out: bool) -> Ended
    where
        C: Classify<Res2>,
    {
        const MAYBE: Verdict = Verdict::new(Kind::Transient, Applied::Maybe);
        let Shared {
            classifier, policy, ..
        } = &self.base.shared;
        let (cause, verdict) = if timed_out {
            (Cause::TimedOut, MAYBE)
        } else if let Some(rejected) = Rejected::find(&**error) {
            let mut verdict = rejected.verdict();
            if policy.retry_refusals {
                verdict.kind = Kind::Transient;
            }
            (Cause::Refused, verdict)
        } else {
            (Cause::Error, classifier.classify(Err(error)))
        };
        Ended { cause, verdict }
    }

    /// Decides what follows, and pays for it. For a success, as most calls are, there is little to decide.
    #[inline]
    fn next<Req>(&mut self, ended: &Ended) -> Next
    where
        R: Replay<Req, Copy = Copy>,
    {
        if ended.verdict.kind == Kind::Success {
            self.pay_in::<Req>();
            return Next::Stop(self.progress.succeeded());
        }
        self.next_after_failure(ended)
    }

    fn next_after_failure<Req>(&mut self, ended: &Ended) -> Next
    where
        R: Replay<Req, Copy = Copy>,
    {
        let Ended { cause, verdict } = *ended;
        let left = self.time_left();
        match cause {
            Cause::Refused => {
                self.give_back();
                if verdict.kind == Kind::Ignored {
                    return Next::Stop(Outcome::Refused);
                }
            }
            Cause::TimedOut if left.is_some_and(|left| left.is_zero()) => {
                return Next::Stop(Outcome::Deadline);
            }
            _ => {}
        }

        let base = self.base.clone();
        let Shared {
            policy,
            replay,
            pool,
            seeded,
            events,
            ..
        } = &base.shared;
        let tunnel = self
            .again
            .as_ref()
            .is_ok_and(|copy| replay.special(copy).tunnel);
        let idempotent = self.plan.idempotent && !tunnel;
        let decision = match seeded {
            Some(rng) => policy.decide(
                &mut self.progress,
                verdict,
                idempotent,
                left,
                &mut *lock(rng),
            ),
            None => policy.decide(
                &mut self.progress,
                verdict,
                idempotent,
                left,
                &mut rand::rng(),
            ),
        };
        let (delay, source, throttled) = match decision {
            Decision::Retry {
                delay,
                source,
                throttled,
            } => (delay, source, throttled),
            Decision::Stop(outcome) => return Next::Stop(outcome),
        };
        let copy = match &self.again {
            Ok(copy) => copy,
            Err(reason) => return Next::Stop(*reason),
        };
        if !replay.is_whole(copy) {
            return Next::Stop(Outcome::BodyNotReplayable);
        }
        let key = *self
            .key
            .get_or_insert_with(|| replay.key_of_copy(copy, &KeyMaker(pool)));
        let Some(payment) = pool.withdraw(key, throttled) else {
            return Next::Stop(Outcome::Budget);
        };
        self.payment = Some(payment);
        self.wake_at = Some(clock::now() + delay);
        self.exact = source == DelaySource::Pushback;
        events.emit(&Event::Retry {
            number: self.progress.retries,
            delay,
            source,
            cause,
            verdict,
        });
        Next::Retry
    }

    /// An attempt came to no response: the end of the call, or nothing where a backoff follows.
    fn failed<Req>(&mut self, error: BoxError, timed_out: bool) -> Option<Result<Res, BoxError>>
    where
        R: Replay<Req, Copy = Copy> + Settle<S::Response, Response = Res>,
        C: Classify<S::Response>,
        S: Service<R::Request>,
    {
        let ended = self.judge_error(&error, timed_out);
        let next = self.next(&ended);
        // What this side made up is no better than what a server said, but it may have been applied.
        let real = match ended.cause {
            Cause::Refused => false,
            Cause::TimedOut => self.last_unsent,
            _ => true,
        };
        if let Next::Stop(outcome) = next {
            self.end(outcome);
            let last = self.last.take().filter(|_| !real);
            return Some(last.map_or(Err(error), |last| *last));
        }
        if self.last.is_none() || real {
            self.last = Some(Box::new(Err(error)));
            self.last_unsent = ended.verdict.applied == Applied::No;
        }
        self.reclaim()
    }

    /// A response was read before its backoff, as far as that was worth it.
    fn drained<Req>(&mut self, response: Option<Res>) -> Option<Result<Res, BoxError>>
    where
        R: Replay<Req, Copy = Copy>,
    {
        self.last = response.map(|response| Box::new(Ok(response)));
        self.last_unsent = false;
        // Not before: an answer that comes during the upload may need it to go on.
        self.reclaim()
    }

    /// Takes the body back from the attempt that is over. If that has read more than can be kept, the call is over too.
    fn reclaim<Req>(&mut self) -> Option<Result<Res, BoxError>>
    where
        R: Replay<Req, Copy = Copy>,
    {
        let again = self.again.as_ref();
        if again.is_ok_and(|copy| self.base.shared.replay.reclaim(copy)) {
            return None;
        }
        Some(self.give_up(Outcome::BodyNotReplayable, TimedOut.into()))
    }

    /// A success pays in for retries to come.
    fn pay_in<Req>(&mut self)
    where
        R: Replay<Req, Copy = Copy>,
    {
        let Shared { replay, pool, .. } = &self.base.shared;
        if pool.is_full() {
            return;
        }
        let key = match (&self.key, &self.again) {
            (Some(key), _) => *key,
            (None, Ok(copy)) => replay.key_of_copy(copy, &KeyMaker(pool)),
            (None, Err(_)) => return,
        };
        pool.succeeded(key, self.payment.take());
    }
}

impl<S, C, R, Copy, Res> Drop for Call<S, C, R, Copy, Res> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if self.wake_at.is_some() {
            self.give_back();
        }
        self.end(Outcome::Cancelled);
    }
}

impl<Req, S, C, R> ResponseFuture<Req, S, C, R>
where
    R: Replay<Req> + Settle<S::Response>,
    S: Service<R::Request>,
{
    /// A call whose first attempt is under way.
    pub(crate) fn begun(
        attempt: S::Future,
        base: Arc<Base<S, C, R>>,
        plan: Plan,
        key: Option<u64>,
        again: Result<R::Copy, Outcome>,
    ) -> Self {
        Self::new(State::Attempting(attempt), 1, base, plan, key, again)
    }

    /// A call whose time was over before it began.
    pub(crate) fn late(base: Arc<Base<S, C, R>>, plan: Plan) -> Self {
        Self::new(State::Late, 0, base, plan, None, Err(Outcome::Deadline))
    }

    fn new(
        state: State<S, S::Future, R::Draining>,
        sends: u32,
        base: Arc<Base<S, C, R>>,
        plan: Plan,
        key: Option<u64>,
        again: Result<R::Copy, Outcome>,
    ) -> Self {
        let policy = &base.shared.policy;
        let outer = plan.deadline.map(|deadline| deadline.0);
        let mut deadline = outer;
        let mut timer = Timer::Off;
        // A call without limits needs no look at the clock.
        if outer.is_some() || policy.deadline.is_some() || policy.attempt_timeout.is_some() {
            let now = clock::now();
            if let Some(own) = policy.deadline.map(|deadline| now + deadline) {
                deadline = Some(outer.map_or(own, |outer| own.min(outer)));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
            timer = Timer::after(now, policy.attempt_limit(0, left));
        }
        // In one piece, so that it is made where it is needed: it is too large to be moved for nothing.
        Self {
            state,
            timer,
            call: Call {
                base,
                plan,
                again,
                key,
                deadline,
                progress: Progress::default(),
                sends,
                payment: None,
                wake_at: None,
                exact: false,
                last: None,
                last_unsent: false,
                ended: false,
            },
        }
    }
}

impl<Req, S, C, R> ResponseFuture<Req, S, C, R>
where
    R: Replay<Req> + Settle<S::Response>,
    C: Classify<S::Response>,
    S: Service<R::Request, Error: Into<BoxError>> + Clone,
{
    /// Goes from the end of an attempt to the next one, or to the end of the call, which it returns.
    fn poll_between(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<R::Response, BoxError>>> {
        let mut this = self.project();
        let call = this.call;
        loop {
            match this.state.as_mut().project() {
                StateProj::Attempting(_) => return Poll::Ready(None),
                StateProj::Draining(draining) => {
                    if let Some(body) = draining
                        && R::poll_drain(body, cx).is_pending()
                    {
                        if matches!(*this.timer, Timer::Off) {
                            let limit = call.drain_time(call.base.shared.replay.drain_time());
                            this.timer.set(Timer::of(Some(limit)));
                        }
                        ready!(this.timer.as_mut().poll(cx));
                    }
                    let drained = draining.take().map(|draining| R::drained(*draining));
                    this.state.set(State::Sleeping);
                    if let Some(end) = call.drained(drained) {
                        this.state.set(State::Ended);
                        return Poll::Ready(Some(end));
                    }
                    this.timer.set(call.backoff_timer());
                }
                StateProj::Sleeping => {
                    if !matches!(*this.timer, Timer::Off) {
                        ready!(this.timer.as_mut().poll(cx));
                    }
                    this.timer.set(Timer::of(call.time_left()));
                    let service = lock(&call.base.service).clone();
                    this.state.set(State::Readying(service));
                }
                StateProj::Readying(service) => {
                    let (attempt, over) = (call.next_attempt(), call.is_over());
                    let Ok(copy) = &mut call.again else {
                        unreachable!("a retry has what it needs")
                    };
                    let (outcome, error) = match service.poll_ready(cx) {
                        _ if over => (Outcome::Deadline, TimedOut.into()),
                        Poll::Ready(Ok(())) => {
                            let request = call.base.shared.replay.send_again(copy, attempt);
                            call.wake_at = None;
                            call.sends += 1;
                            let attempt = service.call(request);
                            this.timer.set(call.attempt_timer());
                            this.state.set(State::Attempting(attempt));
                            return Poll::Ready(None);
                        }
                        Poll::Ready(Err(error)) => (Outcome::Refused, error.into()),
                        Poll::Pending => {
                            ready!(this.timer.as_mut().poll(cx));
                            (Outcome::Deadline, TimedOut.into())
                        }
                    };
                    this.state.set(State::Ended);
                    this.timer.set(Timer::Off);
                    return Poll::Ready(Some(call.give_up(outcome, error)));
                }
                StateProj::Late => {
                    this.state.set(State::Ended);
                    call.end(Outcome::Deadline);
                    return Poll::Ready(Some(Err(TimedOut.into())));
                }
                StateProj::Ended => panic!("a future was polled after it had ended"),
            }
        }
    }
}

impl<Req, S, C, R> Future for ResponseFuture<Req, S, C, R>
where
    R: Replay<Req> + Settle<S::Response>,
    C: Classify<S::Response>,
    S: Service<R::Request, Error: Into<BoxError>> + Clone,
{
    type Output = Result<R::Response, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            let call = this.call;
            if let StateProj::Attempting(attempt) = this.state.as_mut().project() {
                let (error, timed_out) = match attempt.poll(cx) {
                    Poll::Ready(Ok(response)) => {
                        this.state.set(State::Ended);
                        this.timer.set(Timer::Off);
                        let ended = call.judge_response(&response);
                        let next = call.next(&ended);
                        if let Next::Stop(outcome) = next {
                            call.end(outcome);
                            return Poll::Ready(Ok(call.base.shared.replay.pass(response)));
                        }
                        let draining = Box::new(call.base.shared.replay.drain(response));
                        this.state.set(State::Draining(Some(draining)));
                        continue;
                    }
                    Poll::Ready(Err(error)) => (error.into(), false),
                    Poll::Pending => {
                        ready!(this.timer.as_mut().poll(cx));
                        (TimedOut.into(), true)
                    }
                };
                this.state.set(State::Ended);
                this.timer.set(Timer::Off);
                if let Some(end) = call.failed(error, timed_out) {
                    return Poll::Ready(end);
                }
                this.timer.set(call.backoff_timer());
                this.state.set(State::Sleeping);
            }
            if let Some(end) = ready!(self.as_mut().poll_between(cx)) {
                return Poll::Ready(end);
            }
        }
    }
}

impl<Req, S, C, R> fmt::Debug for ResponseFuture<Req, S, C, R>
where
    R: Replay<Req> + Settle<S::Response>,
    S: Service<R::Request>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("sends", &self.call.sends)
            .finish_non_exhaustive()
    }
}

/// The error of a call that a time limit has ended, its own or that of its attempts, and that has no better outcome.
///
/// The request may have been applied, unless the call's time was over before it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no response came within the time limit")
    }
}

impl Error for TimedOut {}
