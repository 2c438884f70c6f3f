//! The examples of Bentocache. `README.md` in this folder says when to read which.
//!
//! This library formats the numbers that they print.

use std::time::Duration;

/// A time in three or four digits and the unit that suits it.
///
/// ```
/// use std::time::Duration;
///
/// assert_eq!(examples::time(Duration::from_nanos(1_234)), "1.23 µs");
/// assert_eq!(examples::time(Duration::from_millis(50)), "50.0 ms");
/// ```
pub fn time(time: Duration) -> String {
    let ns = time.as_nanos() as f64;
    let (value, unit) = match time.as_nanos() {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let decimals = match value {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// A number with commas between the thousands.
///
/// ```
/// assert_eq!(examples::count(1_234_567), "1,234,567");
/// assert_eq!(examples::count(12), "12");
/// ```
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}
