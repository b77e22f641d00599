//! How many calls of a kind may be inside at once.
//!
//! A call that may wait (for the volume's queues, for metadata from disk) occupies a serving
//! thread while it does. A gate admits fewer such calls than there are threads; the rest are
//! parked, in order, and run by whoever leaves. A parked call holds its bytes in flight, so the
//! number parked is bounded by the connections' windows (invariant 10).

use std::collections::VecDeque;
use std::sync::Mutex;

use super::conn::lock;
use super::pool::outside_turn;

type Job = Box<dyn FnOnce() + Send>;

/// Admits at most a fixed number of calls at once.
pub struct Gate {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    inside: usize,
    parked: VecDeque<Job>,
}

impl Gate {
    /// Admits `limit` calls (at least one).
    pub fn new(limit: usize) -> Gate {
        Gate {
            limit: limit.max(1),
            state: Mutex::default(),
        }
    }

    /// Runs `job` now, on this thread, or parks it. Whoever runs one also runs what was parked
    /// meanwhile, unless another place is free.
    pub fn pass(&self, job: impl FnOnce() + Send + 'static) {
        {
            let mut s = lock(&self.state);
            if s.inside >= self.limit {
                s.parked.push_back(Box::new(job));
                return;
            }
            s.inside += 1;
        }
        let place = Place(self);
        job();
        while let Some(next) = place.next_or_leave() {
            outside_turn(next);
        }
        // Given back already, in the step that saw nothing parked.
        std::mem::forget(place);
    }

    /// Calls that wait for a place.
    pub fn parked(&self) -> usize {
        lock(&self.state).parked.len()
    }
}

/// A place inside; given back also when the call inside panics.
struct Place<'a>(&'a Gate);

impl Place<'_> {
    /// The next parked call, or `None` and the place is given back. One step, so that nothing is
    /// parked between the look and the leaving.
    fn next_or_leave(&self) -> Option<Job> {
        let mut s = lock(&self.0.state);
        let next = s.parked.pop_front();
        if next.is_none() {
            s.inside -= 1;
        }
        next
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).inside -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    #[test]
    fn no_more_are_inside_than_allowed_and_all_are_run() {
        let gate = Arc::new(Gate::new(2));
        let inside = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let ran = Arc::new(AtomicUsize::new(0));
        let start = Arc::new(Barrier::new(8));
        std::thread::scope(|s| {
            for _ in 0..8 {
                let (gate, start) = (Arc::clone(&gate), Arc::clone(&start));
                let (inside, most, ran) = (inside.clone(), most.clone(), ran.clone());
                s.spawn(move || {
                    start.wait();
                    for _ in 0..200 {
                        let (inside, most, ran) = (inside.clone(), most.clone(), ran.clone());
                        gate.pass(move || {
                            let n = inside.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(n, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            ran.fetch_add(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(ran.load(Ordering::SeqCst), 1600);
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert_eq!(gate.parked(), 0);
    }
}
