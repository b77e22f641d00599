//! New objects: `create`, `mkdir`, `symlink`, `mknod`.

use bytes::Bytes;

use super::Fs;
use super::dir::check_name;
use super::inode::set_time;
use super::perm::S_ISGID;
use crate::api::{
    Access, Attr, Change, CreateHow, Creds, Ctx, Done, Event, FileKind, Ino, InodeId, Made,
    NewAttr, NodeKind, Rdev,
};
use crate::btree;
use crate::core::Core;
use crate::data::STEP;
use crate::error::{FsError, FsResult};
use crate::format::inode::{Inode, MAX_LINKS, MAX_SIZE};
use crate::format::items::{MAX_SYMLINK, SYMLINK_PIECE};
use crate::format::key::{Key, Kind};

/// What is made.
struct New<'a> {
    kind: FileKind,
    rdev: Rdev,
    target: &'a [u8],
    verifier: Option<[u8; 8]>,
}

impl New<'_> {
    fn plain(kind: FileKind) -> New<'static> {
        New {
            kind,
            rdev: Rdev::default(),
            target: &[],
            verifier: None,
        }
    }
}

/// Names that no new object can have.
pub(crate) fn check_new_name(name: &[u8]) -> FsResult<()> {
    check_name(name)?;
    match name {
        b"." | b".." => Err(FsError::Exists),
        _ => Ok(()),
    }
}

/// Owner and group of a new object, and what of its mode survives them.
fn own(creds: &Creds, dir: &Inode, kind: FileKind, attr: &NewAttr) -> (u32, u32, u32) {
    let root = creds.uid == 0;
    let uid = attr.uid.filter(|_| root).unwrap_or(creds.uid);
    let mut mode = attr.mode & 0o7777;
    let inherits = dir.mode & S_ISGID != 0;
    let allowed = |g: &u32| root || creds.in_group(*g);
    let gid = match inherits {
        true => dir.gid,
        false => attr.gid.filter(allowed).unwrap_or(creds.gid),
    };
    if inherits && kind == FileKind::Dir {
        mode |= S_ISGID;
    } else if mode & (S_ISGID | 0o010) == S_ISGID | 0o010
        && !(root || creds.checked || creds.in_group(gid))
    {
        mode &= !S_ISGID;
    }
    (uid, gid, mode)
}

impl Core {
    /// Makes an object and its entry. Returns its attributes and the directory's change.
    fn make(
        &mut self,
        creds: &Creds,
        dir: InodeId,
        name: &[u8],
        new: &New<'_>,
        attr: &NewAttr,
    ) -> FsResult<(Attr, Change)> {
        let mut parent = self.dir_of(dir)?;
        let before = parent.attr(dir.ino);
        self.check_dir_write(creds, dir.ino, &parent)?;
        if parent.nlink == 0 {
            return Err(FsError::NotFound);
        }
        let is_dir = new.kind == FileKind::Dir;
        if is_dir && parent.nlink >= MAX_LINKS {
            return Err(FsError::TooManyLinks);
        }
        let (uid, gid, mode) = own(creds, &parent, new.kind, attr);
        let (ino, now) = (Ino(self.sb.next_ino), self.now());
        self.sb.next_ino += 1;
        self.sb.inodes += 1;
        let mut inode = Inode {
            kind: new.kind,
            mode,
            uid,
            gid,
            nlink: if is_dir { 2 } else { 1 },
            rdev: new.rdev,
            xattrs: 0,
            size: match new.kind {
                FileKind::Symlink => new.target.len() as u64,
                FileKind::File => attr.size.unwrap_or(0),
                _ => 0,
            },
            blocks: 0,
            generation: self.txn_id(),
            parent: if is_dir { dir.ino } else { Ino(0) },
            entries: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            verifier: new.verifier,
            birth: self.txn_id(),
        };
        if inode.size > MAX_SIZE {
            return Err(FsError::TooBig);
        }
        set_time(&mut inode.atime, attr.atime, now);
        set_time(&mut inode.mtime, attr.mtime, now);
        if new.kind != FileKind::Symlink {
            self.inherit_acl((dir.ino, &parent), (ino, &mut inode), attr.umask)?;
        }
        for (i, piece) in new.target.chunks(SYMLINK_PIECE).enumerate() {
            btree::insert(self, &Key::new(ino, Kind::Symlink, i as u64), piece)?;
        }
        self.put_inode(ino, &inode)?;
        let id = InodeId {
            ino,
            generation: inode.generation,
        };
        self.add_entry(dir.ino, &mut parent, name, id, new.kind)?;
        parent.nlink += u32::from(is_dir);
        (parent.mtime, parent.ctime) = (now, now);
        self.put_inode(dir.ino, &parent)?;
        let after = parent.attr(dir.ino);
        Ok((inode.attr(ino), Change { before, after }))
    }
}

impl Fs {
    fn make(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        new: &New<'_>,
        attr: &NewAttr,
    ) -> FsResult<Done<Made>> {
        check_new_name(name)?;
        let done = self.change(&ctx, None, 0, |core| {
            let inode = core.dir_of(dir)?;
            core.check(ctx.creds, dir.ino, &inode, Access::EXEC)?;
            if core.find(dir.ino, name)?.is_some() {
                return Err(FsError::Exists);
            }
            let (attr, dir) = core.make(ctx.creds, dir, name, new, attr)?;
            Ok(Made {
                attr,
                dir,
                created: true,
            })
        })?;
        self.tell_entry(ctx.door, dir, name);
        Ok(done)
    }

    /// Tells the watchers of a changed entry.
    pub(crate) fn tell_entry(&self, door: crate::api::Door, dir: InodeId, name: &[u8]) {
        self.tell(
            door,
            &[Event::Entry {
                dir,
                name: Bytes::copy_from_slice(name),
            }],
        );
    }

    pub(crate) fn do_create(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        how: CreateHow,
        attr: NewAttr,
    ) -> FsResult<Done<Made>> {
        check_new_name(name)?;
        let (new, attr) = match how {
            // The verifier stands in for the attributes, which come by setattr.
            CreateHow::Exclusive(v) => (
                New {
                    verifier: Some(v),
                    ..New::plain(FileKind::File)
                },
                NewAttr {
                    mode: attr.mode,
                    ..NewAttr::default()
                },
            ),
            _ => (New::plain(FileKind::File), attr),
        };
        let (mut cut, mut target) = (None, None);
        let done = loop {
            let result = self.change(&ctx, target, STEP, |core| {
                let inode = core.dir_of(dir)?;
                core.check(ctx.creds, dir.ino, &inode, Access::EXEC)?;
                let Some(found) = core.find(dir.ino, name)? else {
                    let (attr, dir) = core.make(ctx.creds, dir, name, &new, &attr)?;
                    return Ok(Made {
                        attr,
                        dir,
                        created: true,
                    });
                };
                target = Some(found.id);
                cut = attr.size.map(|_| found.id);
                self.take_existing(core, ctx.creds, found.id, how, &attr)
                    .map(|attr| Made {
                        attr,
                        dir: Change {
                            before: inode.attr(dir.ino),
                            after: inode.attr(dir.ino),
                        },
                        created: false,
                    })
            });
            match (result, target) {
                // Its truncation is unfinished, and only now is it known which file it is.
                (Err(FsError::Busy), Some(id)) => self.settle(id.ino)?,
                (result, _) => break result?,
            }
        };
        if let Some(id) = cut {
            self.settle(id.ino)?;
            let content = Some((0, 0));
            self.tell(ctx.door, &[Event::Inode { id, content }]);
        }
        if done.value.created {
            self.tell_entry(ctx.door, dir, name);
        }
        Ok(done)
    }

    /// `create` of a name that exists.
    fn take_existing(
        &self,
        core: &mut Core,
        creds: &Creds,
        id: InodeId,
        how: CreateHow,
        attr: &NewAttr,
    ) -> FsResult<Attr> {
        let mut inode = core.inode_of(id)?;
        match how {
            CreateHow::Guarded => return Err(FsError::Exists),
            CreateHow::Exclusive(v) if inode.verifier == Some(v) => {}
            CreateHow::Exclusive(_) => return Err(FsError::Exists),
            CreateHow::Unchecked => match inode.kind {
                FileKind::File => {}
                FileKind::Dir => return Err(FsError::IsDir),
                _ => return Err(FsError::Exists),
            },
        }
        if let Some(size) = attr.size
            && how == CreateHow::Unchecked
        {
            core.check_io(creds, id.ino, &inode, Access::WRITE)?;
            let now = core.now();
            self.resize(core, id.ino, &mut inode, size, &crate::data::Edges::NONE)?;
            inode.clear_set_ids(creds);
            (inode.mtime, inode.ctime) = (now, now);
            core.put_inode(id.ino, &inode)?;
        }
        Ok(inode.attr(id.ino))
    }

    pub(crate) fn do_mkdir(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        attr: NewAttr,
    ) -> FsResult<Done<Made>> {
        self.make(ctx, dir, name, &New::plain(FileKind::Dir), &attr)
    }

    pub(crate) fn do_symlink(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        target: &[u8],
        attr: NewAttr,
    ) -> FsResult<Done<Made>> {
        if target.len() > MAX_SYMLINK {
            return Err(FsError::NameTooLong);
        }
        if target.is_empty() || target.contains(&0) {
            return Err(FsError::Invalid("an empty target, or one with a zero byte"));
        }
        let new = New {
            target,
            ..New::plain(FileKind::Symlink)
        };
        let attr = NewAttr {
            mode: 0o777,
            ..attr
        };
        self.make(ctx, dir, name, &new, &attr)
    }

    pub(crate) fn do_mknod(
        &self,
        ctx: Ctx<'_, Made>,
        dir: InodeId,
        name: &[u8],
        kind: NodeKind,
        attr: NewAttr,
    ) -> FsResult<Done<Made>> {
        let (kind, rdev) = match kind {
            NodeKind::File => (FileKind::File, Rdev::default()),
            NodeKind::Fifo => (FileKind::Fifo, Rdev::default()),
            NodeKind::Socket => (FileKind::Socket, Rdev::default()),
            NodeKind::Block(r) => (FileKind::Block, r),
            NodeKind::Char(r) => (FileKind::Char, r),
        };
        let device = matches!(kind, FileKind::Block | FileKind::Char);
        if device && ctx.creds.uid != 0 && !ctx.creds.checked {
            return Err(FsError::NotPermitted);
        }
        let new = New {
            rdev,
            ..New::plain(kind)
        };
        self.make(ctx, dir, name, &new, &attr)
    }

    pub(crate) fn do_readlink(&self, id: InodeId) -> FsResult<(Bytes, Attr)> {
        let core = self.engine.core()?;
        let inode = core.inode_of(id)?;
        if inode.kind != FileKind::Symlink {
            return Err(FsError::WrongKind);
        }
        let mut target = Vec::with_capacity(inode.size as usize & 0xfff);
        btree::scan(
            &*core,
            &Key::new(id.ino, Kind::Symlink, 0),
            &Key::new(id.ino, Kind::Symlink, u64::MAX),
            &mut |_, v| {
                target.extend_from_slice(v);
                Ok(target.len() <= MAX_SYMLINK)
            },
        )?;
        Ok((Bytes::from(target), inode.attr(id.ino)))
    }
}
