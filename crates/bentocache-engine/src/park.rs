//! Waits for a future on a thread that may block. Its time limits need no runtime.

use std::cell::Cell;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

thread_local! {
    /// The time at which the future that this thread waits for must be polled again at the latest.
    /// The outer option is `None` if the thread waits for no future.
    static WAKE_AT: Cell<Option<Option<Instant>>> = const { Cell::new(None) };
}

/// Makes the thread poll again at `end`, if it waits for the future that is being polled.
pub(crate) fn wake_at(end: Instant) -> bool {
    let Some(earlier) = WAKE_AT.get() else { return false };
    WAKE_AT.set(Some(Some(earlier.map_or(end, |earlier| earlier.min(end)))));
    true
}

/// Whether the thread itself waits for the future that is being polled.
pub(crate) fn is_waiting() -> bool {
    WAKE_AT.get().is_some()
}

/// Waits for the future.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    // Unconstrained: tokio's task budget would be used up here and never be renewed.
    let mut future = pin!(tokio::task::unconstrained(future));
    let signal = Arc::new(Signal::default());
    let waker = Waker::from(signal.clone());
    let mut context = Context::from_waker(&waker);
    loop {
        let polling = Polling::begin();
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        signal.wait_until(polling.end());
    }
}

/// One poll of a future that this thread waits for. Restores the outer state when it is dropped.
struct Polling {
    outer: Option<Option<Instant>>,
}

impl Polling {
    fn begin() -> Self {
        Self { outer: WAKE_AT.replace(Some(None)) }
    }

    /// The time to poll again at the latest.
    fn end(self) -> Option<Instant> {
        WAKE_AT.get().flatten()
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        WAKE_AT.set(self.outer);
    }
}

/// Separate from the thread's own parking, which other code uses while the future is polled.
#[derive(Default)]
struct Signal {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    fn wait_until(&self, end: Option<Instant>) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        while !*woken {
            let Some(end) = end else {
                woken = self.changed.wait(woken).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(woken, left);
            woken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *woken = false;
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    use std::future::poll_fn;
    use std::time::Duration;

    #[test]
    fn a_future_that_is_woken_from_another_thread_ends() {
        let (send, receive) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            send.send(7)
        });
        assert_eq!(block_on(receive), Ok(7));
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_future_is_polled_again_at_the_earliest_time_that_it_asked_for() {
        let start = Instant::now();
        let mut polls = 0;
        block_on(poll_fn(|_| {
            polls += 1;
            assert!(is_waiting());
            assert!(wake_at(start + Duration::from_secs(3_600)));
            assert!(wake_at(start + Duration::from_millis(30)));
            if polls == 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(!is_waiting() && !wake_at(start));
    }

    #[test]
    fn a_wait_within_a_wait_leaves_the_outer_one_as_it_was() {
        let start = Instant::now();
        let mut polls = 0;
        block_on(poll_fn(|_| {
            polls += 1;
            wake_at(start + Duration::from_millis(20));
            block_on(async {});
            if polls == 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_future_that_uses_up_tokios_budget_goes_on() {
        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        runtime.block_on(async {
            tokio::task::block_in_place(|| {
                block_on(async {
                    let (send, mut receive) = tokio::sync::mpsc::channel(1_000);
                    for i in 0..1_000 {
                        send.send(i).await.unwrap();
                    }
                    for i in 0..1_000 {
                        assert_eq!(receive.recv().await, Some(i));
                    }
                });
            });
        });
    }
}
