//! Recovery after a gap. While a node receives no messages, its factories may store values over
//! invalidations by other nodes. When messages arrive again, the node asks the other nodes which of
//! these keys changed, and removes its own values of those keys from L2.
//!
//! A node that had a gap itself may not be able to answer. So each node announces when it is back,
//! and the nodes that still remember such values ask again. A node answers for all changes that it
//! made or received.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind};

use super::{BETWEEN_NODES, Bus, BusEffects, UNKNOWN};
use crate::site::Key;
use crate::wire::message::{Kind, Message};

const BACK: &str = "back";
/// Followed by the age of the gap's start, in ms. The message carries complete keys.
const SINCE: &str = "since:";
/// Followed by the sender of the question.
const CHANGED: &str = "changed:";
/// Keys per question.
const MOST_KEYS: usize = 1_000;
/// The time that a question may take to arrive, in ms.
const DELAY: u64 = 5_000;
/// The pause before the questions, in ms, because other nodes are reconnecting too.
const PAUSE: u64 = 200;
/// The pause before the next attempt, in ms.
const RETRY_PAUSE: u64 = 1_000;

/// Messages between nodes of this library about gaps.
pub(super) enum GapMessage {
    /// A node is back and may have to be asked again.
    Back,
    /// A node asks which of these keys changed within the last `time` ms.
    Question { asker: String, time: u64, keys: Vec<String> },
    /// The answer to the question of node `asker`: these keys have changed.
    Answer { asker: String, keys: Vec<String> },
}

impl GapMessage {
    pub(super) fn of(message: Message) -> Option<Self> {
        let Message { sender, namespace, keys, .. } = message;
        let what = namespace.strip_prefix(BETWEEN_NODES)?;
        if what == BACK {
            Some(Self::Back)
        } else if let Some(time) = what.strip_prefix(SINCE) {
            Some(Self::Question { asker: sender.as_str().into(), time: time.parse().ok()?, keys })
        } else {
            Some(Self::Answer { asker: what.strip_prefix(CHANGED)?.into(), keys })
        }
    }
}

impl Bus {
    pub(super) fn gap_begins(&self) {
        self.says_back.store(true, SeqCst);
    }

    pub(super) fn gap_ends(&self) {
        if self.says_back.load(SeqCst) {
            self.ask.notify_one();
        }
    }

    /// Asks the other nodes after each gap.
    pub(crate) async fn ask_forever(self: Arc<Self>) {
        loop {
            self.ask.notified().await;
            let pause = PAUSE + fastrand::u64(..=PAUSE / 2);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            while self.ask().await.is_none() && self.heard().is_some() {
                tokio::time::sleep(Duration::from_millis(RETRY_PAUSE)).await;
            }
        }
    }

    /// Asks about all values that were stored in gaps. `None` if a question did not reach the bus.
    async fn ask(&self) -> Option<()> {
        // This node must be able to receive the answers.
        self.prove_heard().await?;
        if self.says_back.load(SeqCst) {
            self.say(BACK, &["k"]).await.ok()?;
            self.says_back.store(false, SeqCst);
        }
        let asked = self.fills.stored_in_gaps(self.site.clock.now());
        let mut parts: Vec<&[(Key, u64)]> = asked.chunks(MOST_KEYS).collect();
        while let Some(part) = parts.pop() {
            let Some(begun) = part.iter().map(|(_, begun)| *begun).min() else { continue };
            let time = self.site.clock.now().saturating_sub(begun) + DELAY;
            let keys: Vec<&str> = part.iter().map(|(key, _)| &*key.full).collect();
            match self.say(&format!("{SINCE}{time}"), &keys).await {
                Ok(()) => {}
                Err(Some(error)) if error.kind() == ErrorKind::TooLarge => {
                    // No message about a single key is small enough, so the other nodes cannot name
                    // it either.
                    if part.len() > 1 {
                        let (one, other) = part.split_at(part.len() / 2);
                        parts.extend([one, other]);
                    }
                }
                Err(_) => return None,
            }
        }
        Some(())
    }

    /// Publishes one message between nodes, without retries.
    async fn say(&self, what: &str, keys: &[&str]) -> Result<(), Option<DriverError>> {
        self.publish(Kind::Set, &format!("{BETWEEN_NODES}{what}"), keys).await
    }

    pub(super) fn receive_gap_message(&self, message: GapMessage, effects: &impl BusEffects) {
        let site = &self.site;
        match message {
            GapMessage::Back => self.ask.notify_one(),
            GapMessage::Question { asker, time, keys } => {
                let since = site.clock.now().saturating_sub(time);
                let namespace = format!("{BETWEEN_NODES}{CHANGED}{asker}");
                for key in keys
                    .iter()
                    .filter(|key| self.last_changes.has_changed(&site.key("", key), since))
                {
                    self.enqueue(Kind::Set, &namespace, Some((key, UNKNOWN)));
                }
            }
            GapMessage::Answer { asker, keys } if asker == self.sender.as_str() => {
                let ours = keys.iter().filter_map(|key| self.fills.take_of_gap(&site.key("", key)));
                effects.take_back(ours.collect());
            }
            GapMessage::Answer { .. } => {}
        }
    }
}
