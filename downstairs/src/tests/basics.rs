//! A store by itself: append, sync, commit, checkpoint, open again.

use std::sync::Arc;

use bytes::Bytes;
use trivet_protocol::entry::{Batch, BatchOp};
use trivet_protocol::{BLOCK_BYTES, Block, Checksum, Entry, MemberId, NullRecorder, Seq, VolumeId};

use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::error::StoreError;
use crate::log::replay::Tail;
use crate::region::Region;
use crate::store::{OpenReport, Store};

pub const VOLUME: VolumeId = VolumeId(uuid::Uuid::from_u128(7));

pub fn region(blocks: u64) -> Region {
    let mut r = Region::new(VOLUME, MemberId::from_bytes([3; 16]), blocks);
    (r.extent_blocks, r.log_bytes) = (64, 256 * 1024);
    r
}

pub fn create(disk: &SimDisk, region: &Region) {
    let dir: Arc<dyn Disk> = Arc::new(disk.dir());
    Store::create(&dir, region).unwrap();
}

pub fn open(disk: &SimDisk) -> (Store, OpenReport) {
    Store::open(Arc::new(disk.dir()), None, Arc::new(NullRecorder)).unwrap()
}

pub fn write(seq: u64, block: u64, count: usize, fill: u8) -> Entry {
    let data = Bytes::from(vec![fill; count * BLOCK_BYTES]);
    Entry::new(VOLUME, Seq(seq), 1, Batch::write(Block(block), data))
}

pub fn fill_of(store: &Store, block: u64) -> u8 {
    let got = store.read(Block(block), 1).unwrap();
    let fill = got.data[0];
    assert!(got.data.iter().all(|b| *b == fill));
    let sum = Checksum::of(VOLUME, Block(block), &got.data);
    assert_eq!(got.sums[0].is_unwritten(), fill == 0);
    assert!(fill == 0 || got.sums[0] == sum, "block {block} verifies");
    fill
}

#[test]
fn what_was_synced_survives_a_power_cut_and_what_was_checkpointed_too() {
    let disk = SimDisk::new();
    create(&disk, &region(1000));
    let (mut s, report) = open(&disk);
    assert_eq!((report.opens, report.tail), (1, Tail::Sure));
    s.append(&write(1, 5, 1, 0x11)).unwrap();
    s.append(&write(2, 100, 40, 0x22)).unwrap();
    assert_eq!(
        (fill_of(&s, 5), fill_of(&s, 6), fill_of(&s, 139)),
        (0x11, 0, 0x22)
    );
    s.sync().unwrap();
    disk.crash(1);
    let (mut s, report) = open(&disk);
    assert_eq!(
        (report.records, s.end().seq, s.durable().seq),
        (2, Seq(2), Seq(2))
    );
    assert_eq!((fill_of(&s, 5), fill_of(&s, 139)), (0x11, 0x22));
    s.set_commit(Seq(2));
    s.set_trim(Seq(2));
    assert!(s.checkpoint_now().unwrap());
    assert_eq!(s.log_usage().0, 0);
    assert_eq!((fill_of(&s, 5), fill_of(&s, 139)), (0x11, 0x22));
    disk.crash(2);
    let (s, report) = open(&disk);
    assert_eq!((report.records, report.opens), (0, 3));
    assert_eq!(
        (fill_of(&s, 5), fill_of(&s, 139), fill_of(&s, 140)),
        (0x11, 0x22, 0)
    );
    s.close().unwrap();
    let (s, report) = open(&disk);
    assert_eq!((report.tail, s.end().seq), (Tail::Sure, Seq(2)));
}

#[test]
fn only_the_next_operation_of_a_generation_not_below_is_taken() {
    let disk = SimDisk::new();
    create(&disk, &region(1000));
    let (mut s, _) = open(&disk);
    assert!(matches!(
        s.append(&write(2, 0, 1, 1)),
        Err(StoreError::BadSeq { .. })
    ));
    assert!(matches!(
        s.append(&write(1, 1000, 1, 1)),
        Err(StoreError::BadEntry(_))
    ));
    let mut e = write(1, 0, 1, 1);
    e.generation = 4;
    s.append(&e).unwrap();
    assert!(matches!(
        s.append(&write(2, 0, 1, 1)),
        Err(StoreError::GenerationDown { .. })
    ));
    assert_eq!(s.end().generation, 4);
}

#[test]
fn a_discard_of_everything_is_one_record_and_frees_the_space() {
    let disk = SimDisk::new();
    create(&disk, &region(1 << 31));
    let (mut s, _) = open(&disk);
    s.append(&write(1, 64, 64, 9)).unwrap();
    s.append(&write(2, 1 << 30, 20, 9)).unwrap();
    s.append(&Entry::new(
        VOLUME,
        Seq(3),
        1,
        Batch::discard(Block(0), 1 << 31),
    ))
    .unwrap();
    s.append(&write(4, 70, 1, 3)).unwrap();
    s.sync().unwrap();
    s.set_commit(Seq(4));
    s.set_trim(Seq(4));
    s.checkpoint_now().unwrap();
    assert_eq!(
        (fill_of(&s, 64), fill_of(&s, 70), fill_of(&s, 1 << 30)),
        (0, 3, 0)
    );
    let e1 = disk.dir().open("e/00000001").unwrap();
    assert!(
        e1.allocated().unwrap() <= 3 * 4096,
        "one block and the metadata"
    );
}

#[test]
fn a_batch_is_there_wholly_or_not_at_all() {
    let mut torn = 0;
    for seed in 0..400 {
        let disk = SimDisk::new();
        create(&disk, &region(1000));
        let (mut s, _) = open(&disk);
        let data = |f: u8| Bytes::from(vec![f; 2 * BLOCK_BYTES]);
        let ops = vec![
            BatchOp::Write {
                block: Block(10),
                data: data(5),
            },
            BatchOp::Discard {
                block: Block(11),
                count: 1,
            },
            BatchOp::Write {
                block: Block(90),
                data: data(6),
            },
        ];
        s.append(&Entry::new(VOLUME, Seq(1), 1, Batch { ops }))
            .unwrap();
        disk.crash(seed);
        let (s, report) = open(&disk);
        let seen = (
            fill_of(&s, 10),
            fill_of(&s, 11),
            fill_of(&s, 90),
            fill_of(&s, 91),
        );
        match s.end().seq.0 {
            0 => assert_eq!(seen, (0, 0, 0, 0), "seed {seed}"),
            _ => assert_eq!(seen, (5, 0, 6, 6), "seed {seed}"),
        }
        torn += u32::from(matches!(report.tail, Tail::Unsure(_)));
        assert!(!matches!(report.tail, Tail::Damaged(_)));
    }
    assert!(torn > 50, "power cuts tear appends");
}
