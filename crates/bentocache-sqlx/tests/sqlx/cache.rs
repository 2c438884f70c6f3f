//! Whole caches on one PostgreSQL and no other server, as the processes of a deployment have them.

use std::convert::Infallible;
use std::time::Duration;

use bentocache::{BentoCache, Memory, Store};
use bentocache_sqlx::{PgNotifyBus, postgres};
use sqlx::PgPool;
use testservers::{FaultProxy, PostgresServer};

use crate::common::{self, Named, pg_pool};

async fn node(pool: PgPool) -> BentoCache {
    let store =
        Store::new().l1(Memory::new()).l2(postgres(pool.clone())).bus(PgNotifyBus::new(pool));
    let builder = BentoCache::builder().ttl("10m").grace("1h").timeout("1m");
    builder.store("main", store).build().await.expect("a cache")
}

/// What the cache answers; `fresh` if it had to ask the factory.
async fn read(bento: &BentoCache, key: &str, fresh: u32) -> u32 {
    let factory = move |_| async move { Ok::<_, Infallible>(fresh) };
    bento.get_or_set(key, factory).tags(["numbers"]).await.expect("a value")
}

async fn becomes(bento: &BentoCache, key: &str, wanted: Option<u32>) {
    common::becomes("a change to arrive", async || {
        bento.get::<u32>(key).grace("off").await.expect("an answer") == wanted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_share_values_and_hear_of_changes() {
    let (server, named) = (common::postgres(), Named::new());
    let [one, two] = [node(named.pool.clone()).await, node(named.pool.clone()).await];
    assert_eq!(read(&one, "a", 1).await, 1);
    assert_eq!(read(&two, "a", 9).await, 1);
    let stored =
        server.sql("select convert_from(value, 'UTF8') from bentocache where key = 'bentocache:a'");
    assert!(stored.contains("\"value\":1"), "{stored}");
    one.set("a", 2_u32).tags(["numbers"]).await.unwrap();
    becomes(&two, "a", Some(2)).await;
    two.delete("a").await.unwrap();
    becomes(&one, "a", None).await;
    assert_eq!(read(&one, "a", 3).await, 3);
    assert_eq!(read(&two, "a", 9).await, 3);
    two.delete_by_tag(["numbers"]).await.unwrap();
    becomes(&one, "a", None).await;
    assert_eq!(read(&one, "a", 4).await, 4);
    // The gap: a change that no message told of.
    becomes(&two, "a", Some(4)).await;
    named.kill("listen%");
    one.set("a", 5_u32).await.unwrap();
    becomes(&two, "a", Some(5)).await;
    one.clear().await.unwrap();
    becomes(&two, "a", None).await;
    assert_eq!(server.sql("select count(*) from bentocache where key = 'bentocache:a'"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn grace_helps_while_the_server_is_down() {
    let server = PostgresServer::start();
    let pool = pg_pool(&server.url());
    let [one, two] = [node(pool.clone()).await, node(pool).await];
    assert_eq!(read(&one, "a", 1).await, 1);
    assert_eq!(read(&two, "a", 9).await, 1);
    one.set("c", 2_u32).await.unwrap();
    becomes(&two, "c", Some(2)).await;
    server.kill();
    assert_eq!(read(&one, "a", 9).await, 1, "L1 goes on");
    assert_eq!(read(&one, "b", 2).await, 2, "factories too");
    one.expire("a").await.unwrap();
    let failing = |_| async { Err::<u32, _>(std::io::Error::other("the source is down, too")) };
    assert_eq!(one.get_or_set("a", failing).await.unwrap(), 1, "stale is better than nothing");
    one.set("c", 3_u32).await.unwrap();
    server.restart();
    // What was set over an older value meanwhile arrives, and is announced.
    becomes(&two, "c", Some(3)).await;
    // What a factory produced is not stored late: the next one to ask has its own value, for all.
    let made = read(&two, "b", 4).await;
    becomes(&one, "b", Some(made)).await;
}

/// Another node invalidates what a node has written without a link to the server.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_invalidated_while_a_link_was_cut_does_not_come_back() {
    let server = PostgresServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let one = node(pg_pool(&server.url_by(proxy.addr()))).await;
    let [two, three] = [node(pg_pool(&server.url())).await, node(pg_pool(&server.url())).await];
    for key in ["over:delete", "over:expire"] {
        two.set(key, 1_u32).await.unwrap();
    }
    becomes(&one, "over:delete", Some(1)).await;
    proxy.refuse().await.unwrap();
    for kind in ["fill", "set", "over"] {
        for how in ["delete", "expire"] {
            let key = format!("{kind}:{how}");
            match kind {
                "fill" => assert_eq!(read(&one, &key, 2).await, 2),
                _ => one.set(&key, 2_u32).await.unwrap(),
            }
        }
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    for kind in ["fill", "set", "over"] {
        two.delete(format!("{kind}:delete")).await.unwrap();
        two.expire(format!("{kind}:expire")).await.unwrap();
    }
    proxy.pass().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    for bento in [&one, &two, &three] {
        for kind in ["fill", "set", "over"] {
            for how in ["delete", "expire"] {
                let found = bento.get::<u32>(format!("{kind}:{how}")).grace("off").await.unwrap();
                assert_eq!(found, None, "{kind}:{how}");
            }
        }
    }
}
