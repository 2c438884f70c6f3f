//! Time limits: for calls, which nearly always end sooner, and for the timeouts of callers.
//!
//! A limit runs where its caller is: in the caller's own runtime, or on the thread that waits. The
//! cache's own runtime may be busy or not driven, and the limit must work then too. Only a caller
//! without timers of its own uses those of the cache's runtime.
//!
//! Arming and cancelling a tokio timer is expensive, because all workers contend for one timer
//! wheel. So the timers of the cache's runtime stay armed when their calls have ended, and serve
//! later calls. A timer that fires too early for its present call is armed again, which happens
//! once per length of a limit and not once per call.

use std::cell::Cell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::park;
use crate::sync::Mutex;

const SHARDS: usize = 16;
/// The number of idle timers kept per shard.
const MOST_IDLE: usize = 256;
/// Longer limits are capped, because the clock cannot represent them.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

type Timer = Pin<Box<Sleep>>;

pub(crate) struct Timers {
    /// The cache's runtime.
    runtime: Handle,
    /// Timers that no call uses at present. Each thread has its own list, up to a number of
    /// threads.
    idle: [Mutex<Vec<Timer>>; SHARDS],
}

/// The limit of a call. It ends when this is dropped.
struct Limit<'a> {
    timers: &'a Timers,
    kind: LimitKind,
    end: Instant,
}

enum LimitKind {
    /// The thread that waits for the future polls it again at this time.
    Thread(std::time::Instant),
    /// A timer of the caller's own runtime, which is not the cache's.
    Foreign(Timer),
    /// A timer of the cache's runtime. `Some` until it is dropped.
    Pooled(Option<Timer>),
}

/// The end of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    InTime,
    /// The runtime of the timer was shut down, so no time can be waited for.
    WithRuntime,
}

impl Timers {
    /// Creates a set without timers. `runtime` is the cache's.
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime, idle: Default::default() }
    }

    /// The call's result; `None` if the call does not end within the limit.
    pub(crate) async fn within<F>(&self, limit: Duration, mut call: F) -> Option<F::Output>
    where
        F: Future + Unpin,
    {
        // A call that ends at once needs no timer.
        let mut armed = None;
        poll_fn(|cx| match Pin::new(&mut call).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => {
                let end = || Instant::now() + limit.min(LONGEST);
                let armed = armed.get_or_insert_with(|| self.arm(end()));
                armed.poll(cx).map(|_| None)
            }
        })
        .await
    }

    /// Waits until `end`, at most a year.
    pub(crate) async fn until(&self, end: Instant) -> Ended {
        let mut armed = self.arm(end.min(Instant::now() + LONGEST));
        poll_fn(|cx| armed.poll(cx)).await
    }

    /// A limit for the context in which it is polled.
    fn arm(&self, end: Instant) -> Limit<'_> {
        let kind = if park::is_waiting() {
            LimitKind::Thread(end.into_std())
        } else {
            self.foreign(end).map_or_else(|| self.pooled(end), LimitKind::Foreign)
        };
        Limit { timers: self, kind, end }
    }

    /// A timer of the caller's runtime, if that runtime has timers and is not the cache's.
    fn foreign(&self, end: Instant) -> Option<Timer> {
        thread_local! {
            /// A runtime without timers that this thread has met.
            static TIMELESS: Cell<Option<runtime::Id>> = const { Cell::new(None) };
        }
        let here = Handle::try_current().ok()?.id();
        if here == self.runtime.id() || TIMELESS.get() == Some(here) {
            return None;
        }
        // A panic is tokio's only sign that a runtime has no timers.
        let timer = catch_unwind(|| Box::pin(sleep_until(end))).ok();
        if timer.is_none() {
            TIMELESS.set(Some(here));
        }
        timer
    }

    fn pooled(&self, end: Instant) -> LimitKind {
        let idle = self.idle().lock().pop();
        let mut timer = idle.unwrap_or_else(|| {
            let _context = self.runtime.enter();
            Box::pin(sleep_until(end))
        });
        if timer.deadline() > end {
            timer.as_mut().reset(end);
        }
        LimitKind::Pooled(Some(timer))
    }

    fn idle(&self) -> &Mutex<Vec<Timer>> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Relaxed);
        }
        &self.idle[THREAD.with(|thread| thread % SHARDS)]
    }
}

impl Limit<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if let LimitKind::Thread(end) = self.kind {
            if std::time::Instant::now() >= end {
                return Poll::Ready(Ended::InTime);
            }
            if park::wake_at(end) {
                return Poll::Pending;
            }
            // The future was moved to a task.
            self.kind = self.timers.pooled(self.end);
        }
        let timer = match &mut self.kind {
            LimitKind::Foreign(timer) | LimitKind::Pooled(Some(timer)) => timer,
            LimitKind::Thread(_) | LimitKind::Pooled(None) => return Poll::Pending,
        };
        loop {
            // Unconstrained, so that a call that is always busy ends too. A panic is tokio's only
            // sign that the runtime of a timer was shut down.
            let polled = catch_unwind(AssertUnwindSafe(|| {
                Pin::new(&mut unconstrained(timer.as_mut())).poll(cx)
            }));
            match polled {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(())) if timer.deadline() >= self.end => {
                    return Poll::Ready(Ended::InTime);
                }
                Ok(Poll::Ready(())) => timer.as_mut().reset(self.end),
                Err(_) => return Poll::Ready(Ended::WithRuntime),
            }
        }
    }
}

impl Drop for Limit<'_> {
    fn drop(&mut self) {
        let LimitKind::Pooled(timer) = &mut self.kind else { return };
        let mut idle = self.timers.idle().lock();
        let surplus = if idle.len() < MOST_IDLE {
            idle.extend(timer.take());
            None
        } else {
            timer.take()
        };
        drop(idle);
        drop(surplus);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    use std::future::{pending, ready};
    use std::pin::pin;

    const SECOND: Duration = Duration::from_secs(1);

    fn timers() -> Timers {
        Timers::new(Handle::current())
    }

    fn idle(timers: &Timers) -> usize {
        timers.idle.iter().map(|shard| shard.lock().len()).sum()
    }

    /// The time until the timers end a call that hangs, in milliseconds.
    async fn hangs(timers: &Timers, limit: Duration) -> u128 {
        let start = Instant::now();
        assert_eq!(timers.within(limit, pending::<()>()).await, None);
        start.elapsed().as_millis()
    }

    /// A call that takes this time.
    fn takes(time: Duration) -> Pin<Box<impl Future<Output = Duration>>> {
        Box::pin(async move {
            tokio::time::sleep(time).await;
            time
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_is_given_up_at_its_limit_with_a_new_timer_or_a_used_one() {
        let timers = timers();
        assert_eq!(hangs(&timers, SECOND).await, 1_000);
        assert_eq!(idle(&timers), 1);
        // The timer fired long ago.
        assert_eq!(hangs(&timers, SECOND).await, 1_000);
        // The timer would fire too early, and too late.
        assert_eq!(timers.within(SECOND, takes(SECOND / 2)).await, Some(SECOND / 2));
        assert_eq!(hangs(&timers, SECOND).await, 1_000);
        assert_eq!(timers.within(SECOND, takes(SECOND / 2)).await, Some(SECOND / 2));
        assert_eq!(hangs(&timers, SECOND / 4).await, 250);
        assert_eq!(idle(&timers), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_ends_at_once_takes_no_timer() {
        let timers = timers();
        assert_eq!(timers.within(Duration::ZERO, ready(1)).await, Some(1));
        assert_eq!(idle(&timers), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_at_the_same_time_have_a_timer_each_and_leave_it_when_they_are_dropped() {
        let timers = timers();
        {
            let mut first = pin!(timers.within(SECOND, pending::<()>()));
            let mut second = pin!(timers.within(SECOND, pending::<()>()));
            tokio::select! {
                biased;
                _ = &mut first => unreachable!("it hangs"),
                _ = &mut second => unreachable!("it hangs"),
                () = ready(()) => {}
            }
            assert_eq!(idle(&timers), 0);
        }
        assert_eq!(idle(&timers), 2);
    }

    #[tokio::test]
    async fn a_call_that_is_busy_all_the_time_is_given_up_too() {
        let busy = Box::pin(async {
            loop {
                tokio::task::consume_budget().await;
            }
        });
        let busy: Pin<Box<dyn Future<Output = ()>>> = busy;
        let timers = timers();
        let call = timers.within(Duration::from_millis(10), busy);
        assert_eq!(tokio::time::timeout(10 * SECOND, call).await.expect("an end"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_beyond_every_clock_is_none() {
        let timers = timers();
        let call = timers.within(Duration::MAX, takes(SECOND));
        assert_eq!(call.await, Some(SECOND));
    }

    #[test]
    fn calls_of_a_runtime_without_timers_have_a_limit() {
        let own = tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
        let foreign = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let timers = Timers::new(own.handle().clone());
        let limit = Duration::from_millis(10);
        for _ in 0..2 {
            assert_eq!(foreign.block_on(timers.within(limit, pending::<()>())), None);
        }
        assert_eq!(idle(&timers), 1);
    }
}
