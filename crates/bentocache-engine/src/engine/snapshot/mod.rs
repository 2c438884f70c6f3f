//! Snapshots of L1: a file in which its entries outlive the process.
//!
//! The rule: no value comes back that was invalidated, not even after a crash. With an L2, each
//! loaded entry is unverified, so any snapshot will do. Without an L2 there is nobody to ask. Then
//! only a *last* snapshot counts, which the store wrote at its end, when no change was running any
//! more. Before its entries are used, the next run puts an empty file in its place, which is none. So
//! after a crash there is no last snapshot, and a process that ends after another one has started on
//! the same file writes none.

mod file;

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};
use std::time::Duration;

use bentocache_driver::{Entry, Life, NEVER};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout, timeout_at};

use self::file::{Opened, Reader, Writer};
use super::{Engine, Key, PATIENCE, until};
use crate::l1::{SnapshotOptions, Verdict};
use crate::sync::Mutex;
use crate::value::Unread;
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::snapshot::{Block, Head, Record};

/// How long `build` waits for the entries of a snapshot. The entries that are not loaded by then are left out.
const LOADING: Duration = Duration::from_secs(5);
/// How long `disconnect` waits for the snapshot.
const WRITING: Duration = Duration::from_secs(30);
/// The number of entries that are on their way from the file to L1, at most: batches of this size,
/// and this many of them.
const BATCH: usize = 64;

/// An entry from a snapshot, and its weight.
type Loaded = (Key, Arc<Entry>, u64);

/// The snapshots of a store.
pub(super) struct Snapshots {
    path: PathBuf,
    every: Option<Duration>,
    /// Identifies this run of the store.
    run: u64,
    has_l2: bool,
    /// Nobody else can invalidate entries: there is neither an L2 nor a bus.
    is_alone: bool,
    /// One is written at a time.
    writing: Mutex<()>,
    /// No snapshot may replace the file any more.
    stopped: AtomicBool,
    /// The latest one failed.
    failing: AtomicBool,
    /// Encrypts the values, as in L2.
    #[cfg(feature = "encryption")]
    ring: Option<Arc<crate::wire::seal::KeyRing>>,
}

/// What is left of a snapshot that was loaded.
struct Remains {
    /// It must not be loaded once more, or by another process.
    is_last: bool,
    /// The reason why it was read to a part or not at all.
    damage: Option<String>,
}

impl Snapshots {
    pub(super) fn new(options: &SnapshotOptions, has_l2: bool, has_bus: bool) -> Self {
        Self {
            // The process may change its directory.
            path: std::path::absolute(&options.path).unwrap_or_else(|_| options.path.clone()),
            every: options.every,
            run: fastrand::u64(1..),
            has_l2,
            is_alone: !has_l2 && !has_bus,
            writing: Mutex::default(),
            stopped: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            #[cfg(feature = "encryption")]
            ring: None,
        }
    }

    #[cfg(feature = "encryption")]
    pub(super) fn with_ring(self, ring: Option<Arc<crate::wire::seal::KeyRing>>) -> Self {
        Self { ring, ..self }
    }

    /// A document as the file has it.
    fn sealed(&self, key: &str, document: Bytes) -> Option<Bytes> {
        #[cfg(feature = "encryption")]
        if let Some(ring) = &self.ring {
            return ring.seal(key, &document).ok();
        }
        let _ = key;
        Some(document)
    }

    /// The document in the bytes of the file; `None` if no key of the store decrypts them.
    fn opened(&self, key: &str, stored: &Bytes) -> Option<Bytes> {
        #[cfg(feature = "encryption")]
        if let Some(ring) = &self.ring {
            return ring.open(key, stored).ok();
        }
        let _ = key;
        Some(stored.clone())
    }

    pub(super) fn every(&self) -> Option<Duration> {
        self.every
    }

    /// An error unless this store may replace the file.
    fn check_place(&self, store: &str, root: &str) -> io::Result<()> {
        if self.stopped.load(Relaxed) {
            return Err(refusal("it took too long"));
        }
        match file::open(&self.path)? {
            None | Some(Opened::Damaged(_)) => Ok(()),
            Some(Opened::Snapshot(Reader { head, .. })) => match whose(&head, store, root) {
                Some(other) => Err(refusal(other)),
                None if !self.has_l2 && head.run != self.run => Err(refusal(
                    "another process has used the file since; each process needs one of its own",
                )),
                None => Ok(()),
            },
            Some(Opened::Foreign) => {
                Err(refusal("the path is something else than a snapshot; choose another one"))
            }
        }
    }
}

fn refusal(reason: impl Into<String>) -> io::Error {
    io::Error::other(reason.into())
}

/// What to say of a snapshot of another store.
fn whose(head: &Head, store: &str, root: &str) -> Option<String> {
    let is_own = *head.store == *store && *head.root == *root;
    (!is_own).then(|| {
        format!(
            "the file is that of the store {:?} with the prefix {:?}; choose another path, or remove \
             the file if that store is gone",
            head.store,
            head.root.trim_end_matches(':')
        )
    })
}

impl Engine {
    /// Whether `disconnect` must know of running changes.
    pub(super) fn has_snapshots(&self) -> bool {
        self.snapshots.is_some()
    }

    /// Loads the snapshot, before anybody can use the store. Takes a few seconds at most.
    pub(super) async fn load_snapshot(self: &Arc<Self>) {
        let Some(snapshots) = &self.snapshots else { return };
        let deadline = Instant::now() + LOADING;
        let (sender, mut entries) = mpsc::channel(BATCH);
        let engine = self.clone();
        let reading = self.runtime.spawn_blocking(move || engine.read_snapshot(&sender));
        let (mut loaded, mut left_out) = (0_usize, false);
        // Only this task inserts, so nothing comes after it.
        'batches: while let Ok(Some(batch)) = timeout_at(deadline, entries.recv()).await {
            for (key, entry, weight) in batch {
                loaded += 1;
                if !self.l1.restore(&key, entry, weight) {
                    left_out = true;
                    break 'batches;
                }
            }
        }
        drop(entries);
        let remains = match timeout_at(deadline, reading).await {
            Ok(Ok(Ok(remains))) => remains,
            Ok(Ok(Err(error))) => Some(Remains { is_last: true, damage: Some(error.to_string()) }),
            Ok(Err(_)) | Err(_) => {
                let damage = Some("it takes too long to read".to_owned());
                Some(Remains { is_last: true, damage })
            }
        };
        if let Some(damage) = remains.as_ref().and_then(|remains| remains.damage.as_ref()) {
            tracing::warn!(store = %self.name, path = %snapshots.path.display(), error = damage,
                entries = loaded, "the snapshot of L1 was not loaded, or not all of it");
        } else if remains.is_some() {
            tracing::info!(store = %self.name, entries = loaded, is_full = left_out,
                "the snapshot of L1 was loaded");
        }
        if (!snapshots.has_l2 || remains.is_some_and(|remains| remains.is_last))
            && !self.use_up().await
        {
            self.l1.clear("");
        }
    }

    /// Reads the file and sends its entries. Returns nothing if there is no file.
    fn read_snapshot(&self, sender: &mpsc::Sender<Vec<Loaded>>) -> io::Result<Option<Remains>> {
        let Some(snapshots) = &self.snapshots else { return Ok(None) };
        file::remove_leftovers(&snapshots.path);
        let unusable =
            |is_last, reason: &str| Ok(Some(Remains { is_last, damage: Some(reason.to_owned()) }));
        let mut reader = match file::open(&snapshots.path)? {
            None => return Ok(None),
            Some(Opened::Snapshot(reader)) => reader,
            Some(Opened::Damaged(reason)) => return unusable(false, reason),
            Some(Opened::Foreign) => return unusable(false, "it is no snapshot"),
        };
        let is_last = reader.head.is_last;
        if let Some(other) = whose(&reader.head, &self.name, &self.root) {
            return unusable(false, &other);
        }
        if reader.head.written_at > self.clock.epoch() {
            // Nobody knows how much time has passed since.
            return unusable(is_last, "it comes from the future; the clock was set back");
        }
        if !snapshots.has_l2 && !is_last {
            // The run that wrote it was killed, or another process uses the file.
            return Ok(Some(Remains { is_last, damage: None }));
        }
        let damage = self.send_entries(&mut reader, sender)?.err().map(str::to_owned);
        Ok(Some(Remains { is_last, damage }))
    }

    /// Sends the entries up to the end or to the first one that is damaged.
    fn send_entries(
        &self,
        reader: &mut Reader,
        sender: &mpsc::Sender<Vec<Loaded>>,
    ) -> io::Result<Result<(), &'static str>> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut count = 0;
        let ended = loop {
            let body = match reader.next()? {
                Ok(body) => body,
                Err(damage) => break Err(damage),
            };
            match Block::parse(&body) {
                Ok(Block::Entry(record)) => batch.extend(self.loaded(&record)),
                Ok(Block::End(entries)) if entries == count && reader.is_at_end() => break Ok(()),
                Ok(Block::End(_)) => break Err("it does not end where it should"),
                Err(malformed) => break Err(malformed.reason()),
            }
            count += 1;
            if batch.len() == BATCH && sender.blocking_send(std::mem::take(&mut batch)).is_err() {
                // L1 is full, or the time is over.
                return Ok(Ok(()));
            }
        };
        let _ = sender.blocking_send(batch);
        Ok(ended)
    }

    /// The entry of a record, if it is still alive.
    fn loaded(&self, record: &Record<'_>) -> Option<Loaded> {
        let snapshots = self.snapshots.as_ref()?;
        let is_verified = snapshots.is_alone;
        let key = self.key(&self.root, record.key);
        let document = snapshots.opened(&key.full, &record.document)?;
        let document = Document::parse(&document).ok()?;
        let meta = &document.meta;
        let (now, at) = (self.clock.now(), self.clock.epoch());
        let in_l1 = |end| now.saturating_add(until(end, at));
        let ends_at = match meta.expiration {
            Expiration::Never => NEVER,
            Expiration::At(end) => end,
        };
        let life = Life {
            created_at: meta.created_at,
            fingerprint: 0,
            life: record.life,
            ends_at: in_l1(ends_at),
            fresh_until: if record.fresh_until == 0 { 0 } else { in_l1(record.fresh_until) },
            dead_at: in_l1(meta.stale_until.unwrap_or(NEVER)),
            verified_at: now,
            epoch: if is_verified { self.l1.epoch() } else { 0 },
            graced: record.graced,
        };
        if life.dead_at <= now {
            return None;
        }
        let tags = self.tags.restored(&key, &meta.tags, is_verified);
        let validators = meta.validators.as_deref().cloned().unwrap_or_default();
        let entry = Entry::new(record.key, Unread::new(&document), life, tags);
        let entry = entry.with_validators(validators);
        let weight = self.weight(&entry, Some(record.document.len()));
        Some((key, Arc::new(entry), weight))
    }

    /// Puts an empty snapshot in the place of a last one, so that it is used once. False if the file
    /// is still there.
    async fn use_up(self: &Arc<Self>) -> bool {
        let engine = self.clone();
        let using = self.runtime.spawn_blocking(move || engine.replace_by_nothing());
        let path = self.snapshots.as_ref().map_or(Path::new(""), |snapshots| &snapshots.path);
        let error = match timeout(PATIENCE, using).await {
            Ok(Ok(Ok(None))) => return true,
            Ok(Ok(Ok(Some(error)))) => {
                tracing::warn!(store = %self.name, path = %path.display(), %error,
                    "the snapshot of L1 cannot be written; make its directory writable");
                return true;
            }
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) | Err(_) => refusal("it took too long"),
        };
        tracing::error!(store = %self.name, path = %path.display(), %error,
            "the snapshot of L1 can be neither replaced nor removed, so L1 starts empty; remove the \
             file before its directory becomes writable again");
        false
    }

    /// The blocking part of [`use_up`](Self::use_up). Returns the reason why the file could only be
    /// removed.
    fn replace_by_nothing(&self) -> io::Result<Option<io::Error>> {
        let Some(snapshots) = &self.snapshots else { return Ok(None) };
        match file::open(&snapshots.path)? {
            Some(Opened::Foreign) => return Ok(None),
            Some(Opened::Snapshot(reader))
                if whose(&reader.head, &self.name, &self.root).is_some() =>
            {
                return Ok(None);
            }
            _ => {}
        }
        match file::replace(&snapshots.path, &self.head(false), |_| Ok(()), || Ok(())) {
            Ok(_) => Ok(None),
            Err(error) => file::discard(&snapshots.path).map(|()| Some(error)),
        }
    }

    fn head(&self, is_last: bool) -> Head {
        Head {
            is_last,
            written_at: self.clock.epoch(),
            run: self.snapshots.as_ref().map_or(0, |snapshots| snapshots.run),
            file: fastrand::u64(1..),
            store: (*self.name).into(),
            root: (*self.root).into(),
        }
    }

    /// Writes a snapshot whenever the interval has passed.
    pub(super) async fn write_snapshots_forever(self: Arc<Self>, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let engine = self.clone();
            match self.runtime.spawn_blocking(move || engine.write_snapshot(false)).await {
                Ok(written) => self.log_written(written, false),
                Err(error) => self.log_panic(&error),
            }
        }
    }

    /// Writes the last snapshot. `is_quiet` tells that no change is running.
    pub(super) async fn write_last_snapshot(self: &Arc<Self>, is_quiet: bool) {
        let Some(snapshots) = &self.snapshots else { return };
        if !is_quiet && !snapshots.has_l2 {
            tracing::warn!(store = %self.name,
                "no snapshot of L1 is written, because changes are still running");
            return;
        }
        let (engine, is_last) = (self.clone(), !snapshots.has_l2);
        let mut writing = pin!(self.runtime.spawn_blocking(move || engine.write_snapshot(is_last)));
        let written = self.timers.within(WRITING, writing.as_mut()).await;
        snapshots.stopped.store(true, SeqCst);
        match written {
            Some(Ok(written)) => self.log_written(written, true),
            Some(Err(error)) => self.log_panic(&error),
            None => self.log_written(Err(refusal("it took too long")), true),
        }
    }

    fn log_written(&self, written: io::Result<(u64, usize)>, is_last: bool) {
        let Some(snapshots) = &self.snapshots else { return };
        match written {
            Ok((entries, left_out)) => {
                snapshots.failing.store(false, Relaxed);
                tracing::debug!(store = %self.name, entries, left_out,
                    "a snapshot of L1 was written");
            }
            // The first failure of several.
            Err(error) if !snapshots.failing.swap(true, Relaxed) || is_last => {
                tracing::warn!(store = %self.name, path = %snapshots.path.display(), %error,
                    "the snapshot of L1 cannot be written");
            }
            Err(_) => {}
        }
    }

    fn log_panic(&self, error: &JoinError) {
        // Otherwise the runtime has ended.
        if error.is_panic() {
            tracing::error!(store = %self.name, "writing the snapshot of L1 panicked");
        }
    }

    /// Writes a snapshot. Returns the number of entries, and of those that have no stored form.
    fn write_snapshot(&self, is_last: bool) -> io::Result<(u64, usize)> {
        let Some(snapshots) = &self.snapshots else { return Ok((0, 0)) };
        let _one = snapshots.writing.lock();
        let may_replace = || snapshots.check_place(&self.name, &self.root);
        may_replace()?;
        let mut left_out = 0;
        let write = |writer: &mut Writer<BufWriter<File>>| {
            let mut result = Ok(());
            self.l1.for_each(&mut |entry| {
                if result.is_err() || snapshots.stopped.load(Relaxed) {
                    return;
                }
                match self.push_entry(writer, entry) {
                    Ok(pushed) => left_out += usize::from(!pushed),
                    Err(error) => result = Err(error),
                }
            });
            result
        };
        let entries = file::replace(&snapshots.path, &self.head(is_last), write, may_replace)?;
        Ok((entries, left_out))
    }

    /// Writes an entry, if it is alive. Returns false if it has no stored form.
    fn push_entry(&self, writer: &mut Writer<impl io::Write>, entry: &Entry) -> io::Result<bool> {
        let (now, at) = (self.clock.now(), self.clock.epoch());
        if self.l1.judge(entry, now) == Verdict::Dead {
            return Ok(true);
        }
        if entry.sliding().is_some() && self.l2.is_none() {
            // The file does not say when it was used, and nobody else knows.
            return Ok(false);
        }
        let document = self.document_of(entry, now, at).and_then(|document| {
            let key = [&*self.root, entry.key()].concat();
            self.snapshots.as_ref()?.sealed(&key, document)
        });
        let Some(document) = document else { return Ok(false) };
        let is_fresh = now < entry.fresh_until() && (self.l2.is_some() || self.is_valid(entry));
        writer.push(&Block::Entry(Record {
            key: entry.key(),
            graced: entry.is_graced(),
            fresh_until: if is_fresh { epoch_of(entry.fresh_until(), now, at) } else { 0 },
            life: entry.life(),
            document,
        }))
    }

    /// In a store without an L2: whether the tags of the entry are valid.
    fn is_valid(&self, entry: &Entry) -> bool {
        entry.epoch() == self.l1.epoch()
            && entry.tags().iter().all(|seen| seen.is_valid(entry.created_at()))
    }

    /// The entry as a document, whose tags are the keys of their markers; `None` if its value has no
    /// stored form.
    fn document_of(&self, entry: &Entry, now: u64, at: u64) -> Option<Bytes> {
        let marker_key = |key: &str| Some(key.strip_prefix(&*self.root)?.into());
        let end = |end| (end != NEVER).then(|| epoch_of(end, now, at));
        let meta = Meta {
            created_at: entry.created_at(),
            expiration: end(entry.ends_at()).map_or(Expiration::Never, Expiration::At),
            stale_until: end(entry.dead_at()),
            tags: entry
                .tags()
                .iter()
                .map(|seen| marker_key(seen.tag().key()))
                .collect::<Option<_>>()?,
            validators: entry.validators().cloned().map(Box::new),
            ..Meta::default()
        };
        if let Some(unread) = Unread::of(entry) {
            let (format, payload) = (unread.format(), unread.payload());
            return Some(Document::from_payload(self.codec, &meta, format, payload));
        }
        let mut payload = Vec::new();
        let format = self.codec.format();
        entry.value().encode(format.id(), &mut payload).ok()?;
        Some(Document::from_payload(self.codec, &meta, format, &payload))
    }
}

/// A time of the cache's clock in milliseconds since the epoch, `at` of which is `now`.
fn epoch_of(time: u64, now: u64, at: u64) -> u64 {
    match time.checked_sub(now) {
        _ if time == NEVER => NEVER,
        Some(later) => at.saturating_add(later),
        None => at.saturating_sub(now - time),
    }
}
