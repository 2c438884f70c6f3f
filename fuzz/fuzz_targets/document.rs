//! Whatever L2 holds: it parses or it does not, and what parses can be written again.
#![no_main]

use bentocache_engine::wire::codec::{Codec, Format};
use bentocache_engine::wire::document::Document;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;

fuzz_target!(|data: &[u8]| {
    let Ok(document) = Document::parse(&Bytes::copy_from_slice(data)) else { return };

    let again = Document::parse(&document.rewrite(&document.meta)).expect("a rewrite parses");
    assert_eq!(again.meta, document.meta);
    assert_eq!(again.payload(), document.payload());

    // A frame does not say whether its payload is good; only what decodes may be stored again.
    let whole = match document.format() {
        Format::Json => document.value::<Box<RawValue>>().is_ok(),
        Format::MessagePack => true,
    };
    if whole {
        for codec in [Codec::json(), Codec::json().compress_above(0)] {
            let meta = &document.meta;
            let bytes = Document::from_payload(codec, meta, document.format(), document.payload());
            let copy = Document::parse(&bytes).expect("a copy parses");
            assert_eq!(copy.meta, document.meta);
            assert_eq!(copy.payload().trim_ascii(), document.payload().trim_ascii());
        }
    }

    // Anything may be behind a payload, of another type too.
    let _ = (document.value::<String>(), document.value::<Vec<Option<u64>>>());
    if let Ok(value) = document.value::<Value>() {
        for codec in [Codec::json(), Codec::message_pack()] {
            let bytes = Document::encode(codec, &document.meta, &value).expect("a value encodes");
            let again = Document::parse(&bytes).expect("what is encoded parses");
            assert_eq!(again.meta, document.meta);
            assert_eq!(again.value::<Value>().expect("what is encoded decodes"), value);
        }
    }
});
