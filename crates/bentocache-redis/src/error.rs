//! Errors: the failure, the server, and what an operator can do.
//!
//! A message of the server is passed on only if it cannot contain keys or values. The message about
//! an unknown command, for example, repeats its arguments.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::kit::{TlsAdvice, tls_reason};
use bentocache_driver::{DriverError, ErrorKind};
use redis::{ErrorKind as Kind, RedisError, ServerErrorKind as Server};

/// The kind of deployment. The same error code means different things: a redirection is a temporary
/// state of a cluster, and a wrong constructor anywhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Single,
    Sentinel,
    Cluster,
}

/// The server that an error is about.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) mode: Mode,
    /// The address, without user and password; empty if it is unknown.
    pub(crate) name: Arc<str>,
}

impl Place {
    pub(crate) fn new(mode: Mode, name: impl Into<Arc<str>>) -> Self {
        Self { mode, name: name.into() }
    }

    /// The start of every message: `doing` completes "cannot …".
    fn cannot(&self, doing: &str) -> String {
        match &*self.name {
            "" => format!("redis: cannot {doing}"),
            name => format!("redis at {name}: cannot {doing}"),
        }
    }

    /// The error of a failed command.
    pub(crate) fn failed(&self, doing: &str, error: &RedisError) -> DriverError {
        let (kind, reason) = explain(self.mode, error);
        let made = DriverError::new(kind, format!("{}: {reason}", self.cannot(doing)));
        // The system's error is attached as the source. The message quotes the server as far as
        // that is safe to show.
        if error.is_io_error() { made.with_source(error.clone()) } else { made }
    }

    pub(crate) fn error(
        &self,
        kind: ErrorKind,
        doing: &str,
        reason: impl fmt::Display,
    ) -> DriverError {
        DriverError::new(kind, format!("{}: {reason}", self.cannot(doing)))
    }

    pub(crate) fn unavailable(&self, doing: &str, reason: &str) -> DriverError {
        self.error(ErrorKind::Unavailable, doing, reason)
    }

    /// A timeout.
    pub(crate) fn late(&self, doing: &str, limit: Duration) -> DriverError {
        let reason = format_args!("the server has not answered within {limit:?}");
        self.error(ErrorKind::Timeout, doing, reason)
    }

    /// An answer that violates the protocol.
    pub(crate) fn odd(&self, doing: &str) -> DriverError {
        self.error(
            ErrorKind::Denied,
            doing,
            "the answer is not one of Redis; check that the address is that of a Redis server",
        )
    }

    pub(crate) fn failure(&self, error: &RedisError) -> Failure {
        let (kind, reason) = explain(self.mode, error);
        Failure { kind, reason, place: self.clone() }
    }

    pub(crate) fn no_connection(&self, limit: Duration) -> Failure {
        let reason = format!("no connection within {limit:?}; {CHECK_ADDRESS}");
        Failure { kind: ErrorKind::Unavailable, reason, place: self.clone() }
    }

    /// The reason why calls wait while a connection is opened.
    pub(crate) fn opening(&self) -> String {
        format!("{} is not connected yet; {CHECK_ADDRESS}", self.server())
    }

    /// The reason why a sent call waits.
    pub(crate) fn silent(&self) -> String {
        format!("{} does not answer; is it overloaded, or the network down?", self.server())
    }

    fn server(&self) -> String {
        match (&*self.name, self.mode) {
            ("", _) => "the server".to_owned(),
            (name, Mode::Single) => format!("the server at {name}"),
            (name, Mode::Cluster) => format!("the cluster at {name}"),
            (name, Mode::Sentinel) => format!("the primary {name}"),
        }
    }

    /// The error of a connection that could not be opened.
    pub(crate) fn not_opened(&self, error: &RedisError, is_tls: bool) -> Failure {
        let mut failure = self.failure(error);
        if let Some(reason) = tls_reason(&failure.reason, &TLS).filter(|_| is_tls) {
            failure.reason = reason;
            return failure;
        }
        let was_closed = was_closed(error);
        let advice = match is_tls {
            _ if error.is_timeout() => CHECK_ADDRESS,
            false if was_closed => "if the server expects TLS at this port, use rediss://",
            true if was_closed => "if the server does not speak TLS at this port, use redis://",
            _ => return failure,
        };
        failure.reason = format!("{}; {advice}", failure.reason);
        failure
    }
}

const TLS: TlsAdvice = TlsAdvice {
    trust: "name the authority with root_certificate",
    identify: "set client_certificate to one that it accepts",
    plain: "use redis://",
};

const CHECK_ADDRESS: &str = "check the address, the firewall, and whether the port is one for TLS: \
    rediss:// is with TLS, redis:// without";

/// Whether the peer closed a connection that it had accepted.
pub(crate) fn was_closed(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_connection_refusal()
}

pub(crate) fn closed() -> DriverError {
    DriverError::new(ErrorKind::Closed, "redis: the driver was disconnected")
}

pub(crate) fn runtime_ended() -> DriverError {
    DriverError::new(
        ErrorKind::Closed,
        "redis: the tokio runtime of the driver has ended; call it from a runtime that is running",
    )
}

pub(crate) fn interrupted() -> DriverError {
    DriverError::new(
        ErrorKind::Unavailable,
        "redis: the tokio runtime of the connection has ended during the call; try again",
    )
}

pub(crate) fn config(message: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Config, format!("redis: {message}"))
}

pub(crate) fn too_large(what: &str, size: usize, limit: usize) -> DriverError {
    DriverError::new(
        ErrorKind::TooLarge,
        format!(
            "redis: a {what} of {size} bytes exceeds the limit of {limit} bytes; store less, or \
             raise Redis::max_value and the server's proto-max-bulk-len"
        ),
    )
}

/// A wrong login or server is a configuration error while the cache is built.
pub(crate) fn at_build(error: DriverError) -> DriverError {
    match error.kind() {
        ErrorKind::Denied => DriverError::new(ErrorKind::Config, error.to_string()),
        _ => error,
    }
}

/// The kind and the reason of an error, for an error that is returned more than once.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    kind: ErrorKind,
    reason: String,
    place: Place,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, reason: impl Into<String>, place: &Place) -> Self {
        Self { kind, reason: reason.into(), place: place.clone() }
    }

    /// The answer of a sentinel, or its timeout.
    pub(crate) fn of_sentinel(error: &RedisError, is_tls: bool, place: &Place) -> Self {
        let reason = match server_error(error) {
            _ if is_about_login(error) => {
                "a sentinel refuses the login; set it with sentinel_login"
            }
            Some((code, detail)) if code == "ERR" && detail.as_deref().is_some_and(is_unknown) => {
                "the address is not that of a sentinel; use the sentinels' port, or Redis::new for \
                 a server"
            }
            _ => {
                let Self { kind, reason, .. } = place.not_opened(error, is_tls);
                return Self::new(kind, format!("a sentinel cannot be asked: {reason}"), place);
            }
        };
        Self::new(ErrorKind::Denied, reason, place)
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn error(&self, doing: &str) -> DriverError {
        self.place.error(self.kind, doing, &self.reason)
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

/// Whether a server that refused a PING still answers calls, even with errors. A server that is
/// loading its data does not.
pub(crate) fn may_answer(error: &RedisError) -> bool {
    is_about_login(error) || server_error(error).is_some_and(|(code, _)| code != "LOADING")
}

/// A description that is safe to show.
pub(crate) fn reason(error: &RedisError) -> String {
    explain(Mode::Cluster, error).1
}

/// Whether a node of a cluster could not be reached or had no answer.
pub(crate) fn has_no_node(error: &RedisError) -> bool {
    error.is_timeout() || error.kind() == Kind::ClusterConnectionNotFound
}

/// Whether the server rejects the login.
pub(crate) fn is_about_login(error: &RedisError) -> bool {
    error.kind() == Kind::AuthenticationFailed
        || server_error(error).is_some_and(|(code, _)| code == "NOAUTH" || code == "WRONGPASS")
}

/// Whether a refusal concerns the state of the server or the user's rights, and not the call: it
/// can end while the connection lives.
pub(crate) fn may_pass(error: &RedisError) -> bool {
    const CODES: [&str; 13] = [
        "MOVED",
        "ASK",
        "OOM",
        "READONLY",
        "MISCONF",
        "LOADING",
        "MASTERDOWN",
        "NOREPLICAS",
        "BUSY",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "NOPERM",
        "NOAUTH",
    ];
    server_error(error).is_some_and(|(code, detail)| {
        let detail = detail.unwrap_or_default();
        CODES.contains(&&*code)
            || code == "ERR" && CODES.iter().any(|code| detail.contains(&format!(": -{code} ")))
            || code == "ERR" && detail.contains("The user executing the script")
    })
}

pub(crate) fn is_about_rights(error: &RedisError) -> bool {
    server_error(error).is_some_and(|(code, _)| code == "NOPERM")
}

/// Whether the user lacks the right to run the command, for any key.
pub(crate) fn is_forbidden(error: &RedisError) -> bool {
    let said = server_error(error).filter(|(code, _)| code == "NOPERM");
    said.is_some_and(|(_, detail)| detail.is_some_and(|detail| detail.contains("to run the")))
}

/// Whether the server has become a replica, so that another server takes the writes.
pub(crate) fn is_demoted(error: &RedisError) -> bool {
    server_error(error).is_some_and(|(code, _)| code == "READONLY")
}

/// Whether the key holds a value of another type, which another application stored.
pub(crate) fn is_foreign(error: &RedisError) -> bool {
    server_error(error).is_some_and(|(code, detail)| {
        code == "WRONGTYPE" || detail.is_some_and(|detail| detail.contains("WRONGTYPE"))
    })
}

/// Whether a write came after its deadline.
pub(crate) fn is_late(error: &RedisError) -> bool {
    server_error(error).is_some_and(|(code, _)| code == "LATE")
}

pub(crate) fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == Kind::Server(Server::NoScript)
}

/// The code and the text of the server's error; those of the first one if a pipeline failed.
fn server_error(error: &RedisError) -> Option<(String, Option<String>)> {
    let errors = error.clone().into_server_errors()?;
    let (_, first) = errors.first()?;
    Some((first.code().to_owned(), first.details().map(str::to_owned)))
}

fn explain(mode: Mode, error: &RedisError) -> (ErrorKind, String) {
    use ErrorKind::{Denied, Timeout, Unavailable};
    if error.is_timeout() {
        return (Timeout, "no answer in time".to_owned());
    }
    if let Some((code, detail)) = server_error(error) {
        let detail = detail.unwrap_or_default();
        // Servers before Redis 7 wrap the error of a command that runs in a script.
        if let Some((inner, text)) =
            detail.split_once(": -").and_then(|(_, said)| said.split_once(' '))
        {
            return explain_answer(mode, inner, text);
        }
        return explain_answer(mode, &code, &detail);
    }
    match error.kind() {
        Kind::AuthenticationFailed => (Denied, WRONG_LOGIN.to_owned()),
        Kind::RESP3NotSupported => (
            Denied,
            "the server does not speak RESP3; use Redis 6 or later, or a compatible server"
                .to_owned(),
        ),
        Kind::MasterNameNotFoundBySentinel => {
            (Denied, "the sentinels know no primary of that name; correct the name".to_owned())
        }
        Kind::Parse => (
            Denied,
            "the answer is not in the protocol of Redis; check that host and port are those of a \
             Redis server"
                .to_owned(),
        ),
        Kind::ClusterConnectionNotFound => {
            (Unavailable, "the node of the cluster that has the key cannot be reached".to_owned())
        }
        // Texts of the library, made only from addresses and system errors.
        _ => (Unavailable, error.to_string()),
    }
}

const WRONG_LOGIN: &str = "wrong user name or password; correct them in the URL, or let the provider of credentials do so";

const MORE_RIGHTS: &str = "let an administrator extend the user's rights with ACL SETUSER";

/// The meaning of a server's error. The engine keeps changes that failed for any reason but
/// `TooLarge`.
fn explain_answer(mode: Mode, code: &str, detail: &str) -> (ErrorKind, String) {
    use ErrorKind::{Denied, Full, Timeout, TooLarge, Unavailable};
    let said = || format!("the server says {}", without_arguments(code, detail));
    let advice = |advice: &str| format!("{}; {advice}", said());
    match code {
        "NOAUTH" if mode == Mode::Sentinel => (Denied, "the primary requires a password; put it into the URL of the first sentinel (the login of the sentinels is sentinel_login)".to_owned()),
        "NOAUTH" => (Denied, "the server requires a password; put it into the URL, as in redis://user:password@host".to_owned()),
        "WRONGPASS" => (Denied, WRONG_LOGIN.to_owned()),
        "NOPERM" => (Denied, advice(MORE_RIGHTS)),
        "ERR" if detail.contains("The user executing the script") => (Denied, advice(MORE_RIGHTS)),
        "DENIED" => (Denied, "the server is in protected mode and refuses other hosts; set its requirepass, or protected-mode to no".to_owned()),
        "OOM" => (Full, "the server is out of memory; raise its maxmemory, or set maxmemory-policy to volatile-lru".to_owned()),
        "READONLY" => (Denied, "the server is a replica and refuses writes; use the address of the primary, or Redis::sentinel".to_owned()),
        "MISCONF" => (Denied, advice("free disk space for the server's snapshots, or set stop-writes-on-bgsave-error to no")),
        "LOADING" => (Unavailable, "the server is still loading its data; wait until it has".to_owned()),
        "MOVED" | "ASK" if mode == Mode::Cluster => (Unavailable, advice("slots are moving to that node, or it cannot be reached; the call succeeds when it can")),
        "CROSSSLOT" | "MOVED" | "ASK" => (Denied, "the server is part of a cluster; use Redis::cluster".to_owned()),
        "CLUSTERDOWN" | "TRYAGAIN" if mode == Mode::Cluster => (Unavailable, advice("the cluster serves these keys again when all slots have a primary")),
        "CLUSTERDOWN" | "TRYAGAIN" => (Unavailable, advice("the server is part of a cluster; use Redis::cluster")),
        "MASTERDOWN" => (Unavailable, advice("wait until the replica has reached its primary, or use the address of the primary")),
        "LATE" => (Timeout, "the write reached the server after its deadline and was refused".to_owned()),
        "NOREPLICAS" => (Unavailable, advice("bring the replicas back, or lower min-replicas-to-write")),
        "BUSY" => (Unavailable, advice("wait until the script ends, or end it with SCRIPT KILL")),
        "ERR" if detail.contains("max number of clients") => (Unavailable, "the server has no connection left; raise its maxclients, or share a connection with from_manager".to_owned()),
        "ERR" if is_about_size(detail) => (TooLarge, advice("store less, or raise the server's limit")),
        "ERR" if detail.contains("cluster support disabled") => (Denied, "the server is not part of a cluster; use Redis::new".to_owned()),
        "ERR" if is_unknown(detail) => (Denied, advice("upgrade to Redis 6.2 or later, or allow the command")),
        // For example "invalid password" of servers before Redis 6, and "only (P|S)SUBSCRIBE …".
        "ERR" if detail.contains("AUTH") || detail.contains("invalid password") => (Denied, advice("correct user name and password in the URL")),
        _ => (Unavailable, said()),
    }
}

fn is_unknown(detail: &str) -> bool {
    detail.starts_with("unknown command") || detail.contains("unknown subcommand")
}

/// Whether the server, or a proxy in front of it, refuses a request because of its size.
fn is_about_size(detail: &str) -> bool {
    ["invalid bulk length", "exceeds maximum allowed size", "max request size exceeded"]
        .iter()
        .any(|text| detail.contains(text))
}

/// The server's message, without the arguments of the command that it may repeat.
fn without_arguments(code: &str, detail: &str) -> String {
    let detail = detail.split(", with args").next().unwrap_or_default();
    let detail: String = detail.chars().take(200).collect();
    format!("{code} {detail}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said_in(mode: Mode, text: &str) -> DriverError {
        let answer = redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap();
        let place = Place::new(mode, "host:6379");
        place.failed("get", &answer.extract_error().unwrap_err())
    }

    fn said(text: &str) -> DriverError {
        said_in(Mode::Single, text)
    }

    #[test]
    fn an_answer_has_one_kind_and_advice() {
        use ErrorKind::{Denied, Full, TooLarge, Unavailable};
        for (text, kind, advice) in [
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                Full,
                "raise its maxmemory",
            ),
            (
                "ERR Error running script (call to f_1): @user_script:1: -OOM not allowed",
                Full,
                "raise",
            ),
            ("READONLY You can't write against a read only replica.", Denied, "the primary"),
            ("MISCONF Redis is configured to save RDB snapshots", Denied, "disk space"),
            ("LOADING Redis is loading the dataset in memory", Unavailable, "wait"),
            ("CLUSTERDOWN The cluster is down", Unavailable, "Redis::cluster"),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Unavailable, "use"),
            ("DENIED Redis is running in protected mode", Denied, "requirepass"),
            ("MASTERDOWN Link with MASTER is down", Unavailable, "the primary"),
            ("NOREPLICAS Not enough good replicas to write.", Unavailable, "min-replicas"),
            ("ERR max number of clients reached", Unavailable, "raise its maxclients"),
            ("NOAUTH Authentication required.", Denied, "into the URL"),
            ("WRONGPASS invalid username-password pair or user is disabled.", Denied, "URL"),
            ("NOPERM this user has no permissions to run the 'get' command", Denied, "ACL SETUSER"),
            ("ERR The user executing the script can't run this command", Denied, "ACL SETUSER"),
            ("MOVED 7365 127.0.0.1:7001", Denied, "Redis::cluster"),
            ("ASK 7365 127.0.0.1:7001", Denied, "Redis::cluster"),
            ("ERR This instance has cluster support disabled", Denied, "Redis::new"),
            ("ERR Protocol error: invalid bulk length", TooLarge, "limit"),
            ("ERR unknown command 'GETDEL', with args beginning with: 'k' ", Denied, "upgrade"),
        ] {
            let error = said(text);
            assert_eq!(error.kind(), kind, "{text}: {error}");
            assert_eq!(error.is_transient(), kind != TooLarge, "{text}");
            assert!(error.to_string().contains(advice), "{error}");
            assert!(error.to_string().starts_with("redis at host:6379: cannot get: "), "{error}");
        }
    }

    #[test]
    fn redirections_pass_in_a_cluster() {
        for text in ["MOVED 7365 127.0.0.1:7001", "ASK 1 a:1", "TRYAGAIN", "CLUSTERDOWN down"] {
            let error = said_in(Mode::Cluster, text);
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{text}: {error}");
            assert!(!error.to_string().contains("Redis::cluster"), "{error}");
        }
    }

    #[test]
    fn the_login_of_a_primary_is_in_the_url_of_a_sentinel() {
        let error = said_in(Mode::Sentinel, "NOAUTH Authentication required.").to_string();
        assert!(error.contains("first sentinel") && error.contains("sentinel_login"), "{error}");
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
