//! A file beside the database, by which one that is gone is told from one that never was.
//!
//! ```text
//! format: 8 bytes    epoch: 16 bytes    writes: 8 bytes    fence: 8 bytes    checksum: 16 bytes of BLAKE3 over all that
//! ```
//!
//! It is written after each transaction of the store's own, and before its operations are answered; it has heard of a
//! transaction of somebody else by then too. It is not brought to the disk each time: after a power failure it may be of an
//! earlier transaction, but never of one that the database has not on the disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

const FORMAT: &[u8; 8] = b"buttres1";
const LENGTH: usize = 56;

/// How often a file that looks damaged is looked at again.
const PAUSES: usize = 20;
const PAUSE: Duration = Duration::from_millis(2);

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
    #[expect(
        clippy::disallowed_methods,
        reason = "it waits for another process, whose time cannot be paused"
    )]
    read_often(path, || thread::sleep(PAUSE))
}

/// One that another process is just making is empty, and one that it is writing may look damaged: not for long.
fn read_often(path: &Path, mut pause: impl FnMut()) -> io::Result<Found> {
    for _ in 0..PAUSES {
        match read_once(path)? {
            Found::Damaged => pause(),
            found => return Ok(found),
        }
    }
    read_once(path)
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

/// The file, open to be written, and what was written last.
#[derive(Debug)]
pub(crate) struct EpochFile {
    file: File,
    pub(crate) mark: Mark,
}

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
        let mut file = Self { file, mark };
        file.update(mark)?;
        file.file.set_len(LENGTH as u64)?;
        file.file.sync_all()?;
        sync_folder(path)?;
        Ok(file)
    }

    pub(crate) fn update(&mut self, mark: Mark) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&mark.to_bytes())?;
        self.mark = mark;
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark {
        epoch: [7; 16],
        writes: 5,
        fence: 1 << 50,
    };

    // promise: ID-19
    #[test]
    fn a_file_of_which_any_byte_is_another_is_damaged() {
        let bytes = MARK.to_bytes();
        assert_eq!(&bytes[..8], b"buttres1");
        assert_eq!(Mark::of_bytes(&bytes), Some(MARK));
        for place in 0..LENGTH {
            let mut bytes = bytes;
            bytes[place] ^= 1;
            assert_eq!(Mark::of_bytes(&bytes), None, "{place}");
        }
    }

    #[test]
    fn a_file_that_another_process_is_just_making_is_not_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db-epoch");
        File::create(&path).unwrap();
        let mut pauses = 0;
        let found = read_often(&path, || {
            pauses += 1;
            if pauses == 3 {
                EpochFile::write(&path, MARK).unwrap();
            }
        });
        assert_eq!(found.unwrap(), Found::Mark(MARK));
        assert_eq!(pauses, 3);
    }
}
