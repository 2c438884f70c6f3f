//! Background work: tasks that end with the store, and changes that their callers run.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::sync::Mutex;

/// Owned tasks: they end with the store.
#[derive(Default)]
pub(super) struct Tasks {
    set: Mutex<Option<JoinSet<()>>>,
    changes: Arc<Changes>,
}

/// Changes that are run by their callers.
#[derive(Default)]
struct Changes {
    running: AtomicUsize,
    idle: Notify,
}

/// A change that is run by its caller, until this is dropped.
pub(super) struct Busy(Arc<Changes>);

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self { set: Mutex::new(Some(JoinSet::new())), ..Self::default() }
    }

    /// Counts a change that is not a task.
    pub(super) fn busy(&self) -> Busy {
        self.changes.running.fetch_add(1, SeqCst);
        Busy(self.changes.clone())
    }

    /// Spawns a task, unless the tasks were ended.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static, runtime: &Handle) {
        // A runtime that has ended drops the task at once. What that drops in turn may come back
        // here, so the task itself is dropped outside of the lock.
        let task = Arc::new(Mutex::new(Some(Box::pin(task))));
        let shared = task.clone();
        let run = async move {
            let task = shared.lock().take();
            if let Some(task) = task {
                task.await;
            }
        };
        if let Some(set) = &mut *self.set.lock() {
            set.spawn_on(run, runtime);
            while set.try_join_next().is_some() {}
        }
        drop(task);
    }

    /// Ends all tasks and refuses new ones.
    pub(super) fn abort(&self) {
        // Dropped outside of the lock: a task's own drop may come back here.
        let set = self.set.lock().take();
        drop(set);
    }

    /// Waits until there are no tasks and no changes.
    pub(super) async fn finished(&self) {
        loop {
            // First: a change whose caller goes away becomes a task.
            let mut idle = pin!(self.changes.idle.notified());
            idle.as_mut().enable();
            if self.changes.running.load(SeqCst) > 0 {
                idle.await;
                continue;
            }
            let Some(mut set) = self.set.lock().replace(JoinSet::new()) else { return };
            if set.is_empty() {
                return;
            }
            while set.join_next().await.is_some() {}
        }
    }
}
