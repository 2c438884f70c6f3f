//! Counters that cost a hit nearly nothing.
//!
//! Each thread has its own cells, which no other thread writes. So an addition is a load and a store
//! of a cell that is in the cache of this processor: no locked instruction, and no cache line that
//! threads contend for. A sum adds the cells of all threads.
//!
//! A thread gets the number of its cells when it counts for the first time, and gives it back when
//! it ends. While more than [`OWNED`] threads count, the others share one set of cells, with atomic
//! additions.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// What is counted. The documentation of the fields of [`Stats`](super::Stats) says when.
#[derive(Clone, Copy)]
pub(crate) enum Counter {
    L1Hits,
    L2Hits,
    GracedHits,
    Misses,
    Writes,
    Deletes,
    Expirations,
    Touches,
    Clears,
    TagInvalidations,
    DecodeFailures,
    FactoryRuns,
    FactoryFailures,
    FactoryNanos,
    Coalesced,
    SoftTimeouts,
    HardTimeouts,
    LockTimeouts,
    LockFailures,
    Evictions,
    Refusals,
    L2Calls,
    L2Failures,
    L2Skipped,
    L2Nanos,
    BreakerOpenings,
    RecoveryQueued,
    RecoveryDone,
    RecoveryDropped,
    BusPublished,
    BusReceived,
    BusRejected,
    /// The last one.
    BusLosses,
}

const COUNTERS: usize = Counter::BusLosses as usize + 1;
/// The number of threads with cells of their own.
const OWNED: usize = 64;
/// The slot of a thread that has none yet.
const UNASSIGNED: usize = usize::MAX;
/// The slot of a thread that shares its cells.
const SHARED: usize = OWNED;

/// The counters of a store.
pub(crate) struct Counters {
    owned: [Cells; OWNED],
    shared: Cells,
}

/// The cells of one thread, in cache lines of their own; two, because processors load pairs.
#[repr(align(128))]
struct Cells([AtomicU64; COUNTERS]);

impl Cells {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTERS])
    }

    #[inline(always)]
    fn of(&self, counter: Counter) -> &AtomicU64 {
        &self.0[counter as usize]
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self { owned: [const { Cells::new() }; OWNED], shared: Cells::new() }
    }
}

impl Counters {
    #[inline(always)]
    pub(crate) fn add(&self, counter: Counter, by: u64) {
        match self.owned.get(SLOT.get()) {
            Some(cells) => {
                // Only this thread writes the cell.
                let cell = cells.of(counter);
                cell.store(cell.load(Relaxed).wrapping_add(by), Relaxed);
            }
            None => self.add_without_slot(counter, by),
        }
    }

    #[cold]
    fn add_without_slot(&self, counter: Counter, by: u64) {
        if SLOT.get() == UNASSIGNED {
            // The thread-local is gone while a thread ends.
            let slot = LEASE.try_with(|lease| lease.0).unwrap_or(SHARED);
            SLOT.set(slot);
            return self.add(counter, by);
        }
        self.shared.of(counter).fetch_add(by, Relaxed);
    }

    /// The sum over all threads.
    pub(crate) fn sum(&self, counter: Counter) -> u64 {
        let all = self.owned.iter().chain([&self.shared]);
        all.fold(0, |sum, cells| sum.wrapping_add(cells.of(counter).load(Relaxed)))
    }
}

thread_local! {
    /// A plain number without a destructor, so that reading it is one instruction.
    static SLOT: Cell<usize> = const { Cell::new(UNASSIGNED) };
    static LEASE: Lease = Lease::take();
}

/// The slots that no thread has.
static FREE: Mutex<Free> = Mutex::new(Free { returned: Vec::new(), next: 0 });

struct Free {
    returned: Vec<usize>,
    /// This slot and the following ones were never used.
    next: usize,
}

/// The slot of a thread until the thread ends. The lock orders the last write of one owner before
/// the first read of the next one.
struct Lease(usize);

impl Lease {
    fn take() -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = free.returned.pop() {
            return Self(slot);
        }
        let slot = free.next;
        free.next = (slot + 1).min(SHARED);
        Self(slot)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        SLOT.set(SHARED);
        if self.0 != SHARED {
            FREE.lock().unwrap_or_else(PoisonError::into_inner).returned.push(self.0);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// More threads at once than there are slots, several times, so that slots change hands.
    #[test]
    fn sums_are_exact_with_more_threads_than_slots_and_with_threads_that_end() {
        const THREADS: usize = OWNED + 20;
        const ADDITIONS: u64 = 1_000;
        let counters = Counters::default();
        for round in 1..=3 {
            let barrier = Barrier::new(THREADS);
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        barrier.wait();
                        for _ in 0..ADDITIONS {
                            counters.add(Counter::L1Hits, 1);
                            counters.add(Counter::L2Nanos, 3);
                        }
                        barrier.wait();
                    });
                }
            });
            let all = THREADS as u64 * ADDITIONS * round;
            assert_eq!(
                (counters.sum(Counter::L1Hits), counters.sum(Counter::L2Nanos)),
                (all, 3 * all)
            );
            assert!(counters.shared.of(Counter::L1Hits).load(Relaxed) > 0, "some threads shared");
        }
        assert_eq!(counters.sum(Counter::Misses), 0);
    }

    #[test]
    fn a_thread_that_ends_gives_its_slot_back() {
        // Other tests of this process use slots too, but far fewer than these threads.
        for _ in 0..OWNED * 4 {
            let slot = std::thread::spawn(|| {
                Counters::default().add(Counter::Misses, 1);
                SLOT.get()
            });
            slot.join().expect("no panic");
        }
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(!free.returned.is_empty());
    }

    /// The thread-locals of a library may count while a thread ends.
    #[test]
    fn a_count_while_a_thread_ends_is_not_lost() {
        static COUNTERS: std::sync::LazyLock<Counters> =
            std::sync::LazyLock::new(Counters::default);
        struct CountOnDrop;
        impl Drop for CountOnDrop {
            fn drop(&mut self) {
                COUNTERS.add(Counter::Misses, 1);
            }
        }
        thread_local!(static LAST: CountOnDrop = const { CountOnDrop });
        let thread = std::thread::spawn(|| {
            LAST.with(|_| COUNTERS.add(Counter::Misses, 1));
        });
        thread.join().expect("no panic");
        assert_eq!(COUNTERS.sum(Counter::Misses), 2);
    }
}
