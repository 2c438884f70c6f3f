//! The wire formats, against what the Node library really wrote.
//!
//! Every sample of `fixtures/node_wire_samples.json` is decoded, and encoded again where the bytes
//! must be the same. The samples are counted, so that none is skipped in silence.

// Tests may unwrap: the panic shows the failed call.
#![allow(clippy::unwrap_used, clippy::type_complexity)]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bentocache_engine::wire::Malformed;
use bentocache_engine::wire::codec::{Codec, Format, decode_value, encode_value};
use bentocache_engine::wire::document::{Document, Expiration};
use bentocache_engine::wire::message::{self, Kind, Message};
use bytes::Bytes;
use serde_json::{Value, json};

static SAMPLES: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("fixtures/node_wire_samples.json")).expect("the fixture")
});

fn section(name: &str) -> &'static [Value] {
    SAMPLES[name].as_array().unwrap_or_else(|| panic!("no section {name}"))
}

fn text<'a>(sample: &'a Value, field: &str) -> &'a str {
    sample[field].as_str().unwrap_or_else(|| panic!("no {field} in {sample}"))
}

/// Every value that a field of this name has, however deep.
fn fields<'a>(sample: &'a Value, name: &str) -> Vec<&'a Value> {
    match sample {
        Value::Array(list) => list.iter().flat_map(|inner| fields(inner, name)).collect(),
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, inner)| {
                let own = (key == name).then_some(inner);
                own.into_iter().chain(fields(inner, name))
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn parse(entry: &str) -> Result<Document, Malformed> {
    Document::parse(&Bytes::copy_from_slice(entry.as_bytes()))
}

/// Reads an entry that Node wrote, checks everything in it against a plain reading of the JSON,
/// and writes it again in every way there is.
fn check_entry(entry: &str) -> Document {
    let document = parse(entry).unwrap_or_else(|error| panic!("{entry}: {error}"));
    let plain: Value = serde_json::from_str(entry).expect("JSON");

    assert_eq!(Some(document.meta.created_at), plain["createdAt"].as_u64(), "{entry}");
    let expiration = plain["logicalExpiration"].as_u64();
    assert_eq!(document.meta.expiration, expiration.map_or(Expiration::Never, Expiration::At));
    let tags = plain["tags"].as_array().map_or(Vec::new(), |tags| {
        tags.iter().map(|tag| tag.as_str().expect("a tag").into()).collect()
    });
    assert_eq!(document.meta.tags, tags, "{entry}");
    assert_eq!(document.meta.tag_markers, None);
    assert_eq!(document.meta.stale_until, None);
    assert_eq!(document.format(), Format::Json);
    let value = document.value::<Value>().expect("a value");
    assert_eq!(value, plain["value"], "{entry}");

    let rewritten = document.rewrite(&document.meta);
    let encoded = Document::encode(Codec::json(), &document.meta, &value).expect("encodes");
    for bytes in [rewritten, encoded] {
        let again = Document::parse(&bytes).expect("parses");
        assert_eq!(again.meta, document.meta);
        assert_eq!(again.value::<Value>().expect("a value"), value);
        // And Node finds the fields it knows.
        let node: Value = serde_json::from_slice(&bytes).expect("JSON");
        for field in ["value", "createdAt", "logicalExpiration"] {
            assert_eq!(node.get(field), plain.get(field), "{field} of {entry}");
        }
    }
    document
}

#[test]
fn every_section_of_the_samples_is_known() {
    let sections: BTreeMap<&str, usize> = SAMPLES
        .as_object()
        .expect("an object")
        .iter()
        .filter_map(|(name, samples)| Some((name.as_str(), samples.as_array()?.len())))
        .collect();
    let expected = [
        ("bus", 26),
        ("bus_receiver", 15),
        ("dynamodb", 1),
        ("expire", 7),
        ("file_driver", 16),
        ("json_value_encoding", 37),
        // Nothing that is on a wire of ours.
        ("prometheus", 1),
        ("reader_tolerance", 22),
        ("redis_commands", 19),
        ("redis_l2", 59),
        ("sql", 7),
        ("tags", 7),
    ];
    assert_eq!(sections, BTreeMap::from(expected));
}

#[test]
fn entries_in_redis_are_read() {
    let mut read = 0;
    let mut foreign = 0;
    for sample in section("redis_l2") {
        for entry in fields(sample, "value_text") {
            let entry = entry.as_str().expect("text");
            if text(sample, "id") == "serializer.superjson" {
                // Another serializer of Node's wraps the whole entry: unreadable, so a miss.
                assert_eq!(parse(entry).expect_err("not ours").reason(), "no value");
                foreign += 1;
            } else {
                check_entry(entry);
                read += 1;
            }
        }
    }
    assert_eq!((read, foreign), (55, 1));
}

#[test]
fn the_logical_life_of_entries_is_what_node_says() {
    let mut checked = 0;
    for name in ["redis_l2", "tags", "expire"] {
        for sample in section(name) {
            let lists = ["redis_after", "before", "after"].map(|list| sample[list].as_array());
            for stored in lists.into_iter().flatten().flatten() {
                let Some(life) = stored["logical_minus_created"].as_i64() else { continue };
                let meta = parse(text(stored, "value_text")).expect("an entry").meta;
                let Expiration::At(end) = meta.expiration else { panic!("{stored}: no end") };
                assert_eq!(end.wrapping_sub(meta.created_at).cast_signed(), life, "{stored}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 71);
}

#[test]
fn values_of_javascript_come_back_exactly() {
    let mut read = 0;
    for sample in section("json_value_encoding") {
        let name = text(sample, "js_value");
        let Some(json) = sample["value_json"].as_str() else {
            assert!(sample["threw"].is_string(), "{name}");
            continue;
        };
        read += 1;
        let document = parse(&format!(r#"{{"value":{json}}}"#)).expect("parses");
        assert_eq!(document.payload(), json.as_bytes(), "{name}");
        assert_eq!(hex(text(sample, "hex")), document.payload(), "{name}");

        if name == "lone surrogate" {
            // No text in Rust can hold it: a decode error, and so a miss, but no malformed entry.
            document.value::<Value>().expect_err("no such text");
            continue;
        }
        let value = document.value::<Value>().expect("decodes");
        let mut bytes = Vec::new();
        encode_value(Format::Json, &value, &mut bytes).expect("encodes");
        let again: Value = decode_value(Format::Json, &bytes).expect("decodes");
        assert_eq!(again, value, "{name}");
        if let Some(number) = value.as_f64() {
            let exact: f64 = json.parse().expect("a number");
            assert_eq!(number.to_bits(), exact.to_bits(), "{name}");
            assert_eq!(again.as_f64().map(f64::to_bits), Some(exact.to_bits()), "{name}");
        } else {
            // Texts, lists and objects come out as the very bytes Node wrote, but for the order of
            // an object's fields.
            let plain: Value = serde_json::from_str(json).expect("JSON");
            assert!(bytes == json.as_bytes() || plain.is_object(), "{name}");
        }
    }
    assert_eq!(read, 35);
}

#[test]
fn numbers_keep_every_digit() {
    for number in [13.700000000000001, 0.1 + 0.2, 5e-324, f64::MAX, f64::MIN_POSITIVE, 1e21, -0.0] {
        let bytes = Document::encode(Codec::json(), &Default::default(), &number).expect("encodes");
        let read: f64 = Document::parse(&bytes).expect("parses").value().expect("a number");
        assert_eq!(read.to_bits(), number.to_bits());
    }
    for number in [u64::MAX, 1 << 53, (1 << 53) + 1] {
        let bytes = Document::encode(Codec::json(), &Default::default(), &number).expect("encodes");
        assert_eq!(
            Document::parse(&bytes).expect("parses").value::<u64>().expect("a number"),
            number
        );
    }
}

/// What a reader makes of an entry.
#[derive(Debug, PartialEq)]
enum Read {
    Fresh(Value),
    Stale(Value),
    Miss(&'static str),
}

#[test]
fn readers_are_as_tolerant_as_node_where_it_is_sane() {
    /// A little after the samples were taken.
    const NOW: u64 = 1_795_289_477_600;

    let fresh = || Read::Fresh(json!("v"));
    let stale = || Read::Stale(json!("v"));
    let mut expected = BTreeMap::from([
        ("canonical set() order", fresh()),
        ("CacheEntry.serialize() order, no tags", fresh()),
        ("whitespace", fresh()),
        ("extra field", fresh()),
        ("no createdAt", fresh()),
        ("no createdAt + tags", fresh()),
        ("no logicalExpiration (forever)", fresh()),
        ("logicalExpiration null", stale()),
        ("float timestamps", fresh()),
        ("string logicalExpiration", fresh()),
        ("tags null", fresh()),
        ("stale", stale()),
        ("duplicate value keys", Read::Fresh(json!("b"))),
        ("escaped unicode", Read::Fresh(json!("é"))),
        ("exponent number", Read::Fresh(json!(100.0))),
        // Node says "has" to these and then returns nothing, or throws; here they are misses.
        ("no value key", Read::Miss("no value")),
        ("bare JSON string", Read::Miss("not a JSON object")),
        ("bare JSON number", Read::Miss("not a JSON object")),
        ("JSON null", Read::Miss("not a JSON object")),
        ("JSON array", Read::Miss("not a JSON object")),
        ("not JSON", Read::Miss("not JSON")),
        ("empty string", Read::Miss("empty")),
    ]);
    for sample in section("reader_tolerance") {
        let case = text(sample, "case");
        let read = match parse(text(sample, "stored")) {
            Err(malformed) => Read::Miss(malformed.reason()),
            Ok(document) => {
                let value = document.value::<Value>().expect("a value");
                match document.meta.expiration {
                    Expiration::At(end) if end <= NOW => Read::Stale(value),
                    _ => Read::Fresh(value),
                }
            }
        };
        match &read {
            // What we serve, Node serves.
            Read::Fresh(value) => {
                assert_eq!(sample["get"].as_f64(), value.as_f64(), "{case}");
                assert_eq!(sample["get"].as_str(), value.as_str(), "{case}");
            }
            Read::Stale(value) => {
                assert_eq!(sample["has"], json!(false), "{case}");
                assert_eq!(&sample["get_grace"], value, "{case}");
            }
            Read::Miss(_) => {}
        }
        assert_eq!(Some(read), expected.remove(case), "{case}");
    }
    assert!(expected.is_empty(), "not among the samples: {expected:?}");
}

#[test]
fn tolerant_reading_is_exact() {
    let meta = |case: &str| {
        let sample = section("reader_tolerance").iter().find(|sample| sample["case"] == case);
        parse(text(sample.expect(case), "stored")).expect(case).meta
    };
    assert_eq!(meta("no createdAt").created_at, 0);
    assert_eq!(meta("no createdAt + tags").tags, ["t".into()]);
    assert_eq!(meta("logicalExpiration null").expiration, Expiration::At(0));
    assert_eq!(meta("no logicalExpiration (forever)").expiration, Expiration::Never);
    let floats = meta("float timestamps");
    assert_eq!(floats.created_at, 1_795_289_477_549);
    assert_eq!(floats.expiration, Expiration::At(1_795_290_077_549));
    assert_eq!(meta("string logicalExpiration").expiration, Expiration::At(1_795_290_077_549));
    assert_eq!(meta("tags null").tags, []);
}

#[test]
fn tag_markers_are_entries_whose_value_is_a_time() {
    let mut markers = 0;
    let mut others = 0;
    for sample in section("tags") {
        for stored in sample["redis_after"].as_array().expect("a list") {
            let document = check_entry(text(stored, "value_text"));
            if text(stored, "key").contains(":___bc:t:") {
                let time: u64 = document.value().expect("a time");
                assert_eq!(time, document.meta.created_at);
                markers += 1;
            } else {
                assert_eq!(document.value::<String>().expect("text"), "v");
                others += 1;
            }
        }
    }
    assert_eq!((markers, others), (7, 4));
}

#[test]
fn an_entry_expired_by_node_is_the_same_entry_but_stale() {
    let mut pairs = 0;
    for sample in section("expire") {
        let [Some(before), Some(after)] = ["before", "after"].map(|list| sample[list].as_array())
        else {
            assert_eq!(text(sample, "id"), "expire.missing");
            continue;
        };
        let [before, after] = [before, after].map(|list| {
            assert_eq!(list.len(), 1);
            check_entry(text(&list[0], "value_text"))
        });
        assert_eq!(after.payload(), before.payload());
        assert_eq!(after.meta.created_at, before.meta.created_at);
        assert_eq!(after.meta.tags, before.meta.tags);
        let Expiration::At(end) = after.meta.expiration else { panic!("{sample}: no end") };
        let called = sample["expire_started_ms"].as_u64().expect("a time");
        assert!(end < called, "{sample}");
        pairs += 1;
    }
    assert_eq!(pairs, 6);
}

#[test]
fn entries_in_redis_commands_are_read() {
    let mut read = 0;
    for command in section("redis_commands")
        .iter()
        .flat_map(|sample| sample["commands"].as_array().expect("a list"))
        .filter(|command| command[0] == "set")
    {
        check_entry(command[2].as_str().expect("an entry"));
        read += 1;
    }
    assert_eq!(read, 17);
}

#[test]
fn entries_in_files_are_read() {
    let mut read = 0;
    for content in section("file_driver").iter().flat_map(|sample| fields(sample, "content")) {
        let (entry, end): (String, i64) =
            serde_json::from_str(content.as_str().expect("text")).expect("an entry and its end");
        let meta = check_entry(&entry).meta;
        assert_eq!(end == -1, meta.expiration == Expiration::Never, "{content}");
        read += 1;
    }
    assert_eq!(read, 14);
}

#[test]
fn entries_in_sql_tables_are_read() {
    let mut read = 0;
    for row in section("sql").iter().flat_map(|sample| sample["rows"].as_array().expect("rows")) {
        let meta = check_entry(text(row, "value")).meta;
        assert_eq!(row["expires_at"].is_null(), meta.expiration == Expiration::Never, "{row}");
        read += 1;
    }
    assert_eq!(read, 27);
}

#[test]
fn entries_in_dynamodb_are_read() {
    let mut read = 0;
    for item in section("dynamodb").iter().flat_map(|sample| sample["items"].as_array().expect(""))
    {
        let meta = check_entry(text(&item["value"], "S")).meta;
        assert_eq!(item["ttl"].is_null(), meta.expiration == Expiration::Never, "{item}");
        read += 1;
    }
    assert_eq!(read, 6);
}

#[test]
fn bus_messages_have_the_bytes_of_nodes() {
    let mut same = 0;
    let mut without_keys = 0;
    for sample in section("bus") {
        for published in sample["messages"].as_array().expect("a list") {
            let bytes = hex(text(published, "payload_hex"));
            assert_eq!(Some(bytes.len() as u64), published["bytes"].as_u64());
            let Message { sender, kind, namespace, keys } =
                message::decode(&bytes).unwrap_or_else(|error| panic!("{published}: {error}"));

            let decoded = &published["decoded"];
            assert_eq!(sender.as_str(), text(decoded, "bus_id"));
            assert_eq!(Some(kind as u64), decoded["type_byte"].as_u64());
            assert_eq!(format!("{kind:?}").to_lowercase(), text(decoded, "type"));
            assert_eq!(namespace, text(decoded, "namespace"));
            assert_eq!(json!(keys), decoded["keys"]);

            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let again = message::encode(&sender, kind, &namespace, &keys);
            if kind != Kind::Clear && keys.is_empty() {
                // Node publishes a message about nothing; we do not.
                assert_eq!(text(sample, "id"), "deleteMany.empty");
                assert!(again.is_empty());
                without_keys += 1;
            } else {
                assert_eq!(again, [Bytes::from(bytes)], "{published}");
                same += 1;
            }
        }
    }
    assert_eq!((same, without_keys), (26, 1));
}

#[test]
fn receivers_reject_what_is_not_exactly_one_message() {
    let mut expected = BTreeMap::from([
        ("none", Ok((Kind::Delete, "bentocache", &["zzz"][..]))),
        ("set", Ok((Kind::Set, "bentocache", &["a"]))),
        ("delete", Ok((Kind::Delete, "bentocache", &["a"]))),
        ("expire", Ok((Kind::Expire, "bentocache", &["a"]))),
        ("clear", Ok((Kind::Clear, "bentocache", &[]))),
        ("clear.ns", Ok((Kind::Clear, "bentocache:users", &[]))),
        ("delete.ns", Ok((Kind::Delete, "bentocache:users", &["a"]))),
        // Well-formed: whom it concerns is for the engine to see. Node drops both.
        ("unknown_ns", Ok((Kind::Delete, "bentocache:never", &["a"]))),
        ("empty_ns", Ok((Kind::Delete, "", &["a"]))),
        ("unknown_type", Err("an unknown type of message")),
        ("truncated", Err("a length cut short")),
        // Node cuts the key to what is there, and deletes another key.
        ("key_len_too_long", Err("a length past the end of the message")),
        ("empty", Err("a message too short")),
        ("json", Err("an unknown type of message")),
        ("short_id", Err("a sender that is not ASCII")),
    ]);
    for sample in section("bus_receiver") {
        let id = text(sample, "id");
        let decoded = message::decode(&hex(text(sample, "payload_hex")));
        let keys: Vec<&str>;
        let read = match &decoded {
            Err(malformed) => Err(malformed.reason()),
            Ok(message) => {
                assert_eq!(message.sender.as_str(), "abcdefghijklmnopqrstuvwx");
                keys = message.keys.iter().map(String::as_str).collect();
                Ok((message.kind, message.namespace.as_str(), &keys[..]))
            }
        };
        assert_eq!(Some(read), expected.remove(id), "{id}");
    }
    assert!(expected.is_empty(), "not among the samples: {expected:?}");
}

fn hex(digits: &str) -> Vec<u8> {
    assert_eq!(digits.len() % 2, 0);
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex"))
        .collect()
}
