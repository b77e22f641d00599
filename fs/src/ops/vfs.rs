//! The calls of [`Vfs`], each led to where it is done.

use std::sync::Arc;

use bytes::Bytes;

use super::Fs;
use crate::Vfs;
use crate::api::*;
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::lock::{LockCall, LockHeld, LockOwner, LockRange, LockWait};

/// Bytes of an inode with its entry, for telling how many could still be made.
const INODE_COST: u64 = 512;

fn stat(core: &Core, pool_free: u64) -> StatFs {
    let sb = &core.sb;
    let own = sb.free.saturating_sub(core.reserve()) * 4096;
    let free_bytes = own.min(pool_free);
    StatFs {
        total_bytes: sb.blocks * 4096,
        free_bytes,
        inodes: sb.inodes,
        free_inodes: free_bytes / INODE_COST,
    }
}

impl Vfs for Fs {
    fn fsid(&self) -> u128 {
        self.engine
            .core()
            .map_or(0, |c| u128::from_be_bytes(c.sb.uuid))
    }

    fn watch(&self, door: Door, watcher: Arc<dyn Watcher>) {
        self.add_watcher(door, watcher);
    }

    fn holds(&self) -> bool {
        self.engine.volume.holds()
    }

    fn getattr(&self, id: InodeId) -> FsResult<Attr> {
        self.do_getattr(id)
    }

    fn access(&self, creds: &Creds, id: InodeId, want: Access) -> FsResult<(Access, Attr)> {
        self.do_access(creds, id, want)
    }

    fn lookup(&self, creds: &Creds, dir: InodeId, name: &[u8]) -> FsResult<(Attr, Attr)> {
        self.do_lookup(creds, dir, name)
    }

    fn readlink(&self, _: &Creds, id: InodeId) -> FsResult<(Bytes, Attr)> {
        self.do_readlink(id)
    }

    fn readdir(
        &self,
        creds: &Creds,
        dir: InodeId,
        cookie: u64,
        max: usize,
        attrs: bool,
    ) -> FsResult<DirPage> {
        self.do_readdir(creds, dir, cookie, max, attrs)
    }

    fn statfs(&self) -> FsResult<StatFs> {
        let pool = self.engine.volume.space().free_bytes;
        Ok(stat(&*self.engine.core()?, pool))
    }

    fn read(&self, creds: &Creds, id: InodeId, offset: u64, len: u32) -> FsResult<ReadOut> {
        self.do_read(creds, id, offset, len)
    }

    fn read_then(&self, creds: &Creds, id: InodeId, offset: u64, len: u32, done: ReadCallback) {
        match self.me.upgrade() {
            Some(me) => me.do_read_then(creds, id, offset, len, done),
            None => done(Err(FsError::Stopped(
                "the file system is being dropped".into(),
            ))),
        }
    }

    fn seek(&self, id: InodeId, offset: u64, what: Seek) -> FsResult<u64> {
        self.do_seek(id, offset, what)
    }

    fn setattr(&self, ctx: Ctx<'_, Change>, id: InodeId, set: SetAttr) -> FsResult<Done<Change>> {
        self.do_setattr(ctx, id, set)
    }

    fn write(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        offset: u64,
        data: Bytes,
    ) -> FsResult<Done<Change>> {
        self.do_write(ctx, id, offset, data)
    }

    fn create(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        how: CreateHow,
        attr: NewAttr,
    ) -> FsResult<Done<Made>> {
        self.do_create(ctx, dir, name, how, attr)
    }

    fn mkdir(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        attr: NewAttr,
    ) -> FsResult<Done<Made>> {
        self.do_mkdir(ctx, dir, name, attr)
    }

    fn symlink(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        target: &[u8],
        attr: NewAttr,
    ) -> FsResult<Done<Made>> {
        self.do_symlink(ctx, dir, name, target, attr)
    }

    fn mknod(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        kind: NodeKind,
        attr: NewAttr,
    ) -> FsResult<Done<Made>> {
        self.do_mknod(ctx, dir, name, kind, attr)
    }

    fn unlink(&self, ctx: Ctx<'_, Removed>, dir: InodeId, name: &[u8]) -> FsResult<Done<Removed>> {
        self.do_unlink(ctx, dir, name)
    }

    fn rmdir(&self, ctx: Ctx<'_, Removed>, dir: InodeId, name: &[u8]) -> FsResult<Done<Removed>> {
        self.do_rmdir(ctx, dir, name)
    }

    fn link(
        &self,
        ctx: Ctx<'_, Linked>,
        id: InodeId,
        dir: InodeId,
        name: &[u8],
    ) -> FsResult<Done<Linked>> {
        self.do_link(ctx, id, dir, name)
    }

    fn rename(
        &self,
        ctx: Ctx<'_, Renamed>,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        how: RenameHow,
    ) -> FsResult<Done<Renamed>> {
        self.do_rename(ctx, from, to, how)
    }

    fn fallocate(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        offset: u64,
        len: u64,
        how: Fallocate,
    ) -> FsResult<Done<Change>> {
        self.do_fallocate(ctx, id, offset, len, how)
    }

    fn copy_range(
        &self,
        ctx: Ctx<'_, Change>,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
    ) -> FsResult<Done<u64>> {
        self.do_copy(ctx, from, to, len)
    }

    fn get_xattr(&self, creds: &Creds, id: InodeId, name: &[u8]) -> FsResult<Bytes> {
        self.do_get_xattr(creds, id, name)
    }

    fn list_xattr(&self, creds: &Creds, id: InodeId) -> FsResult<Vec<Bytes>> {
        self.do_list_xattr(creds, id)
    }

    fn set_xattr(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        name: &[u8],
        value: &[u8],
        how: XattrHow,
    ) -> FsResult<Done<Change>> {
        self.do_set_xattr(ctx, id, name, value, how)
    }

    fn remove_xattr(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        name: &[u8],
    ) -> FsResult<Done<Change>> {
        self.do_remove_xattr(ctx, id, name)
    }

    fn open_ref(&self, id: InodeId) -> FsResult<()> {
        self.take_ref(id)
    }

    fn close_ref(&self, id: InodeId) {
        self.drop_ref(id);
    }

    fn last_mark(&self) -> Mark {
        self.engine.last_mark()
    }

    fn flush_then(&self, upto: Mark, done: FlushCallback) {
        self.engine.flush_then(upto, done);
    }

    fn flush(&self, upto: Mark) -> FsResult<()> {
        self.flush_wait(upto)
    }

    fn fsync_then(&self, id: InodeId, data_only: bool, done: FlushCallback) {
        if !data_only && let Err(e) = self.write_times_of(id.ino) {
            return done(Err(e));
        }
        self.engine.flush_then(self.engine.last_mark(), done);
    }

    fn lock_test(&self, id: InodeId, call: &LockCall) -> FsResult<Option<LockHeld>> {
        self.do_lock_test(id, call)
    }

    fn lock(&self, id: InodeId, call: &LockCall, wait: Option<LockWait>) -> FsResult<Done<bool>> {
        self.do_lock(id, call, wait)
    }

    fn lock_cancel(
        &self,
        id: InodeId,
        owner: &LockOwner,
        range: LockRange,
    ) -> FsResult<Done<bool>> {
        self.do_lock_cancel(id, owner, range)
    }

    fn lock_release(
        &self,
        id: Option<InodeId>,
        which: &dyn Fn(&LockOwner) -> bool,
    ) -> FsResult<Done<usize>> {
        self.do_lock_release(id, which)
    }

    fn lock_list(&self, max: usize) -> Vec<(InodeId, LockHeld)> {
        self.do_lock_list(max)
    }

    fn replay(&self, client: u64, key: &[u8]) -> FsResult<Option<Bytes>> {
        self.do_replay(client, key)
    }

    fn keep_reply(&self, client: u64, key: &[u8], answer: Bytes) {
        self.do_keep_reply(client, key, answer);
    }
}
