//! Private MariaDB servers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use super::{GUARD, PATIENCE, Running, end, free_port, is_root, is_running, launch_guarded, text};

/// A MariaDB server of its own on a free port of 127.0.0.1, with the user `root`, no password, and
/// the database `test`. It survives [`kill`](Self::kill) with its data, like any database, but not
/// a crash of the machine.
///
/// It needs Debian's packages `mariadb-server` and `mariadb-client`.
#[derive(Debug)]
pub struct MariaDbServer {
    port: u16,
    directory: PathBuf,
    arguments: Vec<String>,
    running: Mutex<Option<Running>>,
}

impl MariaDbServer {
    /// A new, empty server.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server with more options, such as `["--max-allowed-packet=1M"]`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with(options: &[&str]) -> Self {
        let directory = std::env::temp_dir().join(crate::unique("bento-maria-"));
        fs::create_dir_all(&directory).expect("a directory for the server");
        make_files(&directory);
        for _ in 0..10 {
            let port = free_port();
            let mut arguments = vec![
                "--no-defaults".to_owned(),
                format!("--datadir={}", directory.join("data").display()),
                format!("--socket={}", directory.join("s").display()),
                format!("--tmpdir={}", directory.display()),
                format!("--port={port}"),
            ];
            let fixed = [
                "--bind-address=127.0.0.1",
                // As Debian has it.
                "--character-set-server=utf8mb4",
                "--innodb-flush-log-at-trx-commit=2",
                "--innodb-buffer-pool-size=64M",
                "--innodb-use-native-aio=0",
                "--max-connections=300",
            ];
            arguments.extend(fixed.iter().chain(options).map(|option| (*option).to_owned()));
            if is_root() {
                arguments.push("--user=root".to_owned());
            }
            let directory = directory.clone();
            let server = Self { port, directory, arguments, running: Mutex::new(None) };
            if server.spawn() {
                server.sql("create database if not exists test");
                return server;
            }
            // Somebody else took the port in the meantime. The files are still good.
            std::mem::forget(server);
        }
        panic!("mariadbd does not start; try it by hand");
    }

    /// Whether it came up.
    fn spawn(&self) -> bool {
        let mut command = vec![program("mariadbd")];
        command.extend(self.arguments.iter().cloned());
        let running = launch_guarded(GUARD, &self.directory, &command);
        let start = Instant::now();
        while self.try_sql("select 1").as_deref() != Some("1") {
            if !is_running(&running.pid) || start.elapsed() > PATIENCE {
                end(running);
                return false;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
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

    /// Its URL, `mysql://root@127.0.0.1:<port>/test`.
    pub fn url(&self) -> String {
        self.url_by(self.addr())
    }

    /// The same by another address, such as that of a proxy.
    pub fn url_by(&self, addr: SocketAddr) -> String {
        format!("mysql://root@{addr}/test")
    }

    /// What the client prints for that SQL: a line for each row, columns with tabs in between.
    ///
    /// # Panics
    /// When the server refuses it.
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|| panic!("the client `mariadb` cannot run: {sql}"))
    }

    fn try_sql(&self, sql: &str) -> Option<String> {
        let output = Command::new("mariadb")
            .args(["--no-defaults", "--user=root", "--skip-column-names", "--batch"])
            .arg(format!("--socket={}", self.directory.join("s").display()))
            .args(["--execute", sql])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .expect("the program `mariadb`, of Debian's package `mariadb-client`");
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
        while !self.spawn() {
            assert!(start.elapsed() < PATIENCE, "the server does not start again");
        }
    }
}

impl Drop for MariaDbServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn make_files(directory: &Path) {
    let data = directory.join("data");
    let mut said = String::new();
    // On a busy machine it fails now and then.
    for _ in 0..3 {
        let mut command = Command::new("mariadb-install-db");
        command
            .arg("--no-defaults")
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--tmpdir={}", directory.display()))
            .args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
        if is_root() {
            command.arg("--user=root");
        }
        let output = command.stdin(Stdio::null()).output();
        let output = output.expect("`mariadb-install-db`, of Debian's package `mariadb-server`");
        if output.status.success() {
            return;
        }
        said = format!("{}{}", String::from_utf8_lossy(&output.stderr), text(&output));
        let _ = fs::remove_dir_all(&data);
    }
    panic!("mariadb-install-db: {said}");
}

/// Debian keeps the server where only root's path leads.
fn program(name: &str) -> String {
    let path = format!("/usr/sbin/{name}");
    if Path::new(&path).exists() { path } else { name.to_owned() }
}
