//! Pools that are full.

use std::io::Write;

use bytes::Bytes;
use trivet_protocol::Block;
use trivet_replica::upstairs::Notice;
use trivet_replica::volume::Batch;
use trivet_replica::{Volume, VolumeError};

use crate::world::{Attached, BLOCKS, Between, World, bytes_of, wait_for};

/// Of each disk: a log and its reserve take 8, the volume would take 32.
const MIB: u64 = 26;

fn fill(block: u64, count: u64, with: u8) -> Batch {
    Batch::write(Block(block), Bytes::from(vec![with; bytes_of(count)]))
}

fn flushed(attached: &Attached, batch: Batch) -> Result<(), VolumeError> {
    attached.volume.submit(batch)?;
    attached.volume.flush_all().map(|_| ())
}

/// Writes runs of `count` blocks from `from` on, until there is no space; returns the first block
/// that was not written.
fn write_until_full(attached: &Attached, from: u64, count: u64, with: u8) -> u64 {
    let mut at = from;
    while at + count <= BLOCKS {
        match flushed(attached, fill(at, count, with)) {
            Ok(()) => at += count,
            Err(VolumeError::NoSpace(why)) => {
                assert!(why.contains("is full"), "{why}");
                return at;
            }
            Err(e) => panic!("block {at}: {e}"),
        }
    }
    panic!("the disk was never full");
}

fn holds(attached: &Attached, block: u64, with: u8) -> bool {
    let mut out = vec![0; bytes_of(1)];
    attached.volume.read(Block(block), &mut out).unwrap();
    out.iter().all(|b| *b == with)
}

#[test]
fn full_pools_refuse_new_data_and_nothing_else() {
    let Some(world) = World::new("full", Between::Small(MIB)) else {
        return;
    };
    let attached = world.attach();
    let refused = |n: &Notice| matches!(n, Notice::LinkRefused { .. });

    // Given pools that are full of long runs, and then of short ones.
    let long = write_until_full(&attached, 0, 64, 1);
    let end = write_until_full(&attached, long, 1, 1);
    println!("full after {long} and {end} blocks");
    assert!(end > 1000, "only {end} blocks were taken");

    // When what is there is written over, it is taken, again and again.
    for round in 0..3u8 {
        for block in (0..end - 16).step_by(16) {
            flushed(&attached, fill(block, 16, 10 + round)).unwrap();
        }
    }
    assert!(holds(&attached, 0, 12) && holds(&attached, end - 40, 12));

    println!("written over");
    // When somebody else takes the rest of each disk, the same.
    for i in 0..3 {
        let mut other = std::fs::File::create(world.beside(i, "other")).unwrap();
        while other.write_all(&[7; 4096]).is_ok() {}
    }
    for block in (0..end - 16).step_by(16) {
        flushed(&attached, fill(block, 16, 20)).unwrap();
    }
    assert!(holds(&attached, end - 40, 20));
    assert!(matches!(
        flushed(&attached, fill(BLOCKS - 1, 1, 9)),
        Err(VolumeError::NoSpace(_))
    ));

    println!("filled by another, written over");
    // When space is given back, new data finds it.
    for i in 0..3 {
        std::fs::remove_file(world.beside(i, "other")).unwrap();
    }
    flushed(&attached, Batch::discard(Block(0), 2048)).unwrap();
    wait_for("space after a discard", || {
        // What makes the members move their logs.
        flushed(&attached, fill(2048, 16, 30)).unwrap();
        flushed(&attached, fill(BLOCKS - 512, 64, 31)).is_ok()
    });
    assert!(holds(&attached, 0, 0) && holds(&attached, BLOCKS - 512, 31));

    // Then no replica has refused anything. (One may have left the set for a moment, where the
    // machine is busy.)
    assert!(!attached.heard(refused));
    wait_for("all are in sync", || attached.all_in_sync());
    attached.volume.hand_back().unwrap();
}
