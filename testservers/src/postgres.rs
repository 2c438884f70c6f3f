//! Private PostgreSQL servers.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::program::{Program, controls};
use super::{PATIENCE, is_root, text};

/// The user and group `nobody`: the server refuses to run as root.
const NOBODY: &str = "65534";

/// A PostgreSQL server of its own on a free port of 127.0.0.1, with the user `postgres`, no
/// password, and the database `postgres`. It survives [`kill`](Self::kill) with its data, like any
/// database, but not a crash of the machine.
///
/// It needs Debian's packages `postgresql` and `postgresql-client`.
#[derive(Debug)]
pub struct PostgresServer(Program);

controls!(PostgresServer, 0);

impl super::Shared for PostgresServer {
    fn programs(&self) -> Vec<&Program> {
        vec![&self.0]
    }

    fn of(programs: Vec<Program>) -> Self {
        Self(programs.into_iter().next().expect("a program"))
    }
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
        Self::launch(settings, make_files)
    }

    /// A standby of that server: it has what that one has, follows it, and takes no writes.
    ///
    /// # Panics
    /// When it does not start.
    pub fn standby_of(primary: &Self) -> Self {
        let port = primary.addr().port().to_string();
        Self::launch(&[], |directory| {
            let data = shown(&directory.join("data"));
            let copy = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-R", "-c", "fast", "-D"];
            run(directory, "pg_basebackup", &copy, data);
        })
    }

    fn launch(settings: &[&str], make_files: impl Fn(&Path)) -> Self {
        let is_ready = |program: &Program| sql(program, "select 1").as_deref() == Some("1");
        Self(Program::start("postgres", PATIENCE, is_ready, |server| {
            give_to_nobody(server.directory());
            make_files(server.directory());
            let mut command = vec![shown(&program("postgres"))];
            let port = server.port().to_string();
            command.extend(["-D", "{dir}/data", "-p", &port, "-k", "{dir}"].map(str::to_owned));
            let fixed = [
                "listen_addresses=127.0.0.1",
                "fsync=off",
                "max_connections=300",
                "shared_buffers=32MB",
            ];
            for setting in fixed.iter().chain(settings) {
                command.extend(["-c".to_owned(), (*setting).to_owned()]);
            }
            server.command(as_nobody(command));
            // Without a checkpoint, but with a clean-up: it has memory that outlives it.
            server.end_by("QUIT");
        }))
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
    pub fn sql(&self, text: &str) -> String {
        sql(&self.0, text).unwrap_or_else(|| panic!("psql cannot run: {text}"))
    }
}

/// What `psql` prints, over the socket in the server's own directory.
fn sql(server: &Program, sql: &str) -> Option<String> {
    let output = Command::new(program("psql"))
        .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres"])
        .args(["-p", &server.port().to_string(), "-h", &shown(server.directory()), "-c", sql])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .expect("the program `psql`");
    output.status.success().then(|| text(&output))
}

fn make_files(directory: &Path) {
    let data = shown(&directory.join("data"));
    let fixed = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N", "-D"];
    run(directory, "initdb", &fixed, data);
}

/// Runs a program that makes the files of a server.
fn run(directory: &Path, name: &str, arguments: &[&str], data: String) {
    let mut command = vec![shown(&program(name))];
    command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    command.push(data);
    let command = as_nobody(command);
    let output = Command::new(&command[0]).args(&command[1..]).current_dir(directory).output();
    let output = output.unwrap_or_else(|_| panic!("`{name}`, of Debian's package `postgresql`"));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Lets the user who is nobody write there, if the tests run as root.
pub(crate) fn give_to_nobody(directory: &Path) {
    if is_root() {
        let owned = Command::new("chown").args([NOBODY, &shown(directory)]).status();
        assert!(owned.is_ok_and(|owned| owned.success()), "chown of {}", directory.display());
    }
}

pub(crate) fn as_nobody(command: Vec<String>) -> Vec<String> {
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
