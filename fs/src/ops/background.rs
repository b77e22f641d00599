//! The one thread that works unasked: frees nameless files, hands over and flushes what was
//! changed, writes lagging times, and finishes reads whose file changed under them.
//!
//! Its queue holds at most one task per nameless or half cut file and per running read, so it is
//! bounded by what the callers have under way.

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
    /// Finish a truncation that a crash or a close left half way.
    Settle(Ino),
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

    pub fn settle(&self, ino: Ino) {
        let _ = self.tasks.send(Task::Settle(ino));
    }

    /// Whether it was told to end: what takes long is left to the next mount from then on.
    pub fn is_ending(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// From now on nothing is begun that takes long, here or by callers.
    pub fn hurry(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Ends it, after the step at which it is. What it had still to do is found by the next mount.
    pub fn stop(&self) {
        self.hurry();
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
            Ok(Task::Reap(_) | Task::Settle(_)) if fs.background.is_ending() => {}
            // What takes many steps goes to the end of the queue after each, so that commits and
            // readers do not wait for it.
            Ok(Task::Reap(ino)) => match fs.reap_some(ino) {
                Ok(true) => {}
                Ok(false) => fs.background.reap(ino),
                Err(e) => {
                    tracing::warn!(%ino, error = %e, "cannot free a deleted file; next mount will");
                }
            },
            Ok(Task::Settle(ino)) => match fs.settle_some(ino) {
                Ok(true) => {}
                Ok(false) => fs.background.settle(ino),
                Err(e) => {
                    tracing::warn!(%ino, error = %e, "cannot finish a truncation; next mount will");
                }
            },
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use bytes::Bytes;

    use super::*;
    use crate::api::{CreateHow, Creds, Ctx, Door, InodeId, NewAttr};
    use crate::data::{BLOCK, Edges, STEP};
    use crate::fsck::fsck;
    use crate::ops::Settings;
    use crate::testing::{HeldVolume, fs_on};
    use crate::vfs::Vfs;

    /// Too many for one step, and to be freed by whoever removes the last name.
    const PIECES: u64 = 4200;

    /// A file system with one file in so many pieces that it is not cut in one step.
    fn fragmented() -> (Arc<HeldVolume>, Arc<Fs>, InodeId) {
        let volume = Arc::new(HeldVolume::of(16_384));
        let fs = fs_on(volume.clone());
        let creds = Creds::root();
        let ctx = || Ctx::by(&creds, Door(9));
        let how = (CreateHow::Guarded, NewAttr::default());
        let made = fs.create(
            Ctx::by(&creds, Door(9)),
            InodeId::ROOT,
            b"file",
            how.0,
            how.1,
        );
        let id = made.unwrap().value.attr.id;
        for i in 0..PIECES {
            let data = Bytes::from(vec![1; BLOCK as usize]);
            fs.write(ctx(), id, 2 * i * BLOCK, data).unwrap();
        }
        (volume, fs, id)
    }

    /// The first step of a truncation to nothing.
    fn cut(fs: &Fs, id: InodeId) {
        fs.engine
            .change(STEP, |core| {
                let mut inode = core.inode(id.ino)?;
                fs.resize(core, id.ino, &mut inode, 0, &Edges::NONE)?;
                core.put_inode(id.ino, &inode)
            })
            .unwrap();
        assert!(fs.engine.core().unwrap().truncating.contains(&id.ino));
    }

    fn unlink(fs: &Fs) {
        let creds = Creds::root();
        fs.unlink(Ctx::by(&creds, Door(9)), InodeId::ROOT, b"file")
            .unwrap();
    }

    fn inodes(fs: &Fs) -> u64 {
        fs.engine.core().unwrap().sb.inodes
    }

    /// Mounts it again; it is as empty as a new one before long, and whole.
    fn all_is_freed(volume: &Arc<HeldVolume>) {
        let fs = Fs::mount(volume.clone(), Settings::default()).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while inodes(&fs) > 1 || !fs.engine.core().unwrap().truncating.is_empty() {
            assert!(Instant::now() < end, "{} inodes are left", inodes(&fs));
            std::thread::yield_now();
        }
        fs.close().unwrap();
        drop(fs);
        let report = fsck(&**volume).unwrap();
        assert_eq!(report.findings, []);
        assert_eq!((report.files, report.data_blocks), (0, 0));
    }

    #[test]
    fn one_that_loses_its_name_while_it_is_cut_is_freed() {
        let (volume, fs, id) = fragmented();
        cut(&fs, id);
        fs.open_ref(id).unwrap();
        unlink(&fs);
        fs.settle(id.ino).unwrap();
        fs.close().unwrap();
        drop(fs);
        all_is_freed(&volume);
    }

    #[test]
    fn one_that_gets_a_name_again_half_cut_is_cut_all_the_same() {
        let (volume, fs, id) = fragmented();
        cut(&fs, id);
        fs.open_ref(id).unwrap();
        unlink(&fs);
        let creds = Creds::root();
        fs.link(Ctx::by(&creds, Door(9)), id, InodeId::ROOT, b"again")
            .unwrap();
        fs.close().unwrap();
        drop(fs);
        // What lies beyond its end is not seen again when it grows, and is freed.
        let fs = Fs::mount(volume.clone(), Settings::default()).unwrap();
        let data = Bytes::from(vec![2; BLOCK as usize]);
        let end = 2 * PIECES * BLOCK;
        fs.write(Ctx::by(&creds, Door(9)), id, end, data).unwrap();
        for i in [0, PIECES, 2 * PIECES - 2] {
            let read = fs.read(&creds, id, i * BLOCK, BLOCK as u32).unwrap();
            let bytes: Vec<u8> = read.data.iter().flat_map(|b| b.to_vec()).collect();
            assert_eq!(bytes, vec![0; BLOCK as usize], "block {i}");
        }
        fs.close().unwrap();
        drop(fs);
        let report = fsck(&*volume).unwrap();
        assert_eq!(report.findings, []);
        assert_eq!((report.files, report.data_blocks), (1, 1));
    }

    #[test]
    fn closing_does_not_wait_for_large_files_to_go() {
        for truncated in [false, true] {
            let (volume, fs, id) = fragmented();
            // Given that the background has other things to do,
            let (free, held) = channel::<()>();
            fs.later(Box::new(move || assert!(held.recv().is_err())));
            // and something large to do next,
            match truncated {
                true => {
                    cut(&fs, id);
                    fs.background.settle(id.ino);
                }
                false => {
                    fs.open_ref(id).unwrap();
                    unlink(&fs);
                    fs.drop_ref(id);
                }
            }
            // closing leaves it to the next mount.
            let closing = fs.clone();
            let closed = std::thread::spawn(move || closing.close());
            while !fs.background.is_ending() {
                std::thread::yield_now();
            }
            drop(free);
            closed.join().unwrap().unwrap();
            drop(fs);
            let left = fsck(&*volume).unwrap();
            assert_eq!(left.findings, []);
            assert!(left.data_blocks > 0, "it was waited for");
            if truncated {
                let fs = Fs::mount(volume.clone(), Settings::default()).unwrap();
                unlink(&fs);
                fs.close().unwrap();
            }
            all_is_freed(&volume);
        }
    }
}
