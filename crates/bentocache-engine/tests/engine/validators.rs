//! What a source says about its version of a value is stored with it, so that a factory can ask
//! conditionally.

use std::sync::{Arc, Mutex};

use crate::common::{Node, World, pass, secs, settle};
use crate::races::fresh;
use bentocache::{BentoCache, Codec, Context, Error, Memory, Store};
use serde_json::json;

type Known = (Option<String>, Option<String>);

fn known(etag: &str, time: &str) -> Known {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    (text(etag), text(time))
}

fn stale_of<T>(cx: &Context<T>) -> Known {
    (cx.stale_etag().map(str::to_owned), cx.stale_last_modified().map(str::to_owned))
}

fn worlds() -> [World; 5] {
    let all = [World::new(), World::without_bus(), World::only_l1(), World::only_l2()];
    let [a, b, c, d] = all;
    [a, b, c, d, World::new().encrypted()]
}

async fn node(world: &World) -> Node {
    world.node_where(|s| s.grace("1h").timeout("none").ttl("10s")).await
}

/// A factory that returns `value` with these validators.
async fn produce(node: &Node, value: u32, etag: &'static str, time: &'static str) {
    let call = node.get_or_set("k", move |cx: Context<u32>| async move {
        if !etag.is_empty() {
            cx.etag(etag);
        }
        if !time.is_empty() {
            cx.last_modified(time);
        }
        Ok::<_, Error>(value)
    });
    assert_eq!(call.tags(["t"]).force_fresh(true).await.unwrap(), value);
    settle().await;
}

/// What a factory is told of the stale value. It fails, so that the value stays as it is.
async fn told(node: &Node) -> Known {
    let seen = Arc::new(Mutex::new(None));
    let (cell, force) = (seen.clone(), node.has("k").await.unwrap());
    let call = node.get_or_set("k", move |cx: Context<u32>| async move {
        *cell.lock().unwrap() = Some(stale_of(&cx));
        Err::<u32, _>("the source is down")
    });
    call.tags(["t"]).force_fresh(force).await.unwrap();
    seen.lock().unwrap().take().expect("the factory ran")
}

/// Confirms the stale value.
async fn confirm(node: &Node) {
    let call = node.get_or_set("k", |cx: Context<u32>| async move { cx.not_modified() });
    call.tags(["t"]).force_fresh(true).await.unwrap();
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn they_come_back_to_the_next_factory_and_survive_not_modified() {
    for world in worlds() {
        let a = node(&world).await;
        produce(&a, 1, "\"1\"", "yesterday").await;
        pass(secs(11)).await;
        assert_eq!(told(&a).await, known("\"1\"", "yesterday"));
        // The failure was a backoff, which keeps them.
        assert_eq!(told(&a).await, known("\"1\"", "yesterday"));
        for _ in 0..3 {
            confirm(&a).await;
            assert_eq!(fresh(&a, "k").await, Some(1));
            assert_eq!(told(&a).await, known("\"1\"", "yesterday"));
        }
        a.expire_by_tag(["t"]).await.unwrap();
        assert_eq!(told(&a).await, known("\"1\"", "yesterday"));
        a.expire("k").await.unwrap();
        assert_eq!(told(&a).await, known("\"1\"", "yesterday"));
    }
}

#[tokio::test(start_paused = true)]
async fn they_reach_other_nodes_and_processes_that_start_later() {
    for world in [World::new(), World::without_bus(), World::only_l2(), World::new().encrypted()] {
        let (a, b) = (node(&world).await, node(&world).await);
        produce(&a, 1, "\"1\"", "").await;
        assert_eq!(fresh(&b, "k").await, Some(1));
        assert_eq!(told(&b).await, known("\"1\"", ""));
        confirm(&b).await;
        pass(secs(11)).await;
        // After a backoff of another node, too.
        assert_eq!(told(&a).await, known("\"1\"", ""));
        assert_eq!(told(&node(&world).await).await, known("\"1\"", ""));
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_value_has_its_own_and_only_those() {
    for world in worlds() {
        let a = node(&world).await;
        produce(&a, 1, "\"1\"", "yesterday").await;
        produce(&a, 2, "\"2\"", "").await;
        assert_eq!(told(&a).await, known("\"2\"", ""));
        // An answer "not modified" may bring a newer validator.
        let call = a.get_or_set("k", |cx: Context<u32>| async move {
            cx.last_modified("today");
            cx.not_modified()
        });
        assert_eq!(call.force_fresh(true).await.unwrap(), 2);
        assert_eq!(told(&a).await, known("\"2\"", "today"));
        let call = a.get_or_set("k", |cx: Context<u32>| async move {
            cx.etag("\"3\"");
            cx.not_modified()
        });
        assert_eq!(call.force_fresh(true).await.unwrap(), 2);
        assert_eq!(told(&a).await, known("\"3\"", "today"));
        produce(&a, 3, "", "").await;
        assert_eq!(told(&a).await, known("", ""));
        a.set("k", 4_u32).await.unwrap();
        assert_eq!(told(&a).await, known("", ""));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_stale_value_there_are_none() {
    let a = node(&World::new()).await;
    let call = a.get_or_set("new", |cx: Context<u32>| async move {
        assert_eq!(stale_of(&cx), known("", ""));
        Ok::<_, Error>(1_u32)
    });
    assert_eq!(call.await.unwrap(), 1);
    // One that is of another type cannot be confirmed, so it counts as none.
    produce(&a, 1, "\"1\"", "").await;
    pass(secs(11)).await;
    let call = a.get_or_set("k", |cx: Context<String>| async move {
        assert_eq!(stale_of(&cx), known("", ""));
        Ok::<_, Error>("text".to_owned())
    });
    assert_eq!(call.await.unwrap(), "text");
    // A deleted one is none either.
    produce(&a, 1, "\"1\"", "").await;
    a.delete_by_tag(["t"]).await.unwrap();
    let call = a.get_or_set("k", |cx: Context<u32>| async move {
        assert_eq!(stale_of(&cx), known("", ""));
        cx.not_modified()
    });
    assert!(matches!(call.await, Err(Error::Factory { .. })));
}

#[tokio::test(start_paused = true)]
async fn they_are_fields_of_the_document_that_node_ignores() {
    let world = World::without_bus();
    let a = node(&world).await;
    produce(&a, 1, "W/\"1\"", "yesterday").await;
    let document = a.document("k").unwrap();
    assert_eq!(
        (&document["etag"], &document["lastModified"]),
        (&json!("W/\"1\""), &json!("yesterday"))
    );
    a.set("l", 1_u32).await.unwrap();
    assert!(a.document("l").unwrap().get("etag").is_none());
    // What another program stored there, and what is no text.
    let put = |etag: serde_json::Value| {
        let theirs = json!({"value": 7, "createdAt": 1, "etag": etag});
        world.l2.put("bentocache:k", theirs.to_string(), None);
    };
    put(json!("\"theirs\""));
    let b = node(&world).await;
    assert_eq!(told(&b).await, known("\"theirs\"", ""));
    put(json!(5));
    let b = node(&world).await;
    assert_eq!(fresh(&b, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn frames_have_them_too() {
    let codecs = [
        #[cfg(feature = "msgpack")]
        Codec::message_pack(),
        #[cfg(feature = "lz4")]
        Codec::json().compress_above(10),
        #[cfg(feature = "zstd")]
        Codec::json().zstd_above(10),
        Codec::json(),
    ];
    for codec in codecs {
        let world = World::without_bus();
        let store = async || {
            let store = Store::new().l1(Memory::new()).l2(world.l2.clone()).codec(codec);
            let store = store.grace("1h").timeout("none");
            BentoCache::builder()
                .clock(world.clock.clone())
                .store("s", store)
                .build()
                .await
                .unwrap()
        };
        let text = "abc".repeat(100);
        let first = store().await;
        let call = first.get_or_set("k", {
            let text = text.clone();
            move |cx: Context<String>| async move {
                cx.etag("\"1\"").last_modified("then");
                Ok::<_, Error>(text)
            }
        });
        call.await.unwrap();
        let second = store().await;
        let call = second.get_or_set("k", |cx: Context<String>| async move {
            assert_eq!(stale_of(&cx), known("\"1\"", "then"));
            cx.not_modified()
        });
        assert_eq!(call.force_fresh(true).await.unwrap(), text);
    }
}

#[tokio::test(start_paused = true)]
async fn scoped_and_local_factories_have_them() {
    let a = node(&World::new()).await;
    let etag = "\"1\"".to_owned();
    let borrowed = &etag;
    let call = a.get_or_set_scoped("k", async move |cx: Context<u32>| {
        cx.etag(borrowed.as_str());
        Ok::<_, Error>(1_u32)
    });
    call.await.unwrap();
    assert_eq!(told(&a).await, known("\"1\"", ""));
    let local = a.local::<Vec<u8>>();
    let call = local.get_or_set("l", |cx: Context<Vec<u8>>| async move {
        cx.last_modified("then");
        Ok::<_, Error>(vec![1])
    });
    call.await.unwrap();
    let call = local.get_or_set("l", |cx: Context<Vec<u8>>| async move {
        assert_eq!(stale_of(&cx), known("", "then"));
        cx.not_modified()
    });
    assert_eq!(call.force_fresh(true).await.unwrap(), [1]);
}
