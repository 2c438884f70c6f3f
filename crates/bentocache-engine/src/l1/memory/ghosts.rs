//! Ghosts: the hashes of entries that were evicted from probation.

/// The hashes of about the latest `wanted` ghosts. Each hash has a few possible places, and a new
/// ghost replaces the oldest one in these.
#[derive(Default)]
pub(super) struct Ghosts {
    places: Vec<Ghost>,
    /// The number of ghosts inserted so far.
    count: u32,
}

#[derive(Clone, Copy, Default)]
struct Ghost {
    hash: u32,
    /// The sequence number of the ghost; 0 for an empty place.
    number: u32,
}

/// Possible places per hash.
const PLACES: usize = 4;

impl Ghosts {
    /// Remembers a hash as one of the latest `wanted`.
    pub(super) fn insert(&mut self, hash: u32, wanted: usize) {
        if wanted > self.places.len() {
            // Grows by another quarter, so that growing is rare.
            let size = (wanted + wanted / 4).next_multiple_of(PLACES);
            let old = std::mem::replace(&mut self.places, vec![Ghost::default(); size]);
            old.into_iter().filter(|ghost| ghost.number != 0).for_each(|ghost| self.put(ghost));
        }
        self.count = self.count.checked_add(1).unwrap_or(1);
        self.put(Ghost { hash, number: self.count });
    }

    fn put(&mut self, ghost: Ghost) {
        let count = self.count;
        let oldest = self.places_of(ghost.hash).iter_mut().max_by_key(|other| match other.number {
            0 => u32::MAX,
            number => count.wrapping_sub(number),
        });
        if let Some(oldest) = oldest {
            *oldest = ghost;
        }
    }

    /// Forgets a hash; returns whether it was remembered.
    pub(super) fn remove(&mut self, hash: u32) -> bool {
        let mut places = self.places_of(hash).iter_mut();
        let found = places.find(|ghost| ghost.hash == hash && ghost.number != 0);
        found.map(|ghost| *ghost = Ghost::default()).is_some()
    }

    fn places_of(&mut self, hash: u32) -> &mut [Ghost] {
        let groups = (self.places.len() / PLACES) as u64;
        let at = ((u64::from(hash) * groups) >> 32) as usize * PLACES;
        self.places.get_mut(at..at + PLACES).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes with the same distribution as hashes of keys.
    fn hash(number: u32) -> u32 {
        number.wrapping_mul(2_654_435_769)
    }

    #[test]
    fn it_remembers_the_latest_and_forgets_the_others() {
        let mut ghosts = Ghosts::default();
        (1..=10_000).for_each(|number| ghosts.insert(hash(number), 1_000));
        let latest = (9_501..=10_000).filter(|number| ghosts.remove(hash(*number))).count();
        let oldest = (1..=8_000).filter(|number| ghosts.remove(hash(*number))).count();
        assert!(latest >= 490 && oldest < 10, "{latest} of the latest, {oldest} of the oldest");
    }

    #[test]
    fn who_was_taken_is_forgotten() {
        let mut ghosts = Ghosts::default();
        assert!(!ghosts.remove(0), "there was none yet");
        ghosts.insert(0, 1);
        assert!(ghosts.remove(0));
        assert!(!ghosts.remove(0));
    }

    #[test]
    fn it_keeps_what_it_has_when_more_are_wanted() {
        let mut ghosts = Ghosts::default();
        for number in 1..=1_000 {
            ghosts.insert(hash(number), number as usize);
        }
        let kept = (1..=1_000).filter(|number| ghosts.remove(hash(*number))).count();
        assert!(kept >= 900, "{kept}");
    }

    #[test]
    fn their_number_may_begin_anew() {
        let mut ghosts = Ghosts { count: u32::MAX - 1, ..Ghosts::default() };
        (1..=4).for_each(|hash| ghosts.insert(hash, 4));
        assert!((1..=4).all(|hash| ghosts.remove(hash)));
    }
}
