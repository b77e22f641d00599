//! Time as the state machines see it: a number that only the drivers can make.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use crate::ids::Millis;

/// A moment on one machine's CLOCK_BOOTTIME, in nanoseconds. Never compared between machines,
/// never a wall clock (invariant 2).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now(pub u64);

impl Now {
    /// From a duration since the clock's start.
    pub fn since_boot(d: Duration) -> Now {
        Now(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Time passed since `earlier`; zero if it is later.
    pub fn since(self, earlier: Now) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Time left until `later`, rounded up to milliseconds; zero if it has passed.
    pub fn until(self, later: Now) -> Millis {
        Millis(later.0.saturating_sub(self.0).div_ceil(1_000_000))
    }
}

impl Add<Duration> for Now {
    type Output = Now;
    fn add(self, d: Duration) -> Now {
        Now(self
            .0
            .saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Now {
    type Output = Now;
    fn sub(self, d: Duration) -> Now {
        Now(self
            .0
            .saturating_sub(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06}s",
            self.0 / 1_000_000_000,
            self.0 / 1000 % 1_000_000
        )
    }
}
