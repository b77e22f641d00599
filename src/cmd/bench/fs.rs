//! `trivet bench fs DIR`: load on any directory, and beside it on another.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use trivet_bench::files::{FileLoad, FileWorkload, Files, TREE_FILES};
use trivet_bench::report::{Measured, Setup};
use trivet_bench::{BenchError, Report, ResultRow, meter};

use crate::error::CliError;
use crate::output::{self, Format};
use crate::stop::Stop;

/// Which directory, and how much.
#[derive(Debug, Args)]
pub struct FsArgs {
    /// A directory of the file system to be measured; what is made in it is removed at the end
    dir: PathBuf,
    /// A directory of another file system, measured in turn with the first: its figures are the
    /// limit
    #[arg(long, value_name = "DIR")]
    beside: Option<PathBuf>,
    /// One short run, for continuous integration
    #[arg(long)]
    quick: bool,
    /// Runs, of which medians are shown [default: 3, quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=101))]
    runs: Option<u32>,
    /// Seconds per workload and run that has no fixed number of files [default: 10, quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// MiB that small operations are spread over [default: 512, quick: 64]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    working_set: Option<u64>,
    /// MiB of one sequential write [default: 1024, quick: 128]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    stream: Option<u64>,
    /// Files of the tree [default: 50000, quick: 2000]
    #[arg(long, value_name = "FILES", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    tree: Option<u64>,
    /// Only these workloads, and what they need; repeatable
    #[arg(long, value_name = "WORKLOAD")]
    only: Vec<FileWorkload>,
    /// Also count processor time of this process, the daemon's; repeatable
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Seed of places and content [default: random, printed]
    #[arg(long)]
    seed: Option<u64>,
}

impl FsArgs {
    fn load(&self) -> FileLoad {
        let pick = |given: Option<u64>, full, quick| {
            given.unwrap_or(match self.quick {
                true => quick,
                false => full,
            })
        };
        FileLoad {
            time: Duration::from_secs(pick(self.seconds, 10, 1)),
            working_set: pick(self.working_set, 512, 64) << 20,
            stream: pick(self.stream, 1024, 128) << 20,
            tree_files: pick(self.tree, TREE_FILES as u64, 2000) as usize,
            seed: self.seed.unwrap_or_else(super::random_seed),
        }
    }

    /// What is to be run, and whether it is to be shown.
    fn workloads(&self) -> Vec<(FileWorkload, bool)> {
        let shown = |w: &FileWorkload| self.only.is_empty() || self.only.contains(w);
        let needed = |w: &FileWorkload| self.only.iter().any(|o| o.needs() == Some(*w));
        FileWorkload::ALL
            .into_iter()
            .filter(|w| shown(w) || needed(w))
            .map(|w| (w, shown(&w)))
            .collect()
    }
}

/// Measures.
///
/// # Errors
/// A call on one of the directories failed, or somebody stopped it.
pub fn run(args: &FsArgs, format: Format) -> Result<(), CliError> {
    let stop = Stop::on_signals()?;
    let load = args.load();
    let runs = args.runs.unwrap_or(if args.quick { 1 } else { 3 });
    let workloads = args.workloads();
    let mut measured: Vec<Vec<Measured>> = workloads.iter().map(|_| Vec::new()).collect();
    let failed = |e: BenchError| super::failed(&e);
    for run in 0..runs {
        let files = Files::new(&args.dir, load.clone()).map_err(failed)?;
        let beside = match &args.beside {
            Some(dir) => Some(Files::new(dir, load.clone()).map_err(failed)?),
            None => None,
        };
        for ((workload, _), rows) in workloads.iter().zip(&mut measured) {
            tracing::info!(run, "{}", workload.name());
            let limit = || -> Result<f64, BenchError> {
                let sample = beside.as_ref().map(|b| b.run(*workload, stop.flag()));
                Ok(sample.transpose()?.map_or(0.0, |s| s.per_second()))
            };
            // Who goes first changes from run to run.
            let first = (run % 2 == 1).then(&limit).transpose().map_err(failed)?;
            let before = meter::cpu(&args.pid).map_err(failed)?;
            let sample = files.run(*workload, stop.flag()).map_err(failed)?;
            let cpu = meter::cpu(&args.pid)
                .map_err(failed)?
                .saturating_sub(before);
            rows.push(Measured {
                sample,
                cpu,
                bytes_written_ratio: None,
                limit: first.map_or_else(limit, Ok).map_err(failed)?,
            });
        }
    }
    let shown = workloads
        .iter()
        .zip(&measured)
        .filter(|((_, shown), _)| *shown);
    let report = Report {
        results: shown
            .map(|((w, _), runs)| ResultRow::of(w.name(), runs))
            .collect(),
        setup: Setup {
            subject: subject(&args.dir, args.beside.as_deref()),
            runs,
            seconds: load.time.as_secs_f64(),
            working_set_bytes: load.working_set,
            stream_bytes: load.stream,
            seed: load.seed,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        },
    };
    output::print(format, &report, super::table)
}

fn subject(dir: &Path, beside: Option<&Path>) -> String {
    let beside = match beside {
        Some(b) => format!(", the limit is {}", described(b)),
        None => String::new(),
    };
    format!("files on {}{beside}", described(dir))
}

/// The directory and its file system's kind, as the kernel lists it.
fn described(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let kind = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((Path::new(fields.next()?), fields.next()?))
        })
        .filter(|(at, _)| full.starts_with(at))
        .max_by_key(|(at, _)| at.as_os_str().len())
        .map_or("?", |(_, kind)| kind);
    format!("{} ({kind})", dir.display())
}
