//! Durations written as text: `"5m"`, `"2.5h"`, `"10 minutes"`.
//!
//! The grammar is that of the npm package [`ms`](https://github.com/vercel/ms), which users of the
//! Node library know, with two additions: white space around the text, and the `wk` and `wks` of
//! the smaller package that the Node library really uses.
//!
//! ```text
//! text   = "-"? number " "* unit?
//! number = digits | digits? "." digits
//! unit   = years year yrs yr y | months month mo | weeks week wks wk w | days day d
//!        | hours hour hrs hr h | minutes minute mins min m | seconds second secs sec s
//!        | milliseconds millisecond msecs msec ms
//! ```
//!
//! Letters count in either case, so `M` is a minute; a month is `mo`. Without a unit the number
//! means milliseconds. A year has 365.25 days, a month is a twelfth of it. There is no leading
//! `+`, no exponent and no `1h30m`, as in `ms`.
//!
//! Options given as text are parsed at each operation, so this function neither allocates nor
//! divides unless necessary.

use std::time::Duration;

/// A parsed duration.
///
/// A negative one is not a [`Duration`], but it is a valid text: a ttl below zero removes the
/// entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The text began with a minus. Also true for `-0`.
    pub negative: bool,
    /// The absolute value, at most [`Duration::MAX`]; fractions of a nanosecond are cut off.
    pub duration: Duration,
}

/// Parses a duration; `None` if the text is not one.
///
/// A number that is too large is [`Duration::MAX`], so that `"999999999999y"` is valid.
pub fn parse(text: &str) -> Option<Parsed> {
    let text = trim(text);
    if text.len() > MAX_TEXT {
        return None;
    }
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (whole, rest) = digits(text);
    if let [b'.', rest @ ..] = rest {
        let (fraction, rest) = digits(rest);
        let unit = unit(rest).filter(|_| !fraction.is_empty())?;
        let duration = times(whole, unit).saturating_add(part(fraction, unit));
        return Some(Parsed { negative, duration });
    }
    let unit = unit(rest).filter(|_| !whole.is_empty())?;
    Some(Parsed { negative, duration: times(whole, unit) })
}

/// `ms` rejects longer texts. This also bounds the work on hostile texts.
const MAX_TEXT: usize = 100;

/// Digits kept after the point: with 18, a year is exact far below a nanosecond.
const MAX_FRACTION: usize = 18;

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// The length of one unit.
#[derive(Clone, Copy)]
enum Unit {
    Millis,
    Secs(u64),
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
const YEAR: u64 = 365 * DAY + DAY / 4;
const MONTH: u64 = YEAR / 12;

/// Parses the text after the number: spaces (nothing else, as in `ms`) and the name of a unit.
fn unit(mut text: &[u8]) -> Option<Unit> {
    // Most texts are "5m" or "10s", and need no copy.
    if let [letter] = text {
        return match letter.to_ascii_lowercase() {
            b's' => Some(Unit::Secs(1)),
            b'm' => Some(Unit::Secs(MINUTE)),
            b'h' => Some(Unit::Secs(HOUR)),
            b'd' => Some(Unit::Secs(DAY)),
            b'w' => Some(Unit::Secs(WEEK)),
            b'y' => Some(Unit::Secs(YEAR)),
            _ => None,
        };
    }
    while let [b' ', rest @ ..] = text {
        text = rest;
    }
    let mut name = [0; "milliseconds".len()];
    let name = name.get_mut(..text.len())?;
    name.copy_from_slice(text);
    name.make_ascii_lowercase();
    match &*name {
        b"" | b"ms" | b"msec" | b"msecs" | b"millisecond" | b"milliseconds" => Some(Unit::Millis),
        b"s" | b"sec" | b"secs" | b"second" | b"seconds" => Some(Unit::Secs(1)),
        b"m" | b"min" | b"mins" | b"minute" | b"minutes" => Some(Unit::Secs(MINUTE)),
        b"h" | b"hr" | b"hrs" | b"hour" | b"hours" => Some(Unit::Secs(HOUR)),
        b"d" | b"day" | b"days" => Some(Unit::Secs(DAY)),
        b"w" | b"wk" | b"wks" | b"week" | b"weeks" => Some(Unit::Secs(WEEK)),
        b"mo" | b"month" | b"months" => Some(Unit::Secs(MONTH)),
        b"y" | b"yr" | b"yrs" | b"year" | b"years" => Some(Unit::Secs(YEAR)),
        _ => None,
    }
}

fn trim(text: &str) -> &[u8] {
    match text.as_bytes() {
        // Nearly every text needs no trimming, and `str::trim` costs as much as the rest of the
        // function.
        bytes @ ([b'!'..=b'~', .., b'!'..=b'~'] | [b'!'..=b'~']) => bytes,
        _ => text.trim().as_bytes(),
    }
}

/// Splits the leading digits off.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let mut len = 0;
    while let Some(b'0'..=b'9') = text.get(len) {
        len += 1;
    }
    text.split_at(len)
}

fn times(digits: &[u8], unit: Unit) -> Duration {
    const FIT_U64: usize = 19;
    if digits.len() > FIT_U64 {
        return times_many(digits, unit);
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        Unit::Millis => Duration::from_millis(number),
        Unit::Secs(secs) => number.checked_mul(secs).map_or(Duration::MAX, Duration::from_secs),
    }
}

/// As [`times`], for numbers that overflow a `u64` but may still be a duration.
#[cold]
fn times_many(digits: &[u8], unit: Unit) -> Duration {
    let millis = match unit {
        Unit::Millis => 1,
        Unit::Secs(secs) => u128::from(secs) * 1_000,
    };
    // A value that saturates here is far above the largest duration.
    let number = digits.iter().fold(0_u128, |number, digit| {
        number.saturating_mul(10).saturating_add(u128::from(digit - b'0'))
    });
    let millis = number.saturating_mul(millis);
    u64::try_from(millis / 1_000)
        .map_or(Duration::MAX, |secs| Duration::new(secs, (millis % 1_000) as u32 * 1_000_000))
}

/// The digits after a point, as a part of one unit.
fn part(digits: &[u8], unit: Unit) -> Duration {
    let digits = &digits[..digits.len().min(MAX_FRACTION)];
    let nanos = match unit {
        Unit::Millis => NANOS_PER_SEC / 1_000,
        Unit::Secs(secs) => secs * NANOS_PER_SEC,
    };
    let mut numerator = 0_u64;
    let mut denominator = 1_u64;
    for digit in digits {
        numerator = numerator * 10 + u64::from(digit - b'0');
        denominator *= 10;
    }
    // A division of 128-bit numbers costs more than the rest of the function, and "2.5h" does not
    // need it.
    let nanos = match numerator.checked_mul(nanos) {
        Some(product) => product / denominator,
        None => (u128::from(numerator) * u128::from(nanos) / u128::from(denominator)) as u64,
    };
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The results of `ms` 4.0 on Node; `None` for a text that it rejects.
    const OF_MS: [(&str, Option<f64>); 80] = [
        ("100", Some(100.0)),
        ("1m", Some(60_000.0)),
        ("1h", Some(3_600_000.0)),
        ("2d", Some(172_800_000.0)),
        ("3w", Some(1_814_400_000.0)),
        ("1s", Some(1_000.0)),
        ("100ms", Some(100.0)),
        ("1y", Some(31_557_600_000.0)),
        ("1.5h", Some(5_400_000.0)),
        ("1   s", Some(1_000.0)),
        ("1.5H", Some(5_400_000.0)),
        (".5ms", Some(0.5)),
        ("-100ms", Some(-100.0)),
        ("-1.5h", Some(-5_400_000.0)),
        ("-10.5h", Some(-37_800_000.0)),
        ("-.5h", Some(-1_800_000.0)),
        ("53 milliseconds", Some(53.0)),
        ("1 millisecond", Some(1.0)),
        ("17 msecs", Some(17.0)),
        ("1 sec", Some(1_000.0)),
        ("1 min", Some(60_000.0)),
        ("1 hr", Some(3_600_000.0)),
        ("2 days", Some(172_800_000.0)),
        ("1 week", Some(604_800_000.0)),
        ("1 month", Some(2_629_800_000.0)),
        ("2 months", Some(5_259_600_000.0)),
        ("1mo", Some(2_629_800_000.0)),
        ("1 MO", Some(2_629_800_000.0)),
        ("1.5 mo", Some(3_944_700_000.0)),
        ("1M", Some(60_000.0)),
        ("1 year", Some(31_557_600_000.0)),
        ("1.5 hours", Some(5_400_000.0)),
        ("-.5 hr", Some(-1_800_000.0)),
        ("2.5h", Some(9_000_000.0)),
        (".5s", Some(500.0)),
        ("10 minutes", Some(600_000.0)),
        ("10 mins", Some(600_000.0)),
        ("5 secs", Some(5_000.0)),
        ("7 hrs", Some(25_200_000.0)),
        ("3 yrs", Some(94_672_800_000.0)),
        ("1 yr", Some(31_557_600_000.0)),
        ("0", Some(0.0)),
        ("-0", Some(-0.0)),
        ("0s", Some(0.0)),
        ("00012s", Some(12_000.0)),
        ("007", Some(7.0)),
        ("0.1ms", Some(0.1)),
        ("1.0000001s", Some(1_000.000_1)),
        ("5.", None),
        ("5.s", None),
        (".", None),
        ("", None),
        ("-", None),
        ("+5m", None),
        ("+5", None),
        ("1e3", None),
        ("1 e3", None),
        ("1,5h", None),
        ("1_000", None),
        ("- 5m", None),
        ("--5m", None),
        ("5-m", None),
        ("1h30m", None),
        ("1h 30m", None),
        ("5\tm", None),
        ("5\u{a0}m", None),
        ("ten", None),
        ("10 foo", None),
        ("s", None),
        ("ms", None),
        ("1.2.3s", None),
        ("..5s", None),
        ("0x10", None),
        ("1mss", None),
        ("1 minuts", None),
        ("1milli", None),
        ("infinity", None),
        ("NaN", None),
        ("\u{ff15}m", None),
        ("5\u{17f}", None),
    ];

    #[test]
    fn reads_what_ms_reads() {
        for (text, expected) in OF_MS {
            match (parse(text), expected) {
                (None, None) => {}
                (Some(read), Some(millis)) => {
                    assert_eq!(read.negative, millis.is_sign_negative(), "{text:?}");
                    let nanos = (millis.abs() * 1e6).round() as u128;
                    assert_eq!(read.duration.as_nanos(), nanos, "{text:?}");
                }
                (read, _) => panic!("{text:?}: read {read:?}, ms says {expected:?}"),
            }
        }
    }

    #[test]
    fn reads_more_than_ms() {
        let week = Duration::from_secs(WEEK);
        for text in ["1wk", "1 wks", " 1w", "1w\n", "\u{a0}1 WEEKS\t"] {
            assert_eq!(parse(text).map(|read| read.duration), Some(week), "{text:?}");
        }
    }

    #[test]
    fn a_text_above_100_characters_is_bad() {
        let text = "1".repeat(100);
        assert_eq!(parse(&text).map(|read| read.duration), Some(Duration::MAX));
        assert_eq!(parse(&format!("{text}1")), None);
        let zeros = format!("{}5m", "0".repeat(98));
        assert_eq!(parse(&zeros).map(|read| read.duration), Some(Duration::from_secs(300)));
    }

    #[test]
    fn too_large_is_the_maximum() {
        let read = |text: &str| parse(text).expect(text).duration;
        assert_eq!(read("999999999999y"), Duration::MAX);
        assert_eq!(read("18446744073709551616s"), Duration::MAX);
        assert_eq!(read("18446744073709551615s"), Duration::from_secs(u64::MAX));
        assert_eq!(read("18446744073709551615.9999999999s"), Duration::MAX);
        // The milliseconds overflow 64 bits, but the seconds do not.
        assert_eq!(read("18446744073709551615001ms"), Duration::new(u64::MAX, 1_000_000));
        assert_eq!(read("18446744073709551616000ms"), Duration::MAX);
        assert_eq!(read("18446744073709551616000000ms"), Duration::MAX);
        assert_eq!(parse("-999999999999y").map(|read| read.negative), Some(true));
    }

    /// Every unit with its names and its length in milliseconds, independent of the code above.
    const UNITS: [(&[&str], f64); 8] = [
        (&["", "ms", "msec", "msecs", "millisecond", "milliseconds"], 1.0),
        (&["s", "sec", "secs", "second", "seconds"], 1e3),
        (&["m", "min", "mins", "minute", "minutes"], 6e4),
        (&["h", "hr", "hrs", "hour", "hours"], 36e5),
        (&["d", "day", "days"], 864e5),
        (&["w", "wk", "wks", "week", "weeks"], 6048e5),
        (&["mo", "month", "months"], 26_298e5),
        (&["y", "yr", "yrs", "year", "years"], 315_576e5),
    ];

    /// The simplest implementation of the grammar, in milliseconds.
    fn model(text: &str) -> Option<f64> {
        let text = text.trim().to_lowercase();
        if text.len() > 100 || !text.is_ascii() {
            return None;
        }
        let unsigned = text.strip_prefix('-').unwrap_or(&text);
        let in_number = |c: char| c.is_ascii_digit() || c == '.';
        let number: String = unsigned.chars().take_while(|c| in_number(*c)).collect();
        if number.is_empty() || number.ends_with('.') || number.matches('.').count() > 1 {
            return None;
        }
        let name = unsigned[number.len()..].trim_start_matches(' ');
        let (_, millis) = UNITS.iter().find(|(names, _)| names.contains(&name))?;
        let millis = number.parse::<f64>().ok()? * millis;
        Some(if text.starts_with('-') { -millis } else { millis })
    }

    fn agrees_with_the_model(text: &str) -> Result<(), TestCaseError> {
        match (parse(text), model(text)) {
            (None, None) => {}
            (Some(read), Some(millis)) => {
                prop_assert_eq!(read.negative, millis.is_sign_negative());
                let secs = (millis.abs() / 1e3).min(Duration::MAX.as_secs_f64());
                let distance = (read.duration.as_secs_f64() - secs).abs();
                prop_assert!(distance <= secs * 1e-12 + 1e-9, "{} {}", distance, secs);
            }
            (read, expected) => prop_assert!(false, "{text:?}: {read:?} {expected:?}"),
        }
        Ok(())
    }

    fn name() -> impl Strategy<Value = String> {
        let names: Vec<&str> = UNITS.iter().flat_map(|(names, _)| names.iter().copied()).collect();
        (proptest::sample::select(names), any::<u16>()).prop_map(|(name, upper)| {
            let case = |(i, c): (usize, char)| {
                if upper >> i & 1 == 1 { c.to_ascii_uppercase() } else { c }
            };
            name.chars().enumerate().map(case).collect()
        })
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_the_model_reads_it(text in "\\PC*") {
            agrees_with_the_model(&text)?;
        }

        #[test]
        fn near_misses_are_read_as_the_model_reads_them(text in "[-+. 0-9a-zA-Z\u{17f}]{0,8}") {
            agrees_with_the_model(&text)?;
        }

        #[test]
        fn good_texts_are_read_as_the_model_reads_them(
            number in "-?([0-9]{1,30}|[0-9]{0,30}\\.[0-9]{1,30})",
            spaces in " {0,3}",
            name in name(),
        ) {
            let text = format!("{number}{spaces}{name}");
            prop_assert!(parse(&text).is_some());
            agrees_with_the_model(&text)?;
        }

        #[test]
        fn whole_milliseconds_come_back_exactly(millis: u64) {
            let expected = Parsed { negative: false, duration: Duration::from_millis(millis) };
            prop_assert_eq!(parse(&format!("{millis}ms")), Some(expected));
            prop_assert_eq!(parse(&millis.to_string()), Some(expected));
        }

        #[test]
        fn any_duration_comes_back_exactly_in_seconds(secs: u64, nanos in 0_u32..1_000_000_000) {
            let duration = Duration::new(secs, nanos);
            let text = format!("-{secs}.{nanos:09} seconds");
            prop_assert_eq!(parse(&text), Some(Parsed { negative: true, duration }));
        }
    }
}
