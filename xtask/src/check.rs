//! `cargo xtask check`: what the compiler does not check.

use std::fs;
use std::path::{Path, PathBuf};

use crate::layers;
use crate::steps::{Steps, cargo, output, root};

/// How many crates a user of the library compiles at most, the library included.
const MOST_CRATES: usize = 60;

pub(crate) fn run(steps: &mut Steps) {
    steps.check("Dependencies", dependencies);
    steps.check("Layers", || layers::check(&root().join("crates/bentocache-engine/src")));
}

/// The default features of the library bring few crates, and none that builds C. Drivers depend on
/// the contract, never on the engine.
fn dependencies() -> Result<Vec<String>, String> {
    let crates = |args: &[&str]| {
        let tree = ["tree", "--locked", "--prefix", "none", "--no-dedupe", "-f", "{lib}", "-e"];
        let listed = output(&mut cargo(&[&tree[..], args].concat()))?;
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names.dedup();
        Ok::<_, String>(names)
    };
    let mut faults = Vec::new();
    let normal = crates(&["normal", "-p", "bentocache"])?;
    println!("    bentocache needs {} crates", normal.len());
    if normal.len() > MOST_CRATES {
        faults.push(format!("bentocache needs more than {MOST_CRATES} crates"));
    }
    for name in crates(&["normal,build", "-p", "bentocache"])? {
        let builds_c = ["cc", "cmake", "bindgen", "pkg_config"].contains(&name.as_str());
        // The first has numbers and layouts of the kernel, in Rust alone.
        if builds_c || (name.ends_with("_sys") && name != "linux_raw_sys") {
            faults.push(format!("bentocache needs {name}, which builds or binds to C"));
        }
    }
    for package in entries(&root().join("crates"))? {
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_engine = ["bentocache", "bentocache-engine"].contains(&name.as_str());
        let needs = crates(&["normal,build", "--all-features", "-p", &name])?;
        if !is_engine && needs.iter().any(|needed| needed == "bentocache_engine") {
            faults.push(format!("{name} must not depend on the engine"));
        }
    }
    Ok(faults)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

/// All Rust files under a directory.
pub(crate) fn rust_files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for path in entries(directory)? {
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}
