//! Private MariaDB servers.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use super::program::{Program, controls};
use super::{PATIENCE, is_root, text};

/// A MariaDB server of its own on a free port of 127.0.0.1, with the user `root`, no password, and
/// the database `test`. It survives [`kill`](Self::kill) with its data, like any database, but not
/// a crash of the machine.
///
/// It needs Debian's packages `mariadb-server` and `mariadb-client`. With the path of MySQL's
/// `mysqld` in the environment variable `BENTOCACHE_MYSQLD`, that server is run in its place.
#[derive(Debug)]
pub struct MariaDbServer(Program);

controls!(MariaDbServer, 0);

impl super::Shared for MariaDbServer {
    fn programs(&self) -> Vec<&Program> {
        vec![&self.0]
    }

    fn of(programs: Vec<Program>) -> Self {
        Self(programs.into_iter().next().expect("a program"))
    }
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
        let is_ready = |program: &Program| sql(program, "select 1").as_deref() == Some("1");
        let mysqld = env::var("BENTOCACHE_MYSQLD").ok();
        let server = Self(Program::start("mariadbd", PATIENCE, is_ready, |server| {
            make_files(server.directory(), mysqld.as_deref(), options);
            let name = mysqld.clone().unwrap_or_else(|| program("mariadbd"));
            let port = format!("--port={}", server.port());
            let fixed = [
                &*name,
                "--no-defaults",
                "--datadir={dir}/data",
                "--socket={dir}/s",
                "--tmpdir={dir}",
                &port,
                "--bind-address=127.0.0.1",
                // As Debian has it.
                "--character-set-server=utf8mb4",
                "--innodb-flush-log-at-trx-commit=2",
                "--innodb-buffer-pool-size=64M",
                "--innodb-use-native-aio=0",
                "--max-connections=300",
            ];
            let user = is_root().then_some("--user=root");
            server.command(fixed.into_iter().chain(options.iter().copied()).chain(user));
        }));
        server.sql("create database if not exists test");
        server
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
    pub fn sql(&self, text: &str) -> String {
        sql(&self.0, text).unwrap_or_else(|| panic!("the client `mariadb` cannot run: {text}"))
    }
}

/// What the client prints, over the socket in the server's own directory.
fn sql(server: &Program, sql: &str) -> Option<String> {
    let output = Command::new("mariadb")
        .args(["--no-defaults", "--user=root", "--skip-column-names", "--batch"])
        .arg(format!("--socket={}", server.directory().join("s").display()))
        .args(["--execute", sql])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .expect("the program `mariadb`, of Debian's package `mariadb-client`");
    output.status.success().then(|| text(&output))
}

fn make_files(directory: &Path, mysqld: Option<&str>, options: &[&str]) {
    let data = directory.join("data");
    let mut said = String::new();
    // On a busy machine it fails now and then.
    for _ in 0..3 {
        let mut command = Command::new(mysqld.unwrap_or("mariadb-install-db"));
        command
            .arg("--no-defaults")
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--tmpdir={}", directory.display()));
        match mysqld {
            Some(_) => command.arg("--initialize-insecure"),
            None => command.args(["--auth-root-authentication-method=normal", "--skip-test-db"]),
        };
        // The files are made for one size of pages.
        command.args(options.iter().filter(|option| option.contains("page-size")));
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
    panic!("the files of the server cannot be made: {said}");
}

/// Debian keeps the server where only root's path leads.
fn program(name: &str) -> String {
    let path = format!("/usr/sbin/{name}");
    if Path::new(&path).exists() { path } else { name.to_owned() }
}
