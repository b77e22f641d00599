//! The kernel's requests, each answered from the library: looking, opening, reading, locking.
//! What changes things is in `mutate`; the trait's methods all stand here.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::*;

use super::convert::{creds, errno, file_attr, file_type};
use super::gate::Gate;
use super::handles::Handles;
use super::notify::Notify;
use super::streams::Streams;
use super::{FUSE_DOOR, TTL};
use crate::Vfs;
use crate::api::{Attr, Creds, Ctx, FlushCallback, InodeId, Mark, Seek};
use crate::error::{FsError, FsResult};
use crate::lock::{LockCall, LockFamily, LockKind, LockRange};

/// Bytes of one read or write request.
pub(crate) const MAX_REQUEST: u32 = 1 << 20;
/// Requests that the kernel may have under way in the background.
pub(crate) const MAX_BACKGROUND: u16 = 512;
/// Entries fetched at once for a listing.
const LIST: usize = 256;

pub(super) const O_DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits() as i32;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
const F_RDLCK: i32 = 0;
const F_WRLCK: i32 = 1;
const F_UNLCK: i32 = 2;

/// The door.
pub(super) struct FuseDoor {
    pub fs: Arc<dyn Vfs>,
    pub handles: Arc<Handles>,
    pub notify: Arc<Notify>,
    pub gate: Arc<Gate>,
    pub streams: Arc<Streams>,
}

/// Answers with an error, or goes on. For what the file system said use `held`.
macro_rules! or_reply {
    ($reply:expr, $result:expr) => {
        match $result {
            Ok(v) => v,
            Err(e) => return $reply.error(errno(&e)),
        }
    };
}
pub(super) use or_reply;

/// The same of an answer of the file system's, once the volume is known to be held after it.
macro_rules! held {
    ($door:expr, $reply:expr, $result:expr) => {{
        let result = $result;
        or_reply!($reply, $door.gate.pass(result))
    }};
}
pub(super) use held;

impl FuseDoor {
    pub fn id(&self, ino: INodeNo) -> FsResult<InodeId> {
        self.handles.id(ino.0)
    }

    pub fn ctx<'a, T>(&self, creds: &'a Creds) -> Ctx<'a, T> {
        Ctx::by(creds, FUSE_DOOR)
    }

    /// Answers with an object that the kernel from now on knows.
    pub fn reply_entry(&self, attr: &Attr, reply: ReplyEntry) {
        let attr = held!(self, reply, self.handles.told(attr));
        let (ttl, generation) = (self.notify.name_ttl(), Generation(attr.id.generation));
        reply.entry(&ttl, &file_attr(&attr), generation);
    }

    /// How a file is opened: see the head of `fuse`.
    pub fn open_file(&self, ino: u64, flags: i32) -> (FileHandle, FopenFlags) {
        let direct = flags & O_DIRECT != 0;
        let (handle, keep) = self.handles.open(ino, direct);
        let how = match direct {
            true => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
            false if keep => FopenFlags::FOPEN_KEEP_CACHE,
            false => FopenFlags::empty(),
        };
        (FileHandle(handle), how)
    }

    /// Whether a change by `creds` may take set-id bits from a file, of which the kernel has to be
    /// told: it asks anew for times and size by itself, and would go on with the mode that it has.
    pub fn kills(&self, creds: &Creds, id: InodeId) -> bool {
        let set = |attr: Attr| attr.mode & 0o6000 != 0;
        creds.kill && self.fs.getattr(id).is_ok_and(set)
    }

    /// Answers a flush.
    fn answer(&self, reply: ReplyEmpty) -> FlushCallback {
        let gate = self.gate.clone();
        Box::new(move |r| {
            gate.then(move |held| match held.and(r) {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(&e)),
            });
        })
    }

    fn release_locks(&self, ino: INodeNo, owners: &[u64]) {
        let Ok(id) = self.id(ino) else { return };
        let which = |o: &crate::lock::LockOwner| match o {
            crate::lock::LockOwner::Local { owner, .. } => owners.contains(owner),
            crate::lock::LockOwner::Nlm { .. } => false,
        };
        // Memory only: cannot fail but with a stopped file system, where nothing matters.
        let _ = self.fs.lock_release(Some(id), &which);
    }

    fn lock_call(owner: LockOwner, pid: u32, typ: i32, start: u64, end: u64) -> FsResult<LockCall> {
        // The kernel's end is inclusive, and the greatest offset means "to the end".
        let end = match end >= i64::MAX as u64 {
            true => u64::MAX,
            false => end + 1,
        };
        Ok(LockCall {
            family: LockFamily::Range,
            owner: crate::lock::LockOwner::Local {
                owner: owner.0,
                pid,
            },
            kind: match typ {
                F_RDLCK => LockKind::Shared,
                F_WRLCK => LockKind::Exclusive,
                F_UNLCK => LockKind::Unlock,
                _ => return Err(FsError::Invalid("an unknown kind of lock")),
            },
            range: LockRange { start, end },
        })
    }
}

impl Filesystem for FuseDoor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        use InitFlags as I;
        for flag in [
            I::FUSE_ASYNC_READ,
            I::FUSE_BIG_WRITES,
            I::FUSE_DONT_MASK,
            I::FUSE_POSIX_LOCKS,
            I::FUSE_DO_READDIRPLUS,
            I::FUSE_READDIRPLUS_AUTO,
            I::FUSE_ASYNC_DIO,
            I::FUSE_PARALLEL_DIROPS,
            I::FUSE_POSIX_ACL,
            I::FUSE_CACHE_SYMLINKS,
            I::FUSE_EXPLICIT_INVAL_DATA,
            I::FUSE_HANDLE_KILLPRIV_V2,
            I::FUSE_DIRECT_IO_ALLOW_MMAP,
            I::FUSE_MAX_PAGES,
        ] {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel does not offer this");
            }
        }
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_readahead(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn destroy(&mut self) {
        self.handles.clear();
        let local = |o: &crate::lock::LockOwner| matches!(o, crate::lock::LockOwner::Local { .. });
        let _ = self.fs.lock_release(None, &local);
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let dir = or_reply!(reply, self.id(parent));
        let found = self.fs.lookup(&creds(req), dir, name.as_bytes());
        match self.gate.pass(found) {
            Ok((attr, _)) => self.reply_entry(&attr, reply),
            Err(FsError::NotFound) => {
                // Inode 0: "there is no such name", and that may be remembered.
                let mut none = file_attr(&held!(self, reply, self.fs.getattr(dir)));
                none.ino = INodeNo(0);
                reply.entry(&self.notify.name_ttl(), &none, Generation(0));
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        self.handles.forget(ino.0, nlookup);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let id = or_reply!(reply, self.id(ino));
        let attr = held!(self, reply, self.fs.getattr(id));
        reply.attr(&TTL, &file_attr(&attr));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let ids = (mode, uid, gid);
        let set = super::mutate::set_attr(req, ids, size, (atime, mtime), fh.is_some());
        self.do_setattr(req, ino, set, reply);
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let id = or_reply!(reply, self.id(ino));
        let (target, _) = held!(self, reply, self.fs.readlink(&creds(req), id));
        reply.data(&target);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.do_mknod(req, (parent, name), (mode, umask), rdev, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.do_mkdir(req, (parent, name), (mode, umask), reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.do_remove(req, (parent, name), false, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.do_remove(req, (parent, name), true, reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.do_symlink(req, (parent, name), target, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.do_rename(req, (parent, name), (newparent, newname), flags, reply);
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.do_link(req, ino, (newparent, newname), reply);
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let id = or_reply!(reply, self.id(ino));
        held!(self, reply, self.fs.getattr(id));
        let (handle, open) = self.open_file(ino.0, flags.0);
        reply.opened(handle, open);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let id = or_reply!(reply, self.id(ino));
        let gate = self.gate.clone();
        self.fs.read_then(
            &creds(req),
            id,
            offset,
            size.min(MAX_REQUEST),
            Box::new(move |r| {
                gate.then(move |held| match held.and(r) {
                    // One copy, unless the content is in one piece: the reply takes one slice.
                    Ok(out) => reply.data(&out.concat()),
                    Err(e) => reply.error(errno(&e)),
                });
            }),
        );
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.do_write(req, ino, (offset, data), (write_flags, flags), reply);
    }

    fn flush(&self, _: &Request, ino: INodeNo, _: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        // Closing any descriptor of a file gives back the process's POSIX locks on it.
        if self.handles.any_locks() {
            self.release_locks(ino, &[owner.0]);
        }
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // OFD locks end with their open file; the kernel does not ask for it.
        let owners = self.handles.close(ino.0, fh.0);
        if !owners.is_empty() {
            self.release_locks(ino, &owners);
        }
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, data: bool, reply: ReplyEmpty) {
        let id = or_reply!(reply, self.id(ino));
        self.fs.fsync_then(id, data, self.answer(reply));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        or_reply!(reply, self.id(ino));
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let id = or_reply!(reply, self.id(ino));
        let page = held!(
            self,
            reply,
            self.fs.readdir(&creds(req), id, offset, LIST, false)
        );
        for e in &page.entries {
            let name = OsStr::from_bytes(&e.name);
            if reply.add(INodeNo(e.id.ino.0), e.cookie, file_type(e.kind), name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let id = or_reply!(reply, self.id(ino));
        let page = held!(
            self,
            reply,
            self.fs.readdir(&creds(req), id, offset, LIST, true)
        );
        for e in &page.entries {
            let name = OsStr::from_bytes(&e.name);
            let dots = &e.name[..] == b"." || &e.name[..] == b"..";
            // Of the dots the kernel keeps no count, and wants only number and kind.
            let attr = match e.attr {
                Some(attr) if dots => attr,
                Some(attr) => match self.handles.told(&attr) {
                    Ok(attr) => attr,
                    Err(_) => continue,
                },
                None => continue,
            };
            let full = reply.add(
                INodeNo(e.id.ino.0),
                e.cookie,
                name,
                &self.notify.name_ttl(),
                &file_attr(&attr),
                Generation(e.id.generation),
            );
            if full {
                if !dots {
                    self.handles.forget(e.id.ino.0, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.fs.flush_then(self.fs.last_mark(), self.answer(reply));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let s = held!(self, reply, self.fs.statfs());
        let (total, free) = (s.total_bytes / 4096, s.free_bytes / 4096);
        let inodes = s.inodes + s.free_inodes;
        reply.statfs(total, free, free, inodes, s.free_inodes, 4096, 255, 4096);
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        self.do_setxattr(req, ino, (name, value), flags, reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let id = or_reply!(reply, self.id(ino));
        let value = held!(
            self,
            reply,
            self.fs.get_xattr(&creds(req), id, name.as_bytes())
        );
        reply_sized(&value, size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let id = or_reply!(reply, self.id(ino));
        let names = held!(self, reply, self.fs.list_xattr(&creds(req), id));
        let mut list = Vec::new();
        for name in names {
            list.extend_from_slice(&name);
            list.push(0);
        }
        reply_sized(&list, size, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.do_removexattr(req, ino, name, reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.do_create(req, (parent, name), (mode, umask), flags, reply);
    }

    fn getlk(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let id = or_reply!(reply, self.id(ino));
        let call = or_reply!(reply, Self::lock_call(owner, pid, typ, start, end));
        match held!(self, reply, self.fs.lock_test(id, &call)) {
            None => reply.locked(0, 0, F_UNLCK, 0),
            Some(held) => {
                let kind = match held.kind {
                    LockKind::Exclusive => F_WRLCK,
                    _ => F_RDLCK,
                };
                let pid = match held.owner {
                    crate::lock::LockOwner::Local { pid, .. } => pid,
                    crate::lock::LockOwner::Nlm { .. } => 0,
                };
                let end = held.range.end.min(1 << 63) - 1;
                reply.locked(held.range.start, end, kind, pid);
            }
        }
    }

    fn setlk(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let id = or_reply!(reply, self.id(ino));
        let call = or_reply!(reply, Self::lock_call(owner, pid, typ, start, end));
        self.handles.locked(fh.0, owner.0);
        if !sleep {
            held!(self, reply, self.fs.lock(id, &call, None));
            return reply.ok();
        }
        // The reply goes with the wait if the lock is not to be had at once.
        let slot = Arc::new(std::sync::Mutex::new(Some(reply)));
        let answer = |slot: &std::sync::Mutex<Option<ReplyEmpty>>, r: FsResult<()>| {
            let reply = slot
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .take();
            match (reply, r) {
                (Some(reply), Ok(())) => reply.ok(),
                (Some(reply), Err(e)) => reply.error(errno(&e)),
                (None, _) => {}
            }
        };
        let waiting = slot.clone();
        let wait = Box::new(move |r: FsResult<Mark>| answer(&waiting, r.map(|_| ())));
        match self.fs.lock(id, &call, Some(wait)) {
            Ok(done) if done.value => answer(&slot, Ok(())),
            Ok(_) => {}
            Err(e) => answer(&slot, Err(e)),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.do_fallocate(req, ino, (offset, length), mode, reply);
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let id = or_reply!(reply, self.id(ino));
        let what = match whence {
            SEEK_DATA => Seek::Data,
            SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let at = held!(self, reply, self.fs.seek(id, offset, what));
        reply.offset(at as i64);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = (or_reply!(reply, self.id(ino_in)), offset_in);
        let to = (or_reply!(reply, self.id(ino_out)), offset_out);
        // Set-id bits are ours to clear, and no flag says so.
        let creds = Creds {
            kill: req.uid() != 0,
            ..creds(req)
        };
        let kills = self.kills(&creds, to.0);
        let done = self.fs.copy_range(self.ctx(&creds), from, to, len);
        // Also if it failed half way; and the lease is looked at afterwards (invariant 2).
        if kills {
            self.notify.attr(to.0);
        }
        let done = held!(self, reply, done);
        reply.written(done.value as u32);
    }
}

/// Answers a request that asks for a value, or, with size 0, for its length.
fn reply_sized(value: &[u8], size: u32, reply: ReplyXattr) {
    match size {
        0 => reply.size(value.len() as u32),
        n if value.len() > n as usize => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}
