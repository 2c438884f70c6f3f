//! The shards of a cluster: the shard of a key, and the shards that do not answer.
//!
//! The client of a cluster stops all calls while it looks for moved slots, and does so for each
//! call to a node that does not answer. So this module refuses calls for a shard with a dead
//! primary at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

use crate::cluster::Slots;

pub(crate) type Node = (String, u16);

/// The known shards of the cluster. Each has a number, which stays the same when another node
/// becomes its primary.
#[derive(Default)]
pub(crate) struct Shards {
    state: RwLock<State>,
    /// Notified of a new suspect, and of a replaced dead primary.
    pub(crate) wake: Notify,
}

#[derive(Default)]
struct State {
    slots: Slots,
    /// The primaries, by the number of their shard.
    primaries: BTreeMap<u32, Node>,
    numbers: BTreeMap<Node, u32>,
    /// Shards with an unanswered call.
    suspects: BTreeSet<u32>,
    /// Shards that do not answer, and the reasons.
    down: BTreeMap<u32, Arc<str>>,
    /// A shard that was down has a new primary, which the client does not know.
    has_moved: bool,
}

/// A shard for a scan.
pub(crate) struct Shard {
    pub(crate) number: u32,
    pub(crate) primary: Node,
    /// The reason why its primary does not answer.
    pub(crate) problem: Option<Arc<str>>,
}

impl Shards {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the primaries.
    pub(crate) fn learn(&self, slots: Slots) {
        if slots == self.read().slots {
            return;
        }
        let mut state = self.write();
        state.learn(slots);
        if state.has_moved {
            self.wake.notify_one();
        }
    }

    /// The number of the key's shard.
    pub(crate) fn part(&self, key: &[u8]) -> Option<u32> {
        self.read().part(key)
    }

    /// The primary of the key.
    pub(crate) fn primary(&self, key: &[u8]) -> Option<Node> {
        self.read().slots.primary(key).cloned()
    }

    /// The reason why the key's shard does not answer, if so.
    pub(crate) fn problem(&self, key: &[u8]) -> Option<String> {
        let state = self.read();
        if state.down.is_empty() {
            return None;
        }
        let part = state.part(key)?;
        let (reason, (host, port)) = (state.down.get(&part)?, state.primaries.get(&part)?);
        Some(format!("the node {host}:{port} of the cluster, which has the key, {reason}"))
    }

    /// The fault, if there is one.
    pub(crate) fn trouble(&self) -> Option<String> {
        let state = self.read();
        let (part, reason) = state.down.first_key_value()?;
        let (host, port) = state.primaries.get(part)?;
        Some(format!("the node {host}:{port} of the cluster {reason}"))
    }

    pub(crate) fn all(&self) -> Vec<Shard> {
        let state = self.read();
        let shards = state.primaries.iter().map(|(number, primary)| Shard {
            number: *number,
            primary: primary.clone(),
            problem: state.down.get(number).cloned(),
        });
        shards.collect()
    }

    /// Marks the key's shard as a suspect after an unanswered call. Returns whether the shard is
    /// known.
    pub(crate) fn suspect(&self, key: &[u8]) -> bool {
        let Some(part) = self.part(key) else { return false };
        let is_new = {
            let mut state = self.write();
            !state.down.contains_key(&part) && state.suspects.insert(part)
        };
        if is_new {
            self.wake.notify_one();
        }
        true
    }

    pub(crate) fn is_well(&self) -> bool {
        let state = self.read();
        state.suspects.is_empty() && state.down.is_empty()
    }

    pub(crate) fn take_moved(&self) -> bool {
        std::mem::take(&mut self.write().has_moved)
    }

    /// The shards to check: whether they were down, and their primaries.
    pub(crate) fn due(&self) -> Vec<(u32, bool, Node)> {
        let state = self.read();
        let due = state.suspects.iter().chain(state.down.keys());
        let known = due.filter_map(|part| {
            Some((*part, state.down.contains_key(part), state.primaries.get(part)?.clone()))
        });
        known.collect()
    }

    /// Records the outcome of a check, unless the shard has another primary by now.
    pub(crate) fn looked(&self, part: u32, primary: &Node, problem: Option<&str>) {
        let mut state = self.write();
        state.suspects.remove(&part);
        if state.primaries.get(&part) != Some(primary) {
            return;
        }
        match problem {
            Some(problem) => drop(state.down.insert(part, problem.into())),
            None => drop(state.down.remove(&part)),
        }
    }
}

impl State {
    fn part(&self, key: &[u8]) -> Option<u32> {
        self.numbers.get(self.slots.primary(key)?).copied()
    }

    fn learn(&mut self, slots: Slots) {
        let mut primaries = BTreeMap::new();
        let mut unknown = Vec::new();
        for node in slots.primaries() {
            match self.numbers.get(node) {
                Some(number) => drop(primaries.insert(*number, node.clone())),
                None => unknown.push(node.clone()),
            }
        }
        // A node may have taken the slots of another one.
        unknown.retain(|node| {
            let former = slots.first_of(node).and_then(|slot| self.slots.at(slot));
            match former.and_then(|former| self.numbers.get(former)) {
                Some(number) if !primaries.contains_key(number) => {
                    primaries.insert(*number, node.clone());
                    false
                }
                _ => true,
            }
        });
        for node in unknown {
            let free = (0..).find(|number| !primaries.contains_key(number));
            primaries.extend(free.map(|number| (number, node)));
        }
        let replaced = |part: &u32| self.primaries.get(part) != primaries.get(part);
        self.has_moved |= self.down.keys().any(replaced);
        self.down.retain(|part, _| !replaced(part));
        self.suspects.retain(|part| !replaced(part));
        self.numbers = primaries.iter().map(|(number, node)| (node.clone(), *number)).collect();
        self.primaries = primaries;
        self.slots = slots;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(ranges: &[(u16, u16, &str)]) -> Slots {
        let ranges = ranges.iter().map(|(first, last, host)| {
            let host_len = host.len();
            format!("*3\r\n:{first}\r\n:{last}\r\n*2\r\n${host_len}\r\n{host}\r\n:1\r\n")
        });
        let ranges: Vec<_> = ranges.collect();
        let answer = format!("*{}\r\n{}", ranges.len(), ranges.concat());
        Slots::parse(&redis::parse_redis_value(answer.as_bytes()).unwrap(), "")
    }

    fn numbers(shards: &Shards) -> Vec<(u32, String)> {
        shards.all().into_iter().map(|shard| (shard.number, shard.primary.0)).collect()
    }

    fn of(pairs: &[(u32, &str)]) -> Vec<(u32, String)> {
        pairs.iter().map(|(number, host)| (*number, (*host).to_owned())).collect()
    }

    #[test]
    fn a_shard_keeps_its_number_when_another_node_takes_over() {
        let shards = Shards::default();
        shards.learn(slots(&[(0, 5_000, "a"), (5_001, 10_000, "b"), (10_001, 16_383, "c")]));
        assert_eq!(numbers(&shards), of(&[(0, "a"), (1, "b"), (2, "c")]));
        // The slot of `foo` is 12,182.
        assert_eq!(shards.part(b"foo"), Some(2));
        shards.learn(slots(&[(0, 5_000, "a"), (5_001, 10_000, "d"), (10_001, 16_383, "c")]));
        assert_eq!(numbers(&shards), of(&[(0, "a"), (1, "d"), (2, "c")]));
        // A new shard takes some slots of another shard, which stays.
        shards.learn(slots(&[
            (0, 2_000, "e"),
            (2_001, 5_000, "a"),
            (5_001, 10_000, "f"),
            (10_001, 16_383, "c"),
        ]));
        assert_eq!(numbers(&shards), of(&[(0, "a"), (1, "f"), (2, "c"), (3, "e")]));
        shards.learn(slots(&[(0, 5_000, "e"), (5_001, 16_383, "c")]));
        assert_eq!(numbers(&shards), of(&[(2, "c"), (3, "e")]));
        assert_eq!(shards.part(b"foo"), Some(2));
    }

    #[test]
    fn only_the_keys_of_a_dead_shard_are_refused() {
        let shards = Shards::default();
        shards.learn(slots(&[(0, 9_999, "a"), (10_000, 16_383, "b")]));
        assert!(shards.suspect(b"foo") && shards.problem(b"foo").is_none());
        let b = ("b".to_owned(), 1);
        assert_eq!(shards.due(), [(1, false, b.clone())]);
        shards.looked(1, &b, Some("does not answer"));
        assert!(shards.problem(b"foo").is_some_and(|problem| problem.contains("b:1")));
        // The slot of `{}foo` is 9,500.
        assert_eq!(shards.problem(b"{}foo"), None);
        assert!(!shards.take_moved());
        // Another primary: the state of the former one does not apply.
        shards.learn(slots(&[(0, 9_999, "a"), (10_000, 16_383, "c")]));
        assert!(shards.take_moved() && !shards.take_moved());
        assert_eq!(shards.problem(b"foo"), None);
        shards.looked(1, &b, Some("does not answer"));
        assert_eq!(shards.problem(b"foo"), None);
    }
}
