//! `trivet-differential OURS REFERENCE`: compares two NFSv3 servers. Exit code 0: every difference
//! is explained; 1: one is not; 2: a server could not be asked.

use std::process::ExitCode;

use clap::Parser;
use trivet_differential::run::{Options, compare};
use trivet_nfs::client::nfs::Url;

#[derive(Parser)]
#[command(about = "The same random NFSv3 calls to two servers, their answers compared")]
struct Cli {
    /// Our server: nfs://ADDRESS[:PORT]/EXPORT[?nfsport=N&mountport=N]
    ours: Url,
    /// The one to compare it with, likewise
    reference: Url,
    /// Calls
    #[arg(short = 'n', long, default_value_t = 20_000)]
    calls: u64,
    /// Seed of the calls [default: random, printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Stop after so many differences that no rule explains
    #[arg(long, default_value_t = 20)]
    most: usize,
    /// Show an example of each explained difference
    #[arg(long)]
    examples: bool,
    /// Print every call and both statuses
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let random = now.map_or(1, |d| u64::from(d.subsec_nanos()));
    let options = Options {
        calls: cli.calls,
        seed: cli.seed.unwrap_or(random),
        most: cli.most,
        trace: cli.trace,
    };
    println!("SEED={}", options.seed);
    let report = match compare(&cli.ours, &cli.reference, &options) {
        Ok(r) => r,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(2);
        }
    };
    print!("{}", report.text(cli.examples));
    match report.unexplained.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
