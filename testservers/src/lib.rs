//! Servers that tests start for themselves, such as Redis and PostgreSQL, and a proxy whose connections
//! fail on demand.
//!
//! Each server has its own free port and directory. It ends when its handle is dropped, and also
//! when the test process ends in any other way, a kill included: a small shell stands beside it
//! and kills it when the pipe from the test process closes. So a handle may live in a `static`
//! that many tests share.
//!
//! ```no_run
//! use testservers::RedisServer;
//!
//! let server = RedisServer::start();
//! assert_eq!(server.cli(&["set", "greeting", "hello"]), "OK");
//! server.kill();
//! server.restart();
//! assert_eq!(server.cli(&["get", "greeting"]), "");
//! ```
//!
//! [`shared`] gives all test processes of a run one server.
//!
//! The calls block for some milliseconds, which a test on a multi-threaded runtime can bear. They
//! need the server's program, which is named with each, and for Redis also `redis-cli`, from
//! Debian's package `redis-tools`; and the usual `sh`, `ps`, `kill` and `setsid`. They panic when
//! something is missing.

// Test code: a panic with the failed call in it is exactly what a test should give.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

mod certificates;
mod dynalite;
mod mariadb;
mod nats;
mod npm;
mod pgbouncer;
mod postgres;
mod program;
mod proxy;
mod rabbitmq;
mod redis;
mod shared;

pub use certificates::Certificates;
pub use dynalite::Dynalite;
pub use mariadb::MariaDbServer;
pub use nats::{NatsCluster, NatsServer};
pub use npm::npm_install;
pub use pgbouncer::PgBouncer;
pub use postgres::PostgresServer;
pub use proxy::FaultProxy;
pub use rabbitmq::RabbitMqServer;
pub use redis::{RedisCluster, RedisSentinel, RedisServer};
pub use shared::{Shared, shared};

/// How long a server may take to start or a cluster to agree.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process may do anything, which some servers do not like.
fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("the program `id`");
    text(&output) == "0"
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A port that is free, and whose cluster port, 10,000 above, is too.
fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let both = if port < 55_000 { port + 10_000 } else { port - 10_000 };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, both)).is_ok() {
            return port.min(both);
        }
    }
}

/// Asks until the answer is yes.
///
/// # Panics
/// After a minute.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
