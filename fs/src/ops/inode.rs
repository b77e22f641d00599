//! Inodes: reading, storing, `setattr`.

use super::Fs;
use super::perm::{S_ISGID, check_owner};
use crate::api::{
    Access, Attr, Change, Creds, Ctx, Done, Event, FileKind, Ino, InodeId, SetAttr, SetTime, Time,
};
use crate::btree::{self};
use crate::core::Core;
use crate::data::STEP;
use crate::error::{FsError, FsResult};
use crate::format::inode::{Inode, MAX_SIZE};
use crate::format::key::{Key, Kind};

impl Core {
    /// An inode, with times that have not reached its item yet.
    pub(crate) fn inode(&self, ino: Ino) -> FsResult<Inode> {
        let mut inode = btree::get(self, &Key::new(ino, Kind::Inode, 0), Inode::decode)?
            .ok_or(FsError::Stale(ino))?;
        if let Some(times) = self.lazy.get(&ino) {
            (inode.mtime, inode.ctime) = (times.mtime, times.ctime);
        }
        Ok(inode)
    }

    /// The inode of a handle.
    pub(crate) fn inode_of(&self, id: InodeId) -> FsResult<Inode> {
        let inode = self.inode(id.ino)?;
        match inode.generation == id.generation {
            true => Ok(inode),
            false => Err(FsError::Stale(id.ino)),
        }
    }

    /// Stores an inode, its times included.
    pub(crate) fn put_inode(&mut self, ino: Ino, inode: &Inode) -> FsResult<()> {
        btree::insert(self, &Key::new(ino, Kind::Inode, 0), &inode.encode())?;
        self.set_lazy(ino, None);
        Ok(())
    }

    /// A directory that the caller names, for looking in.
    pub(crate) fn dir_of(&self, id: InodeId) -> FsResult<Inode> {
        let inode = self.inode_of(id)?;
        match inode.is_dir() {
            true => Ok(inode),
            false => Err(FsError::NotDir),
        }
    }
}

/// What `setattr` may change, checked against the rules of POSIX for this caller.
fn check_set(
    core: &Core,
    creds: &Creds,
    id: InodeId,
    inode: &Inode,
    set: &SetAttr,
) -> FsResult<()> {
    if set.guard.is_some_and(|g| g != inode.ctime) {
        return Err(FsError::NotSync);
    }
    if let Some(size) = set.size {
        match inode.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(FsError::IsDir),
            _ => return Err(FsError::Invalid("only regular files have a size to set")),
        }
        if size > MAX_SIZE {
            return Err(FsError::TooBig);
        }
        if !set.by_handle {
            core.check_io(creds, id.ino, inode, Access::WRITE)?;
        }
    }
    if creds.checked || creds.uid == 0 {
        return Ok(());
    }
    let owner = creds.uid == inode.uid;
    if set.mode.is_some() {
        check_owner(creds, inode)?;
    }
    if set.uid.is_some_and(|u| !owner || u != inode.uid) {
        return Err(FsError::NotPermitted);
    }
    if set
        .gid
        .is_some_and(|g| !owner || (g != inode.gid && !creds.in_group(g)))
    {
        return Err(FsError::NotPermitted);
    }
    let to = |t: &SetTime| matches!(t, SetTime::To(_));
    let keep = |t: &SetTime| matches!(t, SetTime::Keep);
    if !owner && (to(&set.atime) || to(&set.mtime)) {
        return Err(FsError::NotPermitted);
    }
    let times = !keep(&set.atime) || !keep(&set.mtime);
    if !owner && times {
        core.check(creds, id.ino, inode, Access::WRITE)?;
    }
    Ok(())
}

/// Applies a new time.
pub(crate) fn set_time(slot: &mut Time, how: SetTime, now: Time) {
    match how {
        SetTime::Keep => {}
        SetTime::Now => *slot = now,
        SetTime::To(t) => *slot = t,
    }
}

/// Mode, owner and group of `setattr`; true if the mode must reach an ACL. A symlink keeps its
/// mode, as on Linux: nothing asks it.
fn set_ids(creds: &Creds, inode: &mut Inode, set: &SetAttr) -> bool {
    let mode = set.mode.filter(|_| inode.kind != FileKind::Symlink);
    if let Some(mode) = mode {
        inode.mode = mode & 0o7777;
        let foreign = creds.uid != 0 && !creds.checked && !creds.in_group(inode.gid);
        if foreign {
            inode.mode &= !S_ISGID;
        }
    }
    if set.uid.is_some() || set.gid.is_some() {
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        if !inode.is_dir() && set.mode.is_none() && !creds.checked {
            inode.drop_set_ids();
        }
    }
    mode.is_some()
}

impl Fs {
    pub(crate) fn do_getattr(&self, id: InodeId) -> FsResult<Attr> {
        Ok(self.engine.core()?.inode_of(id)?.attr(id.ino))
    }

    pub(crate) fn do_setattr(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        set: SetAttr,
    ) -> FsResult<Done<Change>> {
        let edges = self.resize_edges(id, set.size)?;
        let mut cut = false;
        let done = self.change(&ctx, Some(id), STEP, |core| {
            let mut inode = core.inode_of(id)?;
            let before = inode.attr(id.ino);
            check_set(core, ctx.creds, id, &inode, &set)?;
            if set_ids(ctx.creds, &mut inode, &set) {
                core.chmod_acl(id.ino, &mut inode)?;
            }
            let now = core.now();
            if let Some(size) = set.size {
                if set.mode.is_none() {
                    inode.clear_set_ids(ctx.creds);
                }
                self.resize(core, id.ino, &mut inode, size, &edges)?;
                inode.mtime = now;
            }
            if set.kill_suid {
                inode.drop_set_ids();
            }
            set_time(&mut inode.atime, set.atime, now);
            set_time(&mut inode.mtime, set.mtime, now);
            inode.ctime = now;
            inode.verifier = None;
            core.put_inode(id.ino, &inode)?;
            cut = core.not_truncating(id.ino).is_err();
            Ok(Change {
                before,
                after: inode.attr(id.ino),
            })
        })?;
        if cut {
            self.settle(id.ino)?;
        }
        let content = set.size.map(|s| (s, 0));
        self.tell(ctx.door, &[Event::Inode { id, content }]);
        Ok(done)
    }

    pub(crate) fn do_access(
        &self,
        creds: &Creds,
        id: InodeId,
        want: Access,
    ) -> FsResult<(Access, Attr)> {
        let core = self.engine.core()?;
        let inode = core.inode_of(id)?;
        let got = core.allowed(creds, id.ino, &inode, want)?;
        Ok((got, inode.attr(id.ino)))
    }
}
