//! The state under the one lock: superblock, open transaction, and the pages on the way to the
//! volume.
//!
//! Invariants:
//! - A page or block is looked for in the open transaction, then in the sealed one (on its way
//!   to the volume), then in the cache, then on the volume: each later place is older.
//! - There is at most one sealed transaction; the next is sealed only when it was submitted. So
//!   batches enter the history in the order of their numbers (invariant 4).
//! - An operation's changes are all in one transaction (invariant 5).
//!
//! Bounded by: a transaction is sealed before its weight could pass a batch's limits.

mod alloc;
mod cache;
mod engine;
pub(crate) mod group;
mod runs;
mod txn;
mod unseal;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use trivet_replica::volume::{Block, Volume};

pub(crate) use alloc::For;
pub use cache::PageCache;
pub(crate) use engine::{Engine, META_ROOM, SEAL_BLOCKS, SEAL_TAKEN, read_super};
use runs::{DataRuns, RunSet};
use txn::{Dirty, Savepoint, Txn, Undo};

use crate::api::{Ino, Time};
use crate::btree::{PageRead, PageWrite};
use crate::error::{FsError, FsResult};
use crate::format::page::{PAGE_BYTES, Page, PageKind};
use crate::format::superblock::Superblock;
use crate::ops::Replies;

/// A transaction on its way to the volume: still looked at by readers until it is there.
pub(super) struct Sealed {
    pages: HashMap<u64, Arc<Page>>,
    data: DataRuns,
    zeroed: RunSet,
    freed: RunSet,
}

/// Times that have not reached their inode's item: plain overwrites change nothing else, and
/// should not cost a page each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LazyTimes {
    pub mtime: Time,
    pub ctime: Time,
}

/// See the module's head.
pub struct Core {
    volume: Arc<dyn Volume>,
    cache: Arc<PageCache>,
    pub(crate) sb: Superblock,
    txn: Txn,
    sealed: Option<Arc<Sealed>>,
    alloc: alloc::Alloc,
    /// Number of the running or last operation.
    op: u64,
    /// Pages that it has changed.
    op_pages: usize,
    undo: Vec<Undo>,
    save: Option<Savepoint>,
    pub(crate) lazy: HashMap<Ino, LazyTimes>,
    /// Inodes with a `Lazy` item, and when they last were overwritten.
    pub(crate) lazy_listed: HashMap<Ino, std::time::Instant>,
    /// Files with blocks beyond their end that are being freed.
    pub(crate) truncating: HashSet<Ino>,
    /// Index of the kept answers.
    pub(crate) replies: Replies,
}

impl Core {
    pub(crate) fn new(volume: Arc<dyn Volume>, cache: Arc<PageCache>, sb: Superblock) -> Core {
        Core {
            volume,
            cache,
            alloc: alloc::Alloc::new(sb.blocks),
            txn: Txn {
                id: sb.txn + 1,
                ..Txn::default()
            },
            sb,
            sealed: None,
            op: 0,
            op_pages: 0,
            undo: Vec::new(),
            save: None,
            lazy: HashMap::new(),
            lazy_listed: HashMap::new(),
            truncating: HashSet::new(),
            replies: Replies::default(),
        }
    }

    /// Number of the open transaction.
    pub(crate) fn txn_id(&self) -> u64 {
        self.txn.id
    }

    /// Where data without a better place goes next.
    pub(crate) fn data_goal(&self) -> u64 {
        self.alloc.data_goal
    }

    pub(crate) fn set_data_goal(&mut self, goal: u64) {
        self.alloc.data_goal = goal;
    }

    /// Lets the running operation use the reserve, because it ends with more free than before.
    pub(crate) fn set_freeing(&mut self, on: bool) {
        self.alloc.freeing = on;
    }

    /// A metadata page of any kind; for a bitmap, its group, because one may not exist yet.
    fn any_page(&self, block: u64, group: Option<u64>) -> FsResult<(Arc<Page>, PageKind)> {
        let kind_of = |p: &Page| match p.0[24] {
            1 => PageKind::Leaf,
            2 => PageKind::Inner,
            _ => PageKind::Bitmap,
        };
        let held = self
            .txn
            .pages
            .get(&block)
            .map(|d| d.page.clone())
            .or_else(|| self.sealed.as_ref()?.pages.get(&block).cloned())
            .or_else(|| self.cache.get(block));
        if let Some(page) = held {
            let kind = kind_of(&page);
            return Ok((page, kind));
        }
        if block >= self.sb.blocks {
            return Err(FsError::Damaged {
                block,
                why: "a pointer beyond the file system's end",
            });
        }
        let mut raw = Page([0; PAGE_BYTES]);
        self.volume.read(Block(block), &mut raw.0)?;
        let page = match group {
            Some(g) if raw.0.iter().all(|b| *b == 0) => self.fresh_bitmap(g),
            _ => {
                raw.check(block)
                    .map_err(|why| FsError::Damaged { block, why })?;
                raw
            }
        };
        let (kind, page) = (kind_of(&page), Arc::new(page));
        self.cache.put(block, page.clone());
        Ok((page, kind))
    }

    /// Makes a page part of the open transaction and lends it for changing.
    fn dirty(&mut self, block: u64, page: Arc<Page>) -> &mut Page {
        let op = self.op;
        let entry = self.txn.pages.get(&block);
        if entry.is_none_or(|d| d.op != op) {
            self.undo.push(Undo::Page(block, entry.cloned()));
            self.op_pages += 1;
            self.txn.pages.insert(block, Dirty { page, op });
        }
        // Copies if the page is held elsewhere: the undo journal, the cache, a sealed batch.
        let dirty = self.txn.pages.entry(block).or_insert_with(|| Dirty {
            page: Arc::new(Page([0; PAGE_BYTES])),
            op,
        });
        Arc::make_mut(&mut dirty.page)
    }

    /// Content of blocks that is not on the volume yet: from `block` on, at most `max` blocks; or
    /// for how many blocks the volume has it.
    pub(crate) fn pending(&self, block: u64, max: u64) -> Result<Bytes, u64> {
        let open = piece_of(&self.txn.data, &self.txn.zeroed, block, max);
        match (open, &self.sealed) {
            (Err(n), Some(sealed)) => piece_of(&sealed.data, &sealed.zeroed, block, n),
            (open, _) => open,
        }
    }

    /// A time later than every one given out before.
    pub(crate) fn now(&mut self) -> Time {
        let clock = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as u64);
        let last = self.sb.last_time;
        let now = clock.max(last.saturating_add(1));
        // Alone it is no reason to write the superblock: `commit_op` compares everything, so
        // the caller's other changes carry it.
        self.sb.last_time = now;
        Time {
            secs: (now / 1_000_000_000) as i64,
            nanos: (now % 1_000_000_000) as u32,
        }
    }

    /// Puts the last time back to what the superblock on the way has, keeping it in memory: for
    /// operations that change nothing but lazy times.
    pub(crate) fn keep_super_clean(&mut self) {
        if let Some(save) = &mut self.save {
            save.sb.last_time = self.sb.last_time;
        }
    }
}

impl PageRead for Core {
    fn page(&self, block: u64) -> FsResult<Arc<Page>> {
        let (page, kind) = self.any_page(block, None)?;
        match kind {
            PageKind::Bitmap => Err(FsError::Damaged {
                block,
                why: "a bitmap where a tree page belongs",
            }),
            _ => Ok(page),
        }
    }

    fn root(&self) -> u64 {
        self.sb.root
    }
}

impl PageWrite for Core {
    fn page_mut(&mut self, block: u64) -> FsResult<&mut Page> {
        let page = self.page(block)?;
        Ok(self.dirty(block, page))
    }

    fn new_page(&mut self, near: u64, kind: PageKind, level: u8) -> FsResult<u64> {
        self.allocate_page(near, kind, level)
    }

    fn free_page(&mut self, block: u64) -> FsResult<()> {
        self.release(block, 1)?;
        let was = self.txn.pages.remove(&block);
        self.undo.push(Undo::Page(block, was));
        self.cache.remove(block);
        Ok(())
    }

    fn set_root(&mut self, block: u64) {
        self.sb.root = block;
    }
}

/// As [`Core::pending`], of one transaction: blocks zeroed and then written count as written.
fn piece_of(data: &DataRuns, zeroed: &RunSet, block: u64, max: u64) -> Result<Bytes, u64> {
    let unknown = match data.piece(block, max) {
        Ok(data) => return Ok(data),
        Err(n) => n,
    };
    match zeroed.overlapping(block, block + unknown) {
        Some((s, e)) if s <= block => {
            let n = (e - block).min(unknown).min(crate::data::ZERO_BLOCKS);
            Ok(crate::data::zeros(n as usize * PAGE_BYTES))
        }
        Some((s, _)) => Err(s - block),
        None => Err(unknown),
    }
}
