//! Recovery after a gap. While a node receives no messages, its factories may store values over
//! invalidations by other nodes. When messages arrive again, the node asks the other nodes which of
//! these keys changed, and removes its own values of those keys from L2.
//!
//! A node that had a gap itself may not be able to answer. So each node announces when it is back,
//! and the nodes that still remember such values ask again. A node answers for all changes that it
//! made or received.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use bentocache_driver::ErrorKind;
use tokio::sync::Notify;

use super::{BETWEEN_NODES, Bus, PATIENCE, UNKNOWN};
use crate::engine::{Engine, Key};
use crate::wire::message::{self, Kind, Message};

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

#[derive(Default)]
pub(super) struct Gap {
    /// Wakes the task that asks: there may be values to ask about.
    wake: Notify,
    /// The other nodes must be told that this node is back.
    says_back: AtomicBool,
}

impl Gap {
    pub(super) fn begins(&self) {
        self.says_back.store(true, SeqCst);
    }

    pub(super) fn ends(&self) {
        if self.says_back.load(SeqCst) {
            self.wake.notify_one();
        }
    }
}

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

impl Engine {
    /// Asks the other nodes after each gap.
    pub(crate) async fn ask_forever(self: Arc<Self>) {
        let Some(bus) = &self.bus else { return };
        loop {
            bus.gap.wake.notified().await;
            let pause = PAUSE + fastrand::u64(..=PAUSE / 2);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            while self.ask(bus).await.is_none() && bus.heard().is_some() {
                tokio::time::sleep(Duration::from_millis(RETRY_PAUSE)).await;
            }
        }
    }

    /// Asks about all values that were stored in gaps. `None` if a question did not reach the bus.
    async fn ask(&self, bus: &Bus) -> Option<()> {
        // This node must be able to receive the answers.
        self.prove_heard().await?;
        if bus.gap.says_back.load(SeqCst) {
            self.say(bus, BACK, &["k"]).await.ok()?;
            bus.gap.says_back.store(false, SeqCst);
        }
        let asked = bus.fills.stored_in_gaps(self.clock.now());
        let mut parts: Vec<&[(Key, u64)]> = asked.chunks(MOST_KEYS).collect();
        while let Some(part) = parts.pop() {
            let Some(begun) = part.iter().map(|(_, begun)| *begun).min() else { continue };
            let time = self.clock.now().saturating_sub(begun) + DELAY;
            let keys: Vec<&str> = part.iter().map(|(key, _)| &*key.full).collect();
            match self.say(bus, &format!("{SINCE}{time}"), &keys).await {
                Ok(()) => {}
                Err(Some(ErrorKind::TooLarge)) if part.len() > 1 => {
                    let (one, other) = part.split_at(part.len() / 2);
                    parts.extend([one, other]);
                }
                // No message about this key is small enough, so the other nodes cannot name it
                // either.
                Err(Some(ErrorKind::TooLarge)) => {}
                Err(_) => return None,
            }
        }
        Some(())
    }

    /// Publishes one message between nodes, without retries.
    async fn say(&self, bus: &Bus, what: &str, keys: &[&str]) -> Result<(), Option<ErrorKind>> {
        let namespace = format!("{BETWEEN_NODES}{what}");
        for bytes in message::encode(&bus.sender, Kind::Set, &namespace, keys) {
            let publish = bus.driver.publish(bus.topic(self), bytes);
            match self.timers.within(PATIENCE, publish).await {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(Some(error.kind())),
                None => return Err(None),
            }
        }
        Ok(())
    }

    pub(super) fn receive_gap_message(self: &Arc<Self>, bus: &Bus, message: GapMessage) {
        match message {
            GapMessage::Back => bus.gap.wake.notify_one(),
            GapMessage::Question { asker, time, keys } => {
                let since = self.clock.now().saturating_sub(time);
                let namespace = format!("{BETWEEN_NODES}{CHANGED}{asker}");
                for key in keys
                    .iter()
                    .filter(|key| bus.last_changes.has_changed(&self.key("", key), since))
                {
                    bus.enqueue(self, Kind::Set, &namespace, Some((key, UNKNOWN)));
                }
            }
            GapMessage::Answer { asker, keys } if asker == bus.sender.as_str() => {
                let ours = keys.iter().filter_map(|key| bus.fills.take_of_gap(&self.key("", key)));
                self.take_back_later(ours.collect());
            }
            GapMessage::Answer { .. } => {}
        }
    }
}
