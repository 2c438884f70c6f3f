//! Items as others write and read them.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_dynamodb::types::AttributeValue;
use bentocache_driver::{ErrorKind, L2Driver};
use bentocache_dynamodb::DynamoDb;
use bytes::Bytes;

use crate::common::{driver, raw, server, table};

const ENTRY: &str = r#"{"value":1,"createdAt":1700000000000}"#;

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn items_are_those_of_node() {
    let table = table().await;
    let [driver, raw] =
        [driver(&server().url(), &table), DynamoDb::from_client(raw(&server().url()))];
    let raw = raw.table(&table);
    driver.set("a", ENTRY.into(), Some(Duration::from_millis(90_001))).await.unwrap();
    assert_eq!(raw.get("a").await.unwrap().as_deref(), Some(ENTRY.as_bytes()));
    let client = crate::common::raw(&server().url());
    let item = client.get_item().table_name(&table).key("key", text("a")).send().await.unwrap();
    let item = item.item.unwrap();
    assert_eq!(item["value"], text(ENTRY));
    let ttl: u64 = item["ttl"].as_n().unwrap().parse().unwrap();
    let end: u64 = item["expiresAt"].as_n().unwrap().parse().unwrap();
    assert_eq!(ttl, end.div_ceil(1_000), "rounded up");
    assert!((seconds() + 80..=seconds() + 91).contains(&ttl), "{ttl}");

    driver.set("frame", Bytes::from_static(b"\xb3\x01"), None).await.unwrap();
    let item = client.get_item().table_name(&table).key("key", text("frame")).send().await.unwrap();
    let item = item.item.unwrap();
    assert!(item["value"].is_b());
    let names: BTreeSet<&str> = item.keys().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(["key", "value"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn items_of_node_are_read_compared_and_expire() {
    let table = table().await;
    let driver = driver(&server().url(), &table);
    let client = raw(&server().url());
    let put = async |key: &str, ttl: Option<u64>| {
        let ttl = ttl.map(|ttl| AttributeValue::N(ttl.to_string()));
        let mut put = client.put_item().table_name(&table).item("key", text(key));
        if let Some(ttl) = ttl {
            put = put.item("ttl", ttl);
        }
        put.item("value", text(ENTRY)).send().await.unwrap();
    };
    put("forever", None).await;
    put("alive", Some(seconds() + 60)).await;
    put("dead", Some(seconds() - 1)).await;
    let keys = ["forever", "alive", "dead"];
    let entry = || Some(Bytes::from_static(ENTRY.as_bytes()));
    assert_eq!(driver.get_many(&keys).await.unwrap(), [entry(), entry(), None]);
    for (key, is_alive) in [("forever", true), ("alive", true), ("dead", false)] {
        let entry = ENTRY.as_bytes();
        assert_eq!(driver.update(key, entry, "new".into(), None).await.unwrap(), is_alive, "{key}");
        assert_eq!(driver.delete_if(key, b"new").await.unwrap(), is_alive, "{key}");
        assert!(driver.insert(key, "mine".into(), None).await.unwrap(), "{key}");
        assert_eq!(driver.get(key).await.unwrap().as_deref(), Some(&b"mine"[..]), "{key}");
    }
    // What Node writes over ours ends when Node says.
    driver.set("ours", "ours".into(), Some(Duration::from_secs(600))).await.unwrap();
    put("ours", Some(seconds() - 1)).await;
    assert_eq!(driver.get("ours").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn items_that_are_no_entries_are_misses_and_can_be_replaced() {
    let table = table().await;
    let driver = driver(&server().url(), &table);
    let client = raw(&server().url());
    let put = client.put_item().table_name(&table).item("key", text("odd"));
    put.item("something", text("else")).send().await.unwrap();
    assert_eq!(driver.get("odd").await.unwrap(), None);
    assert!(!driver.update("odd", b"", "new".into(), None).await.unwrap());
    assert!(driver.insert("odd", "mine".into(), None).await.unwrap());
    assert_eq!(driver.pull("odd").await.unwrap().as_deref(), Some(&b"mine"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_no_table_can_hold() {
    let table = table().await;
    let driver = driver(&server().url(), &table);
    let long = "k".repeat(2_049);
    for (key, kind) in [("", ErrorKind::Refused), (&*long, ErrorKind::TooLarge)] {
        let error = driver.set(key, "v".into(), None).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(driver.get(key).await.unwrap(), None);
        assert_eq!(driver.get_many(&[key, "a"]).await.unwrap(), [None, None]);
        assert_eq!(driver.delete(&[key]).await.unwrap(), 0);
        assert_eq!(driver.pull(key).await.unwrap(), None);
    }
}
