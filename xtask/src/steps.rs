//! Runs steps one after the other and prints a summary of them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// How a step ended.
pub(crate) enum Status {
    Passed,
    Failed(String),
    /// The step cannot run on this machine. That is no failure, but the summary names it.
    NotRun(String),
}

pub(crate) struct Steps {
    started: Instant,
    done: Vec<(String, Duration, Status)>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), done: Vec::new() }
    }

    /// Runs a step.
    pub(crate) fn step(&mut self, name: &str, step: impl FnOnce() -> Status) {
        println!("\n==> {name}");
        let start = Instant::now();
        let status = step();
        println!("==> {name}: {}", text(&status));
        self.done.push((name.to_owned(), start.elapsed(), status));
    }

    /// Runs a step that lists faults. It passes without any.
    pub(crate) fn check(
        &mut self,
        name: &str,
        check: impl FnOnce() -> Result<Vec<String>, String>,
    ) {
        self.step(name, || match check() {
            Ok(faults) if faults.is_empty() => Status::Passed,
            Ok(faults) => {
                faults.iter().for_each(|fault| println!("    {fault}"));
                Status::Failed(format!("{} faults; the first: {}", faults.len(), faults[0]))
            }
            Err(error) => Status::Failed(error),
        });
    }

    /// Runs a cargo command as a step.
    pub(crate) fn cargo(&mut self, name: &str, args: &[&str]) {
        self.step(name, || shown(&mut cargo(args)));
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.done.iter().any(|(.., status)| matches!(status, Status::Failed(_)))
    }

    pub(crate) fn summary(&self) -> ExitCode {
        println!("\n==> Summary");
        for (name, took, status) in &self.done {
            println!("    {name:24} {:>8}  {}", time(*took), text(status));
        }
        let word = if self.has_failed() { "FAILED" } else { "Passed" };
        println!("==> {word} in {}.", time(self.started.elapsed()));
        ExitCode::from(u8::from(self.has_failed()))
    }
}

fn text(status: &Status) -> String {
    match status {
        Status::Passed => "passed".to_owned(),
        Status::Failed(why) => format!("FAILED: {}", why.lines().next().unwrap_or_default()),
        Status::NotRun(why) => format!("NOT RUN: {why}"),
    }
}

fn time(took: Duration) -> String {
    format!("{} m {:02} s", took.as_secs() / 60, took.as_secs() % 60)
}

/// The root of the workspace, wherever the command is called.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// A cargo command in the root of the workspace.
pub(crate) fn cargo(args: &[&str]) -> Command {
    // By name, not by the variable `CARGO`: only rustup's proxy understands `+nightly`.
    let mut command = Command::new("cargo");
    command.args(args).current_dir(root());
    command
}

/// Runs a command that prints for itself.
pub(crate) fn shown(command: &mut Command) -> Status {
    println!("    {command:?}");
    match command.status() {
        Ok(status) if status.success() => Status::Passed,
        Ok(status) => Status::Failed(format!("{command:?}: {status}")),
        Err(error) => Status::Failed(format!("{command:?}: {error}")),
    }
}

/// The output of a command.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end()))
}
