//! The same scenario over tower's own layer and over ours, on a clock that stands still: what both promise is the same to the
//! millisecond. Where they promise something else, it says so here.

use std::{
    env,
    error::Error,
    fmt,
    future::{self, Future},
    num::NonZeroU32,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use buttress::{
    Applied, BoxError, Kind, Verdict,
    clock::{self, Instant},
    rate_limit::{Quota, RateLimitLayer},
    retry::{Backoff, Budget, RetryLayer},
};
use futures_util::future::join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Sleep, sleep, timeout};
use tower::{
    Layer, Service, ServiceExt,
    buffer::Buffer,
    limit::{RateLimit, rate::Rate},
    retry::{Policy, Retry},
};

fn size(full: u64, usual: u64) -> u64 {
    env::var_os("BUTTRESS_FULL").map_or(usual, |_| full)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What was seen, each with its millisecond.
#[derive(Clone, Debug)]
struct Seen<T> {
    start: Instant,
    all: Arc<Mutex<Vec<(u128, T)>>>,
}

impl<T> Seen<T> {
    fn new() -> Self {
        Self {
            start: clock::now(),
            all: Arc::default(),
        }
    }

    fn see(&self, what: T) {
        let time = clock::now().saturating_duration_since(self.start);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((time.as_millis(), what));
    }

    fn take(&self) -> Vec<(u128, T)> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *all)
    }
}

// The retries
//
// Both send a request again as often as they may, after the same pause, once the service is ready for it, and hand the last
// outcome on. They promise something else in this, and it is left out:
//
// - Whoever gives up: with tower's a service that fails while it gets ready ends the call with that error, with ours with the
//   last real outcome.
// - The pause: tower's backoff draws from its own distribution. Here it is constant.
// - The budget: tower's has a floor of so many retries a second, ours has none. Here there is no budget.

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answer(Judged),
    Error(Judged),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Good,
    MayPass,
    IsFinal,
}

/// An attempt: how long the service takes to get ready, and to answer, and what.
#[derive(Clone, Copy, Debug)]
struct Step {
    to_ready: Duration,
    to_answer: Duration,
    outcome: Outcome,
}

#[derive(Debug)]
struct Failure(Judged);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Error for Failure {}

/// What a call is to meet.
#[derive(Clone, Debug)]
struct Scenario {
    max_retries: u32,
    backoff: Duration,
    steps: Vec<Step>,
    /// When the caller has had enough.
    dropped_after: Option<Duration>,
}

impl Scenario {
    fn random(rng: &mut StdRng) -> Self {
        let max_retries = rng.random_range(0..=4);
        let mut time = |most: u64| match rng.random_range(0..3) {
            0 => Duration::ZERO,
            _ => millis(rng.random_range(1..=most)),
        };
        let backoff = time(200);
        let steps = (0..=max_retries).map(|_| (time(50), time(100)));
        let steps: Vec<_> = steps.collect();
        let steps = steps.into_iter().map(|(to_ready, to_answer)| {
            let judged = match rng.random_range(0..10) {
                0 => Judged::IsFinal,
                1 | 2 => Judged::Good,
                _ => Judged::MayPass,
            };
            let is_error = judged != Judged::Good && rng.random();
            Step {
                to_ready,
                to_answer,
                outcome: if is_error {
                    Outcome::Error(judged)
                } else {
                    Outcome::Answer(judged)
                },
            }
        });
        Self {
            max_retries,
            backoff,
            steps: steps.collect(),
            dropped_after: rng
                .random_ratio(1, 3)
                .then(|| millis(rng.random_range(0..500))),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Sent,
    /// The service was dropped while it answered.
    Abandoned,
    Ended(Outcome),
    Dropped,
}

/// A service that goes by the steps. A clone has to get ready by itself.
struct Scripted {
    steps: Arc<[Step]>,
    seen: Seen<Event>,
    turn: Arc<Mutex<usize>>,
    timer: Option<Pin<Box<Sleep>>>,
    is_ready: bool,
}

impl Scripted {
    fn step(&self) -> Step {
        let turn = *self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.steps[turn]
    }
}

impl Clone for Scripted {
    fn clone(&self) -> Self {
        Self {
            steps: self.steps.clone(),
            seen: self.seen.clone(),
            turn: self.turn.clone(),
            timer: None,
            is_ready: false,
        }
    }
}

/// Tells that it was dropped before its end.
struct Watch(Option<Seen<Event>>);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(seen) = &self.0 {
            seen.see(Event::Abandoned);
        }
    }
}

impl Service<u32> for Scripted {
    type Response = Judged;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Judged, BoxError>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if !self.is_ready {
            let to_ready = self.step().to_ready;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(to_ready)));
            ready!(timer.as_mut().poll(cx));
            (self.timer, self.is_ready) = (None, true);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "it was not ready");
        assert_eq!(request, 7);
        let step = self.step();
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.seen.see(Event::Sent);
        let watch = Watch(Some(self.seen.clone()));
        Box::pin(async move {
            let mut watch = watch;
            sleep(step.to_answer).await;
            watch.0.take();
            match step.outcome {
                Outcome::Answer(judged) => Ok(judged),
                Outcome::Error(judged) => Err(Failure(judged).into()),
            }
        })
    }
}

fn judged(result: Result<&Judged, &BoxError>) -> Judged {
    match result {
        Ok(judged) => *judged,
        Err(error) => error.downcast_ref::<Failure>().expect("it is one").0,
    }
}

fn classify(result: Result<&Judged, &BoxError>) -> Verdict {
    match judged(result) {
        Judged::Good => Verdict::SUCCESS,
        Judged::MayPass => Verdict::new(Kind::Transient, Applied::Maybe),
        Judged::IsFinal => Verdict::new(Kind::Permanent, Applied::Maybe),
    }
}

/// The policy of tower that does the same.
#[derive(Clone, Debug)]
struct Same {
    retries_left: u32,
    backoff: Duration,
}

impl Policy<u32, Judged, BoxError> for Same {
    type Future = Sleep;

    fn retry(&mut self, _: &mut u32, result: &mut Result<Judged, BoxError>) -> Option<Sleep> {
        if judged(result.as_ref()) != Judged::MayPass {
            return None;
        }
        self.retries_left = self.retries_left.checked_sub(1)?;
        Some(sleep(self.backoff))
    }

    fn clone_request(&mut self, request: &u32) -> Option<u32> {
        Some(*request)
    }
}

/// What is seen of one call.
async fn observe<S>(scenario: &Scenario, layer: impl FnOnce(Scripted) -> S) -> Vec<(u128, Event)>
where
    S: Service<u32, Response = Judged, Error = BoxError>,
{
    let seen = Seen::new();
    let call = layer(Scripted {
        steps: scenario.steps.clone().into(),
        seen: seen.clone(),
        turn: Arc::default(),
        timer: None,
        is_ready: false,
    })
    .oneshot(7);
    let ended = match scenario.dropped_after {
        Some(limit) => timeout(limit, call).await.ok(),
        None => Some(call.await),
    };
    seen.see(match ended {
        Some(Ok(judged)) => Event::Ended(Outcome::Answer(judged)),
        Some(Err(error)) => Event::Ended(Outcome::Error(judged(Err(&error)))),
        None => Event::Dropped,
    });
    seen.take()
}

// promise: ST-5
#[tokio::test(start_paused = true)]
async fn a_call_is_retried_as_tower_s_is() {
    let mut retries = 0;
    for seed in 0..size(20_000, 1_000) {
        let scenario = Scenario::random(&mut StdRng::seed_from_u64(seed));
        let ours = RetryLayer::new(classify)
            .max_retries(scenario.max_retries)
            .backoff(Backoff::constant(scenario.backoff))
            .budget(Budget::unlimited());
        let ours = observe(&scenario, |service| ours.layer(service)).await;
        let policy = Same {
            retries_left: scenario.max_retries,
            backoff: scenario.backoff,
        };
        let theirs = observe(&scenario, |service| Retry::new(policy, service)).await;
        assert_eq!(ours, theirs, "seed {seed}: {scenario:?}");
        let sends = ours
            .iter()
            .filter(|(_, event)| *event == Event::Sent)
            .count();
        retries += sends.saturating_sub(1);
    }
    assert!(retries as u64 > size(20_000, 1_000) / 2, "{retries}");
}

// The limit
//
// tower's counts what goes in a window, which begins with the first call after the last one; ours gives tokens back one by
// one. With one call in a window that is the same. It promises something else in this:
//
// - Of several calls in a window tower's lets as many at the end of one and again at the beginning of the next; ours lets no
//   more in any window, wherever it begins, than a burst and what has come back.
// - tower's cannot be cloned: what is to share it stands behind a buffer. Ours may, too, and is shared anyway.
// - tower's has callers wait for as long as it takes, ours for 500 ms at most unless it is told otherwise.

/// Who comes when, and for how long he waits at most.
#[derive(Clone, Copy, Debug)]
struct Caller {
    comes: Duration,
    waits: Option<Duration>,
}

/// Callers, whose limit lets one through in each of so many tens of milliseconds.
fn callers(rng: &mut StdRng, tens: u64) -> Vec<Caller> {
    let mut time = 0;
    let callers = (0..rng.random_range(1..40)).map(|_| {
        // No two come in the same millisecond, and nobody leaves in that of a turn: which of the two was first would be for the
        // runtime to say.
        time += match rng.random_range(0..4) {
            0 => rng.random_range(1..=tens * 3),
            _ => rng.random_range(1..=tens / 2),
        };
        let waits = rng.random_range(0..tens * 4) * 10 + 5;
        Caller {
            comes: millis(time * 10),
            waits: rng.random_ratio(1, 4).then(|| millis(waits)),
        }
    });
    callers.collect()
}

/// In which order and when calls are let through.
async fn let_through<S>(callers: &[Caller], layer: impl FnOnce(Passed) -> S) -> Vec<(u128, usize)>
where
    S: Service<usize, Error = BoxError, Future: Send> + Clone + Send + 'static,
{
    let seen = Seen::new();
    let service = layer(Passed(seen.clone()));
    let calls = callers.iter().enumerate().map(|(number, caller)| {
        let (caller, service) = (*caller, service.clone());
        tokio::spawn(async move {
            sleep(caller.comes).await;
            let call = service.oneshot(number);
            match caller.waits {
                Some(limit) => drop(timeout(limit, call).await),
                None => call.await.map(drop).expect("nobody is refused"),
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    seen.take()
}

/// Sees who gets through.
#[derive(Clone, Debug)]
struct Passed(Seen<usize>);

impl Service<usize> for Passed {
    type Response = ();
    type Error = BoxError;
    type Future = future::Ready<Result<(), BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, number: usize) -> Self::Future {
        self.0.see(number);
        future::ready(Ok(()))
    }
}

const ALWAYS: Duration = Duration::from_hours(1);

// promise: ST-5
#[tokio::test(start_paused = true)]
async fn one_in_a_period_gets_through_as_with_tower_s() {
    for seed in 0..size(2_000, 200) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let tens = rng.random_range(2..=20);
        let (callers, per) = (callers(rng, tens), tens * 10);
        let quota = Quota::per(NonZeroU32::MIN, millis(per)).unwrap();
        let limit = RateLimitLayer::new(quota.burst(NonZeroU32::MIN));
        let ours = limit.clone().max_wait(ALWAYS);
        let ours = let_through(&callers, |service| ours.layer(service)).await;
        let waits = |service| Buffer::new(limit.backpressure().layer(service), 64);
        let with_backpressure = let_through(&callers, waits).await;
        let rate = Rate::new(1, millis(per));
        let theirs = |service| Buffer::new(RateLimit::new(service, rate), 64);
        let theirs = let_through(&callers, theirs).await;
        assert_eq!(ours, theirs, "seed {seed}: one in {per} ms, {callers:?}");
        assert_eq!(with_backpressure, theirs, "seed {seed}: {callers:?}");
    }
}

/// How many get through in each millisecond, of as many as can.
async fn demand<S>(layer: impl FnOnce(Passed) -> S, time: u64) -> Vec<u64>
where
    S: Service<usize, Error = BoxError, Future: Send> + Clone + Send + 'static,
{
    let seen = Seen::new();
    let service = layer(Passed(seen.clone()));
    let call = |number| service.clone().oneshot(number);
    let calls = join_all((0..2_000).map(call));
    // Later than what is looked at, and not on the edge of it.
    drop(timeout(millis(time + 2), calls).await);
    let mut passed = vec![0; usize::try_from(time + 5).unwrap()];
    for (time, _) in seen.take() {
        passed[usize::try_from(time).unwrap()] += 1;
    }
    passed
}

// promise: ST-5
#[tokio::test(start_paused = true)]
async fn at_the_end_of_each_window_as_many_have_got_through_as_with_tower_s() {
    for (number, spacing) in [(1, 50), (2, 30), (5, 10), (10, 7), (20, 1)] {
        let (windows, per) = (6, u64::from(number) * spacing);
        let count = NonZeroU32::new(number).unwrap();
        let quota = Quota::per(count, millis(per)).unwrap().burst(count);
        let ours = RateLimitLayer::new(quota).max_wait(ALWAYS);
        let ours = demand(|service| ours.layer(service), windows * per).await;
        let rate = Rate::new(number.into(), millis(per));
        let theirs = |service| Buffer::new(RateLimit::new(service, rate), 2_000);
        let theirs = demand(theirs, windows * per).await;
        let so_far = |passed: &[u64], time: u64| -> u64 {
            passed[..=usize::try_from(time).unwrap()].iter().sum()
        };
        for time in 0..=windows * per {
            let (ours, theirs) = (so_far(&ours, time), so_far(&theirs, time));
            let expected = u64::from(number) * (1 + time / per);
            assert_eq!(theirs, expected, "after {time} ms");
            if time.is_multiple_of(per) {
                assert_eq!(ours, theirs, "after {time} ms of {number} in {per} ms");
            } else {
                assert!(ours >= theirs, "after {time} ms of {number} in {per} ms");
            }
        }
    }
}

// promise: ST-5
#[tokio::test(start_paused = true)]
async fn at_the_edge_of_a_window_ours_lets_fewer_through_than_tower_s() {
    /// Lets one through, and ten of each that come just before the end of its window, and just after it.
    async fn edge<S>(layer: impl FnOnce(Passed) -> S) -> usize
    where
        S: Service<usize, Error = BoxError, Future: Send> + Clone + Send + 'static,
    {
        let come = |time| Caller {
            comes: millis(time),
            waits: Some(millis(1)),
        };
        let mut callers = vec![come(0)];
        callers.extend([come(998); 9]);
        callers.extend([come(1_001); 10]);
        let passed = let_through(&callers, layer).await;
        passed.iter().filter(|(time, _)| *time >= 998).count()
    }

    let ten = NonZeroU32::new(10).unwrap();
    let ours = RateLimitLayer::new(Quota::per_second(ten).burst(ten)).max_wait(ALWAYS);
    assert_eq!(edge(|service| ours.layer(service)).await, 10);
    let rate = Rate::new(10, Duration::from_secs(1));
    let theirs = |service| Buffer::new(RateLimit::new(service, rate), 64);
    assert_eq!(edge(theirs).await, 19);
}
