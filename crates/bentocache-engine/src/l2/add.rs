//! The part of `add` that concerns L2: a look, and an insertion that succeeds for one caller only.

use std::sync::Arc;

use bentocache_driver::{DriverError, ErrorKind};
use bytes::Bytes;

use super::change::NewDocument;
use super::remote::Budget;
use super::tier::L2;
use crate::site::{Key, as_ttl};

/// What L2 has under a key.
pub(crate) struct Look {
    /// The stored document.
    pub(crate) stored: Option<Bytes>,
    /// The same with the queued change as an overlay.
    pub(crate) visible: Option<Bytes>,
}

impl L2 {
    /// Reads the key, to add a value. An error if a queued clear would remove that value again.
    pub(crate) async fn look(&self, key: &Key, budget: &Budget) -> Result<Look, Arc<DriverError>> {
        if self.queue.must_wait(&key.full) {
            let message = "a clear of this namespace waits to be repeated and would remove the \
                           value; try again when L2 works";
            return Err(Arc::new(DriverError::new(ErrorKind::Unavailable, message)));
        }
        let pending = self.queue.pending(&key.full);
        let get = self.call("add", &key.full, budget.left(), |driver| driver.get(&key.full));
        let stored = get.await?;
        let visible = match pending {
            Some(pending) => self.applied(pending, key, stored.clone()),
            None => stored.clone(),
        };
        Ok(Look { stored, visible })
    }

    /// Stores the document in the place of `stored`, which was read before; returns false if
    /// something else is there now. Of several callers one succeeds, if the driver compares
    /// atomically: each removes exactly the document that it read, and the first one inserts.
    pub(crate) async fn add(
        &self,
        put: &NewDocument<'_>,
        stored: Option<Bytes>,
        budget: &Budget,
    ) -> Result<bool, Arc<DriverError>> {
        let key = &*put.key.full;
        self.queue.supersede(&put.key.full);
        let before = self.queue.now();
        if let Some(stored) = &stored {
            let delete =
                self.call("add", key, budget.left(), |driver| driver.delete_if(key, stored));
            if !delete.await? {
                return Ok(false);
            }
        }
        let (bytes, ttl) = (put.bytes.clone(), as_ttl(put.life));
        match self.call("add", key, budget.left(), |driver| driver.insert(key, bytes, ttl)).await {
            Ok(true) => {
                put.fence.has_reached();
                self.forget_waiting(put.key, before);
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(error) => {
                // It may be stored, and its caller learns that it is not.
                if error.is_transient() {
                    let digest = self.site.digest(put.bytes);
                    self.keep_take_back(put.key, digest, put.created_at, None);
                    self.kick();
                }
                Err(error)
            }
        }
    }
}
