//! Modules of the library import only downwards; `ARCHITECTURE.md` has the same table.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::lengths::rust_files;
use super::source;

/// The layers, from the bottom to the top. A module may import what lies in lower layers, and
/// siblings where the layer says so.
const LAYERS: &[Layer] = &[
    Layer {
        name: "leaves",
        modules: &["clock", "duration", "error", "event", "park", "size", "sync", "wire"],
        siblings: false,
    },
    Layer { name: "options", modules: &["options"], siblings: false },
    Layer { name: "built-in drivers", modules: &["in_process", "memory"], siblings: false },
    Layer { name: "foundations", modules: &["fence", "site", "timers"], siblings: false },
    Layer { name: "tiers", modules: &["l2", "tier"], siblings: false },
    Layer { name: "engine", modules: &["context", "engine"], siblings: true },
    Layer {
        name: "front",
        modules: &["bento", "blocking", "cache", "hit", "request", "typed"],
        siblings: true,
    },
];

/// Nobody imports these: the engine knows drivers only through their traits.
const DRIVERS: &[&str] = &["in_process", "memory"];
/// But for the hit, which calls the memory by its own type.
const BUT: (&str, &str) = ("tier", "memory");

struct Layer {
    name: &'static str,
    modules: &'static [&'static str],
    siblings: bool,
}

pub(crate) fn check(root: &Path, directory: &Path) -> Result<Vec<String>, String> {
    let read =
        |file: &Path| fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()));
    let exported = exports(&source::code(&read(&directory.join("lib.rs"))?));
    let mut faults = Vec::new();
    for file in rust_files(directory)? {
        let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        let inside = file.strip_prefix(directory).unwrap_or(&file);
        let mut path: Vec<String> =
            inside.with_extension("").iter().map(|p| p.to_string_lossy().into_owned()).collect();
        if path == ["lib"] {
            continue;
        }
        path.retain(|part| part != "mod");
        for import in imports(&source::code(&read(&file)?), &path) {
            let target = match exported.get(&import.module) {
                // An item that the root re-exports counts as one of its own module.
                Some(module) => module.clone(),
                None => import.module.clone(),
            };
            if let Some(fault) = fault(&path[0], &target) {
                faults.push(format!("{shown}:{}: {fault}", import.line));
            }
        }
    }
    Ok(faults)
}

/// What is wrong with an import, if anything is.
fn fault(from: &str, to: &str) -> Option<String> {
    let place = |module: &str| LAYERS.iter().position(|layer| layer.modules.contains(&module));
    if from == to || to == EXTERNAL {
        return None;
    }
    let Some(lower) = place(from) else {
        return Some(format!(
            "the module `{from}` has no layer yet; add it to the table of layers"
        ));
    };
    let Some(upper) = place(to) else {
        return Some(format!("`{to}` is in no known module; name the module it is in"));
    };
    if DRIVERS.contains(&to) && (from, to) != BUT {
        return Some(format!("`{from}` must not import the driver `{to}`"));
    }
    let allowed = upper < lower || (upper == lower && LAYERS[lower].siblings);
    (!allowed).then(|| {
        let (low, high) = (LAYERS[lower].name, LAYERS[upper].name);
        format!("`{from}` ({low}) must not import `{to}` ({high})")
    })
}

/// Stands for the crates that the root re-exports.
const EXTERNAL: &str = "another crate";

#[derive(Debug, PartialEq)]
struct Import {
    line: usize,
    /// The first part after `crate::`.
    module: String,
}

/// All paths in the code that begin with `crate::` or `super::`. `path` is the module's own.
fn imports(code: &str, path: &[String]) -> Vec<Import> {
    let mut found = Vec::new();
    for (start, word) in words(code) {
        let rest = &code[start + word.len()..];
        let mut add = |modules: Vec<String>| {
            let line = 1 + code[..start].matches('\n').count();
            found.extend(modules.into_iter().map(|module| Import { line, module }));
        };
        // The last of several `super`, and what follows it.
        let follows_super = code[..start].trim_end().ends_with("super::");
        match word {
            "crate" => {
                if let Some(rest) = after_colons(rest) {
                    add(first_parts(rest));
                }
            }
            "super" if !follows_super => {
                let (mut up, mut rest) = (1, rest);
                while let Some(more) = after_colons(rest).and_then(|r| r.strip_prefix("super")) {
                    (up, rest) = (up + 1, more);
                }
                let Some(rest) = after_colons(rest) else { continue };
                match path.len().checked_sub(up) {
                    Some(0) => add(first_parts(rest)),
                    // Still inside of the same top-level module.
                    Some(_) => {}
                    None => add(vec!["super".to_owned()]),
                }
            }
            _ => {}
        }
    }
    found
}

fn after_colons(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix("::").map(str::trim_start)
}

/// `a` of `a::b`, and `a`, `b` of `{a::c, b}`.
fn first_parts(text: &str) -> Vec<String> {
    let Some(group) = text.strip_prefix('{') else {
        return words(text)
            .next()
            .filter(|(at, _)| *at == 0)
            .map_or_else(|| vec!["*".to_owned()], |(_, word)| vec![word.to_owned()]);
    };
    let (mut depth, mut parts, mut expects) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expects = true,
            c if depth == 0 && expects && !c.is_whitespace() => {
                parts.extend(first_parts(&group[at..]));
                expects = false;
            }
            _ => {}
        }
    }
    parts
}

/// Identifiers and keywords, with where they begin.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_word)?;
        let end = code[start..].find(|c| !is_word(c)).map_or(code.len(), |length| start + length);
        at = end;
        Some((start, &code[start..end]))
    })
}

/// What the root re-exports, and from which of its modules.
fn exports(code: &str) -> HashMap<String, String> {
    let modules: Vec<&str> = words(code)
        .zip(words(code).skip(1))
        .filter(|((_, word), _)| *word == "mod")
        .map(|(_, (_, name))| name)
        .collect();
    let mut exports = HashMap::new();
    for statement in code.split(';') {
        let Some((_, path)) = statement.split_once("pub use ") else { continue };
        let module = words(path).next().map_or("", |(_, word)| word);
        let from = if modules.contains(&module) { module } else { EXTERNAL };
        let names = path.rsplit("::").next().unwrap_or_default();
        let names = path.split_once('{').map_or(names, |(_, names)| names);
        for name in names.split(',') {
            // The last word is the name, also after an `as`.
            if let Some((_, name)) = words(name).last() {
                exports.insert(name.to_owned(), from.to_owned());
            }
        }
    }
    exports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(code: &str, path: &[&str]) -> Vec<String> {
        let path: Vec<_> = path.iter().map(|part| (*part).to_owned()).collect();
        imports(code, &path).into_iter().map(|i| format!("{}:{}", i.line, i.module)).collect()
    }

    #[test]
    fn paths_are_found() {
        assert_eq!(found("use crate::a::B;\nfn f(x: crate::c::D) {}", &["x"]), ["1:a", "2:c"]);
        assert_eq!(found("use crate::{a::{self, B}, c, d::*};", &["x"]), ["1:a", "1:c", "1:d"]);
        assert_eq!(found("pub(crate) struct A; use $crate::b::C;", &["x"]), ["1:b"]);
        assert_eq!(found("use super::a::B;", &["x"]), ["1:a"]);
        assert_eq!(found("use super::a::B;", &["engine", "x"]), [""; 0]);
        assert_eq!(found("use super::super::a::B;", &["engine", "x"]), ["1:a"]);
        assert_eq!(found("use crate::*;", &["x"]), ["1:*"]);
    }

    #[test]
    fn re_exports_count_as_their_module() {
        let code = "mod a; pub mod b; pub use a::{C, D as E}; pub use b::f::G; pub use other as h;";
        let exports = exports(code);
        for (name, module) in [("C", "a"), ("E", "a"), ("G", "b"), ("h", EXTERNAL)] {
            assert_eq!(exports.get(name).map(String::as_str), Some(module), "{name}");
        }
    }

    #[test]
    fn a_fault_names_file_and_line() {
        let root = std::env::temp_dir().join(format!("xtask-imports-{}", std::process::id()));
        let source = root.join("src");
        fs::create_dir_all(source.join("tier")).unwrap();
        fs::write(source.join("lib.rs"), "mod cache; mod tier; pub use cache::Cache;").unwrap();
        fs::write(source.join("cache.rs"), "use crate::tier::local;").unwrap();
        let upwards = "// use crate::engine::X;\nuse crate::error::Error;\nuse crate::Cache;";
        fs::write(source.join("tier/local.rs"), upwards).unwrap();
        let faults = check(&root, &source).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let expected = "src/tier/local.rs:3: `tier` (tiers) must not import `cache` (front)";
        assert_eq!(faults, [expected]);
    }

    #[test]
    fn only_downwards() {
        assert_eq!(fault("engine", "options"), None);
        assert_eq!(fault("cache", "typed"), None);
        assert_eq!(fault("engine", "engine"), None);
        assert_eq!(fault("tier", "memory"), None);
        for (from, to) in [
            ("engine", "cache"),
            ("error", "event"),
            ("tier", "engine"),
            ("engine", "memory"),
            ("bento", "memory"),
            ("new", "error"),
            ("engine", "*"),
        ] {
            assert!(fault(from, to).is_some(), "{from} {to}");
        }
    }
}
