//! The clients of a volume, as a node that may become active knows them: connected when the active
//! one last said so, and the addresses of those before. What was said may be older than a
//! connection; a client that was here before is told of a takeover all the same.
//!
//! Bounded: addresses are remembered for [`REMEMBER`], [`MAX_KNOWN`] of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A client's address is remembered for so long.
const REMEMBER: Duration = Duration::from_secs(3600);
/// Addresses remembered for each volume, at most.
const MAX_KNOWN: usize = 256;
/// A port that clients use, to stand for those that nobody reported.
const SOME_PORT: u16 = 1023;

/// See the module's head.
#[derive(Default)]
pub struct Known {
    connected: Vec<SocketAddr>,
    known: BTreeMap<IpAddr, Instant>,
    /// Somebody has told since the daemon started.
    told: bool,
}

impl Known {
    /// Those of an earlier life of this daemon. How long ago that was nobody knows.
    pub fn recalled(addresses: &[IpAddr], now: Instant) -> Known {
        let known = addresses.iter().take(MAX_KNOWN).map(|a| (*a, now));
        Known {
            known: known.collect(),
            ..Known::default()
        }
    }

    /// Nobody has told of any since the daemon started.
    pub fn is_new(&self) -> bool {
        !self.told
    }

    /// Their addresses, in order.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.known.keys().copied().collect()
    }

    /// These are connected now.
    pub fn learn(&mut self, connected: &[SocketAddr], now: Instant) {
        self.told |= !connected.is_empty();
        self.connected = connected.to_vec();
        let addresses = connected.iter().map(|c| (c.ip(), now));
        self.known.extend(addresses);
        self.known
            .retain(|_, at| now.duration_since(*at) < REMEMBER);
        while self.known.len() > MAX_KNOWN {
            let oldest = self.known.iter().min_by_key(|(_, at)| **at);
            let Some(ip) = oldest.map(|(ip, _)| *ip) else {
                break;
            };
            self.known.remove(&ip);
        }
    }

    /// With one port for each address that had no connection lately.
    pub fn all(&self) -> Vec<SocketAddr> {
        let mut all = self.connected.clone();
        for ip in self.known.keys() {
            if !self.connected.iter().any(|c| c.ip() == *ip) {
                all.push(SocketAddr::new(*ip, SOME_PORT));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_client_that_was_not_reported_lately_is_still_known() {
        let now = Instant::now();
        let a: SocketAddr = "10.0.0.1:700".parse().unwrap();
        let b: SocketAddr = "10.0.0.2:701".parse().unwrap();
        let mut c = Known::default();
        c.learn(&[a, b], now);
        // A report from just after a takeover, before anybody is connected again.
        c.learn(&[b], now);
        let some = SocketAddr::new(a.ip(), SOME_PORT);
        assert_eq!(c.all(), [b, some]);
        // One that was recalled is kept beside those that are told of later.
        let mut later = Known::recalled(&c.addresses(), now);
        assert!(later.is_new());
        let d: SocketAddr = "10.0.0.3:702".parse().unwrap();
        later.learn(&[d], now);
        assert!(!later.is_new());
        assert_eq!(later.addresses(), [a.ip(), b.ip(), d.ip()]);
        c.learn(&[], now + REMEMBER);
        assert!(c.all().is_empty(), "forgotten");
        let many: Vec<SocketAddr> = (0..1000u32)
            .map(|n| SocketAddr::new(Ipv4Addr::from(n).into(), 700))
            .collect();
        c.learn(&many, now);
        c.learn(&[], now);
        assert_eq!(c.all().len(), MAX_KNOWN);
    }
}
