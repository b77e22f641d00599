//! An inode's item: 176 bytes.
//!
//! ```text
//!   0 kind u8 | 1 flags u8 | 2 reserved u16 | 4 mode u32 | 8 uid u32 | 12 gid u32
//!  16 links u32 | 20 device minor u32 | 24 device major u32 | 28 xattrs u32
//!  32 size u64 | 40 stored blocks u64 | 48 generation u64 | 56 parent u64 | 64 entries u64
//!  72 atime, 84 mtime, 96 ctime, 108 btime: seconds i64, nanoseconds u32 each
//! 120 verifier of an exclusive create [8] | 128 birth u64 | 136 zeros up to 176
//! ```

use super::{put, u32_at, u64_at};
use crate::api::{Attr, FileKind, Ino, InodeId, Rdev, Time};
use crate::error::FsError;

/// Bytes of the item.
pub const INODE_BYTES: usize = 176;
/// Greatest size of a file.
pub const MAX_SIZE: u64 = i64::MAX as u64;
/// Links that an inode counts.
pub const MAX_LINKS: u32 = 1 << 20;
const FLAG_VERIFIER: u8 = 1;

/// An inode in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links (directories: 2 and one for each directory in it).
    pub nlink: u32,
    /// Device number.
    pub rdev: Rdev,
    /// Number of extended attributes.
    pub xattrs: u32,
    /// Bytes.
    pub size: u64,
    /// Blocks that its extents hold.
    pub blocks: u64,
    /// Part of its identity.
    pub generation: u64,
    /// For directories: where `..` leads.
    pub parent: Ino,
    /// For directories: entries, without `.` and `..`.
    pub entries: u64,
    /// Times.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// Of an exclusive create, until the first setattr.
    pub verifier: Option<[u8; 8]>,
    /// Transaction in which it was made.
    pub birth: u64,
}

fn kind_of(n: u8) -> Option<FileKind> {
    use FileKind::*;
    [File, Dir, Symlink, Block, Char, Fifo, Socket]
        .into_iter()
        .find(|k| *k as u8 == n)
}

/// The kind with this number, as inodes and directory entries store it.
pub fn decode_kind(n: u8) -> Result<FileKind, FsError> {
    kind_of(n).ok_or(FsError::Damaged {
        block: 0,
        why: "an object of unknown kind",
    })
}

fn put_time(b: &mut [u8], at: usize, t: Time) {
    put(b, at, &t.secs.to_le_bytes());
    put(b, at + 8, &t.nanos.to_le_bytes());
}

fn time_at(b: &[u8], at: usize) -> Time {
    Time {
        secs: u64_at(b, at) as i64,
        nanos: u32_at(b, at + 8).min(999_999_999),
    }
}

impl Inode {
    /// The item's bytes.
    pub fn encode(&self) -> [u8; INODE_BYTES] {
        let mut b = [0; INODE_BYTES];
        b[0] = self.kind as u8;
        b[1] = if self.verifier.is_some() {
            FLAG_VERIFIER
        } else {
            0
        };
        for (at, v) in [
            (4, self.mode),
            (8, self.uid),
            (12, self.gid),
            (16, self.nlink),
            (20, self.rdev.minor),
            (24, self.rdev.major),
            (28, self.xattrs),
        ] {
            put(&mut b, at, &v.to_le_bytes());
        }
        for (at, v) in [
            (32, self.size),
            (40, self.blocks),
            (48, self.generation),
            (56, self.parent.0),
            (64, self.entries),
            (128, self.birth),
        ] {
            put(&mut b, at, &v.to_le_bytes());
        }
        put_time(&mut b, 72, self.atime);
        put_time(&mut b, 84, self.mtime);
        put_time(&mut b, 96, self.ctime);
        put_time(&mut b, 108, self.btime);
        put(&mut b, 120, &self.verifier.unwrap_or_default());
        b
    }

    /// From the item's bytes.
    ///
    /// # Errors
    /// The item is not an inode's.
    pub fn decode(b: &[u8]) -> Result<Inode, FsError> {
        if b.len() != INODE_BYTES {
            return Err(FsError::Damaged {
                block: 0,
                why: "an inode of the wrong length",
            });
        }
        let mut verifier = [0; 8];
        verifier.copy_from_slice(&b[120..128]);
        Ok(Inode {
            kind: decode_kind(b[0])?,
            mode: u32_at(b, 4) & 0o7777,
            uid: u32_at(b, 8),
            gid: u32_at(b, 12),
            nlink: u32_at(b, 16),
            rdev: Rdev {
                minor: u32_at(b, 20),
                major: u32_at(b, 24),
            },
            xattrs: u32_at(b, 28),
            size: u64_at(b, 32).min(MAX_SIZE),
            blocks: u64_at(b, 40),
            generation: u64_at(b, 48),
            parent: Ino(u64_at(b, 56)),
            entries: u64_at(b, 64),
            atime: time_at(b, 72),
            mtime: time_at(b, 84),
            ctime: time_at(b, 96),
            btime: time_at(b, 108),
            verifier: (b[1] & FLAG_VERIFIER != 0).then_some(verifier),
            birth: u64_at(b, 128),
        })
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Dir
    }

    /// As the doors see it.
    pub fn attr(&self, ino: Ino) -> Attr {
        let (size, used) = match self.kind {
            FileKind::Dir => (4096 + 32 * self.entries, 4096 + 64 * self.entries),
            _ => (self.size, self.blocks.saturating_mul(4096)),
        };
        Attr {
            id: InodeId {
                ino,
                generation: self.generation,
            },
            kind: self.kind,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size,
            used,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
        }
    }
}
