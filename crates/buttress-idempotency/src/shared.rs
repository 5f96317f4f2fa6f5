//! What the services of a layer share: the store, the runs that are under way, and who waits for them.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use buttress_core::clock;
use http::HeaderValue;
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Event, Store, StoreError, StoreErrorKind,
    event::Counters,
    record::{Answer, Completion, HeadPrint, Op, RecordKey, Token},
    settings::Settings,
};

/// The first pause before a store is asked again for something that has to be done, and the longest.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The shortest pause between two signs of life.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

/// How many claims that have failed are undone in the background at the same time. A store that is down for long would have to
/// be asked for all that came meanwhile, and again and again.
const UNDONE: usize = 256;

#[derive(Debug)]
pub(crate) struct Shared<T> {
    pub(crate) store: T,
    pub(crate) settings: Settings,
    pub(crate) counters: Counters,
    /// Who counts while there are requests with a key, and what is done in the background.
    pub(crate) tasks: TaskTracker,
    /// Tells them that there is no more time.
    pub(crate) cut: CancellationToken,
    /// How many more claims may be undone.
    undone: Arc<Semaphore>,
    /// The runs of this process: whoever waits for one hears what came of it.
    flights: Mutex<HashMap<RecordKey, Flight>>,
}

#[derive(Debug)]
struct Flight {
    /// Whose it is: after its lease another may have begun.
    token: Token,
    head: HeadPrint,
    landing: watch::Receiver<Option<Completion>>,
}

impl<T: Store> Shared<T> {
    pub(crate) fn new(store: T, settings: Settings) -> Self {
        Self {
            store,
            settings,
            counters: Counters::default(),
            tasks: TaskTracker::new(),
            cut: CancellationToken::new(),
            undone: Arc::new(Semaphore::new(UNDONE)),
            flights: Mutex::default(),
        }
    }

    /// Does one operation on a record.
    pub(crate) async fn step(&self, key: &RecordKey, op: Op) -> Result<Answer, StoreError> {
        self.ask(self.store.step(key, op)).await
    }

    /// Asks the store, and waits no longer than for its time.
    pub(crate) async fn ask<A>(
        &self,
        asked: impl Future<Output = Result<A, StoreError>>,
    ) -> Result<A, StoreError> {
        let mut asked = pin!(asked);
        // One in memory answers at once, and needs no timer.
        let answer = match poll_fn(|cx| Poll::Ready(asked.as_mut().poll(cx))).await {
            Poll::Ready(answer) => answer,
            Poll::Pending => timeout(self.settings.store_timeout, asked)
                .await
                .unwrap_or_else(|_| Err(StoreError::new(StoreErrorKind::TimedOut))),
        };
        if let Err(error) = &answer {
            let kind = error.kind();
            self.emit(&Event::StoreFailed { kind });
        }
        answer
    }

    /// Asks the store until it answers, or until nothing would come of it any more.
    pub(crate) async fn step_at_last(&self, key: &RecordKey, op: Op) -> Option<Answer> {
        let until = clock::now() + self.settings.ceiling;
        let mut pause = PAUSE;
        loop {
            match self.step(key, op.clone()).await {
                Ok(answer) => return Some(answer),
                Err(_) if clock::now() >= until => return None,
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Does this, unless there is no more time.
    pub(crate) async fn in_time<O>(&self, work: impl Future<Output = O>) -> Option<O> {
        let (mut work, mut cut) = (pin!(work), pin!(self.cut.cancelled()));
        poll_fn(|cx| {
            // Nothing is begun then.
            if self.cut.is_cancelled() {
                return Poll::Ready(None);
            }
            match work.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending => cut.as_mut().poll(cx).map(|()| None),
            }
        })
        .await
    }

    /// Says from time to time that somebody is at it, for as long as that may take.
    pub(crate) async fn heartbeat(&self, key: &RecordKey, token: Token) {
        let Settings { lease, ceiling, .. } = self.settings;
        let until = clock::now() + ceiling;
        while clock::now() < until {
            // Without a lease too it has a pause.
            sleep((lease / 3).max(SHORTEST_PAUSE)).await;
            if let Ok(Answer::Refused) = self.step(key, Op::Heartbeat { token, lease }).await {
                return;
            }
        }
    }

    pub(crate) fn emit(&self, event: &Event) {
        self.counters.count(event);
        self.settings.events.emit(event);
    }

    /// What will come of the run of this request that is under way in this process, if there is one. It ends without a word
    /// if nothing comes of it that is kept.
    pub(crate) fn flight(
        &self,
        key: &RecordKey,
        head: HeadPrint,
    ) -> Option<watch::Receiver<Option<Completion>>> {
        let flights = self.flights();
        let flight = flights.get(key).filter(|flight| flight.head == head);
        flight.map(|flight| flight.landing.clone())
    }

    fn end_flight(&self, key: &RecordKey, token: Token) {
        let mut flights = self.flights();
        if flights.get(key).is_some_and(|flight| flight.token == token) {
            flights.remove(key);
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<RecordKey, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key that was claimed. Dropped before it is ended, as by a panic, its outcome is unknown.
#[derive(Debug)]
pub(crate) struct Claimed<T: Store> {
    pub(crate) shared: Arc<Shared<T>>,
    pub(crate) key: RecordKey,
    pub(crate) token: Token,
    ended: bool,
    /// Ends with the run; nothing where nobody waits for it.
    flight: Option<watch::Sender<Option<Completion>>>,
}

impl<T: Store> Claimed<T> {
    pub(crate) fn new(
        shared: Arc<Shared<T>>,
        key: RecordKey,
        head: HeadPrint,
        token: Token,
    ) -> Self {
        let flight = shared.settings.wait.map(|_| {
            let (flight, landing) = watch::channel(None);
            let of_it = Flight {
                token,
                head,
                landing,
            };
            shared.flights().insert(key.clone(), of_it);
            flight
        });
        Self {
            shared,
            key,
            token,
            ended: false,
            flight,
        }
    }

    /// Nothing was done.
    pub(crate) async fn release(self) {
        let token = self.token;
        self.give_up(Op::Release { token }, Event::Released).await;
    }

    /// Nobody knows what was done.
    pub(crate) async fn abandon(self) {
        let token = self.token;
        self.give_up(Op::Abandon { token }, Event::Abandoned).await;
    }

    /// It returns when the record says so, or, if the store cannot for now, at once: then it says so later.
    async fn give_up(mut self, op: Op, event: Event) {
        let failed = self.shared.step(&self.key, op.clone()).await.is_err();
        self.ended = true;
        self.shared.emit(&event);
        if failed {
            self.shared.clone().tasks.spawn(async move {
                self.shared.step_at_last(&self.key, op).await;
            });
        }
    }

    /// It is done, and took so long. It returns as [`give_up`](Self::give_up) does.
    pub(crate) async fn complete(mut self, mut completion: Completion, took: Duration) {
        let (token, ttl) = (self.token, self.shared.settings.ttl);
        let op = |completion| Op::Complete {
            token,
            completion,
            ttl,
        };
        let completed = |completion: &Completion| Event::Completed {
            took,
            omitted: completion.response.body.is_none(),
        };
        let first = self.shared.step(&self.key, op(completion.clone())).await;
        self.ended = true;
        match first {
            Ok(Answer::Refused) => self.shared.emit(&Event::Superseded),
            Ok(answer) => {
                // The handler may have completed it himself.
                if let Answer::Done(kept) = answer {
                    completion = kept;
                }
                self.shared.emit(&completed(&completion));
                // All who wait share what was kept. Besides them there is one who listens: the list of flights.
                if let Some(flight) = &self.flight
                    && flight.receiver_count() > 1
                {
                    flight.send_replace(Some(completion));
                }
            }
            Err(error) => {
                if let StoreErrorKind::Full | StoreErrorKind::ScopeFull = error.kind() {
                    // There is no room for it all, and it must not be run again.
                    completion.response.body = None;
                }
                let (op, completed) = (op(completion.clone()), completed(&completion));
                self.shared.clone().tasks.spawn(async move {
                    let answer = self.shared.step_at_last(&self.key, op).await;
                    self.shared.emit(&match answer {
                        Some(Answer::Refused) => Event::Superseded,
                        Some(_) => completed,
                        None => Event::Abandoned,
                    });
                });
            }
        }
    }
}

impl<T: Store> Drop for Claimed<T> {
    fn drop(&mut self) {
        if self.flight.is_some() {
            self.shared.end_flight(&self.key, self.token);
        }
        if self.ended {
            return;
        }
        self.shared.emit(&Event::Abandoned);
        let (shared, key, token) = (self.shared.clone(), self.key.clone(), self.token);
        undo(shared, key, Op::Abandon { token });
    }
}

/// Tells the store in the background. Without a runtime, or where there is too much to tell, the lease tells it.
pub(crate) fn undo<T: Store>(shared: Arc<Shared<T>>, key: RecordKey, op: Op) {
    let runtime = tokio::runtime::Handle::try_current();
    let undone = shared.undone.clone().try_acquire_owned();
    if let (Ok(runtime), Ok(undone)) = (runtime, undone) {
        let tasks = shared.tasks.clone();
        tasks.spawn_on(
            async move {
                shared.step_at_last(&key, op).await;
                drop(undone);
            },
            &runtime,
        );
    }
}

/// The value of the fields that mark a response: as a replay, or as one without protection.
pub(crate) const TRUE: HeaderValue = HeaderValue::from_static("true");
