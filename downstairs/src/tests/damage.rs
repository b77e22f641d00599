//! Damage is never taken for a torn tail, and nothing is shortened in silence.

use std::sync::Arc;

use trivet_protocol::{NullRecorder, Seq};

use super::basics::{create, fill_of, open, region, write};
use crate::disk::sim::SimDisk;
use crate::error::StoreError;
use crate::log::replay::Tail;
use crate::store::Store;

/// Ten records, each synced before the next: each proves that the one before had been.
fn ten_synced(disk: &SimDisk) -> u64 {
    create(disk, &region(1000));
    let (mut s, _) = open(disk);
    for seq in 1..=10 {
        s.append(&write(seq, seq * 3, 1, seq as u8)).unwrap();
        s.sync().unwrap();
    }
    s.log_usage().0 / 10
}

#[test]
fn a_rotten_record_below_what_was_synced_is_damage_and_stays_so() {
    let disk = SimDisk::new();
    let len = ten_synced(&disk);
    for (record, byte) in [(2, 0), (2, 100), (2, 200), (5, len - 600), (0, 20)] {
        let saved = disk.snapshot();
        disk.flip("log", record * len + byte, 4);
        let (s, report) = open(&disk);
        assert!(
            matches!(report.tail, Tail::Damaged(_)),
            "{record}/{byte}: {report:?}"
        );
        assert_eq!(s.end().seq, Seq(record));
        assert!(s.damaged());
        drop(s);
        disk.crash(1);
        let (s, report) = open(&disk);
        assert!(s.damaged(), "a second opening knows it still: {report:?}");
        disk.restore(&saved);
    }
}

#[test]
fn a_rotten_last_record_leaves_the_tail_unsure_until_it_is_settled() {
    let disk = SimDisk::new();
    let len = ten_synced(&disk);
    disk.flip("log", 9 * len + 300, 1);
    let (s, report) = open(&disk);
    assert!(matches!(report.tail, Tail::Unsure(_)), "{report:?}");
    assert_eq!(s.end().seq, Seq(9));
    drop(s);
    let (mut s, report) = open(&disk);
    assert_eq!(report.tail, Tail::Sure);
    assert!(s.unsure(), "an opening alone settles nothing");
    s.settle_tail().unwrap();
    drop(s);
    assert!(!open(&disk).0.unsure());
}

#[test]
fn a_lost_write_in_the_middle_is_seen_where_a_later_record_survived() {
    let disk = SimDisk::new();
    create(&disk, &region(1000));
    let (mut s, _) = open(&disk);
    s.append(&write(1, 0, 1, 1)).unwrap();
    s.sync().unwrap();
    disk.lie(true);
    s.append(&write(2, 1, 1, 2)).unwrap();
    s.sync().unwrap();
    // The lie's pages are clean; the disk never got them. The next ones it gets.
    disk.lie(false);
    for seq in 3..6 {
        s.append(&write(seq, seq, 1, seq as u8)).unwrap();
        s.sync().unwrap();
    }
    disk.crash(3);
    let (s, report) = open(&disk);
    assert!(matches!(report.tail, Tail::Damaged(_)), "{report:?}");
    assert_eq!((s.end().seq, fill_of(&s, 0)), (Seq(1), 1));
}

#[test]
fn rotten_metadata_of_an_extent_is_an_error_that_names_the_blocks_and_an_overwrite_heals() {
    let disk = SimDisk::new();
    create(&disk, &region(1000));
    let (mut s, _) = open(&disk);
    s.append(&write(1, 64, 64, 7)).unwrap();
    s.sync().unwrap();
    s.set_commit(Seq(1));
    s.set_trim(Seq(1));
    s.checkpoint_now().unwrap();
    // Group 1 of extent 1: blocks 94 to 123.
    disk.flip("e/00000001", 512 * 2 + 77, 1);
    assert_eq!(fill_of(&s, 64), 7);
    let e = s.read(trivet_protocol::Block(100), 1).unwrap_err();
    assert!(
        matches!(
            e,
            StoreError::CorruptBlocks {
                first: 94,
                last: 123,
                ..
            }
        ),
        "{e}"
    );
    // Writing a block of the group makes the sector whole; its neighbours stay lost, and say so.
    s.append(&write(2, 100, 1, 8)).unwrap();
    s.sync().unwrap();
    s.set_commit(Seq(2));
    s.checkpoint_now().unwrap();
    assert_eq!(fill_of(&s, 100), 8);
    let e = s.read(trivet_protocol::Block(101), 1).unwrap_err();
    assert!(
        matches!(e, StoreError::CorruptBlocks { first: 101, .. }),
        "{e}"
    );
}

#[test]
fn a_failed_sync_poisons_and_what_came_after_is_not_called_durable() {
    let disk = SimDisk::new();
    create(&disk, &region(1000));
    let (mut s, _) = open(&disk);
    s.append(&write(1, 0, 1, 1)).unwrap();
    s.sync().unwrap();
    s.append(&write(2, 1, 1, 2)).unwrap();
    let (one, two) = (s.begin_sync().unwrap(), s.begin_sync().unwrap());
    disk.fail_next("sync", "log");
    let failed = one.run();
    // The kernel told the first; the second must not believe the silence that follows.
    let second = two.run();
    assert!(second.is_err());
    assert!(s.finish_sync(two, second).is_err());
    assert!(s.finish_sync(one, failed).is_err());
    assert_eq!(s.durable().seq, Seq(1));
    assert!(matches!(
        s.append(&write(3, 1, 1, 2)),
        Err(StoreError::Poisoned { .. })
    ));
    drop(s);
    // Opened again by the same machine: the page cache shows operation 2, which the disk may
    // never have got. What the opening then calls durable must survive.
    let (s, _) = open(&disk);
    let durable = s.durable().seq;
    drop(s);
    disk.crash(5);
    assert!(open(&disk).0.end().seq >= durable);
}

#[test]
fn a_restored_backup_shows_fewer_openings() {
    let disk = SimDisk::new();
    create(&disk, &region(1000));
    drop(open(&disk));
    let backup = disk.snapshot();
    let (mut s, _) = open(&disk);
    s.append(&write(1, 0, 1, 1)).unwrap();
    s.sync().unwrap();
    drop(s);
    let (s, _) = open(&disk);
    let opens = s.opens();
    drop(s);
    disk.restore(&backup);
    let (s, _) = open(&disk);
    assert!(s.opens() < opens && s.end().seq == Seq(0));
}

#[test]
fn another_regions_identity_and_a_newer_format_are_refused_by_name() {
    let disk = SimDisk::new();
    create(&disk, &region(1000));
    let other = trivet_protocol::MemberId::from_bytes([9; 16]);
    let dir = Arc::new(disk.dir());
    let expected = Some((super::basics::VOLUME, other));
    let e = Store::open(dir.clone(), expected, Arc::new(NullRecorder))
        .err()
        .unwrap();
    assert!(e.to_string().contains("not replica"), "{e}");
    use crate::disk::Disk;
    disk.dir().remove("region.toml").unwrap();
    let text = b"format = 2\nnews = true\n";
    disk.dir()
        .create("region.toml")
        .unwrap()
        .write_all_at(text, 0)
        .unwrap();
    let e = Store::open(dir, None, Arc::new(NullRecorder))
        .err()
        .unwrap();
    assert!(e.to_string().contains("newer"), "{e}");
}

#[cfg(feature = "breaks")]
#[test]
fn damage_taken_for_a_torn_tail_is_noticed() {
    use trivet_protocol::breaks::{Break, set};
    set(Some(Break::DamageTakenForTorn));
    let found = std::panic::catch_unwind(|| {
        a_rotten_record_below_what_was_synced_is_damage_and_stays_so();
    });
    set(None);
    assert!(found.is_err());
}
