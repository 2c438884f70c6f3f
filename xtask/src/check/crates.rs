//! The dependencies between crates: few, none in C, and none against the grain.

use serde_json::Value;

use crate::run::Runner;

/// How many crates a user of the library compiles at most, the library included.
const MOST_CRATES: usize = 60;

/// Our crates, and which of ours each may depend on outside of its tests. A crate that is not
/// listed is a driver.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("bentocache-core", &[]),
    ("bentocache", &["bentocache-core"]),
    ("bentocache-testkit", &["bentocache-core"]),
    ("bentocache-diesel", &["bentocache-core", "bentocache-sql"]),
    ("bentocache-seaorm", &["bentocache-core", "bentocache-sql", "bentocache-sqlx"]),
    ("bentocache-sqlx", &["bentocache-core", "bentocache-sql"]),
];

/// A driver needs the contract and nothing else.
const DRIVER: &[&str] = &["bentocache-core"];

pub(crate) fn check(runner: &Runner) -> Result<(Vec<String>, String), String> {
    let mut faults = Vec::new();
    let normal = tree(runner, "normal")?;
    if normal.len() > MOST_CRATES {
        faults.push(format!("bentocache needs {} crates, more than {MOST_CRATES}", normal.len()));
    }
    for name in tree(runner, "normal,build")? {
        if builds_c(&name) {
            faults.push(format!(
                "bentocache needs {name}, which builds or binds to C; \
                 `cargo tree -p bentocache -e normal,build -i {name}` shows why"
            ));
        }
    }
    faults.extend(against_the_grain(&runner.metadata(false)?));
    Ok((faults, format!("{} of at most {MOST_CRATES}, none in C", normal.len())))
}

/// The names of the crates that the library needs by default, itself included.
fn tree(runner: &Runner, edges: &str) -> Result<Vec<String>, String> {
    let args = [
        "tree",
        "-p",
        "bentocache",
        "-e",
        edges,
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--locked",
    ];
    let tree = runner.output(runner.cargo(&args))?;
    let mut crates: Vec<_> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    crates.sort_unstable();
    crates.dedup();
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    Ok(crates.into_iter().filter(|line| !line.is_empty()).map(name).collect())
}

/// Numbers and layouts of the kernel, in Rust alone.
const PURE: &str = "linux-raw-sys";

fn builds_c(name: &str) -> bool {
    matches!(name, "cc" | "cmake" | "bindgen" | "pkg-config")
        || (name.ends_with("-sys") && name != PURE)
}

fn against_the_grain(metadata: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let ours = |name: &str| name == "bentocache" || name.starts_with("bentocache-");
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        if !ours(name) {
            continue;
        }
        let allowed = MAY_DEPEND_ON.iter().find(|(known, _)| *known == name);
        let allowed = allowed.map_or(DRIVER, |(_, allowed)| allowed);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            let in_tests = dependency["kind"] == "dev";
            // The contract depends on nothing of ours, not even in its tests.
            let free = in_tests && name != "bentocache-core";
            if ours(on) && !free && !allowed.contains(&on) {
                faults.push(format!("{name} must not depend on {on}"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_uses_the_library_only_in_its_tests() {
        let package = |name: &str, on: &str, kind: Option<&str>| {
            let on = serde_json::json!({ "name": on, "kind": kind });
            serde_json::json!({ "packages": [{ "name": name, "dependencies": [on] }] })
        };
        let faults = |name, on, kind| against_the_grain(&package(name, on, kind)).len();
        assert_eq!(faults("bentocache-x", "bentocache-core", None), 0);
        assert_eq!(faults("bentocache-x", "bentocache", Some("dev")), 0);
        assert_eq!(faults("bentocache-x", "bentocache", None), 1);
        assert_eq!(faults("bentocache-core", "bentocache-testkit", Some("dev")), 1);
        assert_eq!(faults("bentocache", "bentocache-x", Some("build")), 1);
        assert_eq!(faults("other", "bentocache", None), 0);
    }

    #[test]
    fn c_is_known_by_its_helpers() {
        assert!(builds_c("cc") && builds_c("zstd-sys"));
        assert!(!builds_c("libc") && !builds_c("system") && !builds_c(PURE));
    }
}
