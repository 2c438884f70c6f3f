//! The programs that the tests start: found, or installed, or those of a container.

use std::process::Command;

use crate::run::{Runner, Status};

/// A program, the Debian packages that bring it, and what it is for.
struct Program {
    name: &'static str,
    packages: &'static [&'static str],
    purpose: &'static str,
}

const PROGRAMS: &[Program] = &[
    Program {
        name: "redis-server",
        packages: &["redis-server"],
        purpose: "servers that tests start on free ports, break and end",
    },
    Program { name: "redis-cli", packages: &["redis-tools"], purpose: "other writers" },
    Program {
        name: "nats-server",
        packages: &["nats-server"],
        purpose: "servers that tests start on free ports, break and end",
    },
    Program {
        name: "rabbitmqctl",
        packages: &["rabbitmq-server"],
        purpose: "servers that tests start on free ports, break and end",
    },
    Program {
        name: "psql",
        packages: &["postgresql", "postgresql-client"],
        purpose: "servers that tests start on free ports, break and end",
    },
    Program {
        name: "/usr/sbin/pgbouncer",
        packages: &["pgbouncer"],
        purpose: "a pooler between the tests and PostgreSQL",
    },
    Program {
        name: "/usr/sbin/mariadbd",
        packages: &["mariadb-server", "mariadb-client"],
        purpose: "servers that tests start on free ports, break and end",
    },
    Program { name: "openssl", packages: &["openssl"], purpose: "certificates for tests of TLS" },
    Program { name: "node", packages: &["nodejs"], purpose: "the Node library beside this one" },
    Program { name: "npm", packages: &["npm"], purpose: "the Node library beside this one" },
];

/// Finds the programs, installs what is missing where that is possible, and says what it did.
pub(crate) fn run(runner: &Runner) -> Status {
    let missing: Vec<_> = PROGRAMS.iter().filter(|program| !shown(runner, program)).collect();
    if missing.is_empty() {
        return Status::Passed("all found".to_owned());
    }
    let mut packages: Vec<_> =
        missing.iter().flat_map(|program| program.packages).copied().collect();
    packages.dedup();
    let by_hand = format!("apt-get install {}", packages.join(" "));
    if !can_install(runner) {
        return Status::Failed(format!(
            "install what is missing, on Debian: {by_hand}; or install docker compose, and the \
             tests run in a container"
        ));
    }
    println!("    installing: {by_hand}");
    let mut update = Command::new("apt-get");
    update.args(["update", "--quiet"]);
    let mut install = Command::new("apt-get");
    install.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&packages);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    for command in [update, install] {
        if let failed @ Status::Failed(_) = runner.shown(command) {
            return failed;
        }
    }
    let still: Vec<_> = missing.into_iter().filter(|program| !shown(runner, program)).collect();
    match still.first() {
        Some(program) => Status::Failed(format!("{} is still missing", program.name)),
        None => Status::Passed(format!("installed {}", packages.join(", "))),
    }
}

/// Whether a program is missing that only a container can bring.
pub(crate) fn needs_container(runner: &Runner) -> bool {
    PROGRAMS.iter().any(|program| version(runner, program).is_none())
        && !can_install(runner)
        && answers(runner, "docker", &["compose", "version"])
}

/// Runs the same command in the container of `compose.yaml`.
pub(crate) fn in_container(runner: &Runner, options: &[&str]) -> Status {
    let mut docker = Command::new("docker");
    docker.current_dir(runner.root());
    docker.args(["compose", "run", "--rm", "tests"]).args(options);
    runner.shown(docker)
}

/// Prints whether the program is there.
fn shown(runner: &Runner, program: &Program) -> bool {
    let Program { name, purpose, .. } = program;
    let found = version(runner, program);
    let is_there = found.is_some();
    println!("    {name:18} {}", found.unwrap_or_else(|| format!("missing: {purpose}")));
    is_there
}

/// The first line of what the program says of its version.
fn version(runner: &Runner, program: &Program) -> Option<String> {
    let mut command = Command::new(program.name);
    command.arg(if program.name == "openssl" { "version" } else { "--version" });
    let said = runner.output(command).ok()?;
    Some(said.lines().next().unwrap_or_default().trim().to_owned())
}

fn can_install(runner: &Runner) -> bool {
    is_root(runner) && answers(runner, "apt-get", &["--version"])
}

fn answers(runner: &Runner, program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args);
    runner.output(command).is_ok()
}

fn is_root(runner: &Runner) -> bool {
    let mut command = Command::new("id");
    command.arg("-u");
    runner.output(command).is_ok_and(|said| said.trim() == "0")
}
