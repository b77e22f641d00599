//! The one thread that works unasked: frees nameless files, hands over and flushes what was
//! changed, writes lagging times, and finishes reads whose file changed under them.
//!
//! Its queue holds at most one task per nameless file and per running read, so it is bounded by
//! what the callers have under way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{Fs, lock};
use crate::api::{Ino, Mark};
use crate::error::{FsError, FsResult};

pub(super) enum Task {
    Reap(Ino),
    Run(Box<dyn FnOnce() + Send>),
    Stop,
}

/// The thread's handle and queue.
pub(super) struct Background {
    tasks: Sender<Task>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stopped: AtomicBool,
}

impl Background {
    pub fn new() -> (Background, Receiver<Task>) {
        let (tasks, queue) = channel();
        let background = Background {
            tasks,
            thread: Mutex::new(None),
            stopped: AtomicBool::new(false),
        };
        (background, queue)
    }

    pub fn start(&self, fs: &Arc<Fs>, queue: Receiver<Task>) -> FsResult<()> {
        let weak = Arc::downgrade(fs);
        let thread = std::thread::Builder::new()
            .name("fs-background".into())
            .spawn(move || run(&weak, &queue))
            .map_err(|e| FsError::Mount(format!("no thread for background work: {e}")))?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    pub fn reap(&self, ino: Ino) {
        // The receiver is gone only after `stop`: mounting again will find the work.
        let _ = self.tasks.send(Task::Reap(ino));
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let _ = self.tasks.send(Task::Stop);
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Fs {
    /// Runs something on the background thread.
    pub(crate) fn later(&self, f: Box<dyn FnOnce() + Send>) {
        let _ = self.background.tasks.send(Task::Run(f));
    }

    /// One round of unasked work.
    fn tick(&self, flush: bool) {
        // Errors stop the file system or are met again by whoever asks for durability.
        let result = self
            .write_times(false)
            .and_then(|()| self.engine.commit())
            .map(|()| {
                if flush {
                    self.engine.flush_then(Mark(0), Box::new(|_| {}));
                }
            });
        if let Err(e) = result {
            tracing::debug!(error = %e, "background commit");
        }
    }
}

fn run(fs: &Weak<Fs>, queue: &Receiver<Task>) {
    let (mut committed, mut flushed) = (Instant::now(), Instant::now());
    loop {
        let Some(interval) = fs.upgrade().map(|fs| fs.settings.commit_interval) else {
            return;
        };
        let wait = interval.saturating_sub(committed.elapsed());
        let task = queue.recv_timeout(wait);
        let Some(fs) = fs.upgrade() else { return };
        match task {
            Ok(Task::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Task::Run(f)) => f(),
            Ok(Task::Reap(ino)) => {
                if let Err(e) = fs.reap(ino) {
                    tracing::warn!(%ino, error = %e, "cannot free a deleted file; next mount will");
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if committed.elapsed() >= interval {
            let flush = flushed.elapsed() + interval >= fs.settings.flush_interval;
            fs.tick(flush);
            committed = Instant::now();
            if flush {
                flushed = committed;
            }
        }
    }
}
