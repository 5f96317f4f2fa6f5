//! Runs rows side by side, and says what each costs over the bare service.

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tower_service::Service;

use crate::alloc;

/// Rotations of a group: how many batches each of its rows runs.
const ROTATIONS: usize = 1_000;
/// The same for threads, whose batches have to be longer.
const ROTATIONS_OF_THREADS: usize = 100;
/// A batch is as many calls as fit in here: long beside a clock read, short beside a time slice of the scheduler.
const BATCH: Duration = Duration::from_micros(300);
/// The allocations of that many calls are counted, over those of a few: what a batch allocates besides cancels out.
const COUNTED: u32 = 200;
const FEW: u32 = 8;

/// Rows that do the same job and are measured against each other.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// Begins with the bare service, which is what the others are measured over.
    pub(crate) rows: Vec<Row>,
    /// What our rows should cost at most.
    pub(crate) goals: &'static [Goal],
}

/// One way to do the job of its group.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What a call's future weighs on the stack.
    pub(crate) future: usize,
    /// Threads that make calls at the same time, each of them as many as it is asked for.
    pub(crate) threads: u32,
    /// A batch has at least and at most so many calls.
    pub(crate) batch: (u32, u32),
    /// Makes that many calls and says how long they took, or what went wrong.
    pub(crate) run: Box<dyn FnMut(u32) -> Result<Duration, String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The service without any layer.
    Bare,
    /// The least that the job can cost, written by hand.
    Floor,
    Ours,
    Peer,
}

/// A cost over the bare service, in terms of another row of the group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    pub(crate) at_most: Bound,
    pub(crate) of: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// So many times the other row's cost.
    Times(f64),
    /// So many nanoseconds more than the other row's cost.
    Nanoseconds(f64),
}

impl Goal {
    pub(crate) const fn times(at_most: f64, of: &'static str) -> Self {
        Self {
            at_most: Bound::Times(at_most),
            of,
        }
    }

    pub(crate) const fn nanoseconds(at_most: f64, of: &'static str) -> Self {
        Self {
            at_most: Bound::Nanoseconds(at_most),
            of,
        }
    }
}

/// What a row costs.
#[derive(Debug)]
pub(crate) struct Cost {
    /// Nanoseconds of a call.
    pub(crate) whole: Spread,
    /// Nanoseconds of a call, over the bare service in the same rotation.
    pub(crate) over_bare: Spread,
    pub(crate) allocations: f64,
    pub(crate) bytes: f64,
}

/// The middle of many values, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// A quarter of the values lies below.
    pub(crate) low: f64,
    pub(crate) median: f64,
    /// A quarter of the values lies above.
    pub(crate) high: f64,
}

impl Spread {
    /// Where no value lies at a quarter or in the middle, it is taken from the line between the two beside it.
    ///
    /// # Panics
    ///
    /// When there are no values.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |quarter: usize| {
            let steps = quarter * (values.len() - 1);
            let (below, rest) = (steps / 4, steps % 4);
            let above = values[below + usize::from(rest > 0)];
            values[below] + (above - values[below]) * [0.0, 0.25, 0.5, 0.75][rest]
        };
        Self {
            low: at(1),
            median: at(2),
            high: at(3),
        }
    }
}

/// Measures all rows of a group, batch by batch in turn, so that a busy moment of the machine hits them alike.
pub(crate) fn measure(rows: &mut [Row]) -> Vec<Result<Cost, String>> {
    let batches: Vec<_> = rows.iter_mut().map(batch_size).collect();
    let rotations = if rows.iter().any(|row| row.threads > 1) {
        ROTATIONS_OF_THREADS
    } else {
        ROTATIONS
    };
    let mut times = vec![Vec::with_capacity(rotations); rows.len()];
    let mut failures = vec![None; rows.len()];
    for rotation in 0..rotations {
        for turn in 0..rows.len() {
            // The first in a rotation finds other caches than the last, so all take turns at being first.
            let row = (rotation + turn) % rows.len();
            match (rows[row].run)(batches[row]) {
                Ok(spent) => times[row].push(spent.as_secs_f64() * 1e9 / f64::from(batches[row])),
                Err(failure) => failures[row] = failures[row].take().or(Some(failure)),
            }
        }
    }

    let heap: Vec<_> = rows.iter_mut().map(heap).collect();
    (0..rows.len())
        .map(|row| match failures[row].take() {
            Some(failure) => Err(failure),
            None => Ok(Cost {
                whole: Spread::of(times[row].clone()),
                over_bare: Spread::of(
                    times[row]
                        .iter()
                        .zip(&times[0])
                        .map(|(row, bare)| row - bare)
                        .collect(),
                ),
                allocations: heap[row].0 - heap[0].0,
                bytes: heap[row].1 - heap[0].1,
            }),
        })
        .collect()
}

/// Calls the service and polls its future by hand: a runtime would cost more than what is measured.
///
/// What is not ready is asked again after `wait`.
pub(crate) fn call<S, R, T>(
    service: &mut S,
    request: R,
    wait: impl Fn(),
    look: impl FnOnce(Result<&S::Response, &S::Error>) -> T,
) -> T
where
    S: Service<R>,
{
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match service.poll_ready(&mut cx) {
            Poll::Ready(Ok(())) => break,
            Poll::Ready(Err(error)) => return look(Err(&error)),
            Poll::Pending => wait(),
        }
    }
    // Made where it stays, as by an `await`: one more move would cost a large future more than some layers do.
    let mut future = pin!(service.call(request));
    // As in a task: it lies in memory when it is polled, instead of being taken apart into registers before.
    black_box(&mut future);
    loop {
        // Looked at where it is, as by an `await` and a `?`: to move the whole result, right after it was written in parts,
        // stalls the processor for longer than a thin layer takes.
        match black_box(&mut future.as_mut().poll(&mut cx)) {
            Poll::Ready(result) => return look(result.as_ref()),
            Poll::Pending => wait(),
        }
    }
}

/// As many calls as fit into a batch. Warms up what is warm in real life, too.
fn batch_size(row: &mut Row) -> u32 {
    let (mut calls, most) = row.batch;
    loop {
        // The failure of a row is found again, and reported, when it is measured.
        let goes_on = (row.run)(calls).is_ok_and(|spent| spent < BATCH);
        if !goes_on || calls >= most {
            return calls;
        }
        calls = (2 * calls).min(most);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand allocations")]
fn heap(row: &mut Row) -> (f64, f64) {
    let [many, few] = [COUNTED, FEW].map(|calls| {
        alloc::count(|| {
            // A failure was seen before, with all the calls that were timed.
            let _ = (row.run)(calls);
        })
    });
    let per_call = |many: u64, few: u64| {
        let calls = f64::from(row.threads * (COUNTED - FEW));
        (many as f64 - few as f64) / calls
    };
    (
        per_call(many.allocations, few.allocations),
        per_call(many.bytes, few.bytes),
    )
}

#[expect(
    clippy::disallowed_methods,
    reason = "the clocks of a layer are among what is measured"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_number_of_values_has_one_in_the_middle() {
        let spread = Spread::of(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(
            spread,
            Spread {
                low: 2.0,
                median: 3.0,
                high: 4.0
            }
        );
    }

    #[test]
    fn quartiles_lie_between_values_when_they_must() {
        let spread = Spread::of(vec![10.0, 40.0, 20.0, 30.0]);
        assert_eq!(
            spread,
            Spread {
                low: 17.5,
                median: 25.0,
                high: 32.5
            }
        );
    }

    #[test]
    fn one_disturbed_batch_does_not_move_the_median() {
        let calm = Spread::of(vec![10.0; 5]);
        assert_eq!(Spread::of(vec![10.0, 10.0, 10.0, 10.0, 1_000_000.0]), calm);
    }
}
