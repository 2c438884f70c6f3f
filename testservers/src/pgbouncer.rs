//! Private poolers before PostgreSQL.

use std::fs;

use super::postgres::{as_nobody, give_to_nobody};
use super::program::{Program, controls, listens};
use super::{PATIENCE, PostgresServer};

/// Where Debian keeps the program.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// A PgBouncer in transaction mode before a [`PostgresServer`], on a free port of 127.0.0.1, with
/// four connections to the server.
///
/// It needs Debian's package `pgbouncer`.
#[derive(Debug)]
pub struct PgBouncer(Program);

controls!(PgBouncer, 0);

impl PgBouncer {
    /// A pooler before that server.
    ///
    /// # Panics
    /// When it does not start.
    pub fn before(server: &PostgresServer) -> Self {
        let target = server.addr().port();
        Self(Program::start("pgbouncer", PATIENCE, is_ready, |program| {
            let directory = program.directory().to_owned();
            let settings = format!(
                "[databases]\n* = host=127.0.0.1 port={target}\n\n[pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
                 auth_type = trust\nauth_file = {}\npool_mode = transaction\n\
                 default_pool_size = 4\nignore_startup_parameters = extra_float_digits\n",
                program.port(),
                directory.join("users").display(),
            );
            fs::write(directory.join("users"), "\"postgres\" \"\"\n").expect("a file of users");
            fs::write(directory.join("pgbouncer.ini"), settings).expect("a configuration");
            give_to_nobody(&directory);
            program.command(as_nobody(vec![PROGRAM.to_owned(), "{dir}/pgbouncer.ini".to_owned()]));
        }))
    }

    /// Its URL, `postgres://postgres@127.0.0.1:<port>/postgres`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.addr())
    }
}

/// It says so itself; that something listens could be somebody else.
fn is_ready(program: &Program) -> bool {
    program.output().contains("process up") && listens(program.addr())
}
