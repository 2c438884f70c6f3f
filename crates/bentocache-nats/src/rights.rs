//! The refusals of the server, which it reports separately from the answer to the call, with the
//! subject.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// The time limit for the library to deliver a refusal that it read before the confirmation.
const PASSED_ON: Duration = Duration::from_millis(100);

/// The rights that a user may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Right {
    Publish,
    Subscribe,
}

impl Right {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        }
    }
}

/// The refusals of a connection.
#[derive(Default)]
pub(crate) struct Rights {
    state: Mutex<State>,
    /// The number of refusals, for calls that wait for one.
    refusals: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    refused: HashMap<(Right, String), u64>,
    /// Rights whose last use was refused: logged once.
    lacking: HashSet<(Right, String)>,
    /// Rights that were used without a refusal, and the connection of that use.
    proven: HashMap<(Right, String), u64>,
}

impl Rights {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the server's message if it is a refusal.
    pub(crate) fn note(&self, said: &str) {
        let Some((right, subject)) = parse(said) else { return };
        let used = (right, subject.to_owned());
        let mut state = self.state();
        state.proven.remove(&used);
        *state.refused.entry(used.clone()).or_default() += 1;
        let is_news = state.lacking.insert(used);
        drop(state);
        if is_news {
            let right = right.name();
            tracing::warn!(right, subject, "nats refuses a subject; extend the rights of the user");
        }
        self.refusals.send_modify(|refusals| *refusals += 1);
    }

    /// The number of refusals of this right.
    pub(crate) fn refused(&self, right: Right, subject: &str) -> u64 {
        self.state().refused.get(&(right, subject.to_owned())).copied().unwrap_or_default()
    }

    /// Returns when this right was refused more often than `before`.
    pub(crate) async fn refusal(&self, right: Right, subject: &str, before: u64) {
        let mut refusals = self.refusals.subscribe();
        while self.refused(right, subject) == before {
            if refusals.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Whether a use that connection `session` confirmed was not refused.
    pub(crate) async fn is_granted(
        &self,
        right: Right,
        subject: &str,
        before: u64,
        session: u64,
    ) -> bool {
        let used = (right, subject.to_owned());
        // A subscription is made once; messages are published often.
        let is_proven = right == Right::Publish && self.state().proven.get(&used) == Some(&session);
        let is_refused = if is_proven {
            self.refused(right, subject) != before
        } else {
            timeout(PASSED_ON, self.refusal(right, subject, before)).await.is_ok()
        };
        if is_refused {
            return false;
        }
        let mut state = self.state();
        state.proven.insert(used.clone(), session);
        if state.lacking.remove(&used) {
            tracing::info!(right = right.name(), subject, "nats grants a subject again");
        }
        true
    }
}

/// The right and the subject in a text such as `Permissions Violation for Publish to "a.b"`.
fn parse(said: &str) -> Option<(Right, &str)> {
    let lower = said.to_ascii_lowercase();
    if !lower.contains("permissions violation") {
        return None;
    }
    let right = if lower.contains("for publish to") { Right::Publish } else { Right::Subscribe };
    let subject = said.split('"').nth(1)?;
    Some((right, subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_right_and_subject() {
        for (said, expected) in [
            (r#"Permissions Violation for Publish to "a.b""#, Some((Right::Publish, "a.b"))),
            (
                r#"Permissions Violation for Subscription to "a.b" (sid "3")"#,
                Some((Right::Subscribe, "a.b")),
            ),
            (r#"permissions violation for subscription to "a""#, Some((Right::Subscribe, "a"))),
            ("Permissions Violation", None),
            ("Maximum Payload Violation", None),
        ] {
            assert_eq!(parse(said), expected, "{said}");
        }
    }
}
