//! Where npm `bentocache` 1.6.1 and this library differ on one Redis, and what that means for a
//! process of the other kind. Each test names Node's bug, or our limit, and shows which side is
//! right.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bentocache::{BentoCache, Store, TimeSource};
use bentocache_redis::Redis;
use serde_json::{Value, json, value::RawValue};

use crate::node::{Factory, Pair, Side, With, cache, cache_that, subscribed};

/// Node takes the grace for the whole life in Redis: a ttl of 1 hour with a grace of 10 minutes is
/// gone after 10 minutes. Ours is added, and Node reads what we wrote to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_grace_never_shortens_the_ttl() {
    let pair = Pair::start().await;
    let with = With { ttl: Some("1h"), grace: Some("10m"), ..With::default() };
    for (side, minutes) in [(&pair.node, 10), (&pair.rust, 70)] {
        side.set_with(side.name(), 1, with).await;
        let left = pair.left(&format!("bentocache:{}", side.name())).as_secs();
        assert!((minutes * 60 - 10..=minutes * 60).contains(&left), "{}: {left}", side.name());
    }
    assert_eq!(pair.node.get("rust").await, Some(json!(1)));
}

/// Node's `expire` gives an entry in Redis the life of a new one, here the default ttl of 10
/// minutes. Ours leaves what is left; and of what Node rewrote, which has lost our field
/// `staleUntil`, we serve what our own grace allows.
#[tokio::test(flavor = "multi_thread")]
async fn an_expire_leaves_what_is_left_of_a_life() {
    let pair = Pair::start().await;
    let with = With { ttl: Some("1h"), grace: Some("1h"), ..With::default() };
    let grace = With { grace: Some("2h"), ..With::default() };
    for (side, most, least) in [(&pair.node, 600, 590), (&pair.rust, 7_200, 7_190)] {
        pair.rust.set_with("k", 1, with).await;
        side.expire("k", With::default()).await;
        let left = pair.left("bentocache:k").as_secs();
        assert!((least..=most).contains(&left), "{}: {left}", side.name());
        for side in [&pair.rust, &pair.node] {
            side.runs_out("k").await;
            assert_eq!(side.get_with("k", grace).await, Some(json!(1)), "{}", side.name());
        }
    }
}

/// A factory that fails: Node keeps the backoff to itself, and counts it from the old expiry. Ours
/// counts from now and is in Redis, so that it spares the source Node's calls, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_backoff_spares_the_source_on_both_sides() {
    let pair = Pair::start().await;
    let brief = With { ttl: Some("1ms"), grace: Some("1h"), ..With::default() };
    let grace = With { grace: Some("1h"), ..With::default() };
    for (writer, _) in pair.directions() {
        let key = writer.name();
        writer.set_with(key, 1, brief).await;
        pair.rust.runs_out(key).await;
        let run = |side: Side| async move { side.get_or_set(key, Factory::Fails, grace).await };
        assert_eq!(run(pair.rust.clone()).await, Ok((json!(1), true)));
        assert_eq!(run(pair.rust.clone()).await, Ok((json!(1), false)));
        assert_eq!(run(pair.node.clone()).await, Ok((json!(1), false)));
    }
}

/// A ttl of 0 is forever in Node. With us it stores nothing and deletes what is there, for Node
/// too.
#[tokio::test(flavor = "multi_thread")]
async fn a_ttl_of_zero() {
    let pair = Pair::start().await;
    let zero = With { ttl: Some("0"), ..With::default() };
    pair.node.set_with("k", 1, zero).await;
    assert_eq!(pair.server.cli(&["pttl", "bentocache:k"]), "-1");
    pair.rust.becomes("k", Some(json!(1))).await;
    pair.rust.set_with("k", 2, zero).await;
    pair.node.becomes("k", None).await;
    assert_eq!(pair.server.cli(&["exists", "bentocache:k"]), "0");
}

/// What is not an entry is a miss, and a factory's value takes its place. Node, with both tiers,
/// agrees where it is not JSON; where it is, Node has an entry without a value, and the factory
/// never runs.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_an_entry_is_a_miss() {
    let pair = Pair::start().await;
    let others = ["", "not json", "{\"value\":", "[1]", "7", "null", "{}", "{\"createdAt\":1}"];
    for (at, text) in others.into_iter().enumerate() {
        let key = format!("k{at}");
        pair.server.cli(&["set", &format!("bentocache:{key}"), text]);
        assert_eq!(pair.rust.get(&key).await, None, "{text}");
        assert!(pair.rust.missing(&key).await, "{text}");
        let made = pair.rust.get_or_set(&key, Factory::Makes(json!(at)), With::default()).await;
        assert_eq!(made, Ok((json!(at), true)), "{text}");
        assert_eq!(pair.node.get(&key).await, Some(json!(at)), "{text}");
    }
    pair.server.cli(&["set", "bentocache:empty", "{}"]);
    let stuck = pair.node.call("getOrSet", json!({ "key": "empty", "value": 1 })).await;
    assert_eq!(stuck, Ok(json!({ "value": [], "ran": false })), "Node has become right");
}

/// A message about a namespace that a process has not opened is dropped by Node, and an entry that
/// it read through another handle stays old. Ours go by the complete key.
#[tokio::test(flavor = "multi_thread")]
async fn messages_count_in_namespaces_that_nobody_opened() {
    let pair = Pair::start().await;
    for (writer, reader) in pair.directions() {
        let (name, key) = (writer.name(), format!("{}:k", writer.name()));
        // Through the root, so that the reader has not opened the namespace.
        writer.set(&key, "old").await;
        reader.has_heard(writer).await;
        assert_eq!(reader.get(&key).await, Some(json!("old")));
        writer.namespace(name).set("k", "new").await;
        reader.has_heard(writer).await;
        let right = matches!(reader, Side::Rust(_));
        assert_eq!(reader.get(&key).await, Some(json!(if right { "new" } else { "old" })));
    }
}

/// A clock that stands still, so that everything happens in one millisecond.
struct Standing(Instant, u64);

impl TimeSource for Standing {
    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap() + 1
    }

    fn epoch_ms(&self) -> u64 {
        self.1
    }
}

/// Node takes a value for invalid that was set in the millisecond of the invalidation before it,
/// and then expires it for everybody. Ours remembers the marker it has seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_set_after_an_invalidation_is_valid() {
    let pair = Pair::start().await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let clock = Standing(Instant::now(), u64::try_from(now).unwrap());
    let still = Side::of(&cache_that(&pair.server, |builder| builder.clock(clock)).await);
    subscribed(&pair.server, 3);
    let tagged = With { tags: &["t"], ..With::default() };
    still.delete_by_tag(&["t"]).await;
    still.set_with("k", "after", tagged).await;
    assert_eq!(still.get("k").await, Some(json!("after")));
    assert_eq!(pair.rust.get("k").await, Some(json!("after")));
    assert_eq!(pair.node.get("k").await, None, "Node has become right");
    pair.rust.becomes("k", None).await;
    // A value that Node wrote remembers no marker: its age decides, for us as for Node.
    let entry =
        json!({ "value": 1, "createdAt": now, "logicalExpiration": now + 600_000, "tags": ["t"] });
    pair.server.cli(&["set", "bentocache:theirs", &entry.to_string()]);
    assert_eq!(pair.rust.get("theirs").await, None);
    assert_eq!(pair.node.get("theirs").await, None);
}

/// Two pulls at once both get the value in Node. With us one does, whichever process asks.
#[tokio::test(flavor = "multi_thread")]
async fn one_pull_of_many_gets_the_value() {
    let pair = Pair::start().await;
    let other = Side::of(&cache(&pair.server).await);
    subscribed(&pair.server, 3);
    for round in 0..20 {
        pair.node.set("k", round).await;
        let got = tokio::join!(
            pair.rust.pull("k"),
            other.pull("k"),
            pair.rust.pull("k"),
            other.pull("k"),
        );
        let got: Vec<Value> = [got.0, got.1, got.2, got.3].into_iter().flatten().collect();
        assert_eq!(got, [json!(round)]);
        pair.node.becomes("k", None).await;
    }
    // The two must meet in Node, which takes some tries when the machine is busy.
    let mut both = false;
    for _ in 0..100 {
        pair.node.set("k", 1).await;
        let got = tokio::join!(pair.node.pull("k"), pair.node.pull("k"));
        both |= got == (Some(json!(1)), Some(json!(1)));
        if both {
            break;
        }
    }
    assert!(both, "Node has become right");
}

/// Node announces a deletion of no keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_about_nothing_does_no_harm() {
    let pair = Pair::start().await;
    pair.node.set("k", 1).await;
    assert_eq!(pair.rust.get("k").await, Some(json!(1)));
    pair.node.delete_many(&[]).await;
    pair.rust.has_heard(&pair.node).await;
    assert_eq!(pair.rust.get("k").await, Some(json!(1)));
}

/// Numbers are doubles in JavaScript: Node reads a larger integer as the next one that it has,
/// and destroys it if it writes the entry again.
#[tokio::test(flavor = "multi_thread")]
async fn integers_beyond_the_safe_ones_are_exact_in_rust_only() {
    let pair = Pair::start().await;
    let other = Side::of(&cache(&pair.server).await);
    pair.rust.set("k", u64::MAX).await;
    assert_eq!(other.get("k").await, Some(json!(u64::MAX)));
    let as_double = pair.node.get("k").await.and_then(|value| value.as_f64());
    assert_eq!(as_double, Some(18_446_744_073_709_551_616.0));
    // A whole float is an integer once Node has written it, and still a float for who asks for one.
    let Side::Rust(cache) = &pair.rust else { unreachable!() };
    cache.set("float", 1.0).await.unwrap();
    let value = pair.node.get("float").await.unwrap();
    pair.node.set("float", value).await;
    pair.rust.has_heard(&pair.node).await;
    assert_eq!(pair.rust.get("float").await, Some(json!(1)));
    assert_eq!(cache.get::<f64>("float").await.unwrap(), Some(1.0));
}

/// Half a surrogate pair is text in JavaScript, and none anywhere else; and we stop after 127
/// levels of arrays and objects, where Node goes on. Both are a miss.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_javascript_can_hold_is_a_miss() {
    let pair = Pair::start().await;
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let sent =
        [("surrogate", "\"\\ud83c\"".to_owned()), ("deep", deep(128)), ("deeper", deep(1_000))];
    for (key, text) in sent {
        let value = RawValue::from_string(text).unwrap();
        pair.node.set_raw(key, &value).await;
        assert!(pair.node.has(key).await);
        assert_eq!(pair.rust.get(key).await, None);
        let made = pair.rust.get_or_set(key, Factory::Makes(json!(1)), With::default()).await;
        assert_eq!(made, Ok((json!(1), true)));
    }
    pair.node.set_raw("deep enough", &RawValue::from_string(deep(127)).unwrap()).await;
    assert!(pair.rust.get("deep enough").await.is_some());
}

/// A factory's value that replaces one in Redis which this process cannot use, but others can, is
/// not announced: they keep the old one to its end. Here its type is not the one asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_fill_over_a_value_of_another_type_reaches_the_memory_of_node() {
    let pair = Pair::start().await;
    let Side::Rust(cache) = &pair.rust else { unreachable!() };
    pair.node.set("k", "text").await;
    // Its message would make this node take back what it stores next.
    pair.rust.has_heard(&pair.node).await;
    let made = cache.get_or_set("k", |_| async { Ok::<_, std::io::Error>(5_u32) }).await.unwrap();
    assert_eq!(made, 5);
    assert!(pair.server.cli(&["get", "bentocache:k"]).contains("\"value\":5"));
    pair.node.has_heard(&pair.rust).await;
    assert_eq!(pair.node.get("k").await, Some(json!(5)));
}

/// The same where the age of the value says that it is valid, which is what Node goes by, and the
/// marker that it remembers says that it is not: a process of ours had not heard of the
/// invalidation when it set the value.
#[tokio::test(flavor = "multi_thread")]
async fn a_fill_over_a_value_that_is_valid_for_node_reaches_its_memory() {
    let pair = Pair::start().await;
    let tagged = With { tags: &["t"], ..With::default() };
    pair.node.delete_by_tag(&["t"]).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() + 10;
    let end = now + 600_000;
    let entry = json!({
        "value": "unaware", "createdAt": now, "logicalExpiration": end, "staleUntil": end,
        "tags": ["t"], "tagMarkers": [0], "tagScope": "",
    });
    pair.server.cli(&["set", "bentocache:k", &entry.to_string()]);
    assert_eq!(pair.node.get("k").await, Some(json!("unaware")));
    let made = pair.rust.get_or_set("k", Factory::Makes(json!("new")), tagged).await;
    assert_eq!(made, Ok((json!("new"), true)));
    pair.node.has_heard(&pair.rust).await;
    assert_eq!(pair.node.get("k").await, Some(json!("new")));
}

/// A tag's marker is believed for `tag_check_interval` from before it was read, but always for the
/// read that looked it up, also with 0.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_is_looked_up_each_time_is_known() {
    let pair = Pair::start().await;
    let store = Store::new().l2(Redis::new(pair.server.url())).tag_check_interval("0");
    let bento = BentoCache::builder().store("main", store).build().await.unwrap();
    pair.node.set_with("k", 1, With { tags: &["t"], ..With::default() }).await;
    assert_eq!(Side::of(&bento).get("k").await, Some(json!(1)));
}
