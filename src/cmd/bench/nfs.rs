//! `trivet bench nfs URL`: load on any NFSv3 server.

use std::time::Duration;

use clap::Args;
use trivet_bench::meter;
use trivet_bench::nfs::{NfsLoad, NfsWorkload};
use trivet_bench::report::{Measured, Setup};
use trivet_bench::{Report, ResultRow};
use trivet_nfs::client::nfs::Url;

use crate::error::CliError;
use crate::output::{self, Format};

/// Which server, and how much.
#[derive(Debug, Args)]
pub struct NfsArgs {
    /// nfs://ADDRESS[:PORT]/EXPORT[?nfsport=N&mountport=N]
    url: Url,
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
    /// Also count processor time of this process, a server's; repeatable
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Seed of places and content [default: random, printed]
    #[arg(long)]
    seed: Option<u64>,
}

/// Measures.
///
/// # Errors
/// The server cannot be reached, or answered with an error.
pub fn run(args: NfsArgs, format: Format) -> Result<(), CliError> {
    let load = NfsLoad {
        url: args.url,
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
    let mut results = Vec::new();
    for w in all.iter().filter(chosen) {
        let mut runs = Vec::new();
        for _ in 0..args.runs {
            tracing::info!("{}", w.name);
            runs.push(measure(&load, w, &args.pid).map_err(|e| super::failed(&e))?);
        }
        results.push(ResultRow::of(&w.name, &runs));
    }
    let report = Report {
        results,
        setup: Setup {
            subject: format!(
                "NFSv3 server at {}, export {}",
                load.url.host, load.url.path
            ),
            runs: args.runs,
            seconds: load.time.as_secs_f64(),
            working_set_bytes: load.file_bytes,
            stream_bytes: load.file_bytes,
            seed: load.seed,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        },
    };
    output::print(format, &report, super::table)
}

fn measure(
    load: &NfsLoad,
    w: &NfsWorkload,
    pids: &[u32],
) -> Result<Measured, trivet_bench::BenchError> {
    let before = meter::cpu(pids)?;
    let sample = load.run(w)?;
    Ok(Measured {
        sample,
        cpu: meter::cpu(pids)?.saturating_sub(before),
        bytes_written_ratio: None,
        limit: 0.0,
    })
}
