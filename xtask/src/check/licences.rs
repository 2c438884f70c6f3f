//! The licences of all dependencies, those of tests and tools included.

use serde_json::Value;

use crate::run::Runner;

const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    // xxhash-rust, which the redis crate needs.
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

pub(crate) fn check(runner: &Runner) -> Result<(Vec<String>, String), String> {
    let metadata = runner.metadata(true)?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    let faults = packages.iter().filter_map(fault).collect();
    Ok((faults, format!("{} packages", packages.len())))
}

fn fault(package: &Value) -> Option<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let version = package["version"].as_str().unwrap_or_default();
    // A package that is never published needs no licence of its own.
    let unpublished = package["publish"].as_array().is_some_and(Vec::is_empty);
    match package["license"].as_str() {
        Some(licence) if !is_allowed(licence) => {
            Some(format!("{name} {version}: the licence {licence:?} is not on the list"))
        }
        None if !unpublished => Some(format!("{name} {version} names no licence")),
        _ => None,
    }
}

/// Whether an SPDX expression can be met by licences of the list. `AND` binds closer than `OR`; a
/// slash is an old way to write `OR`.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    // What cannot be read is not allowed.
    either(&mut rest) == Some(true) && rest.is_empty()
}

fn either(rest: &mut &[&str]) -> Option<bool> {
    let mut allowed = all(rest)?;
    while let ["OR", tail @ ..] = rest {
        *rest = tail;
        allowed |= all(rest)?;
    }
    Some(allowed)
}

fn all(rest: &mut &[&str]) -> Option<bool> {
    let mut allowed = one(rest)?;
    while let ["AND", tail @ ..] = rest {
        *rest = tail;
        allowed &= one(rest)?;
    }
    Some(allowed)
}

fn one(rest: &mut &[&str]) -> Option<bool> {
    match rest {
        ["(", tail @ ..] => {
            *rest = tail;
            let allowed = either(rest)?;
            let [")", tail @ ..] = rest else { return None };
            *rest = tail;
            Some(allowed)
        }
        [licence, "WITH", exception, tail @ ..] => {
            let whole = format!("{licence} WITH {exception}");
            *rest = tail;
            Some(ALLOWED.contains(&whole.as_str()))
        }
        [licence, tail @ ..] => {
            let allowed = ALLOWED.contains(licence);
            *rest = tail;
            Some(allowed)
        }
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_met_or_not() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "MIT AND (GPL-2.0 OR BSD-3-Clause)",
        ] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "MIT AND (GPL-2.0 OR EPL-2.0)",
            "GPL-2.0 OR MIT AND EPL-2.0",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT Apache-2.0",
            "GPL-2.0 WITH LLVM-exception",
        ] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }
}
