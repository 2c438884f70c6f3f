//! The table: made once, and looked at when the cache is built.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};
use bentocache_driver::{ErrorKind, L2Driver};
use bentocache_testkit::unique;
use serde_json::json;

use crate::common::{driver, raw, server};
use crate::obstacle::{Fate, Obstacle};

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_create_it_at_once() {
    let name = unique("cache-");
    let tasks: Vec<_> = (0..8)
        .map(|at| {
            let driver = driver(&server().url(), &name);
            tokio::spawn(async move {
                driver.create_table().await?;
                driver.connect().await?;
                driver.set(&at.to_string(), "v".into(), None).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    // And again, when it has been there for long.
    driver(&server().url(), &name).create_table().await.unwrap();
    assert!(driver(&server().url(), &name).get("0").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_is_named_with_what_to_do() {
    let name = unique("none-");
    let driver = driver(&server().url(), &name);
    let built = (driver.connect().await.unwrap_err(), ErrorKind::Config);
    for (error, kind) in [built, (driver.get("a").await.unwrap_err(), ErrorKind::Denied)] {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(&name), "{error}");
        assert!(error.to_string().contains("create_table"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_another_key_is_refused() {
    let name = unique("theirs-");
    let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash);
    let definition =
        AttributeDefinition::builder().attribute_name("id").attribute_type(ScalarAttributeType::S);
    raw(&server().url())
        .create_table()
        .table_name(&name)
        .billing_mode(BillingMode::PayPerRequest)
        .key_schema(key.build().unwrap())
        .attribute_definitions(definition.build().unwrap())
        .send()
        .await
        .unwrap();
    let driver = driver(&server().url(), &name);
    for error in [driver.connect().await.unwrap_err(), driver.create_table().await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("key"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_items_are_to_be_removed() {
    // The emulator has no Time To Live.
    let is_on = AtomicBool::new(false);
    let obstacle = Obstacle::before(server().addr(), move |(operation, _): &(String, _)| {
        let status = |is_on| if is_on { "ENABLED" } else { "DISABLED" };
        match &**operation {
            "DescribeTimeToLive" => Fate::Answer(
                200,
                json!({ "TimeToLiveDescription": {
                    "AttributeName": "ttl", "TimeToLiveStatus": status(is_on.load(SeqCst)),
                } }),
            ),
            "UpdateTimeToLive" => {
                is_on.store(true, SeqCst);
                Fate::Answer(200, json!({}))
            }
            _ => Fate::Pass,
        }
    });
    let obstacle = obstacle.await;
    let name = unique("cache-");
    let driver = driver(&obstacle.url(), &name);
    driver.create_table().await.unwrap();
    driver.create_table().await.unwrap();
    driver.connect().await.unwrap();
    let wanted = json!({
        "TableName": name,
        "TimeToLiveSpecification": { "Enabled": true, "AttributeName": "ttl" },
    });
    assert_eq!(obstacle.seen("UpdateTimeToLive"), [wanted]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_for_items_only_are_enough() {
    let name = crate::common::table().await;
    let obstacle = Obstacle::before(server().addr(), |(operation, _): &(String, _)| {
        if operation.starts_with("Describe") {
            Fate::refuse("AccessDeniedException")
        } else {
            Fate::Pass
        }
    });
    let obstacle = obstacle.await;
    let driver = driver(&obstacle.url(), &name);
    driver.connect().await.unwrap();
    driver.set("a", "v".into(), None).await.unwrap();
}
