//! `trivet-sim`: runs seeds, replays one, and shows that deliberate breaks are caught.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use trivet_protocol::breaks::Break;
use trivet_sim::{Options, Outcome, run};

/// Deterministic simulation of a volume: one seed is one world.
#[derive(Parser)]
struct Args {
    /// Number of seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Print every step (with --seeds 1).
    #[arg(long)]
    trace: bool,
    /// Switch each rule off in turn; each must be caught within so many seeds.
    #[arg(long)]
    mutants: bool,
    /// Switch only this rule off.
    #[arg(long)]
    only: Option<String>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.mutants {
        return mutants(&args);
    }
    let broken = match named(args.only.as_deref()) {
        Ok(b) => b,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::from(2);
        }
    };
    let began = Instant::now();
    let (failed, total) = many(&args, broken, false);
    println!(
        "sim: {} seeds, {} operations, {} acknowledgements, {} reads, {} activations checked \
         in {:.1} s (trace {:016x})",
        args.seeds,
        total.operations,
        total.acks,
        total.reads,
        total.activations,
        began.elapsed().as_secs_f64(),
        total.trace
    );
    match failed {
        None => {
            println!("sim: ok");
            ExitCode::SUCCESS
        }
        Some((seed, why)) => {
            println!("sim: seed {seed} FAILED: {why}");
            println!("sim: replay with: trivet-sim --from {seed} --seeds 1 --trace");
            ExitCode::FAILURE
        }
    }
}

fn named(name: Option<&str>) -> Result<Option<Break>, String> {
    let Some(name) = name else { return Ok(None) };
    let found = Break::ALL
        .iter()
        .find(|(_, n)| *n == name)
        .map(|(b, _)| Some(*b));
    found.ok_or_else(|| format!("no rule is called {name}"))
}

/// Runs seeds until one fails.
fn many(args: &Args, broken: Option<Break>, quiet: bool) -> (Option<(u64, String)>, Outcome) {
    let next = AtomicU64::new(args.from);
    let stop = AtomicBool::new(false);
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let total = Mutex::new(Outcome::default());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.from + args.seeds {
                        break;
                    }
                    let options = Options {
                        seed,
                        trace: args.trace && !quiet,
                        broken,
                    };
                    // A panic in the code under test is a failure like any other.
                    let result = std::panic::catch_unwind(|| run(&options))
                        .unwrap_or_else(|p| Err(format!("panic: {}", panic_text(&p))));
                    match result {
                        Ok(o) => total.lock().unwrap().add(&o),
                        Err(why) => {
                            let mut failed = failed.lock().unwrap();
                            if failed.as_ref().is_none_or(|f| seed < f.0) {
                                *failed = Some((seed, why));
                            }
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    (failed.into_inner().unwrap(), total.into_inner().unwrap())
}

fn panic_text(p: &Box<dyn std::any::Any + Send>) -> String {
    p.downcast_ref::<String>()
        .cloned()
        .or_else(|| p.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_default()
}

fn mutants(args: &Args) -> ExitCode {
    let mut missed = 0;
    for (broken, name) in Break::ALL {
        if args.only.as_deref().is_some_and(|o| o != name) {
            continue;
        }
        let began = Instant::now();
        match many(args, Some(broken), true).0 {
            Some((seed, why)) => {
                let why = why.lines().next().unwrap_or_default();
                let secs = began.elapsed().as_secs_f64();
                println!("mutant {name}: caught by seed {seed} in {secs:.1} s: {why}");
            }
            None => {
                println!("mutant {name}: NOT CAUGHT by {} seeds", args.seeds);
                missed += 1;
            }
        }
    }
    if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
