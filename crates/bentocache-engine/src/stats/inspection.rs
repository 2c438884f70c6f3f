//! What is known of one entry.

use serde::Serialize;

/// What is known of the value under a key, in each tier; see
/// [`Cache::inspect`](crate::Cache::inspect). Times are in milliseconds since the Unix epoch.
///
/// ```
/// # use bentocache::{BentoCache, EntryState, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::Error> {
/// # let store = Store::new().l1(Memory::new());
/// # let cache = BentoCache::builder().store("m", store).build().await?;
/// cache.set("user:42", "ann".to_owned()).ttl("10m").tags(["users"]).await?;
/// let found = cache.inspect("user:42").await?;
/// let entry = found.l1.expect("it is in L1");
/// assert_eq!(entry.state, EntryState::Fresh);
/// assert!(entry.fresh_until > Some(entry.created_at));
/// assert_eq!((&*entry.tags[0].name, entry.tags[0].is_valid), ("users", Some(true)));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The key, as the caller gave it.
    pub key: String,
    /// The entry in L1 of this process.
    pub l1: Option<InspectedEntry>,
    /// The entry in L2, as this process reads it: after the changes that wait in its recovery
    /// queue.
    pub l2: Option<InspectedEntry>,
    /// Whether a failed change of the key waits in the recovery queue of this process.
    pub is_change_waiting: bool,
}

impl Inspection {
    /// What is known of a key in a cache that is disabled.
    pub(crate) fn of_nothing(key: &str) -> Self {
        Self { key: key.to_owned(), l1: None, l2: None, is_change_waiting: false }
    }

    /// Whether any tier has an entry.
    pub fn is_there(&self) -> bool {
        self.l1.is_some() || self.l2.is_some()
    }
}

/// An entry of one tier; see [`Inspection`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedEntry {
    /// What a read makes of it now.
    pub state: EntryState,
    /// When the value was created.
    pub created_at: u64,
    /// Until when it is fresh by its times; `None` for no end, 0 if a call has expired it.
    pub fresh_until: Option<u64>,
    /// Until when it may be served as stale; `None` for no end. Without a grace, as `fresh_until`.
    pub stale_until: Option<u64>,
    /// Its tags.
    pub tags: Vec<InspectedTag>,
    /// In L2, the size of the stored bytes. In L1, that of the encoded value; `None` for a value
    /// that cannot be encoded.
    pub size: Option<u64>,
    /// How the value is encoded: `json` or `msgpack`. `None` in L1, which holds decoded values, and
    /// for bytes that are no entry.
    pub codec: Option<&'static str>,
    /// Whether the stored value is compressed.
    pub is_compressed: bool,
    /// Whether the stored value is encrypted.
    pub is_encrypted: bool,
}

/// A tag of an entry; see [`InspectedEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedTag {
    /// The name of the tag.
    pub name: String,
    /// Whether the entry is valid under it; `None` if the state of the tag could not be read.
    pub is_valid: Option<bool>,
}

/// What a read makes of an entry; see [`InspectedEntry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EntryState {
    /// It is served.
    Fresh,
    /// It is served under grace only.
    Stale,
    /// An entry of L1 that is compared with L2 before it is served.
    Unverified,
    /// It is never served again.
    Dead,
    /// Bytes in L2 that are no entry, which count as a miss.
    Unreadable,
}
