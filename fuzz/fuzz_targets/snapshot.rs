//! Blocks of a snapshot have one form only: what parses is written to the same bytes.
#![no_main]

use bentocache_engine::wire::snapshot::{Block, Head};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(head) = Head::parse(data) {
        let mut written = Vec::new();
        head.write(&mut written);
        assert_eq!(written, data);
    }
    let body = Bytes::copy_from_slice(data);
    if let Ok(block) = Block::parse(&body) {
        let mut written = Vec::new();
        block.write(&mut written);
        assert_eq!(written, body);
    }
});
