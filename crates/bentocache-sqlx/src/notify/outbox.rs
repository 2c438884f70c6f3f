//! What a subscription has for its reader.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bentocache_core::BusEvent;
use futures_core::Stream;
use tokio::sync::mpsc;

use super::hub::Request;

/// How much may wait for a reader, in bytes. The connection must be read all the time, or the
/// server would fill up in place of us.
const MOST: usize = 64 << 20;
/// What an event costs besides its content.
const OVERHEAD: usize = 64;

/// Events on their way to one reader. What is too much is dropped, and reported as a gap.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<BusEvent>,
    size: usize,
    /// Whether the last report to the reader was that messages do not arrive.
    is_lost: bool,
    is_over: bool,
    reader: Option<Waker>,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(mut queue: MutexGuard<'_, Queue>, event: BusEvent) {
        queue.size += size(&event);
        queue.events.push_back(event);
        let reader = queue.reader.take();
        drop(queue);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    pub(crate) fn event(&self, event: BusEvent) {
        let mut queue = self.lock();
        if queue.size + size(&event) > MOST {
            queue.events.clear();
            queue.size = 0;
            queue.events.push_back(BusEvent::Lost);
            if !queue.is_lost {
                queue.events.push_back(BusEvent::Restored);
            }
        }
        Self::push(queue, event);
    }

    pub(crate) fn lost(&self) {
        let mut queue = self.lock();
        if !std::mem::replace(&mut queue.is_lost, true) {
            Self::push(queue, BusEvent::Lost);
        }
    }

    pub(crate) fn restored(&self) {
        let mut queue = self.lock();
        if std::mem::replace(&mut queue.is_lost, false) {
            Self::push(queue, BusEvent::Restored);
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    pub(crate) fn end(&self) {
        let mut queue = self.lock();
        queue.is_over = true;
        if let Some(reader) = queue.reader.take() {
            drop(queue);
            reader.wake();
        }
    }
}

fn size(event: &BusEvent) -> usize {
    OVERHEAD
        + match event {
            BusEvent::Message(bytes) => bytes.len(),
            _ => 0,
        }
}

/// The reader's end.
pub(crate) struct Subscription {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) channel: String,
    pub(crate) requests: mpsc::UnboundedSender<Request>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.outbox.end();
        let channel = std::mem::take(&mut self.channel);
        // If nobody listens any more, there is nothing to leave.
        let _ = self.requests.send(Request::Leave { channel });
    }
}

impl Stream for Subscription {
    type Item = BusEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BusEvent>> {
        let mut queue = self.outbox.lock();
        match queue.events.pop_front() {
            // What was queued before the end has become worthless: the reader is going away.
            _ if queue.is_over => Poll::Ready(None),
            Some(event) => {
                queue.size = queue.size.saturating_sub(size(&event));
                Poll::Ready(Some(event))
            }
            None => {
                queue.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn drained(outbox: &Outbox) -> Vec<BusEvent> {
        let mut queue = outbox.lock();
        queue.size = 0;
        queue.events.drain(..).collect()
    }

    #[test]
    fn too_much_is_a_gap() {
        let outbox = Outbox::default();
        let message = || BusEvent::Message(Bytes::from(vec![0; MOST / 3]));
        for _ in 0..3 {
            outbox.event(message());
        }
        assert_eq!(drained(&outbox), [BusEvent::Lost, BusEvent::Restored, message()]);
        outbox.event(message());
        assert_eq!(drained(&outbox), [message()]);
    }

    #[test]
    fn a_gap_while_lost_stays_lost() {
        let outbox = Outbox::default();
        let message = || BusEvent::Message(Bytes::from(vec![0; MOST / 2]));
        outbox.event(message());
        outbox.lost();
        outbox.lost();
        outbox.event(message());
        assert_eq!(drained(&outbox), [BusEvent::Lost, message()]);
        outbox.restored();
        outbox.restored();
        assert_eq!(drained(&outbox), [BusEvent::Restored]);
    }
}
