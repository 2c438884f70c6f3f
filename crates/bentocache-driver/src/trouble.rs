//! The reason why calls of a driver take too long.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An older reason may not apply any more.
const RECENT: Duration = Duration::from_secs(10);

/// The last reason why calls of a driver had to wait or to be retried, for
/// [`L2Driver::trouble`](crate::L2Driver::trouble). Clones share it.
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

impl fmt::Debug for LastTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LastTrouble").field(&self.recent()).finish()
    }
}
