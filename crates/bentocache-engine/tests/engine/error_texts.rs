//! The texts of errors: the factory's own error is in them, a key only where `log_keys` allows.

use crate::common::{Node, World};
use bentocache::Error;

/// One error of each kind that has a key.
async fn errors(node: &Node) -> Vec<Error> {
    let never = |_| std::future::pending::<Result<u8, Error>>();
    let cache = node.cache.clone();
    let nested = |_| async move {
        let inner = cache.get_or_set("secret3", |_| async { Ok::<_, Error>(1_u8) }).await;
        Err::<u8, _>(inner.unwrap_err())
    };
    vec![
        node.get_or_set("secret", |_| async { Err::<u8, _>("no route") }).await.unwrap_err(),
        node.get_or_set("secret", |cx| async move { cx.skip::<u8>() }).await.unwrap_err(),
        node.get_or_set("secret", |cx| async move { cx.gone::<u8>() }).await.unwrap_err(),
        node.get_or_set("secret1", never).hard_timeout("1s").await.unwrap_err(),
        node.get_or_set("secret2", never).factory_timeout("1s").await.unwrap_err(),
        node.get_or_set("secret3", nested).await.unwrap_err(),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_key_is_in_a_text_only_if_the_store_logs_keys() {
    for shows in [false, true] {
        let node = World::new().node_where(|s| s.log_keys(shows)).await;
        for error in errors(&node).await {
            assert!(error.key().is_some_and(|key| key.starts_with("secret")), "{error:?}");
            for text in [error.to_string(), format!("{error:?}")] {
                assert_eq!(text.contains("secret"), shows, "{text}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_of_the_factory_is_in_the_text() {
    let node = World::new().node().await;
    let error = node.get_or_set("k", |_| async { Err::<u8, _>("no route") }).await.unwrap_err();
    assert!(error.to_string().contains("no route"), "{error}");
}
