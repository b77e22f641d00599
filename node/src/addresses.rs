//! Service addresses as the leases have them, in the daemon's parent: one whose lease has run out
//! goes, and comes back if the lease is held again after all.
//!
//! Both are tried until they succeed: an address that stays may answer beside a successor's, and
//! one that does not come back leaves a volume active that nobody reaches. An address never comes
//! without a lease that was looked at just before, and for no longer than it runs; who becomes
//! active again, in another reign, shows its address itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use trivet_protocol::Generation;

use crate::guard::{Heard, Held, Watch, now};
use crate::net::ServiceNet;
use crate::supervisor::LAST_WORDS;

/// Between two attempts to bring an address back.
const BACK: Duration = Duration::from_secs(1);
/// Between two attempts to take one away.
const AWAY: Duration = Duration::from_millis(100);
/// An address is not brought back for less time than this.
const WORTH_IT: Duration = Duration::from_millis(200);

/// See the module's head.
#[derive(Default)]
pub struct Addresses(BTreeMap<String, Address>);

struct Address {
    net: ServiceNet,
    reign: Generation,
    /// Whether it shall be here.
    wanted: bool,
    /// It is not as it shall be: when that is tried next.
    again: Option<Instant>,
    /// What was said of it, once for as long as it stays so.
    said: bool,
}

impl Addresses {
    /// Does what the leases ask for.
    pub fn follow(&mut self, watch: &mut Watch) {
        let changes = watch.changes(now());
        for h in &changes.lapsed {
            if self.shall(h, false) {
                tracing::warn!(volume = h.volume, "the lease has run out: no address");
            }
        }
        for h in &changes.renewed {
            if self.shall(h, true) {
                tracing::info!(volume = h.volume, "the lease is held again");
            }
        }
        // Of another reign the daemon takes care: what is here is that one's.
        self.0
            .retain(|volume, a| watch.reign(volume).is_none_or(|reign| reign == a.reign));
        for (volume, a) in &mut self.0 {
            if a.wanted && !watch.holds(volume) {
                (a.wanted, a.again) = (false, Some(Instant::now()));
            }
        }
        let due = |a: &Address| a.again.is_some_and(|at| at <= Instant::now());
        // First those that go.
        for (volume, a) in self.0.iter_mut().filter(|(_, a)| !a.wanted && due(a)) {
            a.go(volume);
        }
        for (volume, a) in self.0.iter_mut().filter(|(_, a)| a.wanted && due(a)) {
            a.come(volume, watch);
        }
        // One that has gone for good is done.
        self.0
            .retain(|volume, a| a.again.is_some() || watch.holds(volume));
    }

    /// Whether there is an address at all.
    fn shall(&mut self, held: &Held, wanted: bool) -> bool {
        let Some(service) = &held.service else {
            return false;
        };
        let fresh = || Address {
            net: ServiceNet::new(&held.volume, held.id, service),
            reign: held.generation,
            wanted,
            again: None,
            said: false,
        };
        let a = self.0.entry(held.volume.clone()).or_insert_with(fresh);
        if a.reign != held.generation {
            *a = fresh();
        }
        (a.wanted, a.again, a.said) = (wanted, Some(Instant::now()), false);
        true
    }

    /// The daemon has ended: nothing that was brought back stays.
    pub fn take_away(&mut self) {
        for (volume, a) in &mut self.0 {
            a.go(volume);
        }
    }
}

impl Address {
    fn go(&mut self, volume: &str) {
        self.wanted = false;
        self.again = match self.net.hide_for_certain() {
            Ok(()) => None,
            Err(error) => {
                if !std::mem::replace(&mut self.said, true) {
                    tracing::error!(volume, %error, "the service address stays; tried again");
                }
                Some(Instant::now() + AWAY)
            }
        };
    }

    /// The clients' connections are alive: nobody has to be told but the neighbours.
    fn come(&mut self, volume: &str, watch: &mut Watch) {
        let reign = self.reign;
        let mut left = || {
            // What the daemon has said since: it may have ended the reign.
            for _ in 0..LAST_WORDS {
                if !watch.has_more() || watch.listen(Duration::ZERO) == Heard::Ended {
                    break;
                }
            }
            watch.left(volume, reign, now()).filter(|l| *l > WORTH_IT)
        };
        self.again = match self.net.show_again(&mut left) {
            Ok(true) => {
                if self.said {
                    tracing::info!(volume, "the service address is back");
                }
                None
            }
            // The lease has run out meanwhile, which is told apart.
            Ok(false) => Some(Instant::now() + BACK),
            Err(error) => {
                if !std::mem::replace(&mut self.said, true) {
                    tracing::error!(
                        volume, %error, "the service address does not come back; tried each second"
                    );
                }
                Some(Instant::now() + BACK)
            }
        };
    }
}
