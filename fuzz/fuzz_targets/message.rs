//! Messages have one form only: what decodes is encoded to the same bytes.
#![no_main]

use bentocache_engine::wire::message::{self, Kind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(message) = message::decode(data) else { return };
    let keys: Vec<&str> = message.keys.iter().map(String::as_str).collect();
    let again = message::encode(&message.sender, message.kind, &message.namespace, &keys);
    match message.kind {
        // Keys of a clear are dropped.
        Kind::Clear => assert!(keys.is_empty() && data.starts_with(&again[0])),
        _ if keys.is_empty() => assert!(again.is_empty()),
        // What was sent as one may be too large for one of ours.
        _ => assert!(again.len() > 1 || again[0] == data),
    }
});
