//! The error of a value that cannot be decoded.

use std::error::Error;
use std::fmt;

use super::BoxError;
use super::trail::Trail;

/// A value that does not decode into the requested type.
///
/// The decoders quote the offending value in their messages. Values may be secret and this error is
/// logged, so it keeps the parts that come from the *type* and drops the parts that come from the
/// data.
#[derive(Debug)]
pub(super) struct Undecodable {
    format: &'static str,
    what: String,
}

impl Undecodable {
    #[expect(clippy::needless_pass_by_value, reason = "it is passed by name to map_err")]
    pub(super) fn json(error: serde_json::Error, trail: &Trail) -> BoxError {
        let message = error.to_string();
        // Syntax errors are fixed texts with a line and a column.
        let what = if error.is_data() { censored(&message) } else { message };
        Box::new(Self { format: "JSON", what: trail.before(&what) })
    }

    #[cfg(feature = "msgpack")]
    pub(super) fn message_pack(what: impl Into<String>) -> BoxError {
        Box::new(Self { format: "MessagePack", what: what.into() })
    }
}

/// The parts of serde's message that come from the type, and the place of the failure in the data.
///
/// `invalid type: string "hunter2", expected u32 at line 1 column 9` quotes the data at the front,
/// of which only its kind is kept. `missing field` and `duplicate field` name fields of the type
/// only. Any other text is the type's own and may quote data.
pub(super) fn censored(message: &str) -> String {
    let (message, position) = position(message);
    let mut text = of_the_type(message);
    text.push_str(position);
    text
}

/// The message, and the position that serde_json appends.
fn position(message: &str) -> (&str, &str) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let at = message.rfind(" at line ").filter(|at| {
        let numbers = message[at + " at line ".len()..].split_once(" column ");
        numbers.is_some_and(|(line, column)| is_number(line) && is_number(column))
    });
    message.split_at(at.unwrap_or(message.len()))
}

fn of_the_type(message: &str) -> String {
    /// The kinds of data, as serde names them in front of the data.
    const KINDS: [&str; 16] = [
        "boolean",
        "integer",
        "floating point",
        "character",
        "string",
        "byte array",
        "null",
        "unit value",
        "Option value",
        "newtype struct",
        "sequence",
        "map",
        "enum",
        "unit variant",
        "newtype variant",
        "tuple variant",
    ];
    let expected = || match message.rsplit_once(", expected ") {
        Some((_, expected)) => format!(", expected {expected}"),
        None => String::new(),
    };
    let is_name =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if ["missing field `", "duplicate field `"].iter().any(|start| message.starts_with(start))
        || ["i128 is not supported", "u128 is not supported"].contains(&message)
        || message
            .strip_prefix("data did not match any variant of untagged enum ")
            .is_some_and(is_name)
    {
        return message.to_owned();
    }
    for start in ["invalid type", "invalid value"] {
        if let Some(data) = message.strip_prefix(start).and_then(|rest| rest.strip_prefix(": ")) {
            let kind = KINDS.iter().find(|kind| data.starts_with(**kind));
            let kind = kind.map(|kind| format!(": {kind}")).unwrap_or_default();
            return format!("{start}{kind}{}", expected());
        }
    }
    for start in ["invalid length", "unknown variant", "unknown field"] {
        if message.starts_with(start) {
            let none = ["there are no variants", "there are no fields"];
            return match none.iter().find(|none| message.ends_with(**none)) {
                Some(none) => format!("{start}, {none}"),
                None => format!("{start}{}", expected()),
            };
        }
    }
    "the value is not of the type asked for".to_owned()
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot decode {}: {}", self.format, self.what)
    }
}

impl Error for Undecodable {}
