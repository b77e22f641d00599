//! A scrub, while clients write: rot, and writes that a disk acknowledged and lost.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use trivet_protocol::Block;
use trivet_replica::Volume;
use trivet_replica::upstairs::{Matter, ScrubStatus};
use trivet_replica::volume::Batch;

use crate::world::{Attached, BLOCKS, Between, World, bytes_of, wait_for};

/// Writes everything, in pieces that go through the log, so that what was there before has been
/// moved to the extent files several times over.
fn fill(attached: &Attached, with: u8) {
    for block in (0..BLOCKS).step_by(8) {
        let data = Bytes::from(vec![with; bytes_of(8)]);
        attached
            .volume
            .submit(Batch::write(Block(block), data))
            .unwrap();
    }
    attached.volume.flush_all().unwrap();
}

fn scrub(attached: &Attached) -> ScrubStatus {
    let begun = attached.volume.with(|u, now| u.scrub(now, 256 << 20));
    begun.unwrap();
    let look = || attached.volume.status().scrub.unwrap();
    wait_for("the scrub", || !look().running);
    look()
}

fn write_over(file: &Path, content: &[u8], at: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(content, at).unwrap();
}

#[test]
fn rot_and_lost_writes_are_found_and_repaired_while_clients_write() {
    let Some(world) = World::new("scrub", Between::Nothing) else {
        return;
    };
    let attached = world.attach();
    fill(&attached, 1);
    let clean = scrub(&attached);
    assert_eq!((clean.looked, clean.wrong), (BLOCKS, 0), "{clean:?}");
    assert!(clean.unseen.is_empty(), "{clean:?}");

    // The third disk forgets, behind everybody's back, what it was told last of one extent...
    let lost = world.file(2, "e/00000002");
    let old = std::fs::read(&lost).unwrap();
    fill(&attached, 2);
    fill(&attached, 3);
    write_over(&lost, &old, 0);
    // ... and the second one rots. The system has all of it in memory, and good.
    let (rotten, data_at) = (world.file(1, "e/00000005"), 20 << 10);
    for i in 0..10 {
        write_over(&rotten, b"rot", data_at + (100 * i + 3) * 4096);
    }

    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let found = std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                let n = written.fetch_add(1, Ordering::AcqRel);
                let data = Bytes::from(vec![4; bytes_of(1)]);
                // In the first extent: what is found in the others stays in few pieces.
                let block = Block(n * 7 % 1024);
                attached.volume.submit(Batch::write(block, data)).unwrap();
                attached.volume.flush_all().unwrap();
            }
        });
        let found = scrub(&attached);
        stop.store(true, Ordering::Release);
        found
    });
    println!(
        "{} writes meanwhile; {found:?}",
        written.load(Ordering::Acquire)
    );
    assert!(written.load(Ordering::Acquire) > 1);
    assert_eq!((found.left, found.repaired), (0, found.wrong), "{found:?}");
    let tells = |matter, i: usize| {
        let of = |f: &&trivet_replica::upstairs::Finding| {
            f.matter == matter && f.members == [world.member(i)]
        };
        found
            .findings
            .iter()
            .filter(of)
            .map(|f| f.count)
            .sum::<u64>()
    };
    // What the log still had is not lost with the extent file, or rotten.
    assert!(tells(Matter::Differs, 2) > 100, "{found:?}");
    assert!((1..=10).contains(&tells(Matter::Damaged, 1)), "{found:?}");

    let after = scrub(&attached);
    assert_eq!((after.looked, after.wrong), (BLOCKS, 0), "{after:?}");
}

#[test]
fn with_two_copies_that_differ_nothing_is_guessed() {
    let Some(mut world) = World::new("scrub of two", Between::Nothing) else {
        return;
    };
    let attached = world.attach();
    fill(&attached, 1);
    let lost = world.file(1, "e/00000001");
    let old = std::fs::read(&lost).unwrap();
    fill(&attached, 2);
    fill(&attached, 3);
    write_over(&lost, &old, 0);
    world.kill(2);
    wait_for("two in sync", || {
        let status = attached.volume.status();
        status.members.iter().filter(|m| m.in_sync).count() == 2
    });

    let found = scrub(&attached);
    assert!(found.wrong > 100 && found.left == found.wrong, "{found:?}");
    assert_eq!(found.repaired, 0, "{found:?}");
    let alike = |f: &trivet_replica::upstairs::Finding| f.matter == Matter::NoMajority;
    assert!(found.findings.iter().all(alike), "{found:?}");
    assert_eq!(found.unseen, vec![(world.member(2), BLOCKS)]);

    // The third one knows.
    world.start(2);
    wait_for("three in sync", || {
        let status = attached.volume.status();
        status.members.iter().filter(|m| m.in_sync).count() == 3
    });
    let found = scrub(&attached);
    assert!(found.wrong > 100 && found.left == 0, "{found:?}");
    assert_eq!(scrub(&attached).wrong, 0);
}
