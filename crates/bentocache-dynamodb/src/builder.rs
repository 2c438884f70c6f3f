//! The driver's options, and its client.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::Credentials;
use bentocache_driver::{DriverError, LastTrouble, LinkProbe, OptionErrors, TimeSpan, on_runtime};
use tokio::sync::OnceCell;

use crate::call::Caller;
use crate::{error, table};

/// L2 on a table of DynamoDB.
///
/// The table has a partition key `key` of type string; [`create_table`](Self::create_table) creates
/// it. The driver sends no request before it is used.
pub struct DynamoDb {
    settings: Settings,
    state: Arc<State>,
    pub(crate) probe: LinkProbe,
}

#[derive(Clone)]
struct Settings {
    source: Source,
    table: String,
    timeout: Duration,
    errors: OptionErrors,
}

#[derive(Default)]
struct State {
    caller: OnceCell<Caller>,
    is_closed: AtomicBool,
    trouble: LastTrouble,
}

#[derive(Clone)]
enum Source {
    Parts { region: Option<String>, endpoint: Option<String>, credentials: Option<Credentials> },
    Client(Client),
}

impl Default for DynamoDb {
    fn default() -> Self {
        Self::new()
    }
}

impl DynamoDb {
    /// A driver that reads region and credentials from the environment, the profile or the
    /// machine's role, like every program with an AWS SDK, unless they are set here.
    pub fn new() -> Self {
        Self::open(Source::Parts { region: None, endpoint: None, credentials: None })
    }

    /// A client of the application. Its region, endpoint and credentials are used; its retries and
    /// timeouts are not, because the driver has its own.
    pub fn from_client(client: Client) -> Self {
        Self::open(Source::Client(client))
    }

    fn open(source: Source) -> Self {
        let settings = Settings {
            source,
            table: "cache".to_owned(),
            timeout: Duration::from_secs(5),
            errors: OptionErrors::default(),
        };
        Self { settings, state: Arc::default(), probe: LinkProbe::default() }
    }

    /// The name of the table. Default `cache`.
    #[must_use]
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.settings.table = name.into();
        self
    }

    /// The region, such as `eu-west-3`. Ignored for a driver with a client of the application.
    #[must_use]
    pub fn region(mut self, name: impl Into<String>) -> Self {
        if let Source::Parts { region, .. } = &mut self.settings.source {
            *region = Some(name.into());
        }
        self
    }

    /// The URL of the service, for an emulator or a private endpoint: `http://127.0.0.1:8000`.
    /// Ignored for a driver with a client of the application.
    #[must_use]
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        if let Source::Parts { endpoint, .. } = &mut self.settings.source {
            *endpoint = Some(url.into());
        }
        self
    }

    /// The id and the secret of an access key. Ignored for a driver with a client of the
    /// application.
    #[must_use]
    pub fn credentials(mut self, access_key_id: &str, secret_access_key: &str) -> Self {
        if let Source::Parts { credentials, .. } = &mut self.settings.source {
            let key = Credentials::new(access_key_id, secret_access_key, None, None, "bentocache");
            *credentials = Some(key);
        }
        self
    }

    /// The time limit for one answer of the service, such as `"5s"`, the default. The limits of a
    /// store are shorter. An invalid text is an
    /// [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first call.
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
        self.settings.errors.set(&mut self.settings.timeout, timeout.into().duration("timeout"));
        self
    }

    /// Creates the table if it is missing, with billing per request, and enables the removal of
    /// expired items by DynamoDB. It waits until the table is usable, and many processes may call
    /// it at once.
    ///
    /// It needs rights that the cache itself does not need: `dynamodb:CreateTable`,
    /// `DescribeTable`, `DescribeTimeToLive` and `UpdateTimeToLive`.
    ///
    /// # Errors
    /// If the service refuses or cannot be reached, or if the table exists with another key.
    pub async fn create_table(&self) -> Result<(), DriverError> {
        let create = async { table::create(self.caller().await?).await };
        on_runtime("dynamodb", create).await
    }

    /// Runs a call of the cache. After a failure, a background probe finds out when calls succeed
    /// again.
    pub(crate) async fn watched<T>(
        &self,
        // Boxed, because the futures of the SDK are large and would be moved from one to the next.
        call: Pin<Box<impl Future<Output = Result<T, DriverError>>>>,
    ) -> Result<T, DriverError> {
        let (settings, state) = (self.settings.clone(), Arc::clone(&self.state));
        let probe = move || {
            let (settings, state) = (settings.clone(), Arc::clone(&state));
            Box::pin(async move { table::try_write(state.caller(&settings).await?).await })
        };
        self.probe.watch(on_runtime("dynamodb", call), probe).await
    }

    pub(crate) async fn caller(&self) -> Result<&Caller, DriverError> {
        self.state.caller(&self.settings).await
    }

    /// The same, for tasks that outlive the driver.
    pub(crate) fn own_caller(&self) -> impl Future<Output = Result<Caller, DriverError>> + use<> {
        let (settings, state) = (self.settings.clone(), Arc::clone(&self.state));
        async move { state.caller(&settings).await.cloned() }
    }

    /// The reason of recent retries.
    pub(crate) fn last_trouble(&self) -> Option<String> {
        self.state.trouble.recent()
    }

    pub(crate) fn close(&self) {
        self.state.is_closed.store(true, SeqCst);
    }
}

impl State {
    async fn caller(&self, settings: &Settings) -> Result<&Caller, DriverError> {
        if self.is_closed.load(SeqCst) {
            return Err(error::closed());
        }
        settings.errors.check("dynamodb")?;
        let open = || async {
            Caller {
                client: settings.client().await,
                table: settings.table.clone(),
                timeout: settings.timeout,
                trouble: self.trouble.clone(),
            }
        };
        Ok(self.caller.get_or_init(open).await)
    }
}

impl Settings {
    async fn client(&self) -> Client {
        let (region, endpoint, credentials) = match &self.source {
            Source::Client(client) => return client.clone(),
            Source::Parts { region, endpoint, credentials } => (region, endpoint, credentials),
        };
        let mut config = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = region {
            config = config.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint);
        }
        if let Some(credentials) = credentials {
            config = config.credentials_provider(credentials.clone());
        }
        Client::new(&config.load().await)
    }
}

impl fmt::Debug for DynamoDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDb").field("table", &self.settings.table).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bentocache_driver::{ErrorKind, L2Driver};

    use super::*;

    #[test]
    fn the_timeout_may_be_a_text() {
        let timeout = |driver: DynamoDb| driver.settings.timeout;
        assert_eq!(timeout(DynamoDb::new().timeout("500ms")), Duration::from_millis(500));
        let two = Duration::from_secs(2);
        assert_eq!(timeout(DynamoDb::new().timeout(two)), two);
    }

    #[tokio::test]
    async fn a_bad_text_fails_connect_and_the_first_call() {
        for text in ["soon", "none", "-1s", "0"] {
            let driver = DynamoDb::new().timeout(text);
            for error in [driver.connect().await.unwrap_err(), driver.get("a").await.unwrap_err()] {
                assert_eq!(error.kind(), ErrorKind::Config, "{error}");
                let named = format!("dynamodb: option `timeout`: cannot use {text:?}");
                assert!(error.to_string().starts_with(&named), "{error}");
            }
        }
    }
}
