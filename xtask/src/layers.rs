//! Modules of the library import only downwards; `ARCHITECTURE.md` has the same table.

use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, UseTree};

use crate::check::rust_files;

/// The layers, from the bottom to the top. A module may import from lower layers, and its siblings
/// where the layer says so.
const LAYERS: &[(&str, &[&str], bool)] = &[
    ("leaves", &["clock", "error", "event", "join", "park", "stats", "sync", "wire"], false),
    ("options", &["options"], false),
    ("foundations", &["advisor", "in_process", "site", "timers", "value"], false),
    ("L1", &["l1"], false),
    ("L2", &["l2"], false),
    ("rooms", &["bus", "lock", "tags"], false),
    ("engine", &["engine"], false),
    ("front", &["front"], false),
];

/// Nobody imports the built-in bus: the engine knows it through its trait only.
const DRIVERS: &[&str] = &["in_process"];

pub(crate) fn check(source: &Path) -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    for file in rust_files(source)? {
        let inside = file.strip_prefix(source).unwrap_or(&file).with_extension("");
        let mut path: Vec<_> = inside.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        path.retain(|part| part != "mod");
        if path == ["lib"] {
            continue;
        }
        let mut imports = Imports { path: &path, found: Vec::new() };
        imports.visit_file(&parse(&file)?);
        for (line, to) in imports.found {
            if let Some(fault) = fault(&path[0], &to) {
                faults.push(format!("{}:{line}: {fault}", file.display()));
            }
        }
    }
    Ok(faults)
}

fn parse(file: &Path) -> Result<syn::File, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    syn::parse_file(&text).map_err(|e| format!("{}: {e}", file.display()))
}

/// Describes what is wrong with an import, if anything is.
fn fault(from: &str, to: &str) -> Option<String> {
    let place = |module: &str| LAYERS.iter().position(|(_, layer, _)| layer.contains(&module));
    if from == to {
        return None;
    }
    let Some(lower) = place(from) else { return Some(format!("`{from}` has no layer yet")) };
    let Some(upper) = place(to) else { return Some(format!("`{to}` is in no known module")) };
    if DRIVERS.contains(&to) {
        return Some(format!("`{from}` must not import the driver `{to}`"));
    }
    let allowed = upper < lower || (upper == lower && LAYERS[lower].2);
    let (low, high) = (LAYERS[lower].0, LAYERS[upper].0);
    (!allowed).then(|| format!("`{from}` ({low}) must not import `{to}` ({high})"))
}

/// The paths of a `use`, each with the name that it gets last.
fn flatten(tree: &UseTree, path: &mut Vec<String>, leaves: &mut Vec<Vec<String>>) {
    match tree {
        UseTree::Path(part) => {
            path.push(part.ident.to_string());
            flatten(&part.tree, path, leaves);
            path.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, path, leaves)),
        UseTree::Name(name) => leaves.push([&path[..], &[name.ident.to_string()]].concat()),
        UseTree::Rename(name) => leaves.push([&path[..], &[name.rename.to_string()]].concat()),
        UseTree::Glob(_) => leaves.push([&path[..], &["*".to_owned()]].concat()),
    }
}

/// Collects which modules of the root a file names, with the lines.
struct Imports<'a> {
    path: &'a [String],
    found: Vec<(usize, String)>,
}

impl Imports<'_> {
    fn add(&mut self, line: usize, parts: &[String]) {
        let up = parts.iter().take_while(|part| *part == "super").count();
        let depth = match parts[0].as_str() {
            "crate" => Some(1),
            "super" if up == self.path.len() => Some(up),
            _ => None,
        };
        self.found.extend(depth.and_then(|depth| Some((line, parts.get(depth)?.clone()))));
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list().map(|list| list.tokens.to_string());
        attribute.path().is_ident("cfg")
            && list.is_ok_and(|list| list == "test" || list.starts_with("all (test"))
    })
}

impl Visit<'_> for Imports<'_> {
    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        let mut leaves = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut leaves);
        let line = item.use_token.span.start().line;
        leaves.iter().for_each(|leaf| self.add(line, leaf));
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        self.add(path.segments[0].ident.span().start().line, &parts);
        visit::visit_path(self, path);
    }
}
