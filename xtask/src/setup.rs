//! The programs that the tests start: found, or installed.

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
    if !is_root(runner) || !answers(runner, "apt-get") {
        return Status::Failed(format!("install what is missing, on Debian: {by_hand}"));
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

/// Prints whether the program is there.
fn shown(runner: &Runner, program: &Program) -> bool {
    let Program { name, purpose, .. } = program;
    let mut command = Command::new(name);
    command.arg(if *name == "openssl" { "version" } else { "--version" });
    let found = runner.output(command).ok();
    let said = found.as_deref().and_then(|said| said.lines().next()).map(str::trim);
    println!("    {name:18} {}", said.map_or_else(|| format!("missing: {purpose}"), str::to_owned));
    found.is_some()
}

fn answers(runner: &Runner, program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version");
    runner.output(command).is_ok()
}

fn is_root(runner: &Runner) -> bool {
    let mut command = Command::new("id");
    command.arg("-u");
    runner.output(command).is_ok_and(|said| said.trim() == "0")
}
