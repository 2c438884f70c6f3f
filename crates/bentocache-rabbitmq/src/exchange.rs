//! The exchange of a channel.

use bentocache_driver::DriverError;
use lapin::types::ShortString;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::error;

/// The protocol encodes the length of a name in one byte.
const MOST: usize = 255;

/// RabbitMQ removes line breaks from names, so that two names could collide.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// The name of a channel's exchange: the same text, with `%` and two hexadecimal digits for each
/// byte that is not ASCII, a control character or `%` itself. No two channels have the same
/// exchange, and channels of stores with plain names, such as `bentocache.notifications:main`, are
/// unchanged.
///
/// Names that begin with `amq.` belong to the server: their first letter is escaped. The empty
/// channel, whose name would be that of the default exchange, is a single `%`.
pub(crate) fn of(channel: &str) -> Result<ShortString, DriverError> {
    let mut name = match channel.strip_prefix("amq.") {
        Some(rest) => format!("%61mq.{}", utf8_percent_encode(rest, ESCAPED)),
        None => utf8_percent_encode(channel, ESCAPED).to_string(),
    };
    if name.is_empty() {
        name.push('%');
    }
    if name.len() > MOST {
        let advice = "shorten the store's name";
        return Err(error::too_large("name of an exchange", name.len(), MOST, advice));
    }
    Ok(name.into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bentocache_driver::ErrorKind;
    use bentocache_testkit::suite::HOSTILE;
    use percent_encoding::percent_decode_str;

    use super::*;

    fn named(channel: &str) -> String {
        of(channel).unwrap().to_string()
    }

    #[test]
    fn names() {
        for (channel, name) in [
            ("bentocache.notifications:main", "bentocache.notifications:main"),
            ("a b*>#/", "a b*>#/"),
            ("", "%"),
            ("%", "%25"),
            ("a\r\n", "a%0D%0A"),
            ("amq.fanout", "%61mq.fanout"),
            ("ß", "%C3%9F"),
        ] {
            assert_eq!(named(channel), name, "{channel:?}");
        }
    }

    #[test]
    fn no_two_channels_meet() {
        let mut channels = HashMap::new();
        for channel in HOSTILE.iter().chain(&["", "amq.a", "%61mq.a", "%0A", "\n"]) {
            let name = named(channel);
            let plain = percent_decode_str(&name).decode_utf8().unwrap();
            assert!(name == "%" || plain == *channel, "{channel:?} became {name:?}");
            assert_eq!(channels.insert(name, channel), None, "{channel:?}");
        }
    }

    #[test]
    fn too_long_is_refused() {
        assert!(of(&"a".repeat(MOST)).is_ok());
        let error = of(&"ß".repeat(MOST / 2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains("255"), "{error}");
    }
}
