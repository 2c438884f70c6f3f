//! `version(n)` on a real server: two deploys whose structs differ.

use std::time::Duration;

use bentocache::{BentoCache, Error, Memory, Store, Typed};
use bentocache_redis::{Redis, RedisBus};
use serde::{Deserialize, Serialize};
use testservers::RedisServer;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Old {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct New {
    first: String,
    last: String,
}

async fn node(url: &str) -> BentoCache {
    let store = Store::new().l1(Memory::new()).l2(Redis::new(url)).bus(RedisBus::new(url));
    BentoCache::builder().store("main", store).build().await.expect("a cache")
}

fn old(node: &BentoCache) -> Typed<Old> {
    node.namespace("users").typed().version(1)
}

fn new(node: &BentoCache) -> Typed<New> {
    node.namespace("users").typed().version(2)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_structs_in_turn_on_one_server_are_produced_once_each() {
    let server = RedisServer::start();
    let (a, b) = (node(&server.url()).await, node(&server.url()).await);
    let (old, new) = (old(&a), new(&b));
    let (mut of_old, mut of_new) = (0, 0);
    for _ in 0..20 {
        let made = old.get_or_set_scoped("42", |_| async {
            of_old += 1;
            Ok::<_, Error>(Old { name: "ann lee".into() })
        });
        // Without L1, as a node that has just started.
        assert_eq!(made.skip_l1_read(true).await.expect("a value").name, "ann lee");
        let made = new.get_or_set_scoped("42", |_| async {
            of_new += 1;
            Ok::<_, Error>(New { first: "ann".into(), last: "lee".into() })
        });
        assert_eq!(made.skip_l1_read(true).await.expect("a value").last, "lee");
    }
    assert_eq!((of_old, of_new), (1, 1));
    let keys = server.cli(&["KEYS", "bentocache:users*"]);
    assert!(keys.contains("bentocache:users:42") && keys.contains("users:___bc:v:2:42"), "{keys}");

    assert!(new.delete("42").await.expect("done"));
    let keys = server.cli(&["KEYS", "bentocache:users*"]);
    assert_eq!(keys.trim(), "", "both versions are gone");
    // The message reaches the L1 of the other deploy.
    let gone = async {
        while old.get("42").await.expect("an answer").is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("heard");
}
