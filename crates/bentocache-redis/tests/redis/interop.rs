//! Rust beside Node: this library and npm `bentocache` 1.6 on one Redis, each with both tiers and
//! the bus. Needs `node`, `npm` and, the first time, a package registry.

use bentocache::Cache;
use serde_json::{Value, json};

use crate::node::{Factory, Pair, Side, With};

/// JSON as both write it alike. (Node writes 1.0 as 1 and -0.0 as 0.)
fn values() -> Vec<Value> {
    let deep = nested(120);
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(9_007_199_254_740_991_i64),
        json!(-9_007_199_254_740_991_i64),
        json!(13.700000000000001),
        json!(0.1 + 0.2),
        json!(-2.5e-7),
        json!(5e-324),
        json!(1.7976931348623157e308),
        json!(""),
        json!("plain"),
        json!("Zażółć gęślą jaźń \u{1f371} \u{200d} \u{2028} \u{feff} e\u{301}"),
        json!("\" \\ / \u{0} \u{8} \u{c} \n \r \t \u{1f} \u{7f}"),
        json!("null"),
        json!("{\"value\":1}"),
        json!("x".repeat(200_000)),
        json!([]),
        json!({}),
        json!([[], {}, [null], [[[]]]]),
        json!([1, "two", 3.5, true, null, { "four": [5] }]),
        json!({ "": 0, "value": 1, "createdAt": 2, "tags": ["t"], "__proto__": 3, "\u{1f371}": 4 }),
        deep,
    ]
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!("bottom"), |inner, _| json!([inner]))
}

async fn failing(side: &Side, key: &str, grace: Option<&str>) -> Result<(Value, bool), String> {
    side.get_or_set(key, Factory::Fails, With { grace, ..With::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reads_every_type_of_the_other() {
    let pair = Pair::start().await;
    for (writer, reader) in pair.directions() {
        for (at, value) in values().into_iter().enumerate() {
            let key = format!("{}:{at}", writer.name());
            writer.set(&key, value.clone()).await;
            assert_eq!(reader.get(&key).await, Some(value.clone()), "{key}");
            assert!(reader.has(&key).await, "{key}");
        }
        // The second time from its own memory. A message that is still under way would make it
        // look into Redis again.
        reader.has_heard(writer).await;
        for (at, value) in values().into_iter().enumerate() {
            let key = format!("{}:{at}", writer.name());
            assert_eq!(reader.get(&key).await, Some(value.clone()), "{key}");
            assert_eq!(pair.server.cli(&["unlink", &format!("bentocache:{key}")]), "1");
            assert_eq!(reader.get(&key).await, Some(value), "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_values_cross_both_ways() {
    #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
    struct User {
        name: String,
        age: Option<u8>,
        score: f64,
        roles: Vec<Role>,
    }
    #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
    enum Role {
        Admin,
        Of { group: String },
    }

    let pair = Pair::start().await;
    let Side::Rust(cache) = &pair.rust else { unreachable!() };
    let user = User {
        name: "Łucja".to_owned(),
        age: None,
        score: 2.0,
        roles: vec![Role::Admin, Role::Of { group: "a".to_owned() }],
    };
    cache.set("user", user.clone()).await.unwrap();
    let as_node_sees_it = json!({
        "name": "Łucja", "age": null, "score": 2, "roles": ["Admin", { "Of": { "group": "a" } }],
    });
    assert_eq!(pair.node.get("user").await, Some(as_node_sees_it.clone()));
    pair.node.set("theirs", as_node_sees_it).await;
    assert_eq!(cache.get::<User>("theirs").await.unwrap(), Some(user));
    // A null is a value for both, of every type that has one.
    pair.node.set("nothing", Value::Null).await;
    assert_eq!(cache.get::<Option<User>>("nothing").await.unwrap(), Some(None));
    cache.set("unit", ()).await.unwrap();
    assert_eq!(pair.node.get("unit").await, Some(Value::Null));
    // Another type than asked for is a miss, not an error.
    assert_eq!(cache.get::<User>("nothing").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_any_text_cross_both_ways() {
    let pair = Pair::start().await;
    let keys =
        ["a", "a:b", "ключ:\u{1f371}", " ", "*", "h?llo[1]", "a\\b\n\"c\"", "__proto__", "%00"];
    for (writer, reader) in pair.directions() {
        for key in keys {
            writer.set(key, 1).await;
            reader.becomes(key, Some(json!(1))).await;
            writer.set(key, 2).await;
            reader.becomes(key, Some(json!(2))).await;
            writer.delete(key).await;
            reader.becomes(key, None).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_factory_does_not_run_for_what_the_other_has() {
    let pair = Pair::start().await;
    for (first, second) in pair.directions() {
        let key = first.name();
        let makes = |value: &str| Factory::Makes(json!(value));
        let made = first.get_or_set(key, makes("first"), With::default()).await;
        assert_eq!(made, Ok((json!("first"), true)));
        let found = second.get_or_set(key, makes("second"), With::default()).await;
        assert_eq!(found, Ok((json!("first"), false)));
        assert!(second.has(key).await && !second.missing(key).await);
        first.set("null", Value::Null).await;
        let null = second.get_or_set("null", makes("second"), With::default()).await;
        assert_eq!(null, Ok((Value::Null, false)));
        first.delete("null").await;
        second.becomes("null", None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_lives_as_long_on_both_sides() {
    let pair = Pair::start().await;
    for (writer, reader) in pair.directions() {
        let short = With { ttl: Some("300ms"), ..With::default() };
        let start = std::time::Instant::now();
        writer.set_with("short", 1, short).await;
        writer.set_with("long", 2, With { ttl: Some("1h"), ..With::default() }).await;
        writer.set_with("always", 3, With { ttl: Some("forever"), ..With::default() }).await;
        // Into the reader's memory, where the ttl is as short.
        assert!(reader.get("short").await.is_some() || start.elapsed().as_millis() > 250);
        for side in [reader, writer] {
            side.runs_out("short").await;
            assert_eq!(side.get("short").await, None);
            assert_eq!(side.get("long").await, Some(json!(2)));
            assert_eq!(side.get("always").await, Some(json!(3)));
        }
        assert!(start.elapsed().as_millis() >= 200, "it ran out early");
        let left = pair.left("bentocache:long").as_secs();
        assert!((3_590..=3_600).contains(&left), "{left}");
        assert_eq!(pair.server.cli(&["pttl", "bentocache:always"]), "-1");
        // What is forever can be expired, too.
        writer.expire("always", With::default()).await;
        reader.runs_out("always").await;
        assert_eq!(reader.get("always").await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_value_of_the_other_is_served_when_the_factory_fails() {
    let pair = Pair::start().await;
    let brief = With { ttl: Some("1ms"), grace: Some("1h"), ..With::default() };
    let grace = With { grace: Some("1h"), ..With::default() };
    for (writer, reader) in pair.directions() {
        let key = writer.name();
        writer.set_with(key, "stale", brief).await;
        reader.runs_out(key).await;
        assert_eq!(reader.get(key).await, None, "without grace");
        assert_eq!(reader.get_with(key, grace).await, Some(json!("stale")));
        assert!(failing(reader, key, None).await.is_err());
        assert_eq!(failing(reader, key, Some("1h")).await, Ok((json!("stale"), true)));
        // And made again for both.
        let other = format!("{key}-renewed");
        writer.set_with(&other, "stale", brief).await;
        reader.runs_out(&other).await;
        let made = reader.get_or_set(&other, Factory::Makes(json!("new")), grace).await;
        assert_eq!(made, Ok((json!("new"), true)));
        writer.becomes(&other, Some(json!("new"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_value_of_the_other_is_stale() {
    let pair = Pair::start().await;
    let grace = With { grace: Some("1h"), ..With::default() };
    for (expires, serves) in pair.directions() {
        for (writer, _) in pair.directions() {
            let key = format!("{}-{}", writer.name(), expires.name());
            writer.set_with(&key, 7, grace).await;
            assert_eq!(serves.get(&key).await, Some(json!(7)));
            expires.expire(&key, grace).await;
            serves.runs_out(&key).await;
            assert_eq!(failing(serves, &key, Some("1h")).await, Ok((json!(7), true)), "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_one_reach_the_memory_of_the_other() {
    let pair = Pair::start().await;
    for (writer, reader) in pair.directions() {
        let keys = ["a", "b", "c", "d"];
        for key in keys {
            writer.set(key, "old").await;
            reader.becomes(key, Some(json!("old"))).await;
        }
        writer.set("a", "new").await;
        reader.becomes("a", Some(json!("new"))).await;
        writer.delete("a").await;
        reader.becomes("a", None).await;
        writer.expire("b", With::default()).await;
        reader.becomes("b", None).await;
        writer.delete_many(&["c", "d", "never there"]).await;
        reader.becomes("c", None).await;
        reader.becomes("d", None).await;
        for key in keys {
            writer.set(key, "again").await;
            reader.becomes(key, Some(json!("again"))).await;
        }
        writer.clear().await;
        for key in keys {
            reader.becomes(key, None).await;
        }
        assert_eq!(pair.server.cli(&["keys", "bentocache:?"]), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_one_pulls_is_gone_for_the_other() {
    let pair = Pair::start().await;
    for (first, second) in pair.directions() {
        first.set("once", "value").await;
        second.becomes("once", Some(json!("value"))).await;
        assert_eq!(second.pull("once").await, Some(json!("value")));
        assert_eq!(second.pull("once").await, None);
        first.becomes("once", None).await;
        assert!(first.missing("once").await);
        assert_eq!(first.pull("once").await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_work_across_both() {
    let pair = Pair::start().await;
    for (writer, reader) in pair.directions() {
        for (tagger, _) in pair.directions() {
            let tagged = |tags| With { tags, ..With::default() };
            writer.set_with("both", 1, tagged(&["red", "blue"])).await;
            writer.set_with("red", 2, tagged(&["red"])).await;
            writer.set_with("blue", 3, tagged(&["blue"])).await;
            for side in [reader, writer] {
                side.becomes("both", Some(json!(1))).await;
                side.becomes("red", Some(json!(2))).await;
                side.becomes("blue", Some(json!(3))).await;
            }
            tagger.delete_by_tag(&["red", "unknown"]).await;
            for side in [reader, writer] {
                side.becomes("both", None).await;
                side.becomes("red", None).await;
                assert!(side.missing("red").await);
                assert_eq!(side.get("blue").await, Some(json!(3)));
            }
            // Values that a factory makes with the tag, later, are valid: for Node, whose values
            // remember no marker, from the next millisecond on.
            let marker = pair.server.cli(&["get", "bentocache:___bc:t:red"]);
            let marker: Value = serde_json::from_str(&marker).unwrap();
            while now() <= marker["value"].as_u64().unwrap() {
                tokio::task::yield_now().await;
            }
            let makes = Factory::Makes(json!("anew"));
            let made = reader.get_or_set("red", makes, tagged(&["red"])).await;
            assert_eq!(made, Ok((json!("anew"), true)));
            writer.becomes("red", Some(json!("anew"))).await;
            assert_eq!(reader.get("red").await, Some(json!("anew")));
            tagger.delete_by_tag(&["red", "blue"]).await;
            for side in [reader, writer] {
                side.becomes("red", None).await;
                side.becomes("blue", None).await;
            }
        }
    }
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_invalidated_by_tag_is_stale_for_the_other() {
    let pair = Pair::start().await;
    let with = With { grace: Some("1h"), tags: &["t"], ..With::default() };
    for (writer, reader) in pair.directions() {
        let key = writer.name();
        writer.set_with(key, "tagged", with).await;
        reader.becomes(key, Some(json!("tagged"))).await;
        writer.delete_by_tag(&["t"]).await;
        reader.runs_out(key).await;
        assert_eq!(failing(reader, key, Some("1h")).await, Ok((json!("tagged"), true)));
    }
}

/// Node does not know `hardAt` and the message about an expire, and acts as it always did.
#[tokio::test(flavor = "multi_thread")]
async fn node_reads_markers_that_expire_and_markers_that_delete_alike() {
    let pair = Pair::start().await;
    let Side::Rust(cache) = &pair.rust else { unreachable!() };
    let with = With { grace: Some("1h"), tags: &["t"], ..With::default() };
    for deletes in [false, true, false] {
        pair.node.set_with("k", "tagged", with).await;
        pair.rust.becomes("k", Some(json!("tagged"))).await;
        match deletes {
            true => cache.delete_by_tag(["t"]).await.unwrap(),
            false => cache.expire_by_tag(["t"]).await.unwrap(),
        }
        let marker = pair.server.cli(&["get", "bentocache:___bc:t:t"]);
        let marker: Value = serde_json::from_str(&marker).unwrap();
        assert_eq!(marker["hardAt"] == marker["value"], deletes, "{marker}");
        pair.node.runs_out("k").await;
        let left = cache.get::<Value>("k").grace("1h").await.unwrap();
        assert_eq!(left, (!deletes).then(|| json!("tagged")));
        assert_eq!(failing(&pair.node, "k", Some("1h")).await, Ok((json!("tagged"), true)));
        // Node's values are valid from the next millisecond on.
        while now() <= marker["value"].as_u64().unwrap() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_nest_alike() {
    let pair = Pair::start().await;
    for (writer, reader) in pair.directions() {
        let inner = |side: &Side| side.namespace("users").namespace("admins");
        writer.set("k", 0).await;
        writer.namespace("users").set("k", 1).await;
        inner(writer).set("k", 2).await;
        writer.namespace("usersAbc").set("k", 3).await;
        reader.becomes("k", Some(json!(0))).await;
        reader.namespace("users").becomes("k", Some(json!(1))).await;
        inner(reader).becomes("k", Some(json!(2))).await;
        reader.namespace("usersAbc").becomes("k", Some(json!(3))).await;
        assert_eq!(reader.namespace("users").get("admins:k").await, Some(json!(2)));
        // Changes and their messages stay in their namespace.
        inner(writer).set("k", "new").await;
        inner(reader).becomes("k", Some(json!("new"))).await;
        writer.namespace("users").delete("k").await;
        reader.namespace("users").becomes("k", None).await;
        assert_eq!(inner(reader).get("k").await, Some(json!("new")));
        assert_eq!(reader.get("k").await, Some(json!(0)));
        // A clear takes what is under it, and nothing beside it. Node's does so in Redis, but a
        // message about it reaches Node's handles for that very namespace only.
        inner(writer).clear().await;
        inner(reader).becomes("k", None).await;
        assert_eq!(reader.namespace("usersAbc").get("k").await, Some(json!(3)));
        assert_eq!(reader.get("k").await, Some(json!(0)));
        assert_eq!(pair.server.cli(&["keys", "bentocache:users:admins:*"]), "");
        // Tags belong to the namespace in which they were given.
        let tagged = With { tags: &["t"], ..With::default() };
        for side in [writer.clone(), writer.namespace("users")] {
            side.set_with("tagged", 4, tagged).await;
        }
        for side in [reader.clone(), reader.namespace("users")] {
            side.becomes("tagged", Some(json!(4))).await;
        }
        writer.namespace("users").delete_by_tag(&["t"]).await;
        reader.namespace("users").becomes("tagged", None).await;
        assert_eq!(reader.get("tagged").await, Some(json!(4)));
        writer.clear().await;
        for side in [reader.clone(), reader.namespace("usersAbc")] {
            side.becomes("k", None).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_of_rust_are_read_and_heard_by_node() {
    let pair = Pair::start().await;
    let cache: &Cache = match &pair.rust {
        Side::Rust(cache) => cache,
        Side::Node(..) => unreachable!(),
    };
    let keys: Vec<String> = (0..1_500).map(|at| format!("k{at}")).collect();
    for round in [1, 2] {
        cache.set_many(keys.iter().map(|key| (key, round))).await.unwrap();
        for key in keys.iter().step_by(100).chain(keys.last()) {
            pair.node.becomes(key, Some(json!(round))).await;
        }
    }
    for key in keys.iter().step_by(100) {
        pair.node.set(key, 3).await;
    }
    let wanted: Vec<Option<i32>> =
        (0..1_500).map(|at| Some(if at % 100 == 0 { 3 } else { 2 })).collect();
    for (key, wanted) in keys.iter().zip(&wanted) {
        pair.rust.becomes(key, wanted.map(Value::from)).await;
    }
    assert_eq!(cache.get_many::<i32>(&keys).await.unwrap(), wanted);
    // More keys than go into one message.
    cache.delete_many(&keys).await.unwrap();
    for key in keys.iter().step_by(100).chain(keys.last()) {
        pair.node.becomes(key, None).await;
    }
}

/// The fields that Node does not know do not keep it from reading and replacing an entry.
#[tokio::test(flavor = "multi_thread")]
async fn node_reads_what_was_touched_and_what_slides() {
    let pair = Pair::start().await;
    let Side::Rust(cache) = &pair.rust else { unreachable!() };
    cache.set("touched", 1).ttl("1h").tags(["t"]).await.unwrap();
    assert!(cache.touch("touched").ttl("10m").await.unwrap());
    cache.set("slides", 2).ttl("1h").sliding("20m").await.unwrap();
    for (key, field, value) in [("touched", "touchedAt", 1), ("slides", "idle", 2)] {
        let stored = pair.server.cli(&["get", &format!("bentocache:{key}")]);
        assert!(stored.contains(&format!("\"{field}\":")), "{stored}");
        assert_eq!(pair.node.get(key).await, Some(json!(value)), "{key}");
        assert!(pair.node.has(key).await, "{key}");
    }
    let left: u64 = pair.server.cli(&["pttl", "bentocache:slides"]).parse().unwrap();
    assert!((1_100_000..=1_200_000).contains(&left), "{left}");
    // What Node writes can be touched, and is read by Node afterwards.
    pair.node.set("theirs", json!({ "a": [1] })).await;
    assert!(cache.touch("theirs").ttl("10m").await.unwrap());
    assert_eq!(pair.node.get("theirs").await, Some(json!({ "a": [1] })));
    let left: u64 = pair.server.cli(&["pttl", "bentocache:theirs"]).parse().unwrap();
    assert!((500_000..=600_000).contains(&left), "{left}");
    pair.node.set("slides", json!(3)).await;
    cache_becomes(cache, "slides", 3).await;
}

async fn cache_becomes(cache: &Cache, key: &str, wanted: i64) {
    let start = std::time::Instant::now();
    while cache.get::<i64>(key).await.unwrap() != Some(wanted) {
        assert!(start.elapsed().as_secs() < 10, "{key} has not become {wanted}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
