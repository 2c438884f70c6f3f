//! Encryption of stored values.
//!
//! An encrypted value is a frame of version 2. All numbers are big-endian.
//!
//! ```text
//!  1 byte   magic, 0xB3
//!  1 byte   version, 2
//!  1 byte   method: 1 XChaCha20-Poly1305
//!  4 bytes  id of the key
//! 24 bytes  nonce, random
//!           the encrypted content, and its tag of 16 bytes
//! ```
//!
//! The content:
//!
//! ```text
//!  4 bytes  length of the document
//!  n bytes  the document: value, times, tags
//!           zeros, up to the end of the length class
//! ```
//!
//! The associated data are the seven bytes before the nonce and the complete key in L2, so a value
//! that is moved to another key does not decrypt.
//!
//! Bytes that cannot be opened are shown to the rest of the engine as [`Refusal::shown`]: a frame of
//! a version that no reader knows, which is a miss with a reason, and from which the stored bytes
//! can be told.

use std::fmt;

use bytes::Bytes;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use zeroize::{Zeroize, Zeroizing};

use super::frame::{self, ENCRYPTED};

const METHOD: u8 = 1;
/// Magic, version, method and the id of the key.
const HEAD: usize = 7;
const NONCE: usize = 24;
const TAG: usize = 16;
/// The length of the document, before it.
const LENGTH: usize = 4;
/// The smallest length class.
const LEAST_CLASS: usize = 64;

/// The keys that encrypt the values of a store in L2.
///
/// New values are encrypted with the key of [`new`](Self::new); the others decrypt what was written
/// with them. Each key has an id, which is stored with the values. An id must never be used for
/// another key.
///
/// To change the key, first give all processes the new one as an old key, then as the current one,
/// and remove the former one when the last value that was written with it has expired.
///
/// ```
/// use bentocache::KeyRing;
///
/// # fn key(_: &str) -> String { "00".repeat(32) }
/// let ring = KeyRing::new(2, key("CACHE_KEY_2")).with_old(1, key("CACHE_KEY_1"));
/// # let _ = ring;
/// ```
pub struct KeyRing {
    /// The current key is the first one.
    keys: Vec<(u32, XChaCha20Poly1305)>,
    accepts_plain: bool,
    /// The first fault; `build` returns it.
    fault: Option<(String, &'static str)>,
}

/// A key of 32 random bytes: the bytes themselves, 64 hexadecimal digits, or base64. Texts may be
/// surrounded by white space, as in a file.
///
/// ```
/// use bentocache::EncryptionKey;
///
/// let bytes = EncryptionKey::from([7; 32]);
/// let hex = EncryptionKey::from("07".repeat(32));
/// let base64 = EncryptionKey::from("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
/// # let _ = (bytes, hex, base64);
/// ```
///
/// A text that is not a key makes `build` fail with an error that does not show it.
pub struct EncryptionKey(Result<Zeroizing<[u8; 32]>, String>);

impl EncryptionKey {
    fn of(text: &str) -> Self {
        let text = text.trim();
        let mut key = Zeroizing::new([0; 32]);
        if hex(text, &mut key) || base64(text, &mut key) {
            return Self(Ok(key));
        }
        Self(Err(format!("a text of {} characters", text.chars().count())))
    }
}

impl From<[u8; 32]> for EncryptionKey {
    fn from(mut key: [u8; 32]) -> Self {
        let copy = Zeroizing::new(key);
        key.zeroize();
        Self(Ok(copy))
    }
}

impl From<&[u8; 32]> for EncryptionKey {
    fn from(key: &[u8; 32]) -> Self {
        Self(Ok(Zeroizing::new(*key)))
    }
}

impl From<&str> for EncryptionKey {
    fn from(text: &str) -> Self {
        Self::of(text)
    }
}

impl From<String> for EncryptionKey {
    fn from(text: String) -> Self {
        Self::of(&Zeroizing::new(text))
    }
}

/// Shows no key.
impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptionKey").finish_non_exhaustive()
    }
}

/// Reads 64 hexadecimal digits.
fn hex(text: &str, key: &mut [u8; 32]) -> bool {
    let digit = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    pairs.len() == key.len()
        && rest.is_empty()
        && pairs.iter().zip(key).all(|([high, low], byte)| match (digit(*high), digit(*low)) {
            (Some(high), Some(low)) => {
                *byte = high << 4 | low;
                true
            }
            _ => false,
        })
}

/// Reads 43 digits of base64, of either alphabet, with or without padding.
fn base64(text: &str, key: &mut [u8; 32]) -> bool {
    const DIGITS: usize = 43;
    let digits = text.strip_suffix('=').unwrap_or(text).as_bytes();
    if digits.len() != DIGITS {
        return false;
    }
    let (mut bits, mut count, mut at) = (0_u32, 0, 0);
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return false,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            key[at] = (bits >> count) as u8;
            at += 1;
        }
        bits &= (1 << count) - 1;
    }
    // What is left of the last digit belongs to no byte.
    bits == 0
}

impl KeyRing {
    /// A ring whose current key has this id.
    ///
    /// ```
    /// let ring = bentocache::KeyRing::new(1, [7; 32]);
    /// # let _ = ring;
    /// ```
    #[must_use]
    pub fn new(id: u32, key: impl Into<EncryptionKey>) -> Self {
        Self { keys: Vec::new(), accepts_plain: false, fault: None }.with_old(id, key)
    }

    /// Adds a key that decrypts, and encrypts nothing.
    ///
    /// ```
    /// let ring = bentocache::KeyRing::new(2, [8; 32]).with_old(1, [7; 32]);
    /// # let _ = ring;
    /// ```
    #[must_use]
    pub fn with_old(mut self, id: u32, key: impl Into<EncryptionKey>) -> Self {
        let fault = match key.into().0 {
            _ if self.keys.iter().any(|(known, _)| *known == id) => {
                (format!("two keys with the id {id}"), "a different id for each key")
            }
            Ok(key) => {
                self.keys.push((id, XChaCha20Poly1305::new((&*key).into())));
                return self;
            }
            Err(given) => (
                format!("{given} as the key with the id {id}"),
                "32 random bytes, as 64 hexadecimal digits or as base64, such as the output of \
                 `openssl rand -base64 32`",
            ),
        };
        self.fault.get_or_insert(fault);
        self
    }

    /// Whether values that are not encrypted count, too. Default false: they are misses. For the
    /// time in which a store changes to encryption: whoever can write to L2 can write such values.
    ///
    /// ```
    /// let ring = bentocache::KeyRing::new(1, [7; 32]).accept_plain(true);
    /// # let _ = ring;
    /// ```
    #[must_use]
    pub fn accept_plain(mut self, accepts: bool) -> Self {
        self.accepts_plain = accepts;
        self
    }

    /// The ring, or its fault: what was given, and what is expected.
    pub(crate) fn checked(self) -> Result<Self, (String, &'static str)> {
        match self.fault {
            None => Ok(self),
            Some(fault) => Err(fault),
        }
    }

    /// The encrypted form of a document, for this key of L2.
    pub(crate) fn seal(&self, key: &str, document: &[u8]) -> Result<Bytes, NotSealed> {
        let (id, cipher) = self.keys.first().ok_or(NotSealed("the key ring is empty"))?;
        let len = u32::try_from(document.len()).map_err(|_| NotSealed("a value above 4 GiB"))?;
        let class = length_class(LENGTH + document.len());
        let mut out = Vec::with_capacity(HEAD + NONCE + class + TAG);
        out.extend_from_slice(&[frame::MAGIC, ENCRYPTED, METHOD]);
        out.extend_from_slice(&id.to_be_bytes());
        let bound = bound(&out, key);
        let mut nonce = XNonce::default();
        getrandom::fill(&mut nonce).map_err(|_| NotSealed("the system gives no random bytes"))?;
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(document);
        out.resize(start + class, 0);
        let tag = cipher
            .encrypt_inout_detached(&nonce, &bound, (&mut out[start..]).into())
            .map_err(|_| NotSealed("the value is too large for the cipher"))?;
        out.extend_from_slice(&tag);
        Ok(out.into())
    }

    /// The document in these stored bytes.
    pub(crate) fn open(&self, key: &str, stored: &Bytes) -> Result<Bytes, Refusal> {
        if !stored.starts_with(&[frame::MAGIC, ENCRYPTED]) {
            return if self.accepts_plain { Ok(stored.clone()) } else { Err(Refusal::Plain) };
        }
        let (head, rest) = stored.split_at_checked(HEAD).ok_or(Refusal::Changed)?;
        let (method, id) = head[2..].split_first_chunk::<1>().ok_or(Refusal::Changed)?;
        let id = u32::from_be_bytes(id.try_into().map_err(|_| Refusal::Changed)?);
        if method[0] != METHOD {
            return Err(Refusal::UnknownKey);
        }
        let of_id = self.keys.iter().find(|(known, _)| *known == id);
        let (_, cipher) = of_id.ok_or(Refusal::UnknownKey)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE>().ok_or(Refusal::Changed)?;
        let (content, tag) = rest.split_last_chunk::<TAG>().ok_or(Refusal::Changed)?;
        let mut content = content.to_vec();
        cipher
            .decrypt_inout_detached(
                &XNonce::from(*nonce),
                &bound(head, key),
                (&mut content[..]).into(),
                &Tag::from(*tag),
            )
            .map_err(|_| Refusal::Changed)?;
        let (len, document) = content.split_first_chunk::<LENGTH>().ok_or(Refusal::Changed)?;
        let len = u32::from_be_bytes(*len) as usize;
        if len > document.len() {
            return Err(Refusal::Changed);
        }
        Ok(Bytes::from(content).slice(LENGTH..LENGTH + len))
    }
}

/// Shows no key.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u32> = self.keys.iter().map(|(id, _)| *id).collect();
        f.debug_struct("KeyRing").field("ids", &ids).finish_non_exhaustive()
    }
}

/// Why a value was not encrypted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NotSealed(pub(crate) &'static str);

/// Why stored bytes cannot be decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Refusal {
    /// No key of the ring has this id, or the method is unknown.
    UnknownKey = frame::UNKNOWN_KEY,
    /// The bytes were changed, cut or moved, or the key with this id is another one.
    Changed = frame::CHANGED,
    /// They are not encrypted.
    Plain = frame::NOT_ENCRYPTED,
}

impl Refusal {
    /// Bytes that no reader can decode, which contain the stored ones.
    pub(crate) fn shown(self, stored: &[u8]) -> Bytes {
        [&[frame::MAGIC, self as u8][..], stored].concat().into()
    }
}

/// The associated data.
fn bound(head: &[u8], key: &str) -> Vec<u8> {
    [head, key.as_bytes()].concat()
}

/// The length after padding: eight classes for each power of two, so that at most an eighth is
/// padding.
fn length_class(len: usize) -> usize {
    let step = (1 << len.max(1).ilog2()) >> 3;
    len.next_multiple_of(step.max(LEAST_CLASS))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "bentocache:users:1";

    fn ring() -> KeyRing {
        KeyRing::new(7, [1; 32])
    }

    fn stored(document: &[u8]) -> Bytes {
        ring().seal(KEY, document).expect("seals")
    }

    #[test]
    fn the_layout_is_as_documented() {
        let stored = stored(b"a document");
        assert_eq!(stored[..HEAD], [0xB3, 2, 1, 0, 0, 0, 7]);
        assert_eq!(stored.len(), 7 + 24 + 64 + 16);
        assert_eq!(&ring().open(KEY, &stored).unwrap()[..], b"a document");
    }

    /// The test vector of draft-irtf-cfrg-xchacha-03, A.3.1.
    #[test]
    fn the_cipher_is_xchacha20_poly1305() {
        let key: Vec<u8> = (0x80..0xa0).collect();
        let nonce: Vec<u8> = (0x40..0x58).collect();
        let data = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
        let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you only \
                          one tip for the future, sunscreen would be it.";
        let key: [u8; 32] = key.try_into().unwrap();
        let nonce: [u8; 24] = nonce.try_into().unwrap();
        let cipher = XChaCha20Poly1305::new(&key.into());
        let tag =
            cipher.encrypt_inout_detached(&nonce.into(), &data, (&mut text[..]).into()).unwrap();
        assert_eq!(text[..8], [0xbd, 0x6d, 0x17, 0x9d, 0x3e, 0x83, 0xd4, 0x3b]);
        assert_eq!(tag[..8], [0xc0, 0x87, 0x59, 0x24, 0xc1, 0xc7, 0x98, 0x79]);
    }

    #[test]
    fn each_changed_bit_and_each_cut_is_refused() {
        let stored = stored(br#"{"value":"a secret","createdAt":1}"#);
        for at in 0..stored.len() * 8 {
            let mut changed = stored.to_vec();
            changed[at / 8] ^= 1 << (at % 8);
            let refusal = ring().open(KEY, &changed.into()).unwrap_err();
            let expected = match at / 8 {
                0 | 1 => Refusal::Plain,
                2..HEAD => Refusal::UnknownKey,
                _ => Refusal::Changed,
            };
            assert_eq!(refusal, expected, "bit {at}");
        }
        for len in 0..stored.len() {
            assert!(ring().open(KEY, &stored.slice(..len)).is_err(), "{len}");
        }
        let longer = Bytes::from([&stored[..], &[0]].concat());
        assert_eq!(ring().open(KEY, &longer), Err(Refusal::Changed));
    }

    #[test]
    fn a_value_of_another_key_or_key_ring_is_refused() {
        let stored = stored(b"x");
        for other in ["bentocache:users:2", "bentocache:users:", "", "bentocache:users:12"] {
            assert_eq!(ring().open(other, &stored), Err(Refusal::Changed), "{other}");
        }
        assert_eq!(KeyRing::new(8, [1; 32]).open(KEY, &stored), Err(Refusal::UnknownKey));
        assert_eq!(KeyRing::new(7, [2; 32]).open(KEY, &stored), Err(Refusal::Changed));
        // The id counts, too: a value that claims another key of the ring is refused.
        let twice = KeyRing::new(7, [1; 32]).with_old(8, [1; 32]);
        let mut claimed = stored.to_vec();
        claimed[HEAD - 1] = 8;
        assert_eq!(twice.open(KEY, &claimed.into()), Err(Refusal::Changed));
    }

    #[test]
    fn old_keys_decrypt_and_the_current_one_encrypts() {
        let old = stored(b"x");
        let next = KeyRing::new(9, [2; 32]).with_old(7, [1; 32]);
        assert_eq!(&next.open(KEY, &old).unwrap()[..], b"x");
        let new = next.seal(KEY, b"y").unwrap();
        assert_eq!(new[3..HEAD], [0, 0, 0, 9]);
        assert_eq!(ring().open(KEY, &new), Err(Refusal::UnknownKey));
    }

    #[test]
    fn plain_bytes_are_accepted_only_where_that_is_wished() {
        let plain = Bytes::from_static(br#"{"value":1,"createdAt":1}"#);
        assert_eq!(ring().open(KEY, &plain), Err(Refusal::Plain));
        assert_eq!(ring().accept_plain(true).open(KEY, &plain).unwrap(), plain);
    }

    #[test]
    fn the_length_tells_only_its_class() {
        for len in 0..=64 - LENGTH {
            assert_eq!(stored(&vec![1; len]).len(), stored(b"").len());
        }
        let mut classes = std::collections::BTreeSet::new();
        for len in 1..100_000 {
            let class = length_class(len);
            assert!(class >= len && class - len < 64.max(len / 8), "{len}: {class}");
            classes.insert(class);
        }
        assert_eq!(classes.range(1_025..=2_048).count(), 8);
    }

    #[test]
    fn the_same_value_is_never_stored_alike() {
        assert_ne!(stored(b"x"), stored(b"x"));
    }

    #[test]
    fn keys_are_bytes_hexadecimal_or_base64() {
        let bytes: [u8; 32] = std::array::from_fn(|i| (i * 37 + 5) as u8);
        let texts = [
            "052a4f7499bee3082d52779cc1e60b30557a9fc4e90e33587da2c7ec11365b80",
            "052A4F7499BEE3082D52779CC1E60B30557A9FC4E90E33587DA2C7EC11365B80\n",
            "BSpPdJm+4wgtUnecweYLMFV6n8TpDjNYfaLH7BE2W4A=",
            " BSpPdJm-4wgtUnecweYLMFV6n8TpDjNYfaLH7BE2W4A",
        ];
        for text in texts {
            let key = EncryptionKey::from(text).0.unwrap();
            assert_eq!(*key, bytes, "{text}");
            assert!(KeyRing::new(1, text.to_owned()).checked().is_ok());
        }
    }

    #[test]
    fn an_error_about_a_key_does_not_show_it() {
        let wrong = [
            "",
            "secret",
            "052a4f7499bee3082d52779cc1e60b30557a9fc4e90e33587da2c7ec11365b8",
            "052a4f7499bee3082d52779cc1e60b30557a9fc4e90e33587da2c7ec11365b8g",
            "BSpPdJm+4wgtUnecweYLMFV6n8TpDjNYfaLH7BE2W4B=",
            "BSpPdJm+4wgtUnecweYLMFV6n8TpDjNYfaLH7BE2W4==",
            "ключ",
        ];
        for text in wrong {
            let (given, expected) = KeyRing::new(3, text).checked().unwrap_err();
            assert!(given.contains("id 3") && expected.contains("base64"), "{given}");
            assert!(text.is_empty() || !given.contains(text), "{given}");
        }
        let twice = KeyRing::new(3, [1; 32]).with_old(3, [2; 32]).checked().unwrap_err();
        assert!(twice.0.contains("two keys with the id 3"), "{twice:?}");
    }

    #[test]
    fn debug_shows_no_key() {
        let shown =
            format!("{:?} {:?}", KeyRing::new(5, [201; 32]), EncryptionKey::from([201; 32]));
        assert!(shown.contains("ids: [5]") && !shown.contains("201") && !shown.contains("c9"));
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(key in "\\PC{0,30}", document: Vec<u8>) {
            let stored = ring().seal(&key, &document).unwrap();
            prop_assert_eq!(&ring().open(&key, &stored).unwrap()[..], &document[..]);
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(is_framed: bool, rest: Vec<u8>) {
            let head: &[u8] = if is_framed { &[0xB3, 2, 1, 0, 0, 0, 7] } else { &[0xB3, 2] };
            let stored = Bytes::from([head, &rest].concat());
            prop_assert!(ring().open(KEY, &stored).is_err());
        }
    }
}
