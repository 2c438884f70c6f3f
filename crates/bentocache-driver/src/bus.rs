//! The bus: notifies the L1 of other processes of changes.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use futures_core::Stream;

use crate::DriverError;

/// The boxed stream of a subscription. Its end means that the subscription is over: the engine then
/// counts the link as lost and subscribes again.
pub type BusStream = Pin<Box<dyn Stream<Item = BusEvent> + Send>>;

/// The destination of a store's messages.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Topic<'a> {
    /// The channel: a Redis channel, a NATS subject, an exchange.
    pub channel: &'a str,
    /// The prefix of every key of the store, for buses that watch keys instead of messages.
    pub prefix: &'a str,
}

impl<'a> Topic<'a> {
    /// Creates a topic from a store's channel and key prefix.
    pub fn new(channel: &'a str, prefix: &'a str) -> Self {
        Self { channel, prefix }
    }
}

/// An event of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusEvent {
    /// A message that a process published, this process included.
    Message(Bytes),
    /// Complete keys that another writer has changed; for buses that watch keys.
    Changed(Vec<String>),
    /// Any key may have changed; for buses that watch keys, and for those that may have missed
    /// messages without a loss of the link.
    AllChanged,
    /// Messages may be missed from now on.
    Lost,
    /// Messages arrive again. Messages published in between are not repeated.
    Restored,
}

/// A publish/subscribe service.
///
/// A message is at most 512 KiB. Delivery may be late or repeated. A driver must report possibly
/// missed messages with [`BusEvent::Lost`] and [`BusEvent::Restored`].
pub trait BusDriver: Send + Sync + 'static {
    /// A short name for errors and logs, such as `redis`.
    fn name(&self) -> &'static str;

    /// Sends the message to every subscriber of the channel.
    ///
    /// # Errors
    /// If the service did not accept the message. The engine keeps it and tries again.
    fn publish(
        &self,
        topic: Topic<'_>,
        message: Bytes,
    ) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Subscribes to the channel. Messages that are published after this method returned must
    /// arrive.
    ///
    /// # Errors
    /// If the subscription failed. The engine tries again, but if the first subscription fails with
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) or [`ErrorKind::Denied`](crate::ErrorKind::Denied),
    /// the build of the cache fails, because an operator has to act.
    fn subscribe(
        &self,
        topic: Topic<'_>,
    ) -> impl Future<Output = Result<BusStream, DriverError>> + Send;

    /// What calls of this driver are waiting for, or were a moment ago; see
    /// [`L2Driver::trouble`](crate::L2Driver::trouble). `None`, the default, if the driver knows no
    /// reason.
    ///
    /// The engine asks when it cuts a `publish` or a `subscribe` that took too long, and logs the
    /// answer. [`LastTrouble::watch`](crate::LastTrouble::watch) stores the reason for a call that was
    /// cut.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Ends the driver's tasks and connections; open streams end.
    ///
    /// # Errors
    /// If a part could not be closed in order; it is closed nevertheless.
    fn disconnect(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }
}
