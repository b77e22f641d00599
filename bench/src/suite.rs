//! The named workloads, each measured beside its limit, taking turns.
//!
//! The volume is cut in two: a working set, filled before anything is timed, in which small
//! operations happen, and a stream area behind it, in which sequential writes find new blocks.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use trivet_replica::Volume;
use trivet_replica::volume::{BLOCK_BYTES, Batch, Block, PlainVolume, VolumeId};

use crate::BenchError;
use crate::limit::{Limit, SyncEvery, ping_pong};
use crate::load::{self, Kind, Load, Order, Sample};
use crate::meter::{self, Pid};
use crate::report::{Measured, Report, ResultRow, Setup};

const MIB_BLOCKS: u32 = 256;
/// Operations in flight where the workload's name says so.
const DEEP: usize = 32;
/// Requests in flight of a sequential reader, as an NFS client's read-ahead has them.
const READ_AHEAD: usize = 4;
/// How long a volume may hold completed writes without syncing; the limit's volatile writes are
/// synced as often (design, section 6).
const UNDURABLE: Duration = Duration::from_millis(50);

/// A workload, by the name that reports use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// 4 KiB random writes, each made durable before the next.
    WriteFlush4kQd1,
    /// 4 KiB random writes, each made durable, 32 at once.
    WriteDurable4kQd32,
    /// 4 KiB random writes, one caller.
    Write4kQd1,
    /// 4 KiB random writes, 32 callers.
    Write4kQd32,
    /// 4 KiB random reads, one at a time.
    Read4kQd1,
    /// 4 KiB random reads, 32 at once.
    Read4kQd32,
    /// 1 MiB sequential writes of new data, made durable at the end.
    Write1mSeq,
    /// 1 MiB sequential reads.
    Read1mSeq,
    /// [`Workload::WriteFlush4kQd1`] and a stream of 1 MiB writes at once: two rows, of which
    /// the stream's limit is the stream alone.
    Mixed,
}

use Workload as W;

impl Workload {
    /// The eight of every report.
    pub const STANDARD: [Workload; 8] = [
        W::WriteFlush4kQd1,
        W::WriteDurable4kQd32,
        W::Write4kQd1,
        W::Write4kQd32,
        W::Read4kQd1,
        W::Read4kQd32,
        W::Write1mSeq,
        W::Read1mSeq,
    ];

    /// Its name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            W::WriteFlush4kQd1 => "write-flush-4k-qd1",
            W::WriteDurable4kQd32 => "write-durable-4k-qd32",
            W::Write4kQd1 => "write-4k-qd1",
            W::Write4kQd32 => "write-4k-qd32",
            W::Read4kQd1 => "read-4k-qd1",
            W::Read4kQd32 => "read-4k-qd32",
            W::Write1mSeq => "write-1m-seq",
            W::Read1mSeq => "read-1m-seq",
            W::Mixed => "mixed",
        }
    }
}

impl std::str::FromStr for Workload {
    type Err = String;

    fn from_str(name: &str) -> Result<Workload, String> {
        let mut all = W::STANDARD.into_iter().chain([W::Mixed]);
        all.find(|w| w.name() == name).ok_or_else(|| {
            let known: Vec<_> = W::STANDARD.iter().map(|w| w.name()).collect();
            format!("no such workload; known are {}, mixed", known.join(", "))
        })
    }
}

/// What is measured.
pub trait Subject: Sync {
    /// In words, for the report.
    fn describe(&self) -> String;

    /// The volume.
    fn volume(&self) -> &dyn Volume;

    /// Processes that work for it, besides this one and its descendants.
    fn processes(&self) -> Vec<Pid> {
        Vec::new()
    }

    /// Bytes that one replica's disk has got so far (the mean, of several); `None` if unknown.
    /// [`meter::device_bytes`] divided by the replicas on that disk is one way to know.
    ///
    /// # Errors
    /// It should be known but cannot be found out.
    fn disk_bytes(&self) -> Result<Option<f64>, BenchError>;

    /// Waits until everything written is in its final place: logs empty, nothing to checkpoint.
    ///
    /// # Errors
    /// The volume failed.
    fn settle(&self) -> Result<(), BenchError>;
}

/// How much of everything.
#[derive(Clone, Debug)]
pub struct Suite {
    /// What to run, in this order.
    pub workloads: Vec<Workload>,
    /// Medians are taken over so many runs; at least 1.
    pub runs: u32,
    /// Per workload and run.
    pub time: Duration,
    /// [`Workload::WriteDurable4kQd32`] takes at least this long.
    pub durable_time: Duration,
    /// And writes at least so many bytes: three times the logs' size, so that checkpoints run.
    pub durable_bytes: u64,
    /// Bytes that small operations are spread over; a whole number of MiB.
    pub working_set: u64,
    /// Bytes of one sequential write; a whole number of MiB.
    pub stream: u64,
    /// Of places and content.
    pub seed: u64,
}

impl Suite {
    /// The form for continuous integration: about 20 seconds, figures that tell a defect from a
    /// working volume and no more.
    pub fn quick(seed: u64) -> Suite {
        Suite {
            workloads: W::STANDARD.to_vec(),
            runs: 1,
            time: Duration::from_secs(1),
            durable_time: Duration::from_secs(1),
            durable_bytes: 0,
            working_set: 64 << 20,
            stream: 128 << 20,
            seed,
        }
    }

    /// The form for the documentation.
    pub fn full(seed: u64) -> Suite {
        Suite {
            runs: 5,
            time: Duration::from_secs(10),
            durable_time: Duration::from_secs(60),
            durable_bytes: 3 * (128 << 20),
            working_set: 1 << 30,
            stream: 2 << 30,
            ..Suite::quick(seed)
        }
    }

    /// Blocks that the volume must have.
    pub fn blocks(&self) -> u64 {
        (self.working_set + self.stream) / BLOCK_BYTES as u64
    }

    fn small_area(&self) -> Range<u64> {
        0..self.working_set / BLOCK_BYTES as u64
    }

    fn stream_area(&self) -> Range<u64> {
        self.small_area().end..self.blocks()
    }

    /// Fills the working set, measures everything, sums it up. `limit_dir` is on the disk of the
    /// replicas; `progress` is told what is about to be measured.
    ///
    /// # Errors
    /// Something failed, stalled, or `stop` was set.
    pub fn run(
        &self,
        subject: &dyn Subject,
        limit_dir: &Path,
        progress: &mut dyn FnMut(&str),
        stop: &AtomicBool,
    ) -> Result<Report, BenchError> {
        progress("filling the working set");
        load::fill(subject.volume(), self.small_area(), self.seed, stop)?;
        let limit = Limit::new(limit_dir, self.small_area().end, self.seed)?;
        let bench = Bench {
            suite: self,
            subject,
            limit: &limit,
            stop,
        };
        let mut rows: Vec<(String, Vec<Measured>)> = Vec::new();
        for run in 0..self.runs {
            for workload in &self.workloads {
                progress(&format!(
                    "run {} of {}: {}",
                    run + 1,
                    self.runs,
                    workload.name()
                ));
                for (name, measured) in bench.workload(*workload, run)? {
                    match rows.iter_mut().find(|r| r.0 == name) {
                        Some(row) => row.1.push(measured),
                        None => rows.push((name.to_owned(), vec![measured])),
                    }
                }
            }
        }
        Ok(Report {
            results: rows.iter().map(|(n, m)| ResultRow::of(n, m)).collect(),
            setup: Setup {
                subject: subject.describe(),
                runs: self.runs,
                seconds: self.time.as_secs_f64(),
                working_set_bytes: self.working_set,
                stream_bytes: self.stream,
                seed: self.seed,
                cores: std::thread::available_parallelism().map_or(0, usize::from),
            },
        })
    }
}

/// One run of a suite under way.
struct Bench<'a> {
    suite: &'a Suite,
    subject: &'a dyn Subject,
    limit: &'a Limit,
    stop: &'a AtomicBool,
}

impl Bench<'_> {
    fn workload(
        &self,
        workload: Workload,
        run: u32,
    ) -> Result<Vec<(&'static str, Measured)>, BenchError> {
        let seed = self.suite.seed.wrapping_add(u64::from(run) << 32);
        if workload == W::Mixed {
            return self.mixed(seed);
        }
        // Who goes first changes from run to run: neither always finds the disk rested.
        let first = run.is_multiple_of(2);
        let before = first.then(|| self.limit_of(workload, seed)).transpose()?;
        let mut measured = self.measure(workload, seed)?;
        measured.limit = match before {
            Some(limit) => limit,
            None => self.limit_of(workload, seed)?,
        };
        Ok(vec![(workload.name(), measured)])
    }

    /// Times a workload, with the processor time and the disk bytes that it cost.
    fn measure(&self, workload: Workload, seed: u64) -> Result<Measured, BenchError> {
        let volume = self.subject.volume();
        let load = self.load(workload, seed);
        if workload == W::Write1mSeq {
            let area = self.suite.stream_area();
            volume.submit(Batch::discard(Block(area.start), area.end - area.start))?;
            volume.flush_all()?;
        }
        self.metered(load.kind != Kind::Read, || match workload {
            // A write completes within the call: 32 at once are 32 callers.
            W::Write4kQd32 => load::run_threads(volume, &load, DEEP, self.stop),
            _ => load::run(volume, &load, self.stop),
        })
    }

    fn metered(
        &self,
        writes: bool,
        work: impl FnOnce() -> Result<Sample, BenchError>,
    ) -> Result<Measured, BenchError> {
        self.subject.settle()?;
        let others = self.subject.processes();
        let (disk, cpu) = (self.subject.disk_bytes()?, meter::cpu(&others)?);
        let sample = work()?;
        let cpu = meter::cpu(&others)?.saturating_sub(cpu);
        let bytes_written_ratio = if writes {
            self.subject.settle()?;
            let after = self.subject.disk_bytes()?;
            disk.zip(after)
                .map(|(b, a)| (a - b) / (sample.bytes as f64).max(1.0))
        } else {
            None
        };
        Ok(Measured {
            sample,
            cpu,
            bytes_written_ratio,
            limit: 0.0,
        })
    }

    fn load(&self, workload: Workload, seed: u64) -> Load {
        let small = |kind, depth| Load {
            kind,
            order: Order::Random,
            area: self.suite.small_area(),
            blocks: 1,
            depth,
            time: self.suite.time,
            at_least: 0,
            at_most: u64::MAX,
            seed,
        };
        let stream = |kind, depth| Load {
            order: Order::Sequential,
            blocks: MIB_BLOCKS,
            ..small(kind, depth)
        };
        match workload {
            W::WriteFlush4kQd1 => small(Kind::DurableWrite, 1),
            W::WriteDurable4kQd32 => Load {
                time: self.suite.durable_time,
                at_least: self.suite.durable_bytes,
                ..small(Kind::DurableWrite, DEEP)
            },
            W::Write4kQd1 | W::Write4kQd32 => small(Kind::Write, 1),
            W::Read4kQd1 => small(Kind::Read, 1),
            W::Read4kQd32 => small(Kind::Read, DEEP),
            W::Write1mSeq => Load {
                area: self.suite.stream_area(),
                time: Duration::ZERO,
                at_least: self.suite.stream,
                at_most: self.suite.stream,
                ..stream(Kind::Write, 1)
            },
            W::Read1mSeq => stream(Kind::Read, READ_AHEAD),
            W::Mixed => Load {
                area: self.suite.stream_area(),
                ..stream(Kind::Write, 1)
            },
        }
    }

    /// What the workload is compared with, in operations per second.
    fn limit_of(&self, workload: Workload, seed: u64) -> Result<f64, BenchError> {
        let small = |sync| {
            self.limit
                .small_writes(sync, self.suite.time, seed, self.stop)
        };
        match workload {
            W::WriteFlush4kQd1 | W::Mixed => small(SyncEvery::Writes(1)),
            // What a disk can do whose every sync is shared by all that wait.
            W::WriteDurable4kQd32 => small(SyncEvery::Writes(DEEP as u32)),
            W::Write4kQd1 | W::Write4kQd32 => small(SyncEvery::Time(UNDURABLE)),
            W::Read4kQd1 => ping_pong(self.suite.time),
            W::Write1mSeq => self.limit.stream_write(self.suite.stream, self.stop),
            W::Read4kQd32 | W::Read1mSeq => self.plain_reads(workload, seed),
        }
    }

    fn plain_reads(&self, workload: Workload, seed: u64) -> Result<f64, BenchError> {
        let path = self.limit.path();
        let plain = PlainVolume::open(&path, VolumeId::random(), 0)
            .map_err(BenchError::io(format_args!("open {}", path.display())))?;
        let load = Load {
            depth: 1,
            ..self.load(workload, seed)
        };
        load::run(&plain, &load, self.stop).map(|s| s.per_second())
    }

    /// A stream alone, then with small durable writes beside it.
    fn mixed(&self, seed: u64) -> Result<Vec<(&'static str, Measured)>, BenchError> {
        let volume = self.subject.volume();
        let stream = self.load(W::Mixed, seed);
        let small = self.load(W::WriteFlush4kQd1, seed ^ 1);
        let area = &stream.area;
        volume.submit(Batch::discard(Block(area.start), area.end - area.start))?;
        let alone = load::run(volume, &stream, self.stop)?.per_second();
        let mut both = Vec::new();
        let total = self.metered(false, || {
            both = load::run_together(volume, &[stream, small], self.stop)?;
            Ok(Sample::default())
        })?;
        // The processor time of two loads cannot be told apart; it is given with the small one.
        let row = |sample, cpu, limit| Measured {
            sample,
            cpu,
            bytes_written_ratio: None,
            limit,
        };
        let mut rows = Vec::new();
        if let [streamed, small] = both.as_slice() {
            let limit = self.limit_of(W::Mixed, seed)?;
            rows.push((
                "mixed-write-flush-4k-qd1",
                row(small.clone(), total.cpu, limit),
            ));
            rows.push((
                "mixed-write-1m-seq",
                row(streamed.clone(), Duration::ZERO, alone),
            ));
        }
        Ok(rows)
    }
}

/// A [`PlainVolume`] as the subject.
pub struct PlainSubject {
    volume: PlainVolume,
    path: std::path::PathBuf,
}

impl PlainSubject {
    /// Opens or creates the file with `blocks` blocks.
    ///
    /// # Errors
    /// It cannot be opened or sized.
    pub fn open(path: &Path, blocks: u64) -> Result<PlainSubject, BenchError> {
        let volume = PlainVolume::open(path, VolumeId::random(), blocks)
            .map_err(BenchError::io(format_args!("open {}", path.display())))?;
        Ok(PlainSubject {
            volume,
            path: path.to_owned(),
        })
    }
}

impl Subject for PlainSubject {
    fn describe(&self) -> String {
        format!("plain file {}", self.path.display())
    }

    fn volume(&self) -> &dyn Volume {
        &self.volume
    }

    fn disk_bytes(&self) -> Result<Option<f64>, BenchError> {
        Ok(meter::device_bytes(&self.path)?.map(|b| b as f64))
    }

    fn settle(&self) -> Result<(), BenchError> {
        self.volume.flush_all()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_workloads_give_figures_on_a_plain_file() {
        let dir = tempfile::tempdir().unwrap();
        let time = Duration::from_millis(20);
        let suite = Suite {
            workloads: W::STANDARD.into_iter().chain([W::Mixed]).collect(),
            runs: 2,
            time,
            durable_time: time,
            working_set: 4 << 20,
            stream: 4 << 20,
            ..Suite::quick(1)
        };
        let subject = PlainSubject::open(&dir.path().join("v"), suite.blocks()).unwrap();
        let mut seen = Vec::new();
        let stop = AtomicBool::new(false);
        let report = suite
            .run(
                &subject,
                dir.path(),
                &mut |p| seen.push(p.to_owned()),
                &stop,
            )
            .unwrap();
        let names: Vec<_> = report.results.iter().map(|r| r.workload.as_str()).collect();
        let expected: Vec<_> = W::STANDARD.iter().map(|w| w.name()).collect();
        assert_eq!(names[..8], expected);
        assert_eq!(
            names[8..],
            ["mixed-write-flush-4k-qd1", "mixed-write-1m-seq"]
        );
        for row in &report.results {
            assert!(row.per_second > 0.0 && row.limit > Some(0.0), "{row:?}");
            assert!(
                row.p50_us <= row.p99_us && row.p99_us <= row.p999_us,
                "{row:?}"
            );
            assert_eq!(row.runs.len(), 2);
        }
        assert_eq!(seen.len(), 1 + 2 * 9);
    }

    #[test]
    fn names_are_read_back() {
        for w in W::STANDARD.into_iter().chain([W::Mixed]) {
            assert_eq!(w.name().parse(), Ok(w));
        }
        assert!("write".parse::<Workload>().is_err());
    }

    #[test]
    fn the_limit_is_measured_with_as_many_files_as_there_are_replicas() {
        assert_eq!(crate::limit::FILES, trivet_protocol::limits::MAX_IN_SYNC);
    }
}
