//! What went wrong, and what to do about it.
//!
//! Messages of the server are passed on only as far as they cannot hold keys or values: the one
//! about an unknown command repeats its arguments.

use std::fmt;
use std::time::Duration;

use bentocache_core::{DriverError, ErrorKind};
use redis::{ErrorKind as Kind, RedisError, ServerErrorKind as Server};

/// The error of a failed command: `doing` completes "cannot …".
pub(crate) fn failed(doing: &str, error: &RedisError) -> DriverError {
    let (kind, reason) = explain(error);
    let made = DriverError::new(kind, format!("redis: cannot {doing}: {reason}"));
    // What the system said; what the server said is in the message, as far as it may be.
    if error.is_io_error() { made.with_source(error.clone()) } else { made }
}

/// No answer came in time.
pub(crate) fn late(doing: &str, limit: Duration) -> DriverError {
    DriverError::new(
        ErrorKind::Timeout,
        format!("redis: cannot {doing}: the server has not answered within {limit:?}"),
    )
}

pub(crate) fn closed() -> DriverError {
    DriverError::new(ErrorKind::Closed, "redis: the driver was disconnected")
}

pub(crate) fn config(message: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Config, format!("redis: {message}"))
}

pub(crate) fn too_large(what: &str, size: usize, limit: usize) -> DriverError {
    DriverError::new(
        ErrorKind::TooLarge,
        format!("redis: a {what} of {size} bytes; the limit is {limit} bytes"),
    )
}

/// An answer that the protocol does not provide for.
pub(crate) fn odd(doing: &str) -> DriverError {
    DriverError::new(
        ErrorKind::Unavailable,
        format!("redis: cannot {doing}: the server's answer makes no sense; is it a Redis server?"),
    )
}

/// Kind and reason of an error, for one that is handed out more than once.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    kind: ErrorKind,
    reason: String,
}

impl Failure {
    pub(crate) fn new(error: &RedisError) -> Self {
        let (kind, reason) = explain(error);
        Self { kind, reason }
    }

    pub(crate) fn late(limit: Duration) -> Self {
        let reason = format!("no connection within {limit:?}; is the address right?");
        Self { kind: ErrorKind::Unavailable, reason }
    }

    pub(crate) fn error(&self, doing: &str) -> DriverError {
        DriverError::new(self.kind, format!("redis: cannot {doing}: {}", self.reason))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Whether the connection must be replaced.
pub(crate) fn is_lost(error: &RedisError) -> bool {
    !error.is_timeout() && (error.is_unrecoverable_error() || error.is_connection_dropped())
}

/// Whether the server has become a replica, so that another one takes the writes.
pub(crate) fn is_demoted(error: &RedisError) -> bool {
    server_error(error).is_some_and(|(code, _)| code == "READONLY")
}

/// Whether the key holds another type than a string: somebody else's.
pub(crate) fn is_foreign(error: &RedisError) -> bool {
    server_error(error).is_some_and(|(code, detail)| {
        code == "WRONGTYPE" || detail.is_some_and(|detail| detail.contains("WRONGTYPE"))
    })
}

pub(crate) fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == Kind::Server(Server::NoScript)
}

/// The code and the text of what the server said; of the first, when a pipeline failed.
fn server_error(error: &RedisError) -> Option<(String, Option<String>)> {
    let errors = error.clone().into_server_errors()?;
    let (_, first) = errors.first()?;
    Some((first.code().to_owned(), first.details().map(str::to_owned)))
}

fn explain(error: &RedisError) -> (ErrorKind, String) {
    use ErrorKind::{Config, Timeout, Unavailable, Unsupported};
    if error.is_timeout() {
        return (Timeout, "no answer in time".to_owned());
    }
    if let Some((code, detail)) = server_error(error) {
        let detail = detail.unwrap_or_default();
        let said = || format!("the server says {}", without_arguments(&code, &detail));
        return match code.as_str() {
            "NOAUTH" => (Config, "the server wants a password; put it into the URL, as in redis://user:password@host".to_owned()),
            "WRONGPASS" => (Config, "wrong user name or password; correct them in the URL".to_owned()),
            "NOPERM" => (Config, format!("{}; let an administrator extend the user's rights with ACL SETUSER", said())),
            "OOM" => (Unavailable, "the server is out of memory; raise its maxmemory, or set maxmemory-policy to allkeys-lru".to_owned()),
            "READONLY" => (Unavailable, "the server is a replica and takes no writes; use the address of the primary, or Redis::sentinel".to_owned()),
            "LOADING" => (Unavailable, "the server is still loading its data".to_owned()),
            "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN" | "NOREPLICAS" | "BUSY" | "MISCONF" => (Unavailable, said()),
            "CROSSSLOT" | "MOVED" | "ASK" => (Config, "the server is part of a cluster; use Redis::cluster".to_owned()),
            "ERR" if detail.starts_with("unknown command") || detail.contains("unknown subcommand") => (Unsupported, format!("{}; it is too old or leaves this out", said())),
            "ERR" if detail.contains("max number of clients") => (Unavailable, "the server has no connection left; raise its maxclients".to_owned()),
            _ => (Unavailable, said()),
        };
    }
    match error.kind() {
        Kind::AuthenticationFailed => {
            (Config, "wrong user name or password; correct them in the URL".to_owned())
        }
        Kind::RESP3NotSupported => (
            Unsupported,
            "the server does not speak RESP3; it takes Redis 6 or its like".to_owned(),
        ),
        Kind::MasterNameNotFoundBySentinel => {
            (Unavailable, "the sentinels know no primary of that name".to_owned())
        }
        // Of a library, made from addresses and system errors only.
        _ => (Unavailable, error.to_string()),
    }
}

/// What the server said, without the arguments of the command that it may repeat.
fn without_arguments(code: &str, detail: &str) -> String {
    let detail = detail.split(", with args").next().unwrap_or_default();
    let detail: String = detail.chars().take(200).collect();
    format!("{code} {detail}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> DriverError {
        let answer = redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap();
        failed("get", &answer.extract_error().unwrap_err())
    }

    #[test]
    fn kinds() {
        for (text, kind) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", ErrorKind::Unavailable),
            ("READONLY You can't write against a read only replica.", ErrorKind::Unavailable),
            ("LOADING Redis is loading the dataset in memory", ErrorKind::Unavailable),
            ("CLUSTERDOWN The cluster is down", ErrorKind::Unavailable),
            ("TRYAGAIN Multiple keys request during rehashing of slot", ErrorKind::Unavailable),
            ("MASTERDOWN Link with MASTER is down", ErrorKind::Unavailable),
            ("ERR max number of clients reached", ErrorKind::Unavailable),
            ("NOAUTH Authentication required.", ErrorKind::Config),
            ("WRONGPASS invalid username-password pair or user is disabled.", ErrorKind::Config),
            ("NOPERM this user has no permissions to run the 'get' command", ErrorKind::Config),
            ("MOVED 7365 127.0.0.1:7001", ErrorKind::Config),
            (
                "ERR unknown command 'GETDEL', with args beginning with: 'k' ",
                ErrorKind::Unsupported,
            ),
        ] {
            let error = said(text);
            assert_eq!(error.kind(), kind, "{text}: {error}");
            assert_eq!(error.is_transient(), kind == ErrorKind::Unavailable, "{text}");
        }
    }

    #[test]
    fn arguments_are_left_out() {
        let error = said(
            "ERR unknown command 'EVALSHA', with args beginning with: 'abc' '1' 'key' 'secret'",
        );
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(error.to_string().contains("EVALSHA"), "{error}");
    }

    #[test]
    fn lists_in_place_of_strings_are_foreign() {
        for text in [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "ERR Error running script: WRONGTYPE Operation against a key",
        ] {
            let answer = redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap();
            assert!(is_foreign(&answer.extract_error().unwrap_err()), "{text}");
        }
    }
}
