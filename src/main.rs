//! The `trivet` binary: wires the crates together and talks to people.

fn main() {}
