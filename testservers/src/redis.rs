//! Private Redis servers, clusters and sentinels.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::program::{Program, controls};
use super::{PATIENCE, text, wait_for};

/// A `redis-server` of its own on a free port of 127.0.0.1, from Debian's package `redis-server`.
#[derive(Debug)]
pub struct RedisServer(Program);

controls!(RedisServer, 0);

impl super::Shared for RedisServer {
    fn programs(&self) -> Vec<&Program> {
        vec![&self.0]
    }

    fn of(programs: Vec<Program>) -> Self {
        Self(programs.into_iter().next().expect("a program"))
    }
}

impl RedisServer {
    /// A server without persistence.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server with more options, as on its command line: `["--requirepass", "secret"]`. The
    /// placeholder `{dir}` in them is its directory.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with(options: &[&str]) -> Self {
        Self::launch(options, None)
    }

    /// A replica of another server. It is in step when this returns.
    ///
    /// # Panics
    /// When it does not start or does not reach the other.
    pub fn replica_of(primary: &Self) -> Self {
        let replica = Self::start_with(&["--replicaof", "127.0.0.1", &primary.port().to_string()]);
        wait_for("the replica to be in step", || {
            replica.cli(&["info", "replication"]).contains("master_link_status:up")
        });
        replica
    }

    fn launch(options: &[&str], sentinel: Option<&str>) -> Self {
        for (program, package) in [("redis-server", "redis-server"), ("redis-cli", "redis-tools")] {
            assert!(
                Command::new(program).arg("--version").output().is_ok(),
                "the program `{program}` is missing: install Debian's package `{package}`"
            );
        }
        Self(Program::start("redis-server", PATIENCE, is_ready, |program| {
            let mut command = vec!["redis-server"];
            if let Some(configuration) = sentinel {
                // A sentinel keeps its state in its configuration file.
                let file = program.directory().join("sentinel.conf");
                fs::write(file, configuration).expect("a configuration");
                command.push("{dir}/sentinel.conf");
            }
            let port = program.port().to_string();
            command.extend(["--port", &port, "--dir", "{dir}", "--bind", "127.0.0.1"]);
            command.extend(["--unixsocket", "{dir}/s"]);
            if sentinel.is_none() {
                command.extend(["--save", "", "--appendonly", "no"]);
            }
            command.extend(options);
            command.extend(sentinel.map(|_| "--sentinel"));
            program.command(command);
        }))
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Its URL, `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        socket(&self.0)
    }

    /// Its directory, which is removed with it.
    pub fn directory(&self) -> &Path {
        self.0.directory()
    }

    /// What `redis-cli` prints for that command, without the end of the line.
    ///
    /// # Panics
    /// When there is no connection.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = cli(&self.0, arguments);
        let refused = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "redis-cli {arguments:?}: {refused}");
        text(&output)
    }

    fn try_cli(&self, arguments: &[&str]) -> String {
        text(&cli(&self.0, arguments))
    }

    /// Changes a setting while it runs.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn config(&self, name: &str, value: &str) {
        assert_eq!(self.cli(&["config", "set", name, value]), "OK", "config set {name} {value}");
    }
}

fn socket(server: &Program) -> PathBuf {
    server.directory().join("s")
}

/// Over the socket in its own directory, so that nobody else answers.
fn cli(server: &Program, arguments: &[&str]) -> Output {
    Command::new("redis-cli")
        .arg("-s")
        .arg(socket(server))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program `redis-cli`")
}

fn is_ready(server: &Program) -> bool {
    let answer = text(&cli(server, &["ping"]));
    matches!(&*answer, "PONG" | "NOAUTH Authentication required.")
}

/// A cluster of private servers.
#[derive(Debug)]
pub struct RedisCluster {
    /// The primaries, then their replicas.
    nodes: Vec<RedisServer>,
}

impl super::Shared for RedisCluster {
    fn programs(&self) -> Vec<&Program> {
        self.nodes.iter().map(|node| &node.0).collect()
    }

    fn of(programs: Vec<Program>) -> Self {
        Self { nodes: programs.into_iter().map(RedisServer).collect() }
    }
}

impl RedisCluster {
    /// A cluster of that many primaries.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(primaries: usize) -> Self {
        Self::start_with(primaries, 0)
    }

    /// A cluster of that many primaries with that many replicas each.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with(primaries: usize, replicas: usize) -> Self {
        let options = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--repl-diskless-sync-delay",
            "0",
        ];
        let nodes: Vec<_> =
            (0..primaries * (1 + replicas)).map(|_| RedisServer::start_with(&options)).collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create.args(nodes.iter().map(|node| node.addr().to_string()));
        create.args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"]);
        let output = create.output().expect("the program `redis-cli`");
        assert!(output.status.success(), "no cluster: {}", text(&output));
        let cluster = Self { nodes };
        cluster.wait_until_agreed();
        cluster
    }

    /// Its nodes; the first ones began as primaries.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// The URLs of all nodes.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// The node that is the primary for a key.
    ///
    /// # Panics
    /// When none is.
    pub fn primary_of(&self, key: &str) -> &RedisServer {
        let is_here = |node: &&RedisServer| {
            node.0.is_started() && {
                let found = node.try_cli(&["get", key]);
                !found.starts_with("MOVED") && node.try_cli(&["role"]).starts_with("master")
            }
        };
        self.nodes.iter().find(is_here).expect("a primary for the key")
    }

    /// Moves all slots of a node to another one, with their keys.
    ///
    /// # Panics
    /// When that fails.
    pub fn move_slots(&self, from: &RedisServer, to: &RedisServer) {
        let [from_id, to_id] = [from, to].map(|node| node.cli(&["cluster", "myid"]));
        let mut reshard = Command::new("redis-cli");
        reshard.args(["--cluster", "reshard", &to.addr().to_string()]);
        reshard.args(["--cluster-from", &from_id, "--cluster-to", &to_id]);
        reshard.args(["--cluster-slots", "16384", "--cluster-yes"]);
        let output = reshard.output().expect("the program `redis-cli`");
        assert!(output.status.success(), "not moved: {}", text(&output));
        self.wait_until_agreed();
    }

    /// Takes a node without slots out of the cluster, as an operator does. It lives on alone.
    ///
    /// # Panics
    /// When that fails.
    pub fn remove(&self, node: &RedisServer) {
        let id = node.cli(&["cluster", "myid"]);
        let other = self.nodes.iter().find(|other| other.port() != node.port());
        let addr = other.expect("another node").addr().to_string();
        let mut remove = Command::new("redis-cli");
        let output = remove.args(["--cluster", "del-node", &addr, &id]).output();
        let output = output.expect("the program `redis-cli`");
        assert!(output.status.success(), "not removed: {}", text(&output));
    }

    /// Waits until every node that runs sees a working cluster.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_agreed(&self) {
        let size = self.nodes.len().to_string();
        wait_for("the cluster to agree", || {
            self.nodes.iter().filter(|node| node.0.is_started()).all(|node| {
                let info = node.try_cli(&["cluster", "info"]);
                info.contains("cluster_state:ok")
                    && info.contains(&format!("cluster_known_nodes:{size}"))
                    && !node.try_cli(&["info", "replication"]).contains("master_link_status:down")
            })
        });
    }

    /// Makes a replica of that node its primary, in order.
    ///
    /// # Panics
    /// When it has none.
    pub fn failover(&self, primary: &RedisServer) {
        let id = primary.cli(&["cluster", "myid"]);
        let replica = self.nodes.iter().find(|node| {
            node.0.is_started()
                && node.try_cli(&["cluster", "nodes"]).lines().any(|line| {
                    line.contains("myself") && line.contains("slave") && line.contains(&id)
                })
        });
        let replica = replica.expect("a replica of that primary");
        let mut asked = None;
        wait_for("the failover", || {
            // A node gives up when the others do not agree in time, and must be asked again.
            if asked.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(6)) {
                replica.try_cli(&["cluster", "failover"]);
                asked = Some(Instant::now());
            }
            replica.cli(&["role"]).starts_with("master")
                && primary.cli(&["role"]).starts_with("slave")
        });
        self.wait_until_agreed();
    }
}

/// A primary, a replica and a sentinel that watches them.
#[derive(Debug)]
pub struct RedisSentinel {
    servers: [RedisServer; 2],
    sentinel: RedisServer,
}

impl RedisSentinel {
    /// The name by which the sentinel knows the primary.
    pub const NAME: &'static str = "kit";

    /// Starts the three.
    ///
    /// # Panics
    /// When they do not start or do not find each other.
    pub fn start() -> Self {
        let primary = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
        let replica = RedisServer::replica_of(&primary);
        let name = Self::NAME;
        let configuration = format!(
            "sentinel monitor {name} 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds {name} 500\n\
             sentinel failover-timeout {name} 3000\n",
            primary.port()
        );
        let sentinel = RedisServer::launch(&[], Some(&configuration));
        wait_for("the sentinel to find the replica", || {
            sentinel.cli(&["sentinel", "replicas", name]).contains(&replica.port().to_string())
        });
        Self { servers: [primary, replica], sentinel }
    }

    /// The URL of the sentinel.
    pub fn url(&self) -> String {
        self.sentinel.url()
    }

    /// The sentinel itself.
    pub fn sentinel(&self) -> &RedisServer {
        &self.sentinel
    }

    /// The primary and the replica, whichever is which.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// The server that the sentinel takes for the primary.
    ///
    /// # Panics
    /// When it is neither of the two.
    pub fn primary(&self) -> &RedisServer {
        let answer = self.sentinel.cli(&["sentinel", "get-master-addr-by-name", Self::NAME]);
        let is_named = |server: &&RedisServer| answer.contains(&server.port().to_string());
        self.servers.iter().find(is_named).expect("one of the servers")
    }

    /// Has the replica take the place of the primary, which lives on, and which the sentinel makes
    /// a replica some seconds later.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn switch_over(&self) {
        let old = self.primary();
        let mut is_asked = false;
        wait_for("the sentinel to choose another primary", || {
            // It refuses until it knows enough about the replica.
            is_asked = is_asked || self.sentinel.cli(&["sentinel", "failover", Self::NAME]) == "OK";
            let new = self.primary();
            new.port() != old.port() && new.cli(&["role"]).starts_with("master")
        });
    }

    /// Kills the primary and waits until the replica has taken its place.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn failover(&self) {
        let old = self.primary();
        old.kill();
        wait_for("the sentinel to choose another primary", || {
            let new = self.primary();
            new.port() != old.port() && new.cli(&["role"]).starts_with("master")
        });
    }
}
