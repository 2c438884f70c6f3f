//! Frames have one form only: what parses is written to the same bytes.
#![no_main]

use bentocache_engine::wire::compression::{Compression, pack, unpack};
use bentocache_engine::wire::frame::{self, Frame};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Without the first bytes nothing else is tried, so they are given.
    let bytes = Bytes::from([&[frame::MAGIC, 1], data].concat());
    let Ok(frame) = Frame::parse(&bytes) else { return };
    assert_eq!(frame::write(frame.format, frame.compressed, &frame.meta, &frame.payload), bytes);

    for method in [Compression::Lz4, Compression::Zstd] {
        if let Ok(value) = unpack(&frame.payload) {
            assert!(value.len() / (32 << 10) <= frame.payload.len());
            if let Some(packed) = pack(method, &value) {
                assert_eq!(unpack(&packed).expect("what is packed unpacks"), value);
            }
        }
        if let Some(packed) = pack(method, &frame.payload) {
            assert_eq!(unpack(&packed).expect("what is packed unpacks"), frame.payload);
        }
    }
});
