//! A server program that a test has to itself.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{free_port, wait_for};

/// Starts the program as a group of processes of its own, says its process id, which is also the
/// number of the group, and waits for a line of standard input. When that ends without one, the
/// test is gone: nobody else ends the program and removes its directory, `$0`.
const GUARD: &str = r#"setsid "$@" </dev/null >"$0/output" 2>&1 &
echo $!; read -r line || { kill -s "$BENTO_END" -- "-$!"; wait $!; rm -rf "$0"; }"#;

/// Waits for the end of the process `$1`, then ends the group `$3` by the signal `$2`, and removes the
/// directories `$4` and `$5`.
const KEEPER: &str = r#"while kill -0 "$1" 2>/dev/null; do sleep 1; done
kill -s "$2" -- "-$3"; while kill -0 -- "-$3" 2>/dev/null; do sleep 1; done; rm -rf "$4" "$5""#;

/// How long a port may stay taken by a server that was killed.
const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// A program with a port and a directory, started, killed and started again.
#[derive(Debug)]
pub struct Program {
    port: u16,
    directory: PathBuf,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    /// How long it may take to start.
    patience: Duration,
    /// Whether it runs and is not somebody else's, which may have taken the port.
    is_ready: fn(&Self) -> bool,
    /// The signal that ends it when its handle is dropped.
    end: &'static str,
    /// Whether it outlives its handle, because other processes use it.
    is_shared: bool,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    /// None for a program that another process started.
    guard: Option<Child>,
    pid: String,
}

/// What every server can be told, for a type with a [`Program`] in that field.
macro_rules! controls {
    ($server:ident, $program:tt) => {
        impl $server {
            /// Its address.
            pub fn addr(&self) -> std::net::SocketAddr {
                self.$program.addr()
            }

            /// Kills it at once, as a crash would. Its port stays free for
            /// [`restart`](Self::restart).
            pub fn kill(&self) {
                self.$program.kill();
            }

            /// Starts it again on the same port, with what it had stored, if it stores anything.
            ///
            /// # Panics
            /// When it does not start.
            pub fn restart(&self) {
                self.$program.restart();
            }

            /// Stops its processes, so that connections stay open and nothing answers.
            ///
            /// # Panics
            /// When it does not run.
            pub fn freeze(&self) {
                self.$program.stop();
            }

            /// Lets it go on after [`freeze`](Self::freeze).
            ///
            /// # Panics
            /// When it does not run.
            pub fn thaw(&self) {
                self.$program.signal("-CONT");
            }
        }
    };
}
pub(crate) use controls;

impl Program {
    /// Starts a program on a free port, or on another one if somebody takes it in the meantime.
    pub(crate) fn start(
        name: &str,
        patience: Duration,
        is_ready: fn(&Self) -> bool,
        prepare: impl Fn(&mut Self),
    ) -> Self {
        let mut said = String::new();
        for _ in 0..10 {
            let directory =
                std::env::temp_dir().join(bentocache_testkit::unique(&format!("bento-{name}-")));
            fs::create_dir_all(&directory).expect("a directory for the server");
            let mut program = Self {
                port: free_port(),
                directory,
                command: Vec::new(),
                environment: Vec::new(),
                patience,
                is_ready,
                end: "KILL",
                is_shared: false,
                running: Mutex::new(None),
            };
            prepare(&mut program);
            if program.spawn() {
                return program;
            }
            said = program.output();
        }
        panic!("{name} does not start:\n{said}");
    }

    /// Sets the command line. The placeholder `{dir}` is the directory.
    pub(crate) fn command<S: AsRef<str>>(&mut self, command: impl IntoIterator<Item = S>) {
        let directory = self.directory.display().to_string();
        let parts = command.into_iter().map(|part| part.as_ref().replace("{dir}", &directory));
        self.command = parts.collect();
    }

    pub(crate) fn environment(&mut self, name: &str, value: impl Into<String>) {
        self.environment.push((name.to_owned(), value.into()));
    }

    /// Sets the signal that ends it when its handle is dropped or the test is gone, for a program
    /// with something to clean up; `KILL` otherwise.
    pub(crate) fn end_by(&mut self, signal: &'static str) {
        self.end = signal;
    }

    /// Whether it was started, and not killed since.
    pub(crate) fn is_started(&self) -> bool {
        self.lock().is_some()
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
    fn spawn(&self) -> bool {
        let mut guard = self
            .beside("sh")
            .args(["-c", GUARD, &self.directory.display().to_string()])
            .args(&self.command)
            .env("BENTO_END", self.end)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program `sh`");
        let mut pid = String::new();
        let said = guard.stdout.take().expect("a pipe");
        BufReader::new(said).read_line(&mut pid).expect("the server's process id");
        let running = Running { guard: Some(guard), pid: pid.trim().to_owned() };
        let start = Instant::now();
        while !(self.is_ready)(self) {
            if !is_alive(&running.pid) || start.elapsed() > self.patience {
                end(running);
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        *self.lock() = Some(running);
        true
    }

    /// Lets it live until that process ends instead of this one.
    #[allow(clippy::zombie_processes, reason = "the keeper outlives this process")]
    pub(crate) fn keep_until_end_of(&self, process: u32, run: &Path) {
        let mut running = self.lock();
        let running = running.as_mut().expect("a running server");
        let mut keeper = Command::new("setsid");
        keeper
            .args(["sh", "-c", KEEPER, "sh", &process.to_string(), self.end, &running.pid])
            .args([&self.directory, run])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program `setsid`");
        running.guard.take().into_iter().for_each(dismiss);
    }

    /// One line by which another process finds it.
    pub(crate) fn describe(&self) -> String {
        let running = self.lock();
        let pid = &running.as_ref().expect("a running server").pid;
        let mut parts =
            vec![self.port.to_string(), self.directory.display().to_string(), pid.clone()];
        for (name, value) in &self.environment {
            parts.extend([name.clone(), value.clone()]);
        }
        parts.join("\t")
    }

    /// The program of that line, which stays when the handle is dropped.
    pub(crate) fn described(line: &str) -> Option<Self> {
        let mut parts = line.split('\t').map(str::to_owned);
        let (port, directory, pid) = (parts.next()?, parts.next()?, parts.next()?);
        let mut environment = Vec::new();
        while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            environment.push((name, value));
        }
        Some(Self {
            port: port.parse().ok()?,
            directory: directory.into(),
            command: Vec::new(),
            environment,
            patience: Duration::ZERO,
            is_ready: |_| true,
            end: "KILL",
            is_shared: true,
            running: Mutex::new(Some(Running { guard: None, pid })),
        })
    }

    /// Whether its first process runs.
    pub(crate) fn is_running(&self) -> bool {
        self.lock().as_ref().is_some_and(|running| is_alive(&running.pid))
    }

    /// Kills it at once, as a crash would, and starts it again on the same port.
    pub(crate) fn restart(&self) {
        self.kill();
        let start = Instant::now();
        // As long as processes of the old one end, it may not start.
        while !self.spawn() {
            let said = self.output();
            assert!(start.elapsed() < self.patience, "the server does not start again:\n{said}");
        }
    }

    pub(crate) fn kill(&self) {
        let Some(running) = self.lock().take() else { return };
        end(running);
        // The port is given back when the kernel gets to it.
        let start = Instant::now();
        while listens(self.addr()) && start.elapsed() < PORT_PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal to all its processes.
    pub(crate) fn signal(&self, name: &str) {
        let running = self.lock();
        let pid = &running.as_ref().expect("a running server").pid;
        assert!(kill(&[name, "--", &format!("-{pid}")]), "kill {name} -{pid}");
    }

    /// Stops all its processes, and waits until its first one stands still: a thread of it that has
    /// not heard of the signal yet may go on answering.
    pub(crate) fn stop(&self) {
        self.signal("-STOP");
        let pid = self.lock().as_ref().expect("a running server").pid.clone();
        wait_for("the server to stop", || state(&pid).starts_with('T'));
    }

    /// What it printed since it was last started.
    pub(crate) fn output(&self) -> String {
        let bytes = fs::read(self.directory.join("output")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.is_shared {
            return;
        }
        let running = self.lock().take();
        if let Some(running) = running {
            if self.end != "KILL" {
                kill(&["-s", self.end, "--", &format!("-{}", running.pid)]);
                wait_for("the server to end", || !is_alive(&running.pid));
            }
            end(running);
        }
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
    running.guard.take().into_iter().for_each(dismiss);
}

/// Ends the guard, which then leaves its program alone.
fn dismiss(mut guard: Child) {
    if let Some(mut line) = guard.stdin.take() {
        let _ = line.write_all(b"done\n");
    }
    let _ = guard.wait();
}

/// Whether the process runs. One that has ended stays as a zombie until its guard ends.
fn is_alive(pid: &str) -> bool {
    let state = state(pid);
    !state.is_empty() && !state.starts_with('Z')
}

/// The state of a process in the letters of `ps`; nothing if there is none.
fn state(pid: &str) -> String {
    let ps = Command::new("ps").args(["-o", "stat=", "-p", pid]).output();
    String::from_utf8_lossy(&ps.expect("the program `ps`").stdout).trim().to_owned()
}

fn kill(arguments: &[&str]) -> bool {
    let kill = Command::new("kill").args(arguments).stderr(Stdio::null()).status();
    kill.expect("the program `kill`").success()
}
