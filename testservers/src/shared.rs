//! Servers that all test processes of one run share.
//!
//! nextest runs each test in a process of its own, and a server takes longer to start than most
//! tests take. So the first test that asks for a shared server starts it and writes down where it is,
//! and the others use it. A small shell ends it when nextest has ended.

use std::fs::{self, File};
use std::os::unix::process::parent_id;
use std::path::PathBuf;

use super::program::Program;

/// A server that consists of programs.
pub trait Shared: Sized {
    #[doc(hidden)]
    fn programs(&self) -> Vec<&Program>;

    #[doc(hidden)]
    fn of(programs: Vec<Program>) -> Self;
}

/// The server of that name, which `start` starts if no other test of this run of nextest has done so.
/// Without nextest, it is this process's own.
///
/// Tests must neither break a shared server nor look at anything in it but their own data.
///
/// # Panics
/// When it does not start.
pub fn shared<S: Shared>(name: &str, start: impl FnOnce() -> S) -> S {
    let Ok(run) = std::env::var("NEXTEST_RUN_ID") else { return start() };
    let directory = std::env::temp_dir().join(format!("bento-run-{run}"));
    fs::create_dir_all(&directory).expect("a directory for the run");
    let lock = File::create(directory.join(format!("{name}.lock"))).expect("a file");
    // Given back when the file is closed.
    lock.lock().expect("a lock of a file");
    let register = directory.join(name);
    if let Some(programs) = read(&register)
        && programs.iter().all(Program::is_running)
    {
        return S::of(programs);
    }
    let server = start();
    let lines: Vec<String> = server
        .programs()
        .into_iter()
        .map(|program| {
            program.keep_until_end_of(parent_id(), &directory);
            program.describe()
        })
        .collect();
    fs::write(&register, lines.join("\n")).expect("a file");
    let programs = read(&register).expect("what was just written");
    // Its programs belong to the run now.
    std::mem::forget(server);
    S::of(programs)
}

fn read(register: &PathBuf) -> Option<Vec<Program>> {
    let text = fs::read_to_string(register).ok()?;
    text.lines().map(Program::described).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{RedisServer, wait_for};

    #[test]
    fn a_shared_server_is_one_for_all_and_outlives_a_handle() {
        let first = shared("shared-test", RedisServer::start);
        if std::env::var("NEXTEST_RUN_ID").is_err() {
            return assert_eq!(first.cli(&["ping"]), "PONG");
        }
        let second: RedisServer = shared("shared-test", || panic!("it runs already"));
        assert_eq!(first.addr(), second.addr());
        drop(first);
        assert_eq!(second.cli(&["ping"]), "PONG");
    }

    #[test]
    fn a_shared_server_ends_with_the_run() {
        let run = std::env::temp_dir().join(bentocache_testkit::unique("bento-run-"));
        fs::create_dir_all(&run).unwrap();
        let mut nextest = Command::new("sleep").arg("60").spawn().unwrap();
        let server = RedisServer::start();
        let program = server.programs()[0];
        program.keep_until_end_of(nextest.id(), &run);
        let other = Program::described(&program.describe()).unwrap();
        std::mem::forget(server);
        assert!(other.is_running());
        nextest.kill().unwrap();
        nextest.wait().unwrap();
        wait_for("the end of the server", || !other.is_running());
        wait_for("the end of its directory", || !other.directory().exists() && !run.exists());
    }
}
