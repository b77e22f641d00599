//! Shrinking files, and freeing what belonged to those that are gone, in bounded steps.
//!
//! The first step sets the size and, if more than a step's worth of extents is left, an `Orphan`
//! item that says so, in one transaction. Until the item is gone the file does not grow
//! (`not_truncating`), so nothing beyond its end is ever seen. A crash leaves the item; mounting
//! finishes the work.

use super::BLOCK;
use super::write::Edges;
use crate::api::{Ino, InodeId};
use crate::btree;
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::format::inode::Inode;
use crate::format::key::{Key, Kind};
use crate::ops::Fs;

/// Extents that one step frees.
pub(crate) const STEP: usize = 64;
/// Items of an inode that one step removes.
const STEP_ITEMS: usize = 48;

/// Value of an `Orphan` item: the inode is to be freed.
pub(crate) const ORPHAN_GONE: u8 = 0;
/// Value of an `Orphan` item: what lies beyond the size is to be freed.
pub(crate) const ORPHAN_CUT: u8 = 1;

impl Core {
    /// Fails with [`FsError::Busy`] while blocks beyond the file's end are still being freed.
    pub(crate) fn not_truncating(&self, ino: Ino) -> FsResult<()> {
        match self.truncating.contains(&ino) {
            true => Err(FsError::Busy),
            false => Ok(()),
        }
    }

    /// One more step of freeing what lies beyond a file's end. True when done.
    pub(crate) fn settle_step(&mut self, ino: Ino) -> FsResult<bool> {
        if !self.truncating.contains(&ino) {
            return Ok(true);
        }
        self.set_freeing(true);
        let mut inode = self.inode(ino)?;
        let from = inode.size.div_ceil(BLOCK);
        let done = self.unmap(ino, &mut inode, from, u64::MAX, STEP)?;
        self.put_inode(ino, &inode)?;
        if done {
            // The mark of one that lost its last name meanwhile says that, and stays.
            if inode.nlink > 0 {
                btree::remove(self, &Key::new(Ino(0), Kind::Orphan, ino.0))?;
            }
            self.truncating.remove(&ino);
        }
        Ok(done)
    }

    /// One step of freeing an inode without a name. True when it is gone.
    pub(crate) fn reap_step(&mut self, ino: Ino) -> FsResult<bool> {
        self.set_freeing(true);
        let mut inode = match self.inode(ino) {
            Ok(inode) => inode,
            Err(FsError::Stale(_)) => {
                btree::remove(self, &Key::new(Ino(0), Kind::Orphan, ino.0))?;
                self.truncating.remove(&ino);
                return Ok(true);
            }
            Err(e) => return Err(e),
        };
        if inode.nlink > 0 {
            return Ok(true);
        }
        if !self.unmap(ino, &mut inode, 0, u64::MAX, STEP)? {
            self.put_inode(ino, &inode)?;
            return Ok(false);
        }
        let mut keys = Vec::new();
        btree::scan(
            self,
            &Key::raw(ino.0, Kind::Inode as u8 + 1, 0),
            &Key::raw(ino.0, 255, u64::MAX),
            &mut |k, _| {
                keys.push(k);
                Ok(keys.len() < STEP_ITEMS)
            },
        )?;
        let more = keys.len() == STEP_ITEMS;
        for key in &keys {
            btree::remove(self, key)?;
        }
        if more {
            self.put_inode(ino, &inode)?;
            return Ok(false);
        }
        btree::remove(self, &Key::new(ino, Kind::Inode, 0))?;
        for list in [Kind::Orphan, Kind::Locked] {
            btree::remove(self, &Key::new(Ino(0), list, ino.0))?;
        }
        self.forget_lazy(ino)?;
        self.truncating.remove(&ino);
        self.sb.inodes = self.sb.inodes.saturating_sub(1);
        Ok(true)
    }
}

impl Fs {
    /// Sets a file's size; the caller stores the inode.
    pub(crate) fn resize(
        &self,
        core: &mut Core,
        ino: Ino,
        inode: &mut Inode,
        size: u64,
        edges: &Edges,
    ) -> FsResult<()> {
        core.not_truncating(ino)?;
        let old = inode.size;
        inode.size = size;
        if size >= old {
            return Ok(());
        }
        core.set_freeing(true);
        self.versions.bump(ino);
        self.contents.bump(ino);
        let from = size.div_ceil(BLOCK);
        if !size.is_multiple_of(BLOCK) {
            self.zero_part(core, ino, edges, size, from * BLOCK)?;
        }
        if !core.unmap(ino, inode, from, u64::MAX, STEP)? {
            let key = Key::new(Ino(0), Kind::Orphan, ino.0);
            btree::insert(core, &key, &[ORPHAN_CUT])?;
            core.truncating.insert(ino);
        }
        Ok(())
    }

    /// Finishes a truncation that is under way.
    pub(crate) fn settle(&self, ino: Ino) -> FsResult<()> {
        while !self.settle_some(ino)? {
            if self.is_ending() {
                let why = "the file system is closed while a file is cut; the next mount goes on";
                return Err(FsError::Stopped(why.into()));
            }
        }
        Ok(())
    }

    /// One step of that. True when done.
    pub(crate) fn settle_some(&self, ino: Ino) -> FsResult<bool> {
        let (done, _) = self.engine.change(STEP, |core| {
            self.versions.bump(ino);
            core.settle_step(ino)
        })?;
        Ok(done)
    }

    /// Frees an inode without a name, unless it is in use. Stops half way when the file system is
    /// closed: a large file takes long, and the next mount goes on with it.
    pub(crate) fn reap(&self, ino: Ino) -> FsResult<()> {
        while !self.is_ending() && !self.reap_some(ino)? {}
        Ok(())
    }

    /// One step of that. True when there is nothing more to do.
    pub(crate) fn reap_some(&self, ino: Ino) -> FsResult<bool> {
        let mut in_use = false;
        let (done, _) = self.engine.change(STEP, |core| {
            // Under the lock: nobody can take a reference meanwhile.
            let named = core.inode(ino).is_ok_and(|i| i.nlink > 0);
            in_use = named || self.is_open(ino);
            if in_use {
                return Ok(true);
            }
            self.versions.bump(ino);
            core.reap_step(ino)
        })?;
        if done && !in_use {
            // Nobody can name it any more, so nobody can hold or want its locks.
            self.forget_locks(ino);
        }
        Ok(done)
    }

    /// The edges that `resize` will need.
    pub(crate) fn resize_edges(&self, id: InodeId, size: Option<u64>) -> FsResult<Edges> {
        match size {
            Some(size) => self.edges(id, &[size]),
            None => Ok(Edges::NONE),
        }
    }
}
