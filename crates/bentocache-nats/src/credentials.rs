//! Logins that change while the application runs.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A login, as a provider gives it for one connection. See [`NatsBus::credentials`](crate::NatsBus::credentials).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// None for a token.
    pub(crate) user: Option<String>,
    pub(crate) password: String,
}

impl Credentials {
    /// The login of a user.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: Some(user.into()), password: password.into() }
    }

    /// A token in place of user and password.
    pub fn token(token: impl Into<String>) -> Self {
        Self { user: None, password: token.into() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why a provider has no login.
type ProviderError = Box<dyn Error + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Result<Credentials, ProviderError>> + Send>>;

/// Asked before each connection.
#[derive(Clone)]
pub(crate) struct Provider(Arc<dyn Fn() -> Answer + Send + Sync>);

impl Provider {
    pub(crate) fn new<F, Fut>(provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Credentials, ProviderError>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(provider())))
    }

    /// The login, or why there is none.
    pub(crate) async fn ask(&self) -> Result<Credentials, String> {
        (self.0)().await.map_err(|error| format!("the provider of credentials failed: {error}"))
    }
}
