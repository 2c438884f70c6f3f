//! The names of the files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use bentocache_driver::{DriverError, ErrorKind};
use sha2::{Digest, Sha256};

use crate::format::MAX_KEY;

/// The number of directories over which entries are spread; each has its own lock.
pub(crate) const SHARDS: usize = 256;

pub(crate) const LOCK_FILE: &str = ".bento-lock";
const ENTRY: &str = ".bento";
const TEMPORARY: &str = ".bento-tmp";
const ENTRY_DIGITS: usize = 62;
const TEMPORARY_DIGITS: usize = 32;

/// The path of a key's entry.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) shard: usize,
    pub(crate) path: PathBuf,
}

impl Place {
    /// # Errors
    /// [`ErrorKind::TooLarge`] for a key longer than [`MAX_KEY`].
    pub(crate) fn of(root: &Path, key: &str) -> Result<Self, DriverError> {
        if key.len() > MAX_KEY {
            return Err(DriverError::new(
                ErrorKind::TooLarge,
                format!(
                    "file cache: a key of {} bytes; the limit is {MAX_KEY}: use a shorter key, \
                     such as a hash of this one",
                    key.len()
                ),
            ));
        }
        // 256 bits: no two keys share a file, and no part of a key becomes a part of the path.
        let hash = Sha256::digest(key);
        let shard = usize::from(hash[0]);
        let path = shard_path(root, shard).join(hex(&hash[1..]) + ENTRY);
        Ok(Self { shard, path })
    }
}

pub(crate) fn shard_path(root: &Path, shard: usize) -> PathBuf {
    root.join(format!("{shard:02x}"))
}

/// A name for a temporary file. It need not be unique: the creation of the file detects a conflict.
pub(crate) fn temporary_name() -> String {
    format!("{:032x}{TEMPORARY}", fastrand::u128(..))
}

/// The kind of a file in a shard's directory, by its name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Entry,
    Temporary,
    /// A foreign file, or the lock.
    Other,
}

impl Kind {
    pub(crate) fn of(name: &OsStr) -> Self {
        let Some(name) = name.to_str() else { return Self::Other };
        let is = |digits, ending| name.strip_suffix(ending).is_some_and(|s| is_hex(s, digits));
        if is(ENTRY_DIGITS, ENTRY) {
            Self::Entry
        } else if is(TEMPORARY_DIGITS, TEMPORARY) {
            Self::Temporary
        } else {
            Self::Other
        }
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_sha_256_of_the_key() {
        let place = Place::of(Path::new("c"), "").unwrap();
        assert_eq!(place.shard, 0xe3);
        assert_eq!(
            place.path,
            Path::new("c/e3/b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.bento")
        );
        assert_eq!(Kind::of(place.path.file_name().unwrap()), Kind::Entry);
        assert_eq!(Kind::of(OsStr::new(&temporary_name())), Kind::Temporary);
    }

    #[test]
    fn other_names_are_not_ours() {
        let entry = "b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for name in [
            entry.to_owned(),
            format!("{entry}.bento.bak"),
            format!("{}.bento", &entry[1..]),
            format!("{}.bento", entry.to_uppercase()),
            format!("{entry}.bento-tmp"),
            LOCK_FILE.to_owned(),
            ".bento".to_owned(),
            ".bento-tmp".to_owned(),
        ] {
            assert_eq!(Kind::of(OsStr::new(&name)), Kind::Other, "{name}");
        }
    }

    #[test]
    fn a_key_beyond_the_limit_is_refused_with_the_limit() {
        assert!(Place::of(Path::new("c"), &"k".repeat(MAX_KEY)).is_ok());
        let error = Place::of(Path::new("c"), &"k".repeat(MAX_KEY + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains("1048576"), "{error}");
    }
}
