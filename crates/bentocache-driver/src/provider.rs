//! Logins that change while the application runs.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

type Answer<C> = Pin<Box<dyn Future<Output = Result<C, Box<dyn Error + Send + Sync>>> + Send>>;

/// The async function of an application that gives a driver the credentials for each connection.
pub struct Provider<C>(Arc<dyn Fn() -> Answer<C> + Send + Sync>);

impl<C> Provider<C> {
    /// A provider that calls this function.
    pub fn new<F, Fut>(provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<C, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(provider())))
    }

    /// The credentials for the next connection.
    ///
    /// # Errors
    /// What the application's function says, as a text.
    pub async fn ask(&self) -> Result<C, String> {
        (self.0)().await.map_err(|error| format!("the provider of credentials failed: {error}"))
    }
}

impl<C> Clone for Provider<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
