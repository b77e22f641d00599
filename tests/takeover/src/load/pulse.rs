//! The longest time between two acknowledgements of durable writes, as one client sees it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Of one stream of writes, one after the other.
#[derive(Debug)]
pub struct Pulse {
    inner: Mutex<(Instant, Duration)>,
}

impl Pulse {
    /// Begins now.
    pub fn new() -> Pulse {
        Pulse {
            inner: Mutex::new((Instant::now(), Duration::ZERO)),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut (Instant, Duration)) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One was acknowledged.
    pub fn beat(&self) {
        self.with(|(last, worst)| {
            *worst = (*worst).max(last.elapsed());
            *last = Instant::now();
        });
    }

    /// Forgets the longest so far; one that is under way goes on.
    pub fn mark(&self) {
        self.with(|(_, worst)| *worst = Duration::ZERO);
    }

    /// The longest since the mark, one under way included.
    pub fn worst(&self) -> Duration {
        self.with(|(last, worst)| (*worst).max(last.elapsed()))
    }

    /// When the last one was.
    pub fn last(&self) -> Instant {
        self.with(|(last, _)| *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_under_way_counts_and_a_mark_forgets_those_before() {
        let p = Pulse::new();
        p.with(|(last, _)| *last = Instant::now() - Duration::from_secs(5));
        assert!(p.worst() >= Duration::from_secs(5));
        p.beat();
        assert!(p.worst() >= Duration::from_secs(5));
        p.mark();
        assert!(p.worst() < Duration::from_secs(5));
    }
}
