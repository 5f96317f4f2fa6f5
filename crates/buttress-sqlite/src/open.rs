//! How a store is opened, and what is looked at before it is trusted.

use std::{error::Error, fmt, fs, io, path::Path, thread, time::Duration};

use buttress_idempotency::record::Moment;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior,
};
use uuid::Uuid;

use crate::{
    epoch::{self, EpochFile, Found, Mark},
    place::Place,
    seal::{Seal, VERSION},
    table::{Columns, SCHEMA, read_key},
};

/// How long SQLite waits for a writer elsewhere.
const BUSY: Duration = Duration::from_secs(2);

/// How long it waits by itself between two attempts, where SQLite does not wait.
const PAUSE: Duration = Duration::from_millis(5);

/// A store could not be opened. Its records are as they were.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no store, though there was one.
    Missing,
    /// The database lacks transactions that it once had: it is a backup, or has lost its end.
    Older,
    /// The database is another store than the one that was here before.
    Replaced,
    /// The `-epoch` file is damaged: it cannot be told whether the database is the one that was here.
    DamagedEpoch,
    /// The database is damaged, in this way.
    Damaged(String),
    /// The tables are of this version, which is not known.
    Version(i64),
    /// SQLite cannot open it.
    Sqlite(rusqlite::Error),
    /// A file cannot be read or written.
    Io(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no store, though there was one"),
            Self::Older => f.write_str("the store is older than it once was, and lacks records"),
            Self::Replaced => f.write_str("the store is not the one that was here before"),
            Self::DamagedEpoch => f.write_str("the store's `-epoch` file is damaged"),
            Self::Damaged(how) => write!(f, "the store is damaged: {how}"),
            Self::Version(version) => write!(f, "version {version} of a store is not known"),
            Self::Sqlite(_) => f.write_str("SQLite cannot open the store"),
            Self::Io(_) => f.write_str("a file of the store cannot be read or written"),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Sqlite(error) => Some(error),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        // Unknown is what SQLite calls a table or a column that is not there.
        let damaged = match error.sqlite_error_code() {
            Some(code) => matches!(
                code,
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown
            ),
            None => matches!(
                error,
                rusqlite::Error::FromSqlConversionFailure(..)
                    | rusqlite::Error::InvalidColumnType(..)
                    | rusqlite::Error::IntegralValueOutOfRange(..)
                    | rusqlite::Error::Utf8Error(..)
                    | rusqlite::Error::QueryReturnedNoRows
            ),
        };
        if damaged {
            Self::Damaged(error.to_string())
        } else {
            Self::Sqlite(error)
        }
    }
}

/// A store that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) place: Place,
    pub(crate) db: Connection,
    pub(crate) file: EpochFile,
    pub(crate) seal: Seal,
}

/// Opens a store, or makes one where there never was one; with `create`, also where there is none any more.
pub(crate) fn open(path: &Path, create: bool) -> Result<Opened, OpenError> {
    // So that it is a file, whatever its name means to SQLite.
    let path = std::path::absolute(path)?;
    let epoch_path = epoch::path(&path);
    let mark = match epoch::read(&epoch_path)? {
        Found::Mark(mark) => Some(mark),
        Found::Nothing => None,
        Found::Damaged if create => None,
        Found::Damaged => return Err(OpenError::DamagedEpoch),
    };
    let is_empty = |path: &Path| match fs::metadata(path) {
        Ok(file) => Ok(file.len() == 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    };
    // SQLite would throw the log of an empty database away.
    let log = epoch::beside(&path, "-wal");
    if !create && is_empty(&path)? && (mark.is_some() || !is_empty(&log)?) {
        return Err(OpenError::Missing);
    }
    let mut db = connect(&path)?;
    let mut seal = prepare(&mut db, mark, create)?;
    if let Some(mark) = mark {
        if create {
            seal = take_over(&mut db, mark)?;
        } else if mark.epoch != seal.epoch {
            return Err(OpenError::Replaced);
        } else if mark.writes > seal.writes {
            return Err(OpenError::Older);
        }
    }
    let file = EpochFile::write(&epoch_path, seal.mark())?;
    Ok(Opened {
        place: Place::of(path)?,
        db,
        file,
        seal,
    })
}

/// Opens a connection that writes as a store has to.
pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    // First of all: what follows reads the file.
    db.pragma_update(None, "cell_size_check", true)?;
    let mode = become_wal(&db)?;
    if mode != "wal" {
        let why = format!("the journal cannot be a write-ahead log, it is `{mode}`");
        return Err(rusqlite::Error::ToSqlConversionFailure(why.into()));
    }
    db.pragma_update(None, "synchronous", "full")?;
    // A disk of Apple's that says that it has written has not, unless it is asked so.
    db.pragma_update(None, "fullfsync", true)?;
    Ok(db)
}

/// Makes the journal a write-ahead log. SQLite does not wait for others that are just doing the same.
fn become_wal(db: &Connection) -> rusqlite::Result<String> {
    let mut waited = Duration::ZERO;
    loop {
        match db.query_row("PRAGMA journal_mode = wal", (), |row| row.get(0)) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && waited < BUSY =>
            {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "it waits for another process, whose time cannot be paused"
                )]
                thread::sleep(PAUSE);
                waited += PAUSE;
            }
            mode => return mode,
        }
    }
}

/// Makes the tables, or looks through those that are there.
fn prepare(db: &mut Connection, mark: Option<Mark>, create: bool) -> Result<Seal, OpenError> {
    if !has_store(db)? {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have made them by now.
        if !has_store(&transaction)? {
            if mark.is_some() && !create {
                return Err(OpenError::Missing);
            }
            for (_, sql) in SCHEMA {
                transaction.execute_batch(sql)?;
            }
            let mut seal = Seal::new(Uuid::new_v4().into_bytes());
            seal.write(&transaction, Moment::default())?;
            transaction.commit()?;
        }
    }
    // All that is looked at is of one moment.
    look_through(&db.transaction()?)
}

/// Has a store go on from where the one was that it replaces: fences rise even if all else is forgotten, and the replaced one
/// is older than this one, should it come back.
fn take_over(db: &mut Connection, mark: Mark) -> Result<Seal, OpenError> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have written by now.
    let mut seal = Seal::read(&transaction)?;
    if mark.fence > seal.fence || mark.writes > seal.writes {
        seal.fence = seal.fence.max(mark.fence);
        seal.writes = seal.writes.max(mark.writes);
        let moment = seal.moment;
        seal.write(&transaction, moment)?;
        transaction.commit()?;
    }
    Ok(seal)
}

/// Does this database have the tables of a store?
pub(crate) fn has_store(db: &Connection) -> rusqlite::Result<bool> {
    let find = "SELECT 1 FROM main.sqlite_schema WHERE name = 'buttress_store'";
    db.prepare_cached(find)?.exists(())
}

fn look_through(db: &Transaction<'_>) -> Result<Seal, OpenError> {
    let damaged = |how: &str| Err(OpenError::Damaged(how.into()));
    match Seal::version(db)? {
        Some(VERSION) => {}
        Some(other) => return Err(OpenError::Version(other)),
        None => return damaged("it has no seal"),
    }
    for (name, sql) in SCHEMA {
        let find = "SELECT sql FROM main.sqlite_schema WHERE name = ?1";
        let found: Option<String> = db.query_row(find, [name], |row| row.get(0)).optional()?;
        if found.as_deref() != Some(sql) {
            return damaged("its tables are not what they were");
        }
    }
    // Among other things this says that records are where they are looked for.
    check_pages(db)?;
    let seal = Seal::read(db)?;
    let mut found = Seal {
        records: 0,
        sum: 0,
        ..seal.clone()
    };
    let read = "SELECT scope, hash, state, lease_until, expires_at, fence, checksum \
         FROM main.buttress_records NOT INDEXED ORDER BY scope, hash";
    let mut read = db.prepare(read)?;
    let mut rows = read.query(())?;
    while let Some(row) = rows.next()? {
        let key = read_key(row)?;
        found.add(&key, &Columns::read(row, 2)?);
    }
    if found != seal {
        return damaged("its records are not those that were written");
    }
    Ok(seal)
}

/// Has SQLite check its pages: all of them, or the store's, if others have tables in the file, which may be large.
fn check_pages(db: &Transaction<'_>) -> Result<(), OpenError> {
    let others = "SELECT count(*) FROM main.sqlite_schema WHERE type = 'table' AND name NOT IN ('buttress_store', 'buttress_records')";
    let others: u32 = db.query_row(others, (), |row| row.get(0))?;
    let checks: &[&str] = match others {
        0 => &["PRAGMA main.integrity_check(1)"],
        _ => &[
            "PRAGMA main.integrity_check(buttress_store)",
            "PRAGMA main.integrity_check(buttress_records)",
        ],
    };
    for check in checks {
        let result: String = db.query_row(check, (), |row| row.get(0))?;
        if result != "ok" {
            return Err(OpenError::Damaged(result));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // promise: ID-18
    #[test]
    fn a_database_that_cannot_have_a_log_is_refused() {
        let refused = connect(Path::new(":memory:")).unwrap_err();
        assert!(refused.to_string().contains("it is `memory`"), "{refused}");
    }
}
