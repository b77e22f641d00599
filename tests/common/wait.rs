//! Waiting for what other processes bring about.

use std::time::{Duration, Instant};

/// Looks until it is done, and fails by name after `patience`.
pub fn within(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < patience,
            "waited {patience:?} for: {what}"
        );
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
