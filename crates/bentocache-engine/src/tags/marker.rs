//! The stored form of a marker: a document whose value is the marker.

use bentocache_driver::NEVER;
use bytes::Bytes;

use crate::site::LAST;
use crate::wire::codec::{Codec, Format};
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::marker::MarkerTimes;

const DAY: u64 = 24 * 60 * 60 * 1_000;

/// How long a marker is stored, in ms: longer than any entry that it invalidates.
pub(super) fn marker_life(tag_ttl: u64) -> u64 {
    tag_ttl.saturating_add(DAY)
}

/// The document of a marker, and its end (ms since the epoch).
pub(crate) fn marker_document(times: MarkerTimes, tag_ttl: u64) -> (Bytes, u64) {
    let marker = times.at;
    let life = marker_life(tag_ttl);
    let end = marker.saturating_add(life);
    let meta = Meta {
        created_at: marker,
        expiration: if life == NEVER { Expiration::Never } else { Expiration::At(end) },
        stale_until: (life != NEVER).then_some(end),
        hard_at: (times.hard_at > 0).then_some(times.hard_at),
        ..Meta::default()
    };
    // Markers are JSON whatever the codec, so that every reader can read them.
    let bytes =
        Document::from_payload(Codec::json(), &meta, Format::Json, marker.to_string().as_bytes());
    (bytes, end)
}

/// The marker in a stored document; 0 if there is none. A document that cannot be read, or whose
/// marker leaves no room for a later one, is an error: the tag stays unknown until it is
/// invalidated. A marker of the Node library does not tell when it deleted, and expires.
pub(crate) fn marker_of(bytes: Option<&Bytes>) -> Result<MarkerTimes, ()> {
    let Some(bytes) = bytes else { return Ok(MarkerTimes::default()) };
    let document = Document::parse(bytes).map_err(|_| ())?;
    let at = document.value::<f64>().map_err(|_| ())? as u64;
    let hard_at = document.meta.hard_at.unwrap_or(0).min(at);
    if at < LAST { Ok(MarkerTimes { at, hard_at }) } else { Err(()) }
}
