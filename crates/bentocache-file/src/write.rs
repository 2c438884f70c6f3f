//! Writes a temporary file and moves it to its place.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bentocache_driver::DriverError;

use crate::error::failed;
use crate::layout::temporary_name;

/// A temporary file. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    moved: bool,
}

impl Temporary {
    /// Writes `parts` to a new file in `directory`, and flushes it to the disk if it must be
    /// durable.
    pub(crate) fn write(
        directory: &Path,
        parts: &[&[u8]],
        durable: bool,
    ) -> Result<Self, DriverError> {
        let (mut file, temporary) =
            Self::create(directory).map_err(|error| failed("write in", directory, error))?;
        parts
            .iter()
            .try_for_each(|part| file.write_all(part))
            .and_then(|()| if durable { file.sync_all() } else { Ok(()) })
            .map_err(|error| failed("write", &temporary.path, error))?;
        Ok(temporary)
    }

    /// A new, empty file.
    pub(crate) fn create(directory: &Path) -> io::Result<(fs::File, Self)> {
        loop {
            let path = directory.join(temporary_name());
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((file, Self { path, moved: false })),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Atomically replaces the file at `place`.
    pub(crate) fn move_to(mut self, place: &Path) -> Result<(), DriverError> {
        fs::rename(&self.path, place).map_err(|error| failed("replace", place, error))?;
        self.moved = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.moved {
            // If this also fails, prune removes the file in an hour.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes renames, creations and removals in a directory survive a power failure.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), DriverError> {
    // On other systems directories cannot be opened, and file systems log such changes.
    if cfg!(unix) {
        fs::File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| failed("write to the disk", directory, error))?;
    }
    Ok(())
}
