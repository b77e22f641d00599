//! A million files in one directory, on three replicas: made until the process is killed with -9,
//! mounted again within a second, listed with cookies that stay. For minutes, so it runs in
//! `make test-long` and prints its figures.
//!
//! The test starts itself anew as the process that makes the files and is killed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use trivet_cluster::{Embedded, Options};
use trivet_fs::{
    CreateHow, Creds, Ctx, Door, Fs, InodeId, MkfsOptions, NewAttr, Settings, Vfs, mkfs,
};
use trivet_replica::Volume;

const FILES: u64 = 1_000_000;
/// What mounting may take.
const MOUNT: Duration = Duration::from_secs(1);
/// Memory of the process with all three replicas in it, in MiB.
const MEMORY: u64 = 512;
/// Entries asked for at once.
const PAGE: usize = 1024;
const DIR: &str = "TRIVET_MILLION";
const DOOR: Door = Door(9);

fn open(dir: &Path) -> (Embedded, Arc<dyn Volume>) {
    let embedded = Embedded::open_or_create(dir, 64 << 30, Options::default()).unwrap();
    let volume: Arc<dyn Volume> = embedded.volume();
    (embedded, volume)
}

/// Makes the files, makes them durable, says so, and goes on making and deleting until killed.
fn make(dir: &Path) -> ! {
    let (_embedded, volume) = open(dir);
    mkfs(&*volume, &MkfsOptions::default()).unwrap();
    let fs = Fs::mount(volume, Settings::default()).unwrap();
    let creds = Creds::root();
    let create = |i: u64| {
        let name = format!("file-{i:08}");
        let (ctx, attr) = (Ctx::by(&creds, DOOR), NewAttr::default());
        let how = CreateHow::Guarded;
        let made = fs.create(ctx, InodeId::ROOT, name.as_bytes(), how, attr);
        made.unwrap().mark
    };
    let mut mark = None;
    (0..FILES).for_each(|i| mark = Some(create(i)));
    fs.flush(mark.unwrap()).unwrap();
    println!("\nall are durable; at most {} MiB", memory());
    for i in FILES.. {
        let mark = create(i);
        let name = format!("file-{:08}", i - 100);
        if i > FILES + 100 {
            let ctx = Ctx::by(&creds, DOOR);
            fs.unlink(ctx, InodeId::ROOT, name.as_bytes()).unwrap();
        }
        if i % 64 == 0 {
            fs.flush(mark).unwrap();
        }
    }
    unreachable!("killed before")
}

/// The most that this process has had in memory, in MiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}

/// Cookies and names from a cookie on.
fn list(fs: &Fs, from: u64) -> Vec<(u64, Vec<u8>)> {
    let (creds, mut all, mut cookie) = (Creds::root(), Vec::new(), from);
    loop {
        let page = fs
            .readdir(&creds, InodeId::ROOT, cookie, PAGE, false)
            .unwrap();
        assert!(page.entries.len() <= PAGE);
        for e in page.entries {
            assert!(e.cookie > cookie, "cookies only grow");
            cookie = e.cookie;
            all.push((cookie, e.name.to_vec()));
        }
        if page.eof {
            return all;
        }
    }
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn a_million_files_are_mounted_in_a_second_after_a_kill_and_listed() {
    if let Some(dir) = std::env::var_os(DIR) {
        make(Path::new(&dir));
    }
    let dir = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or("/var/tmp".into()));
    let dir = dir.unwrap();
    // Given a process that has made them, and is killed in the middle of making more;
    let began = Instant::now();
    let name = "a_million_files_are_mounted_in_a_second_after_a_kill_and_listed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", name])
        .env(DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.find_map(|l| {
        l.unwrap()
            .strip_prefix("all are durable; ")
            .map(str::to_owned)
    });
    let said = said.expect("the process that makes the files ended early");
    println!(
        "{FILES} files made in {:.0} s, {said}",
        began.elapsed().as_secs_f64()
    );
    std::thread::sleep(Duration::from_millis(300)); // somewhere in the middle
    child.kill().unwrap();
    child.wait().unwrap();

    // when the file system is mounted again, it takes a second at most;
    let (embedded, volume) = open(dir.path());
    let began = Instant::now();
    let fs = Fs::mount(volume.clone(), Settings::default()).unwrap();
    let took = began.elapsed();
    println!("mounted in {} ms", took.as_millis());
    assert!(took <= MOUNT, "mounting took {took:?}");
    assert!(fs.statfs().unwrap().inodes >= FILES);

    // then all files are there, each once, and cookies hold while names come and go.
    let began = Instant::now();
    let all = list(&fs, 0);
    println!(
        "{} names listed in {} ms",
        all.len(),
        began.elapsed().as_millis()
    );
    let mut names: Vec<&[u8]> = all.iter().map(|(_, n)| &n[..]).collect();
    names.sort_unstable();
    assert!(
        names.windows(2).all(|w| w[0] != w[1]),
        "a name is listed twice"
    );
    for i in (0..FILES).step_by(997) {
        let name = format!("file-{i:08}").into_bytes();
        assert!(names.binary_search(&&name[..]).is_ok(), "file {i} is gone");
    }
    let old = names.iter().filter(|n| n.starts_with(b"file-00")).count() as u64;
    assert_eq!(old, FILES);
    let (creds, middle) = (Creds::root(), all.len() / 2);
    for (_, name) in all[middle..].iter().step_by(2).take(1000) {
        let ctx = Ctx::by(&creds, DOOR);
        fs.unlink(ctx, InodeId::ROOT, name).unwrap();
    }
    fs.close().unwrap();
    drop(fs);
    let fs = Fs::mount(volume, Settings::default()).unwrap();
    let left = all[middle..].iter().enumerate();
    let left = left.filter(|(i, _)| i % 2 == 1 || *i >= 2000);
    let left: Vec<_> = left.map(|(_, e)| e.clone()).collect();
    assert_eq!(list(&fs, all[middle - 1].0), left);

    fs.close().unwrap();
    let memory = memory();
    println!("at most {memory} MiB in memory");
    assert!(memory <= MEMORY, "{memory} MiB");
    drop(fs);
    embedded.close().unwrap();
}
