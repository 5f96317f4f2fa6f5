//! What all records together come to, in one row: a record that is gone, or that is another, breaks it.

use buttress_idempotency::record::{Moment, RecordKey};
use rusqlite::{Connection, Error, OptionalExtension, types::Type};

use crate::{
    epoch::{Epoch, Mark},
    table::Columns,
};

/// The version of the tables.
pub(crate) const VERSION: i64 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) epoch: Epoch,
    /// How many transactions there have been.
    pub(crate) writes: u64,
    /// The latest moment at which something was done.
    pub(crate) moment: Moment,
    /// The last fence that was given.
    pub(crate) fence: u64,
    /// How many records there are.
    pub(crate) records: u64,
    /// The sum of what each of them comes to, in whatever order they have come and gone.
    pub(crate) sum: u128,
}

impl Seal {
    /// The seal of no records.
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            writes: 0,
            moment: Moment::default(),
            fence: 0,
            records: 0,
            sum: 0,
        }
    }

    pub(crate) fn add(&mut self, key: &RecordKey, columns: &Columns) {
        self.records += 1;
        self.sum = self.sum.wrapping_add(worth(key, columns));
    }

    pub(crate) fn subtract(&mut self, key: &RecordKey, columns: &Columns) {
        self.records = self.records.saturating_sub(1);
        self.sum = self.sum.wrapping_sub(worth(key, columns));
    }

    /// Reads the version alone: another one may have other columns.
    pub(crate) fn version(db: &Connection) -> Result<Option<i64>, Error> {
        let read = "SELECT version FROM main.buttress_store WHERE id = 1";
        db.query_row(read, (), |row| row.get(0)).optional()
    }

    pub(crate) fn read(db: &Connection) -> Result<Self, Error> {
        let read = "SELECT epoch, writes, moment, fence, records, sum, checksum \
             FROM main.buttress_store WHERE id = 1 AND version = 1";
        let mut read = db.prepare_cached(read)?;
        read.query_row((), |row| {
            let seal = Self {
                epoch: row.get(0)?,
                writes: unsigned(row.get(1)?),
                moment: Moment(unsigned(row.get(2)?)),
                fence: unsigned(row.get(3)?),
                records: unsigned(row.get(4)?),
                sum: u128::from_le_bytes(row.get(5)?),
            };
            if seal.checksum() == row.get::<_, [u8; 16]>(6)? {
                return Ok(seal);
            }
            let why = "the seal does not have its checksum".into();
            Err(Error::FromSqlConversionFailure(6, Type::Blob, why))
        })
    }

    /// Writes it down, as the end of one more transaction at this moment.
    pub(crate) fn write(&mut self, db: &Connection, now: Moment) -> Result<(), Error> {
        self.writes += 1;
        self.moment = now;
        let write = "INSERT INTO main.buttress_store (id, version, epoch, writes, moment, fence, records, sum, checksum) \
             VALUES (1, 1, ?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (id) DO UPDATE SET writes = excluded.writes, \
             moment = excluded.moment, fence = excluded.fence, records = excluded.records, sum = excluded.sum, \
             checksum = excluded.checksum";
        let sum = self.sum.to_le_bytes();
        db.prepare_cached(write)?.execute((
            self.epoch,
            signed(self.writes),
            signed(self.moment.0),
            signed(self.fence),
            signed(self.records),
            sum,
            self.checksum(),
        ))?;
        Ok(())
    }

    /// What is known of it beside the database.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            epoch: self.epoch,
            writes: self.writes,
            fence: self.fence,
        }
    }

    fn checksum(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(b"buttress sqlite, version 1, seal");
        hasher.update(&self.epoch);
        hasher.update(&self.writes.to_le_bytes());
        hasher.update(&self.moment.0.to_le_bytes());
        hasher.update(&self.fence.to_le_bytes());
        hasher.update(&self.records.to_le_bytes());
        hasher.update(&self.sum.to_le_bytes());
        first_half(&hasher)
    }
}

/// What a record adds to the sum: a hash of all its columns but the record itself, whose checksum is one of them.
fn worth(key: &RecordKey, columns: &Columns) -> u128 {
    let mut hasher = blake3::Hasher::new_keyed(b"buttress sqlite, version 1,  row");
    hasher.update(&(key.scope.len() as u64).to_le_bytes());
    hasher.update(key.scope.as_bytes());
    hasher.update(&key.hash);
    hasher.update(&[columns.state as u8]);
    hasher.update(&columns.lease_until.unwrap_or(-1).to_le_bytes());
    hasher.update(&columns.expires_at.to_le_bytes());
    hasher.update(&columns.fence.to_le_bytes());
    hasher.update(&columns.checksum);
    u128::from_le_bytes(first_half(&hasher))
}

fn first_half(hasher: &blake3::Hasher) -> [u8; 16] {
    let whole = hasher.finalize();
    let (half, _) = whole.as_bytes().split_at(16);
    half.try_into().expect("half of 32 bytes are 16")
}

/// A number as SQLite has it; one that is too large is its largest.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
