//! What a resync needs: which groups changed, blocks copied from a peer, and the durable mark
//! that a region holds content of several moments.
//!
//! The order of calls on the region that is brought back:
//! 1. [`Store::cut`] to the common position if there is one, [`Store::set_commit`] to the end (all
//!    that is left is common, or will be compared whole), and a checkpoint, so that the log is
//!    empty;
//! 2. [`Store::mark_mixed`], before the first copied block;
//! 3. [`Store::adopt`] the peer's position, so that the stream's next operation follows;
//! 4. appends and [`Store::copy_in`] as the stream brings them;
//! 5. [`Store::finish_resync`], once all of it is durable.
//!
//! A crash in between leaves a mixed region; its base says from where to compare again.

use trivet_protocol::{Entry, GenerationTable, Position, Seq};

use super::Store;
use crate::error::{Result, StoreError};
use crate::extent::ExtentNo;
use crate::extent::layout::GROUP;
use crate::log::record::Kind;

/// Blocks that lie in one metadata group and when one of them last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedGroup {
    /// First block.
    pub block: u64,
    /// Number of blocks, at most 30.
    pub count: u32,
    /// Last change; not below the true one.
    pub changed: Position,
}

/// Where to go on listing: a block number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(pub u64);

impl Store {
    /// Groups with blocks changed after `since`, from `cursor` on; `max` of them or a few more.
    /// Since 0 is all that ever was written or discarded here, whoever wrote it. Returns where to
    /// go on, or `None` at the end. Groups whose metadata is damaged count as changed now.
    ///
    /// # Errors
    /// The disk fails.
    pub fn changed_since(
        &self,
        since: Seq,
        cursor: Cursor,
        max: usize,
    ) -> Result<(Vec<ChangedGroup>, Option<Cursor>)> {
        let extents = &self.shared.extents;
        let per = u64::from(extents.layout().blocks);
        let mut out = Vec::new();
        let mut at = cursor.0;
        while at < self.blocks {
            let Some(no) = self.next_extent(at) else {
                return Ok((out, None));
            };
            let base = u64::from(no.0) * per;
            at = at.max(base);
            let end = (base + per).min(self.blocks);
            self.changed_in(no, base, at, end, since, &mut out)?;
            at = end;
            if out.len() >= max {
                break;
            }
        }
        Ok((out, (at < self.blocks).then_some(Cursor(at))))
    }

    /// Up to here the region jumped in a resync: which of its blocks the history changed before is
    /// not known here, since those that were alike already were not copied.
    pub fn whole_from(&self) -> Seq {
        self.shared.head().state().whole_from
    }

    /// The first extent at or after a block that exists, or that the log writes to.
    pub(crate) fn next_extent(&self, at: u64) -> Option<ExtentNo> {
        let extents = &self.shared.extents;
        let (from, last) = (extents.locate(at).0, extents.locate(self.blocks - 1).0);
        let file = extents.first_existing(from, last);
        let discarded = |what| matches!(what, crate::log::record::What::Discarded);
        // Discards of what never existed need no comparing.
        let spans = self.overlay.spans_in(at, self.blocks);
        let span = spans.into_iter().find(|s| !discarded(s.what));
        let logged = span.map(|s| extents.locate(s.block.max(at)).0);
        match (file, logged) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn changed_in(
        &self,
        no: ExtentNo,
        base: u64,
        from: u64,
        end: u64,
        since: Seq,
        out: &mut Vec<ChangedGroup>,
    ) -> Result<()> {
        let extents = &self.shared.extents;
        let group = u64::from(GROUP);
        let (g0, g1) = ((from - base) / group, (end - 1 - base) / group);
        let mut changed = vec![Some(Position::default()); (g1 - g0 + 1) as usize];
        if let Some(file) = extents.get(no)? {
            changed = extents.changed(&file, g0 as u32, g1 as u32)?;
        }
        for span in self.overlay.spans_in(from, end) {
            let Some(part) = span.clip(from, end) else {
                continue;
            };
            let (s0, s1) = (
                (part.block - base) / group,
                (part.block + part.count - 1 - base) / group,
            );
            for slot in &mut changed[(s0 - g0) as usize..=(s1 - g0) as usize] {
                *slot = slot.map(|p| p.max(span.position));
            }
        }
        for (g, position) in (g0..).zip(changed) {
            let position = position.unwrap_or_else(|| self.end());
            let all = since == Seq::ZERO || position.generation == u64::MAX;
            if all || position.seq > since {
                let block = base + g * group;
                out.push(ChangedGroup {
                    block,
                    count: group.min(end - block) as u32,
                    changed: position,
                });
            }
        }
        Ok(())
    }

    /// Durably notes that from now on content may be of several moments. `base`: the last
    /// position common with the history that will be copied, `None` if all is to be compared.
    /// A region that is mixed already keeps the older base. One that jumped after `base` cannot
    /// tell what of itself changed since then ([`Store::whole_from`]): for it, it is `None`.
    ///
    /// # Errors
    /// The disk fails.
    pub fn mark_mixed(&mut self, base: Option<Seq>) -> Result<()> {
        let base = match self.mixed() {
            None => base.filter(|b| *b >= self.whole_from()),
            Some(old) => old.zip(base).map(|(a, b)| a.min(b)),
        };
        self.update_head(|h| h.mixed = Some(base))
    }

    /// Makes the peer's position and table this region's own, so that the next operation of the
    /// stream follows. Durable when it returns.
    ///
    /// # Errors
    /// The region is not mixed, or its log still has operations that are not in the extent files,
    /// or the disk fails.
    pub fn adopt(&mut self, table: GenerationTable) -> Result<()> {
        self.usable()?;
        if self.mixed().is_none() {
            return Err(StoreError::WrongState(
                "a position can only be adopted by a region marked as mixed",
            ));
        }
        if self.checkpoint.is_some() || self.checkpointed_to != self.end {
            return Err(StoreError::WrongState(
                "operations in the log must be in the extent files before a position is adopted",
            ));
        }
        self.sync()?;
        let (position, end) = (table.end(), self.end);
        let kept = table.clone();
        self.update_head(|h| {
            h.epoch += 1;
            h.epoch_start = end;
            h.synced_to = end;
            (h.tail, h.tail_seq) = (end, position.seq);
            (h.checkpointed, h.checkpointed_to) = (position, end);
            h.commit = position.seq;
            // What changed before, where both sides happened to be alike, is not known here.
            h.whole_from = h.whole_from.max(position.seq);
            h.table = kept;
        })?;
        self.records.clear();
        self.epoch = self.shared.head().state().epoch;
        (self.tail, self.tail_seq) = (end, position.seq);
        (self.checkpointed, self.checkpointed_to) = (position, end);
        (self.commit, self.durable, self.synced_to) = (position.seq, position.seq, end);
        self.trim = position.seq;
        self.table = table;
        self.rounds += 1;
        self.write_end_mark().map_err(|e| self.poisoned_by(e))?;
        self.sync().map(|_| ())
    }

    /// Takes blocks copied from a peer, as of this region's end: `blocks.seq` and `generation`
    /// are ignored, writes carry content, discards stand for blocks unwritten there. That no
    /// newer write is overwritten is the sender's to ensure, by the order of the stream. On a
    /// region that is not mixed this repairs bad copies; one that is cut off again is repaired
    /// again.
    ///
    /// # Errors
    /// As [`Store::append`].
    pub fn copy_in(&mut self, mut blocks: Entry) -> Result<()> {
        let end = self.end();
        (blocks.seq, blocks.generation) = (end.seq, end.generation);
        self.write_record(Kind::Copy, &blocks)
    }

    /// Durably ends a resync: the region is whole again at its end. Ends damage and an unsure
    /// tail, too. A copy may stand above the commit position: should it be cut off after all, the
    /// cut makes the region mixed again.
    ///
    /// # Errors
    /// The region is not mixed; not everything is durable yet; or the disk fails.
    pub fn finish_resync(&mut self) -> Result<()> {
        if self.mixed().is_none() {
            return Err(StoreError::WrongState("no resync is under way"));
        }
        if self.synced_to != self.end {
            return Err(StoreError::WrongState(
                "a resync ends with a sync; one is missing",
            ));
        }
        let copied = self.records.iter().rev().find(|r| r.kind == Kind::Copy);
        let whole_from = copied.map_or(Seq::ZERO, |r| r.position.seq);
        let commit = self.commit;
        self.update_head(|h| {
            h.mixed = None;
            h.whole_from = h.whole_from.max(whole_from);
            h.damaged = false;
            h.unsure = false;
            h.commit = commit;
        })
    }
}
