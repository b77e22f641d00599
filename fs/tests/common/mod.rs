//! A volume in memory that remembers its history, and random numbers that replay from a seed.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

pub mod model;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use trivet_replica::volume::*;

/// Blocks in memory; `history` holds every batch, in order.
pub struct MemVolume {
    id: VolumeId,
    blocks: AtomicU64,
    inner: Mutex<Inner>,
    /// Bytes that may still be given to blocks that take none.
    pub room: AtomicU64,
    /// Refuses batches that take more room than they give back.
    pub full: AtomicBool,
    /// Whether the lease is valid.
    pub held: AtomicBool,
    /// While it is locked nothing large is admitted.
    pub full_up: Mutex<()>,
    /// Large writes that have asked to be admitted.
    pub admissions: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    content: HashMap<u64, Bytes>,
    history: Vec<Batch>,
    flushed: u64,
}

impl MemVolume {
    pub fn new(blocks: u64) -> MemVolume {
        MemVolume {
            id: VolumeId::from_bytes([7; 16]),
            blocks: AtomicU64::new(blocks),
            inner: Mutex::default(),
            room: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
            held: AtomicBool::new(true),
            full_up: Mutex::default(),
            admissions: AtomicUsize::new(0),
        }
    }

    /// What a crash after `n` batches leaves.
    pub fn after(&self, n: usize) -> MemVolume {
        let copy = MemVolume::new(self.blocks.load(Ordering::Relaxed));
        let history = self.inner.lock().unwrap().history[..n].to_vec();
        for batch in history {
            copy.submit(batch).unwrap();
        }
        copy
    }

    /// An independent copy of the present content, with an empty history.
    pub fn fork(&self) -> MemVolume {
        let copy = MemVolume::new(self.blocks.load(Ordering::Relaxed));
        copy.inner.lock().unwrap().content = self.inner.lock().unwrap().content.clone();
        copy
    }

    pub fn batches(&self) -> usize {
        self.inner.lock().unwrap().history.len()
    }

    pub fn batch(&self, i: usize) -> Batch {
        self.inner.lock().unwrap().history[i].clone()
    }

    /// Number of batches that a flush has covered.
    pub fn flushed(&self) -> u64 {
        self.inner.lock().unwrap().flushed
    }

    pub fn stored(&self) -> usize {
        self.inner.lock().unwrap().content.len()
    }

    /// Damages a block.
    pub fn corrupt(&self, block: u64, at: usize) {
        let mut inner = self.inner.lock().unwrap();
        let mut data = inner
            .content
            .get(&block)
            .map_or(vec![0; 4096], |b| b.to_vec());
        data[at] ^= 0x5a;
        inner.content.insert(block, Bytes::from(data));
    }
}

impl Volume for MemVolume {
    fn info(&self) -> VolumeInfo {
        VolumeInfo {
            id: self.id,
            blocks: self.blocks.load(Ordering::Relaxed),
            generation: 1,
            losses: 0,
        }
    }

    fn space(&self) -> SpaceInfo {
        SpaceInfo {
            free_bytes: self.room.load(Ordering::Relaxed),
            pool_bytes: u64::MAX,
        }
    }

    fn holds(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    fn read(&self, block: Block, out: &mut [u8]) -> Result<(), VolumeError> {
        check_read(block, out.len(), self.info().blocks)?;
        let inner = self.inner.lock().unwrap();
        for (i, chunk) in out.chunks_mut(BLOCK_BYTES).enumerate() {
            match inner.content.get(&(block.0 + i as u64)) {
                Some(b) => chunk.copy_from_slice(b),
                None => chunk.fill(0),
            }
        }
        Ok(())
    }

    fn read_then(&self, block: Block, count: u32, done: ReadDone) {
        let mut out = vec![0; count as usize * BLOCK_BYTES];
        done(self.read(block, &mut out).map(|()| Bytes::from(out)));
    }

    fn admit(&self, _: u64) -> Admission<'_> {
        self.admissions.fetch_add(1, Ordering::AcqRel);
        drop(self.full_up.lock().unwrap());
        Admission::default()
    }

    fn submit(&self, batch: Batch) -> Result<Ticket, VolumeError> {
        batch
            .check(self.info().blocks)
            .map_err(|e| VolumeError::BadRequest(e.to_string()))?;
        if !self.held.load(Ordering::Acquire) {
            return Err(VolumeError::NotActive("not held".into()));
        }
        let mut inner = self.inner.lock().unwrap();
        if self.full.load(Ordering::Relaxed) {
            let (mut taken, mut given) = (0, 0);
            for op in &batch.ops {
                match op {
                    BatchOp::Write { block, data } => {
                        let blocks = block.0..block.0 + (data.len() / BLOCK_BYTES) as u64;
                        taken += blocks.filter(|b| !inner.content.contains_key(b)).count();
                    }
                    BatchOp::Discard { block, count } => {
                        let blocks = block.0..block.0 + count;
                        given += blocks.filter(|b| inner.content.contains_key(b)).count();
                    }
                }
            }
            if taken > given {
                return Err(VolumeError::NoSpace("full".into()));
            }
        }
        for op in &batch.ops {
            match op {
                BatchOp::Write { block, data } => {
                    for (i, c) in data.chunks(BLOCK_BYTES).enumerate() {
                        let c = Bytes::copy_from_slice(c);
                        inner.content.insert(block.0 + i as u64, c);
                    }
                }
                BatchOp::Discard { block, count } => {
                    let range = block.0..block.0 + count;
                    inner.content.retain(|b, _| !range.contains(b));
                }
            }
        }
        inner.history.push(batch);
        Ok(Ticket(Seq(inner.history.len() as u64)))
    }

    fn flush_then(&self, upto: Ticket, done: FlushDone) {
        if !self.held.load(Ordering::Acquire) {
            return done(Err(VolumeError::NotActive("not held".into())));
        }
        {
            let mut inner = self.inner.lock().unwrap();
            inner.flushed = inner.flushed.max(upto.0.0);
        }
        done(Ok(Receipt::by_flush_path(upto)));
    }

    fn last_ticket(&self) -> Ticket {
        Ticket(Seq(self.inner.lock().unwrap().history.len() as u64))
    }

    fn grow(&self, blocks: u64) -> Result<(), VolumeError> {
        self.blocks.store(blocks, Ordering::Relaxed);
        Ok(())
    }
}

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        // Mixed once: from multiples of the step, every seed would be the same numbers, shifted.
        Rng(Rng(seed).next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

/// Seeds to try: one if `TRIVET_SEED` names it, else `TRIVET_SEEDS` or `default` many.
pub fn seeds(default: u64) -> Vec<u64> {
    let var = |n| {
        std::env::var(n)
            .ok()
            .and_then(|s: String| s.parse::<u64>().ok())
    };
    match var("TRIVET_SEED") {
        Some(seed) => vec![seed],
        None => (1..=var("TRIVET_SEEDS").unwrap_or(default)).collect(),
    }
}
