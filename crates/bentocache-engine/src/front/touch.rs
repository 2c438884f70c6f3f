//! The requests of `touch` and `touch_many`.

use crate::engine::Key;
use crate::error::Result;
use crate::front::cache::Cache;
use crate::front::call_options::{CallOptions, setters};
use crate::front::request::{Change, request};
use crate::front::span::in_span;

request! {
    /// Gives a value another ttl; see [`Cache::touch`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let is_there = cache.touch("session:42").ttl("20m").grace("1h").await?;
    /// # Ok(()) }
    /// ```
    Touch(keys: Vec<Key>) -> bool, "touch", off: false,
    [ttl l1_ttl l2_ttl grace jitter l2_timeout suppress_l2_errors skip_l2_write skip_bus_notify], change,
    |store, policy| store.touch(&keys, &policy).await.map(|touched| touched == [true])
}

request! {
    /// Gives values another ttl; see [`Cache::touch_many`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let are_there = cache.touch_many(["session:42", "session:43"]).ttl("20m").await?;
    /// # Ok(()) }
    /// ```
    TouchMany(keys: Vec<Key>) -> Vec<bool>, "touch_many", off: vec![false; keys.len()],
    [ttl l1_ttl l2_ttl grace jitter l2_timeout suppress_l2_errors skip_l2_write skip_bus_notify], change,
    |store, policy| store.touch(&keys, &policy).await
}
