//! The stream of keys.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bentocache_driver::DriverError;
use futures_core::Stream;
use tokio::task::JoinHandle;

use crate::dir::Dir;
use crate::layout::SHARDS;
use crate::{call, error};

/// Lists shard after shard, each when the previous one is used up: only the keys of one shard are
/// in memory, and no thread waits for a slow reader.
pub(crate) struct Keys {
    dir: Arc<Dir>,
    prefix: Arc<str>,
    next: usize,
    listed: std::vec::IntoIter<String>,
    listing: Option<JoinHandle<Listed>>,
}

/// The keys of the first shard with keys, and the number of the next shard.
struct Listed {
    keys: Result<Vec<String>, DriverError>,
    next: usize,
}

impl Keys {
    pub(crate) fn new(dir: Arc<Dir>, prefix: &str) -> Self {
        Self { dir, prefix: prefix.into(), next: 0, listed: Vec::new().into_iter(), listing: None }
    }

    fn list(&self) -> Result<JoinHandle<Listed>, DriverError> {
        let (dir, prefix, first) = (Arc::clone(&self.dir), Arc::clone(&self.prefix), self.next);
        call::spawn(move || {
            for shard in first..SHARDS {
                let keys = dir.keys(shard, &prefix);
                if !keys.as_ref().is_ok_and(Vec::is_empty) {
                    return Listed { keys, next: shard + 1 };
                }
            }
            Listed { keys: Ok(Vec::new()), next: SHARDS }
        })
    }
}

impl Stream for Keys {
    type Item = Result<String, DriverError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(key) = self.listed.next() {
                return Poll::Ready(Some(Ok(key)));
            }
            let Some(listing) = &mut self.listing else {
                if self.next == SHARDS {
                    return Poll::Ready(None);
                }
                match self.list() {
                    Ok(listing) => self.listing = Some(listing),
                    Err(error) => return self.end(error),
                }
                continue;
            };
            let listed = ready!(Pin::new(listing).poll(cx));
            self.listing = None;
            match listed {
                Ok(Listed { keys, next }) => {
                    self.next = next;
                    match keys {
                        Ok(keys) => self.listed = keys.into_iter(),
                        // The other shards may be readable.
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    }
                }
                Err(join) => return self.end(error::unfinished(join)),
            }
        }
    }
}

impl Keys {
    fn end(&mut self, error: DriverError) -> Poll<Option<Result<String, DriverError>>> {
        self.next = SHARDS;
        Poll::Ready(Some(Err(error)))
    }
}
