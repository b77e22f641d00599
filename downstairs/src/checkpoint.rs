//! Moving committed operations from the log to the extent files, coalesced and in disk order.
//!
//! A job, run in bounded steps off the owner's lock while appends and reads go on. It works on
//! the state as of its last operation, not on the newest one: what came later stays in the log.
//! One job is a round of at most a quarter of the log, so that room comes in steps that a waiting
//! writer can bear.
//! Readers keep looking at the overlay until [`Store::finish_checkpoint`].
//!
//! Order: the head vouches for the log as far as it was synced; discards give their space back
//! first (on a full pool that is what makes room); then per extent data, then metadata; then each
//! touched file is synced; then the head says so. A crash before the head leaves extents with
//! some blocks newer than the head says, every one of which the log still describes: replay lays
//! the same content over them, and the next checkpoint writes it again.
//!
//! Bounded by the log (the list of pieces), 1 MiB of data per step, [`MAX_UNSYNCED`] open files.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use trivet_protocol::breaks::{self, Break};
use trivet_protocol::{BLOCK_BYTES, Checksum, GenerationTable, Position, Seq};

use crate::disk::Source;
use crate::error::{Result, StoreError};
use crate::extent::{Change, ExtentFile, ExtentNo};
use crate::log::record::{Logged, What};
use crate::overlay::{Overlay, Span};
use crate::store::{Running, Shared, Store, span_sums};

/// Bytes of data moved in one step, about.
const STEP_BYTES: usize = 1 << 20;
/// Touched files not yet synced, at most.
pub const MAX_UNSYNCED: usize = 64;

/// Whether a job has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call [`CheckpointJob::step`] again.
    More,
    /// Hand the job to [`Store::finish_checkpoint`].
    Done,
}

/// A part of a span that lies in one extent.
struct Piece {
    no: ExtentNo,
    first: u32,
    count: u32,
    span: Span,
}

struct Item {
    first: u32,
    count: u32,
    position: Position,
    /// Index of the first checksum; `None`: discarded.
    sums: Option<usize>,
}

enum Phase {
    Plan,
    Punch(usize),
    Move(usize),
    Sync,
    Finish,
    Done,
}

/// See the module's head.
pub struct CheckpointJob {
    shared: Arc<Shared>,
    records: Vec<Logged>,
    upto: Position,
    from_pos: u64,
    upto_pos: u64,
    tail: u64,
    tail_seq: Seq,
    table: GenerationTable,
    commit: Seq,
    synced_to: u64,
    epoch: u64,
    phase: Phase,
    pieces: Vec<Piece>,
    /// Metadata of the extent that is being written.
    items: Vec<Item>,
    sums: Vec<Checksum>,
    buf: Vec<u8>,
    touched: VecDeque<Arc<ExtentFile>>,
    /// Bytes of data moved.
    moved: u64,
    /// Blocks found without a trustworthy checksum; reads of them say so.
    lost: u64,
}

impl Store {
    fn checkpoint_target(&self) -> (Position, u64, Seq, u64) {
        let commit = if breaks::on(Break::UncommittedCheckpointed) {
            self.end().seq
        } else {
            self.commit
        };
        let limit = commit.min(self.durable);
        let n = self
            .records
            .partition_point(|r| r.position.seq <= limit && r.end() <= self.synced_to);
        // A bounded round: the log has room again when it ends. One record always is in it.
        let begun = self
            .records
            .partition_point(|r| r.pos < self.checkpointed_to);
        let most = self.checkpointed_to + self.round_bytes;
        let n = n.min((begun + 1).max(self.records.partition_point(|r| r.end() <= most)));
        let last = n.checked_sub(1).and_then(|i| self.records.get(i));
        let (upto, upto_pos) = match last {
            Some(r) if r.end() > self.checkpointed_to => (r.position, r.end()),
            _ => (self.checkpointed, self.checkpointed_to),
        };
        let n = self
            .records
            .partition_point(|r| r.position.seq <= self.trim && r.end() <= upto_pos);
        let (tail_seq, tail) = match n.checked_sub(1).and_then(|i| self.records.get(i)) {
            Some(r) => (r.position.seq, r.end()),
            None => (self.tail_seq, self.tail),
        };
        (upto, upto_pos, tail_seq, tail)
    }

    pub(crate) fn checkpoint_would_help(&self) -> bool {
        let (_, upto_pos, _, tail) = self.checkpoint_target();
        upto_pos > self.checkpointed_to || tail > self.tail
    }

    /// Begins a checkpoint of what is committed and durable here, the oldest first, about as much
    /// as [`Store::set_round_bytes`] says; `None` if there is nothing to do or one is under way.
    ///
    /// # Errors
    /// The store is poisoned.
    pub fn begin_checkpoint(&mut self) -> Result<Option<CheckpointJob>> {
        self.usable()?;
        if self.checkpoint.is_some() || !self.checkpoint_would_help() {
            return Ok(None);
        }
        let (upto, upto_pos, tail_seq, tail) = self.checkpoint_target();
        let from = self
            .records
            .partition_point(|r| r.pos < self.checkpointed_to);
        let to = self.records.partition_point(|r| r.pos < upto_pos);
        let table = table_up_to(&self.table, tail_seq);
        self.checkpoint = Some(Running { upto: upto.seq });
        self.rounds += 1;
        Ok(Some(CheckpointJob {
            shared: Arc::clone(&self.shared),
            records: self.records.range(from..to.max(from)).cloned().collect(),
            upto,
            from_pos: self.checkpointed_to,
            upto_pos,
            tail,
            tail_seq,
            table,
            commit: self.commit,
            synced_to: self.synced_to,
            epoch: self.epoch,
            phase: Phase::Plan,
            pieces: Vec::new(),
            items: Vec::new(),
            sums: Vec::new(),
            buf: Vec::new(),
            touched: VecDeque::new(),
            moved: 0,
            lost: 0,
        }))
    }

    /// Takes a checkpoint's result: what it moved is read from the extent files from now on, and
    /// the log's space is free again.
    ///
    /// # Errors
    /// The job's own. After [`StoreError::NoSpace`] the store goes on and a later checkpoint may
    /// succeed; after any other the store is poisoned.
    pub fn finish_checkpoint(&mut self, job: CheckpointJob, result: Result<Step>) -> Result<()> {
        self.checkpoint = None;
        match (result, &job.phase) {
            (Err(e @ StoreError::NoSpace { .. }), _) => {
                if self.shared.reserve.release() {
                    self.shared.recorder.count("downstairs.reserve.used", 1);
                }
                return Err(e);
            }
            (Err(e), _) => return Err(self.poisoned_by(e)),
            (Ok(_), Phase::Done) => {}
            (Ok(_), _) => return Err(StoreError::WrongState("a checkpoint was given up half way")),
        }
        self.overlay.retire(job.upto_pos);
        (self.checkpointed, self.checkpointed_to) = (job.upto, job.upto_pos);
        (self.tail, self.tail_seq) = (job.tail, job.tail_seq);
        let gone = self.records.partition_point(|r| r.pos < job.tail);
        self.records.drain(..gone);
        // An idle region keeps no memory of its busy hours.
        if self.records.len() < self.records.capacity() / 4 {
            self.records.shrink_to(2 * self.records.len());
        }
        self.refill_reserve();
        let recorder = &self.shared.recorder;
        recorder.count("downstairs.checkpoint.done", 1);
        recorder.count("downstairs.checkpoint.bytes", job.moved);
        recorder.count("downstairs.checkpoint.lost_blocks", job.lost);
        recorder.gauge("downstairs.log.used_bytes", self.end - self.tail);
        Ok(())
    }

    /// Once there is plenty of space again, some of it is set aside.
    fn refill_reserve(&self) {
        let missing = self.shared.reserve.missing();
        let plenty = |free: u64| free >= missing.saturating_mul(2);
        if missing > 0 && self.shared.disk.space().is_ok_and(|s| plenty(s.free)) {
            self.shared.reserve.fill();
        }
    }

    /// Moves all that can be moved in one go, for callers that have nothing else to do meanwhile.
    /// Returns whether there was anything to do.
    ///
    /// # Errors
    /// As [`Store::finish_checkpoint`].
    pub fn checkpoint_now(&mut self) -> Result<bool> {
        let mut any = false;
        while let Some(mut job) = self.begin_checkpoint()? {
            let result = job.run();
            self.finish_checkpoint(job, result)?;
            any = true;
        }
        Ok(any)
    }
}

/// The table as it was at `seq`; without rows if it no longer reaches back that far.
fn table_up_to(table: &GenerationTable, seq: Seq) -> GenerationTable {
    let mut cut = table.clone();
    cut.cut(seq);
    if cut.end().seq == seq {
        return cut;
    }
    GenerationTable::from_parts(seq, Vec::new()).unwrap_or_default()
}

impl CheckpointJob {
    /// Last operation that it moves.
    pub fn upto(&self) -> Position {
        self.upto
    }

    /// Bytes of log that it moves.
    pub fn log_bytes(&self) -> u64 {
        self.upto_pos - self.from_pos
    }

    /// Steps until done.
    ///
    /// # Errors
    /// As [`CheckpointJob::step`].
    pub fn run(&mut self) -> Result<Step> {
        while self.step()? == Step::More {}
        Ok(Step::Done)
    }

    /// Does a bounded part of the work.
    ///
    /// # Errors
    /// The disk fails or is full; the job is then of no more use but must still be handed to
    /// [`Store::finish_checkpoint`].
    pub fn step(&mut self) -> Result<Step> {
        match self.phase {
            Phase::Plan => {
                self.plan();
                self.vouch()?;
                self.phase = Phase::Punch(0);
            }
            Phase::Punch(at) => self.phase = self.punch(at)?,
            Phase::Move(at) => self.phase = self.move_some(at)?,
            Phase::Sync => {
                self.sync_one()?;
                if self.touched.is_empty() {
                    self.shared.extents.sync_names()?;
                    self.phase = Phase::Finish;
                }
            }
            Phase::Finish => {
                self.write_head()?;
                self.phase = Phase::Done;
            }
            Phase::Done => return Ok(Step::Done),
        }
        Ok(Step::More)
    }

    /// Works out the state as of the last operation, extent by extent.
    fn plan(&mut self) {
        let mut state = Overlay::default();
        for record in std::mem::take(&mut self.records) {
            for op in record.ops.as_slice() {
                state.put(op, &record);
            }
        }
        let extents = &self.shared.extents;
        let per = u64::from(extents.layout().blocks);
        for span in state.iter() {
            let (from, to) = (span.block, span.block + span.count);
            let mut add = |no: ExtentNo| {
                let base = u64::from(no.0) * per;
                if let Some(part) = span.clip(base, base + per) {
                    self.pieces.push(Piece {
                        no,
                        first: (part.block - base) as u32,
                        count: part.count as u32,
                        span: part,
                    });
                }
            };
            let (first, last) = (extents.locate(from).0, extents.locate(to - 1).0);
            if span.what == What::Discarded {
                // Of extents that do not exist there is nothing to discard.
                extents.existing(first, last).into_iter().for_each(&mut add);
            } else {
                (first.0..=last.0).map(ExtentNo).for_each(&mut add);
            }
        }
    }

    /// Before the first change in place, the head says how far the log was synced and that what
    /// is to be moved is committed. Without the first, a replay would look at data written in
    /// place by operations that it does not know as synced, find it changed by later ones, and
    /// take them for torn. Without the second, a restart could do a shorter checkpoint over what
    /// a longer one had begun, or a cut could take back what is half in place.
    fn vouch(&self) -> Result<()> {
        let mut head = self.shared.head();
        let state = head.state();
        let synced = state.synced_to >= self.upto_pos || state.epoch != self.epoch;
        if synced && state.commit >= self.upto.seq {
            return Ok(());
        }
        head.update(|h| {
            h.commit = h.commit.max(self.upto.seq);
            if h.epoch == self.epoch {
                h.synced_to = h.synced_to.max(self.synced_to);
            }
        })
    }

    fn punch(&mut self, from: usize) -> Result<Phase> {
        let extents = &self.shared.extents;
        for (i, piece) in self.pieces.iter().enumerate().skip(from) {
            if piece.span.what != What::Discarded {
                continue;
            }
            if let Some(file) = extents.get(piece.no)? {
                extents.punch(&file, piece.first, piece.count)?;
            }
            return Ok(Phase::Punch(i + 1));
        }
        Ok(Phase::Move(0))
    }

    /// Moves pieces of one extent from `at` on, and writes its metadata after the last one.
    fn move_some(&mut self, mut at: usize) -> Result<Phase> {
        let Some(no) = self.pieces.get(at).map(|p| p.no) else {
            return Ok(Phase::Sync);
        };
        if self.touched.len() >= MAX_UNSYNCED {
            self.sync_one()?;
        }
        let file = self.shared.extents.get_or_create(no)?;
        let mut moved = 0;
        // Data of neighbouring blocks is gathered here and written at once.
        let mut run: Option<u32> = None;
        self.buf.clear();
        while let Some(piece) = self.pieces.get(at).filter(|p| p.no == no) {
            if moved >= STEP_BYTES {
                break;
            }
            let first = piece.first;
            let next = run.map(|start| start + (self.buf.len() / BLOCK_BYTES) as u32);
            if next.is_some_and(|n| n != first) || self.buf.len() >= STEP_BYTES {
                self.write_run(&file, &mut run)?;
            }
            moved += self.take_piece(&file, at, &mut run)?;
            at += 1;
        }
        self.write_run(&file, &mut run)?;
        self.moved += moved as u64;
        if self.pieces.get(at).is_none_or(|p| p.no != no) {
            self.write_meta(&file)?;
            self.touched.push_back(file);
        }
        Ok(Phase::Move(at))
    }

    /// Notes one piece for the metadata and reads its data, if it has to be moved, behind what is
    /// already gathered.
    fn take_piece(&mut self, file: &ExtentFile, at: usize, run: &mut Option<u32>) -> Result<usize> {
        let piece = &self.pieces[at];
        let extents = &self.shared.extents;
        let (first, count, position) = (piece.first, piece.count, piece.span.position);
        let mut sums = None;
        match piece.span.what {
            What::Discarded => {
                if count == extents.layout().blocks && !piece.span.copied {
                    // Two sectors say it for the whole extent.
                    extents.clear(file, position)?;
                    return Ok(0);
                }
            }
            What::Log { .. } | What::Direct { .. } => {
                let start = self.sums.len();
                sums = Some(start);
                self.sums
                    .resize(start + count as usize, Checksum::UNWRITTEN);
                let sums = &mut self.sums[start..];
                span_sums(Source::Disk, &self.shared, &piece.span, sums)?;
            }
        }
        self.items.push(Item {
            first,
            count,
            position,
            sums,
        });
        let What::Log { data, .. } = piece.span.what else {
            return Ok(0);
        };
        run.get_or_insert(first);
        let (start, bytes) = (self.buf.len(), count as usize * BLOCK_BYTES);
        self.buf.resize(start + bytes, 0);
        self.shared.log.read(&mut self.buf[start..], data)?;
        Ok(bytes)
    }

    fn write_run(&mut self, file: &ExtentFile, run: &mut Option<u32>) -> Result<()> {
        if let Some(first) = run.take() {
            let mut parts = [IoSlice::new(&self.buf)];
            self.shared.extents.write_data(file, first, &mut parts)?;
        }
        self.buf.clear();
        Ok(())
    }

    fn write_meta(&mut self, file: &ExtentFile) -> Result<()> {
        let sums = &self.sums;
        let changes: Vec<Change<'_>> = self
            .items
            .iter()
            .map(|item| Change {
                first: item.first,
                count: item.count,
                position: item.position,
                sums: item.sums.map(|at| &sums[at..at + item.count as usize]),
            })
            .collect();
        self.lost += self.shared.extents.update(file, &changes)?;
        self.items.clear();
        self.sums.clear();
        Ok(())
    }

    fn sync_one(&mut self) -> Result<()> {
        match self.touched.pop_front() {
            Some(file) => self.shared.extents.sync(&file),
            None => Ok(()),
        }
    }

    fn write_head(&mut self) -> Result<()> {
        let table = std::mem::take(&mut self.table);
        self.shared.head().update(|h| {
            (h.checkpointed, h.checkpointed_to) = (self.upto, self.upto_pos);
            (h.tail, h.tail_seq) = (self.tail, self.tail_seq);
            h.commit = h.commit.max(self.commit);
            // After a cut the positions behind it are of another history.
            if h.epoch == self.epoch {
                h.synced_to = h.synced_to.max(self.synced_to);
            }
            h.table = table;
        })
    }
}
