//! The suites catch errors: drivers that are wrong in one way each, and the cases that must fail.
//!
//! The file is long because every error has its own driver.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bentocache_driver::{
    BusDriver, BusEvent, BusStream, Capabilities, DriverError, Entry, ErrorKind, Inserted,
    KeyStream, L1Driver, L2Driver, LockDriver, Topic, Write,
};
use bentocache_testkit::{MapBus, MapL2, MapLock, suite};
use bytes::Bytes;

/// One test per mutant: it passes the case before the arrow, so that it is not broken altogether,
/// and fails each of those after it.
macro_rules! caught {
    ($suite:ident, $healthy:ident: $($name:ident, $open:expr => $($case:ident),+;)*) => {
        $(
            #[test]
            fn $name() {
                suite::run(async { suite::$suite::$healthy($open).await });
                $(
                    let case = || suite::run(async { suite::$suite::$case($open).await });
                    let is_caught = catch_unwind(AssertUnwindSafe(case)).is_err();
                    assert!(is_caught, "{} did not catch it", stringify!($case));
                )+
            }
        )*
    };
}

/// A failure says what was found, which rule was broken, and what to change.
#[test]
fn a_failure_says_what_to_change() {
    let open = broken(Bug::ZeroIsForever);
    let case = || {
        suite::run_case("l2", "zero_ttl", || suite::run(async { suite::l2::zero_ttl(open).await }));
    };
    let failure = catch_unwind(AssertUnwindSafe(case)).unwrap_err();
    let text = failure.downcast_ref::<String>().unwrap();
    for part in
        ["lives after", "The rule `l2::zero_ttl`: a ttl of zero", "What to change: delete the key"]
    {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

/// What is wrong with a [`BrokenL2`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bug {
    None,
    EmptyIsMiss,
    CaseFolds,
    ColonIsSlash,
    TrimsKeys,
    NulEndsKeys,
    CutsKeys,
    ClearTakesPatterns,
    ClearOfEmptyDoesNothing,
    ClearsInSilence,
    NeverExpires,
    RoundsDown,
    RoundsUp,
    KeepsOldExpiry,
    ZeroIsForever,
    WrapsTtl,
    UpdateDropsExpiry,
    UpdateCreates,
    UpdateNeverCompares,
    DeleteIfNeverCompares,
    NotAtomic,
    CountsAsked,
    DeleteOfNothingIsAll,
    SortsAnswers,
    OneTtlPerBatch,
    FirstOfBatchWins,
    LimitIsUnnamed,
    LimitCuts,
    WritesInPieces,
    DeletesBeforeWrite,
    PruneTakesForever,
    PruneDoesNothing,
    ListsExpired,
    ListsByPattern,
    PanicsAfterDisconnect,
    UnavailableAfterDisconnect,
    DisconnectsAll,
    InsertForgetsTtl,
    InsertOverwrites,
    InsertFindsExpired,
    LongKeysMayPass,
    TouchDoesNothing,
    TouchAddsToTheOldExpiry,
    TouchOnlyExtends,
    TouchForeverIsUnchanged,
    TouchRevives,
    TouchCreates,
    TouchEmpties,
}

struct BrokenL2 {
    bug: Bug,
    map: MapL2,
    /// What the clock of a `ListsExpired` would still show.
    written: Mutex<Vec<String>>,
    is_closed: Arc<AtomicBool>,
}

/// Opens instances of the mutant on one map.
fn broken(bug: Bug) -> impl AsyncFn() -> BrokenL2 {
    let (map, all) = (MapL2::new(), Arc::new(AtomicBool::new(false)));
    async move || BrokenL2 {
        bug,
        map: map.clone(),
        written: Mutex::default(),
        is_closed: if bug == Bug::DisconnectsAll { all.clone() } else { Arc::default() },
    }
}

const LIMIT: usize = 1_000;

impl BrokenL2 {
    fn has(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    fn key(&self, key: &str) -> String {
        match self.bug {
            Bug::CaseFolds => key.to_lowercase(),
            Bug::ColonIsSlash => key.replace(':', "/"),
            Bug::TrimsKeys => key.trim().to_owned(),
            Bug::NulEndsKeys => key.split('\0').next().unwrap_or_default().to_owned(),
            Bug::CutsKeys => key.chars().take(255).collect(),
            _ => key.to_owned(),
        }
    }

    fn ttl(&self, ttl: Option<Duration>) -> Option<Duration> {
        ttl.and_then(|ttl| match self.bug {
            Bug::NeverExpires => None,
            Bug::RoundsDown => Some(Duration::from_secs(ttl.as_secs())),
            Bug::RoundsUp => Some(Duration::from_secs(ttl.as_secs() + 1)),
            Bug::ZeroIsForever => Some(ttl).filter(|ttl| ttl.as_millis() > 0),
            Bug::WrapsTtl => Some(Duration::from_millis(u64::from(ttl.as_millis() as u32))),
            _ => Some(ttl),
        })
    }

    fn check(&self) -> Result<(), DriverError> {
        if self.is_closed.load(Relaxed) {
            assert!(!self.has(Bug::PanicsAfterDisconnect), "the connection is gone");
            if self.has(Bug::UnavailableAfterDisconnect) {
                return Err(DriverError::new(ErrorKind::Unavailable, "no connection"));
            }
            return Err(DriverError::new(ErrorKind::Closed, "closed"));
        }
        Ok(())
    }

    /// A limit of the server's that is taken for trouble with it.
    fn long(&self, key: &str) -> Result<(), DriverError> {
        if self.has(Bug::LongKeysMayPass) && key.len() > LIMIT {
            return Err(DriverError::new(ErrorKind::Unavailable, "the server hangs up"));
        }
        Ok(())
    }

    async fn pause(&self) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl L2Driver for BrokenL2 {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn capabilities(&self) -> Capabilities {
        let can = self.map.capabilities();
        match self.bug {
            Bug::LimitIsUnnamed | Bug::LimitCuts => can.with_max_value(LIMIT),
            Bug::ClearsInSilence => can.without_clear(),
            Bug::LongKeysMayPass => can.with_max_key(LIMIT),
            _ => can,
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.check()?;
        let found = self.map.get(&self.key(key)).await?;
        Ok(found.filter(|value| !(self.has(Bug::EmptyIsMiss) && value.is_empty())))
    }

    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        let mut keys = keys.to_vec();
        if self.has(Bug::SortsAnswers) {
            keys.sort_unstable();
        }
        let mut values = Vec::new();
        for key in keys {
            values.push(self.get(key).await?);
        }
        Ok(values)
    }

    async fn set(
        &self,
        key: &str,
        mut value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<(), DriverError> {
        self.check()?;
        self.long(key)?;
        let key = self.key(key);
        let mut ttl = self.ttl(ttl);
        match self.bug {
            Bug::KeepsOldExpiry => {
                if let Some(left) = self.map.remaining(&key) {
                    ttl = Some(left).filter(|left| *left != Duration::MAX);
                }
            }
            Bug::LimitIsUnnamed if value.len() > LIMIT => {
                return Err(DriverError::new(ErrorKind::TooLarge, "this is too much for me"));
            }
            Bug::LimitCuts => value.truncate(LIMIT),
            Bug::WritesInPieces => {
                self.map.put(&key, value.slice(..value.len() / 2), ttl);
                self.pause().await;
            }
            Bug::DeletesBeforeWrite => {
                self.map.take(&key);
                self.pause().await;
            }
            _ => {}
        }
        self.written.lock().unwrap().push(key.clone());
        self.map.set(&key, value, ttl).await
    }

    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        self.check()?;
        self.long(key)?;
        let key = self.key(key);
        match self.bug {
            Bug::NotAtomic => {
                let is_free = self.map.peek(&key).is_none();
                self.pause().await;
                if is_free {
                    self.map.put(&key, value, ttl);
                }
                Ok(is_free)
            }
            Bug::InsertForgetsTtl => self.map.insert(&key, value, None).await,
            Bug::InsertFindsExpired if self.written.lock().unwrap().contains(&key) => Ok(false),
            Bug::InsertOverwrites => {
                let is_free = self.map.peek(&key).is_none();
                self.map.put(&key, value, ttl);
                Ok(is_free)
            }
            _ => self.map.insert(&key, value, self.ttl(ttl)).await,
        }
    }

    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        let first = writes.first().and_then(|write| write.ttl);
        let is_reversed = self.has(Bug::FirstOfBatchWins);
        for at in 0..writes.len() {
            let write = &writes[if is_reversed { writes.len() - 1 - at } else { at }];
            let ttl = if self.has(Bug::OneTtlPerBatch) { first } else { write.ttl };
            self.set(write.key, write.value.clone(), ttl).await?;
        }
        Ok(())
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        self.check()?;
        if keys.is_empty() && self.has(Bug::DeleteOfNothingIsAll) {
            self.map.clear("").await?;
        }
        let own: Vec<String> = keys.iter().map(|key| self.key(key)).collect();
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let deleted = self.map.delete(&own).await?;
        Ok(if self.has(Bug::CountsAsked) { keys.len() as u64 } else { deleted })
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.check()?;
        if self.has(Bug::ClearOfEmptyDoesNothing) && prefix.is_empty() {
            return Ok(());
        }
        if self.has(Bug::ClearTakesPatterns) {
            // `LIKE 'prefix%'`, with `_` as any letter.
            for key in self.map.all_keys() {
                let mut letters = key.chars();
                if prefix.chars().all(|p| letters.next().is_some_and(|c| p == '_' || p == c)) {
                    self.map.take(&key);
                }
            }
            return Ok(());
        }
        self.map.clear(&self.key(prefix)).await
    }

    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let value = self.get(key).await?;
        if self.has(Bug::NotAtomic) {
            self.pause().await;
            self.delete(&[key]).await?;
            return Ok(value);
        }
        Ok(self.map.pull(&self.key(key)).await?.and(value))
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        self.check()?;
        let own = self.key(key);
        let found = self.map.peek(&own);
        if found.is_none() && self.has(Bug::UpdateCreates) {
            self.map.put(&own, value, remaining);
            return Ok(true);
        }
        let is_same = found.as_deref() == Some(expected);
        if found.is_some() && (is_same || self.has(Bug::UpdateNeverCompares)) {
            if self.has(Bug::UpdateDropsExpiry) {
                self.map.put(&own, value, None);
                return Ok(true);
            }
            if self.has(Bug::NotAtomic) {
                self.pause().await;
            }
            if self.has(Bug::NotAtomic) || !is_same {
                self.map.put(&own, value, remaining);
                return Ok(true);
            }
        }
        self.map.update(&own, expected, value, remaining).await
    }

    async fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool, DriverError> {
        self.check()?;
        let (own, ttl) = (self.key(key), self.ttl(ttl));
        let left = self.map.remaining(&own);
        match self.bug {
            Bug::TouchDoesNothing => Ok(left.is_some()),
            Bug::TouchAddsToTheOldExpiry => {
                let sum = ttl.and_then(|ttl| ttl.checked_add(left?));
                self.map.touch(&own, sum).await
            }
            Bug::TouchOnlyExtends if ttl.is_some_and(|ttl| left.is_some_and(|left| left > ttl)) => {
                Ok(true)
            }
            Bug::TouchForeverIsUnchanged if ttl.is_none() && left == Some(Duration::MAX) => {
                Ok(false)
            }
            Bug::TouchRevives if left.is_none() && self.written.lock().unwrap().contains(&own) => {
                self.map.put(&own, "1", ttl);
                Ok(true)
            }
            Bug::TouchCreates if left.is_none() => {
                self.map.put(&own, "", ttl);
                Ok(false)
            }
            Bug::TouchEmpties if left.is_some() => {
                self.map.put(&own, "", ttl);
                Ok(true)
            }
            Bug::NotAtomic => {
                let Some(value) = self.map.peek(&own) else { return Ok(false) };
                self.pause().await;
                self.map.put(&own, value, ttl);
                Ok(true)
            }
            _ => self.map.touch(&own, ttl).await,
        }
    }

    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        self.check()?;
        let own = self.key(key);
        if self.has(Bug::DeleteIfNeverCompares) {
            return Ok(self.map.take(&own).is_some());
        }
        if self.has(Bug::NotAtomic) {
            let is_same = self.map.peek(&own).as_deref() == Some(value);
            if is_same {
                self.pause().await;
                self.map.take(&own);
            }
            return Ok(is_same);
        }
        self.map.delete_if(&own, value).await
    }

    async fn prune(&self) -> Result<u64, DriverError> {
        self.check()?;
        match self.bug {
            Bug::PruneDoesNothing => Ok(0),
            Bug::PruneTakesForever => {
                for key in self.map.all_keys() {
                    if self.map.remaining(&key) == Some(Duration::MAX) {
                        self.map.take(&key);
                    }
                }
                self.map.prune().await
            }
            _ => self.map.prune().await,
        }
    }

    fn keys(&self, prefix: &str) -> KeyStream {
        if self.has(Bug::ListsExpired) {
            let all = MapL2::new();
            for key in self.written.lock().unwrap().iter() {
                all.put(key, "", None);
            }
            return all.keys(prefix);
        }
        if self.has(Bug::ListsByPattern) {
            return self.map.keys(prefix.split('*').next().unwrap_or_default());
        }
        self.map.keys(prefix)
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.is_closed.store(true, Relaxed);
        Ok(())
    }
}

// The carrier of the bugs is itself right, so what the cases catch is the bug.
bentocache_testkit::l2_suite! {
    mod without_a_bug;
    open = broken(Bug::None),
    without = [link],
}

caught! {
    l2, missing_key:
    empty_is_a_miss, broken(Bug::EmptyIsMiss) => empty_value, get_many_keeps_order;
    keys_are_case_folded, broken(Bug::CaseFolds) => keys_never_meet, hostile_keys;
    colon_is_slash, broken(Bug::ColonIsSlash) => keys_never_meet, hostile_keys, keys_are_exact;
    keys_are_trimmed, broken(Bug::TrimsKeys) => keys_never_meet, hostile_keys;
    nul_ends_keys, broken(Bug::NulEndsKeys) => nul_in_keys;
    keys_are_cut, broken(Bug::CutsKeys) => key_of_10_kb;
    clear_takes_patterns, broken(Bug::ClearTakesPatterns) => clear_takes_the_prefix_literally;
    clear_of_empty, broken(Bug::ClearOfEmptyDoesNothing) => clear_of_everything;
    never_expires, broken(Bug::NeverExpires) => expiry, tiny_ttl, zero_ttl,
        expired_values_are_nowhere, set_many_with_mixed_ttls, overwriting_replaces_the_expiry;
    rounds_down, broken(Bug::RoundsDown) => expiry, expiry_to_the_millisecond;
    rounds_up, broken(Bug::RoundsUp) => expiry, expiry_to_the_millisecond, tiny_ttl;
    keeps_the_old_expiry, broken(Bug::KeepsOldExpiry) => overwriting_replaces_the_expiry, zero_ttl;
    zero_is_forever, broken(Bug::ZeroIsForever) => zero_ttl, tiny_ttl;
    ttl_wraps, broken(Bug::WrapsTtl) => huge_ttl;
    update_drops_the_expiry, broken(Bug::UpdateDropsExpiry) => update_keeps_the_expiry;
    update_creates, broken(Bug::UpdateCreates) => update_creates_nothing, empty_value,
        expired_values_are_nowhere;
    update_never_compares, broken(Bug::UpdateNeverCompares) => update_compares,
        concurrent_updates, update_against_set;
    delete_if_never_compares, broken(Bug::DeleteIfNeverCompares) => delete_if_compares,
        delete_if_against_set;
    not_atomic, broken(Bug::NotAtomic) => concurrent_pulls, concurrent_updates,
        update_against_set, concurrent_delete_ifs, delete_if_against_set, concurrent_inserts,
        touch_against_delete, touch_against_set;
    delete_counts_what_was_asked, broken(Bug::CountsAsked) => delete_counts, delete_of_duplicates,
        a_thousand_keys;
    delete_of_nothing_is_all, broken(Bug::DeleteOfNothingIsAll) => delete_of_nothing;
    answers_are_sorted, broken(Bug::SortsAnswers) => get_many_keeps_order, a_thousand_keys;
    one_ttl_per_batch, broken(Bug::OneTtlPerBatch) => set_many_with_mixed_ttls;
    first_of_batch_wins, broken(Bug::FirstOfBatchWins) => set_many_of_duplicates;
    limit_is_unnamed, broken(Bug::LimitIsUnnamed) => limits_are_named, value_of_1_mib;
    limit_cuts, broken(Bug::LimitCuts) => limits_are_named, value_of_1_mib;
    writes_in_pieces, broken(Bug::WritesInPieces) => concurrent_writers, abandoned_calls;
    deletes_before_write, broken(Bug::DeletesBeforeWrite) => concurrent_writers, abandoned_calls;
    prune_takes_forever, broken(Bug::PruneTakesForever) => prune_removes_the_dead, no_ttl;
    prune_does_nothing, broken(Bug::PruneDoesNothing) => prune_removes_the_dead;
    lists_expired, broken(Bug::ListsExpired) => expired_values_are_nowhere, keys_are_exact;
    lists_by_pattern, broken(Bug::ListsByPattern) => keys_are_exact;
    panics_after_disconnect, broken(Bug::PanicsAfterDisconnect) => calls_after_disconnect;
    disconnects_all, broken(Bug::DisconnectsAll) => calls_after_disconnect;
    unavailable_after_disconnect, broken(Bug::UnavailableAfterDisconnect) =>
        errors_after_disconnect_are_closed;
    insert_forgets_the_ttl, broken(Bug::InsertForgetsTtl) => insert_keeps_its_ttl;
    insert_overwrites, broken(Bug::InsertOverwrites) => insert_spares_what_is_there;
    insert_finds_the_expired, broken(Bug::InsertFindsExpired) => insert_replaces_what_has_expired;
    long_keys_may_pass, broken(Bug::LongKeysMayPass) => too_long_keys_are_refused_for_good;
    touch_does_nothing, broken(Bug::TouchDoesNothing) => touch_extends, touch_shortens,
        touch_without_an_end, touch_of_tiny_and_huge_ttls;
    touch_adds, broken(Bug::TouchAddsToTheOldExpiry) => touch_extends, touch_shortens;
    touch_only_extends, broken(Bug::TouchOnlyExtends) => touch_shortens;
    touch_forever_is_unchanged, broken(Bug::TouchForeverIsUnchanged) => touch_without_an_end;
    touch_revives, broken(Bug::TouchRevives) => touch_of_the_expired, touch_of_nothing;
    touch_creates, broken(Bug::TouchCreates) => touch_of_nothing, touch_of_the_expired;
    touch_empties, broken(Bug::TouchEmpties) => touch_keeps_the_value, touch_extends;
    // Stores that are not shared.
    one_store_each, async || MapL2::new() => two_instances, clear_of_many_keys;
}

/// The macro's list and the driver must agree, both ways, and the list is spelt right.
#[test]
fn what_is_declared_is_compared() {
    let limited = || async { MapL2::new().max_key(600) };
    let declares = |lacks: &[&str]| {
        catch_unwind(AssertUnwindSafe(|| {
            suite::run(suite::l2::declares_what_it_lacks(limited, lacks));
        }))
        .is_ok()
    };
    assert!(declares(&["long_keys"]));
    assert!(!declares(&[]), "lacks long_keys and does not say so");
    assert!(!declares(&["long_keys", "atomic_pull"]), "can pull and says it cannot");
    assert!(!declares(&["long_keys", "atomic_pul"]), "a name that nobody knows");
    assert!(!declares(&["long_keys", "clear"]), "can clear and says it cannot");
    let clears_in_silence = broken(Bug::ClearsInSilence);
    let case = || suite::run(suite::l2::declares_what_it_lacks(clears_in_silence, &["clear"]));
    assert!(catch_unwind(AssertUnwindSafe(case)).is_err(), "says it cannot clear, and does");
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum L1Bug {
    DropsUnderLock,
    VisitsUnderLock,
    ForgetsOld,
    PruneIsLate,
    ClearsByPart,
    KeepsOldWhenRefused,
    EvictsInSilence,
    ReadsTwice,
}

/// An L1 with the simplest of locks.
struct BrokenL1 {
    bug: L1Bug,
    map: Mutex<HashMap<String, Arc<Entry>>>,
}

fn broken_l1(bug: L1Bug) -> impl AsyncFn() -> BrokenL1 {
    async move || BrokenL1 { bug, map: Mutex::default() }
}

impl L1Driver for BrokenL1 {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.map.lock().unwrap().get(key).cloned()
    }

    fn read(&self, key: &str, read: &dyn Fn(&Arc<Entry>)) {
        let times = if self.bug == L1Bug::ReadsTwice { 2 } else { 1 };
        self.get(key).iter().cycle().take(times).for_each(read);
    }

    fn insert(&self, entry: Arc<Entry>, weight: u64) -> Inserted {
        let mut map = self.map.lock().unwrap();
        if self.is_weighted() && weight > 1 << 40 {
            return Inserted { refused: true, ..Inserted::default() };
        }
        if self.bug == L1Bug::EvictsInSilence && map.len() >= 1_000 {
            map.clear();
        }
        let mut replaced = map.insert(entry.key().to_owned(), entry);
        if self.bug == L1Bug::ForgetsOld {
            replaced = None;
        }
        Inserted { replaced, ..Inserted::default() }
    }

    fn remove(&self, key: &str) -> Option<Arc<Entry>> {
        self.map.lock().unwrap().remove(key)
    }

    fn clear(&self, prefix: &str) {
        let is_out = |key: &str| match self.bug {
            L1Bug::ClearsByPart => key.contains(prefix),
            _ => key.starts_with(prefix),
        };
        let mut map = self.map.lock().unwrap();
        if self.bug == L1Bug::DropsUnderLock {
            return map.retain(|key, _| !is_out(key));
        }
        let (out, kept): (HashMap<_, _>, HashMap<_, _>) =
            map.drain().partition(|(key, _)| is_out(key));
        *map = kept;
        drop(map);
        drop(out);
    }

    fn prune(&self, now: u64) -> usize {
        let is_out = |entry: &Entry| match self.bug {
            L1Bug::PruneIsLate => entry.dead_at() < now,
            _ => entry.dead_at() <= now,
        };
        let mut map = self.map.lock().unwrap();
        let (out, kept): (HashMap<_, _>, HashMap<_, _>) = map.drain().partition(|(_, e)| is_out(e));
        *map = kept;
        drop(map);
        out.len()
    }

    fn len(&self) -> usize {
        self.map.lock().unwrap().len()
    }

    fn for_each(&self, visit: &mut dyn FnMut(&Arc<Entry>)) {
        let map = self.map.lock().unwrap();
        if self.bug == L1Bug::VisitsUnderLock {
            return map.values().for_each(visit);
        }
        let all = map.clone();
        drop(map);
        all.values().for_each(visit);
    }

    fn is_weighted(&self) -> bool {
        self.bug == L1Bug::KeepsOldWhenRefused
    }
}

caught! {
    l1, insert_and_get:
    drops_under_lock, broken_l1(L1Bug::DropsUnderLock) => values_are_dropped_outside_of_locks;
    visits_under_lock, broken_l1(L1Bug::VisitsUnderLock) => for_each_may_call_back;
    reads_twice, broken_l1(L1Bug::ReadsTwice) => read_shows_what_get_returns;
    forgets_the_old, broken_l1(L1Bug::ForgetsOld) => insert_returns_the_old;
    prune_is_late, broken_l1(L1Bug::PruneIsLate) => prune_removes_the_dead_only;
    clears_by_part, broken_l1(L1Bug::ClearsByPart) => clear_takes_the_prefix_literally;
    keeps_the_old_when_refused, broken_l1(L1Bug::KeepsOldWhenRefused) =>
        a_refused_entry_removes_the_old, extreme_weights;
    evicts_in_silence, broken_l1(L1Bug::EvictsInSilence) => every_entry_is_accounted_for;
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum BusBug {
    OneChannel,
    TextOnly,
    DropsEmpty,
    Reverses,
    LosesInSilence,
    SubscribesLate,
    EndsAll,
    UnavailableAfterDisconnect,
}

struct BrokenBus {
    bug: BusBug,
    map: MapBus,
    count: Mutex<u32>,
    held: Mutex<Option<Bytes>>,
    is_closed: AtomicBool,
}

fn broken_bus(bug: BusBug) -> impl AsyncFn() -> BrokenBus {
    let map = MapBus::new();
    async move || BrokenBus {
        bug,
        map: map.clone(),
        count: Mutex::default(),
        held: Mutex::default(),
        is_closed: AtomicBool::new(false),
    }
}

impl BusDriver for BrokenBus {
    fn name(&self) -> &'static str {
        "broken"
    }

    async fn publish(&self, topic: Topic<'_>, mut message: Bytes) -> Result<(), DriverError> {
        if self.bug == BusBug::UnavailableAfterDisconnect && self.is_closed.load(Relaxed) {
            return Err(DriverError::new(ErrorKind::Unavailable, "no connection"));
        }
        let count = {
            let mut count = self.count.lock().unwrap();
            *count += 1;
            *count
        };
        match self.bug {
            BusBug::TextOnly => message = String::from_utf8_lossy(&message).into_owned().into(),
            BusBug::DropsEmpty if message.is_empty() => return Ok(()),
            BusBug::LosesInSilence if count == 5_000 => return Ok(()),
            BusBug::Reverses if count > 3 => {
                let held = self.held.lock().unwrap().take();
                if held.is_none() {
                    *self.held.lock().unwrap() = Some(message);
                    return Ok(());
                }
                self.map.publish(topic, message).await?;
                message = held.unwrap_or_default();
            }
            _ => {}
        }
        self.map.publish(self.topic(topic), message).await
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        if self.bug != BusBug::SubscribesLate {
            return self.map.subscribe(self.topic(topic)).await;
        }
        let (map, channel) = (self.map.clone(), topic.channel.to_owned());
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut stream = map.subscribe(Topic::new(&channel, "")).await.expect("a map");
            loop {
                let next = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await;
                if next.is_none_or(|event| sender.send(event).is_err()) {
                    return;
                }
            }
        });
        Ok(Box::pin(Received(receiver)))
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.is_closed.store(true, Relaxed);
        if self.bug == BusBug::EndsAll { Ok(()) } else { self.map.disconnect().await }
    }
}

impl BrokenBus {
    fn topic<'a>(&self, topic: Topic<'a>) -> Topic<'a> {
        if self.bug == BusBug::OneChannel { Topic::new("all", "") } else { topic }
    }
}

struct Received(tokio::sync::mpsc::UnboundedReceiver<BusEvent>);

impl futures_core::Stream for Received {
    type Item = BusEvent;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

caught! {
    bus, reaches_every_subscriber:
    one_channel, broken_bus(BusBug::OneChannel) => channels_are_separate, hostile_channels;
    text_only, broken_bus(BusBug::TextOnly) => any_bytes, message_of_512_kib;
    reverses, broken_bus(BusBug::Reverses) => keeps_order;
    loses_in_silence, broken_bus(BusBug::LosesInSilence) => burst;
    disconnect_ends_nothing, broken_bus(BusBug::EndsAll) => disconnect_ends_streams;
    drops_empty, broken_bus(BusBug::DropsEmpty) => empty_message;
    bus_is_unavailable_after_disconnect, broken_bus(BusBug::UnavailableAfterDisconnect) =>
        errors_after_disconnect_are_closed;
}

/// No case can pass on a bus whose subscriptions are not live, so there is no control.
#[test]
fn subscribes_late() {
    let case = || suite::run(suite::bus::subscription_is_live(broken_bus(BusBug::SubscribesLate)));
    assert!(catch_unwind(AssertUnwindSafe(case)).is_err());
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum LockBug {
    AnyoneReleases,
    AnyoneRenews,
    RenewTakes,
    Reentrant,
    NotAtomic,
    NeverEnds,
    RenewDoesNothing,
}

struct BrokenLock {
    bug: LockBug,
    map: MapLock,
}

fn broken_lock(bug: LockBug) -> impl AsyncFn() -> BrokenLock {
    let map = MapLock::new();
    async move || BrokenLock { bug, map: map.clone() }
}

impl LockDriver for BrokenLock {
    fn name(&self) -> &'static str {
        "broken"
    }

    async fn acquire(&self, key: &str, token: &str, lease: Duration) -> Result<bool, DriverError> {
        let holder = self.map.holder(key);
        match self.bug {
            LockBug::NeverEnds => self.map.acquire(key, token, Duration::MAX).await,
            LockBug::Reentrant if holder.as_deref() == Some(token) => Ok(true),
            LockBug::NotAtomic if holder.is_none() => {
                tokio::time::sleep(Duration::from_millis(2)).await;
                self.map.acquire(key, token, lease).await?;
                Ok(true)
            }
            _ => self.map.acquire(key, token, lease).await,
        }
    }

    async fn renew(&self, key: &str, token: &str, lease: Duration) -> Result<bool, DriverError> {
        let holder = self.map.holder(key);
        match (self.bug, holder) {
            (LockBug::AnyoneRenews, Some(holder)) => self.map.renew(key, &holder, lease).await,
            (LockBug::RenewTakes, None) => self.map.acquire(key, token, lease).await,
            (LockBug::RenewDoesNothing, holder) => Ok(holder.as_deref() == Some(token)),
            _ => self.map.renew(key, token, lease).await,
        }
    }

    async fn release(&self, key: &str, token: &str) -> Result<bool, DriverError> {
        match (self.bug, self.map.holder(key)) {
            (LockBug::AnyoneReleases, Some(holder)) => self.map.release(key, &holder).await,
            _ => self.map.release(key, token).await,
        }
    }
}

caught! {
    lock, keys_are_independent:
    anyone_releases, broken_lock(LockBug::AnyoneReleases) => release_checks_the_token,
        expired_owner_is_powerless;
    anyone_renews, broken_lock(LockBug::AnyoneRenews) => renew_checks_the_token;
    renew_takes, broken_lock(LockBug::RenewTakes) => renew_checks_the_token;
    reentrant, broken_lock(LockBug::Reentrant) => exclusive;
    lock_is_not_atomic, broken_lock(LockBug::NotAtomic) => one_of_fifty;
    lease_never_ends, broken_lock(LockBug::NeverEnds) => lease_expires;
    renew_does_nothing, broken_lock(LockBug::RenewDoesNothing) => renew_prolongs;
}
