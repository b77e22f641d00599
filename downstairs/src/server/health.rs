//! When a region whose disk failed is opened again, and when no more.
//!
//! A failed write or sync poisons a region: it takes nothing more, because nothing is known of what
//! was not synced before. What was synced is still good, so the region is opened anew from that, as
//! after a crash, after a pause that doubles with each failure. A disk that fails again and again
//! is left alone until the process is started anew: coming and going costs the volume more than
//! staying away.

use std::time::{Duration, Instant};

/// Before the first opening; doubles each time.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two openings, at most.
const LONGEST: Duration = Duration::from_secs(60);
/// A region that was well for this long starts from the beginning.
const WELL: Duration = Duration::from_secs(600);
/// Failures in a row after which the disk is left alone.
pub(super) const MOST: u32 = 10;

/// See the module's head.
pub(super) struct Health {
    failures: u32,
    /// When it last came back.
    back: Instant,
    /// It failed: when to try next, or never.
    next: Option<Option<Instant>>,
}

/// What to do about a region that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cure {
    /// Nothing yet.
    Wait,
    /// Open it.
    Reopen,
    /// It failed too often: said once, here.
    GiveUp,
}

impl Health {
    pub(super) fn new(now: Instant) -> Health {
        Health {
            failures: 0,
            back: now,
            next: None,
        }
    }

    /// The region is found failed.
    pub(super) fn failed(&mut self, now: Instant) -> Cure {
        match self.next {
            None => {
                if now.duration_since(self.back) >= WELL {
                    self.failures = 0;
                }
                self.plan(now)
            }
            Some(Some(at)) if now >= at => Cure::Reopen,
            Some(_) => Cure::Wait,
        }
    }

    /// It could not be opened.
    pub(super) fn still_failed(&mut self, now: Instant) -> Cure {
        self.plan(now)
    }

    /// It was opened.
    pub(super) fn is_back(&mut self, now: Instant) {
        self.back = now;
        self.next = None;
    }

    fn plan(&mut self, now: Instant) -> Cure {
        self.failures += 1;
        if self.failures > MOST {
            self.next = Some(None);
            return Cure::GiveUp;
        }
        let pause = PAUSE * (1 << (self.failures - 1).min(16));
        self.next = Some(Some(now + pause.min(LONGEST)));
        Cure::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_a_disk_that_keeps_failing_is_left_alone() {
        let begin = Instant::now();
        let (mut health, mut now, mut tries) = (Health::new(begin), begin, 0);
        loop {
            match health.failed(now) {
                Cure::Wait => now += Duration::from_millis(100),
                Cure::Reopen => {
                    tries += 1;
                    // It opens, and fails at once again.
                    health.is_back(now);
                }
                Cure::GiveUp => break,
            }
        }
        assert_eq!(tries, MOST);
        assert!(now - begin > Duration::from_secs(120), "{:?}", now - begin);
        let later = now + 2 * WELL;
        assert_eq!(health.failed(later), Cure::Wait, "for good");
    }

    #[test]
    fn one_that_was_well_for_long_starts_anew() {
        let begin = Instant::now();
        let mut health = Health::new(begin);
        for day in 1..100 {
            let now = begin + Duration::from_secs(86_400 * day);
            assert_eq!(health.failed(now), Cure::Wait);
            assert_eq!(health.failed(now + PAUSE), Cure::Reopen);
            health.is_back(now + PAUSE);
        }
    }
}
