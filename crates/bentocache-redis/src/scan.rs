//! Keyspace scans in batches, so that no call blocks the server.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bentocache_driver::{DriverError, KeyStream};
use futures_util::{StreamExt, stream};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, Pipeline, Value};
use tokio::time::timeout;

use crate::line::{Call, Line};
use crate::shards::{Node, Shard};

/// The number of keys that the server examines per call.
const BATCH: usize = 1_000;

/// A pattern that matches exactly the keys that start with `prefix`.
pub(crate) fn pattern(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for character in prefix.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('*');
    pattern
}

/// The reachable servers; `None` is the only server.
struct Primaries {
    nodes: Vec<Option<Node>>,
    /// The unreachable ones, and the reasons.
    missing: Vec<(u32, String)>,
    /// The numbers of all shards of a cluster.
    numbers: BTreeMap<Node, u32>,
}

/// A scan of the keys under a prefix, on one server after the other.
struct Walk<'a> {
    line: &'a Line,
    doing: &'static str,
    prefix: &'a str,
    /// The servers to scan, and the cursor of each.
    left: VecDeque<(Option<Node>, Vec<u8>)>,
    cluster: Option<ClusterConnection>,
    /// Unreachable servers, and the reasons.
    missing: Vec<(u32, String)>,
    numbers: BTreeMap<Node, u32>,
}

impl<'a> Walk<'a> {
    async fn start(
        line: &'a Line,
        doing: &'static str,
        prefix: &'a str,
    ) -> Result<Self, DriverError> {
        let cluster = line.cluster(doing).await?;
        let (left, missing, numbers) = Default::default();
        let mut walk = Self { line, doing, prefix, left, cluster, missing, numbers };
        let Primaries { nodes, missing, numbers } = walk.primaries().await?;
        walk.left = nodes.into_iter().map(|node| (node, b"0".to_vec())).collect();
        (walk.missing, walk.numbers) = (missing, numbers);
        Ok(walk)
    }

    /// The servers that have the keys.
    async fn primaries(&mut self) -> Result<Primaries, DriverError> {
        let (place, doing) = (self.line.place(), self.doing);
        let Some(cluster) = self.cluster.clone() else {
            let (nodes, missing, numbers) = (vec![None], Vec::new(), BTreeMap::new());
            return Ok(Primaries { nodes, missing, numbers });
        };
        let shards = self.line.shards(cluster).await;
        let shards = shards.map_err(|problem| place.unavailable(doing, &problem))?;
        if shards.is_empty() {
            return Err(place.unavailable(doing, "the cluster has no slots"));
        }
        let mut nodes = Vec::new();
        let mut missing = Vec::new();
        for Shard { number, primary, problem } in &shards {
            let (host, port) = primary;
            let problem = match problem {
                Some(problem) => Some(problem.to_string()),
                None => self.reach(primary).await.err().map(|error| format!("fails: {error}")),
            };
            match problem {
                None => nodes.push(Some(primary.clone())),
                Some(problem) => missing.push((*number, format!("{host}:{port} {problem}"))),
            }
        }
        let numbers = shards.into_iter().map(|shard| (shard.primary, shard.number)).collect();
        Ok(Primaries { nodes, missing, numbers })
    }

    /// Opens the client's connection to a primary, if it has none. After a failover the client learns
    /// of the new primary only from a redirection.
    async fn reach(&mut self, primary: &Node) -> Result<(), DriverError> {
        if self.ask(Some(primary), redis::cmd("PING")).await.is_ok() {
            return Ok(());
        }
        let mut exists = redis::cmd("EXISTS");
        exists.arg(self.prefix);
        // Only the effect on the connection matters.
        let _ = self.line.query(Call::read(self.doing), &exists).await;
        self.ask(Some(primary), redis::cmd("PING")).await.map(drop)
    }

    /// The next keys of the store, if there are more. A key that is not UTF-8 belongs to another
    /// application.
    async fn next(&mut self) -> Result<Option<(Option<Node>, Vec<String>)>, DriverError> {
        let Some((node, cursor)) = self.left.pop_front() else { return Ok(None) };
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern(self.prefix)).arg("COUNT").arg(BATCH);
        let answer = self.ask(node.as_ref(), scan).await?;
        let Value::Array(parts) = answer else { return Err(self.line.place().odd(self.doing)) };
        let [Value::BulkString(cursor), Value::Array(found)] = &parts[..] else {
            return Err(self.line.place().odd(self.doing));
        };
        if cursor != b"0" {
            self.left.push_front((node.clone(), cursor.clone()));
        }
        let keys = found.iter().filter_map(|key| match key {
            Value::BulkString(key) => std::str::from_utf8(key).ok(),
            _ => None,
        });
        let keys = keys.filter(|key| key.starts_with(self.prefix)).map(str::to_owned).collect();
        Ok(Some((node, keys)))
    }

    /// Deletes the next keys; returns whether there may be more. A failed server is not asked
    /// again.
    async fn clear_some(&mut self) -> Result<bool, (Option<Node>, DriverError)> {
        let Some(node) = self.left.front().map(|(node, _)| node.clone()) else { return Ok(false) };
        let cleared = match self.next().await {
            Ok(Some((_, keys))) if !keys.is_empty() => self.unlink(node.as_ref(), &keys).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        cleared.map(|()| true).map_err(|error| {
            self.left.retain(|(left, _)| *left != node);
            (node, error)
        })
    }

    async fn ask(&mut self, node: Option<&Node>, cmd: Cmd) -> Result<Value, DriverError> {
        let (Some(cluster), Some(node)) = (&mut self.cluster, node) else {
            return self.line.query(Call::read(self.doing), &cmd).await;
        };
        let answer = cluster.route_command(cmd, RoutingInfo::SingleNode(at(node)));
        let answer = timeout(self.line.options().timeout, answer).await;
        answer
            .map_err(|_| self.line.place().late(self.doing, self.line.options().timeout))?
            .and_then(Value::extract_error)
            .map_err(|wrong| self.line.place().failed(self.doing, &wrong))
    }

    async fn unlink(&mut self, node: Option<&Node>, keys: &[String]) -> Result<(), DriverError> {
        let (Some(cluster), Some(node)) = (&mut self.cluster, node) else {
            let mut unlink = redis::cmd("UNLINK");
            unlink.arg(keys);
            return self.line.query(Call::again(self.doing), &unlink).await.map(drop);
        };
        // One command per key: the keys are in different slots.
        let mut unlinks = Pipeline::with_capacity(keys.len());
        for key in keys {
            unlinks.cmd("UNLINK").arg(key);
        }
        let answers = cluster.route_pipeline(unlinks, 0, keys.len(), at(node));
        let answers = timeout(self.line.options().timeout, answers).await;
        answers
            .map_err(|_| self.line.place().late(self.doing, self.line.options().timeout))?
            .and_then(|answers| Value::Array(answers).extract_error())
            .map(drop)
            .map_err(|wrong| self.line.place().failed(self.doing, &wrong))
    }
}

fn at((host, port): &Node) -> SingleNodeRoutingInfo {
    SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port }
}

/// Deletes everything under the prefix, on every primary or on those of these shards. A failure of
/// one server does not stop the others.
pub(crate) async fn clear(
    line: &Line,
    prefix: &str,
    parts: Option<&[u32]>,
) -> Result<(), DriverError> {
    const DOING: &str = "clear";
    let is_wanted = |part: &u32| parts.is_none_or(|parts| parts.contains(part));
    // Moving slots could take their keys past the scan.
    for _ in 0..3 {
        let mut walk = Walk::start(line, DOING, prefix).await?;
        let before: Vec<_> = walk.left.iter().map(|(node, _)| node.clone()).collect();
        let numbers = std::mem::take(&mut walk.numbers);
        let number =
            |node: &Option<Node>| node.as_ref().and_then(|node| numbers.get(node).copied());
        walk.left.retain(|(node, _)| number(node).is_none_or(|part| is_wanted(&part)));
        let mut failed = Vec::new();
        loop {
            match walk.clear_some().await {
                Ok(true) => {}
                Ok(false) => break,
                Err((node, error)) => match number(&node) {
                    Some(part) => failed.push((part, error.to_string())),
                    None => return Err(error),
                },
            }
        }
        let after = walk.primaries().await?;
        failed.extend(walk.missing.into_iter().chain(after.missing));
        failed.retain(|(part, _)| is_wanted(part));
        failed.sort();
        failed.dedup_by_key(|(part, _)| *part);
        if let [(_, reason), ..] = &failed[..] {
            let (some, all) = (failed.len(), numbers.len());
            let problem = format!("{some} of {all} shards are not cleared; {reason}");
            let error = line.place().unavailable(DOING, &problem);
            return Err(error.with_parts(failed.into_iter().map(|(part, _)| part)));
        }
        if after.nodes == before {
            return Ok(());
        }
    }
    Err(line.place().unavailable(DOING, "the cluster is changing all the time"))
}

/// The keys under the prefix, each once, without the first `strip` bytes.
pub(crate) fn keys(line: Arc<Line>, prefix: String, strip: usize) -> KeyStream {
    const DOING: &str = "list the keys";
    struct Listing {
        line: Arc<Line>,
        prefix: String,
        left: Option<VecDeque<(Option<Node>, Vec<u8>)>>,
        seen: Seen,
    }
    let listing = Listing { line, prefix, left: None, seen: Seen::default() };
    let batches = stream::try_unfold(listing, move |mut listing| async move {
        let Listing { line, prefix, left, seen } = &mut listing;
        let mut walk = match left.take() {
            None => {
                let walk = Walk::start(line, DOING, prefix).await?;
                match walk.missing.first() {
                    Some((_, reason)) => return Err(line.place().unavailable(DOING, reason)),
                    None => walk,
                }
            }
            Some(left) => {
                let cluster = line.cluster(DOING).await?;
                let (missing, numbers) = Default::default();
                Walk { line, doing: DOING, prefix, left, cluster, missing, numbers }
            }
        };
        let Some((_, mut keys)) = walk.next().await? else {
            return Ok::<_, DriverError>(None);
        };
        *left = Some(walk.left);
        // A server may report a key twice while its table changes size.
        keys.retain(|key| seen.is_new(key));
        for key in &mut keys {
            key.drain(..strip);
        }
        Ok(Some((keys, listing)))
    });
    let keys = batches.flat_map(|batch| match batch {
        Ok(keys) => stream::iter(keys.into_iter().map(Ok).collect::<Vec<_>>()),
        Err(error) => stream::iter(vec![Err(error)]),
    });
    keys.boxed()
}

/// The keys that were seen, as hashes of 128 bits: small enough for many, and large enough that no
/// two collide.
#[derive(Default)]
struct Seen {
    hashers: [RandomState; 2],
    sums: HashSet<[u64; 2]>,
}

impl Seen {
    fn is_new(&mut self, key: &str) -> bool {
        let [one, two] = &self.hashers;
        self.sums.insert([one.hash_one(key), two.hash_one(key)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_escaped() {
        assert_eq!(pattern("app:"), "app:*");
        assert_eq!(pattern(r"a*b?c[d]e\f^g-h"), r"a\*b\?c\[d\]e\\f\^g\-h*");
        assert_eq!(pattern(""), "*");
    }
}
