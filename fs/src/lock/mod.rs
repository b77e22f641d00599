//! The lock table: byte ranges (POSIX, OFD, NLM) and whole files (flock), for all doors.
//!
//! Locks of NLM clients are also items of the file system (`ops::locks`), so that they survive
//! restart and takeover; those of the local mount are in memory only, as is everyone's waiting.

pub(crate) mod codec;
pub mod table;

/// Half-open range of bytes; `end` = `u64::MAX` means to the end of the file, however it grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// First byte after.
    pub end: u64,
}

impl LockRange {
    /// The whole file.
    pub const ALL: LockRange = LockRange {
        start: 0,
        end: u64::MAX,
    };

    /// From a start and a length where 0 means "to the end", as fcntl and NLM have it. Lengths
    /// that pass 2^64-1 also mean "to the end".
    pub fn from_len(start: u64, len: u64) -> LockRange {
        let end = match len {
            0 => u64::MAX,
            n => start.saturating_add(n),
        };
        LockRange { start, end }
    }

    /// Whether they share a byte.
    pub fn overlaps(&self, other: &LockRange) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockOwner {
    /// A process or an open file behind a FUSE mount: the kernel's lock owner, with the process
    /// id for answers to tests. Ends with the mount.
    Local {
        /// The kernel's owner id.
        owner: u64,
        /// Process, for F_GETLK.
        pid: u32,
    },
    /// An NLM client: survives restart and takeover.
    Nlm {
        /// `caller_name`, at most 255 bytes.
        host: Vec<u8>,
        /// Owner handle, at most 1,024 bytes in NLM, 255 here.
        handle: Vec<u8>,
        /// The client's id of the locking process or open file.
        svid: u32,
    },
}

/// Shared, exclusive, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockKind {
    /// Many may hold it.
    Shared,
    /// One may.
    Exclusive,
    /// Give back.
    Unlock,
}

/// Which of the two independent families of locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockFamily {
    /// Byte ranges: fcntl, OFD, NLM.
    Range,
    /// `flock` on the local mount.
    Flock,
}

/// What is asked of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockCall {
    /// Which family.
    pub family: LockFamily,
    /// Who.
    pub owner: LockOwner,
    /// What.
    pub kind: LockKind,
    /// Where.
    pub range: LockRange,
}

/// A lock in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHeld {
    /// Which family.
    pub family: LockFamily,
    /// Who.
    pub owner: LockOwner,
    /// `Shared` or `Exclusive`.
    pub kind: LockKind,
    /// Where.
    pub range: LockRange,
}

/// Called once: `Ok(mark)` when the lock was granted, an error when the wait was dropped.
pub type LockWait = Box<dyn FnOnce(crate::error::FsResult<crate::api::Mark>) + Send>;
