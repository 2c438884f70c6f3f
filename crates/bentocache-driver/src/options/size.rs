//! Sizes written as text: `"10mb"`, `"512kb"`, `"1.5 GB"`, `"100"`.

use parse_size::Config;

/// Parses a size in bytes; `None` if the text is not one.
///
/// Units are `b`, `k`, `kb`, `kib` and so on up to exabytes, in upper or lower case and 1024-based,
/// as in the npm package `bytes`. Without a unit, the number means bytes. A fraction is rounded to
/// the next whole byte. A text that overflows a `u64`, or has more than 19 digits, is not a size.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    // More digits could overflow inside parse-size 1.1, which then panics in a debug build and
    // wraps to a wrong size in others.
    if text.bytes().filter(u8::is_ascii_digit).count() > MAX_DIGITS {
        return None;
    }
    // parse-size also accepts "1_0mb", "1 0mb" and "1e-3mb", which are more likely mistakes.
    let (number, unit) = text.split_at(text.find(|c: char| !is_number(c)).unwrap_or(text.len()));
    let unit = unit.trim_start();
    if number.is_empty() || !unit.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return None;
    }
    Config::new().with_binary().parse_size(text).ok()
}

/// Any number of 19 digits fits a `u64`.
const MAX_DIGITS: usize = 19;

fn is_number(c: char) -> bool {
    c.is_ascii_digit() || c == '.'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_1024_based() {
        for (text, bytes) in [
            ("100", 100),
            ("0", 0),
            ("100b", 100),
            ("1k", 1 << 10),
            ("512kb", 512 << 10),
            ("10mb", 10 << 20),
            ("10MB", 10 << 20),
            ("10 Mb", 10 << 20),
            ("10MiB", 10 << 20),
            ("1gb", 1 << 30),
            ("1.5gb", 3 << 29),
            ("0.5kb", 512),
            (" 2tb\n", 2 << 40),
            ("1pb", 1 << 50),
            ("15eb", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            // Twenty digits are one too many, even when they would fit.
            let expected = (text.len() < 20).then_some(bytes);
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn bad_texts_are_refused() {
        for text in [
            "", " ", "b", "mb", "ten", "-1", "-1mb", "+1mb", ".", ".mb", "1..5mb", "1.2.3mb",
            "1,5mb", "1_000", "1 0mb", "1e-3mb", "10 m b", "1kbb", "1zb", "16eb", "１mb", "5mſ",
            "0x10", "inf", "nan", "1mb;",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn digits_that_overflow_the_parser_are_refused() {
        assert_eq!(parse("184467440737095516155"), None);
        assert_eq!(parse("1.84467440737095516155"), None);
        assert_eq!(parse("18446744073709551615.5"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*", near in "[-+. 0-9eEkmgtpiIbB_]{0,40}") {
            let _ = (parse(&text), parse(&near));
        }

        #[test]
        fn whole_numbers_come_back(number in 0_u64..1 << 13, unit in 0..6_usize, space: bool) {
            let unit_name = ["b", "kb", "MB", "gib", "T", "Pb"][unit];
            let space = if space { " " } else { "" };
            let expected = number << (10 * unit);
            prop_assert_eq!(parse(&format!("{number}{space}{unit_name}")), Some(expected));
        }

        #[test]
        fn fractions_are_near(number in 0.0..1e6_f64) {
            let read = parse(&format!("{number:.6} mb")).expect("a size") as f64;
            prop_assert!((read - number * 1_048_576.0).abs() < 2.0);
        }
    }
}
