//! The shards of a cluster: which one has a key, and which of them do not answer.
//!
//! The client of a cluster stops everything while it finds out where slots have gone, and it does so
//! for each call to a node that does not answer. So calls for a shard whose primary is known to be
//! dead are refused here, at once, and whether it answers again is found out on a connection of its
//! own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bentocache_driver::kit::Backoff;
use futures_util::future::join_all;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{
    MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo, SingleNodeRoutingInfo,
};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::cluster::Slots;
use crate::connect::Cluster;
use crate::keep::answer_limit;
use crate::line::Shared;

/// Pauses between looks at a shard that does not answer.
const LOOKS: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
/// How long a look may take.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) type Node = (String, u16);

/// The shards that the cluster has, as far as is known. Each has a number, which it keeps when
/// another node becomes its primary.
#[derive(Default)]
pub(crate) struct Shards {
    state: RwLock<State>,
    /// There is a suspect, or a dead one has been replaced.
    wake: Notify,
}

#[derive(Default)]
struct State {
    slots: Slots,
    /// The primaries by their shards' numbers.
    primaries: BTreeMap<u32, Node>,
    numbers: BTreeMap<Node, u32>,
    /// Had no answer to a call.
    suspects: BTreeSet<u32>,
    /// Do not answer, and why.
    down: BTreeMap<u32, Arc<str>>,
    /// A shard that was down has another primary, of which the client knows nothing.
    has_moved: bool,
}

/// A shard as a scan sees it.
pub(crate) struct Shard {
    pub(crate) number: u32,
    pub(crate) primary: Node,
    /// Why its primary does not answer.
    pub(crate) problem: Option<Arc<str>>,
}

impl Shards {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in which primaries there are.
    pub(crate) fn learn(&self, slots: Slots) {
        if slots == self.read().slots {
            return;
        }
        let mut state = self.write();
        state.learn(slots);
        if state.has_moved {
            self.wake.notify_one();
        }
    }

    /// The number of the shard that has the key.
    pub(crate) fn part(&self, key: &[u8]) -> Option<u32> {
        self.read().part(key)
    }

    /// The primary that has the key.
    pub(crate) fn primary(&self, key: &[u8]) -> Option<Node> {
        self.read().slots.primary(key).cloned()
    }

    /// Why the shard of the key does not answer, if it does not.
    pub(crate) fn problem(&self, key: &[u8]) -> Option<String> {
        let state = self.read();
        if state.down.is_empty() {
            return None;
        }
        let part = state.part(key)?;
        let (reason, (host, port)) = (state.down.get(&part)?, state.primaries.get(&part)?);
        Some(format!("the node {host}:{port} of the cluster, which has the key, {reason}"))
    }

    /// What is wrong, if anything is.
    pub(crate) fn trouble(&self) -> Option<String> {
        let state = self.read();
        let (part, reason) = state.down.first_key_value()?;
        let (host, port) = state.primaries.get(part)?;
        Some(format!("the node {host}:{port} of the cluster {reason}"))
    }

    pub(crate) fn all(&self) -> Vec<Shard> {
        let state = self.read();
        let shards = state.primaries.iter().map(|(number, primary)| Shard {
            number: *number,
            primary: primary.clone(),
            problem: state.down.get(number).cloned(),
        });
        shards.collect()
    }

    /// Has a shard looked at that had no answer for the key. Returns whether it is known.
    pub(crate) fn suspect(&self, key: &[u8]) -> bool {
        let Some(part) = self.part(key) else { return false };
        let is_new = {
            let mut state = self.write();
            !state.down.contains_key(&part) && state.suspects.insert(part)
        };
        if is_new {
            self.wake.notify_one();
        }
        true
    }

    fn is_well(&self) -> bool {
        let state = self.read();
        state.suspects.is_empty() && state.down.is_empty()
    }

    fn take_moved(&self) -> bool {
        std::mem::take(&mut self.write().has_moved)
    }

    /// The shards to look at: whether they were down, and their primaries.
    fn due(&self) -> Vec<(u32, bool, Node)> {
        let state = self.read();
        let due = state.suspects.iter().chain(state.down.keys());
        let known = due.filter_map(|part| {
            Some((*part, state.down.contains_key(part), state.primaries.get(part)?.clone()))
        });
        known.collect()
    }

    /// Notes the outcome of a look, unless the shard has another primary by now.
    fn looked(&self, part: u32, primary: &Node, problem: Option<&str>) {
        let mut state = self.write();
        state.suspects.remove(&part);
        if state.primaries.get(&part) != Some(primary) {
            return;
        }
        match problem {
            Some(problem) => drop(state.down.insert(part, problem.into())),
            None => drop(state.down.remove(&part)),
        }
    }
}

impl State {
    fn part(&self, key: &[u8]) -> Option<u32> {
        self.numbers.get(self.slots.primary(key)?).copied()
    }

    fn learn(&mut self, slots: Slots) {
        let mut primaries = BTreeMap::new();
        let mut unknown = Vec::new();
        for node in slots.primaries() {
            match self.numbers.get(node) {
                Some(number) => drop(primaries.insert(*number, node.clone())),
                None => unknown.push(node.clone()),
            }
        }
        // One may have taken the place of the one that had its slots before.
        unknown.retain(|node| {
            let former = slots.first_of(node).and_then(|slot| self.slots.at(slot));
            match former.and_then(|former| self.numbers.get(former)) {
                Some(number) if !primaries.contains_key(number) => {
                    primaries.insert(*number, node.clone());
                    false
                }
                _ => true,
            }
        });
        for node in unknown {
            let free = (0..).find(|number| !primaries.contains_key(number));
            primaries.extend(free.map(|number| (number, node)));
        }
        let replaced = |part: &u32| self.primaries.get(part) != primaries.get(part);
        self.has_moved |= self.down.keys().any(replaced);
        self.down.retain(|part, _| !replaced(part));
        self.suspects.retain(|part| !replaced(part));
        self.numbers = primaries.iter().map(|(number, node)| (node.clone(), *number)).collect();
        self.primaries = primaries;
        self.slots = slots;
    }
}

impl Shared {
    /// Why a call for one of these keys cannot be made.
    pub(crate) fn problem<'k>(&self, keys: impl IntoIterator<Item = &'k [u8]>) -> Option<String> {
        keys.into_iter().find_map(|key| self.shards.problem(key))
    }

    /// Asks any node which shards there are: the fastest answers. `false` if no node can be reached.
    ///
    /// The client's task can come to a standstill for good, when many calls are redirected at once in
    /// a failover (redis 1.8.1); that is the error.
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

    /// Looks at the primaries of all shards, before calls are made.
    pub(crate) async fn look_at_all(&self, cluster: &Cluster) {
        let shards = self.shards.all();
        join_all(
            shards.iter().map(async |shard| self.look(cluster, shard.number, &shard.primary).await),
        )
        .await;
    }

    async fn look(&self, cluster: &Cluster, part: u32, primary: &Node) -> Result<(), ()> {
        let limit = LOOK.min(answer_limit(&self.options));
        let problem = cluster.look(primary, &self.place, limit).await.err();
        if let Some(problem) = &problem {
            tracing::debug!(node = %format_args!("{}:{}", primary.0, primary.1), problem,
                "a shard of redis does not answer");
        }
        self.shards.looked(part, primary, problem.as_deref());
        problem.map_or(Ok(()), |_| Err(()))
    }

    /// Looks at shards that have no answers, until they have. Returns why the connection to the
    /// cluster must be made anew: it knows nothing of another primary, or waits for an answer on a
    /// connection that is dead.
    pub(crate) async fn tend(&self, cluster: &Cluster, conn: &ClusterConnection) -> String {
        let mut looks = LOOKS;
        loop {
            if self.shards.is_well() {
                looks.reset();
                self.shards.wake.notified().await;
            } else {
                let _ = timeout(looks.next_pause(), self.shards.wake.notified()).await;
                let limit = answer_limit(&self.options);
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

    /// Whether the client's own connection to a node that lives is alive, too.
    async fn passes(&self, mut conn: ClusterConnection, (host, port): &Node) -> bool {
        let node = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
        let ping = conn.route_command(redis::cmd("PING"), RoutingInfo::SingleNode(node));
        timeout(answer_limit(&self.options), ping).await.is_ok_and(|answer| answer.is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(ranges: &[(u16, u16, &str)]) -> Slots {
        let ranges = ranges.iter().map(|(first, last, host)| {
            let host_len = host.len();
            format!("*3\r\n:{first}\r\n:{last}\r\n*2\r\n${host_len}\r\n{host}\r\n:1\r\n")
        });
        let ranges: Vec<_> = ranges.collect();
        let answer = format!("*{}\r\n{}", ranges.len(), ranges.concat());
        Slots::parse(&redis::parse_redis_value(answer.as_bytes()).unwrap(), "")
    }

    fn numbers(shards: &Shards) -> Vec<(u32, String)> {
        shards.all().into_iter().map(|shard| (shard.number, shard.primary.0)).collect()
    }

    fn of(pairs: &[(u32, &str)]) -> Vec<(u32, String)> {
        pairs.iter().map(|(number, host)| (*number, (*host).to_owned())).collect()
    }

    #[test]
    fn a_shard_keeps_its_number_when_another_node_takes_over() {
        let shards = Shards::default();
        shards.learn(slots(&[(0, 5_000, "a"), (5_001, 10_000, "b"), (10_001, 16_383, "c")]));
        assert_eq!(numbers(&shards), of(&[(0, "a"), (1, "b"), (2, "c")]));
        // The slot of `foo` is 12,182.
        assert_eq!(shards.part(b"foo"), Some(2));
        shards.learn(slots(&[(0, 5_000, "a"), (5_001, 10_000, "d"), (10_001, 16_383, "c")]));
        assert_eq!(numbers(&shards), of(&[(0, "a"), (1, "d"), (2, "c")]));
        // A new shard takes some slots of another one, which stays.
        shards.learn(slots(&[
            (0, 2_000, "e"),
            (2_001, 5_000, "a"),
            (5_001, 10_000, "f"),
            (10_001, 16_383, "c"),
        ]));
        assert_eq!(numbers(&shards), of(&[(0, "a"), (1, "f"), (2, "c"), (3, "e")]));
        shards.learn(slots(&[(0, 5_000, "e"), (5_001, 16_383, "c")]));
        assert_eq!(numbers(&shards), of(&[(2, "c"), (3, "e")]));
        assert_eq!(shards.part(b"foo"), Some(2));
    }

    #[test]
    fn only_the_keys_of_a_dead_shard_are_refused() {
        let shards = Shards::default();
        shards.learn(slots(&[(0, 9_999, "a"), (10_000, 16_383, "b")]));
        assert!(shards.suspect(b"foo") && shards.problem(b"foo").is_none());
        let b = ("b".to_owned(), 1);
        assert_eq!(shards.due(), [(1, false, b.clone())]);
        shards.looked(1, &b, Some("does not answer"));
        assert!(shards.problem(b"foo").is_some_and(|problem| problem.contains("b:1")));
        // The slot of `{}foo` is 9,500.
        assert_eq!(shards.problem(b"{}foo"), None);
        assert!(!shards.take_moved());
        // Another primary: what was known of the former one does not count.
        shards.learn(slots(&[(0, 9_999, "a"), (10_000, 16_383, "c")]));
        assert!(shards.take_moved() && !shards.take_moved());
        assert_eq!(shards.problem(b"foo"), None);
        shards.looked(1, &b, Some("does not answer"));
        assert_eq!(shards.problem(b"foo"), None);
    }
}
