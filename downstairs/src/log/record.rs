//! Records of the log, byte by byte.
//!
//! ```text
//! record:  header 160 | meta (as Entry::encode_meta) | data of the ops not in place | zeros to 512
//! END:     a header of kind END, zeros to 512; stands after the last record
//! ```
//!
//! A header's checksum starts from the region's seed and covers its byte position and epoch: a
//! record of an older lap, of a history that was cut off, of another region, or forged by a guest
//! is never taken for the next one.

use std::sync::Arc;

use trivet_protocol::limits::{MAX_BATCH_BLOCKS, MAX_BATCH_OPS};
use trivet_protocol::{BLOCK_BYTES, Checksum, Op, Position, Seq};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::SECTOR;

/// Bytes of a header.
pub const HEADER: usize = 160;
/// Bytes of a record, at most.
pub const MAX_RECORD: u64 = (HEADER + 8 + MAX_BATCH_OPS * 24 + MAX_BATCH_BLOCKS * 16) as u64
    + (MAX_BATCH_BLOCKS * BLOCK_BYTES) as u64
    + SECTOR;
/// A record's first bytes.
pub const MAGIC: [u8; 8] = *b"TRVLOG01";
const UNSUMMED: usize = 12;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An operation of the history.
    Entry,
    /// Blocks copied from a peer during a resync; not history, changes no position.
    Copy,
    /// Nothing follows.
    End,
}

#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    header_crc: U32,
    body_crc: U32,
    pos: U64,
    epoch: U64,
    synced_to: U64,
    seq: U64,
    generation: U64,
    commit: U64,
    total_len: U32,
    meta_len: U32,
    data_len: U32,
    kind: u8,
    zero: [u8; 3],
    in_place: [u8; MAX_BATCH_OPS / 8],
    reserved: [u8; 16],
}
const _: () = assert!(size_of::<Raw>() == HEADER);

/// A header in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the record is.
    pub kind: Kind,
    /// Byte position of the record.
    pub pos: u64,
    /// Epoch in which it was written.
    pub epoch: u64,
    /// All bytes of the log before this position were synced when it was written.
    pub synced_to: u64,
    /// The operation; of a copy and an END the last operation before it.
    pub seq: Seq,
    /// Generation that ordered it.
    pub generation: u64,
    /// Commit position known then.
    pub commit: Seq,
    /// Bytes of the whole record, a multiple of 512.
    pub total_len: u32,
    /// Bytes of meta.
    pub meta_len: u32,
    /// Bytes of data after it.
    pub data_len: u32,
    /// Bit per operation: its data is in the extent file, not here.
    pub in_place: InPlace,
    /// Checksum of meta and data.
    pub body_crc: u32,
}

/// Bit per operation of a record: its data went straight to the extent files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPlace([u8; MAX_BATCH_OPS / 8]);

impl InPlace {
    /// No operation.
    pub const NONE: InPlace = InPlace([0; MAX_BATCH_OPS / 8]);

    /// Marks operation `op` (below [`MAX_BATCH_OPS`]).
    pub fn set(&mut self, op: usize) {
        self.0[op / 8] |= 1 << (op % 8);
    }

    /// Whether operation `op` is marked.
    pub fn has(&self, op: usize) -> bool {
        self.0.get(op / 8).is_some_and(|b| b & (1 << (op % 8)) != 0)
    }

    /// Whether any operation is marked.
    pub fn any(&self) -> bool {
        self.0.iter().any(|b| *b != 0)
    }
}

impl Header {
    /// The bytes on disk.
    pub fn encode(&self, seed: u32) -> [u8; HEADER] {
        let mut raw = Raw {
            magic: MAGIC,
            header_crc: U32::ZERO,
            body_crc: self.body_crc.into(),
            pos: self.pos.into(),
            epoch: self.epoch.into(),
            synced_to: self.synced_to.into(),
            seq: self.seq.0.into(),
            generation: self.generation.into(),
            commit: self.commit.0.into(),
            total_len: self.total_len.into(),
            meta_len: self.meta_len.into(),
            data_len: self.data_len.into(),
            kind: match self.kind {
                Kind::Entry => 1,
                Kind::Copy => 2,
                Kind::End => 3,
            },
            zero: [0; 3],
            in_place: self.in_place.0,
            reserved: [0; 16],
        };
        raw.header_crc = crc32c::crc32c_append(seed, &raw.as_bytes()[UNSUMMED..]).into();
        let mut out = [0; HEADER];
        out.copy_from_slice(raw.as_bytes());
        out
    }

    /// Reads a header that should stand at `pos`; `None` unless every number is possible.
    pub fn decode(bytes: &[u8], seed: u32, pos: u64) -> Option<Header> {
        let (raw, _) = Raw::ref_from_prefix(bytes).ok()?;
        if raw.magic != MAGIC
            || raw.pos.get() != pos
            || raw.header_crc.get() != crc32c::crc32c_append(seed, &raw.as_bytes()[UNSUMMED..])
        {
            return None;
        }
        let kind = match raw.kind {
            1 => Kind::Entry,
            2 => Kind::Copy,
            3 => Kind::End,
            _ => return None,
        };
        let need = HEADER as u64 + u64::from(raw.meta_len.get()) + u64::from(raw.data_len.get());
        let total = u64::from(raw.total_len.get());
        if total > MAX_RECORD || total != need.next_multiple_of(SECTOR) {
            return None;
        }
        Some(Header {
            kind,
            pos,
            epoch: raw.epoch.get(),
            synced_to: raw.synced_to.get(),
            seq: Seq(raw.seq.get()),
            generation: raw.generation.get(),
            commit: Seq(raw.commit.get()),
            total_len: raw.total_len.get(),
            meta_len: raw.meta_len.get(),
            data_len: raw.data_len.get(),
            in_place: InPlace(raw.in_place),
            body_crc: raw.body_crc.get(),
        })
    }

    /// Byte position after the record.
    pub fn end(&self) -> u64 {
        self.pos + u64::from(self.total_len)
    }
}

/// Where the content of some blocks is, as a record describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Data in the log from this byte position on.
    Log {
        /// Byte position of the first block.
        data: u64,
        /// Their checksums.
        sums: Sums,
    },
    /// Data in the extent file already, not yet marked as written there.
    Direct {
        /// Byte position of the first block's checksum in the log.
        sums: u64,
    },
    /// Nowhere: the blocks are unwritten.
    Discarded,
}

/// Where checksums are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// Of a single block, here.
    One(Checksum),
    /// In the log from this byte position on, 16 bytes each.
    At(u64),
}

impl What {
    /// The same for the blocks from the `n`th on.
    pub fn skip(self, n: u64) -> What {
        match self {
            What::Log { data, sums } => What::Log {
                data: data + n * BLOCK_BYTES as u64,
                sums: match sums {
                    Sums::At(at) => Sums::At(at + n * Checksum::BYTES as u64),
                    one => one,
                },
            },
            What::Direct { sums } => What::Direct {
                sums: sums + n * Checksum::BYTES as u64,
            },
            What::Discarded => What::Discarded,
        }
    }
}

/// One operation of a record, placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub count: u64,
    /// Where their content is.
    pub what: What,
}

/// Places the operations of the record at `pos`: data and checksums lie in the order of the ops.
pub fn place(
    ops: &[Op],
    sums: &[Checksum],
    in_place: &InPlace,
    pos: u64,
    meta_len: u32,
) -> Vec<Placed> {
    let body = pos + HEADER as u64;
    let mut sums_at = body + u64::from(meta_len) - (sums.len() * Checksum::BYTES) as u64;
    let mut data = body + u64::from(meta_len);
    let mut used = 0;
    let mut out = Vec::with_capacity(ops.len());
    for (i, op) in ops.iter().enumerate() {
        match *op {
            Op::Write { block, count } => {
                let n = u64::from(count);
                let what = if in_place.has(i) {
                    What::Direct { sums: sums_at }
                } else {
                    let at = data;
                    data += n * BLOCK_BYTES as u64;
                    let sums = match sums.get(used) {
                        Some(one) if n == 1 => Sums::One(*one),
                        _ => Sums::At(sums_at),
                    };
                    What::Log { data: at, sums }
                };
                out.push(Placed {
                    block: block.0,
                    count: n,
                    what,
                });
                sums_at += n * Checksum::BYTES as u64;
                used += count as usize;
            }
            Op::Discard { block, count } => out.push(Placed {
                block: block.0,
                count,
                what: What::Discarded,
            }),
        }
    }
    out
}

/// The operations of a record; almost always one.
#[derive(Clone, Debug)]
pub enum Ops {
    /// None.
    None,
    /// One, kept here.
    One(Placed),
    /// Several, shared.
    Many(Arc<[Placed]>),
}

impl From<Vec<Placed>> for Ops {
    fn from(ops: Vec<Placed>) -> Ops {
        match ops.as_slice() {
            [] => Ops::None,
            [one] => Ops::One(*one),
            _ => Ops::Many(ops.into()),
        }
    }
}

impl Ops {
    /// All of them, in order.
    pub fn as_slice(&self) -> &[Placed] {
        match self {
            Ops::None => &[],
            Ops::One(one) => std::slice::from_ref(one),
            Ops::Many(many) => many,
        }
    }
}

/// What is kept in memory of each record in the log.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Entry or copy.
    pub kind: Kind,
    /// The operation; of a copy the last one before it.
    pub position: Position,
    /// Byte position.
    pub pos: u64,
    /// Bytes.
    pub len: u32,
    /// What it does.
    pub ops: Ops,
}

impl Logged {
    /// Byte position after the record.
    pub fn end(&self) -> u64 {
        self.pos + u64::from(self.len)
    }

    /// Whether some of its data went straight to the extent files.
    pub fn has_direct(&self) -> bool {
        let direct = |op: &Placed| matches!(op.what, What::Direct { .. });
        self.ops.as_slice().iter().any(direct)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_verifies_only_at_its_place_and_in_its_region() {
        let mut in_place = InPlace::NONE;
        in_place.set(511);
        let header = Header {
            kind: Kind::Entry,
            pos: 5 * 512,
            epoch: 3,
            synced_to: 512,
            seq: Seq(9),
            generation: 2,
            commit: Seq(8),
            total_len: 512,
            meta_len: 8,
            data_len: 0,
            in_place,
            body_crc: 77,
        };
        let bytes = header.encode(1);
        assert_eq!(Header::decode(&bytes, 1, 5 * 512), Some(header));
        assert_eq!(Header::decode(&bytes, 2, 5 * 512), None);
        assert_eq!(Header::decode(&bytes, 1, 4 * 512), None);
        for bit in 0..HEADER * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad, 1, 5 * 512), None, "bit {bit}");
        }
    }
}
