//! Private NATS servers.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::program::{Program, controls, listens};
use super::{Certificates, PATIENCE, wait_for};

/// A `nats-server` of its own on a free port of 127.0.0.1, from Debian's package `nats-server`.
#[derive(Debug)]
pub struct NatsServer(Program);

controls!(NatsServer, 0);

impl super::Shared for NatsServer {
    fn programs(&self) -> Vec<&Program> {
        vec![&self.0]
    }

    fn of(programs: Vec<Program>) -> Self {
        Self(programs.into_iter().next().expect("a program"))
    }
}

impl NatsServer {
    /// A server that anybody may use.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server with more options, as on its command line: `["--user", "u", "--pass", "p"]`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with(options: &[&str]) -> Self {
        Self::launch(options, |_| {})
    }

    /// A server that takes nothing but TLS, with more options. It wants a certificate from clients
    /// if one of them is `--tlsverify`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with_tls(certificates: &Certificates, options: &[&str]) -> Self {
        let files = ["--tlscert", "{dir}/server.crt", "--tlskey", "{dir}/server.key"];
        let authority = ["--tls", "--tlscacert", "{dir}/ca.crt"];
        let options = [&files, &authority[..], options].concat();
        Self::launch(&options, |program| certificates.write(program.directory()))
    }

    /// A server with a configuration file of that content.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_configured(configuration: &str) -> Self {
        Self::launch(&["--config", "{dir}/nats.conf"], |program| {
            let file = program.directory().join("nats.conf");
            std::fs::write(file, configuration).expect("a configuration");
        })
    }

    /// Gives a server with a configuration file another one, which it reads at once.
    ///
    /// # Panics
    /// When it does not run.
    pub fn configure(&self, configuration: &str) {
        let file = self.0.directory().join("nats.conf");
        std::fs::write(file, configuration).expect("a configuration");
        self.0.signal("-HUP");
    }

    fn launch(options: &[&str], prepare: impl Fn(&Program)) -> Self {
        assert!(
            Command::new("nats-server").arg("--version").output().is_ok(),
            "the program `nats-server` is missing: install Debian's package `nats-server`"
        );
        Self(Program::start("nats-server", PATIENCE, is_ready, |program| {
            prepare(program);
            let port = program.port().to_string();
            let cluster = cluster_url(program.port());
            let command = ["nats-server", "--addr", "127.0.0.1", "--port", &port];
            let options = options.iter().map(|option| option.replace("{cluster}", &cluster));
            program.command(command.into_iter().map(str::to_owned).chain(options));
        }))
    }

    /// Its URL, `nats://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.addr())
    }
}

/// Servers that know each other.
#[derive(Debug)]
pub struct NatsCluster {
    nodes: Vec<NatsServer>,
}

impl NatsCluster {
    /// A cluster of that many servers.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(nodes: usize) -> Self {
        let mut started: Vec<NatsServer> = Vec::with_capacity(nodes);
        for _ in 0..nodes {
            // All of them, so that any can be killed.
            let routes: Vec<_> = started.iter().map(|node| cluster_url(node.0.port())).collect();
            let routes = routes.join(",");
            let mut options = vec!["--cluster_name", "kit", "--cluster", "{cluster}"];
            if !routes.is_empty() {
                options.extend(["--routes", &routes]);
            }
            started.push(NatsServer::start_with(&options));
        }
        let cluster = Self { nodes: started };
        cluster.wait_until_agreed();
        cluster
    }

    /// Its servers.
    pub fn nodes(&self) -> &[NatsServer] {
        &self.nodes
    }

    /// The server at that address.
    ///
    /// # Panics
    /// When it is none of the cluster.
    pub fn node_at(&self, addr: SocketAddr) -> &NatsServer {
        self.nodes.iter().find(|node| node.addr() == addr).expect("a server of the cluster")
    }

    /// Waits until every server that runs knows all that run.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_agreed(&self) {
        let running = || self.nodes.iter().filter(|node| node.0.is_started());
        wait_for("the cluster to agree", || {
            running().all(|node| {
                let greeting = greeting(node.addr());
                running().all(|other| greeting.contains(&format!("\"{}\"", other.addr())))
            })
        });
    }
}

/// Where the other servers of a cluster reach the one with that port.
fn cluster_url(port: u16) -> String {
    format!("nats://127.0.0.1:{}", port + 10_000)
}

/// What a server says to each client first: among other things, where the cluster's servers are.
fn greeting(addr: SocketAddr) -> String {
    let mut line = String::new();
    if let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_secs(1)) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let _ = BufReader::new(stream).read_line(&mut line);
    }
    line
}

/// It says so itself; that something listens could be somebody else.
fn is_ready(program: &Program) -> bool {
    program.output().contains("Server is ready") && listens(program.addr())
}
