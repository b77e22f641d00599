//! `trivet bench`: load on a volume, its limits beside it, one table.

mod faults;
mod fs;
mod nfs;
mod subject;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use trivet_bench::suite::PlainSubject;
use trivet_bench::{BenchError, Report, Subject, Suite, Workload};

use self::subject::{InProcess, Processes};
use super::downstairs::failed as cluster_failed;
use crate::error::CliError;
use crate::output::{self, Format, Table};
use crate::stop::Stop;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Measure a volume: 4 KiB and 1 MiB, random and sequential, volatile and durable
    Volume(VolumeArgs),
    /// Measure a volume whose replicas hang, die, crawl and come back
    Faults(faults::FaultsArgs),
    /// Measure any NFSv3 server: small durable writes, reads, streams, attributes
    Nfs(nfs::NfsArgs),
    /// Measure any directory: small durable writes, streams, many small files
    Fs(fs::FsArgs),
}

/// Which volume, and how much.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("subject").required(true))]
pub struct VolumeArgs {
    /// Three replica processes on loopback, in this directory, which must not exist and is
    /// removed at the end
    #[arg(long, value_name = "DIR", group = "subject")]
    replicas: Option<PathBuf>,
    /// TLS between the replica processes and the volume
    #[arg(long, requires = "replicas")]
    tls: bool,
    /// Three replicas in this process, likewise
    #[arg(long, value_name = "DIR", group = "subject")]
    embedded: Option<PathBuf>,
    /// A volume in this plain file, which must not exist and is removed at the end
    #[arg(long, value_name = "FILE", group = "subject")]
    plain: Option<PathBuf>,
    /// One short run (about 20 s), for continuous integration
    #[arg(long)]
    quick: bool,
    /// Runs, of which medians are shown [default: 5, quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=101))]
    runs: Option<u32>,
    /// Seconds per workload and run [default: 10 and 60 for write-durable-4k-qd32, quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// MiB that small operations are spread over [default: 1024, quick: 64]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    working_set: Option<u64>,
    /// MiB of one sequential write [default: 2048, quick: 128]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    stream: Option<u64>,
    /// Only these workloads (`mixed` is one that is not among the standard eight); repeatable
    #[arg(long, value_name = "WORKLOAD")]
    only: Vec<Workload>,
    /// Seed of places and content [default: random, printed]
    #[arg(long)]
    seed: Option<u64>,
}

impl VolumeArgs {
    fn suite(&self) -> Suite {
        let seed = self.seed.unwrap_or_else(random_seed);
        let mut suite = match self.quick {
            true => Suite::quick(seed),
            false => Suite::full(seed),
        };
        if let Some(runs) = self.runs {
            suite.runs = runs;
        }
        if let Some(seconds) = self.seconds {
            suite.time = Duration::from_secs(seconds);
            suite.durable_time = suite.time;
        }
        if let Some(mib) = self.working_set {
            suite.working_set = mib << 20;
        }
        if let Some(mib) = self.stream {
            suite.stream = mib << 20;
        }
        if !self.only.is_empty() {
            suite.workloads.clone_from(&self.only);
        }
        suite
    }
}

fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Measures.
///
/// # Errors
/// The volume or its disk failed, or somebody stopped it.
pub fn run(args: Bench, format: Format) -> Result<(), CliError> {
    let args = match args {
        Bench::Volume(args) => args,
        Bench::Faults(args) => return faults::run(&args, format),
        Bench::Nfs(args) => return nfs::run(args, format),
        Bench::Fs(args) => return fs::run(&args, format),
    };
    let stop = Stop::on_signals()?;
    let suite = args.suite();
    let report = if let Some(path) = &args.plain {
        let file = PlainFile::claim(path)?;
        let subject = PlainSubject::open(&file.path, suite.blocks()).map_err(|e| failed(&e))?;
        measure(&suite, &subject, file.dir(), &stop)?
    } else if let Some(path) = &args.embedded {
        let dir = Scratch::claim(path)?;
        let blocks = suite.blocks();
        let subject = InProcess::start(&dir.path, blocks).map_err(|e| cluster_failed(&e))?;
        let report = measure(&suite, &subject, &dir.path, &stop);
        subject.close().map_err(|e| cluster_failed(&e))?;
        report?
    } else if let Some(path) = &args.replicas {
        let dir = Scratch::claim(path)?;
        let blocks = suite.blocks();
        let subject = Processes::start(&dir.path, blocks, args.tls);
        let subject = subject.map_err(|e| cluster_failed(&e))?;
        let report = measure(&suite, &subject, &dir.path, &stop);
        subject.close().map_err(|e| cluster_failed(&e))?;
        report?
    } else {
        return Err(CliError::usage("nothing to measure was named").hint("give --replicas DIR"));
    };
    output::print(format, &report, table)
}

fn measure(
    suite: &Suite,
    subject: &dyn Subject,
    limit_dir: &Path,
    stop: &Stop,
) -> Result<Report, CliError> {
    let steps = 1 + u64::from(suite.runs) * suite.workloads.len() as u64;
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} {bar:20} {pos}/{len} {msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_secs(1));
    let mut progress = |what: &str| {
        tracing::info!("{what}");
        bar.set_message(what.to_owned());
        bar.inc(1);
    };
    let report = suite.run(subject, limit_dir, &mut progress, stop.flag());
    bar.finish_and_clear();
    report.map_err(|e| failed(&e))
}

fn failed(e: &BenchError) -> CliError {
    let error = CliError::failed(format_args!("bench: {e}"));
    match e {
        BenchError::Io { .. } => error.hint("check space and permissions there, then start again"),
        BenchError::BadLoad(_) => error.hint("change --working-set or --stream"),
        _ => error,
    }
}

fn table(report: &Report) -> String {
    let mut table = Table::new(&[
        "workload",
        "per s",
        "MiB/s",
        "limit",
        "ratio",
        "p50 us",
        "p99 us",
        "p999 us",
        "gap ms",
        "cpu us/op",
        "bytes/byte",
    ]);
    for r in &report.results {
        table.row([
            r.workload.clone(),
            format!("{:.0}", r.per_second),
            format!("{:.1}", r.mib_per_second),
            r.limit.map_or("-".into(), |l| format!("{l:.0}")),
            r.ratio.map_or("-".into(), |r| format!("{r:.2}")),
            format!("{:.0}", r.p50_us),
            format!("{:.0}", r.p99_us),
            format!("{:.0}", r.p999_us),
            format!("{:.0}", r.longest_gap_ms),
            format!("{:.1}", r.cpu_us_per_op),
            r.bytes_written_ratio
                .map_or("-".into(), |b| format!("{b:.2}")),
        ]);
    }
    let s = &report.setup;
    format!(
        "{}\n{}, {} cores; medians of {}, {} s each, working set {} MiB, stream {} MiB, seed {}\n",
        table.render(),
        s.subject,
        s.cores,
        s.runs,
        s.seconds,
        s.working_set_bytes >> 20,
        s.stream_bytes >> 20,
        s.seed
    )
}

/// The file of `--plain`, made for the measurement and removed after it. One that exists is
/// refused: it may be somebody's disk.
struct PlainFile {
    path: PathBuf,
}

impl PlainFile {
    fn claim(path: &Path) -> Result<PlainFile, CliError> {
        match std::fs::File::create_new(path) {
            Ok(_) => Ok(PlainFile {
                path: path.to_owned(),
            }),
            Err(e) => {
                let what = format!("cannot create {}: {e}", path.display());
                Err(CliError::failed(what).hint("name a new file in a writable directory"))
            }
        }
    }

    fn dir(&self) -> &Path {
        match self.path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        }
    }
}

impl Drop for PlainFile {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// The directory of `--replicas` and `--embedded`, made for the measurement and removed after it.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn claim(path: &Path) -> Result<Scratch, CliError> {
        match std::fs::create_dir(path) {
            Ok(()) => Ok(Scratch {
                path: path.to_owned(),
            }),
            Err(e) => {
                let what = format!("cannot create {}: {e}", path.display());
                Err(CliError::failed(what).hint("name a new directory in a writable one"))
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}
