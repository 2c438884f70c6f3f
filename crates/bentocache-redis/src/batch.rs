//! Sends many commands at once, for keys on different nodes of a cluster.

use std::collections::HashMap;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::SingleNodeRoutingInfo;
use redis::{Arg, Cmd, Pipeline, RedisResult, Value};

use crate::shards::{Node, Shards};

/// Below this number, commands are sent one by one.
pub(crate) const FEW: usize = 8;
/// The most commands in one pipeline.
const MOST: usize = 1_000;
/// The most single commands in flight at the same time.
const AT_ONCE: usize = 64;

/// Sends each command to the node that has its key, in one pipeline per node. A command that a node
/// redirects, because slots have moved, is sent again alone; the client routes it.
pub(crate) async fn query(
    conn: &ClusterConnection,
    shards: &Shards,
    cmds: &[Cmd],
) -> RedisResult<Vec<Value>> {
    let mut answers = vec![None; cmds.len()];
    if cmds.len() > FEW {
        send_by_node(conn, shards, cmds, &mut answers).await;
    }
    let mut left: Vec<_> = (0..cmds.len()).filter(|place| answers[*place].is_none()).collect();
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < AT_ONCE
            && let Some(place) = left.pop()
        {
            under_way.push(send_one(conn.clone(), &cmds[place], place));
        }
        match under_way.next().await {
            Some((place, value)) => answers[place] = Some(value?),
            None => return answers.into_iter().flatten().map(Value::extract_error).collect(),
        }
    }
}

async fn send_one(
    mut conn: ClusterConnection,
    cmd: &Cmd,
    place: usize,
) -> (usize, RedisResult<Value>) {
    (place, cmd.query_async(&mut conn).await)
}

async fn send_by_node(
    conn: &ClusterConnection,
    shards: &Shards,
    cmds: &[Cmd],
    answers: &mut [Option<Value>],
) {
    let mut groups: HashMap<Node, Vec<usize>> = HashMap::new();
    for (place, cmd) in cmds.iter().enumerate() {
        if let Some(node) = key_of(cmd).and_then(|key| shards.primary(&key)) {
            groups.entry(node).or_default().push(place);
        }
    }
    let mut pipelines = FuturesUnordered::new();
    for (node, places) in groups {
        for places in places.chunks(MOST) {
            let mut pipeline = Pipeline::with_capacity(places.len());
            for place in places {
                pipeline.add_command(cmds[*place].clone());
            }
            pipelines.push(send(conn.clone(), pipeline, node.clone(), places.to_vec()));
        }
    }
    while let Some((places, values)) = pipelines.next().await {
        // The whole pipeline failed: the node cannot be reached, or is not a member any more.
        for (place, value) in places.iter().zip(values.into_iter().flatten()) {
            answers[*place] = (!is_redirected(&value)).then_some(value);
        }
    }
}

async fn send(
    mut conn: ClusterConnection,
    pipeline: Pipeline,
    (host, port): (String, u16),
    places: Vec<usize>,
) -> (Vec<usize>, RedisResult<Vec<Value>>) {
    let node = SingleNodeRoutingInfo::ByAddress { host, port };
    let answers = conn.route_pipeline(pipeline, 0, places.len(), node).await;
    (places, answers)
}

/// The key of a command: the first argument, or the third one of a script.
pub(crate) fn key_of(cmd: &Cmd) -> Option<Vec<u8>> {
    let mut arguments = cmd.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => bytes,
        _ => &[],
    });
    match arguments.next()? {
        b"EVAL" | b"EVALSHA" => arguments.nth(2),
        b"GET" | b"MGET" | b"SET" | b"GETDEL" | b"UNLINK" => arguments.next(),
        _ => None,
    }
    .map(<[u8]>::to_vec)
}

fn is_redirected(value: &Value) -> bool {
    let Value::ServerError(error) = value else { return false };
    matches!(error.code(), "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN")
}
