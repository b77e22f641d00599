//! A new volume out of one region: what was flushed is there, under a new identity, and the old
//! region is as before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

use std::path::{Path, PathBuf};

use trivet_cluster::{Embedded, Options, VolumeFile, recover};
use trivet_downstairs::offline;
use trivet_protocol::{BLOCK_BYTES, Batch, Block};
use trivet_replica::Volume;

const BYTES: u64 = 64 << 20;

fn names() -> [(String, PathBuf); 3] {
    ["a", "b", "c"].map(|n| (n.to_owned(), PathBuf::from(n)))
}

fn write(e: &Embedded, tag: u8, blocks: impl Iterator<Item = u64>) {
    for block in blocks {
        let data = vec![tag; BLOCK_BYTES].into();
        e.volume().submit(Batch::write(Block(block), data)).unwrap();
    }
    e.volume().flush_all().unwrap();
}

fn check(e: &Embedded, tag: u8, blocks: impl Iterator<Item = u64>) {
    let mut out = vec![0; BLOCK_BYTES];
    for block in blocks {
        e.volume().read(Block(block), &mut out).unwrap();
        assert!(out.iter().all(|b| *b == tag), "block {block}: {}", out[0]);
    }
}

/// A volume with some content, partly still in the logs; returns its regions.
fn made(dir: &Path, settled: bool) -> Vec<PathBuf> {
    let e = Embedded::open_or_create(dir, BYTES, Options::default()).unwrap();
    write(&e, 1, 0..500);
    write(&e, 2, 300..400);
    write(&e, 3, 16_000..16_001);
    if settled {
        e.settle();
    }
    e.close().unwrap();
    let file = VolumeFile::load(&dir.join("volume.toml")).unwrap().unwrap();
    let region = |p: &trivet_cluster::Place| {
        dir.join(&p.pool)
            .join(file.volume.to_string())
            .join(p.id.to_string())
    };
    file.member.iter().map(region).collect()
}

#[test]
fn everything_is_there_under_a_new_identity_and_goes_on() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let regions = made(old.path(), false);
    let assessed = offline::assess(&regions[1]).unwrap();
    let said = assessed.may_be_missing.join("; ");
    assert!(said.contains("in sync too"), "{said}");
    let bytes = assessed.blocks * BLOCK_BYTES as u64;
    let volume = VolumeFile::new(bytes, names()).unwrap();
    let path = new.path().join("volume.toml");
    let done = recover(&regions[1], &path, &volume, false, &mut |_, _| {}).unwrap();
    assert_eq!((done.written_blocks, done.bad_blocks), (501, 0));
    assert_ne!(volume.volume, assessed.volume);
    for round in 0..2 {
        let e = Embedded::open(new.path(), Options::default()).unwrap();
        assert!(e.problems().is_empty(), "{:?}", e.problems());
        assert!(e.status().generation > 1, "the history's own is taken");
        check(&e, 1, 0..300);
        check(&e, 2, 300..400);
        check(&e, 1, 400..500);
        check(&e, 0, 500..600);
        check(&e, 3 + round, 16_000..16_001);
        write(&e, 4 + round, 16_000..16_001);
        e.close().unwrap();
    }
    // The old region was only read.
    assert!(
        offline::verify(&regions[1], &mut |_, _| {})
            .unwrap()
            .is_sound()
    );
    let again = recover(&regions[1], &path, &volume, false, &mut |_, _| {});
    assert!(again.unwrap_err().to_string().contains("exists already"));
}

#[test]
fn rot_is_refused_unless_asked_for_and_a_recovery_cut_short_is_named() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let regions = made(old.path(), true);
    let extent = std::fs::read_dir(regions[0].join("e"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .min()
        .unwrap();
    // One bit of one block's content.
    let mut raw = std::fs::read(&extent).unwrap();
    let is_content = |b: &[u8]| b.iter().all(|x| *x == 1);
    let block = raw.chunks_exact(BLOCK_BYTES).position(is_content);
    raw[block.unwrap() * BLOCK_BYTES] ^= 1;
    std::fs::write(&extent, raw).unwrap();
    let volume = VolumeFile::new(BYTES, names()).unwrap();
    let path = new.path().join("volume.toml");
    let e = recover(&regions[0], &path, &volume, false, &mut |_, _| {}).unwrap_err();
    assert!(e.to_string().contains("forensic"), "{e}");
    let e = recover(&regions[0], &path, &volume, true, &mut |_, _| {}).unwrap_err();
    assert!(e.to_string().contains("cut short"), "{e}");
    let other = new.path().join("other.toml");
    let volume = VolumeFile::new(BYTES, names()).unwrap();
    let done = recover(&regions[0], &other, &volume, true, &mut |_, _| {}).unwrap();
    assert_eq!(done.bad_blocks, 1);
}
