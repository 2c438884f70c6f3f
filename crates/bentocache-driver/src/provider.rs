//! Credentials that change while the application runs.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

type Answer<C> = Pin<Box<dyn Future<Output = Result<C, Box<dyn Error + Send + Sync>>> + Send>>;

/// An async function of the application that returns the credentials of a driver for each
/// connection.
pub struct Provider<C>(Arc<dyn Fn() -> Answer<C> + Send + Sync>);

impl<C> Provider<C> {
    /// Creates a provider that calls this function.
    pub fn new<F, Fut>(provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<C, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(provider())))
    }

    /// Returns the credentials for the next connection.
    ///
    /// # Errors
    /// The error of the application's function, as a text.
    pub async fn ask(&self) -> Result<C, String> {
        (self.0)().await.map_err(|error| format!("the provider of credentials failed: {error}"))
    }
}

impl<C> Clone for Provider<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
