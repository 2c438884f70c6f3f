//! Whether a connection leads to the right server, when it is opened and for as long as it lives.
//!
//! A server that answers a ping may have become a replica, or have been taken out of its cluster:
//! nobody else uses it any more, and what is published there reaches nobody.

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

/// How often to ask others about the server: its sentinels, or another node of its cluster.
const ASK_OTHERS: Duration = Duration::from_secs(1);

/// How many heartbeats there are between two looks whether an address leads to the same server. Each
/// look opens a connection; with the heartbeats of the defaults, the right server is used again within
/// five seconds.
const COMPARED: u32 = 3;
/// How long to wait for what a server says before it is asked.
const FIRST_WORDS: Duration = Duration::from_millis(200);
/// How often the same node of a cluster is asked.
const SAME_OTHER: usize = 10;

/// By which a connection can be ended from another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    id: u64,
    /// The client's address as the server sees it: the number alone may be that of somebody else,
    /// on a server that was restarted.
    addr: String,
}

/// What a server says about itself and the connection.
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
        // A user may lack the right to ask, but not the login.
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

/// By which a server is known from its start to its end.
fn run_of(info: Value) -> Option<String> {
    let info = String::from_redis_value(info).ok()?;
    info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|id| id.trim().to_owned())
}

/// A text of the answer to HELLO, which is a map, or a list on connections in RESP2.
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

/// Reads the answer to CLIENT INFO. On a socket of the system all clients have one address, and no
/// network holds bytes up.
fn peer_of(info: &str) -> Option<Peer> {
    let field = |name| info.split_whitespace().find_map(|part| part.strip_prefix(name));
    let (id, addr) = (field("id=")?.parse().ok()?, field("addr=")?);
    (!addr.starts_with('/')).then(|| Peer { id, addr: addr.to_owned() })
}

impl Peer {
    /// Ends the connection, so that the server discards what is still on its way there.
    pub(crate) async fn kill(&self, conn: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("ID").arg(self.id).arg("ADDR").arg(&self.addr);
        kill.query_async(conn).await
    }
}

/// The connection to one server, and what its heartbeats look at.
pub(crate) struct Pulse {
    servers: Servers,
    client: Client,
    pub(crate) peer: Option<Peer>,
    needs: Needs,
    /// The server tells its role.
    has_role: bool,
    /// Its identity in a cluster.
    node_id: Option<String>,
    /// Its identity as a server, if it tells.
    run: Option<String>,
    /// When it was last compared with that of the server at the address.
    compared: Instant,
    /// A connection to somebody who knows about the server, and which one that is.
    other: Option<MultiplexedConnection>,
    turn: usize,
    asked: Instant,
}

/// What a server says before it is asked, and then closes the connection. The reason why it takes
/// no more clients is mostly lost to those that begin to speak.
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

/// How to open a connection: for commands, or with a receiver for what the server pushes.
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

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// All keys.
    Keys,
    /// Only messages, which every node of a cluster passes on.
    Messages,
}

/// Why a server with that role and in that mode cannot be used, if so.
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

    /// Looks at the connection of a subscription until it must be left, and says why.
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
            // A server that is loading or forbids it answers all the same.
            Ok(Err(wrong)) if !error::is_lost(&wrong) && !wrong.is_timeout() => {}
            Ok(Err(wrong)) => return Err(self.servers.place.failure(&wrong).to_string()),
            Err(_) => return Err("no answer to a ping".to_owned()),
        }
        if self.asked.elapsed() < ASK_OTHERS {
            return Ok(());
        }
        self.asked = Instant::now();
        // Others that cannot be reached know nothing against the server.
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

    /// What others say: whether the server is the one that everybody uses.
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
                // It was reset, and knows of nobody.
                let Some(id) = self.node_id.clone().filter(|_| !nodes.all.is_empty()) else {
                    return Ok(!nodes.all.is_empty());
                };
                known.remember(&nodes.all);
                // Now and then somebody else, who may know better.
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
    /// another one, while this one lives on with its connections and nobody else uses it.
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
