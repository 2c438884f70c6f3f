//! Keys: texts, integers and tuples in every operation; an empty key is refused.

use crate::common::World;
use bentocache::{BentoCache, Error, IntoKey, KeyText};

#[derive(Clone, Copy)]
struct UserId(u64);

impl IntoKey for UserId {
    fn into_key<'a>(self) -> KeyText<'a> {
        ("user", self.0).into_key()
    }
}

#[tokio::test(start_paused = true)]
async fn an_integer_a_tuple_and_an_own_type_are_keys_in_every_operation() {
    let node = World::new().node().await;
    let ok = |value: u32| async move { Ok::<_, Error>(value) };

    node.set(1_u64, 10_u32).await.unwrap();
    node.set_many([(2_u64, 20_u32), (3, 30)]).await.unwrap();
    node.set_forever(("a", 4), 40_u32).await.unwrap();
    assert_eq!(node.get("1").await.unwrap(), Some(10_u32));
    assert_eq!(node.get(2).await.unwrap(), Some(20_u32));
    let many = node.get_many::<u32>([1, 2, 3, 9]).await.unwrap();
    assert_eq!(many, [Some(10), Some(20), Some(30), None]);
    assert_eq!(node.get_or_set(("a", 4), move |_| ok(0)).await.unwrap(), 40);
    assert_eq!(node.get_or_set_forever(UserId(5), move |_| ok(50)).await.unwrap(), 50);
    assert!(node.has("user:5").await.unwrap());
    assert!(node.missing(UserId(6)).await.unwrap());
    assert_eq!(
        node.namespace(7).namespace(("b", 8)).get_or_set(1, move |_| ok(78)).await.unwrap(),
        78
    );
    assert_eq!(node.get("7:b:8:1").await.unwrap(), Some(78_u32));
    node.expire(3).await.unwrap();
    node.expire_many(vec![2_u8]).await.unwrap();
    assert!(node.missing(2).await.unwrap() && node.missing(3).await.unwrap());
    assert_eq!(node.pull::<u32>(1).await.unwrap(), Some(10));
    assert!(node.delete(UserId(5)).await.unwrap());
    assert_eq!(node.delete_many([("a", 4), ("a", 5)]).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_factory_for_many_keys_returns_them_in_the_type_of_its_rows() {
    let node = World::new().node().await;
    let ids = [UserId(1), UserId(2)];
    let load = |cx: bentocache::ManyContext| async move {
        assert_eq!(cx.keys(), ["user:1", "user:2"]);
        Ok::<_, Error>([(UserId(2), 20_u32), (UserId(1), 10)])
    };
    assert_eq!(node.get_or_set_many(ids, load).await.unwrap(), [Some(10), Some(20)]);
}

#[test]
fn an_integer_and_a_tuple_are_keys_of_a_blocking_cache() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cache = runtime.block_on(async {
        let store = bentocache::Store::new().l1(bentocache::Memory::new());
        BentoCache::builder().store("s", store).build().await.unwrap().blocking()
    });
    cache.set(1, 10_u32).unwrap();
    cache.set_many([(("a", 2), 20_u32)]).unwrap();
    assert_eq!(cache.get(1).unwrap(), Some(10_u32));
    assert_eq!(cache.get_many(["1", "a:2"]).unwrap(), [Some(10_u32), Some(20)]);
    assert_eq!(cache.delete_many([1, 2]).unwrap(), 1);
    assert!(cache.has(("a", 2)).unwrap());
}

/// Every operation on the key.
async fn outcomes(node: &BentoCache, key: &'static str) -> Vec<Result<(), Error>> {
    let ok = |_| async { Ok::<_, Error>(1_u32) };
    let many = |_| async { Ok::<_, Error>([("k", 1_u32)]) };
    vec![
        node.get::<u32>(key).await.map(drop),
        node.get_many::<u32>(["k", key]).await.map(drop),
        node.get_or_set(key, ok).await.map(drop),
        node.get_or_set_many(["k", key], many).await.map(drop),
        node.set(key, 1_u32).await,
        node.set_many([("k", 1_u32), (key, 1)]).await,
        node.has(key).await.map(drop),
        node.missing(key).await.map(drop),
        node.expire(key).await,
        node.pull::<u32>(key).await.map(drop),
        node.delete(key).await.map(drop),
        node.delete_many(["k", key]).await.map(drop),
    ]
}

#[tokio::test(start_paused = true)]
async fn an_empty_key_is_refused_with_the_reason() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        for (i, outcome) in outcomes(&node, "").await.into_iter().enumerate() {
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::InvalidKey { .. }), "{i}: {error:?}");
            assert!(error.to_string().contains("empty"), "{i}: {error}");
        }
        assert_eq!(outcomes(&node, "k").await.into_iter().find_map(Result::err).map(drop), None);
    }
}
