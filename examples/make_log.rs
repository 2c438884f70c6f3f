//! Writes an access log for `replay`, the same one every time: a day of a shop in the format of nginx.
//!
//! ```text
//! cargo run --release --example make_log -- 5000000 > access.log
//! cargo run --release --example replay -- access.log --ttl 5m
//! ```
//!
//! The arguments are the number of lines (default 1,000,000) and the number of pages (default
//! 100,000). The popularity of pages follows Zipf's law. One line in a hundred is a POST, one in a
//! thousand comes from a client that does not speak HTTP, and one in a hundred thousand is damaged.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let (Ok(lines), Ok(pages)) =
        (numbers.next().unwrap_or(Ok(1_000_000)), numbers.next().unwrap_or(Ok(100_000)))
    else {
        let _ = writeln!(io::stderr(), "usage: make_log [LINES] [PAGES]");
        return ExitCode::FAILURE;
    };
    match write_log(lines, pages, &mut BufWriter::new(io::stdout().lock())) {
        // `make_log | head` is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "make_log: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn write_log(lines: u64, pages: u64, log: &mut impl Write) -> io::Result<()> {
    let mut random = Random(42);
    for line in 0..lines {
        // The seconds of one day, evenly.
        let second = (u128::from(line) * 86_400 / u128::from(lines)) as u64;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let client = format!("203.0.113.{}", random.below(256));
        write!(log, "{client} - - [17/Nov/2025:{hour:02}:{minute:02}:{second:02} +0000] ")?;
        let page = random.zipf(pages);
        match random.below(100_000) {
            0 => log.write_all(b"\xff\xfe damaged")?,
            1..=100 => write!(log, r#""\x16\x03\x01" 400 157 "-" "-""#)?,
            101..=1_100 => write!(log, r#""POST /cart HTTP/1.1" 303 0 "-" "Mozilla/5.0""#)?,
            _ => {
                let bytes = 500 + page * 7919 % 50_000;
                write!(log, r#""GET /item/{page} HTTP/1.1" 200 {bytes} "-" "Mozilla/5.0""#)?;
            }
        }
        writeln!(log)?;
    }
    log.flush()
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// From 1 to `end`; each number half as often as one half as large, and so on.
    fn zipf(&mut self, end: u64) -> u64 {
        let share = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        ((end as f64 + 1.0).powf(share) as u64).clamp(1, end.max(1))
    }
}
