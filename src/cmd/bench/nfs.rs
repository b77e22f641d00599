//! `trivet bench nfs URL`: load on any NFSv3 server, and beside it, taking turns, on what it is
//! compared with: a volume of three replicas, or another server.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::Args;
use trivet_bench::load::{self, Load, Order};
use trivet_bench::nfs::{Kind, NfsLoad, NfsWorkload};
use trivet_bench::report::{Measured, Setup};
use trivet_bench::{BenchError, Subject, limit, meter};
use trivet_bench::{Report, ResultRow};
use trivet_nfs::client::nfs::Url;
use trivet_protocol::BLOCK_BYTES;
use trivet_replica::volume::{Batch, Block};

use super::subject::InProcess;
use super::{Scratch, cluster_failed};
use crate::error::CliError;
use crate::output::{self, Format};

/// A disk that has got nothing for so long has got all of it: a kernel writes back what is dirty
/// within 5 s, which `sync` does at once, and replicas empty their logs without a pause.
const QUIET: Duration = Duration::from_secs(6);
/// Waits no longer for that.
const UNREST: Duration = Duration::from_secs(90);

/// Which server, and how much.
#[derive(Debug, Args)]
pub struct NfsArgs {
    /// nfs://ADDRESS[:PORT]/EXPORT[?nfsport=N&mountport=N]
    url: Url,
    /// Compare with a volume of three replicas in this directory, which must not exist and is
    /// removed at the end; best on the disk that the server uses
    #[arg(long, value_name = "DIR", conflicts_with = "beside")]
    volume: Option<PathBuf>,
    /// Compare with another server
    #[arg(long, value_name = "URL")]
    beside: Option<Url>,
    /// Runs, of which medians are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=101))]
    runs: u32,
    /// Seconds per workload and run
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// MiB of each connection's file
    #[arg(long, value_name = "MIB", default_value_t = 256,
          value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    file: u64,
    /// Only these workloads; repeatable
    #[arg(long, value_name = "WORKLOAD")]
    only: Vec<String>,
    /// Call from ports below 1024, which exports without "insecure" ask for (root)
    #[arg(long)]
    reserved: bool,
    /// Count what reaches the disk beneath this directory, on which the server keeps its data and
    /// nobody else writes meanwhile; with --copies
    #[arg(long, value_name = "DIR")]
    disk: Option<PathBuf>,
    /// Copies of the data on that disk: three replicas there are 3
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    copies: u32,
    /// Also count processor time of this process, a server's; repeatable
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Seed of places and content [default: random, printed]
    #[arg(long)]
    seed: Option<u64>,
}

/// What is compared with.
enum Beside {
    Nothing,
    /// A volume, filled, of which the second half is for streams.
    Volume {
        volume: InProcess,
        blocks: u64,
        _dir: Scratch,
    },
    Server(NfsLoad),
}

impl Beside {
    fn start(args: &NfsArgs, load: &NfsLoad) -> Result<Beside, CliError> {
        if let Some(url) = &args.beside {
            return Ok(Beside::Server(NfsLoad {
                url: url.clone(),
                ..load.clone()
            }));
        }
        let Some(path) = &args.volume else {
            return Ok(Beside::Nothing);
        };
        let blocks = load.file_bytes / BLOCK_BYTES as u64;
        let dir = Scratch::claim(path)?;
        let volume = InProcess::start(&dir.path, 2 * blocks).map_err(|e| cluster_failed(&e))?;
        let never = AtomicBool::new(false);
        load::fill(volume.volume(), 0..blocks, load.seed, &never).map_err(|e| super::failed(&e))?;
        Ok(Beside::Volume {
            volume,
            blocks,
            _dir: dir,
        })
    }

    fn describe(&self) -> String {
        match self {
            Beside::Nothing => String::new(),
            Beside::Volume { volume, .. } => format!("; the limit is {}", volume.describe()),
            Beside::Server(s) => {
                format!(
                    "; the limit is the server at {}, export {}",
                    s.url.host, s.url.path
                )
            }
        }
    }

    /// Operations per second of the same load; 0: there is nothing to compare with.
    fn per_second(&self, with: &NfsLoad, w: &NfsWorkload) -> Result<f64, BenchError> {
        match self {
            Beside::Nothing => Ok(0.0),
            Beside::Server(load) => load.run(w, &mut || Ok(())).map(|s| s.0.per_second()),
            Beside::Volume { volume, blocks, .. } => on_volume(volume, *blocks, with, w),
        }
    }

    fn close(self) -> Result<(), CliError> {
        match self {
            Beside::Volume { volume, .. } => volume.close().map_err(|e| cluster_failed(&e)),
            _ => Ok(()),
        }
    }
}

/// The load that a volume has from the same calls. Attributes are none of its business: one in
/// flight is compared with a bare ping-pong over TCP, more with nothing.
fn on_volume(
    subject: &InProcess,
    blocks: u64,
    with: &NfsLoad,
    w: &NfsWorkload,
) -> Result<f64, BenchError> {
    let never = AtomicBool::new(false);
    let volume = subject.volume();
    let small = |kind, depth| Load {
        kind,
        order: Order::Random,
        area: 0..blocks,
        blocks: 1,
        depth,
        time: with.time,
        at_least: 0,
        at_most: u64::MAX,
        seed: with.seed,
    };
    let load = match w.kind {
        Kind::GetAttr if w.depth == 1 => return limit::ping_pong(with.time),
        Kind::GetAttr | Kind::Lock => return Ok(0.0),
        Kind::WriteSync => small(load::Kind::DurableWrite, w.depth),
        Kind::Read => small(load::Kind::Read, w.depth),
        // A volatile write completes within the call: more at once are more callers.
        Kind::WriteUnstable => {
            let load = small(load::Kind::Write, 1);
            return load::run_threads(volume, &load, w.depth, &never).map(|s| s.per_second());
        }
        Kind::Stream => {
            volume.submit(Batch::discard(Block(blocks), blocks))?;
            volume.flush_all()?;
            Load {
                order: Order::Sequential,
                area: blocks..2 * blocks,
                blocks: (1 << 20) / BLOCK_BYTES as u32,
                ..small(load::Kind::Write, 1)
            }
        }
        Kind::StreamRead => Load {
            order: Order::Sequential,
            blocks: (1 << 20) / BLOCK_BYTES as u32,
            ..small(load::Kind::Read, w.depth)
        },
    };
    subject.settle()?;
    load::run(volume, &load, &never).map(|s| s.per_second())
}

/// Measures.
///
/// # Errors
/// The server cannot be reached, or answered with an error.
pub fn run(args: NfsArgs, format: Format) -> Result<(), CliError> {
    let load = NfsLoad {
        url: args.url.clone(),
        reserved: args.reserved,
        file_bytes: args.file << 20,
        time: Duration::from_secs(args.seconds),
        seed: args.seed.unwrap_or_else(super::random_seed),
    };
    let all = NfsWorkload::standard();
    let known: Vec<&str> = all.iter().map(|w| w.name.as_str()).collect();
    if let Some(unknown) = args.only.iter().find(|o| !known.contains(&o.as_str())) {
        let what = format!("no workload {unknown:?}");
        return Err(CliError::failed(what).hint(format!("there are {}", known.join(", "))));
    }
    let chosen = |w: &&NfsWorkload| args.only.is_empty() || args.only.contains(&w.name);
    let beside = Beside::start(&args, &load)?;
    let mut results = Vec::new();
    let disk = args.disk.as_deref().map(|d| (d, args.copies));
    for w in all.iter().filter(chosen) {
        let (mut runs, mut streams) = (Vec::new(), Vec::new());
        for run in 0..args.runs {
            tracing::info!(run, "{}", w.name);
            // Who goes first changes from run to run.
            let limit = || beside.per_second(&load, w).map_err(|e| super::failed(&e));
            let first = (run % 2 == 1).then(limit).transpose()?;
            let measured = measure(&load, w, &args.pid, disk);
            let (mut measured, stream) = measured.map_err(|e| super::failed(&e))?;
            measured.limit = first.map_or_else(limit, Ok)?;
            runs.push(measured);
            streams.extend(stream);
        }
        results.push(ResultRow::of(&w.name, &runs));
        if !streams.is_empty() {
            let name = format!("{}-the-stream", w.name);
            results.push(ResultRow::of(&name, &streams));
        }
    }
    let report = Report {
        results,
        setup: Setup {
            subject: format!(
                "NFSv3 server at {}, export {}{}",
                load.url.host,
                load.url.path,
                beside.describe()
            ),
            runs: args.runs,
            seconds: load.time.as_secs_f64(),
            working_set_bytes: load.file_bytes,
            stream_bytes: load.file_bytes,
            seed: load.seed,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        },
    };
    beside.close()?;
    output::print(format, &report, super::table)
}

/// What a workload cost; and of the stream beside it, which has no processor time of its own.
fn measure(
    load: &NfsLoad,
    w: &NfsWorkload,
    pids: &[u32],
    disk: Option<(&Path, u32)>,
) -> Result<(Measured, Option<Measured>), BenchError> {
    let writes = matches!(w.kind, Kind::WriteSync | Kind::WriteUnstable | Kind::Stream);
    let disk = disk.filter(|_| writes && !w.beside_stream);
    let written = || disk.map_or(Ok(None), |(d, _)| settled(d));
    let mut before = (None, Duration::ZERO);
    let (sample, stream) = load.run(w, &mut || {
        before = (written()?, meter::cpu(pids)?);
        Ok(())
    })?;
    let cpu = meter::cpu(pids)?.saturating_sub(before.1);
    let both = before.0.zip(written()?).zip(disk);
    let ratio = both.map(|((b, a), (_, copies))| {
        (a - b) as f64 / f64::from(copies) / (sample.bytes as f64).max(1.0)
    });
    let row = |sample, cpu, bytes_written_ratio| Measured {
        sample,
        cpu,
        bytes_written_ratio,
        limit: 0.0,
    };
    let stream = stream.map(|s| row(s, Duration::ZERO, None));
    Ok((row(sample, cpu, ratio), stream))
}

/// Bytes that the disk has got once it gets no more for [`QUIET`]: logs are emptied behind the
/// load. `None` if it does not come to rest, or nobody counts for it.
fn settled(dir: &Path) -> Result<Option<u64>, BenchError> {
    let begin = Instant::now();
    let mut last = (meter::device_bytes(dir)?, begin);
    while begin.elapsed() < UNREST && last.1.elapsed() < QUIET {
        // The kernel tells nobody when its counter changes.
        std::thread::sleep(QUIET / 20);
        let now = meter::device_bytes(dir)?;
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    Ok(last.0.filter(|_| last.1.elapsed() >= QUIET))
}
