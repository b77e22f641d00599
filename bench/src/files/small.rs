//! Many small files: made, looked at, read, removed.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use super::{CREATES, CREATORS, Files, Tally, at, together};
use crate::BenchError;
use crate::load::Sample;
use crate::rng::Rng;

const CREATE_BYTES: usize = 1024;
/// Files in one directory of the tree.
const FAN: usize = 100;
/// A file of the tree has less than this, on average half.
const TREE_BYTES: u64 = 16 << 10;

impl Files {
    fn create_dir(&self, thread: usize) -> PathBuf {
        self.dir.join(format!("create-{thread}"))
    }

    pub(super) fn create(&self, stop: &AtomicBool) -> Result<Sample, BenchError> {
        for t in 0..CREATORS {
            let dir = self.create_dir(t);
            std::fs::create_dir(&dir).map_err(at("create", &dir))?;
        }
        let data = Rng::new(self.load.seed).bytes(CREATE_BYTES);
        together(CREATORS, |t| {
            let (dir, mut tally) = (self.create_dir(t), Tally::new());
            for i in 0..CREATES / CREATORS {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let path = dir.join(format!("file-{i}"));
                let start = Instant::now();
                let mut file = File::create_new(&path).map_err(at("create", &path))?;
                file.write_all(&data).map_err(at("write", &path))?;
                drop(file);
                tally.done(start, CREATE_BYTES as u64);
            }
            Ok(tally.sample)
        })
    }

    pub(super) fn unlink(&self, stop: &AtomicBool) -> Result<Sample, BenchError> {
        let sample = together(CREATORS, |t| {
            let (dir, mut tally) = (self.create_dir(t), Tally::new());
            for i in 0..CREATES / CREATORS {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let path = dir.join(format!("file-{i}"));
                let start = Instant::now();
                std::fs::remove_file(&path).map_err(at("remove", &path))?;
                tally.done(start, 0);
            }
            Ok(tally.sample)
        })?;
        for t in 0..CREATORS {
            let dir = self.create_dir(t);
            std::fs::remove_dir(&dir).map_err(at("remove", &dir))?;
        }
        Ok(sample)
    }

    fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    pub(super) fn tree_write(&self, stop: &AtomicBool) -> Result<Sample, BenchError> {
        let tree = self.tree();
        std::fs::create_dir(&tree).map_err(at("create", &tree))?;
        let mut rng = Rng::new(self.load.seed);
        let data = rng.bytes(TREE_BYTES as usize);
        let sizes: Vec<usize> = (0..self.load.tree_files)
            .map(|_| rng.below(TREE_BYTES) as usize)
            .collect();
        let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
        together(1, |_| {
            let (mut tally, mut dir) = (Tally::new(), tree.clone());
            for (i, size) in sizes.iter().enumerate() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let start = Instant::now();
                if i % FAN == 0 {
                    dir = tree.join(format!("dir-{}", i / FAN));
                    std::fs::create_dir(&dir).map_err(at("create", &dir))?;
                }
                // What tar does for each: create, write, owner's mode, times, close.
                let path = dir.join(format!("source-{i}.c"));
                let mut file = File::create_new(&path).map_err(at("create", &path))?;
                file.write_all(&data[..*size]).map_err(at("write", &path))?;
                file.set_permissions(Permissions::from_mode(0o640))
                    .map_err(at("set the mode of", &path))?;
                file.set_modified(old)
                    .map_err(at("set the time of", &path))?;
                drop(file);
                tally.done(start, *size as u64);
            }
            Ok(tally.sample)
        })
    }

    /// Visits everything below a directory, children before their parent.
    fn walk(
        dir: &Path,
        stop: &AtomicBool,
        visit: &mut dyn FnMut(&Path, bool) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        let failed = at("list", dir);
        for entry in std::fs::read_dir(dir).map_err(&failed)? {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let entry = entry.map_err(&failed)?;
            let path = entry.path();
            if entry.file_type().map_err(&failed)?.is_dir() {
                Self::walk(&path, stop, visit)?;
            } else {
                visit(&path, false)?;
            }
        }
        visit(dir, true)
    }

    pub(super) fn tree_find(&self, stop: &AtomicBool) -> Result<Sample, BenchError> {
        // Root only; else the figure is of warm caches.
        let _ = std::fs::write("/proc/sys/vm/drop_caches", "2");
        together(1, |_| {
            let (mut tally, mut last) = (Tally::new(), Instant::now());
            Self::walk(&self.tree(), stop, &mut |path, _| {
                std::fs::symlink_metadata(path).map_err(at("look at", path))?;
                // The listing before it is part of a visit.
                tally.done(last, 0);
                last = Instant::now();
                Ok(())
            })?;
            Ok(tally.sample)
        })
    }

    pub(super) fn tree_read(&self, stop: &AtomicBool) -> Result<Sample, BenchError> {
        // Pages as well.
        let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
        let mut data = Vec::with_capacity(TREE_BYTES as usize);
        let mut tally = Tally::new();
        let began = Instant::now();
        Self::walk(&self.tree(), stop, &mut |path, is_dir| {
            if is_dir {
                return Ok(());
            }
            let start = Instant::now();
            data.clear();
            let mut file = File::open(path).map_err(at("open", path))?;
            let n = file.read_to_end(&mut data).map_err(at("read", path))?;
            tally.done(start, n as u64);
            Ok(())
        })?;
        tally.sample.elapsed = began.elapsed();
        Ok(tally.sample)
    }

    pub(super) fn tree_remove(&self, stop: &AtomicBool) -> Result<Sample, BenchError> {
        let (mut tally, began) = (Tally::new(), Instant::now());
        Self::walk(&self.tree(), stop, &mut |path, is_dir| {
            let start = Instant::now();
            match is_dir {
                true => std::fs::remove_dir(path),
                false => std::fs::remove_file(path),
            }
            .map_err(at("remove", path))?;
            tally.done(start, 0);
            Ok(())
        })?;
        tally.sample.elapsed = began.elapsed();
        Ok(tally.sample)
    }
}
