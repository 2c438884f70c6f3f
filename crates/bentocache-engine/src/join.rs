//! Futures that run together.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Runs futures concurrently in this task.
pub(crate) async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|f| (Some(Box::pin(f)), None)).collect();
    poll_fn(|cx| {
        let mut is_pending = false;
        for (future, output) in &mut futures {
            let Some(running) = future else { continue };
            match Pin::new(running).poll(cx) {
                Poll::Ready(ready) => (*future, *output) = (None, Some(ready)),
                Poll::Pending => is_pending = true,
            }
        }
        if is_pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}
