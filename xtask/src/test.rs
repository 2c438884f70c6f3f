//! `cargo xtask test`: what CI runs, and `bench`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::check;
use crate::run::{Runner, Status};
use crate::setup;

/// How long each fuzz target runs.
const FUZZ_SECONDS: u32 = 15;

pub(crate) fn run(runner: &mut Runner, quick: bool, install: bool) {
    let mut tools = None;
    runner.step("Tools", |runner| {
        let found = Tools::find(runner);
        let status = found.report(quick);
        tools = Some(found);
        status
    });
    if runner.has_failed() {
        return;
    }
    if setup::needs_container(runner) {
        let options = [("--quick", quick), ("--install", install)];
        let given = options.iter().filter(|(_, given)| *given).map(|(option, _)| *option);
        let options: Vec<&str> = given.collect();
        runner.step("Everything, in a container", |r| setup::in_container(r, &options));
        return;
    }
    runner.step("Programs", |runner| setup::run(runner));
    if runner.has_failed() {
        return;
    }
    let tools = tools.unwrap_or_default();

    runner.step("Formatting", |r| r.shown(r.cargo(&["fmt", "--all", "--check"])));
    if !quick {
        check::run(runner);
    }
    runner.step("Lints, all features", |r| clippy(r, &["--workspace", "--all-features"]));
    runner.step("Tests, all features", |r| {
        r.tested(&["test", "--workspace", "--all-features", "--no-fail-fast"], &[])
    });
    if quick {
        return;
    }
    runner.step("Lints, default features", |r| match with_features(r) {
        Ok(packages) => {
            let args: Vec<&str> = packages.iter().flat_map(|name| ["-p", name]).collect();
            clippy(r, &args)
        }
        Err(error) => Status::Failed(error),
    });
    runner.step("Tests, default features", |r| {
        r.tested(&["test", "-p", "bentocache", "--no-fail-fast"], &[])
    });
    runner.step("Documentation", |r| {
        let mut doc = r.cargo(&["doc", "--no-deps", "--workspace", "--all-features"]);
        doc.env("RUSTDOCFLAGS", "-Dwarnings");
        r.shown(doc)
    });
    runner.step("Model checks", model_checks);
    for example in ["quickstart", "custom_driver"] {
        runner.step(&format!("Example: {example}"), |r| {
            r.shown(r.cargo(&["run", "--release", "--example", example]))
        });
    }
    runner.step("Example: replay", replay);
    runner.step("Fuzz targets", |r| fuzz(r, &tools, install));
    runner.step("Advisories", |r| {
        if tools.deny.is_none() {
            return Status::NotRun(
                "cargo-deny is missing; `cargo install cargo-deny --locked`".to_owned(),
            );
        }
        r.shown(r.cargo(&["deny", "check", "advisories"]))
    });
}

/// What is installed here, with its version.
#[derive(Default)]
struct Tools {
    rustc: Option<String>,
    /// The newest Rust that a crate of the workspace asks for.
    needed: String,
    fmt: Option<String>,
    clippy: Option<String>,
    nightly: Option<String>,
    fuzz: Option<String>,
    deny: Option<String>,
}

impl Tools {
    fn find(runner: &Runner) -> Self {
        let version = |mut command: Command, args: &[&str]| {
            command.args(args);
            let said = runner.output(command).ok()?;
            Some(said.lines().next().unwrap_or_default().trim().to_owned())
        };
        let cargo = |args: &[&str]| version(runner.cargo(&[]), args);
        let needed = runner.metadata(false).ok().and_then(|metadata| {
            let members = metadata["packages"].as_array()?.iter();
            members
                .filter_map(|package| package["rust_version"].as_str())
                .max_by_key(|text| numbers(text))
                .map(str::to_owned)
        });
        Self {
            rustc: version(Command::new("rustc"), &["--version"]),
            needed: needed.unwrap_or_default(),
            fmt: cargo(&["fmt", "--version"]),
            clippy: cargo(&["clippy", "--version"]),
            nightly: cargo(&["+nightly", "--version"]),
            fuzz: cargo(&["fuzz", "--version"]),
            deny: cargo(&["deny", "--version"]),
        }
    }

    /// Prints what is there, what is missing, and how to get it.
    fn report(&self, quick: bool) -> Status {
        let mut missing = String::new();
        let mut tool = |name: &str, found: Option<&String>, required: bool, how: &str| {
            let need = if required { "needed: " } else { "optional: " };
            let hint = || format!("missing; {need}{how}");
            println!("    {name:12} {}", found.map_or_else(hint, String::clone));
            if required && found.is_none() {
                let _ = write!(missing, "{}{name}", if missing.is_empty() { "" } else { ", " });
            }
        };
        let rustc = self.rustc.as_ref().filter(|said| {
            let version = said.split(' ').nth(1).unwrap_or_default();
            numbers(version) >= numbers(&self.needed)
        });
        let how = format!("Rust {} or later, from https://rustup.rs", self.needed);
        tool("rustc", rustc, true, &how);
        tool("rustfmt", self.fmt.as_ref(), true, "rustup component add rustfmt");
        tool("clippy", self.clippy.as_ref(), true, "rustup component add clippy");
        if !quick {
            let how = "for the fuzz targets: rustup toolchain install nightly";
            tool("nightly", self.nightly.as_ref(), false, how);
            let how = "for the fuzz targets: cargo install cargo-fuzz --locked";
            tool("cargo-fuzz", self.fuzz.as_ref(), false, how);
            let how = "for the advisories: cargo install cargo-deny --locked";
            tool("cargo-deny", self.deny.as_ref(), false, how);
        }
        if missing.is_empty() {
            Status::Passed(String::new())
        } else {
            Status::Failed(format!("missing: {missing}"))
        }
    }
}

/// The numbers of a version.
fn numbers(version: &str) -> Vec<u64> {
    let digits = version.split(['.', '-']).map_while(|part| part.parse().ok());
    digits.collect()
}

fn clippy(runner: &Runner, packages: &[&str]) -> Status {
    let mut clippy = runner.cargo(&["clippy", "--all-targets"]);
    clippy.args(packages).args(["--", "-D", "warnings"]);
    runner.shown(clippy)
}

/// The members of the workspace that have features: the others were looked at as they are.
fn with_features(runner: &Runner) -> Result<Vec<String>, String> {
    let metadata = runner.metadata(false)?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?.iter();
    let having = packages.filter(|p| p["features"].as_object().is_some_and(|f| !f.is_empty()));
    Ok(having.filter_map(|package| package["name"].as_str().map(str::to_owned)).collect())
}

/// Flights and fences under many schedules. The whole crate is built anew for it, beside the
/// ordinary build.
fn model_checks(runner: &mut Runner) -> Status {
    let directory = match target_directory(runner) {
        Ok(directory) => directory.join("shuttle").display().to_string(),
        Err(error) => return Status::Failed(error),
    };
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let flags = format!("{flags} --cfg shuttle");
    let variables = [("RUSTFLAGS", flags.trim()), ("CARGO_TARGET_DIR", &directory)];
    runner.tested(&["test", "-p", "bentocache", "--lib", "shuttle"], &variables)
}

fn target_directory(runner: &Runner) -> Result<PathBuf, String> {
    let metadata = runner.metadata(false)?;
    let directory = metadata["target_directory"].as_str().ok_or("no target directory")?;
    Ok(directory.into())
}

/// The example that replays a trace, on a small made-up one.
fn replay(runner: &mut Runner) -> Status {
    let trace = match target_directory(runner) {
        Ok(directory) => directory.join("xtask-trace.txt"),
        Err(error) => return Status::Failed(error),
    };
    if let Err(error) = fs::write(&trace, made_up_trace(20_000)) {
        return Status::Failed(format!("{}: {error}", trace.display()));
    }
    let mut run = runner.cargo(&["run", "--release", "--example", "replay", "--"]);
    run.arg(&trace);
    runner.shown(run)
}

/// One key a line: few keys often, many keys seldom, always the same.
fn made_up_trace(length: u32) -> String {
    let mut state = 1_u64;
    let mut trace = String::new();
    for _ in 0..length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A product of two uniform numbers leans towards zero.
        let (a, b) = (state >> 52, (state >> 32) & 0xfff);
        let _ = writeln!(trace, "key:{}", (a * b) >> 12);
    }
    trace
}

/// A short run of every fuzz target.
fn fuzz(runner: &mut Runner, tools: &Tools, install: bool) -> Status {
    if tools.nightly.is_none() {
        return Status::NotRun(
            "there is no nightly compiler; `rustup toolchain install nightly`".to_owned(),
        );
    }
    if tools.fuzz.is_none() {
        if !install {
            return Status::NotRun(
                "cargo-fuzz is missing; `cargo install cargo-fuzz --locked`, or give --install"
                    .to_owned(),
            );
        }
        let installed = runner.shown(runner.cargo(&["install", "cargo-fuzz", "--locked"]));
        if !matches!(installed, Status::Passed(_)) {
            return installed;
        }
    }
    let targets = match fuzz_targets(&runner.root().join("fuzz/fuzz_targets")) {
        Ok(targets) => targets,
        Err(error) => return Status::Failed(error),
    };
    for target in &targets {
        let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        if let Err(error) = fs::create_dir_all(runner.root().join(&corpus)) {
            return Status::Failed(format!("{corpus}: {error}"));
        }
        let mut fuzz = runner.cargo(&["+nightly", "fuzz", "run", target, &corpus, &seeds, "--"]);
        fuzz.arg(format!("-max_total_time={FUZZ_SECONDS}")).arg("-verbosity=0");
        let dictionary = format!("fuzz/{target}.dict");
        if runner.root().join(&dictionary).exists() {
            fuzz.arg(format!("-dict={dictionary}"));
        }
        let status = runner.shown(fuzz);
        if !matches!(status, Status::Passed(_)) {
            return status;
        }
    }
    Status::Passed(format!("{} targets, {FUZZ_SECONDS} s each", targets.len()))
}

fn fuzz_targets(directory: &Path) -> Result<Vec<String>, String> {
    let files = fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let mut names: Vec<String> = files
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// The benchmarks, which are a program. Without arguments it runs all of them.
pub(crate) fn bench(runner: &mut Runner, args: &[&str]) {
    runner.step("Benchmarks", |runner| {
        let mut bench = runner.cargo(&["run", "--release", "-p", "benches", "--"]);
        bench.args(args);
        runner.shown(bench)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(numbers("1.100.0") > numbers("1.89"));
        assert!(numbers("1.95.0-nightly") >= numbers("1.95"));
    }

    #[test]
    fn a_made_up_trace_repeats_keys() {
        let trace = made_up_trace(1_000);
        let mut keys: Vec<_> = trace.lines().collect();
        assert_eq!(keys.len(), 1_000);
        keys.sort_unstable();
        keys.dedup();
        assert!((100..900).contains(&keys.len()), "{}", keys.len());
    }
}
