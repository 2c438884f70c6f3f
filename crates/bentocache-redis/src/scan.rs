//! Going through the keys, batch after batch, so that no call holds the server up.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bentocache_driver::{DriverError, KeyStream};
use futures_util::{StreamExt, stream};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, Pipeline, Value};
use tokio::time::timeout;

use crate::cluster;
use crate::connect::Options;
use crate::line::{Call, Line};

/// How many keys the server looks at in one call.
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

type Node = (String, u16);

/// The servers that can be reached; `None` stands for the only one.
struct Primaries {
    nodes: Vec<Option<Node>>,
    /// Said if there are more.
    missing: Option<DriverError>,
}

/// A walk through the keys under a prefix, on one server after the other.
struct Walk<'a> {
    line: &'a Line,
    options: &'a Options,
    doing: &'static str,
    prefix: &'a str,
    /// Where keys are to be looked for, and how far each of the servers has come.
    left: VecDeque<(Option<Node>, Vec<u8>)>,
    cluster: Option<ClusterConnection>,
    /// Said if there are more servers.
    missing: Option<DriverError>,
}

impl<'a> Walk<'a> {
    async fn start(
        line: &'a Line,
        options: &'a Options,
        doing: &'static str,
        prefix: &'a str,
    ) -> Result<Self, DriverError> {
        let cluster = line.cluster(options, doing).await?;
        let left = VecDeque::new();
        let mut walk = Self { line, options, doing, prefix, left, cluster, missing: None };
        let Primaries { nodes, missing } = walk.primaries().await?;
        walk.left = nodes.into_iter().map(|node| (node, b"0".to_vec())).collect();
        walk.missing = missing;
        Ok(walk)
    }

    /// The servers that have the keys.
    async fn primaries(&mut self) -> Result<Primaries, DriverError> {
        let Some(cluster) = self.cluster.clone() else {
            return Ok(Primaries { nodes: vec![None], missing: None });
        };
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let slots = self.line.query(self.options, Call::read(self.doing), &slots).await?;
        let count = cluster::parse(&slots, "").primaries.len();
        let mut nodes = self.answering(cluster.clone()).await?;
        if nodes.len() != count {
            // A primary has died and another is in its place, of which the connection learns only
            // when it is redirected. All but one do that for a key.
            for node in &nodes {
                let mut exists = redis::cmd("EXISTS");
                exists.arg(self.prefix);
                // What matters is what the connection learns from it.
                let _ = self.ask(Some(node), exists).await;
            }
            nodes = self.answering(cluster).await?;
        }
        let missing = (nodes.len() != count || count == 0).then(|| {
            let problem = "not all primaries of the cluster can be reached";
            self.line.place().unavailable(self.doing, problem)
        });
        nodes.sort();
        Ok(Primaries { nodes: nodes.into_iter().map(Some).collect(), missing })
    }

    /// The primaries that answer, by the addresses under which the connection knows them.
    async fn answering(&self, mut cluster: ClusterConnection) -> Result<Vec<Node>, DriverError> {
        let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let answers = timeout(self.options.timeout, cluster.route_command(redis::cmd("PING"), all));
        let answers =
            answers.await.map_err(|_| self.line.place().late(self.doing, self.options.timeout))?;
        let answers = answers.map_err(|wrong| self.line.place().failed(self.doing, &wrong))?;
        let Value::Map(answers) = answers else { return Err(self.line.place().odd(self.doing)) };
        answers
            .iter()
            .map(|(node, _)| address(node).ok_or_else(|| self.line.place().odd(self.doing)))
            .collect()
    }

    /// The next keys of ours, if there are more. A key that is not UTF-8 is another's.
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

    /// Deletes the next keys; returns whether there may be more.
    async fn clear_some(&mut self) -> Result<bool, DriverError> {
        let Some((node, keys)) = self.next().await? else { return Ok(false) };
        if !keys.is_empty()
            && let Err(error) = self.unlink(node.as_ref(), &keys).await
        {
            self.left.retain(|(left, _)| *left != node);
            return Err(error);
        }
        Ok(true)
    }

    async fn ask(&mut self, node: Option<&Node>, cmd: Cmd) -> Result<Value, DriverError> {
        let (Some(cluster), Some(node)) = (&mut self.cluster, node) else {
            return self.line.query(self.options, Call::read(self.doing), &cmd).await;
        };
        let answer = cluster.route_command(cmd, RoutingInfo::SingleNode(at(node)));
        let answer = timeout(self.options.timeout, answer).await;
        answer
            .map_err(|_| self.line.place().late(self.doing, self.options.timeout))?
            .and_then(Value::extract_error)
            .map_err(|wrong| self.line.place().failed(self.doing, &wrong))
    }

    async fn unlink(&mut self, node: Option<&Node>, keys: &[String]) -> Result<(), DriverError> {
        let (Some(cluster), Some(node)) = (&mut self.cluster, node) else {
            let mut unlink = redis::cmd("UNLINK");
            unlink.arg(keys);
            return self.line.query(self.options, Call::again(self.doing), &unlink).await.map(drop);
        };
        // One command for each: they are in different slots.
        let mut unlinks = Pipeline::with_capacity(keys.len());
        for key in keys {
            unlinks.cmd("UNLINK").arg(key);
        }
        let answers = cluster.route_pipeline(unlinks, 0, keys.len(), at(node));
        let answers = timeout(self.options.timeout, answers).await;
        answers
            .map_err(|_| self.line.place().late(self.doing, self.options.timeout))?
            .and_then(|answers| Value::Array(answers).extract_error())
            .map(drop)
            .map_err(|wrong| self.line.place().failed(self.doing, &wrong))
    }
}

fn at((host, port): &Node) -> SingleNodeRoutingInfo {
    SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port }
}

fn address(node: &Value) -> Option<Node> {
    let Value::BulkString(text) = node else { return None };
    let (host, port) = std::str::from_utf8(text).ok()?.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), port.parse().ok()?))
}

/// Deletes everything under the prefix, on every primary. What can be reached is cleared, whatever
/// else fails.
pub(crate) async fn clear(line: &Line, options: &Options, prefix: &str) -> Result<(), DriverError> {
    const DOING: &str = "clear";
    // Slots that move meanwhile could take their keys along, past the walk.
    for _ in 0..3 {
        let mut walk = Walk::start(line, options, DOING, prefix).await?;
        let before: Vec<_> = walk.left.iter().map(|(node, _)| node.clone()).collect();
        let mut failure = None;
        loop {
            // A server that fails is not asked again; the others are.
            match walk.clear_some().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let after = walk.primaries().await?;
        if let Some(missing) = after.missing {
            return Err(missing);
        }
        if after.nodes == before {
            return Ok(());
        }
    }
    Err(line.place().unavailable(DOING, "the cluster is changing all the time"))
}

/// The keys under the prefix, each once, without the first `strip` bytes.
pub(crate) fn keys(
    line: Arc<Line>,
    options: Arc<Options>,
    prefix: String,
    strip: usize,
) -> KeyStream {
    struct Listing {
        line: Arc<Line>,
        options: Arc<Options>,
        prefix: String,
        left: Option<VecDeque<(Option<Node>, Vec<u8>)>>,
        seen: Seen,
    }
    let listing = Listing { line, options, prefix, left: None, seen: Seen::default() };
    let batches = stream::try_unfold(listing, move |mut listing| async move {
        let Listing { line, options, prefix, left, seen } = &mut listing;
        let mut walk = match left.take() {
            None => {
                let mut walk = Walk::start(line, options, "list the keys", prefix).await?;
                match walk.missing.take() {
                    Some(missing) => return Err(missing),
                    None => walk,
                }
            }
            Some(left) => {
                let cluster = line.cluster(options, "list the keys").await?;
                Walk { line, options, doing: "list the keys", prefix, left, cluster, missing: None }
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

/// The keys that were seen, as 128 bits each: so few that many fit, so many that no two are equal.
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

    #[test]
    fn addresses() {
        let node = |text: &str| address(&Value::BulkString(text.into()));
        assert_eq!(node("127.0.0.1:7000"), Some(("127.0.0.1".into(), 7000)));
        assert_eq!(node("::1:7000"), Some(("::1".into(), 7000)));
        assert_eq!(node("[::1]:7000"), Some(("::1".into(), 7000)));
        assert_eq!(node("host"), None);
    }
}
