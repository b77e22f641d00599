//! What files contain: the map from a file's blocks to the volume's, reading, writing, space.
//!
//! Invariants: extents of a file do not overlap; a block belongs to one extent; bytes of a file's
//! last block beyond its size are zeros, and no extent lies wholly beyond the size except what
//! `fallocate` put there (which holds zeros, because free blocks of a volume read as zeros).

mod map;
mod read;
mod space;
mod truncate;
mod write;

use bytes::Bytes;

pub(crate) use map::{Piece, pieces};
pub(crate) use truncate::{ORPHAN_CUT, ORPHAN_GONE, STEP};
pub(crate) use write::Edges;

/// Bytes of a block, as offsets count.
pub(crate) const BLOCK: u64 = trivet_replica::volume::BLOCK_BYTES as u64;
/// Bytes of one read or write call, at most.
pub const MAX_IO: usize = 1 << 20;
/// Writes of at least so many bytes wait until the volume admits them, so that small ones need not
/// wait long behind them.
pub const STREAM: usize = 128 << 10;
/// Blocks that [`zeros`] has.
pub(crate) const ZERO_BLOCKS: u64 = 16;

static ZEROS: [u8; ZERO_BLOCKS as usize * BLOCK as usize] = [0; 65_536];

/// Zeros, shared; at most 64 KiB.
pub(crate) fn zeros(len: usize) -> Bytes {
    Bytes::from_static(&ZEROS[..len.min(ZEROS.len())])
}
