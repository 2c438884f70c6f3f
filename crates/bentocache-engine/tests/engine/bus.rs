//! The bus: the messages between nodes, and their effects.
//!
//! The file is long because every rule of its subject has its own case.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::common::{Node, World, get, get_stale, ms, pass, secs, settle};
use crate::races::{Source, calm, fresh, go};
use bentocache::driver::{BusDriver, ErrorKind, Topic};
use bentocache::{BentoCache, BusDown, Context, Error, EventKind, Memory, Store, TokioTime};
use bentocache_engine::wire::message::{self, Kind, Message, Sender};
use bentocache_testkit::{ChaosBus, ChaosL2, MapBus, MapL2, Ops};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::Instant;

const CHANNEL: &str = "bentocache.notifications:s";

/// Two nodes on one L2 and one bus.
async fn two() -> (World, Node, Node) {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    (world, a, b)
}

/// Publishes this on the bus of the world, like another process.
async fn say(world: &World, bytes: impl Into<Bytes>) {
    world.bus.publish(Topic::new(CHANNEL, "bentocache:"), bytes.into()).await.unwrap();
    calm().await;
}

async fn tell(world: &World, kind: Kind, namespace: &str, keys: &[&str]) {
    for bytes in message::encode(&Sender::random(), kind, namespace, keys) {
        say(world, bytes).await;
    }
}

/// All messages from now on.
fn record(world: &World) -> Arc<std::sync::Mutex<Vec<Message>>> {
    let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (bus, into) = (world.bus.clone(), heard.clone());
    tokio::spawn(async move {
        let mut stream = bus.subscribe(Topic::new(CHANNEL, "")).await.unwrap();
        while let Some(bentocache::driver::BusEvent::Message(bytes)) =
            std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await
        {
            into.lock().unwrap().push(message::decode(&bytes).unwrap());
        }
    });
    heard
}

#[tokio::test(start_paused = true)]
async fn every_change_of_a_node_reaches_the_others() {
    let (_, a, b) = two().await;
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    a.set("k", 2_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(2));
    a.set_many([("k", 3_u32), ("l", 3)]).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(3));
    a.expire("k").await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, None);
    a.set("k", 4_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(4));
    a.delete("k").await.unwrap();
    settle().await;
    assert_eq!(get_stale(&b, "k").await, None);
    assert_eq!(get(&b, "l").await, Some(3));
    assert_eq!(a.pull::<u32>("l").await.unwrap(), Some(3));
    settle().await;
    assert_eq!(get(&b, "l").await, None);
    for clear in [true, false] {
        a.namespace("n").set("k", 5_u32).await.unwrap();
        settle().await;
        assert_eq!(get(&b, "n:k").await, Some(5));
        let names = a.namespace("n");
        if clear { names.clear() } else { a.clear() }.await.unwrap();
        settle().await;
        assert_eq!(get_stale(&b, "n:k").await, None);
    }
    a.set("k", 6_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(6));
    a.delete_many(["k", "l"]).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn three_nodes_agree_after_changes_by_each() {
    let world = World::new();
    let nodes = [world.node().await, world.node().await, world.node().await];
    for round in 0..30_u32 {
        nodes[round as usize % 3].set("k", round).await.unwrap();
        settle().await;
        for node in &nodes {
            assert_eq!(get(node, "k").await, Some(round));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn messages_carry_keys_and_never_values() {
    let (world, a, _b) = two().await;
    let heard = record(&world);
    calm().await;
    a.namespace("users").set("x", "a secret".to_owned()).await.unwrap();
    a.set_many([("p", 1_u32), ("q", 2)]).await.unwrap();
    a.expire_many(["p", "q"]).await.unwrap();
    a.delete_many(["p", "q"]).await.unwrap();
    a.namespace("users").clear().await.unwrap();
    a.namespace("users").delete_by_tag(["t"]).await.unwrap();
    calm().await;
    let heard = std::mem::take(&mut *heard.lock().unwrap());
    let said: Vec<_> =
        heard.iter().map(|m| (m.kind, m.namespace.as_str(), m.keys.join(","))).collect();
    let expected = [
        (Kind::Set, "bentocache:users", "x"),
        (Kind::Set, "bentocache", "p,q"),
        (Kind::Expire, "bentocache", "p,q"),
        (Kind::Delete, "bentocache", "p,q"),
        (Kind::Clear, "bentocache:users", ""),
        (Kind::Set, "bentocache:users", "___bc:t:t"),
    ];
    assert_eq!(said, expected.map(|(kind, namespace, keys)| (kind, namespace, keys.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn set_and_expire_make_stale_and_checked_delete_removes_clear_empties() {
    let world = World::new();
    let node = world.node_where(|s| s.grace("1h")).await;
    let put = async |value: u32| {
        node.set("k", value).await.unwrap();
        pass(ms(1)).await;
    };
    for kind in [Kind::Set, Kind::Expire] {
        // L2 still has it: the node reads L2, and the entry is fresh again.
        put(1).await;
        tell(&world, kind, "bentocache", &["k"]).await;
        node.l2.reset_calls();
        assert_eq!(fresh(&node, "k").await, Some(1));
        assert_eq!(node.l2.on(Ops::GET).calls(), 1);
        assert_eq!((fresh(&node, "k").await, node.l2.on(Ops::GET).calls()), (Some(1), 1));
        // L2 has nothing: the entry is stale, but exists.
        tell(&world, kind, "bentocache", &["k"]).await;
        let bytes = world.l2.take("bentocache:k");
        assert!(bytes.is_some());
        assert_eq!((fresh(&node, "k").await, get_stale(&node, "k").await), (None, Some(1)));
        // L2 cannot be read: the entry is stale as well.
        put(2).await;
        tell(&world, kind, "bentocache", &["k"]).await;
        node.l2.on(Ops::READS).fail_next(2);
        assert_eq!((fresh(&node, "k").await, get_stale(&node, "k").await), (None, Some(2)));
    }
    put(3).await;
    tell(&world, Kind::Delete, "bentocache", &["k"]).await;
    world.l2.take("bentocache:k");
    assert_eq!(get_stale(&node, "k").await, None);
    put(4).await;
    tell(&world, Kind::Clear, "bentocache", &[]).await;
    world.l2.take("bentocache:k");
    assert_eq!(get_stale(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn messages_act_on_full_keys_whatever_handle_wrote_or_reads_them() {
    let world = World::new();
    let node = world.node().await;
    for (namespace, key) in [
        ("bentocache:a:b", "k"),
        ("bentocache:a", "b:k"),
        ("bentocache", "a:b:k"),
        ("", "bentocache:a:b:k"),
    ] {
        node.set("a:b:k", 1_u32).await.unwrap();
        tell(&world, Kind::Delete, namespace, &[key]).await;
        world.l2.take("bentocache:a:b:k");
        assert_eq!(get(&node, "a:b:k").await, None, "{namespace} {key}");
        node.namespace("a:b").set("k", 2_u32).await.unwrap();
        world.l2.put("bentocache:a:b:k", r#"{"value":3}"#, None);
        tell(&world, Kind::Set, namespace, &[key]).await;
        assert_eq!(get(&node, "a:b:k").await, Some(3), "{namespace} {key}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_nobody_has_opened_yet_works_when_it_is_opened_later() {
    let (_, a, b) = two().await;
    let names = b.namespace("later");
    names.set("k", 1_u32).await.unwrap();
    assert_eq!(get(&a, "later:k").await, Some(1));
    names.set("k", 2_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&a, "later:k").await, Some(2));
    assert_eq!(get(&a.namespace("later"), "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_clear_reaches_everything_under_its_namespace_and_nothing_else() {
    let (_, a, b) = two().await;
    let keys = ["users:k", "users:x:k", "usersAbc:k", "k", "user:s"];
    for key in keys {
        a.set(key, 1_u32).await.unwrap();
        settle().await;
        assert_eq!(get(&b, key).await, Some(1));
    }
    settle().await;
    b.l2.reset_calls();
    a.namespace("users").clear().await.unwrap();
    settle().await;
    let values = b.get_many::<u32>(keys).await.unwrap();
    assert_eq!(values, [None, None, Some(1), Some(1), Some(1)]);
    // L2 was read only for the two missing keys.
    assert_eq!(b.l2.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_empty_prefix_works_on_the_bus() {
    let world = World::new();
    let (a, b) =
        (world.node_where(|s| s.prefix("")).await, world.node_where(|s| s.prefix("")).await);
    a.set("k", 1_u32).await.unwrap();
    a.namespace("n").set("k", 1_u32).await.unwrap();
    assert_eq!(b.get_many::<u32>(["k", "n:k"]).await.unwrap(), [Some(1), Some(1)]);
    a.set("k", 2_u32).await.unwrap();
    a.namespace("n").clear().await.unwrap();
    settle().await;
    assert_eq!(b.get_many::<u32>(["k", "n:k"]).await.unwrap(), [Some(2), None]);
}

#[tokio::test(start_paused = true)]
async fn a_node_ignores_what_it_said_itself_and_repeats_nothing_that_it_heard() {
    let world = World::new();
    let (a, b, c) = (world.node().await, world.node().await, world.node().await);
    let heard = record(&world);
    calm().await;
    a.set("k", 1_u32).tags(["t"]).await.unwrap();
    calm().await;
    a.l2.reset_calls();
    // The node's own message did not make its entry unverified.
    assert_eq!((get(&a, "k").await, a.l2.calls()), (Some(1), 0));
    let received = |e: &EventKind<'_>| matches!(e, EventKind::BusReceived { .. });
    assert_eq!(a.seen.count(received), 0);
    for node in [&b, &c] {
        assert_eq!(get(node, "k").await, Some(1));
    }
    a.expire("k").await.unwrap();
    a.delete("k").await.unwrap();
    a.delete_by_tag(["t"]).await.unwrap();
    a.clear().await.unwrap();
    settle().await;
    for node in [&b, &c] {
        assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 0);
        assert_eq!(node.seen.count(received), 5);
    }
    assert_eq!(heard.lock().unwrap().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_understood_is_counted_and_ignored() {
    let world = World::new();
    let node = world.node().await;
    node.set("k", 1_u32).await.unwrap();
    calm().await;
    let good = message::encode(&Sender::random(), Kind::Delete, "bentocache", &["k"])[0].to_vec();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|end| good[..end].to_vec()).collect();
    // A message that ends after its namespace is whole; it names no keys.
    bad.remove(24 + 1 + 4 + "bentocache".len());
    bad.extend([
        b"{\"type\":\"set\"}".to_vec(),
        vec![0xff; 1_000],
        with(24, 0),
        with(24, 9),
        with(25, 0xff),
        with(good.len() - 1, 0xff),
        [&good[..], b"x"].concat(),
    ]);
    node.seen.take();
    for bytes in &bad {
        say(&world, bytes.clone()).await;
    }
    node.l2.reset_calls();
    assert_eq!((get(&node, "k").await, node.l2.calls()), (Some(1), 0));
    let rejected = |e: &EventKind<'_>| matches!(e, EventKind::BusRejected);
    assert_eq!(node.seen.count(rejected), bad.len());
    // The next valid message is received.
    say(&world, good.clone()).await;
    world.l2.take("bentocache:k");
    assert_eq!(get(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn foreign_keys_and_namespaces_change_nothing_here() {
    let world = World::new();
    let node = world.node().await;
    node.set("k", 1_u32).await.unwrap();
    for (kind, namespace, keys) in [
        (Kind::Delete, "other", &["k"][..]),
        (Kind::Delete, "bentocach", &["e:k", "k"]),
        (Kind::Set, "", &["k"]),
        (Kind::Clear, "bentocach", &[]),
        (Kind::Clear, "bentocache:x", &[]),
        (Kind::Expire, "bentocache", &["K", "k ", "", "*"]),
    ] {
        tell(&world, kind, namespace, keys).await;
        node.l2.reset_calls();
        assert_eq!((get(&node, "k").await, node.l2.calls()), (Some(1), 0), "{kind:?} {namespace}");
    }
    // An empty prefix of the whole keyspace means everything.
    tell(&world, Kind::Clear, "", &[]).await;
    world.l2.take("bentocache:k");
    assert_eq!(get(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn stores_of_other_names_are_told_nothing() {
    let (l2, bus) = (MapL2::new(), MapBus::new());
    let open = async |name: &str| {
        let store = Store::new().l1(Memory::new()).l2(l2.clone()).bus(bus.clone());
        BentoCache::builder().clock(TokioTime::new()).store(name, store).build().await.unwrap()
    };
    let (a, b, same) = (open("a").await, open("b").await, open("a").await);
    a.set("k", 1_u32).await.unwrap();
    assert_eq!((get(&b, "k").await, get(&same, "k").await), (Some(1), Some(1)));
    pass(ms(1)).await;
    a.set("k", 2_u32).await.unwrap();
    settle().await;
    assert_eq!((get(&b, "k").await, get(&same, "k").await), (Some(1), Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_call_can_keep_its_change_to_itself() {
    let (_, a, b) = two().await;
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    settle().await;
    a.bus.reset_calls();
    pass(ms(1)).await;
    a.set("k", 2_u32).skip_bus_notify(true).await.unwrap();
    a.expire("k").skip_bus_notify(true).await.unwrap();
    a.delete("k").skip_bus_notify(true).await.unwrap();
    a.delete_by_tag(["t"]).skip_bus_notify(true).await.unwrap();
    a.clear().skip_bus_notify(true).await.unwrap();
    settle().await;
    assert_eq!((a.bus.on(Ops::PUBLISH).calls(), get(&b, "k").await), (0, Some(1)));
}

#[tokio::test(start_paused = true)]
async fn fills_are_announced_only_when_asked_for_or_forced() {
    for (announce, force, said) in
        [(false, false, 0), (true, false, 1), (false, true, 1), (true, true, 1)]
    {
        let world = World::new();
        let node = world.node_where(|s| s.announce_fills(announce)).await;
        let call = node.get_or_set("k", Source::new().gives(1_u32)).force_fresh(force);
        assert_eq!(call.await.unwrap(), 1);
        settle().await;
        let calls = node.bus.on(Ops::PUBLISH).calls();
        assert_eq!(calls, said, "announce {announce}, force {force}");
    }
    // The option of the call has precedence, also for many keys.
    let node = World::new().node().await;
    let call = node.get_or_set("k", Source::new().gives(1_u32)).announce_fills(true);
    call.await.unwrap();
    let many = node.get_or_set_many(["a", "b"], |_| async {
        Ok::<_, Error>([("a".to_owned(), 1_u32), ("b".to_owned(), 2)])
    });
    many.announce_fills(true).await.unwrap();
    settle().await;
    let keys = node.seen.take().into_iter().map(|e| match e.kind {
        EventKind::BusPublished { keys } => keys,
        _ => 0,
    });
    assert_eq!(keys.sum::<usize>(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_fill_over_a_value_that_others_may_use_is_announced() {
    let (world, a, b) = two().await;
    // Of another type.
    a.set("k", "text".to_owned()).await.unwrap();
    settle().await;
    assert_eq!(b.get::<String>("k").await.unwrap().as_deref(), Some("text"));
    assert_eq!(a.get_or_set("k", Source::new().gives(7_u32)).await.unwrap(), 7);
    settle().await;
    assert_eq!(b.get::<String>("k").await.unwrap(), None);
    assert_eq!(get(&b, "k").await, Some(7));
    // Invalidated by a tag, but younger than the invalidation: the Node library accepts it.
    a.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    let at = a.document("___bc:t:t").unwrap()["value"].as_u64().unwrap();
    for (key, created, announced) in [("younger", at + 1, 1), ("older", at, 0)] {
        let entry = serde_json::json!({
            "value": 1, "tags": ["t"], "tagMarkers": [0], "createdAt": created,
            "logicalExpiration": at + 600_000, "staleUntil": at + 600_000,
        });
        a.map.put(&format!("bentocache:{key}"), entry.to_string(), None);
        let heard = record(&world);
        calm().await;
        assert_eq!(a.get_or_set(key, Source::new().gives(2_u32)).await.unwrap(), 2);
        settle().await;
        let heard = heard.lock().unwrap();
        let told = heard.iter().filter(|message| message.keys.iter().any(|told| **told == *key));
        assert_eq!(told.count(), announced, "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_background_refresh_is_announced_by_the_same_rule() {
    for announce in [false, true] {
        let world = World::new();
        let a = world.node_where(|s| s.announce_fills(announce).grace("1h")).await;
        a.set("k", 1_u32).ttl("1s").await.unwrap();
        pass(secs(2)).await;
        a.bus.reset_calls();
        a.get_or_set("k", Source::slow(ms(5)).gives(2_u32)).await.unwrap();
        pass(ms(10)).await;
        assert_eq!(a.bus.on(Ops::PUBLISH).calls(), u64::from(announce));
    }
}

#[tokio::test(start_paused = true)]
async fn promotions_and_backoffs_are_not_announced() {
    let (_, a, b) = two().await;
    a.set("k", 1_u32).ttl("1s").grace("1h").await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    pass(secs(2)).await;
    let call = b.get_or_set("k", Source::new().fails(1)).grace("1h").timeout("none");
    assert_eq!(call.await.unwrap(), 1);
    settle().await;
    assert_eq!(b.bus.on(Ops::PUBLISH).calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_set_that_did_not_reach_the_second_tier_is_announced_when_it_does() {
    let world = World::new();
    let (a, b) = (world.node_where(|s| s.l2_circuit_breaker("off", 1)).await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    settle().await;
    a.bus.reset_calls();
    pass(ms(1)).await;
    a.l2.on(Ops::WRITES).fail();
    a.set("k", 2_u32).await.unwrap();
    settle().await;
    assert_eq!((a.bus.on(Ops::PUBLISH).calls(), get(&b, "k").await), (0, Some(1)));
    a.l2.calm();
    pass(secs(4)).await;
    assert_eq!((a.bus.on(Ops::PUBLISH).calls(), get(&b, "k").await), (1, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_delete_is_announced_even_when_the_second_tier_failed() {
    for suppress in [true, false] {
        let world = World::new();
        let (a, b) =
            (world.node_where(|s| s.suppress_l2_errors(suppress)).await, world.node().await);
        a.set("k", 1_u32).await.unwrap();
        settle().await;
        assert_eq!(get(&b, "k").await, Some(1));
        settle().await;
        a.bus.reset_calls();
        a.l2.on(Ops::WRITES).fail();
        assert_eq!(a.delete("k").await.is_ok(), suppress);
        settle().await;
        assert_eq!(a.bus.on(Ops::PUBLISH).calls(), 1);
        assert_eq!(get(&a, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_is_announced_when_the_second_tier_is_empty_and_not_before() {
    let (world, a, b) = two().await;
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    settle().await;
    a.bus.reset_calls();
    a.l2.on(Ops::CLEAR).hold();
    let clear = go(a.clear());
    a.l2.held(1).await;
    settle().await;
    assert_eq!(a.bus.on(Ops::PUBLISH).calls(), 0);
    a.l2.release();
    clear.await.unwrap().unwrap();
    settle().await;
    assert_eq!(a.bus.on(Ops::PUBLISH).calls(), 1);
    assert!(world.l2.is_empty());
    assert_eq!((get(&a, "k").await, get(&b, "k").await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn an_empty_list_of_keys_says_nothing() {
    let node = World::new().node().await;
    let none: [&str; 0] = [];
    assert_eq!(node.delete_many(none).await.unwrap(), 0);
    node.expire_many(none).await.unwrap();
    node.set_many(Vec::<(&str, u32)>::new()).await.unwrap();
    assert_eq!(node.get_many::<u32>(none).await.unwrap(), []);
    settle().await;
    assert_eq!((node.bus.calls(), node.l2.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_large_for_the_bus_keeps_no_other() {
    let (_, a, b) = two().await;
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    a.bus.on(Ops::PUBLISH).fail_with(ErrorKind::TooLarge);
    a.delete("other").await.unwrap();
    settle().await;
    assert_eq!(a.seen.count(|e| matches!(e, EventKind::RecoveryDropped { .. })), 1);
    a.bus.calm();
    a.delete("k").await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn publishing_delays_nobody() {
    for broken in ["slow", "hung", "failing"] {
        let node = World::new().node().await;
        match broken {
            "slow" => node.bus.on(Ops::PUBLISH).slow(secs(9)),
            "hung" => node.bus.on(Ops::PUBLISH).hang(),
            _ => node.bus.on(Ops::PUBLISH).fail(),
        }
        let began = Instant::now();
        for i in 0..100_u32 {
            node.set("k", i).await.unwrap();
            node.delete("k").await.unwrap();
        }
        node.clear().await.unwrap();
        node.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(began.elapsed(), ms(0), "{broken}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_published_is_published_later_and_in_order() {
    let (world, a, b) = two().await;
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    settle().await;
    let heard = record(&world);
    calm().await;
    a.bus.on(Ops::PUBLISH).fail();
    pass(ms(1)).await;
    a.set("k", 2_u32).await.unwrap();
    a.delete("l").await.unwrap();
    a.clear().await.unwrap();
    pass(secs(1)).await;
    assert_eq!(get(&b, "k").await, Some(1));
    a.bus.calm();
    pass(secs(5)).await;
    assert_eq!(get(&b, "k").await, None);
    let kinds: Vec<_> = heard.lock().unwrap().iter().map(|m| m.kind).collect();
    // They arrive late. So the clear is repeated, in case others have filled their L1 meanwhile.
    assert_eq!(kinds, [Kind::Set, Kind::Delete, Kind::Clear, Kind::Clear]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_bus_is_published_at_once_when_the_link_is_back() {
    let world = World::new();
    let (a, b) = (world.node_where(|s| s.recovery(100, "1h")).await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    a.bus.cut();
    pass(secs(1)).await;
    a.set("k", 2_u32).await.unwrap();
    pass(secs(1)).await;
    assert_eq!(get(&b, "k").await, Some(1));
    a.bus.restore();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn too_many_messages_while_the_bus_fails_become_a_clear_and_none_is_lost() {
    let world = World::new();
    let (a, b) = (world.node_where(|s| s.recovery(50, "1s")).await, world.node().await);
    a.set("k0", 1_u32).await.unwrap();
    a.namespace("n").set("k", 2_u32).await.unwrap();
    settle().await;
    let both = async || (get(&b, "k0").await, get(&b.namespace("n"), "k").await);
    assert_eq!(both().await, (Some(1), Some(2)));
    a.bus.on(Ops::PUBLISH).fail();
    for i in 0..20_000_u32 {
        a.delete(format!("k{i}")).await.unwrap();
        // Lets the publisher run and fail.
        if i == 0 {
            settle().await;
        }
    }
    assert_eq!(a.seen.count(|e| matches!(e, EventKind::RecoveryDropped { .. })), 0);
    a.bus.calm();
    a.seen.take();
    pass(secs(5)).await;
    let keys = a.seen.take().into_iter().map(|e| match e.kind {
        EventKind::BusPublished { keys } => keys,
        _ => 0,
    });
    let keys = keys.sum::<usize>();
    assert!(keys <= 3_000, "{keys}");
    // The clear of the namespace affects more than was deleted, which costs a read.
    assert_eq!(both().await, (None, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn while_the_bus_works_every_key_is_announced() {
    let (_, a, b) = two().await;
    let keys: Vec<String> = (0..20_000).map(|i| format!("k{i}")).collect();
    a.set_many(keys.iter().map(|key| (key, 1_u32))).await.unwrap();
    calm().await;
    let found = b.get_many::<u32>(&keys).await.unwrap();
    assert!(found.iter().all(|value| *value == Some(1)));
    a.delete_many(&keys).await.unwrap();
    calm().await;
    b.l2.reset_calls();
    let found = b.get_many::<u32>(&keys).await.unwrap();
    assert!(found.iter().all(Option::is_none));
    assert_eq!(a.seen.count(|e| matches!(e, EventKind::RecoveryDropped { .. })), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_of_many_keys_is_split_and_all_arrive() {
    let (_, a, b) = two().await;
    let long = "x".repeat(1_000);
    let keys: Vec<String> = (0..1_500).map(|i| format!("{long}{i}")).collect();
    a.set_many(keys.iter().map(|key| (key, 1_u32))).await.unwrap();
    let read = b.get_many::<u32>(&keys).await.unwrap();
    assert!(read.iter().all(|value| *value == Some(1)));
    settle().await;
    a.delete_many(&keys).await.unwrap();
    settle().await;
    let read = b.get_many::<u32>(&keys).await.unwrap();
    assert!(read.iter().all(Option::is_none));
    let published = a.bus.on(Ops::PUBLISH).calls();
    assert!((6..=12).contains(&published), "{published}");
}

/// A value that counts its decodings.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Counted(u32);

static DECODED: AtomicUsize = AtomicUsize::new(0);

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DECODED.fetch_add(1, SeqCst);
        u32::deserialize(deserializer).map(Self)
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_each_entry_is_checked_once_and_what_is_the_same_is_kept() {
    let (_, a, b) = two().await;
    for key in ["same", "changed", "gone"] {
        a.set(key, Counted(1)).await.unwrap();
        settle().await;
        assert_eq!(b.get::<Counted>(key).await.unwrap(), Some(Counted(1)));
    }
    settle().await;
    b.bus.cut();
    settle().await;
    a.set("changed", Counted(2)).await.unwrap();
    a.delete("gone").await.unwrap();
    settle().await;
    // By default L1 is served as usual in the meantime.
    b.l2.reset_calls();
    for key in ["same", "changed", "gone"] {
        assert_eq!(b.get::<Counted>(key).await.unwrap(), Some(Counted(1)));
    }
    assert_eq!(b.l2.calls(), 0);
    b.bus.restore();
    settle().await;
    let decoded = DECODED.load(SeqCst);
    for _ in 0..3 {
        assert_eq!(b.get::<Counted>("same").await.unwrap(), Some(Counted(1)));
    }
    assert_eq!((b.l2.calls(), DECODED.load(SeqCst) - decoded), (1, 0));
    assert_eq!(b.get::<Counted>("changed").await.unwrap(), Some(Counted(2)));
    assert_eq!(b.get::<Counted>("gone").await.unwrap(), None);
    assert_eq!((b.l2.calls(), DECODED.load(SeqCst) - decoded), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_every_read_looks_not_only_get() {
    for read in 0..5 {
        let (_, a, b) = two().await;
        a.set("k", 1_u32).grace("1h").tags(["t"]).await.unwrap();
        settle().await;
        assert_eq!(get(&b, "k").await, Some(1));
        settle().await;
        b.bus.cut();
        settle().await;
        if read == 4 {
            a.delete_by_tag(["t"]).await.unwrap();
        } else {
            a.delete("k").await.unwrap();
        }
        settle().await;
        b.bus.restore();
        settle().await;
        match read {
            0 => assert!(!b.has("k").await.unwrap()),
            1 => assert_eq!(b.get_many::<u32>(["k"]).await.unwrap(), [None]),
            2 => assert_eq!(crate::common::fill(&b, "k", 2).await, 2),
            3 => {
                let call = b.get_or_set_many(["k"], |_| async {
                    Ok::<_, Error>([("k".to_owned(), 3_u32)])
                });
                assert_eq!(call.await.unwrap(), [Some(3)]);
            }
            _ => assert_eq!(get(&b, "k").await, None),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_gap_while_a_read_is_under_way_counts_for_what_it_brings() {
    let world = World::new();
    let a = world.node().await;
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    let l2 = crate::races::Holding::new(&world.l2);
    let b = world.node_where(|s| s.l2(l2.clone())).await;
    let hold = l2.hold_next_after(Ops::GET);
    let reader = go(b.get::<u32>("k"));
    hold.reached().await;
    b.bus.cut();
    settle().await;
    a.set("k", 2_u32).await.unwrap();
    settle().await;
    b.bus.restore();
    settle().await;
    hold.release();
    assert_eq!(reader.await.unwrap().unwrap(), Some(1));
    assert_eq!(get(&b, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_factory_across_a_gap_does_not_hide_what_was_missed() {
    let (_, a, b) = two().await;
    let source = Source::held();
    let call = go(b.get_or_set("k", source.gives(1_u32)));
    source.begun(1).await;
    b.bus.cut();
    settle().await;
    a.set("k", 2_u32).await.unwrap();
    settle().await;
    b.bus.restore();
    settle().await;
    source.release();
    assert_eq!(call.await.unwrap().unwrap(), 1);
    settle().await;
    for node in [&a, &b] {
        assert_eq!(get(node, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_entries_are_served_as_without_a_bus_until_the_second_tier_answers() {
    let (_, a, b) = two().await;
    a.set("k", 1_u32).grace("1h").await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    b.bus.cut();
    settle().await;
    b.bus.restore();
    settle().await;
    b.l2.on(Ops::READS).fail();
    assert_eq!((get(&b, "k").await, b.has("k").await.unwrap()), (Some(1), true));
    // The answer decides, whatever was served before.
    a.l2.on(Ops::DELETE).fail_late();
    b.bus.on(Ops::DELIVER).hold();
    a.delete("k").await.unwrap();
    b.l2.calm();
    pass(secs(2)).await;
    assert_eq!(get(&b, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn while_the_bus_is_down_entries_are_checked_if_that_is_wished() {
    let world = World::new();
    let check = |s: Store| s.when_bus_is_down(BusDown::CheckAfter(secs(3)));
    let (a, b) = (world.node().await, world.node_where(check).await);
    a.set("k", 1_u32).ttl("1h").await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    // While the bus works there is no limit.
    pass(secs(60)).await;
    b.l2.reset_calls();
    assert_eq!((get(&b, "k").await, b.l2.calls()), (Some(1), 0));
    b.bus.cut();
    settle().await;
    a.set("k", 2_u32).ttl("1h").await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(2));
    a.set("k", 3_u32).ttl("1h").await.unwrap();
    pass(ms(2_999)).await;
    assert_eq!(get(&b, "k").await, Some(2));
    pass(ms(2)).await;
    assert_eq!(get(&b, "k").await, Some(3));
    // An entry that was checked and is unchanged is valid for the same time again.
    pass(ms(3_001)).await;
    b.l2.reset_calls();
    assert_eq!((get(&b, "k").await, b.l2.calls()), (Some(3), 1));
    pass(ms(2_999)).await;
    assert_eq!((get(&b, "k").await, b.l2.calls()), (Some(3), 1));
    b.bus.restore();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(3));
    b.l2.reset_calls();
    pass(secs(60)).await;
    assert_eq!((get(&b, "k").await, b.l2.calls()), (Some(3), 0));
}

#[tokio::test(start_paused = true)]
async fn events_tell_that_the_bus_is_lost_and_restored() {
    let (_, _a, b) = two().await;
    b.seen.take();
    b.bus.cut();
    settle().await;
    b.bus.restore();
    settle().await;
    assert_eq!(b.seen.texts(), ["lost", "restored"]);
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_cannot_be_reached_at_the_start_is_tried_again() {
    let world = World::new();
    let bus = ChaosBus::new(world.bus.clone());
    let chaos = bus.chaos();
    chaos.cut();
    let b = world.node_where(|s| s.bus(bus)).await;
    let a = world.node().await;
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    pass(ms(10)).await;
    a.set("k", 2_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    chaos.restore();
    pass(secs(5)).await;
    assert_eq!(get(&b, "k").await, Some(2));
    a.set("k", 3_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_ends_is_made_again_and_what_was_missed_is_checked() {
    let (l2, bus) = (MapL2::new(), MapBus::new());
    let open = async |bus: MapBus| {
        let store = Store::new().l1(Memory::new()).l2(ChaosL2::new(l2.clone())).bus(bus);
        BentoCache::builder().clock(TokioTime::new()).store("s", store).build().await.unwrap()
    };
    let own = bus.clone();
    let (a, b) = (open(bus.clone()).await, open(own.clone()).await);
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    settle().await;
    own.disconnect().await.unwrap();
    settle().await;
    a.set("k", 2_u32).await.unwrap();
    pass(secs(5)).await;
    assert_eq!(bus.subscribers(CHANNEL), 2);
    assert_eq!(get(&b, "k").await, Some(2));
    a.set("k", 3_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_listener_far_behind_is_told_so_and_misses_nothing() {
    let (_, a, b) = two().await;
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    b.bus.on(Ops::DELIVER).hold();
    a.set("x", 0_u32).await.unwrap();
    b.bus.held(1).await;
    pass(ms(1)).await;
    a.set("k", 2_u32).await.unwrap();
    calm().await;
    // More than the bus queues for a subscriber that does not read.
    for i in 0..17_000_u32 {
        let key = format!("k{i}");
        a.delete(&key).skip_l2_write(true).await.unwrap();
        tokio::task::yield_now().await;
    }
    settle().await;
    b.bus.release();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_late_message_costs_a_look_and_takes_nothing_newer_away() {
    let (_, a, b) = two().await;
    b.bus.on(Ops::DELIVER).hold();
    a.set("k", 1_u32).await.unwrap();
    b.bus.held(1).await;
    pass(secs(5)).await;
    b.set("k", 2_u32).await.unwrap();
    b.bus.release();
    settle().await;
    for node in [&a, &b] {
        assert_eq!(get(node, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_without_a_second_tier_goes_stale_on_messages() {
    let world = World::new();
    let memory = |_: Store| Store::new().l1(Memory::new()).bus(world.bus.clone());
    let (a, b) = (world.node_where(memory).await, world.node_where(memory).await);
    b.set("k", 1_u32).grace("1h").skip_bus_notify(true).await.unwrap();
    a.set("k", 2_u32).await.unwrap();
    settle().await;
    assert_eq!((get(&b, "k").await, get_stale(&b, "k").await), (None, Some(1)));
    let call = b.get_or_set("k", |cx: Context<u32>| async move {
        Ok::<_, Error>(cx.stale().copied().unwrap_or(0) + 10)
    });
    assert_eq!(call.grace("1h").timeout("none").await.unwrap(), 11);
    a.delete("k").await.unwrap();
    settle().await;
    assert_eq!(get_stale(&b, "k").await, None);
}
