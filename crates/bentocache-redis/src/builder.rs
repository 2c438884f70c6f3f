//! The constructors and setters that the drivers have in common.

/// Constructors from addresses. The driver has `fn open(connect: Connect) -> Self`.
macro_rules! constructors {
    ($driver:ident) => {
        impl $driver {
            /// One server, by its URL: `redis://user:password@host:6379/0`, `rediss://…` for TLS
            /// (feature `redis-tls`), or `unix:///path/to/socket`. Special characters of user and
            /// password are percent-encoded; `?protocol=resp3` chooses that protocol.
            ///
            /// Nothing is connected yet. A URL that cannot be understood is an
            /// [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first call.
            pub fn new(url: impl Into<String>) -> Self {
                Self::open($crate::connect::Connect::Single(url.into()))
            }

            /// A cluster, by the URLs of some of its nodes; the others are found. All of them
            /// share user, password and TLS.
            pub fn cluster<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
                let urls = urls.into_iter().map(Into::into).collect();
                Self::open($crate::connect::Connect::Cluster(urls))
            }

            /// The primary that sentinels know under a name, by the URLs of the sentinels. User,
            /// password and database of the first URL are those of the primary.
            pub fn sentinel<U: Into<String>>(
                urls: impl IntoIterator<Item = U>,
                primary: impl Into<String>,
            ) -> Self {
                let urls = urls.into_iter().map(Into::into).collect();
                let primary = primary.into();
                Self::open($crate::connect::Connect::Sentinel { urls, primary })
            }

            /// The server of a client that the application already has. Its connection settings
            /// are kept; the driver opens its own connection.
            pub fn from_client(client: redis::Client) -> Self {
                Self::open($crate::connect::Connect::Client(client))
            }

            fn options_mut(&mut self) -> &mut $crate::connect::Options {
                std::sync::Arc::make_mut(&mut self.line).options_mut()
            }

            /// How long one attempt to connect may take; 2 seconds by default.
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

            /// How long the server may take for one answer; 5 seconds by default. A store has its
            /// own, shorter limits for its calls: this one ends those that nobody waits for any
            /// more. A ping may take a third of it, and at least a second: where large values
            /// travel over a slow link, raise it.
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

            /// How often to ask the server for a sign of life and its role; every second by
            /// default. A server that vanished without closing the connection is noticed after
            /// this and the time that a ping may take ([`timeout`](Self::timeout)), together
            /// within 3 seconds; one that was demoted after this. After three of these intervals
            /// a driver of a single server looks, by a new connection, whether the address still
            /// leads there.
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

            /// Asks for the login before each connection, in place of that in the URL: a password
            /// that is changed, or a token that expires, needs no restart. Open connections stay
            /// as they are.
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

            /// The login for the sentinels themselves; none by default. The user is `None` for
            /// the default user.
            #[must_use]
            pub fn sentinel_login(mut self, user: Option<&str>, password: &str) -> Self {
                let login = (user.map(str::to_owned), password.to_owned());
                self.options_mut().sentinel_login = Some(login);
                self
            }

            /// Where the servers of a cluster, or those that sentinels name, can be reached, if the
            /// addresses that they announce cannot be: behind NAT, from outside of a container
            /// network, or where a certificate has another host name. Pairs of `host:port`, first as
            /// announced (`CLUSTER SLOTS`, `SENTINEL GET-MASTER-ADDR-BY-NAME`), then as reachable
            /// from here. Other addresses stay as they are.
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

            /// The certificate of the authority that signed the server's, in PEM, in place of
            /// those that the system trusts. For `rediss://` URLs.
            #[cfg(feature = "tls")]
            #[must_use]
            pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
                self.options_mut().root_certificate = Some(pem.into());
                self
            }

            /// The certificate and the private key with which the driver shows who it is, in PEM.
            /// For `rediss://` URLs.
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
            /// A connection that the application already has, and that restores itself.
            pub fn from_manager(connection: redis::aio::ConnectionManager) -> Self {
                Self::open(Connect::Given(Given::Manager(connection)))
            }

            /// A connection that the application already has. When it is lost, nobody opens it
            /// again: rather give the driver a URL, a client or a manager.
            pub fn from_multiplexed(connection: redis::aio::MultiplexedConnection) -> Self {
                Self::open(Connect::Given(Given::Multiplexed(connection)))
            }

            /// A connection to a cluster that the application already has.
            pub fn from_cluster(connection: redis::cluster_async::ClusterConnection) -> Self {
                Self::open(Connect::Given(Given::Cluster(connection)))
            }
        }
    };
}

/// The setter for what stands before every key.
macro_rules! prefix {
    ($driver:ident) => {
        impl $driver {
            /// Puts this and a colon before every key; nothing by default. It keeps applications
            /// apart that share a server, and lets a clear of everything know what is its own.
            /// Give the drivers of one cache the same prefix.
            #[must_use]
            pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
                let mut prefix = prefix.into();
                // Without an end, `app` would also be the prefix of `apple`.
                if !prefix.is_empty() && !prefix.ends_with(':') {
                    prefix.push(':');
                }
                self.options_mut().prefix = prefix;
                self
            }
        }
    };
}
