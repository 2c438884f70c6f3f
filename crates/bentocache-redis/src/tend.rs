//! Checks the shards of a cluster, each on a connection of its own: whether an unanswering primary
//! lives, and whether another node has replaced it.

use std::time::Duration;

use bentocache_driver::kit::Backoff;
use futures_util::future::{join_all, pending};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{
    MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo, SingleNodeRoutingInfo,
};
use tokio::time::timeout;

use crate::cluster::Slots;
use crate::conn::Conn;
use crate::connect::Cluster;
use crate::shards::Node;
use crate::state::Shared;

/// Pauses between checks of a shard that does not answer.
const LOOKS: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
/// The time limit for a check.
const LOOK: Duration = Duration::from_secs(1);

impl Shared {
    /// The reason why a call for one of these keys cannot be made.
    pub(crate) fn problem<'k>(&self, keys: impl IntoIterator<Item = &'k [u8]>) -> Option<String> {
        keys.into_iter().find_map(|key| self.shards.problem(key))
    }

    /// Asks all nodes for the shards and uses the fastest answer. `false` if no node can be
    /// reached.
    ///
    /// The client's task can hang forever if many calls are redirected at once in a failover (redis
    /// 1.8.1); that is the error.
    pub(crate) async fn look_around(
        &self,
        mut conn: ClusterConnection,
        limit: Duration,
    ) -> Result<bool, String> {
        let any = (MultipleNodeRoutingInfo::AllNodes, Some(ResponsePolicy::OneSucceeded));
        let ask = redis::cmd("CLUSTER").arg("SLOTS").take();
        let answer = conn.route_command(ask, RoutingInfo::MultiNode(any));
        match timeout(limit, answer).await {
            Ok(Ok(slots)) => {
                self.shards.learn(Slots::parse(&slots, ""));
                Ok(true)
            }
            Ok(Err(_)) => Ok(false),
            Err(_) => Err("no node answers".to_owned()),
        }
    }

    /// Checks the primaries of all shards before calls are made.
    pub(crate) async fn look_at_all(&self, cluster: &Cluster) {
        let shards = self.shards.all();
        join_all(
            shards.iter().map(async |shard| self.look(cluster, shard.number, &shard.primary).await),
        )
        .await;
    }

    async fn look(&self, cluster: &Cluster, part: u32, primary: &Node) -> Result<(), ()> {
        let limit = LOOK.min(self.servers.options.answer_limit());
        let problem = cluster.look(primary, &self.servers.place, limit).await.err();
        if let Some(problem) = &problem {
            tracing::debug!(node = %format_args!("{}:{}", primary.0, primary.1), problem,
                "a shard of redis does not answer");
        }
        self.shards.looked(part, primary, problem.as_deref());
        problem.map_or(Ok(()), |_| Err(()))
    }

    /// Checks the shards of a connection to a cluster, and returns the reason why the connection
    /// must be replaced. Any other connection has no shards.
    pub(crate) async fn tend_shards(&self, conn: &Conn) -> String {
        match (self.cluster(), conn) {
            (Some(cluster), Conn::Cluster(conn)) => self.tend(cluster, conn).await,
            _ => pending().await,
        }
    }

    /// Checks unanswering shards until they answer. Returns the reason why the connection to the
    /// cluster must be replaced: it does not know a new primary, or waits for an answer on a dead
    /// connection.
    async fn tend(&self, cluster: &Cluster, conn: &ClusterConnection) -> String {
        let mut backoff = LOOKS;
        loop {
            if self.shards.is_well() {
                backoff.reset();
                self.shards.wake.notified().await;
            } else {
                let _ = timeout(backoff.next_pause(), self.shards.wake.notified()).await;
                let limit = self.servers.options.answer_limit();
                let _ = self.look_around(conn.clone(), limit).await;
            }
            if self.shards.take_moved() {
                return "another node has taken the place of one that is dead".to_owned();
            }
            let due = self.shards.due();
            let looks = due.iter().map(async |(part, was_down, primary)| {
                let looked = self.look(cluster, *part, primary).await;
                match (was_down, looked) {
                    (true, Ok(())) => {
                        self.revived();
                        true
                    }
                    (false, Ok(())) => self.passes(conn.clone(), primary).await,
                    _ => true,
                }
            });
            if join_all(looks).await.contains(&false) {
                return "the connection to one of the nodes is dead".to_owned();
            }
        }
    }

    /// Whether the client's own connection to a living node works.
    async fn passes(&self, mut conn: ClusterConnection, (host, port): &Node) -> bool {
        let node = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
        let ping = conn.route_command(redis::cmd("PING"), RoutingInfo::SingleNode(node));
        timeout(self.servers.options.answer_limit(), ping).await.is_ok_and(|answer| answer.is_ok())
    }
}
