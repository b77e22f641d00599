//! The FUSE side: takes requests apart, asks the disk, answers. Nothing is cached by the kernel:
//! no content (direct I/O), no attributes and no names (a time to live of zero).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{CWD, FallocateFlags, OFlags, SeekFrom, Timespec, Timestamps};

use crate::disk::{Disk, ROOT};
use crate::node::{Ino, Node};

const TTL: Duration = Duration::ZERO;
/// Operations at once; when as many hang, everything does, as on a stuck disk.
const THREADS: usize = 8;

type Listing = Vec<(Ino, FileType, OsString)>;

struct Fuse {
    disk: Arc<Disk>,
    listings: Mutex<HashMap<u64, Listing>>,
    next_listing: AtomicU64,
}

/// Mounts the disk.
pub fn spawn(disk: Arc<Disk>, mountpoint: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.mount_options = vec![
        MountOption::FSName("faultfs".into()),
        MountOption::Subtype("faultfs".into()),
        MountOption::DefaultPermissions,
    ];
    let fuse = Fuse {
        disk,
        listings: Mutex::default(),
        next_listing: AtomicU64::new(1),
    };
    fuser::spawn_mount(fuse, mountpoint, &config)
}

impl Fuse {
    fn entry(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        attr(&*self.disk.lookup(parent.0, name)?)
    }

    fn listings(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Listing>> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attr(&self, ino: INodeNo) -> io::Result<FileAttr> {
        let mut attr = attr(&*self.disk.node(ino.0)?)?;
        attr.ino = ino;
        Ok(attr)
    }

    fn set(&self, ino: INodeNo, change: &Change) -> io::Result<FileAttr> {
        let node = self.disk.node(ino.0)?;
        if let Some(size) = change.size {
            self.disk.truncate(ino.0, change.handle, size)?;
        }
        let path = node.magic_path();
        if change.uid.is_some() || change.gid.is_some() {
            std::os::unix::fs::chown(&path, change.uid, change.gid)?;
        }
        if let Some(mode) = change.mode {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777);
            std::fs::set_permissions(&path, mode)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(change.atime),
                last_modification: timespec(change.mtime),
            };
            rustix::fs::utimensat(CWD, &path, &times, rustix::fs::AtFlags::empty())?;
        }
        self.attr(ino)
    }
}

/// What `setattr` is to change.
struct Change {
    handle: Option<u64>,
    size: Option<u64>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
}

fn attr(node: &Node) -> io::Result<FileAttr> {
    node.attr()
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let special = |nanos| Timespec {
        tv_sec: 0,
        tv_nsec: nanos,
    };
    match time {
        None => special(rustix::fs::UTIME_OMIT),
        Some(TimeOrNow::Now) => special(rustix::fs::UTIME_NOW),
        Some(TimeOrNow::SpecificTime(t)) => {
            let since = t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Timespec {
                tv_sec: since.as_secs().cast_signed(),
                tv_nsec: since.subsec_nanos().into(),
            }
        }
    }
}

macro_rules! answer {
    ($reply:ident, $result:expr, $ok:pat => $send:expr) => {
        match $result {
            Ok($ok) => $send,
            Err(e) => $reply.error(Errno::from(e)),
        }
    };
}

impl Filesystem for Fuse {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.entry(parent, name), a => reply.entry(&TTL, &a, Generation(0)));
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        if ino.0 != ROOT {
            self.disk.forget(ino.0, times);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.attr(ino), a => reply.attr(&TTL, &a));
    }

    fn setattr(
        &self,
        _: &Request,
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
        let handle = fh.map(|f| f.0);
        let change = Change {
            handle,
            size,
            mode,
            uid,
            gid,
            atime,
            mtime,
        };
        answer!(reply, self.set(ino, &change), a => reply.attr(&TTL, &a));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self
            .disk
            .node(ino.0)
            .and_then(|n| Ok(rustix::fs::readlinkat(n.fd(), "", Vec::new())?));
        answer!(reply, target, t => reply.data(t.as_bytes()));
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.disk.mkdir(parent.0, name, mode & !umask);
        let made = made.and_then(|()| self.entry(parent, name));
        answer!(reply, made, a => reply.entry(&TTL, &a, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.disk.remove(parent.0, name, false), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.disk.remove(parent.0, name, true), () => reply.ok());
    }

    fn symlink(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let made = self.disk.symlink(parent.0, name, target);
        let made = made.and_then(|()| self.entry(parent, name));
        answer!(reply, made, a => reply.entry(&TTL, &a, Generation(0)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let moved = self
            .disk
            .rename((parent.0, name), (newparent.0, newname), flags);
        answer!(reply, moved, () => reply.ok());
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let made = self.disk.link(ino.0, newparent.0, newname);
        let made = made.and_then(|()| self.entry(newparent, newname));
        answer!(reply, made, a => reply.entry(&TTL, &a, Generation(0)));
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.disk.open_file(ino.0),
            epoch => reply.opened(FileHandle(epoch), FopenFlags::FOPEN_DIRECT_IO));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let made = self
            .disk
            .create(parent.0, name, mode & !umask)
            .and_then(|()| self.entry(parent, name))
            .and_then(|a| Ok((a, self.disk.open_file(a.ino.0)?)));
        let direct = FopenFlags::FOPEN_DIRECT_IO;
        answer!(reply, made, (a, epoch) =>
            reply.created(&TTL, &a, Generation(0), FileHandle(epoch), direct));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let data = self.disk.read(ino.0, fh.0, offset, size as usize);
        answer!(reply, data, d => reply.data(&d));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let flags = OFlags::from_bits_retain(flags.0.cast_unsigned());
        let how = (
            flags.contains(OFlags::APPEND),
            flags.intersects(OFlags::SYNC | OFlags::DSYNC),
        );
        let written = self.disk.write(ino.0, fh.0, offset, data, how);
        answer!(reply, written, () => reply.written(data.len() as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // close(2) makes nothing durable.
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.disk.sync(ino.0, Some(fh.0)), () => reply.ok());
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let listed = self.disk.list(ino.0).map(|entries| {
            let kind = |t| FileType::from_std(t).unwrap_or(FileType::RegularFile);
            entries
                .into_iter()
                .map(|(ino, t, name)| (ino, kind(t), name))
                .collect::<Listing>()
        });
        answer!(reply, listed, list => {
            let id = self.next_listing.fetch_add(1, Ordering::Relaxed);
            self.listings().insert(id, list);
            reply.opened(FileHandle(id), FopenFlags::empty());
        });
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let dots = [".", ".."].map(|n| (ino.0, FileType::Directory, OsString::from(n)));
        if let Some(list) = self.listings().get(&fh.0) {
            let all = dots.iter().chain(list).zip(1u64..);
            for ((ino, kind, name), next) in all.skip(offset as usize) {
                if reply.add(INodeNo(*ino), next, *kind, name) {
                    break;
                }
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings().remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.disk.sync(ino.0, None), () => reply.ok());
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let stat = self
            .disk
            .node(ROOT)
            .and_then(|n| Ok(rustix::fs::statvfs(n.magic_path())?));
        answer!(reply, stat, s => reply.statfs(
            s.f_blocks,
            s.f_bfree,
            s.f_bavail,
            s.f_files,
            s.f_ffree,
            s.f_bsize as u32,
            s.f_namemax as u32,
            s.f_frsize as u32,
        ));
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let done = self.disk.allocate(ino.0, fh.0, mode, offset, length);
        answer!(reply, done, () => reply.ok());
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
        const SEEK_DATA: i32 = 3;
        let at = offset.unsigned_abs();
        let whence = match whence {
            SEEK_DATA => SeekFrom::Data(at),
            _ => SeekFrom::Hole(at),
        };
        answer!(reply, self.disk.seek(ino.0, whence), at => reply.offset(at.cast_signed()));
    }
}
