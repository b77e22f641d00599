//! One large file: small operations at random places in it, and long ones in order.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::fs::{Advice, OFlags, fadvise};

use super::{Files, Tally, at, sys, together};
use crate::BenchError;
use crate::load::Sample;
use crate::rng::Rng;

const SMALL: usize = 4096;
const LARGE: usize = 1 << 20;

/// A buffer whose content starts where `O_DIRECT` wants it.
struct Aligned {
    raw: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    fn of(rng: &mut Rng, len: usize) -> Aligned {
        let raw = rng.bytes(len + SMALL);
        let from = raw.as_ptr().align_offset(SMALL).min(SMALL);
        Aligned { raw, from, len }
    }

    fn get(&self) -> &[u8] {
        &self.raw[self.from..self.from + self.len]
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.raw[self.from..self.from + self.len]
    }
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The file for small operations, written from end to end the first time.
    fn working_file(&self) -> Result<PathBuf, BenchError> {
        let path = self.path("working-set");
        let blocks = self.load.working_set / LARGE as u64;
        if std::fs::metadata(&path).is_ok_and(|m| m.len() == blocks * LARGE as u64) {
            return Ok(path);
        }
        let file = File::create(&path).map_err(at("create", &path))?;
        let data = Rng::new(self.load.seed).bytes(LARGE);
        for i in 0..blocks {
            file.write_all_at(&data, i * LARGE as u64)
                .map_err(at("write", &path))?;
        }
        file.sync_all().map_err(at("sync", &path))?;
        Ok(path)
    }

    /// Random 4 KiB operations for the time set, durable writes or reads.
    pub(super) fn small_io(
        &self,
        threads: usize,
        write: bool,
        stop: &AtomicBool,
    ) -> Result<Sample, BenchError> {
        let path = self.working_file()?;
        let durable = match write {
            true => OFlags::DSYNC,
            false => OFlags::empty(),
        };
        let open = |flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .write(write)
                .custom_flags(flags.bits() as i32)
                .open(&path)
        };
        // tmpfs and some others refuse O_DIRECT.
        let open = || open(durable | OFlags::DIRECT).or_else(|_| open(durable));
        let places = self.load.working_set / LARGE as u64 * (LARGE / SMALL) as u64;
        together(threads, |i| {
            let file = open().map_err(at("open", &path))?;
            let mut rng = Rng::new(self.load.seed.wrapping_add(1 + i as u64));
            let mut buffer = Aligned::of(&mut rng, SMALL);
            let (mut tally, began) = (Tally::new(), Instant::now());
            while began.elapsed() < self.load.time && !stop.load(Ordering::Relaxed) {
                let place = rng.below(places) * SMALL as u64;
                let start = Instant::now();
                if write {
                    buffer.get_mut()[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
                    file.write_all_at(buffer.get(), place)
                        .map_err(at("write", &path))?;
                } else {
                    file.read_exact_at(buffer.get_mut(), place)
                        .map_err(at("read", &path))?;
                }
                tally.done(start, SMALL as u64);
            }
            Ok(tally.sample)
        })
    }

    /// A new file from end to end; the closing `fsync` is inside the time.
    pub(super) fn write_stream(&self, stop: &AtomicBool) -> Result<Sample, BenchError> {
        let path = self.path("stream");
        // Removing the last run's is not measured.
        let _ = std::fs::remove_file(&path);
        together(1, |_| {
            let file = File::create(&path).map_err(at("create", &path))?;
            let mut tally = Tally::new();
            let mut data = Rng::new(self.load.seed).bytes(LARGE);
            for i in 0..self.load.stream / LARGE as u64 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                data[..8].copy_from_slice(&i.to_le_bytes());
                let start = Instant::now();
                file.write_all_at(&data, i * LARGE as u64)
                    .map_err(at("write", &path))?;
                tally.done(start, LARGE as u64);
            }
            file.sync_all().map_err(at("sync", &path))?;
            Ok(tally.sample)
        })
    }

    /// That file from end to end, not from the page cache.
    pub(super) fn read_stream(&self, stop: &AtomicBool) -> Result<Sample, BenchError> {
        let path = self.path("stream");
        let file = File::open(&path).map_err(at("open", &path))?;
        fadvise(&file, 0, None, Advice::DontNeed).map_err(sys("drop the pages of", &path))?;
        together(1, |_| {
            let mut data = vec![0; LARGE];
            let mut tally = Tally::new();
            for i in 0..self.load.stream / LARGE as u64 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let start = Instant::now();
                file.read_exact_at(&mut data, i * LARGE as u64)
                    .map_err(at("read", &path))?;
                if data[..8] != i.to_le_bytes() {
                    let what = format!("{}: another content than was written", path.display());
                    return Err(BenchError::BadLoad(what));
                }
                tally.done(start, LARGE as u64);
            }
            Ok(tally.sample)
        })
    }
}
