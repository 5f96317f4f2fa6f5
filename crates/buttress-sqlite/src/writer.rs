//! The thread that writes: all that waits, in one transaction.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use buttress_idempotency::{
    StoreError, StoreErrorKind,
    record::{Answer, Moment, Op, RecordKey},
};
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::mpsc;

use crate::{
    clock::Clock,
    epoch::{Epoch, EpochFile},
    place::Place,
    queue::Reply,
    seal::{Seal, signed, unsigned},
    table::{self, Each},
};

/// The most operations in one transaction.
const BATCH: usize = 1_024;

/// The most scopes whose records are counted in memory. It is only a cache.
const COUNTED: usize = 65_536;

/// By how much the time may go back at a restart.
const MEMORY: Duration = Duration::from_secs(1);

/// How many of the expired are removed where there is no room.
const SWEEP: usize = 256;

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are steps, and they are moved twice"
)]
pub(crate) enum Job {
    Step {
        key: RecordKey,
        op: Op,
        limits: Limits,
        reply: Reply<Answer>,
    },
    Purge {
        limit: usize,
        reply: Reply<usize>,
    },
}

/// How many records there may be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) records: Option<u64>,
    pub(crate) per_scope: Option<u64>,
}

/// What the writer, the reader and the users' own transactions share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) epoch: Epoch,
    clock: Mutex<Clock>,
}

impl Shared {
    pub(crate) fn new(epoch: Epoch, clock: Clock) -> Self {
        let clock = Mutex::new(clock);
        Self { epoch, clock }
    }

    pub(crate) fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct Writer {
    db: Connection,
    place: Place,
    file: EpochFile,
    shared: Arc<Shared>,
    scopes: Scopes,
}

/// What an operation came to.
enum Done {
    Step(Result<Answer, StoreError>),
    Purge(Result<usize, StoreError>),
}

impl Writer {
    pub(crate) fn new(db: Connection, place: Place, file: EpochFile, shared: Arc<Shared>) -> Self {
        let scopes = Scopes::default();
        Self {
            db,
            place,
            file,
            shared,
            scopes,
        }
    }

    pub(crate) fn work(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut batch = Vec::new();
        while jobs.blocking_recv_many(&mut batch, BATCH) > 0 {
            self.write(&mut batch);
        }
    }

    /// Does a batch, and answers.
    fn write(&mut self, batch: &mut Vec<Job>) {
        match self.transact(batch) {
            Ok(done) => {
                for (job, done) in batch.drain(..).zip(done) {
                    job.answer(done);
                }
            }
            Err(error) => {
                // What was counted has not come about.
                self.scopes.clear();
                let error = Arc::new(error);
                for job in batch.drain(..) {
                    job.fail(&error);
                }
            }
        }
    }

    /// Does a batch as one transaction. When it returns, it is on the disk.
    fn transact(&mut self, batch: &mut Vec<Job>) -> rusqlite::Result<Vec<Done>> {
        let immediate = TransactionBehavior::Immediate;
        let transaction = self.db.transaction_with_behavior(immediate)?;
        // Somebody else may have been writing for long.
        batch.retain(Job::is_wanted);
        let mut seal = Seal::read(&transaction)?;
        let is_older = seal.writes < self.file.mark.writes;
        if seal.epoch != self.shared.epoch || is_older || !self.place.is_kept() {
            let why = "the file is gone, or has become another store or an older one";
            return Err(rusqlite::Error::ToSqlConversionFailure(why.into()));
        }
        let before = seal.clone();
        let mut now = seal.moment;
        let mut done = Vec::with_capacity(batch.len());
        for job in &*batch {
            now = self.shared.clock().now(now);
            done.push(job.run(&transaction, &mut seal, now, &mut self.scopes)?);
        }
        // What only looked is no reason to wait for the disk, unless the time would be forgotten.
        if seal != before || now.since(before.moment) >= MEMORY {
            seal.write(&transaction, now)?;
            transaction.commit()?;
        }
        // Who only looks may have seen a transaction of somebody else.
        if seal.mark() != self.file.mark {
            // If this fails, what it says is still true, of an earlier transaction.
            let _ = self.file.update(seal.mark());
        }
        Ok(done)
    }
}

impl Job {
    /// A claim that nobody waits for is not done: nobody would hold it.
    fn is_wanted(&self) -> bool {
        !matches!(self, Self::Step { op: Op::Claim(_), reply, .. } if reply.is_closed())
    }

    fn run(
        &self,
        db: &Connection,
        seal: &mut Seal,
        now: Moment,
        scopes: &mut Scopes,
    ) -> rusqlite::Result<Done> {
        Ok(match self {
            Self::Step {
                key, op, limits, ..
            } => {
                let room = |seal: &mut Seal, has_row| {
                    limits.room(db, seal, now, scopes, &key.scope, has_row)
                };
                let answer = table::step(db, seal, now, key, op, room)?;
                if let Ok(Answer::Accepted) = answer {
                    scopes.follow(&key.scope, op, now);
                }
                Done::Step(answer)
            }
            Self::Purge { limit, .. } => Done::Purge(table::purge(db, seal, now, *limit)?),
        })
    }

    fn answer(self, done: Done) {
        // Who asked may be gone; it is done all the same.
        match (self, done) {
            (Self::Step { reply, .. }, Done::Step(answer)) => drop(reply.send(answer)),
            (Self::Purge { reply, .. }, Done::Purge(purged)) => drop(reply.send(purged)),
            _ => {}
        }
    }

    fn fail(self, error: &Arc<rusqlite::Error>) {
        let error = StoreError::new(StoreErrorKind::Unavailable).because(error.clone());
        match self {
            Self::Step { reply, .. } => drop(reply.send(Err(error))),
            Self::Purge { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

impl Limits {
    /// Is there room for a record of this scope? If not, those that have expired give way.
    fn room(
        self,
        db: &Connection,
        seal: &mut Seal,
        now: Moment,
        scopes: &mut Scopes,
        scope: &str,
        has_row: bool,
    ) -> Each<()> {
        if let Some(most) = self.per_scope
            && !scopes.take(db, now, scope, most)?
        {
            return Ok(Err(StoreError::new(StoreErrorKind::ScopeFull)));
        }
        if let Some(most) = self.records
            && !has_row
            && seal.records >= most
        {
            // One that is damaged stays, and is found when it is asked for.
            let _ = table::purge(db, seal, now, SWEEP)?;
            if seal.records >= most {
                return Ok(Err(StoreError::new(StoreErrorKind::Full)));
            }
        }
        Ok(Ok(()))
    }
}

/// How many records that have not expired each scope with a limit has. What other processes have written since they were
/// counted may be missing.
#[derive(Debug, Default)]
struct Scopes(HashMap<String, Held>);

#[derive(Debug)]
struct Held {
    records: u64,
    /// Until then none of them expires, unless it is told of.
    until: Moment,
}

impl Held {
    /// Counts one record more, if there may be one. It may expire before all others, or not come about for want of room
    /// elsewhere: they are counted again before it is said that there is no room.
    fn take(&mut self, most: u64) -> bool {
        let room = self.records < most;
        if room {
            self.records += 1;
            self.until = Moment::default();
        }
        room
    }
}

impl Scopes {
    /// Counts one record more, if there may be one.
    fn take(
        &mut self,
        db: &Connection,
        now: Moment,
        scope: &str,
        most: u64,
    ) -> rusqlite::Result<bool> {
        if let Some(held) = self.0.get_mut(scope)
            && (held.records < most || now < held.until)
        {
            return Ok(held.take(most));
        }
        let count = "SELECT count(*), min(expires_at) FROM (SELECT expires_at FROM main.buttress_records \
             WHERE scope = ?1 AND expires_at > ?2 LIMIT ?3)";
        let mut count = db.prepare_cached(count)?;
        let mut held = count.query_row((scope, signed(now.0), signed(most)), |row| {
            let until: Option<i64> = row.get(1)?;
            Ok(Held {
                records: unsigned(row.get(0)?),
                until: Moment(until.map_or(0, unsigned)),
            })
        })?;
        let room = held.take(most);
        if self.0.len() >= COUNTED {
            self.clear();
        }
        self.0.insert(scope.to_owned(), held);
        Ok(room)
    }

    /// Does as one of its records did.
    fn follow(&mut self, scope: &str, op: &Op, now: Moment) {
        match op {
            Op::Heartbeat { lease: time, .. }
            | Op::Complete { ttl: time, .. }
            | Op::Settle {
                completion: Some(_),
                ttl: time,
            } => {
                if let Some(held) = self.0.get_mut(scope) {
                    held.until = held.until.min(now.after(*time));
                }
            }
            Op::Release { .. }
            | Op::Abandon { .. }
            | Op::Settle {
                completion: None, ..
            } => self.forget(scope),
            Op::Claim(_) | Op::Arm { .. } => {}
        }
    }

    /// Counts the records of a scope anew when there is another one.
    fn forget(&mut self, scope: &str) {
        self.0.remove(scope);
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use buttress_idempotency::record::{Claim, HeadPrint, Token};
    use tempfile::TempDir;
    use tokio::sync::oneshot;

    use super::*;
    use crate::open::{Opened, open};

    fn writer(folder: &TempDir) -> Writer {
        let path = folder.path().join("x.db");
        let Opened {
            place,
            db,
            file,
            seal,
        } = open(&path, false).unwrap();
        let shared = Shared::new(seal.epoch, Clock::of_the_machine());
        Writer::new(db, place, file, Arc::new(shared))
    }

    fn claim(name: usize, limits: Limits) -> (Job, oneshot::Receiver<Result<Answer, StoreError>>) {
        let claim = Claim {
            head: HeadPrint([0; 32]),
            token: Token(1),
            lease: Duration::from_secs(30),
            ttl: Duration::from_hours(24),
            armed: true,
            rerun: false,
        };
        let (reply, answer) = oneshot::channel();
        let job = Job::Step {
            // So long that a few of them need another page.
            key: RecordKey::new("x".repeat(500), &name.to_string()),
            op: Op::Claim(claim),
            limits,
            reply,
        };
        (job, answer)
    }

    fn answers(writer: &mut Writer, names: &[usize]) -> Vec<Result<Answer, StoreError>> {
        let limits = Limits::default();
        answers_of(writer, names.iter().map(|name| (*name, limits)))
    }

    fn answers_of(
        writer: &mut Writer,
        names: impl Iterator<Item = (usize, Limits)>,
    ) -> Vec<Result<Answer, StoreError>> {
        let claims = names.map(|(name, limits)| claim(name, limits));
        let (mut batch, answers): (Vec<_>, Vec<_>) = claims.unzip();
        writer.write(&mut batch);
        let answers = answers.into_iter();
        answers
            .map(|answer| answer.blocking_recv().unwrap())
            .collect()
    }

    fn is_won(answer: &Result<Answer, StoreError>) -> bool {
        matches!(answer, Ok(Answer::Won { .. }))
    }

    fn set(writer: &Writer, pragma: &str, value: i64) {
        writer.db.pragma_update(None, pragma, value).unwrap();
    }

    fn trouble_passes(pragma: &str, trouble: i64, end: i64) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(&folder);
        assert!(is_won(&answers(&mut writer, &[0])[0]));
        set(&writer, pragma, trouble);
        for names in [[1, 2], [3, 4]] {
            // Each of them would find room by itself; together they are not done, and both say so.
            let many: Vec<_> = names.into_iter().chain(100..150).collect();
            for answer in answers(&mut writer, &many) {
                let error = answer.unwrap_err();
                assert_eq!(error.kind(), StoreErrorKind::Unavailable);
            }
        }
        set(&writer, pragma, end);
        let again = answers(&mut writer, &[0, 1, 2, 3, 4]);
        assert!(matches!(again[0], Ok(Answer::InFlight { .. })), "{again:?}");
        assert!(again[1..].iter().all(is_won), "{again:?}");
    }

    // promise: ID-19
    #[test]
    fn a_full_disk_is_an_error_as_long_as_it_is_full() {
        trouble_passes("max_page_count", 1, 1 << 20);
    }

    #[test]
    fn a_purge_of_more_than_are_held_at_once_takes_just_as_many_as_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(&folder);
        let names: Vec<_> = (0..1_100).collect();
        assert!(answers(&mut writer, &names).iter().all(is_won));
        let mut seal = Seal::read(&writer.db).unwrap();
        let late = seal.moment.after(Duration::from_hours(25));
        for (limit, expected) in [(1_050, 1_050), (1_050, 50), (1_050, 0)] {
            let purged = table::purge(&writer.db, &mut seal, late, limit);
            assert_eq!(purged.unwrap().unwrap(), expected);
        }
        assert_eq!((seal.records, seal.sum), (0, 0));
    }

    #[test]
    fn a_claim_that_was_counted_and_not_written_takes_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(&folder);
        let two = Limits {
            per_scope: Some(2),
            ..Limits::default()
        };
        assert!(is_won(&answers(&mut writer, &[0])[0]));
        set(&writer, "max_page_count", 1);
        // The scope is full when the second is counted, and then there is no room for the others on the disk.
        let others = (100..150).map(|name| (name, Limits::default()));
        for answer in answers_of(&mut writer, [(1, two), (2, two)].into_iter().chain(others)) {
            let error = answer.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        }
        set(&writer, "max_page_count", 1 << 20);
        let again = answers_of(&mut writer, [(3, two), (4, two)].into_iter());
        assert!(is_won(&again[0]), "{again:?}");
        let error = again[1].as_ref().unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::ScopeFull);
    }

    // promise: ID-19
    #[test]
    fn a_database_that_cannot_be_written_is_an_error_as_long_as_it_cannot() {
        trouble_passes("query_only", 1, 0);
    }
}
