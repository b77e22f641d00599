//! Many seeds of the model; and each deliberate break must be noticed by some seed.
//!
//! `TRIVET_SEED=n cargo test -p trivet-downstairs one_seed` replays one;
//! `TRIVET_SEEDS=n cargo test -p trivet-downstairs many_seeds` runs more.

use crate::model::run;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|s| s.parse().ok())
}

#[test]
fn many_seeds() {
    let seeds = number("TRIVET_SEEDS").unwrap_or(1500);
    let threads = 2;
    std::thread::scope(|scope| {
        for t in 0..threads {
            scope.spawn(move || {
                for seed in (t..seeds).step_by(threads as usize) {
                    if let Err(why) = run(seed, 250) {
                        panic!("{why}\nreplay: TRIVET_SEED={seed} cargo test one_seed");
                    }
                }
            });
        }
    });
}

#[test]
fn one_seed() {
    if let Some(seed) = number("TRIVET_SEED") {
        run(seed, 250).unwrap();
    }
}

#[cfg(feature = "breaks")]
#[test]
fn every_break_of_the_store_is_noticed() {
    use trivet_protocol::breaks::{Break, set};
    for which in [
        Break::SyncSkipped,
        Break::UncommittedCheckpointed,
        Break::DiscardPunchedLate,
    ] {
        set(Some(which));
        let noticed = (0..3000).find_map(|seed| run(seed, 250).err().map(|why| (seed, why)));
        set(None);
        let (seed, why) = noticed.unwrap_or_else(|| panic!("{which:?} goes unnoticed"));
        let first = why.lines().next().unwrap_or_default();
        println!("{which:?} noticed after {} seeds: {first}", seed + 1);
    }
}
