//! Logins that change while the application runs.

use std::fmt;

/// A login for one connection, from a provider. See
/// [`NatsBus::credentials`](crate::NatsBus::credentials).
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

    /// A token instead of user and password.
    pub fn token(token: impl Into<String>) -> Self {
        Self { user: None, password: token.into() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}
