//! Work that blocks, on behalf of a caller who may give up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bentocache_driver::{DriverError, ErrorKind};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error;

/// Runs `work` on a thread that may block.
///
/// A caller who drops the future does not stop work that has begun, so each file is changed wholly
/// or not at all. But work that has not begun is forgotten, and work that can ask the [`Caller`].
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

/// `spawn_blocking` that is an error, not a panic, outside of a runtime.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, DriverError> {
    Ok(Handle::try_current().map_err(error::no_runtime)?.spawn_blocking(work))
}

/// Tells the work whether somebody still waits for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    has_left: Arc<AtomicBool>,
}

impl Caller {
    /// Fails when nobody waits any more. It is asked before a step that would be wrong long after
    /// the call: the caller may have written something newer meanwhile.
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
