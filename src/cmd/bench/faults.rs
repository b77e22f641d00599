//! `trivet bench faults DIR`: what a volume does while replicas hang, die, crawl and come back,
//! and how soon it serves again after everything was killed. Three replica processes as
//! `bench volume --replicas` has them.
//!
//! Every load is the one that a virtual machine's disk feels most: random 4 KiB writes, each made
//! durable, 32 at once. A fault comes after a third of it and ends after two thirds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::Signal;
use serde::Serialize;
use trivet_bench::load::{self, Kind, Order};
use trivet_bench::{BenchError, Load, Sample};
use trivet_protocol::BLOCK_BYTES;
use trivet_replica::Volume;
use trivet_replica::driver::ReplicatedVolume;
use trivet_replica::volume::{Batch, Block};

use super::subject::{Replicas, bench_error};
use super::{Scratch, failed, random_seed};
use crate::cmd::downstairs::failed as cluster_failed;
use crate::error::CliError;
use crate::output::{self, Format, Table};
use crate::stop::Stop;

/// The one of three that suffers.
const VICTIM: usize = 2;
/// A slow replica's day: so long stopped, so long awake.
const CRAWL: Duration = Duration::from_millis(30);
/// A replica that was away is back in sync by then, or there is something wrong.
const BACK_WITHIN: Duration = Duration::from_secs(300);
/// Default lease and what members add to it: by then nobody holds the volume.
const LEASE_OVER: Duration = Duration::from_secs(4);
const POLL: Duration = Duration::from_millis(20);

/// How much.
#[derive(Debug, Args)]
pub struct FaultsArgs {
    /// A directory, which must not exist and is removed at the end
    dir: PathBuf,
    /// Seconds of each load
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..=86_400))]
    seconds: u64,
    /// GiB of the volume, thin
    #[arg(long, value_name = "GIB", default_value_t = 8192,
          value_parser = clap::value_parser!(u64).range(2..=1 << 20))]
    size: u64,
    /// GiB written before anything is timed; each costs three on the disk
    #[arg(long, value_name = "GIB", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    written: u64,
    /// Seed of places and content [default: random, printed]
    #[arg(long)]
    seed: Option<u64>,
}

/// One load, and what happened beside it.
#[derive(Debug, Serialize)]
struct UnderFault {
    event: &'static str,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    longest_gap_ms: f64,
    /// Until the replica counted again, from the load's end; of the last, from its return. Null
    /// where none had left.
    in_sync_again_s: Option<f64>,
}

/// How long something took.
#[derive(Debug, Serialize)]
struct Timed {
    event: &'static str,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct FaultReport {
    loads: Vec<UnderFault>,
    times: Vec<Timed>,
    /// Resident memory of each replica process at its highest, in MiB.
    replica_peak_mib: Vec<f64>,
    size_gib: u64,
    written_gib: u64,
    seconds: u64,
    seed: u64,
}

/// Measures.
///
/// # Errors
/// The volume or its disk failed, or somebody stopped it.
pub fn run(args: &FaultsArgs, format: Format) -> Result<(), CliError> {
    let stop = Stop::on_signals()?;
    let dir = Scratch::claim(&args.dir)?;
    let seed = args.seed.unwrap_or_else(random_seed);
    let mut bench = Faults::start(&dir.path, args, seed, &stop)?;
    let report = bench.all(args, seed).map_err(|e| failed(&e))?;
    bench.close()?;
    output::print(format, &report, table)
}

/// The volume under test; `None` only between two lives of the upstairs.
struct Faults<'a> {
    replicas: Replicas,
    volume: Option<Arc<ReplicatedVolume>>,
    load: Load,
    stop: &'a Stop,
}

impl<'a> Faults<'a> {
    fn start(
        dir: &Path,
        args: &FaultsArgs,
        seed: u64,
        stop: &'a Stop,
    ) -> Result<Faults<'a>, CliError> {
        let blocks = (args.size << 30) / BLOCK_BYTES as u64;
        let replicas = Replicas::start(dir, blocks, false).map_err(|e| cluster_failed(&e))?;
        let volume = replicas.attach().map_err(|e| cluster_failed(&e))?;
        let time = Duration::from_secs(args.seconds);
        Ok(Faults {
            replicas,
            volume: Some(volume),
            load: Load {
                kind: Kind::DurableWrite,
                order: Order::Random,
                area: 0..(1 << 30) / BLOCK_BYTES as u64,
                blocks: 1,
                depth: 32,
                time,
                at_least: 0,
                at_most: u64::MAX,
                seed,
            },
            stop,
        })
    }

    fn volume(&self) -> Result<Arc<ReplicatedVolume>, BenchError> {
        self.volume.clone().ok_or(BenchError::Interrupted)
    }

    fn all(&mut self, args: &FaultsArgs, seed: u64) -> Result<FaultReport, BenchError> {
        let written = (args.written << 30) / BLOCK_BYTES as u64;
        load::fill(&*self.volume()?, 0..written, seed, self.stop.flag())?;
        let stop = self.stop;
        let mut loads = vec![self.under("none", |_, _| Ok(()))?];
        loads.push(self.under("one replica hangs", |replicas, third| {
            signal(replicas, Signal::STOP)?;
            stop.wait_for(third);
            signal(replicas, Signal::CONT)
        })?);
        loads.push(self.under("one replica crawls", |replicas, third| {
            crawl(replicas, third, stop)
        })?);
        loads.push(self.under("one replica is dead", |replicas, third| {
            replicas.kill(VICTIM);
            stop.wait_for(third);
            replicas.restart(VICTIM).map_err(bench_error)
        })?);
        loads.push(self.brought_back()?);
        let mut times = Vec::new();
        times.push(self.two_away()?);
        // In this order: the first finds logs as the load left them, and so does the second.
        times.push(self.killed("everything killed, activated at once", Duration::ZERO)?);
        times.push(self.killed("the same, lease over", LEASE_OVER)?);
        let replica_peak_mib = self.peaks()?;
        times.push(self.discard()?);
        Ok(FaultReport {
            loads,
            times,
            replica_peak_mib,
            size_gib: args.size,
            written_gib: args.written,
            seconds: args.seconds,
            seed,
        })
    }

    /// The load with `fault` beside it, which is given a third of the load's time.
    fn under(
        &mut self,
        event: &'static str,
        fault: impl FnOnce(&mut Replicas, Duration) -> Result<(), BenchError>,
    ) -> Result<UnderFault, BenchError> {
        let (volume, load, stop) = (self.volume()?, &self.load, self.stop);
        let replicas = &mut self.replicas;
        let third = load.time / 3;
        let mut over = Instant::now();
        let sample = std::thread::scope(|scope| {
            let running = scope.spawn(|| load::run(&*volume, load, stop.flag()));
            stop.wait_for(third);
            let done = fault(replicas, third);
            over = Instant::now();
            let sample = match running.join() {
                Ok(sample) => sample,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            done.and(sample)
        })?;
        let left = volume.status().members.iter().any(|m| !m.in_sync);
        self.all_in_sync(&volume)?;
        let again = left.then(|| over.elapsed().as_secs_f64());
        Ok(row(event, &sample, again))
    }

    /// The load alone while a replica is away, and then again while it is brought back.
    fn brought_back(&mut self) -> Result<UnderFault, BenchError> {
        let volume = self.volume()?;
        self.replicas.kill(VICTIM);
        load::run(&*volume, &self.load, self.stop.flag())?;
        self.replicas.restart(VICTIM).map_err(bench_error)?;
        let began = Instant::now();
        let sample = load::run(&*volume, &self.load, self.stop.flag())?;
        self.all_in_sync(&volume)?;
        let again = began.elapsed().as_secs_f64();
        Ok(row("one replica is brought back", &sample, Some(again)))
    }

    fn all_in_sync(&self, volume: &ReplicatedVolume) -> Result<(), BenchError> {
        let began = Instant::now();
        while volume.status().members.iter().any(|m| !m.in_sync) {
            if self.stop.wait_for(POLL) {
                return Err(BenchError::Interrupted);
            }
            if began.elapsed() > BACK_WITHIN {
                return Err(BenchError::Stalled(BACK_WITHIN));
            }
        }
        Ok(())
    }

    /// Two of three killed and started again, until a write is durable.
    fn two_away(&mut self) -> Result<Timed, BenchError> {
        for i in [1, 2] {
            self.replicas.kill(i);
        }
        let began = Instant::now();
        for i in [1, 2] {
            self.replicas.restart(i).map_err(bench_error)?;
        }
        let volume = self.volume()?;
        self.one_write(&volume)?;
        let seconds = began.elapsed().as_secs_f64();
        self.all_in_sync(&volume)?;
        Ok(Timed {
            event: "two replicas killed and started, until a write is durable",
            seconds,
        })
    }

    /// Everything killed in the middle of a load, all three started again, the volume activated,
    /// one write made durable. `wait` passes unseen between the start and the activation.
    fn killed(&mut self, event: &'static str, wait: Duration) -> Result<Timed, BenchError> {
        let volume = self.volume.take().ok_or(BenchError::Interrupted)?;
        load::run(&*volume, &self.load, self.stop.flag())?;
        for i in 0..3 {
            self.replicas.kill(i);
        }
        // Nobody is there to be told: for the members this life ends as in a crash.
        drop(volume);
        let began = Instant::now();
        let replicas = &mut self.replicas;
        for i in 0..3 {
            replicas.restart(i).map_err(bench_error)?;
        }
        let opened = began.elapsed();
        // The lease runs out unmeasured.
        self.stop.wait_for(wait);
        let began = Instant::now();
        let volume = replicas.attach().map_err(bench_error)?;
        self.one_write(&volume)?;
        let seconds = (opened + began.elapsed()).as_secs_f64();
        self.all_in_sync(&volume)?;
        self.volume = Some(volume);
        Ok(Timed { event, seconds })
    }

    fn one_write(&self, volume: &ReplicatedVolume) -> Result<(), BenchError> {
        let one = Load {
            depth: 1,
            time: Duration::ZERO,
            at_least: BLOCK_BYTES as u64,
            ..self.load.clone()
        };
        load::run(volume, &one, self.stop.flag()).map(drop)
    }

    fn discard(&self) -> Result<Timed, BenchError> {
        let volume = self.volume()?;
        let began = Instant::now();
        volume.submit(Batch::discard(Block(0), volume.info().blocks))?;
        volume.flush_all()?;
        Ok(Timed {
            event: "the whole volume discarded, durably",
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    fn peaks(&mut self) -> Result<Vec<f64>, BenchError> {
        self.replicas.running().map(|r| peak_mib(r.pid())).collect()
    }

    fn close(mut self) -> Result<(), CliError> {
        if let Some(volume) = self.volume.take() {
            let back = volume.hand_back();
            back.map_err(|e| CliError::failed(format_args!("hand the volume back: {e}")))?;
        }
        self.replicas.stop().map_err(|e| cluster_failed(&e))
    }
}

fn signal(replicas: &Replicas, signal: Signal) -> Result<(), BenchError> {
    match replicas.replica(VICTIM) {
        Some(r) => r.signal(signal).map_err(bench_error),
        None => Ok(()),
    }
}

fn crawl(replicas: &mut Replicas, third: Duration, stop: &Stop) -> Result<(), BenchError> {
    let began = Instant::now();
    while began.elapsed() < third && !stop.asked() {
        signal(replicas, Signal::STOP)?;
        stop.wait_for(CRAWL);
        signal(replicas, Signal::CONT)?;
        stop.wait_for(CRAWL);
    }
    Ok(())
}

/// Resident memory at its highest.
fn peak_mib(pid: u32) -> Result<f64, BenchError> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).map_err(|source| BenchError::Io {
        doing: format!("read {path}"),
        source,
    })?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.unwrap_or(f64::NAN) / 1024.0)
}

fn row(event: &'static str, sample: &Sample, in_sync_again_s: Option<f64>) -> UnderFault {
    let us = |q: f64| sample.latency.percentile(q).as_secs_f64() * 1e6;
    UnderFault {
        event,
        per_second: sample.per_second(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        p999_us: us(0.999),
        longest_gap_ms: sample.longest_gap.as_secs_f64() * 1e3,
        in_sync_again_s,
    }
}

fn table(report: &FaultReport) -> String {
    let mut loads = Table::new(&[
        "during the load",
        "per s",
        "p50 us",
        "p99 us",
        "p999 us",
        "gap ms",
        "in sync again, s",
    ]);
    for l in &report.loads {
        loads.row([
            l.event.to_owned(),
            format!("{:.0}", l.per_second),
            format!("{:.0}", l.p50_us),
            format!("{:.0}", l.p99_us),
            format!("{:.0}", l.p999_us),
            format!("{:.0}", l.longest_gap_ms),
            l.in_sync_again_s.map_or("-".into(), |s| format!("{s:.1}")),
        ]);
    }
    let mut times = Table::new(&["event", "seconds"]);
    for t in &report.times {
        times.row([t.event.to_owned(), format!("{:.2}", t.seconds)]);
    }
    let peaks: Vec<String> = report
        .replica_peak_mib
        .iter()
        .map(|m| format!("{m:.0}"))
        .collect();
    format!(
        "{}\n{}\nmemory of the replicas at its highest: {} MiB\nvolume of {} GiB, {} GiB written, \
         loads of {} s, seed {}\n",
        loads.render(),
        times.render(),
        peaks.join(", "),
        report.size_gib,
        report.written_gib,
        report.seconds,
        report.seed
    )
}
