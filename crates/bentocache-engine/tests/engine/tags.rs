//! Tags: invalidation by markers that depends on no clock, costs one look, and is never lost.

use std::time::Duration;

use crate::common::{Node, World, get_stale, ms, pass, secs, settle};
use crate::races::{Holding, Skewed, Source, calm, fresh, go};
use bentocache::driver::{BusDriver, Topic};
use bentocache::{BusDown, Context, Error, EventKind, TokioTime};
use bentocache_engine::wire::message::{self, Kind, Sender};
use bentocache_testkit::Ops;
use serde_json::json;

fn worlds() -> [World; 4] {
    [World::only_l1(), World::only_l2(), World::without_bus(), World::new()]
}

/// The key of a tag's marker.
fn marker(tag: &str) -> String {
    format!("___bc:t:{tag}")
}

async fn set(node: &Node, key: &str, value: u32, tags: &[&str]) {
    node.set(key, value).tags(tags.iter().copied()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_invalidated_tag_takes_its_entries_and_no_others() {
    for world in worlds() {
        let node = world.node().await;
        set(&node, "a", 1, &["x"]).await;
        set(&node, "b", 2, &["x", "y"]).await;
        set(&node, "c", 3, &["y"]).await;
        set(&node, "d", 4, &[]).await;
        node.delete_by_tag(["x"]).await.unwrap();
        let values = node.get_many::<u32>(["a", "b", "c", "d"]).await.unwrap();
        assert_eq!(values, [None, None, Some(3), Some(4)]);
        node.delete_by_tag(["y", "z"]).await.unwrap();
        let values = node.get_many::<u32>(["a", "b", "c", "d"]).await.unwrap();
        assert_eq!(values, [None, None, None, Some(4)]);
    }
}

#[tokio::test(start_paused = true)]
async fn get_get_many_has_missing_and_get_or_set_agree() {
    for world in worlds() {
        for by_another in [false, true] {
            let (node, other) = (world.node().await, world.node().await);
            set(&node, "k", 1, &["t"]).await;
            if by_another && node.document("k").is_some() {
                other.delete_by_tag(["t"]).await.unwrap();
                // Without a bus it is noticed after the interval at the latest.
                pass(ms(1_001)).await;
            } else {
                node.delete_by_tag(["t"]).await.unwrap();
            }
            assert!(!node.has("k").await.unwrap());
            assert!(node.missing("k").await.unwrap());
            assert_eq!(node.get::<u32>("k").await.unwrap(), None);
            assert_eq!(node.get_many::<u32>(["k"]).await.unwrap(), [None]);
            assert_eq!(node.pull::<u32>("x").await.unwrap(), None);
            assert_eq!(crate::common::fill(&node, "k", 2).await, 2);
            node.clear().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_entry_behaves_as_one_whose_ttl_has_ended() {
    for world in worlds() {
        let node = world.node_where(|s| s.grace("1h").timeout("none")).await;
        set(&node, "k", 1, &["t"]).await;
        node.expire_by_tag(["t"]).await.unwrap();
        assert_eq!(fresh(&node, "k").await, None);
        assert_eq!(get_stale(&node, "k").await, Some(1));
        assert_eq!(node.get_many::<u32>(["k"]).grace("1h").await.unwrap(), [Some(1)]);
        let call = node.get_or_set("k", Source::new().fails(1)).tags(["t"]);
        assert_eq!(call.await.unwrap(), 1);
        // The backoff counts for it too.
        let source = Source::new();
        assert_eq!(node.get_or_set("k", source.fails(1)).tags(["t"]).await.unwrap(), 1);
        assert_eq!(source.runs(), 0);
        node.expire_by_tag(["t"]).await.unwrap();
        assert_eq!(fresh(&node, "k").await, None);
        assert_eq!(node.get_or_set("k", source.gives(2_u32)).tags(["t"]).await.unwrap(), 2);
        assert_eq!(fresh(&node, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn with_grace_off_an_invalidated_entry_is_gone() {
    for world in worlds() {
        let node = world.node().await;
        set(&node, "k", 1, &["t"]).await;
        node.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(node.get::<u32>("k").await.unwrap(), None);
        let error = node.get_or_set("k", Source::new().fails(5)).await;
        assert_eq!(crate::races::down(error), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_right_after_an_invalidation_wins_every_time() {
    for world in worlds() {
        let node = world.node().await;
        // All in the same millisecond.
        for round in 0..200 {
            node.delete_by_tag(["t"]).await.unwrap();
            set(&node, "k", round, &["t"]).await;
            assert_eq!(fresh(&node, "k").await, Some(round));
        }
        node.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(fresh(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_right_after_a_set_wins_every_time() {
    for world in worlds() {
        let node = world.node().await;
        for round in 0..200 {
            set(&node, "k", round, &["t"]).await;
            assert_eq!(fresh(&node, "k").await, Some(round));
            node.delete_by_tag(["t"]).await.unwrap();
            assert_eq!(fresh(&node, "k").await, None, "round {round}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_marker_strictly_grows() {
    let world = World::new();
    let skewed = |b: bentocache::Builder| b.clock(Skewed(TokioTime::new(), -3_600_000));
    let (node, behind) = (world.node().await, world.node_with(skewed, |s| s).await);
    let mut last = 0;
    for i in 0..20 {
        if i % 3 == 0 { &behind } else { &node }.delete_by_tag(["t"]).await.unwrap();
        let now = node.document(&marker("t")).unwrap()["value"].as_u64().unwrap();
        assert!(now > last, "{now} after {last}");
        last = now;
    }
}

#[tokio::test(start_paused = true)]
async fn clocks_that_disagree_lose_no_invalidation_and_no_value() {
    for skew in [-3_600_000, 3_600_000] {
        for bus in [true, false] {
            let world = if bus { World::new() } else { World::without_bus() };
            let skewed = |b: bentocache::Builder| b.clock(Skewed(TokioTime::new(), skew));
            let (right, wrong) = (world.node().await, world.node_with(skewed, |s| s).await);
            for (writer, invalidator) in [(&right, &wrong), (&wrong, &right)] {
                for round in 0..5_u32 {
                    let key = format!("k{round}");
                    writer.set(&key, round).tags(["t"]).ttl("10h").await.unwrap();
                    settle().await;
                    assert_eq!(fresh(invalidator, &key).await, Some(round), "skew {skew}");
                    invalidator.delete_by_tag(["t"]).await.unwrap();
                    pass(ms(1_001)).await;
                    for node in [writer, invalidator] {
                        assert_eq!(fresh(node, &key).await, None, "skew {skew}");
                    }
                    writer.set(&key, round + 100).tags(["t"]).ttl("10h").await.unwrap();
                    settle().await;
                    for node in [writer, invalidator] {
                        let found = fresh(node, &key).await;
                        assert_eq!(found, Some(round + 100), "skew {skew}");
                    }
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_factory_remembers_the_marker_from_before_it_ran() {
    for world in worlds() {
        let node = world.node().await;
        let source = Source::held();
        let call = go(node.get_or_set("k", source.gives(1_u32)).tags(["t"]));
        source.begun(1).await;
        node.delete_by_tag(["t"]).await.unwrap();
        source.release();
        assert_eq!(call.await.unwrap().unwrap(), 1);
        assert_eq!(fresh(&node, "k").await, None);
        // One that begins after the invalidation is valid, in the same millisecond too.
        let call = node.get_or_set("k", Source::new().gives(2_u32)).tags(["t"]);
        assert_eq!(call.await.unwrap(), 2);
        assert_eq!(fresh(&node, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_the_factory_adds_counts_from_before_it_ran_too() {
    for world in worlds() {
        for invalidated in [false, true] {
            let node = world.node().await;
            node.delete_by_tag(["t"]).await.unwrap();
            pass(ms(10)).await;
            let source = Source::held();
            let run = source.clone();
            let call = go(node.get_or_set("k", move |cx: Context<u32>| async move {
                run.run().await;
                cx.tags(["t"]);
                Ok::<_, Error>(1)
            }));
            source.begun(1).await;
            pass(ms(10)).await;
            if invalidated {
                node.delete_by_tag(["t"]).await.unwrap();
            }
            source.release();
            assert_eq!(call.await.unwrap().unwrap(), 1);
            let expected = if invalidated { None } else { Some(1) };
            assert_eq!(fresh(&node, "k").await, expected);
            node.clear().await.unwrap();
        }
    }
}

/// A message has arrived, and no node has read the new marker yet.
#[tokio::test(start_paused = true)]
async fn who_calls_after_the_invalidation_of_a_tag_takes_nothing_from_a_flight_that_began_before() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    set(&other, "bucket", 0, &["t"]).await;
    node.l2.on(Ops::SET).hold();
    let first = go(node.get_or_set("k", |cx: Context<u32>| async move {
        cx.tags(["t"]);
        Ok::<_, Error>(1)
    }));
    node.l2.held(1).await;
    other.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    let second = go(node.get_or_set("k", Source::new().gives(2_u32)));
    calm().await;
    node.l2.release();
    assert_eq!(first.await.unwrap().unwrap(), 1);
    assert_eq!(second.await.unwrap().unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_markers_that_an_entry_saw_are_stored_with_it() {
    let node = World::new().node().await;
    node.delete_by_tag(["b"]).await.unwrap();
    set(&node, "k", 1, &["b", "a", "b"]).await;
    let document = node.document("k").unwrap();
    let seen = node.document(&marker("b")).unwrap()["value"].clone();
    assert_eq!(document["tags"], json!(["a", "b"]));
    assert_eq!(document["tagMarkers"], json!([0, seen]));
}

#[tokio::test(start_paused = true)]
async fn an_entry_of_the_node_library_is_judged_by_its_age() {
    for world in [World::only_l2(), World::without_bus(), World::new()] {
        let node = world.node().await;
        node.delete_by_tag(["t"]).await.unwrap();
        let at = node.document(&marker("t")).unwrap()["value"].as_u64().unwrap();
        for (created, expected) in
            [(at - 1, None), (at, None), (at + 1, Some(7)), (0, None), (at + 60_000, Some(7))]
        {
            let entry = json!({
                "value": 7, "tags": ["t"], "createdAt": created,
                "logicalExpiration": at + 3_600_000,
            });
            node.map.put("bentocache:k", entry.to_string(), None);
            let reader = world.node().await;
            assert_eq!(fresh(&reader, "k").await, expected, "{}", created as i64 - at as i64);
            assert_eq!(reader.has("k").await.unwrap(), expected.is_some());
        }
        // Without a marker it is valid whatever its age.
        let entry = json!({"value": 8, "tags": ["u"], "logicalExpiration": at + 3_600_000});
        node.map.put("bentocache:l", entry.to_string(), None);
        assert_eq!(fresh(&node, "l").await, Some(8));
    }
}

#[tokio::test(start_paused = true)]
async fn a_marker_of_the_node_library_is_understood() {
    let world = World::new();
    let node = world.node().await;
    set(&node, "k", 1, &["t"]).await;
    pass(ms(5)).await;
    let now = node.document("k").unwrap()["createdAt"].as_u64().unwrap() + 2;
    for value in [json!(now), json!(now as f64)] {
        let entry = json!({"value": value, "createdAt": now, "logicalExpiration": now + 1_000_000});
        world.l2.put(&format!("bentocache:{}", marker("t")), entry.to_string(), None);
        assert_eq!(fresh(&world.node().await.cache, "k").await, None, "{entry}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_marker_that_cannot_be_read_leaves_the_entry_stale() {
    for world in [World::without_bus(), World::new()] {
        let writer = world.node().await;
        writer.set("k", 1_u32).tags(["t"]).grace("1h").await.unwrap();
        // From L1. With `Serve`, what was last known would count: `tags_outage.rs`.
        let check = BusDown::CheckAfter(secs(3_600));
        let node =
            world.node_where(|s| s.l2_circuit_breaker("off", 1).when_bus_is_down(check)).await;
        assert_eq!(fresh(&node, "k").await, Some(1));
        node.bus.cut();
        settle().await;
        pass(ms(1_001)).await;
        node.l2.cut();
        assert_eq!(fresh(&node, "k").await, None);
        assert!(!node.has("k").await.unwrap());
        assert_eq!(get_stale(&node, "k").await, Some(1));
        node.l2.restore();
        assert_eq!(fresh(&node, "k").await, Some(1));
    }
    // Damaged bytes tell nothing either.
    let world = World::new();
    let writer = world.node().await;
    writer.set("k", 1_u32).tags(["t"]).grace("1h").await.unwrap();
    for bytes in ["", "x", "{}", r#"{"value":"soon"}"#, r#"{"value":null}"#] {
        world.l2.put(&format!("bentocache:{}", marker("t")), bytes.to_owned(), None);
        let node = world.node().await;
        assert_eq!(fresh(&node, "k").await, None, "{bytes}");
        assert_eq!(get_stale(&node, "k").await, Some(1), "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_while_a_tag_is_looked_up_is_not_remembered_as_never_invalidated() {
    let world = World::new();
    let (node, other) =
        (world.node_where(|s| s.l2_circuit_breaker("off", 1)).await, world.node().await);
    other.set("k", 1_u32).tags(["t"]).grace("1h").await.unwrap();
    other.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    // The entry can be read, its marker cannot.
    node.l2.on(Ops::GET).hold_after();
    let reader = go(node.get::<u32>("k"));
    node.l2.held(1).await;
    node.l2.on(Ops::GET).fail();
    node.l2.release();
    assert_eq!(reader.await.unwrap().unwrap(), None);
    node.l2.calm();
    for _ in 0..2 {
        assert_eq!(fresh(&node, "k").await, None);
    }
    other.set("k", 2_u32).tags(["t"]).await.unwrap();
    settle().await;
    assert_eq!(fresh(&node, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_value_set_while_markers_cannot_be_read_is_valid_once_they_can() {
    let world = World::new();
    let node = world.node_where(|s| s.l2_circuit_breaker("off", 1)).await;
    world.node().await.delete_by_tag(["t"]).await.unwrap();
    pass(ms(10)).await;
    node.l2.on(Ops::READS).fail();
    set(&node, "k", 1, &["t"]).await;
    assert_eq!(fresh(&node, "k").await, None);
    node.l2.calm();
    assert_eq!(fresh(&node, "k").await, Some(1));
    pass(ms(1)).await;
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(fresh(&node, "k").await, None);
}

/// What a `set`, or what a factory brings, knows of its two tags: each was invalidated or never, and is
/// known or cannot be read.
#[tokio::test(start_paused = true)]
async fn a_value_whose_tags_could_not_all_be_read_is_worth_the_same_to_every_process() {
    const TAGS: [&str; 2] = ["t", "u"];
    let cases =
        (0..16_u32).flat_map(|case| [(case, World::new()), (case, World::new().without_clear())]);
    for (case, world) in cases {
        let is = |bit: usize| case >> bit & 1 == 1;
        let invalidated: Vec<&str> = (0..2).filter(|i| is(*i)).map(|i| TAGS[i]).collect();
        let known: Vec<&str> = (0..2).filter(|i| is(2 + *i)).map(|i| TAGS[i]).collect();
        let (writer, other) =
            (world.node_where(|s| s.l2_circuit_breaker("off", 1)).await, world.node().await);
        set(&other, "buckets", 0, &TAGS).await;
        other.delete_by_tag(invalidated.clone()).await.unwrap();
        settle().await;
        set(&writer, "known", 0, &known).await;
        pass(ms(10)).await;

        let cannot_read = writer.l2.on(Ops::READS);
        cannot_read.fail();
        set(&writer, "set", 1, &TAGS).await;
        cannot_read.calm();
        let fails = cannot_read.clone();
        let given = writer.get_or_set("given", Source::new().gives(1_u32)).tags(TAGS);
        let added = writer.get_or_set("added", move |cx: Context<u32>| async move {
            fails.fail();
            cx.tags(["u"]);
            Ok::<_, Error>(1)
        });
        // The read of the key, then that of the tags.
        cannot_read.hold_after();
        let given = go(given);
        cannot_read.held(1).await;
        cannot_read.fail();
        cannot_read.release();
        assert_eq!(given.await.unwrap().unwrap(), 1);
        cannot_read.calm();
        assert_eq!(added.tags(["t"]).await.unwrap(), 1);
        cannot_read.calm();

        let anew = world.node().await;
        let mut found = Vec::new();
        for key in ["set", "given", "added"] {
            let here = fresh(&writer, key).await;
            assert_eq!(here, fresh(&anew, key).await, "{key}, case {case:04b}");
            found.push(here);
        }
        // What is known of both is remembered, and a marker is enough for what is not.
        let is_valid = known.len() == 2 || invalidated.len() == 2;
        assert_eq!(found[0], is_valid.then_some(1), "case {case:04b}");
    }
}

#[tokio::test(start_paused = true)]
async fn all_unknown_tags_of_a_read_are_looked_up_in_one_round_trip() {
    let world = World::new();
    let writer = world.node().await;
    let tags: Vec<String> = (0..50).map(|i| format!("t{i}")).collect();
    for key in ["a", "b", "c"] {
        writer.set(key, 1_u32).tags(tags.clone()).await.unwrap();
    }
    let node = world.node().await;
    node.l2.reset_calls();
    assert_eq!(fresh(&node, "a").await, Some(1));
    assert_eq!(node.l2.calls(), 2);
    // Known now, and a hit reads no tier.
    node.l2.reset_calls();
    assert_eq!(fresh(&node, "a").await, Some(1));
    assert_eq!(node.get_many::<u32>(["b", "c"]).await.unwrap(), [Some(1), Some(1)]);
    assert_eq!(node.l2.calls(), 1);
    let node = world.node().await;
    node.l2.reset_calls();
    assert_eq!(node.get_many::<u32>(["a", "b", "c"]).await.unwrap(), [Some(1); 3]);
    assert_eq!(node.l2.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn entries_without_tags_pay_nothing() {
    let node = World::new().node().await;
    node.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    node.l2.reset_calls();
    set(&node, "k", 1, &[]).await;
    assert_eq!(fresh(&node, "k").await, Some(1));
    assert_eq!(crate::common::fill(&node, "l", 2).await, 2);
    // The set, and of the fill its read and its write.
    assert_eq!(node.l2.calls(), 3);
    assert_eq!(node.document("k").unwrap().get("tags"), None);
    assert_eq!(node.document("k").unwrap().get("tagMarkers"), None);
}

#[tokio::test(start_paused = true)]
async fn without_a_bus_what_is_known_of_a_tag_is_believed_for_the_interval_only() {
    let world = World::without_bus();
    for interval in [ms(1_000), ms(300)] {
        let node = world.node_where(|s| s.tag_check_interval(interval)).await;
        let other = world.node().await;
        set(&node, "k", 1, &["t"]).await;
        assert_eq!(fresh(&node, "k").await, Some(1));
        node.l2.reset_calls();
        other.delete_by_tag(["t"]).await.unwrap();
        pass(interval / 2).await;
        assert_eq!((fresh(&node, "k").await, node.l2.calls()), (Some(1), 0));
        pass(interval / 2 + ms(1)).await;
        assert_eq!(fresh(&node, "k").await, None);
        node.delete("k").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_bus_is_down_a_tag_is_believed_for_the_interval_only() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    set(&node, "k", 1, &["t"]).await;
    assert_eq!(fresh(&node, "k").await, Some(1));
    node.bus.cut();
    settle().await;
    other.delete_by_tag(["t"]).await.unwrap();
    pass(ms(1_001)).await;
    assert_eq!(fresh(&node, "k").await, None);
    // What is learnt while it is down is doubted again.
    other.set("k", 2_u32).tags(["t"]).await.unwrap();
    node.delete("k").skip_l2_write(true).await.unwrap();
    assert_eq!(fresh(&node, "k").await, Some(2));
    other.delete_by_tag(["t"]).await.unwrap();
    pass(ms(1_001)).await;
    assert_eq!(fresh(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn with_a_bus_an_invalidation_arrives_at_once_and_costs_nothing_until_then() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    set(&node, "k", 1, &["t"]).await;
    node.l2.reset_calls();
    pass(secs(60)).await;
    assert_eq!((fresh(&node, "k").await, node.l2.calls()), (Some(1), 0));
    other.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    assert_eq!(fresh(&node, "k").await, None);
}

/// Of two invalidations under way at once, the marker of the first may be stored last.
#[tokio::test(start_paused = true)]
async fn no_value_remembers_a_marker_that_is_not_stored_yet() {
    let world = World::new();
    let l2 = Holding::new(&world.l2);
    let node = world.node_where(|s| s.l2(l2.clone())).await;
    let hold = l2.hold_next(Ops::SET);
    let first = go(node.delete_by_tag(["t"]));
    hold.reached().await;
    set(&node, "k", 1, &["t"]).await;
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(fresh(&node, "k").await, None);
    hold.release();
    first.await.unwrap().unwrap();
    assert_eq!(fresh(&node, "k").await, None);
    let other = world.node().await;
    assert_eq!(fresh(&other, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_message_about_a_tag_while_it_is_looked_up_costs_no_value() {
    let world = World::new();
    let l2 = Holding::new(&world.l2);
    let (writer, reader) = (world.node().await, world.node_where(|s| s.l2(l2.clone())).await);
    set(&writer, "k", 1, &["t"]).await;
    settle().await;
    let (entry, looked_up) = (l2.hold_next(Ops::GET), l2.hold_next(Ops::GET_MANY));
    let read = go(reader.get::<u32>("k").grace("off"));
    entry.reached().await;
    entry.release();
    looked_up.reached().await;
    for bytes in message::encode(&Sender::random(), Kind::Set, "bentocache", &[&marker("t")]) {
        let topic = Topic::new("bentocache.notifications:s", "bentocache:");
        world.bus.publish(topic, bytes).await.unwrap();
    }
    calm().await;
    looked_up.release();
    assert_eq!(read.await.unwrap().unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn nodes_with_memories_and_a_bus_only_hear_of_invalidations() {
    let world = World::new();
    let memory = |_: bentocache::Store| {
        bentocache::Store::new().l1(bentocache::Memory::new()).bus(world.bus.clone())
    };
    let (a, b) = (world.node_where(memory).await, world.node_where(memory).await);
    for round in 0..5 {
        set(&a, "k", round, &["t"]).await;
        set(&b, "k", round + 10, &["t"]).await;
        settle().await;
        b.set("k", round + 20).tags(["t"]).skip_bus_notify(true).await.unwrap();
        assert_eq!(fresh(&b, "k").await, Some(round + 20));
        a.delete_by_tag(["t"]).await.unwrap();
        settle().await;
        assert_eq!((fresh(&a, "k").await, fresh(&b, "k").await), (None, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_marker_outlives_every_entry_that_can_carry_its_tag() {
    const DAY: Duration = Duration::from_secs(24 * 3_600);
    let node = World::new().node_where(|s| s.tag_ttl("10d").grace("20d")).await;
    node.set("forever", 1_u32).ttl("forever").tags(["t"]).await.unwrap();
    node.set_forever("also", 1_u32).tags(["t"]).await.unwrap();
    node.set("long", 1_u32).ttl("15d").tags(["t"]).await.unwrap();
    node.set("graced", 1_u32).ttl("1d").tags(["t"]).await.unwrap();
    node.set("untagged", 1_u32).ttl("15d").grace("15d").await.unwrap();
    for key in ["forever", "also", "long", "graced"] {
        assert_eq!(node.remaining(key).unwrap(), DAY * 10, "{key}");
    }
    assert_eq!(node.remaining("untagged").unwrap(), DAY * 30);
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(node.remaining(&marker("t")).unwrap(), DAY * 11);
    // And in L1.
    let memory = World::only_l1().node_where(|s| s.tag_ttl("1h").ttl("forever")).await;
    set(&memory, "k", 1, &["t"]).await;
    pass(secs(3_599)).await;
    assert_eq!(fresh(&memory, "k").await, Some(1));
    pass(secs(2)).await;
    assert_eq!(fresh(&memory, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn by_default_what_has_tags_lives_30_days() {
    let node = World::new().node().await;
    node.set_forever("k", 1_u32).tags(["t"]).await.unwrap();
    assert_eq!(node.remaining("k").unwrap(), secs(30 * 24 * 3_600));
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(node.remaining(&marker("t")).unwrap(), secs(31 * 24 * 3_600));
}

#[tokio::test(start_paused = true)]
async fn an_invalidated_entry_does_not_come_back_in_its_own_lifetime() {
    let node = World::new().node_where(|s| s.tag_ttl("2h").ttl("2h")).await;
    set(&node, "k", 1, &["t"]).await;
    pass(secs(1)).await;
    node.delete_by_tag(["t"]).await.unwrap();
    for _ in 0..12 {
        pass(secs(600)).await;
        assert_eq!(fresh(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn looking_up_tags_counts_as_no_hit_miss_or_write() {
    let world = World::new();
    let writer = world.node().await;
    set(&writer, "k", 1, &["a", "b"]).await;
    settle().await;
    let node = world.node().await;
    node.seen.take();
    assert_eq!(fresh(&node, "k").await, Some(1));
    assert_eq!(node.seen.texts(), ["hit l2 k"]);
    node.delete_by_tag(["a", "b"]).await.unwrap();
    calm().await;
    let mut texts = node.seen.texts();
    texts.retain(|text| !text.starts_with("published"));
    assert_eq!(texts, ["tag a", "tag b"]);
    assert_eq!(fresh(&node, "k").await, None);
    assert_eq!(node.seen.reads(), ["miss k"]);
}

#[tokio::test(start_paused = true)]
async fn tags_belong_to_their_namespace() {
    for world in worlds() {
        let node = world.node().await;
        let (users, posts) = (node.namespace("users"), node.namespace("posts"));
        for cache in [&users, &posts] {
            cache.set("k", 1_u32).tags(["t"]).await.unwrap();
        }
        set(&node, "k", 1, &["t"]).await;
        users.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(fresh(&users, "k").await, None);
        assert_eq!((fresh(&posts, "k").await, fresh(&node, "k").await), (Some(1), Some(1)));
        node.delete_by_tag(["t"]).await.unwrap();
        assert_eq!((fresh(&posts, "k").await, fresh(&node, "k").await), (Some(1), None));
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_read_through_another_handle_keeps_the_tags_it_was_given() {
    for world in [World::only_l2(), World::new()] {
        let writer = world.node().await;
        writer.namespace("users").set("k", 1_u32).tags(["t"]).await.unwrap();
        writer.set("posts:k", 2_u32).tags(["t"]).await.unwrap();
        let node = world.node().await;
        let (users, posts) = (node.namespace("users"), node.namespace("posts"));
        // Each is read through the other's handle first.
        assert_eq!(fresh(&node, "users:k").await, Some(1));
        assert_eq!(fresh(&posts, "k").await, Some(2));
        writer.namespace("users").delete_by_tag(["t"]).await.unwrap();
        pass(ms(1_001)).await;
        assert_eq!((fresh(&node, "users:k").await, fresh(&users, "k").await), (None, None));
        assert_eq!((fresh(&node, "posts:k").await, fresh(&posts, "k").await), (Some(2), Some(2)));
        writer.delete_by_tag(["t"]).await.unwrap();
        pass(ms(1_001)).await;
        assert_eq!((fresh(&node, "posts:k").await, fresh(&posts, "k").await), (None, None));
    }
}

#[tokio::test(start_paused = true)]
async fn no_tags_and_no_entries_are_no_reason_to_do_anything() {
    let node = World::new().node().await;
    node.delete_by_tag(Vec::<String>::new()).await.unwrap();
    calm().await;
    assert_eq!((node.l2.calls(), node.bus.calls()), (0, 0));
    node.delete_by_tag(["never used"]).await.unwrap();
    node.delete_by_tag(["", "ü:☃", "a b*?%_"]).await.unwrap();
    for tag in ["", "ü:☃", "a b*?%_"] {
        set(&node, "k", 1, &[tag]).await;
        assert_eq!(fresh(&node, "k").await, Some(1));
        node.delete_by_tag([tag]).await.unwrap();
        assert_eq!(fresh(&node, "k").await, None, "{tag}");
    }
}

#[tokio::test(start_paused = true)]
async fn duplicate_tags_count_once() {
    let node = World::new().node().await;
    // The bucket of the tag is there.
    set(&node, "k", 1, &["t"]).await;
    node.seen.take();
    node.l2.reset_calls();
    node.delete_by_tag(["t", "t", "t"]).await.unwrap();
    let invalidated = |e: &EventKind<'_>| matches!(e, EventKind::TagInvalidated { .. });
    assert_eq!(node.seen.count(invalidated), 1);
    assert_eq!(node.l2.on(Ops::SET | Ops::SET_MANY).calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn markers_go_with_a_clear_and_nothing_comes_back() {
    for world in worlds() {
        let node = world.node().await;
        set(&node, "k", 1, &["t"]).await;
        node.delete_by_tag(["t"]).await.unwrap();
        node.clear().await.unwrap();
        assert_eq!(world.l2.len(), 0);
        assert_eq!(fresh(&node, "k").await, None);
        set(&node, "k", 2, &["t"]).await;
        assert_eq!(fresh(&node, "k").await, Some(2));
        node.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(fresh(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn the_keys_of_markers_cannot_be_used() {
    let node = World::new().node().await;
    for key in ["___bc:t:x", "a:___bc:t:x"] {
        let error = node.set(key, 1_u32).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidKey { .. }), "{error:?}");
        assert!(matches!(node.delete(key).await, Err(Error::InvalidKey { .. })));
        assert!(matches!(node.expire(key).await, Err(Error::InvalidKey { .. })));
    }
    let names = node.namespace("___bc:t");
    assert!(matches!(names.set("x", 1_u32).await, Err(Error::InvalidKey { .. })));
    assert!(node.map.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_that_failed_to_reach_the_second_tier_counts_here_at_once() {
    let world = World::new();
    let (node, other) =
        (world.node_where(|s| s.l2_circuit_breaker("off", 1)).await, world.node().await);
    set(&node, "k", 1, &["t"]).await;
    assert_eq!(fresh(&other, "k").await, Some(1));
    node.l2.cut();
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(fresh(&node, "k").await, None);
    node.l2.restore();
    settle().await;
    for node in [&node, &other] {
        assert_eq!(fresh(node, "k").await, None);
    }
    set(&other, "k", 2, &["t"]).await;
    settle().await;
    for node in [&node, &other] {
        assert_eq!(fresh(node, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsuppressed_failure_is_an_error_of_the_call() {
    let node = World::only_l2().node().await;
    set(&node, "k", 1, &["t"]).await;
    node.l2.on(Ops::WRITES).fail();
    assert!(matches!(node.delete_by_tag(["t"]).await, Err(Error::L2 { .. })));
    node.l2.calm();
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(fresh(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_tags_work() {
    let node = World::new().node().await;
    let tags: Vec<String> = (0..10_000).map(|i| format!("tag {i}")).collect();
    node.set("k", 1_u32).tags(tags.clone()).await.unwrap();
    assert_eq!(fresh(&node, "k").await, Some(1));
    node.delete_by_tag([&tags[9_999]].map(String::as_str)).await.unwrap();
    assert_eq!(fresh(&node, "k").await, None);
    node.set("k", 2_u32).tags(tags.clone()).await.unwrap();
    node.delete_by_tag(tags).await.unwrap();
    assert_eq!(fresh(&node, "k").await, None);
}

/// Its marker is younger by the clock of this node, which is behind; the invalidation is not.
#[tokio::test(start_paused = true)]
async fn an_invalidation_that_waits_is_not_lost_to_the_marker_of_a_fast_clock() {
    for bus in [true, false] {
        let world = if bus { World::new() } else { World::without_bus() };
        let fast = |b: bentocache::Builder| b.clock(Skewed(TokioTime::new(), 3_600_000));
        let (fast, slow) = (world.node_with(fast, |s| s).await, world.node().await);
        fast.delete_by_tag(["t"]).await.unwrap();
        fast.set("k", 1_u32).tags(["t"]).ttl("10h").await.unwrap();
        settle().await;
        slow.l2.fail();
        slow.delete_by_tag(["t"]).await.unwrap();
        slow.l2.calm();
        pass(secs(30)).await;
        for node in [&slow, &fast, &world.node().await] {
            assert_eq!(fresh(node, "k").await, None, "bus {bus}");
        }
        // All know the same marker afterwards.
        for writer in [&slow, &fast] {
            writer.set("l", 2_u32).tags(["t"]).ttl("10h").await.unwrap();
            settle().await;
            for node in [&slow, &fast, &world.node().await] {
                assert_eq!(fresh(node, "l").await, Some(2), "bus {bus}");
            }
        }
    }
}
