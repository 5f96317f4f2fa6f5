//! What it costs when many wait at a time.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use cpu_time::ProcessTime;
use pin_project::pin_project;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::{GOVERNOR, LEAKY_BUCKET, ours, peers};
use crate::figures::{Figure, Limit, Measure};
use crate::harness::{Kind, Spread, now};
use crate::target::NUMBER;

/// Tokens that come in a second.
pub(crate) const A_SECOND: NonZeroU32 = NonZeroU32::new(4_000).expect("not zero");
/// Those of ten milliseconds, for the timers of tokio may be late by two: with less of a burst, tokens would be lost.
pub(crate) const BURST: NonZeroU32 = NonZeroU32::new(40).expect("not zero");

/// All come at once and wait until the last has its token. The clock is the real one.
pub(crate) fn measures() -> Vec<Measure> {
    vec![
        of("buttress", Kind::Ours, ours::waiting, |service| {
            let service = service.clone();
            async move { service.oneshot(NUMBER).await.is_ok() }
        }),
        of(GOVERNOR, Kind::Peer, peers::governor_waiting, |limiter| {
            let limiter = limiter.clone();
            async move {
                limiter.until_ready().await;
                true
            }
        }),
        of(
            LEAKY_BUCKET,
            Kind::Peer,
            peers::leaky_bucket_waiting,
            |limiter| {
                let limiter = limiter.clone();
                async move {
                    limiter.acquire_one().await;
                    true
                }
            },
        ),
    ]
}

fn of<L, W>(
    row: &'static str,
    kind: Kind,
    limiter: impl Fn() -> L + 'static,
    wait: impl Fn(&L) -> W + 'static,
) -> Measure
where
    W: Future<Output = bool> + Send + 'static,
{
    let take = move || {
        let drained = |waiters| -> Result<(f64, f64), String> {
            let runs = (0..3).map(|_| drain(waiters, &limiter(), &wait));
            let runs = runs.collect::<Result<Vec<_>, _>>()?;
            let polls = Spread::of(runs.iter().map(|run| run.0).collect());
            let micros = Spread::of(runs.iter().map(|run| run.1).collect());
            Ok((polls.median, micros.median))
        };
        let ((few_polls, few), (many_polls, many)) = (drained(2_000)?, drained(4_000)?);
        let figure = |name, value, at_most: Option<f64>| Figure {
            name,
            value,
            goal: at_most.map(Limit::AtMost),
        };
        Ok(vec![
            figure("polls a waiter, 2,000", few_polls, Some(3.0)),
            figure("polls a waiter, 4,000", many_polls, Some(3.0)),
            figure("µs a waiter, 2,000", few, None),
            figure("µs a waiter, 4,000", many, None),
            figure("µs in all, 4,000 : 2,000", 2.0 * many / few, Some(2.5)),
        ])
    };
    Measure {
        group: "limiter, waiting",
        row,
        kind,
        only_if_asked: false,
        take: Box::new(take),
    }
}

/// The polls, and the microseconds of all cores, that it takes a waiter to get its token.
fn drain<L, W>(waiters: u32, limiter: &L, wait: &impl Fn(&L) -> W) -> Result<(f64, f64), String>
where
    W: Future<Output = bool> + Send + 'static,
{
    let runtime = Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let polls = Arc::new(AtomicU32::new(0));
    let (began, start) = (now(), ProcessTime::now());
    let all = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..waiters {
            tasks.spawn(Polled {
                future: wait(limiter),
                polls: polls.clone(),
            });
        }
        tasks.join_all().await.into_iter().all(|granted| granted)
    });
    let (spent, took) = (start.elapsed(), began.elapsed());
    if !all {
        return Err("not all have had their token".to_owned());
    }
    // There was a burst at the beginning.
    let expected = Duration::from_secs(1) * (waiters - BURST.get()) / A_SECOND.get();
    if took < expected * 9 / 10 || took > expected * 3 {
        return Err(format!(
            "the last had its token after {took:?}, not after {expected:?}"
        ));
    }
    let a_waiter = |sum: f64| sum / f64::from(waiters);
    let polls = f64::from(polls.load(Ordering::Relaxed));
    Ok((a_waiter(polls), a_waiter(spent.as_secs_f64() * 1e6)))
}

/// A future that counts how often it is polled.
#[pin_project]
struct Polled<F> {
    #[pin]
    future: F,
    polls: Arc<AtomicU32>,
}

impl<F: Future> Future for Polled<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.polls.fetch_add(1, Ordering::Relaxed);
        this.future.poll(cx)
    }
}
