//! The open transaction: everything changed since the last batch, and how to take one
//! operation's part of it back.
//!
//! An operation runs between [`Core::begin`] and [`Core::commit_op`] or [`Core::rollback`]; what
//! it changes is journalled in memory so that a failure in the middle leaves no trace.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::runs::{DataRuns, RunSet};
use super::{Core, LazyTimes};
use crate::api::Ino;
use crate::format::page::Page;
use crate::format::superblock::Superblock;

/// A changed page, and the operation that changed it last.
#[derive(Clone)]
pub(super) struct Dirty {
    pub page: Arc<Page>,
    pub op: u64,
}

pub(super) enum Undo {
    Page(u64, Option<Dirty>),
    Data(u64, u64, Vec<(u64, Bytes)>),
    Freed(u64, u64),
    Zeroed(u64, u64),
    Group(u64, u32),
    Used(i64),
    Lazy(Ino, Option<LazyTimes>),
    Listed(Ino),
}

/// See the module's head.
#[derive(Default)]
pub(super) struct Txn {
    /// Its number; goes into births and marks.
    pub id: u64,
    pub pages: HashMap<u64, Dirty>,
    pub data: DataRuns,
    /// Blocks freed: not to be used again before this transaction is sealed.
    pub freed: RunSet,
    /// Blocks in use whose content becomes zeros.
    pub zeroed: RunSet,
    /// The superblock changed.
    pub super_dirty: bool,
    /// Bytes of data taken in, also those overwritten since: bounds what slices keep alive.
    pub taken: usize,
}

impl Txn {
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.data.len() == 0 && !self.super_dirty && self.zeroed.is_empty()
    }

    /// The larger of its blocks and its operations, as a batch counts them.
    pub fn weight(&self) -> usize {
        let ops = self.pages.len() + self.data.len() + self.freed.len() + self.zeroed.len();
        let blocks = self.pages.len() + self.data.blocks();
        ops.max(blocks) + 1
    }
}

/// What is in force again when an operation fails.
pub(super) struct Savepoint {
    pub sb: Superblock,
    pub super_dirty: bool,
}

impl Core {
    /// Starts an operation.
    pub(super) fn begin(&mut self) {
        self.op += 1;
        self.op_pages = 0;
        self.undo.clear();
        self.save = Some(Savepoint {
            sb: self.sb,
            super_dirty: self.txn.super_dirty,
        });
    }

    /// Ends an operation that succeeded.
    pub(super) fn commit_op(&mut self) {
        self.undo.clear();
        if let Some(save) = self.save.take()
            && save.sb != self.sb
        {
            self.txn.super_dirty = true;
        }
    }

    /// Takes back everything since [`Core::begin`].
    pub(super) fn rollback(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Page(block, Some(dirty)) => {
                    self.txn.pages.insert(block, dirty);
                }
                Undo::Page(block, None) => {
                    self.txn.pages.remove(&block);
                }
                Undo::Data(start, end, was) => {
                    self.txn.data.carve(start, end);
                    was.into_iter().for_each(|(s, d)| self.txn.data.put(s, d));
                }
                Undo::Freed(start, end) => self.txn.freed.remove(start, end),
                Undo::Zeroed(start, end) => self.txn.zeroed.remove(start, end),
                Undo::Group(group, free) => self.alloc.set_free(group, free),
                Undo::Used(n) => self.alloc.fresh -= n,
                Undo::Lazy(ino, Some(times)) => {
                    self.lazy.insert(ino, times);
                }
                Undo::Lazy(ino, None) => {
                    self.lazy.remove(&ino);
                }
                Undo::Listed(ino) => {
                    self.lazy_listed.remove(&ino);
                }
            }
        }
        if let Some(save) = self.save.take() {
            self.sb = save.sb;
            self.txn.super_dirty = save.super_dirty;
        }
    }

    /// Changes an inode's lagging times (`None`: they do not lag any more).
    pub(crate) fn set_lazy(&mut self, ino: Ino, times: Option<LazyTimes>) {
        let was = match times {
            Some(times) => self.lazy.insert(ino, times),
            None => self.lazy.remove(&ino),
        };
        if was.is_some() || times.is_some() {
            self.undo.push(Undo::Lazy(ino, was));
        }
    }

    /// Notes that an inode has a `Lazy` item now.
    pub(crate) fn set_listed(&mut self, ino: Ino) {
        let now = std::time::Instant::now();
        if self.lazy_listed.insert(ino, now).is_none() {
            self.undo.push(Undo::Listed(ino));
        }
    }

    /// Makes `data` the content of the blocks from `start` on.
    pub(crate) fn put_data(&mut self, start: u64, data: Bytes) {
        let end = start + (data.len() / crate::format::page::PAGE_BYTES) as u64;
        self.txn.taken += data.len();
        let was = self.txn.data.carve(start, end);
        self.txn.data.put(start, data);
        self.undo.push(Undo::Data(start, end, was));
    }

    /// Makes blocks that stay in use read as zeros.
    pub(crate) fn zero_data(&mut self, start: u64, end: u64) {
        let was = self.txn.data.carve(start, end);
        self.undo.push(Undo::Data(start, end, was));
        let mut at = start;
        while at < end {
            // Parts may be in the set already.
            let (s, e) = self.txn.zeroed.overlapping(at, end).unwrap_or((end, end));
            if at < s {
                self.txn.zeroed.add(at, s.min(end));
                self.undo.push(Undo::Zeroed(at, s.min(end)));
            }
            at = e.max(at + 1);
        }
    }

    /// Notes that blocks are free from now on: their content is dropped.
    pub(super) fn note_freed(&mut self, start: u64, end: u64) {
        let was = self.txn.data.carve(start, end);
        self.undo.push(Undo::Data(start, end, was));
        self.txn.freed.add(start, end);
        self.undo.push(Undo::Freed(start, end));
    }
}
