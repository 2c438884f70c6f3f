//! Compression of large values: the payload of a frame whose flag says so.
//!
//! ```text
//!  1 byte   method: 1 LZ4, one block; 2 Zstandard
//!  4 bytes  length of the value when decompressed, at most 256 MiB
//!           the compressed value, to the end
//! ```
//!
//! The length decides how much memory a reader reserves, so it is checked first: against the limit,
//! and against what so many bytes can expand to.

use bytes::Bytes;

use super::Malformed;
use super::frame::Reader;

/// A compression method, with its number in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// LZ4, one block.
    #[cfg(feature = "lz4")]
    Lz4,
    /// Zstandard.
    #[cfg(feature = "zstd")]
    Zstd,
}

/// Method and length.
const PREFIX: usize = 5;

/// A larger value is not compressed, and a frame that claims a larger one is rejected.
const MAX_LEN: usize = 256 << 20;

#[cfg(feature = "lz4")]
const LZ4: u8 = 1;
#[cfg(feature = "zstd")]
const ZSTD: u8 = 2;

/// LZ4 expands one byte to at most this many, so a larger claim is false.
#[cfg(feature = "lz4")]
const LZ4_RATIO: usize = 255;

/// The same of Zstandard: a block of four bytes repeats one byte 128 KiB times.
#[cfg(feature = "zstd")]
const ZSTD_RATIO: usize = (128 << 10) / 4;

/// The level of compression: the default of Zstandard.
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 3;

/// The value as a compressed payload, or `None` if that is not smaller.
#[cfg_attr(
    not(any(feature = "lz4", feature = "zstd")),
    expect(unreachable_code, unused_variables, reason = "there is no method")
)]
pub fn pack(method: Compression, value: &[u8]) -> Option<Vec<u8>> {
    if value.len() > MAX_LEN {
        return None;
    }
    let len = u32::try_from(value.len()).ok()?;
    let (id, room): (u8, usize) = match method {
        #[cfg(feature = "lz4")]
        Compression::Lz4 => (LZ4, lz4_flex::block::get_maximum_output_size(value.len())),
        #[cfg(feature = "zstd")]
        Compression::Zstd => (ZSTD, zstd::zstd_safe::compress_bound(value.len())),
    };
    let mut out = vec![0; PREFIX + room];
    out[0] = id;
    out[1..PREFIX].copy_from_slice(&len.to_be_bytes());
    let packed: usize = match method {
        #[cfg(feature = "lz4")]
        Compression::Lz4 => lz4_flex::block::compress_into(value, &mut out[PREFIX..]).ok()?,
        #[cfg(feature = "zstd")]
        Compression::Zstd => {
            zstd::bulk::compress_to_buffer(value, &mut out[PREFIX..], ZSTD_LEVEL).ok()?
        }
    };
    out.truncate(PREFIX + packed);
    (out.len() < value.len()).then_some(out)
}

/// The value of a compressed payload.
///
/// # Errors
///
/// If the method is unknown to this build, or the payload does not decompress to the stated length.
#[cfg_attr(
    not(any(feature = "lz4", feature = "zstd")),
    expect(unreachable_code, reason = "there is no method")
)]
pub fn unpack(payload: &[u8]) -> Result<Bytes, Malformed> {
    let mut rest = Reader(payload);
    let (method, ratio): (Compression, usize) = match rest.byte()? {
        #[cfg(feature = "lz4")]
        LZ4 => (Compression::Lz4, LZ4_RATIO),
        #[cfg(feature = "zstd")]
        ZSTD => (Compression::Zstd, ZSTD_RATIO),
        _ => return Err(Malformed("unknown compression")),
    };
    let len = rest.u32()? as usize;
    if len > MAX_LEN || len / ratio > rest.0.len() {
        return Err(Malformed("an impossible length"));
    }
    let mut value = vec![0; len];
    let written: Option<usize> = match method {
        #[cfg(feature = "lz4")]
        Compression::Lz4 => lz4_flex::block::decompress_into(rest.0, &mut value).ok(),
        #[cfg(feature = "zstd")]
        Compression::Zstd => zstd::bulk::decompress_to_buffer(rest.0, &mut value[..]).ok(),
    };
    match written {
        Some(written) if written == len => Ok(value.into()),
        _ => Err(Malformed("compressed data are damaged")),
    }
}

#[cfg(all(test, not(any(feature = "lz4", feature = "zstd"))))]
#[test]
fn compressed_payloads_are_unknown() {
    assert_eq!(unpack(&[1, 0, 0, 0, 0]), Err(Malformed("unknown compression")));
    assert_eq!(unpack(&[2, 0, 0, 0, 0]), Err(Malformed("unknown compression")));
}

#[cfg(all(test, any(feature = "lz4", feature = "zstd")))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: &[Compression] = &[
        #[cfg(feature = "lz4")]
        Compression::Lz4,
        #[cfg(feature = "zstd")]
        Compression::Zstd,
    ];

    #[test]
    fn what_does_not_shrink_stays() {
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(10_000).collect();
        for method in ALL {
            for value in [&b""[..], b"abcdefgh", &noise] {
                assert_eq!(pack(*method, value), None);
            }
        }
    }

    #[test]
    fn the_best_case_is_within_the_ratio_that_is_believed() {
        for method in ALL {
            for len in [100, 1_000, 65_536, 10_000_000] {
                let value = vec![0; len];
                let packed = pack(*method, &value).expect("smaller");
                assert_eq!(unpack(&packed).expect("unpacks"), value);
            }
            assert_eq!(pack(*method, &vec![0; MAX_LEN + 1]), None);
        }
        #[cfg(feature = "zstd")]
        {
            let packed = pack(Compression::Zstd, &vec![0; MAX_LEN]).expect("smaller");
            assert_eq!(unpack(&packed).expect("unpacks").len(), MAX_LEN);
        }
    }

    #[test]
    fn promises_are_checked_before_memory_is_reserved() {
        for method in ALL {
            let packed = pack(*method, &[0; 1_000]).expect("smaller");
            let with = |at: usize, byte: u8| {
                let mut bytes = packed.clone();
                bytes[at] = byte;
                unpack(&bytes).map_err(|malformed| malformed.reason())
            };
            assert_eq!(with(0, 0), Err("unknown compression"));
            assert_eq!(with(0, 3), Err("unknown compression"));
            // 4 GiB, 16 MiB, a little more, a little less.
            assert_eq!(with(1, 0xff), Err("an impossible length"));
            assert_eq!(with(1, 0x11), Err("an impossible length"), "above the limit");
            assert_eq!(with(2, 0xff), Err("an impossible length"));
            assert_eq!(with(4, 0xe9), Err("compressed data are damaged"));
            assert_eq!(with(4, 0xe7), Err("compressed data are damaged"));
            for end in 0..packed.len() {
                assert!(unpack(&packed[..end]).is_err());
            }
            assert!(unpack(&[&packed[..], b"x"].concat()).is_err());
        }
    }

    /// The length inside of the compressed data is the compressor's own, and not believed.
    #[cfg(feature = "zstd")]
    #[test]
    fn a_bomb_with_a_small_length_is_not_expanded() {
        let mut packed = pack(Compression::Zstd, &vec![0; 100 << 20]).expect("smaller");
        packed[1..PREFIX].copy_from_slice(&1_000_u32.to_be_bytes());
        assert_eq!(unpack(&packed), Err(Malformed("compressed data are damaged")));
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            value in proptest::collection::vec(0_u8..4, 0..2_000),
        ) {
            for method in ALL {
                if let Some(packed) = pack(*method, &value) {
                    prop_assert!(packed.len() < value.len());
                    prop_assert_eq!(unpack(&packed), Ok(Bytes::from(value.clone())));
                }
            }
        }

        #[test]
        fn damage_is_seen_or_harmless(
            value in proptest::collection::vec(0_u8..4, 100..1_000),
            at: usize,
            byte: u8,
        ) {
            for method in ALL {
                if let Some(mut packed) = pack(*method, &value) {
                    let len = packed.len();
                    packed[at % len] = byte;
                    let _ = unpack(&packed);
                }
            }
        }

        #[test]
        fn any_bytes_are_unpacked_without_a_panic(
            method in 0_u8..4,
            len in 0_u32..10_000,
            tail in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = unpack(&[&[method][..], &len.to_be_bytes(), &tail].concat());
            // A frame of Zstandard without the right magic number would not get far.
            let magic = 0xFD2F_B528_u32.to_le_bytes();
            let _ = unpack(&[&[method][..], &len.to_be_bytes(), &magic, &tail].concat());
        }
    }
}
