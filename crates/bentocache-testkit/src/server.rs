//! Private servers, for tests of drivers against the real thing.
//!
//! Each server has its own free port and directory. It ends when its handle is dropped, and also
//! when the test process ends in any other way, a kill included: a small shell stands beside it
//! and kills it when the pipe from the test process closes. So a handle may live in a `static`
//! that many tests share.
//!
//! ```no_run
//! use bentocache_testkit::server::RedisServer;
//!
//! let server = RedisServer::start();
//! assert_eq!(server.cli(&["set", "greeting", "hello"]), "OK");
//! server.kill();
//! server.restart();
//! assert_eq!(server.cli(&["get", "greeting"]), "");
//! ```
//!
//! The calls block for some milliseconds, which a test on a multi-threaded runtime can bear. They
//! need the server's program, which is named with each, and for Redis also `redis-cli`, from
//! Debian's package `redis-tools`; and the usual `sh`, `ps`, `kill` and `setsid`. They panic when
//! something is missing.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

mod dynalite;
mod mariadb;
mod nats;
mod npm;
mod postgres;
mod program;
mod rabbitmq;

pub use dynalite::Dynalite;
pub use mariadb::MariaDbServer;
pub use nats::NatsServer;
pub use npm::npm_install;
pub use postgres::PostgresServer;
pub use rabbitmq::RabbitMqServer;

/// How long a server may take to start or a cluster to agree.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the server, says its process id, and waits for a line of standard input. When that ends
/// without one, the test is gone: nobody else kills the server and removes its directory, `$0`.
const GUARD: &str = r#""$@" </dev/null >/dev/null 2>&1 &
echo $!; read -r line || { kill -9 $!; rm -rf "$0"; }"#;

/// A `redis-server` of its own on a free port of 127.0.0.1, from Debian's package `redis-server`.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    directory: PathBuf,
    arguments: Vec<String>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    guard: Child,
    pid: String,
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
        let replica = Self::start_with(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
        wait_for("the replica to be in step", || {
            replica.cli(&["info", "replication"]).contains("master_link_status:up")
        });
        replica
    }

    fn launch(options: &[&str], sentinel: Option<&str>) -> Self {
        for _ in 0..10 {
            let port = free_port();
            let directory = std::env::temp_dir().join(crate::unique("bento-redis-"));
            fs::create_dir_all(&directory).expect("a directory for the server");
            let text = directory.display().to_string();
            let mut arguments = Vec::new();
            if let Some(configuration) = sentinel {
                // A sentinel keeps its state in its configuration file.
                let file = directory.join("sentinel.conf");
                fs::write(&file, configuration).expect("a configuration");
                arguments.push(file.display().to_string());
            }
            let fixed = [("port", &*port.to_string()), ("dir", &text), ("bind", "127.0.0.1")];
            arguments.extend(
                fixed.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]),
            );
            arguments.extend(["--unixsocket".to_owned(), format!("{text}/s")]);
            if sentinel.is_none() {
                arguments.extend(["--save", "", "--appendonly", "no"].map(str::to_owned));
            }
            arguments.extend(options.iter().map(|option| option.replace("{dir}", &text)));
            if sentinel.is_some() {
                arguments.push("--sentinel".to_owned());
            }
            let server = Self { port, directory, arguments, running: Mutex::new(None) };
            if server.spawn() {
                return server;
            }
            // Somebody else took the port in the meantime.
        }
        panic!("redis-server does not start; try it by hand");
    }

    /// Whether it came up.
    fn spawn(&self) -> bool {
        for program in ["redis-server", "redis-cli"] {
            let package = if program == "redis-cli" { "redis-tools" } else { "redis-server" };
            assert!(
                Command::new(program).arg("--version").output().is_ok(),
                "the program `{program}` is missing: install Debian's package `{package}`"
            );
        }
        let mut command = vec!["redis-server".to_owned()];
        command.extend(self.arguments.iter().cloned());
        let running = launch_guarded(GUARD, &self.directory, &command);
        let start = Instant::now();
        // Over the socket in its own directory, so that nobody else answers.
        while !matches!(&*self.try_cli(&["ping"]), "PONG" | "NOAUTH Authentication required.") {
            let is_alive = signal(&running.pid, "-0");
            if !is_alive || start.elapsed() > PATIENCE {
                end(running);
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        *self.lock() = Some(running);
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Its URL, `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("s")
    }

    /// Its directory, which is removed with it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What `redis-cli` prints for that command, without the end of the line.
    ///
    /// # Panics
    /// When there is no connection.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = self.run_cli(arguments);
        let refused = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "redis-cli {arguments:?}: {refused}");
        text(&output)
    }

    fn try_cli(&self, arguments: &[&str]) -> String {
        text(&self.run_cli(arguments))
    }

    fn run_cli(&self, arguments: &[&str]) -> Output {
        Command::new("redis-cli")
            .arg("-s")
            .arg(self.socket())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the program `redis-cli`")
    }

    /// Changes a setting while it runs.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn config(&self, name: &str, value: &str) {
        assert_eq!(self.cli(&["config", "set", name, value]), "OK", "config set {name} {value}");
    }

    /// Kills it at once, as a crash would. Its port stays free for [`restart`](Self::restart).
    pub fn kill(&self) {
        if let Some(running) = self.lock().take() {
            end(running);
        }
    }

    /// Starts it again on the same port, empty, after [`kill`](Self::kill).
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&self) {
        self.kill();
        let start = Instant::now();
        while !self.spawn() {
            assert!(start.elapsed() < PATIENCE, "the server does not start again");
        }
    }

    /// Stops its process, so that connections stay open and nothing answers.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, name: &str) {
        let running = self.lock();
        let running = running.as_ref().expect("a running server");
        assert!(signal(&running.pid, name), "kill {name} {}", running.pid);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Starts a server beside its guard.
fn launch_guarded(guard: &str, directory: &Path, command: &[String]) -> Running {
    let mut guard = Command::new("sh")
        .args(["-c", guard, &directory.display().to_string()])
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program `sh`");
    let mut pid = String::new();
    let said = guard.stdout.take().expect("a pipe");
    BufReader::new(said).read_line(&mut pid).expect("the server's process id");
    Running { guard, pid: pid.trim().to_owned() }
}

/// Whether the process has not ended, as far as can be told: nobody asks for the end of a server
/// that has died by itself, so on Linux it stays in the list of processes.
fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state comes after the name, which is in parentheses.
    let is_dead = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    !is_dead && signal(pid, "-0")
}

/// Whether this process may do anything, which some servers do not like.
fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("the program `id`");
    text(&output) == "0"
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

fn end(mut running: Running) {
    signal(&running.pid, "-KILL");
    // The guard has nothing left to do: the directory is still needed.
    if let Some(mut line) = running.guard.stdin.take() {
        let _ = line.write_all(b"done\n");
    }
    let _ = running.guard.wait();
}

fn signal(pid: &str, name: &str) -> bool {
    let kill = Command::new("kill").args([name, pid]).stderr(Stdio::null()).status();
    kill.expect("the program `kill`").success()
}

/// A port that is free, and whose cluster port, 10,000 above, is too.
fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let both = if port < 55_000 { port + 10_000 } else { port - 10_000 };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, both)).is_ok() {
            return port.min(both);
        }
    }
}

/// Asks until the answer is yes.
///
/// # Panics
/// After half a minute.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A cluster of private servers.
#[derive(Debug)]
pub struct RedisCluster {
    /// The primaries, then their replicas.
    nodes: Vec<RedisServer>,
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
            node.lock().is_some() && {
                let found = node.try_cli(&["get", key]);
                !found.starts_with("MOVED") && node.try_cli(&["role"]).starts_with("master")
            }
        };
        self.nodes.iter().find(is_here).expect("a primary for the key")
    }

    /// Waits until every node that runs sees a working cluster.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_agreed(&self) {
        let size = self.nodes.len().to_string();
        wait_for("the cluster to agree", || {
            self.nodes.iter().filter(|node| node.lock().is_some()).all(|node| {
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
            node.lock().is_some()
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

    /// The server that the sentinel takes for the primary.
    ///
    /// # Panics
    /// When it is neither of the two.
    pub fn primary(&self) -> &RedisServer {
        let answer = self.sentinel.cli(&["sentinel", "get-master-addr-by-name", Self::NAME]);
        let is_named = |server: &&RedisServer| answer.contains(&server.port().to_string());
        self.servers.iter().find(is_named).expect("one of the servers")
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
