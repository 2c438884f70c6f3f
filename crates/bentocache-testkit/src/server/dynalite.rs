//! Private emulators of DynamoDB.

use std::net::SocketAddr;
use std::path::Path;

use super::program::{Program, listens};
use super::{PATIENCE, free_port};

/// A `dynalite` of its own, which keeps its tables in memory, on a free port of 127.0.0.1. It is a
/// package of npm, see [`npm_install`](super::npm_install).
#[derive(Debug)]
pub struct Dynalite(Program);

impl Dynalite {
    /// Starts the `dynalite` that is installed in `directory`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(directory: &Path) -> Self {
        let script = directory.join("node_modules/dynalite/cli.js").display().to_string();
        let mut said = String::new();
        for _ in 0..10 {
            let port = free_port();
            let mut program = Program::new("dynalite", port, PATIENCE);
            let port = port.to_string();
            let command = ["node", &script, "--host", "127.0.0.1", "--port", &port];
            program.command(command.into_iter().chain(["--createTableMs", "20"]));
            if program.spawn(is_ready) {
                return Self(program);
            }
            said = program.output();
        }
        panic!("dynalite does not start:\n{said}");
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// Its URL, `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port())
    }

    /// Kills it at once, as a crash would. Its port stays free for [`restart`](Self::restart).
    pub fn kill(&self) {
        self.0.kill();
    }

    /// Starts it again on the same port, without any table.
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
    program.output().contains("listening at") && listens(program.addr())
}
