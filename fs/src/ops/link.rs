//! Hard links.

use super::Fs;
use super::make::check_new_name;
use crate::api::{Access, Change, Ctx, Done, Event, Ino, InodeId, Linked};
use crate::btree;
use crate::data::ORPHAN_CUT;
use crate::error::{FsError, FsResult};
use crate::format::inode::MAX_LINKS;
use crate::format::key::{Key, Kind};

impl Fs {
    pub(crate) fn do_link(
        &self,
        ctx: Ctx<'_, Linked>,
        id: InodeId,
        dir: InodeId,
        name: &[u8],
    ) -> FsResult<Done<Linked>> {
        check_new_name(name)?;
        let done = self.change(&ctx, None, 0, |core| {
            let mut inode = core.inode_of(id)?;
            let mut parent = core.dir_of(dir)?;
            let before = parent.attr(dir.ino);
            core.check(ctx.creds, dir.ino, &parent, Access::EXEC)?;
            if core.find(dir.ino, name)?.is_some() {
                return Err(FsError::Exists);
            }
            core.check_dir_write(ctx.creds, dir.ino, &parent)?;
            if inode.is_dir() {
                return Err(FsError::NotPermitted);
            }
            if inode.nlink >= MAX_LINKS {
                return Err(FsError::TooManyLinks);
            }
            if parent.nlink == 0 {
                return Err(FsError::NotFound);
            }
            if inode.nlink == 0 {
                // An open file without a name may get one again: it is an orphan no more, but
                // may still be half cut.
                let mark = Key::new(Ino(0), Kind::Orphan, id.ino.0);
                match core.truncating.contains(&id.ino) {
                    true => btree::insert(core, &mark, &[ORPHAN_CUT])?,
                    false => btree::remove(core, &mark).map(drop)?,
                }
            }
            core.add_entry(dir.ino, &mut parent, name, id, inode.kind)?;
            let now = core.now();
            inode.nlink += 1;
            inode.ctime = now;
            (parent.mtime, parent.ctime) = (now, now);
            core.put_inode(id.ino, &inode)?;
            core.put_inode(dir.ino, &parent)?;
            Ok(Linked {
                attr: inode.attr(id.ino),
                dir: Change {
                    before,
                    after: parent.attr(dir.ino),
                },
            })
        })?;
        self.tell_entry(ctx.door, dir, name);
        self.tell(ctx.door, &[Event::Inode { id, content: None }]);
        Ok(done)
    }
}
