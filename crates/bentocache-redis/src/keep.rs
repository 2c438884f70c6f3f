//! The task that opens, watches and replaces a connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bentocache_driver::ErrorKind::{Denied, Unavailable};
use bentocache_driver::kit::Backoff;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisResult, Value};
use tokio::time::{sleep, timeout};

use crate::conn::Conn;
use crate::connect::{Cluster, Options};
use crate::error::{self, Failure};
use crate::pulse::{self, Needs, Open, Peer, Pulse};
use crate::state::{Session, Shared, State, Trouble, up};

/// Pauses between checks whether the server accepts calls again.
const LOOKS: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
/// After this many refused checks, the next call decides.
const ENOUGH_LOOKS: u32 = 5;
/// The time limit for a ping while an earlier write has no answer.
const SUSPENSE: Duration = Duration::from_millis(500);
/// The time limit for the checks of a new connection to a cluster.
const LOOKING: Duration = Duration::from_secs(3);
/// How long a part of a cluster may be silent until the connection is replaced.
const STALE_TOPOLOGY: Duration = Duration::from_secs(2);

/// The state of the task. It is dropped with the task, also when the runtime ends.
pub(crate) struct Keeper(pub(crate) Arc<Shared>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.publish(State::Ended);
    }
}

/// An open connection.
type Dialed = Result<(Conn, Option<Pulse>), Failure>;

/// The task that keeps the connection, until it is aborted.
pub(crate) async fn keep(keeper: Keeper) {
    let shared = &keeper.0;
    let mut backoff = Backoff::default();
    // The turn of the servers.
    let mut turn = 0;
    let mut suspects = Suspects::default();
    let mut next = None;
    loop {
        let dialed = match next.take() {
            Some(made) => Ok(made),
            None => shared.dial_in_time(turn, &mut suspects).await,
        };
        let failure = match dialed {
            Ok((conn, pulse)) => {
                backoff.reset();
                turn += 1;
                let peer = pulse.as_ref().and_then(|pulse| pulse.peer.clone());
                let session = Arc::new(Session::new(peer));
                if !shared.publish(up(conn.clone(), Arc::clone(&session))) {
                    return;
                }
                next = shared.watch(conn, pulse, &session, turn, &mut suspects).await;
                suspects.add(&session);
                continue;
            }
            Err(failure) => failure,
        };
        tracing::debug!(reason = %failure, "no connection to redis");
        if !shared.publish(State::Down(Arc::new(failure))) {
            return;
        }
        turn += 1;
        backoff.pause().await;
    }
}

/// Replaced connections on which a write may still be on its way to the server.
#[derive(Default)]
struct Suspects {
    peers: Vec<Peer>,
    /// The warning that the user may not end connections was logged.
    is_reported: bool,
}

impl Suspects {
    fn add(&mut self, session: &Session) {
        if session.is_suspect() {
            self.peers.extend(session.peer.clone());
        }
    }

    /// Ends these connections before anything else is sent: their writes must not arrive after
    /// later ones.
    async fn end(
        &mut self,
        shared: &Shared,
        conn: &mut MultiplexedConnection,
    ) -> Result<(), Failure> {
        for peer in &self.peers {
            match peer.kill(conn).await {
                Ok(()) => {}
                Err(wrong) if error::is_lost(&wrong) => {
                    return Err(shared.servers.place.failure(&wrong));
                }
                Err(_) if self.is_reported => {}
                Err(wrong) => {
                    self.is_reported = true;
                    let reason = shared.servers.place.failure(&wrong);
                    tracing::warn!(%reason, "a write that was given up may arrive late: the user \
                        may not end its former connections; allow CLIENT KILL");
                }
            }
        }
        self.peers.clear();
        Ok(())
    }
}

impl Shared {
    async fn dial_in_time(&self, attempt: usize, suspects: &mut Suspects) -> Dialed {
        let limit = match self.cluster() {
            // The client waits for a dead node three times: as a seed, for its slots, and to find
            // that it is dead.
            Some(_) => self.servers.options.connect_timeout * 2 + LOOKING,
            None => self.servers.options.connect_timeout,
        };
        let dialed = timeout(limit, self.dial(attempt, suspects)).await;
        dialed.unwrap_or_else(|_| Err(self.servers.place.no_connection(limit)))
    }

    async fn dial(&self, attempt: usize, suspects: &mut Suspects) -> Dialed {
        if let Some(cluster) = self.cluster() {
            let shards = self.shards.all().into_iter();
            let dead: Vec<_> =
                shards.filter_map(|shard| shard.problem.map(|_| shard.primary)).collect();
            let conn = match cluster.connection(&self.servers.place, &dead).await {
                Ok(conn) => conn,
                Err(failure) if failure.kind() == Denied => return Err(failure),
                // The error of one node tells more than the client's error about all nodes.
                Err(failure) => {
                    let announced = cluster.announced(attempt, &self.servers.place).await;
                    return Err(announced.err().unwrap_or(failure));
                }
            };
            if self.look_around(conn.clone(), self.servers.options.answer_limit()).await != Ok(true)
            {
                return Err(self.unreachable(cluster, attempt).await);
            }
            self.look_at_all(cluster).await;
            return Ok((Conn::Cluster(conn), None));
        }
        let config = Options::of_one(self.servers.options.connect_timeout);
        let open = Open::Commands(&config);
        let needs = if self.any_node { Needs::Messages } else { Needs::Keys };
        let (mut conn, pulse) = pulse::dial(&self.servers, attempt, needs, open).await?;
        suspects.end(self, &mut conn).await?;
        self.measure(&mut conn).await.map_err(|wrong| self.servers.place.failure(&wrong))?;
        Ok((Conn::Node(conn), Some(pulse)))
    }

    /// The reason why no node of a cluster answers, although one of the seeds did.
    async fn unreachable(&self, cluster: &Cluster, attempt: usize) -> Failure {
        match cluster.announced(attempt, &self.servers.place).await {
            Ok((addresses, is_announced)) => {
                let kind = if is_announced { Unavailable } else { Denied };
                let reason = format!(
                    "no node can be reached at the addresses that the cluster announces \
                     ({addresses}); if they are not reachable from here, name those that are with \
                     node_address_map, or set cluster-announce-ip and cluster-announce-port of its \
                     nodes"
                );
                Failure::new(kind, reason, &self.servers.place)
            }
            Err(failure) => failure,
        }
    }

    /// Reads the server's clock if writes have a deadline.
    async fn measure(&self, conn: &mut MultiplexedConnection) -> RedisResult<()> {
        match self.servers.options.write_deadline {
            Some(_) => self.clock.measure(conn).await,
            None => Ok(()),
        }
    }

    /// Returns when the connection must be replaced, with the next one if there is one already.
    async fn watch(
        &self,
        conn: Conn,
        pulse: Option<Pulse>,
        session: &Session,
        turn: usize,
        suspects: &mut Suspects,
    ) -> Option<(Conn, Option<Pulse>)> {
        let mut beats = Beats { shared: self, conn: conn.clone(), pulse, session };
        loop {
            let left = tokio::select! {
                () = self.replaced(session.id) => return None,
                left = beats.run() => left,
                reason = self.tend_shards(&conn) => Left::Stale(reason),
            };
            match left {
                Left::Dead(reason) => {
                    tracing::debug!(reason, "a connection to redis is replaced");
                    self.replace(session.id, Duration::ZERO);
                    return None;
                }
                // The old connection serves the reachable part until there is another one.
                Left::Stale(reason) => {
                    tracing::debug!(reason, "a connection to a cluster is being replaced");
                    match self.dial_in_time(turn, suspects).await {
                        Ok(next) => return Some(next),
                        Err(failure) => {
                            tracing::debug!(reason = %failure, "no connection to redis");
                            sleep(STALE_TOPOLOGY).await;
                        }
                    }
                }
            }
        }
    }
}

/// The reason why a connection must be replaced.
enum Left {
    /// It does not work.
    Dead(String),
    /// It works only for a part of a cluster.
    Stale(String),
}

/// Checks a connection regularly, and more often while there is trouble.
struct Beats<'a> {
    shared: &'a Shared,
    conn: Conn,
    pulse: Option<Pulse>,
    session: &'a Session,
}

impl Beats<'_> {
    /// Returns why the connection must be replaced.
    async fn run(&mut self) -> Left {
        let (mut looks, mut trouble_since) = (0, None);
        loop {
            let rest = match self.shared.trouble() {
                None => self.shared.servers.options.ping_interval,
                Some(Trouble::Silence) => Duration::ZERO,
                Some(Trouble::Refusal { .. }) => LOOKS.pause_after(looks),
            };
            let _ = timeout(rest, self.shared.doubt.notified()).await;
            let trouble = self.shared.trouble();
            if let Err(reason) = self.beat().await {
                return Left::Dead(reason);
            }
            let Some(trouble) = trouble else {
                (looks, trouble_since) = (0, None);
                continue;
            };
            looks += 1;
            if self.has_passed(&trouble, looks).await {
                self.shared.heal(self.session.id);
                (looks, trouble_since) = (0, None);
                continue;
            }
            let since = *trouble_since.get_or_insert_with(Instant::now);
            if matches!(self.conn, Conn::Cluster(_)) && since.elapsed() > STALE_TOPOLOGY {
                return Left::Stale("a part of the cluster refuses calls".to_owned());
            }
        }
    }

    async fn beat(&mut self) -> Result<(), String> {
        let limit = self.shared.servers.options.answer_limit();
        let unanswered = self.session.unanswered();
        let limit = if self.session.has_given_up() { limit.min(SUSPENSE) } else { limit };
        match (&mut self.pulse, &mut self.conn) {
            (Some(pulse), Conn::Node(conn)) => {
                pulse.beat(conn, limit).await?;
                let measured = timeout(limit, self.shared.measure(conn)).await;
                measured.map(drop).map_err(|_| "no answer to TIME".to_owned())
            }
            (_, Conn::Cluster(conn)) => {
                self.shared.look_around(conn.clone(), limit).await.map(drop)
            }
            _ => Ok(()),
        }?;
        // The answer proves that the server has processed the writes before the ping.
        self.session.settle(unanswered);
        Ok(())
    }

    /// Sends a command like the refused one. The write changes nothing, whatever is stored.
    async fn has_passed(&mut self, trouble: &Trouble, looks: u32) -> bool {
        let Trouble::Refusal { key: Some(key), writes } = trouble else { return true };
        let mut look = Cmd::new();
        match writes {
            true => look.arg("SETRANGE").arg(key).arg(0).arg(""),
            false => look.arg("EXISTS").arg(key),
        };
        let limit = self.shared.servers.options.answer_limit();
        match timeout(limit, look.query_async::<Value>(&mut self.conn)).await {
            Ok(Ok(_)) => true,
            // If the user lacks the right for the check, only the next call can tell.
            Ok(Err(wrong)) if error::is_about_rights(&wrong) => looks >= ENOUGH_LOOKS,
            Ok(Err(wrong)) => {
                !(error::may_pass(&wrong) || error::is_lost(&wrong) || wrong.is_timeout())
            }
            Err(_) => false,
        }
    }
}
