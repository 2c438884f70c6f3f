//! Messages that wait to be published.
//!
//! No invalidation is lost here. When too many messages wait, or a message is too large for the
//! bus, a smaller message that covers it takes its place: half of the keys, or a clear of their
//! namespace, which makes the other nodes drop part of their L1.

use std::collections::VecDeque;

use crate::wire::message::Kind;

/// Keys per message.
const MOST_KEYS: usize = 1_000;

/// Keys of one namespace with the same kind of change.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) kind: Kind,
    pub(super) namespace: Box<str>,
    /// Each key with the time of its change, in ms since the epoch.
    pub(super) keys: Vec<(Box<str>, u64)>,
    /// The time of a clear that a caller requested. `None` for a clear that only replaces many
    /// keys.
    pub(super) at: Option<u64>,
    /// When the first change was queued, by the cache's clock.
    pub(super) since: u64,
}

impl Outgoing {
    fn clear(namespace: &str, since: u64) -> Self {
        Self { kind: Kind::Clear, namespace: namespace.into(), keys: Vec::new(), at: None, since }
    }

    fn size(&self) -> usize {
        const OVERHEAD: usize = 64;
        OVERHEAD
            + self.namespace.len()
            + self.keys.iter().map(|(key, _)| key_size(key)).sum::<usize>()
    }

    fn count(&self) -> usize {
        self.keys.len().max(1)
    }

    /// Smaller messages that cover at least as much. Empty for a clear of everything.
    pub(super) fn split(mut self) -> Vec<Self> {
        if self.keys.len() > 1 {
            let keys = self.keys.split_off(self.keys.len() / 2);
            let namespace = self.namespace.clone();
            let rest = Self { namespace, keys, ..self };
            return vec![self, rest];
        }
        if self.kind != Kind::Clear {
            return vec![Self::clear(&self.namespace, self.since)];
        }
        let outer = self.namespace.rfind(':').map_or("", |at| &self.namespace[..at]);
        match self.namespace.is_empty() {
            true => Vec::new(),
            false => vec![Self { namespace: outer.into(), ..self }],
        }
    }
}

fn key_size(key: &str) -> usize {
    size_of::<(Box<str>, u64)>() + key.len()
}

#[derive(Debug)]
pub(super) struct Outbox {
    messages: VecDeque<Outgoing>,
    keys: usize,
    bytes: usize,
    most_bytes: usize,
    /// The number of keys that may wait while publishing fails.
    most_keys: usize,
    pub(super) is_failing: bool,
}

impl Outbox {
    pub(super) fn new(most_keys: usize, most_bytes: usize) -> Self {
        let most_keys = most_keys.max(MOST_KEYS);
        Self {
            messages: VecDeque::new(),
            keys: 0,
            bytes: 0,
            most_bytes,
            most_keys,
            is_failing: false,
        }
    }

    /// How many keys wait.
    pub(super) fn len(&self) -> usize {
        self.keys
    }

    /// The time since which the oldest message waits, by the cache's clock.
    pub(super) fn waits_since(&self) -> Option<u64> {
        self.messages.iter().map(|message| message.since).min()
    }

    /// Adds a key, or the clear of a namespace, changed at `at` (ms since the epoch). Returns the
    /// number of keys that were merged into a clear because too many wait.
    pub(super) fn push(
        &mut self,
        kind: Kind,
        namespace: &str,
        key: Option<(&str, u64)>,
        at: u64,
        now: u64,
    ) -> usize {
        let key = key.map(|(key, at)| (Box::from(key), at));
        match (self.messages.back_mut(), key) {
            (Some(last), Some(key))
                if last.kind == kind
                    && *last.namespace == *namespace
                    && last.keys.len() < MOST_KEYS
                    && kind != Kind::Clear =>
            {
                self.bytes += key_size(&key.0);
                self.keys += 1;
                last.keys.push(key);
            }
            (_, key) => {
                let at = key.is_none().then_some(at);
                let keys = key.into_iter().collect();
                self.add_last(Outgoing { kind, namespace: namespace.into(), keys, at, since: now });
            }
        }
        let mut merged = 0;
        while self.is_full() {
            match self.merge(now) {
                0 => break,
                keys => merged += keys,
            }
        }
        merged
    }

    fn is_full(&self) -> bool {
        self.bytes > self.most_bytes || (self.is_failing && self.keys > self.most_keys)
    }

    /// Replaces all messages about one namespace, that of the oldest message, by one clear of it.
    fn merge(&mut self, now: u64) -> usize {
        let Some(oldest) = self.messages.iter().find(|message| message.kind != Kind::Clear) else {
            return 0;
        };
        let namespace = oldest.namespace.clone();
        let before = self.keys;
        let mut since = now;
        let messages = std::mem::take(&mut self.messages);
        (self.keys, self.bytes) = (0, 0);
        for message in messages {
            if message.namespace == namespace && message.kind != Kind::Clear {
                since = since.min(message.since);
            } else {
                self.add_last(message);
            }
        }
        self.add_last(Outgoing::clear(&namespace, since));
        before - self.keys + 1
    }

    fn add_last(&mut self, message: Outgoing) {
        self.keys += message.count();
        self.bytes += message.size();
        self.messages.push_back(message);
    }

    /// Takes the message to publish next. The caller returns it with [`put_back`](Self::put_back)
    /// if publishing fails.
    pub(super) fn take(&mut self) -> Option<Outgoing> {
        let next = self.messages.pop_front()?;
        self.keys -= next.count();
        self.bytes -= next.size();
        Some(next)
    }

    /// Puts messages that were not published in front of all others.
    pub(super) fn put_back(&mut self, messages: Vec<Outgoing>) {
        for message in messages.into_iter().rev() {
            self.keys += message.count();
            self.bytes += message.size();
            self.messages.push_front(message);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn outbox(keys: usize, bytes: usize) -> Outbox {
        Outbox { most_keys: keys, ..Outbox::new(0, bytes) }
    }

    fn summary(outbox: &mut Outbox) -> Vec<(Kind, String, usize)> {
        let all = std::iter::from_fn(|| outbox.take());
        all.map(|m| (m.kind, m.namespace.to_string(), m.keys.len())).collect()
    }

    #[test]
    fn neighbours_of_one_kind_and_namespace_become_one_message() {
        let mut outbox = outbox(10_000, 1 << 20);
        for (kind, namespace) in
            [(Kind::Set, "a"), (Kind::Set, "a"), (Kind::Delete, "a"), (Kind::Delete, "b")]
        {
            outbox.push(kind, namespace, Some(("k", 1)), 1, 1);
        }
        outbox.push(Kind::Clear, "b", None, 1, 1);
        assert_eq!(outbox.len(), 5);
        let (a, b) = ("a".to_owned(), "b".to_owned());
        let expected =
            [(Kind::Set, a.clone(), 2), (Kind::Delete, a, 1), (Kind::Delete, b.clone(), 1)];
        assert_eq!(summary(&mut outbox), [&expected[..], &[(Kind::Clear, b, 0)]].concat());
        assert_eq!((outbox.keys, outbox.bytes), (0, 0));
    }

    #[test]
    fn while_the_bus_works_no_number_of_keys_is_too_many() {
        let mut outbox = outbox(10, 1 << 20);
        for _ in 0..2_500 {
            assert_eq!(outbox.push(Kind::Delete, "a", Some(("k", 1)), 1, 1), 0);
        }
        let counts: Vec<_> = summary(&mut outbox).into_iter().map(|(_, _, keys)| keys).collect();
        assert_eq!(counts, [1_000, 1_000, 500]);
    }

    #[test]
    fn too_many_keys_while_it_fails_become_a_clear_of_their_namespace() {
        let mut outbox = outbox(10, 1 << 20);
        outbox.is_failing = true;
        outbox.push(Kind::Set, "b", Some(("k", 1)), 1, 1);
        let merged: usize =
            (0..12).map(|_| outbox.push(Kind::Delete, "a", Some(("k", 1)), 1, 2)).sum();
        assert_eq!(merged, 1 + 10, "that of b went first");
        let left = summary(&mut outbox);
        assert_eq!(left[0], (Kind::Clear, "b".to_owned(), 0));
        assert_eq!(left[1], (Kind::Clear, "a".to_owned(), 0));
        assert_eq!((outbox.keys, outbox.bytes), (0, 0));
    }

    #[test]
    fn too_many_bytes_become_a_clear_also_while_it_works() {
        let mut outbox = outbox(10_000, 10_000);
        let key = "k".repeat(1_000);
        for _ in 0..20 {
            outbox.push(Kind::Delete, "a", Some((&key, 1)), 1, 1);
            assert!(outbox.bytes <= 10_000 + 2_000);
        }
        let left = summary(&mut outbox);
        assert_eq!(left[0], (Kind::Clear, "a".to_owned(), 0));
    }

    #[test]
    fn a_message_that_is_too_large_is_split_down_to_a_clear_of_everything() {
        let keys = |count| (0..count).map(|_| (Box::from("k"), 1)).collect();
        let message = |keys| Outgoing {
            kind: Kind::Delete,
            namespace: "a:b".into(),
            keys,
            at: None,
            since: 1,
        };
        let halves = message(keys(5)).split();
        assert_eq!(halves.iter().map(|half| half.keys.len()).collect::<Vec<_>>(), [2, 3]);
        let mut one = message(keys(1)).split();
        for namespace in ["a:b", "a", ""] {
            let clear = one.pop().unwrap();
            assert_eq!((clear.kind, &*clear.namespace), (Kind::Clear, namespace));
            one = clear.split();
        }
        assert!(one.is_empty());
    }

    #[test]
    fn what_was_not_published_goes_first_again() {
        let mut outbox = outbox(10, 1 << 20);
        outbox.push(Kind::Delete, "a", Some(("k", 1)), 1, 1);
        outbox.push(Kind::Delete, "b", Some(("k", 1)), 1, 1);
        let first = outbox.take().unwrap();
        outbox.put_back(vec![first]);
        assert_eq!((outbox.len(), &*outbox.take().unwrap().namespace), (2, "a"));
    }
}
