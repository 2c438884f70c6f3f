//! Detects that the file of SQLite was replaced or deleted while connections to it are open: these
//! would keep using the old file, which no other process sees.

#[cfg(feature = "sqlite")]
use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Pool;
use tokio::time::sleep;

/// The longest time that a connection takes to return to the pool.
const RETURN: Duration = Duration::from_millis(200);

/// The identity of a file, which differs from another file at the same path.
type Identity = (u64, u64);

/// The file of a pool's connections; empty for other databases.
pub(crate) struct File {
    path: Option<PathBuf>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    identity: Option<Identity>,
    /// The number of replacements.
    generation: u64,
}

impl File {
    pub(crate) fn of<DB: sqlx::Database>(pool: &Pool<DB>) -> Self {
        Self { path: path_of(pool), seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of replacements of the file.
    pub(crate) fn generation(&self) -> u64 {
        if self.path.is_some() { self.seen().generation } else { 0 }
    }

    /// Closes the connections if the file was replaced since the last check.
    pub(crate) async fn check<DB: sqlx::Database>(&self, pool: &Pool<DB>) -> u64 {
        let Some(path) = &self.path else { return 0 };
        let now = identity(path);
        let (is_replaced, generation) = {
            let mut seen = self.seen();
            let is_replaced = seen.identity.is_some() && seen.identity != now;
            if is_replaced {
                seen.identity = now;
                seen.generation += 1;
            }
            (is_replaced, seen.generation)
        };
        if is_replaced {
            tracing::warn!(
                path = %path.display(),
                "the SQLite file was replaced or deleted; opening it again"
            );
            close_all(pool).await;
        }
        generation
    }

    /// Deletes the file. Every connection, also of other processes, notices that at its next use.
    #[cfg(feature = "sqlite")]
    pub(crate) fn discard(&self) -> std::io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        // The log first: a new file must not find the log of the old file.
        for end in ["-wal", "-shm", ""] {
            let mut path = path.clone().into_os_string();
            path.push(end);
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Records the identity of the file once a connection has opened or created it.
    pub(crate) fn opened(&self) {
        let Some(path) = &self.path else { return };
        let mut seen = self.seen();
        if seen.identity.is_none() {
            seen.identity = identity(path);
        }
    }
}

/// Closes the connections to the old file, also those that are about to return to the pool.
async fn close_all<DB: sqlx::Database>(pool: &Pool<DB>) {
    let start = Instant::now();
    while pool.size() > 0 && start.elapsed() < RETURN {
        match pool.try_acquire() {
            // A failed close still drops the connection.
            Some(connection) => drop(connection.close().await),
            None => sleep(Duration::from_millis(1)).await,
        }
    }
}

#[cfg(feature = "sqlite")]
fn path_of<DB: sqlx::Database>(pool: &Pool<DB>) -> Option<PathBuf> {
    let pool: &sqlx::SqlitePool = (pool as &dyn Any).downcast_ref()?;
    Some(pool.connect_options().get_filename().to_owned())
}

#[cfg(not(feature = "sqlite"))]
fn path_of<DB: sqlx::Database>(_: &Pool<DB>) -> Option<PathBuf> {
    None
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// On other systems an open file cannot be replaced.
#[cfg(not(unix))]
fn identity(_: &Path) -> Option<Identity> {
    None
}
