//! Time, injected: the engine asks only here.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Where a cache takes its time from; see [`Builder::clock`](crate::Builder::clock).
pub trait TimeSource: Send + Sync + 'static {
    /// Milliseconds since any fixed moment; never goes back. Runs on every hit.
    fn monotonic_ms(&self) -> u64;

    /// Milliseconds since the Unix epoch.
    fn epoch_ms(&self) -> u64;
}

impl<T: TimeSource> TimeSource for Arc<T> {
    fn monotonic_ms(&self) -> u64 {
        (**self).monotonic_ms()
    }

    fn epoch_ms(&self) -> u64 {
        (**self).epoch_ms()
    }
}

/// Follows tokio's clock, so that a test that pauses and advances it moves the cache's time too.
///
/// A test with several caches gives each a clone of the same one: a paused clock and that of the
/// system drift apart, and every new `TokioTime` starts from the latter.
#[derive(Debug, Clone)]
pub struct TokioTime {
    start: Instant,
    epoch_at_start: u64,
}

impl TokioTime {
    /// A clock that starts at the present time and then follows tokio's.
    pub fn new() -> Self {
        Self { start: Instant::now(), epoch_at_start: system_epoch_ms() }
    }
}

impl Default for TokioTime {
    fn default() -> Self {
        Self::new()
    }
}

impl TimeSource for TokioTime {
    fn monotonic_ms(&self) -> u64 {
        // Not 0, which means "expired" in an entry.
        self.start.elapsed().as_millis() as u64 + 1
    }

    fn epoch_ms(&self) -> u64 {
        self.epoch_at_start + self.start.elapsed().as_millis() as u64
    }
}

#[derive(Clone, Default)]
pub(crate) enum Clock {
    #[default]
    System,
    Custom(Arc<dyn TimeSource>),
}

impl Clock {
    /// Monotonic milliseconds. The system clock is the coarse one: 2 ns, 1 to 4 ms late.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        match self {
            Self::System => coarse_monotonic_ms(),
            Self::Custom(source) => source.monotonic_ms(),
        }
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn epoch(&self) -> u64 {
        match self {
            Self::System => system_epoch_ms(),
            Self::Custom(source) => source.epoch_ms(),
        }
    }
}

#[cfg(target_os = "linux")]
#[inline]
fn coarse_monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

#[cfg(not(target_os = "linux"))]
#[inline]
fn coarse_monotonic_ms() -> u64 {
    let ticks = coarsetime::Instant::now_without_cache_update().as_ticks();
    coarsetime::Duration::from_ticks(ticks).as_millis()
}

fn system_epoch_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Both are looked at one after the other, so a machine that stands still in between gets
    /// another try.
    #[test]
    fn the_clock_of_the_system_counts_milliseconds() {
        let clock = Clock::System;
        let agrees = (0..10).any(|_| {
            let (start, began) = (clock.now(), std::time::Instant::now());
            std::thread::sleep(Duration::from_millis(60));
            let (passed, took) = (clock.now() - start, began.elapsed().as_millis() as u64);
            passed.abs_diff(took) <= 20
        });
        assert!(agrees);
    }
}
