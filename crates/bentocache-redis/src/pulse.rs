//! Checks whether a connection leads to the right server, when it opens and while it lives.
//!
//! A server that answers pings may have become a replica, or may have been removed from its
//! cluster: no other client uses it any more, and messages published there reach nobody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bentocache_driver::ErrorKind;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, FromRedisValue, Pipeline, RedisError,
    RedisResult, Value,
};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::cluster;
use crate::connect::{self, Servers, Target};
use crate::error::{self, Failure, Mode};

/// How often to ask the sentinels, or another node of the cluster, about the server.
const ASK_OTHERS: Duration = Duration::from_secs(1);

/// The number of heartbeats between two checks whether an address still leads to the same server.
/// Each check opens a connection; with the default heartbeat, the right server is used again within
/// five seconds.
const COMPARED: u32 = 3;
/// How long to wait for a message that the server sends unasked.
const FIRST_WORDS: Duration = Duration::from_millis(200);
/// How many times the same node of a cluster is asked in a row.
const SAME_OTHER: usize = 10;

/// The identity of a connection, by which another connection can end it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    id: u64,
    /// The client's address as the server sees it: on a restarted server, the number alone may
    /// belong to another client.
    addr: String,
}

/// A server's answer about itself and the connection.
struct Identity {
    role: Option<String>,
    mode: Option<String>,
    peer: Option<Peer>,
    run: Option<String>,
}

async fn identify(conn: &mut MultiplexedConnection) -> RedisResult<Identity> {
    let mut ask = Pipeline::with_capacity(3);
    ask.cmd("HELLO").cmd("CLIENT").arg("INFO").cmd("INFO").arg("server").ignore_errors();
    let answers: Vec<RedisResult<Value>> = ask.query_async(conn).await?;
    let mut answers = answers.into_iter();
    let hello = match answers.next() {
        Some(Ok(hello)) => Some(hello),
        // A user may lack the right to ask, but a failed login would be another error.
        Some(Err(wrong)) if error::is_about_login(&wrong) => return Err(wrong),
        _ => None,
    };
    let text = |name| hello.as_ref().and_then(|hello| field(hello, name));
    let info = answers.next().and_then(Result::ok);
    let peer = info.and_then(|info| String::from_redis_value(info).ok());
    let run = answers.next().and_then(Result::ok).and_then(run_of);
    Ok(Identity {
        role: text("role"),
        mode: text("mode"),
        peer: peer.and_then(|info| peer_of(&info)),
        run,
    })
}

/// The identity of a server from its start to its end.
fn run_of(info: Value) -> Option<String> {
    let info = String::from_redis_value(info).ok()?;
    info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|id| id.trim().to_owned())
}

/// A text in the answer to HELLO, which is a map, or a list in RESP2.
fn field(hello: &Value, name: &str) -> Option<String> {
    let is_name = |key: &Value| String::from_redis_value(key.clone()).is_ok_and(|key| key == name);
    let found = match hello {
        Value::Map(pairs) => pairs.iter().find(|(key, _)| is_name(key)).map(|(_, value)| value),
        Value::Array(items) => {
            items.chunks_exact(2).find(|pair| is_name(&pair[0])).map(|pair| &pair[1])
        }
        _ => None,
    };
    String::from_redis_value(found?.clone()).ok()
}

/// Decodes the answer to CLIENT INFO. On a Unix socket all clients have the same address, and no
/// network delays bytes.
fn peer_of(info: &str) -> Option<Peer> {
    let field = |name| info.split_whitespace().find_map(|part| part.strip_prefix(name));
    let (id, addr) = (field("id=")?.parse().ok()?, field("addr=")?);
    (!addr.starts_with('/')).then(|| Peer { id, addr: addr.to_owned() })
}

impl Peer {
    /// Ends the connection, so that the server discards bytes that are still on their way.
    pub(crate) async fn kill(&self, conn: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("ID").arg(self.id).arg("ADDR").arg(&self.addr);
        kill.query_async(conn).await
    }
}

/// The connection to one server, and the subjects of its heartbeats.
pub(crate) struct Pulse {
    servers: Servers,
    client: Client,
    pub(crate) peer: Option<Peer>,
    needs: Needs,
    /// Whether the server reveals its role.
    has_role: bool,
    /// The server's identity in a cluster.
    node_id: Option<String>,
    /// The server's own identity, if it reveals one.
    run: Option<String>,
    /// The time of the last comparison with the server at the address.
    compared: Instant,
    /// A connection to a node that knows about the server, and the number of that node.
    other: Option<MultiplexedConnection>,
    turn: usize,
    asked: Instant,
}

/// The message of a server that closes a new connection unasked. A client that speaks first mostly
/// loses the reason, such as too many clients.
async fn first_words(addr: &ConnectionAddr) -> Option<RedisError> {
    let ConnectionAddr::Tcp(host, port) = addr else { return None };
    let words = async {
        let stream = TcpStream::connect((host.as_str(), *port)).await.ok()?;
        stream.readable().await.ok()?;
        let mut words = [0; 512];
        let size = stream.try_read(&mut words).ok()?;
        redis::parse_redis_value(&words[..size]).ok()?.extract_error().err()
    };
    timeout(FIRST_WORDS, words).await.ok()?
}

/// The way to open a connection: for commands, or with a receiver for pushed messages.
pub(crate) enum Open<'a> {
    Commands(&'a AsyncConnectionConfig),
    Pushes(&'a AsyncConnectionConfig),
}

impl Open<'_> {
    async fn run(self, client: &Client) -> RedisResult<MultiplexedConnection> {
        match self {
            Self::Commands(config) => {
                client.get_multiplexed_async_connection_with_config(config).await
            }
            Self::Pushes(config) => {
                let client = connect::resp3(client)?;
                client.get_multiplexed_async_connection_with_config(config).await
            }
        }
    }
}

/// Opens a connection, and refuses a server of the wrong kind.
pub(crate) async fn dial(
    servers: &Servers,
    attempt: usize,
    needs: Needs,
    open: Open<'_>,
) -> Result<(MultiplexedConnection, Pulse), Failure> {
    let Servers { target, place, .. } = servers;
    let client = servers.node(attempt).await?;
    let failed = |wrong| place.failure(&wrong);
    let is_tls = connect::is_tls(client.get_connection_info().addr());
    let mut conn = match open.run(&client).await {
        Ok(conn) => conn,
        Err(wrong) => {
            let said = match error::was_closed(&wrong) {
                true => first_words(client.get_connection_info().addr()).await,
                false => None,
            };
            return Err(said.map_or_else(|| place.not_opened(&wrong, is_tls), failed));
        }
    };
    let Identity { role, mode, peer, run } = identify(&mut conn).await.map_err(failed)?;
    if let Some(reason) = wrong_server(place.mode, needs, role.as_deref(), mode.as_deref()) {
        return Err(Failure::new(ErrorKind::Denied, reason, place));
    }
    let node_id = match target {
        Target::Cluster(known) => {
            known.remember(&cluster::nodes(&client, &mut conn).await.map_err(failed)?.all);
            let my_id = redis::cmd("CLUSTER").arg("MYID").take();
            my_id.query_async(&mut conn).await.ok()
        }
        _ => None,
    };
    let pulse = Pulse {
        servers: servers.clone(),
        client,
        peer,
        needs,
        has_role: role.is_some(),
        node_id,
        run,
        compared: Instant::now(),
        other: None,
        turn: attempt,
        asked: Instant::now(),
    };
    Ok((conn, pulse))
}

/// The purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// All keys.
    Keys,
    /// Only messages, which every node of a cluster forwards.
    Messages,
}

/// The reason why a server with this role and mode is unusable, if it is.
fn wrong_server(
    expected: Mode,
    needs: Needs,
    role: Option<&str>,
    mode: Option<&str>,
) -> Option<&'static str> {
    match (expected, role, mode) {
        (_, _, Some("sentinel")) => {
            Some("the server is a sentinel; use Redis::sentinel with the name of the primary")
        }
        (Mode::Cluster, ..) => None,
        (_, _, Some("cluster")) if needs == Needs::Keys => {
            Some("the server is part of a cluster; use Redis::cluster")
        }
        (_, _, Some("cluster")) => None,
        (_, Some("replica" | "slave"), _) => Some(
            "the server is a replica and refuses writes; use the address of the primary, or \
             Redis::sentinel",
        ),
        _ => None,
    }
}

impl Pulse {
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Watches the connection of a subscription until it must be left, and returns the reason.
    pub(crate) async fn beats(&mut self, conn: &mut MultiplexedConnection) -> String {
        let options = Arc::clone(&self.servers.options);
        loop {
            sleep(options.ping_interval).await;
            if let Err(reason) = self.beat(conn, options.answer_limit()).await {
                return reason;
            }
        }
    }

    /// Returns the reason if the connection must be left.
    pub(crate) async fn beat(
        &mut self,
        conn: &mut MultiplexedConnection,
        limit: Duration,
    ) -> Result<(), String> {
        let ping = redis::cmd(if self.has_role { "HELLO" } else { "PING" });
        match timeout(limit, ping.query_async::<Value>(conn)).await {
            Ok(Ok(hello)) => {
                let (role, mode) = (field(&hello, "role"), field(&hello, "mode"));
                let wrong = wrong_server(
                    self.servers.place.mode,
                    self.needs,
                    role.as_deref(),
                    mode.as_deref(),
                );
                wrong.map_or(Ok(()), |reason| Err(reason.to_owned()))?;
            }
            // A server that is loading its data, or that forbids the command, has answered
            // nevertheless.
            Ok(Err(wrong)) if !error::is_lost(&wrong) && !wrong.is_timeout() => {}
            Ok(Err(wrong)) => return Err(self.servers.place.failure(&wrong).to_string()),
            Err(_) => return Err("no answer to a ping".to_owned()),
        }
        if self.asked.elapsed() < ASK_OTHERS {
            return Ok(());
        }
        self.asked = Instant::now();
        // Unreachable nodes are no evidence against the server.
        match timeout(limit, self.is_used(conn)).await {
            Ok(Ok(false)) => Err("the others do not use this server any more".to_owned()),
            Ok(Ok(true)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                self.other = None;
                self.turn += SAME_OTHER;
                Ok(())
            }
        }
    }

    /// The others' view: whether the server is the one that all clients use.
    async fn is_used(&mut self, conn: &mut MultiplexedConnection) -> RedisResult<bool> {
        match self.servers.target.clone() {
            Target::Sentinel(sentinel) => {
                let other = self.other(&sentinel.client(self.turn / SAME_OTHER)?).await?;
                let named = sentinel.ask(other).await?;
                let here = connect::tcp_address(self.client.get_connection_info().addr());
                Ok(named.is_none() || named == here)
            }
            Target::Cluster(known) => {
                let nodes = cluster::nodes(&self.client, conn).await?;
                // The node was reset, and knows no others.
                let Some(id) = self.node_id.clone().filter(|_| !nodes.all.is_empty()) else {
                    return Ok(!nodes.all.is_empty());
                };
                known.remember(&nodes.all);
                // Another node now and then, which may know better.
                self.turn += 1;
                if self.turn.is_multiple_of(SAME_OTHER) {
                    self.other = None;
                }
                let turn = self.turn / SAME_OTHER;
                let client = known.other(turn, self.client.get_connection_info().addr())?;
                let list = redis::cmd("CLUSTER").arg("NODES").take();
                let list: String = list.query_async(self.other(&client).await?).await?;
                Ok(cluster::belongs(&list, &id))
            }
            Target::Node(..) => self.is_at_address().await,
            Target::Given(_) => Ok(true),
        }
    }

    /// Whether the address still leads to the server. A name or a proxy may have been switched to
    /// another server, while this one keeps its connections without other clients.
    async fn is_at_address(&mut self) -> RedisResult<bool> {
        let every = self.servers.options.ping_interval * COMPARED;
        let Some(run) = self.run.as_ref().filter(|_| self.compared.elapsed() >= every) else {
            return Ok(true);
        };
        self.compared = Instant::now();
        let Ok(client) = self.servers.node(0).await else { return Ok(true) };
        let mut conn = client.get_multiplexed_async_connection().await?;
        let info = redis::cmd("INFO").arg("server").query_async(&mut conn).await?;
        Ok(run_of(info).is_none_or(|found| found == *run))
    }

    async fn other(&mut self, client: &Client) -> RedisResult<&mut MultiplexedConnection> {
        let conn = match self.other.take() {
            Some(conn) => conn,
            None => client.get_multiplexed_async_connection().await?,
        };
        Ok(self.other.insert(conn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_is_read_in_both_protocols() {
        const PAIRS: &str = "$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n";
        for start in ["*4", "%2"] {
            let hello = format!("{start}\r\n{PAIRS}");
            let hello = redis::parse_redis_value(hello.as_bytes()).unwrap();
            assert_eq!(field(&hello, "role").as_deref(), Some("master"));
            assert_eq!(field(&hello, "mode").as_deref(), Some("standalone"));
            assert_eq!(field(&hello, "other"), None);
        }
        assert_eq!(field(&Value::Okay, "role"), None);
    }

    #[test]
    fn a_connection_is_known_by_number_and_address() {
        let peer = peer_of("id=7 addr=127.0.0.1:5000 laddr=127.0.0.1:6379 name=\n");
        assert_eq!(peer, Some(Peer { id: 7, addr: "127.0.0.1:5000".to_owned() }));
        assert_eq!(peer_of("id=7 addr=/tmp/socket:0 name="), None);
        assert_eq!(peer_of("nonsense"), None);
    }

    #[test]
    fn servers_of_the_wrong_kind_are_refused() {
        let wrong = |expected, role, mode| {
            wrong_server(expected, Needs::Keys, Some(role), Some(mode)).is_some()
        };
        assert!(!wrong(Mode::Single, "master", "standalone"));
        assert!(wrong(Mode::Single, "replica", "standalone"));
        assert!(wrong(Mode::Sentinel, "replica", "standalone"));
        assert!(!wrong(Mode::Cluster, "replica", "cluster"));
        assert!(wrong(Mode::Single, "sentinel", "sentinel"));
        assert!(wrong(Mode::Single, "master", "cluster"));
        let any = |role| wrong_server(Mode::Single, Needs::Messages, Some(role), Some("cluster"));
        assert_eq!(any("master").or(any("replica")), None);
        assert_eq!(wrong_server(Mode::Single, Needs::Keys, None, None), None);
    }
}
