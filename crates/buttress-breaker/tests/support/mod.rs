//! A service that does as it is told, and remembers what was asked of it.
#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

use std::{
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use buttress_breaker::{BreakerLayer, Cause, Event, Outcome, ProbeResult, Reason, State};
use buttress_core::{Applied, BoxError, Classify, Hint, Kind, Rejected, Verdict};
use tower::{Layer, Service, ServiceExt};

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn count(count: u32) -> NonZeroU32 {
    count.try_into().unwrap()
}

/// Is this a run that takes its time?
pub(crate) fn full() -> bool {
    std::env::var_os("BUTTRESS_FULL").is_some()
}

/// What a call is to come to. It is not `Clone`, nor is its response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Do {
    Succeed,
    Fail,
    /// A failure with the time after which the server is to be asked again.
    FailFor(Duration),
    /// A request that the service is right to turn down.
    TurnDown,
    Throttle,
    /// An error of the transport.
    Break,
    /// A layer below refuses.
    Refuse,
    Panic,
    /// It panics before there is a future.
    PanicAtOnce,
    Hang,
    /// It takes its time.
    After(Duration, Box<Do>),
}

pub(crate) use Do::{
    Break, Fail, FailFor, Hang, Panic, PanicAtOnce, Refuse, Succeed, Throttle, TurnDown,
};

pub(crate) fn after(time: Duration, then: Do) -> Do {
    Do::After(time, Box::new(then))
}

/// Judges what a call has come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge;

impl Classify<Do> for Judge {
    fn classify(&self, result: Result<&Do, &BoxError>) -> Verdict {
        let failure = Verdict::new(Kind::Transient, Applied::Maybe);
        match result {
            Ok(Succeed) => Verdict::SUCCESS,
            Ok(TurnDown) => Verdict::new(Kind::Permanent, Applied::Maybe),
            Ok(Throttle) => Verdict::new(Kind::Throttled, Applied::No),
            Ok(FailFor(time)) => failure.with_hint(Hint::After(*time)),
            // A refusal too: the breaker knows better.
            _ => failure,
        }
    }
}

/// The layer with its defaults, but closed at once after the probes.
pub(crate) fn layer() -> BreakerLayer<Judge> {
    BreakerLayer::new(Judge).ramp(false)
}

/// A service. The number of its clones is no matter, they share what they remember.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backend {
    calls: Arc<AtomicUsize>,
}

impl Backend {
    /// How many calls it was asked for.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Service<Do> for Backend {
    type Response = Do;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Do, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut todo: Do) -> Self::Future {
        self.calls.fetch_add(1, Ordering::SeqCst);
        assert_ne!(todo, PanicAtOnce, "as it was told");
        Box::pin(async move {
            while let Do::After(time, then) = todo {
                tokio::time::sleep(time).await;
                todo = *then;
            }
            match todo {
                Break => Err("the connection broke".into()),
                Refuse => Err(
                    Box::new(std::io::Error::other(Rejected::new("limiter", "full"))) as BoxError,
                ),
                Panic => panic!("as it was told"),
                Hang => std::future::pending().await,
                todo => Ok(todo),
            }
        })
    }
}

/// Makes a call through any service. Returns nothing if it was refused.
pub(crate) async fn call<S>(service: &S, todo: Do) -> Option<Result<S::Response, String>>
where
    S: Service<Do, Error = BoxError> + Clone,
{
    match service.clone().oneshot(todo).await {
        Ok(response) => Some(Ok(response)),
        Err(error) => match Rejected::find(&*error) {
            Some(rejected) if rejected.by() == "breaker" => None,
            _ => Some(Err(error.to_string())),
        },
    }
}

/// Lets a breaker see this many calls that all come to the same.
pub(crate) async fn calls<S>(service: &S, number: usize, todo: fn() -> Do)
where
    S: Service<Do, Error = BoxError> + Clone,
{
    for _ in 0..number {
        call(service, todo()).await;
    }
}

/// What a layer has said.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    pub(crate) fn sink(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let events = self.0.clone();
        move |event| events.lock().unwrap().push(event.clone())
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    fn each<T>(&self, which: impl Fn(&Event) -> Option<T>) -> Vec<T> {
        self.events().iter().filter_map(which).collect()
    }

    pub(crate) fn calls(&self) -> Vec<(Outcome, Reason, bool)> {
        self.each(|event| match event {
            Event::Call {
                outcome,
                reason,
                counted,
                ..
            } => Some((*outcome, *reason, *counted)),
            _ => None,
        })
    }

    pub(crate) fn refusals(&self) -> Vec<(State, Cause, bool)> {
        self.each(|event| match event {
            Event::Refused {
                state,
                cause,
                shadow,
                ..
            } => Some((*state, *cause, *shadow)),
            _ => None,
        })
    }

    pub(crate) fn probes(&self) -> Vec<ProbeResult> {
        self.each(|event| match event {
            Event::Probe { result, .. } => Some(*result),
            _ => None,
        })
    }

    pub(crate) fn transitions(&self) -> Vec<(State, State, Cause, u64)> {
        self.each(|event| match event {
            Event::Transition {
                from,
                to,
                cause,
                number,
                ..
            } => Some((*from, *to, *cause, *number)),
            _ => None,
        })
    }

    /// The keys that were forgotten.
    pub(crate) fn forgotten(&self) -> Vec<String> {
        self.each(|event| match event {
            Event::Forgotten { key, .. } => Some((**key).to_owned()),
            _ => None,
        })
    }

    pub(crate) fn untracked(&self) -> usize {
        self.each(|event| matches!(event, Event::Untracked).then_some(()))
            .len()
    }
}

/// The backend behind a breaker.
pub(crate) fn over<C: Clone>(
    layer: &BreakerLayer<C>,
    backend: &Backend,
) -> buttress_breaker::Breaker<Backend, C> {
    layer.layer(backend.clone())
}
