//! A region under random use and random misfortune, beside a model that knows every history.
//!
//! One seed is one world: what is appended, which jobs are held over other operations, where the
//! power goes off and what of the unsynced writes is kept. The model keeps the content after each
//! operation; after every restart the region must show one of these, not older than what it had
//! called durable.
//!
//! For tests, and for `make mutants`, which has it look for rules of the store that are off.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use trivet_protocol::entry::{Batch, BatchOp};
use trivet_protocol::{
    BLOCK_BYTES, Block, Checksum, Entry, GenerationTable, MemberId, NullRecorder, Op, Seq, VolumeId,
};

use crate::checkpoint::{CheckpointJob, Step};
use crate::disk::Disk;
use crate::disk::sim::{Rng, SimDisk};
use crate::error::StoreError;
use crate::log::replay::Tail;
use crate::region::Region;
use crate::store::{Blocks, ReadJob, Store, SyncJob};

const BLOCKS: u64 = 220;
const VOLUME: VolumeId = VolumeId(uuid::Uuid::from_u128(7));

/// What was wrong, if anything was.
pub type Failure = Result<(), String>;

macro_rules! ensure {
    ($ok:expr, $($why:tt)*) => {
        if !$ok {
            return Err(format!($($why)*));
        }
    };
}

/// Tag of the content of each block; 0: unwritten.
type Content = Vec<u64>;

struct World {
    rng: Rng,
    disk: SimDisk,
    store: Store,
    /// Operations of the one history, and the content after each (index 0: before the first).
    history: Vec<Entry>,
    states: Vec<Content>,
    /// Being appended: an append that fails may be in the log all the same.
    attempted: Option<Entry>,
    tag: u64,
    generation: u64,
    /// Operations that can no longer be cut: some quorum has them.
    committed: u64,
    durable: u64,
    syncs: Vec<SyncJob>,
    checkpoint: Option<CheckpointJob>,
    read: Option<(ReadJob, u64, u32)>,
    member: Vec<Vec<u8>>,
    opens: u64,
    /// A checkpoint may have begun to move operations up to here.
    moved: Seq,
    pub log: Vec<String>,
}

fn content_of(tag: u64) -> Vec<u8> {
    tag.to_le_bytes().repeat(BLOCK_BYTES / 8)
}

fn apply(content: &mut Content, entry: &Entry) {
    let mut blocks = entry.data.iter().flat_map(|s| s.chunks_exact(BLOCK_BYTES));
    for op in &entry.ops {
        match *op {
            Op::Write { block, count } => {
                for b in block.0..block.0 + u64::from(count) {
                    let data = blocks.next().unwrap();
                    content[b as usize] = u64::from_le_bytes(data[..8].try_into().unwrap());
                }
            }
            Op::Discard { block, count } => {
                content[block.0 as usize..(block.0 + count) as usize].fill(0);
            }
        }
    }
}

/// One world of so many steps.
///
/// # Errors
/// What was wrong, with the steps that led there.
pub fn run(seed: u64, steps: u64) -> Failure {
    let mut rng = Rng(seed);
    let disk = SimDisk::new();
    let mut region = Region::new(VOLUME, MemberId::from_bytes([3; 16]), BLOCKS);
    region.extent_blocks = [16, 48, 64][rng.below(3) as usize];
    region.log_bytes = [128, 256, 1024][rng.below(3) as usize] * 1024;
    let dir: Arc<dyn Disk> = Arc::new(disk.dir());
    Store::create(&dir, &region).map_err(|e| e.to_string())?;
    let (store, _) = Store::open(dir, None, Arc::new(NullRecorder)).map_err(|e| e.to_string())?;
    let mut world = World {
        rng,
        disk,
        store,
        history: Vec::new(),
        states: vec![vec![0; BLOCKS as usize]],
        attempted: None,
        tag: 0,
        generation: 1,
        committed: 0,
        durable: 0,
        syncs: Vec::new(),
        checkpoint: None,
        read: None,
        member: vec![Vec::new()],
        opens: 1,
        moved: Seq(0),
        log: Vec::new(),
    };
    let mut failure = Ok(());
    for _ in 0..steps {
        let step = std::panic::catch_unwind(AssertUnwindSafe(|| world.step()));
        failure = step.unwrap_or_else(|_| Err("a panic".to_owned()));
        if failure.is_err() {
            break;
        }
    }
    failure.map_err(|why| {
        let from = world.log.len().saturating_sub(120);
        format!("seed {seed}: {why}\n  {}", world.log[from..].join("\n  "))
    })
}

impl World {
    fn say(&mut self, what: String) {
        self.log.push(what);
    }

    fn end(&self) -> u64 {
        self.history.len() as u64
    }

    fn step(&mut self) -> Failure {
        match self.rng.below(100) {
            0..38 => self.append(),
            38..46 => self.begin_sync(),
            46..54 => self.finish_sync(),
            54..62 => self.commit(),
            62..76 => self.checkpoint(),
            76..82 => self.check_some(),
            82..86 => self.held_read(),
            86..88 => self.entries(),
            88..91 => self.cut(),
            91..93 => self.member_state(),
            93..95 => self.plan_misfortune(),
            95..98 => self.restart(),
            _ => Ok(()),
        }
    }

    fn entry(&mut self) -> Entry {
        let mut ops = Vec::new();
        let n = [1, 1, 1, 1, 2, 3, 0][self.rng.below(7) as usize];
        for _ in 0..n {
            let long = self.rng.one_in(3);
            let block = self.rng.below(BLOCKS);
            let most = if long && n == 1 { 25 } else { 4 };
            let count = (1 + self.rng.below(most)).min(BLOCKS - block);
            if self.rng.one_in(3) {
                let count = (1 + self.rng.below(120)).min(BLOCKS - block);
                ops.push(BatchOp::Discard {
                    block: Block(block),
                    count,
                });
            } else {
                let mut data = Vec::new();
                for _ in 0..count {
                    self.tag += 1;
                    data.extend_from_slice(&content_of(self.tag));
                }
                ops.push(BatchOp::Write {
                    block: Block(block),
                    data: Bytes::from(data),
                });
            }
        }
        if self.rng.one_in(12) {
            self.generation += 1 + self.rng.below(2);
        }
        Entry::new(VOLUME, Seq(self.end() + 1), self.generation, Batch { ops })
    }

    fn append(&mut self) -> Failure {
        let at = self.store.end().seq.0;
        if at < self.end() {
            // Leveling: what was committed before a crash took it from here comes again.
            let entry = self.history[at as usize].clone();
            return self.offer(&entry).map(|_| ());
        }
        let entry = self.entry();
        self.say(format!(
            "append {} g{} {:?}",
            entry.seq, entry.generation, entry.ops
        ));
        self.attempted = Some(entry.clone());
        if self.offer(&entry)? {
            self.take(entry);
        }
        self.attempted = None;
        Ok(())
    }

    fn take(&mut self, entry: Entry) {
        let mut content = self.states.last().unwrap().clone();
        apply(&mut content, &entry);
        self.states.push(content);
        self.history.push(entry);
    }

    /// Whether it was taken.
    fn offer(&mut self, entry: &Entry) -> Result<bool, String> {
        match self.store.append(entry) {
            Ok(()) => Ok(true),
            Err(StoreError::LogFull { .. }) if self.rng.one_in(2) => Ok(false),
            Err(StoreError::LogFull { .. }) => {
                self.say("make room".to_owned());
                let opens = self.opens;
                self.make_room()?;
                if self.opens != opens {
                    return Ok(false);
                }
                match self.store.append(entry) {
                    Ok(()) => Ok(true),
                    Err(e) => self.failed(e).map(|()| false),
                }
            }
            Err(e) => self.failed(e).map(|()| false),
        }
    }

    /// Whatever fills the log, sync, commit, trim and a checkpoint must empty it.
    fn make_room(&mut self) -> Failure {
        if self.checkpoint.is_some() {
            self.drive_checkpoint(u64::MAX)?;
        }
        if let Err(e) = self.store.sync() {
            return self.failed(e);
        }
        self.durable = self.store.durable().seq.0;
        self.committed = self.committed.max(self.store.end().seq.0);
        self.store.set_commit(Seq(self.committed));
        self.store.set_trim(Seq(self.committed));
        match self.store.checkpoint_now() {
            Ok(_) => {
                let used = self.store.log_usage().0;
                ensure!(used == 0, "{used} bytes stay in a log that nobody needs");
                Ok(())
            }
            Err(e) => self.failed(e),
        }
    }

    fn begin_sync(&mut self) -> Failure {
        if self.syncs.len() < 3 {
            match self.store.begin_sync() {
                Ok(job) => self.syncs.push(job),
                Err(e) => return self.failed(e),
            }
        }
        Ok(())
    }

    fn finish_sync(&mut self) -> Failure {
        if self.syncs.is_empty() {
            return Ok(());
        }
        let i = self.rng.below(self.syncs.len() as u64) as usize;
        let job = self.syncs.remove(i);
        let result = job.run();
        match self.store.finish_sync(job, result) {
            Ok(durable) => {
                self.durable = durable.0;
                self.say(format!("durable {durable}"));
                Ok(())
            }
            Err(e) => self.failed(e),
        }
    }

    fn commit(&mut self) -> Failure {
        // Other replicas may have made more durable than this one.
        let end = self.store.end().seq.0;
        if self.store.end().seq.0 == self.end() && self.committed < end {
            self.committed += 1 + self.rng.below(end - self.committed);
        }
        self.store.set_commit(Seq(self.committed));
        if self.rng.one_in(2) {
            self.store.set_trim(Seq(self.rng.below(self.committed + 1)));
        }
        self.say(format!("commit {}", self.committed));
        Ok(())
    }

    fn checkpoint(&mut self) -> Failure {
        if self.checkpoint.is_some() {
            let steps = 1 + self.rng.below(12);
            return self.drive_checkpoint(steps);
        }
        match self.store.begin_checkpoint() {
            Ok(job) => self.checkpoint = job,
            Err(e) => return self.failed(e),
        }
        if let Some(upto) = self.checkpoint.as_ref().map(CheckpointJob::upto) {
            self.moved = self.moved.max(upto.seq);
            self.say(format!("checkpoint up to {}", upto.seq));
        }
        Ok(())
    }

    fn drive_checkpoint(&mut self, steps: u64) -> Failure {
        let Some(mut job) = self.checkpoint.take() else {
            return Ok(());
        };
        for _ in 0..steps {
            let result = job.step();
            if matches!(result, Ok(Step::More)) {
                continue;
            }
            self.say("checkpoint ends".to_owned());
            return match self.store.finish_checkpoint(job, result) {
                Ok(()) => self.check_all(),
                Err(e) => self.failed(e),
            };
        }
        self.checkpoint = Some(job);
        Ok(())
    }

    fn cut(&mut self) -> Failure {
        let at = self.store.end().seq.0;
        if at < self.end() || self.committed >= at {
            return Ok(());
        }
        let to = self.committed + self.rng.below(at - self.committed);
        self.say(format!("cut to {to}"));
        // From here on a crash may leave it cut or not.
        self.durable = self.durable.min(to);
        if let Err(e) = self.store.cut(Seq(to)) {
            return self.failed(e);
        }
        self.history.truncate(to as usize);
        self.states.truncate(to as usize + 1);
        self.durable = to;
        ensure!(self.store.end().seq.0 == to, "cut to {to} ended elsewhere");
        ensure!(
            self.store.durable().seq.0 == to,
            "what a cut leaves is durable"
        );
        self.generation += 1;
        self.check_all()
    }

    fn member_state(&mut self) -> Failure {
        let state: Vec<u8> = (0..self.rng.below(600)).map(|i| i as u8).collect();
        match self.store.set_member_state(state.clone()) {
            Ok(()) => self.member = vec![state],
            Err(e) => {
                // It may have arrived all the same.
                self.member.push(state);
                return self.failed(e);
            }
        }
        Ok(())
    }

    fn plan_misfortune(&mut self) -> Failure {
        let after = self.rng.below(50);
        match self.rng.below(6) {
            0..4 => self.disk.power_off_after(after),
            4 => self.disk.fail(
                "sync",
                ["log", "e/", "head"][self.rng.below(3) as usize],
                0,
                1,
            ),
            _ => self.disk.fail(
                "write",
                ["log", "e/", "head"][self.rng.below(3) as usize],
                2,
                1,
            ),
        }
        self.say("misfortune ahead".to_owned());
        Ok(())
    }

    /// An error that the disk's misfortune explains ends in a restart; others are failures.
    fn failed(&mut self, e: StoreError) -> Failure {
        match e {
            StoreError::Io { .. } | StoreError::Poisoned { .. } => {
                self.say(format!("failed: {e}"));
                self.restart()
            }
            other => Err(format!("refused: {other}")),
        }
    }

    fn restart(&mut self) -> Failure {
        self.syncs.clear();
        self.checkpoint = None;
        self.read = None;
        let mut tries = 0;
        loop {
            let power = self.disk.power_left().is_some();
            let crash = power || self.rng.one_in(2);
            if crash {
                let seed = self.rng.draw();
                self.disk.crash(seed);
            } else {
                self.disk.heal();
            }
            self.say(format!(
                "restart, {}",
                if crash { "power cut" } else { "kill" }
            ));
            // Sometimes the power goes again while opening.
            if self.rng.one_in(4) && tries < 3 {
                self.disk.power_off_after(self.rng.below(25));
            }
            tries += 1;
            let recorder = Arc::new(NullRecorder);
            match Store::open(Arc::new(self.disk.dir()), None, recorder) {
                Ok((store, report)) => {
                    if matches!(report.tail, Tail::Damaged(_)) {
                        return Err(format!("an honest disk, but {:?}", report.tail));
                    }
                    self.store = store;
                    return self.check_restart();
                }
                Err(StoreError::Io { .. } | StoreError::Poisoned { .. }) if tries < 5 => {
                    self.say("failed to open".to_owned());
                    continue;
                }
                Err(e) => return Err(format!("does not open: {e}")),
            }
        }
    }

    fn check_restart(&mut self) -> Failure {
        let end = self.store.end().seq.0;
        self.say(format!("opened at #{end}"));
        ensure!(
            end >= self.durable,
            "durable was #{}, now #{end}",
            self.durable
        );
        if let Some(entry) = self.attempted.take().filter(|_| end == self.end() + 1) {
            self.take(entry);
        }
        ensure!(end <= self.end(), "#{end} was never appended");
        ensure!(
            self.store.opens() > self.opens,
            "the opens counter stood still"
        );
        self.opens = self.store.opens();
        let state = self.store.member_state();
        ensure!(
            self.member.contains(&state),
            "the member's state was never that"
        );
        self.member = vec![state];
        self.durable = end;
        if end >= self.committed {
            self.history.truncate(end as usize);
            self.states.truncate(end as usize + 1);
            self.generation += self.rng.below(2);
        }
        let mut table = GenerationTable::default();
        for e in &self.history[..end as usize] {
            table.extend(e.generation, e.seq);
        }
        ensure!(
            *self.store.generation_table() == table,
            "another generation table"
        );
        self.check_all()
    }

    fn check_blocks(&self, first: u64, got: &Blocks) -> Failure {
        let content = &self.states[self.store.end().seq.0 as usize];
        for (i, data) in got.data.chunks_exact(BLOCK_BYTES).enumerate() {
            let (block, want) = (first + i as u64, content[first as usize + i]);
            let have = u64::from_le_bytes(data[..8].try_into().unwrap());
            ensure!(have == want, "block {block} holds {have}, not {want}");
            let sum = got.sums[i];
            if want == 0 {
                ensure!(sum.is_unwritten(), "block {block} is not unwritten");
            } else {
                let right = Checksum::of(VOLUME, Block(block), data);
                ensure!(sum == right, "block {block} does not verify");
            }
        }
        Ok(())
    }

    fn check_all(&mut self) -> Failure {
        match self.store.read(Block(0), BLOCKS as u32) {
            Ok(got) => self.check_blocks(0, &got),
            Err(e) => self.failed(e),
        }
    }

    fn check_some(&mut self) -> Failure {
        let block = self.rng.below(BLOCKS);
        let count = 1 + self.rng.below((BLOCKS - block).min(40)) as u32;
        let got = self
            .store
            .read(Block(block), count)
            .map_err(|e| e.to_string())?;
        let sums = self
            .store
            .checksums(Block(block), count)
            .map_err(|e| e.to_string())?;
        ensure!(sums == got.sums, "two answers about the same checksums");
        self.check_blocks(block, &got)
    }

    /// A read planned some steps ago: if it still counts, it must be right as of some moment
    /// since then; here nothing but the blocks themselves is compared, by checksum.
    fn held_read(&mut self) -> Failure {
        if let Some((job, first, count)) = self.read.take() {
            let got = job.run().map_err(|e| e.to_string())?;
            if self.store.still_valid(&job) {
                for i in 0..count as usize {
                    let (block, sum) = (first + i as u64, got.sums[i]);
                    let data = &got.data[i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES];
                    let right = Checksum::of(VOLUME, Block(block), data);
                    let zero = sum.is_unwritten() && data.iter().all(|b| *b == 0);
                    ensure!(zero || sum == right, "held read of block {block} is torn");
                }
            }
            return Ok(());
        }
        let block = self.rng.below(BLOCKS);
        let count = 1 + self.rng.below((BLOCKS - block).min(40)) as u32;
        let job = self
            .store
            .begin_read(Block(block), count)
            .map_err(|e| e.to_string())?;
        self.read = Some((job, block, count));
        Ok(())
    }

    fn entries(&mut self) -> Failure {
        let (tail, end) = (self.store.tail().0, self.store.end().seq.0);
        if tail == end {
            return Ok(());
        }
        let from = tail + 1 + self.rng.below(end - tail);
        match self.store.entries_from(Seq(from), 100_000) {
            Ok(entries) => {
                ensure!(!entries.is_empty(), "no entries from {from}");
                for (i, e) in entries.iter().enumerate() {
                    let want = &self.history[from as usize - 1 + i];
                    let same = (e.seq, e.generation, &e.ops, &e.sums)
                        == (want.seq, want.generation, &want.ops, &want.sums)
                        && e.contiguous_data() == want.contiguous_data();
                    ensure!(same, "entry {} reads back differently", want.seq);
                }
                Ok(())
            }
            // Written in place, checkpointed, overwritten by a later checkpoint.
            Err(StoreError::NotInLog(seq)) => {
                let moved = self.moved.max(self.store.checkpointed().seq);
                ensure!(seq <= moved, "{seq} should be in the log");
                Ok(())
            }
            Err(e) => self.failed(e),
        }
    }
}
