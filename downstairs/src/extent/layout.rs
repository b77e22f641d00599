//! Extent files, byte by byte.
//!
//! ```text
//! sector 0            header
//! sectors 1..=G       groups: what is known of 30 blocks each; G = blocks per extent / 30, up
//! sector G+1          header again
//! data_at             the blocks; data_at is the next multiple of 4096
//! ```
//!
//! Each sector of metadata verifies by itself, so one that a power cut left old among new ones is
//! repaired by replay alone. A sector of zeros was never written: its blocks are unwritten. The
//! header says up to which position the whole extent was discarded at once; groups last changed
//! before that are void, so that discarding an extent costs two sectors, not all of them.

use trivet_protocol::{BLOCK_BYTES, Checksum, Position, Seq, VolumeId};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Blocks described by one sector of metadata.
pub const GROUP: u32 = 30;
/// Bytes of a metadata sector.
pub const META: usize = 512;
/// Stands where a checksum was lost to damage of the metadata: verifies against nothing.
pub const LOST: Checksum = Checksum([0xff; 16]);

const MAGIC: [u8; 8] = *b"TRVEXT01";
const UNSUMMED_HEADER: usize = 12;
const UNSUMMED_GROUP: usize = 4;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    crc: U32,
    version: U32,
    extent: U32,
    blocks: U32,
    volume: [u8; 16],
    cleared_generation: U64,
    cleared_seq: U64,
    zero: [u8; 456],
}
const _: () = assert!(size_of::<RawHeader>() == META);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawGroup {
    crc: U32,
    extent: U32,
    group: U32,
    zero: U32,
    generation: U64,
    seq: U64,
    sums: [[u8; 16]; GROUP as usize],
}
const _: () = assert!(size_of::<RawGroup>() == META);

/// Sizes and places in an extent file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Blocks of data.
    pub blocks: u32,
    /// Groups of metadata.
    pub groups: u32,
    /// Byte offset of block 0.
    pub data_at: u64,
}

impl Layout {
    /// For extents of `blocks` blocks.
    pub fn new(blocks: u32) -> Layout {
        let groups = blocks.div_ceil(GROUP);
        Layout {
            blocks,
            groups,
            data_at: ((u64::from(groups) + 2) * META as u64).next_multiple_of(4096),
        }
    }

    /// Byte offset of a group's sector.
    pub fn group_at(&self, group: u32) -> u64 {
        (1 + u64::from(group)) * META as u64
    }

    /// Byte offset of the second header.
    pub fn second_header_at(&self) -> u64 {
        (1 + u64::from(self.groups)) * META as u64
    }

    /// Byte offset of a block's data.
    pub fn block_at(&self, block: u32) -> u64 {
        self.data_at + u64::from(block) * BLOCK_BYTES as u64
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.block_at(self.blocks)
    }
}

/// Bytes of a header sector.
pub fn encode_header(
    seed: u32,
    volume: VolumeId,
    extent: u32,
    blocks: u32,
    cleared: Position,
) -> [u8; META] {
    let mut raw = RawHeader {
        magic: MAGIC,
        crc: U32::ZERO,
        version: U32::new(1),
        extent: extent.into(),
        blocks: blocks.into(),
        volume: volume.bytes(),
        cleared_generation: cleared.generation.into(),
        cleared_seq: cleared.seq.0.into(),
        zero: [0; 456],
    };
    raw.crc = crc32c::crc32c_append(seed, &raw.as_bytes()[UNSUMMED_HEADER..]).into();
    zerocopy::transmute!(raw)
}

/// Up to where the extent was discarded as a whole; `None` if the sector is not this extent's.
/// Zeros (never written) say: never.
pub fn decode_header(
    sector: &[u8],
    seed: u32,
    volume: VolumeId,
    extent: u32,
    blocks: u32,
) -> Option<Position> {
    if sector.iter().all(|b| *b == 0) {
        return Some(Position::default());
    }
    let raw = RawHeader::ref_from_bytes(sector).ok()?;
    let good = raw.magic == MAGIC
        && raw.crc.get() == crc32c::crc32c_append(seed, &raw.as_bytes()[UNSUMMED_HEADER..])
        && raw.version.get() == 1
        && raw.extent.get() == extent
        && raw.blocks.get() == blocks
        && raw.volume == volume.bytes();
    good.then(|| Position {
        generation: raw.cleared_generation.get(),
        seq: Seq(raw.cleared_seq.get()),
    })
}

/// What is known of the blocks of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Where in the history one of them last changed.
    pub changed: Position,
    /// Their checksums; [`Checksum::UNWRITTEN`] where nothing is written.
    pub sums: [Checksum; GROUP as usize],
}

impl Group {
    /// Nothing written, never changed since `changed`.
    pub fn blank(changed: Position) -> Group {
        Group {
            changed,
            sums: [Checksum::UNWRITTEN; GROUP as usize],
        }
    }

    /// The sector's bytes.
    pub fn encode(&self, seed: u32, extent: u32, group: u32) -> [u8; META] {
        let mut raw = RawGroup {
            crc: U32::ZERO,
            extent: extent.into(),
            group: group.into(),
            zero: U32::ZERO,
            generation: self.changed.generation.into(),
            seq: self.changed.seq.0.into(),
            sums: self.sums.map(|s| s.0),
        };
        raw.crc = crc32c::crc32c_append(seed, &raw.as_bytes()[UNSUMMED_GROUP..]).into();
        zerocopy::transmute!(raw)
    }

    /// Reads a sector; `None` if it is damaged or another's. Groups last changed before `cleared`
    /// are blank.
    pub fn decode(
        sector: &[u8],
        seed: u32,
        extent: u32,
        group: u32,
        cleared: Position,
    ) -> Option<Group> {
        let raw = RawGroup::ref_from_bytes(sector).ok()?;
        // The checksum of a sector that was written is almost never zero: look closer only then.
        if raw.crc.get() == 0 && sector.iter().all(|b| *b == 0) {
            return Some(Group::blank(cleared));
        }
        let good = raw.crc.get() == crc32c::crc32c_append(seed, &sector[UNSUMMED_GROUP..])
            && raw.extent.get() == extent
            && raw.group.get() == group;
        if !good {
            return None;
        }
        let changed = Position {
            generation: raw.generation.get(),
            seq: Seq(raw.seq.get()),
        };
        if changed < cleared {
            return Some(Group::blank(cleared));
        }
        Some(Group {
            changed,
            sums: raw.sums.map(Checksum),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_layout_is_the_documented_one() {
        let l = Layout::new(16_384);
        assert_eq!((l.groups, l.second_header_at()), (547, 280_576));
        assert_eq!((l.data_at, l.file_bytes()), (282_624, 282_624 + (64 << 20)));
    }

    #[test]
    fn a_group_verifies_only_at_its_place() {
        let mut g = Group::blank(Position {
            generation: 1,
            seq: Seq(5),
        });
        g.sums[29] = Checksum([3; 16]);
        let raw = g.encode(7, 2, 9);
        let never = Position::default();
        assert_eq!(Group::decode(&raw, 7, 2, 9, never), Some(g));
        assert_eq!(Group::decode(&raw, 8, 2, 9, never), None);
        assert_eq!(Group::decode(&raw, 7, 3, 9, never), None);
        assert_eq!(Group::decode(&raw, 7, 2, 8, never), None);
        let later = Position {
            generation: 1,
            seq: Seq(6),
        };
        assert_eq!(
            Group::decode(&raw, 7, 2, 9, later),
            Some(Group::blank(later))
        );
        assert_eq!(
            Group::decode(&[0; META], 7, 2, 9, never),
            Some(Group::blank(never))
        );
        for bit in 0..META * 8 {
            let mut bad = raw;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Group::decode(&bad, 7, 2, 9, never), None, "bit {bit}");
        }
    }
}
