//! Messages as payloads of NOTIFY, which are texts of less than 8,000 bytes.
//!
//! A message is sent in base64. A larger one is split, and each piece is `id:index:count:base64`.
//! The pieces of a message are sent in one transaction, so that they arrive together and in order.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha2::{Digest, Sha256};

/// The largest message, in bytes: twice what the contract allows.
pub(crate) const MOST: usize = 1 << 20;
/// Bytes in a piece: 7,800 characters, which leaves room for the header.
const PIECE: usize = 5_850;
/// The longest channel name in PostgreSQL.
const LONGEST_NAME: usize = 63;

/// The payloads of a message.
pub(crate) fn split(message: &[u8]) -> Vec<String> {
    if message.len() <= PIECE {
        return vec![STANDARD.encode(message)];
    }
    let id = fastrand::u64(..);
    let pieces = message.chunks(PIECE);
    let count = pieces.len();
    let part = |(index, piece)| format!("{id:016x}:{index}:{count}:{}", STANDARD.encode(piece));
    pieces.enumerate().map(part).collect()
}

/// Joins the pieces of messages.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    channel: String,
    id: String,
    next: usize,
    bytes: Vec<u8>,
}

/// The fault of a payload that another application sent.
#[derive(Debug, PartialEq)]
pub(crate) struct Malformed;

impl Joiner {
    /// The message that this payload completes.
    pub(crate) fn take(
        &mut self,
        channel: &str,
        payload: &str,
    ) -> Result<Option<Bytes>, Malformed> {
        if !payload.contains(':') {
            return decode(payload).map(|bytes| Some(bytes.into()));
        }
        let mut partial = self.partial.take();
        let [id, index, count, piece] = fields(payload)?;
        let (index, count) = (number(index)?, number(count)?);
        let piece = decode(piece)?;
        if index >= count || count > MOST / PIECE + 1 || piece.len() > PIECE {
            return Err(Malformed);
        }
        if index == 0 {
            let (channel, id) = (channel.to_owned(), id.to_owned());
            partial = Some(Partial { channel, id, next: 0, bytes: Vec::new() });
        }
        let fits = |p: &Partial| p.channel == channel && p.id == id && p.next == index;
        let mut partial = partial.filter(fits).ok_or(Malformed)?;
        partial.bytes.extend_from_slice(&piece);
        partial.next += 1;
        if partial.next == count {
            return Ok(Some(partial.bytes.into()));
        }
        self.partial = Some(partial);
        Ok(None)
    }
}

fn fields(payload: &str) -> Result<[&str; 4], Malformed> {
    let mut fields = payload.splitn(4, ':');
    let mut next = || fields.next().ok_or(Malformed);
    Ok([next()?, next()?, next()?, next()?])
}

fn number(text: &str) -> Result<usize, Malformed> {
    text.parse().map_err(|_| Malformed)
}

fn decode(text: &str) -> Result<Vec<u8>, Malformed> {
    STANDARD.decode(text).map_err(|_| Malformed)
}

/// The channel name for PostgreSQL: an empty name, a name that is too long, and a name with a NUL
/// are replaced by a shortened form with a hash.
pub(crate) fn channel_name(channel: &str) -> String {
    if (1..=LONGEST_NAME).contains(&channel.len()) && !channel.contains('\0') {
        return channel.to_owned();
    }
    let start: String = channel.chars().filter(|c| !c.is_control()).take(7).collect();
    let hash = Sha256::digest(channel);
    let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{start}~{hash}")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    fn joined(joiner: &mut Joiner, payloads: &[String]) -> Vec<Result<Option<Bytes>, Malformed>> {
        payloads.iter().map(|payload| joiner.take("c", payload)).collect()
    }

    #[test]
    fn messages_come_back_whole() {
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 512 << 10, MOST] {
            let message: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let payloads = split(&message);
            assert!(payloads.iter().all(|payload| payload.len() < 8_000), "{size}");
            let mut answers = joined(&mut Joiner::default(), &payloads);
            assert_eq!(answers.pop(), Some(Ok(Some(message.into()))), "{size}");
            assert!(answers.iter().all(|answer| *answer == Ok(None)), "{size}");
        }
    }

    #[test]
    fn pieces_are_never_mixed() {
        let [one, two] = [split(&[1; 2 * PIECE]), split(&[2; 2 * PIECE])];
        let mixed = [one[0].clone(), two[1].clone(), one[1].clone(), two[0].clone()];
        let mut joiner = Joiner::default();
        let answers = joined(&mut joiner, &mixed);
        assert_eq!(answers, [Ok(None), Err(Malformed), Err(Malformed), Ok(None)]);
        assert_eq!(joiner.take("other", &two[1]), Err(Malformed));
        assert_eq!(joiner.take("c", &split(b"a")[0]), Ok(Some("a".into())));
    }

    proptest! {
        #[test]
        fn no_payload_is_a_panic_or_spoils_the_next(
            payloads in vec("[a-zA-Z0-9+/=:é]{0,40}|[a-b]:[0-3]:[0-3]:(AAAA)?", 0..20),
            size in 0..3 * PIECE,
        ) {
            let mut joiner = Joiner::default();
            for payload in &payloads {
                let _ = joiner.take("c", payload);
            }
            let message = vec![7; size];
            let answers = joined(&mut joiner, &split(&message));
            prop_assert_eq!(answers.last(), Some(&Ok(Some(message.into()))));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let long = format!("a:0:{}:AAAA", usize::MAX);
        for payload in ["é", "a", ":", ":::", "a:b:c:d", "a:0:0:AAAA", "a:1:2:AAAA", "a:0:2", &long]
        {
            assert_eq!(Joiner::default().take("c", payload), Err(Malformed), "{payload}");
        }
    }

    #[test]
    fn channels_fit() {
        assert_eq!(channel_name("bentocache.notifications:main"), "bentocache.notifications:main");
        assert_eq!(channel_name("A"), "A");
        let long = [
            String::new(),
            "a\0b".to_owned(),
            "a\0c".to_owned(),
            "x".repeat(64),
            "x".repeat(65),
            "日".repeat(40),
            "🍱".repeat(40),
        ];
        let names: std::collections::HashSet<_> = long.iter().map(|c| channel_name(c)).collect();
        assert_eq!(names.len(), long.len());
        for name in names {
            assert!((1..=63).contains(&name.len()) && !name.contains('\0'), "{name:?}");
        }
        assert_eq!(channel_name("é".repeat(31).as_str()).len(), 62);
    }
}
