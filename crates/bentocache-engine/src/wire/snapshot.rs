//! The file of an L1 snapshot.
//!
//! All numbers are big-endian. The file is the magic number and blocks. Each block has the length of
//! its body (4 bytes), the body, and a checksum (8 bytes) over the file's id, the number of the block
//! and the body, so that no block of another file passes for one of this file.
//!
//! ```text
//! first block:  1 byte   1 if a store without an L2 may use the file: it was written at its end
//!               8 bytes  the time of the snapshot, ms since the epoch
//!               8 bytes  the id of the run that wrote it
//!               8 bytes  the id of the file
//!               4 bytes  length of the store's name, then the name, UTF-8
//!                        the store's prefix, to the end, UTF-8
//! an entry:     1 byte   bit 0 is set; bit 1: it may be served as stale
//!               8 bytes  until when it is fresh in L1, ms since the epoch; 0 if it was expired
//!               8 bytes  for how long it was fresh at its creation, in ms
//!               4 bytes  length of the key, then the key, UTF-8, without the store's prefix
//!                        the document, to the end. Its tags are the keys of their markers
//! last block:   1 byte   0
//!               8 bytes  the number of entries
//! ```

use bytes::Bytes;

use super::Malformed;

/// The first bytes of the file. The last of them is the version.
pub const MAGIC: [u8; 8] = *b"bentoL1\x01";

/// The bytes around the body of a block: its length before it, its checksum behind it.
pub const LEN: usize = 4;
/// See [`LEN`].
pub const SUM: usize = 8;
/// The longest first block: a name and a prefix that no file system or server would take.
pub const LONGEST_HEAD: usize = 1 << 20;

const ENTRY: u8 = 1;
const GRACED: u8 = 1 << 1;
const END: u8 = 0;

/// The first block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whether a store without an L2 may use the entries. It has nobody to ask whether they are
    /// still valid, so only the snapshot that it wrote at its end will do.
    pub is_last: bool,
    /// The time of the snapshot, ms since the epoch.
    pub written_at: u64,
    /// The run of a store that wrote it.
    pub run: u64,
    /// The file.
    pub file: u64,
    /// The name of the store.
    pub store: Box<str>,
    /// The prefix of the store.
    pub root: Box<str>,
}

/// An entry of L1. Times are milliseconds since the epoch; `u64::MAX` is no end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The key without the store's prefix.
    pub key: &'a str,
    /// Whether it may be served as stale.
    pub graced: bool,
    /// Until when it is fresh in L1; 0 if it was expired.
    pub fresh_until: u64,
    /// For how long it was fresh at its creation.
    pub life: u64,
    /// The value, its ends and its tags, as a document.
    pub document: Bytes,
}

/// A block after the first one.
#[derive(Debug, PartialEq, Eq)]
pub enum Block<'a> {
    /// An entry.
    Entry(Record<'a>),
    /// The end, with the number of entries before it.
    End(u64),
}

/// The checksum of a block, 64 bits: FNV-1a, which notices every change of a single byte.
fn checksum(file: u64, number: u64, body: &[u8]) -> u64 {
    let seeds = file.to_be_bytes().into_iter().chain(number.to_be_bytes());
    let hash = seeds.chain(body.iter().copied()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash ^ hash >> 32
}

/// Whether the body of a block is as it was written. The first block has the number 0, and belongs
/// to the file 0.
pub fn is_intact(file: u64, number: u64, body: &[u8], sum: [u8; SUM]) -> bool {
    checksum(file, number, body).to_be_bytes() == sum
}

/// Appends a block, whose body `write` appends. False if the body is too long for a block; nothing
/// is appended then.
pub fn push_block(
    out: &mut Vec<u8>,
    file: u64,
    number: u64,
    write: impl FnOnce(&mut Vec<u8>),
) -> bool {
    let start = out.len();
    out.extend_from_slice(&[0; LEN]);
    write(out);
    let body = start + LEN;
    let Ok(len) = u32::try_from(out.len() - body) else {
        out.truncate(start);
        return false;
    };
    out[start..body].copy_from_slice(&len.to_be_bytes());
    let sum = checksum(file, number, &out[body..]);
    out.extend_from_slice(&sum.to_be_bytes());
    true
}

impl Head {
    /// Appends the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(self.is_last.into());
        for number in [self.written_at, self.run, self.file] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        push_text(out, &self.store);
        out.extend_from_slice(self.root.as_bytes());
    }

    /// Parses the body.
    ///
    /// # Errors
    ///
    /// If it does not have exactly this form.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut rest = body;
        let is_last = match take::<1>(&mut rest)? {
            [0] => false,
            [1] => true,
            _ => return Err(Malformed("an unknown kind of snapshot")),
        };
        let [written_at, run, file] =
            [take(&mut rest)?, take(&mut rest)?, take(&mut rest)?].map(u64::from_be_bytes);
        let store = take_text(&mut rest)?.into();
        Ok(Self { is_last, written_at, run, file, store, root: text(rest)?.into() })
    }
}

impl Block<'_> {
    /// Appends the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Entry(record) => {
                out.push(ENTRY | if record.graced { GRACED } else { 0 });
                out.extend_from_slice(&record.fresh_until.to_be_bytes());
                out.extend_from_slice(&record.life.to_be_bytes());
                push_text(out, record.key);
                out.extend_from_slice(&record.document);
            }
            Self::End(count) => {
                out.push(END);
                out.extend_from_slice(&count.to_be_bytes());
            }
        }
    }
}

impl<'a> Block<'a> {
    /// Parses the body. The document shares its memory.
    ///
    /// # Errors
    ///
    /// If it does not have exactly one of these forms.
    pub fn parse(body: &'a Bytes) -> Result<Self, Malformed> {
        let mut rest = &body[..];
        let [flags] = take(&mut rest)?;
        if flags == END {
            let count = u64::from_be_bytes(take(&mut rest)?);
            return if rest.is_empty() { Ok(Self::End(count)) } else { Err(TOO_LONG) };
        }
        if flags & ENTRY == 0 || flags & !(ENTRY | GRACED) != 0 {
            return Err(Malformed("an unknown block of a snapshot"));
        }
        let fresh_until = u64::from_be_bytes(take(&mut rest)?);
        let life = u64::from_be_bytes(take(&mut rest)?);
        let key = take_text(&mut rest)?;
        let document = body.slice_ref(rest);
        Ok(Self::Entry(Record { key, graced: flags & GRACED != 0, fresh_until, life, document }))
    }
}

const TOO_LONG: Malformed = Malformed("something after the last block of a snapshot");

fn push_text(out: &mut Vec<u8>, text: &str) {
    // A longer text makes the block too long, which `push_block` refuses.
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (taken, left) = rest.split_first_chunk().ok_or(TOO_SHORT)?;
    *rest = left;
    Ok(*taken)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let len = u32::from_be_bytes(take(rest)?) as usize;
    let (taken, left) = rest.split_at_checked(len).ok_or(TOO_SHORT)?;
    *rest = left;
    text(taken)
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    str::from_utf8(bytes).map_err(|_| Malformed("not UTF-8"))
}

const TOO_SHORT: Malformed = Malformed("a block too short");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut out = Vec::new();
        write(&mut out);
        out.into()
    }

    proptest! {
        #[test]
        fn blocks_come_back(
            key in ".*", graced: bool, fresh_until: u64, life: u64,
            document: Vec<u8>, count: u64,
        ) {
            let record = Record { key: &key, graced, fresh_until, life, document: document.into() };
            for block in [Block::Entry(record), Block::End(count)] {
                let body = body(|out| block.write(out));
                prop_assert_eq!(&Block::parse(&body).unwrap(), &block);
            }
        }

        #[test]
        fn heads_come_back(
            is_last: bool, written_at: u64, run: u64, file: u64, store in ".*", root in ".*",
        ) {
            let head = Head {
                is_last, written_at, run, file, store: store.into(), root: root.into(),
            };
            let body = body(|out| head.write(out));
            prop_assert_eq!(Head::parse(&body).unwrap(), head);
        }

        #[test]
        fn any_bytes_are_a_block_or_malformed(bytes: Vec<u8>) {
            let _ = Head::parse(&bytes);
            let bytes = Bytes::from(bytes);
            if let Ok(block) = Block::parse(&bytes) {
                prop_assert_eq!(body(|out| block.write(out)), bytes);
            }
        }
    }

    #[test]
    fn a_block_of_another_file_or_place_is_not_intact() {
        let mut out = Vec::new();
        assert!(push_block(&mut out, 7, 3, |out| out.extend_from_slice(b"body")));
        assert_eq!(out[..LEN], 4_u32.to_be_bytes());
        let (body, sum) = out[LEN..].split_at(4);
        let sum: [u8; SUM] = sum.try_into().unwrap();
        assert!(is_intact(7, 3, body, sum));
        assert!(!is_intact(8, 3, body, sum) && !is_intact(7, 4, body, sum));
        assert!(!is_intact(7, 3, b"bodY", sum));
    }
}
