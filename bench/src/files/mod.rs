//! Load on a directory, whatever file system it is of: what a virtual machine's disk does to a
//! file, and what a source tree does to names.
//!
//! Everything happens below a directory of its own, which is removed at the end. Small durable
//! writes go past the page cache (`O_DIRECT` and `O_DSYNC`), as a virtual machine's do; where the
//! file system knows no `O_DIRECT` they go through it.
//!
//! Bounded by the arguments: seconds, bytes, and the fixed numbers of files below.

mod small;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::BenchError;
use crate::load::Sample;

/// Files made and removed by [`FileWorkload::Create`] and [`FileWorkload::Unlink`].
pub const CREATES: usize = 10_000;
/// Threads that do so.
pub const CREATORS: usize = 4;
/// Files of the tree.
pub const TREE_FILES: usize = 50_000;

/// A workload, by the name that reports use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileWorkload {
    /// 4 KiB random overwrites, each durable before the next.
    Durable4kQd1,
    /// The same from 32 threads.
    Durable4kQd32,
    /// 4 KiB random reads past the page cache, one at a time.
    Read4kQd1,
    /// The same from 32 threads.
    Read4kQd32,
    /// 1 MiB sequential writes of a new file, with the closing `fsync`.
    Write1mSeq,
    /// 1 MiB sequential reads of that file, its pages dropped before.
    Read1mSeq,
    /// Files of 1 KiB made by four threads, each in a directory of its own.
    Create,
    /// The same files removed.
    Unlink,
    /// A tree of small files written by one thread, as `tar x` does.
    TreeWrite,
    /// That tree listed and every name looked at, as `find` does, after the caches were dropped.
    TreeFind,
    /// Every file of it read.
    TreeRead,
    /// The tree removed.
    TreeRemove,
}

use FileWorkload as F;

impl FileWorkload {
    /// All, in the order in which they must run: some use what others made.
    pub const ALL: [FileWorkload; 12] = [
        F::Durable4kQd1,
        F::Durable4kQd32,
        F::Read4kQd1,
        F::Read4kQd32,
        F::Write1mSeq,
        F::Read1mSeq,
        F::Create,
        F::Unlink,
        F::TreeWrite,
        F::TreeFind,
        F::TreeRead,
        F::TreeRemove,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            F::Durable4kQd1 => "write-durable-4k-qd1",
            F::Durable4kQd32 => "write-durable-4k-qd32",
            F::Read4kQd1 => "read-4k-qd1",
            F::Read4kQd32 => "read-4k-qd32",
            F::Write1mSeq => "write-1m-seq",
            F::Read1mSeq => "read-1m-seq",
            F::Create => "create-4t",
            F::Unlink => "unlink-4t",
            F::TreeWrite => "tree-write",
            F::TreeFind => "tree-find",
            F::TreeRead => "tree-read",
            F::TreeRemove => "tree-remove",
        }
    }

    /// What must have run before it in the same directory.
    pub fn needs(self) -> Option<FileWorkload> {
        match self {
            F::Read1mSeq => Some(F::Write1mSeq),
            F::Unlink => Some(F::Create),
            F::TreeFind | F::TreeRead | F::TreeRemove => Some(F::TreeWrite),
            _ => None,
        }
    }
}

impl std::str::FromStr for FileWorkload {
    type Err = String;

    fn from_str(name: &str) -> Result<FileWorkload, String> {
        F::ALL
            .into_iter()
            .find(|w| w.name() == name)
            .ok_or_else(|| {
                let known: Vec<_> = F::ALL.iter().map(|w| w.name()).collect();
                format!("no such workload; known are {}", known.join(", "))
            })
    }
}

/// How much.
#[derive(Clone, Debug)]
pub struct FileLoad {
    /// Time for each workload that has no fixed number of operations.
    pub time: Duration,
    /// Bytes of the file that small operations are spread over.
    pub working_set: u64,
    /// Bytes of one sequential write.
    pub stream: u64,
    /// Files of the tree.
    pub tree_files: usize,
    /// Seed of places and content.
    pub seed: u64,
}

/// A directory under load. Dropping it removes what was made in it.
pub struct Files {
    dir: PathBuf,
    load: FileLoad,
}

/// Something failed at a path.
fn at(doing: &'static str, path: &Path) -> impl Fn(std::io::Error) -> BenchError {
    let path = path.display().to_string();
    move |source| BenchError::Io {
        doing: format!("{doing} {path}"),
        source,
    }
}

/// The same of a system call.
fn sys(doing: &'static str, path: &Path) -> impl Fn(rustix::io::Errno) -> BenchError {
    let at = at(doing, path);
    move |e| at(e.into())
}

/// Counts operations of one thread.
struct Tally {
    sample: Sample,
    last: Instant,
}

impl Tally {
    fn new() -> Tally {
        Tally {
            sample: Sample::default(),
            last: Instant::now(),
        }
    }

    /// An operation that began then has just completed.
    fn done(&mut self, began: Instant, bytes: u64) {
        let now = Instant::now();
        self.sample.operations += 1;
        self.sample.bytes += bytes;
        self.sample.latency.add(now - began);
        let gap = now - self.last;
        self.sample.longest_gap = self.sample.longest_gap.max(gap);
        self.last = now;
    }
}

/// Runs `f(number)` on threads of their own and sums up. The longest gap is that of one thread.
fn together(
    threads: usize,
    f: impl Fn(usize) -> Result<Sample, BenchError> + Sync,
) -> Result<Sample, BenchError> {
    let began = Instant::now();
    let samples: Vec<Result<Sample, BenchError>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|i| {
                scope.spawn({
                    let f = &f;
                    move || f(i)
                })
            })
            .collect();
        running
            .into_iter()
            .map(|t| {
                t.join().unwrap_or_else(|_| {
                    Err(BenchError::BadLoad("a thread of the load failed".into()))
                })
            })
            .collect()
    });
    let mut all = Sample::default();
    for s in samples {
        let s = s?;
        all.operations += s.operations;
        all.bytes += s.bytes;
        all.latency.merge(&s.latency);
        all.longest_gap = all.longest_gap.max(s.longest_gap);
    }
    all.elapsed = began.elapsed();
    Ok(all)
}

impl Files {
    /// Works below a new directory in `parent`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(parent: &Path, load: FileLoad) -> Result<Files, BenchError> {
        if load.working_set < 1 << 20 || load.stream < 1 << 20 || load.tree_files == 0 {
            let what = "the working set and the stream need 1 MiB, the tree one file";
            return Err(BenchError::BadLoad(what.into()));
        }
        let dir = parent.join(format!("trivet-bench-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(at("create", &dir))?;
        Ok(Files { dir, load })
    }

    /// Runs one workload. What it needs must have run before.
    ///
    /// # Errors
    /// A call failed, or somebody stopped it.
    pub fn run(&self, workload: FileWorkload, stop: &AtomicBool) -> Result<Sample, BenchError> {
        let sample = match workload {
            F::Durable4kQd1 => self.small_io(1, true, stop),
            F::Durable4kQd32 => self.small_io(32, true, stop),
            F::Read4kQd1 => self.small_io(1, false, stop),
            F::Read4kQd32 => self.small_io(32, false, stop),
            F::Write1mSeq => self.write_stream(stop),
            F::Read1mSeq => self.read_stream(stop),
            F::Create => self.create(stop),
            F::Unlink => self.unlink(stop),
            F::TreeWrite => self.tree_write(stop),
            F::TreeFind => self.tree_find(stop),
            F::TreeRead => self.tree_read(stop),
            F::TreeRemove => self.tree_remove(stop),
        }?;
        match stop.load(Ordering::Relaxed) {
            true => Err(BenchError::Interrupted),
            false => Ok(sample),
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // What cannot be removed is left where the person can see it.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_does_what_its_name_says_and_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let load = FileLoad {
            time: Duration::from_millis(20),
            working_set: 1 << 20,
            stream: 3 << 20,
            tree_files: 250,
            seed: 1,
        };
        let files = Files::new(parent.path(), load).unwrap();
        let stop = AtomicBool::new(false);
        for w in FileWorkload::ALL {
            assert_eq!(w.name().parse(), Ok(w));
            let sample = files.run(w, &stop).unwrap();
            let operations = match w {
                F::Write1mSeq | F::Read1mSeq => 3,
                F::Create | F::Unlink => CREATES as u64,
                F::TreeWrite | F::TreeRead => 250,
                // Directories count as well.
                F::TreeFind | F::TreeRemove => 254,
                _ => sample.operations.max(1),
            };
            assert_eq!(sample.operations, operations, "{}", w.name());
            assert_eq!(sample.latency.len(), operations, "{}", w.name());
        }
        stop.store(true, Ordering::Relaxed);
        let stopped = files.run(F::Create, &stop);
        assert!(matches!(stopped, Err(BenchError::Interrupted)));
        drop(files);
        assert_eq!(parent.path().read_dir().unwrap().count(), 0);
    }
}
