//! Every bound that does not depend on a setting, in one place (invariant 10).

use crate::ids::BLOCK_BYTES;

/// Blocks of data in one atomic batch, at most (1 MiB of file data and 1 MiB of metadata pages).
pub const MAX_BATCH_BLOCKS: usize = 512;
/// Operations in one atomic batch, at most.
pub const MAX_BATCH_OPS: usize = 512;
/// Blocks in a volume, at most: 16 TiB * 64. Keeps every byte offset within 63 bits.
pub const MAX_VOLUME_BLOCKS: u64 = 1 << 38;
/// Blocks in one read request, at most (1 MiB).
pub const MAX_READ_BLOCKS: u32 = 256;
/// Blocks that a replica checks in one go for a scrub, at most (1 MiB).
pub const MAX_SCRUB_BLOCKS: u32 = 256;
/// Bytes of a frame's control part, at most.
pub const MAX_FRAME_META: usize = 1 << 20;
/// Bytes of a frame's data part, at most.
pub const MAX_FRAME_DATA: usize = MAX_BATCH_BLOCKS * BLOCK_BYTES;
/// Bytes of a call's request, at most.
pub const MAX_CALL: usize = MAX_FRAME_META;
/// Bytes of a call's answer, at most; it travels in several frames.
pub const MAX_ANSWER: usize = 4 << 20;
/// Members of a volume, at most (three data replicas, one being added, witnesses).
pub const MAX_MEMBERS: usize = 9;
/// Data replicas in the in-sync set, at most (design section 6).
pub const MAX_IN_SYNC: usize = 3;
/// Generation numbers go up to here. Each claim adds one to the highest heard: one from which none
/// could follow, believed once, would end a volume.
pub const MAX_GENERATION: u64 = 1 << 62;
/// Places in a history go up to here: a million operations a second for 146,000 years.
pub const MAX_SEQ: u64 = 1 << 62;
/// Bytes of entries given in answer to one `Fetch`, at most; the last entry may go beyond.
pub const MAX_FETCH_BYTES: u32 = 8 << 20;
/// Bytes of a node name, at most.
pub const MAX_NAME: usize = 64;
/// Lease length by default, in milliseconds.
pub const DEFAULT_LEASE_MS: u64 = 2000;
/// Lease lengths that a record may carry, in milliseconds.
pub const LEASE_RANGE_MS: std::ops::RangeInclusive<u64> = 200..=60_000;
