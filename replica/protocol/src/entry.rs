//! Operations, and batches of them that are in the history as one (invariants 4 and 5).
//!
//! An [`Entry`] is what travels to the replicas and what their logs keep. Its encoding is the
//! same in both places, so that a payload is never re-encoded:
//!
//! ```text
//! meta:  op count u32 | reserved u32 | ops, 24 bytes each | checksums, 16 bytes per written block
//! op:    kind u8 | reserved [7] | first block u64 | block count u64          (little-endian)
//! data:  the written blocks, in the order of the ops
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::checksum::Checksum;
use crate::ids::{BLOCK_BYTES, Block, Seq, VolumeId};
use crate::limits::{MAX_BATCH_BLOCKS, MAX_BATCH_OPS};

const META_HEAD: usize = 8;
const OP_BYTES: usize = 24;

/// What a caller asks of a volume, to be done wholly or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// In order: of two operations on the same block the later one wins.
    pub ops: Vec<BatchOp>,
}

/// One operation of a [`Batch`].
#[derive(Clone, Debug)]
pub enum BatchOp {
    /// Writes whole blocks; `data` is a non-empty multiple of [`BLOCK_BYTES`].
    Write {
        /// First block.
        block: Block,
        /// The content; shared, not copied, from here to the sockets.
        data: Bytes,
    },
    /// Makes blocks unwritten: they read as zeros and take no space. Any length, also a whole
    /// volume, costs one operation.
    Discard {
        /// First block.
        block: Block,
        /// Number of blocks, at least 1.
        count: u64,
    },
}

impl Batch {
    /// A batch of one write.
    pub fn write(block: Block, data: Bytes) -> Batch {
        Batch {
            ops: vec![BatchOp::Write { block, data }],
        }
    }

    /// A batch of one discard.
    pub fn discard(block: Block, count: u64) -> Batch {
        Batch {
            ops: vec![BatchOp::Discard { block, count }],
        }
    }

    /// Blocks of data in it.
    pub fn data_blocks(&self) -> usize {
        self.ops
            .iter()
            .map(|op| match op {
                BatchOp::Write { data, .. } => data.len() / BLOCK_BYTES,
                BatchOp::Discard { .. } => 0,
            })
            .sum()
    }

    /// Checks sizes and places against a volume of `blocks` blocks.
    ///
    /// # Errors
    /// What is wrong with the batch, naming the operation.
    pub fn check(&self, blocks: u64) -> Result<(), EntryError> {
        if self.ops.len() > MAX_BATCH_OPS {
            return Err(EntryError::TooManyOps(self.ops.len()));
        }
        if self.data_blocks() > MAX_BATCH_BLOCKS {
            return Err(EntryError::TooManyBlocks(self.data_blocks()));
        }
        for (i, op) in self.ops.iter().enumerate() {
            let (first, count) = match op {
                BatchOp::Write { block, data } => {
                    if data.is_empty() || !data.len().is_multiple_of(BLOCK_BYTES) {
                        return Err(EntryError::NotWholeBlocks {
                            op: i,
                            bytes: data.len(),
                        });
                    }
                    (*block, (data.len() / BLOCK_BYTES) as u64)
                }
                BatchOp::Discard { block, count } => (*block, *count),
            };
            check_range(i, first, count, blocks)?;
        }
        Ok(())
    }
}

fn check_range(op: usize, first: Block, count: u64, blocks: u64) -> Result<(), EntryError> {
    let end = first.0.checked_add(count);
    if count == 0 || end.is_none_or(|end| end > blocks) {
        return Err(EntryError::OutOfRange {
            op,
            first: first.0,
            count,
            blocks,
        });
    }
    Ok(())
}

/// One operation as replicas see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `count` written blocks, whose content is in the entry's data.
    Write {
        /// First block.
        block: Block,
        /// Number of blocks.
        count: u32,
    },
    /// `count` blocks become unwritten.
    Discard {
        /// First block.
        block: Block,
        /// Number of blocks.
        count: u64,
    },
}

const KIND_WRITE: u8 = 1;
const KIND_DISCARD: u8 = 2;

/// One operation of the history: a place, the generation that ordered it, and an atomic batch.
/// An entry without ops is legal and changes nothing (the first of a reign may be one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Place in the history.
    pub seq: Seq,
    /// Number of the generation that ordered it; kept when a later one re-sends it.
    pub generation: u64,
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// One checksum per written block, in the order of the data.
    pub sums: Vec<Checksum>,
    /// The written blocks; segments are concatenated. Each segment is whole blocks.
    pub data: Vec<Bytes>,
}

/// Why bytes are not an entry, or a batch not acceptable.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EntryError {
    #[error("a batch has {0} operations; at most {MAX_BATCH_OPS} are allowed: split it")]
    TooManyOps(usize),
    #[error("a batch writes {0} blocks; at most {MAX_BATCH_BLOCKS} are allowed: split it")]
    TooManyBlocks(usize),
    #[error("operation {op} writes {bytes} bytes, not a whole number of {BLOCK_BYTES}-byte blocks")]
    NotWholeBlocks { op: usize, bytes: usize },
    #[error("operation {op} covers {count} blocks from {first}, beyond the volume's {blocks}")]
    OutOfRange {
        op: usize,
        first: u64,
        count: u64,
        blocks: u64,
    },
    #[error("an entry's description is cut short or has {0} bytes too many")]
    Length(i64),
    #[error("operation {op} is of unknown kind {kind}")]
    Kind { op: usize, kind: u8 },
    #[error("an entry carries {have} bytes of data where its operations need {need}")]
    Data { have: usize, need: usize },
}

impl Entry {
    /// Makes an entry of a checked batch, computing the end-to-end checksums.
    pub fn new(volume: VolumeId, seq: Seq, generation: u64, batch: Batch) -> Entry {
        let mut entry = Entry::unplaced(volume, batch);
        entry.seq = seq;
        entry.generation = generation;
        entry
    }

    /// As [`Entry::new`] but without a place yet: checksums are computed before the order is
    /// decided, outside of any lock.
    pub fn unplaced(volume: VolumeId, batch: Batch) -> Entry {
        let mut ops = Vec::with_capacity(batch.ops.len());
        let mut sums = Vec::with_capacity(batch.data_blocks());
        let mut segments = Vec::with_capacity(batch.ops.len());
        for op in batch.ops {
            match op {
                BatchOp::Write { block, data } => {
                    let count = (data.len() / BLOCK_BYTES) as u32;
                    for (i, content) in data.chunks_exact(BLOCK_BYTES).enumerate() {
                        sums.push(Checksum::of(volume, Block(block.0 + i as u64), content));
                    }
                    ops.push(Op::Write { block, count });
                    segments.push(data);
                }
                BatchOp::Discard { block, count } => ops.push(Op::Discard { block, count }),
            }
        }
        Entry {
            seq: Seq::ZERO,
            generation: 0,
            ops,
            sums,
            data: segments,
        }
    }

    /// Bytes of data.
    pub fn data_len(&self) -> usize {
        self.sums.len() * BLOCK_BYTES
    }

    /// Length of [`Entry::encode_meta`]'s result.
    pub fn meta_len(&self) -> usize {
        META_HEAD + self.ops.len() * OP_BYTES + self.sums.len() * Checksum::BYTES
    }

    /// The entry without its data, as wire and log keep it.
    pub fn encode_meta(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.meta_len());
        out.put_u32_le(self.ops.len() as u32);
        out.put_u32_le(0);
        for op in &self.ops {
            let (kind, block, count) = match *op {
                Op::Write { block, count } => (KIND_WRITE, block, u64::from(count)),
                Op::Discard { block, count } => (KIND_DISCARD, block, count),
            };
            out.put_u8(kind);
            out.put_bytes(0, 7);
            out.put_u64_le(block.0);
            out.put_u64_le(count);
        }
        for sum in &self.sums {
            out.put_slice(&sum.0);
        }
        out.freeze()
    }

    /// Reads ops and checksums back, believing nothing: counts are bounded, ranges are checked
    /// against a volume of `blocks` blocks, and the length must be exact.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn decode_meta(meta: &[u8], blocks: u64) -> Result<(Vec<Op>, Vec<Checksum>), EntryError> {
        let short = |need: usize| EntryError::Length(meta.len() as i64 - need as i64);
        let (head, mut rest) = meta
            .split_at_checked(META_HEAD)
            .ok_or_else(|| short(META_HEAD))?;
        let count = le_u32(head) as usize;
        if count > MAX_BATCH_OPS {
            return Err(EntryError::TooManyOps(count));
        }
        let mut ops = Vec::with_capacity(count);
        let mut written = 0usize;
        for i in 0..count {
            let (raw, tail) = rest
                .split_at_checked(OP_BYTES)
                .ok_or_else(|| short(META_HEAD + count * OP_BYTES))?;
            rest = tail;
            let (block, n) = (Block(le_u64(&raw[8..])), le_u64(&raw[16..]));
            check_range(i, block, n, blocks)?;
            ops.push(match raw[0] {
                KIND_WRITE => {
                    written = written.saturating_add(usize::try_from(n).unwrap_or(usize::MAX));
                    if written > MAX_BATCH_BLOCKS {
                        return Err(EntryError::TooManyBlocks(written));
                    }
                    Op::Write {
                        block,
                        count: n as u32,
                    }
                }
                KIND_DISCARD => Op::Discard { block, count: n },
                kind => return Err(EntryError::Kind { op: i, kind }),
            });
        }
        if rest.len() != written * Checksum::BYTES {
            return Err(short(
                META_HEAD + count * OP_BYTES + written * Checksum::BYTES,
            ));
        }
        let sums = rest
            .chunks_exact(Checksum::BYTES)
            .map(|c| {
                let mut sum = [0; 16];
                sum.copy_from_slice(c);
                Checksum(sum)
            })
            .collect();
        Ok((ops, sums))
    }

    /// Reads an entry from its two parts.
    ///
    /// # Errors
    /// As [`Entry::decode_meta`], or the data has not the length that the ops need.
    pub fn decode(
        seq: Seq,
        generation: u64,
        meta: &[u8],
        data: Bytes,
        blocks: u64,
    ) -> Result<Entry, EntryError> {
        let (ops, sums) = Self::decode_meta(meta, blocks)?;
        let need = sums.len() * BLOCK_BYTES;
        if data.len() != need {
            return Err(EntryError::Data {
                have: data.len(),
                need,
            });
        }
        let data = if data.is_empty() {
            Vec::new()
        } else {
            vec![data]
        };
        Ok(Entry {
            seq,
            generation,
            ops,
            sums,
            data,
        })
    }

    /// The data in one piece; free when it is one segment, a copy otherwise.
    pub fn contiguous_data(&self) -> Bytes {
        match self.data.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => {
                let mut out = BytesMut::with_capacity(self.data_len());
                many.iter().for_each(|s| out.put_slice(s));
                out.freeze()
            }
        }
    }
}

fn le_u32(b: &[u8]) -> u32 {
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

fn le_u64(b: &[u8]) -> u64 {
    u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Entry {
        let batch = Batch {
            ops: vec![
                BatchOp::Write {
                    block: Block(5),
                    data: Bytes::from(vec![1; 2 * BLOCK_BYTES]),
                },
                BatchOp::Discard {
                    block: Block(0),
                    count: 100,
                },
                BatchOp::Write {
                    block: Block(9),
                    data: Bytes::from(vec![2; BLOCK_BYTES]),
                },
            ],
        };
        batch.check(100).unwrap();
        Entry::new(VolumeId::from_bytes([9; 16]), Seq(4), 2, batch)
    }

    #[test]
    fn meta_goes_there_and_back() {
        let e = sample();
        let meta = e.encode_meta();
        assert_eq!(meta.len(), e.meta_len());
        let back = Entry::decode(Seq(4), 2, &meta, e.contiguous_data(), 100).unwrap();
        assert_eq!((&back.ops, &back.sums), (&e.ops, &e.sums));
        assert_eq!(back.contiguous_data(), e.contiguous_data());
    }

    #[test]
    fn every_truncation_and_every_foreign_size_is_refused() {
        let e = sample();
        let meta = e.encode_meta();
        for n in 0..meta.len() {
            assert!(Entry::decode_meta(&meta[..n], 100).is_err(), "{n} bytes");
        }
        assert!(Entry::decode_meta(&meta, 99).is_err(), "beyond the volume");
        let mut huge = meta.to_vec();
        huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Entry::decode_meta(&huge, 100).is_err());
    }
}
