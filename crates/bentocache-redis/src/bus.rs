//! The bus by publish and subscribe.

use std::sync::Arc;

use bentocache_core::{BusDriver, BusEvent, BusFeed, BusStream, DriverError, Topic};
use bytes::Bytes;
use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Client, RedisResult, Value};
use tokio::time::{sleep, timeout};

use crate::cluster;
use crate::connect::{Connect, Options, Target};
use crate::error::Place;
use crate::feed::{self, Closing, Feed};
use crate::line::{Call, Line};

/// The bus on Redis or one of its like: `PUBLISH` and `SUBSCRIBE` on the channel of the store,
/// which npm `bentocache` understands.
///
/// Messages are published on one connection; each subscription has one of its own, is confirmed
/// before [`subscribe`](BusDriver::subscribe) returns, and is made again by itself for ever, with
/// a report when it breaks and when it is confirmed again. In a cluster any node will do, because
/// the nodes pass messages on to each other; when it dies, another one is taken.
pub struct RedisBus {
    line: Line,
    options: Arc<Options>,
    closing: Closing,
}

constructors!(RedisBus);

impl RedisBus {
    fn open(connect: Connect) -> Self {
        let line = Line::to_any_node(connect);
        Self { line, options: Arc::default(), closing: Closing::default() }
    }
}

impl BusDriver for RedisBus {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(topic.channel).arg(&message[..]);
        self.line.query(&self.options, Call::again("publish"), &publish).await.map(drop)
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        let messages = Messages {
            target: self.line.connect().target(&self.options)?,
            place: self.line.place().clone(),
            options: self.options.clone(),
            channel: topic.channel.to_owned(),
        };
        feed::subscribe(messages, &self.closing).await
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.closing.close();
        self.line.close();
        Ok(())
    }
}

/// The messages of a channel.
struct Messages {
    target: Target,
    place: Place,
    options: Arc<Options>,
    channel: String,
}

impl Messages {
    async fn dial(&self, attempt: usize) -> RedisResult<(PubSubSink, PubSubStream)> {
        let client = self.target.node(attempt).await?;
        self.look_around(&client).await?;
        let (mut sink, stream) = client.get_async_pubsub().await?.split();
        sink.subscribe(&self.channel).await?;
        Ok((sink, stream))
    }

    /// Learns of the other nodes of a cluster, over a connection that is not subscribed yet.
    async fn look_around(&self, client: &Client) -> RedisResult<()> {
        if let Target::Cluster(known) = &self.target {
            let config = Target::options_for_node(self.options.connect_timeout);
            let mut conn = client.get_multiplexed_async_connection_with_config(&config).await?;
            known.remember(&cluster::nodes(client, &mut conn).await?.all);
        }
        Ok(())
    }
}

impl Feed for Messages {
    type Session = (PubSubSink, PubSubStream);

    async fn open(&self, attempt: usize, _: &Arc<BusFeed>) -> Result<Self::Session, DriverError> {
        let limit = self.options.connect_timeout;
        match timeout(limit, self.dial(attempt)).await {
            Ok(session) => session.map_err(|wrong| self.place.failed("subscribe", &wrong)),
            Err(_) => Err(self.place.no_connection(limit).error("subscribe")),
        }
    }

    async fn run(&self, (mut sink, mut stream): Self::Session, outbox: &Arc<BusFeed>) -> String {
        let messages = async {
            while let Some(message) = stream.next().await {
                let payload = Bytes::copy_from_slice(message.get_payload_bytes());
                outbox.event(BusEvent::Message(payload));
            }
            "the connection was closed".to_owned()
        };
        let pings = async {
            loop {
                sleep(self.options.ping_interval).await;
                match timeout(self.options.timeout, sink.ping::<Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(wrong)) => break self.place.failure(&wrong).to_string(),
                    Err(_) => break "no answer to a ping".to_owned(),
                }
            }
        };
        tokio::select! {
            reason = messages => reason,
            reason = pings => reason,
        }
    }
}
