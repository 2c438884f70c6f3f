//! Messages between processes on the bus: which keys changed, never their values.
//!
//! The format equals that of the Node library, byte for byte. All numbers are big-endian:
//!
//! ```text
//! 24 bytes  the sender
//!  1 byte   what happened: 1 set, 2 clear, 3 delete, 4 expire
//!  4 bytes  length of the namespace in bytes
//!  n bytes  namespace, UTF-8: the full prefix of the keys; may be empty
//!           then for each key, to the end
//!  4 bytes  length of the key in bytes
//!  n bytes  key, UTF-8, without the prefix
//! ```

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

use bytes::Bytes;

use super::Malformed;

/// The sender of a message: each process ignores its own messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sender([u8; Sender::LEN]);

impl Sender {
    const LEN: usize = 24;

    /// A random name: a lower-case letter, then letters and digits.
    ///
    /// Two processes with the same name would ignore each other. So the name is drawn from the
    /// random keys that the operating system gives to the standard library's hash maps; a fast
    /// generator seeded by the clock would not be safe. The process id and the time are added for
    /// processes that were copied together with their memory.
    pub fn random() -> Self {
        const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let keys = RandomState::new();
        let salt = (std::process::id(), SystemTime::now());
        Self(std::array::from_fn(|i| {
            let kinds = if i == 0 { 26 } else { LETTERS.len() };
            LETTERS[(keys.hash_one((i, salt)) % kinds as u64) as usize]
        }))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        // Always visible ASCII: both constructors ensure this.
        str::from_utf8(&self.0).unwrap_or_default()
    }

    fn from_bytes(bytes: [u8; Self::LEN]) -> Result<Self, Malformed> {
        if bytes.iter().all(u8::is_ascii_graphic) {
            Ok(Self(bytes))
        } else {
            Err(Malformed("a sender that is not ASCII"))
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender({})", self.as_str())
    }
}

/// The kinds of changes of the keys in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// They have new values.
    Set = 1,
    /// All keys of the namespace, and of nested namespaces, are gone.
    Clear = 2,
    /// They are gone.
    Delete = 3,
    /// They are stale.
    Expire = 4,
}

impl Kind {
    const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Set),
            2 => Some(Self::Clear),
            3 => Some(Self::Delete),
            4 => Some(Self::Expire),
            _ => None,
        }
    }

    /// The name in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Clear => "clear",
            Self::Delete => "delete",
            Self::Expire => "expire",
        }
    }
}

/// A parsed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender.
    pub sender: Sender,
    /// The kind of change.
    pub kind: Kind,
    /// The full prefix of the keys, without the colon that joins them; may be empty.
    pub namespace: String,
    /// The changed keys; always empty for [`Kind::Clear`].
    pub keys: Vec<String>,
}

/// Messages with several keys stay at or below this size.
pub const MAX_SPLIT: usize = 512 << 10;

/// A larger message is rejected. Node does not split messages, so this is far above the size that
/// this library sends.
pub const MAX_ACCEPTED: usize = 64 << 20;

/// The messages that announce these keys, in order.
///
/// There are several if one would exceed [`MAX_SPLIT`]. A key that exceeds it alone still gets its
/// own message: a bus that cannot carry it returns an error, and losing an invalidation silently
/// would be worse. Only a key that no reader accepts ([`MAX_ACCEPTED`]) is left out; no driver
/// stores such a key.
///
/// A clear has no keys: any given keys are ignored. Any other kind without keys has no meaning, and
/// produces no message.
pub fn encode(sender: &Sender, kind: Kind, namespace: &str, keys: &[&str]) -> Vec<Bytes> {
    let head_len = Sender::LEN + 1 + 4 + namespace.len();
    let mut messages = Vec::new();
    if kind == Kind::Clear {
        if head_len <= MAX_ACCEPTED {
            messages.push(write(sender, kind, namespace, &[], head_len));
        }
        return messages;
    }

    let mut rest = keys;
    while !rest.is_empty() {
        let mut len = head_len;
        let mut count = 0;
        for key in rest {
            let with_key = len + 4 + key.len();
            if with_key > MAX_SPLIT && count > 0 {
                break;
            }
            len = with_key;
            count += 1;
        }
        let (batch, later) = rest.split_at(count);
        rest = later;
        if len <= MAX_ACCEPTED {
            messages.push(write(sender, kind, namespace, batch, len));
        }
    }
    messages
}

/// Parses a message.
///
/// The keys of a clear are checked and dropped: like Node, it clears in any case.
///
/// # Errors
///
/// If the bytes are not exactly one message.
pub fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
    if bytes.len() > MAX_ACCEPTED {
        return Err(Malformed("a message too long"));
    }
    let short = Malformed("a message too short");
    let (sender, rest) = bytes.split_first_chunk().ok_or(short)?;
    let (kind, mut rest) = rest.split_first().ok_or(short)?;
    let sender = Sender::from_bytes(*sender)?;
    let kind = Kind::from_id(*kind).ok_or(Malformed("an unknown type of message"))?;
    let namespace = read_text(&mut rest)?.to_owned();
    let mut keys = Vec::new();
    while !rest.is_empty() {
        let key = read_text(&mut rest)?;
        if kind != Kind::Clear {
            keys.push(key.to_owned());
        }
    }
    Ok(Message { sender, kind, namespace, keys })
}

fn write(sender: &Sender, kind: Kind, namespace: &str, keys: &[&str], len: usize) -> Bytes {
    let mut out = Vec::with_capacity(len);
    out.extend_from_slice(&sender.0);
    out.push(kind as u8);
    for text in std::iter::once(&namespace).chain(keys) {
        // At most `MAX_ACCEPTED`, so it fits.
        out.extend_from_slice(&(text.len() as u32).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out.into()
}

/// Reads a length, then this many bytes of UTF-8.
fn read_text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let (len, after) = rest.split_first_chunk().ok_or(Malformed("a length cut short"))?;
    let len = u32::from_be_bytes(*len) as usize;
    let (text, after) =
        after.split_at_checked(len).ok_or(Malformed("a length past the end of the message"))?;
    *rest = after;
    str::from_utf8(text).map_err(|_| Malformed("a text that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 4] = [Kind::Set, Kind::Clear, Kind::Delete, Kind::Expire];

    fn sender() -> Sender {
        Sender(*b"abcdefghijklmnopqrstuvwx")
    }

    #[test]
    fn senders_are_random_and_well_formed() {
        let senders: HashSet<_> = (0..1_000).map(|_| Sender::random()).collect();
        assert_eq!(senders.len(), 1_000);
        let mut seen = HashSet::new();
        for sender in senders {
            let text = sender.as_str();
            assert_eq!(text.len(), 24);
            assert!(text.starts_with(|c: char| c.is_ascii_lowercase()), "{text}");
            assert!(text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()), "{text}");
            seen.extend(text.chars());
        }
        assert_eq!(seen.len(), 36);
    }

    #[test]
    fn no_keys_is_no_message_except_for_a_clear() {
        for kind in KINDS {
            let messages = encode(&sender(), kind, "bentocache", &[]);
            assert_eq!(messages.len(), usize::from(kind == Kind::Clear));
        }
        let cleared = encode(&sender(), Kind::Clear, "n", &["ignored"]);
        assert_eq!(decode(&cleared[0]).expect("decodes").keys, Vec::<String>::new());
    }

    #[test]
    fn a_clear_with_keys_still_clears() {
        let mut bytes = encode(&sender(), Kind::Delete, "n", &["a", "b"])[0].to_vec();
        bytes[24] = Kind::Clear as u8;
        let message = decode(&bytes).expect("decodes");
        assert_eq!((message.kind, message.keys.len()), (Kind::Clear, 0));
        // A damaged message is rejected.
        bytes.pop();
        assert_eq!(decode(&bytes), Err(Malformed("a length past the end of the message")));
    }

    #[test]
    fn many_keys_are_split_and_stay_in_order() {
        let keys: Vec<String> = (0..100_000).map(|i| format!("key:{i}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let messages = encode(&sender(), Kind::Delete, "bentocache", &keys);
        assert!(messages.len() > 1);
        let mut read = Vec::new();
        for (i, bytes) in messages.iter().enumerate() {
            assert!(bytes.len() <= MAX_SPLIT);
            // Full, except for less than the size of one more key.
            assert!(i + 1 == messages.len() || bytes.len() > MAX_SPLIT - 16);
            read.extend(decode(bytes).expect("decodes").keys);
        }
        assert_eq!(read, keys);
    }

    #[test]
    fn a_message_fills_the_limit_exactly() {
        let head = 24 + 1 + 4 + 1;
        let fits = "x".repeat(MAX_SPLIT - head - 4 - 4);
        let messages = encode(&sender(), Kind::Set, "n", &[&fits, ""]);
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].len(), MAX_SPLIT);
        assert_eq!(encode(&sender(), Kind::Set, "n", &[&fits, "", ""]).len(), 2);
    }

    #[test]
    fn a_huge_key_gets_its_own_message() {
        let huge = "x".repeat(MAX_SPLIT + 1);
        let messages = encode(&sender(), Kind::Set, "n", &["a", &huge, "b"]);
        let keys: Vec<_> = messages.iter().flat_map(|m| decode(m).expect("decodes").keys).collect();
        assert_eq!(messages.len(), 3);
        assert_eq!(keys, ["a", &huge, "b"]);
    }

    #[test]
    fn what_no_reader_accepts_is_left_out() {
        let huge = "x".repeat(MAX_ACCEPTED);
        assert_eq!(encode(&sender(), Kind::Set, "n", &["a", &huge, "b"]).len(), 2);
        assert!(encode(&sender(), Kind::Clear, &huge, &[]).is_empty());
        let bytes = vec![b'a'; MAX_ACCEPTED + 1];
        assert_eq!(decode(&bytes), Err(Malformed("a message too long")));
    }

    #[test]
    fn each_way_to_be_wrong_has_its_reason() {
        let good = encode(&sender(), Kind::Set, "né", &["ké"])[0].to_vec();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            decode(&bytes).map_err(|malformed| malformed.reason())
        };
        assert_eq!(with(3, 0x80).err(), Some("a sender that is not ASCII"));
        assert_eq!(with(3, b' ').err(), Some("a sender that is not ASCII"));
        assert_eq!(with(24, 0).err(), Some("an unknown type of message"));
        assert_eq!(with(24, 5).err(), Some("an unknown type of message"));
        assert_eq!(with(25, 1).err(), Some("a length past the end of the message"));
        assert_eq!(with(30, b'x').err(), Some("a text that is not UTF-8"));
        for end in 0..29 {
            let reason = decode(&good[..end]).expect_err("short").reason();
            assert!(["a message too short", "a length cut short"].contains(&reason), "{reason}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            kind in proptest::sample::select(&KINDS[..]),
            namespace in "\\PC{0,20}",
            keys in proptest::collection::vec("\\PC{0,20}", 0..20),
        ) {
            let sender = Sender::random();
            let texts: Vec<&str> = keys.iter().map(String::as_str).collect();
            let messages = encode(&sender, kind, &namespace, &texts);
            if kind == Kind::Clear {
                let message = Message { sender, kind, namespace, keys: Vec::new() };
                prop_assert_eq!(decode(&messages[0]), Ok(message));
            } else if keys.is_empty() {
                prop_assert!(messages.is_empty());
            } else {
                prop_assert_eq!(messages.len(), 1);
                let message = Message { sender, kind, namespace, keys };
                prop_assert_eq!(decode(&messages[0]), Ok(message));
            }
        }

        #[test]
        fn what_decodes_is_encoded_to_the_same_bytes(
            kind in 0_u8..6,
            tail in proptest::collection::vec(0_u8..5, 0..40),
        ) {
            let bytes = [&sender().0[..], &[kind], &tail].concat();
            if let Ok(message) = decode(&bytes) {
                let keys: Vec<&str> = message.keys.iter().map(String::as_str).collect();
                if !keys.is_empty() {
                    let again = encode(&message.sender, message.kind, &message.namespace, &keys);
                    prop_assert_eq!(&again[0][..], &bytes[..]);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = decode(&bytes);
        }

        #[test]
        fn damaged_messages_are_read_without_a_panic(at: usize, byte: u8, cut: usize) {
            let mut bytes = encode(&sender(), Kind::Set, "bentocache", &["a", "键", ""])[0].to_vec();
            let len = bytes.len();
            bytes[at % len] = byte;
            let _ = decode(&bytes);
            let _ = decode(&bytes[..cut % len]);
        }
    }
}
