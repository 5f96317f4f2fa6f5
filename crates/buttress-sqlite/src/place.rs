//! Where the database is: a file that is open may be removed, and another one put there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A path, and which file was there.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    file: (u64, u64),
}

impl Place {
    pub(crate) fn of(path: PathBuf) -> io::Result<Self> {
        let file = file_at(&path)?;
        Ok(Self { path, file })
    }

    /// Is that file still there?
    pub(crate) fn is_kept(&self) -> bool {
        file_at(&self.path).is_ok_and(|file| file == self.file)
    }
}

#[cfg(unix)]
fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;

    let file = fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Elsewhere a file that is open cannot be removed.
#[cfg(not(unix))]
fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|_| (0, 0))
}
