//! Keys of the one ordered map.

use crate::api::Ino;

/// What an item is. The order is the order within an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Attributes; offset 0.
    Inode = 1,
    /// An extended attribute's piece; offset: see `items::xattr_slot`.
    Xattr = 2,
    /// A piece of a symlink's target; offset: piece number.
    Symlink = 3,
    /// A directory entry; offset: its cookie.
    Entry = 4,
    /// A run of stored blocks; offset: its first block within the file.
    Extent = 5,
    /// A lock that survives a restart; offset: running number.
    Lock = 6,
    /// Under inode 0: an inode without a name, to be freed; offset: its number.
    Orphan = 16,
    /// Under inode 0: an inode whose times in its item may lag; offset: its number.
    Lazy = 17,
    /// Under inode 0: a kept answer; offset: running number.
    Reply = 18,
    /// Under inode 0: an inode with stored locks; offset: its number.
    Locked = 19,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 10] = [
        Kind::Inode,
        Kind::Xattr,
        Kind::Symlink,
        Kind::Entry,
        Kind::Extent,
        Kind::Lock,
        Kind::Orphan,
        Kind::Lazy,
        Kind::Reply,
        Kind::Locked,
    ];

    /// The kind with this number.
    pub fn from_u8(n: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| *k as u8 == n)
    }
}

/// A key: 17 bytes, big-endian, so that byte order is key order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; Key::BYTES]);

impl Key {
    /// Bytes of a key.
    pub const BYTES: usize = 17;
    /// Before every key.
    pub const MIN: Key = Key([0; Key::BYTES]);
    /// After every key.
    pub const MAX: Key = Key([255; Key::BYTES]);

    /// The key of an item.
    pub fn new(ino: Ino, kind: Kind, off: u64) -> Key {
        Key::raw(ino.0, kind as u8, off)
    }

    /// A key of parts that need not name an item (bounds of scans).
    pub fn raw(ino: u64, kind: u8, off: u64) -> Key {
        let mut k = [0; Key::BYTES];
        k[..8].copy_from_slice(&ino.to_be_bytes());
        k[8] = kind;
        k[9..].copy_from_slice(&off.to_be_bytes());
        Key(k)
    }

    /// Whose item.
    pub fn ino(&self) -> Ino {
        let mut b = [0; 8];
        b.copy_from_slice(&self.0[..8]);
        Ino(u64::from_be_bytes(b))
    }

    /// The kind's number.
    pub fn kind(&self) -> u8 {
        self.0[8]
    }

    /// The offset.
    pub fn off(&self) -> u64 {
        let mut b = [0; 8];
        b.copy_from_slice(&self.0[9..]);
        u64::from_be_bytes(b)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({} {} {})", self.ino(), self.kind(), self.off())
    }
}
