//! Group commit: who waits for durability, and one flush for all of them.
//!
//! Every door's durable writes and syncs come here ([`Engine::flush_then`]). With fewer than
//! [`MAX_FLUSHES`] flushes under way the caller seals the open transaction and asks for the flush
//! itself, so nobody who is alone waits for a thread. With so many under way he is put down, and
//! the open transaction goes on gathering; when one of them ends, whoever comes first (a caller, or
//! the thread of this module) seals what has gathered as one batch with one flush.
//!
//! Invariants:
//! - An answer that claims durability follows a flush of a ticket at or above that of the batch
//!   with the caller's mark (invariants 3 and 8). There is no other way to hear of success.
//! - Everyone who was put down is answered: there is a flush under way when he is put down, and
//!   its end wakes the thread.
//! - The end of a flush, which is told on a thread of the volume's, never waits for the volume: the
//!   next batch is submitted by the thread here, or by a caller.
//!
//! Bounds: one entry per call in flight, which the doors bound.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use crate::api::{FlushCallback, Mark};
use crate::error::{FsError, FsResult};
use crate::ops::Fs;

/// Flushes under way at once.
pub const MAX_FLUSHES: usize = 2;

/// Those who share a flush: the newest mark among theirs, and how they are answered.
pub(super) struct Party {
    pub upto: Mark,
    pub answers: Vec<(Mark, FlushCallback)>,
}

impl Party {
    fn join(&mut self, upto: Mark, done: FlushCallback) {
        self.upto = self.upto.max(upto);
        self.answers.push((upto, done));
    }

    /// Takes those out who need more than what was submitted up to `id`.
    pub fn split_above(&mut self, id: u64) -> Party {
        let all = std::mem::take(&mut self.answers);
        let (above, rest) = all.into_iter().partition(|(m, _)| m.0 > id);
        self.answers = rest;
        Party {
            upto: self.upto,
            answers: above,
        }
    }

    /// Tells all of them.
    pub fn answer(self, result: &FsResult<()>) {
        for (_, done) in self.answers {
            done(result.clone());
        }
    }
}

#[derive(Default)]
struct State {
    waiting: Option<Party>,
    flushes: usize,
    /// The thread runs: somebody may be put down.
    running: bool,
}

/// See the module's head.
#[derive(Default)]
pub(super) struct Group {
    state: Mutex<State>,
    wake: Condvar,
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A flush may begin now, for the returned ones; else the caller was put down.
    pub fn enter(&self, upto: Mark, done: FlushCallback) -> Option<Party> {
        let mut s = self.lock();
        let mut party = s.waiting.take().unwrap_or(Party {
            upto,
            answers: Vec::new(),
        });
        party.join(upto, done);
        if s.running && s.flushes >= MAX_FLUSHES {
            s.waiting = Some(party);
            return None;
        }
        s.flushes += 1;
        Some(party)
    }

    /// A flush has ended, or did not come about.
    pub fn leave(&self) {
        let mut s = self.lock();
        s.flushes = s.flushes.saturating_sub(1);
        let wake = s.waiting.is_some();
        drop(s);
        if wake {
            self.wake.notify_one();
        }
    }

    /// The next flush's party, or the end.
    fn next(&self) -> Option<Party> {
        let mut s = self.lock();
        while s.running {
            if s.flushes < MAX_FLUSHES
                && let Some(party) = s.waiting.take()
            {
                s.flushes += 1;
                return Some(party);
            }
            s = self.wake.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn run(&self, fs: &Weak<Fs>) {
        while let Some(party) = self.next() {
            match fs.upgrade() {
                Some(fs) => fs.engine.flush_party(party),
                None => party.answer(&Err(gone())),
            }
        }
    }

    fn stop(&self) {
        let mut s = self.lock();
        s.running = false;
        let rest = s.waiting.take();
        drop(s);
        self.wake.notify_all();
        if let Some(party) = rest {
            party.answer(&Err(gone()));
        }
    }
}

fn gone() -> FsError {
    FsError::Stopped("the file system was closed during a flush".into())
}

/// The thread that asks for the next flush. Dropping it ends it.
pub(crate) struct Committer {
    group: Arc<Group>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    /// Without a thread yet: until [`Committer::start`] each call is a flush of its own.
    pub(super) fn new(group: Arc<Group>) -> Committer {
        Committer {
            group,
            thread: Mutex::new(None),
        }
    }

    /// Starts the thread, which holds the file system only while it works.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(&self, fs: Weak<Fs>) -> FsResult<()> {
        let group = self.group.clone();
        group.lock().running = true;
        let thread = std::thread::Builder::new()
            .name("fs-commit".into())
            .spawn(move || group.run(&fs))
            .map_err(|e| {
                self.group.lock().running = false;
                FsError::Mount(format!("no thread for commits: {e}"))
            })?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.group.stop();
        let slot = self.thread.get_mut();
        let thread = slot.unwrap_or_else(PoisonError::into_inner).take();
        // The last owner may be this thread itself, which ends by itself then.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use trivet_replica::volume::Volume;

    use super::*;
    use crate::api::{CreateHow, Creds, Ctx, Door, InodeId, NewAttr};
    use crate::testing::{HeldVolume, fs_on};
    use crate::vfs::Vfs;

    struct World {
        volume: Arc<HeldVolume>,
        fs: Arc<Fs>,
        file: InodeId,
    }

    impl World {
        /// With a durable file of 64 blocks; flushes are held up from here on.
        fn new() -> World {
            let volume = Arc::new(HeldVolume::new());
            let fs = fs_on(volume.clone());
            let creds = Creds::root();
            let made = fs
                .create(
                    Ctx::by(&creds, Door(9)),
                    InodeId::ROOT,
                    b"file",
                    CreateHow::Guarded,
                    NewAttr::default(),
                )
                .unwrap();
            let file = made.value.attr.id;
            let w = World { volume, fs, file };
            let mark = w.write(0, &[1; 64 * 4096]);
            w.fs.flush(mark).unwrap();
            w.volume.hold_flushes();
            w
        }

        fn write(&self, offset: u64, data: &[u8]) -> Mark {
            let (creds, data) = (Creds::root(), Bytes::copy_from_slice(data));
            let ctx = Ctx::by(&creds, Door(9));
            self.fs.write(ctx, self.file, offset, data).unwrap().mark
        }

        /// A durable write of one block.
        fn durable(&self, block: u64) -> Receiver<FsResult<()>> {
            let mark = self.write(block * 4096, &[block as u8; 4096]);
            let (tx, rx) = channel();
            self.fs.flush_then(
                mark,
                Box::new(move |r| {
                    let _ = tx.send(r);
                }),
            );
            rx
        }

        fn batches(&self) -> u64 {
            self.volume.last_ticket().0.0
        }

        /// Until so many flushes are under way.
        fn until_flushes(&self, count: usize) {
            let end = Instant::now() + Duration::from_secs(60);
            while self.volume.flushes() != count {
                assert!(Instant::now() < end, "{} flushes", self.volume.flushes());
                std::thread::yield_now();
            }
        }
    }

    fn answered(rx: &Receiver<FsResult<()>>) -> FsResult<()> {
        rx.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn what_arrives_during_flushes_shares_the_next_one() {
        let w = World::new();
        let before = w.batches();
        // Given as many flushes under way as there may be, each of a batch of its own;
        let first: Vec<_> = (0..MAX_FLUSHES as u64).map(|b| w.durable(b)).collect();
        assert_eq!(w.volume.flushes(), MAX_FLUSHES);
        // when many more come, they wait together;
        let rest: Vec<_> = (10..50).map(|b| w.durable(b)).collect();
        assert_eq!(w.volume.flushes(), MAX_FLUSHES);
        assert!(rest.iter().all(|rx| rx.try_recv().is_err()));
        // and when those have ended, one batch and one flush carry them all.
        assert_eq!(w.volume.hold_flushes(), MAX_FLUSHES);
        first.iter().for_each(|rx| assert_eq!(answered(rx), Ok(())));
        w.until_flushes(1);
        assert!(rest.iter().all(|rx| rx.try_recv().is_err()));
        assert_eq!(w.batches() - before, MAX_FLUSHES as u64 + 1);
        assert_eq!(w.volume.hold_flushes(), 1);
        rest.iter().for_each(|rx| assert_eq!(answered(rx), Ok(())));
        w.volume.hold_flushes();
    }

    #[test]
    fn those_who_waited_hear_of_a_lost_lease_and_may_ask_again() {
        let w = World::new();
        let first: Vec<_> = (0..MAX_FLUSHES as u64).map(|b| w.durable(b)).collect();
        let rest: Vec<_> = (10..20).map(|b| w.durable(b)).collect();
        w.volume.hold(false);
        w.volume.hold_flushes();
        first.iter().for_each(|rx| assert_eq!(answered(rx), Ok(())));
        for rx in &rest {
            assert!(matches!(answered(rx), Err(FsError::Volume(_))));
        }
        w.volume.hold(true);
        let again = w.durable(10);
        w.until_flushes(1);
        w.volume.hold_flushes();
        assert_eq!(answered(&again), Ok(()));
    }

    #[test]
    fn nobody_waits_for_a_file_system_that_has_gone() {
        let w = World::new();
        let first: Vec<_> = (0..MAX_FLUSHES as u64).map(|b| w.durable(b)).collect();
        let late = w.durable(10);
        drop(w.fs);
        assert!(matches!(answered(&late), Err(FsError::Stopped(_))));
        w.volume.hold_flushes();
        first.iter().for_each(|rx| assert_eq!(answered(rx), Ok(())));
    }
}
