//! The times in a stored document, read without decoding its value.

use bytes::Bytes;

use crate::clock::is_plausible;
use crate::wire::document::{Document, Expiration, Meta};

/// Whether the stored document is younger than `at`. A creation time in the future comes from a
/// wrong clock, and such a document must not win forever.
pub(super) fn is_younger(stored: &Bytes, at: u64, now: u64) -> bool {
    Document::parse(stored).is_ok_and(|document| {
        let created_at = document.meta.created_at;
        created_at > at && is_plausible(created_at, now)
    })
}

/// The document that L2 holds in the place of a queued write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// No document, as after a deletion.
    Nothing,
    /// A document that may have been invalidated after the write: it is stale, and became stale
    /// later.
    Invalidated,
    /// An older document that was not invalidated since the write.
    Older,
    /// A younger document.
    Younger,
}

/// Compares the stored document with a write of this time.
pub(super) fn standing(stored: Option<&Bytes>, written_at: u64, now: u64) -> Standing {
    let Some(stored) = stored else { return Standing::Nothing };
    // Bytes that are not a document were stored by other software, which may have done anything.
    let Ok(document) = Document::parse(stored) else { return Standing::Invalidated };
    let created_at = document.meta.created_at;
    if created_at > written_at && is_plausible(created_at, now) {
        return Standing::Younger;
    }
    match document.meta.expiration {
        Expiration::Never => Standing::Older,
        // Expired by a call. This does not show when.
        Expiration::At(0) => Standing::Invalidated,
        Expiration::At(fresh) if fresh > now || fresh <= written_at => Standing::Older,
        Expiration::At(_) => Standing::Invalidated,
    }
}

/// The result of making a stored document stale.
pub(super) enum Expired {
    /// The stale document, and the end that it keeps (ms since the epoch) if that is known.
    Stale(Bytes, Option<u64>),
    /// It has no grace, so it must be removed.
    Gone,
    /// It is stale already, or is not an entry.
    Unchanged,
}

/// Makes a document stale at this time. One without an end gets `grace` ms from then.
pub(super) fn expired(stored: &Bytes, at: u64, grace: u64) -> Expired {
    let Ok(document) = Document::parse(stored) else { return Expired::Unchanged };
    let meta = &document.meta;
    let end = match (meta.expiration, meta.stale_until) {
        (Expiration::At(0), _) => return Expired::Unchanged,
        (Expiration::At(fresh), Some(end)) if end <= fresh => return Expired::Gone,
        (Expiration::At(fresh), None) if fresh <= at => return Expired::Unchanged,
        (Expiration::Never, None) if grace == 0 => return Expired::Gone,
        (Expiration::Never, None) => Some(at.saturating_add(grace)),
        (_, end) => end,
    };
    // Stale by every clock, because the clock of a reader may be behind. Without an end, a reader
    // counts the grace from the expiry time.
    let expiration = Expiration::At(if end.is_some() { 0 } else { at });
    let meta = Meta { expiration, stale_until: end, ..meta.clone() };
    Expired::Stale(document.rewrite(&meta), end)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_only_what_nobody_has_invalidated_since() {
        let document = |text: &str| Bytes::from(text.to_owned());
        let compare = |text: &str| standing(Some(&document(text)), 1_000, 5_000);
        assert_eq!(standing(None, 1_000, 5_000), Standing::Nothing);
        let cases = [
            (r#"{"value":1,"createdAt":1001,"logicalExpiration":9000}"#, Standing::Younger),
            (r#"{"value":1,"createdAt":1000,"logicalExpiration":9000}"#, Standing::Older),
            (r#"{"value":1,"createdAt":900}"#, Standing::Older),
            // Expired before the write, so that no later call has expired it.
            (r#"{"value":1,"createdAt":900,"logicalExpiration":999}"#, Standing::Older),
            // Expired by its ttl, or by a call of the Node library: both look the same.
            (r#"{"value":1,"createdAt":900,"logicalExpiration":1500}"#, Standing::Invalidated),
            (r#"{"value":1,"createdAt":900,"logicalExpiration":0}"#, Standing::Invalidated),
            ("no document", Standing::Invalidated),
            // By a clock that is wrong.
            (r#"{"value":1,"createdAt":9000000,"logicalExpiration":9900000}"#, Standing::Older),
        ];
        for (text, expected) in cases {
            assert_eq!(compare(text), expected, "{text}");
        }
    }
}
