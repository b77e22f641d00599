//! Scrub: a range is read from the disk and checked against the checksums kept for it.
//!
//! As with reads, the job is planned under the owner's lock and run without it. What it found is
//! true of the moment of the plan, and so comparable with what other replicas found at the same
//! place of the history, only if nothing of the range changed meanwhile: [`Store::untouched`].

use trivet_protocol::breaks::{self, Break};
use trivet_protocol::message::{Bad, Scrubbed};
use trivet_protocol::{Block, Checksum};

use super::{ReadJob, Store};
use crate::error::Result;

/// A planned look at a range.
pub struct ScrubJob(ReadJob);

impl Store {
    /// Plans a look at `count` blocks.
    ///
    /// # Errors
    /// Beyond the region's end.
    pub fn begin_scrub(&self, block: Block, count: u32) -> Result<ScrubJob> {
        self.begin_read(block, count).map(ScrubJob)
    }

    /// Whether the range is what it was when the job was planned, and where it was.
    pub fn untouched(&self, job: &ScrubJob) -> bool {
        let (block, count) = job.0.asked();
        let again = || self.begin_read(block, count);
        self.still_valid(&job.0) && again().is_ok_and(|now| now.same_plan(&job.0))
            || breaks::on(Break::OvertakenLookCounts)
    }
}

impl ScrubJob {
    /// Reads and checks, from the disk where that can be had. What cannot be read as a whole is
    /// read block by block.
    pub fn run(&self) -> Scrubbed {
        self.0.forget_cached();
        let (_, count) = self.0.asked();
        let mut sums = Vec::with_capacity(count as usize);
        let mut bad = Vec::new();
        look(&self.0, &mut sums, &mut bad);
        Scrubbed::Read { sums, bad }
    }

    /// The same under the owner's lock, from memory if it is there: for a range that was read just
    /// before and overtaken. A disk that fails is not to hold the owner up: what cannot be read in
    /// one go is left to be asked for again.
    pub fn run_held(&self) -> Scrubbed {
        let Ok(blocks) = self.0.run() else {
            return Scrubbed::Overtaken;
        };
        let (first, _) = self.0.asked();
        let wrong = self.0.mismatches(&blocks).into_iter();
        let bad = wrong.map(|block| ((block - first.0) as u32, Bad::Content));
        Scrubbed::Read {
            bad: bad.collect(),
            sums: blocks.sums,
        }
    }
}

fn look(job: &ReadJob, sums: &mut Vec<Checksum>, bad: &mut Vec<(u32, Bad)>) {
    let (first, count) = job.asked();
    let at = sums.len() as u32;
    match job.run() {
        Ok(blocks) => {
            let offset = |block: u64| at + (block - first.0) as u32;
            let wrong = job.mismatches(&blocks).into_iter();
            bad.extend(wrong.map(|block| (offset(block), Bad::Content)));
            sums.extend(blocks.sums);
        }
        Err(_) if count > 1 => {
            (0..count).for_each(|i| look(&job.part(i, 1), sums, bad));
        }
        Err(_) => {
            let kept = job.kept_sums();
            let what = if kept.is_ok() {
                Bad::Content
            } else {
                Bad::Checksum
            };
            bad.push((at, what));
            let unknown = vec![Checksum::UNWRITTEN; count as usize];
            sums.extend(kept.unwrap_or(unknown));
        }
    }
}
