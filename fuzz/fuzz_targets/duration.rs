//! Any text is a duration or not, whatever its case and the white space around it.
#![no_main]

use bentocache_engine::__fuzz::duration;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let read = duration(text);
    assert_eq!(duration(&text.to_ascii_uppercase()), read);
    assert_eq!(duration(&format!("\t{text}\n")), read);
    if let Some(read) = read {
        assert!(text.is_ascii() || text.trim().is_ascii());
        let minus = format!("-{}", text.trim());
        if !read.negative && minus.len() <= 100 {
            assert_eq!(duration(&minus).map(|read| read.duration), Some(read.duration));
        }
    }
});
