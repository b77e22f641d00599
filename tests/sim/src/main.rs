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
use trivet_sim::{About, Options, Outcome, run, run_store, scenario};

/// Deterministic simulation of a volume: one seed is one world.
#[derive(Parser)]
struct Args {
    /// Number of seeds (by default 200; 60 for each rule with --mutants).
    #[arg(long)]
    seeds: Option<u64>,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Print every step (with --seeds 1).
    #[arg(long)]
    trace: bool,
    /// Switch each rule off in turn; each must be caught within so many seeds of its story.
    #[arg(long)]
    mutants: bool,
    /// Tell this story in every world; `none` leaves all to chance. (By default every other world
    /// tells a story.)
    #[arg(long)]
    story: Option<String>,
    /// Switch only this rule off.
    #[arg(long)]
    only: Option<String>,
    /// Go on after a seed that failed, and name all that do.
    #[arg(long)]
    keep_going: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let chosen = named(args.only.as_deref()).and_then(|b| Ok((b, about(args.story.as_deref())?)));
    let (broken, about) = match chosen {
        Ok(chosen) => chosen,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::from(2);
        }
    };
    if args.mutants {
        return mutants(&args, broken);
    }
    let began = Instant::now();
    let seeds = args.seeds.unwrap_or(200);
    let (failed, total) = many(&args, seeds, broken, about);
    println!(
        "sim: {seeds} seeds, {} operations, {} acknowledgements, {} reads, {} activations checked \
         in {:.1} s (trace {:016x})",
        total.operations,
        total.acks,
        total.reads,
        total.activations,
        began.elapsed().as_secs_f64(),
        total.trace
    );
    println!("sim: per 100 seeds: {}", total.coverage.per(seeds));
    match failed {
        None => {
            println!("sim: ok");
            ExitCode::SUCCESS
        }
        Some((seed, why)) => {
            let story = args.story.map(|s| format!(" --story {s}"));
            let story = story.unwrap_or_default();
            println!("sim: seed {seed} FAILED: {why}");
            println!("sim: replay with: trivet-sim --from {seed} --seeds 1 --trace{story}");
            ExitCode::FAILURE
        }
    }
}

fn about(story: Option<&str>) -> Result<About, String> {
    match story {
        None => Ok(About::Seed),
        Some("none") => Ok(About::Chance),
        Some(name) => scenario::named(name).map(About::Story).ok_or_else(|| {
            let all: Vec<_> = scenario::ALL.iter().map(|k| k.name).collect();
            format!("no story is called {name}; there are {}", all.join(", "))
        }),
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
fn many(
    args: &Args,
    seeds: u64,
    broken: Option<Break>,
    about: About,
) -> (Option<(u64, String)>, Outcome) {
    let next = AtomicU64::new(args.from);
    let stop = AtomicBool::new(false);
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let total = Mutex::new(Outcome::default());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.from + seeds {
                        break;
                    }
                    let options = Options {
                        seed,
                        trace: args.trace,
                        broken,
                        about,
                    };
                    // A panic in the code under test is a failure like any other.
                    let result = std::panic::catch_unwind(|| run(&options))
                        .unwrap_or_else(|p| Err(format!("panic: {}", panic_text(&p))));
                    match result {
                        Ok(o) => total.lock().unwrap().add(&o),
                        Err(why) => {
                            if args.keep_going {
                                println!("sim: seed {seed} failed: {why}");
                            } else {
                                stop.store(true, Ordering::Relaxed);
                            }
                            let mut failed = failed.lock().unwrap();
                            if failed.as_ref().is_none_or(|f| seed < f.0) {
                                *failed = Some((seed, why));
                            }
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

/// What the store's own model notices. Some rules of the store are there for speed or for their
/// own sake (a history that cannot be cut off is compared whole, and nothing is lost): the volume
/// notices only now and then that they are off.
fn by_the_store(broken: Break) -> Option<(String, String)> {
    let rules = [Break::UncommittedCheckpointed];
    let seeds = if rules.contains(&broken) { 300 } else { 0 };
    let found = (0..seeds).find_map(|seed| Some((seed, run_store(seed, broken).err()?)));
    found.map(|(seed, why)| (format!("seed {seed} of the store's own model"), why))
}

/// Shows for each rule that some seed of the story about it fails once the rule is off.
fn mutants(args: &Args, only: Option<Break>) -> ExitCode {
    // Panics are among what is hoped for here.
    std::panic::set_hook(Box::new(|_| {}));
    let seeds = args.seeds.unwrap_or(60);
    let mut missed = Vec::new();
    for (broken, name) in Break::ALL {
        if only.is_some_and(|o| o != broken) {
            continue;
        }
        let began = Instant::now();
        let Some(story) = scenario::about(broken) else {
            println!("mutant {name}: NO STORY is about it");
            missed.push(name);
            continue;
        };
        let (caught, _) = many(args, seeds, Some(broken), About::Story(story));
        let caught = caught.map(|(seed, why)| (format!("seed {seed} of {}", story.name), why));
        let caught = caught.or_else(|| by_the_store(broken));
        let secs = began.elapsed().as_secs_f64();
        match caught {
            Some((by, why)) => {
                let why = why.lines().next().unwrap_or_default();
                println!("mutant {name}: caught by {by} in {secs:.1} s: {why}");
            }
            None => {
                println!(
                    "mutant {name}: NOT CAUGHT by {seeds} seeds of {} in {secs:.1} s",
                    story.name
                );
                missed.push(name);
            }
        }
    }
    if missed.is_empty() {
        println!("mutants: all caught");
        return ExitCode::SUCCESS;
    }
    println!("mutants: not caught: {}", missed.join(", "));
    ExitCode::FAILURE
}
