//! Deterministic simulation: the upstairs, the members and their stores exactly as they ship,
//! over simulated network, time and disks. One seed is one world; the same seed gives the same
//! trace.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod faults;
mod model;
mod world;

use trivet_protocol::breaks::{self, Break};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The world.
    pub seed: u64,
    /// Print every step.
    pub trace: bool,
    /// A rule to switch off.
    pub broken: Option<Break>,
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default)]
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
}

impl Outcome {
    /// Sums up.
    pub fn add(&mut self, o: &Outcome) {
        self.operations += o.operations;
        self.acks += o.acks;
        self.reads += o.reads;
        self.activations += o.activations;
        self.trace ^= o.trace;
    }
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
