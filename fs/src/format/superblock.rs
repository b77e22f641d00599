//! Block 0: what the file system is and where its tree starts.
//!
//! ```text
//!   0 magic "TRIVETFS" | 8 crc32c of bytes 12.. u32 | 12 version u32
//!  16 compatible features u64 | 24 incompatible u64 | 32 compatible for reading only u64
//!  40 uuid [16] | 56 size in blocks u64 | 64 root page u64 | 72 transaction u64
//!  80 next inode u64 | 88 free blocks u64 | 96 inodes u64 | 104 last time, ns since 1970, u64
//! 112 key of the name hash [32] | 144 next lock u64 | 152 next reply u64
//! 160 zeros up to 4096
//! ```
//! It is written in every batch that changes metadata, so its counters are exact after any crash.

use super::page::PAGE_BYTES;
use super::{put, u32_at, u64_at};
use crate::error::FsError;

const MAGIC: &[u8; 8] = b"TRIVETFS";
/// Version of the format that this program writes.
pub const VERSION: u32 = 1;
/// Incompatible features that this program knows.
const KNOWN_INCOMPAT: u64 = 0;
/// Features that this program must know to write.
const KNOWN_RO_COMPAT: u64 = 0;
/// Blocks of a file system, at least (1 MiB).
pub const MIN_BLOCKS: u64 = 256;

/// The superblock's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Features that may be ignored.
    pub compat: u64,
    /// Features without which nothing may be done.
    pub incompat: u64,
    /// Features without which nothing may be written.
    pub ro_compat: u64,
    /// Identity.
    pub uuid: [u8; 16],
    /// Size in blocks.
    pub blocks: u64,
    /// The tree's root page.
    pub root: u64,
    /// Number of the transaction that wrote this; births are counted in it.
    pub txn: u64,
    /// The next inode's number.
    pub next_ino: u64,
    /// Blocks not in use.
    pub free: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// The latest ctime given out, in nanoseconds since 1970.
    pub last_time: u64,
    /// Key of the name hash, secret so that nobody can make names collide.
    pub hash_key: [u8; 32],
    /// Number of the next stored lock.
    pub next_lock: u64,
    /// Number of the next stored reply.
    pub next_reply: u64,
}

impl Superblock {
    /// The block's bytes.
    pub fn encode(&self) -> [u8; PAGE_BYTES] {
        let mut b = [0; PAGE_BYTES];
        put(&mut b, 0, MAGIC);
        put(&mut b, 12, &VERSION.to_le_bytes());
        put(&mut b, 40, &self.uuid);
        put(&mut b, 112, &self.hash_key);
        for (at, v) in [
            (16, self.compat),
            (24, self.incompat),
            (32, self.ro_compat),
            (56, self.blocks),
            (64, self.root),
            (72, self.txn),
            (80, self.next_ino),
            (88, self.free),
            (96, self.inodes),
            (104, self.last_time),
            (144, self.next_lock),
            (152, self.next_reply),
        ] {
            put(&mut b, at, &v.to_le_bytes());
        }
        let crc = crc32c::crc32c(&b[12..]);
        put(&mut b, 8, &crc.to_le_bytes());
        b
    }

    /// Reads and checks a superblock against a volume of `volume_blocks` blocks.
    ///
    /// # Errors
    /// Why it cannot be used, for a person.
    pub fn decode(b: &[u8; PAGE_BYTES], volume_blocks: u64) -> Result<Superblock, FsError> {
        let no = |why: String| Err(FsError::Mount(why));
        if b.iter().all(|x| *x == 0) {
            return no("the volume holds no file system (its first block is empty)".into());
        }
        if &b[..8] != MAGIC {
            return no(
                "the volume holds something else (no TRIVETFS mark in its first block)".into(),
            );
        }
        let version = u32_at(b, 12);
        if version != VERSION {
            return no(format!(
                "the file system has format version {version}; this program knows {VERSION}: use a newer one"
            ));
        }
        if u32_at(b, 8) != crc32c::crc32c(&b[12..]) {
            return no("the superblock's checksum does not match: it is damaged".into());
        }
        let sb = Superblock::fields(b);
        if sb.incompat & !KNOWN_INCOMPAT != 0 {
            return no(format!(
                "the file system uses features {:#x} that this program does not know: use a newer one",
                sb.incompat & !KNOWN_INCOMPAT
            ));
        }
        if sb.ro_compat & !KNOWN_RO_COMPAT != 0 {
            return no(format!(
                "the file system uses features {:#x} that this program must know to write: use a newer one",
                sb.ro_compat
            ));
        }
        if sb.blocks > volume_blocks {
            return no(format!(
                "the file system has {} blocks, the volume only {volume_blocks}: is part of it missing?",
                sb.blocks
            ));
        }
        if sb.blocks < MIN_BLOCKS || sb.root >= sb.blocks || sb.free > sb.blocks || sb.next_ino < 2
        {
            return no("the superblock's figures contradict each other".into());
        }
        Ok(sb)
    }

    fn fields(b: &[u8]) -> Superblock {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&b[40..56]);
        let mut hash_key = [0; 32];
        hash_key.copy_from_slice(&b[112..144]);
        Superblock {
            compat: u64_at(b, 16),
            incompat: u64_at(b, 24),
            ro_compat: u64_at(b, 32),
            uuid,
            blocks: u64_at(b, 56),
            root: u64_at(b, 64),
            txn: u64_at(b, 72),
            next_ino: u64_at(b, 80),
            free: u64_at(b, 88),
            inodes: u64_at(b, 96),
            last_time: u64_at(b, 104),
            hash_key,
            next_lock: u64_at(b, 144),
            next_reply: u64_at(b, 152),
        }
    }
}
