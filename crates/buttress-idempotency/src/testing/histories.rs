//! Random histories, and whether they are as if their operations had come one after the other.

use std::{
    array,
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use todc_utils::{
    linearizability::{
        WGLChecker,
        history::{Action, History},
    },
    specifications::Specification,
};
use tokio::{sync::Barrier, task::yield_now};

use super::{LONG, Subject, completion, fresh_scope};
use crate::{
    record::{Answer, Change, Claim, HeadPrint, Moment, Op, Record, RecordKey, State, Token, step},
    store::{Store, StoreError},
};

/// Has three tasks do four random operations each at the same time, on one key or two; and that `count` times.
///
/// # Errors
///
/// The first history that is not linearizable, as a list of calls and returns in their order: its answers are not those of
/// [`step`], in whatever order one does its operations, each at one moment between its call and its return.
///
/// # Panics
///
/// When the store does not answer.
pub async fn histories<S: Subject>(subject: &Arc<S>, count: usize) -> Result<(), String> {
    for _ in 0..count {
        let history = history(subject).await;
        if !WGLChecker::<Sequential>::is_linearizable(History::from_actions(history.clone())) {
            let lines = history.iter().map(|(task, action)| match action {
                Action::Call(Call { key, act, .. }) => format!("{task} calls {key} {act:?}\n"),
                Action::Response(Call { key, said, .. }) => {
                    format!("{task} hears {key} {said:?}\n")
                }
            });
            return Err(lines.collect());
        }
    }
    Ok(())
}

const TASKS: usize = 3;
const CALLS: usize = 4;
const KEYS: usize = 2;

/// A call, and what was said to it.
#[derive(Clone, Debug)]
struct Call {
    key: usize,
    act: Act,
    said: Option<Said>,
}

#[derive(Clone, Debug)]
enum Act {
    Step(Op),
    Get,
}

/// An answer without what depends on the clock.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Answer(Answer),
    Record(Option<Record>),
}

fn said(result: Result<Said, StoreError>) -> Said {
    match result.unwrap_or_else(|error| panic!("the store does not answer: {error:?}")) {
        Said::Answer(Answer::InFlight { .. }) => Said::Answer(Answer::InFlight {
            lease_left: Duration::ZERO,
        }),
        Said::Record(record) => Said::Record(record.map(timeless)),
        said @ Said::Answer(_) => said,
    }
}

fn timeless(mut record: Record) -> Record {
    record.first_seen = Moment(0);
    record.expires_at = Moment(0);
    if let State::Running { lease_until, .. } = &mut record.state {
        *lease_until = Moment(0);
    }
    record
}

type Log = Vec<(usize, Action<Call>)>;

async fn history<S: Subject>(subject: &Arc<S>) -> Log {
    let scope = fresh_scope();
    let keys: [_; KEYS] = array::from_fn(|key| RecordKey::new(scope.clone(), &key.to_string()));
    let keys = Arc::new(keys);
    let mut rng: SmallRng = rand::make_rng();
    let used = rng.random_range(1..=KEYS);
    let log = Arc::new(Mutex::new(Log::new()));
    let start = Arc::new(Barrier::new(TASKS));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let mut rng = SmallRng::from_rng(&mut rng);
            let (subject, keys) = (Arc::clone(subject), Arc::clone(&keys));
            let (log, start) = (Arc::clone(&log), Arc::clone(&start));
            tokio::spawn(async move {
                start.wait().await;
                for _ in 0..CALLS {
                    let key = rng.random_range(0..used);
                    let act = act(&mut rng);
                    call(&*subject, &*keys, &log, task, key, act).await;
                    if rng.random() {
                        yield_now().await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("the store answers");
    }
    // What has become of it.
    for key in 0..used {
        call(&**subject, &*keys, &log, 0, key, Act::Get).await;
    }
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    mem::take(&mut *log)
}

async fn call<S: Subject>(
    subject: &S,
    keys: &[RecordKey],
    log: &Mutex<Log>,
    task: usize,
    key: usize,
    act: Act,
) {
    let note = |action| {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push((task, action));
    };
    let called = Call {
        key,
        act: act.clone(),
        said: None,
    };
    note(Action::Call(called.clone()));
    let result = match act {
        Act::Step(op) => subject.store().step(&keys[key], op).await.map(Said::Answer),
        Act::Get => subject.store().get(&keys[key]).await.map(Said::Record),
    };
    let said = Some(said(result));
    note(Action::Response(Call { said, ..called }));
}

/// A random operation of one of three, whose leases and times to live are over at once or never.
fn act(rng: &mut impl Rng) -> Act {
    let token = Token(rng.random_range(0..3));
    let mut time = || {
        if rng.random_ratio(1, 4) {
            Duration::ZERO
        } else {
            LONG
        }
    };
    let (lease, ttl) = (time(), time());
    let completion = completion(rng.random_range(200..210));
    Act::Step(match rng.random_range(0..12) {
        0..4 => Op::Claim(Claim {
            head: HeadPrint([u8::from(rng.random_ratio(1, 8)); 32]),
            token,
            lease,
            ttl,
            armed: rng.random_ratio(3, 4),
            rerun: rng.random(),
        }),
        4 => Op::Heartbeat { token, lease },
        5 => Op::Arm { token },
        6..8 => Op::Complete {
            token,
            completion,
            ttl,
        },
        8 => Op::Release { token },
        9 => Op::Settle {
            completion: rng.random::<bool>().then_some(completion),
            ttl,
        },
        _ => return Act::Get,
    })
}

/// What a store says that does one operation after the other.
struct Sequential;

/// A record and the last fence, of each key.
type Kept = BTreeMap<usize, (Option<Record>, u64)>;

impl Specification for Sequential {
    type State = Kept;
    type Operation = Call;

    fn init() -> Kept {
        Kept::new()
    }

    fn apply(call: &Call, kept: &Kept) -> (bool, Kept) {
        // No time passes that matters.
        let now = Moment(1 << 50);
        let mut kept = kept.clone();
        let (record, last_fence) = kept.entry(call.key).or_default();
        let expected = match &call.act {
            Act::Get => Said::Record(record.as_ref().and_then(|record| record.at(now))),
            Act::Step(op) => {
                let (mut answer, change) = step(record.as_ref(), now, *last_fence, op);
                match change {
                    Change::Keep => {}
                    Change::Put(put) => *record = Some(put),
                    Change::Remove => *record = None,
                }
                // Which number it is, is the store's affair, as long as it is higher.
                if let (Answer::Won { fence }, Some(Said::Answer(Answer::Won { fence: given }))) =
                    (&mut answer, &call.said)
                    && given > last_fence
                    && let Some(record) = record
                {
                    (*fence, record.fence, *last_fence) = (*given, *given, *given);
                }
                Said::Answer(answer)
            }
        };
        let fits = call.said.as_ref() == Some(&said(Ok(expected)));
        (fits, kept)
    }
}
