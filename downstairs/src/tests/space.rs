//! A full pool is ENOSPC to the writer, never a broken region.

use trivet_protocol::entry::Batch;
use trivet_protocol::{Block, Entry, Seq};

use super::basics::{VOLUME, create, fill_of, open, region, write};
use crate::disk::sim::SimDisk;
use crate::error::StoreError;

#[test]
fn a_full_pool_keeps_what_it_has_and_recovers_by_a_discard() {
    let disk = SimDisk::new();
    create(&disk, &region(1000));
    let (mut s, _) = open(&disk);
    s.append(&write(1, 0, 60, 1)).unwrap();
    s.append(&write(2, 200, 4, 2)).unwrap();
    s.sync().unwrap();
    // A checkpoint that needs room fails, and the region goes on.
    disk.set_capacity(Some(1));
    s.set_commit(Seq(2));
    s.set_trim(Seq(2));
    let e = s.checkpoint_now().unwrap_err();
    assert!(matches!(e, StoreError::NoSpace { .. }), "{e}");
    assert_eq!((fill_of(&s, 5), fill_of(&s, 200)), (1, 2));
    assert_eq!(s.poisoned(), None);
    // With room again everything goes where it belongs.
    disk.set_capacity(None);
    s.append(&Entry::new(VOLUME, Seq(3), 1, Batch::discard(Block(0), 60)))
        .unwrap();
    s.sync().unwrap();
    s.set_commit(Seq(3));
    s.set_trim(Seq(3));
    s.checkpoint_now().unwrap();
    drop(s);
    disk.crash(1);
    let (s, _) = open(&disk);
    assert_eq!(
        (fill_of(&s, 5), fill_of(&s, 200), fill_of(&s, 203)),
        (0, 2, 2)
    );
}

/// Given a pool that copies on write, where even the log may find no space: what is in the history
/// here, and in no file, must not be taken for written by what comes after it. (It once was: the
/// next append went on behind a gap.)
#[test]
fn a_log_that_finds_no_space_takes_nothing_more() {
    let disk = SimDisk::new();
    create(&disk, &region(1000));
    let (mut s, _) = open(&disk);
    s.append(&write(1, 0, 4, 1)).unwrap();
    s.sync().unwrap();
    disk.set_capacity(Some(1));
    assert!(s.append(&write(2, 10, 4, 2)).is_err());
    disk.set_capacity(None);
    assert!(s.poisoned().is_some());
    assert!(s.append(&write(3, 20, 4, 3)).is_err());
    drop(s);
    let (s, _) = open(&disk);
    assert_eq!(s.end().seq, Seq(1));
}
