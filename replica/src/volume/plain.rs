//! A volume in one plain file: no replication, no log, no atomic batches across a crash.
//!
//! Kept as the benchmark's limit and for tests of the layers above. A power cut may leave any
//! mixture of the batches since the last flush; nobody's data belongs here. Checksums are neither
//! made nor checked.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::FallocateFlags;

use super::{
    BLOCK_BYTES, Batch, BatchOp, Block, FlushDone, ReadDone, Receipt, Seq, SpaceInfo, Ticket,
    Volume, VolumeError, VolumeId, VolumeInfo, check_read,
};

/// See the module's head.
pub struct PlainVolume {
    file: File,
    id: VolumeId,
    blocks: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Seq,
    /// The first failed sync poisons the volume: what the kernel dropped cannot be synced again.
    poisoned: Option<String>,
}

fn io(e: impl std::fmt::Display) -> VolumeError {
    VolumeError::Io(e.to_string())
}

impl PlainVolume {
    /// Opens or creates the file and gives it `blocks` blocks, or its own size if larger.
    ///
    /// # Errors
    /// The file cannot be opened or sized.
    pub fn open(path: &Path, id: VolumeId, blocks: u64) -> std::io::Result<PlainVolume> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let have = file.metadata()?.len() / BLOCK_BYTES as u64;
        let blocks = blocks.max(have);
        file.set_len(blocks * BLOCK_BYTES as u64)?;
        let (blocks, state) = (AtomicU64::new(blocks), Mutex::default());
        Ok(PlainVolume {
            file,
            id,
            blocks,
            state,
        })
    }

    fn apply(&self, op: &BatchOp) -> Result<(), VolumeError> {
        let at = |b: &Block| b.0 * BLOCK_BYTES as u64;
        match op {
            BatchOp::Write { block, data } => self.file.write_all_at(data, at(block)).map_err(io),
            BatchOp::Discard { block, count } => rustix::fs::fallocate(
                &self.file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                at(block),
                count * BLOCK_BYTES as u64,
            )
            .map_err(io),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is two plain values: a panic elsewhere cannot have left it half changed.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Volume for PlainVolume {
    fn info(&self) -> VolumeInfo {
        let blocks = self.blocks.load(Ordering::Acquire);
        VolumeInfo {
            id: self.id,
            blocks,
            generation: 1,
            losses: 0,
        }
    }

    fn space(&self) -> SpaceInfo {
        match rustix::fs::fstatvfs(&self.file) {
            Ok(s) => SpaceInfo {
                free_bytes: s.f_bavail * s.f_frsize,
                pool_bytes: s.f_blocks * s.f_frsize,
            },
            Err(_) => SpaceInfo::default(),
        }
    }

    fn holds(&self) -> bool {
        // Nobody else can have the file's place in the history: there is no other.
        true
    }

    fn read(&self, block: Block, out: &mut [u8]) -> Result<(), VolumeError> {
        check_read(block, out.len(), self.blocks.load(Ordering::Acquire))?;
        self.file
            .read_exact_at(out, block.0 * BLOCK_BYTES as u64)
            .map_err(io)
    }

    fn read_then(&self, block: Block, count: u32, done: ReadDone) {
        let mut out = vec![0; count as usize * BLOCK_BYTES];
        done(self.read(block, &mut out).map(|()| Bytes::from(out)));
    }

    fn submit(&self, batch: Batch) -> Result<Ticket, VolumeError> {
        batch
            .check(self.blocks.load(Ordering::Acquire))
            .map_err(|e| VolumeError::BadRequest(e.to_string()))?;
        let mut state = self.lock();
        batch.ops.iter().try_for_each(|op| self.apply(op))?;
        state.last = state.last.next();
        Ok(Ticket(state.last))
    }

    fn flush_then(&self, upto: Ticket, done: FlushDone) {
        let poisoned = self.lock().poisoned.clone();
        let result = match poisoned {
            Some(why) => Err(VolumeError::Io(why)),
            None => self.file.sync_data().map_err(|e| {
                let why = format!("an earlier sync failed: {e}");
                self.lock().poisoned = Some(why);
                io(e)
            }),
        };
        done(result.map(|()| Receipt::by_flush_path(upto)));
    }

    fn last_ticket(&self) -> Ticket {
        Ticket(self.lock().last)
    }

    fn grow(&self, blocks: u64) -> Result<(), VolumeError> {
        let state = self.lock();
        let have = self.blocks.load(Ordering::Acquire);
        if blocks < have || blocks > trivet_protocol::limits::MAX_VOLUME_BLOCKS {
            return Err(VolumeError::BadRequest(format!(
                "cannot grow from {have} to {blocks}"
            )));
        }
        self.file.set_len(blocks * BLOCK_BYTES as u64).map_err(io)?;
        self.file.sync_all().map_err(io)?;
        self.blocks.store(blocks, Ordering::Release);
        drop(state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_discards_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let v = PlainVolume::open(&path, VolumeId::random(), 16).unwrap();
        let data = Bytes::from(vec![3; 2 * BLOCK_BYTES]);
        v.submit(Batch::write(Block(4), data)).unwrap();
        let t = v.submit(Batch::discard(Block(5), 1)).unwrap();
        assert!(v.flush(t).unwrap().covers(t));
        let mut out = vec![9; 3 * BLOCK_BYTES];
        v.read(Block(4), &mut out).unwrap();
        assert!(out[..BLOCK_BYTES].iter().all(|b| *b == 3));
        assert!(out[BLOCK_BYTES..].iter().all(|b| *b == 0));
        assert!(v.read(Block(15), &mut out).is_err());
        v.grow(32).unwrap();
        v.read(Block(15), &mut out).unwrap();
        assert!(v.grow(8).is_err());
    }
}
