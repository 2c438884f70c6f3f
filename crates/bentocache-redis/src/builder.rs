//! The constructors and setters that the drivers have in common.

/// Constructors from addresses. The driver must have `fn open(connect: Connect) -> Self`.
macro_rules! constructors {
    ($driver:ident) => {
        impl $driver {
            /// One server, by its URL: `redis://user:password@host:6379/0`, `rediss://…` for TLS
            /// (feature `redis-tls`), or `unix:///path/to/socket`. Special characters of user and
            /// password are percent-encoded; `?protocol=resp3` chooses that protocol.
            ///
            /// Opens no connection yet. An invalid URL is an
            /// [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first call.
            pub fn new(url: impl Into<String>) -> Self {
                Self::open($crate::connect::Connect::Single(url.into()))
            }

            /// A cluster, by the URLs of some of its nodes; the driver finds the others. All nodes
            /// share user, password and TLS.
            pub fn cluster<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
                let urls = urls.into_iter().map(Into::into).collect();
                Self::open($crate::connect::Connect::Cluster(urls))
            }

            /// The primary with this name in Sentinel, by the URLs of the sentinels. User, password
            /// and database of the first URL are those of the primary.
            pub fn sentinel<U: Into<String>>(
                urls: impl IntoIterator<Item = U>,
                primary: impl Into<String>,
            ) -> Self {
                let urls = urls.into_iter().map(Into::into).collect();
                let primary = primary.into();
                Self::open($crate::connect::Connect::Sentinel { urls, primary })
            }

            /// The server of a client of the application. The driver keeps the client's settings
            /// and opens a connection of its own.
            pub fn from_client(client: redis::Client) -> Self {
                Self::open($crate::connect::Connect::Client(client))
            }

            fn options_mut(&mut self) -> &mut $crate::connect::Options {
                std::sync::Arc::make_mut(&mut self.line).options_mut()
            }

            /// The time limit for one attempt to connect, such as `"2s"`, the default. An invalid
            /// text is an [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first
            /// call.
            #[must_use]
            pub fn connect_timeout(
                mut self,
                timeout: impl Into<bentocache_driver::TimeSpan>,
            ) -> Self {
                let timeout = timeout.into().duration("connect_timeout");
                let options = self.options_mut();
                options.errors.set(&mut options.connect_timeout, timeout);
                self
            }

            /// The time limit for one answer of the server, such as `"5s"`, the default. The limits
            /// of a store are shorter; this one ends calls whose caller has stopped waiting. A ping
            /// may take a third of it, but at least one second. Raise it if large values travel
            /// over a slow link.
            #[must_use]
            pub fn timeout(
                mut self,
                timeout: impl Into<bentocache_driver::TimeSpan>,
            ) -> Self {
                let timeout = timeout.into().duration("timeout");
                let options = self.options_mut();
                options.errors.set(&mut options.timeout, timeout);
                self
            }

            /// How often to ping the server and check its role, such as `"1s"`, the default. A
            /// server that vanished without closing the connection is noticed after this interval
            /// and the time limit of a ping ([`timeout`](Self::timeout)), together within 3
            /// seconds; a server that was demoted, after this interval. After three intervals, a
            /// driver of a single server opens a new connection to check whether the address still
            /// leads to the same primary.
            #[must_use]
            pub fn ping_interval(
                mut self,
                interval: impl Into<bentocache_driver::TimeSpan>,
            ) -> Self {
                let interval = interval.into().duration("ping_interval");
                let options = self.options_mut();
                options.errors.set(&mut options.ping_interval, interval);
                self
            }

            /// A function that returns the login before each connection, instead of the login in
            /// the URL. A changed password or an expired token then needs no restart. Open
            /// connections are not affected.
            ///
            /// ```
            /// use bentocache::redis::Credentials;
            #[doc = concat!("use bentocache_redis::", stringify!($driver), ";")]
            ///
            /// let login = || async {
            ///     let password = std::fs::read_to_string("/run/secrets/redis")?;
            ///     Ok(Credentials::new("cache", password.trim()))
            /// };
            #[doc = concat!("let driver = ", stringify!($driver), "::new(\"redis://host\").credentials(login);")]
            /// ```
            #[must_use]
            pub fn credentials<F, Fut>(mut self, provider: F) -> Self
            where
                F: Fn() -> Fut + Send + Sync + 'static,
                Fut: Future<
                        Output = Result<
                            $crate::Credentials,
                            Box<dyn std::error::Error + Send + Sync>,
                        >,
                    > + Send
                    + 'static,
            {
                self.options_mut().credentials = Some(bentocache_driver::Provider::new(provider));
                self
            }

            /// The login for the sentinels themselves. Default: none. `None` as the user is the
            /// default user.
            #[must_use]
            pub fn sentinel_login(mut self, user: Option<&str>, password: &str) -> Self {
                let login = (user.map(str::to_owned), password.to_owned());
                self.options_mut().sentinel_login = Some(login);
                self
            }

            /// Maps the addresses that cluster nodes or sentinels announce to reachable ones:
            /// behind NAT, from outside of a container network, or if a certificate has another
            /// host name. Pairs of `host:port`: first the announced address (`CLUSTER SLOTS`,
            /// `SENTINEL GET-MASTER-ADDR-BY-NAME`), then the address that is reachable from here.
            /// Other addresses are used unchanged.
            ///
            /// ```
            #[doc = concat!("use bentocache_redis::", stringify!($driver), ";")]
            ///
            #[doc = concat!("let driver = ", stringify!($driver), "::cluster([\"redis://nat.example:7001\"])")]
            ///     .node_address_map([
            ///         ("10.0.0.1:6379", "nat.example:7001"),
            ///         ("10.0.0.2:6379", "nat.example:7002"),
            ///     ]);
            /// ```
            ///
            /// A text that is no address is an
            /// [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first call.
            #[must_use]
            pub fn node_address_map<A: AsRef<str>, R: AsRef<str>>(
                mut self,
                map: impl IntoIterator<Item = (A, R)>,
            ) -> Self {
                let map = $crate::address::AddressMap::new(map);
                self.options_mut().node_address_map = map;
                self
            }

            /// The certificate, in PEM, of the authority that signed the server's certificate. It
            /// replaces the authorities that the system trusts. For `rediss://` URLs.
            #[cfg(feature = "tls")]
            #[must_use]
            pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
                self.options_mut().root_certificate = Some(pem.into());
                self
            }

            /// The client's certificate and private key, in PEM. For `rediss://` URLs.
            #[cfg(feature = "tls")]
            #[must_use]
            pub fn client_certificate(
                mut self,
                certificate: impl Into<Vec<u8>>,
                key: impl Into<Vec<u8>>,
            ) -> Self {
                self.options_mut().client_certificate = Some((certificate.into(), key.into()));
                self
            }
        }

        impl std::fmt::Debug for $driver {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($driver))
                    .field("connect", self.line.connect())
                    .field("prefix", &self.line.options().prefix)
                    .finish_non_exhaustive()
            }
        }
    };
}

/// Constructors from connections.
macro_rules! from_connections {
    ($driver:ident) => {
        impl $driver {
            /// A connection of the application that reconnects by itself.
            pub fn from_manager(connection: redis::aio::ConnectionManager) -> Self {
                Self::open(Connect::Given(Given::Manager(connection)))
            }

            /// A connection of the application. If it is lost, nothing reopens it: prefer a URL, a
            /// client or a manager.
            pub fn from_multiplexed(connection: redis::aio::MultiplexedConnection) -> Self {
                Self::open(Connect::Given(Given::Multiplexed(connection)))
            }

            /// A connection of the application to a cluster.
            pub fn from_cluster(connection: redis::cluster_async::ClusterConnection) -> Self {
                Self::open(Connect::Given(Given::Cluster(connection)))
            }
        }
    };
}

/// The setter for the prefix of every key.
macro_rules! prefix {
    ($driver:ident) => {
        impl $driver {
            /// The prefix of every key, followed by a colon. Default: none. It separates
            /// applications that share a server, and limits a clear of everything to this
            /// application's keys. Give the drivers of one cache the same prefix.
            #[must_use]
            pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
                let mut prefix = prefix.into();
                // Without the colon, `app` would also be the prefix of `apple`.
                if !prefix.is_empty() && !prefix.ends_with(':') {
                    prefix.push(':');
                }
                self.options_mut().prefix = prefix;
                self
            }
        }
    };
}
