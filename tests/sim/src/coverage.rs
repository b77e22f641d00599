//! What the worlds of a run exercised, counted: a fault that never happens proves nothing.

use std::collections::BTreeMap;
use std::fmt;

use trivet_replica::upstairs::Notice;

use crate::world::World;

/// Counters by name.
#[derive(Clone, Debug, Default)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    /// One more.
    pub fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// Sums up.
    pub fn add(&mut self, other: &Coverage) {
        for (what, n) in &other.0 {
            *self.0.entry(what).or_default() += n;
        }
    }

    pub(crate) fn noticed(&mut self, notice: &Notice) {
        self.count(match notice {
            Notice::Activated { .. } => "activations",
            Notice::DataLossAccepted { .. } => "data losses accepted",
            Notice::LeftSet { .. } => "shrinks",
            Notice::JoinedSet { .. } => "joins",
            Notice::Unusable { .. } => "unusable copies",
            Notice::BadCopy { .. } => "reads retried for a bad copy",
            Notice::Repaired { .. } => "repairs",
            Notice::ResyncStarted { .. } => "resyncs begun",
            Notice::ResyncDone { .. } => "resyncs done",
            Notice::LeaseLapsed => "lapses",
            Notice::LeaseBack => "lapses mended",
            Notice::Deposed { .. } => "depositions",
            Notice::NewReign { .. } => "new reigns",
            Notice::SingleCopy => "single copies",
            Notice::LinkRefused { .. } => "links refused",
            Notice::ScrubStarted => "scrubs begun",
            Notice::ScrubFound(_) => "finds of a scrub",
            Notice::ScrubDone { repaired: 1.., .. } => "scrubs that repaired",
            Notice::ScrubDone { .. } => "scrubs that found nothing",
        });
    }

    /// Per so many worlds, for people.
    pub fn per(&self, worlds: u64) -> impl fmt::Display + '_ {
        struct Shown<'a>(&'a Coverage, u64);
        impl fmt::Display for Shown<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (i, (what, n)) in self.0.0.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    let each = *n as f64 * 100.0 / self.1.max(1) as f64;
                    if each >= 10.0 {
                        write!(f, "{comma}{what} {each:.0}")?;
                    } else {
                        write!(f, "{comma}{what} {each:.1}")?;
                    }
                }
                Ok(())
            }
        }
        Shown(self, worlds)
    }
}

impl World {
    /// Counts something that happened.
    pub fn count(&mut self, what: &'static str) {
        self.coverage.count(what);
    }
}
