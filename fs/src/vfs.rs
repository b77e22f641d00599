//! The trait through which the doors call the file system.

use std::sync::Arc;

use bytes::Bytes;

use crate::api::*;
use crate::error::FsResult;
use crate::lock::{LockCall, LockHeld, LockOwner, LockRange, LockWait};

/// The file system as the doors see it.
///
/// Unless said otherwise the errors are those of POSIX for the call of that name, as
/// [`crate::FsError`].
#[allow(missing_docs, clippy::missing_errors_doc)]
pub trait Vfs: Send + Sync {
    /// The root directory.
    fn root(&self) -> InodeId {
        InodeId::ROOT
    }
    /// 128 bits that name this file system for ever, the same on every node.
    fn fsid(&self) -> u128;
    /// Registers a watcher of changes that come through other doors than `door`.
    fn watch(&self, door: Door, watcher: Arc<dyn Watcher>);

    /// Whether answers may leave at this moment (invariant 2). A door asks after a call returned,
    /// just before its answer leaves; if not, it waits or keeps silent. Takes no lock.
    fn holds(&self) -> bool;

    // --- looking ---
    fn getattr(&self, id: InodeId) -> FsResult<Attr>;
    /// Of the kinds asked for, those that the caller has.
    fn access(&self, creds: &Creds, id: InodeId, want: Access) -> FsResult<(Access, Attr)>;
    /// Also `.` and `..`; the root is its own parent. Returns the object and the directory.
    fn lookup(&self, creds: &Creds, dir: InodeId, name: &[u8]) -> FsResult<(Attr, Attr)>;
    fn readlink(&self, creds: &Creds, id: InodeId) -> FsResult<(Bytes, Attr)>;
    /// Entries after `cookie` (0: from the start), at most `max` of them (1 to 4,096).
    fn readdir(
        &self,
        creds: &Creds,
        dir: InodeId,
        cookie: u64,
        max: usize,
        attrs: bool,
    ) -> FsResult<DirPage>;
    fn statfs(&self) -> FsResult<StatFs>;
    /// Short only at the end of the file; `len` at most 1 MiB. May wait for the volume.
    fn read(&self, creds: &Creds, id: InodeId, offset: u64, len: u32) -> FsResult<ReadOut>;
    /// The same by callback, which comes before the return if the content is at hand. Does not
    /// wait for data (for metadata that is not cached it may).
    fn read_then(&self, creds: &Creds, id: InodeId, offset: u64, len: u32, done: ReadCallback);
    fn seek(&self, id: InodeId, offset: u64, what: Seek) -> FsResult<u64>;

    // --- changing ---
    fn setattr(&self, ctx: Ctx<'_, Change>, id: InodeId, set: SetAttr) -> FsResult<Done<Change>>;
    /// `data` at most 1 MiB. Attributes before and after are the file's.
    fn write(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        offset: u64,
        data: Bytes,
    ) -> FsResult<Done<Change>>;
    fn create(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        how: CreateHow,
        attr: NewAttr,
    ) -> FsResult<Done<Made>>;
    fn mkdir(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        attr: NewAttr,
    ) -> FsResult<Done<Made>>;
    fn symlink(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        target: &[u8],
        attr: NewAttr,
    ) -> FsResult<Done<Made>>;
    fn mknod(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        kind: NodeKind,
        attr: NewAttr,
    ) -> FsResult<Done<Made>>;
    /// Anything but a directory.
    fn unlink(&self, ctx: Ctx<'_, Removed>, dir: InodeId, name: &[u8]) -> FsResult<Done<Removed>>;
    fn rmdir(&self, ctx: Ctx<'_, Removed>, dir: InodeId, name: &[u8]) -> FsResult<Done<Removed>>;
    fn link(
        &self,
        ctx: Ctx<'_, Linked>,
        id: InodeId,
        dir: InodeId,
        name: &[u8],
    ) -> FsResult<Done<Linked>>;
    fn rename(
        &self,
        ctx: Ctx<'_, Renamed>,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        how: RenameHow,
    ) -> FsResult<Done<Renamed>>;
    /// Whole blocks in the range are changed; parts of blocks are zeroed where zeros are due.
    fn fallocate(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        offset: u64,
        len: u64,
        how: Fallocate,
    ) -> FsResult<Done<Change>>;
    /// Copies up to `len` bytes (at most 1 MiB are done in one call); returns how many.
    fn copy_range(
        &self,
        ctx: Ctx<'_, Change>,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
    ) -> FsResult<Done<u64>>;

    // --- extended attributes; names with their namespace prefix, 1 to 255 bytes ---
    fn get_xattr(&self, creds: &Creds, id: InodeId, name: &[u8]) -> FsResult<Bytes>;
    fn list_xattr(&self, creds: &Creds, id: InodeId) -> FsResult<Vec<Bytes>>;
    fn set_xattr(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        name: &[u8],
        value: &[u8],
        how: XattrHow,
    ) -> FsResult<Done<Change>>;
    fn remove_xattr(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        name: &[u8],
    ) -> FsResult<Done<Change>>;

    // --- open files: an unlinked object lives while it is referenced ---
    /// Takes a reference (in memory; gone after a restart).
    fn open_ref(&self, id: InodeId) -> FsResult<()>;
    /// Gives it back; the last one of an unlinked object frees its space.
    fn close_ref(&self, id: InodeId);

    // --- durability ---
    /// The mark that covers every change made so far.
    fn last_mark(&self) -> Mark;
    /// Calls `done` once everything up to `upto` is durable. May wait while the volume's queues
    /// are full, never for the flush itself. Concurrent ones share one flush.
    fn flush_then(&self, upto: Mark, done: FlushCallback);
    /// Waits until everything up to `upto` is durable.
    fn flush(&self, upto: Mark) -> FsResult<()>;
    /// fsync: like `flush` of all changes to `id`, with its times unless `data_only`.
    fn fsync_then(&self, id: InodeId, data_only: bool, done: FlushCallback);

    // --- byte-range and whole-file locks, one table for all doors (module `lock`) ---
    /// The first lock that conflicts with what is asked, if any.
    fn lock_test(&self, id: InodeId, call: &LockCall) -> FsResult<Option<LockHeld>>;
    /// Takes, changes or (kind `Unlock`) gives back a lock. If it is held by another and `wait`
    /// is given, the wait's callback is told later; without, the error is `Locked`.
    /// The mark covers what the lock table keeps durably.
    fn lock(&self, id: InodeId, call: &LockCall, wait: Option<LockWait>) -> FsResult<Done<bool>>;
    /// Cancels the waiting of `owner` for exactly this range; false if it was not waiting.
    fn lock_cancel(&self, id: InodeId, owner: &LockOwner, range: LockRange)
    -> FsResult<Done<bool>>;
    /// Drops all locks and waiters of the owners for which `which` says so, on one inode or on
    /// all (a client that died, NLM FREE_ALL, a closed file).
    fn lock_release(
        &self,
        id: Option<InodeId>,
        which: &dyn Fn(&LockOwner) -> bool,
    ) -> FsResult<Done<usize>>;
    /// Every lock held, for listing; at most `max`.
    fn lock_list(&self, max: usize) -> Vec<(InodeId, LockHeld)>;

    // --- answers kept for retransmissions ---
    /// The answer that was stored under this key, if it still is.
    fn replay(&self, client: u64, key: &[u8]) -> FsResult<Option<Bytes>>;
    /// Keeps an answer to a call that changed nothing (it failed): in memory, like the others
    /// bounded per client.
    fn keep_reply(&self, client: u64, key: &[u8], answer: Bytes);
}
