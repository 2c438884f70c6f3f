//! Whether the database works, and when it works again: a probe that runs while something fails.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bentocache_core::{DriverError, Link, LinkStream};
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// The pause between two probes.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(2);

/// What the driver and its probe share.
#[derive(Clone, Default)]
pub(crate) struct Health(Arc<State>);

#[derive(Default)]
struct State {
    /// There when somebody has asked for reports.
    reports: Mutex<Option<mpsc::UnboundedSender<Link>>>,
    is_probing: AtomicBool,
}

impl Health {
    /// The reports from now on.
    pub(crate) fn reports(&self) -> LinkStream {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        *self.lock() = Some(sender);
        Box::pin(stream::poll_fn(move |cx| receiver.poll_recv(cx)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<mpsc::UnboundedSender<Link>>> {
        self.0.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a report; whether somebody reads it.
    fn report(&self, link: Link) -> bool {
        self.lock().as_ref().is_some_and(|reports| reports.send(link).is_ok())
    }

    /// Watches a call that is made with `probe`, which finds out whether calls work again.
    pub(crate) fn watch<P, F>(&self, probe: P) -> Watch<P>
    where
        P: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), DriverError>> + Send,
    {
        Watch { health: self.clone(), probe: Some(probe), start: Self::start::<P, F> }
    }

    /// Starts probing, unless somebody does already or nobody wants to know.
    fn start<P, F>(self, probe: P)
    where
        P: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), DriverError>> + Send,
    {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.lock().is_none() || self.0.is_probing.swap(true, SeqCst) {
            return;
        }
        let probing = Probing(self);
        runtime.spawn(async move {
            let health = &probing.0;
            let mut is_wanted = health.report(Link::Lost);
            while is_wanted {
                sleep(PAUSE).await;
                match timeout(LIMIT, probe()).await {
                    Ok(Ok(())) => break,
                    // It was disconnected: nothing comes back.
                    Ok(Err(error)) if !error.is_transient() => return,
                    _ => is_wanted = !health.is_unread(),
                }
            }
            health.report(Link::Restored);
        });
    }

    fn is_unread(&self) -> bool {
        self.lock().as_ref().is_none_or(mpsc::UnboundedSender::is_closed)
    }
}

/// The running probe. When it ends, the next failure starts another.
struct Probing(Health);

impl Drop for Probing {
    fn drop(&mut self) {
        self.0.0.is_probing.store(false, SeqCst);
    }
}

/// A call, until it has an answer. One that is given up before has failed.
pub(crate) struct Watch<P> {
    health: Health,
    probe: Option<P>,
    start: fn(Health, P),
}

impl<P> Watch<P> {
    pub(crate) fn end<T>(mut self, answer: &Result<T, DriverError>) {
        if !answer.as_ref().is_err_and(DriverError::is_transient) {
            self.probe = None;
        }
    }
}

impl<P> Drop for Watch<P> {
    fn drop(&mut self) {
        if let Some(probe) = self.probe.take() {
            (self.start)(self.health.clone(), probe);
        }
    }
}
