//! Private PostgreSQL servers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use super::{
    PATIENCE, Running, end, free_port, is_root, is_running, launch_guarded, signal, text, wait_for,
};

/// As the guard of Redis, but lets the server clean up: it has memory that outlives it.
const GUARD: &str = r#""$@" </dev/null >"$0/log" 2>&1 &
echo $!; read -r line || { kill -QUIT $!; wait $!; rm -rf "$0"; }"#;

/// The user and group `nobody`: the server refuses to run as root.
const NOBODY: &str = "65534";

/// A PostgreSQL server of its own on a free port of 127.0.0.1, with the user `postgres`, no
/// password, and the database `postgres`. It survives [`kill`](Self::kill) with its data, like any
/// database, but not a crash of the machine.
///
/// It needs Debian's packages `postgresql` and `postgresql-client`.
#[derive(Debug)]
pub struct PostgresServer {
    port: u16,
    directory: PathBuf,
    options: Vec<String>,
    running: Mutex<Option<Running>>,
}

impl PostgresServer {
    /// A new, empty server.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server with settings, such as `["max_connections=5"]`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with(settings: &[&str]) -> Self {
        let directory = std::env::temp_dir().join(crate::unique("bento-pg-"));
        fs::create_dir_all(&directory).expect("a directory for the server");
        make_files(&directory);
        for _ in 0..10 {
            let port = free_port();
            let mut options = vec!["-D".to_owned(), shown(&directory.join("data"))];
            options.extend(["-p".to_owned(), port.to_string(), "-k".to_owned(), shown(&directory)]);
            let fixed = [
                "listen_addresses=127.0.0.1",
                "fsync=off",
                "max_connections=300",
                "shared_buffers=32MB",
            ];
            for setting in fixed.iter().chain(settings) {
                options.extend(["-c".to_owned(), (*setting).to_owned()]);
            }
            let directory = directory.clone();
            let server = Self { port, directory, options, running: Mutex::new(None) };
            if server.spawn() {
                return server;
            }
            // Somebody else took the port in the meantime. The files are still good.
            std::mem::forget(server);
        }
        let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
        panic!("postgres does not start: {log}");
    }

    /// Whether it came up.
    fn spawn(&self) -> bool {
        let mut command = vec![shown(&program("postgres"))];
        command.extend(self.options.iter().cloned());
        let running = launch_guarded(GUARD, &self.directory, &as_nobody(command));
        let start = Instant::now();
        while self.try_sql("select 1").as_deref() != Some("1") {
            if !is_running(&running.pid) || start.elapsed() > PATIENCE {
                end(running);
                return false;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        *self.lock() = Some(running);
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Its URL, `postgres://postgres@127.0.0.1:<port>/postgres`.
    pub fn url(&self) -> String {
        self.url_by(self.addr())
    }

    /// The same by another address, such as that of a proxy.
    pub fn url_by(&self, addr: SocketAddr) -> String {
        format!("postgres://postgres@{addr}/postgres")
    }

    /// What `psql` prints for that SQL: a line for each row, columns with `|` in between.
    ///
    /// # Panics
    /// When the server refuses it.
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|| panic!("psql cannot run: {sql}"))
    }

    fn try_sql(&self, sql: &str) -> Option<String> {
        let output = Command::new(program("psql"))
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres"])
            .args(["-p", &self.port.to_string(), "-h", &shown(&self.directory), "-c", sql])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .expect("the program `psql`");
        output.status.success().then(|| text(&output))
    }

    /// Kills it at once, as a crash would. Its port stays free for [`restart`](Self::restart).
    pub fn kill(&self) {
        if let Some(running) = self.lock().take() {
            end(running);
        }
    }

    /// Starts it again on the same port, with its data, after [`kill`](Self::kill).
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&self) {
        self.kill();
        let start = Instant::now();
        // As long as processes of the old one end, it does not start.
        while !self.spawn() {
            assert!(start.elapsed() < PATIENCE, "the server does not start again");
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Some(running) = self.lock().take() {
            // Without a checkpoint, but with a clean-up.
            signal(&running.pid, "-QUIT");
            wait_for("the server to end", || !is_running(&running.pid));
            end(running);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn make_files(directory: &Path) {
    if is_root() {
        let owned = Command::new("chown").args([NOBODY, &shown(directory)]).status();
        assert!(owned.is_ok_and(|owned| owned.success()), "chown of {}", directory.display());
    }
    let data = shown(&directory.join("data"));
    let fixed = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N", "-D"];
    let mut command = vec![shown(&program("initdb"))];
    command.extend(fixed.map(str::to_owned));
    command.push(data);
    let command = as_nobody(command);
    let output = Command::new(&command[0]).args(&command[1..]).current_dir(directory).output();
    let output = output.expect("the program `initdb`, of Debian's package `postgresql`");
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
}

fn as_nobody(command: Vec<String>) -> Vec<String> {
    if !is_root() {
        return command;
    }
    let user = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"];
    user.map(str::to_owned).into_iter().chain(command).collect()
}

/// Where Debian keeps the programs, of the newest version, or by name only.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|version| {
            let number = version.file_name().to_str()?.parse::<u32>().ok()?;
            Some((number, version.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.exists())
        .max();
    newest.map_or_else(|| PathBuf::from(name), |(_, path)| path)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
