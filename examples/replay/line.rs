//! A line of a trace, parsed.

use std::fmt;

use crate::input::Request;

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Request(Request),
    /// A request that no cache answers, such as a POST.
    OtherMethod,
}

/// Why a line cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    Empty,
    NotUtf8,
    TooLong,
    NotALog,
    NoRequest,
}

impl Bad {
    pub(crate) const ALL: [Self; 5] =
        [Self::Empty, Self::NotUtf8, Self::TooLong, Self::NotALog, Self::NoRequest];
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::NotUtf8 => "not UTF-8",
            Self::TooLong => "longer than 64 KiB",
            Self::NotALog => "not a line of an access log",
            Self::NoRequest => "logged without a valid request",
        })
    }
}

/// A key: the whole line.
pub(crate) fn key(line: &str) -> Result<Line, Bad> {
    if line.is_empty() {
        return Err(Bad::Empty);
    }
    Ok(Line::Request(Request { key: line.into(), at: None }))
}

/// A line of the common or combined log format:
///
/// ```text
/// 127.0.0.1 - ada [10/Oct/2000:13:55:36 -0700] "GET /index.html?a=1 HTTP/1.0" 200 2326 ...
/// ```
///
/// The key is the path of a GET or HEAD request, with its query. What comes before the time and
/// after the status is not looked at, so that most formats derived from these work too.
pub(crate) fn log(line: &str) -> Result<Line, Bad> {
    if line.is_empty() {
        return Err(Bad::Empty);
    }
    let parts = || {
        let (_client, rest) = line.split_once(" [")?;
        let (time, rest) = rest.split_once("] \"")?;
        let (request, rest) = rest.split_at(end_of_quote(rest)?);
        let status = rest.strip_prefix("\" ")?.as_bytes();
        let is_status = status.len() >= 3
            && status[..3].iter().all(u8::is_ascii_digit)
            && status.get(3).is_none_or(|&next| next == b' ');
        is_status.then_some((self::time(time)?, request))
    };
    let (at, request) = parts().ok_or(Bad::NotALog)?;
    // A client that says nothing, or no HTTP, is logged too.
    let (method, target) = request.split_once(' ').ok_or(Bad::NoRequest)?;
    let path = match target.rsplit_once(' ') {
        Some((path, version)) if version.starts_with("HTTP/") => path,
        _ => target,
    };
    let is_method = !method.is_empty()
        && method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_');
    if !is_method || path.is_empty() {
        return Err(Bad::NoRequest);
    }
    if !matches!(method, "GET" | "HEAD") {
        return Ok(Line::OtherMethod);
    }
    Ok(Line::Request(Request { key: path.into(), at: Some(at) }))
}

/// Where the quoted text ends: at the first quote without a backslash before it.
fn end_of_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// `10/Oct/2000:13:55:36 -0700` in milliseconds since 1970.
fn time(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let number = |digits: &str| {
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<i64>().ok()).flatten()
    };
    let (local, zone) = text.split_once(' ')?;
    let mut date = local.splitn(3, '/');
    let day = number(date.next()?)?;
    let month = date.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let mut clock = date.next()?.split(':');
    let [year, hour, minute, second] = [clock.next(), clock.next(), clock.next(), clock.next()];
    let (year, hour) = (number(year?)?, number(hour?)?);
    let (minute, second) = (number(minute?)?, number(second?)?);
    let sensible = (1..=31).contains(&day)
        && (1970..=9999).contains(&year)
        && hour < 24
        && minute < 60
        && second <= 60;
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let zone = number(zone.get(1..5).filter(|_| zone.len() == 5)?)?;
    let offset = sign * (zone / 100 * 60 + zone % 100);
    let minutes = (days_since_1970(year, month, day) * 24 + hour) * 60 + minute - offset;
    let seconds = u64::try_from(minutes * 60 + second).ok()?;
    (sensible && clock.next().is_none()).then_some(seconds * 1000)
}

/// Days from 1 January 1970 to a day of the Gregorian calendar, by Howard Hinnant's
/// `days_from_civil`: years are counted from March, so that the leap day is the last one.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(key: &str, at: u64) -> Result<Line, Bad> {
        Ok(Line::Request(Request { key: key.into(), at: Some(at) }))
    }

    const AT: u64 = 971_211_336_000;

    #[test]
    fn a_key_is_the_whole_line() {
        let request = |key: &str| Ok(Line::Request(Request { key: key.into(), at: None }));
        assert_eq!(key("42"), request("42"));
        assert_eq!(key(" a  b "), request(" a  b "));
        assert_eq!(key("日本"), request("日本"));
        assert_eq!(key(""), Err(Bad::Empty));
    }

    #[test]
    fn the_common_format() {
        // The example of Apache's documentation.
        let line = r#"127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326"#;
        assert_eq!(log(line), get("/apache_pb.gif", AT));
    }

    #[test]
    fn the_combined_format() {
        let line = r#"2001:db8::1 - - [10/Oct/2000:20:55:36 +0000] "GET /a?b=c&d=[1] HTTP/2.0" 304 0 "https://example.org/" "Mozilla/5.0 \"x\" [y]""#;
        assert_eq!(log(line), get("/a?b=c&d=[1]", AT));
    }

    #[test]
    fn formats_near_the_common_one() {
        for line in [
            // With the virtual host, and with the time taken.
            r#"example.org:443 ::1 - - [10/Oct/2000:20:55:36 +0000] "GET /a HTTP/1.1" 200 5 0.002"#,
            r#"::1 - - [10/Oct/2000:20:55:36 +0000] "GET /a HTTP/1.1" 200 -"#,
            r#"::1 - - [10/Oct/2000:20:55:36 +0000] "GET /a HTTP/1.1" 200"#,
            r#"::1 - - [10/Oct/2000:20:55:36 +0000] "HEAD /a HTTP/1.1" 200 0"#,
            r#"::1 - - [10/Oct/2000:20:55:36 +0000] "GET /a" 200 0"#,
        ] {
            assert_eq!(log(line), get("/a", AT), "{line}");
        }
    }

    #[test]
    fn odd_paths() {
        let line = |path: &str| {
            log(&format!(r#"::1 - - [10/Oct/2000:20:55:36 +0000] "GET {path} HTTP/1.1" 404 5"#))
        };
        for path in ["/a b", r#"/a\"b"#, r"/a\\", r"/\xe6\x97", "/日本", "*", "http://x/y"] {
            assert_eq!(line(path), get(path, AT));
        }
    }

    #[test]
    fn other_methods_are_not_cached() {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "M-SEARCH"] {
            let line = format!(
                r#"::1 - - [10/Oct/2000:20:55:36 +0000] "{method} /a HTTP/1.1" 200 0 "-" "-""#
            );
            assert_eq!(log(&line), Ok(Line::OtherMethod), "{line}");
        }
    }

    #[test]
    fn clients_that_say_nothing_or_no_http() {
        for request in ["-", "", r"\x16\x03\x01\x02", r"\x16 \x03", "get /a HTTP/1.1", "GET "] {
            let line = format!(r#"::1 - - [10/Oct/2000:20:55:36 +0000] "{request}" 400 0"#);
            assert_eq!(log(&line), Err(Bad::NoRequest), "{line}");
        }
    }

    #[test]
    fn what_is_no_log() {
        for line in [
            "42",
            "GET /a HTTP/1.1",
            "::1 - - [10/Oct/2000:20:55:36 +0000]",
            r#"::1 - - [10/Oct/2000:20:55:36 +0000] "GET /a HTTP/1.1"#,
            r#"::1 - - [10/Oct/2000:20:55:36 +0000] "GET /a HTTP/1.1" ok 5"#,
            r#"::1 - - [10/Oct/2000:20:55:36 +0000] "GET /a HTTP/1.1" 20 5"#,
            r#"::1 - - [10/Oct/2000:20:55:36 +0000] "GET /a HTTP/1.1" 2000 5"#,
            r#"::1 - - [10/Okt/2000:20:55:36 +0000] "GET /a HTTP/1.1" 200 5"#,
            r#"::1 - - [10/Oct/2000:20:55 +0000] "GET /a HTTP/1.1" 200 5"#,
            r#"::1 - - [10/Oct/2000:20:55:36] "GET /a HTTP/1.1" 200 5"#,
            r#"::1 - - [10/Oct/2000:20:55:36 +00:00] "GET /a HTTP/1.1" 200 5"#,
            r#"::1 - - [10/Oct/2000:20:55:36 +00é] "GET /a HTTP/1.1" 200 5"#,
            r#"::1 - - [10/Oct/99999999999999999999:20:55:36 +0000] "GET /a HTTP/1.1" 200 5"#,
        ] {
            assert_eq!(log(line), Err(Bad::NotALog), "{line}");
        }
        assert_eq!(log(""), Err(Bad::Empty));
    }

    #[test]
    fn times() {
        assert_eq!(time("01/Jan/1970:00:00:00 +0000"), Some(0));
        assert_eq!(time("01/Jan/1970:01:00:00 +0100"), Some(0));
        assert_eq!(time("31/Dec/1969:23:00:00 -0100"), None);
        assert_eq!(time("29/Feb/2000:00:00:00 +0000"), Some(951_782_400_000));
        assert_eq!(time("01/Mar/2000:00:00:00 +0000"), Some(951_868_800_000));
        assert_eq!(time("31/Dec/2023:23:59:60 +0000"), Some(1_704_067_200_000));
        assert_eq!(time("17/Nov/2025:09:30:00 +0530"), Some(1_763_352_000_000));
    }
}
