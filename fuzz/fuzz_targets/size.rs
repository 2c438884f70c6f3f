//! Any text is a size or not, whatever its case and the white space around it.
#![no_main]

use bentocache_engine::__fuzz::size;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let read = size(text);
    assert_eq!(size(&text.to_ascii_uppercase()), read);
    assert_eq!(size(&format!("\t{text}\n")), read);
    if let Some(bytes) = read {
        assert!(text.trim().starts_with(|c: char| c.is_ascii_digit()));
        if bytes < 10_u64.pow(19) {
            assert_eq!(size(&bytes.to_string()), Some(bytes));
        }
    }
});
