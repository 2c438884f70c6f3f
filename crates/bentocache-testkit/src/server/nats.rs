//! Private NATS servers.

use std::process::Command;

use super::PATIENCE;
use super::program::{Program, controls, listens};

/// A `nats-server` of its own on a free port of 127.0.0.1, from Debian's package `nats-server`.
#[derive(Debug)]
pub struct NatsServer(Program);

controls!(NatsServer, 0);

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
        Self(Program::start("nats-server", PATIENCE, is_ready, |program| {
            if let Some(configuration) = configuration {
                let file = program.directory().join("nats.conf");
                std::fs::write(file, configuration).expect("a configuration");
            }
            let port = program.port().to_string();
            let command = ["nats-server", "--addr", "127.0.0.1", "--port", &port];
            program.command(command.into_iter().chain(options.iter().copied()));
        }))
    }

    /// Its URL, `nats://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.0.port())
    }
}

/// It says so itself; that something listens could be somebody else.
fn is_ready(program: &Program) -> bool {
    program.output().contains("Server is ready") && listens(program.addr())
}
