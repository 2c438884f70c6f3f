//! The conformance suite. A case that fails says which rule the driver breaks, and what to change.

use bentocache::{BentoCache, Memory, Store};
use bentocache_shelf::{Client, Shelf};

bentocache_testkit::l2_suite! {
    // Evaluated for each test: a table or a prefix of its own, if tests share a server. Each call of
    // the closure opens one more driver on the same data.
    open = {
        let client = Client::default();
        async move || Shelf::new(client.clone())
    },
    // What the store cannot do. A driver with a server says `link = …` instead of `link` here.
    without = [long_keys, link],
}

#[tokio::test]
async fn an_option_that_cannot_work_fails_the_build() {
    let store = Store::new().l1(Memory::new()).l2(Shelf::new(Client::default()).timeout("soon"));
    let error = BentoCache::builder().store("main", store).build().await.unwrap_err();
    assert!(error.to_string().contains("timeout"), "{error}");
}

#[tokio::test]
async fn a_cache_finds_what_another_one_stored() {
    let client = Client::default();
    let cache = async || {
        let store = Store::new().l1(Memory::new()).l2(Shelf::new(client.clone()));
        BentoCache::builder().store("main", store).build().await.unwrap()
    };
    cache().await.set("a", 1).await.unwrap();
    assert_eq!(cache().await.get("a").await.unwrap(), Some(1));
}
