//! An L2 of several parts, such as the shards of a cluster: the smallest failing part must
//! not decide for the whole.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::common::*;
use bentocache::{Error, EventKind, Store};
use bentocache_driver::{Capabilities, DriverError, ErrorKind, KeyStream, L2Driver, Write};
use bentocache_testkit::MapL2;
use bytes::Bytes;

const PARTS: u32 = 3;

/// A map of three parts. A dead part fails, or hangs.
#[derive(Clone, Default)]
struct Sharded {
    map: MapL2,
    /// One bit for each part.
    dead: Arc<AtomicU32>,
    hangs: Arc<AtomicBool>,
    /// A dead part still answers reads, as a replica that has lost its primary.
    is_readable: Arc<AtomicBool>,
    /// Calls that reached the dead parts.
    wasted: Arc<AtomicU64>,
    /// Against the contract, the last of several answers is missing.
    is_short: Arc<AtomicBool>,
}

/// As a driver computes it.
fn part_of(key: &str) -> u32 {
    key.bytes().map(u32::from).sum::<u32>() % PARTS
}

/// The first key of that part, as a test names it, that no other number has had.
fn key_in(part: u32, number: u32) -> String {
    let names = (0..).map(|i| format!("k{number}-{i}"));
    names.into_iter().find(|name| part_of(&format!("bentocache:{name}")) == part).unwrap()
}

impl Sharded {
    fn kill(&self, part: u32) {
        self.dead.fetch_or(1 << part, SeqCst);
    }

    fn revive(&self) {
        self.dead.store(0, SeqCst);
    }

    fn is_dead(&self, part: u32) -> bool {
        self.dead.load(SeqCst) & (1 << part) != 0
    }

    async fn reach_to_read(&self, parts: Vec<u32>) -> Result<(), DriverError> {
        if self.is_readable.load(SeqCst) { Ok(()) } else { self.reach(parts).await }
    }

    async fn reach(&self, parts: Vec<u32>) -> Result<(), DriverError> {
        let Some(dead) = parts.into_iter().find(|part| self.is_dead(*part)) else { return Ok(()) };
        self.wasted.fetch_add(1, SeqCst);
        if self.hangs.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        Err(DriverError::new(ErrorKind::Unavailable, format!("{dead} is dead")))
    }

    /// Clears what can be reached of these parts.
    fn clear_in(&self, prefix: &str, parts: impl Iterator<Item = u32>) -> Result<(), DriverError> {
        let (dead, alive): (Vec<_>, Vec<_>) = parts.partition(|part| self.is_dead(*part));
        for key in self.map.all_keys() {
            if key.starts_with(prefix) && alive.contains(&part_of(&key)) {
                drop(self.map.take(&key));
            }
        }
        if dead.is_empty() {
            return Ok(());
        }
        let message = format!("parts {dead:?} are not cleared");
        Err(DriverError::new(ErrorKind::Unavailable, message).with_parts(dead))
    }
}

impl L2Driver for Sharded {
    fn name(&self) -> &'static str {
        "sharded"
    }
    fn capabilities(&self) -> Capabilities {
        self.map.capabilities()
    }
    fn part(&self, key: &str) -> Option<u32> {
        Some(part_of(key))
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.reach_to_read(vec![part_of(key)]).await?;
        self.map.get(key).await
    }
    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        self.reach_to_read(keys.iter().map(|key| part_of(key)).collect()).await?;
        let mut stored = self.map.get_many(keys).await?;
        if self.is_short.load(SeqCst) {
            stored.pop();
        }
        Ok(stored)
    }
    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        self.reach(vec![part_of(key)]).await?;
        self.map.set(key, value, ttl).await
    }
    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        self.reach(writes.iter().map(|write| part_of(write.key)).collect()).await?;
        self.map.set_many(writes).await
    }
    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        self.reach(vec![part_of(key)]).await?;
        self.map.insert(key, value, ttl).await
    }
    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        self.reach(keys.iter().map(|key| part_of(key)).collect()).await?;
        self.map.delete(keys).await
    }
    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        self.reach(vec![part_of(key)]).await?;
        self.map.delete_if(key, value).await
    }
    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        self.reach(vec![part_of(key)]).await?;
        self.map.update(key, expected, value, remaining).await
    }
    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.clear_in(prefix, 0..PARTS)
    }
    async fn clear_parts(&self, prefix: &str, parts: &[u32]) -> Result<(), DriverError> {
        self.clear_in(prefix, parts.iter().copied())
    }
    fn keys(&self, prefix: &str) -> KeyStream {
        self.map.keys(prefix)
    }
}

async fn node(world: &World, options: impl FnOnce(Store) -> Store) -> (Node, Sharded) {
    let l2 = Sharded { map: world.l2.clone(), ..Sharded::default() };
    let driver = l2.clone();
    let with = |store: Store| {
        options(store.l2(driver).l2_circuit_breaker("30s", 3).suppress_l2_errors(true))
    };
    (world.node_where(with).await, l2)
}

#[tokio::test(start_paused = true)]
async fn a_dead_part_leaves_the_calls_for_the_others_alone() {
    for hangs in [false, true] {
        let (node, l2) = node(&World::only_l2(), |store| store.suppress_l2_errors(false)).await;
        l2.hangs.store(hangs, SeqCst);
        for part in 0..PARTS {
            node.set(key_in(part, 0), 1_u32).await.unwrap();
        }
        l2.kill(1);
        let (mut failed, mut works) = (0, 0);
        for _ in 0..20 {
            for part in 0..PARTS {
                match node.get::<u32>(&key_in(part, 0)).await {
                    Ok(value) => {
                        assert_eq!(value, Some(1));
                        works += 1;
                    }
                    Err(_) => failed += 1,
                }
            }
        }
        assert_eq!((works, failed), (40, 20), "hangs: {hangs}");
        assert_eq!(l2.wasted.load(SeqCst), 3, "the breaker of the dead part is open");
        let opened = node.seen.count(|kind| matches!(kind, EventKind::BreakerOpened));
        assert_eq!(opened, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_with_a_dead_part_are_read_and_written_on_the_others() {
    let world = World::only_l2();
    let (node, l2) = node(&world, |store| store).await;
    let keys: Vec<String> = (0..30).map(|i| key_in(i % PARTS, i)).collect();
    node.set_many(keys.iter().map(|key| (key, 1_u32))).await.unwrap();
    l2.kill(2);
    for hangs in [false, true] {
        l2.hangs.store(hangs, SeqCst);
        // What cannot be read is a miss where errors are suppressed.
        let found = node.get_many::<u32>(&keys).await.unwrap();
        for (i, found) in found.iter().enumerate() {
            let wanted = (i % 3 != 2).then_some(1);
            assert_eq!(*found, wanted, "{i}, hangs: {hangs}");
        }
    }
    l2.hangs.store(false, SeqCst);
    // A write on the others is not held up.
    node.set_many(keys.iter().map(|key| (key, 2_u32))).await.unwrap();
    for (i, key) in keys.iter().enumerate() {
        let wanted = if i % 3 == 2 { 1 } else { 2 };
        assert_eq!(node.document(key).unwrap()["value"], wanted, "{i}");
    }
    assert_eq!(node.delete_many(&keys).await.unwrap(), 20);
    assert_eq!(world.l2.len(), 10);
    // Both wait for the dead part.
    assert_eq!(node.get_many::<u32>(&keys).await.unwrap(), [None; 30]);
    l2.revive();
    pass(secs(40)).await;
    assert_eq!(world.l2.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_failed_on_one_part_is_an_error_where_errors_count() {
    let (node, l2) = node(&World::only_l2(), |store| store.suppress_l2_errors(false)).await;
    l2.kill(0);
    let keys = [key_in(0, 0), key_in(1, 0)];
    assert!(node.get_many::<u32>(&keys).await.is_err());
    let stored = node.set_many([(&keys[0], 1_u32), (&keys[1], 1)]).await;
    let Err(Error::Keys { failed, .. }) = stored else { panic!("{stored:?}") };
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(node.document(&keys[1]).is_some());
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_dead_part_holds_up_no_repetition_on_the_others() {
    let world = World::only_l2();
    let (node, l2) = node(&world, |store| store.l2_circuit_breaker("off", 1)).await;
    let alive = key_in(0, 2_000);
    for i in 0..2_000 {
        world.l2.put(&format!("bentocache:{}", key_in(1, i)), "old", None);
    }
    world.l2.put(&format!("bentocache:{alive}"), "old", None);
    l2.kill(1);
    for i in 0..2_000 {
        node.delete(key_in(1, i)).await.unwrap();
    }
    l2.kill(0);
    node.delete(&alive).await.unwrap();
    assert_eq!(world.l2.len(), 2_001);
    l2.dead.store(1 << 1, SeqCst);
    pass(secs(5)).await;
    assert_eq!(world.l2.len(), 2_000, "the part that came back has its deletion");
}

#[tokio::test(start_paused = true)]
async fn a_clear_is_made_where_it_can_and_waits_for_the_dead_part_only() {
    let world = World::new();
    let (node, l2) = node(&world, |store| store).await;
    let keys: Vec<String> = (0..6).map(|i| key_in(i % PARTS, i)).collect();
    node.set_many(keys.iter().map(|key| (key, 1_u32))).await.unwrap();
    l2.kill(1);
    node.seen.take();
    node.clear().await.unwrap();
    let texts = node.seen.texts();
    assert!(texts.iter().any(|text| text == "l2 failed clear"), "{texts:?}");
    assert!(texts.iter().any(|text| text == "queued 1"), "{texts:?}");
    assert_eq!(world.l2.len(), 2, "the living parts are cleared");
    assert_eq!(node.get_many::<u32>(&keys).await.unwrap(), [None; 6]);

    // The living parts work normally, and keep new values.
    node.set_many(keys.iter().map(|key| (key, 2_u32))).await.unwrap();
    assert_eq!(node.document(&keys[0]).unwrap()["value"], 2);
    assert_eq!(node.document(&keys[1]).unwrap()["value"], 1);
    pass(secs(20)).await;
    assert_eq!(node.document(&keys[0]).unwrap()["value"], 2);
    l2.revive();
    pass(secs(40)).await;
    for key in &keys {
        assert_eq!(node.document(key).unwrap()["value"], 2, "{key}");
        assert_eq!(node.get::<u32>(key).await.unwrap(), Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_that_fails_on_one_part_says_so_where_errors_count() {
    let (node, l2) = node(&World::only_l2(), |store| store.suppress_l2_errors(false)).await;
    l2.kill(2);
    let Err(Error::L2 { source, .. }) = node.clear().await else { panic!("no error") };
    assert_eq!(source.to_string(), "parts [2] are not cleared");
}

#[tokio::test(start_paused = true)]
async fn tags_on_the_living_parts_are_valid() {
    let world = World::new();
    let (a, l2) = node(&world, |store| store).await;
    for i in 0..30_u32 {
        a.set(format!("v{i}"), i).tags([format!("t{i}")]).await.unwrap();
    }
    l2.kill(1);
    a.delete_by_tag((0..30).map(|i| format!("t{i}"))).await.unwrap();
    for i in 0..30 {
        assert_eq!(a.get::<u32>(&format!("v{i}")).await.unwrap(), None, "{i}");
    }
    l2.revive();
    pass(secs(40)).await;
    let (other, _) = node(&world, |store| store).await;
    for i in 0..30 {
        assert_eq!(other.get::<u32>(&format!("v{i}")).await.unwrap(), None, "{i}");
    }
}

/// The part of the marker and that of the bucket of a tag.
async fn parts_of_tag(tag: &str) -> (u32, u32) {
    let world = World::only_l2();
    world.node().await.delete_by_tag([tag]).await.unwrap();
    let part = |kind: &str| {
        let keys = world.l2.all_keys();
        part_of(keys.iter().find(|key| key.contains(kind)).unwrap())
    };
    (part("___bc:t:"), part("___bc:b:"))
}

/// That many tags whose markers and buckets are in these parts.
async fn tags_in(marker: u32, bucket: u32, count: usize) -> Vec<String> {
    let mut tags = Vec::new();
    for i in 0.. {
        let tag = format!("t{i}");
        if parts_of_tag(&tag).await == (marker, bucket) {
            tags.push(tag);
        }
        if tags.len() == count {
            break;
        }
    }
    tags
}

#[tokio::test(start_paused = true)]
async fn a_dead_part_makes_only_its_own_tags_unknown() {
    let sorts = [(tags_in(0, 2, 2).await, true), (tags_in(1, 2, 1).await, false)];
    let sorts = sorts.into_iter().chain([(tags_in(2, 1, 1).await, false)]);
    let (mut alive, mut dead) = (Vec::new(), Vec::new());
    for (tags, is_alive) in sorts {
        if is_alive { alive.extend(tags) } else { dead.extend(tags) }
    }
    for (hangs, is_marked) in [(false, false), (true, false), (false, true), (true, true)] {
        let world = World::new();
        let (writer, _) = node(&world, |store| store).await;
        if is_marked {
            writer.delete_by_tag(alive.iter().chain(&dead)).await.unwrap();
        }
        // For each tag a value that has only that, and one that has an alive tag as well.
        let mut keys = Vec::new();
        for (number, tag) in alive.iter().chain(&dead).enumerate() {
            let tags = [vec![tag], vec![tag, &alive[0]]];
            for (tags, place) in tags.into_iter().zip([0, 1]) {
                let key = key_in(0, 2 * number as u32 + place);
                writer.set(&key, 1_u32).tags(tags).await.unwrap();
                keys.push(key);
            }
        }
        settle().await;
        let (reader, l2) = node(&world, |store| store).await;
        l2.hangs.store(hangs, SeqCst);
        l2.kill(1);
        for round in 0..2 {
            let found = reader.get_many::<u32>(&keys).await.unwrap();
            let expected = [Some(1); 4].into_iter().chain([None; 4]);
            let case = format!("hangs: {hangs}, marked: {is_marked}, round {round}");
            assert_eq!(found, expected.collect::<Vec<_>>(), "{case}");
        }
        l2.revive();
        pass(secs(31)).await;
        assert_eq!(reader.get_many::<u32>(&keys).await.unwrap(), [Some(1); 8]);
    }
}

/// What is known of a tag counts while its part is dead, as that of all tags in an outage.
#[tokio::test(start_paused = true)]
async fn what_is_known_of_the_tags_of_a_dead_part_counts_and_the_others_are_asked_for() {
    let world = World::without_bus();
    let alive = tags_in(0, 2, 1).await;
    let mut tags = alive.clone();
    for (marker, bucket) in [(1, 1), (1, 2), (2, 1)] {
        tags.extend(tags_in(marker, bucket, 1).await);
    }
    let (reader, l2) = node(&world, |store| store).await;
    let keys: Vec<String> = (0..4).map(|number| key_in(0, number)).collect();
    for (key, tag) in keys.iter().zip(&tags) {
        reader.set(key, 1_u32).tags([tag]).await.unwrap();
    }
    assert_eq!(reader.get_many::<u32>(&keys).await.unwrap(), [Some(1); 4]);
    l2.kill(1);
    pass(secs(2)).await;
    assert_eq!(reader.get_many::<u32>(&keys).await.unwrap(), [Some(1); 4]);
    // That the one part fails does not keep the reader from asking the other.
    world.node().await.delete_by_tag(&alive).await.unwrap();
    pass(secs(2)).await;
    let expected = [None, Some(1), Some(1), Some(1)];
    assert_eq!(reader.get_many::<u32>(&keys).await.unwrap(), expected);
}

/// As an L2 that stands still as a whole: one caller finds out whether the part answers again,
/// and tags in other parts are asked for all the time.
#[tokio::test(start_paused = true)]
async fn a_part_that_stands_still_makes_one_caller_wait_and_none_that_needs_another_part() {
    let world = World::without_bus();
    let (alive, dead) = (tags_in(0, 2, 1).await, tags_in(1, 1, 1).await);
    let (reader, l2) = node(&world, |store| store.l2_circuit_breaker("off", 1)).await;
    let (key_alive, key_dead) = (key_in(0, 0), key_in(0, 1));
    reader.set(&key_alive, 1_u32).tags(&alive).await.unwrap();
    reader.set(&key_dead, 1_u32).tags(&dead).await.unwrap();
    l2.hangs.store(true, SeqCst);
    l2.kill(1);
    pass(ms(1_001)).await;
    assert_eq!(get(&reader, &key_dead).await, Some(1));
    for _ in 0..3 {
        pass(ms(1_001)).await;
        // Its look-up succeeds, which says nothing of the other part.
        assert_eq!(get(&reader, &key_alive).await, Some(1));
        let first = tokio::spawn(reader.get::<u32>(&key_dead).into_future());
        settle().await;
        let start = tokio::time::Instant::now();
        assert_eq!(get(&reader, &key_dead).await, Some(1));
        assert_eq!(start.elapsed(), ms(0));
        assert_eq!(first.await.unwrap().unwrap(), Some(1));
    }
    world.node().await.delete_by_tag(&alive).await.unwrap();
    pass(ms(1_001)).await;
    let keys = [key_alive.clone(), key_dead];
    let both = tokio::spawn(reader.get_many::<u32>(&keys).into_future());
    settle().await;
    assert_eq!(get(&reader, &key_alive).await, None);
    assert_eq!(both.await.unwrap().unwrap(), [None, Some(1)]);
}

/// Neither their markers nor their buckets wait, and none of their buckets is replaced: that would
/// make values stale that have other tags of these buckets.
#[tokio::test(start_paused = true)]
async fn an_invalidation_that_a_dead_part_fails_is_complete_in_the_others() {
    let (mut alive, dead) = (tags_in(0, 2, 4).await, tags_in(1, 1, 4).await);
    alive.extend(tags_in(2, 0, 4).await);
    let world = World::new();
    let (a, l2) = node(&world, |store| store).await;
    for (number, tag) in alive.iter().chain(&dead).enumerate() {
        a.set(key_in(0, number as u32), 1_u32).tags([tag]).await.unwrap();
    }
    let buckets = || {
        let keys = world.l2.all_keys().into_iter().filter(|key| key.contains("___bc:b:"));
        keys.filter(|key| part_of(key) != 1)
            .map(|key| {
                let bucket: serde_json::Value =
                    serde_json::from_slice(&world.l2.peek(&key).unwrap()).unwrap();
                (key, bucket["value"]["id"].as_u64().unwrap())
            })
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = buckets();
    l2.kill(1);
    a.delete_by_tag(alive.iter().chain(&dead)).await.unwrap();
    assert_eq!(buckets(), before);
    for tag in &alive {
        assert!(world.l2.peek(&format!("bentocache:___bc:t:{tag}")).is_some(), "{tag}");
    }
    l2.revive();
    pass(secs(40)).await;
    let (other, _) = node(&world, |store| store).await;
    for number in 0..12 {
        assert_eq!(other.get::<u32>(&key_in(0, number)).await.unwrap(), None, "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn buckets_are_stored_on_the_living_parts_where_another_part_takes_none() {
    let tags = [tags_in(0, 1, 3).await, tags_in(0, 2, 3).await].concat();
    // Whichever comes first.
    for (alive, dead) in [(1, 2), (2, 1)] {
        let world = World::new();
        let (node, l2) = node(&world, |store| store).await;
        l2.is_readable.store(true, SeqCst);
        l2.kill(dead);
        node.set(key_in(0, 0), 1_u32).tags(&tags).await.unwrap();
        let buckets = world.l2.all_keys().into_iter().filter(|key| key.contains("___bc:b:"));
        assert_eq!(buckets.map(|key| part_of(&key)).collect::<Vec<_>>(), [alive; 3]);
    }
}

/// The parts that know of a clear of that namespace.
async fn parts_of_clear(namespace: &str) -> Vec<u32> {
    let world = World::only_l2().without_clear();
    world.node().await.namespace(namespace).clear().await.unwrap();
    world.l2.all_keys().iter().map(|key| part_of(key)).collect()
}

/// Of a store that cannot clear.
#[tokio::test(start_paused = true)]
async fn a_dead_part_makes_only_its_own_namespaces_unknown() {
    let of_store = parts_of_clear("").await;
    let dead_part = (0..PARTS).find(|part| !of_store.contains(part)).unwrap();
    let (mut alive, mut dead) = (None, None);
    for i in 0.. {
        let name = format!("n{i}");
        let is_dead = parts_of_clear(&name).await.contains(&dead_part);
        // Their keys are in a living part.
        let key = (0..).map(|i| format!("{name}:k{i}"));
        let key = key.into_iter().find(|key| part_of(&format!("bentocache:{key}")) != dead_part);
        *(if is_dead { &mut dead } else { &mut alive }) = key;
        if alive.is_some() && dead.is_some() {
            break;
        }
    }
    let keys = [alive.unwrap(), dead.unwrap()];
    let world = World::new().without_clear();
    let (writer, _) = node(&world, |store| store).await;
    writer.set_many(keys.iter().map(|key| (key, 1_u32))).await.unwrap();
    let (reader, l2) = node(&world, |store| store).await;
    l2.kill(dead_part);
    assert_eq!(reader.get_many::<u32>(&keys).await.unwrap(), [Some(1), None]);
    l2.revive();
    pass(secs(31)).await;
    assert_eq!(reader.get_many::<u32>(&keys).await.unwrap(), [Some(1); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_gives_too_few_answers_moves_no_value_to_another_key() {
    let world = World::new();
    let l2 = Sharded::default();
    let keys: Vec<String> = (0..6).map(|i| key_in(i / 2, i)).collect();
    let writer = world.node_where(|s: Store| s.l2(l2.clone())).await;
    for (number, key) in keys.iter().enumerate() {
        writer.set(key, number).await.unwrap();
    }
    let reader = world.node_where(|s: Store| s.l2(l2.clone())).await;
    l2.is_short.store(true, SeqCst);
    let found: Vec<Option<usize>> = reader.get_many(&keys).await.unwrap();
    assert_eq!(found, [Some(0), None, Some(2), None, Some(4), None]);
}

/// Each part gets a round trip of its own, since the others say nothing about it.
#[tokio::test(start_paused = true)]
async fn the_health_of_each_part_is_asked() {
    let sharded = Sharded::default();
    let store = Store::new().l2(sharded.clone()).suppress_l2_errors(true);
    let cache = bentocache::BentoCache::builder().store("s", store).build().await.unwrap();
    let l2 = async || cache.health().await.stores.remove(0).l2.unwrap();
    let health = l2().await;
    assert_eq!((health.parts, health.failed_parts, health.is_reachable()), (3, 0, true));
    for dead in 0..PARTS {
        sharded.kill(dead);
        let health = l2().await;
        assert_eq!((health.parts, health.failed_parts), (3, 1), "part {dead}");
        assert!(!health.is_reachable());
        sharded.revive();
        assert_eq!(l2().await.failed_parts, 0);
    }
}
