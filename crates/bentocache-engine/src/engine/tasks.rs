//! Background work: tasks that end with the store, and changes that run inside their callers.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::sync::Mutex;

/// The tasks of a store. They end with the store.
#[derive(Default)]
pub(super) struct Tasks {
    set: Mutex<Option<JoinSet<()>>>,
    changes: Arc<Changes>,
}

/// Changes that run inside their callers.
#[derive(Default)]
struct Changes {
    running: AtomicUsize,
    idle: Notify,
}

/// A change that runs inside its caller. It ends when this is dropped.
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

    /// Whether changes run inside their callers.
    pub(super) fn has_changes(&self) -> bool {
        self.changes.running.load(SeqCst) > 0
    }

    /// Spawns a task, unless the tasks were ended.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static, runtime: &Handle) {
        // A runtime that has ended drops the task at once, and drops inside the task may call this
        // function again. So the task itself is dropped outside the lock.
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
        // Dropped outside the lock, because a drop inside a task may call this function again.
        let set = self.set.lock().take();
        drop(set);
    }

    /// Waits until no task and no change is left.
    pub(super) async fn finished(&self) {
        loop {
            // Changes first, because a change whose caller is dropped becomes a task.
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
