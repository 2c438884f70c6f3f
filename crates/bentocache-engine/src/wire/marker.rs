//! The content of a tag's marker.

/// The times of a marker, in ms since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MarkerTimes {
    /// When the tag was last invalidated; 0 for never.
    pub(crate) at: u64,
    /// The last of these times that deleted the entries with the tag; 0 for none. Entries that
    /// remember an earlier marker are gone, not only stale.
    pub(crate) hard_at: u64,
}

impl MarkerTimes {
    /// The latest times of both.
    #[must_use]
    pub(crate) fn merged(self, other: Self) -> Self {
        Self { at: self.at.max(other.at), hard_at: self.hard_at.max(other.hard_at) }
    }

    /// The same invalidation with a marker above the other one.
    #[must_use]
    pub(crate) fn above(self, other: Self) -> Self {
        let at = self.at.max(other.at + 1);
        let hard_at = if self.deletes() { at } else { self.hard_at.max(other.hard_at) };
        Self { at, hard_at }
    }

    /// Whether the last invalidation deleted.
    pub(crate) fn deletes(self) -> bool {
        self.at > 0 && self.hard_at == self.at
    }
}
