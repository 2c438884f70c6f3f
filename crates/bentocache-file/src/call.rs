//! Blocking work for a caller who may stop waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bentocache_driver::{DriverError, ErrorKind};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error;

/// Runs `work` on a blocking thread.
///
/// Dropping the future does not stop work that has begun, so each file is changed completely or not
/// at all. Work that has not begun is skipped, and work can ask the [`Caller`].
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce(&Caller) -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    let caller = Caller::default();
    let task = spawn({
        let caller = caller.clone();
        move || work(&caller)
    })?;
    let mut call = Call { task, caller };
    (&mut call.task).await.map_err(error::unfinished)?
}

/// `spawn_blocking` that returns an error, instead of panicking, outside of a runtime.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, DriverError> {
    Ok(Handle::try_current().map_err(error::no_runtime)?.spawn_blocking(work))
}

/// Tells the work whether its caller still waits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    has_left: Arc<AtomicBool>,
}

impl Caller {
    /// Fails if the caller stopped waiting. The work asks before a step that would be wrong long
    /// after the call: the caller may have written a newer value meanwhile.
    pub(crate) fn still_waits(&self) -> Result<(), DriverError> {
        if self.has_left.load(Ordering::Acquire) {
            return Err(DriverError::new(ErrorKind::Timeout, "file cache: the caller gave up"));
        }
        Ok(())
    }
}

struct Call<T> {
    task: JoinHandle<T>,
    caller: Caller,
}

impl<T> Drop for Call<T> {
    fn drop(&mut self) {
        self.caller.has_left.store(true, Ordering::Release);
        self.task.abort();
    }
}
