//! The commands of the project, run as `cargo xtask <command>`.

// Its output is for people.
#![allow(clippy::print_stdout)]

mod check;
mod layers;
mod programs;
mod steps;
mod test;

use std::process::ExitCode;

use crate::steps::Steps;

const HELP: &str = "\
cargo xtask <command>

  test            everything that CI runs
  test --install  installs missing tools and servers first
  check           the structure checks: dependencies, layers of modules
  bench [NAME..]  the benchmarks, or some of them
  help            this text
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut steps = Steps::new();
    match args[..] {
        ["test"] => test::run(&mut steps, false),
        ["test", "--install"] => test::run(&mut steps, true),
        ["check"] => check::run(&mut steps),
        ["bench", ref args @ ..] => {
            let bench = [&["run", "--release", "-p", "benches", "--"], args].concat();
            steps.cargo("Benchmarks", &bench);
        }
        _ => {
            eprint!("{HELP}");
            let is_asked_for = matches!(args[..], ["help" | "--help" | "-h"]);
            return ExitCode::from(if is_asked_for { 0 } else { 2 });
        }
    }
    steps.summary()
}
