//! What a look at the disk says, and when it says nothing.

use trivet_protocol::message::{Bad, Scrubbed};
use trivet_protocol::{Block, Checksum, Seq};

use super::basics::{create, open, region, write};
use crate::disk::sim::SimDisk;
use crate::extent::layout::Layout;
use crate::store::Store;

const BLOCKS: u32 = 40;

/// Forty blocks in an extent file, nothing in the log.
fn moved_out(disk: &SimDisk) -> Store {
    create(disk, &region(1000));
    let (mut s, _) = open(disk);
    s.append(&write(1, 0, BLOCKS as usize, 1)).unwrap();
    settle(&mut s, 1);
    s
}

fn settle(s: &mut Store, seq: u64) {
    s.sync().unwrap();
    s.set_commit(Seq(seq));
    s.set_trim(Seq(seq));
    assert!(s.checkpoint_now().unwrap());
}

fn look(s: &Store) -> (Vec<Checksum>, Vec<(u32, Bad)>) {
    let job = s.begin_scrub(Block(0), BLOCKS + 2).unwrap();
    let found = job.run();
    assert!(s.untouched(&job));
    match found {
        Scrubbed::Read { sums, bad } => (sums, bad),
        Scrubbed::Overtaken => panic!("nothing was written"),
    }
}

#[test]
fn rotten_content_and_rotten_checksums_are_told_apart_and_the_rest_is_checked() {
    let disk = SimDisk::new();
    let s = moved_out(&disk);
    let (sums, bad) = look(&s);
    assert_eq!((sums.len(), bad), (42, vec![]));
    assert!(sums[40].is_unwritten() && !sums[39].is_unwritten());

    let layout = Layout::new(64);
    let name = crate::extent::ExtentNo(0).name();
    assert!(disk.flip(&name, layout.block_at(7) + 99, 1));
    let (again, bad) = look(&s);
    assert_eq!((again, bad), (sums.clone(), vec![(7, Bad::Content)]));

    // A sector of metadata is a group of 30 blocks.
    assert!(disk.flip(&name, layout.group_at(1) + 100, 1));
    let (_, bad) = look(&s);
    let checksums = bad.iter().filter(|b| b.1 == Bad::Checksum);
    assert_eq!(
        checksums.map(|b| b.0).collect::<Vec<_>>(),
        (30..42).collect::<Vec<_>>()
    );
    assert_eq!(bad[0], (7, Bad::Content));
}

#[test]
fn a_sector_that_cannot_be_read_is_one_bad_block() {
    let disk = SimDisk::new();
    let s = moved_out(&disk);
    // All 42 blocks, and the first of them.
    disk.fail("read", &crate::extent::ExtentNo(0).name(), 0, 2);
    let (sums, bad) = look(&s);
    assert_eq!((sums.len(), bad), (42, vec![(0, Bad::Content)]));
    // Then its checksum cannot be read either.
    disk.fail("read", &crate::extent::ExtentNo(0).name(), 0, 3);
    assert_eq!(look(&s).1, vec![(0, Bad::Checksum)]);
}

#[test]
fn what_is_written_or_moved_meanwhile_makes_a_look_worth_nothing() {
    let disk = SimDisk::new();
    let mut s = moved_out(&disk);
    let planned = |s: &Store| s.begin_scrub(Block(0), BLOCKS).unwrap();

    let job = planned(&s);
    s.append(&write(2, 100, 1, 2)).unwrap();
    assert!(s.untouched(&job), "elsewhere");
    s.append(&write(3, 39, 1, 3)).unwrap();
    assert!(!s.untouched(&job), "overwritten");

    let job = planned(&s);
    assert!(s.untouched(&job));
    settle(&mut s, 3);
    assert!(!s.untouched(&job), "moved out of the log");

    // In one go, straight to the extent file: the very bytes that the job may have read.
    let job = planned(&s);
    s.append(&write(4, 0, 32, 4)).unwrap();
    assert!(!s.untouched(&job), "written in place");
}
