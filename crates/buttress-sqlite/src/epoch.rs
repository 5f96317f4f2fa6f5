//! A file beside the database, by which one that is gone is told from one that never was.
//!
//! ```text
//! format: 8 bytes    epoch: 16 bytes    writes: 8 bytes    fence: 8 bytes    checksum: 16 bytes of BLAKE3 over all that
//! ```
//!
//! It is written after each transaction, and before its operations are answered. It is not brought to the disk each time:
//! after a power failure it may be of an earlier transaction, but never of one that the database has not on the disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

const FORMAT: &[u8; 8] = b"buttres1";
const LENGTH: usize = 56;

/// Which database it is. Drawn at random when it is made.
pub(crate) type Epoch = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) epoch: Epoch,
    /// How many transactions it has had.
    pub(crate) writes: u64,
    /// The last fence that it has given.
    pub(crate) fence: u64,
}

/// What a file said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Damaged,
    Mark(Mark),
}

pub(crate) fn path(database: &Path) -> PathBuf {
    beside(database, "-epoch")
}

/// The path of a file with this at the end of its name.
pub(crate) fn beside(database: &Path, end: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(end);
    name.into()
}

pub(crate) fn read(path: &Path) -> io::Result<Found> {
    // One that is being written by another process may look damaged; hardly twice.
    match read_once(path)? {
        Found::Damaged => read_once(path),
        found => Ok(found),
    }
}

fn read_once(path: &Path) -> io::Result<Found> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(1_000).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    Ok(Mark::of_bytes(&bytes).map_or(Found::Damaged, Found::Mark))
}

impl Mark {
    fn to_bytes(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(FORMAT);
        bytes[8..24].copy_from_slice(&self.epoch);
        bytes[24..32].copy_from_slice(&self.writes.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.fence.to_le_bytes());
        let sum = blake3::hash(&bytes[..40]);
        bytes[40..].copy_from_slice(&sum.as_bytes()[..16]);
        bytes
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let epoch = bytes.get(8..24)?.try_into().ok()?;
        let writes = u64::from_le_bytes(bytes.get(24..32)?.try_into().ok()?);
        let fence = u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?);
        let mark = Self {
            epoch,
            writes,
            fence,
        };
        (mark.to_bytes() == bytes).then_some(mark)
    }
}

/// The file, open to be written.
#[derive(Debug)]
pub(crate) struct EpochFile(File);

impl EpochFile {
    /// Opens the file, or makes it, and brings this to the disk.
    pub(crate) fn write(path: &Path, mark: Mark) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        // It is as long as before, so that there is no moment at which it is empty.
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut file = Self(file);
        file.update(mark)?;
        file.0.set_len(LENGTH as u64)?;
        file.0.sync_all()?;
        sync_folder(path)?;
        Ok(file)
    }

    pub(crate) fn update(&mut self, mark: Mark) -> io::Result<()> {
        self.0.seek(SeekFrom::Start(0))?;
        self.0.write_all(&mark.to_bytes())
    }
}

/// Brings the names of the files in the folder of this one to the disk.
#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
