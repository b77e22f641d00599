//! The bytes on the volume. `docs/fs-format.md` describes them; the constants here mirror it.
//!
//! Everything is little-endian but for keys, whose bytes sort as the keys do. Every metadata block
//! starts with the same head (magic, checksum, its own number, birth, kind), so that one written
//! in the wrong place, or half, is recognised.

pub mod bitmap;
pub mod inode;
pub mod items;
pub mod key;
pub mod page;
pub mod superblock;

/// Reads a little-endian u16; zero where the slice is too short (callers check lengths).
pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2)
        .and_then(|s| s.try_into().ok())
        .map_or(0, u16::from_le_bytes)
}

/// Reads a little-endian u32; zero where the slice is too short.
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4)
        .and_then(|s| s.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// Reads a little-endian u64; zero where the slice is too short.
pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8)
        .and_then(|s| s.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Writes bytes at an offset that the caller knows to be inside.
pub(crate) fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    b[at..at + bytes.len()].copy_from_slice(bytes);
}
