//! What holds for a mounted directory whatever the kernel does on its side: running programs, a
//! volume that is lost. Needs /dev/fuse and root; says so and passes where they are missing.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::MemVolume;
use trivet_fs::fuse::{FuseOptions, Mounted, mount};
use trivet_fs::*;

struct Here {
    volume: Arc<MemVolume>,
    fs: Arc<Fs>,
    mounted: Mounted,
    dir: tempfile::TempDir,
}

fn here(test: &str, options: &FuseOptions) -> Option<Here> {
    let volume = Arc::new(MemVolume::new(40_000));
    mkfs(&*volume, &MkfsOptions::default()).unwrap();
    let fs = Fs::mount(volume.clone(), Settings::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    match mount(fs.clone(), dir.path(), options) {
        Ok(mounted) => Some(Here {
            volume,
            fs,
            mounted,
            dir,
        }),
        Err(e) => {
            trivet_faultfs::skipped(test, &format!("cannot mount FUSE here: {e}")).unwrap();
            None
        }
    }
}

fn code(e: &std::io::Error) -> i32 {
    e.raw_os_error().unwrap()
}

/// pjdfstest's `open::etxtbsy` failed about once in ten runs: with `ATOMIC_O_TRUNC` the kernel
/// sent the truncation along with `open`, and looked only then whether the file is a running
/// program. The program had lost its text, died, and sometimes did so before the look.
#[test]
fn a_running_program_is_not_truncated() {
    let Some(h) = here("a running program", &FuseOptions::default()) else {
        return;
    };
    let exe = h.dir.path().join("sleep");
    fs::copy("/bin/sleep", &exe).unwrap();
    fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
    let before = fs::read(&exe).unwrap();
    let mut child = Command::new(&exe).arg("600").spawn().unwrap();
    let path = std::ffi::CString::new(exe.as_os_str().as_encoded_bytes()).unwrap();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC;
    let refused = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap_err();
    assert_eq!(refused, rustix::io::Errno::TXTBSY);
    assert_eq!(fs::read(&exe).unwrap(), before);
    assert!(child.try_wait().unwrap().is_none(), "it goes on");
    child.kill().unwrap();
    child.wait().unwrap();
    // When it has ended it may be truncated.
    let file = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
    drop(file);
    assert_eq!(fs::metadata(&exe).unwrap().len(), 0);
    assert!(h.mounted.unmount().unwrap());
    h.fs.close().unwrap();
}

fn eventually(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// Invariant 2 at this door: what is asked while the lease is lapsed waits, and is answered when
/// it is back.
#[test]
fn a_short_loss_is_a_pause() {
    let Some(h) = here("a short loss", &FuseOptions::default()) else {
        return;
    };
    let path = h.dir.path().join("file");
    fs::write(&path, [7; 4096]).unwrap();
    h.volume.held.store(false, Ordering::Release);
    // Names that the kernel has not cached, and content that it never caches.
    let asks: Vec<std::thread::JoinHandle<usize>> = (0..3)
        .map(|i| {
            let dir = h.dir.path().to_owned();
            std::thread::spawn(move || match i {
                0 => usize::from(fs::metadata(dir.join("none")).is_err()),
                1 => fs::read_dir(&dir).unwrap().count(),
                _ => fs::write(dir.join("new"), b"x").map_or(0, |()| 1),
            })
        })
        .collect();
    // Long enough for an answer that is not held back to be there.
    std::thread::sleep(Duration::from_millis(200));
    assert!(asks.iter().all(|a| !a.is_finished()));
    h.volume.held.store(true, Ordering::Release);
    for ask in asks {
        assert!(ask.join().unwrap() >= 1);
    }
    assert!(h.mounted.unmount().unwrap());
    h.fs.close().unwrap();
}

/// After the bound callers get an error, also for what the kernel has cached, and the mount point
/// does not hang.
#[test]
fn a_long_loss_ends_the_connection() {
    let options = FuseOptions {
        patience: Duration::from_millis(100),
        ..FuseOptions::default()
    };
    let Some(h) = here("a long loss", &options) else {
        return;
    };
    let path = h.dir.path().join("file");
    fs::write(&path, [7; 4096]).unwrap();
    let file = File::open(&path).unwrap();
    let mut buf = [0; 4096];
    file.read_exact_at(&mut buf, 0).unwrap();
    h.volume.held.store(false, Ordering::Release);
    eventually("the end of the connection", || !h.mounted.is_alive());
    // Cached before; with the connection gone the kernel gives out none of it.
    let failed = file.read_at(&mut buf, 0).unwrap_err();
    let aborted = [rustix::io::Errno::NOTCONN, rustix::io::Errno::IO].map(|e| e.raw_os_error());
    assert!(aborted.contains(&code(&failed)), "{failed}");
    drop(file);
    // The directory beneath is to be seen again.
    eventually("unmounting", || !Path::new(&path).exists());
    assert!(h.mounted.unmount().unwrap());
    h.volume.held.store(true, Ordering::Release);
    h.fs.close().unwrap();
    assert!(fsck(&*h.volume).unwrap().is_clean());
}

/// Where nobody else can serve, the mount stays: errors while it is lost, all well afterwards.
#[test]
fn a_mount_that_is_kept_comes_back() {
    let options = FuseOptions {
        patience: Duration::from_millis(100),
        abort_when_lost: false,
        ..FuseOptions::default()
    };
    let Some(h) = here("a kept mount", &options) else {
        return;
    };
    let path = h.dir.path().join("file");
    fs::write(&path, [7; 4096]).unwrap();
    h.volume.held.store(false, Ordering::Release);
    eventually("an error", || {
        fs::read(&path).is_err_and(|e| code(&e) == rustix::io::Errno::IO.raw_os_error())
    });
    h.volume.held.store(true, Ordering::Release);
    eventually("the mount coming back", || {
        fs::read(&path).is_ok_and(|d| d == [7; 4096])
    });
    assert!(h.mounted.unmount().unwrap());
    h.fs.close().unwrap();
}

/// One large write. In memory already: where the kernel has to fetch it, it makes many small ones.
fn stream(of: u8) -> Vec<u8> {
    vec![of; 1 << 20]
}

/// Writes that wait until the volume admits them used to wait on the threads that had received
/// them: with as many streams as threads nothing else on the mount was answered.
#[test]
fn streams_do_not_occupy_the_mount() {
    let options = FuseOptions::default();
    let streams = 4 * options.threads;
    let Some(h) = here("streams", &options) else {
        return;
    };
    let path = |i: usize| h.dir.path().join(i.to_string());
    let files: Vec<File> = (0..streams)
        .map(|i| File::create(path(i)).unwrap())
        .collect();
    fs::write(path(streams), [7; 4096]).unwrap();
    let inside = || h.volume.admissions.load(Ordering::Acquire);
    let full_up = h.volume.full_up.lock().unwrap();
    std::thread::scope(|s| {
        let write = |(i, file): (usize, File)| {
            let data = stream(i as u8);
            s.spawn(move || file.write_all_at(&data, 0).unwrap())
        };
        let all: Vec<_> = files.into_iter().enumerate().map(write).collect();
        // Until as many wait as are let in.
        eventually("the writers wait", || inside() >= options.threads / 2);
        let (tx, done) = std::sync::mpsc::channel();
        let (none, small) = (h.dir.path().join("none"), path(streams));
        let asks = s.spawn(move || {
            // A name that the kernel has not cached; then a small durable write.
            assert!(fs::metadata(none).is_err());
            let file = File::options().write(true).open(small).unwrap();
            file.write_all_at(&[8; 4096], 0).unwrap();
            file.sync_all().unwrap();
            tx.send(()).unwrap();
        });
        let answered = done.recv_timeout(Duration::from_secs(20));
        let waiting = all.iter().filter(|t| !t.is_finished()).count();
        drop(full_up);
        asks.join().unwrap();
        assert_eq!((answered, waiting), (Ok(()), streams));
    });
    for i in 0..streams {
        assert_eq!(fs::read(path(i)).unwrap(), stream(i as u8));
    }
    assert!(h.mounted.unmount().unwrap());
    h.fs.close().unwrap();
}

/// What still waits when a lost mount is aborted is not written afterwards: by then another node
/// may serve, or the directory may be mounted anew.
#[test]
fn what_waits_at_the_end_of_the_connection_is_not_written() {
    let options = FuseOptions {
        patience: Duration::from_millis(100),
        ..FuseOptions::default()
    };
    let streams = 4 * options.threads;
    let Some(h) = here("streams at the end", &options) else {
        return;
    };
    let path = |i: usize| h.dir.path().join(i.to_string());
    let files: Vec<File> = (0..streams)
        .map(|i| File::create(path(i)).unwrap())
        .collect();
    let before = h.fs.statfs().unwrap().free_bytes;
    let inside = || h.volume.admissions.load(Ordering::Acquire);
    let full_up = h.volume.full_up.lock().unwrap();
    std::thread::scope(|s| {
        let write = |file: File| {
            let data = stream(1);
            s.spawn(move || file.write_all_at(&data, 0))
        };
        let all: Vec<_> = files.into_iter().map(write).collect();
        // Those that are let in; one that has not reached us fails all the same.
        eventually("the writers wait", || inside() >= options.threads / 2);
        h.volume.held.store(false, Ordering::Release);
        let empty = || fs::read_dir(h.dir.path()).is_ok_and(|d| d.count() == 0);
        eventually("unmounting", empty);
        // The lease comes back, too late.
        h.volume.held.store(true, Ordering::Release);
        drop(full_up);
        for writer in all {
            assert!(writer.join().unwrap().is_err());
        }
    });
    eventually("the end of the connection", || !h.mounted.is_alive());
    let written = before - h.fs.statfs().unwrap().free_bytes;
    // Those that were inside come to their end; metadata takes a little.
    let inside = (options.threads / 2) as u64;
    assert!(written < (inside + 1) << 20, "{written}");
    assert!(h.mounted.unmount().unwrap());
    h.fs.close().unwrap();
}

/// generic/683 to 685 of xfstests, and the same for a copy: the kernel leaves it to the door to
/// take set-id bits when somebody else changes a file, and went on with the mode that it had until
/// it asked for all of the attributes.
#[test]
fn who_changes_a_file_takes_its_set_id_bits() {
    let Some(h) = here("set-id bits", &FuseOptions::default()) else {
        return;
    };
    let path = h.dir.path().join("file");
    fs::write(&path, stream(1)).unwrap();
    type Change = fn(&File) -> rustix::io::Result<()>;
    let allocate: Change = |f| {
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(f, flags, 0, 8192)
    };
    let copy: Change = |f| {
        let (mut from, mut to) = (0, 1 << 20);
        rustix::fs::copy_file_range(f, Some(&mut from), f, Some(&mut to), 4096).map(|_| ())
    };
    let write: Change = |f| {
        f.write_all_at(&[2; 4096], 0).unwrap();
        Ok(())
    };
    let all = [
        // Who, in which groups; the mode before and after.
        (allocate, 0, 0, 0o6777, 0o6777),
        (allocate, 65534, 65534, 0o6777, 0o777),
        (allocate, 65534, 65534, 0o6666, 0o666),
        (allocate, 65534, 0, 0o6666, 0o2666),
        (copy, 0, 0, 0o6777, 0o6777),
        (copy, 65534, 65534, 0o6777, 0o777),
        (write, 0, 0, 0o6777, 0o6777),
        (write, 65534, 65534, 0o6777, 0o777),
    ];
    for (change, uid, gid, before, after) in all {
        fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
        let path = path.clone();
        let by = std::thread::spawn(move || {
            // Of this thread alone.
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(uid),
                rustix::fs::Gid::from_raw(gid),
            );
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            let file = File::options().read(true).write(true).open(&path).unwrap();
            change(&file).unwrap();
        });
        by.join().unwrap();
        // Only the mode: for the others the kernel would ask anew.
        let (file, mode) = (h.dir.path().join("file"), rustix::fs::StatxFlags::MODE);
        let seen = rustix::fs::statx(rustix::fs::CWD, &file, rustix::fs::AtFlags::empty(), mode);
        let seen = u32::from(seen.unwrap().stx_mode) & 0o7777;
        assert_eq!(seen, after, "from {before:o} by {uid}:{gid}");
    }
    assert!(h.mounted.unmount().unwrap());
    h.fs.close().unwrap();
}
