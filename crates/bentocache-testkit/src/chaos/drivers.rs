//! The wrappers around the drivers.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bentocache_driver::{
    BusDriver, BusEvent, BusStream, Capabilities, DriverError, Entry, EntryLimit, Finding,
    Inserted, KeyStream, L1Driver, L2Driver, Link, LinkStream, LockDriver, Topic, Write,
};
use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc;

use super::{Chaos, Ops};
use crate::map::lock;

macro_rules! wrapper {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name<D> {
            inner: D,
            chaos: Chaos,
        }

        impl<D> $name<D> {
            /// Wraps the driver; it behaves normally until [`chaos`](Self::chaos) sets a fault.
            pub fn new(driver: D) -> Self {
                Self::with(driver, Chaos::new())
            }

            /// Wraps the driver with a handle that other drivers may share.
            pub fn with(driver: D, chaos: Chaos) -> Self {
                Self { inner: driver, chaos: chaos.on(Ops::ALL) }
            }

            /// The handle that controls this driver's faults.
            pub fn chaos(&self) -> Chaos {
                self.chaos.clone()
            }

            /// The wrapped driver.
            pub fn inner(&self) -> &D {
                &self.inner
            }
        }
    };
}

wrapper! {
    /// An L2 that fails, waits and hangs as its [`Chaos`] says.
    ChaosL2
}

impl<D: L2Driver> L2Driver for ChaosL2<D> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn identity(&self) -> Option<String> {
        self.inner.identity()
    }

    async fn findings(&self) -> Vec<Finding> {
        self.inner.findings().await
    }

    async fn connect(&self) -> Result<(), DriverError> {
        self.chaos.call(Ops::CONNECT, || self.inner.connect()).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.chaos.call(Ops::GET, || self.inner.get(key)).await
    }

    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        self.chaos.call(Ops::GET_MANY, || self.inner.get_many(keys)).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        self.chaos.call(Ops::SET, || self.inner.set(key, value, ttl)).await
    }

    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        self.chaos.call(Ops::SET, || self.inner.insert(key, value, ttl)).await
    }

    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        self.chaos.call(Ops::SET_MANY, || self.inner.set_many(writes)).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        self.chaos.call(Ops::DELETE, || self.inner.delete(keys)).await
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.chaos.call(Ops::CLEAR, || self.inner.clear(prefix)).await
    }

    async fn clear_parts(&self, prefix: &str, parts: &[u32]) -> Result<(), DriverError> {
        self.chaos.call(Ops::CLEAR, || self.inner.clear_parts(prefix, parts)).await
    }

    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.chaos.call(Ops::PULL, || self.inner.pull(key)).await
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        let work = || self.inner.update(key, expected, value, remaining);
        self.chaos.call(Ops::UPDATE, work).await
    }

    async fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool, DriverError> {
        self.chaos.call(Ops::TOUCH, || self.inner.touch(key, ttl)).await
    }

    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        self.chaos.call(Ops::DELETE_IF, || self.inner.delete_if(key, value)).await
    }

    async fn prune(&self) -> Result<u64, DriverError> {
        self.chaos.call(Ops::PRUNE, || self.inner.prune()).await
    }

    fn keys(&self, prefix: &str) -> KeyStream {
        let chaos = self.chaos.clone();
        let start = async move { chaos.call(Ops::KEYS, || async { Ok(()) }).await };
        Box::pin(LateKeys { start: Some(Box::pin(start)), keys: self.inner.keys(prefix) })
    }

    fn link(&self) -> Option<LinkStream> {
        let (sender, reports) = mpsc::unbounded_channel();
        self.chaos.rules().links.push(sender);
        Some(Box::pin(Links { reports, inner: self.inner.link() }))
    }

    fn part(&self, key: &str) -> Option<u32> {
        self.inner.part(key)
    }

    fn trouble(&self) -> Option<String> {
        self.inner.trouble()
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.chaos.call(Ops::DISCONNECT, || self.inner.disconnect()).await
    }
}

/// Keys after a wait, or an error instead.
struct LateKeys {
    start: Option<Wait<Result<(), DriverError>>>,
    keys: KeyStream,
}

type Wait<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Stream for LateKeys {
    type Item = Result<String, DriverError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(start) = &mut self.start {
            let Poll::Ready(started) = start.as_mut().poll(cx) else { return Poll::Pending };
            self.start = None;
            if let Err(error) = started {
                self.keys = Box::pin(Nothing);
                return Poll::Ready(Some(Err(error)));
            }
        }
        self.keys.as_mut().poll_next(cx)
    }
}

struct Nothing;

impl Stream for Nothing {
    type Item = Result<String, DriverError>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}

/// The reports of the handle and of the wrapped driver.
struct Links {
    reports: mpsc::UnboundedReceiver<Link>,
    inner: Option<LinkStream>,
}

impl Stream for Links {
    type Item = Link;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Link>> {
        if let Some(inner) = &mut self.inner {
            match inner.as_mut().poll_next(cx) {
                Poll::Ready(Some(link)) => return Poll::Ready(Some(link)),
                Poll::Ready(None) => self.inner = None,
                Poll::Pending => {}
            }
        }
        self.reports.poll_recv(cx)
    }
}

wrapper! {
    /// A bus that fails, waits, hangs and loses its connection as its [`Chaos`] says.
    ///
    /// To make late messages, hold or slow [`Ops::DELIVER`]; to lose messages without a report,
    /// fail it.
    ChaosBus
}

impl<D: BusDriver> BusDriver for ChaosBus<D> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        self.chaos.call(Ops::PUBLISH, || self.inner.publish(topic, message)).await
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        let stream = self.chaos.call(Ops::SUBSCRIBE, || self.inner.subscribe(topic)).await?;
        let subscription = Arc::new(Mutex::new(Subscription {
            stream: Some(stream),
            ready: VecDeque::new(),
            arriving: None,
            is_cut: false,
            waker: None,
        }));
        let mut rules = self.chaos.rules();
        if rules.is_cut {
            // The connection was cut since the call.
            let mut subscription = lock(&subscription);
            subscription.is_cut = true;
            subscription.ready.push_back(BusEvent::Lost);
        }
        rules.subscriptions.push(Arc::downgrade(&subscription));
        Ok(Box::pin(Subscribed { subscription, chaos: self.chaos.clone() }))
    }

    fn trouble(&self) -> Option<String> {
        self.inner.trouble()
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.chaos.call(Ops::DISCONNECT, || self.inner.disconnect()).await
    }
}

pub(super) struct Subscription {
    /// `None` when it has ended.
    stream: Option<BusStream>,
    ready: VecDeque<BusEvent>,
    /// A message on its way to the subscriber; the result of its wait says whether it arrives.
    arriving: Option<(BusEvent, Wait<bool>)>,
    is_cut: bool,
    waker: Option<Waker>,
}

impl Subscription {
    /// Takes effect before it returns, even if nobody polls the subscription: messages that the
    /// wrapped stream holds now belong to the time before the change.
    pub(super) fn set_cut(this: &Mutex<Self>, is_cut: bool) {
        let mut subscription = lock(this);
        let mut nobody = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(event)) = subscription.poll_inner(&mut nobody) {
            if is_cut {
                subscription.ready.push_back(event);
            }
        }
        subscription.is_cut = is_cut;
        let report = if is_cut { BusEvent::Lost } else { BusEvent::Restored };
        subscription.ready.push_back(report);
        let waker = subscription.waker.take();
        drop(subscription);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<BusEvent>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        // Outside of tokio's budget: otherwise a `Pending` that only yields would look like the end
        // of the arrived messages.
        let next = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx));
        let event = std::pin::pin!(tokio::task::unconstrained(next)).poll(cx);
        if let Poll::Ready(None) = event {
            self.stream = None;
        }
        event
    }
}

struct Subscribed {
    subscription: Arc<Mutex<Subscription>>,
    chaos: Chaos,
}

impl Stream for Subscribed {
    type Item = BusEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BusEvent>> {
        let mut subscription = lock(&self.subscription);
        loop {
            subscription.waker = Some(cx.waker().clone());
            if let Some((_, arrival)) = &mut subscription.arriving {
                let Poll::Ready(is_delivered) = arrival.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                let arrived = subscription.arriving.take().filter(|_| is_delivered);
                if let Some((event, _)) = arrived {
                    return Poll::Ready(Some(event));
                }
            }
            let event = match subscription.ready.pop_front() {
                Some(event) => event,
                None => match subscription.poll_inner(cx) {
                    Poll::Ready(Some(_)) if subscription.is_cut => continue,
                    Poll::Ready(Some(event)) => event,
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                },
            };
            if matches!(event, BusEvent::Lost | BusEvent::Restored) {
                return Poll::Ready(Some(event));
            }
            let chaos = self.chaos.clone();
            let arrival =
                async move { chaos.call(Ops::DELIVER, || async { Ok(()) }).await.is_ok() };
            subscription.arriving = Some((event, Box::pin(arrival)));
        }
    }
}

wrapper! {
    /// A lock that fails, waits and hangs as its [`Chaos`] says.
    ChaosLock
}

impl<D: LockDriver> LockDriver for ChaosLock<D> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn acquire(&self, key: &str, token: &str, lease: Duration) -> Result<bool, DriverError> {
        self.chaos.call(Ops::ACQUIRE, || self.inner.acquire(key, token, lease)).await
    }

    async fn renew(&self, key: &str, token: &str, lease: Duration) -> Result<bool, DriverError> {
        self.chaos.call(Ops::RENEW, || self.inner.renew(key, token, lease)).await
    }

    async fn release(&self, key: &str, token: &str) -> Result<bool, DriverError> {
        self.chaos.call(Ops::RELEASE, || self.inner.release(key, token)).await
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.chaos.call(Ops::DISCONNECT, || self.inner.disconnect()).await
    }
}

wrapper! {
    /// An L1 that counts its calls, and forgets as its [`Chaos`] says: with a failure set, a `get`
    /// finds nothing and an `insert` is refused. It is synchronous, so delays, holds and hangs have
    /// no effect.
    ChaosL1
}

impl<D: L1Driver> L1Driver for ChaosL1<D> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn get(&self, key: &str) -> Option<Arc<Entry>> {
        if self.chaos.count_and_decide(Ops::GET) { self.inner.get(key) } else { None }
    }

    fn insert(&self, entry: Arc<Entry>, weight: u64) -> Inserted {
        if self.chaos.count_and_decide(Ops::INSERT) {
            return self.inner.insert(entry, weight);
        }
        Inserted { replaced: self.inner.remove(entry.key()), refused: true, ..Inserted::default() }
    }

    fn remove(&self, key: &str) -> Option<Arc<Entry>> {
        self.chaos.count(Ops::DELETE);
        self.inner.remove(key)
    }

    fn clear(&self, prefix: &str) {
        self.chaos.count(Ops::CLEAR);
        self.inner.clear(prefix);
    }

    fn prune(&self, now: u64) -> usize {
        self.chaos.count(Ops::PRUNE);
        self.inner.prune(now)
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn for_each(&self, visit: &mut dyn FnMut(&Arc<Entry>)) {
        self.chaos.count(Ops::FOR_EACH);
        self.inner.for_each(visit);
    }

    fn is_weighted(&self) -> bool {
        self.inner.is_weighted()
    }

    fn entry_limit(&self) -> Option<EntryLimit> {
        self.inner.entry_limit()
    }

    fn max_entries(&self) -> Option<u64> {
        self.inner.max_entries()
    }

    fn bytes(&self) -> Option<u64> {
        self.inner.bytes()
    }

    fn max_bytes(&self) -> Option<u64> {
        self.inner.max_bytes()
    }
}
