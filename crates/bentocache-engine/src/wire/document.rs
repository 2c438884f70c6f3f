//! A stored entry of L2: the encoded value and its metadata.
//!
//! The plain form is a JSON object, shared with the Node library:
//!
//! ```text
//! {"value":…,"createdAt":…,"logicalExpiration":…,"tags":[…],"tagMarkers":[…],"tagBuckets":[[…]],
//!  "tagScope":…,"staleUntil":…,"touchedAt":…,"idle":…,"levels":[[…]],"hardAt":…,"etag":…,
//!  "lastModified":…}
//! ```
//!
//! It is used for JSON values that are not compressed; every other value is in a
//! [`frame`](super::frame). The first byte distinguishes both.
//!
//! The reader is as tolerant as Node's: fields in any order, white space, escapes, unknown fields,
//! the last of duplicates; times as integers, fractions (cut off) or numbers in quotes, negative
//! times as zero, and times that are too large as the largest. It does not reinterpret values: a
//! known field of another type makes the document malformed, which is a miss.
//!
//! Duplicate tags and their order are kept, because the markers belong to them.
//!
//! The file is long because half of it is tests.

use std::fmt;

use bentocache_driver::Validators;
use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::BoxError;
use super::Malformed;
use super::codec::{Codec, Format, decode_value, encode_value};
use super::compression;
use super::frame::{self, Frame};

/// The metadata of an entry. Times are milliseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Meta {
    /// The creation time of the value; 0 if the writer did not store it.
    pub created_at: u64,
    /// The time when the entry becomes stale.
    pub expiration: Expiration,
    /// The tags, as given.
    pub tags: Vec<Box<str>>,
    /// The marker that each tag had when the production of the value began, 0 for none. `None` if
    /// the writer did not store them. Not written if their number differs from the number of tags.
    pub tag_markers: Option<Vec<u64>>,
    /// The bucket of each tag and the number of its latest invalidation when the production of the
    /// value began; both 0 if unknown. `None` if the writer did not store them. Not written without
    /// markers, or if their number differs from the number of tags.
    pub tag_buckets: Option<Vec<(u64, u64)>>,
    /// The namespaces of the handle that wrote the tags, each with its colon. Tags belong to a
    /// namespace, and the key may be read through another handle. `None` if the writer did not
    /// store it. Not written without tags.
    pub tag_scope: Option<Box<str>>,
    /// The physical end: until then the stale value may be served.
    pub stale_until: Option<u64>,
    /// The time when a call gave the entry its present life, if that was not its creation. It says
    /// nothing about the age of the value.
    pub touched_at: Option<u64>,
    /// The time, in milliseconds, after which the entry is gone if nobody reads it.
    pub idle: Option<u64>,
    /// For each level of the key's namespace, beginning with the store: the marker of its last
    /// clear, its bucket, and the bucket's latest invalidation, as for a tag; all 0 if they could
    /// not be read. Only in a store that cannot clear by prefix.
    pub levels: Option<Vec<Level>>,
    /// In the marker of a tag: the last marker that deleted. Only in JSON, because markers are.
    pub hard_at: Option<u64>,
    /// What the source says about its version of the value. Boxed, because it is rare.
    pub validators: Option<Box<Validators>>,
}

/// The state of a level that a value remembers: marker, bucket, and the bucket's latest
/// invalidation.
pub type Level = (u64, u64, u64);

impl Meta {
    /// How long to store the entry, in milliseconds from `now`, if its end is this one.
    pub fn stored_for(&self, end: u64, now: u64) -> u64 {
        let left = if end == u64::MAX { u64::MAX } else { end.saturating_sub(now) };
        self.idle.map_or(left, |idle| idle.min(left))
    }

    /// The time from which the present life of the entry counts.
    pub fn life_begins_at(&self) -> u64 {
        self.touched_at.map_or(self.created_at, |touched_at| touched_at.max(self.created_at))
    }
}

/// The time when an entry becomes stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Expiration {
    /// It stays fresh forever.
    #[default]
    Never,
    /// At this time, in milliseconds since the epoch. `At(0)` is an entry that is always stale; a
    /// `null` in JSON means the same.
    At(u64),
}

impl Expiration {
    /// Whether the fresh time of an entry is over at `now`, in ms since the epoch.
    pub fn is_over(self, now: u64) -> bool {
        matches!(self, Self::At(time) if time <= now)
    }
}

/// An entry whose value is still encoded.
#[derive(Clone)]
pub struct Document {
    /// The metadata of the entry.
    pub meta: Meta,
    format: Format,
    /// The encoded value: a slice of the parsed bytes, unless these were compressed.
    payload: Bytes,
    /// The stored form, so that a rewrite need not compress again.
    stored: Stored,
}

#[derive(Clone)]
enum Stored {
    Json,
    Frame,
    /// The payload as stored in the frame.
    Compressed(Bytes),
}

impl Document {
    /// Parses a stored entry; its value stays encoded.
    ///
    /// # Errors
    ///
    /// If the bytes are neither a JSON object with a value nor a frame that this build can read.
    pub fn parse(bytes: &Bytes) -> Result<Self, Malformed> {
        match bytes.first() {
            None => Err(Malformed("empty")),
            Some(&frame::MAGIC) => Self::parse_frame(bytes),
            Some(_) => Self::parse_json(bytes),
        }
    }

    /// Decodes the value.
    ///
    /// # Errors
    ///
    /// If the value does not match `T`. The error quotes no part of the value.
    pub fn value<T: DeserializeOwned>(&self) -> Result<T, BoxError> {
        decode_value(self.format, &self.payload)
    }

    /// The encoded value, in the encoding of [`format`](Self::format).
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// As [`payload`](Self::payload), sharing its memory.
    pub(crate) fn shared_payload(&self) -> Bytes {
        self.payload.clone()
    }

    /// The encoding of the value.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether the value was stored compressed.
    pub fn is_compressed(&self) -> bool {
        matches!(self.stored, Stored::Compressed(_))
    }

    /// The bytes to store for a value.
    ///
    /// # Errors
    ///
    /// If the value cannot be encoded: see [`encode_value`].
    pub fn encode<T>(codec: Codec, meta: &Meta, value: &T) -> Result<Bytes, BoxError>
    where
        T: Serialize + ?Sized,
    {
        let format = codec.format();
        let mut out = Vec::with_capacity(room(meta) + size_of_val(value));
        match format {
            Format::Json => out.extend_from_slice(JSON_HEAD),
            #[cfg(feature = "msgpack")]
            Format::MessagePack => frame::write_head(&mut out, format, false, meta),
        }
        let start = out.len();
        encode_value(format, value, &mut out)?;
        if let Some(packed) = pack(codec, &out[start..]) {
            return Ok(frame::write(format, true, meta, &packed));
        }
        if format == Format::Json {
            write_json_tail(&mut out, meta);
        }
        Ok(out.into())
    }

    /// The bytes to store for an encoded value. The codec only decides whether it is compressed.
    ///
    /// The payload must be exactly one value, as [`encode_value`] writes it. It is not checked: an
    /// invalid payload makes an entry that no reader can decode.
    pub fn from_payload(
        codec: Codec,
        meta: &Meta,
        payload_format: Format,
        payload: &[u8],
    ) -> Bytes {
        match pack(codec, payload) {
            Some(packed) => frame::write(payload_format, true, meta, &packed),
            None => plain(meta, payload_format, payload),
        }
    }

    /// The same value with other metadata, stored in the same form. A JSON document loses its
    /// unknown fields.
    pub fn rewrite(&self, meta: &Meta) -> Bytes {
        match &self.stored {
            Stored::Json => write_json(meta, &self.payload),
            Stored::Frame => frame::write(self.format, false, meta, &self.payload),
            Stored::Compressed(packed) => frame::write(self.format, true, meta, packed),
        }
    }

    fn parse_frame(bytes: &Bytes) -> Result<Self, Malformed> {
        let Frame { format, compressed, meta, payload } = Frame::parse(bytes)?;
        if compressed {
            let unpacked = compression::unpack(&payload)?;
            return Ok(Self {
                meta,
                format,
                payload: unpacked,
                stored: Stored::Compressed(payload),
            });
        }
        Ok(Self { meta, format, payload, stored: Stored::Frame })
    }

    fn parse_json(bytes: &Bytes) -> Result<Self, Malformed> {
        // A document that this library did not write is parsed by the tolerant reader, not
        // rejected.
        Self::parse_own_json(bytes).map_or_else(|| Self::parse_any_json(bytes), Ok)
    }

    /// Parses a document without tags that has exactly the form of `write_json`. Nearly all
    /// documents have, and this is much faster.
    fn parse_own_json(bytes: &Bytes) -> Option<Self> {
        let (meta, payload, _) = own_json::<IgnoredAny>(bytes)?;
        let payload = bytes.slice_ref(payload);
        Some(Self { meta, format: Format::Json, payload, stored: Stored::Json })
    }

    /// The result of [`parse`](Self::parse) and [`value`](Self::value), in one pass, for nearly all
    /// documents: those that this library wrote, without tags and not as a frame.
    pub(crate) fn quick<T: DeserializeOwned>(bytes: &[u8]) -> Option<(Meta, T)> {
        own_json(bytes).map(|(meta, _, value)| (meta, value))
    }

    fn parse_any_json(bytes: &Bytes) -> Result<Self, Malformed> {
        let fields: Fields<'_> = serde_json::from_slice(bytes).map_err(|error| {
            Malformed(match error.classify() {
                Category::Data => "not a JSON object",
                Category::Eof => "JSON that ends early",
                Category::Syntax | Category::Io => "not JSON",
            })
        })?;
        let value = fields.value.ok_or(Malformed("no value"))?;
        let tags = fields.tags.map(tags).transpose()?.unwrap_or_default();
        let tag_markers = fields.tag_markers.map(markers).transpose()?.flatten();
        let tag_markers = tag_markers.filter(|list| !list.is_empty() && list.len() == tags.len());
        let tag_buckets = fields.tag_buckets.map(buckets).transpose()?.flatten();
        let meta = Meta {
            created_at: fields.created_at.map(time).transpose()?.flatten().unwrap_or(0),
            expiration: match fields.logical_expiration {
                None => Expiration::Never,
                Some(raw) => Expiration::At(time(raw)?.unwrap_or(0)),
            },
            tag_buckets: tag_buckets
                .filter(|list| tag_markers.is_some() && list.len() == tags.len()),
            tag_markers,
            tag_scope: match fields.tag_scope.filter(|_| !tags.is_empty()) {
                Some(raw) => serde_json::from_str(raw.get())
                    .map_err(|_| Malformed("a scope of tags that is not a text"))?,
                None => None,
            },
            tags,
            stale_until: fields.stale_until.map(time).transpose()?.flatten(),
            touched_at: fields.touched_at.map(time).transpose()?.flatten(),
            idle: fields.idle.map(time).transpose()?.flatten().filter(|idle| *idle > 0),
            levels: fields.levels.map(levels).transpose()?.flatten(),
            hard_at: fields.hard_at.map(time).transpose()?.flatten(),
            validators: validators(fields.etag, fields.last_modified)?,
        };
        // The value borrows from `bytes`, so this shares the buffer.
        let payload = bytes.slice_ref(value.get().as_bytes());
        Ok(Self { meta, format: Format::Json, payload, stored: Stored::Json })
    }
}

/// Does not show the value, which may be secret.
impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document")
            .field("meta", &self.meta)
            .field("format", &self.format)
            .field("payload_len", &self.payload.len())
            .finish_non_exhaustive()
    }
}

const JSON_HEAD: &[u8] = br#"{"value":"#;

/// The approximate size of the written metadata.
fn room(meta: &Meta) -> usize {
    let levels = meta.levels.as_ref().map_or(0, |levels| 16 + levels.len() * 40);
    128 + levels + meta.tags.iter().map(|tag| tag.len() + 48).sum::<usize>()
}

fn pack(codec: Codec, payload: &[u8]) -> Option<Vec<u8>> {
    compression::pack(codec.compression(payload.len())?, payload)
}

fn plain(meta: &Meta, format: Format, payload: &[u8]) -> Bytes {
    match format {
        Format::Json => write_json(meta, payload),
        #[cfg(feature = "msgpack")]
        Format::MessagePack => frame::write(format, false, meta, payload),
    }
}

fn write_json(meta: &Meta, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(room(meta) + payload.len());
    out.extend_from_slice(JSON_HEAD);
    out.extend_from_slice(payload);
    write_json_tail(&mut out, meta);
    out.into()
}

/// Writes all fields after the value.
fn write_json_tail(out: &mut Vec<u8>, meta: &Meta) {
    write_json_field(out, "createdAt", &meta.created_at);
    if let Expiration::At(time) = meta.expiration {
        write_json_field(out, "logicalExpiration", &time);
    }
    if !meta.tags.is_empty() {
        write_json_field(out, "tags", &meta.tags);
        if let Some(markers) = written_markers(meta) {
            write_json_field(out, "tagMarkers", markers);
            if let Some(buckets) = written_buckets(meta) {
                write_json_field(out, "tagBuckets", buckets);
            }
        }
        if let Some(scope) = &meta.tag_scope {
            write_json_field(out, "tagScope", scope);
        }
    }
    if let Some(time) = meta.stale_until {
        write_json_field(out, "staleUntil", &time);
    }
    if let Some(time) = meta.touched_at {
        write_json_field(out, "touchedAt", &time);
    }
    if let Some(idle) = meta.idle {
        write_json_field(out, "idle", &idle);
    }
    if let Some(levels) = &meta.levels {
        write_json_field(out, "levels", levels);
    }
    if let Some(time) = meta.hard_at {
        write_json_field(out, "hardAt", &time);
    }
    if let Some(validators) = &meta.validators {
        if let Some(etag) = &validators.etag {
            write_json_field(out, "etag", etag);
        }
        if let Some(time) = &validators.last_modified {
            write_json_field(out, "lastModified", time);
        }
    }
    out.push(b'}');
}

fn write_json_field<T: Serialize + ?Sized>(out: &mut Vec<u8>, name: &str, value: &T) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    // Numbers and strings, written to memory, cannot fail.
    let _ = serde_json::to_writer(out, value);
}

/// The markers, if there is one for each tag: any other number has no meaning.
pub(super) fn written_markers(meta: &Meta) -> Option<&[u64]> {
    meta.tag_markers.as_deref().filter(|list| !list.is_empty() && list.len() == meta.tags.len())
}

/// The buckets, if there is one for each tag, and markers too.
pub(super) fn written_buckets(meta: &Meta) -> Option<&[(u64, u64)]> {
    let buckets = meta.tag_buckets.as_deref()?;
    (written_markers(meta).is_some() && buckets.len() == meta.tags.len()).then_some(buckets)
}

/// Parses a document without tags that has exactly the form of `write_json`: its metadata, the
/// bytes of the value, and the value.
fn own_json<T: DeserializeOwned>(bytes: &[u8]) -> Option<(Meta, &[u8], T)> {
    let rest = bytes.strip_prefix(JSON_HEAD)?;
    let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<T>();
    let value = values.next()?.ok()?;
    if rest.first()?.is_ascii_whitespace() {
        return None;
    }
    let (payload, rest) = rest.split_at(values.byte_offset());
    std::str::from_utf8(payload).ok()?;
    let (created_at, rest) = own_json_field(rest, b",\"createdAt\":")?;
    let (expiration, rest) = match own_json_field(rest, b",\"logicalExpiration\":") {
        Some((time, rest)) => (Expiration::At(time), rest),
        None => (Expiration::Never, rest),
    };
    let (stale_until, rest) = match own_json_field(rest, b",\"staleUntil\":") {
        Some((time, rest)) => (Some(time), rest),
        None => (None, rest),
    };
    let (touched_at, rest) = match own_json_field(rest, b",\"touchedAt\":") {
        Some((time, rest)) => (Some(time), rest),
        None => (None, rest),
    };
    let (idle, rest) = match own_json_field(rest, b",\"idle\":") {
        Some((idle, rest)) => (Some(idle).filter(|idle| *idle > 0), rest),
        None => (None, rest),
    };
    let times = Meta { created_at, expiration, stale_until, touched_at, ..Meta::default() };
    let meta = Meta { idle, ..times };
    (rest == b"}").then_some((meta, payload, value))
}

/// If the text begins with this field, the time in it, and the rest of the text.
fn own_json_field<'a>(text: &'a [u8], name: &[u8]) -> Option<(u64, &'a [u8])> {
    let text = text.strip_prefix(name)?;
    let (digits, rest) = text.split_at(text.iter().position(|byte| !byte.is_ascii_digit())?);
    // A JSON number has at least one digit, and no leading zero.
    if digits.is_empty() || (digits[0] == b'0' && digits.len() > 1) {
        return None;
    }
    let add = |time: u64, digit: &u8| time.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
    let time = digits.iter().try_fold(0, add)?;
    Some((time, rest))
}

/// The known fields of a JSON document, unparsed. Skipping a value this way needs no recursion,
/// however deep it is nested.
#[derive(Default)]
struct Fields<'a> {
    value: Option<&'a RawValue>,
    created_at: Option<&'a RawValue>,
    logical_expiration: Option<&'a RawValue>,
    tags: Option<&'a RawValue>,
    tag_markers: Option<&'a RawValue>,
    tag_buckets: Option<&'a RawValue>,
    tag_scope: Option<&'a RawValue>,
    stale_until: Option<&'a RawValue>,
    touched_at: Option<&'a RawValue>,
    idle: Option<&'a RawValue>,
    levels: Option<&'a RawValue>,
    hard_at: Option<&'a RawValue>,
    etag: Option<&'a RawValue>,
    last_modified: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Name {
    Value,
    CreatedAt,
    LogicalExpiration,
    Tags,
    TagMarkers,
    TagBuckets,
    TagScope,
    StaleUntil,
    TouchedAt,
    Idle,
    Levels,
    HardAt,
    Etag,
    LastModified,
    #[serde(other)]
    Unknown,
}

/// Written by hand, because a derived implementation rejects duplicate fields.
impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key()? {
                    let field = match name {
                        Name::Value => &mut fields.value,
                        Name::CreatedAt => &mut fields.created_at,
                        Name::LogicalExpiration => &mut fields.logical_expiration,
                        Name::Tags => &mut fields.tags,
                        Name::TagMarkers => &mut fields.tag_markers,
                        Name::TagBuckets => &mut fields.tag_buckets,
                        Name::TagScope => &mut fields.tag_scope,
                        Name::StaleUntil => &mut fields.stale_until,
                        Name::TouchedAt => &mut fields.touched_at,
                        Name::Idle => &mut fields.idle,
                        Name::Levels => &mut fields.levels,
                        Name::HardAt => &mut fields.hard_at,
                        Name::Etag => &mut fields.etag,
                        Name::LastModified => &mut fields.last_modified,
                        Name::Unknown => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *field = Some(map.next_value()?);
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

fn tags(raw: &RawValue) -> Result<Vec<Box<str>>, Malformed> {
    serde_json::from_str::<Option<_>>(raw.get())
        .map(Option::unwrap_or_default)
        .map_err(|_| Malformed("tags that are not a list of texts"))
}

fn validators(
    etag: Option<&RawValue>,
    last_modified: Option<&RawValue>,
) -> Result<Option<Box<Validators>>, Malformed> {
    let text = |raw: &RawValue| {
        serde_json::from_str::<Option<Box<str>>>(raw.get())
            .map_err(|_| Malformed("a validator that is not a text"))
    };
    let etag = etag.map(text).transpose()?.flatten();
    let last_modified = last_modified.map(text).transpose()?.flatten();
    let validators = Validators { etag, last_modified };
    Ok((!validators.is_empty()).then(|| Box::new(validators)))
}

fn markers(raw: &RawValue) -> Result<Option<Vec<u64>>, Malformed> {
    let wrong = Malformed("tag markers that are not a list of times");
    let Some(list) =
        serde_json::from_str::<Option<Vec<&RawValue>>>(raw.get()).map_err(|_| wrong)?
    else {
        return Ok(None);
    };
    list.into_iter().map(|raw| time(raw)?.ok_or(wrong)).collect::<Result<_, _>>().map(Some)
}

fn buckets(raw: &RawValue) -> Result<Option<Vec<(u64, u64)>>, Malformed> {
    serde_json::from_str(raw.get())
        .map_err(|_| Malformed("tag buckets that are not a list of pairs of numbers"))
}

fn levels(raw: &RawValue) -> Result<Option<Vec<Level>>, Malformed> {
    serde_json::from_str(raw.get())
        .map_err(|_| Malformed("levels that are not a list of three numbers each"))
}

/// A time as Node would read it; `None` for `null`.
fn time(raw: &RawValue) -> Result<Option<u64>, Malformed> {
    let wrong = Malformed("a time that is not a number");
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b'"') => {
            // Not a `&str`: it may have escapes.
            let text = serde_json::from_str::<Box<str>>(text).map_err(|_| wrong)?;
            number(text.trim()).ok_or(wrong).map(Some)
        }
        _ => number(text).ok_or(wrong).map(Some),
    }
}

fn number(text: &str) -> Option<u64> {
    if let Ok(integer) = text.parse() {
        return Some(integer);
    }
    // Rust would also parse "inf" and "nan".
    let plain =
        |byte: u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E');
    if !text.bytes().all(plain) {
        return None;
    }
    // The cast truncates the fraction and saturates at zero and at the largest integer.
    text.parse::<f64>().ok().map(|number| number as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn parse(text: &str) -> Result<Document, &'static str> {
        Document::parse(&Bytes::copy_from_slice(text.as_bytes()))
            .map_err(|malformed| malformed.reason())
    }

    fn meta_of(text: &str) -> Meta {
        parse(text).unwrap_or_else(|reason| panic!("{text}: {reason}")).meta
    }

    fn full() -> Meta {
        Meta {
            created_at: 1,
            expiration: Expiration::At(2),
            tags: vec!["a".into(), "\"é\"".into()],
            tag_markers: Some(vec![0, 3]),
            tag_buckets: Some(vec![(7, 0), (8, 5)]),
            tag_scope: Some("users:".into()),
            stale_until: Some(4),
            touched_at: Some(2),
            idle: Some(9),
            levels: Some(vec![(0, 7, 0), (9, 8, 5)]),
            hard_at: None,
            validators: Some(Box::new(Validators {
                etag: Some("W/\"1\"".into()),
                last_modified: Some("today".into()),
            })),
        }
    }

    fn codecs() -> Vec<Codec> {
        vec![
            Codec::json(),
            #[cfg(feature = "lz4")]
            Codec::json().compress_above(0),
            #[cfg(feature = "zstd")]
            Codec::json().zstd_above(0),
            #[cfg(feature = "msgpack")]
            Codec::message_pack(),
            #[cfg(all(feature = "lz4", feature = "msgpack"))]
            Codec::message_pack().compress_above(0),
            #[cfg(all(feature = "zstd", feature = "msgpack"))]
            Codec::message_pack().zstd_above(0),
        ]
    }

    #[test]
    fn json_is_compact_and_leaves_out_what_is_absent() {
        let text = |meta: &Meta, value: &Value| {
            let bytes = Document::encode(Codec::json(), meta, value).expect("encodes");
            String::from_utf8(bytes.to_vec()).expect("UTF-8")
        };
        assert_eq!(text(&Meta::default(), &Value::Null), r#"{"value":null,"createdAt":0}"#);
        assert_eq!(
            text(&full(), &json!({"k": [1, "x"]})),
            concat!(
                r#"{"value":{"k":[1,"x"]},"createdAt":1,"logicalExpiration":2,"#,
                r#""tags":["a","\"é\""],"tagMarkers":[0,3],"tagBuckets":[[7,0],[8,5]],"#,
                r#""tagScope":"users:","staleUntil":4,"touchedAt":2,"idle":9,"#,
                r#""levels":[[0,7,0],[9,8,5]],"etag":"W/\"1\"","lastModified":"today"}"#
            )
        );
        // Markers that do not match the tags have no meaning.
        let odd = Meta { tag_markers: Some(vec![1]), ..full() };
        assert!(!text(&odd, &json!(1)).contains("tagMarkers"));
        assert!(!text(&odd, &json!(1)).contains("tagBuckets"));
        let odd = Meta { tag_buckets: Some(vec![(7, 0)]), ..full() };
        assert!(!text(&odd, &json!(1)).contains("tagBuckets"));
        let odd = Meta { tags: Vec::new(), tag_markers: Some(Vec::new()), ..full() };
        assert!(!text(&odd, &json!(1)).contains("\"tag"));
    }

    #[test]
    fn a_marker_stores_when_it_last_deleted() {
        let meta = Meta { created_at: 5, hard_at: Some(4), ..Meta::default() };
        let bytes = Document::encode(Codec::json(), &meta, &5).expect("encodes");
        assert_eq!(&bytes[..], br#"{"value":5,"createdAt":5,"hardAt":4}"#);
        assert_eq!(Document::parse(&bytes).expect("parses").meta, meta);
        assert_eq!(meta_of(r#"{"value":5,"hardAt":null}"#).hard_at, None);
    }

    #[test]
    fn small_json_stays_json_when_large_values_are_compressed() {
        #[cfg(feature = "lz4")]
        {
            let codec = Codec::json().compress_above(100);
            let first = |value: &str| {
                Document::encode(codec, &full(), value).expect("encodes").first().copied()
            };
            assert_eq!(first(&"x".repeat(98)), Some(b'{'));
            assert_eq!(first(&"x".repeat(99)), Some(frame::MAGIC));
            // A value that compression does not make smaller stays readable for Node.
            let noise: String =
                std::iter::repeat_with(|| fastrand::char('\u{100}'..)).take(1_000).collect();
            assert_eq!(first(&noise), Some(b'{'));
        }
    }

    #[test]
    fn times_are_read_as_node_reads_them() {
        let created = |time: &str| parse(&format!(r#"{{"value":1,"createdAt":{time}}}"#));
        for (time, expected) in [
            ("7", 7),
            ("-0", 0),
            ("-7", 0),
            ("7.9", 7),
            ("0.5", 0),
            ("-0.5", 0),
            ("1795289477549.25", 1_795_289_477_549),
            ("1.795e3", 1_795),
            ("1E+3", 1_000),
            ("18446744073709551615", u64::MAX),
            ("18446744073709551616", u64::MAX),
            ("1e400", u64::MAX),
            ("-1e400", 0),
            ("1e-400", 0),
            ("9007199254740993", 9_007_199_254_740_993),
            (r#""7""#, 7),
            (r#"" 7.9 ""#, 7),
            (r#""\u0037""#, 7),
            (r#""-7""#, 0),
            (r#""1e3""#, 1_000),
            (r#""99999999999999999999999""#, u64::MAX),
            ("null", 0),
        ] {
            let document = created(time).unwrap_or_else(|reason| panic!("{time}: {reason}"));
            assert_eq!(document.meta.created_at, expected, "{time}");
        }
        for time in [
            "true",
            "[]",
            "[7]",
            "{}",
            r#""""#,
            r#"" ""#,
            r#""x""#,
            r#""inf""#,
            r#""nan""#,
            r#""7 8""#,
            r#""0x7""#,
            r#""Infinity""#,
            r#""\ud800""#,
        ] {
            assert_eq!(created(time).err(), Some("a time that is not a number"), "{time}");
        }
    }

    #[test]
    fn no_expiration_is_forever_and_null_is_stale() {
        let expiration = |field: &str| meta_of(&format!(r#"{{"value":1{field}}}"#)).expiration;
        assert_eq!(expiration(""), Expiration::Never);
        assert_eq!(expiration(r#","logicalExpiration":null"#), Expiration::At(0));
        assert_eq!(expiration(r#","logicalExpiration":9"#), Expiration::At(9));
        assert_eq!(expiration(r#","logicalExpiration":-9"#), Expiration::At(0));
        assert_eq!(
            expiration(r#","logicalExpiration":9,"logicalExpiration":8"#),
            Expiration::At(8)
        );
    }

    #[test]
    fn tags_and_markers() {
        let meta = |fields: &str| meta_of(&format!(r#"{{"value":1,{fields}}}"#));
        for none in [r#""tags":null"#, r#""tags":[]"#, r#""other":1"#] {
            assert_eq!(meta(none).tags, Vec::<Box<str>>::new());
        }
        let both = meta(r#""tagMarkers":[1,"2"],"tags":["a","\u0061"]"#);
        assert_eq!(both.tags, ["a".into(), "a".into()]);
        assert_eq!(both.tag_markers, Some(vec![1, 2]));
        for ignored in ["null", "[]", "[1]", "[1,2,3]"] {
            let meta = meta(&format!(r#""tags":["a","b"],"tagMarkers":{ignored}"#));
            assert_eq!((meta.tags.len(), meta.tag_markers), (2, None), "{ignored}");
        }
        assert_eq!(meta(r#""tagMarkers":[]"#).tag_markers, None);
        let buckets = |list: &str, markers: &str| {
            let fields = format!(r#""tags":["a","b"],"tagMarkers":{markers},"tagBuckets":{list}"#);
            meta(&fields).tag_buckets
        };
        assert_eq!(buckets("[[1,2],[3,4]]", "[0,0]"), Some(vec![(1, 2), (3, 4)]));
        for (list, markers) in
            [("null", "[0,0]"), ("[]", "[0,0]"), ("[[1,2]]", "[0,0]"), ("[[1,2],[3,4]]", "null")]
        {
            assert_eq!(buckets(list, markers), None, "{list} {markers}");
        }
    }

    #[test]
    fn what_is_no_entry_is_malformed() {
        for (text, reason) in [
            ("", "empty"),
            (" ", "JSON that ends early"),
            ("hello", "not JSON"),
            ("{", "JSON that ends early"),
            (r#"{"value":1"#, "JSON that ends early"),
            (r#"{"value":1}x"#, "not JSON"),
            (r#"{"value":1,}"#, "not JSON"),
            (r#"{"value":}"#, "not JSON"),
            ("12", "not a JSON object"),
            (r#""v""#, "not a JSON object"),
            ("null", "not a JSON object"),
            ("[1]", "not a JSON object"),
            ("{}", "no value"),
            (r#"{"Value":1}"#, "no value"),
            (r#"{"createdAt":1}"#, "no value"),
            (r#"{"value":1,"tags":"a"}"#, "tags that are not a list of texts"),
            (r#"{"value":1,"tags":[1]}"#, "tags that are not a list of texts"),
            (r#"{"value":1,"tags":["\ud800"]}"#, "tags that are not a list of texts"),
            (r#"{"value":1,"tagMarkers":1}"#, "tag markers that are not a list of times"),
            (r#"{"value":1,"tagMarkers":[null]}"#, "tag markers that are not a list of times"),
            (r#"{"value":1,"tagMarkers":["x"]}"#, "a time that is not a number"),
            (r#"{"value":1,"staleUntil":[]}"#, "a time that is not a number"),
            (
                r#"{"value":1,"tagBuckets":[[1]]}"#,
                "tag buckets that are not a list of pairs of numbers",
            ),
            (
                r#"{"value":1,"tagBuckets":[1,-1]}"#,
                "tag buckets that are not a list of pairs of numbers",
            ),
            (r#"{"value":1,"levels":[[1,2]]}"#, "levels that are not a list of three numbers each"),
        ] {
            assert_eq!(parse(text).err(), Some(reason), "{text}");
        }
        let not_utf8 = Bytes::from_static(b"{\"value\":\"\xff\"}");
        assert!(Document::parse(&not_utf8).is_err());
    }

    #[test]
    fn white_space_escapes_order_and_duplicates_are_accepted() {
        let text = concat!(
            "\r\n\t { \"staleUntil\" : 4 , \"unknown\" : {\"value\":[1]} ,\"tags\":[ \"a\" ],",
            r#""\u0076alue": { "k" : 1 } , "createdAt":9,"createdAt":1, "tagMarkers":[5]} "#
        );
        let document = parse(text).expect("parses");
        assert_eq!(document.payload(), br#"{ "k" : 1 }"#);
        assert_eq!(
            document.meta,
            Meta {
                created_at: 1,
                expiration: Expiration::Never,
                tags: vec!["a".into()],
                tag_markers: Some(vec![5]),
                tag_buckets: None,
                tag_scope: None,
                stale_until: Some(4),
                ..Meta::default()
            }
        );
    }

    #[test]
    fn the_payload_is_not_copied() {
        // The value is too small to be compressed, so it is a slice with every codec.
        for codec in codecs() {
            let bytes = Document::encode(codec, &full(), "a value").expect("encodes");
            let document = Document::parse(&bytes).expect("parses");
            let within = bytes.as_ptr_range();
            assert!(within.contains(&document.payload().as_ptr()));
        }
    }

    #[test]
    fn deep_nesting_is_skipped_without_recursion() {
        // One stack frame per level would overflow the stack here.
        const DEPTH: usize = 100_000;
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let deep = format!("{}1{}", open.repeat(DEPTH), close.repeat(DEPTH));
            let document = parse(&format!(r#"{{"value":{deep}}}"#)).expect("parses");
            assert!(document.value::<Value>().is_err());
            assert_eq!(document.payload().len(), deep.len());
            assert_eq!(meta_of(&format!(r#"{{"unknown":{deep},"value":1}}"#)), Meta::default());
            for field in [
                "tags",
                "tagMarkers",
                "tagBuckets",
                "createdAt",
                "staleUntil",
                "touchedAt",
                "levels",
            ] {
                assert!(parse(&format!(r#"{{"value":1,"{field}":{deep}}}"#)).is_err());
                assert!(parse(&format!(r#"{{"value":1,"{field}":[{deep}]}}"#)).is_err());
            }
            parse(&open.repeat(DEPTH)).expect_err("ends early");
            parse(&format!(r#"{{"value":{}"#, open.repeat(DEPTH))).expect_err("ends early");
        }
    }

    #[test]
    fn only_what_is_to_the_letter_as_it_is_written_here_is_parsed_the_quick_way() {
        let quick = |text: &'static str| {
            let bytes = Bytes::from_static(text.as_bytes());
            let document = Document::parse_own_json(&bytes);
            assert_eq!(document.is_some(), Document::quick::<Value>(&bytes).is_some(), "{text}");
            document.is_some()
        };
        assert!(quick(r#"{"value":[1],"createdAt":0}"#));
        assert!(quick(r#"{"value":1,"createdAt":18446744073709551615,"staleUntil":10}"#));
        for text in [
            r#"{"value": 1,"createdAt":1}"#,
            r#"{"value":1 ,"createdAt":1}"#,
            r#"{"value":1,"createdAt":1} "#,
            r#"{"value":1,"createdAt":01}"#,
            r#"{"value":1,"createdAt":}"#,
            r#"{"value":1,"createdAt":18446744073709551616}"#,
            r#"{"value":1,"createdAt":1"#,
            r#"{"value":1,"createdAt":1,"staleUntil":1,"logicalExpiration":1}"#,
            r#"{"value":1,"createdAt":1,"tags":[]}"#,
            r#"{"value":1,"createdAt":1,"levels":[]}"#,
            r#"{"value":1}"#,
        ] {
            assert!(!quick(text), "{text}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_encoded_is_an_error() {
        struct Refuses;
        impl Serialize for Refuses {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("not today"))
            }
        }
        for codec in codecs() {
            let error = Document::encode(codec, &full(), &Refuses).expect_err("refused");
            assert!(error.to_string().contains("not today"), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_value() {
        let bytes = Document::encode(Codec::json(), &full(), "hunter2").expect("encodes");
        let shown = format!("{:?}", Document::parse(&bytes).expect("parses"));
        assert!(!shown.contains("hunter2") && shown.contains("payload_len: 9"), "{shown}");
    }

    /// Metadata that a document can represent: markers for each tag or none.
    fn metas() -> impl Strategy<Value = Meta> {
        let tags = proptest::collection::vec(("\\PC{0,8}", any::<u64>()), 0..4);
        let expiration = proptest::option::of(any::<u64>());
        (any::<u64>(), expiration, tags, any::<bool>(), proptest::option::of(any::<u64>()))
            .prop_map(|(created_at, expiration, tags, marked, stale_until)| {
                let (tags, markers): (Vec<Box<str>>, Vec<u64>) =
                    tags.into_iter().map(|(tag, marker)| (tag.into(), marker)).unzip();
                Meta {
                    created_at,
                    expiration: expiration.map_or(Expiration::Never, Expiration::At),
                    tag_markers: (marked && !tags.is_empty()).then_some(markers),
                    tag_buckets: (marked && created_at % 2 == 0 && !tags.is_empty())
                        .then(|| tags.iter().map(|tag| (created_at, tag.len() as u64)).collect()),
                    tag_scope: (marked && !tags.is_empty()).then(|| "n:".into()),
                    tags,
                    stale_until,
                    touched_at: stale_until.filter(|end| end % 2 == 0),
                    idle: stale_until.filter(|end| *end > 0 && end % 3 == 0),
                    levels: (created_at % 3 == 0).then(|| vec![(created_at, 1, 2); 2]),
                    validators: (created_at % 5 < 2).then(|| {
                        let etag = (created_at % 5 == 0).then(|| "\"1\"".into());
                        Box::new(Validators { etag, last_modified: Some("then".into()) })
                    }),
                    ..Meta::default()
                }
            })
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            proptest::num::f64::NORMAL.prop_map(Value::from),
            "\\PC{0,20}".prop_map(Value::from),
            "a{0,200}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::hash_map("\\PC{0,5}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn a_value_that_is_not_utf8_is_malformed() {
        let bytes = Bytes::from_static(b"{\"value\":\"\xff\",\"createdAt\":1}");
        assert!(Document::parse(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_parsed(meta in metas(), other in metas(), value in values()) {
            for codec in codecs() {
                let bytes = Document::encode(codec, &meta, &value).expect("encodes");
                let document = Document::parse(&bytes).expect("parses");
                prop_assert_eq!(&document.meta, &meta);
                prop_assert_eq!(document.format(), codec.format());
                prop_assert_eq!(document.value::<Value>().expect("decodes"), value.clone());

                // An encoded value is stored in the same way as the value itself.
                let again =
                    Document::from_payload(codec, &meta, document.format(), document.payload());
                prop_assert_eq!(&again, &bytes);
                prop_assert_eq!(document.rewrite(&meta), bytes.clone());

                let rewritten = document.rewrite(&other);
                prop_assert_eq!(rewritten.first(), bytes.first());
                let rewritten = Document::parse(&rewritten).expect("parses");
                prop_assert_eq!(&rewritten.meta, &other);
                prop_assert_eq!(rewritten.payload(), document.payload());
            }
        }

        #[test]
        fn what_parses_is_written_so_that_it_parses_to_the_same(
            fields in proptest::collection::vec(
                prop_oneof![
                    "\"(value|createdAt|logicalExpiration|staleUntil|touchedAt|idle)\" ?: ?(-?[1-9][0-9]{0,20}(\\.[0-9]{1,3})?|null|\"[0-9]{1,3}\")",
                    "\"tags\":(null|\\[\\]|\\[\"[a-z\u{e9}]{0,3}\"\\])",
                    "\"tagMarkers\":(null|\\[\\]|\\[[0-9]\\])",
                    "\"[a-z]{1,3}\":\\[\\{\\}\\]",
                ],
                0..8,
            ),
        ) {
            let text = format!("{{\"value\":[1],{}\"x\":0}}", fields.iter().fold(String::new(), |all, f| all + f + ","));
            let document = parse(&text).unwrap_or_else(|reason| panic!("{text}: {reason}"));
            let again = Document::parse(&document.rewrite(&document.meta)).expect("parses");
            prop_assert_eq!(&again.meta, &document.meta);
            prop_assert_eq!(again.payload(), document.payload());
        }

        #[test]
        fn the_quick_way_to_parse_leads_where_the_other_one_does(
            value in r#"( |)("[a-z\\"é]{0,4}"|-?[0-9]{1,3}|\[1,\{\}\]|\{"a":"\}"\}|null)( |)"#,
            fields in proptest::collection::vec(
                r#""(createdAt|logicalExpiration|staleUntil|touchedAt|idle|tags|value)":(0|[0-9]{1,21}|1\.5|1e3|null|"1"|\[\])( |)"#,
                1..5,
            ),
        ) {
            let bytes = Bytes::from(format!("{{\"value\":{value},{}}}", fields.join(",")));
            if let Some(own) = Document::parse_own_json(&bytes) {
                let any = Document::parse_any_json(&bytes).expect("parses");
                prop_assert_eq!(&own.meta, &any.meta);
                prop_assert_eq!(&own.payload, &any.payload);
                let (meta, value) = Document::quick::<Value>(&bytes).expect("is our own");
                prop_assert_eq!(&meta, &any.meta);
                prop_assert_eq!(value, any.value::<Value>().expect("a value"));
            }
        }

        #[test]
        fn what_is_written_without_tags_is_parsed_the_quick_way(
            meta in metas(),
            value in values(),
        ) {
            let meta = Meta {
                tags: Vec::new(),
                tag_markers: None,
                tag_buckets: None,
                tag_scope: None,
                levels: None,
                validators: None,
                ..meta
            };
            let bytes = Document::encode(Codec::json(), &meta, &value).expect("encodes");
            let own = Document::parse_own_json(&bytes).expect("is our own");
            prop_assert_eq!(&own.meta, &meta);
            let any = Document::parse_any_json(&bytes).expect("parses");
            prop_assert_eq!(own.payload, any.payload);
        }

        #[test]
        fn any_bytes_are_parsed_without_a_panic(
            magic: bool,
            mut bytes in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            if magic {
                bytes.splice(..0, [frame::MAGIC, 1, 1]);
            }
            let _ = Document::parse(&bytes.into());
        }

        #[test]
        fn damaged_documents_are_parsed_without_a_panic(
            meta in metas(),
            value in values(),
            damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
            cut: usize,
        ) {
            for codec in codecs() {
                let bytes = Document::encode(codec, &meta, &value).expect("encodes");
                let mut damaged = bytes.to_vec();
                for (at, byte) in &damage {
                    damaged[at % bytes.len()] = *byte;
                }
                for bytes in [Bytes::from(damaged), bytes.slice(..cut % bytes.len())] {
                    if let Ok(document) = Document::parse(&bytes) {
                        let _ = document.value::<Value>();
                        let rewritten = document.rewrite(&document.meta);
                        let again = Document::parse(&rewritten).expect("parses again");
                        prop_assert_eq!(again.meta, document.meta);
                    }
                }
            }
        }
    }
}
