//! A server may evict any key. What is missing proves nothing: no invalidated value becomes fresh again
//! because metadata were lost, and the metadata stay bounded.

use std::collections::HashSet;

use crate::common::{Node, World, ms, pass, secs, settle};
use crate::races::{Source, fresh};
use bentocache::driver::{BusDriver, Topic};
use bentocache::{Context, Error};
use bentocache_engine::wire::message::{self, Kind, Sender};
use bentocache_testkit::{MapL2, Ops};
use fastrand::Rng;
use serde_json::{Value, json};

const MARKER: &str = "___bc:t:";
const BUCKET: &str = "___bc:b:";

async fn set(node: &Node, key: &str, value: u32, tags: &[&str]) {
    node.set(key, value).tags(tags.iter().copied()).await.unwrap();
}

fn keys(map: &MapL2, part: &str) -> Vec<String> {
    map.all_keys().into_iter().filter(|key| key.contains(part)).collect()
}

fn evict(map: &MapL2, part: &str) -> usize {
    let keys = keys(map, part);
    keys.iter().for_each(|key| drop(map.take(key)));
    keys.len()
}

/// The number of the bucket of a tag.
async fn bucket_of(tag: &str) -> String {
    let node = World::without_bus().node().await;
    set(&node, "k", 1, &[tag]).await;
    let key = keys(&node.map, BUCKET).remove(0);
    key.rsplit_once(':').unwrap().1.to_owned()
}

/// Tags of the same bucket as `tag`.
async fn neighbours(tag: &str, count: usize) -> Vec<String> {
    let node = World::without_bus().node().await;
    let wanted = bucket_of(tag).await;
    let mut found = Vec::new();
    for i in 0.. {
        if found.len() == count {
            break;
        }
        let name = format!("neighbour {i}");
        set(&node, "k", 1, &[&name]).await;
        let keys = keys(&node.map, BUCKET);
        if keys.iter().any(|key| key.rsplit_once(':').unwrap().1 == wanted) {
            found.push(name);
        }
        evict(&node.map, BUCKET);
        // So that the bucket is looked for again.
        node.clear().await.unwrap();
    }
    found
}

#[tokio::test(start_paused = true)]
async fn a_lost_marker_brings_no_value_back() {
    for world in [World::new(), World::without_bus(), World::only_l2()] {
        for buckets_too in [false, true] {
            let (a, b) = (world.node().await, world.node().await);
            set(&a, "k", 1, &["t", "u"]).await;
            settle().await;
            assert_eq!(fresh(&b, "k").await, Some(1));
            a.delete_by_tag(["t"]).await.unwrap();
            pass(ms(1_001)).await;
            assert_eq!(evict(&world.l2, MARKER), 1);
            if buckets_too {
                evict(&world.l2, BUCKET);
            }
            let third = world.node().await;
            for round in 0..3 {
                for node in [&a, &b, &third] {
                    assert_eq!(fresh(node, "k").await, None, "{buckets_too} {round}");
                }
                pass(ms(1_001)).await;
            }
            // What is written afterwards is valid everywhere.
            set(&b, "k", 2, &["t", "u"]).await;
            pass(ms(1_001)).await;
            for node in [&b, &a, &world.node().await] {
                assert_eq!(fresh(node, "k").await, Some(2), "{buckets_too}");
            }
            a.clear().await.unwrap();
            settle().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_marker_alone_costs_no_valid_value() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    set(&a, "k", 1, &["t"]).await;
    evict(&world.l2, MARKER);
    for node in [&a, &b, &world.node().await] {
        assert_eq!(fresh(node, "k").await, Some(1));
    }
    // Others have written since without having seen the marker.
    let third = world.node().await;
    set(&third, "l", 2, &["t"]).await;
    settle().await;
    for node in [&a, &b, &world.node().await] {
        assert_eq!(fresh(node, "l").await, Some(2));
    }
}

/// The list of a bucket holds 64 invalidations. What it does not reach back to is not known.
#[tokio::test(start_paused = true)]
async fn a_lost_marker_that_the_bucket_lists_no_more_brings_no_value_back() {
    let tags = neighbours("t", 2).await;
    for world in [World::new(), World::without_bus(), World::only_l2()] {
        let (a, b) = (world.node().await, world.node().await);
        set(&a, "k", 1, &["t"]).await;
        settle().await;
        assert_eq!(fresh(&b, "k").await, Some(1));
        a.delete_by_tag(["t"]).await.unwrap();
        for i in 0..70 {
            a.delete_by_tag([tags[i % 2].as_str()]).await.unwrap();
        }
        world.l2.take("bentocache:___bc:t:t").unwrap();
        pass(ms(1_001)).await;
        for node in [&a, &b, &world.node().await] {
            assert_eq!(fresh(node, "k").await, None);
        }
        set(&b, "k", 2, &["t"]).await;
        pass(ms(1_001)).await;
        for node in [&a, &b, &world.node().await] {
            assert_eq!(fresh(node, "k").await, Some(2));
        }
    }
}

/// The tag is not known before the factory has chosen it, and its invalidation leaves no trace.
#[tokio::test(start_paused = true)]
async fn a_tag_that_a_factory_adds_may_have_been_invalidated_while_it_ran() {
    for world in [World::new(), World::without_bus(), World::only_l2()] {
        for evicted in [MARKER, "___bc:"] {
            let (node, other) = (world.node().await, world.node().await);
            set(&other, "other", 1, &["t"]).await;
            pass(ms(10)).await;
            let source = Source::held();
            let run = source.clone();
            let call = crate::races::go(node.get_or_set("k", move |cx: Context<u32>| async move {
                run.run().await;
                cx.tags(["t"]);
                Ok::<_, Error>(1)
            }));
            source.begun(1).await;
            pass(ms(10)).await;
            other.delete_by_tag(["t"]).await.unwrap();
            settle().await;
            evict(&world.l2, evicted);
            source.release();
            assert_eq!(call.await.unwrap().unwrap(), 1);
            for node in [&node, &other, &world.node().await] {
                assert_eq!(fresh(node, "k").await, None, "{evicted}");
            }
            node.clear().await.unwrap();
            settle().await;
        }
    }
}

/// Node keeps no buckets. What it tells on the bus counts all the same.
#[tokio::test(start_paused = true)]
async fn a_message_about_a_tag_counts_although_its_marker_is_lost() {
    let world = World::new();
    let node = world.node().await;
    node.set("k", 1_u32).tags(["t"]).skip_l2_write(true).await.unwrap();
    assert_eq!(fresh(&node, "k").await, Some(1));
    for bytes in message::encode(&Sender::random(), Kind::Set, "bentocache", &["___bc:t:t"]) {
        let topic = Topic::new("bentocache.notifications:s", "bentocache:");
        world.bus.publish(topic, bytes).await.unwrap();
    }
    settle().await;
    assert_eq!(fresh(&node, "k").await, None);
}

/// The bucket was lost and made again; a node that has not noticed agrees with the others soon.
#[tokio::test(start_paused = true)]
async fn nodes_agree_again_after_a_bucket_was_lost() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let (source_a, source_b) = (Source::new(), Source::new());
    let read = async |node: &Node, source: &Source, key: String| {
        node.get_or_set(&key, source.gives(1_u32)).tags(["t"]).await.unwrap();
        settle().await;
    };
    for i in 0..50 {
        read(&a, &source_a, format!("k{i}")).await;
        read(&b, &source_b, format!("k{i}")).await;
    }
    assert_eq!((source_a.runs(), source_b.runs()), (50, 0));
    evict(&world.l2, BUCKET);
    let fresh_node = world.node().await;
    for _ in 0..5 {
        for i in 0..100 {
            for node in [&a, &fresh_node, &b] {
                read(node, &source_a, format!("k{i}")).await;
            }
            pass(ms(50)).await;
        }
    }
    // 50 new ones; 50 unprovable ones; some that `a` has written before it noticed.
    assert!(source_a.runs() <= 50 + 50 + 50 + 70, "{} runs", source_a.runs());
    let runs = source_a.runs();
    for node in [&a, &fresh_node, &b, &world.node().await] {
        for i in 0..100 {
            read(node, &source_a, format!("k{i}")).await;
        }
    }
    assert_eq!(source_a.runs(), runs, "all agree in the end");
}

/// Shows the number of factory runs with `--nocapture`; two are the least.
#[allow(clippy::print_stdout)]
#[tokio::test(start_paused = true)]
async fn invalidated_neighbours_cost_a_tag_that_was_never_invalidated_next_to_nothing() {
    for world in [World::new(), World::without_bus()] {
        let (a, b) = (world.node().await, world.node().await);
        let tags = neighbours("t", 4).await;
        let source = Source::new();
        for i in 0..1_000 {
            a.delete_by_tag([tags[i % tags.len()].as_str()]).await.unwrap();
            settle().await;
            for node in [&a, &b] {
                for key in ["k", "l"] {
                    node.get_or_set(key, source.gives(1_u32)).tags(["t"]).await.unwrap();
                }
            }
            if i % 100 == 99 {
                // A node that begins now finds what the others have.
                let anew = world.node().await;
                anew.get_or_set("k", source.gives(1_u32)).tags(["t"]).await.unwrap();
            }
        }
        println!("{} factory runs for 4,010 reads", source.runs());
        assert!(source.runs() <= 40, "{} runs", source.runs());
    }
}

#[tokio::test(start_paused = true)]
async fn twenty_thousand_tags_that_were_never_invalidated_leave_1024_keys() {
    let world = World::new();
    let node = world.node().await;
    for i in 0..20_000 {
        let tag = format!("user:{i}");
        node.set("k", 1_u32).tags([tag]).await.unwrap();
    }
    let metadata = keys(&world.l2, "___bc:");
    assert!((1_000..=1_024).contains(&metadata.len()), "{} keys", metadata.len());
    let days = |key: &String| world.l2.remaining(key).unwrap().as_secs() / (24 * 3_600);
    let lives: HashSet<u64> = metadata.iter().map(days).collect();
    assert!(lives.iter().all(|days| (31..=62).contains(days)), "{lives:?}");
    assert!(lives.len() > 20, "they end together: {lives:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_of_tags_is_as_documented() {
    let world = World::new();
    let node = world.node().await;
    node.delete_by_tag(["b"]).await.unwrap();
    set(&node, "k", 1, &["a", "b"]).await;
    let documents: Vec<Value> = keys(&world.l2, BUCKET)
        .iter()
        .map(|key| serde_json::from_slice(&world.l2.peek(key).unwrap()).unwrap())
        .collect();
    assert_eq!(documents.len(), 2);
    let entry = node.document("k").unwrap();
    let marker = node.document("___bc:t:b").unwrap()["value"].clone();
    assert_eq!(entry["tagMarkers"], json!([0, marker]));
    let find = |i: usize| {
        let id = &entry["tagBuckets"][i][0];
        documents.iter().find(|document| &document["value"]["id"] == id).unwrap()
    };
    assert_eq!(find(0)["value"]["seq"], entry["tagBuckets"][0][1]);
    assert_eq!(find(0)["value"]["recent"], json!([]));
    assert_eq!(find(1)["value"]["recent"][0][1], marker);
    assert_eq!(entry["tagBuckets"][1][1], json!(1));
}

#[tokio::test(start_paused = true)]
async fn an_old_document_without_buckets_is_stale_without_a_marker() {
    for (fields, marked, expected) in [
        // Written by an earlier version: only a marker proves anything.
        (json!({"tagMarkers": [0], "tagScope": ""}), false, None),
        (json!({"tagMarkers": [5], "tagScope": ""}), true, Some(7)),
        (json!({"tagMarkers": [4], "tagScope": ""}), true, None),
        // Ours, written while the marker could not be read.
        (json!({"tagScope": ""}), false, None),
        (json!({"tagScope": ""}), true, Some(7)),
        // Node's rule: no marker is no invalidation.
        (json!({}), false, Some(7)),
        (json!({}), true, Some(7)),
        (json!({"createdAt": 5}), true, None),
        // Another bucket, an invalidation that is not listed.
        (json!({"tagMarkers": [0], "tagBuckets": [[1, 0]], "tagScope": ""}), false, None),
    ] {
        let world = World::new();
        let mut entry = json!({"value": 7, "createdAt": 6, "tags": ["t"]});
        entry.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        world.l2.put("bentocache:k", entry.to_string(), None);
        if marked {
            world.l2.put("bentocache:___bc:t:t", json!({"value": 5}).to_string(), None);
        }
        let node = world.node().await;
        assert_eq!(fresh(&node, "k").await, expected, "{entry}");
        assert_eq!(node.has("k").await.unwrap(), expected.is_some(), "{entry}");
        assert_eq!(node.pull::<u32>("k").await.unwrap(), expected, "{entry}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_marker_that_node_writes_decides() {
    let world = World::new();
    let node = world.node().await;
    set(&node, "k", 1, &["t"]).await;
    let at = node.document("k").unwrap()["createdAt"].as_u64().unwrap() + 1;
    world.l2.put("bentocache:___bc:t:t", json!({"value": at, "createdAt": at}).to_string(), None);
    // The bucket knows nothing of it.
    assert_eq!(fresh(&world.node().await.cache, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_bucket_is_replaced() {
    for garbage in ["", "x", "{}", r#"{"value":1}"#] {
        let world = World::new();
        set(&world.node().await, "k", 1, &["t"]).await;
        let key = keys(&world.l2, BUCKET).remove(0);
        world.l2.put(&key, garbage.to_owned(), None);
        let node = world.node().await;
        assert_eq!(fresh(&node, "k").await, None);
        set(&node, "k", 2, &["t"]).await;
        assert_eq!(fresh(&world.node().await.cache, "k").await, Some(2));
        world.l2.put(&key, garbage.to_owned(), None);
        node.delete_by_tag(["t"]).await.unwrap();
        evict(&world.l2, MARKER);
        assert_eq!(fresh(&world.node().await.cache, "k").await, None);
    }
}

/// A full server evicts nothing and refuses writes, but deletes.
#[tokio::test(start_paused = true)]
async fn a_full_server_still_learns_of_an_invalidation() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    set(&a, "k", 1, &["t"]).await;
    settle().await;
    assert_eq!(fresh(&b, "k").await, Some(1));
    a.l2.on(Ops::WRITES).fail_with(bentocache::driver::ErrorKind::Full);
    a.l2.on(Ops::DELETE).calm();
    a.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    for node in [&a, &b, &world.node().await] {
        assert_eq!(fresh(node, "k").await, None);
    }
    a.l2.calm();
    pass(secs(30)).await;
    for node in [&a, &b, &world.node().await] {
        assert_eq!(fresh(node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_that_nobody_keeps_is_an_error() {
    let world = World::new();
    let node = world.node_where(|s| s.recovery(0, "2s").l2_circuit_breaker("off", 1)).await;
    set(&node, "k", 1, &["t"]).await;
    node.l2.on(Ops::WRITES).fail();
    assert!(matches!(node.delete_by_tag(["t"]).await, Err(Error::L2 { .. })));
}

/// A tag whose marker does not fit is an error of the call, and keeps no other tag from it.
#[tokio::test(start_paused = true)]
async fn a_tag_that_the_second_tier_cannot_hold_is_an_error_and_the_others_are_invalidated() {
    let mut world = World::new();
    world.l2 = MapL2::new().max_key(60);
    let node = world.node().await;
    set(&node, "k", 1, &["t"]).await;
    let long = "x".repeat(60);
    assert!(matches!(node.delete_by_tag(["t", &long]).await, Err(Error::L2 { .. })));
    assert!(world.l2.peek("bentocache:___bc:t:t").is_some());
    assert_eq!(fresh(&world.node().await.cache, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn the_keys_of_buckets_cannot_be_used() {
    let node = World::new().node().await;
    for key in ["___bc:b:1", "a:___bc:b:1"] {
        let error = node.set(key, 1_u32).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidKey { .. }), "{error:?}");
        assert!(matches!(node.delete(key).await, Err(Error::InvalidKey { .. })));
    }
}

/// Several nodes write, read and invalidate while metadata are lost at any time and calls fail. Each
/// value is its number; a tag's invalidation outdates all values with a lower one.
async fn random_walk(seed: u64, world: World, neighbours: &[String]) {
    const STEPS: usize = 1_500;
    const TAGS: [&str; 4] = ["a", "b", "c", "d"];
    let mut rng = Rng::with_seed(seed);
    let breaker = |s: bentocache::Store| s.l2_circuit_breaker("off", 1);
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(world.node_where(breaker).await);
    }
    // For each tag, the number below which values are outdated.
    let mut outdated = [0_u32; TAGS.len()];
    let mut next = 1_u32;
    let mut tags_of = vec![Vec::new(); 1];
    for step in 0..STEPS {
        let at = rng.usize(..nodes.len());
        let node = &nodes[at];
        let key = format!("k{}", rng.usize(..6));
        let mut some = || -> Vec<usize> {
            let mut tags: Vec<usize> = (0..TAGS.len()).filter(|_| rng.u8(..3) == 0).collect();
            if tags.is_empty() {
                tags.push(0);
            }
            tags
        };
        let tags = some();
        let names: Vec<&str> = tags.iter().map(|tag| TAGS[*tag]).collect();
        match rng.u8(..20) {
            0..3 => {
                tags_of.push(tags.clone());
                let _ = node.set(&key, next).tags(names).await;
                next += 1;
            }
            3..6 => {
                let (value, added) = (next, rng.bool());
                tags_of.push(tags.clone());
                next += 1;
                let own: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
                let (given, later) = if added { (Vec::new(), own) } else { (own, Vec::new()) };
                let call = node.get_or_set(&key, move |cx: Context<u32>| async move {
                    cx.tags(later);
                    Ok::<_, Error>(value)
                });
                check(call.tags(given).await.ok(), &tags_of, &outdated, seed, step);
            }
            6..9 => {
                if rng.u8(..4) == 0 {
                    // Half way.
                    let (ops, seed) = (Ops::SET | Ops::UPDATE | Ops::SET_MANY, rng.u64(..));
                    node.l2.on(ops).fail_often(0.5, seed);
                }
                let done = node.delete_by_tag(names).await;
                node.l2.calm();
                // What failed is repeated at once.
                pass(secs(10)).await;
                if done.is_ok() {
                    tags.iter().for_each(|tag| outdated[*tag] = next);
                }
            }
            9..14 => {
                // A server under pressure.
                let mut metadata = keys(&world.l2, "___bc:");
                metadata.sort_unstable();
                if !metadata.is_empty() {
                    world.l2.take(&metadata[rng.usize(..metadata.len())]);
                }
            }
            14 => nodes[at] = world.node_where(breaker).await,
            15 => {
                node.bus.cut();
                pass(ms(rng.u64(..2_000))).await;
                node.bus.restore();
                pass(secs(3)).await;
            }
            16 => pass(ms(rng.u64(..1_500))).await,
            // The bucket of `a` lists nothing else then.
            17 if rng.u8(..5) == 0 => {
                for _ in 0..35 {
                    let _ = node.delete_by_tag(neighbours.to_vec()).await;
                }
            }
            _ => {}
        }
        // Messages arrive, and what is relied on without a bus is over.
        pass(ms(1_003)).await;
        let reader = &nodes[rng.usize(..nodes.len())];
        check(fresh(reader, &key).await, &tags_of, &outdated, seed, step);
    }
}

fn check(found: Option<u32>, tags_of: &[Vec<usize>], outdated: &[u32], seed: u64, step: usize) {
    let Some(value) = found else { return };
    for tag in &tags_of[value as usize] {
        let first = outdated[*tag];
        assert!(
            value >= first,
            "seed {seed}, step {step}: {value} is back, {first} is the first valid"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn lost_metadata_bring_nothing_back_whenever_they_are_lost() {
    let seeds: u64 = std::env::var("SEEDS").map_or(4, |seeds| seeds.parse().unwrap());
    let neighbours = neighbours("a", 2).await;
    for seed in 0..seeds {
        for world in [World::new(), World::without_bus(), World::only_l2()] {
            random_walk(seed, world, &neighbours).await;
        }
    }
}
