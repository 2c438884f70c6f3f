//! Link reports for drivers whose library has none: a probe that runs while calls fail.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};

use crate::{DriverError, Link, LinkStream};

/// The pause between two probes.
const PAUSE: Duration = Duration::from_millis(500);
/// The time limit of one probe.
const LIMIT: Duration = Duration::from_secs(2);

/// Detects when a store works again, for [`L2Driver::link`](crate::L2Driver::link) of a driver
/// whose library does not report it.
///
/// A call that fails with a transient error, or that its caller drops, starts a probe. The probe
/// runs every half second until it succeeds, as long as the reports have a reader. Clones share the
/// reports.
///
/// ```
/// use bentocache_driver::{DriverError, LinkProbe, LinkStream};
///
/// #[derive(Default)]
/// struct Store {
///     probe: LinkProbe,
/// }
///
/// impl Store {
///     async fn ping() -> Result<(), DriverError> {
///         Ok(())
///     }
///
///     async fn set(&self) -> Result<(), DriverError> {
///         let call = async { Ok(()) };
///         self.probe.watch(call, Self::ping).await
///     }
///
///     fn link(&self) -> Option<LinkStream> {
///         Some(self.probe.reports())
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), DriverError> {
/// # let store = Store::default();
/// # drop(store.link());
/// # store.set().await }
/// ```
#[derive(Clone, Default)]
pub struct LinkProbe(Arc<State>);

#[derive(Default)]
struct State {
    /// `Some` after the reports were requested.
    reports: Mutex<Option<UnboundedSender<Link>>>,
    is_running: AtomicBool,
}

impl LinkProbe {
    /// A stream of the reports from now on.
    pub fn reports(&self) -> LinkStream {
        let (sender, receiver) = unbounded_channel();
        *self.lock() = Some(sender);
        Box::pin(Reports(receiver))
    }

    /// Makes a call, and starts to probe if it fails.
    ///
    /// # Errors
    /// The errors of the call.
    pub async fn watch<T, P, F>(
        &self,
        call: impl Future<Output = Result<T, DriverError>>,
        probe: P,
    ) -> Result<T, DriverError>
    where
        P: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), DriverError>> + Send,
    {
        let mut watch = Watch { state: self, probe: Some(probe), start: Self::start::<P, F> };
        let answer = call.await;
        if !answer.as_ref().is_err_and(DriverError::is_transient) {
            watch.probe = None;
        }
        answer
    }

    fn lock(&self) -> MutexGuard<'_, Option<UnboundedSender<Link>>> {
        self.0.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a report; returns whether there is a reader.
    fn report(&self, link: Link) -> bool {
        self.lock().as_ref().is_some_and(|reports| reports.send(link).is_ok())
    }

    fn is_read(&self) -> bool {
        self.lock().as_ref().is_some_and(|reports| !reports.is_closed())
    }

    /// Starts the probe, unless it runs already or the reports have no reader.
    fn start<P, F>(&self, probe: P)
    where
        P: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), DriverError>> + Send,
    {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.is_read() || self.0.is_running.swap(true, SeqCst) {
            return;
        }
        let running = Running(self.clone());
        runtime.spawn(async move {
            running.0.report(Link::Lost);
            while running.0.is_read() {
                sleep(PAUSE).await;
                match timeout(LIMIT, probe()).await {
                    Ok(Ok(())) => {
                        running.0.report(Link::Restored);
                        return;
                    }
                    // The driver was disconnected, so the link does not come back.
                    Ok(Err(error)) if !error.is_transient() => return,
                    _ => {}
                }
            }
        });
    }
}

impl fmt::Debug for LinkProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_running = self.0.is_running.load(SeqCst);
        f.debug_struct("LinkProbe").field("is_running", &is_running).finish_non_exhaustive()
    }
}

/// The running probe. After it has ended, the next failure starts another.
struct Running(LinkProbe);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.is_running.store(false, SeqCst);
    }
}

/// A call until its answer. If it fails, or is dropped before that, it starts the probe.
struct Watch<'a, P> {
    state: &'a LinkProbe,
    probe: Option<P>,
    start: fn(&LinkProbe, P),
}

impl<P> Drop for Watch<'_, P> {
    fn drop(&mut self) {
        if let Some(probe) = self.probe.take() {
            (self.start)(self.state, probe);
        }
    }
}

struct Reports(UnboundedReceiver<Link>);

impl Stream for Reports {
    type Item = Link;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Link>> {
        self.0.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use crate::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn a_failure_is_reported_until_the_probe_succeeds() {
        let probe = LinkProbe::default();
        let mut reports = probe.reports();
        let tries = Arc::new(AtomicUsize::new(0));
        let fails = || Err(DriverError::new(ErrorKind::Denied, "no"));
        let ping = || {
            let tries = Arc::clone(&tries);
            move || {
                let at = tries.fetch_add(1, SeqCst);
                async move { if at < 1 { fails() } else { Ok(()) } }
            }
        };
        for _ in 0..3 {
            let answer: Result<(), _> = probe.watch(async { fails() }, ping()).await;
            assert!(answer.is_err());
        }
        // A dropped call counts as failed, and a call that was refused for good does not.
        let hangs = std::future::pending::<Result<(), DriverError>>();
        assert!(timeout(Duration::from_millis(1), probe.watch(hangs, ping())).await.is_err());
        for expected in [Link::Lost, Link::Restored] {
            assert_eq!(poll_fn(|cx| reports.as_mut().poll_next(cx)).await, Some(expected));
        }
        assert_eq!(tries.load(SeqCst), 2, "one probe for all of them");
        let refused = async { Err::<(), _>(DriverError::new(ErrorKind::TooLarge, "no")) };
        assert!(probe.watch(refused, ping()).await.is_err());
        let quiet = timeout(PAUSE * 2, poll_fn(|cx| reports.as_mut().poll_next(cx))).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }
}
