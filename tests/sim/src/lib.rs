//! Deterministic simulation: the upstairs, the members and their stores exactly as they ship,
//! over simulated network, time and disks. One seed is one world; the same seed gives the same
//! trace.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

pub mod coverage;
mod faults;
mod model;
pub mod scenario;
mod world;

use coverage::Coverage;
use scenario::Kind;
use trivet_protocol::breaks::{self, Break};

/// What to run.
#[derive(Clone)]
pub struct Options {
    /// The world.
    pub seed: u64,
    /// Print every step.
    pub trace: bool,
    /// A rule to switch off.
    pub broken: Option<Break>,
    /// What the world is about.
    pub about: About,
}

/// What worlds are about.
#[derive(Clone, Copy, Default)]
pub enum About {
    /// The seed says: every other world tells a story.
    #[default]
    Seed,
    /// Nothing: all is left to chance.
    Chance,
    /// One story.
    Story(&'static Kind),
}

impl About {
    pub(crate) fn of_seed(self, seed: u64) -> Option<&'static Kind> {
        match self {
            About::Seed => scenario::of_seed(seed),
            About::Chance => None,
            About::Story(kind) => Some(kind),
        }
    }
}

/// What was checked.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Operations ordered.
    pub operations: u64,
    /// Acknowledgements checked.
    pub acks: u64,
    /// Reads checked.
    pub reads: u64,
    /// Activations checked.
    pub activations: u64,
    /// A hash of everything that happened: the same for the same seed.
    pub trace: u64,
    /// What happened, how often.
    pub coverage: Coverage,
}

impl Outcome {
    /// Sums up.
    pub fn add(&mut self, o: &Outcome) {
        self.operations += o.operations;
        self.acks += o.acks;
        self.reads += o.reads;
        self.activations += o.activations;
        self.trace ^= o.trace;
        self.coverage.add(&o.coverage);
    }
}

/// Runs one world of the store's own model (one region alone, many more histories of it), and says
/// whether it noticed that a rule is off.
///
/// # Errors
/// What it noticed.
pub fn run_store(seed: u64, broken: Break) -> Result<(), String> {
    breaks::set(Some(broken));
    let result = trivet_downstairs::model::run(seed, 250);
    breaks::set(None);
    result
}

/// Runs one world to its end.
///
/// # Errors
/// The invariant that was broken, and how.
pub fn run(options: &Options) -> Result<Outcome, String> {
    breaks::set(options.broken);
    let result = world::World::new(options).run();
    breaks::set(None);
    result
}
