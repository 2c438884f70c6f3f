//! The servers, and connections to them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::rustls::crypto::{CryptoProvider, ring};
use async_nats::{Auth, AuthError, Client, ConnectOptions, Event, ServerAddr, ServerError};
use bentocache_driver::kit::Backoff;
use bentocache_driver::{DriverError, OptionErrors, Provider};
use percent_encoding::percent_decode_str;
use tokio::sync::watch;

use crate::credentials::Credentials;
use crate::error;
use crate::link::Reports;

/// The pause after the driver is closed: async-nats keeps trying even then.
const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The application's changes of the library's options.
pub(crate) type Configure = Arc<dyn Fn(ConnectOptions) -> ConnectOptions + Send + Sync>;

/// The arguments of the constructors.
pub(crate) enum Source {
    Urls(Vec<String>),
    Client(Client),
}

/// The configuration of a driver.
pub(crate) struct Settings {
    pub(crate) source: Source,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) ping_interval: Duration,
    pub(crate) configure: Option<Configure>,
    pub(crate) credentials: Option<Provider<Credentials>>,
    pub(crate) errors: OptionErrors,
}

impl Settings {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(1),
            configure: None,
            credentials: None,
            errors: OptionErrors::default(),
        }
    }

    /// The application's client, or a new one, which reconnects until `closed` is true.
    pub(crate) async fn client(
        &self,
        reports: &Arc<Reports>,
        closed: watch::Receiver<bool>,
    ) -> Result<Client, DriverError> {
        let urls = match &self.source {
            Source::Client(client) => return Ok(client.clone()),
            Source::Urls(urls) if urls.is_empty() => {
                return Err(error::config("no URL was given; name at least one server"));
            }
            Source::Urls(urls) => urls,
        };
        let mut login = None;
        let mut servers = Vec::with_capacity(urls.len());
        for url in urls {
            let (server, its_login) = parse(url)?;
            servers.push(server);
            login = login.or(its_login);
        }
        provide_cryptography();
        let connect = match &self.credentials {
            Some(provider) => asking(provider.clone()),
            None => ConnectOptions::new(),
        };
        let mut connect = connect
            .name("bentocache")
            .connection_timeout(self.connect_timeout)
            .ping_interval(self.ping_interval);
        connect = match login.filter(|_| self.credentials.is_none()) {
            Some(Login { user, password: Some(password) }) => {
                connect.user_and_password(user, password)
            }
            Some(Login { user, password: None }) => connect.token(user),
            None => connect,
        };
        if let Some(configure) = &self.configure {
            connect = configure(connect);
        }
        let reports = Arc::clone(reports);
        connect = connect
            .max_reconnects(None)
            .reconnect_delay_callback(move |attempt| pause(attempt, *closed.borrow()))
            .event_callback(move |event| {
                report(&reports, &event);
                std::future::ready(())
            });
        let opening = connect.connect(servers);
        opening.await.map_err(|wrong| error::connect(wrong, self.connect_timeout))
    }
}

/// Options with which the library asks a provider for each login.
fn asking(provider: Provider<Credentials>) -> ConnectOptions {
    ConnectOptions::with_auth_callback(move |_nonce| {
        let provider = provider.clone();
        // A task, because the library requires a `Sync` future.
        let asked = tokio::spawn(async move { provider.ask().await });
        async move {
            let gone = |_| Err("the provider of credentials panicked".to_owned());
            let login = asked.await.unwrap_or_else(gone).map_err(AuthError::new)?;
            let mut auth = Auth::new();
            match login.user {
                Some(user) => (auth.username, auth.password) = (Some(user), Some(login.password)),
                None => auth.token = Some(login.password),
            }
            Ok(auth)
        }
    })
}

/// Makes sure that a TLS connection finds one cryptography provider: the library panics if two are
/// compiled in and none is installed. Any server may require TLS, whatever the URL says. A provider
/// that the application installed has precedence.
fn provide_cryptography() {
    if CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster.
        let _ = ring::default_provider().install_default();
    }
}

/// The pause before an attempt.
fn pause(attempt: usize, is_closed: bool) -> Duration {
    if is_closed {
        return NEVER;
    }
    match attempt {
        0 | 1 => Duration::ZERO,
        _ => Backoff::default().pause_after(u32::try_from(attempt - 2).unwrap_or(u32::MAX)),
    }
}

fn report(reports: &Reports, event: &Event) {
    match event {
        Event::SlowConsumer(_) => reports.gap(),
        Event::ServerError(ServerError::Other(said)) => reports.rights.note(said),
        _ => {}
    }
    reports.changed();
}

/// User and password; a user alone is a token.
struct Login {
    user: String,
    password: Option<String>,
}

/// The server and the login of a URL. They are separated because the library would log the login.
/// The error shows no part of the URL: any part of an invalid URL may be a password.
fn parse(url: &str) -> Result<(ServerAddr, Option<Login>), DriverError> {
    let wrong = || {
        error::config(
            "the URL cannot be used; write nats://user:password@host:4222, nats://token@host, or \
             tls://host for TLS, and percent-encode special characters of the password",
        )
    };
    let address: ServerAddr = url.parse().map_err(|_| wrong())?;
    let mut plain = address.into_inner();
    if plain.host_str().is_none_or(str::is_empty) {
        return Err(wrong());
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let login = (!plain.username().is_empty()).then(|| Login {
        user: decoded(plain.username()),
        password: plain.password().map(decoded),
    });
    plain.set_username("").and_then(|()| plain.set_password(None)).map_err(|()| wrong())?;
    let server = ServerAddr::from_url(plain).map_err(|_| wrong())?;
    if server.is_websocket() {
        return Err(error::config(
            "a WebSocket URL cannot be used; write nats://host:4222, or make a client of \
             async-nats with its feature `websockets` and hand it to NatsBus::from_client",
        ));
    }
    Ok((server, login))
}

#[cfg(test)]
mod tests {
    use bentocache_driver::ErrorKind;

    use super::*;

    #[test]
    fn logins_are_taken_out_of_urls() {
        let (server, login) = parse("nats://us%20er:pass%40word@host:4223").unwrap();
        assert_eq!(server.as_url_str(), "nats://host:4223");
        let login = login.unwrap();
        assert_eq!((&*login.user, login.password.as_deref()), ("us er", Some("pass@word")));
        let (server, login) = parse("s3cret@host").unwrap();
        assert_eq!(server.as_url_str(), "nats://host");
        let login = login.unwrap();
        assert_eq!((&*login.user, login.password.as_deref()), ("s3cret", None));
        let (server, login) = parse("tls://host").unwrap();
        assert!(server.tls_required() && login.is_none());
    }

    #[test]
    fn errors_show_nothing_of_the_url() {
        for url in [
            "",
            "http://u:s3cret@host",
            "nats://u:s3cret@",
            "nats://u:s3cret@h:port",
            "ws://s3cret@h",
        ] {
            let Err(error) = parse(url) else { panic!("{url:?} was taken") };
            assert_eq!(error.kind(), ErrorKind::Config, "{url:?}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn pauses_end_with_the_driver() {
        assert_eq!(pause(1, false), Duration::ZERO);
        for attempt in [2, 5, 8, 1_000_000, usize::MAX] {
            assert!(pause(attempt, false) <= Duration::from_secs(1), "{attempt}");
        }
        assert_eq!(pause(1, true), NEVER);
    }
}
