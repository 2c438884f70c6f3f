//! The commands of the project, run as `cargo xtask <command>`.

// Its output is for people.
#![allow(clippy::print_stdout)]

mod check;
mod run;
mod setup;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::run::Runner;

const HELP: &str = "\
cargo xtask <command>

  test            everything that CI runs
  test --quick    formatting, lints and tests only
  test --install  also installs what is missing for the fuzz targets (cargo-fuzz)
  check           the structure checks: dependencies, imports, file lengths, licences
  bench [NAME..]  the benchmarks, or some of them
  help            this text
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut runner = Runner::new(root());
    match args[..] {
        ["test", ref options @ ..] => {
            let known = ["--quick", "--install"];
            if let Some(unknown) = options.iter().find(|option| !known.contains(option)) {
                eprintln!("unknown option {unknown}\n\n{HELP}");
                return ExitCode::from(2);
            }
            let has = |option| options.contains(&option);
            test::run(&mut runner, has("--quick"), has("--install"));
        }
        ["check"] => check::run(&mut runner),
        ["bench", ref args @ ..] => test::bench(&mut runner, args),
        ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    }
    runner.summary()
}

/// The root of the workspace, wherever the command is called.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}
