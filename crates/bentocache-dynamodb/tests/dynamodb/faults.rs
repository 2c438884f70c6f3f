//! Throttling, batches that are done in part, lost answers, and a service that is not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Region};
use bentocache_driver::{ErrorKind, L2Driver, Link, Write};
use bentocache_dynamodb::DynamoDb;
use bytes::Bytes;

use crate::common::{PATIENCE, driver, server, table};
use crate::obstacle::{Fate, Obstacle};

const VALUE: Bytes = Bytes::from_static(b"value");

/// Refuses the first two of every three requests.
fn now_and_then(code: &'static str) -> impl FnMut(&(String, serde_json::Value)) -> Fate + Send {
    let mut count = 0;
    move |_| {
        count += 1;
        if count % 3 == 0 { Fate::Pass } else { Fate::refuse(code) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled_requests_are_sent_again() {
    for code in
        ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"]
    {
        let table = table().await;
        let obstacle = Obstacle::before(server().addr(), now_and_then(code)).await;
        let driver = driver(&obstacle.url(), &table);
        driver.set("a", VALUE, None).await.unwrap();
        assert_eq!(driver.get("a").await.unwrap(), Some(VALUE));
        assert!(driver.insert("b", VALUE, None).await.unwrap());
        assert!(driver.update("b", b"value", "new".into(), None).await.unwrap());
        assert!(driver.delete_if("b", b"new").await.unwrap());
        assert_eq!(driver.pull("a").await.unwrap(), Some(VALUE));
        let writes = [Write { key: "app:c", value: VALUE, ttl: None }];
        driver.set_many(&writes).await.unwrap();
        assert_eq!(driver.get_many(&["app:c", "d"]).await.unwrap(), [Some(VALUE), None]);
        driver.clear("app:").await.unwrap();
        assert_eq!(driver.delete(&["app:c"]).await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_without_end_is_an_error_that_may_pass() {
    let refuse = |_: &_| Fate::refuse("ThrottlingException");
    let obstacle = Obstacle::before(server().addr(), refuse).await;
    let driver = driver(&obstacle.url(), "cache");
    let error = driver.get("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("capacity"), "{error}");
    assert_eq!(obstacle.seen("GetItem").len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cuts_a_call_says_that_it_was_throttled() {
    let table = table().await;
    let is_throttled = Arc::new(AtomicUsize::new(0));
    let throttled = Arc::clone(&is_throttled);
    let decide = move |(operation, asked): &(String, serde_json::Value)| {
        match throttled.load(SeqCst) {
            0 => Fate::Pass,
            // Nothing of a batch is done.
            2 if operation == "BatchGetItem" => {
                let left_out = asked["RequestItems"].clone();
                let answer = serde_json::json!({ "Responses": {}, "UnprocessedKeys": left_out });
                Fate::Answer(200, answer)
            }
            _ => Fate::refuse("ThrottlingException"),
        }
    };
    let obstacle = Obstacle::before(server().addr(), decide);
    let obstacle = obstacle.await;
    let driver = driver(&obstacle.url(), &table);
    driver.set("a", VALUE, None).await.unwrap();
    assert_eq!(driver.trouble(), None);
    let store = bentocache::Store::new()
        .l2(driver)
        .l2_timeout("300ms", "300ms")
        .suppress_l2_errors(false)
        .l2_circuit_breaker("off", 1);
    let builder = bentocache::BentoCache::builder().ttl("10m").store("main", store);
    let cache = builder.build().await.unwrap();
    let start = Instant::now();
    for fate in [1, 2] {
        is_throttled.store(fate, SeqCst);
        let why = loop {
            // The pauses are random: all tries may come in time.
            let Err(error) = cache.get_many::<u32>(["a", "b"]).await else { panic!("{fate}") };
            let why = std::error::Error::source(&error).unwrap().to_string();
            if why.contains("did not answer within 300ms") {
                break why;
            }
            assert!(start.elapsed() < PATIENCE, "no call is cut: {why}");
        };
        assert!(why.contains("throttled") && why.contains("on-demand"), "{why}");
        is_throttled.store(0, SeqCst);
        cache.get_many::<u32>(["a", "b"]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_batch_leaves_out_is_sent_again() {
    let table = table().await;
    let obstacle = Obstacle::before(server().addr(), |(operation, _): &(String, _)| {
        if operation.starts_with("Batch") { Fate::Leave(9) } else { Fate::Pass }
    });
    let obstacle = obstacle.await;
    let driver = driver(&obstacle.url(), &table);
    let keys: Vec<String> = (0..130).map(|at| format!("app:{at}")).collect();
    let writes: Vec<Write<'_>> = keys
        .iter()
        .map(|key| Write { key, value: key.clone().into(), ttl: Some(Duration::from_secs(60)) })
        .collect();
    driver.set_many(&writes).await.unwrap();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let found = driver.get_many(&keys).await.unwrap();
    for (key, value) in keys.iter().zip(found) {
        assert_eq!(value.as_deref(), Some(key.as_bytes()));
    }
    driver.clear("app:").await.unwrap();
    assert!(driver.get_many(&keys).await.unwrap().iter().all(Option::is_none));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_which_nothing_is_done_is_an_error_that_may_pass() {
    let table = table().await;
    let obstacle = Obstacle::before(server().addr(), |(operation, body): &(String, _)| {
        let nothing = |name: &str| {
            let mut answer = serde_json::json!({ "Responses": {} });
            answer[name] = serde_json::Value::clone(&body["RequestItems"]);
            Fate::Answer(200, answer)
        };
        match &**operation {
            "BatchWriteItem" => nothing("UnprocessedItems"),
            "BatchGetItem" => nothing("UnprocessedKeys"),
            _ => Fate::Pass,
        }
    });
    let obstacle = obstacle.await;
    let driver = driver(&obstacle.url(), &table);
    let write = Write { key: "a", value: VALUE, ttl: None };
    let error = driver.set_many(&[write]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = driver.get_many(&["a"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_as_large_as_they_may_be() {
    let table = table().await;
    let obstacle = Obstacle::before(server().addr(), |_: &_| Fate::Pass).await;
    let driver = driver(&obstacle.url(), &table);
    let keys: Vec<String> = (0..250).map(|at| at.to_string()).collect();
    let writes: Vec<_> = keys.iter().map(|key| Write { key, value: VALUE, ttl: None }).collect();
    driver.set_many(&writes).await.unwrap();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    assert!(driver.get_many(&keys).await.unwrap().iter().all(Option::is_some));
    assert_eq!(obstacle.seen("BatchWriteItem").len(), 10);
    assert_eq!(obstacle.seen("BatchGetItem").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_are_asked_for_again_only_where_that_does_no_harm() {
    let table = table().await;
    let losing = Arc::new(AtomicUsize::new(0));
    let left = Arc::clone(&losing);
    let obstacle = Obstacle::before(server().addr(), move |_: &_| {
        let is_lost = left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if is_lost { Fate::Lose } else { Fate::Pass }
    });
    let obstacle = obstacle.await;
    let driver = driver(&obstacle.url(), &table);
    let lose = |count| losing.store(count, SeqCst);
    lose(2);
    driver.set("a", VALUE, None).await.unwrap();
    lose(2);
    assert_eq!(driver.get("a").await.unwrap(), Some(VALUE));
    // To say that nothing was there would lose the value for good.
    lose(1);
    let error = driver.pull("a").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    lose(1);
    let error = driver.insert("b", VALUE, None).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    lose(1);
    let error = driver.update("b", b"value", "new".into(), None).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    lose(1);
    let error = driver.delete_if("b", b"new").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(driver.get("b").await.unwrap(), None);
}

/// Why a cache cannot be built.
async fn build(driver: DynamoDb) -> String {
    let store = bentocache::Store::new().l2(driver);
    let built = bentocache::BentoCache::builder().store("main", store).build().await;
    built.expect_err("something that an operator has to repair").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_say_so() {
    for (code, advice) in [
        ("UnrecognizedClientException", "correct the credentials or their rights"),
        ("AccessDeniedException", "correct the credentials or their rights"),
        ("ExpiredTokenException", "renew the credentials"),
    ] {
        let refuse = move |_: &_| Fate::refuse(code);
        let obstacle = Obstacle::before(server().addr(), refuse).await;
        let driver = driver(&obstacle.url(), "cache");
        let built = driver.connect().await.unwrap_err();
        assert_eq!(built.kind(), ErrorKind::Config, "{built}");
        let error = driver.get("a").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        let shown = format!("{error:?} {error} {driver:?}");
        let built = build(driver).await;
        assert!(built.contains(advice), "{built}");
        assert!(!shown.contains("s3cret") && !built.contains("s3cret"), "{shown} {built}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_fails_the_build() {
    let table = table().await;
    for right in
        ["GetItem", "PutItem", "UpdateItem", "DeleteItem", "BatchGetItem", "BatchWriteItem"]
    {
        let obstacle = Obstacle::before(server().addr(), move |(operation, _): &(String, _)| {
            if operation == right { Fate::refuse("AccessDeniedException") } else { Fate::Pass }
        });
        let obstacle = obstacle.await;
        let driver = driver(&obstacle.url(), &table);
        let error = driver.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{right}: {error}");
        assert!(error.to_string().contains(&table), "{error}");
    }
    let driver = driver(&server().url(), &table);
    driver.connect().await.unwrap();
    assert_eq!(driver.get("bentocache:rights").await.unwrap(), None, "the check stores nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credentials_and_no_dynamodb_fail_the_build() {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-3"))
        .endpoint_url(server().url())
        .build();
    let nobody = DynamoDb::from_client(Client::from_conf(config));
    let error = nobody.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("credentials"), "{error}");
    let error = nobody.get("a").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::Denied), "{error}");
    let built = build(nobody).await;
    assert!(built.contains("set them with DynamoDb::credentials"), "{built}");

    let page = |_: &_| Fate::Answer(404, serde_json::json!({ "page": "not found" }));
    let obstacle = Obstacle::before(server().addr(), page).await;
    let other = driver(&obstacle.url(), "cache");
    let error = other.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("no DynamoDB"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_and_tls_endpoints_that_are_mixed_up_get_advice() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let tls = driver(&server().url().replace("http://", "https://"), "cache");
    let error = tls.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("write http://"), "{error}");

    // What a server says that expects TLS: a fatal alert.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = client.read(&mut [0; 1_024]).await;
            let _ = client.write_all(&[0x15, 3, 1, 0, 2, 2, 70]).await;
        }
    });
    let error = driver(&url, "cache").connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("write https://"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_reports_when_the_service_works_again() {
    let table = table().await;
    let is_denied = Arc::new(AtomicUsize::new(0));
    let denied = Arc::clone(&is_denied);
    let obstacle = Obstacle::before(server().addr(), move |_: &_| {
        if denied.load(SeqCst) == 0 { Fate::Pass } else { Fate::refuse("AccessDeniedException") }
    });
    let obstacle = obstacle.await;
    let driver = driver(&obstacle.url(), &table);
    let mut link = driver.link().unwrap();
    let mut next = async || {
        let report = std::future::poll_fn(|cx| link.as_mut().poll_next(cx));
        tokio::time::timeout(PATIENCE, report).await.unwrap().unwrap()
    };
    for _ in 0..2 {
        is_denied.store(1, SeqCst);
        let error = driver.set("a", VALUE, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert_eq!(next().await, Link::Lost);
        is_denied.store(0, SeqCst);
        assert_eq!(next().await, Link::Restored);
        driver.set("a", VALUE, None).await.unwrap();
    }
}
