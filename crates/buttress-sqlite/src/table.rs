//! The records as rows of a table, and an operation on one of them.

use buttress_idempotency::{
    StoreError, StoreErrorKind,
    encode::{decode, encode},
    record::{self, Answer, Change, Moment, Op, Record, RecordKey, State},
};
use rusqlite::{
    Connection, Error, OptionalExtension, Row,
    types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef},
};

use crate::seal::{Seal, signed};

/// What makes the tables, by name. It is in the file as it stands here.
pub(crate) const SCHEMA: [(&str, &str); 3] = [
    (
        "buttress_store",
        "CREATE TABLE buttress_store (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, epoch BLOB NOT NULL, \
         writes INTEGER NOT NULL, moment INTEGER NOT NULL, fence INTEGER NOT NULL, records INTEGER NOT NULL, sum BLOB NOT NULL, checksum BLOB NOT NULL)",
    ),
    (
        "buttress_records",
        "CREATE TABLE buttress_records (scope TEXT NOT NULL, hash BLOB NOT NULL, state TEXT NOT NULL, \
         lease_until INTEGER, expires_at INTEGER NOT NULL, fence INTEGER NOT NULL, checksum BLOB NOT NULL, \
         record BLOB NOT NULL, PRIMARY KEY (scope, hash)) WITHOUT ROWID",
    ),
    (
        "buttress_records_by_expiry",
        "CREATE INDEX buttress_records_by_expiry ON buttress_records (expires_at)",
    ),
];

/// The most expired records that are held in memory while they are removed.
const PURGED_AT_ONCE: usize = 1_024;

/// What a row says of its record. An operator and an index go by it; what counts is in the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    pub(crate) state: Stage,
    pub(crate) lease_until: Option<i64>,
    /// When the record is forgotten, if nothing is heard until then.
    pub(crate) expires_at: i64,
    pub(crate) fence: i64,
    /// The checksum at the end of the record.
    pub(crate) checksum: [u8; 16],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    Armed,
    Unknown,
    Done,
}

impl Stage {
    const ALL: [(Self, &str); 4] = [
        (Self::Running, "running"),
        (Self::Armed, "armed"),
        (Self::Unknown, "unknown"),
        (Self::Done, "done"),
    ];
}

impl ToSql for Stage {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let (_, name) = Self::ALL[*self as usize];
        Ok(name.into())
    }
}

impl FromSql for Stage {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        let mut all = Self::ALL.into_iter();
        let found = all.find(|(_, other)| *other == name);
        found.map_or(Err(FromSqlError::InvalidType), |(stage, _)| Ok(stage))
    }
}

impl Columns {
    fn of(record: &Record, bytes: &[u8]) -> Self {
        let (state, lease_until) = match record.state {
            State::Running {
                lease_until, armed, ..
            } => (
                if armed { Stage::Armed } else { Stage::Running },
                Some(lease_until),
            ),
            State::Unknown { .. } => (Stage::Unknown, None),
            State::Done { .. } => (Stage::Done, None),
        };
        Self {
            state,
            lease_until: lease_until.map(|moment| signed(moment.0)),
            expires_at: signed(record.kept_until().0),
            fence: signed(record.fence),
            checksum: bytes.last_chunk().copied().unwrap_or_default(),
        }
    }

    /// Reads the columns, which begin with this one.
    pub(crate) fn read(row: &Row<'_>, from: usize) -> rusqlite::Result<Self> {
        Ok(Self {
            state: row.get(from)?,
            lease_until: row.get(from + 1)?,
            expires_at: row.get(from + 2)?,
            fence: row.get(from + 3)?,
            checksum: row.get(from + 4)?,
        })
    }
}

/// A record that is there, with its row.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) columns: Columns,
    pub(crate) record: Record,
}

impl Kept {
    /// Reads the columns, which begin with this one, and the record. The row of another record, or one that does not say of
    /// its record what it should, is damaged.
    fn read(
        key: &RecordKey,
        row: &Row<'_>,
        from: usize,
    ) -> rusqlite::Result<Result<Self, StoreError>> {
        let damaged = |why: Error| Ok(Err(StoreError::new(StoreErrorKind::Damaged).because(why)));
        let columns = match Columns::read(row, from) {
            Ok(columns) => columns,
            Err(error) => return damaged(error),
        };
        let bytes = row.get_ref(from + 5)?;
        let bytes = match bytes.as_blob() {
            Ok(bytes) => bytes,
            Err(error) => return damaged(error.into()),
        };
        Ok(decode(key, bytes).and_then(|record| {
            if columns == Columns::of(&record, bytes) {
                return Ok(Self { columns, record });
            }
            let why = "a record is not what its row says of it";
            Err(StoreError::new(StoreErrorKind::Damaged).because(why))
        }))
    }
}

/// What a transaction can do for one of its operations: its own errors end the transaction, those inside end only the
/// operation.
pub(crate) type Each<T> = rusqlite::Result<Result<T, StoreError>>;

pub(crate) fn find(db: &Connection, key: &RecordKey) -> Each<Option<Kept>> {
    let find = "SELECT state, lease_until, expires_at, fence, checksum, record FROM main.buttress_records \
         WHERE scope = ?1 AND hash = ?2";
    let mut find = db.prepare_cached(find)?;
    let found = find
        .query_row((&key.scope, key.hash), |row| Kept::read(key, row, 0))
        .optional()?;
    Ok(found.transpose())
}

/// Does an operation, and puts the seal right. A record that was not there, or has expired, needs room.
pub(crate) fn step(
    db: &Connection,
    seal: &mut Seal,
    now: Moment,
    key: &RecordKey,
    op: &Op,
    room: impl FnOnce(&mut Seal, bool) -> Each<()>,
) -> Each<Answer> {
    let before = match find(db, key)? {
        Ok(before) => before,
        Err(damaged) => return Ok(Err(damaged)),
    };
    let record = before.as_ref().map(|kept| &kept.record);
    let (answer, change) = record::step(record, now, seal.fence, op);
    let after = match change {
        Change::Keep => return Ok(Ok(answer)),
        Change::Put(after) => Some(after),
        Change::Remove => None,
    };
    let was_there = record.is_some_and(|record| record.at(now).is_some());
    if after.is_some()
        && !was_there
        && let Err(full) = room(seal, before.is_some())?
    {
        return Ok(Err(full));
    }
    if let Answer::Won { fence } = answer {
        seal.fence = fence;
    }
    match after {
        Some(after) => put(db, seal, key, before.as_ref(), &after),
        None => before.map_or(Ok(()), |kept| remove(db, seal, key, &kept.columns)),
    }
    .map(|()| Ok(answer))
}

fn put(
    db: &Connection,
    seal: &mut Seal,
    key: &RecordKey,
    before: Option<&Kept>,
    after: &Record,
) -> rusqlite::Result<()> {
    // Which of them it is is known, and to tell SQLite costs less than to ask it.
    let write = match before {
        None => {
            "INSERT INTO main.buttress_records (scope, hash, state, lease_until, expires_at, fence, checksum, record) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
        }
        Some(_) => {
            "UPDATE main.buttress_records SET state = ?3, lease_until = ?4, expires_at = ?5, fence = ?6, checksum = ?7, \
             record = ?8 WHERE scope = ?1 AND hash = ?2"
        }
    };
    let bytes = encode(key, after);
    let columns = Columns::of(after, &bytes);
    db.prepare_cached(write)?.execute((
        &key.scope,
        key.hash,
        columns.state,
        columns.lease_until,
        columns.expires_at,
        columns.fence,
        columns.checksum,
        bytes,
    ))?;
    if let Some(before) = before {
        seal.subtract(key, &before.columns);
    }
    seal.add(key, &columns);
    Ok(())
}

fn remove(
    db: &Connection,
    seal: &mut Seal,
    key: &RecordKey,
    columns: &Columns,
) -> rusqlite::Result<()> {
    let remove = "DELETE FROM main.buttress_records WHERE scope = ?1 AND hash = ?2";
    db.prepare_cached(remove)?.execute((&key.scope, key.hash))?;
    seal.subtract(key, columns);
    Ok(())
}

/// Forgets up to so many records that have expired, and returns how many. Those that are damaged stay; it is an error where
/// there is nothing else.
pub(crate) fn purge(db: &Connection, seal: &mut Seal, now: Moment, limit: usize) -> Each<usize> {
    let mut purged = 0;
    while purged < limit {
        match purge_some(db, seal, now, PURGED_AT_ONCE.min(limit - purged))? {
            Ok(0) => break,
            Ok(some) => purged += some,
            Err(damaged) if purged == 0 => return Ok(Err(damaged)),
            Err(_) => break,
        }
    }
    Ok(Ok(purged))
}

fn purge_some(db: &Connection, seal: &mut Seal, now: Moment, limit: usize) -> Each<usize> {
    let expired = "SELECT scope, hash, state, lease_until, expires_at, fence, checksum, record \
         FROM main.buttress_records INDEXED BY buttress_records_by_expiry WHERE expires_at <= ?1 LIMIT ?2";
    let mut expired = db.prepare_cached(expired)?;
    let expired = expired.query_map((signed(now.0), signed(limit as u64)), |row| {
        let key = read_key(row)?;
        Ok(Kept::read(&key, row, 2)?.map(|kept| (key, kept)))
    })?;
    // They are all read before the first is removed: the index changes with it.
    let expired = expired.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut purged = 0;
    let mut damaged = None;
    for expired in expired {
        match expired {
            Ok((key, kept)) => {
                remove(db, seal, &key, &kept.columns)?;
                purged += 1;
            }
            Err(error) => damaged = Some(error),
        }
    }
    Ok(match damaged {
        Some(error) if purged == 0 => Err(error),
        _ => Ok(purged),
    })
}

/// It looks at all that is behind the key, until it has enough. An index of what is open would be written with each claim.
const LIST_OPEN: &str = "SELECT scope, hash, state, lease_until, expires_at, fence, checksum, record \
     FROM main.buttress_records WHERE state <> 'done' AND (scope, hash) > (?1, ?2) ORDER BY scope, hash";

/// The records behind this key that are running or unknown.
pub(crate) fn list_open(
    db: &Connection,
    now: Moment,
    after: Option<&RecordKey>,
    limit: usize,
) -> Each<Vec<(RecordKey, Record)>> {
    let mut list = db.prepare_cached(LIST_OPEN)?;
    // All keys are behind one that has no hash.
    let (scope, hash) = after.map_or(("", &[][..]), |key| (&key.scope, &key.hash));
    let mut rows = list.query((scope, hash))?;
    let mut open = Vec::new();
    while open.len() < limit
        && let Some(row) = rows.next()?
    {
        let key = read_key(row)?;
        match Kept::read(&key, row, 2)? {
            Ok(kept) => open.extend(kept.record.at(now).map(|record| (key, record))),
            Err(damaged) => return Ok(Err(damaged)),
        }
    }
    Ok(Ok(open))
}

pub(crate) fn read_key(row: &Row<'_>) -> rusqlite::Result<RecordKey> {
    Ok(RecordKey {
        scope: row.get(0)?,
        hash: row.get(1)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_looked_for_from_where_the_last_page_ended() {
        let db = Connection::open_in_memory().unwrap();
        for (_, sql) in SCHEMA {
            db.execute_batch(sql).unwrap();
        }
        let mut plan = db
            .prepare(&format!("EXPLAIN QUERY PLAN {LIST_OPEN}"))
            .unwrap();
        let steps = plan.query_map(("a", [1; 32]), |row| row.get::<_, String>(3));
        let steps: Vec<_> = steps.unwrap().map(Result::unwrap).collect();
        let search = "SEARCH main.buttress_records USING PRIMARY KEY ((scope,hash)>(?,?))";
        assert_eq!(steps, [search]);
    }
}
