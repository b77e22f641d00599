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
    /// Reads and checks, from the disk where that can be had. What cannot be read is halved until
    /// it is known which blocks it is: a failing disk is asked for each bad block a few times, not
    /// for all blocks one by one.
    pub fn run(&self) -> Scrubbed {
        self.0.forget_cached();
        self.run_as_it_is()
    }

    /// The same, from memory if it is there: for a range that was read from the disk just before.
    pub fn run_as_it_is(&self) -> Scrubbed {
        let (_, count) = self.0.asked();
        let mut sums = Vec::with_capacity(count as usize);
        let mut bad = Vec::new();
        look(&self.0, &mut sums, &mut bad);
        Scrubbed::Read { sums, bad }
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
            look(&job.part(0, count / 2), sums, bad);
            look(&job.part(count / 2, count - count / 2), sums, bad);
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
