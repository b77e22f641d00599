//! One replica's region: the log, the extent files beneath it, and the head that ties them.
//!
//! The store is one owner's state: whoever holds it calls [`Store::append`] and the rest one at a
//! time. What takes long is handed out as a job that runs without the store and is then handed
//! back: [`SyncJob`], [`ReadJob`], [`CheckpointJob`](crate::checkpoint::CheckpointJob). No clock,
//! no random number, no thread in here.
//!
//! Invariants, with the inequality between the positions stated once:
//! - `tail <= checkpointed <= min(commit, durable)` and `durable <= end` (operations).
//! - Nothing above the commit position is in the extent files' metadata, so [`Store::cut`] can
//!   take back every operation that a history that lost still had.
//! - A block is written in place only if the overlay has nothing about it and its metadata says
//!   unwritten: then nothing in the log has still to be done to it, and no reader looks there.
//! - After the first failed write or sync of the log, or sync of an extent file, the store is
//!   poisoned: it reads, and does nothing else.
//!
//! What a crash leaves behind: head, log and extent files; [`Store::open`] says what it found.
//! Bounded by: the log's size (overlay and record list), [`crate::extent`]'s open files.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trivet_protocol::{GenerationTable, Position, Recorder, Seq};

use crate::disk::{Disk, Space};
use crate::error::{Result, StoreError};
use crate::extent::{ExtentFile, Extents};
use crate::head::{Head, HeadState};
use crate::log::record::Logged;
use crate::log::{Log, MARGIN};
use crate::overlay::Overlay;
use crate::region::Region;

mod append;
mod history;
mod open;
mod read;
pub(crate) mod reserve;
mod resync;
mod scrub;
mod sync;

pub use open::{OpenReport, Reopen};
pub(crate) use read::span_sums;
pub use read::{Blocks, ReadJob};
use reserve::Reserve;
pub use resync::{ChangedGroup, Cursor};
pub use scrub::ScrubJob;
pub use sync::{SyncJob, Synced};

/// Fresh writes of at least this many blocks go straight to the extent files: 64 KiB.
pub const DIRECT_BLOCKS: u64 = 16;

/// What store and jobs share.
pub(crate) struct Shared {
    pub disk: Arc<dyn Disk>,
    pub region: Region,
    pub seed: u32,
    pub log: Log,
    pub extents: Extents,
    pub head: Mutex<Head>,
    pub reserve: Reserve,
    pub recorder: Arc<dyn Recorder>,
}

impl Shared {
    pub fn head(&self) -> MutexGuard<'_, Head> {
        // An update replaces the state in one assignment at its end: a panic leaves the old one.
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A checkpoint that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub upto: Seq,
}

/// See the module's head.
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    pub(crate) overlay: Overlay,
    pub(crate) records: VecDeque<Logged>,
    /// Byte position after the last record.
    pub(crate) end: u64,
    pub(crate) table: GenerationTable,
    pub(crate) tail: u64,
    pub(crate) tail_seq: Seq,
    pub(crate) checkpointed: Position,
    pub(crate) checkpointed_to: u64,
    pub(crate) commit: Seq,
    pub(crate) trim: Seq,
    pub(crate) synced_to: u64,
    pub(crate) durable: Seq,
    pub(crate) epoch: u64,
    pub(crate) blocks: u64,
    /// Extent files with data written in place, and the record that it was last written for;
    /// they stay here until a sync that covers that record has finished. (Taking them out when a
    /// sync begins let a second sync, finishing first, call data durable that only the first one
    /// was going to sync.)
    pub(crate) dirty: BTreeMap<u32, (Arc<ExtentFile>, u64)>,
    pub(crate) checkpoint: Option<Running>,
    /// Bytes of log that one checkpoint moves, about.
    pub(crate) round_bytes: u64,
    /// Goes up when a checkpoint begins and when history is cut: what a read planned before may
    /// have moved.
    pub(crate) rounds: u64,
    pub(crate) poison: Option<String>,
    held: append::Held,
}

impl Store {
    /// Who the region is.
    pub fn region(&self) -> &Region {
        &self.shared.region
    }

    /// Size of the volume in blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// How often the region has been opened, this time included.
    pub fn opens(&self) -> u64 {
        self.shared.head().state().opens
    }

    /// End of the history that this replica holds.
    pub fn end(&self) -> Position {
        self.table.end()
    }

    /// Last operation that survives a power cut here.
    pub fn durable(&self) -> Position {
        self.position_of(self.durable)
    }

    /// Last operation known to be durable on enough replicas.
    pub fn commit(&self) -> Seq {
        self.commit
    }

    /// Last operation that is in the extent files.
    pub fn checkpointed(&self) -> Position {
        self.checkpointed
    }

    /// Last operation that the log no longer holds.
    pub fn tail(&self) -> Seq {
        self.tail_seq
    }

    /// Where each generation ended.
    pub fn generation_table(&self) -> &GenerationTable {
        &self.table
    }

    /// Whether a resync was begun and not finished: content is of several moments. Carries the
    /// last position common with the history being copied, if there was one.
    pub fn mixed(&self) -> Option<Option<Seq>> {
        self.shared.head().state().mixed
    }

    /// Whether the end of the log was found unsure and no activation has settled it since.
    pub fn unsure(&self) -> bool {
        self.shared.head().state().unsure
    }

    /// Whether something synced was lost; only a resync ends this.
    pub fn damaged(&self) -> bool {
        self.shared.head().state().damaged
    }

    /// Why the store refuses to go on, if it does.
    pub fn poisoned(&self) -> Option<&str> {
        self.poison.as_deref()
    }

    /// The member's state, as last set.
    pub fn member_state(&self) -> Vec<u8> {
        self.shared.head().state().member.clone()
    }

    /// Replaces the member's state; durable when it returns.
    ///
    /// # Errors
    /// It is larger than [`crate::head::MAX_MEMBER_STATE`], or the disk fails.
    pub fn set_member_state(&mut self, state: Vec<u8>) -> Result<()> {
        if state.len() > crate::head::MAX_MEMBER_STATE {
            let why = format!("a member state of {} bytes", state.len());
            return Err(StoreError::corrupt(crate::head::FILE, why));
        }
        self.update_head(|h| h.member = state)
    }

    /// An activation has heard enough replicas to settle where the history ends; durable.
    ///
    /// # Errors
    /// The disk fails.
    pub fn settle_tail(&mut self) -> Result<()> {
        if !self.unsure() {
            return Ok(());
        }
        self.update_head(|h| h.unsure = false)
    }

    /// Enlarges the region; durable when it returns. A size not above the present one is no
    /// change.
    ///
    /// # Errors
    /// Too large, or the disk fails.
    pub fn grow(&mut self, blocks: u64) -> Result<()> {
        if blocks <= self.blocks {
            return Ok(());
        }
        let mut grown = self.region().clone();
        grown.blocks = blocks;
        grown.check()?;
        self.update_head(|h| h.blocks = blocks)?;
        self.blocks = blocks;
        Ok(())
    }

    /// Operations up to here are durable on enough replicas. Never goes down.
    pub fn set_commit(&mut self, commit: Seq) {
        self.commit = self.commit.max(commit.min(self.end().seq));
    }

    /// No peer needs operations up to here from this log any more. Never goes down; nothing is
    /// given up before it is set.
    pub fn set_trim(&mut self, trim: Seq) {
        self.trim = self.trim.max(trim);
    }

    /// Whether everything in the log is durable here.
    pub fn all_synced(&self) -> bool {
        self.synced_to >= self.end
    }

    /// Whether everything in the log is in the extent files.
    pub fn log_is_moved(&self) -> bool {
        self.checkpoint.is_none() && self.checkpointed_to == self.end
    }

    /// Bytes of the log in use, and its size.
    pub fn log_usage(&self) -> (u64, u64) {
        (self.end - self.tail, self.shared.log.ring())
    }

    /// Bytes of log that records may still take before [`StoreError::LogFull`].
    pub fn log_free(&self) -> u64 {
        let (used, ring) = self.log_usage();
        ring.saturating_sub(used + MARGIN)
    }

    /// Whether a checkpoint should be begun: three eighths of the log are full and one would help.
    /// Early enough for writers to go on meanwhile, and late enough for what is written over and
    /// over to be moved once.
    pub fn wants_checkpoint(&self) -> bool {
        let (used, ring) = self.log_usage();
        used >= ring / 8 * 3 && self.checkpoint.is_none() && self.checkpoint_would_help()
    }

    /// From now on a checkpoint moves about so many bytes of log, within [`Store::round_range`]:
    /// what a writer waits for while the log is full.
    pub fn set_round_bytes(&mut self, bytes: u64) {
        let range = self.round_range();
        self.round_bytes = bytes.clamp(*range.start(), *range.end());
    }

    /// What a checkpoint may move at once: a sixty-fourth to a quarter of the log.
    pub fn round_range(&self) -> std::ops::RangeInclusive<u64> {
        let ring = self.shared.log.ring();
        ring / 64..=ring / 4
    }

    /// Room for new data: what the pool has, less what is in the log and not yet in the extent
    /// files, less a reserve for metadata, less what is missing from the region's own reserve.
    ///
    /// # Errors
    /// The disk fails.
    pub fn free_space(&self) -> Result<Space> {
        let disk = &self.shared.disk;
        let space = disk
            .space()
            .map_err(|e| StoreError::io("ask for space in", "the pool", e))?;
        let ring = self.shared.log.ring();
        // On a copy-on-write pool the log itself takes new space with each lap.
        let reserve = self.end.saturating_sub(self.checkpointed_to) + ring / 8 + (4 << 20);
        let reserve = reserve + self.shared.reserve.missing();
        Ok(Space {
            free: space.free.saturating_sub(reserve),
            total: space.total,
            copies_on_write: space.copies_on_write,
        })
    }

    /// What opens this region anew after its disk failed; to be run while no job of this store is
    /// under way, and without holding it.
    pub fn reopen(&self) -> Reopen {
        Reopen::new(&self.shared)
    }

    /// Takes the place of another store of the same region: nothing that was planned on that one
    /// is taken for valid here.
    pub fn succeed(&mut self, other: &Store) {
        self.rounds = other.rounds + 1;
    }

    /// Closes the region in order: the next opening finds everything synced.
    ///
    /// # Errors
    /// The disk fails; the region is then as after a crash.
    pub fn close(mut self) -> Result<()> {
        let job = self.begin_sync()?;
        let synced = job.run();
        self.finish_sync(job, synced)?;
        let (end, commit) = (self.end, self.commit);
        self.update_head(|h| {
            h.clean = true;
            h.synced_to = end;
            h.commit = commit;
        })
    }

    pub(crate) fn position_of(&self, seq: Seq) -> Position {
        if seq == self.checkpointed.seq {
            return self.checkpointed;
        }
        Position {
            generation: self.table.generation_of(seq).unwrap_or(0),
            seq,
        }
    }

    pub(crate) fn update_head(&mut self, change: impl FnOnce(&mut HeadState)) -> Result<()> {
        self.usable()?;
        let done = self.shared.head().update(change);
        done.map_err(|e| self.poisoned_by(e))
    }

    pub(crate) fn usable(&self) -> Result<()> {
        match &self.poison {
            None => Ok(()),
            Some(why) => Err(StoreError::Poisoned { why: why.clone() }),
        }
    }

    /// Notes that the disk can no longer be trusted; hands the error back. A full disk can be:
    /// the same write is offered again or never counted.
    pub(crate) fn poisoned_by(&mut self, e: StoreError) -> StoreError {
        match e {
            StoreError::NoSpace { .. } => e,
            _ => self.poison_hard(e),
        }
    }

    /// The same where a full disk is no better than a failed one.
    pub(crate) fn poison_hard(&mut self, e: StoreError) -> StoreError {
        if self.poison.is_none() {
            self.shared.recorder.count("downstairs.store.poisoned", 1);
            self.poison = Some(e.to_string());
        }
        e
    }
}
