//! Private NATS servers.

use std::net::SocketAddr;
use std::process::Command;

use super::program::{Program, listens};
use super::{PATIENCE, free_port};

/// A `nats-server` of its own on a free port of 127.0.0.1, from Debian's package `nats-server`.
#[derive(Debug)]
pub struct NatsServer(Program);

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
        Self::launch(options, None)
    }

    /// A server with a configuration file of that content.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_configured(configuration: &str) -> Self {
        Self::launch(&["--config", "{dir}/nats.conf"], Some(configuration))
    }

    fn launch(options: &[&str], configuration: Option<&str>) -> Self {
        assert!(
            Command::new("nats-server").arg("--version").output().is_ok(),
            "the program `nats-server` is missing: install Debian's package `nats-server`"
        );
        let mut said = String::new();
        for _ in 0..10 {
            let port = free_port();
            let mut program = Program::new("nats", port, PATIENCE);
            if let Some(configuration) = configuration {
                let file = program.directory().join("nats.conf");
                std::fs::write(file, configuration).expect("a configuration");
            }
            let port = port.to_string();
            let command = ["nats-server", "--addr", "127.0.0.1", "--port", &port];
            program.command(command.into_iter().chain(options.iter().copied()));
            if program.spawn(is_ready) {
                return Self(program);
            }
            said = program.output();
        }
        panic!("nats-server does not start:\n{said}");
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// Its URL, `nats://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.0.port())
    }

    /// Kills it at once, as a crash would. Its port stays free for [`restart`](Self::restart).
    pub fn kill(&self) {
        self.0.kill();
    }

    /// Starts it again on the same port.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&self) {
        self.0.restart(is_ready);
    }

    /// Stops its process, so that connections stay open and nothing answers.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self) {
        self.0.signal("-STOP");
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&self) {
        self.0.signal("-CONT");
    }
}

/// It says so itself; that something listens could be somebody else.
fn is_ready(program: &Program) -> bool {
    program.output().contains("Server is ready") && listens(program.addr())
}
