//! A bus between caches of one process.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bentocache_driver::{BusDriver, BusEvent, BusStream, DriverError, ErrorKind, Topic};
use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::{broadcast, watch};

use crate::sync::Mutex;

/// A bus for caches of the same process, for example in a test or in independent parts of a
/// program. Clones are the same bus, each with its own subscriptions.
///
/// A subscriber that is more than 16,384 messages behind misses some and gets a notification.
pub struct InProcessBus {
    channels: Arc<Mutex<HashMap<String, broadcast::Sender<Bytes>>>>,
    /// True once this clone was disconnected.
    closed: watch::Sender<bool>,
}

const BACKLOG: usize = 16_384;

impl InProcessBus {
    /// A new bus without subscribers.
    pub fn new() -> Self {
        Self { channels: Arc::default(), closed: watch::Sender::new(false) }
    }

    fn channel(&self, name: &str) -> Result<broadcast::Sender<Bytes>, DriverError> {
        if *self.closed.borrow() {
            return Err(DriverError::new(ErrorKind::Closed, "the in-process bus was disconnected"));
        }
        let mut channels = self.channels.lock();
        if let Some(sender) = channels.get(name) {
            return Ok(sender.clone());
        }
        let sender = broadcast::channel(BACKLOG).0;
        channels.insert(name.to_owned(), sender.clone());
        Ok(sender)
    }
}

impl Default for InProcessBus {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for InProcessBus {
    fn clone(&self) -> Self {
        Self { channels: self.channels.clone(), closed: watch::Sender::new(false) }
    }
}

impl std::fmt::Debug for InProcessBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcessBus").finish_non_exhaustive()
    }
}

impl BusDriver for InProcessBus {
    fn name(&self) -> &'static str {
        "in-process"
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        // Without a subscriber the message is not needed.
        let _ = self.channel(topic.channel)?.send(message);
        Ok(())
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        let receiver = self.channel(topic.channel)?.subscribe();
        let next = Box::pin(receive(receiver, self.closed.subscribe()));
        Ok(Box::pin(Subscription { next, restored: false }))
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.closed.send_replace(true);
        Ok(())
    }
}

/// The stream of one subscriber. If it reads so slowly that it misses messages, it gets `Lost` and then
/// `Restored`.
struct Subscription {
    next: Pin<Box<dyn Future<Output = (Received, Inlet, Closed)> + Send>>,
    restored: bool,
}

type Inlet = broadcast::Receiver<Bytes>;
type Closed = watch::Receiver<bool>;
type Received = Result<Bytes, broadcast::error::RecvError>;

async fn receive(mut inlet: Inlet, mut closed: Closed) -> (Received, Inlet, Closed) {
    // A driver that is dropped without `disconnect` does not end its streams.
    let ended = async {
        if closed.wait_for(|closed| *closed).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let received = tokio::select! {
        biased;
        () = ended => Err(broadcast::error::RecvError::Closed),
        received = inlet.recv() => received,
    };
    (received, inlet, closed)
}

impl Stream for Subscription {
    type Item = BusEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BusEvent>> {
        if std::mem::take(&mut self.restored) {
            return Poll::Ready(Some(BusEvent::Restored));
        }
        let (received, inlet, closed) = std::task::ready!(self.next.as_mut().poll(cx));
        self.next = Box::pin(receive(inlet, closed));
        Poll::Ready(match received {
            Ok(message) => Some(BusEvent::Message(message)),
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.restored = true;
                Some(BusEvent::Lost)
            }
            Err(broadcast::error::RecvError::Closed) => None,
        })
    }
}
