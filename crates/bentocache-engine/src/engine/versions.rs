//! The versions of values under which the handles of a store keep their keys.
//!
//! Version 1 of `users:42` is stored under that key, version 2 under `users:___bc:v:2:42`. So the
//! processes of two deploys, whose types differ, do not overwrite each other's values. A change of
//! one version has to invalidate the others too: a handle of version n announces the keys of n-1,
//! n and n+1, which are the versions that a rolling deploy can bring together.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{Engine, Key};
use crate::site::{unversioned, with_version};
use crate::sync::Mutex;

/// The versions that this process knows of, by the namespace that has them.
#[derive(Default)]
pub(crate) struct Versions {
    /// Whether there are any: most stores have none, and take no lock.
    any: AtomicBool,
    /// The versions of each namespace. The namespace is a prefix of keys, and ends with a colon.
    known: Mutex<HashMap<Box<str>, BTreeSet<u32>>>,
}

impl Versions {
    /// A handle with this prefix uses this version. A deploy may bring its neighbours.
    fn add(&self, prefix: &str, version: u32) {
        let mut known = self.known.lock();
        let versions = known.entry(prefix.into()).or_default();
        versions.extend(version.saturating_sub(1).max(1)..=version.saturating_add(1));
        self.any.store(true, Relaxed);
    }

    /// The complete key or prefix in every other version, each with the length of its versioned
    /// namespace.
    fn others(&self, full: &str, root: usize) -> Vec<(String, usize)> {
        let mut others = Vec::new();
        if !self.any.load(Relaxed) {
            return others;
        }
        let base = unversioned(full);
        let ends = base.match_indices(':').map(|(at, _)| at + 1).filter(|end| *end > root);
        let known = self.known.lock();
        for end in std::iter::once(root.min(base.len())).chain(ends) {
            let (namespace, rest) = base.split_at(end);
            for version in known.get(namespace).into_iter().flatten() {
                let mut other = with_version(namespace, *version);
                let length = other.len();
                other.push_str(rest);
                if other != full {
                    others.push((other, length));
                }
            }
        }
        others
    }
}

impl Engine {
    /// The prefix of a handle with this prefix and this version.
    pub(crate) fn version(&self, prefix: &str, version: u32) -> String {
        let namespace = unversioned(prefix);
        self.versions.add(&namespace, version);
        with_version(&namespace, version)
    }

    /// The keys of the other versions of these values.
    pub(super) fn other_versions<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) -> Vec<Key> {
        let mut others: Vec<Key> = Vec::new();
        for key in keys {
            for (other, length) in self.versions.others(&key.full, self.root.len()) {
                // The caller's part of the key stays the same where that is possible.
                let name_at = other.len().saturating_sub(key.name().len()).max(length);
                let (prefix, name) = other.split_at_checked(name_at).unwrap_or((&other, ""));
                others.push(self.key(prefix, name));
            }
        }
        others.sort_unstable_by(|a, b| a.full.cmp(&b.full));
        others.dedup_by(|a, b| a.full == b.full);
        others
    }

    /// The prefixes of everything in a namespace, whatever its version.
    pub(super) fn all_versions(&self, prefix: &str) -> Vec<String> {
        let base = unversioned(prefix).into_owned();
        let others = self.versions.others(&base, self.root.len());
        let others = others.into_iter().map(|(other, _)| other);
        let others: Vec<_> = others.filter(|other| !other.starts_with(&*base)).collect();
        [vec![base], others].concat()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::site::VERSION;

    fn others(versions: &Versions, full: &str) -> Vec<String> {
        versions.others(full, "app:".len()).into_iter().map(|(other, _)| other).collect()
    }

    #[test]
    fn a_store_without_versions_has_no_other_keys() {
        assert!(others(&Versions::default(), "app:users:42").is_empty());
    }

    #[test]
    fn a_key_has_the_neighbours_of_its_version_and_itself_never() {
        let versions = Versions::default();
        versions.add("app:users:", 2);
        assert_eq!(
            others(&versions, "app:users:___bc:v:2:42"),
            ["app:users:42", "app:users:___bc:v:3:42"]
        );
        assert_eq!(
            others(&versions, "app:users:42"),
            ["app:users:___bc:v:2:42", "app:users:___bc:v:3:42"]
        );
        assert!(others(&versions, "app:jobs:42").is_empty());
        assert!(others(&versions, "app:users").is_empty());
    }

    #[test]
    fn nested_namespaces_keep_the_version_where_it_was_chosen() {
        let versions = Versions::default();
        versions.add("app:", 1);
        assert_eq!(others(&versions, "app:users:42"), ["app:___bc:v:2:users:42"]);
        assert_eq!(others(&versions, "app:___bc:v:2:users:42"), ["app:users:42"]);
        versions.add("app:users:", 1);
        assert_eq!(
            others(&versions, "app:users:42"),
            ["app:___bc:v:2:users:42", "app:users:___bc:v:2:42"]
        );
    }

    #[test]
    fn the_first_and_the_last_version_have_one_neighbour() {
        let versions = Versions::default();
        versions.add("app:", u32::MAX);
        assert_eq!(
            others(&versions, &format!("app:{VERSION}{}:k", u32::MAX)),
            [format!("app:{VERSION}{}:k", u32::MAX - 1)]
        );
        let versions = Versions::default();
        versions.add("app:", 0);
        assert_eq!(others(&versions, "app:k"), Vec::<String>::new());
    }
}
