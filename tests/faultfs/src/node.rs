//! One file or directory of the backing tree, held open by itself and not by its name, so that
//! renames do not matter.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, openat, statat};

/// A directory's or a file's identity: the inode number of the backing file system.
pub type Ino = u64;

/// See the module's head.
#[derive(Debug)]
pub struct Node {
    /// Its number, by which programs know it.
    pub ino: Ino,
    fd: OwnedFd,
    /// Opened when its content is first needed.
    file: Mutex<Option<Arc<File>>>,
}

impl Node {
    /// The directory at `path`.
    pub fn open_dir(path: &std::path::Path) -> io::Result<Node> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Node::new(rustix::fs::open(path, flags, Mode::empty())?)
    }

    fn new(fd: OwnedFd) -> io::Result<Node> {
        Ok(Node {
            ino: fstat(&fd)?.st_ino,
            fd,
            file: Mutex::default(),
        })
    }

    /// The entry `name` of this directory.
    pub fn child(&self, name: &OsStr) -> io::Result<Node> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Node::new(openat(&self.fd, name, flags, Mode::empty())?)
    }

    /// Whether this directory has an entry `name`.
    pub fn has(&self, name: &OsStr) -> bool {
        statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// For calls that take a directory and a name.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// For calls that take a path: it leads here whatever the name is now.
    pub fn magic_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Where it is in the backing tree now, as text.
    pub fn place(&self) -> String {
        std::fs::read_link(self.magic_path())
            .map(|p| p.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Its content, for reading and writing.
    pub fn file(&self) -> io::Result<Arc<File>> {
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let opened = File::options()
            .read(true)
            .write(true)
            .open(self.magic_path())?;
        Ok(Arc::clone(slot.insert(Arc::new(opened))))
    }

    /// Size, times, owner, mode.
    pub fn attr(&self) -> io::Result<FileAttr> {
        Ok(attr(&fstat(&self.fd)?))
    }
}

fn attr(s: &Stat) -> FileAttr {
    let kind = match rustix::fs::FileType::from_raw_mode(s.st_mode) {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        _ => FileType::RegularFile,
    };
    FileAttr {
        ino: INodeNo(s.st_ino),
        size: s.st_size.unsigned_abs(),
        blocks: s.st_blocks.unsigned_abs(),
        atime: time(s.st_atime, s.st_atime_nsec),
        mtime: time(s.st_mtime, s.st_mtime_nsec),
        ctime: time(s.st_ctime, s.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind,
        perm: (s.st_mode & 0o7777) as u16,
        nlink: s.st_nlink as u32,
        uid: s.st_uid,
        gid: s.st_gid,
        rdev: s.st_rdev as u32,
        blksize: s.st_blksize as u32,
        flags: 0,
    }
}

fn time(seconds: i64, nanos: u64) -> SystemTime {
    let nanos = Duration::from_nanos(nanos);
    match u64::try_from(seconds) {
        Ok(after) => UNIX_EPOCH + Duration::from_secs(after) + nanos,
        Err(_) => UNIX_EPOCH,
    }
}
