//! What a stored document says about its own time, without decoding its value.

use bytes::Bytes;

use crate::clock::is_plausible;
use crate::wire::document::{Document, Expiration, Meta};

/// Whether the stored document is of a later time. One from the future was written by a wrong
/// clock, and must not win for ever.
pub(super) fn is_younger(stored: &Bytes, at: u64, now: u64) -> bool {
    Document::parse(stored).is_ok_and(|document| {
        let created_at = document.meta.created_at;
        created_at > at && is_plausible(created_at, now)
    })
}

/// What L2 holds in the place of a write that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing, as a deletion leaves it.
    Nothing,
    /// Something that may have been invalidated after the write: it is stale, and became so later.
    Invalidated,
    /// Something older, which nobody has invalidated since the write.
    Older,
    /// Something younger.
    Younger,
}

/// Compares what is stored with a write of that time.
pub(super) fn standing(stored: Option<&Bytes>, written_at: u64, now: u64) -> Standing {
    let Some(stored) = stored else { return Standing::Nothing };
    // What is no document was put there by somebody else, who may have done anything.
    let Ok(document) = Document::parse(stored) else { return Standing::Invalidated };
    let created_at = document.meta.created_at;
    if created_at > written_at && is_plausible(created_at, now) {
        return Standing::Younger;
    }
    match document.meta.expiration {
        Expiration::Never => Standing::Older,
        // An expiry by a call. It says nothing about when.
        Expiration::At(0) => Standing::Invalidated,
        Expiration::At(fresh) if fresh > now || fresh <= written_at => Standing::Older,
        Expiration::At(_) => Standing::Invalidated,
    }
}

/// What becomes of a stored document that is made stale.
pub(super) enum Expired {
    /// These bytes, and the end it keeps (ms since the epoch) where that is known.
    Stale(Bytes, Option<u64>),
    /// It has no grace to be stale in.
    Gone,
    /// It is stale already, or no entry.
    Unchanged,
}

/// Makes a document stale at that time. One without an end gets `grace` ms from then.
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
    // Stale by every clock: that of a reader may be behind. Without an end, a reader counts its
    // grace from the time of expiry.
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
            // By its ttl or by a call of the Node library: nobody can tell.
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
