//! Modules of the library import only downwards; `ARCHITECTURE.md` has the same table. In the drivers'
//! crates no files import each other in a circle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, UseTree};

use crate::check::rust_files;

/// The layers, from the bottom to the top. A module may import from lower layers, and its siblings
/// where the layer says so.
const LAYERS: &[(&str, &[&str], bool)] = &[
    ("leaves", &["clock", "error", "event", "park", "sync", "wire"], false),
    ("options", &["options"], false),
    ("foundations", &["in_process", "site", "timers", "value"], false),
    ("L1", &["l1"], false),
    ("L2", &["l2"], false),
    ("engine", &["engine"], false),
    ("front", &["front"], false),
];

/// Nobody imports the built-in bus: the engine knows it through its trait only.
const DRIVERS: &[&str] = &["in_process"];

pub(crate) fn check(source: &Path) -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    for file in rust_files(source)? {
        let module = module(source, &file);
        let Some(from) = module.first() else { continue };
        for (line, to) in imports(&module, &parse(&file)?) {
            let Some(fault) = to.first().and_then(|to| fault(from, to)) else { continue };
            faults.push(format!("{}:{line}: {fault}", file.display()));
        }
    }
    Ok(faults)
}

/// A path from the root of the crate, which itself is the empty one.
type Module = Vec<String>;

/// Circles of files that import each other: whoever reads one of them has to read them all.
pub(crate) fn circles(source: &Path) -> Result<Vec<String>, String> {
    let mut files = BTreeMap::new();
    for file in rust_files(source)? {
        files.insert(module(source, &file), parse(&file)?);
    }
    let name = |module: &Module| match &module[..] {
        [] => "lib".to_owned(),
        _ => module.join("/"),
    };
    let circle = |circle: Vec<Module>| circle.iter().map(name).collect::<Vec<_>>().join(" → ");
    let found = circles_of(&files).into_iter();
    Ok(found.map(|found| format!("{}: a circle: {}", source.display(), circle(found))).collect())
}

/// Each circle from its first file in the order of their names, and back to it.
fn circles_of(files: &BTreeMap<Module, syn::File>) -> Vec<Vec<Module>> {
    let file_of = |path: &[String]| {
        let mut ends = (0..=path.len()).rev();
        ends.find_map(|end| files.get_key_value(&path[..end]).map(|(module, _)| module))
    };
    // What the root only passes on is not in the file of the root.
    let passed_on: BTreeMap<_, _> = files.get(&Module::new()).map_or_else(BTreeMap::new, |root| {
        let imports = imports(&[], root).into_iter();
        let passed = imports.filter_map(|(_, to)| Some((to.last()?.clone(), file_of(&to)?)));
        passed.filter(|(_, file)| !file.is_empty()).collect()
    });
    let needs: BTreeMap<&Module, BTreeSet<&Module>> = files
        .iter()
        .map(|(module, file)| {
            let needed = imports(module, file).into_iter().filter_map(|(_, to)| {
                let known = file_of(&to)?;
                let named = to.first().filter(|_| known.is_empty());
                let needed = named.and_then(|name| passed_on.get(name)).map_or(known, |file| *file);
                (needed != module).then_some(needed)
            });
            (module, needed.collect())
        })
        .collect();
    files.keys().filter_map(|first| circle_from(first, &needs)).collect()
}

/// The shortest circle through a file that has no file before it in the order of their names.
fn circle_from(
    first: &Module,
    needs: &BTreeMap<&Module, BTreeSet<&Module>>,
) -> Option<Vec<Module>> {
    let mut ways = VecDeque::from([vec![first]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in &needs[way.last()?] {
            let way = [&way[..], &[*next]].concat();
            if *next == first {
                return Some(way.into_iter().cloned().collect());
            }
            if *next > first && seen.insert(*next) {
                ways.push_back(way);
            }
        }
    }
    None
}

fn module(source: &Path, file: &Path) -> Module {
    let inside = file.strip_prefix(source).unwrap_or(file).with_extension("");
    let mut path: Vec<_> = inside.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    path.retain(|part| part != "mod");
    if path == ["lib"] { Vec::new() } else { path }
}

/// What a file names of its crate, with the lines.
fn imports(module: &[String], file: &syn::File) -> Vec<(usize, Module)> {
    let mut imports = Imports { path: module.to_vec(), found: Vec::new() };
    imports.visit_file(file);
    imports.found
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

/// Collects the paths that a file names, from the root of the crate, with the lines. A path that begins
/// with another name is taken for one to something inside of the file.
struct Imports {
    /// Modules inside of the file included.
    path: Module,
    found: Vec<(usize, Module)>,
}

impl Imports {
    fn add(&mut self, line: usize, parts: &[String]) {
        let up = parts.iter().take_while(|part| *part == "super").count().min(self.path.len());
        let (base, rest) = match parts[0].as_str() {
            "crate" => (&[][..], &parts[1..]),
            "self" => (&self.path[..], &parts[1..]),
            _ => (&self.path[..self.path.len() - up], &parts[up..]),
        };
        // Nothing is left of the path in `pub(crate)`.
        if !rest.is_empty() {
            self.found.push((line, [base, rest].concat()));
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list().map(|list| list.tokens.to_string());
        attribute.path().is_ident("cfg")
            && list.is_ok_and(|list| list == "test" || list.starts_with("all (test"))
    })
}

impl Visit<'_> for Imports {
    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        if !is_test(&item.attrs) {
            self.path.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.path.pop();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(name, text)| {
            let module = name.split('/').filter(|part| !part.is_empty());
            (module.map(str::to_owned).collect(), syn::parse_str(text).expect("Rust"))
        });
        let found = circles_of(&files.collect()).into_iter();
        let name = |module: Module| module.join("/");
        found.map(|circle| circle.into_iter().map(name).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn files_that_import_each_other_are_a_circle() {
        let found = circles(&[
            ("", "mod a; mod b; mod c;"),
            ("a", "use crate::b::{self, B};"),
            ("b", "pub(crate) fn f() { crate::c::g() }"),
            ("c", "use super::a::A;"),
        ]);
        assert_eq!(found, ["a b c a"]);
    }

    #[test]
    fn a_file_and_the_one_that_declares_it_are_a_circle() {
        let found = circles(&[("a", "mod b; use self::b::B;"), ("a/b", "use super::A;")]);
        assert_eq!(found, ["a a/b a"]);
        let found = circles(&[("a", "mod b; use b::B;"), ("a/b", "use crate::a::A;")]);
        assert_eq!(found, ["a a/b a"]);
        assert!(circles(&[("a", "mod b; use b::B;"), ("a/b", "use crate::c::C;")]).is_empty());
    }

    #[test]
    fn what_the_root_passes_on_belongs_to_its_file() {
        let root = ("", "mod a; mod b; pub use a::A; use b::B as C; struct Own;");
        assert!(circles(&[root, ("a", ""), ("b", "use crate::A;")]).is_empty());
        let found = circles(&[root, ("a", "use crate::C;"), ("b", "use crate::A;")]);
        assert_eq!(found, ["a b a"]);
        let found = circles(&[root, ("a", "use crate::Own;"), ("b", "")]);
        assert_eq!(found, [" a "]);
    }

    #[test]
    fn a_module_inside_of_a_file_is_that_file() {
        let inner = "struct A; mod inner { use super::A; use super::super::b::B; }";
        assert!(circles(&[("", "struct Own;"), ("a", inner), ("b", "")]).is_empty());
        assert_eq!(circles(&[("a", inner), ("b", "use crate::a::A;")]), ["a b a"]);
    }

    #[test]
    fn tests_may_import_everything() {
        let test = "#[cfg(test)] mod tests { use crate::b::B; }";
        assert!(circles(&[("a", test), ("b", "use crate::a::A;")]).is_empty());
    }
}
