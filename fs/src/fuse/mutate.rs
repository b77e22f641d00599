//! The kernel's requests that change something.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fuser::*;

use super::convert::{creds, creds_with_groups, errno, file_attr, set_time, unpack_rdev};
use super::door::{FuseDoor, O_DIRECT, held, or_reply};
use super::gate::Gate;
use super::notify::Notify;
use super::{FUSE_DOOR, TTL};
use crate::Vfs;
use crate::api::{
    CreateHow, Creds, Ctx, Fallocate, FlushCallback, InodeId, NewAttr, NodeKind, RenameHow,
    SetAttr, XattrHow,
};
use crate::data::STREAM;
use crate::error::FsResult;
use crate::ops::acl::ACCESS;

type Name<'a> = (INodeNo, &'a OsStr);

const O_DSYNC: i32 = rustix::fs::OFlags::DSYNC.bits() as i32;
const O_SYNC: i32 = rustix::fs::OFlags::SYNC.bits() as i32;
const O_TRUNC: i32 = rustix::fs::OFlags::TRUNC.bits() as i32;
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 0x10;
const XATTR_CREATE: i32 = 1;
const XATTR_REPLACE: i32 = 2;
const S_IFMT: u32 = 0o170_000;

/// A `setattr` request. With `HANDLE_KILLPRIV_V2` set-id bits are ours to clear: always with a
/// new owner, with a new size unless the caller is privileged.
pub(super) fn set_attr(
    req: &Request,
    (mode, uid, gid): (Option<u32>, Option<u32>, Option<u32>),
    size: Option<u64>,
    (atime, mtime): (Option<TimeOrNow>, Option<TimeOrNow>),
    by_handle: bool,
) -> SetAttr {
    let owner = uid.is_some() || gid.is_some();
    SetAttr {
        mode: mode.map(|m| m & 0o7777),
        uid,
        gid,
        size,
        atime: set_time(atime),
        mtime: set_time(mtime),
        guard: None,
        by_handle,
        kill_suid: mode.is_none() && (owner || (size.is_some() && req.uid() != 0)),
    }
}

/// A write on its way to the file system.
struct Write {
    fs: Arc<dyn Vfs>,
    gate: Arc<Gate>,
    notify: Arc<Notify>,
    creds: Creds,
    id: InodeId,
    offset: u64,
    data: Bytes,
    /// As the file was opened.
    flags: i32,
    reply: ReplyWrite,
}

impl Write {
    fn run(self) {
        let (gate, reply, len) = (self.gate, self.reply, self.data.len() as u32);
        let ctx = Ctx::by(&self.creds, FUSE_DOOR);
        let done = self.fs.write(ctx, self.id, self.offset, self.data);
        let done = or_reply!(reply, gate.pass(done));
        let mode = done.value.before.mode != done.value.after.mode;
        let (notify, id, offset) = (self.notify, self.id, self.offset);
        let direct = self.flags & O_DIRECT != 0;
        let answer: FlushCallback = Box::new(move |r: FsResult<()>| {
            let answer = move || {
                gate.then(move |held| match held.and(r) {
                    Ok(()) => reply.written(len),
                    Err(e) => reply.error(errno(&e)),
                });
            };
            match direct {
                true => notify.bypassed(id, offset, u64::from(len), mode, answer),
                false if mode => notify.then(id, None, answer),
                false => answer(),
            }
        });
        match self.flags {
            f if f & O_SYNC == O_SYNC => self.fs.fsync_then(self.id, false, answer),
            f if f & O_DSYNC != 0 => self.fs.flush_then(done.mark, answer),
            _ => answer(Ok(())),
        }
    }
}

fn new_attr((mode, umask): (u32, u32)) -> NewAttr {
    NewAttr {
        mode: mode & 0o7777,
        umask,
        ..NewAttr::default()
    }
}

impl FuseDoor {
    pub fn do_setattr(&self, req: &Request, ino: INodeNo, set: SetAttr, reply: ReplyAttr) {
        let id = or_reply!(reply, self.id(ino));
        let creds = creds(req);
        let done = held!(self, reply, self.fs.setattr(self.ctx(&creds), id, set));
        reply.attr(&TTL, &file_attr(&done.value.after));
    }

    pub fn do_mknod(
        &self,
        req: &Request,
        (parent, name): Name<'_>,
        mode: (u32, u32),
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let dir = or_reply!(reply, self.id(parent));
        let rdev = unpack_rdev(rdev);
        let kind = match mode.0 & S_IFMT {
            0 | 0o100_000 => NodeKind::File,
            0o010_000 => NodeKind::Fifo,
            0o140_000 => NodeKind::Socket,
            0o060_000 => NodeKind::Block(rdev),
            0o020_000 => NodeKind::Char(rdev),
            _ => return reply.error(Errno::EINVAL),
        };
        let creds = creds(req);
        let (ctx, attr) = (self.ctx(&creds), new_attr(mode));
        let made = held!(
            self,
            reply,
            self.fs.mknod(ctx, dir, name.as_bytes(), kind, attr)
        );
        self.reply_entry(&made.value.attr, reply);
    }

    pub fn do_mkdir(
        &self,
        req: &Request,
        (parent, name): Name<'_>,
        mode: (u32, u32),
        reply: ReplyEntry,
    ) {
        let dir = or_reply!(reply, self.id(parent));
        let creds = creds(req);
        let (ctx, attr) = (self.ctx(&creds), new_attr(mode));
        let made = held!(self, reply, self.fs.mkdir(ctx, dir, name.as_bytes(), attr));
        self.reply_entry(&made.value.attr, reply);
    }

    pub fn do_symlink(
        &self,
        req: &Request,
        (parent, name): Name<'_>,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let dir = or_reply!(reply, self.id(parent));
        let creds = creds(req);
        let target = target.as_os_str().as_bytes();
        let attr = NewAttr::default();
        let ctx = self.ctx(&creds);
        let made = held!(
            self,
            reply,
            self.fs.symlink(ctx, dir, name.as_bytes(), target, attr)
        );
        self.reply_entry(&made.value.attr, reply);
    }

    pub fn do_create(
        &self,
        req: &Request,
        (parent, name): Name<'_>,
        mode: (u32, u32),
        flags: i32,
        reply: ReplyCreate,
    ) {
        let dir = or_reply!(reply, self.id(parent));
        let creds = creds(req);
        // The kernel asks only where it believes that the name is free; another door may have
        // been quicker, and then `open` semantics hold.
        let mut attr = new_attr(mode);
        attr.size = (flags & O_TRUNC != 0).then_some(0);
        let how = match flags & rustix::fs::OFlags::EXCL.bits() as i32 {
            0 => CreateHow::Unchecked,
            _ => CreateHow::Guarded,
        };
        let ctx = self.ctx(&creds);
        let made = held!(
            self,
            reply,
            self.fs.create(ctx, dir, name.as_bytes(), how, attr)
        );
        let attr = made.value.attr;
        let attr = held!(self, reply, self.handles.told(&attr));
        let (handle, open) = self.open_file(attr.id.ino.0, flags);
        let generation = Generation(attr.id.generation);
        let ttl = self.notify.name_ttl();
        reply.created(&ttl, &file_attr(&attr), generation, handle, open);
    }

    pub fn do_remove(&self, req: &Request, (parent, name): Name<'_>, dir: bool, reply: ReplyEmpty) {
        let id = or_reply!(reply, self.id(parent));
        let creds = creds(req);
        let ctx = self.ctx(&creds);
        held!(
            self,
            reply,
            match dir {
                true => self.fs.rmdir(ctx, id, name.as_bytes()),
                false => self.fs.unlink(ctx, id, name.as_bytes()),
            }
        );
        reply.ok();
    }

    pub fn do_rename(
        &self,
        req: &Request,
        (parent, name): Name<'_>,
        (newparent, newname): Name<'_>,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = (or_reply!(reply, self.id(parent)), name.as_bytes());
        let to = (or_reply!(reply, self.id(newparent)), newname.as_bytes());
        let how = match flags {
            f if f.is_empty() => RenameHow::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameHow::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameHow::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let creds = creds(req);
        held!(self, reply, self.fs.rename(self.ctx(&creds), from, to, how));
        reply.ok();
    }

    pub fn do_link(
        &self,
        req: &Request,
        ino: INodeNo,
        (parent, name): Name<'_>,
        reply: ReplyEntry,
    ) {
        let id = or_reply!(reply, self.id(ino));
        let dir = or_reply!(reply, self.id(parent));
        let creds = creds(req);
        let linked = self.fs.link(self.ctx(&creds), id, dir, name.as_bytes());
        let linked = held!(self, reply, linked);
        self.reply_entry(&linked.value.attr, reply);
    }

    pub fn do_write(
        &self,
        req: &Request,
        ino: INodeNo,
        (offset, data): (u64, &[u8]),
        (write_flags, flags): (WriteFlags, OpenFlags),
        reply: ReplyWrite,
    ) {
        let id = or_reply!(reply, self.id(ino));
        let mut creds = creds(req);
        // The kernel says whether set-id bits go; unchecked credentials make the library do it,
        // and root passes its other checks.
        if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            creds.kill = true;
        }
        // The one copy: the request's buffer is used again for the next.
        let data = Bytes::copy_from_slice(data);
        let write = Write {
            fs: self.fs.clone(),
            gate: self.gate.clone(),
            notify: self.notify.clone(),
            creds,
            id,
            offset,
            data,
            flags: flags.0,
            reply,
        };
        match write.data.len() {
            len if len >= STREAM => self.streams.pass(len, |passed| match passed {
                Ok(()) => write.run(),
                Err(e) => write.reply.error(errno(&e)),
            }),
            _ => write.run(),
        }
    }

    pub fn do_setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        (name, value): (&OsStr, &[u8]),
        flags: i32,
        reply: ReplyEmpty,
    ) {
        let id = or_reply!(reply, self.id(ino));
        let how = match flags {
            XATTR_CREATE => XattrHow::Create,
            XATTR_REPLACE => XattrHow::Replace,
            _ => XattrHow::Set,
        };
        // An ACL set by one outside the file's group takes its set-group bit.
        let creds = match name.as_bytes() {
            ACCESS if req.uid() != 0 => creds_with_groups(req),
            _ => creds(req),
        };
        let ctx = self.ctx(&creds);
        held!(
            self,
            reply,
            self.fs.set_xattr(ctx, id, name.as_bytes(), value, how)
        );
        reply.ok();
    }

    pub fn do_removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let id = or_reply!(reply, self.id(ino));
        let creds = creds(req);
        let ctx = self.ctx(&creds);
        held!(self, reply, self.fs.remove_xattr(ctx, id, name.as_bytes()));
        reply.ok();
    }

    pub fn do_fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        (offset, len): (u64, u64),
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let id = or_reply!(reply, self.id(ino));
        let how = match mode {
            0 => Fallocate::Allocate,
            KEEP_SIZE => Fallocate::AllocateKeepSize,
            m if m == PUNCH_HOLE | KEEP_SIZE => Fallocate::PunchHole,
            ZERO_RANGE => Fallocate::ZeroRange,
            m if m == ZERO_RANGE | KEEP_SIZE => Fallocate::ZeroRangeKeepSize,
            // Collapsing and inserting would move every later block's key.
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        // The kernel leaves set-id bits to us here, and does not say so as it does for a write.
        let creds = match req.uid() {
            0 => creds(req),
            _ => Creds {
                kill: true,
                ..creds_with_groups(req)
            },
        };
        let kills = self.kills(&creds, id);
        let ctx = self.ctx(&creds);
        let done = self.fs.fallocate(ctx, id, offset, len, how);
        // Also if it failed half way; and the lease is looked at afterwards (invariant 2).
        if kills {
            self.notify.attr(id);
        }
        held!(self, reply, done);
        reply.ok();
    }
}
