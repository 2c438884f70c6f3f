//! Changes of both tiers, which go to their end: stopped half-way they would leave the tiers
//! different.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Engine;
use super::tasks::Busy;

impl Engine {
    /// Runs a change of both tiers. Once begun, it goes on in the background when its caller is
    /// gone.
    pub(crate) fn to_the_end<R: Send + 'static>(
        self: &Arc<Self>,
        run: Pin<Box<dyn Future<Output = R> + Send>>,
    ) -> Change<R> {
        Change { engine: self.clone(), run: Some(run), begun: None }
    }
}

/// The future of a change. Once begun, and with an L2, it goes on in the background when it
/// is dropped.
#[must_use = "futures do nothing unless awaited"]
pub struct Change<R: Send + 'static> {
    engine: Arc<Engine>,
    /// Nothing once it has ended.
    run: Option<Pin<Box<dyn Future<Output = R> + Send>>>,
    begun: Option<Busy>,
}

impl<R: Send + 'static> Future for Change<R> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        // Taken out while it is polled: one that panics has ended.
        let Some(mut run) = self.run.take() else { return Poll::Pending };
        if self.begun.is_none() && self.engine.l2.is_some() {
            self.begun = Some(self.engine.work.busy());
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
