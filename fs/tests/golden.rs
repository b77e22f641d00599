//! An image made by the first version of the format must stay readable for ever, and a new file
//! system must have exactly the documented bytes.
//!
//! `golden/v1.blocks` holds the blocks in use: number u64, then 4,096 bytes, each. It was made by
//! `TRIVET_BLESS=1 cargo test -p trivet-fs --test golden`, which refuses to overwrite it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::MemVolume;
use trivet_fs::lock::*;
use trivet_fs::*;
use trivet_replica::volume::*;

const BLOCKS: u64 = 40_000;

fn image() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1.blocks")
}

fn fixed() -> MkfsOptions {
    MkfsOptions {
        fixed: Some(([0xab; 16], [0x17; 32], 1_000_000_000_123_456_789)),
        owner: (0, 0),
        force: false,
    }
}

fn content() -> Vec<u8> {
    (0..20_000u32).map(|i| (i / 7) as u8).collect()
}

/// One of everything.
fn make() -> MemVolume {
    let volume = Arc::new(MemVolume::new(BLOCKS));
    mkfs(&*volume, &fixed()).unwrap();
    let fs = Fs::mount(volume.clone(), Settings::default()).unwrap();
    let root = Creds::root();
    let attr = NewAttr {
        mode: 0o750,
        ..NewAttr::default()
    };
    let dir = fs.mkdir(Ctx::new(&root), fs.root(), b"dir", attr).unwrap();
    let dir = dir.value.attr.id;
    let file = fs.create(
        Ctx::new(&root),
        dir,
        b"file",
        CreateHow::Exclusive([3; 8]),
        attr,
    );
    let file = file.unwrap().value.attr.id;
    fs.write(Ctx::new(&root), file, 1 << 40, Bytes::from(content()))
        .unwrap();
    fs.link(Ctx::new(&root), file, fs.root(), b"second name")
        .unwrap();
    fs.symlink(Ctx::new(&root), dir, b"link", &[b'x'; 3000], attr)
        .unwrap();
    let device = NodeKind::Block(Rdev {
        major: 8,
        minor: 300,
    });
    fs.mknod(Ctx::new(&root), dir, &[0xfe; 255], device, attr)
        .unwrap();
    fs.set_xattr(
        Ctx::new(&root),
        dir,
        b"user.long",
        &[9; 5000],
        XattrHow::Set,
    )
    .unwrap();
    let lock = LockCall {
        family: LockFamily::Range,
        owner: LockOwner::Nlm {
            host: b"client".to_vec(),
            handle: vec![1, 2],
            svid: 77,
        },
        kind: LockKind::Shared,
        range: LockRange::from_len(100, 1),
    };
    fs.lock(file, &lock, None).unwrap();
    let ctx = Ctx {
        replay: Some(Replay {
            client: 5,
            key: b"key",
            encode: &|_| b"answer".to_vec(),
        }),
        ..Ctx::new(&root)
    };
    fs.mkdir(ctx, fs.root(), b"with answer", attr).unwrap();
    fs.close().unwrap();
    volume.fork()
}

fn look(volume: Arc<MemVolume>) {
    let report = fsck(&*volume).unwrap();
    assert!(report.is_clean(), "{report}");
    let fs = Fs::mount(volume, Settings::default()).unwrap();
    let root = Creds::root();
    let dir = fs.lookup(&root, fs.root(), b"dir").unwrap().0;
    assert_eq!((dir.mode, dir.nlink, dir.kind), (0o750, 2, FileKind::Dir));
    let file = fs.lookup(&root, dir.id, b"file").unwrap().0;
    assert_eq!((file.nlink, file.size), (2, (1 << 40) + 20_000));
    let out = fs.read(&root, file.id, 1 << 40, 1 << 20).unwrap();
    assert_eq!(out.concat()[..], content()[..]);
    let link = fs.lookup(&root, dir.id, b"link").unwrap().0;
    assert_eq!(fs.readlink(&root, link.id).unwrap().0[..], [b'x'; 3000]);
    let device = fs.lookup(&root, dir.id, &[0xfe; 255]).unwrap().0;
    assert_eq!(
        device.rdev,
        Rdev {
            major: 8,
            minor: 300
        }
    );
    assert_eq!(
        fs.get_xattr(&root, dir.id, b"user.long").unwrap()[..],
        [9; 5000]
    );
    let locks = fs.lock_list(10);
    assert_eq!(locks.len(), 1);
    assert_eq!(
        locks[0].1.range,
        LockRange {
            start: 100,
            end: 101
        }
    );
    assert_eq!(fs.replay(5, b"key").unwrap().unwrap(), "answer");
    let again = fs.create(
        Ctx::new(&root),
        dir.id,
        b"file",
        CreateHow::Exclusive([3; 8]),
        NewAttr::default(),
    );
    assert!(!again.unwrap().value.created);
}

#[test]
fn the_first_version_stays_readable() {
    if std::env::var_os("TRIVET_BLESS").is_some() {
        assert!(!image().exists(), "the golden image is never made anew");
        let volume = make();
        let mut out = Vec::new();
        for block in 0..BLOCKS {
            let mut data = [0; BLOCK_BYTES];
            volume.read(Block(block), &mut data).unwrap();
            if data.iter().any(|b| *b != 0) {
                out.extend_from_slice(&block.to_le_bytes());
                out.extend_from_slice(&data);
            }
        }
        std::fs::write(image(), out).unwrap();
    }
    let volume = MemVolume::new(BLOCKS);
    for record in std::fs::read(image()).unwrap().chunks(8 + BLOCK_BYTES) {
        let block = u64::from_le_bytes(record[..8].try_into().unwrap());
        let data = Bytes::copy_from_slice(&record[8..]);
        volume.submit(Batch::write(Block(block), data)).unwrap();
    }
    look(Arc::new(volume));
}

#[test]
fn what_is_made_today_reads_the_same() {
    look(Arc::new(make()));
}

/// The documented places of the superblock's fields, and of the first pages.
#[test]
fn a_new_file_system_has_the_documented_bytes() {
    let volume = MemVolume::new(BLOCKS);
    mkfs(&volume, &fixed()).unwrap();
    let mut b = [0; 4096];
    volume.read(Block(0), &mut b).unwrap();
    let u64_at = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
    assert_eq!(&b[..8], b"TRIVETFS");
    assert_eq!(b[12..16], 1u32.to_le_bytes());
    assert_eq!(b[40..56], [0xab; 16]);
    assert_eq!(b[112..144], [0x17; 32]);
    let fields: Vec<u64> = (56..112).step_by(8).map(|at| u64_at(&b, at)).collect();
    // Two groups: 32,256 blocks and the rest; reserved are 0, 1, and 32,256; the root is 2.
    let free = BLOCKS - 4;
    assert_eq!(
        fields,
        [BLOCKS, 2, 1, 2, free, 1, 1_000_000_000_123_456_789]
    );
    assert!(b[160..].iter().all(|x| *x == 0));
    for (block, kind) in [(1, 3), (2, 1)] {
        volume.read(Block(block), &mut b).unwrap();
        assert_eq!(&b[..4], b"TvFp");
        assert_eq!((u64_at(&b, 8), u64_at(&b, 16), b[24]), (block, 1, kind));
    }
    assert_eq!(
        u64_at(&b, 4096 - 195) >> 56,
        1,
        "the root's key ends in inode 1"
    );
}
