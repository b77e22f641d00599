//! Threads that wait for the disk in place of readers who can go elsewhere.
//!
//! What is in memory is read on the caller's own thread. The rest is read by a thread of these: a
//! disk that hangs would hold up whoever reads, and with it the file system, although two other
//! replicas have the data. After [`PATIENCE`] the caller goes there. While a read is out for longer
//! than that the disk is taken to hang: nothing more is asked of it until that read has come back.
//!
//! Bounded by [`MOST`] threads, which are started when they are needed and end when they are not;
//! whoever finds none free goes elsewhere at once. They are not waited for at the end: one may
//! hang, and what it reads nobody wants any more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use trivet_protocol::{Block, Checksum, Generation, Seq};

use super::{Served, lock, nanos, spawn};
use crate::prompt::promptly;
use crate::store::{Blocks, ReadJob};

/// How long a caller waits for the disk: as long as it would for another replica.
pub const PATIENCE: Duration = Duration::from_millis(300);
/// Threads at most.
pub const MOST: usize = 32;
/// One that has nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);

impl Served {
    /// A read for an upstairs in this process, on the caller's own thread as far as memory has it:
    /// `None` unless everything up to `seen` of this very generation was applied, or while the disk
    /// hangs. Waits for at most 0.3 s.
    pub fn read_local(
        &self,
        generation: Generation,
        seen: Seq,
        block: Block,
        count: u32,
    ) -> Option<(Bytes, Vec<Checksum>)> {
        let job = {
            let replica = promptly(&self.replica)?;
            let store = replica.store()?;
            let ours = replica.member().check(generation).is_ok();
            if !ours || store.end().seq < seen || store.mixed().is_some() || store.damaged() {
                return None;
            }
            store.begin_read(block, count).ok()?
        };
        match job.run_in_memory().ok()? {
            Some(blocks) => self.if_valid(&job, blocks),
            None => {
                let job = Arc::new(job);
                let began = Instant::now();
                let blocks = self.readers.read(&job);
                let what = match blocks {
                    Some(_) => "downstairs.read",
                    None => "downstairs.read.given_up",
                };
                self.recorder.time(what, nanos(began));
                self.if_valid(&job, blocks?)
            }
        }
    }

    fn if_valid(&self, job: &ReadJob, blocks: Blocks) -> Option<(Bytes, Vec<Checksum>)> {
        let valid = promptly(&self.replica)?.store()?.still_valid(job);
        valid.then(|| (Bytes::from(blocks.data), blocks.sums))
    }
}

struct Job {
    id: u64,
    read: Arc<ReadJob>,
    answer: SyncSender<crate::Result<Blocks>>,
}

#[derive(Default)]
struct State {
    threads: usize,
    idle: usize,
    waiting: VecDeque<Job>,
    next: u64,
    /// Reads that are not done, and whether their callers have gone.
    out: BTreeMap<u64, bool>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

/// See the module's head.
#[derive(Default)]
pub(super) struct Readers(Arc<Shared>);

impl Readers {
    /// Reads; `None` if that fails, or the disk does not answer in time.
    pub fn read(&self, read: &Arc<ReadJob>) -> Option<Blocks> {
        let (answer, done) = mpsc::sync_channel(1);
        let id = self.hand_over(read.clone(), answer)?;
        match done.recv_timeout(PATIENCE) {
            Ok(blocks) => blocks.ok(),
            Err(_) => {
                if let Some(late) = lock(&self.0.state).out.get_mut(&id) {
                    *late = true;
                }
                None
            }
        }
    }

    fn hand_over(
        &self,
        read: Arc<ReadJob>,
        answer: SyncSender<crate::Result<Blocks>>,
    ) -> Option<u64> {
        let mut s = lock(&self.0.state);
        if s.out.values().any(|late| *late) {
            return None;
        }
        if s.idle <= s.waiting.len() {
            if s.threads >= MOST {
                return None;
            }
            let shared = self.0.clone();
            let thread = Thread(shared);
            s.threads += 1;
            drop(s);
            // Without a thread it is dropped, and counted no more.
            spawn("reader".into(), move || thread.run()).ok()?;
            s = lock(&self.0.state);
        }
        s.next += 1;
        let id = s.next;
        s.out.insert(id, false);
        s.waiting.push_back(Job { id, read, answer });
        drop(s);
        self.0.work.notify_one();
        Some(id)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        lock(&self.0.state).ended = true;
        self.0.work.notify_all();
    }
}

/// One of the threads.
struct Thread(Arc<Shared>);

impl Thread {
    fn run(&self) {
        while let Some(Job { id, read, answer }) = self.next() {
            let done = Done(&self.0, id);
            let blocks = read.run();
            // Before the caller goes on: it may be the last who uses the region.
            drop(read);
            drop(done);
            // Nobody waits any more if it took too long.
            let _ = answer.try_send(blocks);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut s = lock(&self.0.state);
        s.idle += 1;
        let idles = |s: &mut State| s.waiting.is_empty() && !s.ended;
        let waited = self.0.work.wait_timeout_while(s, IDLE, idles);
        s = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        s.idle -= 1;
        s.waiting.pop_front()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        lock(&self.0.state).threads -= 1;
    }
}

/// A read that is under way; over also when it panics.
struct Done<'a>(&'a Shared, u64);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).out.remove(&self.1);
    }
}
