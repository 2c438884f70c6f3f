//! Whole caches in several processes on one server that breaks.
//!
//! Each test breaks it in its own way and asserts that no call takes longer than its limits, that
//! the nodes go on answering meanwhile, that all of them and the server agree on the last write
//! within five seconds of its return, and that nothing is left over.
//!
//! The random run says its seed when it fails; `PROCESSES_SEED=17` makes the same choices again.

mod fleet;
mod history;
mod node;
mod random;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use fleet::{AGREED_AFTER, Fleet, Node, Outcome, SETUP, eventually};
use node::{ANSWER, now};
use testservers::{FaultProxy, RedisCluster, RedisServer, wait_for};

/// Also the entry point of a node: with the variable set, the process is a node until its input
/// ends.
#[test]
fn a_node_answers_and_ends_with_its_input() {
    if let Ok(setup) = std::env::var(SETUP) {
        return node::run(&setup);
    }
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let node = Node::start(&server.url(), &server.url()).await;
        assert_eq!(node.outcome("set a 1").await, Outcome::Done);
        assert_eq!(node.outcome("get a").await, Outcome::Fresh(1));
        assert!(node.end().await, "it failed");
    });
}

/// Each of four processes makes a part of a hundred calls at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_adds_in_four_processes_one_wins() {
    let server = RedisServer::start();
    let url = server.url();
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(Node::start(&url, &url).await);
    }
    // The values of two keys are stale, and those of the rest are missing.
    for key in ["stale", "tagged"] {
        nodes[0].call(&format!("set {key} 1000 #t")).await;
    }
    nodes[0].call("expire stale").await;
    nodes[0].call("delete_by_tag #t").await;
    later().await;
    for key in ["stale", "tagged", "a", "b", "c", "d"] {
        let requests: Vec<String> = (0..100).map(|at| format!("add {key} {at}")).collect();
        let adds = requests.iter().enumerate().map(|(at, add)| nodes[at % 4].outcome(add));
        let outcomes = futures_util::future::join_all(adds).await;
        let winners: Vec<_> =
            (0..).zip(&outcomes).filter(|(_, outcome)| **outcome == Outcome::Done).collect();
        assert_eq!(winners.len(), 1, "of {key}: {winners:?}");
        assert!(outcomes.iter().all(|it| [Outcome::Done, Outcome::Refused].contains(it)));
        assert_eq!(stored(&server, key), Some(winners[0].0), "the value of {key}");
        for node in &nodes {
            assert_eq!(node.outcome(&format!("get {key}")).await.value(), Some(winners[0].0));
        }
    }
    for node in nodes {
        assert!(node.end().await, "it failed");
    }
}

/// The server's value for a key of the caches.
fn stored(server: &RedisServer, key: &str) -> Option<u32> {
    let text = server.cli(&["get", &format!("bentocache:{key}")]);
    let (_, value) = text.split_once("\"value\":")?;
    value.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Changes in different processes are ordered by the millisecond, and their messages not at all: this is
/// long enough for the messages of the round before to arrive.
async fn later() {
    let ms = || now() / 1_000;
    let before = ms();
    eventually("20 milliseconds more", AGREED_AFTER, async || ms() > before + 20).await;
}

/// The effect of a fault on the server's data.
#[derive(Clone, Copy, PartialEq)]
enum Data {
    Kept,
    Lost,
}

/// The effect of a fault on the bus's messages.
#[derive(Clone, Copy, PartialEq)]
enum Messages {
    Kept,
    Lost,
}

/// Runs the nodes through a fault of L2 that lasts for `lasting` at least.
async fn through(
    fleet: &Fleet<'_>,
    (data, messages): (Data, Messages),
    lasting: Duration,
    stored: impl Fn(&str) -> Option<u32>,
    begin: impl AsyncFnOnce(),
    end: impl AsyncFnOnce(),
) {
    let by = Instant::now() + AGREED_AFTER;
    let keys = ["kept", "a", "gone", "tagged", "expired", "ns:x", "old", "older"];
    for (at, key) in keys.iter().enumerate() {
        let tag = if *key == "tagged" { " #t" } else { "" };
        fleet.nodes[at % 3].call(&format!("set {key} {}{tag}", at + 1)).await;
        fleet.have(key, at as u32 + 1).await;
    }
    for key in ["old", "older"] {
        fleet.nodes[0].call(&format!("expire {key}")).await;
        fleet.agree(key, by, |found| matches!(found, Outcome::Graced(_))).await;
    }

    begin().await;
    let start = Instant::now();
    let (mut round, mut made) = (0, Vec::new());
    while start.elapsed() < lasting || round < 4 {
        let at = round % 3;
        let writer = &fleet.nodes[at];
        let value = 100 + round as u32;
        // What L1 has serves, and so does what is stale.
        for found in fleet.all("get kept").await {
            assert_eq!(found.value(), Some(1), "round {round}");
        }
        assert_eq!(fleet.all("get old").await, [Outcome::Graced(7); 3], "round {round}");
        for found in fleet.all("get_or_set older 9 fail").await {
            assert_eq!(found.value(), Some(8), "round {round}");
        }
        // A missing value is produced.
        let new = format!("get_or_set new{round} {value} 0");
        assert_eq!(writer.outcome(&new).await, Outcome::Made(value));
        made.push((format!("new{round}"), value));
        // Changes are taken, and hold at once where they were made.
        later().await;
        let own = format!("own{at}");
        for key in ["shared", &own] {
            assert_eq!(writer.outcome(&format!("set {key} {value}")).await, Outcome::Done);
            let found = writer.outcome(&format!("get {key}")).await.value();
            // The late message of another node about an earlier change of the shared key may come
            // between the two calls. It hides the value, and never brings an older one.
            let is_hidden = key == "shared" && found.is_none();
            assert!(found == Some(value) || is_hidden, "{key} is {found:?}, not {value}");
        }
        match round {
            0 => {
                writer.call("delete gone").await;
                assert_eq!(writer.outcome("get gone").await, Outcome::Nothing);
            }
            1 => {
                writer.call("delete_by_tag #t").await;
                let found = writer.outcome("get tagged").await;
                assert!(!matches!(found, Outcome::Fresh(_)), "{found:?}");
            }
            2 => {
                writer.call("expire expired").await;
                let found = writer.outcome("get expired").await;
                assert!(!matches!(found, Outcome::Fresh(_)), "{found:?}");
            }
            3 => {
                writer.call("clear ns").await;
                assert_eq!(writer.outcome("get ns:x").await, Outcome::Nothing);
            }
            // It may be refused, but it is not forgotten.
            _ => drop(writer.call("lock busy").await),
        }
        round += 1;
    }
    end().await;

    let by = Instant::now() + AGREED_AFTER;
    let of_node = |at: usize| (0..round).rfind(|round| round % 3 == at).unwrap() as u32 + 100;
    let own = (0..3).map(|at| (format!("own{at}"), of_node(at)));
    for (key, last) in own.chain([("shared".to_owned(), 99 + round as u32)]) {
        // After a gap nobody knows whether it was deleted meanwhile. Then it may be dropped, but
        // everywhere.
        let will_do = |found| match found {
            Outcome::Fresh(found) => found == last,
            // Nobody knows which of several sets of different nodes was the last.
            _ => messages == Messages::Lost || key == "shared",
        };
        let found = fleet.agree(&key, by, will_do).await;
        let is_fresh = matches!(found, Outcome::Fresh(_));
        assert_eq!(stored(&key), is_fresh.then_some(last), "{key}");
    }
    // A node whose bus was down when it was told may have it as a stale one.
    for key in ["gone", "ns:x", "tagged", "expired"] {
        fleet.agree(key, by, |found| !matches!(found, Outcome::Fresh(_))).await;
    }
    for key in ["gone", "ns:x"] {
        assert_eq!(stored(key), None, "{key}");
    }
    // What a factory brought may have been given up, but then everywhere.
    for (key, value) in &made {
        let found = fleet.agree(key, by, |found| match found {
            Outcome::Fresh(found) => found == *value,
            _ => true,
        });
        let is_fresh = matches!(found.await, Outcome::Fresh(_));
        assert_eq!(stored(key), is_fresh.then_some(*value), "{key}");
    }
    match data {
        Data::Kept => drop(fleet.agree("kept", by, |found| found == Outcome::Fresh(1)).await),
        // Each looks once where it is not any more, and has it as a stale one.
        Data::Lost => drop(fleet.agree("kept", by, |found| found == Outcome::Graced(1)).await),
    }
    // Everything works as before.
    for (at, node) in fleet.nodes.iter().enumerate() {
        let value = 1_000 + at as u32;
        node.call(&format!("set b {value}")).await;
        let soon = Instant::now() + Duration::from_secs(2);
        fleet.agree("b", soon, |found| found == Outcome::Fresh(value)).await;
        assert_eq!(node.outcome("lock free").await, Outcome::Done);
    }
    fleet.has_recovered().await;
    fleet.is_as_before().await;
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_and_comes_back_empty() {
    let server = RedisServer::start();
    let fleet = Fleet::on(&server).await;
    let stored = |key: &str| stored(&server, key);
    through(
        &fleet,
        (Data::Lost, Messages::Lost),
        SECOND,
        stored,
        async || server.kill(),
        async || server.restart(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still() {
    let server = RedisServer::start();
    let fleet = Fleet::on(&server).await;
    let stored = |key: &str| stored(&server, key);
    let lasting = ANSWER * 3;
    through(
        &fleet,
        (Data::Kept, Messages::Lost),
        lasting,
        stored,
        async || server.freeze(),
        async || server.thaw(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_refuses_and_resets() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let fleet = Fleet::start(vec![&server], &[(); 3].map(|()| (url.clone(), url.clone()))).await;
    let stored = |key: &str| stored(&server, key);
    let (begin, end) =
        (async || proxy.refuse().await.unwrap(), async || proxy.pass().await.unwrap());
    through(&fleet, (Data::Kept, Messages::Lost), SECOND, stored, begin, end).await;
}

/// Sends commands over a connection that was there before there was no place for more.
fn tell(server: &mut UnixStream, commands: &[&str]) {
    let mut answers = BufReader::new(server.try_clone().unwrap());
    for command in commands {
        server.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert!(answer.starts_with(['+', ':']), "{command}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_more_clients() {
    let server = RedisServer::start();
    let fleet = Fleet::on(&server).await;
    let mut line = UnixStream::connect(server.socket()).unwrap();
    let mut same = line.try_clone().unwrap();
    let kill = [
        "CONFIG SET maxclients 1",
        "CLIENT KILL TYPE pubsub",
        "CLIENT KILL TYPE normal SKIPME yes",
    ];
    let (begin, end) =
        (async || tell(&mut line, &kill), async || tell(&mut same, &["CONFIG SET maxclients 99"]));
    through(&fleet, (Data::Kept, Messages::Lost), SECOND, |key| stored(&server, key), begin, end)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_out_of_memory() {
    let server = RedisServer::start();
    let fleet = Fleet::on(&server).await;
    let (begin, end) =
        (async || server.config("maxmemory", "1"), async || server.config("maxmemory", "0"));
    through(&fleet, (Data::Kept, Messages::Kept), SECOND, |key| stored(&server, key), begin, end)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_becomes_read_only() {
    let server = RedisServer::start();
    let fleet = Fleet::on(&server).await;
    let begin = async || drop(server.cli(&["replicaof", "127.0.0.1", "1"]));
    let end = async || drop(server.cli(&["replicaof", "no", "one"]));
    through(&fleet, (Data::Kept, Messages::Lost), SECOND, |key| stored(&server, key), begin, end)
        .await;
}

/// Waits until the node has noticed that its bus is broken, or whole again.
async fn linked(node: &Node, is_so: bool) {
    eventually("a change of the bus", AGREED_AFTER, async || node.is_linked().await == is_so).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_cut_for_a_moment() {
    let server = RedisServer::start();
    let fleet = Fleet::on(&server).await;
    for round in 1..20 {
        let writer = &fleet.nodes[round as usize % 3];
        fleet.nodes[0].call(&format!("set a {}", round * 2)).await;
        fleet
            .agree("a", Instant::now() + AGREED_AFTER, |found| found.value() == Some(round * 2))
            .await;
        server.cli(&["client", "kill", "type", "pubsub"]);
        // There may be no subscriber.
        writer.call(&format!("set a {}", round * 2 + 1)).await;
        let by = Instant::now() + AGREED_AFTER;
        fleet.agree("a", by, |found| found == Outcome::Fresh(round * 2 + 1)).await;
    }
    assert_eq!(stored(&server, "a"), Some(39));
    fleet.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_stays_cut_for_a_while() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let at = |bus: String| (server.url(), bus);
    let cut = at(format!("redis://{}", proxy.addr()));
    let fleet = Fleet::start(vec![&server], &[cut, at(server.url()), at(server.url())]).await;
    let [cut, one, two] = &fleet.nodes[..] else { panic!("three nodes") };
    for (value, key) in ["a", "b", "gone", "tagged #t", "expired", "ns:x"].iter().enumerate() {
        let (name, tag) = key.split_once(' ').unwrap_or((key, ""));
        one.call(format!("set {name} {value} {tag}").trim_end()).await;
        fleet.have(name, value as u32).await;
    }
    proxy.refuse().await.unwrap();
    linked(cut, false).await;
    // What the others do is known to each other, and not yet to the one that is cut off.
    for request in ["set a 10", "delete gone", "delete_by_tag #t", "expire expired", "clear ns"] {
        one.call(request).await;
    }
    eventually("the news", SECOND, async || two.outcome("get a").await == Outcome::Fresh(10)).await;
    for (value, key) in ["a", "b", "gone"].iter().enumerate() {
        assert_eq!(cut.outcome(&format!("get {key}")).await, Outcome::Fresh(value as u32));
    }
    // It writes, and reads what it has not in its L1.
    cut.call("set b 11").await;
    cut.call("set mine 12").await;
    assert_eq!(two.outcome("get mine").await, Outcome::Fresh(12));
    one.call("set theirs 13").await;
    assert_eq!(cut.outcome("get theirs").await, Outcome::Fresh(13));
    proxy.pass().await.unwrap();

    let by = Instant::now() + AGREED_AFTER;
    for (key, value) in [("a", 10), ("b", 11), ("mine", 12), ("theirs", 13)] {
        fleet.agree(key, by, |found| found == Outcome::Fresh(value)).await;
        assert_eq!(stored(&server, key), Some(value), "{key}");
    }
    for key in ["gone", "tagged", "expired", "ns:x"] {
        fleet.agree(key, by, |found| !matches!(found, Outcome::Fresh(_))).await;
    }
    linked(cut, true).await;
    fleet.is_as_before().await;
}

/// Without tracking, nobody hears of what others than the caches do: L1 goes on with
/// what it has until it next asks, and what it does not have is a miss.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_deleted_behind_the_back() {
    let server = RedisServer::start();
    let fleet = Fleet::on(&server).await;
    let [one, two, three] = &fleet.nodes[..] else { panic!("three nodes") };
    one.call("set a 1").await;
    one.call("set b 2").await;
    one.call("set tagged 3 #t").await;
    fleet.have("b", 2).await;
    fleet.have("tagged", 3).await;
    one.call("delete_by_tag #t").await;
    let by = || Instant::now() + AGREED_AFTER;
    fleet.agree("tagged", by(), |found| found == Outcome::Nothing).await;

    assert_eq!(server.cli(&["del", "bentocache:a"]), "1");
    assert_eq!(one.outcome("get a").await, Outcome::Fresh(1));
    assert_eq!(two.outcome("get a").await, Outcome::Nothing);
    assert_eq!(two.outcome("get_or_set a 4 0").await, Outcome::Made(4));
    assert_eq!(three.outcome("get a").await, Outcome::Fresh(4));
    three.call("set a 5").await;
    fleet.agree("a", by(), |found| found == Outcome::Fresh(5)).await;

    assert_eq!(server.cli(&["flushall"]), "OK");
    assert_eq!(fleet.all("get b").await, [Outcome::Fresh(2); 3]);
    // An invalidated value is none again, even though its marker has gone.
    assert_eq!(fleet.all("get tagged").await, [Outcome::Nothing; 3]);
    // A gap in the bus makes each look once.
    server.cli(&["client", "kill", "type", "pubsub"]);
    for key in ["a", "b"] {
        fleet.agree(key, by(), |found| matches!(found, Outcome::Graced(_))).await;
    }
    fleet.agree("tagged", by(), |found| found == Outcome::Nothing).await;
    assert_eq!(one.outcome("set b 6").await, Outcome::Done);
    fleet.agree("b", by(), |found| found == Outcome::Fresh(6)).await;
    fleet.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_a_primary() {
    let cluster = RedisCluster::start_with(3, 1);
    let urls = cluster.urls().join(",");
    let at = [(); 3].map(|()| (urls.clone(), urls.clone()));
    let mut fleet = Fleet::start(Vec::new(), &at).await;
    // L2 and the lock each have the three primaries, and may come to know all of the
    // five nodes that are left. The two connections of the bus each ask another node about theirs.
    fleet.allow(2 * 2 + 2);
    let stored = |key: &str| stored(cluster.primary_of(&format!("bentocache:{key}")), key);
    let primary = cluster.primary_of("bentocache:shared");
    let offset = |server: &RedisServer| {
        let info = server.cli(&["info", "replication"]);
        let offset = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
        offset.map(str::to_owned)
    };
    let port = format!("master_port:{}\r", primary.port());
    let replica = cluster.nodes().iter().find(|node| {
        let info = node.cli(&["info", "replication"]);
        info.contains("role:slave") && info.contains(port.trim_end())
    });
    let replica = replica.expect("a replica");
    let begin = async || {
        let is_in_step = async || offset(primary) == offset(replica);
        eventually("a replica in step", AGREED_AFTER, is_in_step).await;
        primary.kill();
    };
    // It is back when the replica has taken its place and all others know.
    let end = async || {
        let others = || cluster.nodes().iter().filter(|node| node.port() != primary.port());
        wait_for("another primary", || {
            let is_well =
                |node: &RedisServer| node.cli(&["cluster", "info"]).contains("cluster_state:ok");
            replica.cli(&["role"]).starts_with("master") && others().all(is_well)
        });
    };
    through(&fleet, (Data::Kept, Messages::Lost), SECOND, stored, begin, end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_calls_and_faults() {
    let seed = std::env::var("PROCESSES_SEED").ok().and_then(|text| text.parse().ok());
    random::run(seed.unwrap_or_else(|| fastrand::u64(..1_000_000))).await;
}
