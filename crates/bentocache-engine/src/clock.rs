//! Injected time: the engine reads the time only here.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A source of time for a cache; see [`Builder::clock`](crate::Builder::clock).
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
///
/// use bentocache::TimeSource;
///
/// /// A clock that a test sets.
/// struct Manual(AtomicU64);
///
/// impl TimeSource for Manual {
///     fn monotonic_ms(&self) -> u64 {
///         self.0.load(Relaxed)
///     }
///
///     fn epoch_ms(&self) -> u64 {
///         1_700_000_000_000 + self.0.load(Relaxed)
///     }
/// }
/// ```
pub trait TimeSource: Send + Sync + 'static {
    /// Milliseconds since any fixed instant. They never decrease. Called on every hit.
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

/// Follows tokio's clock, so that a test which pauses and advances that clock moves the cache's
/// time too.
///
/// In a test with several caches, give each a clone of the same source: a paused clock and the
/// system clock drift apart, and every new `TokioTime` starts from the system clock.
#[derive(Debug, Clone)]
pub struct TokioTime {
    start: Instant,
    epoch_at_start: u64,
}

impl TokioTime {
    /// A source that starts at the present time and then follows tokio's clock.
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
        // Never 0, which means "expired" in an entry.
        self.start.elapsed().as_millis() as u64 + 1
    }

    fn epoch_ms(&self) -> u64 {
        self.epoch_at_start + self.start.elapsed().as_millis() as u64
    }
}

/// The clock of a cache.
#[derive(Clone)]
pub(crate) struct Clock {
    source: Source,
    epoch: Arc<Epoch>,
}

#[derive(Clone)]
enum Source {
    System,
    Custom(Arc<dyn TimeSource>),
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Source::System)
    }
}

impl Clock {
    pub(crate) fn custom(source: impl TimeSource) -> Self {
        Self::new(Source::Custom(Arc::new(source)))
    }

    fn new(source: Source) -> Self {
        let (elapsed, wall) = source.elapsed_and_wall();
        Self { source, epoch: Arc::new(Epoch::new(elapsed, wall)) }
    }

    /// Monotonic milliseconds. The system source is the coarse clock: a read takes 2 ns and is 1 to
    /// 4 ms late.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        match &self.source {
            Source::System => SUSPENDED.added_to(coarse_monotonic_ms()),
            Source::Custom(source) => source.monotonic_ms(),
        }
    }

    /// Whether [`now`](Self::now) must be told, by calls of [`epoch`](Self::epoch), that the
    /// machine was suspended.
    pub(crate) fn must_be_told(&self) -> bool {
        cfg!(target_os = "linux") && matches!(self.source, Source::System)
    }

    /// Milliseconds since the Unix epoch, without the steps of the wall clock.
    pub(crate) fn epoch(&self) -> u64 {
        let (elapsed, wall) = self.source.elapsed_and_wall();
        self.epoch.at(elapsed, wall)
    }
}

impl Source {
    /// The time since any fixed instant, including the time while the machine was suspended, and
    /// the time of the wall clock.
    fn elapsed_and_wall(&self) -> (u64, u64) {
        match self {
            Self::System => {
                let elapsed = elapsed_ms();
                SUSPENDED.note(elapsed, coarse_monotonic_ms());
                (elapsed, system_epoch_ms())
            }
            Self::Custom(source) => (source.monotonic_ms(), source.epoch_ms()),
        }
    }
}

/// How long the machine was suspended since it started, in ms: the coarse clock stands still then.
/// A hit only adds it; every call of [`Clock::epoch`] brings it up to date.
struct Suspended(AtomicU64);

static SUSPENDED: Suspended = Suspended(AtomicU64::new(0));

impl Suspended {
    /// A smaller difference may come from the way in which the clocks are read.
    const SHORTEST: u64 = 500;

    #[inline]
    fn added_to(&self, monotonic: u64) -> u64 {
        monotonic.saturating_add(self.0.load(Relaxed))
    }

    /// Compares the clock that continues while the machine is suspended with one that does not.
    fn note(&self, elapsed: u64, monotonic: u64) {
        let suspended = elapsed.saturating_sub(monotonic);
        if suspended > self.0.load(Relaxed).saturating_add(Self::SHORTEST) {
            self.0.fetch_max(suspended, Relaxed);
        }
    }
}

/// The wall clock without its steps. Entries are stored with this time, and other processes and
/// later runs compare it with theirs. If it jumped, all stored entries would expire at once or live
/// too long.
///
/// It equals the wall clock while that makes no step. After a step it runs up to 10% faster or
/// slower until both agree again, so that the length of a ttl changes by at most a tenth.
struct Epoch {
    /// The difference to the elapsed time.
    offset: AtomicI64,
    /// The elapsed time of the last correction.
    corrected_at: AtomicU64,
}

impl Epoch {
    /// The largest difference that is not a step: clocks are adjusted all the time, and the two
    /// clocks are read one after the other.
    const NO_STEP: i64 = 1_000;
    /// A correction is at most this fraction of the time that passed.
    const PART: u64 = 10;

    fn new(elapsed: u64, wall: u64) -> Self {
        Self {
            offset: AtomicI64::new(wall.wrapping_sub(elapsed) as i64),
            corrected_at: AtomicU64::new(elapsed),
        }
    }

    fn at(&self, elapsed: u64, wall: u64) -> u64 {
        let expected = elapsed.saturating_add_signed(self.offset.load(Relaxed));
        let ahead = wall.wrapping_sub(expected) as i64;
        self.correct(elapsed, ahead);
        expected.saturating_add_signed(ahead.clamp(-Self::NO_STEP, Self::NO_STEP))
    }

    /// Moves the offset towards the wall clock, which is ahead by this much.
    fn correct(&self, elapsed: u64, ahead: i64) {
        let before = self.corrected_at.load(Relaxed);
        let most = (elapsed.saturating_sub(before) / Self::PART) as i64;
        // Only one of several concurrent callers applies the correction.
        if most > 0 && self.corrected_at.compare_exchange(before, elapsed, Relaxed, Relaxed).is_ok()
        {
            self.offset.fetch_add(ahead.clamp(-most, most), Relaxed);
        }
    }
}

/// How far in the future a time of another process may be, in ms, because clocks differ.
const PLAUSIBLE: u64 = 60_000;

/// Whether a time that another process wrote is plausible by this process's clock.
pub(crate) fn is_plausible(written: u64, now: u64) -> bool {
    written <= now.saturating_add(PLAUSIBLE)
}

#[cfg(target_os = "linux")]
#[inline]
fn coarse_monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

/// Continues while the machine is suspended, as the wall clock does.
#[cfg(target_os = "linux")]
fn elapsed_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

#[cfg(not(target_os = "linux"))]
fn elapsed_ms() -> u64 {
    coarse_monotonic_ms()
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

    /// The two clocks are read one after the other. If the machine stalls in between, the test
    /// tries again.
    #[test]
    fn the_clock_of_the_system_counts_milliseconds() {
        let clock = Clock::default();
        let agrees = (0..10).any(|_| {
            let (start, began) = (clock.now(), std::time::Instant::now());
            std::thread::sleep(Duration::from_millis(60));
            let (passed, took) = (clock.now() - start, began.elapsed().as_millis() as u64);
            passed.abs_diff(took) <= 20
        });
        assert!(agrees);
    }

    #[test]
    fn the_time_while_the_machine_was_suspended_counts() {
        let suspended = Suspended(AtomicU64::new(0));
        assert_eq!(suspended.added_to(1_000), 1_000);
        // The clocks are read one after the other, and one of them is coarse.
        suspended.note(1_100, 1_000);
        assert_eq!(suspended.added_to(1_000), 1_000);
        suspended.note(8 * HOUR + 2_000, 2_000);
        assert_eq!(suspended.added_to(2_000), 8 * HOUR + 2_000);
        // It never runs backwards.
        suspended.note(8 * HOUR + 2_900, 3_000);
        suspended.note(3_000, 8 * HOUR);
        assert_eq!(suspended.added_to(3_000), 8 * HOUR + 3_000);
        suspended.note(u64::MAX, 0);
        assert_eq!(suspended.added_to(7), u64::MAX);
    }

    /// The clock of the system uses it. The jump of this process's clock disturbs no other test.
    #[test]
    fn the_clock_of_the_system_counts_the_time_of_a_suspension() {
        let clock = Clock::default();
        let before = clock.now();
        SUSPENDED.note(elapsed_ms() + 8 * HOUR, coarse_monotonic_ms());
        assert!(clock.now() >= before + 8 * HOUR);
        assert!(clock.epoch().abs_diff(system_epoch_ms()) < 1_000);
    }

    const START: u64 = 1_700_000_000_000;
    const HOUR: u64 = 3_600_000;

    #[test]
    fn the_epoch_is_that_of_the_wall_clock_while_that_makes_no_step() {
        let epoch = Epoch::new(5, START);
        // It drifts by half a second in an hour, in either direction.
        for minute in 0..600 {
            let elapsed = 5 + minute * 60_000;
            let wall = START + minute * 60_008;
            assert_eq!(epoch.at(elapsed, wall), wall);
        }
        let system = Clock::default();
        assert!(system.epoch().abs_diff(system_epoch_ms()) < 1_000);
    }

    /// In both directions: the epoch follows the wall clock and never diverges.
    #[test]
    fn after_a_step_the_epoch_goes_on_and_follows_the_wall_clock_slowly() {
        for step in [HOUR as i64, -(HOUR as i64)] {
            let epoch = Epoch::new(0, START);
            let mut last = epoch.at(10_000, START + 10_000);
            let mut elapsed = 10_000;
            let wall = |elapsed: u64| (START + elapsed).saturating_add_signed(step);
            let first = epoch.at(elapsed, wall(elapsed));
            assert!(first.abs_diff(last) <= 1_000, "it does not jump");
            last = first;
            while epoch.at(elapsed, wall(elapsed)) != wall(elapsed) {
                elapsed += 100;
                let now = epoch.at(elapsed, wall(elapsed));
                let passed = now as i64 - last as i64;
                assert!((90..=110).contains(&passed), "{passed} ms in 100");
                last = now;
                assert!(elapsed < 11 * HOUR, "it never arrives");
            }
            assert!(elapsed > 9 * HOUR, "a tenth of the speed");
        }
    }

    #[test]
    fn a_clock_at_its_limits_does_not_overflow() {
        for (elapsed, wall) in [(0, 0), (0, u64::MAX), (u64::MAX, 0), (u64::MAX, u64::MAX)] {
            let epoch = Epoch::new(elapsed, wall);
            for (elapsed, wall) in [(0, u64::MAX), (u64::MAX, 0), (7, 7)] {
                epoch.at(elapsed, wall);
            }
        }
        assert!(is_plausible(u64::MAX, u64::MAX) && !is_plausible(60_001, 0));
    }
}
