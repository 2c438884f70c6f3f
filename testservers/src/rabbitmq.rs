//! Private RabbitMQ servers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::program::{Program, controls, listens};
use super::{Certificates, free_port, text};

/// An Erlang machine takes ten seconds to come up even when nothing else runs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where Debian keeps the scripts that do not change to the system's user and settings.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// A `rabbitmq-server` of its own on a free port of 127.0.0.1, from Debian's package
/// `rabbitmq-server`. It starts in about ten seconds: share one between tests where that works.
#[derive(Debug)]
pub struct RabbitMqServer {
    program: Program,
    node: String,
}

controls!(RabbitMqServer, program);

impl super::Shared for RabbitMqServer {
    fn programs(&self) -> Vec<&Program> {
        vec![&self.program]
    }

    fn of(programs: Vec<Program>) -> Self {
        let program = programs.into_iter().next().expect("a program");
        Self { node: node(program.port()), program }
    }
}

impl RabbitMqServer {
    /// A server with the usual user, `guest` with the password `guest`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        Self::launch(None)
    }

    /// A server that speaks TLS as well, on [another port](Self::tls_addr). There it takes only
    /// clients that show a certificate of the same authority, if it is told to.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with_tls(certificates: &Certificates, wants_certificates: bool) -> Self {
        Self::launch(Some((certificates, wants_certificates)))
    }

    fn launch(tls: Option<(&Certificates, bool)>) -> Self {
        assert!(
            Path::new(SCRIPTS).join("rabbitmq-server").exists(),
            "RabbitMQ is missing: install Debian's package `rabbitmq-server`"
        );
        let program = Program::start("rabbitmq-server", PATIENCE, is_ready, |program| {
            prepare(program, tls);
        });
        Self { node: node(program.port()), program }
    }

    /// Its URL, `amqp://guest:guest@127.0.0.1:<port>/%2f`.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.program.port())
    }

    /// Where it speaks TLS, if it does.
    pub fn tls_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, tls_port(self.program.port())).into()
    }

    /// The certificates with which it was started.
    ///
    /// # Panics
    /// When it speaks no TLS.
    pub fn certificates(&self) -> Certificates {
        Certificates::read(self.program.directory())
    }

    /// Its URL for TLS, `amqps://guest:guest@127.0.0.1:<port>/%2f`.
    pub fn tls_url(&self) -> String {
        format!("amqps://guest:guest@{}/%2f", self.tls_addr())
    }

    /// What `rabbitmqctl` prints for that command, without the end of the line. It takes a second
    /// or two.
    ///
    /// # Panics
    /// When the server refuses or does not answer.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self
            .program
            .beside(&format!("{SCRIPTS}/rabbitmqctl"))
            .args(["--quiet", "--node", &self.node])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the program `rabbitmqctl`");
        let refused = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {refused}");
        text(&output)
    }
}

fn node(port: u16) -> String {
    format!("bento{port}@localhost")
}

/// The one beside the plain one, which is known to be free, too.
fn tls_port(port: u16) -> u16 {
    port + 10_000
}

fn prepare(program: &mut Program, tls: Option<(&Certificates, bool)>) {
    let (port, directory) = (program.port(), program.directory().to_owned());
    let mut settings = format!("listeners.tcp.default = 127.0.0.1:{port}\n");
    if let Some((certificates, wants_certificates)) = tls {
        certificates.write(&directory);
        let at = |name: &str| directory.join(name).display().to_string();
        let verify = if wants_certificates { "verify_peer" } else { "verify_none" };
        settings += &format!(
            "listeners.ssl.default = 127.0.0.1:{}\n\
             ssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\n\
             ssl_options.verify = {verify}\n\
             ssl_options.fail_if_no_peer_cert = {wants_certificates}\n",
            tls_port(port),
            at("ca.crt"),
            at("server.crt"),
            at("server.key"),
        );
    }
    fs::write(directory.join("rabbitmq.conf"), settings).expect("a configuration");
    fs::write(directory.join("plugins"), "[].\n").expect("a configuration");
    let within = |name: &str| directory.join(name).display().to_string();
    program.command([format!("{SCRIPTS}/rabbitmq-server")]);
    program.environment("HOME", within(""));
    program.environment("RABBITMQ_NODENAME", node(port));
    program.environment("RABBITMQ_DIST_PORT", free_port().to_string());
    program.environment("RABBITMQ_CONF_ENV_FILE", within("none"));
    program.environment("RABBITMQ_CONFIG_FILE", within("rabbitmq.conf"));
    program.environment("RABBITMQ_ADVANCED_CONFIG_FILE", within("none.config"));
    program.environment("RABBITMQ_ENABLED_PLUGINS_FILE", within("plugins"));
    program.environment("RABBITMQ_MNESIA_BASE", within("data"));
    program.environment("RABBITMQ_LOG_BASE", within("log"));
    program.environment("RABBITMQ_LOGS", "-");
}

/// It says so itself; that something listens could be somebody else.
fn is_ready(program: &Program) -> bool {
    program.output().contains("Server startup complete") && listens(program.addr())
}
