//! Reads an entry's file. It takes no lock: a file under an entry's name is complete and never
//! changes; it is only replaced.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use crate::error::is_absent;
use crate::format::{self, Expiry, HEADER, Head};

/// The contents of an entry's place.
#[derive(Debug)]
pub(crate) enum Found<T> {
    Nothing,
    Live(T),
    Expired,
    /// A file that is not a complete entry of this place.
    Foreign,
}

/// A value and its expiry.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) value: Bytes,
    pub(crate) expiry: Expiry,
}

/// The value of the key at `path`.
pub(crate) fn content(path: &Path, key: &str, now: Duration) -> io::Result<Found<Content>> {
    let (mut file, len) = match open(path)? {
        Found::Live(opened) => opened,
        Found::Nothing => return Ok(Found::Nothing),
        Found::Expired | Found::Foreign => return Ok(Found::Foreign),
    };
    let mut bytes = Vec::new();
    read_up_to(&mut file, &mut bytes, len)?;
    let Some(head) = whole(&bytes, len, key) else { return Ok(Found::Foreign) };
    let (expiry, value_at) = (head.expiry, head.value_at());
    if expiry.passed(now) {
        return Ok(Found::Expired);
    }
    // The header and the key stay in the buffer: that is cheaper than moving the value.
    Ok(Found::Live(Content { value: Bytes::from(bytes).slice(value_at..), expiry }))
}

fn whole<'a>(bytes: &'a [u8], len: u64, key: &str) -> Option<Head<'a>> {
    let head = format::decode(bytes, len)?;
    let value = bytes.get(head.value_at()..)?;
    // The length is checked again: a foreign file may shrink while it is read.
    (bytes.len() as u64 == len && head.key == key && head.fits(value)).then_some(head)
}

/// The key of the entry at `path`, without reading its value.
pub(crate) fn key(path: &Path, now: Duration) -> io::Result<Found<String>> {
    /// Enough for most keys in one system call.
    const FIRST: u64 = 1024;
    let (mut file, len) = match open(path)? {
        Found::Live(opened) => opened,
        Found::Nothing => return Ok(Found::Nothing),
        Found::Expired | Found::Foreign => return Ok(Found::Foreign),
    };
    let mut bytes = Vec::new();
    read_up_to(&mut file, &mut bytes, len.min(FIRST))?;
    let needed = format::head_len(&bytes).unwrap_or(HEADER);
    if let Some(more) = needed.checked_sub(bytes.len()) {
        read_up_to(&mut file, &mut bytes, more as u64)?;
    }
    Ok(match format::decode(&bytes, len) {
        None => Found::Foreign,
        Some(head) if head.expiry.passed(now) => Found::Expired,
        Some(head) => Found::Live(head.key.to_owned()),
    })
}

fn open(path: &Path) -> io::Result<Found<(fs::File, u64)>> {
    // Checked first, so that no link is followed and no pipe is waited for.
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(Found::Foreign),
        Err(error) if is_absent(&error) => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    }
    match fs::File::open(path) {
        Ok(file) => {
            let len = file.metadata()?.len();
            Ok(Found::Live((file, len)))
        }
        Err(error) if is_absent(&error) => Ok(Found::Nothing),
        Err(error) => Err(error),
    }
}

/// Appends `len` bytes, or fewer if the file is shorter.
fn read_up_to(file: &mut fs::File, bytes: &mut Vec<u8>, len: u64) -> io::Result<()> {
    let capacity = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // Returns an error instead of aborting if memory does not suffice.
    bytes.try_reserve_exact(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?;
    file.take(len).read_to_end(bytes)?;
    Ok(())
}
