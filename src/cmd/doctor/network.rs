//! How large a packet may be between the nodes: the interfaces' MTUs, and whether a packet of that
//! size arrives. A switch that drops large packets lets nodes greet each other and then stand
//! still.
//!
//! The packet is a UDP datagram to a port where nobody listens, with "don't fragment" set: the
//! other host's "nobody here" is the proof that it arrived, and takes no right and no tool.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use trivet_node::host::interface;

use super::Seen;
use super::finding::Finding;

const CHECK: &str = "network";
/// Where nobody listens: the first port of traceroute(8).
const NOBODY: u16 = 33_434;
/// An answer is waited for so long, and asked for so often.
const ANSWER: Duration = Duration::from_millis(300);
const TRIES: u32 = 3;
/// MTUs beyond are the loopback's, or made up.
const MOST: u32 = 16_384;
/// A packet that every network must carry.
const SMALL: usize = 500;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// The other host answered.
    Arrived,
    /// A router, or this host, says that it is too large.
    TooLarge,
    /// Silence.
    Nothing,
}

/// Looks from each node of this machine at all others.
pub fn look(seen: &Seen) -> Vec<Finding> {
    let mut out = Vec::new();
    out.extend(mtus(&reported(seen)));
    let Some(config) = &seen.config else {
        return out;
    };
    for own in seen.own() {
        let Some(from) = own.addresses.first().map(SocketAddr::ip) else {
            continue;
        };
        if from.is_loopback() {
            continue;
        }
        let Some(link) = interface(from) else {
            out.push(Finding::bad(
                CHECK,
                format!(
                    "the address {from} of node {} is not on this machine",
                    own.name
                ),
                "give it to an interface, or correct `addresses` in the configuration",
            ));
            continue;
        };
        let Some(mtu) = link.mtu.filter(|m| *m <= MOST) else {
            continue;
        };
        for peer in config.nodes.iter().filter(|n| n.name != own.name) {
            let Some(to) = peer.addresses.first().map(SocketAddr::ip) else {
                continue;
            };
            if to.is_ipv4() == from.is_ipv4() {
                let small = probe(from, to, SMALL);
                let full = match small {
                    Sent::Nothing => Sent::Nothing,
                    _ => probe(from, to, payload(mtu, to)),
                };
                out.push(path(&link.name, mtu, &peer.name, small, full));
            }
        }
    }
    out
}

/// Bytes of a datagram that fills a packet.
fn payload(mtu: u32, to: IpAddr) -> usize {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    (mtu as usize).saturating_sub(headers)
}

/// Nodes and the MTUs that they told.
fn reported(seen: &Seen) -> Vec<(String, u32)> {
    let own = seen.asked.iter().filter_map(|a| a.own());
    own.filter_map(|(n, r)| Some((n.to_owned(), r.host?.mtu?)))
        .collect()
}

fn mtus(all: &[(String, u32)]) -> Option<Finding> {
    let (_, first) = all.first()?;
    if all.iter().all(|(_, m)| m == first) {
        return Some(Finding::ok(CHECK, format!("all nodes have MTU {first}")));
    }
    let all: Vec<String> = all.iter().map(|(n, m)| format!("{n} {m}")).collect();
    Some(Finding::warn(
        CHECK,
        format!("MTUs differ between nodes: {}", all.join(", ")),
        "set the same one on all interfaces and switches of the replication network",
    ))
}

fn path(link: &str, mtu: u32, peer: &str, small: Sent, full: Sent) -> Finding {
    match (small, full) {
        (_, Sent::Arrived) => Finding::ok(
            CHECK,
            format!("a packet of {mtu} bytes from {link} arrives at {peer}"),
        ),
        (Sent::Nothing, _) => Finding::ok(
            CHECK,
            format!(
                "{peer} answers no probes (a firewall?): whether {mtu} bytes arrive is not known"
            ),
        ),
        (_, Sent::TooLarge) => Finding::warn(
            CHECK,
            format!("{link} has MTU {mtu}, and the way to {peer} carries less"),
            "set the same MTU on all interfaces and switches between them",
        ),
        (_, Sent::Nothing) => Finding::bad(
            CHECK,
            format!("small packets arrive at {peer}, those of {mtu} bytes from {link} vanish"),
            format!("raise the MTU of {peer} and of the switches to {mtu}, or lower it on {link}"),
        ),
    }
}

fn probe(from: IpAddr, to: IpAddr, bytes: usize) -> Sent {
    // Whatever cannot be asked is not known.
    try_probe(from, to, bytes).unwrap_or(Sent::Nothing)
}

fn try_probe(from: IpAddr, to: IpAddr, bytes: usize) -> std::io::Result<Sent> {
    let socket = UdpSocket::bind((from, 0))?;
    match to {
        IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?,
    }
    socket.connect((to, NOBODY))?;
    socket.set_read_timeout(Some(ANSWER))?;
    let packet = vec![0; bytes];
    for _ in 0..TRIES {
        let end = Instant::now() + ANSWER;
        let result = socket.send(&packet).and_then(|_| socket.recv(&mut [0; 16]));
        match result {
            // Somebody listens there after all.
            Ok(_) => return Ok(Sent::Arrived),
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => return Ok(Sent::Arrived),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {
                return Ok(Sent::TooLarge);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            // No neighbour, no route: not sooner than the next try.
            Err(_) => std::thread::park_timeout(end.saturating_duration_since(Instant::now())),
        }
    }
    Ok(Sent::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::finding::Level;

    #[test]
    fn large_packets_that_vanish_are_bad_and_firewalls_are_not() {
        use Sent::{Arrived, Nothing, TooLarge};
        let level = |small, full| path("eth1", 9000, "b", small, full).level;
        assert_eq!(level(Arrived, Arrived), Level::Ok);
        assert_eq!(level(Arrived, Nothing), Level::Bad);
        assert_eq!(level(Arrived, TooLarge), Level::Warn);
        assert_eq!(level(Nothing, Nothing), Level::Ok);
    }

    #[test]
    fn different_mtus_are_said() {
        let two = |b| vec![("a".to_owned(), 9000), ("b".to_owned(), b)];
        assert_eq!(mtus(&two(9000)).unwrap().level, Level::Ok);
        let found = mtus(&two(1500)).unwrap();
        assert_eq!(found.level, Level::Warn);
        assert!(found.what.ends_with("a 9000, b 1500"));
        assert_eq!(mtus(&[]), None);
    }

    #[test]
    fn a_port_where_nobody_listens_is_an_answer() {
        let lo: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(probe(lo, lo, 1472), Sent::Arrived);
    }
}
