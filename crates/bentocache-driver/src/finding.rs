//! What a driver advises.

use std::borrow::Cow;
use std::fmt;

/// A setting with which a driver works, and which is probably wrong; see
/// [`L2Driver::findings`](crate::L2Driver::findings).
///
/// ```
/// use bentocache_driver::Finding;
///
/// let finding = Finding::new(
///     "shelf-is-full",
///     "the shelf evicts entries at random",
///     "set `policy = ttl` in shelf.conf",
/// );
/// assert_eq!(
///     finding.to_string(),
///     "the shelf evicts entries at random; set `policy = ttl` in shelf.conf [shelf-is-full]"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// A stable name, by which a user silences the finding.
    pub code: &'static str,
    /// One sentence without a full stop: the setting, and what is wrong with it.
    pub problem: Cow<'static, str>,
    /// What to write instead.
    pub instead: Cow<'static, str>,
}

impl Finding {
    /// A finding with this code.
    pub fn new(
        code: &'static str,
        problem: impl Into<Cow<'static, str>>,
        instead: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { code, problem: problem.into(), instead: instead.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {} [{}]", self.problem, self.instead, self.code)
    }
}
