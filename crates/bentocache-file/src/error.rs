//! What went wrong, at which path, and what to do about it.

use std::io::{self, ErrorKind as Io};
use std::path::Path;

use bentocache_core::{DriverError, ErrorKind};

/// The error of a failed system call: `doing` completes "cannot …".
pub(crate) fn failed(doing: &str, path: &Path, error: io::Error) -> DriverError {
    let kind = match error.kind() {
        Io::FileTooLarge => ErrorKind::TooLarge,
        _ => ErrorKind::Unavailable,
    };
    DriverError::new(kind, explain(doing, path, &error)).with_source(error)
}

/// The same while the cache is built, where what will not heal by itself is a wrong setting.
pub(crate) fn unusable(doing: &str, path: &Path, error: io::Error) -> DriverError {
    let kind = match error.kind() {
        Io::AlreadyExists
        | Io::InvalidFilename
        | Io::InvalidInput
        | Io::IsADirectory
        | Io::NotADirectory
        | Io::NotFound
        | Io::PermissionDenied
        | Io::ReadOnlyFilesystem
        | Io::Unsupported => ErrorKind::Config,
        _ => ErrorKind::Unavailable,
    };
    DriverError::new(kind, explain(doing, path, &error)).with_source(error)
}

fn explain(doing: &str, path: &Path, error: &io::Error) -> String {
    let advice = match error.kind() {
        Io::PermissionDenied => "give this process's user the right to read and write there",
        Io::StorageFull | Io::QuotaExceeded => "free some space, or prune more often",
        Io::ReadOnlyFilesystem => "mount it writable, or choose another directory",
        Io::FileTooLarge => "it is beyond the largest file the file system takes",
        Io::AlreadyExists | Io::IsADirectory | Io::NotADirectory => {
            "something else is in the way: remove it, or choose another directory"
        }
        Io::NotFound => "the directory is not there, or is being removed",
        Io::Unsupported => "the file system cannot do it: choose a directory on another one",
        _ => "the cause is the source of this error",
    };
    format!("file cache: cannot {doing} {} ({}): {advice}", path.display(), error.kind())
}

/// Whether the cause is that the path, or a directory on the way to it, is not there.
pub(crate) fn is_missing(error: &DriverError) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(is_absent)
}

pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), Io::NotFound | Io::NotADirectory)
}

pub(crate) fn no_runtime(error: tokio::runtime::TryCurrentError) -> DriverError {
    DriverError::new(ErrorKind::Closed, "file cache: it must be used inside a Tokio runtime")
        .with_source(error)
}

pub(crate) fn unfinished(error: tokio::task::JoinError) -> DriverError {
    if error.is_cancelled() {
        return DriverError::new(ErrorKind::Closed, "file cache: the Tokio runtime is shut down");
    }
    DriverError::unavailable("file cache: an operation panicked, please report it", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_path_and_what_to_do() {
        let full = failed("write", Path::new("/c/ab"), Io::StorageFull.into());
        assert_eq!(full.kind(), ErrorKind::Unavailable);
        assert_eq!(
            full.to_string(),
            "file cache: cannot write /c/ab (no storage space): free some space, or prune more often"
        );
        let denied = failed("write", Path::new("/c/ab"), Io::PermissionDenied.into());
        assert_eq!(denied.kind(), ErrorKind::Unavailable);
        assert!(denied.to_string().contains("right to read and write"));
        let large = failed("write", Path::new("/c/ab"), Io::FileTooLarge.into());
        assert_eq!(large.kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn only_what_cannot_heal_is_a_wrong_setting() {
        for kind in [Io::PermissionDenied, Io::NotADirectory, Io::ReadOnlyFilesystem] {
            assert_eq!(unusable("open", Path::new("c"), kind.into()).kind(), ErrorKind::Config);
        }
        for kind in [Io::StorageFull, Io::Interrupted, Io::StaleNetworkFileHandle] {
            assert_eq!(
                unusable("open", Path::new("c"), kind.into()).kind(),
                ErrorKind::Unavailable
            );
        }
    }
}
