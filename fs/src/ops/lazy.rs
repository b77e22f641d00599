//! Times that reach their inode's item later.
//!
//! A plain overwrite of stored blocks changes nothing but `mtime` and `ctime`. Writing an inode's
//! page for each would double the cost of a durable 4 KiB write, so such times are kept in
//! memory and written at intervals, by the next other change of the inode, and by `fsync` that
//! asks for more than data. So that a crash cannot leave changed content behind an old `ctime`
//! (an NFS client would go on trusting its cache), the inode is first listed in a `Lazy` item, in
//! the same transaction as its first such write; mounting gives every listed inode a new `ctime`.
//! At most [`MAX_LISTED`] are listed; further ones are written at once.

use std::time::Duration;

use super::Fs;
use crate::api::Ino;
use crate::btree;
use crate::core::{Core, LazyTimes};
use crate::error::{FsError, FsResult};
use crate::format::inode::Inode;
use crate::format::key::{Key, Kind};

pub(crate) const MAX_LISTED: usize = 4096;
/// An inode not overwritten for so long leaves the list.
const IDLE: Duration = Duration::from_secs(30);
/// Inodes written in one transaction.
const STEP: usize = 32;

fn key(ino: Ino) -> Key {
    Key::new(Ino(0), Kind::Lazy, ino.0)
}

impl Core {
    /// Notes times that `inode` carries already, to be written later if possible.
    pub(crate) fn put_times_later(&mut self, ino: Ino, inode: &Inode) -> FsResult<()> {
        if !self.lazy_listed.contains_key(&ino) {
            if self.lazy_listed.len() >= MAX_LISTED {
                return self.put_inode(ino, inode);
            }
            btree::insert(self, &key(ino), &[])?;
        } else {
            // Nothing on the volume changes but data: do not write the superblock for it.
            self.keep_super_clean();
        }
        self.set_listed(ino);
        let times = LazyTimes {
            mtime: inode.mtime,
            ctime: inode.ctime,
        };
        self.set_lazy(ino, Some(times));
        Ok(())
    }

    /// Takes an inode off the list.
    pub(crate) fn forget_lazy(&mut self, ino: Ino) -> FsResult<()> {
        self.set_lazy(ino, None);
        if self.lazy_listed.contains_key(&ino) {
            btree::remove(self, &key(ino))?;
            self.lazy_listed.remove(&ino);
        }
        Ok(())
    }

    fn write_time(&mut self, ino: Ino) -> FsResult<()> {
        if self.lazy.contains_key(&ino) {
            let inode = self.inode(ino)?;
            self.put_inode(ino, &inode)?;
        }
        Ok(())
    }
}

impl Fs {
    /// Writes lagging times; with `all`, empties the list too.
    pub(crate) fn write_times(&self, all: bool) -> FsResult<()> {
        let (dirty, idle) = {
            let core = self.engine.core()?;
            let dirty: Vec<Ino> = core.lazy.keys().copied().collect();
            let idle = core.lazy_listed.iter();
            let idle = idle.filter(|(_, t)| all || t.elapsed() > IDLE);
            (dirty, idle.map(|(i, _)| *i).collect::<Vec<_>>())
        };
        for inos in dirty.chunks(STEP) {
            self.engine.change(0, |core| {
                inos.iter().try_for_each(|ino| core.write_time(*ino))
            })?;
        }
        for inos in idle.chunks(STEP) {
            self.engine.change(0, |core| {
                inos.iter().try_for_each(|ino| {
                    core.write_time(*ino)?;
                    core.forget_lazy(*ino)
                })
            })?;
        }
        Ok(())
    }

    /// Writes one inode's times.
    pub(crate) fn write_times_of(&self, ino: Ino) -> FsResult<()> {
        if !self.engine.core()?.lazy.contains_key(&ino) {
            return Ok(());
        }
        self.engine
            .change(0, |core| core.write_time(ino))
            .map(|_| ())
    }

    /// After a crash: gives listed inodes a new `ctime` and empties the list.
    pub(super) fn recover_times(&self, inos: &[Ino]) -> FsResult<()> {
        self.engine.change(0, |core| {
            for &ino in inos {
                match core.inode(ino) {
                    Ok(mut inode) => {
                        let now = core.now();
                        (inode.mtime, inode.ctime) = (now, now);
                        core.put_inode(ino, &inode)?;
                    }
                    Err(FsError::Stale(_)) => {}
                    Err(e) => return Err(e),
                }
                btree::remove(core, &key(ino))?;
            }
            Ok(())
        })?;
        Ok(())
    }
}
