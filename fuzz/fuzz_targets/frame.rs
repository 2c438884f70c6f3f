//! Frames have one form only: what parses is written to the same bytes.
#![no_main]

use bentocache_engine::wire::frame::{self, Frame};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Without the first bytes nothing else is tried, so they are given.
    let bytes = Bytes::from([&[frame::MAGIC, 1], data].concat());
    let Ok(frame) = Frame::parse(&bytes) else { return };
    assert_eq!(frame::write(frame.format, frame.compressed, &frame.meta, &frame.payload), bytes);

    if let Ok(value) = frame::unpack(&frame.payload) {
        assert!(value.len() / 255 <= frame.payload.len());
        if let Some(packed) = frame::pack(&value) {
            assert_eq!(frame::unpack(&packed).expect("what is packed unpacks"), value);
        }
    }
    if let Some(packed) = frame::pack(&frame.payload) {
        assert_eq!(frame::unpack(&packed).expect("what is packed unpacks"), frame.payload);
    }
});
