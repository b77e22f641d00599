//! What the tests of this crate share: random numbers that replay from a seed, and a volume whose
//! lease is lost, and whose flushes are held up, on command.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use trivet_replica::volume::*;

use crate::{Fs, MkfsOptions, Settings, mkfs};

/// A volume in a file that is gone when it is dropped.
pub struct HeldVolume {
    inner: PlainVolume,
    held: AtomicBool,
    /// Flushes that wait to be let go; `None` while none is held up.
    flushes: Mutex<Option<Vec<(Ticket, FlushDone)>>>,
}

impl HeldVolume {
    /// Of 4,096 blocks.
    pub fn new() -> HeldVolume {
        HeldVolume::of(4096)
    }

    /// Of so many blocks.
    pub fn of(blocks: u64) -> HeldVolume {
        let dir = tempfile::tempdir().unwrap();
        let id = VolumeId::from_bytes([3; 16]);
        HeldVolume {
            inner: PlainVolume::open(&dir.path().join("volume"), id, blocks).unwrap(),
            held: AtomicBool::new(true),
            flushes: Mutex::new(None),
        }
    }

    /// Lets the flushes that are held up come to their end, and holds up those that follow.
    pub fn hold_flushes(&self) -> usize {
        let waiting = self.flushes.lock().unwrap().replace(Vec::new());
        let waiting = waiting.unwrap_or_default();
        let count = waiting.len();
        for (upto, done) in waiting {
            self.inner.flush_then(upto, done);
        }
        count
    }

    /// How many flushes are held up.
    pub fn flushes(&self) -> usize {
        self.flushes.lock().unwrap().as_ref().map_or(0, Vec::len)
    }

    /// Loses the lease, or has it back.
    pub fn hold(&self, on: bool) {
        self.held.store(on, Ordering::Release);
    }
}

impl Volume for HeldVolume {
    fn info(&self) -> VolumeInfo {
        self.inner.info()
    }
    fn space(&self) -> SpaceInfo {
        self.inner.space()
    }
    fn holds(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }
    fn read(&self, block: Block, out: &mut [u8]) -> Result<(), VolumeError> {
        self.inner.read(block, out)
    }
    fn read_then(&self, block: Block, count: u32, done: ReadDone) {
        self.inner.read_then(block, count, done);
    }
    fn submit(&self, batch: Batch) -> Result<Ticket, VolumeError> {
        match self.holds() {
            true => self.inner.submit(batch),
            false => Err(VolumeError::NotActive("not held".into())),
        }
    }
    fn flush_then(&self, upto: Ticket, done: FlushDone) {
        if let Some(waiting) = &mut *self.flushes.lock().unwrap() {
            return waiting.push((upto, done));
        }
        self.inner.flush_then(upto, done);
    }
    fn last_ticket(&self) -> Ticket {
        self.inner.last_ticket()
    }
    fn grow(&self, blocks: u64) -> Result<(), VolumeError> {
        self.inner.grow(blocks)
    }
}

/// An empty file system on a volume.
pub fn fs_on(volume: Arc<dyn Volume>) -> Arc<Fs> {
    mkfs(&*volume, &MkfsOptions::default()).unwrap();
    Fs::mount(volume, Settings::default()).unwrap()
}

/// A small, empty file system.
pub fn small_fs() -> Arc<Fs> {
    fs_on(Arc::new(HeldVolume::new()))
}

/// A small generator (SplitMix64): the same seed gives the same numbers for ever.
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Rng {
        // Mixed once: from multiples of the step, every seed would be the same numbers, shifted.
        Rng(Rng(seed).next())
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (which is at least 1).
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// How many seeds to try: `TRIVET_SEEDS` if set, else `default`.
pub fn seeds(default: u64) -> u64 {
    std::env::var("TRIVET_SEEDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(default)
}
