//! A full pool is ENOSPC to the writer, never a broken region.

use trivet_protocol::entry::Batch;
use trivet_protocol::{Block, Entry, Seq};

use super::basics::{VOLUME, create, fill_of, open, region, write};
use crate::disk::sim::SimDisk;
use crate::error::StoreError;

#[test]
fn a_full_pool_refuses_new_runs_keeps_what_it_has_and_recovers_by_a_discard() {
    let disk = SimDisk::new();
    create(&disk, &region(1000));
    let (mut s, _) = open(&disk);
    s.append(&write(1, 0, 60, 1)).unwrap();
    s.append(&write(2, 200, 4, 2)).unwrap();
    s.sync().unwrap();
    // Nothing more fits; a long run is refused and nothing has happened.
    disk.set_capacity(Some(1));
    let e = s.append(&write(3, 300, 40, 3)).unwrap_err();
    assert!(matches!(e, StoreError::NoSpace { .. }), "{e}");
    assert_eq!((s.end().seq, fill_of(&s, 300)), (Seq(2), 0));
    // A checkpoint that needs room fails, and the region goes on.
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
