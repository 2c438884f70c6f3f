//! The subject of a channel.

use bentocache_driver::DriverError;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::error;

/// The longest subject. A server closes the connection if a protocol line, which contains more than
/// the subject, is longer than 4 KiB.
const MOST: usize = 3_000;

/// Characters that are invalid in a subject or make it a pattern; and the escape character.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'*').add(b'>').add(b'%');

/// The subject of a channel: the same text, with `%` and two hexadecimal digits for each byte that
/// NATS does not allow. No two channels have the same subject, and channels of stores with plain
/// names, such as `bentocache.notifications:main`, are unchanged.
///
/// Escaped characters: everything outside of ASCII, control characters and spaces, `*`, `>` and
/// `%`; a dot at the beginning, at the end or after another dot; and a `$` at the beginning, which
/// marks subjects of the server. The empty channel is a single `%`.
pub(crate) fn of(channel: &str) -> Result<String, DriverError> {
    let mut subject = String::with_capacity(channel.len());
    for part in channel.split_inclusive('.') {
        let (name, has_dot) = match part.strip_suffix('.') {
            Some(name) => (name, true),
            None => (part, false),
        };
        if subject.is_empty() && name.starts_with('$') {
            subject.push_str("%24");
            subject.extend(utf8_percent_encode(&name[1..], ESCAPED));
        } else {
            subject.extend(utf8_percent_encode(name, ESCAPED));
        }
        if has_dot {
            subject.push_str(if name.is_empty() { "%2E" } else { "." });
        }
    }
    if subject.ends_with('.') {
        subject.pop();
        subject.push_str("%2E");
    }
    if subject.is_empty() {
        subject.push('%');
    }
    if subject.len() > MOST {
        return Err(error::too_large("subject", subject.len(), MOST, "shorten the store's name"));
    }
    Ok(subject)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bentocache_driver::ErrorKind;
    use bentocache_testkit::suite::HOSTILE;
    use percent_encoding::percent_decode_str;

    use super::*;

    #[test]
    fn plain_names_stay() {
        for channel in ["bentocache.notifications", "bentocache.notifications:main-2_B", "a$b", "é"]
        {
            let subject = of(channel).unwrap();
            assert_eq!(subject == channel, channel.is_ascii(), "{channel} became {subject}");
        }
    }

    #[test]
    fn what_nats_forbids_is_escaped() {
        for (channel, subject) in [
            ("", "%"),
            ("%", "%25"),
            (".", "%2E"),
            ("..", "%2E%2E"),
            (".a", "%2Ea"),
            ("a.", "a%2E"),
            ("a..b", "a.%2Eb"),
            ("a.*.>", "a.%2A.%3E"),
            ("a b\tc\r\n", "a%20b%09c%0D%0A"),
            ("$SYS.a", "%24SYS.a"),
            ("a.$b", "a.$b"),
            ("ß", "%C3%9F"),
        ] {
            assert_eq!(of(channel).unwrap(), subject, "{channel:?}");
        }
    }

    #[test]
    fn no_two_channels_meet() {
        let parts: Vec<_> = HOSTILE.iter().chain(&["", "$", "%2E", "%2e"]).collect();
        let mut channels = HashMap::new();
        for first in &parts {
            for second in &parts {
                let channel = format!("{first}{second}");
                let subject = of(&channel).unwrap();
                let plain = percent_decode_str(&subject).decode_utf8().unwrap();
                assert!(subject == "%" || plain == channel, "{channel:?} became {subject:?}");
                let earlier = channels.insert(subject.clone(), channel.clone());
                assert!(earlier.is_none_or(|earlier| earlier == channel), "two are {subject:?}");
                let tokens: Vec<_> = subject.split('.').collect();
                assert!(tokens.iter().all(|token| !token.is_empty()), "{subject:?}");
                assert!(subject.bytes().all(|byte| byte.is_ascii_graphic()), "{subject:?}");
            }
        }
    }

    #[test]
    fn too_long_is_refused() {
        assert!(of(&"a".repeat(MOST)).is_ok());
        let error = of(&"*".repeat(MOST / 2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains("3000"), "{error}");
    }
}
