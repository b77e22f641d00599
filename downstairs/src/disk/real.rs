//! The disk as the operating system has it: buffered pread and pwritev, fdatasync, hole punching
//! with a fallback of written zeros. No O_DIRECT, no preallocation, no SEEK_HOLE.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{FallocateFlags, FlockOperation};
use trivet_protocol::{NullRecorder, Recorder};

use super::{Disk, DiskFile, Space};
use crate::error::{Result, StoreError};

/// Slices given to one pwritev; the kernel takes 1024.
const MAX_SLICES: usize = 512;
/// Bytes given to one write. The kernel's page cache keeps a write's pages as one folio, and every
/// later 4 KiB write into it, and its write-back, walks the whole folio: 64 KiB pieces took an
/// eighth off the processor time of durable 4 KiB overwrites where 1 MiB had been written before.
const MAX_WRITE: usize = 64 << 10;
/// Zeros written at once where holes cannot be punched.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A directory of the host.
pub struct RealDisk {
    dir: PathBuf,
    recorder: Arc<dyn Recorder>,
    writable: bool,
    copies_on_write: bool,
    /// Keeps others out for as long as this lives.
    _lock: Option<File>,
}

impl RealDisk {
    /// The directory `dir`, which must exist. Latencies go to `recorder`.
    pub fn new(dir: &Path, recorder: Arc<dyn Recorder>) -> RealDisk {
        RealDisk {
            dir: dir.to_path_buf(),
            recorder,
            writable: true,
            copies_on_write: false,
            _lock: None,
        }
    }

    /// The same, for this process alone: an exclusive flock on the directory is held until the
    /// value is dropped.
    ///
    /// # Errors
    /// There is no such directory, or another process uses it.
    pub fn locked(dir: &Path, recorder: Arc<dyn Recorder>) -> Result<RealDisk> {
        let lock = lock(dir, FlockOperation::NonBlockingLockExclusive)?;
        let mut disk = RealDisk::new(dir, recorder);
        disk._lock = Some(lock);
        Ok(disk)
    }

    /// The directory, to be read only, without a lock.
    pub fn read_only(dir: &Path) -> RealDisk {
        let mut disk = RealDisk::new(dir, Arc::new(NullRecorder));
        disk.writable = false;
        disk
    }

    /// The directory, to be read only, while nobody changes it: a shared flock is held.
    ///
    /// # Errors
    /// There is no such directory, or another process uses it.
    pub fn locked_for_reading(dir: &Path) -> Result<RealDisk> {
        let lock = lock(dir, FlockOperation::NonBlockingLockShared)?;
        let mut disk = RealDisk::read_only(dir);
        disk._lock = Some(lock);
        Ok(disk)
    }

    /// Says that the file system copies on write, where it cannot be told from its kind.
    pub fn set_copies_on_write(&mut self) {
        self.copies_on_write = true;
    }

    fn wrap(&self, file: File) -> Arc<dyn DiskFile> {
        Arc::new(RealFile {
            file,
            recorder: Arc::clone(&self.recorder),
        })
    }
}

/// Whether the file system is known to copy on write: btrfs, zfs, bcachefs.
fn copies_on_write(dir: &Path) -> io::Result<bool> {
    const KINDS: [u64; 3] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e];
    let kind = rustix::fs::statfs(dir)?.f_type;
    Ok(KINDS.contains(&(kind as u64)))
}

fn lock(dir: &Path, how: FlockOperation) -> Result<File> {
    let what = || dir.display().to_string();
    let file = File::open(dir).map_err(|e| StoreError::io("open", what(), e))?;
    match rustix::fs::flock(&file, how) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Foreign {
            what: what(),
            why: "it is in use by another process; stop that one first".to_owned(),
        }),
        Err(e) => Err(StoreError::io("lock", what(), e.into())),
    }
}

impl Disk for RealDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(self.writable)
            .open(self.dir.join(name))?;
        Ok(self.wrap(file))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.dir.join(name))?;
        Ok(self.wrap(file))
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        std::fs::create_dir(self.dir.join(name))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.dir.join(dir))? {
            // A name that is not UTF-8 is not ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.dir.join(dir))?.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let s = rustix::fs::statvfs(&self.dir)?;
        Ok(Space {
            free: s.f_bavail.saturating_mul(s.f_frsize),
            total: s.f_blocks.saturating_mul(s.f_frsize),
            copies_on_write: self.copies_on_write || copies_on_write(&self.dir)?,
        })
    }
}

struct RealFile {
    file: File,
    recorder: Arc<dyn Recorder>,
}

/// Writes a beginning of `parts`, at most [`MAX_WRITE`] bytes.
fn write_some(file: &File, parts: &[IoSlice<'_>], at: u64) -> rustix::io::Result<usize> {
    let (mut whole, mut bytes) = (0, 0);
    for part in parts.iter().take(MAX_SLICES) {
        if bytes + part.len() > MAX_WRITE {
            break;
        }
        bytes += part.len();
        whole += 1;
    }
    match parts.first() {
        Some(first) if whole == 0 => rustix::io::pwrite(file, &first[..MAX_WRITE], at),
        _ => rustix::io::pwritev(file, &parts[..whole], at),
    }
}

impl RealFile {
    fn timed<T>(&self, name: &'static str, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let start = Instant::now();
        let result = f();
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.recorder.time(name, nanos);
        if result.is_err() {
            self.recorder.count("downstairs.disk.errors", 1);
        }
        result
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.timed("downstairs.disk.read", || self.file.read_exact_at(buf, at))
    }

    fn read_in_memory(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let (began, len) = (Instant::now(), buf.len());
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(buf)], at, flags) {
            Ok(n) if n == len => {
                let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.recorder.time("downstairs.disk.read", nanos);
                Ok(())
            }
            // Part of it is there; or the file system, or the kernel, cannot tell. An error of the
            // disk's shows when it is asked.
            Ok(_) | Err(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write_at(&self, mut parts: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
        self.timed("downstairs.disk.write", || {
            while !parts.is_empty() {
                let n = match write_some(&self.file, parts, at) {
                    Err(rustix::io::Errno::INTR) => continue,
                    other => other?,
                };
                if n == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                at += n as u64;
                self.recorder
                    .count("downstairs.disk.bytes_written", n as u64);
                IoSlice::advance_slices(&mut parts, n);
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.timed("downstairs.disk.sync", || self.file.sync_data())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn punch_hole(&self, at: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, at, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let mut done = 0;
                while done < bytes {
                    let now = (bytes - done).min(ZEROS.len() as u64);
                    self.file.write_all_at(&ZEROS[..now as usize], at + done)?;
                    done += now;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            other => Ok(other?),
        }
    }

    fn forget_cached(&self, at: u64, bytes: u64) {
        // Advice: a file system that does not take it reads from memory.
        if let Some(bytes) = std::num::NonZeroU64::new(bytes) {
            let _ = rustix::fs::fadvise(&self.file, at, Some(bytes), rustix::fs::Advice::DontNeed);
        }
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_memory_does_not_have_is_left_to_who_may_wait() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path(), Arc::new(NullRecorder));
        let file = disk.create("f").unwrap();
        file.write_all_at(&[7; 8192], 0).unwrap();
        let mut buf = [0; 4096];
        match file.read_in_memory(&mut buf, 4096) {
            Ok(()) => assert_eq!(buf, [7; 4096]),
            // Where the file system cannot tell.
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
        }
        let beyond = file.read_in_memory(&mut buf, 6144).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::WouldBlock);
        let beyond = file.read_at(&mut buf, 6144).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn parts_land_one_after_the_other_and_holes_read_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path(), Arc::new(NullRecorder));
        let file = disk.create("f").unwrap();
        file.set_size(1 << 20).unwrap();
        let parts: Vec<Vec<u8>> = (0..1500u32).map(|i| vec![i as u8; 100]).collect();
        let mut slices: Vec<_> = parts.iter().map(|p| IoSlice::new(p)).collect();
        file.write_at(&mut slices, 4096).unwrap();
        let mut back = vec![0; 150_000];
        file.read_at(&mut back, 4096).unwrap();
        assert_eq!(back, parts.concat());
        file.punch_hole(4096, 8192).unwrap();
        file.read_at(&mut back, 4096).unwrap();
        assert!(back[..8192].iter().all(|b| *b == 0));
        assert_eq!(back[8192..], parts.concat()[8192..]);
        assert_eq!(file.size().unwrap(), 1 << 20);
        assert!(disk.create("f").is_err(), "a second creation is refused");
        assert!(file.read_at(&mut back, 1 << 20).is_err());
    }
}
