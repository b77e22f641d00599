//! A file system without files: one regular file of fixed size that reads as zeros, where writes
//! are taken at once and are durable at once. What it measures is everything but a file system.

use std::sync::Arc;

use bytes::Bytes;
use trivet_fs::lock::{LockCall, LockHeld, LockOwner, LockRange, LockWait};
use trivet_fs::*;

/// Size of the one file.
pub const SIZE: u64 = 1 << 30;

/// See the module.
pub struct NullFs {
    zeros: Bytes,
    /// A write to this offset waits until the lock is free.
    pub hold: std::sync::Mutex<()>,
    /// How many creations of `held` began; each waits for `hold`.
    pub creations: std::sync::atomic::AtomicU64,
    /// Stored answers are looked for only while this is free, and how often they were.
    pub store: std::sync::Mutex<()>,
    /// See above.
    pub looked: std::sync::atomic::AtomicU64,
    /// Whether the volume beneath is held.
    pub held: std::sync::atomic::AtomicBool,
}

/// Offset whose write waits for [`NullFs::hold`].
pub const HELD_OFFSET: u64 = 4096 * 777;

impl NullFs {
    pub fn new() -> Arc<NullFs> {
        Arc::new(NullFs {
            zeros: Bytes::from(vec![0; 1 << 20]),
            hold: std::sync::Mutex::default(),
            creations: Default::default(),
            store: std::sync::Mutex::default(),
            looked: Default::default(),
            held: true.into(),
        })
    }

    fn attr(&self, id: InodeId) -> Attr {
        let t = Time { secs: 1, nanos: 0 };
        Attr {
            id,
            kind: if id == InodeId::ROOT {
                FileKind::Dir
            } else {
                FileKind::File
            },
            mode: 0o777,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: Rdev::default(),
            size: SIZE,
            used: SIZE,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
        }
    }
}

const FILE: InodeId = InodeId {
    ino: Ino(2),
    generation: 1,
};

fn no<T>() -> FsResult<T> {
    Err(FsError::NotSupported("null"))
}

impl Vfs for NullFs {
    fn holds(&self) -> bool {
        self.held.load(std::sync::atomic::Ordering::Acquire)
    }

    fn fsid(&self) -> u128 {
        7
    }
    fn watch(&self, _: Door, _: Arc<dyn Watcher>) {}
    fn getattr(&self, id: InodeId) -> FsResult<Attr> {
        Ok(self.attr(id))
    }
    fn access(&self, _: &Creds, id: InodeId, want: Access) -> FsResult<(Access, Attr)> {
        Ok((want, self.attr(id)))
    }
    fn lookup(&self, _: &Creds, dir: InodeId, _: &[u8]) -> FsResult<(Attr, Attr)> {
        Ok((self.attr(FILE), self.attr(dir)))
    }
    fn readlink(&self, _: &Creds, _: InodeId) -> FsResult<(Bytes, Attr)> {
        no()
    }
    fn readdir(&self, _: &Creds, _: InodeId, _: u64, _: usize, _: bool) -> FsResult<DirPage> {
        no()
    }
    fn statfs(&self) -> FsResult<StatFs> {
        Ok(StatFs::default())
    }
    fn read(&self, _: &Creds, id: InodeId, _: u64, len: u32) -> FsResult<ReadOut> {
        Ok(ReadOut {
            data: vec![self.zeros.slice(..len as usize)],
            eof: false,
            attr: self.attr(id),
        })
    }
    fn read_then(&self, c: &Creds, id: InodeId, offset: u64, len: u32, done: ReadCallback) {
        done(self.read(c, id, offset, len));
    }
    fn seek(&self, _: InodeId, _: u64, _: Seek) -> FsResult<u64> {
        no()
    }
    fn setattr(&self, _: Ctx<'_, Change>, _: InodeId, _: SetAttr) -> FsResult<Done<Change>> {
        no()
    }
    fn write(
        &self,
        _: Ctx<'_, Change>,
        id: InodeId,
        offset: u64,
        _: Bytes,
    ) -> FsResult<Done<Change>> {
        if offset == HELD_OFFSET {
            drop(self.hold.lock());
        }
        let attr = self.attr(id);
        Ok(Done {
            value: Change {
                before: attr,
                after: attr,
            },
            mark: Mark(1),
        })
    }
    fn create(
        &self,
        _: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        _: CreateHow,
        _: NewAttr,
    ) -> FsResult<Done<Made>> {
        if name == b"held" {
            let order = std::sync::atomic::Ordering::SeqCst;
            self.creations.fetch_add(1, order);
            drop(self.hold.lock());
        }
        let dir = self.attr(dir);
        Ok(Done {
            value: Made {
                attr: self.attr(FILE),
                dir: Change {
                    before: dir,
                    after: dir,
                },
                created: false,
            },
            mark: Mark(1),
        })
    }
    fn mkdir(&self, _: Ctx<'_, Made>, _: InodeId, _: &[u8], _: NewAttr) -> FsResult<Done<Made>> {
        no()
    }
    fn symlink(
        &self,
        _: Ctx<'_, Made>,
        _: InodeId,
        _: &[u8],
        _: &[u8],
        _: NewAttr,
    ) -> FsResult<Done<Made>> {
        no()
    }
    fn mknod(
        &self,
        _: Ctx<'_, Made>,
        _: InodeId,
        _: &[u8],
        _: NodeKind,
        _: NewAttr,
    ) -> FsResult<Done<Made>> {
        no()
    }
    fn unlink(&self, _: Ctx<'_, Removed>, _: InodeId, _: &[u8]) -> FsResult<Done<Removed>> {
        no()
    }
    fn rmdir(&self, _: Ctx<'_, Removed>, _: InodeId, _: &[u8]) -> FsResult<Done<Removed>> {
        no()
    }
    fn link(&self, _: Ctx<'_, Linked>, _: InodeId, _: InodeId, _: &[u8]) -> FsResult<Done<Linked>> {
        no()
    }
    fn rename(
        &self,
        _: Ctx<'_, Renamed>,
        _: (InodeId, &[u8]),
        _: (InodeId, &[u8]),
        _: RenameHow,
    ) -> FsResult<Done<Renamed>> {
        no()
    }
    fn fallocate(
        &self,
        _: Ctx<'_, Change>,
        _: InodeId,
        _: u64,
        _: u64,
        _: Fallocate,
    ) -> FsResult<Done<Change>> {
        no()
    }
    fn copy_range(
        &self,
        _: Ctx<'_, Change>,
        _: (InodeId, u64),
        _: (InodeId, u64),
        _: u64,
    ) -> FsResult<Done<u64>> {
        no()
    }
    fn get_xattr(&self, _: &Creds, _: InodeId, _: &[u8]) -> FsResult<Bytes> {
        no()
    }
    fn list_xattr(&self, _: &Creds, _: InodeId) -> FsResult<Vec<Bytes>> {
        no()
    }
    fn set_xattr(
        &self,
        _: Ctx<'_, Change>,
        _: InodeId,
        _: &[u8],
        _: &[u8],
        _: XattrHow,
    ) -> FsResult<Done<Change>> {
        no()
    }
    fn remove_xattr(&self, _: Ctx<'_, Change>, _: InodeId, _: &[u8]) -> FsResult<Done<Change>> {
        no()
    }
    fn open_ref(&self, _: InodeId) -> FsResult<()> {
        Ok(())
    }
    fn close_ref(&self, _: InodeId) {}
    fn last_mark(&self) -> Mark {
        Mark(1)
    }
    fn flush_then(&self, _: Mark, done: FlushCallback) {
        done(Ok(()));
    }
    fn flush(&self, _: Mark) -> FsResult<()> {
        Ok(())
    }
    fn fsync_then(&self, _: InodeId, _: bool, done: FlushCallback) {
        done(Ok(()));
    }
    fn lock_test(&self, _: InodeId, _: &LockCall) -> FsResult<Option<LockHeld>> {
        no()
    }
    fn lock(&self, _: InodeId, _: &LockCall, _: Option<LockWait>) -> FsResult<Done<bool>> {
        no()
    }
    fn lock_cancel(&self, _: InodeId, _: &LockOwner, _: LockRange) -> FsResult<Done<bool>> {
        no()
    }
    fn lock_release(
        &self,
        _: Option<InodeId>,
        _: &dyn Fn(&LockOwner) -> bool,
    ) -> FsResult<Done<usize>> {
        no()
    }
    fn lock_list(&self, _: usize) -> Vec<(InodeId, LockHeld)> {
        Vec::new()
    }
    fn replay(&self, _: u64, _: &[u8]) -> FsResult<Option<Bytes>> {
        self.looked
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        drop(self.store.lock());
        Ok(None)
    }
    fn keep_reply(&self, _: u64, _: &[u8], _: Bytes) {}
}
