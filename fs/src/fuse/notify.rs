//! Taking back what the kernel has cached, when another door changes it.
//!
//! The kernel may hold locks of a request while it takes our notice, so notices come from a
//! thread of their own. The caller of [`Watcher::changed`] waits for its notice, at most
//! [`PATIENCE`]: its reply must not leave before the caches are gone (and a stuck local program
//! must not stop NFS). The queue is bounded; when it is full the caller waits likewise.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};

use super::handles::Handles;
use crate::api::{Event, Watcher};

const QUEUE: usize = 1024;
const PATIENCE: Duration = Duration::from_secs(2);

type Notice = (Event, SyncSender<()>);

/// See the module's head.
pub(super) struct Notify {
    queue: Mutex<Option<SyncSender<Notice>>>,
    handles: Arc<Handles>,
}

impl Notify {
    pub fn start(notifier: Notifier, handles: Arc<Handles>) -> std::io::Result<Arc<Notify>> {
        let (tx, rx) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("fuse-notify".into())
            .spawn(move || run(&notifier, &rx))?;
        Ok(Arc::new(Notify {
            queue: Mutex::new(Some(tx)),
            handles,
        }))
    }

    /// Ends the thread once its queue is empty.
    pub fn stop(&self) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn send(&self, mut notice: Notice) {
        let queue = self
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(queue) = queue else { return };
        let until = Instant::now() + PATIENCE;
        loop {
            match queue.try_send(notice) {
                Err(TrySendError::Full(back)) if Instant::now() < until => {
                    notice = back;
                    // The queue takes no waiter with a bound; a slot is free when one is sent.
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => return,
            }
        }
    }
}

impl Watcher for Notify {
    fn changed(&self, event: &Event) {
        // What the kernel does not know it has not cached.
        let known = match event {
            Event::Inode { id, .. } => self.handles.is_known(id.ino.0),
            Event::Entry { dir, .. } => self.handles.is_known(dir.ino.0),
        };
        if !known {
            return;
        }
        let (done, wait) = sync_channel(1);
        self.send((event.clone(), done));
        if wait.recv_timeout(PATIENCE).is_err() {
            tracing::warn!("the kernel did not take a notice in time; a cached copy may linger");
        }
    }
}

fn run(notifier: &Notifier, queue: &Receiver<Notice>) {
    while let Ok((event, done)) = queue.recv() {
        // ENOENT says that the kernel has nothing cached: as good.
        let _ = match &event {
            Event::Inode { id, content } => {
                let (offset, len) = match content {
                    None => (-1, 0),
                    Some((o, l)) => (
                        i64::try_from(*o).unwrap_or(0),
                        i64::try_from(*l).unwrap_or(0),
                    ),
                };
                notifier.inval_inode(INodeNo(id.ino.0), offset, len)
            }
            Event::Entry { dir, name } => {
                let _ = notifier.inval_inode(INodeNo(dir.ino.0), 0, 0);
                notifier.inval_entry(INodeNo(dir.ino.0), OsStr::from_bytes(name))
            }
        };
        let _ = done.send(());
    }
}
