//! The block layer as real processes on disks that fail: errors, full disks, hung and torn writes,
//! power cuts, under load and with a check of every flushed write.
//!
//! Bounded to about two minutes; TRIVET_FAULT_ROUNDS asks for more of the random ones.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

#[path = "../common/mod.rs"]
mod common;
mod export;
mod full;
mod hang;
mod rounds;
mod scrub;
mod world;
