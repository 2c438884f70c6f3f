//! `cargo xtask check`: what a compiler does not check.
//!
//! - [`crates`]: how many crates the library brings, and who may depend on whom
//! - [`imports`]: modules of the library import only downwards
//! - [`lengths`]: no long file without a reason
//! - [`licences`]: only licences that allow the use

mod crates;
mod imports;
mod lengths;
mod licences;
mod source;

use crate::run::{Runner, faults};

pub(crate) fn run(runner: &mut Runner) {
    runner.step("Crates", |runner| match crates::check(runner) {
        Ok((faulty, note)) => faults(Ok(faulty), note),
        Err(error) => faults(Err(error), ""),
    });
    runner.step("Imports", |runner| {
        let directory = runner.root().join("crates/bentocache/src");
        faults(imports::check(runner.root(), &directory), "all downwards")
    });
    runner.step("File lengths", |runner| faults(lengths::check(runner.root()), ""));
    runner.step("Licences", |runner| match licences::check(runner) {
        Ok((faulty, note)) => faults(Ok(faulty), note),
        Err(error) => faults(Err(error), ""),
    });
}
