//! The bus over publish and subscribe.

use std::sync::Arc;

use bentocache_driver::{BusDriver, BusFeed, BusStream, DriverError, LastTrouble, Topic};
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::connect::{Connect, Servers};
use crate::error::Failure;
use crate::feed::{self, Closing, Feed};
use crate::line::{Call, Line};
use crate::pulse::{self, Needs, Open, Pulse};

/// The bus on Redis and compatible servers: `PUBLISH` and `SUBSCRIBE` on the channel of the store,
/// in the format of npm `bentocache`.
///
/// One connection publishes messages. Each subscription has a connection of its own and is
/// confirmed before [`subscribe`](BusDriver::subscribe) returns. After a loss the driver subscribes
/// again, without a limit of attempts, and reports the loss and the next confirmation. In a cluster
/// it uses any node, because nodes forward messages to each other; if that node dies, it uses
/// another one.
pub struct RedisBus {
    line: Arc<Line>,
    closing: Closing,
    trouble: LastTrouble,
}

constructors!(RedisBus);

impl RedisBus {
    fn open(connect: Connect) -> Self {
        let (closing, trouble) = Default::default();
        Self { line: Arc::new(Line::to_any_node(connect)), closing, trouble }
    }
}

impl BusDriver for RedisBus {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(topic.channel).arg(&message[..]);
        let call = self.line.query(Call::read("publish"), &publish);
        self.trouble.watch(call, || self.line.obstacle()).await.map(drop)
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        let messages =
            Messages { servers: self.line.servers()?, channel: topic.channel.to_owned() };
        let call = feed::subscribe(messages, &self.closing);
        self.trouble.watch(call, || Some(self.line.place().opening())).await
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.recent()
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.closing.close();
        self.line.close();
        Ok(())
    }
}

/// A subscription to a channel.
struct Messages {
    servers: Servers,
    channel: String,
}

/// The connection on which the messages arrive.
struct Subscription {
    conn: MultiplexedConnection,
    pulse: Pulse,
    ended: mpsc::UnboundedReceiver<()>,
}

impl Messages {
    async fn dial(&self, attempt: usize, outbox: &Arc<BusFeed>) -> Result<Subscription, Failure> {
        let (tell, ended) = mpsc::unbounded_channel();
        let config = feed::receiving(&self.servers, outbox, tell, |_| None);
        let open = Open::Pushes(&config);
        let (mut conn, pulse) = pulse::dial(&self.servers, attempt, Needs::Messages, open).await?;
        let subscribed = conn.subscribe(&self.channel).await;
        subscribed.map_err(|wrong| self.servers.place.failure(&wrong))?;
        Ok(Subscription { conn, pulse, ended })
    }
}

impl Feed for Messages {
    type Session = Subscription;

    async fn open(
        &self,
        attempt: usize,
        outbox: &Arc<BusFeed>,
    ) -> Result<Subscription, DriverError> {
        let limit = self.servers.options.connect_timeout;
        match timeout(limit, self.dial(attempt, outbox)).await {
            Ok(subscription) => subscription.map_err(|failure| failure.error("subscribe")),
            Err(_) => Err(self.servers.place.no_connection(limit).error("subscribe")),
        }
    }

    async fn run(&self, mut subscription: Subscription, _: &Arc<BusFeed>) -> String {
        let Subscription { conn, pulse, ended } = &mut subscription;
        tokio::select! {
            _ = ended.recv() => "the connection was closed".to_owned(),
            reason = pulse.beats(conn) => reason,
        }
    }
}
