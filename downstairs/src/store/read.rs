//! Reading: what the log knows lies over what the extent files know.
//!
//! A [`ReadJob`] is planned under the owner's lock and run without it. Meanwhile a checkpoint may
//! have begun to move blocks, or the log's ring may have come round: [`Store::still_valid`] says,
//! after the run, whether the result counts; if not, read again.

use std::io::ErrorKind;
use std::sync::Arc;

use trivet_protocol::{BLOCK_BYTES, Block, Checksum, VolumeId};

use super::{Shared, Store};
use crate::disk::Source;
use crate::error::{Result, StoreError};
use crate::log::MARGIN;
use crate::log::record::{Sums, What};
use crate::overlay::{Found, Span};

/// Blocks as they were read, with the checksums kept for them. Nothing was compared: that is done
/// end to end, in the upstairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The content, zeros where nothing is written.
    pub data: Vec<u8>,
    /// One per block; [`Checksum::UNWRITTEN`] where nothing is written.
    pub sums: Vec<Checksum>,
}

impl Blocks {
    /// The blocks, read from `first` on, whose content does not match the checksum kept for it.
    /// What is unwritten has none.
    pub fn mismatches(&self, volume: VolumeId, first: u64) -> Vec<u64> {
        let contents = self.data.chunks_exact(BLOCK_BYTES).zip(&self.sums);
        let wrong = contents.zip(first..).filter(|((data, sum), block)| {
            !sum.is_unwritten() && Checksum::of(volume, Block(*block), data) != **sum
        });
        wrong.map(|(_, block)| block).collect()
    }
}

/// A planned read.
pub struct ReadJob {
    shared: Arc<Shared>,
    block: u64,
    count: u64,
    pieces: Vec<Found>,
    rounds: u64,
    /// Lowest byte position of the log that it needs.
    log_from: u64,
}

impl Store {
    /// Plans a read of `count` blocks.
    ///
    /// # Errors
    /// Beyond the region's end.
    pub fn begin_read(&self, block: Block, count: u32) -> Result<ReadJob> {
        let end = block.0.checked_add(u64::from(count));
        let Some(end) = end.filter(|e| *e <= self.blocks) else {
            return Err(StoreError::OutOfRange {
                first: block.0,
                last: block.0.saturating_add(u64::from(count).saturating_sub(1)),
                blocks: self.blocks,
            });
        };
        debug_assert!(
            self.nothing_held(),
            "records are written before anything is read"
        );
        let (mut pieces, mut log_from) = (Vec::with_capacity(1), u64::MAX);
        self.overlay.walk(block.0, end, |found| {
            if let Found::Span(span) = found {
                log_from = log_from.min(span.record);
            }
            pieces.push(found);
            Ok::<(), StoreError>(())
        })?;
        Ok(ReadJob {
            shared: Arc::clone(&self.shared),
            block: block.0,
            count: u64::from(count),
            pieces,
            rounds: self.rounds,
            log_from,
        })
    }

    /// Whether what the job read is what the blocks held.
    pub fn still_valid(&self, job: &ReadJob) -> bool {
        let overwritten = self.end + MARGIN > job.log_from.saturating_add(self.shared.log.ring());
        job.rounds == self.rounds && !overwritten
    }

    /// Does a read again that is no longer valid, planned anew and under the owner's lock: nothing
    /// can overtake it.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn read_again(&self, job: &ReadJob) -> Result<Blocks> {
        self.read(Block(job.block), job.count as u32)
    }

    /// Reads under the owner's lock.
    ///
    /// # Errors
    /// Beyond the end, damaged metadata, or the disk fails.
    pub fn read(&self, block: Block, count: u32) -> Result<Blocks> {
        self.begin_read(block, count)?.run()
    }

    /// The checksums kept for blocks, without their data.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn checksums(&self, block: Block, count: u32) -> Result<Vec<Checksum>> {
        self.begin_read(block, count)?.kept_sums()
    }
}

impl ReadJob {
    /// What it reads: first block and number of blocks.
    pub fn asked(&self) -> (Block, u32) {
        (Block(self.block), self.count as u32)
    }

    /// Reads.
    ///
    /// # Errors
    /// Damaged metadata, or the disk fails.
    pub fn run(&self) -> Result<Blocks> {
        self.run_from(Source::Disk)
    }

    /// Reads what is in memory, without waiting for the disk; `None` if some of it is not.
    ///
    /// # Errors
    /// As [`ReadJob::run`].
    pub fn run_in_memory(&self) -> Result<Option<Blocks>> {
        match self.run_from(Source::Memory) {
            Ok(blocks) => Ok(Some(blocks)),
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn run_from(&self, from: Source) -> Result<Blocks> {
        // Zeroed pages come from the kernel as such; what is unwritten stays that way. The one
        // copy is the kernel's, from the page cache.
        let mut data = vec![0; self.count as usize * BLOCK_BYTES];
        let mut sums = vec![Checksum::UNWRITTEN; self.count as usize];
        for piece in &self.pieces {
            match piece {
                Found::Span(span) => {
                    self.sums(from, piece, &mut sums)?;
                    self.span_data(from, span, &mut data)?;
                }
                Found::Below(first, n) => {
                    self.below(from, (*first, *n), &mut data, &mut sums)?;
                }
            }
        }
        Ok(Blocks { data, sums })
    }

    /// The checksums kept for its blocks, without their data.
    ///
    /// # Errors
    /// As [`ReadJob::run`].
    pub fn kept_sums(&self) -> Result<Vec<Checksum>> {
        let mut sums = vec![Checksum::UNWRITTEN; self.count as usize];
        for piece in &self.pieces {
            self.sums(Source::Disk, piece, &mut sums)?;
        }
        Ok(sums)
    }

    /// The blocks whose content, as read, does not match their checksum.
    pub fn mismatches(&self, read: &Blocks) -> Vec<u64> {
        read.mismatches(self.shared.region.volume, self.block)
    }

    /// The part of `count` blocks from the `from`-th on; what lies beyond the end is left out.
    pub(super) fn part(&self, from: u32, count: u32) -> ReadJob {
        let first = self.block + u64::from(from).min(self.count);
        let end = (first + u64::from(count)).min(self.block + self.count);
        let clip = |piece: &Found| match *piece {
            Found::Span(span) => span.clip(first, end).map(Found::Span),
            Found::Below(b, n) => {
                let (b, e) = (b.max(first), (b + n).min(end));
                (b < e).then(|| Found::Below(b, e - b))
            }
        };
        ReadJob {
            shared: Arc::clone(&self.shared),
            block: first,
            count: end - first,
            pieces: self.pieces.iter().filter_map(clip).collect(),
            ..*self
        }
    }

    /// Whether another plan finds the same things in the same places.
    pub(super) fn same_plan(&self, other: &ReadJob) -> bool {
        (self.block, self.count) == (other.block, other.count) && self.pieces == other.pieces
    }

    /// Lets the system forget what it has in memory of the extent files' part, so that it is read
    /// from the disk. What is in the log was written lately and is about to move.
    pub(super) fn forget_cached(&self) {
        let extents = &self.shared.extents;
        for piece in &self.pieces {
            let (first, n) = match *piece {
                Found::Below(first, n) => (first, n),
                Found::Span(s) if matches!(s.what, What::Direct { .. }) => (s.block, s.count),
                Found::Span(_) => continue,
            };
            // Whether it helps shows in the reading; an error here is one there.
            let _ = extents.split(first, n, |no, at, n, _| {
                if let Some(file) = extents.get(no)? {
                    extents.forget_cached(&file, at, n);
                }
                Ok(())
            });
        }
    }

    fn range(&self, first: u64, n: u64) -> std::ops::Range<usize> {
        let start = (first - self.block) as usize;
        start..start + n as usize
    }

    fn bytes(&self, first: u64, n: u64) -> std::ops::Range<usize> {
        let r = self.range(first, n);
        r.start * BLOCK_BYTES..r.end * BLOCK_BYTES
    }

    fn below(
        &self,
        from: Source,
        (first, n): (u64, u64),
        data: &mut [u8],
        sums: &mut [Checksum],
    ) -> Result<()> {
        let extents = &self.shared.extents;
        extents.split(first, n, |no, at, n, done| {
            let Some(file) = extents.get_from(from, no)? else {
                return Ok(());
            };
            let (b, s) = (
                self.bytes(first + done, u64::from(n)),
                self.range(first + done, u64::from(n)),
            );
            extents.read(from, &file, at, &mut data[b], &mut sums[s])
        })
    }

    fn span_data(&self, from: Source, span: &Span, data: &mut [u8]) -> Result<()> {
        let extents = &self.shared.extents;
        match span.what {
            What::Log { data: at, .. } => {
                let part = &mut data[self.bytes(span.block, span.count)];
                self.shared.log.read_from(from, part, at)
            }
            What::Direct { .. } => extents.split(span.block, span.count, |no, at, n, done| {
                let Some(file) = extents.get_from(from, no)? else {
                    return Ok(());
                };
                let b = self.bytes(span.block + done, u64::from(n));
                extents.data_from(from, &file, at, &mut data[b])
            }),
            What::Discarded => Ok(()),
        }
    }

    fn sums(&self, from: Source, piece: &Found, sums: &mut [Checksum]) -> Result<()> {
        let extents = &self.shared.extents;
        match *piece {
            Found::Span(span) => {
                let out = &mut sums[self.range(span.block, span.count)];
                span_sums(from, &self.shared, &span, out)
            }
            Found::Below(first, n) => extents.split(first, n, |no, at, n, done| {
                let Some(file) = extents.get_from(from, no)? else {
                    return Ok(());
                };
                let r = self.range(first + done, u64::from(n));
                extents.sums(from, &file, at, &mut sums[r])
            }),
        }
    }
}

/// The checksums of a span, from memory or the log.
pub(crate) fn span_sums(
    from: Source,
    shared: &Shared,
    span: &Span,
    out: &mut [Checksum],
) -> Result<()> {
    let at = match span.what {
        What::Discarded => return Ok(()),
        What::Log {
            sums: Sums::One(sum),
            ..
        } => {
            out.fill(sum);
            return Ok(());
        }
        What::Log {
            sums: Sums::At(at), ..
        }
        | What::Direct { sums: at } => at,
    };
    let mut raw = vec![0; out.len() * Checksum::BYTES];
    shared.log.read_from(from, &mut raw, at)?;
    for (sum, bytes) in out.iter_mut().zip(raw.chunks_exact(Checksum::BYTES)) {
        sum.0.copy_from_slice(bytes);
    }
    Ok(())
}
