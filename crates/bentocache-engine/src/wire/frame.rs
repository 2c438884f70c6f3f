//! The binary form of an entry, for values that are not plain JSON: another codec, or compression.
//!
//! All numbers are big-endian.
//!
//! ```text
//!  1 byte   magic, 0xB3: no UTF-8 text, and so no JSON, begins with it
//!  1 byte   version of this format, 1
//!  1 byte   codec of the value: 1 JSON, 2 MessagePack with the names of fields
//!  1 byte   flags: bit 0, the payload is compressed; the others are 0
//!  4 bytes  length of the header in bytes
//!  n bytes  header
//!           payload, to the end
//! ```
//!
//! The header holds the metadata, in this order and nothing else:
//!
//! ```text
//!  1 byte   which of the optional fields follow: bit 0 expiration, bit 1 tags, bit 2 tag markers
//!           (only with tags), bit 3 the end of staleness, bit 4 the scope of the tags (only with
//!           tags), bit 5 tag buckets (only with tag markers), bit 6 levels, bit 7 more fields
//!  8 bytes  created at, ms since the epoch
//!  8 bytes  logical expiration, ms since the epoch; without it the entry is fresh forever
//!  4 bytes  number of tags, then for each tag
//!               4 bytes  length in bytes
//!               n bytes  the tag, UTF-8
//!  8 bytes  for each tag: its marker, 0 for none
//!  8 bytes  the physical end, ms since the epoch
//!  4 bytes  length of the scope in bytes, then the scope, UTF-8
//! 16 bytes  for each tag: its bucket, and the bucket's latest invalidation
//!  4 bytes  number of levels, then for each level
//!              24 bytes  its marker, its bucket, and the bucket's latest invalidation
//!  1 byte   which of the further fields follow, at least one: bit 0 touched at, bit 1 idle time,
//!           bit 2 entity tag, bit 3 time of the last change; the others are 0
//!  8 bytes  touched at, ms since the epoch
//!  8 bytes  idle time in ms, not 0
//!           for each validator
//!               4 bytes  length in bytes
//!               n bytes  the text, UTF-8
//! ```
//!
//! A compressed payload is described in [`compression`](super::compression).
//!
//! A reader rejects every unknown version, codec and flag. It trusts no length before it
//! has checked that this many bytes follow.

use bentocache_driver::Validators;
use bytes::Bytes;

use super::Malformed;
use super::codec::Format;
use super::document::{Expiration, Level, Meta, written_buckets, written_markers};

/// The first byte of a frame.
pub const MAGIC: u8 = 0xB3;

const VERSION: u8 = 1;

/// The version of a frame that is encrypted as a whole.
pub(crate) const ENCRYPTED: u8 = 2;

// Versions that are never stored. They stand before stored bytes that could not be decrypted.
pub(crate) const UNKNOWN_KEY: u8 = 0xF1;
pub(crate) const CHANGED: u8 = 0xF2;
pub(crate) const NOT_ENCRYPTED: u8 = 0xF3;

/// The only flag: the payload is compressed.
const COMPRESSED: u8 = 1;

const HAS_EXPIRATION: u8 = 1;
const HAS_TAGS: u8 = 1 << 1;
const HAS_MARKERS: u8 = 1 << 2;
const HAS_END: u8 = 1 << 3;
const HAS_SCOPE: u8 = 1 << 4;
const HAS_BUCKETS: u8 = 1 << 5;
const HAS_LEVELS: u8 = 1 << 6;
const HAS_MORE: u8 = 1 << 7;
const HAS_TOUCHED_AT: u8 = 1;
const HAS_IDLE: u8 = 1 << 1;
const HAS_ETAG: u8 = 1 << 2;
const HAS_LAST_MODIFIED: u8 = 1 << 3;
/// Every further field.
const ALL_MORE: u8 = HAS_TOUCHED_AT | HAS_IDLE | HAS_ETAG | HAS_LAST_MODIFIED;
/// The size of a level in bytes.
const LEVEL_LEN: usize = 24;

/// Magic, version, codec, flags and the length of the header.
const FIXED: usize = 8;

/// A parsed frame; its payload is still in its stored form.
#[derive(Clone)]
pub struct Frame {
    /// The encoding of the value.
    pub format: Format,
    /// Whether the payload must go through [`unpack`](super::compression::unpack).
    pub compressed: bool,
    /// The metadata of the entry.
    pub meta: Meta,
    /// The rest of the frame.
    pub payload: Bytes,
}

impl Frame {
    /// Parses a frame.
    ///
    /// # Errors
    ///
    /// If it does not match the format exactly, or needs a feature that this build does not have.
    pub fn parse(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut rest = Reader(bytes);
        if rest.byte()? != MAGIC {
            return Err(Malformed("not a frame"));
        }
        match rest.byte()? {
            VERSION => {}
            version => return Err(Malformed(other_version(version))),
        }
        let format = Format::from_id(rest.byte()?).ok_or(Malformed("unknown codec"))?;
        let compressed = match rest.byte()? {
            0 => false,
            COMPRESSED => true,
            _ => return Err(Malformed("unknown flag")),
        };
        let len = rest.u32()? as usize;
        let meta = read_header(rest.take(len)?)?;
        Ok(Self { format, compressed, meta, payload: bytes.slice(FIXED + len..) })
    }
}

/// Why a frame of this version cannot be read.
fn other_version(version: u8) -> &'static str {
    match version {
        ENCRYPTED => "encrypted, and this store has no key ring; see the option `encryption`",
        UNKNOWN_KEY => {
            "encrypted with a key that the key ring does not have; add it with `KeyRing::with_old`"
        }
        CHANGED => {
            "encrypted, but its bytes were changed, cut or moved from another key, or the key ring \
             has another key under this id"
        }
        NOT_ENCRYPTED => {
            "not encrypted, and this store accepts encrypted values only; see \
             `KeyRing::accept_plain`"
        }
        _ => "unknown version",
    }
}

/// Writes a whole frame, in one allocation of the right size.
pub fn write(format: Format, compressed: bool, meta: &Meta, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(FIXED + header_len(meta) + payload.len());
    write_head(&mut out, format, compressed, meta);
    out.extend_from_slice(payload);
    out.into()
}

/// Writes everything before the payload.
pub fn write_head(out: &mut Vec<u8>, format: Format, compressed: bool, meta: &Meta) {
    let flags = if compressed { COMPRESSED } else { 0 };
    out.extend_from_slice(&[MAGIC, VERSION, format.id(), flags]);
    push_len(out, header_len(meta));
    write_header(out, meta);
}

fn write_header(out: &mut Vec<u8>, meta: &Meta) {
    let markers = written_markers(meta);
    out.push(
        flag(matches!(meta.expiration, Expiration::At(_)), HAS_EXPIRATION)
            | flag(!meta.tags.is_empty(), HAS_TAGS)
            | flag(markers.is_some(), HAS_MARKERS)
            | flag(meta.stale_until.is_some(), HAS_END)
            | flag(written_scope(meta).is_some(), HAS_SCOPE)
            | flag(written_buckets(meta).is_some(), HAS_BUCKETS)
            | flag(meta.levels.is_some(), HAS_LEVELS)
            | flag(further(meta) != 0, HAS_MORE),
    );
    push_u64(out, meta.created_at);
    if let Expiration::At(time) = meta.expiration {
        push_u64(out, time);
    }
    if !meta.tags.is_empty() {
        push_len(out, meta.tags.len());
        for tag in &meta.tags {
            push_len(out, tag.len());
            out.extend_from_slice(tag.as_bytes());
        }
    }
    for marker in markers.unwrap_or_default() {
        push_u64(out, *marker);
    }
    if let Some(time) = meta.stale_until {
        push_u64(out, time);
    }
    if let Some(scope) = written_scope(meta) {
        push_len(out, scope.len());
        out.extend_from_slice(scope.as_bytes());
    }
    for (bucket, seq) in written_buckets(meta).unwrap_or_default() {
        push_u64(out, *bucket);
        push_u64(out, *seq);
    }
    if let Some(levels) = &meta.levels {
        push_len(out, levels.len());
        for (marker, bucket, seq) in levels {
            [marker, bucket, seq].into_iter().for_each(|number| push_u64(out, *number));
        }
    }
    if further(meta) != 0 {
        out.push(further(meta));
        meta.touched_at.into_iter().chain(meta.idle).for_each(|time| push_u64(out, time));
        for text in texts(meta) {
            push_len(out, text.len());
            out.extend_from_slice(text.as_bytes());
        }
    }
}

/// Which of the further fields the metadata has.
fn further(meta: &Meta) -> u8 {
    let validators = meta.validators.as_deref();
    let is_some = |of: fn(&Validators) -> bool| validators.is_some_and(of);
    flag(meta.touched_at.is_some(), HAS_TOUCHED_AT)
        | flag(meta.idle.is_some(), HAS_IDLE)
        | flag(is_some(|validators| validators.etag.is_some()), HAS_ETAG)
        | flag(is_some(|validators| validators.last_modified.is_some()), HAS_LAST_MODIFIED)
}

fn flag(is_set: bool, bit: u8) -> u8 {
    if is_set { bit } else { 0 }
}

/// The texts among the further fields.
fn texts(meta: &Meta) -> impl Iterator<Item = &str> {
    let validators = meta.validators.iter();
    validators.flat_map(|known| [&known.etag, &known.last_modified]).flatten().map(|text| &**text)
}

fn written_scope(meta: &Meta) -> Option<&str> {
    meta.tag_scope.as_deref().filter(|_| !meta.tags.is_empty())
}

fn header_len(meta: &Meta) -> usize {
    let expiration = if matches!(meta.expiration, Expiration::At(_)) { 8 } else { 0 };
    let tags: usize = meta.tags.iter().map(|tag| 4 + tag.len()).sum();
    let count = if meta.tags.is_empty() { 0 } else { 4 };
    let markers = written_markers(meta).map_or(0, |list| list.len() * 8);
    let end = if meta.stale_until.is_some() { 8 } else { 0 };
    let scope = written_scope(meta).map_or(0, |scope| 4 + scope.len());
    let buckets = written_buckets(meta).map_or(0, |list| list.len() * 16);
    let levels = meta.levels.as_ref().map_or(0, |list| 4 + list.len() * LEVEL_LEN);
    let times = [meta.touched_at, meta.idle].into_iter().flatten().count() * 8;
    let texts: usize = texts(meta).map(|text| 4 + text.len()).sum();
    let further = if further(meta) == 0 { 0 } else { 1 + times + texts };
    1 + 8 + expiration + count + tags + markers + end + scope + buckets + levels + further
}

fn read_header(header: &[u8]) -> Result<Meta, Malformed> {
    let mut rest = Reader(header);
    let fields = rest.byte()?;
    let has = |bit: u8| fields & bit != 0;
    let is_alone =
        has(HAS_MARKERS | HAS_SCOPE) && !has(HAS_TAGS) || has(HAS_BUCKETS) && !has(HAS_MARKERS);
    if is_alone {
        return Err(Malformed("unknown field"));
    }
    let created_at = rest.u64()?;
    let expiration =
        if has(HAS_EXPIRATION) { Expiration::At(rest.u64()?) } else { Expiration::Never };
    let tags = if has(HAS_TAGS) { read_tags(&mut rest)? } else { Vec::new() };
    let tag_markers = if has(HAS_MARKERS) {
        // Reserves nothing in advance: a collected `Result` starts without a capacity.
        Some(tags.iter().map(|_| rest.u64()).collect::<Result<Vec<_>, _>>()?)
    } else {
        None
    };
    let stale_until = if has(HAS_END) { Some(rest.u64()?) } else { None };
    let tag_scope = if has(HAS_SCOPE) { Some(rest.text()?) } else { None };
    let tag_buckets = if has(HAS_BUCKETS) {
        let pair = |_| Ok((rest.u64()?, rest.u64()?));
        Some(tags.iter().map(pair).collect::<Result<Vec<_>, Malformed>>()?)
    } else {
        None
    };
    let levels = if has(HAS_LEVELS) { Some(read_levels(&mut rest)?) } else { None };
    let further = if has(HAS_MORE) { rest.byte()? } else { 0 };
    if further & !ALL_MORE != 0 || has(HAS_MORE) && further == 0 {
        return Err(Malformed("unknown field"));
    }
    let touched_at = if further & HAS_TOUCHED_AT != 0 { Some(rest.u64()?) } else { None };
    let idle = if further & HAS_IDLE != 0 { Some(rest.u64()?) } else { None };
    if idle == Some(0) {
        return Err(Malformed("an idle time of 0"));
    }
    let mut text = |bit| if further & bit != 0 { rest.text().map(Some) } else { Ok(None) };
    let validators = Validators { etag: text(HAS_ETAG)?, last_modified: text(HAS_LAST_MODIFIED)? };
    let validators = (!validators.is_empty()).then(|| Box::new(validators));
    if !rest.0.is_empty() {
        return Err(Malformed("something after the header's fields"));
    }
    Ok(Meta {
        created_at,
        expiration,
        tags,
        tag_markers,
        tag_buckets,
        tag_scope,
        stale_until,
        touched_at,
        idle,
        levels,
        hard_at: None,
        validators,
    })
}

fn read_levels(rest: &mut Reader<'_>) -> Result<Vec<Level>, Malformed> {
    let count = rest.u32()? as usize;
    if count > rest.0.len() / LEVEL_LEN {
        return Err(Malformed("an impossible number of levels"));
    }
    (0..count).map(|_| Ok((rest.u64()?, rest.u64()?, rest.u64()?))).collect()
}

fn read_tags(rest: &mut Reader<'_>) -> Result<Vec<Box<str>>, Malformed> {
    let count = rest.u32()? as usize;
    // Each tag takes at least its length field, so a false count is detected here.
    if count == 0 || count > rest.0.len() / 4 {
        return Err(Malformed("an impossible number of tags"));
    }
    let mut tags = Vec::with_capacity(count);
    for _ in 0..count {
        tags.push(rest.text()?);
    }
    Ok(tags)
}

fn push_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

/// A length above 4 GiB cannot be written. The frame is then malformed for every reader, which is a
/// miss.
fn push_len(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
}

/// The bytes that are left to read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed("a frame too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed("a frame too short"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn text(&mut self) -> Result<Box<str>, Malformed> {
        let len = self.u32()? as usize;
        let text = str::from_utf8(self.take(len)?).map_err(|_| Malformed("not UTF-8"))?;
        Ok(text.into())
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta {
            created_at: 1,
            expiration: Expiration::At(2),
            tags: vec!["a".into(), "é".into()],
            tag_markers: Some(vec![0, 3]),
            tag_buckets: None,
            tag_scope: None,
            stale_until: Some(4),
            ..Meta::default()
        }
    }

    fn parse(bytes: &[u8]) -> Result<Frame, &'static str> {
        Frame::parse(&Bytes::copy_from_slice(bytes)).map_err(|malformed| malformed.reason())
    }

    #[test]
    fn the_layout_is_as_documented() {
        #[rustfmt::skip]
        let expected = [
            0xB3, 1, 1, 0, 0, 0, 0, 0x38,
            0b1111,
            0, 0, 0, 0, 0, 0, 0, 1,
            0, 0, 0, 0, 0, 0, 0, 2,
            0, 0, 0, 2, 0, 0, 0, 1, b'a', 0, 0, 0, 2, 0xC3, 0xA9,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3,
            0, 0, 0, 0, 0, 0, 0, 4,
            b'7',
        ];
        let bytes = write(Format::Json, false, &meta(), b"7");
        assert_eq!(bytes[..], expected);
        let frame = Frame::parse(&bytes).expect("parses");
        assert_eq!((frame.meta, &frame.payload[..]), (meta(), &b"7"[..]));
        assert!(!frame.compressed);

        #[rustfmt::skip]
        let shortest = [0xB3, 1, 1, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(write(Format::Json, true, &Meta::default(), b"")[..], shortest);
    }

    #[test]
    fn buckets_follow_the_other_fields() {
        let full = Meta {
            tag_scope: Some("u:".into()),
            tag_buckets: Some(vec![(7, 1), (8, 2)]),
            ..meta()
        };
        let bytes = write(Format::Json, false, &full, b"7");
        assert_eq!((bytes[7], bytes[8]), (0x38 + 6 + 32, 0b11_1111));
        #[rustfmt::skip]
        let tail = [
            0, 0, 0, 2, b'u', b':',
            0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1,
            0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2,
            b'7',
        ];
        assert!(bytes.ends_with(&tail));
        assert_eq!(Frame::parse(&bytes).expect("parses").meta, full);
    }

    #[test]
    fn levels_are_the_last_field() {
        let full = Meta { levels: Some(vec![(5, 7, 1)]), ..Meta::default() };
        let bytes = write(Format::Json, false, &full, b"7");
        assert_eq!((bytes[7], bytes[8]), (9 + 4 + 24, 0b100_0000));
        #[rustfmt::skip]
        let tail = [
            0, 0, 0, 1,
            0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1,
            b'7',
        ];
        assert!(bytes.ends_with(&tail));
        assert_eq!(parse(&bytes).expect("parses").meta, full);
        let mut lie = bytes.to_vec();
        lie[17..21].fill(0xFF);
        assert_eq!(parse(&lie).err(), Some("an impossible number of levels"));
    }

    #[test]
    fn further_fields_are_the_last_ones() {
        let full = Meta { touched_at: Some(9), ..meta() };
        let bytes = write(Format::Json, false, &full, b"7");
        assert_eq!((bytes[7], bytes[8]), (0x38 + 9, 0b1000_1111));
        assert!(bytes.ends_with(&[1, 0, 0, 0, 0, 0, 0, 0, 9, b'7']));
        assert_eq!(parse(&bytes).expect("parses").meta, full);
        for unknown in [0, 0b1_0001] {
            let mut other = bytes.to_vec();
            other[bytes.len() - 10] = unknown;
            assert_eq!(parse(&other).err(), Some("unknown field"));
        }
    }

    #[test]
    fn an_idle_time_is_the_last_field() {
        let full = Meta { touched_at: Some(9), idle: Some(3), ..meta() };
        let mut bytes = write(Format::Json, false, &full, b"7").to_vec();
        assert!(bytes.ends_with(&[3, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 3, b'7']));
        assert_eq!(parse(&bytes).expect("parses").meta, full);
        let at = bytes.len() - 2;
        bytes[at] = 0;
        assert_eq!(parse(&bytes).err(), Some("an idle time of 0"));
    }

    #[test]
    fn validators_follow_the_other_fields() {
        let texts = [("\"1\"", "then"), ("", "then"), ("\"1\"", "")];
        for (etag, time) in texts {
            let text = |text: &str| (!text.is_empty()).then(|| text.into());
            let validators = Validators { etag: text(etag), last_modified: text(time) };
            let full = Meta { validators: Some(Box::new(validators)), ..meta() };
            let bytes = write(Format::Json, false, &full, b"7");
            assert_eq!(parse(&bytes).expect("parses").meta, full);
        }
        let none = Meta { validators: Some(Box::default()), ..meta() };
        assert_eq!(
            write(Format::Json, false, &none, b""),
            write(Format::Json, false, &meta(), b"")
        );
    }

    #[test]
    fn what_is_unknown_is_refused() {
        let good = write(Format::Json, false, &meta(), b"7");
        let with = |at: usize, byte: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = byte;
            parse(&bytes).err()
        };
        assert_eq!(with(0, b'{'), Some("not a frame"));
        assert_eq!(with(1, 3), Some("unknown version"));
        let encrypted = with(1, ENCRYPTED).expect("refused");
        assert!(encrypted.contains("no key ring"), "{encrypted}");
        assert_eq!(with(2, 99), Some("unknown codec"));
        #[cfg(not(feature = "msgpack"))]
        assert_eq!(with(2, 2), Some("unknown codec"));
        assert_eq!(with(3, 2), Some("unknown flag"));
        assert_eq!(with(3, 3), Some("unknown flag"));
        assert_eq!(with(8, 0b1000_1111), Some("a frame too short"));
        assert_eq!(with(8, 0b10_1011), Some("unknown field"));
        assert_eq!(with(8, 0b10_1111), Some("a frame too short"));
        assert_eq!(with(8, 0b1101), Some("unknown field"));
        assert_eq!(with(8, 0b0111), Some("something after the header's fields"));
        assert_eq!(with(38, 0xff), Some("not UTF-8"));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let good = write(Format::Json, false, &meta(), b"7");
        for at in [4, 25, 29, 34] {
            let mut bytes = good.to_vec();
            bytes[at] = 0xff;
            let reason = parse(&bytes).err();
            assert!(
                matches!(reason, Some("a frame too short" | "an impossible number of tags")),
                "{at} {reason:?}"
            );
        }
        for end in 0..good.len() - 1 {
            assert_eq!(parse(&good[..end]).err(), Some("a frame too short"));
        }
        let mut none = good.to_vec();
        none[28] = 0;
        assert_eq!(parse(&none).err(), Some("an impossible number of tags"));
    }

    #[test]
    fn markers_for_other_tags_are_not_written() {
        let odd = Meta { tag_markers: Some(vec![1]), ..meta() };
        let none = Meta { tag_markers: None, ..meta() };
        assert_eq!(write(Format::Json, false, &odd, b""), write(Format::Json, false, &none, b""));
    }
}
