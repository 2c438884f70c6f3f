//! The channel between a subscription and its reader, for authors of buses.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use crate::{BusEvent, BusStream};

/// The largest size of waiting events, in bytes. The connection must be read continuously;
/// otherwise the server would have to buffer instead of this process.
const MOST: usize = 64 << 20;
/// The size of an event in addition to its content, in bytes.
const OVERHEAD: usize = 64;

/// The sender of a [`BusStream`], for the code that reads a connection.
///
/// It never waits: the connection can be read at full speed, however slow the reader of the stream
/// is. At most 64 MiB wait for the reader. If there is more, all of it is dropped, and the reader
/// gets [`BusEvent::Lost`] and [`BusEvent::Restored`] instead.
///
/// Losses are reported once: a second [`lost`](Self::lost) without a [`restored`](Self::restored)
/// between them does nothing.
///
/// ```
/// use bentocache_driver::{BusEvent, BusFeed};
/// # use std::future::poll_fn;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (feed, mut stream) = BusFeed::open();
/// tokio::spawn(async move {
///     feed.event(BusEvent::Message("hello".into()));
///     // Here a driver would read its connection until the reader has gone.
///     feed.closed().await;
/// });
/// let event = poll_fn(|cx| stream.as_mut().poll_next(cx)).await;
/// assert_eq!(event, Some(BusEvent::Message("hello".into())));
/// # }
/// ```
pub struct BusFeed(Arc<Queue>);

/// The receiver.
struct Reader(Arc<Queue>);

#[derive(Default)]
struct Queue(Mutex<State>);

#[derive(Default)]
struct State {
    events: VecDeque<BusEvent>,
    size: usize,
    /// Whether the last report to the reader was that no messages arrive.
    is_lost: bool,
    /// The sender was dropped.
    is_over: bool,
    /// The receiver was dropped.
    is_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusFeed {
    /// Creates both ends. Dropping the feed ends the stream at once and drops waiting events.
    pub fn open() -> (Self, BusStream) {
        let queue = Arc::<Queue>::default();
        (Self(Arc::clone(&queue)), Box::pin(Reader(queue)))
    }

    /// Sends a message or a change.
    pub fn event(&self, event: BusEvent) {
        let mut state = self.0.lock();
        if state.size + size(&event) > MOST {
            state.events.clear();
            state.size = 0;
            state.events.push_back(BusEvent::Lost);
            if !state.is_lost {
                state.events.push_back(BusEvent::Restored);
            }
        }
        push(state, event);
    }

    /// Reports that messages may be missed from now on.
    pub fn lost(&self) {
        let mut state = self.0.lock();
        if !std::mem::replace(&mut state.is_lost, true) {
            push(state, BusEvent::Lost);
        }
    }

    /// Reports that messages arrive again.
    pub fn restored(&self) {
        let mut state = self.0.lock();
        if std::mem::replace(&mut state.is_lost, false) {
            push(state, BusEvent::Restored);
        }
    }

    /// Ends the stream, as dropping the feed does.
    pub fn end(&self) {
        let mut state = self.0.lock();
        state.is_over = true;
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Whether the reader has dropped the stream.
    pub fn is_closed(&self) -> bool {
        self.0.lock().is_closed
    }

    /// Returns when the reader has dropped the stream. Only one task may wait for it.
    pub async fn closed(&self) {
        poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.is_closed {
                return Poll::Ready(());
            }
            state.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

fn push(mut state: MutexGuard<'_, State>, event: BusEvent) {
    if state.is_closed {
        return;
    }
    state.size += size(&event);
    state.events.push_back(event);
    let reader = state.reader.take();
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
}

fn size(event: &BusEvent) -> usize {
    OVERHEAD
        + match event {
            BusEvent::Message(bytes) => bytes.len(),
            BusEvent::Changed(keys) => keys.iter().map(|key| key.len() + OVERHEAD).sum(),
            _ => 0,
        }
}

impl fmt::Debug for BusFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("BusFeed")
            .field("waiting", &state.events.len())
            .field("is_lost", &state.is_lost)
            .finish_non_exhaustive()
    }
}

impl Drop for BusFeed {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        let waiting = std::mem::take(&mut state.events);
        let writer = state.writer.take();
        drop(state);
        drop(waiting);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

impl Stream for Reader {
    type Item = BusEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BusEvent>> {
        let mut state = self.0.lock();
        if state.is_over {
            return Poll::Ready(None);
        }
        match state.events.pop_front() {
            Some(event) => {
                state.size = state.size.saturating_sub(size(&event));
                Poll::Ready(Some(event))
            }
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// The waiting events, as a reader gets them.
    fn drained(stream: &mut BusStream) -> Vec<BusEvent> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut events = Vec::new();
        while let Poll::Ready(Some(event)) = stream.as_mut().poll_next(&mut cx) {
            events.push(event);
        }
        events
    }

    fn message(part: usize) -> BusEvent {
        BusEvent::Message(Bytes::from(vec![0; MOST / part]))
    }

    #[test]
    fn too_much_is_a_gap() {
        let (feed, mut stream) = BusFeed::open();
        for _ in 0..3 {
            feed.event(message(3));
        }
        assert_eq!(drained(&mut stream), [BusEvent::Lost, BusEvent::Restored, message(3)]);
        feed.event(message(3));
        assert_eq!(drained(&mut stream), [message(3)], "what was read makes room");
    }

    #[test]
    fn a_gap_while_lost_stays_lost() {
        let (feed, mut stream) = BusFeed::open();
        feed.event(message(2));
        feed.lost();
        feed.lost();
        feed.event(message(2));
        assert_eq!(drained(&mut stream), [BusEvent::Lost, message(2)]);
        feed.restored();
        feed.restored();
        assert_eq!(drained(&mut stream), [BusEvent::Restored]);
    }

    #[tokio::test]
    async fn either_end_notices_that_the_other_has_gone() {
        let (feed, mut stream) = BusFeed::open();
        let reading =
            tokio::spawn(async move { poll_fn(|cx| stream.as_mut().poll_next(cx)).await });
        tokio::task::yield_now().await;
        drop(feed);
        assert_eq!(reading.await.expect("no panic"), None);

        let (feed, stream) = BusFeed::open();
        let writing = tokio::spawn(async move {
            feed.closed().await;
            feed.event(BusEvent::Message("to nobody".into()));
            feed.0.lock().events.len()
        });
        tokio::task::yield_now().await;
        assert!(!writing.is_finished());
        drop(stream);
        assert_eq!(writing.await.expect("no panic"), 0, "kept for nobody");
    }
}
