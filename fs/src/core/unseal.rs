//! Taking a sealed transaction back, because the volume had no room for its batch.
//!
//! What was done stays done for every reader; it is only not on the volume yet. Merged with what
//! came after it, it needs no room for what was deleted meanwhile, and a deletion is not stuck
//! behind it. Both are then one batch: all or nothing, at the later one's place in the history.

use std::collections::HashMap;
use std::sync::Arc;

use trivet_protocol::limits::{MAX_BATCH_BLOCKS, MAX_BATCH_OPS};

use super::runs::{DataRuns, RunSet};
use super::txn::Dirty;
use super::{Core, Sealed};
use crate::error::FsResult;
use crate::format::bitmap::{GROUP_BLOCKS, is_set};
use crate::format::page::Page;

impl Sealed {
    fn weight(&self) -> usize {
        let runs = self.data.len() + self.freed.len() + self.zeroed.len();
        self.pages.len() + self.data.blocks().max(runs)
    }
}

impl Core {
    /// Merges the sealed transaction into the open one; false if both together are too large for
    /// a batch, or a bitmap cannot be read: nothing is changed then.
    pub(super) fn unseal(&mut self) -> bool {
        let Some(sealed) = self.sealed.clone() else {
            return false;
        };
        if sealed.weight() + self.txn.weight() > MAX_BATCH_BLOCKS.min(MAX_BATCH_OPS) {
            return false;
        }
        let Ok((in_use, free)) = self.split_by_use(&sealed.freed) else {
            return false;
        };
        let open = &mut self.txn;

        // Later changes win: what was freed or zeroed since is not written, then what was written
        // since lies on top.
        let mut data = sealed.data.clone();
        for (s, e) in open.freed.iter().chain(open.zeroed.iter()) {
            data.carve(s, e);
        }
        for (s, d) in open.data.iter() {
            data.carve(s, s + DataRuns::blocks_of(d));
            data.put(s, d.clone());
        }

        let mut pages: HashMap<u64, Dirty> = sealed
            .pages
            .iter()
            .filter(|(b, _)| open.freed.overlapping(**b, **b + 1).is_none())
            .map(|(b, page): (&u64, &Arc<Page>)| {
                let page = page.clone();
                (*b, Dirty { page, op: 0 })
            })
            .collect();
        pages.extend(open.pages.drain());

        // A block that was freed and is in use again held nothing when it was given out: for
        // whoever reads it unwritten it is zeros.
        let mut zeroed = sealed.zeroed.clone();
        in_use.iter().for_each(|(s, e)| zeroed.unite(s, e));
        open.zeroed.iter().for_each(|(s, e)| zeroed.unite(s, e));
        let mut freed = free;
        open.freed.iter().for_each(|(s, e)| freed.unite(s, e));
        freed.iter().for_each(|(s, e)| zeroed.cut(s, e));

        open.data = data;
        open.pages = pages;
        open.zeroed = zeroed;
        open.freed = freed;
        open.super_dirty = true;
        self.sealed = None;
        true
    }

    /// Which blocks of a set the bitmaps have in use, and which they have free.
    fn split_by_use(&self, set: &RunSet) -> FsResult<(RunSet, RunSet)> {
        let (mut used, mut free) = (RunSet::default(), RunSet::default());
        for (start, end) in set.iter() {
            let mut at = start;
            while at < end {
                let group = at / GROUP_BLOCKS;
                let page = self.bitmap(group)?;
                let to = end.min((group + 1) * GROUP_BLOCKS);
                let bit = |b: u64| is_set(&page, (b % GROUP_BLOCKS) as u32);
                while at < to {
                    let first = bit(at);
                    let run = (at..to).find(|b| bit(*b) != first).unwrap_or(to);
                    match first {
                        true => used.unite(at, run),
                        false => free.unite(at, run),
                    }
                    at = run;
                }
            }
        }
        Ok((used, free))
    }
}
