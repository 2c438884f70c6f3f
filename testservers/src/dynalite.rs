//! Private emulators of DynamoDB.

use std::path::Path;

use super::PATIENCE;
use super::program::{Program, controls, listens};

/// A `dynalite` of its own, which keeps its tables in memory, on a free port of 127.0.0.1. It is a
/// package of npm, see [`npm_install`](super::npm_install).
#[derive(Debug)]
pub struct Dynalite(Program);

controls!(Dynalite, 0);

impl super::Shared for Dynalite {
    fn programs(&self) -> Vec<&Program> {
        vec![&self.0]
    }

    fn of(programs: Vec<Program>) -> Self {
        Self(programs.into_iter().next().expect("a program"))
    }
}

impl Dynalite {
    /// Starts the `dynalite` that is installed in `directory`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(directory: &Path) -> Self {
        let script = directory.join("node_modules/dynalite/cli.js").display().to_string();
        Self(Program::start("dynalite", PATIENCE, is_ready, |program| {
            let port = program.port().to_string();
            let command = ["node", &script, "--host", "127.0.0.1", "--port", &port];
            program.command(command.into_iter().chain(["--createTableMs", "20"]));
        }))
    }

    /// Its URL, `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port())
    }
}

/// It says so itself; that something listens could be somebody else.
fn is_ready(program: &Program) -> bool {
    program.output().contains("listening at") && listens(program.addr())
}
