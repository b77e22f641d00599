//! Giving out blocks and taking them back.
//!
//! The truth is in the groups' bitmap pages (`format::bitmap`); in memory there is one number per
//! group, learnt when its page is first read. Blocks freed by the open transaction are not given
//! out again before it is sealed: a later batch then follows the one that freed them, so that no
//! prefix of the history shows one file's bytes in another.

use std::sync::Arc;

use super::Core;
use super::txn::{Dirty, Undo};
use crate::error::{FsError, FsResult};
use crate::format::bitmap::{
    GROUP_BLOCKS, bitmap_block, count_used, first_free, fresh, group_len, group_reserved, groups,
    is_set, run_end, set, total_free,
};
use crate::format::page::{Page, PageKind};

/// Pages that an operation may have changed when it asks for more blocks of data: in a badly
/// fragmented volume it is then cut in two, so that it fits a batch.
const OP_PAGES: usize = 64;
const UNKNOWN: u32 = u32::MAX;
/// Part of a group that metadata is placed in first, so that data stays in long runs.
const META_SHARE: u64 = 16;

/// What blocks are for: how deep into the reserve it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// File content.
    Data,
    /// Pages of the tree.
    Meta,
}

/// Free blocks per group, as far as known.
#[derive(Default)]
pub(super) struct Alloc {
    free: Vec<u32>,
    /// Where the last run of a file without a better place went.
    pub data_goal: u64,
    /// Blocks given out minus blocks freed by the open operation sequence; what thin pools owe.
    pub fresh: i64,
    /// True while an operation that frees space runs: it may use the reserve.
    pub freeing: bool,
}

impl Alloc {
    pub fn new(blocks: u64) -> Alloc {
        let mut alloc = Alloc::default();
        alloc.grow(blocks);
        alloc.data_goal = GROUP_BLOCKS.min(blocks) / META_SHARE;
        alloc
    }

    /// Makes room for the groups of a file system of this size; a last group that became
    /// longer is counted again.
    pub fn grow(&mut self, blocks: u64) {
        if let Some(last) = self.free.last_mut() {
            *last = UNKNOWN;
        }
        self.free.resize(groups(blocks) as usize, UNKNOWN);
    }

    pub fn set_free(&mut self, group: u64, free: u32) {
        self.free[group as usize] = free;
    }
}

impl Core {
    /// Blocks kept back for the tree, so that a full file system can still delete.
    pub(crate) fn reserve(&self) -> u64 {
        (self.sb.blocks / 64).clamp(16, 4096)
    }

    pub(super) fn bitmap(&self, group: u64) -> FsResult<Arc<Page>> {
        let block = bitmap_block(group);
        self.any_page(block, Some(group))
            .and_then(|(page, kind)| match kind {
                PageKind::Bitmap => Ok(page),
                _ => Err(FsError::Damaged {
                    block,
                    why: "a tree page where a bitmap belongs",
                }),
            })
    }

    fn bitmap_mut(&mut self, group: u64) -> FsResult<&mut Page> {
        let page = self.bitmap(group)?;
        Ok(self.dirty(bitmap_block(group), page))
    }

    /// Free blocks of a group, reading its bitmap the first time.
    fn group_free(&mut self, group: u64) -> FsResult<u32> {
        let known = self.alloc.free[group as usize];
        if known != UNKNOWN {
            return Ok(known);
        }
        let len = group_len(group, self.sb.blocks);
        let free = len - count_used(&*self.bitmap(group)?, len).min(len);
        self.alloc.set_free(group, free);
        Ok(free)
    }

    /// The first free run in `from..to` of a group that is not of the open transaction's freed
    /// blocks.
    fn next_run(&self, page: &Page, group: u64, from: u32, to: u32) -> Option<(u32, u32)> {
        let base = group * GROUP_BLOCKS;
        let mut at = from;
        while let Some(start) = first_free(page, at, to) {
            let end = run_end(page, start, to);
            match self
                .txn
                .freed
                .overlapping(base + u64::from(start), base + u64::from(end))
            {
                None => return Some((start, end)),
                Some((s, _)) if s > base + u64::from(start) => {
                    return Some((start, (s - base) as u32));
                }
                Some((_, e)) => at = ((e - base).min(u64::from(to))) as u32,
            }
        }
        None
    }

    /// A run in a group: the first of at least `want` blocks from `from` on, else the longest.
    fn best_run(&mut self, group: u64, from: u32, want: u32) -> FsResult<Option<(u32, u32)>> {
        if self.group_free(group)? == 0 {
            return Ok(None);
        }
        let page = self.bitmap(group)?;
        let len = group_len(group, self.sb.blocks);
        let mut best: Option<(u32, u32)> = None;
        for (from, to) in [(from.min(len), len), (0, from.min(len))] {
            let mut at = from;
            while let Some((s, e)) = self.next_run(&page, group, at, to) {
                if e - s >= want {
                    return Ok(Some((s, s + want)));
                }
                if best.is_none_or(|b| b.1 - b.0 < e - s) {
                    best = Some((s, e));
                }
                at = e;
            }
        }
        Ok(best)
    }

    /// Takes up to `want` adjoining blocks, at `goal` if it can be. Returns first block and count.
    ///
    /// # Errors
    /// No space (also where only freed blocks of the open transaction are left: the caller seals
    /// it and tries again).
    pub(crate) fn allocate(&mut self, goal: u64, want: u32, what: For) -> FsResult<(u64, u32)> {
        let keep = match what {
            _ if self.alloc.freeing => 0,
            For::Data => self.reserve(),
            For::Meta => self.reserve() / 2,
        };
        if what == For::Data && self.op_pages > OP_PAGES {
            return Err(FsError::TooWide);
        }
        if self.sb.free <= keep {
            return Err(FsError::NoSpace("the file system is full"));
        }
        let want = want.clamp(1, (self.sb.free - keep).min(GROUP_BLOCKS) as u32);
        let n = groups(self.sb.blocks);
        let goal = if goal / GROUP_BLOCKS < n { goal } else { 0 };
        let (home, bit) = (goal / GROUP_BLOCKS, (goal % GROUP_BLOCKS) as u32);
        let at_goal = {
            let page = self.bitmap(home)?;
            let len = group_len(home, self.sb.blocks);
            match bit < len && !is_set(&page, bit) {
                true => self
                    .next_run(&page, home, bit, len.min(bit.saturating_add(want)))
                    .filter(|r| r.0 == bit),
                false => None,
            }
        };
        if let Some((s, e)) = at_goal {
            return self.take(home, s, e);
        }
        let mut best: Option<(u64, u32, u32)> = None;
        let mut looked = 0;
        for i in 0..n {
            let group = (home + i) % n;
            let from = match (i, what) {
                (0, _) => bit,
                (_, For::Data) => (GROUP_BLOCKS / META_SHARE) as u32,
                (_, For::Meta) => 0,
            };
            let Some((s, e)) = self.best_run(group, from, want)? else {
                continue;
            };
            if best.is_none_or(|b| b.2 - b.1 < e - s) {
                best = Some((group, s, e));
            }
            looked += 1;
            if e - s == want || looked == 4 {
                break;
            }
        }
        match best {
            Some((group, s, e)) => self.take(group, s, e),
            None => Err(FsError::NoSpace("every free block was freed just now")),
        }
    }

    fn take(&mut self, group: u64, s: u32, e: u32) -> FsResult<(u64, u32)> {
        let free = self.group_free(group)?;
        let sane = set(self.bitmap_mut(group)?, s, e - s, true);
        debug_assert!(sane, "allocate only gives out free blocks");
        self.undo.push(Undo::Group(group, free));
        self.alloc.set_free(group, free - (e - s));
        self.sb.free -= u64::from(e - s);
        self.undo.push(Undo::Used(i64::from(e - s)));
        self.alloc.fresh += i64::from(e - s);
        Ok((group * GROUP_BLOCKS + u64::from(s), e - s))
    }

    /// Gives blocks back.
    ///
    /// # Errors
    /// They were not in use, or are not the volume's: the extent or page that named them is
    /// damaged.
    pub(crate) fn release(&mut self, block: u64, count: u64) -> FsResult<()> {
        let damaged = FsError::Damaged {
            block,
            why: "a block in use is marked as free",
        };
        if block
            .checked_add(count)
            .is_none_or(|end| end > self.sb.blocks)
        {
            return Err(damaged);
        }
        let (mut at, end) = (block, block + count);
        while at < end {
            let group = at / GROUP_BLOCKS;
            let to = end.min((group + 1) * GROUP_BLOCKS);
            let (bit, n) = ((at % GROUP_BLOCKS) as u32, (to - at) as u32);
            if group >= groups(self.sb.blocks) || bit < group_reserved(group) {
                return Err(damaged);
            }
            let free = self.group_free(group)?;
            if !set(self.bitmap_mut(group)?, bit, n, false) {
                return Err(damaged);
            }
            self.undo.push(Undo::Group(group, free));
            self.alloc.set_free(group, free + n);
            at = to;
        }
        self.sb.free += count;
        self.undo.push(Undo::Used(-(count as i64)));
        self.alloc.fresh -= count as i64;
        self.note_freed(block, end);
        Ok(())
    }

    /// A new tree page near another.
    pub(super) fn allocate_page(&mut self, near: u64, kind: PageKind, level: u8) -> FsResult<u64> {
        // Metadata fills its group from the front.
        let goal = near / GROUP_BLOCKS * GROUP_BLOCKS;
        let (block, _) = self.allocate(goal, 1, For::Meta)?;
        let page = Page::new(block, self.txn.id, kind, level);
        let was = self.txn.pages.insert(
            block,
            Dirty {
                page: Arc::new(page),
                op: self.op,
            },
        );
        self.op_pages += 1;
        self.undo.push(Undo::Page(block, was));
        Ok(block)
    }

    /// Adds the blocks of a larger volume.
    pub(crate) fn grow_to(&mut self, blocks: u64) {
        self.sb.free += total_free(blocks) - total_free(self.sb.blocks);
        self.sb.blocks = blocks;
        self.alloc.grow(blocks);
    }

    /// The page of a group that was never touched.
    pub(super) fn fresh_bitmap(&self, group: u64) -> Page {
        fresh(group, self.txn.id)
    }
}
