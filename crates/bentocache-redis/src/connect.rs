//! The servers, and connections to them.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind, OptionErrors, Provider};
use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::aio::{ConnectionManager, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult,
};
use tokio::time::timeout;

use crate::address::AddressMap;
use crate::cluster;
use crate::error::{self, Failure, Mode, Place};
use crate::login::Credentials;

/// The TCP keepalive time of a cluster's connections.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The arguments of the drivers' constructors.
#[derive(Clone)]
pub(crate) enum Connect {
    Single(String),
    Cluster(Vec<String>),
    Sentinel { urls: Vec<String>, primary: String },
    Client(Client),
    Given(Given),
}

impl Connect {
    /// The server and the database, without a login; `None` for a connection that was given.
    pub(crate) fn identity(&self) -> Option<String> {
        let of = |info: &ConnectionInfo| format!("{}/{}", info.addr(), info.redis_settings().db());
        let url = |urls: &[String]| parse(urls.first()?).ok().as_ref().map(of);
        match self {
            Self::Single(url) => parse(url).ok().as_ref().map(of),
            Self::Cluster(urls) => url(urls),
            Self::Sentinel { urls, primary } => Some(format!("{} {primary}", url(urls)?)),
            Self::Client(client) => Some(of(client.get_connection_info())),
            Self::Given(_) => None,
        }
    }
}

/// A connection that the application opened.
#[derive(Clone)]
pub(crate) enum Given {
    Multiplexed(MultiplexedConnection),
    Manager(ConnectionManager),
    Cluster(ClusterConnection),
}

/// The configuration of a driver.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) connect: Connect,
    pub(crate) options: Options,
}

/// The options that the drivers' setters change.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) prefix: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) ping_interval: Duration,
    pub(crate) sentinel_login: Option<(Option<String>, String)>,
    pub(crate) write_deadline: Option<Duration>,
    pub(crate) credentials: Option<Provider<Credentials>>,
    pub(crate) node_address_map: AddressMap,
    pub(crate) errors: OptionErrors,
    #[cfg(feature = "tls")]
    pub(crate) root_certificate: Option<Vec<u8>>,
    #[cfg(feature = "tls")]
    pub(crate) client_certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(1),
            sentinel_login: None,
            write_deadline: None,
            credentials: None,
            node_address_map: AddressMap::default(),
            errors: OptionErrors::default(),
            #[cfg(feature = "tls")]
            root_certificate: None,
            #[cfg(feature = "tls")]
            client_certificate: None,
        }
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No URLs: they may contain passwords.
        f.write_str(match self {
            Self::Single(_) => "Single",
            Self::Cluster(_) => "Cluster",
            Self::Sentinel { .. } => "Sentinel",
            Self::Client(_) => "Client",
            Self::Given(_) => "Given",
        })
    }
}

/// The validated settings. They do not change any more.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) target: Target,
    pub(crate) place: Place,
    pub(crate) options: Arc<Options>,
}

#[derive(Clone)]
pub(crate) enum Target {
    Node(Client),
    Cluster(Arc<Cluster>),
    Sentinel(Arc<Sentinel>),
    Given(Given),
}

pub(crate) struct Cluster {
    client: ClusterClient,
    /// Everything but the address of a node's connection.
    seeds: Vec<ConnectionInfo>,
    /// The nodes of the last known topology; before that, the seeds.
    known: Mutex<Vec<ConnectionInfo>>,
    /// The last login of the provider.
    login: Mutex<Option<Credentials>>,
    options: Arc<Options>,
}

pub(crate) struct Sentinel {
    seeds: Vec<ConnectionInfo>,
    primary: String,
    options: Arc<Options>,
}

impl Connect {
    /// The place that errors name.
    pub(crate) fn place(&self) -> Place {
        let names = |urls: &[String]| {
            let names: Vec<_> = urls.iter().map(|url| name_of(url.as_str())).collect();
            names.join(", ")
        };
        match self {
            Self::Single(url) => Place::new(Mode::Single, name_of(url.as_str())),
            Self::Cluster(urls) => Place::new(Mode::Cluster, names(urls)),
            Self::Sentinel { urls, primary } => {
                Place::new(Mode::Sentinel, format!("{primary:?} of {}", names(urls)))
            }
            Self::Client(client) => {
                Place::new(Mode::Single, client.get_connection_info().addr().to_string())
            }
            Self::Given(Given::Cluster(_)) => Place::new(Mode::Cluster, ""),
            Self::Given(_) => Place::new(Mode::Single, ""),
        }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_) | Self::Given(Given::Cluster(_)))
    }

    pub(crate) fn is_given(&self) -> bool {
        matches!(self, Self::Given(_))
    }
}

impl Settings {
    /// Validates the settings.
    pub(crate) fn servers(&self) -> Result<Servers, DriverError> {
        self.options.errors.check("redis")?;
        let options = Arc::new(self.options.clone());
        #[cfg(feature = "tls")]
        options.check_client_certificate()?;
        options.node_address_map.check()?;
        let target = match &self.connect {
            Connect::Single(url) => Target::Node(options.client(parse(url)?)?),
            Connect::Client(client) => {
                secure(client.get_connection_info().addr());
                Target::Node(client.clone())
            }
            Connect::Cluster(urls) => {
                let seeds = parse_all(urls)?;
                let client = options.cluster_client(&seeds)?;
                let known = Mutex::new(seeds.clone());
                let (login, options) = (Mutex::default(), Arc::clone(&options));
                Target::Cluster(Arc::new(Cluster { client, seeds, known, login, options }))
            }
            Connect::Sentinel { urls, primary } => Target::Sentinel(Arc::new(Sentinel {
                seeds: parse_all(urls)?,
                primary: primary.clone(),
                options: Arc::clone(&options),
            })),
            Connect::Given(given) => Target::Given(given.clone()),
        };
        Ok(Servers { target, place: self.connect.place(), options })
    }
}

/// The address in a URL. No other part of a URL may be shown.
fn name_of(url: &str) -> String {
    url.into_connection_info().map(|info| info.addr().to_string()).unwrap_or_default()
}

fn parse_all(urls: &[String]) -> Result<Vec<ConnectionInfo>, DriverError> {
    if urls.is_empty() {
        return Err(error::config("no URL was given; name at least one node"));
    }
    urls.iter().map(|url| parse(url)).collect()
}

/// The error shows no part of the URL: any part of an invalid URL may be a password.
fn parse(url: &str) -> Result<ConnectionInfo, DriverError> {
    let is_secure = ["rediss:", "valkeys:"].iter().any(|scheme| url.starts_with(scheme));
    if is_secure && cfg!(not(feature = "tls")) {
        return Err(error::config(
            "a rediss:// URL needs TLS; switch on the feature `redis-tls` of bentocache",
        ));
    }
    if is_secure && url.contains('#') {
        return Err(error::config(
            "the checks of TLS cannot be switched off in the URL; \
             name the server's certificate authority with root_certificate",
        ));
    }
    let info = url.into_connection_info().map_err(|wrong| {
        let reason = match wrong.detail() {
            // A constant text of the library; the detail may quote the URL.
            Some(_) => "a part of it is not valid".to_owned(),
            None => wrong.to_string(),
        };
        error::config(format_args!(
            "the URL cannot be used ({reason}); write redis://user:password@host:6379/0, \
             rediss://… for TLS, or unix:///path/to/socket, and percent-encode special \
             characters of the password"
        ))
    })?;
    secure(info.addr());
    Ok(info.set_tcp_settings(tcp_settings()))
}

fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 5);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    let settings = settings.set_user_timeout(KEEPALIVE * 2);
    settings
}

/// Makes sure that a TLS connection finds a cryptography provider: the client panics without one,
/// and takes it only from the process default. A provider that the application installed has
/// precedence.
fn secure(addr: &ConnectionAddr) {
    #[cfg(feature = "tls")]
    if matches!(addr, ConnectionAddr::TcpTls { .. })
        && rustls::crypto::CryptoProvider::get_default().is_none()
    {
        // An error means that another thread was faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    #[cfg(not(feature = "tls"))]
    let _ = addr;
}

impl Options {
    /// The time limit for a ping. A ping waits behind large values, so a user who allows more time
    /// for calls allows more for pings.
    pub(crate) fn answer_limit(&self) -> Duration {
        const SHORTEST: Duration = Duration::from_secs(1);
        (self.timeout / 3).max(SHORTEST).min(self.timeout)
    }

    /// The configuration of a connection to one server.
    pub(crate) fn of_one(connect_timeout: Duration) -> AsyncConnectionConfig {
        // The driver limits every call itself, and this limit would not be longer.
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect_timeout))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(1024)
    }

    /// Otherwise a certificate and a key that do not match would fail in every handshake.
    #[cfg(feature = "tls")]
    fn check_client_certificate(&self) -> Result<(), DriverError> {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

        let Some((certificate, key)) = &self.client_certificate else { return Ok(()) };
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(certificate)
                .collect::<Result<_, _>>()
                .map_err(|_| error::config("the client certificate is not a certificate in PEM"))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| error::config("the key of the client certificate is not a key in PEM"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(error::config)?
            .with_root_certificates(rustls::RootCertStore::empty());
        builder.with_client_auth_cert(chain, key).map(drop).map_err(|wrong| {
            error::config(format_args!(
                "the client certificate and its key cannot be used together ({wrong}); give \
                 client_certificate the key that belongs to the certificate"
            ))
        })
    }

    #[cfg(feature = "tls")]
    fn certificates(&self) -> Option<redis::TlsCertificates> {
        let client_tls = self
            .client_certificate
            .clone()
            .map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key });
        let root_cert = self.root_certificate.clone();
        (client_tls.is_some() || root_cert.is_some())
            .then_some(redis::TlsCertificates { client_tls, root_cert })
    }

    fn client(&self, info: ConnectionInfo) -> Result<Client, DriverError> {
        #[cfg(feature = "tls")]
        if let Some(certificates) = self.certificates()
            && matches!(info.addr(), ConnectionAddr::TcpTls { .. })
        {
            return Client::build_with_tls(info, certificates).map_err(|wrong| {
                error::config(format_args!("the certificates cannot be used: {wrong}"))
            });
        }
        Client::open(info).map_err(error::config)
    }

    /// The address map for the client of a cluster.
    fn node_addresses<Address>(&self) -> Result<HashMap<Address, Address>, DriverError>
    where
        Address: FromStr<Err = RedisError> + Eq + Hash,
    {
        let parse = |(host, port): &(String, u16)| format!("{host}:{port}").parse();
        let pairs = self.node_address_map.pairs();
        let pairs = pairs.map(|(announced, reachable)| Ok((parse(announced)?, parse(reachable)?)));
        pairs.collect::<RedisResult<_>>().map_err(error::config)
    }

    fn cluster_client(&self, seeds: &[ConnectionInfo]) -> Result<ClusterClient, DriverError> {
        let builder = ClusterClientBuilder::new(seeds.iter().cloned())
            .connection_timeout(self.connect_timeout)
            // For one node; the driver limits the whole.
            .response_timeout(self.timeout)
            .overall_response_timeout(None)
            .retries(3)
            .min_retry_wait(20)
            .max_retry_wait(200)
            .tcp_settings(tcp_settings())
            .node_address_map(self.node_addresses()?);
        #[cfg(feature = "tls")]
        let builder = match self.certificates() {
            Some(certificates) => builder.certs(certificates),
            None => builder,
        };
        builder.build().map_err(error::config)
    }

    async fn login(&self, place: &Place) -> Result<Option<Credentials>, Failure> {
        let Some(provider) = &self.credentials else { return Ok(None) };
        let asked = provider.ask().await.map(Some);
        asked.map_err(|reason| Failure::new(ErrorKind::Unavailable, reason, place))
    }
}

impl Target {
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_) | Self::Given(Given::Cluster(_)))
    }
}

impl Servers {
    /// The server for this attempt: the primary that the sentinels name, or the cluster's nodes in
    /// turn.
    pub(crate) async fn node(&self, attempt: usize) -> Result<Client, Failure> {
        let Self { target, place, options } = self;
        match target {
            Target::Node(client) => {
                let login = options.login(place).await?;
                with_login(client, login).map_err(|wrong| place.failure(&wrong))
            }
            Target::Cluster(cluster) => {
                cluster.learn_login(place).await?;
                cluster.node(attempt).map_err(|wrong| place.failure(&wrong))
            }
            Target::Sentinel(sentinel) => {
                let client = sentinel.primary(place).await?;
                let login = options.login(place).await?;
                with_login(&client, login).map_err(|wrong| place.failure(&wrong))
            }
            Target::Given(_) => {
                let reason = "a connection that was given cannot be opened again";
                Err(Failure::new(ErrorKind::Unavailable, reason, place))
            }
        }
    }
}

impl Cluster {
    /// Connects through one of the seeds that are not known to be dead.
    pub(crate) async fn connection(
        &self,
        place: &Place,
        dead: &[(String, u16)],
    ) -> Result<ClusterConnection, Failure> {
        self.learn_login(place).await?;
        let dead: Vec<_> = dead.iter().map(|(host, port)| self.at(host, *port)).collect();
        let is_dead = |seed: &&ConnectionInfo| dead.iter().any(|dead| dead.addr() == seed.addr());
        let mut seeds: Vec<_> = self.seeds.iter().filter(|seed| !is_dead(seed)).cloned().collect();
        if seeds.is_empty() {
            seeds.clone_from(&self.seeds);
        }
        let login = self.login();
        let made = match login {
            None if seeds.len() == self.seeds.len() => self.client.get_async_connection().await,
            login => {
                if let Some(login) = login {
                    seeds = seeds.into_iter().map(|seed| info_with(seed, &login)).collect();
                }
                let client = self
                    .options
                    .cluster_client(&seeds)
                    .map_err(|wrong| Failure::new(wrong.kind(), wrong.to_string(), place))?;
                client.get_async_connection().await
            }
        };
        made.map_err(|wrong| place.failure(&wrong))
    }

    /// Checks whether a node answers on a separate connection; the error completes "the node …".
    pub(crate) async fn look(
        &self,
        (host, port): &(String, u16),
        place: &Place,
        limit: Duration,
    ) -> Result<(), String> {
        let ping = async {
            // Uses the login of the last connection if there is no other one.
            let _ = self.learn_login(place).await;
            let client = self.node_at(host, *port)?;
            let config = Options::of_one(limit);
            let mut conn = client.get_multiplexed_async_connection_with_config(&config).await?;
            redis::cmd("PING").query_async::<()>(&mut conn).await
        };
        match timeout(limit, ping).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(wrong)) if error::may_answer(&wrong) => Ok(()),
            Ok(Err(wrong)) => Err(format!("does not answer ({})", error::reason(&wrong))),
            Err(_) => Err(format!("does not answer within {limit:?}")),
        }
    }

    /// Asks the provider, if any, for a login before connections to nodes are opened.
    async fn learn_login(&self, place: &Place) -> Result<(), Failure> {
        if let Some(login) = self.options.login(place).await? {
            *self.login.lock().unwrap_or_else(PoisonError::into_inner) = Some(login);
        }
        Ok(())
    }

    fn login(&self) -> Option<Credentials> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn node(&self, attempt: usize) -> RedisResult<Client> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.client_of(known[attempt % known.len()].clone())
    }

    /// The addresses that the cluster announces, by the answer of one node, and whether that node's
    /// own address is among them.
    pub(crate) async fn announced(
        &self,
        attempt: usize,
        place: &Place,
    ) -> Result<(String, bool), Failure> {
        let failed = |wrong| place.failure(&wrong);
        let client = self.node(attempt).map_err(failed)?;
        let config = Options::of_one(self.options.connect_timeout);
        let addr = client.get_connection_info().addr();
        let opened = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut conn = opened.map_err(|wrong| place.not_opened(&wrong, is_tls(addr)))?;
        let nodes = cluster::nodes(&client, &mut conn).await.map_err(failed)?;
        let here = tcp_address(client.get_connection_info().addr());
        let reached = |(host, port): &(String, u16)| {
            Some(self.options.node_address_map.reachable(host, *port)) == here
        };
        let is_announced = nodes.all.iter().any(reached);
        let names = nodes.all.iter().map(|(host, port)| format!("{host}:{port}"));
        Ok((names.collect::<Vec<_>>().join(", "), is_announced))
    }

    /// Updates the known nodes.
    pub(crate) fn remember(&self, nodes: &[(String, u16)]) {
        let mut all: Vec<_> = nodes.iter().map(|(host, port)| self.at(host, *port)).collect();
        // The seeds are tried last, in case all other nodes have moved.
        all.extend(self.seeds.iter().cloned());
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// A node for this turn other than the one at the address.
    pub(crate) fn other(&self, turn: usize, than: &ConnectionAddr) -> RedisResult<Client> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let others: Vec<_> = known.iter().filter(|info| info.addr() != than).collect();
        match others.len() {
            0 => Err((redis::ErrorKind::ClusterConnectionNotFound, "no other node").into()),
            count => self.client_of(others[turn % count].clone()),
        }
    }

    pub(crate) fn node_at(&self, host: &str, port: u16) -> RedisResult<Client> {
        self.client_of(self.at(host, port))
    }

    /// The connection parameters of the node with this announced address.
    fn at(&self, host: &str, port: u16) -> ConnectionInfo {
        let (host, port) = self.options.node_address_map.reachable(host, port);
        at(&self.seeds[0], &host, port)
    }

    fn client_of(&self, info: ConnectionInfo) -> RedisResult<Client> {
        let info = match self.login() {
            Some(login) => info_with(info, &login),
            None => info,
        };
        no_client(self.options.client(info))
    }
}

impl Sentinel {
    /// The connection parameters of the sentinel for this turn.
    pub(crate) fn client(&self, turn: usize) -> RedisResult<Client> {
        let seed = &self.seeds[turn % self.seeds.len()];
        let mut login = RedisConnectionInfo::default();
        if let Some((user, password)) = &self.options.sentinel_login {
            login = login.set_password(password);
            if let Some(user) = user {
                login = login.set_username(user);
            }
        }
        self.client_of(seed.clone().set_redis_settings(login))
    }

    /// The reachable address of the primary, from one sentinel; `None` if the sentinel does not
    /// know the name.
    pub(crate) async fn ask(
        &self,
        sentinel: &mut MultiplexedConnection,
    ) -> RedisResult<Option<(String, u16)>> {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.primary);
        let named: Option<(String, u16)> = ask.query_async(sentinel).await?;
        Ok(named.map(|(host, port)| self.options.node_address_map.reachable(&host, port)))
    }

    async fn ask_at(&self, turn: usize) -> RedisResult<Option<(String, u16)>> {
        let config = Options::of_one(self.options.connect_timeout);
        let client = self.client(turn)?;
        let mut conn = client.get_multiplexed_async_connection_with_config(&config).await?;
        self.ask(&mut conn).await
    }

    /// The primary that the first answering sentinel names. All sentinels are asked at once, so
    /// that a silent one costs no time.
    async fn primary(&self, place: &Place) -> Result<Client, Failure> {
        let mut answers: FuturesUnordered<_> =
            (0..self.seeds.len()).map(|turn| self.ask_at(turn)).collect();
        let mut failure: Option<Failure> = None;
        while let Some(answer) = answers.next().await {
            let reason = match answer {
                Ok(Some((host, port))) => {
                    let info = at(&self.seeds[0], &host, port);
                    return self.client_of(info).map_err(|wrong| place.failure(&wrong));
                }
                Ok(None) => Failure::new(
                    ErrorKind::Denied,
                    format!(
                        "the sentinels know no primary of that name ({:?}); correct the name",
                        self.primary
                    ),
                    place,
                ),
                Err(wrong) => Failure::of_sentinel(&wrong, is_tls(self.seeds[0].addr()), place),
            };
            // An error that a sentinel answered tells more than a timeout.
            if failure.as_ref().is_none_or(|known| known.kind() == ErrorKind::Unavailable) {
                failure = Some(reason);
            }
        }
        Err(failure.unwrap_or_else(|| place.no_connection(self.options.connect_timeout)))
    }

    fn client_of(&self, info: ConnectionInfo) -> RedisResult<Client> {
        no_client(self.options.client(info))
    }
}

fn info_with(info: ConnectionInfo, login: &Credentials) -> ConnectionInfo {
    // Drops the user of the URL, which may not be the user of the login.
    let old = info.redis_settings();
    let mut new = RedisConnectionInfo::default()
        .set_db(old.db())
        .set_protocol(old.protocol())
        .set_password(&login.password);
    if let Some(user) = &login.user {
        new = new.set_username(user);
    }
    info.set_redis_settings(new)
}

fn with_login(client: &Client, login: Option<Credentials>) -> RedisResult<Client> {
    match login {
        Some(login) => Client::open(info_with(client.get_connection_info().clone(), &login)),
        None => Ok(client.clone()),
    }
}

/// The same connection parameters with another address.
fn at(seed: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let addr = match seed.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host: host.to_owned(),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    };
    seed.clone().set_addr(addr)
}

fn no_client(made: Result<Client, DriverError>) -> RedisResult<Client> {
    made.map_err(|wrong| {
        (redis::ErrorKind::InvalidClientConfig, "no client", wrong.to_string()).into()
    })
}

pub(crate) fn is_tls(addr: &ConnectionAddr) -> bool {
    matches!(addr, ConnectionAddr::TcpTls { .. })
}

/// Host and port of a server that is not reached through a Unix socket.
pub(crate) fn tcp_address(addr: &ConnectionAddr) -> Option<(String, u16)> {
    match addr {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host.clone(), *port))
        }
        _ => None,
    }
}

/// The same server over RESP3.
pub(crate) fn resp3(client: &Client) -> RedisResult<Client> {
    let info = client.get_connection_info();
    let login = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Client::open(info.clone().set_redis_settings(login))
}
