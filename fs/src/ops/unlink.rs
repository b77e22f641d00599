//! Taking names away: `unlink` and `rmdir`. An inode that loses its last name becomes an orphan
//! in the same transaction, and is freed in steps once nobody holds it.

use super::Fs;
use super::dir::check_name;
use super::perm::check_sticky;
use crate::api::{Access, Attr, Change, Creds, Ctx, Done, Event, Ino, InodeId, Removed};
use crate::btree;
use crate::core::Core;
use crate::data::ORPHAN_GONE;
use crate::error::{FsError, FsResult};
use crate::format::inode::Inode;
use crate::format::key::{Key, Kind};

impl Core {
    /// An inode loses a name (a directory: its only one). Stores it, as an orphan if that was
    /// the last.
    pub(crate) fn lose_name(&mut self, ino: Ino, inode: &mut Inode) -> FsResult<()> {
        inode.nlink = match inode.is_dir() {
            true => 0,
            false => inode.nlink.saturating_sub(1),
        };
        inode.ctime = self.now();
        if inode.nlink == 0 {
            // Overrides the mark of an unfinished truncation, which then is part of the work.
            let key = Key::new(Ino(0), Kind::Orphan, ino.0);
            btree::insert(self, &key, &[ORPHAN_GONE])?;
        }
        self.put_inode(ino, inode)
    }

    fn remove_name(
        &mut self,
        creds: &Creds,
        dir: InodeId,
        name: &[u8],
        want_dir: bool,
    ) -> FsResult<Removed> {
        let mut parent = self.dir_of(dir)?;
        let before = parent.attr(dir.ino);
        self.check(creds, dir.ino, &parent, Access::EXEC)?;
        let found = self.find(dir.ino, name)?.ok_or(FsError::NotFound)?;
        let mut inode = self.inode_of(found.id)?;
        self.check_dir_write(creds, dir.ino, &parent)?;
        check_sticky(creds, &parent, &inode)?;
        match (want_dir, inode.is_dir()) {
            (true, false) => return Err(FsError::NotDir),
            (false, true) => return Err(FsError::IsDir),
            _ => {}
        }
        if inode.is_dir() && inode.entries > 0 {
            return Err(FsError::NotEmpty);
        }
        self.set_freeing(true);
        self.drop_entry(dir.ino, &mut parent, found.cookie)?;
        if inode.is_dir() {
            parent.nlink = parent.nlink.saturating_sub(1);
        }
        let now = self.now();
        (parent.mtime, parent.ctime) = (now, now);
        self.put_inode(dir.ino, &parent)?;
        self.lose_name(found.id.ino, &mut inode)?;
        Ok(Removed {
            dir: Change {
                before,
                after: parent.attr(dir.ino),
            },
            target: inode.attr(found.id.ino),
        })
    }
}

impl Fs {
    fn remove(
        &self,
        ctx: Ctx<'_, Removed>,
        dir: InodeId,
        name: &[u8],
        want_dir: bool,
    ) -> FsResult<Done<Removed>> {
        check_name(name)?;
        match name {
            b"." | b".." if !want_dir => return Err(FsError::IsDir),
            b"." => return Err(FsError::Invalid("\".\" cannot be removed")),
            b".." => return Err(FsError::NotEmpty),
            _ => {}
        }
        let done = self.change(&ctx, None, 0, |core| {
            core.remove_name(ctx.creds, dir, name, want_dir)
        })?;
        self.tell_entry(ctx.door, dir, name);
        self.after_loss(ctx.door, &done.value.target);
        Ok(done)
    }

    /// Tells of an inode that lost a name, and frees it if it was the last.
    pub(crate) fn after_loss(&self, door: crate::api::Door, target: &Attr) {
        let id = target.id;
        self.tell(door, &[Event::Inode { id, content: None }]);
        if target.nlink == 0 && !self.is_open(id.ino) {
            self.reap_soon(id.ino, target.used / 4096);
        }
    }

    pub(crate) fn do_unlink(
        &self,
        ctx: Ctx<'_, Removed>,
        dir: InodeId,
        name: &[u8],
    ) -> FsResult<Done<Removed>> {
        self.remove(ctx, dir, name, false)
    }

    pub(crate) fn do_rmdir(
        &self,
        ctx: Ctx<'_, Removed>,
        dir: InodeId,
        name: &[u8],
    ) -> FsResult<Done<Removed>> {
        self.remove(ctx, dir, name, true)
    }
}
