//! A region made by the first version of the format must stay readable for ever.
//!
//! `golden/v1.region` holds its files, one after the other: length of the name (u8), name, size
//! (u64), number of pages that are not all zeros (u32), then each page's number (u64) and its
//! 4,096 bytes; integers little-endian. It was made by
//! `TRIVET_BLESS=1 cargo test -p trivet-downstairs --test golden`, which refuses to overwrite it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use trivet_downstairs::checkpoint::Step;
use trivet_downstairs::disk::{Disk, RealDisk};
use trivet_downstairs::log::replay::Tail;
use trivet_downstairs::offline::{ExportOptions, export, verify};
use trivet_downstairs::{Region, Store};
use trivet_protocol::entry::BatchOp;
use trivet_protocol::{
    BLOCK_BYTES, Batch, Block, Entry, MemberId, NullRecorder, Position, Seq, VolumeId,
};

const BLOCKS: u64 = 1000;
const PAGE: usize = 4096;
/// What the member's state is, is not the region's business: any bytes.
const STATE: &[u8] = b"{\"a member's\": \"state\"}";

fn image() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1.region")
}

fn volume() -> VolumeId {
    VolumeId::from_bytes([0xab; 16])
}

fn member() -> MemberId {
    MemberId::from_bytes([0x17; 16])
}

fn fill(byte: u8, blocks: usize) -> Bytes {
    (0..blocks * BLOCK_BYTES)
        .map(|i| byte ^ (i / 512) as u8)
        .collect::<Vec<u8>>()
        .into()
}

/// The history: what each operation was, of which generation, with what content.
fn history() -> Vec<Entry> {
    let write = |block, data| BatchOp::Write {
        block: Block(block),
        data,
    };
    let discard = |block, count| BatchOp::Discard {
        block: Block(block),
        count,
    };
    let entry = |seq, generation, ops| Entry::new(volume(), Seq(seq), generation, Batch { ops });
    vec![
        entry(1, 1, vec![write(3, fill(1, 1))]),
        // New and long: its data goes straight to its place.
        entry(2, 1, vec![write(64, fill(2, 16))]),
        entry(3, 1, vec![write(10, fill(3, 2)), write(500, fill(4, 1))]),
        entry(4, 2, vec![discard(70, 4), write(11, fill(5, 1))]),
        // What follows stays in the log.
        entry(5, 2, vec![write(3, fill(6, 1)), discard(500, 1)]),
        entry(6, 3, vec![write(999, fill(7, 1))]),
    ]
}

/// The content that this makes; `None`: unwritten.
fn expected() -> Vec<Option<Bytes>> {
    let mut all = vec![None; BLOCKS as usize];
    for (block, data) in [
        (3, fill(6, 1)),
        (64, fill(2, 16)),
        (10, fill(3, 2)),
        (11, fill(5, 1)),
        (999, fill(7, 1)),
    ] {
        for (i, part) in data.chunks(BLOCK_BYTES).enumerate() {
            all[block + i] = Some(Bytes::copy_from_slice(part));
        }
    }
    all[70..74].fill(None);
    all
}

fn make(dir: &Path) {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(dir, Arc::new(NullRecorder)));
    let mut region = Region::new(volume(), member(), BLOCKS);
    (region.extent_blocks, region.log_bytes) = (64, 2 << 20);
    Store::create(&disk, &region).unwrap();
    let (mut store, _) = Store::open(disk, None, Arc::new(NullRecorder)).unwrap();
    store.set_member_state(STATE.to_vec()).unwrap();
    let history = history();
    for entry in &history[..4] {
        store.append(entry).unwrap();
    }
    store.sync().unwrap();
    store.set_commit(Seq(4));
    let mut job = store.begin_checkpoint().unwrap().unwrap();
    while job.step().unwrap() == Step::More {}
    store.finish_checkpoint(job, Ok(Step::Done)).unwrap();
    for entry in &history[4..] {
        store.append(entry).unwrap();
    }
    store.sync().unwrap();
}

fn pack(dir: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(at) = open.pop() {
        let mut names: Vec<_> = fs::read_dir(dir.join(&at))
            .unwrap()
            .map(|e| e.unwrap())
            .collect();
        names.sort_by_key(|e| e.file_name());
        for entry in names {
            let name = at.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                open.push(name);
                continue;
            }
            let content = fs::read(entry.path()).unwrap();
            let text = name.to_str().unwrap();
            out.push(text.len() as u8);
            out.extend(text.as_bytes());
            out.extend((content.len() as u64).to_le_bytes());
            let pages = (0u64..).zip(content.chunks(PAGE));
            let used: Vec<_> = pages.filter(|(_, p)| p.iter().any(|b| *b != 0)).collect();
            out.extend((used.len() as u32).to_le_bytes());
            for (no, page) in used {
                out.extend(no.to_le_bytes());
                out.extend(page);
                out.extend(vec![0; PAGE - page.len()]);
            }
        }
    }
    out
}

fn unpack(dir: &Path) {
    let image = fs::read(image()).unwrap();
    let mut rest = &image[..];
    fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
        let mut out = [0; N];
        rest.read_exact(&mut out).unwrap();
        out
    }
    while !rest.is_empty() {
        let [len] = take(&mut rest);
        let (name, after) = rest.split_at(usize::from(len));
        rest = after;
        let path = dir.join(std::str::from_utf8(name).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = fs::File::create_new(path).unwrap();
        let size = u64::from_le_bytes(take(&mut rest));
        for _ in 0..u32::from_le_bytes(take(&mut rest)) {
            let at = u64::from_le_bytes(take(&mut rest)) * PAGE as u64;
            let page: [u8; PAGE] = take(&mut rest);
            file.write_all_at(&page, at).unwrap();
        }
        file.set_len(size).unwrap();
    }
}

#[test]
fn the_first_versions_region_is_read_to_the_byte() {
    if std::env::var_os("TRIVET_BLESS").is_some() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        let mut file = fs::File::create_new(image()).unwrap();
        std::io::Write::write_all(&mut file, &pack(dir.path())).unwrap();
    }
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("region");
    unpack(&dir);

    // First with the tools that change nothing, then as a daemon would, twice.
    let verified = verify(&dir, &mut |_, _| {}).unwrap();
    assert!(verified.is_sound(), "{verified:?}");
    let raw = scratch.path().join("raw");
    export(&dir, &raw, ExportOptions::default(), &mut |_, _| {}).unwrap();
    let raw = fs::read(raw).unwrap();
    for (i, want) in expected().iter().enumerate() {
        let got = &raw[i * BLOCK_BYTES..][..BLOCK_BYTES];
        let zeros = Bytes::from(vec![0; BLOCK_BYTES]);
        assert!(
            got == want.as_ref().unwrap_or(&zeros),
            "block {i} as exported"
        );
    }
    for opening in 1..3 {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&dir, Arc::new(NullRecorder)));
        let who = Some((volume(), member()));
        let (store, report) = Store::open(disk, who, Arc::new(NullRecorder)).unwrap();
        assert_eq!(report.tail, Tail::Sure);
        assert_eq!(store.opens(), 1 + opening);
        let end = Position {
            generation: 3,
            seq: Seq(6),
        };
        assert_eq!((store.end(), store.commit()), (end, Seq(4)));
        assert_eq!(store.checkpointed().seq, Seq(4));
        let rows = store.generation_table().rows().to_vec();
        assert_eq!(rows, [(1, Seq(3)), (2, Seq(5)), (3, Seq(6))]);
        assert_eq!(store.member_state(), STATE);
        for (i, want) in expected().iter().enumerate() {
            let got = store.read(Block(i as u64), 1).unwrap();
            assert_eq!(got.sums[0].is_unwritten(), want.is_none(), "block {i}");
            assert!(want.as_ref().is_none_or(|w| got.data == w[..]), "block {i}");
        }
    }
}
