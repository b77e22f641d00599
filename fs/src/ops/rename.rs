//! `rename`, in every corner of POSIX: replacing, refusing to, exchanging, moving directories.

use super::Fs;
use super::dir::{Found, check_name};
use super::perm::check_sticky;
use crate::api::{Access, Change, Creds, Ctx, Done, Ino, InodeId, RenameHow, Renamed};
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::format::inode::{Inode, MAX_LINKS};

/// Directories above each other, at most: a cycle from damage must not loop for ever.
const MAX_DEPTH: usize = 1 << 20;

/// One side of a rename.
struct Side<'a> {
    dir: InodeId,
    name: &'a [u8],
}

impl Core {
    /// Whether `ino` is `below` or one of the directories above it.
    fn is_above(&self, ino: Ino, below: Ino) -> FsResult<bool> {
        let mut at = below;
        for _ in 0..MAX_DEPTH {
            if at == ino {
                return Ok(true);
            }
            if at == InodeId::ROOT.ino {
                return Ok(false);
            }
            at = self.inode(at)?.parent;
        }
        Err(FsError::Damaged {
            block: 0,
            why: "directories that contain each other",
        })
    }

    /// What does not depend on what the new name means.
    fn may_move(
        &self,
        creds: &Creds,
        (from, to): (&Side<'_>, &Side<'_>),
        dir: &Inode,
        id: InodeId,
        inode: &Inode,
    ) -> FsResult<()> {
        check_sticky(creds, dir, inode)?;
        if inode.is_dir() && from.dir != to.dir {
            if self.is_above(id.ino, to.dir.ino)? {
                return Err(FsError::Invalid("a directory cannot be moved into itself"));
            }
            // Its ".." changes.
            self.check(creds, id.ino, inode, Access::WRITE)?;
        }
        Ok(())
    }

    fn rename(
        &mut self,
        creds: &Creds,
        from: &Side<'_>,
        to: &Side<'_>,
        how: RenameHow,
    ) -> FsResult<Renamed> {
        let from_dir = self.dir_of(from.dir)?;
        let to_dir = self.dir_of(to.dir)?;
        let sides = [(from, &from_dir), (to, &to_dir)];
        for (side, dir) in sides {
            self.check(creds, side.dir.ino, dir, Access::EXEC)?;
        }
        let source = self.find(from.dir.ino, from.name)?;
        let target = self.find(to.dir.ino, to.name)?;
        // Two names of one object: nothing to do, says POSIX, so whoever may look may ask for it.
        let same = source.is_some_and(|s| target.is_some_and(|t| t.id == s.id));
        let idle = same && how == RenameHow::Replace;
        if !idle {
            for (side, dir) in sides {
                self.check_dir_write(creds, side.dir.ino, dir)?;
            }
        }
        if to_dir.nlink == 0 {
            return Err(FsError::NotFound);
        }
        let source = source.ok_or(FsError::NotFound)?;
        let before = (from_dir.attr(from.dir.ino), to_dir.attr(to.dir.ino));
        let moved = self.inode_of(source.id)?;
        if !idle {
            self.may_move(creds, (from, to), &from_dir, source.id, &moved)?;
        }
        if how == RenameHow::NoReplace && target.is_some() {
            return Err(FsError::Exists);
        }
        if how == RenameHow::Exchange && target.is_none() {
            return Err(FsError::NotFound);
        }
        let (moved, replaced) = match (same, how, target) {
            (true, ..) => (moved, None),
            (_, RenameHow::Exchange, Some(t)) => {
                let (a, b) = self.exchange(creds, (from, source, moved), (to, t), &to_dir)?;
                (a, Some(b.attr(t.id.ino)))
            }
            (_, _, t) => self.replace(creds, (from, source, moved), (to, t), &to_dir)?,
        };
        let after = |core: &Core, dir: Ino| Ok::<_, FsError>(core.inode(dir)?.attr(dir));
        Ok(Renamed {
            from: Change {
                before: before.0,
                after: after(self, from.dir.ino)?,
            },
            to: Change {
                before: before.1,
                after: after(self, to.dir.ino)?,
            },
            moved: moved.attr(source.id.ino),
            replaced,
        })
    }

    /// Changes a directory's counts and times.
    fn touch_dir(
        &mut self,
        dir: Ino,
        links: i32,
        f: impl FnOnce(&mut Core, &mut Inode) -> FsResult<()>,
    ) -> FsResult<()> {
        let mut inode = self.inode(dir)?;
        f(self, &mut inode)?;
        inode.nlink = inode.nlink.saturating_add_signed(links);
        if links > 0 && inode.nlink > MAX_LINKS {
            return Err(FsError::TooManyLinks);
        }
        let now = self.now();
        (inode.mtime, inode.ctime) = (now, now);
        self.put_inode(dir, &inode)
    }

    fn replace(
        &mut self,
        creds: &Creds,
        (from, source, mut moved): (&Side<'_>, Found, Inode),
        (to, target): (&Side<'_>, Option<Found>),
        to_dir: &Inode,
    ) -> FsResult<(Inode, Option<crate::api::Attr>)> {
        let mut old = None;
        if let Some(t) = target {
            let inode = self.inode_of(t.id)?;
            check_sticky(creds, to_dir, &inode)?;
            match (moved.is_dir(), inode.is_dir()) {
                (true, false) => return Err(FsError::NotDir),
                (false, true) => return Err(FsError::IsDir),
                (true, true) if inode.entries > 0 => return Err(FsError::NotEmpty),
                _ => {}
            }
            old = Some((t, inode));
        }
        let is_dir = moved.is_dir();
        let gone_dir = old.as_ref().is_some_and(|o| o.1.is_dir());
        let crosses = from.dir != to.dir;
        let leave = if is_dir && crosses { -1 } else { 0 };
        let come = i32::from(is_dir && crosses) - i32::from(gone_dir);
        self.touch_dir(from.dir.ino, leave, |core, dir| {
            core.drop_entry(from.dir.ino, dir, source.cookie)
        })?;
        self.touch_dir(to.dir.ino, come, |core, dir| match &old {
            Some((t, _)) => core.set_entry(to.dir.ino, t.cookie, to.name, source.id, source.kind),
            None => core.add_entry(to.dir.ino, dir, to.name, source.id, source.kind),
        })?;
        moved.ctime = self.now();
        if is_dir {
            moved.parent = to.dir.ino;
        }
        self.put_inode(source.id.ino, &moved)?;
        let replaced = match old {
            Some((t, mut inode)) => {
                self.lose_name(t.id.ino, &mut inode)?;
                Some(inode.attr(t.id.ino))
            }
            None => None,
        };
        Ok((moved, replaced))
    }

    fn exchange(
        &mut self,
        creds: &Creds,
        (from, source, mut moved): (&Side<'_>, Found, Inode),
        (to, target): (&Side<'_>, Found),
        to_dir: &Inode,
    ) -> FsResult<(Inode, Inode)> {
        let mut other = self.inode_of(target.id)?;
        self.may_move(creds, (to, from), to_dir, target.id, &other)?;
        let crosses = i32::from(from.dir != to.dir);
        let net = crosses * (i32::from(other.is_dir()) - i32::from(moved.is_dir()));
        self.touch_dir(from.dir.ino, net, |core, _| {
            core.set_entry(
                from.dir.ino,
                source.cookie,
                from.name,
                target.id,
                target.kind,
            )
        })?;
        self.touch_dir(to.dir.ino, -net, |core, _| {
            core.set_entry(to.dir.ino, target.cookie, to.name, source.id, source.kind)
        })?;
        let now = self.now();
        for (inode, dir, ino) in [
            (&mut moved, to.dir.ino, source.id.ino),
            (&mut other, from.dir.ino, target.id.ino),
        ] {
            inode.ctime = now;
            if inode.is_dir() {
                inode.parent = dir;
            }
            self.put_inode(ino, inode)?;
        }
        Ok((moved, other))
    }
}

impl Fs {
    pub(crate) fn do_rename(
        &self,
        ctx: Ctx<'_, Renamed>,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        how: RenameHow,
    ) -> FsResult<Done<Renamed>> {
        for name in [from.1, to.1] {
            check_name(name)?;
            if name == b"." || name == b".." {
                return Err(FsError::Invalid("\".\" and \"..\" cannot be renamed"));
            }
        }
        let side = |(dir, name)| Side { dir, name };
        let (a, b) = (side(from), side(to));
        let done = self.change(&ctx, None, 0, |core| core.rename(ctx.creds, &a, &b, how))?;
        self.tell_entry(ctx.door, from.0, from.1);
        self.tell_entry(ctx.door, to.0, to.1);
        if let Some(replaced) = &done.value.replaced {
            self.after_loss(ctx.door, replaced);
        }
        Ok(done)
    }
}
