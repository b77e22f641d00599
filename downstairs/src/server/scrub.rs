//! Looks at the disk for a scrub, on a thread of the region's own: they read from the disk, and
//! neither the stream nor a checkpoint is to wait for that.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};

use super::{Served, lock};
use crate::replica::ConnId;
use crate::store::ScrubJob;

/// Looks that may wait; whoever asks for more is refused.
const MOST: usize = 8;

/// See the module's head.
#[derive(Default)]
pub(super) struct Looks {
    waiting: Mutex<Waiting>,
    work: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<(ConnId, u64, ScrubJob)>,
    ended: bool,
}

impl Looks {
    /// False if too many wait already.
    pub(super) fn add(&self, conn: ConnId, id: u64, job: ScrubJob) -> bool {
        let mut waiting = lock(&self.waiting);
        let room = waiting.jobs.len() < MOST;
        if room {
            waiting.jobs.push_back((conn, id, job));
            self.work.notify_one();
        }
        room
    }

    /// Nothing more is done.
    pub(super) fn end(&self) {
        lock(&self.waiting).ended = true;
        self.work.notify_all();
    }

    fn next(&self) -> Option<(ConnId, u64, ScrubJob)> {
        let waits = |w: &mut Waiting| !w.ended && w.jobs.is_empty();
        let waiting = self.work.wait_while(lock(&self.waiting), waits);
        let mut waiting = waiting.unwrap_or_else(std::sync::PoisonError::into_inner);
        match waiting.ended {
            true => None,
            false => waiting.jobs.pop_front(),
        }
    }
}

impl Served {
    /// The region's thread for it.
    pub(super) fn run_looks(&self) {
        while let Some((conn, id, job)) = self.looks.next() {
            let began = std::time::Instant::now();
            let found = job.run();
            self.recorder.time("downstairs.scrub", super::nanos(began));
            let mut out = Vec::new();
            lock(&self.replica).scrub_done((conn, id), &job, found, &mut out);
            self.perform(out);
        }
    }
}
