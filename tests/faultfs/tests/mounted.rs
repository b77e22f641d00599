//! The failing disk as programs see it, through a real mount.
//!
//! Needs the right to mount FUSE; without it each test says that it was skipped, which CI does
//! not accept.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use trivet_faultfs::{Client, Mounted, skipped};

struct World {
    mounted: Mounted,
    _dir: tempfile::TempDir,
}

impl World {
    /// `None`, and a line in the list of skips, where FUSE cannot be mounted.
    fn new(test: &str) -> Option<World> {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        match Mounted::new(&dir.path().join("backing"), &at) {
            Ok(mounted) => Some(World { mounted, _dir: dir }),
            Err(e) => {
                let why = format!("FUSE cannot be mounted here: {e}");
                skipped(&format!("faultfs {test}"), &why).unwrap();
                None
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mounted.path().join(name)
    }

    fn rule(&self, words: &str) {
        self.mounted.control().rule(words).unwrap();
    }

    fn cut(&self, seed: u64, keep: u8) {
        let report = self.mounted.control().cut(seed, keep).unwrap();
        eprintln!("cut: {report}");
        self.mounted.control().power_on();
    }

    /// A file whose name and `len` bytes of 1 are durable.
    fn synced_file(&self, name: &str, len: usize) -> File {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path(name))
            .unwrap();
        file.write_all_at(&vec![1; len], 0).unwrap();
        file.sync_all().unwrap();
        self.sync_dir("");
        file
    }

    fn sync_dir(&self, name: &str) {
        File::open(self.path(name)).unwrap().sync_all().unwrap();
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn ordinary_use_is_as_on_any_file_system() {
    let Some(w) = World::new("ordinary") else {
        return;
    };
    let (a, b) = (w.path("a"), w.path("d/b"));
    std::fs::create_dir(w.path("d")).unwrap();
    std::fs::write(&a, vec![7; 3_000_000]).unwrap();
    std::fs::rename(&a, &b).unwrap();
    assert_eq!(read(&b), vec![7; 3_000_000]);
    std::fs::hard_link(&b, &a).unwrap();
    std::os::unix::fs::symlink("d/b", w.path("s")).unwrap();
    assert_eq!(std::fs::read_link(w.path("s")).unwrap(), Path::new("d/b"));
    assert_eq!(read(&w.path("s")).len(), 3_000_000);
    let mut names: Vec<_> = std::fs::read_dir(w.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "d", "s"]);
    assert_eq!(
        std::fs::remove_dir(w.path("d")).unwrap_err().kind(),
        ErrorKind::DirectoryNotEmpty
    );
    std::fs::remove_file(&b).unwrap();
    std::fs::remove_dir(w.path("d")).unwrap();
    let f = OpenOptions::new().append(true).read(true).open(&a).unwrap();
    (&f).write_all(b"end").unwrap();
    f.set_len(3_000_002).unwrap();
    assert_eq!(read(&a)[2_999_999..], [7, b'e', b'n']);
    let s = rustix::fs::statvfs(&a).unwrap();
    assert!(s.f_blocks > 0 && s.f_bavail > 0);
}

#[test]
fn holes_are_punched_found_and_taken_back() {
    let Some(w) = World::new("holes") else { return };
    let f = w.synced_file("f", 1 << 20);
    use rustix::fs::{FallocateFlags, SeekFrom};
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&f, punch, 4096, 8192).unwrap();
    assert_eq!(rustix::fs::seek(&f, SeekFrom::Hole(0)).unwrap(), 4096);
    assert_eq!(rustix::fs::seek(&f, SeekFrom::Data(4096)).unwrap(), 12288);
    assert_eq!(read(&w.path("f"))[4096], 0);
    drop(f);
    w.cut(1, 0);
    assert_eq!(
        read(&w.path("f")),
        vec![1; 1 << 20],
        "an unsynced hole is filled again"
    );
}

#[test]
fn a_cut_loses_all_that_is_unsynced_and_nothing_else() {
    let Some(w) = World::new("lose all") else {
        return;
    };
    let f = w.synced_file("f", 10_000);
    f.write_all_at(&[2; 5000], 2000).unwrap();
    f.sync_data().unwrap();
    f.write_all_at(&[3; 9000], 4000).unwrap();
    File::create(w.path("unsynced"))
        .unwrap()
        .sync_all()
        .unwrap();
    std::fs::rename(w.path("f"), w.path("g")).unwrap();
    assert!(f.metadata().unwrap().len() == 13_000);
    w.cut(1, 0);
    let mut expected = vec![1; 10_000];
    expected[2000..7000].fill(2);
    assert_eq!(read(&w.path("f")), expected);
    let names = std::fs::read_dir(w.path("")).unwrap().count();
    assert_eq!(names, 1, "a file's own sync does not make its name durable");
}

#[test]
fn a_durable_open_needs_no_sync() {
    let Some(w) = World::new("dsync") else { return };
    drop(w.synced_file("f", 4096));
    const O_DSYNC: i32 = 0o10000;
    let f = File::options()
        .write(true)
        .custom_flags(O_DSYNC)
        .open(w.path("f"))
        .unwrap();
    f.write_all_at(&[5; 4096], 0).unwrap();
    w.cut(1, 0);
    assert_eq!(read(&w.path("f")), vec![5; 4096]);
}

#[test]
fn many_cuts_never_touch_what_was_synced() {
    let Some(w) = World::new("many") else { return };
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1u64);
    eprintln!("SEED={seed}");
    drop(w.synced_file("f", 64 * 512));
    let mut torn = 0;
    for round in 0..30u8 {
        let before = read(&w.path("f"));
        let f = File::options().write(true).open(w.path("f")).unwrap();
        // The first half synced, the second half not.
        f.write_all_at(&[round; 32 * 512], 0).unwrap();
        f.sync_data().unwrap();
        f.write_all_at(&[round; 32 * 512], 32 * 512).unwrap();
        drop(f);
        w.cut(seed + u64::from(round), 50);
        let after = read(&w.path("f"));
        assert_eq!(after[..32 * 512], [round; 32 * 512]);
        for (i, sector) in after.chunks(512).enumerate().skip(32) {
            let old = &before[i * 512..(i + 1) * 512];
            assert!(
                sector == [round; 512] || sector == old,
                "sector {i} of round {round}"
            );
            torn += usize::from(sector == old);
        }
    }
    assert!((300..700).contains(&torn), "{torn} of 960 lost");
}

#[test]
fn handles_do_not_survive_a_cut() {
    let Some(w) = World::new("handles") else {
        return;
    };
    let f = w.synced_file("f", 512);
    w.mounted.control().cut(1, 50).unwrap();
    assert!(File::open(w.path("f")).is_err(), "no power");
    w.mounted.control().power_on();
    assert!(f.write_all_at(&[2; 512], 0).is_err() && f.sync_all().is_err());
    assert_eq!(read(&w.path("f")), [1; 512]);
}

#[test]
fn errors_come_as_ordered_and_a_failed_sync_is_never_made_good() {
    let Some(w) = World::new("errors") else {
        return;
    };
    let f = w.synced_file("log", 4096);
    w.rule("fail read EIO path=log count=1");
    w.rule("fail write ENOSPC path=log count=1");
    w.rule("fail sync EIO path=log count=1");
    w.rule("fail name,alloc ENOSPC");
    let mut one = [0; 1];
    assert_eq!(f.read_at(&mut one, 0).unwrap_err().raw_os_error(), Some(5));
    f.read_at(&mut one, 0).unwrap();
    let full = f.write_at(&[2; 4096], 0).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    f.write_all_at(&[3; 4096], 0).unwrap();
    assert_eq!(f.sync_data().unwrap_err().raw_os_error(), Some(5));
    f.sync_data().unwrap();
    assert_eq!(
        File::create(w.path("x")).unwrap_err().kind(),
        ErrorKind::StorageFull
    );
    let none = rustix::fs::FallocateFlags::empty();
    assert!(rustix::fs::fallocate(&f, none, 0, 8192).is_err());
    w.mounted.control().clear();
    w.cut(1, 100);
    assert_eq!(
        read(&w.path("log")),
        [1; 4096],
        "the retried sync promised too much"
    );
}

#[test]
fn a_lying_sync_and_a_torn_write() {
    let Some(w) = World::new("lie, tear") else {
        return;
    };
    let f = w.synced_file("f", 64 * 512);
    w.rule("lie path=f");
    f.write_all_at(&[2; 512], 0).unwrap();
    f.sync_data().unwrap();
    w.mounted.control().clear();
    w.cut(1, 0);
    assert_eq!(read(&w.path("f"))[..512], [1; 512]);
    let f = File::options().write(true).open(w.path("f")).unwrap();
    w.rule("tear count=1");
    assert!(f.write_all_at(&[9; 64 * 512], 0).is_err());
    let got = read(&w.path("f"));
    assert!(got.contains(&1) && got.contains(&9));
    assert!(got.chunks(512).all(|s| s.iter().all(|b| *b == s[0])));
}

#[test]
fn what_hangs_goes_on_when_released_and_fails_when_cut() {
    let Some(w) = World::new("hang") else { return };
    let f = w.synced_file("f", 512);
    let other = w.synced_file("other", 512);
    let hung = |n: u64| {
        let until = Instant::now() + Duration::from_secs(10);
        let want = format!("hanging={n}");
        while !w.mounted.control().status().contains(&want) {
            assert!(Instant::now() < until, "{}", w.mounted.control().status());
            std::thread::yield_now();
        }
    };
    for cut in [false, true] {
        w.rule("hang sync path=/f");
        std::thread::scope(|s| {
            f.write_all_at(&[2; 512], 0).unwrap();
            let syncing = s.spawn(|| f.sync_data());
            hung(1);
            other.sync_data().unwrap();
            match cut {
                true => w.cut(1, 0),
                false => w.mounted.control().release(),
            }
            assert_eq!(syncing.join().unwrap().is_err(), cut);
        });
        hung(0);
    }
}

#[test]
fn commands_come_over_the_socket_too() {
    let Some(w) = World::new("socket") else {
        return;
    };
    let socket = w.path("").with_file_name("control");
    let (control, at) = (w.mounted.control().clone(), socket.clone());
    // Serves for as long as the test's process lives.
    std::thread::spawn(move || control.serve(&at));
    let until = Instant::now() + Duration::from_secs(10);
    let mut client = loop {
        match Client::connect(&socket) {
            Ok(client) => break client,
            Err(e) => assert!(Instant::now() < until, "{e}"),
        }
    };
    let mut give = |line: &str| client.command(line).map_err(|e| e.to_string());
    drop(w.synced_file("f", 512));
    assert!(
        give("status")
            .unwrap()
            .starts_with("power=on unsynced_files=0")
    );
    give("fail open EIO").unwrap();
    assert!(File::open(w.path("f")).is_err());
    give("clear").unwrap();
    assert_eq!(
        give("cut seed=5 keep=0").unwrap(),
        "seed=5 sectors=0/0 names=0/0"
    );
    assert!(give("status").unwrap().starts_with("power=off"));
    give("on").unwrap();
    File::open(w.path("f")).unwrap();
    assert!(give("explode").unwrap_err().contains("no rule explode"));
    assert!(give("cut keep=101").is_err());
}
