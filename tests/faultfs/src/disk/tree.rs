//! The disk's tree of names.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::Disk;
use crate::names::Name;
use crate::node::{Ino, Node};
use crate::rules::Op;

impl Disk {
    /// Makes a name by `make`, which is given the directory.
    fn make(
        &self,
        dir: Ino,
        name: &OsStr,
        make: impl FnOnce(&Node) -> rustix::io::Result<()>,
    ) -> io::Result<()> {
        let dir = self.node(dir)?;
        let (mut state, _) = self.admit(Op::Name, &dir, name)?;
        make(&dir)?;
        state.names.made(Name::new(&dir, name));
        Ok(())
    }

    /// Makes a file.
    pub fn create(&self, dir: Ino, name: &OsStr, mode: u32) -> io::Result<()> {
        self.make(dir, name, |d| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
            rustix::fs::openat(d.fd(), name, flags, Mode::from_raw_mode(mode)).map(drop)
        })
    }

    /// Makes a directory.
    pub fn mkdir(&self, dir: Ino, name: &OsStr, mode: u32) -> io::Result<()> {
        self.make(dir, name, |d| {
            rustix::fs::mkdirat(d.fd(), name, Mode::from_raw_mode(mode))
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, dir: Ino, name: &OsStr, target: &Path) -> io::Result<()> {
        self.make(dir, name, |d| rustix::fs::symlinkat(target, d.fd(), name))
    }

    /// Makes another name of a file.
    pub fn link(&self, ino: Ino, dir: Ino, name: &OsStr) -> io::Result<()> {
        let node = self.node(ino)?;
        self.make(dir, name, |d| {
            let follow = AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(CWD, node.magic_path(), d.fd(), name, follow)
        })
    }

    /// Removes the name of a file, or of an empty directory.
    pub fn remove(&self, dir: Ino, name: &OsStr, directory: bool) -> io::Result<()> {
        let dir = self.node(dir)?;
        let (mut state, _) = self.admit(Op::Name, &dir, name)?;
        check_removable(&dir.magic_path().join(name), directory)?;
        state.names.remove(Name::new(&dir, name))
    }

    /// Moves or swaps names.
    pub fn rename(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        flags: RenameFlags,
    ) -> io::Result<()> {
        let (from_dir, to_dir) = (self.node(from.0)?, self.node(to.0)?);
        let (mut state, _) = self.admit(Op::Name, &from_dir, from.1)?;
        let old = Name::new(&from_dir, from.1);
        let new = Name::new(&to_dir, to.1);
        if flags == RenameFlags::EXCHANGE {
            return state.names.swap(old, new);
        }
        let source = from_dir.child(from.1)?;
        if let Ok(target) = to_dir.child(to.1) {
            if flags == RenameFlags::NOREPLACE {
                return Err(Errno::EXIST.into());
            }
            if target.ino == source.ino {
                return Ok(());
            }
            let directory = source.attr()?.kind == fuser::FileType::Directory;
            check_removable(&to_dir.magic_path().join(to.1), directory)?;
        }
        state.names.rename(old, new)
    }

    /// What a directory holds: number, kind, name.
    pub fn list(&self, dir: Ino) -> io::Result<Vec<(Ino, std::fs::FileType, OsString)>> {
        use std::os::unix::fs::DirEntryExt;
        let dir = self.node(dir)?;
        let _state = self.powered()?;
        let entries = std::fs::read_dir(dir.magic_path())?;
        entries
            .map(|e| e.and_then(|e| Ok((e.ino(), e.file_type()?, e.file_name()))))
            .collect()
    }
}

fn check_removable(path: &Path, directory: bool) -> io::Result<()> {
    match (path.symlink_metadata()?.is_dir(), directory) {
        (true, false) => Err(Errno::ISDIR.into()),
        (false, true) => Err(Errno::NOTDIR.into()),
        (true, true) if path.read_dir()?.next().is_some() => Err(Errno::NOTEMPTY.into()),
        _ => Ok(()),
    }
}
