//! Changes of both tiers run to completion: a change that stops half-way would leave the tiers
//! inconsistent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{Ordering::SeqCst, fence};
use std::task::{Context, Poll};

use super::Engine;
use super::tasks::Busy;

impl Engine {
    /// Runs a change of both tiers. Once it has begun, it continues in the background when its
    /// caller is dropped.
    pub(crate) fn to_the_end<R: Send + 'static>(
        self: &Arc<Self>,
        run: Pin<Box<dyn Future<Output = R> + Send>>,
    ) -> Change<R> {
        Change { engine: self.clone(), run: Some(run), begun: None }
    }
}

/// The future of a change. Once begun, and if the store has an L2 or snapshots, the change continues
/// in the background when this future is dropped.
#[must_use = "futures do nothing unless awaited"]
pub struct Change<R: Send + 'static> {
    engine: Arc<Engine>,
    /// `None` once it has ended.
    run: Option<Pin<Box<dyn Future<Output = R> + Send>>>,
    begun: Option<Busy>,
}

impl<R: Send + 'static> Future for Change<R> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        // Taken out while it is polled, so that a future that panics is not polled again.
        let Some(mut run) = self.run.take() else { return Poll::Pending };
        let counts = self.engine.l2.is_some() || self.engine.has_snapshots();
        if self.begun.is_none() && counts {
            self.begun = Some(self.engine.work.busy());
            // If this change sees the store open, `disconnect` sees this change.
            fence(SeqCst);
        }
        let polled = run.as_mut().poll(cx);
        if polled.is_pending() {
            self.run = Some(run);
        }
        polled
    }
}

impl<R: Send + 'static> Drop for Change<R> {
    fn drop(&mut self) {
        if let (Some(run), Some(_)) = (self.run.take(), &self.begun) {
            self.engine.spawn(async move { drop(run.await) });
        }
    }
}
