//! The channels of a connection: one for publishing, one per subscription.

use std::collections::HashSet;
use std::time::Duration;

use bentocache_driver::DriverError;
use bytes::Bytes;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer, ExchangeKind};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::connect::Session;
use crate::error::{self, Failure};

/// The most attempts of a call that a live server refused: an exchange ends with its last
/// subscription, possibly between two steps.
const TRIES: usize = 3;

pub(crate) struct Channels {
    session: Session,
    timeout: Duration,
    publisher: Mutex<Option<Publisher>>,
}

/// A channel with publisher confirms, and the exchanges that are known to exist.
struct Publisher {
    channel: Channel,
    exchanges: HashSet<ShortString>,
}

/// A subscription: its channel must live as long as it is read.
pub(crate) struct Subscriber {
    pub(crate) consumer: Consumer,
    _channel: Channel,
}

impl Channels {
    pub(crate) fn new(session: Session, timeout: Duration) -> Self {
        Self { session, timeout, publisher: Mutex::default() }
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Sends a message and waits until the server has confirmed it.
    pub(crate) async fn publish(
        &self,
        exchange: &ShortString,
        message: &Bytes,
    ) -> Result<(), DriverError> {
        let tries = async {
            let mut tries = 1;
            loop {
                match self.try_publish(exchange, message).await {
                    Err(_) if self.once_more(&mut tries) => {}
                    outcome => return outcome,
                }
            }
        };
        self.in_time("publish", tries).await
    }

    /// Subscribes. After it returns, messages enter the queue.
    pub(crate) async fn subscribe(
        &self,
        exchange: &ShortString,
    ) -> Result<Subscriber, DriverError> {
        let tries = async {
            let mut tries = 1;
            loop {
                match self.try_subscribe(exchange).await {
                    Err(_) if self.once_more(&mut tries) => {}
                    outcome => return outcome,
                }
            }
        };
        self.in_time("subscribe", tries).await
    }

    /// Whether to repeat a call that failed while the connection is open.
    fn once_more(&self, tries: &mut usize) -> bool {
        *tries += 1;
        *tries <= TRIES && self.session.is_open()
    }

    async fn in_time<T>(
        &self,
        doing: &str,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, DriverError> {
        match timeout(self.timeout, call).await {
            Ok(outcome) => outcome.map_err(|failure| failure.error(doing)),
            Err(_) => Err(error::late(doing, self.timeout)),
        }
    }

    async fn try_publish(&self, exchange: &ShortString, message: &Bytes) -> Result<(), Failure> {
        let publish = async {
            let channel = self.publisher(exchange).await?;
            let (options, properties) =
                (BasicPublishOptions::default(), BasicProperties::default());
            let name = exchange.clone();
            channel.basic_publish(name, "".into(), options, message, properties).await?.await
        };
        match publish.await {
            Ok(Confirmation::Ack(_)) => Ok(()),
            Ok(_) => Err(Failure::unavailable(
                "a queue has not taken the message; a subscriber may be too slow, and a policy may \
                 limit its queue",
            )),
            Err(wrong) => Err(Failure::new(&wrong)),
        }
    }

    /// The channel for publishing; a new one if the server has closed it.
    async fn publisher(&self, exchange: &ShortString) -> lapin::Result<Channel> {
        let mut publisher = self.publisher.lock().await;
        let known = match publisher.take() {
            Some(known) if known.channel.status().connected() => known,
            _ => {
                let channel = self.session.connection().create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                Publisher { channel, exchanges: HashSet::new() }
            }
        };
        let known = publisher.insert(known);
        if !known.exchanges.contains(exchange) {
            declare(&known.channel, exchange).await?;
            known.exchanges.insert(exchange.clone());
        }
        Ok(known.channel.clone())
    }

    async fn try_subscribe(&self, exchange: &ShortString) -> Result<Subscriber, Failure> {
        let subscribe = async {
            let channel = self.session.connection().create_channel().await?;
            declare(&channel, exchange).await?;
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            // By default a full queue silently drops its oldest message. So it must refuse the
            // newest one, and the publisher sends that again.
            let mut arguments = FieldTable::default();
            arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
            // The server chooses the name.
            let queue = channel.queue_declare("".into(), options, arguments).await?;
            let queue = queue.name().clone();
            let options = QueueBindOptions::default();
            let arguments = FieldTable::default();
            let name = exchange.clone();
            channel.queue_bind(queue.clone(), name, "".into(), options, arguments).await?;
            let options =
                BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() };
            let arguments = FieldTable::default();
            let consumer = channel.basic_consume(queue, "".into(), options, arguments).await?;
            Ok(Subscriber { consumer, _channel: channel })
        };
        subscribe.await.map_err(|wrong: lapin::Error| Failure::new(&wrong))
    }
}

/// Declares the exchange. The server deletes it together with its last queue.
async fn declare(channel: &Channel, exchange: &ShortString) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
    let (name, arguments) = (exchange.clone(), FieldTable::default());
    channel.exchange_declare(name, ExchangeKind::Fanout, options, arguments).await
}
