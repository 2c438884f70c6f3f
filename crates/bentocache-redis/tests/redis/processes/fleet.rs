//! Several node processes, requests to them, and checks for leaks.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testservers::RedisServer;
use tokio::sync::oneshot;

use super::node::{ANSWER, HARD};

/// The environment variable that makes a process a node; its value names the servers.
pub(crate) const SETUP: &str = "BENTOCACHE_TEST_NODE";
/// The tolerance of every limit for a busy machine.
pub(crate) const SLACK: Duration = Duration::from_millis(500);
/// How long after the end of a fault all nodes agree.
pub(crate) const AGREED_AFTER: Duration = Duration::from_secs(5);

/// How a call may take: each call of L2 that it makes one after the other has its
/// limit. A clear goes through all keys, with a limit for each answer of the server.
fn limit(verb: &str) -> Duration {
    let calls = match verb {
        "delete" => 1,
        // The entry and the markers of its tags; what is stored and its change.
        "get" | "set" | "expire" | "delete_by_tag" => 2,
        // All its calls share one limit.
        "add" => 1,
        // The entry, markers before and after, the store, and taking it back.
        "get_or_set" => 5,
        "clear" => return ANSWER * 2 + SLACK,
        "lock" => return ANSWER * 3 + SLACK,
        _ => 0,
    };
    HARD * calls + SLACK
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Fresh(u32),
    Graced(u32),
    /// By a factory.
    Made(u32),
    Nothing,
    Done,
    Refused,
}

impl Outcome {
    pub(crate) fn value(self) -> Option<u32> {
        match self {
            Self::Fresh(value) | Self::Graced(value) | Self::Made(value) => Some(value),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    /// Whether L1 had it as a fresh one.
    pub(crate) is_local: bool,
    /// In microseconds since the epoch.
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

/// An unsolicited line of a node, and its time.
#[derive(Debug, Clone)]
pub(crate) struct News {
    pub(crate) text: String,
    pub(crate) at: u64,
}

/// The resources of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Belongings {
    tasks: usize,
    threads: usize,
    files: usize,
}

impl Belongings {
    fn is_within(self, other: Self) -> bool {
        self.tasks <= other.tasks && self.threads <= other.threads && self.files <= other.files
    }
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<String>>>>;

pub(crate) struct Node {
    child: Mutex<Child>,
    input: Mutex<Option<ChildStdin>>,
    next: AtomicU64,
    waiting: Waiting,
    news: Arc<Mutex<Vec<News>>>,
}

impl Node {
    /// Starts this program again as a node.
    pub(crate) async fn start(l2: &str, bus: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "processes::a_node_answers_and_ends_with_its_input", "--nocapture"])
            .env(SETUP, format!("{l2} {bus}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let input = Mutex::new(child.stdin.take());
        let (waiting, news) = (Waiting::default(), Arc::<Mutex<Vec<News>>>::default());
        let (ready, is_ready) = oneshot::channel();
        let (answered, told) = (waiting.clone(), news.clone());
        std::thread::spawn(move || {
            let mut ready = Some(ready);
            for line in output.lines().map_while(Result::ok) {
                if let Some(text) = line.strip_prefix("! ") {
                    let (text, at) = text.rsplit_once(' ').expect("a time");
                    let at = at.parse().expect("a time");
                    told.lock().unwrap().push(News { text: text.to_owned(), at });
                    if text == "ready" {
                        ready.take().into_iter().for_each(|ready| ready.send(()).expect("a test"));
                    }
                } else if let Some((number, answer)) = line.split_once(' ')
                    && let Ok(number) = number.parse()
                    && let Some(asked) = answered.lock().unwrap().remove(&number)
                {
                    // After a failure nobody waits for the answer.
                    let _ = asked.send(answer.to_owned());
                }
            }
            // Pending calls learn of the end.
            answered.lock().unwrap().clear();
        });
        let node = Self { child: Mutex::new(child), input, next: AtomicU64::new(1), waiting, news };
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, is_ready).await.expect("no node in time").expect("a node");
        node
    }

    async fn ask(&self, request: &str) -> String {
        let number = self.next.fetch_add(1, SeqCst);
        let (asked, answer) = oneshot::channel();
        self.waiting.lock().unwrap().insert(number, asked);
        let line = format!("{number} {request}\n");
        self.input.lock().unwrap().as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
        answer.unwrap_or_else(|_| panic!("`{request}` hangs")).expect("the node has ended")
    }

    /// Sends a request to the node, which must succeed within the limits of the call.
    pub(crate) async fn call(&self, request: &str) -> Answer {
        let answer = self.ask(request).await;
        let words: Vec<_> = answer.splitn(4, ' ').collect();
        let [begun, took, outcome, ..] = words[..] else { panic!("{answer}") };
        let value = || words[3].parse().unwrap();
        let is_local = outcome == "fresh";
        let outcome = match outcome {
            "fresh" | "found" => Outcome::Fresh(value()),
            "graced" => Outcome::Graced(value()),
            "made" => Outcome::Made(value()),
            "none" => Outcome::Nothing,
            "done" => Outcome::Done,
            "refused" => Outcome::Refused,
            _ => panic!("`{request}` failed: {answer}"),
        };
        let [begun, took]: [u64; 2] = [begun, took].map(|time| time.parse().unwrap());
        let (took_at_most, took_time) =
            (limit(request.split(' ').next().unwrap()), Duration::from_micros(took));
        assert!(took_time <= took_at_most, "`{request}` took {took_time:?}, not {took_at_most:?}");
        Answer { outcome, is_local, begun, ended: begun + took }
    }

    pub(crate) async fn outcome(&self, request: &str) -> Outcome {
        self.call(request).await.outcome
    }

    async fn stats(&self) -> [usize; 3] {
        let answer = self.ask("stats").await;
        let numbers: Vec<_> = answer.split(' ').skip(3).map(|n| n.parse().unwrap()).collect();
        numbers.try_into().expect("three numbers")
    }

    /// The number of queued changes.
    pub(crate) async fn queued(&self) -> usize {
        self.stats().await[1]
    }

    pub(crate) async fn is_linked(&self) -> bool {
        self.stats().await[2] == 1
    }

    async fn belongings(&self) -> Belongings {
        let pid = self.child.lock().unwrap().id();
        let count = |what| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        Belongings { tasks: self.stats().await[0], threads: count("task"), files: count("fd") }
    }

    pub(crate) fn news(&self) -> Vec<News> {
        self.news.lock().unwrap().clone()
    }

    /// Ends the input, and waits for the process to end by itself.
    pub(crate) async fn end(&self) -> bool {
        drop(self.input.lock().unwrap().take());
        let mut status = None;
        eventually("the end of a node", Duration::from_secs(10), async || {
            status = self.child.lock().unwrap().try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.is_some_and(|status| status.success())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        // It may have ended.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Waits until it is so.
pub(crate) async fn eventually(what: &str, within: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < within, "{what}: not after {within:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Three nodes on the same servers.
pub(crate) struct Fleet<'a> {
    pub(crate) nodes: Vec<Node>,
    servers: Vec<&'a RedisServer>,
    before: Vec<Belongings>,
    connections: usize,
}

impl<'a> Fleet<'a> {
    /// Nodes that reach L2 and the bus at these addresses, one pair for each.
    pub(crate) async fn start(servers: Vec<&'a RedisServer>, at: &[(String, String)]) -> Self {
        let mut nodes = Vec::new();
        for (l2, bus) in at {
            nodes.push(Node::start(l2, bus).await);
        }
        let mut fleet = Self { nodes, servers, before: Vec::new(), connections: 0 };
        // Everything once, so that all connections are there.
        for node in &fleet.nodes {
            for request in [
                "set warm 1 #warm",
                "get warm",
                "get_or_set warmer 2 0 #warm",
                "expire warm",
                "delete_by_tag #warm",
                "delete warm",
                "clear",
                "lock warm",
            ] {
                assert_ne!(node.outcome(request).await, Outcome::Refused);
            }
        }
        fleet.before = fleet.belongings().await;
        fleet.connections = fleet.connected();
        let mut last = (fleet.before.clone(), fleet.connections);
        eventually("calm", AGREED_AFTER, async || {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = (fleet.belongings().await, fleet.connected());
            std::mem::replace(&mut last, now.clone()) == now
        })
        .await;
        (fleet.before, fleet.connections) = last;
        fleet
    }

    pub(crate) async fn on(server: &'a RedisServer) -> Self {
        Self::start(vec![server], &[(); 3].map(|()| (server.url(), server.url()))).await
    }

    /// Each node may get that many connections more.
    pub(crate) fn allow(&mut self, connections: usize) {
        for before in &mut self.before {
            before.tasks += connections;
            before.files += connections;
        }
    }

    async fn belongings(&self) -> Vec<Belongings> {
        let mut all = Vec::new();
        for node in &self.nodes {
            all.push(node.belongings().await);
        }
        all
    }

    fn connected(&self) -> usize {
        let of = |server: &&RedisServer| {
            let list = server.cli(&["client", "list"]);
            let is_ours = |line: &&str| {
                line.contains(" addr=127.0.0.1:")
                    && (line.contains(" flags=N ") || line.contains(" flags=P "))
            };
            list.lines().filter(is_ours).count()
        };
        self.servers.iter().map(of).sum()
    }

    /// Asks all nodes the same, at the same time.
    pub(crate) async fn all(&self, request: &str) -> Vec<Outcome> {
        let [one, two, three] = &self.nodes[..] else { panic!("three nodes") };
        let (one, two, three) =
            tokio::join!(one.outcome(request), two.outcome(request), three.outcome(request));
        vec![one, two, three]
    }

    /// Waits until all nodes have that in their L1.
    pub(crate) async fn have(&self, key: &str, value: u32) {
        for node in &self.nodes {
            eventually("a value in L1", AGREED_AFTER, async || {
                let answer = node.call(&format!("get {key}")).await;
                answer.is_local && answer.outcome == Outcome::Fresh(value)
            })
            .await;
        }
    }

    /// Waits until all nodes answer in a way that will do, and alike: who has nothing fresh may
    /// have something stale or not.
    pub(crate) async fn agree(
        &self,
        key: &str,
        by: Instant,
        will_do: impl Fn(Outcome) -> bool,
    ) -> Outcome {
        loop {
            let found = self.all(&format!("get {key}")).await;
            let fresh = |one: Outcome| matches!(one, Outcome::Fresh(_)).then_some(one);
            if found.iter().all(|one| fresh(*one) == fresh(found[0]) && will_do(*one)) {
                return found[0];
            }
            if Instant::now() >= by {
                let mut queued = Vec::new();
                for node in &self.nodes {
                    queued.push(node.queued().await);
                }
                panic!("no agreement on {key}: {found:?}; {queued:?} changes wait");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until no change is queued.
    pub(crate) async fn has_recovered(&self) {
        eventually("empty queues", AGREED_AFTER, async || {
            let mut queued = 0;
            for node in &self.nodes {
                queued += node.queued().await;
            }
            queued == 0
        })
        .await;
    }

    /// Nothing has leaked, and no lock is left.
    pub(crate) async fn is_as_before(&self) {
        let (start, within) = (Instant::now(), Duration::from_secs(5));
        loop {
            let (now, connections) = (self.belongings().await, self.connected());
            let is_within = now.iter().zip(&self.before).all(|(now, then)| now.is_within(*then));
            if is_within && connections == self.connections {
                break;
            }
            assert!(
                start.elapsed() < within,
                "left over: {now:?} after {:?}, {connections} connections after {}",
                self.before,
                self.connections
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        eventually("locks to end", Duration::from_secs(3), async || {
            self.servers.iter().all(|server| server.cli(&["keys", "*:lock*"]).is_empty())
        })
        .await;
    }
}
