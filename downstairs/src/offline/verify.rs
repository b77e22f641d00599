//! Reads everything in a region and checks it against its checksums.

use std::path::Path;

use super::{Progress, for_each_chunk, inspect, mismatches};
use crate::error::{Result, StoreError};
use crate::log::replay::Tail;

/// Problems listed one by one, at most; the rest is only counted.
const MAX_LISTED: usize = 1000;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Content and checksum of this block differ.
    Content(u64),
    /// The metadata of these blocks does not verify; carries what was found.
    Metadata(u64, u64, String),
    /// An extent file as a whole; carries what was found.
    Extent(String),
}

/// What a verification found.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Blocks that hold something.
    pub written_blocks: u64,
    /// How the log ended.
    pub tail: Tail,
    /// A resync was begun and not finished.
    pub mixed: bool,
    /// Damage was found by an earlier opening.
    pub damaged: bool,
    /// The first problems.
    pub problems: Vec<Problem>,
    /// All of them.
    pub problem_count: u64,
}

impl Verified {
    /// Whether everything is as it should be. An unsure end of the log is what a power cut under
    /// load leaves, no fault by itself.
    pub fn is_sound(&self) -> bool {
        self.problem_count == 0
            && !self.mixed
            && !self.damaged
            && !matches!(self.tail, Tail::Damaged(_))
    }

    fn add(&mut self, problem: Problem) {
        self.problem_count += 1;
        if self.problems.len() < MAX_LISTED {
            self.problems.push(problem);
        }
    }
}

/// Verifies the region in `dir`.
///
/// # Errors
/// It cannot be opened at all, or the disk fails.
pub fn verify(dir: &Path, progress: Progress<'_>) -> Result<Verified> {
    let (store, tail) = inspect(dir)?;
    let mut out = Verified {
        written_blocks: 0,
        tail,
        mixed: store.mixed().is_some(),
        damaged: store.damaged(),
        problems: Vec::new(),
        problem_count: 0,
    };
    let mut last_extent = String::new();
    for_each_chunk(&store, progress, |first, count, got| {
        match got {
            Ok(got) => {
                let written = got.sums.iter().filter(|s| !s.is_unwritten());
                out.written_blocks += written.count() as u64;
                for block in mismatches(&store, first, &got) {
                    out.add(Problem::Content(block));
                }
            }
            Err(StoreError::CorruptBlocks { .. }) => {
                // Block by block, to name what is bad and still check the rest.
                for block in first..first + u64::from(count) {
                    match store.read(trivet_protocol::Block(block), 1) {
                        Ok(got) => {
                            out.written_blocks += u64::from(!got.sums[0].is_unwritten());
                            for block in mismatches(&store, block, &got) {
                                out.add(Problem::Content(block));
                            }
                        }
                        Err(StoreError::CorruptBlocks { why, .. }) => {
                            out.add(Problem::Metadata(block, block, why));
                        }
                        Err(e) => return Err(e),
                    }
                }
            }
            Err(StoreError::Corrupt { what, why }) => {
                if what != last_extent {
                    out.add(Problem::Extent(format!("{what}: {why}")));
                    last_extent = what;
                }
            }
            Err(e) => return Err(e),
        }
        Ok(())
    })?;
    Ok(out)
}
