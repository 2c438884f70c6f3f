//! Changes of both tiers, which go to their end: stopped half-way they would leave the tiers
//! different.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tracing::Instrument;

use super::{Busy, Engine};
use crate::error::Result;

impl Engine {
    /// Runs a change of both tiers. Once begun, it goes on in the background when its caller is
    /// gone.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        self: &Arc<Self>,
        run: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if self.l2.is_none() {
            return run.await;
        }
        Change { engine: self.clone(), run: Some(Box::pin(run)), begun: None }.await
    }
}

struct Change<T: Send + 'static> {
    engine: Arc<Engine>,
    /// Nothing once it has ended.
    run: Option<Pin<Box<dyn Future<Output = Result<T>> + Send>>>,
    begun: Option<Busy>,
}

impl<T: Send + 'static> Future for Change<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        // Taken out while it is polled: one that panics has ended.
        let Some(mut run) = self.run.take() else { return Poll::Pending };
        if self.begun.is_none() {
            self.begun = Some(self.engine.work.busy());
        }
        let polled = run.as_mut().poll(cx);
        if polled.is_pending() {
            self.run = Some(run);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Change<T> {
    fn drop(&mut self) {
        if let (Some(run), Some(_)) = (self.run.take(), &self.begun) {
            self.engine.spawn(async move { drop(run.await) }.in_current_span());
        }
    }
}
