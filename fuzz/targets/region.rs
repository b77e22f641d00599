//! A whole region whose files were damaged: opening, replaying, reading and listing it must end
//! well or in an error, and what is read must be something that was once written there.
//!
//! The input is a list of changes: which file (1 byte), where (3 bytes), which bits (1 byte).

#![no_main]

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use trivet_downstairs::checkpoint::Step;
use trivet_downstairs::disk::Disk;
use trivet_downstairs::disk::sim::{SimDisk, Snapshot};
use trivet_downstairs::store::Cursor;
use trivet_downstairs::{Region, Store};
use trivet_protocol::entry::{Batch, Entry};
use trivet_protocol::{BLOCK_BYTES, Block, Checksum, MemberId, NullRecorder, Seq, VolumeId};

const BLOCKS: u64 = 256;
const OPERATIONS: u64 = 40;
/// Changes in one input.
const MOST: usize = 64;

fn volume() -> VolumeId {
    VolumeId::from_bytes([1; 16])
}

fn data(seq: u64) -> Bytes {
    vec![seq as u8; BLOCK_BYTES].into()
}

/// Where an operation writes: every block twice at least.
fn place(seq: u64) -> u64 {
    seq * 7 % 16 * 16
}

fn build(disk: &SimDisk) {
    let dir: Arc<dyn Disk> = Arc::new(disk.dir());
    let mut region = Region::new(volume(), MemberId::from_bytes([2; 16]), BLOCKS);
    (region.extent_blocks, region.log_bytes) = (32, 512 << 10);
    Store::create(&dir, &region).expect("a new region");
    let (mut store, _) = Store::open(dir, None, Arc::new(NullRecorder)).expect("opens");
    for seq in 1..=OPERATIONS {
        let batch = Batch::write(Block(place(seq)), data(seq));
        let entry = Entry::new(volume(), Seq(seq), 1 + seq / 10, batch);
        store.append(&entry).expect("has room");
        store.sync().expect("syncs");
        if seq == OPERATIONS / 2 {
            store.set_commit(Seq(seq));
            let mut job = store.begin_checkpoint().expect("whole").expect("work");
            while job.step().expect("a good disk") == Step::More {}
            store.finish_checkpoint(job, Ok(Step::Done)).expect("done");
        }
    }
}

fuzz_target!(|input: &[u8]| {
    static BUILT: OnceLock<Snapshot> = OnceLock::new();
    let disk = SimDisk::new();
    disk.restore(BUILT.get_or_init(|| {
        let disk = SimDisk::new();
        build(&disk);
        disk.snapshot()
    }));
    let names = disk.names();
    for change in input.chunks_exact(5).take(MOST) {
        let [file, a, b, c, mask] = *change else {
            continue;
        };
        let at = u64::from(u32::from_le_bytes([a, b, c, 0]));
        if let Some(name) = names.get(usize::from(file) % names.len().max(1)) {
            disk.flip(name, at, mask);
        }
    }
    let Ok((store, _)) = Store::open(Arc::new(disk.dir()), None, Arc::new(NullRecorder)) else {
        return;
    };
    let _ = store.changed_since(Seq::ZERO, Cursor(0), 1000);
    for block in 0..BLOCKS {
        let Ok(got) = store.read(Block(block), 1) else {
            continue;
        };
        // What does not match its checksum is refused by whoever asked for it.
        if Checksum::of(volume(), Block(block), &got.data) == got.sums[0] {
            let right = (1..=OPERATIONS).any(|seq| place(seq) == block && got.data == data(seq));
            assert!(right, "block {block} holds what nobody wrote there");
        }
    }
});
