//! `cargo xtask test`: what CI runs.

use std::fs;

use crate::steps::{Status, Steps, cargo, output, root, shown};
use crate::{check, programs};

pub(crate) fn run(steps: &mut Steps, install: bool) {
    steps.step("Programs", || programs::run(install));
    steps.step("Nextest", || tool("nextest", install));
    if steps.has_failed() {
        return;
    }
    steps.cargo("Formatting", &["fmt", "--all", "--check"]);
    check::run(steps);
    let lints = ["clippy", "--workspace", "--all-targets"];
    let deny = ["--", "-D", "warnings"];
    let all = ["--workspace", "--all-features"];
    steps.cargo("Lints", &[&lints[..], &["--all-features"], &deny].concat());
    let nextest = ["nextest", "run", "--profile", "ci"];
    steps.cargo("Tests", &[&nextest[..], &all].concat());
    steps.cargo("Examples in the docs", &[&["test", "--doc", "--no-fail-fast"], &all[..]].concat());
    // Without features, code that only a feature uses is dead.
    steps.cargo("Lints, no features", &[&lints[..], &deny].concat());
    let plain = ["-p", "bentocache-engine", "--lib", "--test", "wire"];
    steps.cargo("Tests, no features", &[&nextest[..], &plain].concat());
    steps.step("Documentation", || {
        let mut doc = cargo(&[&["doc", "--no-deps"], &all[..]].concat());
        shown(doc.env("RUSTDOCFLAGS", "-Dwarnings"))
    });
    let own = "benches bentocache-shelf compiler-messages examples sql-server testservers xtask";
    let private: Vec<_> = own.split(' ').flat_map(|name| ["--exclude", name]).collect();
    let package = ["package", "--workspace", "--no-verify", "--allow-dirty"];
    steps.cargo("Packages", &[&package[..], &private].concat());
    steps.step("Model checks", model_checks);
    steps.cargo("Quickstart", &["run", "--release", "--example", "quickstart"]);
    steps.step("Fuzz targets", || fuzz(install));
    steps.step("Advisories", || match tool("deny", false) {
        Status::Failed(why) => Status::NotRun(why),
        _ => shown(&mut cargo(&["deny", "check"])),
    });
}

/// Finds the cargo command with that name, or installs it.
fn tool(name: &str, install: bool) -> Status {
    if output(&mut cargo(&[name, "--version"])).is_ok() {
        return Status::Passed;
    }
    let package = format!("cargo-{name}");
    if install {
        return shown(&mut cargo(&["install", &package, "--locked"]));
    }
    Status::Failed(format!("{package} is missing; `cargo install {package} --locked`"))
}

/// Runs flights and fences under many schedules; builds the engine in a directory of its own.
fn model_checks() -> Status {
    let mut test =
        cargo(&["nextest", "run", "--profile", "ci", "-p", "bentocache-engine", "--lib"]);
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    test.args(["--target-dir", "target/shuttle", "shuttle"]);
    shown(test.env("RUSTFLAGS", format!("{flags} --cfg shuttle").trim()))
}

/// Runs every fuzz target for 15 seconds.
fn fuzz(install: bool) -> Status {
    if output(&mut cargo(&["+nightly", "--version"])).is_err() {
        return Status::NotRun("no nightly compiler: `rustup toolchain install nightly`".into());
    }
    match tool("fuzz", install) {
        Status::Passed => {}
        Status::Failed(why) if !install => return Status::NotRun(why),
        failed => return failed,
    }
    let targets = match output(&mut cargo(&["+nightly", "fuzz", "list"])) {
        Ok(targets) => targets,
        Err(error) => return Status::Failed(error),
    };
    for target in targets.lines() {
        let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        let dictionary = format!("fuzz/{target}.dict");
        if let Err(error) = fs::create_dir_all(root().join(&corpus)) {
            return Status::Failed(format!("{corpus}: {error}"));
        }
        let mut fuzz = cargo(&["+nightly", "fuzz", "run", target, &corpus, &seeds, "--"]);
        fuzz.args(["-max_total_time=15", "-verbosity=0"]);
        if root().join(&dictionary).exists() {
            fuzz.arg(format!("-dict={dictionary}"));
        }
        if let failed @ Status::Failed(_) = shown(&mut fuzz) {
            return failed;
        }
    }
    Status::Passed
}
