//! Callers that wait for room, in the order of their arrival.
//!
//! Room comes in pieces: many are let in at once, and each comes back with his next write. If all
//! entered strictly in order, every write would cost a change of threads from the first full
//! window on. If none did, a sleeper could lose each piece to those who happen to run. So who
//! arrives may pass, but nobody who has waited for [`OVERTAKEN`]: from then on those in the line go
//! first, in order.
//!
//! Whoever leaves the line wakes the next, and each looks by himself every [`LOOK`]. Bounded by the
//! callers' threads; each waits for the patience that is given at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use trivet_protocol::Now;

use super::{Inner, State, boot_time};
use crate::upstairs::Upstairs;

/// One who has waited for so long is not passed any more.
const OVERTAKEN: Duration = Duration::from_millis(20);
/// Whoever waits is told of room; and looks this often whether the volume stopped.
const LOOK: Duration = Duration::from_millis(100);

/// See the module's head.
#[derive(Default)]
pub(super) struct Line {
    next: u64,
    waiting: BTreeMap<u64, (Instant, Arc<Condvar>)>,
}

/// A place in a line.
struct Place {
    ticket: u64,
    wake: Arc<Condvar>,
}

impl Line {
    /// There may be room.
    pub fn wake_first(&self) {
        if let Some((_, wake)) = self.waiting.values().next() {
            wake.notify_one();
        }
    }

    fn may_enter(&self, place: Option<&Place>, now: Instant) -> bool {
        match self.waiting.first_key_value() {
            Some((first, (since, _))) if place.is_none_or(|p| p.ticket != *first) => {
                now.saturating_duration_since(*since) < OVERTAKEN
            }
            _ => true,
        }
    }

    fn join(&mut self, since: Instant) -> Place {
        self.next += 1;
        let place = Place {
            ticket: self.next,
            wake: Arc::default(),
        };
        self.waiting
            .insert(place.ticket, (since, place.wake.clone()));
        place
    }

    fn leave(&mut self, place: Option<Place>) {
        if let Some(place) = place {
            self.waiting.remove(&place.ticket);
            self.wake_first();
        }
    }
}

impl Inner {
    /// Attempts something that needs room until there is some, in turn with others; `None` after
    /// the volume's patience, or once it is dropped.
    pub(super) fn in_line<'a, T>(
        &'a self,
        line: fn(&mut State) -> &mut Line,
        mut attempt: impl FnMut(&mut Upstairs, Now) -> Option<T>,
    ) -> (MutexGuard<'a, State>, Option<T>) {
        let wait = Wait {
            state: &self.state,
            line,
            patience: self.patience,
        };
        let attempt = |mut state: MutexGuard<'a, State>| {
            loop {
                let done = attempt(&mut state.upstairs, boot_time());
                if done.is_some() {
                    return (state, done);
                }
                let todo = self.collect(&mut state);
                if todo.is_empty() {
                    return (state, None);
                }
                // What it does may make room meanwhile.
                drop(state);
                self.perform(todo);
                state = self.lock();
            }
        };
        wait.until(attempt, || self.stopped())
    }
}

/// What is waited for, and where.
struct Wait<'a, S> {
    state: &'a Mutex<S>,
    line: fn(&mut S) -> &mut Line,
    patience: Duration,
}

impl<'a, S> Wait<'a, S> {
    /// Attempts something, with the state locked, until it succeeds; `None` after the patience, or
    /// once it is to stop.
    fn until<T>(
        &self,
        mut attempt: impl FnMut(MutexGuard<'a, S>) -> (MutexGuard<'a, S>, Option<T>),
        stopped: impl Fn() -> bool,
    ) -> (MutexGuard<'a, S>, Option<T>) {
        let began = Instant::now();
        let mut place: Option<Place> = None;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut done = None;
            if (self.line)(&mut state).may_enter(place.as_ref(), Instant::now()) {
                (state, done) = attempt(state);
            }
            if done.is_some() || began.elapsed() > self.patience || stopped() {
                (self.line)(&mut state).leave(place);
                return (state, done);
            }
            let place = place.get_or_insert_with(|| (self.line)(&mut state).join(began));
            let waited = place.wake.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn one_who_waits_is_passed_for_a_time_and_then_no_more() {
        let (mut line, begin) = (Line::default(), Instant::now());
        assert!(line.may_enter(None, begin));
        let first = line.join(begin);
        let second = line.join(begin + OVERTAKEN);
        let before = begin + OVERTAKEN / 2;
        assert!(line.may_enter(None, before));
        assert!(line.may_enter(Some(&second), before));
        let after = begin + OVERTAKEN;
        assert!(line.may_enter(Some(&first), after));
        assert!(!line.may_enter(Some(&second), after));
        assert!(!line.may_enter(None, after));
        line.leave(Some(first));
        assert!(line.may_enter(Some(&second), begin + 9 * OVERTAKEN));
        assert!(line.may_enter(None, after));
        assert!(!line.may_enter(None, begin + 9 * OVERTAKEN));
        line.leave(Some(second));
        assert!(line.may_enter(None, begin + 9 * OVERTAKEN));
    }

    /// A window that a slow disk empties now and then, by some writes at a time.
    #[derive(Default)]
    struct Window {
        room: u64,
        line: Line,
    }

    /// One of 32 callers once waited for 5 s while others came and went at full rate.
    #[test]
    fn nobody_waits_for_much_longer_than_the_others() {
        const WRITERS: u64 = 32;
        let seed = boot_time().0;
        println!("seed {seed}");
        let window = Mutex::new(Window::default());
        let (over, window) = (&AtomicBool::new(false), &window);
        let waits: Vec<Vec<Duration>> = std::thread::scope(|s| {
            let writer = || {
                let mut waits = Vec::new();
                while !over.load(Ordering::Acquire) {
                    let began = Instant::now();
                    let wait = Wait {
                        state: window,
                        line: |w| &mut w.line,
                        patience: Duration::from_secs(20),
                    };
                    let (w, done) = wait.until(
                        |mut w: MutexGuard<'_, Window>| {
                            let enters = w.room > 0;
                            w.room -= u64::from(enters);
                            (w, enters.then_some(()))
                        },
                        || over.load(Ordering::Acquire),
                    );
                    drop(w);
                    if done.is_some() {
                        waits.push(began.elapsed());
                    }
                }
                waits
            };
            let writers: Vec<_> = (0..WRITERS).map(|_| s.spawn(writer)).collect();
            let mut random = seed;
            for _ in 0..150 {
                // The model disk's time for a piece.
                std::thread::sleep(Duration::from_millis(10));
                // Room for a sixth to a third of the writers.
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let mut w = window.lock().unwrap();
                w.room += WRITERS / 6 + (random >> 33) % (WRITERS / 6);
                w.line.wake_first();
            }
            over.store(true, Ordering::Release);
            writers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        let all: Vec<Duration> = waits.iter().flatten().copied().collect();
        let mean = all.iter().sum::<Duration>() / all.len() as u32;
        let longest = all.iter().max().copied().unwrap_or_default();
        let fewest = waits.iter().map(Vec::len).min();
        println!(
            "{} writes, mean {mean:?}, longest {longest:?}, {fewest:?}",
            all.len()
        );
        // 44 ms and 61 ms; without turns 300 ms. A machine that is busy with other things adds to
        // both.
        assert!(longest < 4 * mean, "{longest:?}, mean {mean:?}");
    }
}
