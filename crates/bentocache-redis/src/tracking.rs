//! The bus over which the server reports changes.

use std::fmt;
use std::sync::Arc;

use bentocache_driver::{BusDriver, BusEvent, BusFeed, BusStream, DriverError, LastTrouble, Topic};
use bytes::Bytes;
use futures_util::{StreamExt, future, stream::FuturesUnordered};
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::cluster::{self, Nodes};
use crate::connect::{self, Servers, Target};
use crate::error::Failure;
use crate::feed::{self, Closing, Feed};
use crate::line::{Call, Line};
use crate::pulse::{self, Needs, Open, Pulse};

const DOING: &str = "watch the keys";

/// The bus over [client tracking]: the server reports every change of a key under the store's
/// prefix, by any client, `redis-cli` included. Expiry and eviction are changes as well. It needs
/// RESP3, so Redis 6 or later, or a compatible server.
///
/// A server does not report the deletion of a missing key. So the processes of a cache also publish
/// their changes on the store's channel, like [`RedisBus`](crate::RedisBus): otherwise an
/// invalidation would be lost while a factory of another process produces the value.
///
/// [`Redis::tracking`](crate::Redis::tracking) makes the bus for a process that writes: the
/// process's own writes are not reported.
/// [`Redis::read_only_tracking`](crate::Redis::read_only_tracking) makes one that reports every
/// write.
///
/// In a cluster there is one connection per primary; if one breaks, or the primaries change, all
/// are replaced.
///
/// [client tracking]: https://redis.io/docs/latest/develop/reference/client-side-caching/
pub struct RedisTracking {
    line: Line,
    closing: Closing,
    trouble: LastTrouble,
    /// The connection whose own writes are not reported.
    writer: Option<Arc<Line>>,
}

impl RedisTracking {
    /// A bus that does not report the writes of this connection.
    pub(crate) fn beside(writer: &Arc<Line>) -> Self {
        Self { writer: Some(Arc::clone(writer)), ..Self::read_only(writer) }
    }

    /// A bus that reports all writes on the servers of this connection.
    pub(crate) fn read_only(reader: &Line) -> Self {
        // For messages; the reports arrive on the subscriptions' connections.
        let (closing, trouble) = Default::default();
        Self { line: reader.for_messages(), closing, trouble, writer: None }
    }
}

impl fmt::Debug for RedisTracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTracking")
            .field("connect", self.line.connect())
            .field("is_read_only", &self.writer.is_none())
            .finish_non_exhaustive()
    }
}

impl BusDriver for RedisTracking {
    fn name(&self) -> &'static str {
        "redis tracking"
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        self.closing.check()?;
        // The writer's connection, so that the message follows its change.
        let line = self.writer.as_deref().unwrap_or(&self.line);
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(topic.channel).arg(&message[..]);
        let call = line.query(Call::read("publish"), &publish);
        self.trouble.watch(call, || line.obstacle()).await.map(drop)
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        let servers = self.line.servers()?;
        match &self.writer {
            Some(writer) => writer.can_be_tracked()?,
            None => self.line.can_be_watched()?,
        }
        let changes = Changes {
            prefix: format!("{}{}", servers.options.prefix, topic.prefix),
            servers,
            channel: topic.channel.to_owned(),
            writer: self.writer.clone(),
        };
        let call = feed::subscribe(changes, &self.closing);
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

/// A subscription to the changes of all keys under a prefix, and to the messages of a channel.
struct Changes {
    servers: Servers,
    channel: String,
    /// The prefix includes the driver's own prefix.
    prefix: String,
    writer: Option<Arc<Line>>,
}

/// Connections to all servers with such keys.
struct Watch {
    conns: Vec<MultiplexedConnection>,
    /// The identity of the first connection.
    pulse: Pulse,
    /// The topology at the start.
    nodes: Option<Nodes>,
    /// Notified when a connection ends.
    ended: mpsc::UnboundedReceiver<()>,
    /// The connection that requested the reports, if it is another one.
    writer: Option<u64>,
}

impl Changes {
    async fn dial(&self, attempt: usize, outbox: &Arc<BusFeed>) -> Result<Watch, Failure> {
        let failed = |wrong| self.servers.place.failure(&wrong);
        let (tell, ended) = mpsc::unbounded_channel();
        let client_prefix = self.servers.options.prefix.clone();
        let changes = move |push: &PushInfo| match push.kind {
            PushKind::Invalidate => event(&push.data, &client_prefix),
            _ => None,
        };
        let config = feed::receiving(&self.servers, outbox, tell, changes);
        let open = Open::Pushes(&config);
        let (mut conn, pulse) = pulse::dial(&self.servers, attempt, Needs::Keys, open).await?;
        // Nodes of a cluster forward messages to each other.
        conn.subscribe(&self.channel).await.map_err(failed)?;
        let Target::Cluster(known) = &self.servers.target else {
            let writer = match &self.writer {
                Some(writer) => self.track_beside(writer, &mut conn).await.map(Some),
                None => self.track(&mut conn, None).await.map(|()| None),
            };
            let writer = writer.map_err(failed)?;
            return Ok(Watch { conns: vec![conn], pulse, nodes: None, ended, writer });
        };
        let nodes = cluster::nodes(pulse.client(), &mut conn).await.map_err(failed)?;
        let each = nodes.primaries.iter().map(async |(host, port)| {
            let client = connect::resp3(&known.node_at(host, *port)?)?;
            let mut conn = client.get_multiplexed_async_connection_with_config(&config).await?;
            self.track(&mut conn, None).await?;
            Ok::<_, RedisError>(conn)
        });
        let mut conns = future::try_join_all(each).await.map_err(failed)?;
        // The first connection is also used to ask for the topology.
        conns.insert(0, conn);
        Ok(Watch { conns, pulse, nodes: Some(nodes), ended, writer: None })
    }

    /// Requests the reports; with the number of another client, for that client and without this
    /// client's own writes.
    async fn track(&self, conn: &mut MultiplexedConnection, to: Option<i64>) -> RedisResult<()> {
        let mut track = redis::cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST");
        if let Some(client) = to {
            // An earlier request cannot be changed.
            let off = redis::cmd("CLIENT").arg("TRACKING").arg("OFF").take();
            off.query_async::<()>(conn).await?;
            track.arg("NOLOOP").arg("REDIRECT").arg(client);
        }
        if !self.prefix.is_empty() {
            track.arg("PREFIX").arg(&self.prefix);
        }
        track.query_async(conn).await
    }

    /// The writer requests the reports on its current connection.
    async fn track_beside(
        &self,
        writer: &Line,
        reader: &mut MultiplexedConnection,
    ) -> RedisResult<u64> {
        let client: i64 = redis::cmd("CLIENT").arg("ID").query_async(reader).await?;
        match writer.node(DOING).await {
            Ok(Some((mut conn, id))) => self.track(&mut conn, Some(client)).await.map(|()| id),
            Ok(None) => {
                Err((ErrorKind::Client, "a connection that was given cannot be tracked").into())
            }
            Err(error) => Err((ErrorKind::Io, "L2 has no connection", error.to_string()).into()),
        }
    }
}

/// The contents of an invalidation: a list of keys, or none for all keys.
fn event(data: &[Value], client_prefix: &str) -> Option<BusEvent> {
    let Some(Value::Array(keys)) = data.first() else { return Some(BusEvent::AllChanged) };
    let keys = keys.iter().filter_map(|key| match key {
        // Keys of the store are text, so none of them is skipped here.
        Value::BulkString(key) => std::str::from_utf8(key).ok()?.strip_prefix(client_prefix),
        _ => None,
    });
    let keys: Vec<_> = keys.map(str::to_owned).collect();
    (!keys.is_empty()).then_some(BusEvent::Changed(keys))
}

impl Feed for Changes {
    type Session = Watch;

    async fn open(&self, attempt: usize, outbox: &Arc<BusFeed>) -> Result<Watch, DriverError> {
        let limit = self.servers.options.connect_timeout;
        match timeout(limit, self.dial(attempt, outbox)).await {
            Ok(watch) => watch.map_err(|failure| failure.error(DOING)),
            Err(_) => Err(self.servers.place.no_connection(limit).error(DOING)),
        }
    }

    async fn run(&self, mut watch: Watch, _: &Arc<BusFeed>) -> String {
        let Watch { conns, pulse, nodes, ended, writer } = &mut watch;
        let looks = async {
            match (nodes, &mut conns[..]) {
                (Some(nodes), _) => self.look_round(conns, pulse, nodes).await,
                (None, [conn, ..]) => pulse.beats(conn).await,
                (None, []) => future::pending().await,
            }
        };
        let replaced = async {
            match (&self.writer, writer) {
                (Some(line), Some(id)) => line.replaced(*id).await,
                _ => future::pending().await,
            }
        };
        tokio::select! {
            () = replaced => "the connection of L2 was replaced".to_owned(),
            _ = ended.recv() => "a connection was closed".to_owned(),
            reason = looks => reason,
        }
    }
}

impl Changes {
    /// Pings all nodes until one is silent or the primaries change, and returns the reason.
    async fn look_round(
        &self,
        conns: &mut [MultiplexedConnection],
        pulse: &Pulse,
        nodes: &Nodes,
    ) -> String {
        let limit = self.servers.options.answer_limit();
        loop {
            sleep(self.servers.options.ping_interval).await;
            let mut pings: FuturesUnordered<_> =
                conns.iter_mut().map(|conn| timeout(limit, alive(conn))).collect();
            while let Some(answer) = pings.next().await {
                match answer {
                    Ok(Ok(())) => {}
                    Ok(Err(wrong)) => return self.servers.place.failure(&wrong).to_string(),
                    Err(_) => return "no answer to a ping".to_owned(),
                }
            }
            drop(pings);
            let Some(conn) = conns.first_mut() else { continue };
            match timeout(limit, cluster::nodes(pulse.client(), conn)).await {
                Ok(Ok(now)) if now.primaries == nodes.primaries => {}
                _ => return "the primaries of the cluster have changed".to_owned(),
            }
        }
    }
}

async fn alive(conn: &mut MultiplexedConnection) -> RedisResult<()> {
    match redis::cmd("PING").query_async::<Value>(conn).await? {
        Value::Nil => Err((ErrorKind::UnexpectedReturnType, "no pong").into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalidations() {
        let keys = |keys: &[&[u8]]| {
            vec![Value::Array(keys.iter().map(|key| Value::BulkString(key.to_vec())).collect())]
        };
        let changed = |keys: &[&str]| {
            Some(BusEvent::Changed(keys.iter().map(|key| (*key).to_owned()).collect()))
        };
        assert_eq!(event(&[Value::Nil], ""), Some(BusEvent::AllChanged));
        assert_eq!(event(&keys(&[b"a", b"b:c"]), ""), changed(&["a", "b:c"]));
        assert_eq!(event(&keys(&[b"app:a", b"other"]), "app:"), changed(&["a"]));
        assert_eq!(event(&keys(&[b"a:lock\xff"]), ""), None);
    }
}
