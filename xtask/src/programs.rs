//! The servers and programs that the tests start.

use std::process::Command;

use crate::steps::{Status, output, shown};

/// Programs, the argument that prints their version, and the Debian packages that bring them.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("redis-server", "--version", "redis-server"),
    ("redis-cli", "--version", "redis-tools"),
    ("nats-server", "--version", "nats-server"),
    ("rabbitmqctl", "--version", "rabbitmq-server"),
    ("psql", "--version", "postgresql postgresql-client"),
    ("/usr/sbin/pgbouncer", "--version", "pgbouncer"),
    ("/usr/sbin/mariadbd", "--version", "mariadb-server mariadb-client"),
    ("openssl", "version", "openssl"),
    ("node", "--version", "nodejs"),
    ("npm", "--version", "npm"),
];

/// Finds the programs, and installs the missing ones if `install` is set.
pub(crate) fn run(install: bool) -> Status {
    let missing = || {
        let answers = |name, version| output(Command::new(name).arg(version)).is_ok();
        PROGRAMS.iter().filter(move |(name, version, _)| !answers(name, version))
    };
    let packages: Vec<&str> = missing().flat_map(|(.., packages)| packages.split(' ')).collect();
    if packages.is_empty() {
        return Status::Passed;
    }
    let by_hand = format!("apt-get install {}", packages.join(" "));
    if !install {
        return Status::Failed(format!(
            "programs are missing; on Debian: {by_hand}; or run everything in a container: docker \
             compose run --rm tests"
        ));
    }
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        shown(apt.args(args).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
    for args in [vec!["update", "--quiet"], [&install[..], &packages].concat()] {
        if let failed @ Status::Failed(_) = apt(&args) {
            return failed;
        }
    }
    let still = |(name, ..): &(_, _, _)| format!("{name} is still missing after {by_hand}");
    missing().next().map_or(Status::Passed, |program| Status::Failed(still(program)))
}
