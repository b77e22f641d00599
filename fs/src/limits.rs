//! Every bound of this crate that is a constant (invariant 10), for `trivet limits`.

use crate::core::group::MAX_FLUSHES;
use crate::core::{META_ROOM, SEAL_BLOCKS, SEAL_TAKEN};
use crate::data::{MAX_IO, STREAM};
use crate::format::bitmap::GROUP_BLOCKS;
use crate::format::inode::{MAX_LINKS, MAX_SIZE};
use crate::format::items::{COLLISIONS, MAX_EXTENT, MAX_NAME, MAX_SYMLINK, MAX_XATTR};
use crate::format::page::MAX_LEVEL;
use crate::format::superblock::MIN_BLOCKS;
use crate::fuse::{MAX_BACKGROUND, MAX_INODES, MAX_NAMES, MAX_PARKED, MAX_REQUEST};
use crate::lock::table::{MAX_LOCKS, MAX_WAITERS};
use crate::ops::{CLIENTS, CLOSE, MAX_ANSWER, MAX_LAZY, MAX_LIST, MAX_PAGE, PER_CLIENT};

/// One bound.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// What it is called.
    pub name: &'static str,
    /// How much.
    pub value: u64,
    /// Of what.
    pub unit: &'static str,
    /// What it bounds.
    pub bounds: &'static str,
}

const fn limit(name: &'static str, value: u64, unit: &'static str, bounds: &'static str) -> Limit {
    Limit {
        name,
        value,
        unit,
        bounds,
    }
}

/// All of them.
pub const LIMITS: &[Limit] = &[
    limit(
        "fs.smallest",
        MIN_BLOCKS,
        "blocks",
        "a volume that can hold a file system",
    ),
    limit(
        "fs.group",
        GROUP_BLOCKS,
        "blocks",
        "what one bitmap block is for",
    ),
    limit(
        "fs.levels",
        MAX_LEVEL as u64,
        "levels",
        "height of the tree",
    ),
    limit("fs.file", MAX_SIZE, "bytes", "size of a file"),
    limit(
        "fs.extent",
        MAX_EXTENT as u64,
        "blocks",
        "one extent of a file",
    ),
    limit("fs.name", MAX_NAME as u64, "bytes", "a name"),
    limit(
        "fs.same_hash",
        COLLISIONS,
        "names",
        "names of one hash in a directory",
    ),
    limit(
        "fs.links",
        MAX_LINKS as u64,
        "names",
        "hard links to a file, subdirectories of one",
    ),
    limit(
        "fs.symlink",
        MAX_SYMLINK as u64,
        "bytes",
        "target of a symbolic link",
    ),
    limit(
        "fs.xattr",
        MAX_XATTR as u64,
        "bytes",
        "one extended attribute",
    ),
    limit(
        "fs.xattr_names",
        MAX_LIST as u64,
        "bytes",
        "all names of an inode's attributes",
    ),
    limit("fs.request", MAX_IO as u64, "bytes", "one read or write"),
    limit(
        "fs.listing",
        MAX_PAGE as u64,
        "entries",
        "one call that lists a directory",
    ),
    limit(
        "fs.change",
        META_ROOM as u64,
        "pages",
        "metadata that one change may touch",
    ),
    limit(
        "fs.batch_data",
        SEAL_BLOCKS as u64,
        "blocks",
        "data after which a batch is sealed",
    ),
    limit(
        "fs.batch_taken",
        SEAL_TAKEN as u64,
        "bytes",
        "data taken in until it is, overwritten too",
    ),
    limit(
        "fs.stream",
        STREAM as u64,
        "bytes",
        "a write from which on the volume has to admit it",
    ),
    limit(
        "fs.close",
        CLOSE.as_secs(),
        "seconds",
        "the last flush, when a file system is closed",
    ),
    limit(
        "fs.flushes",
        MAX_FLUSHES as u64,
        "flushes",
        "under way at once; later callers share one",
    ),
    limit(
        "fs.lagging_times",
        MAX_LAZY as u64,
        "inodes",
        "files whose times are written later",
    ),
    limit("fs.locks", MAX_LOCKS as u64, "locks", "locks of all doors"),
    limit(
        "fs.lock_waiters",
        MAX_WAITERS as u64,
        "callers",
        "calls that wait for a lock",
    ),
    limit(
        "fs.answers",
        PER_CLIENT as u64,
        "answers",
        "kept for one client's retransmissions",
    ),
    limit("fs.answer", MAX_ANSWER as u64, "bytes", "a kept answer"),
    limit(
        "fs.clients",
        CLIENTS as u64,
        "clients",
        "clients with kept answers",
    ),
    limit(
        "fuse.request",
        MAX_REQUEST as u64,
        "bytes",
        "one read or write of the kernel's",
    ),
    limit(
        "fuse.background",
        MAX_BACKGROUND as u64,
        "requests",
        "of the kernel's, that nobody waits for",
    ),
    limit(
        "fuse.parked",
        MAX_PARKED as u64,
        "bytes",
        "large writes that wait for others; beyond that they keep threads",
    ),
    limit(
        "fuse.notices",
        MAX_INODES as u64,
        "files",
        "changed through another door, the kernel not told yet",
    ),
    limit(
        "fuse.name_notices",
        MAX_NAMES as u64,
        "names",
        "the same of names",
    ),
];
