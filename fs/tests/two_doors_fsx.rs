//! fsx with two doors: random calls on one file, each through the FUSE mount or the library, and
//! after each both must see what a plain array holds. `TRIVET_SEED=n` repeats a run,
//! `TRIVET_SEEDS=n` makes more of them. Needs /dev/fuse and root; says so and passes where they
//! are missing.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use common::{MemVolume, Rng, seeds};
use trivet_fs::fuse::{FuseOptions, mount};
use trivet_fs::*;

/// The file never grows beyond this.
const MOST: u64 = 600_000;

struct Doors {
    lib: Arc<Fs>,
    id: InodeId,
    /// The mount's: one that goes through the page cache, one past it.
    cached: File,
    direct: File,
    model: Vec<u8>,
}

impl Doors {
    fn write(&mut self, rng: &mut Rng) {
        let at = rng.below(MOST - 1);
        let len = 1 + rng.below((MOST - at).min(70_000));
        let data = vec![1 + rng.below(255) as u8; len as usize];
        match rng.below(3) {
            0 => self.cached.write_all_at(&data, at).unwrap(),
            1 => self.direct.write_all_at(&data, at).unwrap(),
            _ => {
                let ctx = Creds::root();
                let data = Bytes::from(data.clone());
                self.lib.write(Ctx::new(&ctx), self.id, at, data).unwrap();
            }
        }
        let (at, end) = (at as usize, at as usize + data.len());
        self.model.resize(self.model.len().max(end), 0);
        self.model[at..end].copy_from_slice(&data);
    }

    fn truncate(&mut self, rng: &mut Rng) {
        let size = rng.below(MOST);
        match rng.below(2) {
            0 => self.cached.set_len(size).unwrap(),
            _ => {
                let (root, set) = (
                    Creds::root(),
                    SetAttr {
                        size: Some(size),
                        ..SetAttr::default()
                    },
                );
                self.lib.setattr(Ctx::new(&root), self.id, set).unwrap();
            }
        }
        self.model.resize(size as usize, 0);
    }

    fn punch(&mut self, rng: &mut Rng) {
        if self.model.is_empty() {
            return;
        }
        let at = rng.below(self.model.len() as u64);
        let len = 1 + rng.below(self.model.len() as u64 - at);
        match rng.below(2) {
            0 => rustix::fs::fallocate(
                &self.cached,
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
                at,
                len,
            )
            .unwrap(),
            _ => {
                let root = Creds::root();
                self.lib
                    .fallocate(Ctx::new(&root), self.id, at, len, Fallocate::PunchHole)
                    .map(|_| ())
                    .unwrap();
            }
        }
        self.model[at as usize..(at + len) as usize].fill(0);
    }

    /// A range through every door, and the size.
    fn look(&self, rng: &mut Rng, what: &str) {
        let size = self.model.len() as u64;
        assert_eq!(self.cached.metadata().unwrap().len(), size, "{what}: size");
        assert_eq!(self.lib.getattr(self.id).unwrap().size, size, "{what}");
        let at = rng.below(MOST);
        let len = 1 + rng.below(100_000);
        let end = (at + len).min(size);
        let want = match at < end {
            true => &self.model[at as usize..end as usize],
            false => &[],
        };
        let from = |file: &File| {
            let (mut buf, mut n) = (vec![0; len as usize], 0);
            loop {
                match file.read_at(&mut buf[n..], at + n as u64).unwrap() {
                    0 => break,
                    more => n += more,
                }
            }
            buf.truncate(n);
            buf
        };
        assert!(from(&self.cached) == want, "{what}: the page cache");
        assert!(from(&self.direct) == want, "{what}: past the page cache");
        let out = self
            .lib
            .read(&Creds::root(), self.id, at, len as u32)
            .unwrap();
        assert!(out.concat()[..] == *want, "{what}: the library");
    }
}

fn open(path: &Path, direct: bool) -> File {
    let flags = match direct {
        true => rustix::fs::OFlags::DIRECT.bits() as i32,
        false => 0,
    };
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(flags)
        .open(path)
        .unwrap()
}

#[test]
fn both_doors_always_see_the_same() {
    for seed in seeds(4) {
        println!("TRIVET_SEED={seed}");
        let mut rng = Rng::new(seed);
        let volume = Arc::new(MemVolume::new(40_000));
        mkfs(&*volume, &MkfsOptions::default()).unwrap();
        let lib = Fs::mount(volume.clone(), Settings::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mounted = match mount(lib.clone(), dir.path(), &FuseOptions::default()) {
            Ok(mounted) => mounted,
            Err(e) => {
                let why = format!("cannot mount FUSE here: {e}");
                return trivet_faultfs::skipped("two-door fsx", &why).unwrap();
            }
        };
        let path = dir.path().join("f");
        let (cached, direct) = (open(&path, false), open(&path, true));
        let id = lib.lookup(&Creds::root(), lib.root(), b"f").unwrap().0.id;
        let mut doors = Doors {
            lib: lib.clone(),
            id,
            cached,
            direct,
            model: Vec::new(),
        };
        for step in 0..600 {
            match rng.below(10) {
                0 => doors.truncate(&mut rng),
                1 => doors.punch(&mut rng),
                2 => doors.cached.sync_data().unwrap(),
                _ => doors.write(&mut rng),
            }
            doors.look(&mut rng, &format!("seed {seed}, step {step}"));
        }
        drop(doors);
        assert!(mounted.unmount().unwrap());
        lib.close().unwrap();
        let report = fsck(&*volume).unwrap();
        assert!(report.is_clean(), "seed {seed}: {report}");
    }
}

/// What one door was told is done, the other sees: never an older stamp, whatever the kernel is
/// just reading ahead.
#[test]
fn a_reader_never_goes_back_behind_a_finished_write() {
    const BLOCKS: u64 = 16;
    let volume = Arc::new(MemVolume::new(40_000));
    mkfs(&*volume, &MkfsOptions::default()).unwrap();
    let lib = Fs::mount(volume, Settings::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mounted = match mount(lib.clone(), dir.path(), &FuseOptions::default()) {
        Ok(mounted) => mounted,
        Err(e) => {
            let why = format!("cannot mount FUSE here: {e}");
            return trivet_faultfs::skipped("two doors at once", &why).unwrap();
        }
    };
    let file = open(&dir.path().join("f"), false);
    file.write_all_at(&vec![0; (BLOCKS * 4096) as usize], 0)
        .unwrap();
    let id = lib.lookup(&Creds::root(), lib.root(), b"f").unwrap().0.id;
    let finished: Vec<AtomicU64> = (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut buf = [0; 4096];
                while !end.load(Ordering::Acquire) {
                    for block in 0..BLOCKS {
                        let before = finished[block as usize].load(Ordering::Acquire);
                        file.read_exact_at(&mut buf, block * 4096).unwrap();
                        let stamp = u64::from_le_bytes(buf[..8].try_into().unwrap());
                        assert!(stamp >= before, "block {block}: {stamp} after {before}");
                    }
                }
            });
        }
        for stamp in 1..=400u64 {
            for block in 0..BLOCKS {
                let data = Bytes::from([stamp.to_le_bytes(); 512].concat());
                let root = Creds::root();
                lib.write(Ctx::new(&root), id, block * 4096, data).unwrap();
                finished[block as usize].store(stamp, Ordering::Release);
            }
        }
        end.store(true, Ordering::Release);
    });
    drop(file);
    assert!(mounted.unmount().unwrap());
    lib.close().unwrap();
}
