//! The reason why calls of a driver take too long.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An older reason may not apply any more.
const RECENT: Duration = Duration::from_secs(10);

/// The last reason why calls of a driver had to wait or to be retried, for
/// [`L2Driver::trouble`](crate::L2Driver::trouble) and
/// [`BusDriver::trouble`](crate::BusDriver::trouble). Clones share it.
///
/// ```
/// use bentocache_driver::LastTrouble;
///
/// let trouble = LastTrouble::default();
/// trouble.note("the service throttles; raise the capacity of the table");
/// assert!(trouble.recent().is_some_and(|reason| reason.contains("throttles")));
/// trouble.is_over();
/// assert_eq!(trouble.recent(), None);
/// ```
#[derive(Clone, Default)]
pub struct LastTrouble(Arc<Slot>);

#[derive(Default)]
struct Slot {
    /// Whether there is a reason, so that a success need not take the lock.
    is_noted: AtomicBool,
    last: Mutex<Option<(Instant, String)>>,
}

impl LastTrouble {
    fn lock(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a call waits, or is about to be retried, for this reason.
    pub fn note(&self, reason: impl Into<String>) {
        *self.lock() = Some((Instant::now(), reason.into()));
        self.0.is_noted.store(true, Relaxed);
    }

    /// Runs a call. If its future is dropped before it ends, because the caller has given up,
    /// `reason` says what the call was waiting for; a success ends the trouble.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use bentocache_driver::{DriverError, LastTrouble};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let trouble = LastTrouble::default();
    /// let connect = std::future::pending::<Result<(), DriverError>>();
    /// let call = trouble.watch(connect, || Some("the server is not connected yet".to_owned()));
    /// assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
    /// assert_eq!(trouble.recent().as_deref(), Some("the server is not connected yet"));
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of the call.
    pub async fn watch<T, E>(
        &self,
        call: impl Future<Output = Result<T, E>>,
        reason: impl FnOnce() -> Option<String>,
    ) -> Result<T, E> {
        // Declared first, so that it is dropped after the call.
        let mut watch = Watch { trouble: self, reason: Some(reason) };
        let answer = call.await;
        watch.reason = None;
        if answer.is_ok() {
            self.is_over();
        }
        answer
    }

    /// Records that a call has succeeded.
    pub fn is_over(&self) {
        if self.0.is_noted.swap(false, Relaxed) {
            *self.lock() = None;
        }
    }

    /// The reason that was recorded within the last ten seconds, unless a call has succeeded since.
    pub fn recent(&self) -> Option<String> {
        let last = self.lock();
        let (at, reason) = last.as_ref()?;
        (at.elapsed() < RECENT).then(|| reason.clone())
    }
}

/// A call that has not ended yet.
struct Watch<'a, F: FnOnce() -> Option<String>> {
    trouble: &'a LastTrouble,
    reason: Option<F>,
}

impl<F: FnOnce() -> Option<String>> Drop for Watch<'_, F> {
    fn drop(&mut self) {
        if let Some(reason) = self.reason.take().and_then(|reason| reason()) {
            self.trouble.note(reason);
        }
    }
}

impl fmt::Debug for LastTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LastTrouble").field(&self.recent()).finish()
    }
}
