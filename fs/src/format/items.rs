//! The other items' bytes: directory entries, extents, and how names become keys.

use super::inode::decode_kind;
use super::{u16_at, u32_at, u64_at};
use crate::api::{FileKind, Ino, InodeId};
use crate::error::FsError;

/// Bits of a cookie or xattr offset that tell apart names with the same hash.
pub const COLLISION_BITS: u32 = 7;
/// Names with one hash, at most. The hash's key is secret, so nobody can fill it on purpose.
pub const COLLISIONS: u64 = 1 << COLLISION_BITS;
/// Cookie of `.`.
pub const COOKIE_DOT: u64 = 1;
/// Cookie of `..`.
pub const COOKIE_DOTDOT: u64 = 2;

fn hash(key: &[u8; 32], name: &[u8]) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&blake3::keyed_hash(key, name).as_bytes()[..8]);
    u64::from_le_bytes(b)
}

/// The first cookie of a name's hash: 56 bits of hash (never 0), then [`COLLISION_BITS`]. Below
/// 2^63, and above the cookies of `.` and `..`.
pub fn entry_slot(key: &[u8; 32], name: &[u8]) -> u64 {
    (hash(key, name) >> 8).max(1) << COLLISION_BITS
}

/// Bytes of an xattr's value in one item.
pub const XATTR_PIECE: usize = 1024;
/// Bytes of an xattr's value.
pub const MAX_XATTR: usize = 65_536;
/// Bits of an xattr's offset that count its pieces.
pub const XATTR_PIECE_BITS: u32 = 7;

/// The first offset of an xattr's hash: 48 bits of hash, [`COLLISION_BITS`], piece.
pub fn xattr_slot(key: &[u8; 32], name: &[u8]) -> u64 {
    (hash(key, name) >> 16) << (COLLISION_BITS + XATTR_PIECE_BITS)
}

/// Bytes of a symlink's target in one item.
pub const SYMLINK_PIECE: usize = 1024;
/// Bytes of a symlink's target.
pub const MAX_SYMLINK: usize = 4095;
/// Bytes of a name.
pub const MAX_NAME: usize = 255;

fn damaged(why: &'static str) -> FsError {
    FsError::Damaged { block: 0, why }
}

/// A directory entry's item: inode u64 | generation u64 | kind u8 | name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryItem<'a> {
    /// The object.
    pub id: InodeId,
    /// Its kind.
    pub kind: FileKind,
    /// Its name.
    pub name: &'a [u8],
}

impl<'a> EntryItem<'a> {
    /// The item's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(17 + self.name.len());
        b.extend_from_slice(&self.id.ino.0.to_le_bytes());
        b.extend_from_slice(&self.id.generation.to_le_bytes());
        b.push(self.kind as u8);
        b.extend_from_slice(self.name);
        b
    }

    /// From the item's bytes.
    ///
    /// # Errors
    /// The item is not an entry's.
    pub fn decode(b: &'a [u8]) -> Result<EntryItem<'a>, FsError> {
        if b.len() < 18 || b.len() > 17 + MAX_NAME {
            return Err(damaged("a directory entry of impossible length"));
        }
        Ok(EntryItem {
            id: InodeId {
                ino: Ino(u64_at(b, 0)),
                generation: u64_at(b, 8),
            },
            kind: decode_kind(b[16])?,
            name: &b[17..],
        })
    }
}

/// A run of a file's blocks on the volume; its first block within the file is in the key.
/// Item: block u64 | count u32 | flags u32 (0) | birth u64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block of the file.
    pub at: u64,
    /// First block of the volume.
    pub block: u64,
    /// Blocks, 1 to 2^20.
    pub count: u32,
    /// Transaction in which the blocks were allocated.
    pub birth: u64,
}

/// Blocks in one extent, at most (4 GiB).
pub const MAX_EXTENT: u32 = 1 << 20;

impl Extent {
    /// The item's bytes.
    pub fn encode(&self) -> [u8; 24] {
        let mut b = [0; 24];
        b[..8].copy_from_slice(&self.block.to_le_bytes());
        b[8..12].copy_from_slice(&self.count.to_le_bytes());
        b[16..].copy_from_slice(&self.birth.to_le_bytes());
        b
    }

    /// From the key's offset and the item's bytes.
    ///
    /// # Errors
    /// The item is not an extent's.
    pub fn decode(at: u64, b: &[u8]) -> Result<Extent, FsError> {
        let count = u32_at(b, 8);
        if b.len() != 24
            || count == 0
            || count > MAX_EXTENT
            || at.checked_add(count.into()).is_none()
        {
            return Err(damaged("an impossible extent"));
        }
        Ok(Extent {
            at,
            block: u64_at(b, 0),
            count,
            birth: u64_at(b, 16),
        })
    }

    /// First block of the file after it.
    pub fn end(&self) -> u64 {
        self.at + u64::from(self.count)
    }
}

/// The first piece of an xattr: name length u16 | value length u32 | name | start of the value.
/// Later pieces are value alone.
pub struct XattrHead<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Length of the whole value.
    pub len: usize,
    /// What of the value is in this piece.
    pub first: &'a [u8],
}

impl<'a> XattrHead<'a> {
    /// Bytes of the value that the first piece takes beside a name of this length.
    pub fn room(name: usize) -> usize {
        XATTR_PIECE - 6 - name
    }

    /// The item's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(6 + self.name.len() + self.first.len());
        b.extend_from_slice(&(self.name.len() as u16).to_le_bytes());
        b.extend_from_slice(&(self.len as u32).to_le_bytes());
        b.extend_from_slice(self.name);
        b.extend_from_slice(self.first);
        b
    }

    /// From the item's bytes.
    ///
    /// # Errors
    /// The item is not an xattr's first piece.
    pub fn decode(b: &'a [u8]) -> Result<XattrHead<'a>, FsError> {
        let (name, len) = (usize::from(u16_at(b, 0)), u32_at(b, 2) as usize);
        if b.len() < 6 + name || name == 0 || name > MAX_NAME || len > MAX_XATTR {
            return Err(damaged("an impossible extended attribute"));
        }
        Ok(XattrHead {
            name: &b[6..6 + name],
            len,
            first: &b[6 + name..],
        })
    }

    /// Number of pieces after the first.
    pub fn more(&self) -> u64 {
        let rest = self.len.saturating_sub(XattrHead::room(self.name.len()));
        rest.div_ceil(XATTR_PIECE) as u64
    }
}
