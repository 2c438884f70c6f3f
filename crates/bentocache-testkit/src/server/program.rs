//! A server program that a test has to itself.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Starts the program as a group of processes of its own, says its process id, which is also the
/// number of the group, and waits for a line of standard input. When that ends without one, the
/// test is gone: nobody else kills the program and removes its directory, `$0`.
const GUARD: &str = r#"setsid "$@" </dev/null >"$0/output" 2>&1 &
echo $!; read -r line || { kill -s KILL -- "-$!"; rm -rf "$0"; }"#;

/// A program with a port and a directory, started, killed and started again.
#[derive(Debug)]
pub(crate) struct Program {
    port: u16,
    directory: PathBuf,
    command: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// How long it may take to start.
    patience: Duration,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    guard: Child,
    pid: String,
}

impl Program {
    /// A program that does not run yet, with an empty directory.
    pub(crate) fn new(name: &str, port: u16, patience: Duration) -> Self {
        let directory = std::env::temp_dir().join(crate::unique(&format!("bento-{name}-")));
        fs::create_dir_all(&directory).expect("a directory for the server");
        Self {
            port,
            directory,
            command: Vec::new(),
            environment: Vec::new(),
            patience,
            running: Mutex::new(None),
        }
    }

    /// Sets the command line. The placeholder `{dir}` is the directory.
    pub(crate) fn command<S: AsRef<str>>(&mut self, command: impl IntoIterator<Item = S>) {
        let directory = self.directory.display().to_string();
        let parts = command.into_iter().map(|part| part.as_ref().replace("{dir}", &directory));
        self.command = parts.collect();
    }

    pub(crate) fn environment(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.push((name, value.into()));
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Another program with the same environment.
    pub(crate) fn beside(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it; whether it came up.
    pub(crate) fn spawn(&self, mut is_ready: impl FnMut(&Self) -> bool) -> bool {
        let mut guard = self
            .beside("sh")
            .args(["-c", GUARD, &self.directory.display().to_string()])
            .args(&self.command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program `sh`");
        let mut pid = String::new();
        let said = guard.stdout.take().expect("a pipe");
        BufReader::new(said).read_line(&mut pid).expect("the server's process id");
        let running = Running { guard, pid: pid.trim().to_owned() };
        let start = Instant::now();
        while !is_ready(self) {
            if !is_alive(&running.pid) || start.elapsed() > self.patience {
                end(running);
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        *self.lock() = Some(running);
        true
    }

    /// Kills it at once, as a crash would, and starts it again on the same port.
    pub(crate) fn restart(&self, is_ready: impl Fn(&Self) -> bool) {
        self.kill();
        let start = Instant::now();
        while !self.spawn(&is_ready) {
            let said = self.output();
            assert!(start.elapsed() < self.patience, "the server does not start again:\n{said}");
        }
    }

    pub(crate) fn kill(&self) {
        if let Some(running) = self.lock().take() {
            end(running);
        }
    }

    /// Sends a signal to all its processes.
    pub(crate) fn signal(&self, name: &str) {
        let running = self.lock();
        let pid = &running.as_ref().expect("a running server").pid;
        assert!(kill(&[name, "--", &format!("-{pid}")]), "kill {name} -{pid}");
    }

    /// What it printed since it was last started.
    pub(crate) fn output(&self) -> String {
        let bytes = fs::read(self.directory.join("output")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Whether something answers at the address.
pub(crate) fn listens(addr: SocketAddr) -> bool {
    std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_ok()
}

fn end(mut running: Running) {
    // The process by itself, too: it may have had no time to found its group.
    kill(&["-KILL", "--", &running.pid, &format!("-{}", running.pid)]);
    // The guard has nothing left to do: the directory is still needed.
    if let Some(mut line) = running.guard.stdin.take() {
        let _ = line.write_all(b"done\n");
    }
    let _ = running.guard.wait();
}

/// Whether the process runs. One that has ended stays as a zombie until its guard ends.
fn is_alive(pid: &str) -> bool {
    let ps = Command::new("ps").args(["-o", "stat=", "-p", pid]).output();
    let state = ps.expect("the program `ps`").stdout;
    !state.is_empty() && !state.starts_with(b"Z")
}

fn kill(arguments: &[&str]) -> bool {
    let kill = Command::new("kill").args(arguments).stderr(Stdio::null()).status();
    kill.expect("the program `kill`").success()
}
