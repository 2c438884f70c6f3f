//! Codecs: the encoding of values as bytes.

use std::error::Error;
use std::fmt;
use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Serializer;

use super::BoxError;
use super::compression::Compression;
use super::faithful::Faithful;
use super::trail::{Trail, Watched};
use super::undecodable::Undecodable;

/// The codec of values in L2.
///
/// The default, [`json`](Codec::json), is the format that the Node library reads and writes. Every
/// stored value names its encoding, so a store can change its codec at any time without a flush:
/// existing values stay readable.
///
/// Feature `msgpack` adds `Codec::message_pack()`, feature `lz4` adds `compress_above`, and feature
/// `zstd` adds `zstd_above`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    format: Format,
    /// The method, and the size above which it is used.
    compress: Option<(Compression, usize)>,
}

impl Codec {
    /// JSON: readable in the store, and shared with the Node library.
    ///
    /// A number that is not finite is rejected, because JSON cannot represent it. Both formats
    /// reject a value of more than 127 levels, and `Some(None)` and `Some(())`, because they could
    /// not be read back.
    pub const fn json() -> Self {
        Self { format: Format::Json, compress: None }
    }

    /// MessagePack: smaller and faster than JSON. It represents byte strings, and numbers that are
    /// not finite. Fields keep their names, so that a type may get new fields.
    ///
    /// The Node library cannot read it.
    #[cfg(feature = "msgpack")]
    pub const fn message_pack() -> Self {
        let mut codec = Self::json();
        codec.format = Format::MessagePack;
        codec
    }

    /// Compresses (LZ4) each value whose encoded form is larger than `bytes`, if this makes it
    /// smaller.
    ///
    /// The Node library cannot read a compressed value. Other values stay as they are. This
    /// replaces the compression of an earlier call.
    ///
    /// ```
    /// # use bentocache::{Codec, Store};
    /// let store = Store::new().codec(Codec::json().compress_above(1_024));
    /// ```
    #[cfg(feature = "lz4")]
    pub const fn compress_above(self, bytes: usize) -> Self {
        Self { compress: Some((Compression::Lz4, bytes)), ..self }
    }

    /// Compresses (Zstandard, level 3) each value whose encoded form is larger than `bytes`, if
    /// this makes it smaller. It needs more time than LZ4 and makes values smaller.
    ///
    /// The Node library cannot read a compressed value. Other values stay as they are. This
    /// replaces the compression of an earlier call; values are readable whatever compressed them.
    ///
    /// ```
    /// # use bentocache::{Codec, Store};
    /// let store = Store::new().codec(Codec::json().zstd_above(1_024));
    /// ```
    #[cfg(feature = "zstd")]
    pub const fn zstd_above(self, bytes: usize) -> Self {
        Self { compress: Some((Compression::Zstd, bytes)), ..self }
    }

    /// The encoding of values, without compression.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// How to compress a value with this encoded size, if at all.
    pub(crate) fn compression(&self, len: usize) -> Option<Compression> {
        self.compress.filter(|(_, above)| len > *above).map(|(method, _)| method)
    }
}

impl Default for Codec {
    fn default() -> Self {
        Self::json()
    }
}

/// An encoding of values, with its number in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Format {
    /// JSON.
    Json = 1,
    /// MessagePack, with the names of fields.
    #[cfg(feature = "msgpack")]
    MessagePack = 2,
}

impl Format {
    /// The encoding with this number, if this build knows it.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Json),
            #[cfg(feature = "msgpack")]
            2 => Some(Self::MessagePack),
            _ => None,
        }
    }

    /// The name of this encoding.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            #[cfg(feature = "msgpack")]
            Self::MessagePack => "msgpack",
        }
    }

    /// The number of this encoding.
    pub const fn id(self) -> u8 {
        self as u8
    }
}

/// Appends the encoded value to `out`.
///
/// # Errors
///
/// If the type's own `Serialize` fails; if the format cannot represent the value, such as a JSON
/// object whose keys are not strings, or a number that is not finite; if an `Option` holds only
/// `None` or `()`; or if the value is nested more than 127 levels deep. `out` then ends somewhere
/// in the middle of the value.
pub fn encode_value<T>(format: Format, value: &T, out: &mut Vec<u8>) -> Result<(), BoxError>
where
    T: Serialize + ?Sized,
{
    #[cfg(feature = "msgpack")]
    let start = out.len();
    match format {
        Format::Json => value.serialize(Faithful::<_, true>::new(&mut json_writer(&mut *out)))?,
        #[cfg(feature = "msgpack")]
        Format::MessagePack => {
            let mut writer = rmp_serde::Serializer::new(&mut *out).with_struct_map();
            value.serialize(Faithful::<_, false>::new(&mut writer))?;
        }
    }
    #[cfg(feature = "msgpack")]
    if format == Format::MessagePack && message_pack::is_too_deep(&out[start..]) {
        return Err(Box::new(TooDeep));
    }
    Ok(())
}

/// The size of the encoded value in bytes; the bytes themselves are not kept. Values that would not
/// be read back unchanged are measured too.
///
/// # Errors
///
/// As [`encode_value`].
pub fn encoded_len<T: Serialize + ?Sized>(format: Format, value: &T) -> Result<usize, BoxError> {
    let mut count = Count(0);
    match format {
        Format::Json => value.serialize(&mut json_writer(&mut count))?,
        #[cfg(feature = "msgpack")]
        Format::MessagePack => rmp_serde::encode::write_named(&mut count, value)?,
    }
    Ok(count.0)
}

/// Decodes a value that fills the whole payload.
///
/// # Errors
///
/// If the payload is not of this format, has bytes after the value, is nested too deeply, or does
/// not match `T`. The error says what was expected and where, but quotes no part of the payload, so
/// it can be logged.
pub fn decode_value<T: DeserializeOwned>(format: Format, payload: &[u8]) -> Result<T, BoxError> {
    match format {
        Format::Json => serde_json::from_slice(payload)
            .map_err(|error| Undecodable::json(error, &json_trail::<T>(payload))),
        #[cfg(feature = "msgpack")]
        Format::MessagePack => message_pack::decode(payload),
    }
}

/// Decodes again, to find the place of the failure.
#[cold]
fn json_trail<T: DeserializeOwned>(payload: &[u8]) -> Trail {
    let trail = Trail::default();
    let mut reader = serde_json::Deserializer::from_slice(payload);
    drop(T::deserialize(Watched::new(&mut reader, &trail)));
    trail
}

fn json_writer<W: io::Write>(out: W) -> Serializer<W, Shallow> {
    Serializer::with_formatter(out, Shallow { depth: 0 })
}

/// The largest number of levels of a value. The decoders read no deeper, so that hostile bytes
/// cannot exhaust the stack, and every written value must be readable.
const MAX_DEPTH: usize = 127;

/// A value with more levels than can be read back.
#[derive(Debug)]
struct TooDeep;

impl fmt::Display for TooDeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the value is nested more than {MAX_DEPTH} levels deep and could not be read back; \
             store it flatter, or as a text"
        )
    }
}

impl Error for TooDeep {}

/// Compact JSON of at most [`MAX_DEPTH`] levels.
struct Shallow {
    depth: usize,
}

impl Shallow {
    fn enter(&mut self) -> io::Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(io::Error::other(TooDeep)) } else { Ok(()) }
    }
}

impl serde_json::ser::Formatter for Shallow {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.enter()?;
        out.write_all(b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        out.write_all(b"]")
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.enter()?;
        out.write_all(b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        out.write_all(b"}")
    }
}

/// A writer that only counts bytes.
struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "msgpack")]
mod message_pack {
    use std::io;

    use rmp_serde::Deserializer;
    use rmp_serde::decode::Error;
    use serde::Deserialize;
    use serde::de::{DeserializeOwned, IgnoredAny};

    use super::{BoxError, MAX_DEPTH};
    use crate::wire::trail::{Trail, Watched};
    use crate::wire::undecodable::{Undecodable, censored};

    /// Whether the payload has more levels than are read. rmp-serde's own limit, 1024, needs more
    /// stack than a runtime thread has in a debug build.
    pub(super) fn is_too_deep(payload: &[u8]) -> bool {
        matches!(skip(payload), Err(Error::DepthLimitExceeded))
    }

    /// Skips the first value without decoding it.
    fn skip(payload: &[u8]) -> Result<(), Error> {
        // Each level takes at least one byte.
        if payload.len() <= MAX_DEPTH {
            return Ok(());
        }
        let mut reader = Deserializer::from_read_ref(payload);
        reader.set_max_depth(MAX_DEPTH + 1);
        IgnoredAny::deserialize(&mut reader).map(drop)
    }

    pub(super) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BoxError> {
        // Checked first, because the reader does not count the levels of enums.
        skip(payload).map_err(undecodable)?;
        let mut reader = Deserializer::from_read_ref(payload);
        let value = T::deserialize(&mut reader)
            .map_err(|error| Undecodable::message_pack(trail::<T>(payload).before(&what(error))))?;
        // The reader does not report leftover bytes; reading one more marker does.
        match bool::deserialize(&mut reader) {
            Err(Error::InvalidMarkerRead(end)) if end.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(value)
            }
            _ => Err(Undecodable::message_pack("something follows the value")),
        }
    }

    /// Decodes again, to find the place of the failure.
    #[cold]
    fn trail<T: DeserializeOwned>(payload: &[u8]) -> Trail {
        let trail = Trail::default();
        let mut reader = Deserializer::from_read_ref(payload);
        drop(T::deserialize(Watched::new(&mut reader, &trail)));
        trail
    }

    fn undecodable(error: Error) -> BoxError {
        Undecodable::message_pack(what(error))
    }

    fn what(error: Error) -> String {
        let what = match error {
            Error::Syntax(message) => return censored(&message),
            Error::InvalidMarkerRead(_) | Error::InvalidDataRead(_) => "the value ends early",
            Error::TypeMismatch(_) => "another type was expected",
            Error::OutOfRange => "a number is out of range",
            Error::LengthMismatch(_) => "an array has another length",
            Error::Utf8Error(_) => "a text is not UTF-8",
            Error::DepthLimitExceeded => "the value is nested too deeply",
            Error::Uncategorized(_) => "the value is not of the type asked for",
        };
        what.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    const FORMATS: &[Format] = &[
        Format::Json,
        #[cfg(feature = "msgpack")]
        Format::MessagePack,
    ];

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct User {
        id: u64,
        name: String,
        #[serde(default)]
        score: Option<f64>,
    }

    fn encoded<T: Serialize + ?Sized>(format: Format, value: &T) -> Vec<u8> {
        let mut out = Vec::new();
        encode_value(format, value, &mut out).expect("encodes");
        out
    }

    #[test]
    fn values_come_back() {
        for format in FORMATS.iter().copied() {
            let user = User { id: 7, name: "é\0\"".into(), score: Some(13.700000000000001) };
            let bytes = encoded(format, &user);
            assert_eq!(decode_value::<User>(format, &bytes).expect("decodes"), user);
            assert_eq!(encoded_len(format, &user).expect("encodes"), bytes.len());

            // `None` is a value too.
            let bytes = encoded(format, &None::<User>);
            assert_eq!(decode_value::<Option<User>>(format, &bytes).expect("decodes"), None);
            decode_value::<()>(format, &encoded(format, &())).expect("decodes");
        }
    }

    #[test]
    fn a_type_may_gain_and_lose_fields() {
        #[derive(Serialize)]
        struct Older {
            gone: u8,
            name: &'static str,
            id: u64,
        }
        for format in FORMATS.iter().copied() {
            let bytes = encoded(format, &Older { gone: 1, name: "x", id: 2 });
            let user = decode_value::<User>(format, &bytes).expect("decodes");
            assert_eq!(user, User { id: 2, name: "x".into(), score: None });
        }
    }

    #[test]
    fn formats_are_known_by_their_number() {
        for format in FORMATS.iter().copied() {
            assert_eq!(Format::from_id(format.id()), Some(format));
        }
        let known = (0..=u8::MAX).filter(|id| Format::from_id(*id).is_some());
        assert_eq!(known.count(), FORMATS.len());
        assert_eq!(Format::Json.id(), 1);
    }

    #[test]
    fn what_follows_the_value_is_refused() {
        for format in FORMATS.iter().copied() {
            let bytes = encoded(format, &7);
            for more in 0..=u8::MAX {
                let decoded = decode_value::<u8>(format, &[&bytes, &[more][..]].concat());
                let white = format == Format::Json && b" \t\r\n".contains(&more);
                // "7" and "1" are "71".
                let digit = format == Format::Json && more.is_ascii_digit();
                assert_eq!(decoded.is_ok(), white || digit, "{format:?} {more:#x}");
            }
            for end in 0..bytes.len() {
                assert!(decode_value::<u8>(format, &bytes[..end]).is_err());
            }
        }
    }

    #[test]
    fn errors_quote_no_value() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        enum Strict {
            #[expect(dead_code, reason = "only its name is of interest")]
            One { field: u8 },
        }
        #[derive(Debug, Deserialize)]
        enum Never {}
        #[derive(Debug, Deserialize)]
        #[serde(untagged)]
        #[expect(dead_code, reason = "only its name is of interest")]
        enum Either {
            Number(u8),
            Flag(bool),
        }
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Empty {}
        #[derive(Debug)]
        struct Chatty;
        impl<'de> Deserialize<'de> for Chatty {
            fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
                let text = String::deserialize(reader)?;
                Err(serde::de::Error::custom(format!("{text} is no good")))
            }
        }

        let values = [
            serde_json::json!("hunter2"),
            serde_json::json!("a, expected hunter2"),
            serde_json::json!("hunter2 at line 7 column 7"),
            serde_json::json!({"a, expected hunter2": 1}),
            serde_json::json!({"One": {"a, expected hunter2": 1}}),
            serde_json::json!({"hunter2": 1}),
            serde_json::json!({"One": {"hunter2": 1}}),
            serde_json::json!({"One": {"field": "hunter2"}}),
            serde_json::json!(["hunter2"]),
        ];
        for format in FORMATS.iter().copied() {
            for value in &values {
                let bytes = encoded(format, value);
                let errors = [
                    decode_value::<u8>(format, &bytes).expect_err("no number"),
                    decode_value::<Strict>(format, &bytes).expect_err("no variant"),
                    decode_value::<Chatty>(format, &bytes).expect_err("never decodes"),
                    decode_value::<Never>(format, &bytes).expect_err("has no variants"),
                    decode_value::<Either>(format, &bytes).expect_err("neither"),
                    decode_value::<Empty>(format, &bytes).expect_err("has no fields"),
                    decode_value::<u8>(format, &bytes[..bytes.len() - 1]).expect_err("cut off"),
                ];
                for error in errors {
                    let shown = format!("{error} {error:?}");
                    assert!(!shown.contains("hunter2"), "{shown}");
                }
            }
        }
    }

    #[test]
    fn errors_say_what_the_type_wanted() {
        let error = |json: &str| {
            decode_value::<User>(Format::Json, json.as_bytes()).expect_err("no user").to_string()
        };
        assert_eq!(
            error(r#"{"id":"secret"}"#),
            "cannot decode JSON: at `id`: invalid type: string, expected u64 at line 1 column 14"
        );
        assert_eq!(
            error(r#"{"id":1}"#),
            "cannot decode JSON: missing field `name` at line 1 column 8"
        );
        assert_eq!(
            error(r#"{"id":1"#),
            "cannot decode JSON: EOF while parsing an object at line 1 column 7"
        );
    }

    #[test]
    fn errors_keep_what_serde_says_of_the_type() {
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Account {
            #[expect(dead_code, reason = "only its name is of interest")]
            full_name: String,
        }
        #[derive(Debug, Deserialize)]
        #[serde(untagged)]
        #[expect(dead_code, reason = "only its name is of interest")]
        enum Either {
            Number(u8),
        }
        fn says<T: DeserializeOwned + fmt::Debug>(json: &str, wanted: &str) {
            let error = decode_value::<T>(Format::Json, json.as_bytes()).expect_err(json);
            assert_eq!(error.to_string(), format!("cannot decode JSON: {wanted}"));
        }
        says::<Account>("{}", "missing field `fullName` at line 1 column 2");
        says::<Account>(
            r#"{"full_name":"x"}"#,
            "unknown field, expected `fullName` at line 1 column 12",
        );
        says::<u8>("300", "invalid value: integer, expected u8 at line 1 column 3");
        says::<u8>("null", "invalid type: null, expected u8 at line 1 column 4");
        says::<u8>("[1]", "invalid type: sequence, expected u8 at line 1 column 0");
        says::<String>("1.5", "invalid type: floating point, expected a string at line 1 column 3");
        says::<Either>("{}", "data did not match any variant of untagged enum Either");
    }

    #[test]
    fn errors_say_where_by_the_names_of_the_type_and_no_others() {
        use std::collections::HashMap;
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only the names are of interest")]
        struct Order {
            #[serde(rename = "shipTo")]
            ship_to: Option<Address>,
            #[serde(default)]
            prices: HashMap<String, Vec<u32>>,
            #[serde(default)]
            state: Vec<State>,
        }
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only the names are of interest")]
        struct Address {
            lines: Vec<String>,
            zip: u32,
        }
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only the names are of interest")]
        enum State {
            Paid { by: u32 },
            Sent(u8),
        }
        for (value, wanted) in [
            (r#"{"shipTo":{"lines":["a",1],"zip":1}}"#, "at `shipTo.lines[1]`: "),
            (r#"{"shipTo":{"lines":[]}}"#, "at `shipTo`: missing field `zip`"),
            (r#"{"prices":{"secret":[1,"secret"]}}"#, "at `prices[_][1]`: "),
            (r#"{"state":[{"Sent":1},{"Paid":{"by":"secret"}}]}"#, "at `state[1].Paid.by`: "),
            (r#"{"state":[{"Sent":"secret"}]}"#, "at `state[0].Sent`: "),
            (r#"{"state":[{"secret":1}]}"#, "at `state[0]`: unknown variant, expected `Paid`"),
        ] {
            let value: Value = serde_json::from_str(value).expect("JSON");
            for format in FORMATS.iter().copied() {
                let error = decode_value::<Order>(format, &encoded(format, &value));
                let error = error.expect_err("no order").to_string();
                assert!(error.contains(wanted), "{error} has no {wanted}");
                assert!(!error.contains("secret"), "{error}");
            }
        }
    }

    /// A list in a list in a list, `depth` times.
    fn nested(depth: usize) -> Value {
        (1..depth).fold(Value::Array(Vec::new()), |inner, _| Value::Array(vec![inner]))
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Chain {
        End,
        Link(Box<Chain>),
    }

    #[test]
    fn what_is_too_deep_to_be_read_back_is_not_written() {
        let chain = |levels| (0..levels).fold(Chain::End, |end, _| Chain::Link(Box::new(end)));
        for format in FORMATS.iter().copied() {
            let bytes = encoded(format, &nested(127));
            assert_eq!(decode_value::<Value>(format, &bytes).expect("decodes"), nested(127));
            let bytes = encoded(format, &chain(127));
            assert_eq!(decode_value::<Chain>(format, &bytes).expect("decodes"), chain(127));
            for error in [
                encode_value(format, &nested(128), &mut Vec::new()).expect_err("too deep"),
                encode_value(format, &chain(128), &mut Vec::new()).expect_err("too deep"),
            ] {
                assert!(error.to_string().contains("127 levels"), "{error}");
            }
            // A wide value is not deep.
            let wide = vec![vec![Vec::<u8>::new(); 3]; 1_000];
            let bytes = encoded(format, &wide);
            assert_eq!(decode_value::<Vec<Vec<Vec<u8>>>>(format, &bytes).expect("decodes"), wide);
        }
    }

    #[test]
    fn deep_values_are_refused_and_not_followed() {
        for format in FORMATS.iter().copied() {
            let link = match format {
                Format::Json => br#"{"Link":"#.as_slice(),
                #[cfg(feature = "msgpack")]
                Format::MessagePack => b"\x81\xa4Link",
            };
            decode_value::<Chain>(format, &link.repeat(300_000)).expect_err("too deep");
            let bytes = match format {
                Format::Json => "[".repeat(1_000_000).into_bytes(),
                #[cfg(feature = "msgpack")]
                Format::MessagePack => vec![0x91; 1_000_000],
            };
            let error = decode_value::<Value>(format, &bytes).expect_err("too deep");
            assert!(
                error.to_string().contains("recursion limit")
                    || error.to_string().contains("too deeply"),
                "{error}"
            );
            decode_value::<serde::de::IgnoredAny>(format, &bytes).expect_err("no value");
        }
    }

    #[test]
    fn json_has_no_infinity() {
        #[derive(Serialize, Clone)]
        struct Newtype(f32);
        #[derive(Serialize)]
        enum Deep {
            Tuple(u8, f64),
            Struct { field: Option<Newtype> },
        }
        let refused = |value: &dyn Fn(&mut Vec<u8>) -> Result<(), BoxError>| {
            let error = value(&mut Vec::new()).expect_err("it has no form").to_string();
            assert!(error.contains("not finite"), "{error}");
        };
        let json = Format::Json;
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            refused(&|out| encode_value(json, &number, out));
            refused(&|out| encode_value(json, &Some(number), out));
            refused(&|out| encode_value(json, &[[0.5, number]], out));
            refused(&|out| encode_value(json, &Deep::Tuple(1, number), out));
            let field = Some(Newtype(number as f32));
            refused(&|out| encode_value(json, &Deep::Struct { field: field.clone() }, out));
            let map: std::collections::BTreeMap<_, _> = [("a", number)].into();
            refused(&|out| encode_value(json, &map, out));
        }
        assert_eq!(encoded(json, &[0.5, -0.0]), b"[0.5,-0.0]");
    }

    #[test]
    fn what_would_be_read_back_as_none_is_not_written() {
        #[derive(Serialize)]
        struct Newtype<T>(T);
        #[derive(Serialize)]
        struct Unit;
        #[derive(Serialize)]
        struct Field {
            field: Option<Option<u8>>,
        }
        for format in FORMATS.iter().copied() {
            let refused = |result: Result<(), BoxError>| {
                let error = result.expect_err("it would be None").to_string();
                assert!(error.contains("read back as `None`"), "{error}");
            };
            let none: Option<u8> = None;
            refused(encode_value(format, &Some(none), &mut Vec::new()));
            refused(encode_value(format, &Some(Some(none)), &mut Vec::new()));
            refused(encode_value(format, &Some(()), &mut Vec::new()));
            refused(encode_value(format, &Some(Newtype(none)), &mut Vec::new()));
            refused(encode_value(format, &[Field { field: Some(None) }], &mut Vec::new()));
            refused(encode_value(format, &Some(Value::Null), &mut Vec::new()));
            // Values that can be told apart.
            for fine in [Some(Some(1_u8)), None] {
                assert_eq!(
                    decode_value::<Option<Option<u8>>>(format, &encoded(format, &fine)).ok(),
                    Some(fine)
                );
            }
            encoded(format, &(none, (), Unit, Some([none]), Some(Field { field: None })));
        }
        encode_value(Format::Json, &Some(Unit), &mut Vec::new()).expect_err("it would be None");
    }

    /// Skipping the value before it is decoded must not fail.
    #[cfg(feature = "msgpack")]
    #[test]
    fn message_pack_of_all_kinds_passes() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename = "_ExtStruct")]
        struct Ext((i8, Blob));
        #[derive(Debug, PartialEq)]
        struct Blob(Vec<u8>);
        impl Serialize for Blob {
            fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                out.serialize_bytes(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for Blob {
            fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
                struct Bytes;
                impl serde::de::Visitor<'_> for Bytes {
                    type Value = Blob;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("bytes")
                    }
                    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                        Ok(Blob(bytes.to_vec()))
                    }
                }
                reader.deserialize_bytes(Bytes)
            }
        }
        type All = (i128, f32, char, Option<()>, (), Blob, Ext, Vec<Ext>, String);
        let blob = || Blob(vec![0xff; 200]);
        let all: All = (
            i128::MIN,
            0.5,
            'é',
            None,
            (),
            blob(),
            Ext((1, blob())),
            vec![Ext((-1, blob())), Ext((2, Blob(vec![1])))],
            "x".repeat(70_000),
        );
        let bytes = encoded(Format::MessagePack, &all);
        assert_eq!(decode_value::<All>(Format::MessagePack, &bytes).expect("decodes"), all);
    }

    #[cfg(feature = "msgpack")]
    #[test]
    fn message_pack_has_infinity() {
        let bytes = encoded(Format::MessagePack, &f64::INFINITY);
        assert_eq!(
            decode_value::<f64>(Format::MessagePack, &bytes).expect("decodes"),
            f64::INFINITY
        );
    }

    #[test]
    fn lengths_that_lie_reserve_nothing() {
        #[cfg(feature = "msgpack")]
        for head in [0xdb_u8, 0xc6, 0xdd, 0xdf, 0xc9] {
            let bytes = [head, 0xff, 0xff, 0xff, 0xff, 0, 0];
            decode_value::<Vec<u64>>(Format::MessagePack, &bytes).expect_err("cut off");
            decode_value::<String>(Format::MessagePack, &bytes).expect_err("cut off");
            decode_value::<Value>(Format::MessagePack, &bytes).expect_err("cut off");
        }
    }
}
