//! Errors: the failure, the path, and what an operator can do.

use std::io::{self, ErrorKind as Io};
use std::path::Path;

use bentocache_driver::{DriverError, ErrorKind};

/// The error of a failed system call: `doing` completes "cannot …".
pub(crate) fn failed(doing: &str, path: &Path, error: io::Error) -> DriverError {
    let kind = match error.kind() {
        Io::FileTooLarge => ErrorKind::TooLarge,
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::Full,
        kind if is_for_an_operator(kind) => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    DriverError::new(kind, explain(doing, path, &error)).with_source(error)
}

/// The same error while the cache is built: a fault that an operator must fix fails the build.
pub(crate) fn unusable(doing: &str, path: &Path, error: io::Error) -> DriverError {
    let is_setting = is_for_an_operator(error.kind())
        || matches!(error.kind(), Io::InvalidFilename | Io::InvalidInput | Io::NotFound);
    if !is_setting {
        return failed(doing, path, error);
    }
    DriverError::new(ErrorKind::Config, explain(doing, path, &error)).with_source(error)
}

/// Whether an operator must repair the directory before the call can succeed.
fn is_for_an_operator(kind: Io) -> bool {
    matches!(
        kind,
        Io::AlreadyExists
            | Io::IsADirectory
            | Io::NotADirectory
            | Io::PermissionDenied
            | Io::ReadOnlyFilesystem
            | Io::Unsupported
    )
}

fn explain(doing: &str, path: &Path, error: &io::Error) -> String {
    let advice = match error.kind() {
        Io::PermissionDenied => "give this process's user the right to read and write there",
        Io::StorageFull | Io::QuotaExceeded => {
            "free some space, or prune more often; deletes and clears still succeed"
        }
        Io::ReadOnlyFilesystem => "mount it writable, or choose another directory",
        Io::FileTooLarge => "it is beyond the largest file the file system takes",
        Io::AlreadyExists | Io::IsADirectory | Io::NotADirectory => {
            "something else is in the way: remove it, or choose another directory"
        }
        Io::NotFound => "the directory is not there, or is being removed",
        Io::Unsupported => "the file system cannot do it: choose a directory on another one",
        Io::InvalidFilename | Io::InvalidInput => "choose another path",
        _ => "look at the disk and the file system, such as in the system's log",
    };
    // The standard library has no kind for some of them, such as a disk error.
    let reason = match error.kind().to_string() {
        kind if kind == "uncategorized error" => error.to_string(),
        kind => kind,
    };
    format!("file cache: cannot {doing} {} ({reason}): {advice}", path.display())
}

/// Whether the path, or a directory on the way to it, is missing.
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
        assert_eq!(full.kind(), ErrorKind::Full);
        assert_eq!(
            full.to_string(),
            "file cache: cannot write /c/ab (no storage space): free some space, or prune more \
             often; deletes and clears still succeed"
        );
        let denied = failed("write", Path::new("/c/ab"), Io::PermissionDenied.into());
        assert_eq!(denied.kind(), ErrorKind::Denied);
        assert!(denied.to_string().contains("right to read and write"));
        let large = failed("write", Path::new("/c/ab"), Io::FileTooLarge.into());
        assert_eq!(large.kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn only_what_cannot_heal_is_a_wrong_setting() {
        for kind in [Io::PermissionDenied, Io::NotADirectory, Io::ReadOnlyFilesystem] {
            assert_eq!(unusable("open", Path::new("c"), kind.into()).kind(), ErrorKind::Config);
        }
        for (kind, made) in [
            (Io::StorageFull, ErrorKind::Full),
            (Io::QuotaExceeded, ErrorKind::Full),
            (Io::Interrupted, ErrorKind::Unavailable),
            (Io::StaleNetworkFileHandle, ErrorKind::Unavailable),
        ] {
            assert_eq!(unusable("open", Path::new("c"), kind.into()).kind(), made, "{kind}");
        }
    }

    #[test]
    fn what_an_operator_repairs_is_denied() {
        for kind in [
            Io::PermissionDenied,
            Io::ReadOnlyFilesystem,
            Io::NotADirectory,
            Io::IsADirectory,
            Io::Unsupported,
        ] {
            let error = failed("write", Path::new("c"), kind.into());
            assert_eq!(error.kind(), ErrorKind::Denied, "{kind}");
        }
        // EIO, for which the standard library has no kind.
        let disk = failed("read", Path::new("c"), io::Error::from_raw_os_error(5));
        assert!(disk.to_string().contains("Input/output error"), "{disk}");
    }
}
