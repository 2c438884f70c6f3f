//! Errors of a factory that are answers: gone, not found, expected. For which errors a stale value
//! will do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::common::{Node, World, get, get_stale, pass, secs, settle};
use bentocache::{Context, Error, Failure};

#[derive(Debug, Clone, PartialEq)]
enum DbError {
    NoRow,
    Down,
}

impl std::fmt::Display for DbError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for DbError {}

fn worlds() -> [World; 3] {
    [World::new(), World::only_l1(), World::only_l2()]
}

/// A node of the world whose value under `k` is stale.
async fn with_stale(world: &World) -> Node {
    let node = world.node_where(|s| s.grace("1h").timeout("none").grace_backoff("10s")).await;
    node.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    assert_eq!(get_stale(&node, "k").await, Some(1));
    node
}

async fn gone(cx: Context<u32>) -> Result<u32, Failure> {
    cx.gone()
}

#[tokio::test(start_paused = true)]
async fn gone_removes_the_stale_value_everywhere_and_is_an_error_or_none() {
    for world in worlds() {
        let node = with_stale(&world).await;
        let other = world.node().await;
        assert_eq!(get_stale(&other, "k").await.is_some(), node.document("k").is_some());
        let error = node.get_or_set("k", gone).await.unwrap_err();
        assert!(matches!(error, Error::Gone { .. }) && error.is_not_found(), "{error:?}");
        assert_eq!(error.key(), Some("k"));
        settle().await;
        assert_eq!(get_stale(&node, "k").await, None);
        assert_eq!(get_stale(&other, "k").await, None);
        assert_eq!(node.document("k"), None);
        assert_eq!(node.get_or_set("k", gone).optional().await.unwrap(), None);
        assert_eq!(
            node.seen.count(|kind| matches!(kind, bentocache::EventKind::FactoryFailed { .. })),
            0
        );
    }
}

#[tokio::test(start_paused = true)]
async fn gone_in_the_background_removes_the_stale_value_too() {
    let world = World::new();
    let node = with_stale(&world).await;
    let slow = |cx: Context<u32>| async move {
        settle().await;
        cx.gone()
    };
    assert_eq!(node.get_or_set("k", slow).timeout("0s").await.unwrap(), 1);
    pass(secs(1)).await;
    assert_eq!(get_stale(&node, "k").await, None);
    assert_eq!(node.document("k"), None);
}

#[tokio::test(start_paused = true)]
async fn gone_does_not_remove_a_value_that_was_set_since_the_factory_began() {
    let world = World::new();
    let node = Arc::new(with_stale(&world).await);
    let setter = node.clone();
    let call = node.get_or_set("k", move |cx: Context<u32>| async move {
        setter.set("k", 2_u32).await.unwrap();
        cx.gone()
    });
    assert!(matches!(call.await, Err(Error::Gone { .. })));
    assert_eq!(get(&node, "k").await, Some(2));
    assert_eq!(world.node().await.get("k").await.unwrap(), Some(2_u32));
}

#[tokio::test(start_paused = true)]
async fn gone_on_an_empty_key_changes_and_announces_nothing() {
    let node = World::new().node().await;
    drop(node.get_or_set("k", gone).await);
    settle().await;
    assert_eq!(node.bus.on(bentocache_testkit::Ops::PUBLISH).calls(), 0);
    assert_eq!(node.l2.on(bentocache_testkit::Ops::DELETE).calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn not_found_gives_the_callers_own_error_and_removes_the_stale_value() {
    for world in worlds() {
        let node = with_stale(&world).await;
        let missing = |_| async { Err::<u32, _>(Failure::not_found(DbError::NoRow)) };
        let error = node.get_or_set("k", missing).await.unwrap_err();
        assert_eq!(error.factory::<DbError>(), Some(&DbError::NoRow));
        assert!(error.is_not_found());
        assert!(error.to_string().contains("not found"), "{error}");
        assert_eq!(error.into_factory::<DbError>().unwrap(), DbError::NoRow);
        assert_eq!(get_stale(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn skip_never_serves_a_stale_value_and_keeps_it() {
    for world in worlds() {
        let node = with_stale(&world).await;
        let skip = |cx: Context<u32>| async move { cx.skip() };
        assert!(matches!(node.get_or_set("k", skip).await, Err(Error::Skipped { .. })));
        assert_eq!(node.get_or_set("k", skip).optional().await.unwrap(), None);
        assert_eq!(get_stale(&node, "k").await, Some(1));
    }
}

fn only_outages(error: &Error) -> bool {
    error.factory::<DbError>() == Some(&DbError::Down)
}

#[tokio::test(start_paused = true)]
async fn stale_if_decides_for_which_errors_a_stale_value_will_do() {
    for world in worlds() {
        for is_of_call in [false, true] {
            let node = world
                .node_where(|s| {
                    let s = s.grace("1h").timeout("none");
                    if is_of_call { s.stale_if(|_| true) } else { s.stale_if(only_outages) }
                })
                .await;
            node.set("k", 1_u32).ttl("1s").await.unwrap();
            pass(secs(2)).await;
            let ask = |error: DbError| {
                let call = node.get_or_set("k", move |_| async move { Err::<u32, _>(error) });
                if is_of_call { call.stale_if(only_outages) } else { call }
            };
            let error = ask(DbError::NoRow).await.unwrap_err();
            assert_eq!(error.factory::<DbError>(), Some(&DbError::NoRow));
            // No backoff: the next call runs its factory.
            assert_eq!(ask(DbError::Down).await.unwrap(), 1);
            // The backoff of the outage: no factory runs.
            assert_eq!(ask(DbError::NoRow).await.unwrap(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_stale_if_counts_as_yes() {
    let node = with_stale(&World::new()).await;
    let call = node.get_or_set("k", |_| async { Err::<u32, _>(DbError::Down) });
    assert_eq!(call.stale_if(|_| panic!("the hook")).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_waiter_decides_by_its_own_stale_if() {
    let node = Arc::new(with_stale(&World::new()).await);
    let gate = Arc::new(tokio::sync::Notify::new());
    let ask = |strict: bool| {
        let (node, gate) = (node.clone(), gate.clone());
        tokio::spawn(async move {
            let call = node.get_or_set("k", move |_| async move {
                gate.notified().await;
                Err::<u32, _>(DbError::NoRow)
            });
            if strict { call.stale_if(only_outages).await } else { call.await }
        })
    };
    let leader = ask(false);
    settle().await;
    let strict = ask(true);
    settle().await;
    gate.notify_one();
    assert_eq!(leader.await.unwrap().unwrap(), 1);
    assert!(strict.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn the_hook_is_told_of_expected_errors_too_and_not_of_gone() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let node = World::new()
        .node_where(|s| {
            s.on_factory_error(move |_| {
                counted.fetch_add(1, SeqCst);
            })
        })
        .await;
    drop(node.get_or_set("a", gone).await);
    assert_eq!(calls.load(SeqCst), 0);
    drop(node.get_or_set("b", |_| async { Err::<u32, _>(Failure::not_found("b")) }).await);
    assert_eq!(calls.load(SeqCst), 1);
}

#[cfg(feature = "anyhow")]
#[tokio::test(start_paused = true)]
async fn an_anyhow_error_is_found_as_the_error_that_it_was_made_from() {
    use anyhow::Context as _;
    async fn load() -> anyhow::Result<u32> {
        Err(DbError::Down).context("reading a row")
    }
    let node = World::new().node().await;
    let error = node.get_or_set("k", |_| load()).await.unwrap_err();
    assert_eq!(error.factory::<DbError>(), Some(&DbError::Down));
    assert!(error.to_string().contains("reading a row"), "{error}");
    let plain = node.get_or_set("k", |_| async {
        Err(DbError::NoRow)?;
        anyhow::Ok(1_u32)
    });
    assert_eq!(plain.await.unwrap_err().factory::<DbError>(), Some(&DbError::NoRow));
    let missing =
        |_| async { Err::<u32, _>(Failure::not_found(anyhow::Error::from(DbError::NoRow))) };
    let error = node.get_or_set("k", missing).await.unwrap_err();
    assert!(error.is_not_found());
}
