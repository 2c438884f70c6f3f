//! The bus: tells the first tiers of other processes what has changed.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use futures_core::Stream;

use crate::DriverError;

/// A boxed stream of what a subscription delivers. Its end means that the subscription is over:
/// the engine then counts the link as lost and subscribes again.
pub type BusStream = Pin<Box<dyn Stream<Item = BusEvent> + Send>>;

/// Where a store's messages go.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Topic<'a> {
    /// The channel: a Redis channel, a NATS subject, an exchange.
    pub channel: &'a str,
    /// What every key of the store starts with; for buses that watch keys instead of messages.
    pub prefix: &'a str,
}

impl<'a> Topic<'a> {
    /// The channel of a store and what its keys start with.
    pub fn new(channel: &'a str, prefix: &'a str) -> Self {
        Self { channel, prefix }
    }
}

/// What a subscription delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusEvent {
    /// A message that some process published, this one included.
    Message(Bytes),
    /// Complete keys that some other writer has changed; for buses that watch keys.
    Changed(Vec<String>),
    /// Any key may have changed; for buses that watch keys, and for those that may have missed
    /// messages without a loss of the link.
    AllChanged,
    /// Messages may be missed from now on.
    Lost,
    /// Messages arrive again. What was published in between is not repeated.
    Restored,
}

/// A publish/subscribe service.
///
/// A message is at most 512 KiB. Delivery may be late or repeated; what may have been missed must
/// be reported with [`BusEvent::Lost`] and [`BusEvent::Restored`].
pub trait BusDriver: Send + Sync + 'static {
    /// A short name for errors and logs, such as `redis`.
    fn name(&self) -> &'static str;

    /// Sends the message to every subscriber of the channel.
    ///
    /// # Errors
    /// When the service did not take the message. The engine keeps it and tries again.
    fn publish(
        &self,
        topic: Topic<'_>,
        message: Bytes,
    ) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Subscribes to the channel. When it returns, messages published from then on arrive.
    ///
    /// # Errors
    /// When the subscription could not be made. The engine tries again; but if the first one fails with
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) or [`ErrorKind::Denied`](crate::ErrorKind::Denied),
    /// building the cache fails, as an operator has to act.
    fn subscribe(
        &self,
        topic: Topic<'_>,
    ) -> impl Future<Output = Result<BusStream, DriverError>> + Send;

    /// What calls of this driver are waiting for, or were until a moment ago; as
    /// [`L2Driver::trouble`](crate::L2Driver::trouble). `None`, the default, if the driver knows of
    /// nothing.
    ///
    /// The engine asks when it cuts a `publish` or a `subscribe` that took too long, and logs the
    /// answer. [`LastTrouble::watch`](crate::LastTrouble::watch) keeps it for a call that was cut.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Ends what the driver runs and holds; open streams end.
    ///
    /// # Errors
    /// When something could not be ended in order; it is ended all the same.
    fn disconnect(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }
}
