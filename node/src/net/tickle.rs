//! Making clients notice at once that their connection's other end is gone.
//!
//! A client that waits for an answer sends its request again only after a time that doubles with
//! each try. So the new server sends it an acknowledgement that fits no connection of either side:
//! the client's kernel answers with what it does expect (RFC 5961 section 3), which no connection
//! here fits, so this kernel resets it, and the client connects again at once. The trick is known
//! as a tickle ACK.
//!
//! A connection made just before its server died is on nobody's list, and its client would wait
//! for a minute. So all ports below 1024 that NFS clients use are told, at every address that is
//! on the list: what fits nothing there is answered with a reset, which fits nothing here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Clients told, at most: a bound for what neighbours have reported.
pub const MAX_CLIENTS: usize = 4096;

/// Ports that clients choose from, as root (Linux: from 665 on; bindresvport(3): from 600 on).
const RESERVED: RangeInclusive<u16> = 600..=1023;
/// Addresses at which all of those are told, at most.
const MAX_ADDRESSES: usize = 256;

/// Segments sent at once: a burst is dropped where it exceeds what a kernel queues for a processor
/// (1000 packets), and the end of it would be lost each time.
const BURST: usize = 64;
/// Between two bursts.
const BREATH: Duration = Duration::from_millis(2);

/// The clients of the family of `from` first, then whatever else may be a connection of theirs.
fn with_reserved_ports(from: SocketAddr, clients: &[SocketAddr]) -> Vec<SocketAddr> {
    let same = |c: &&SocketAddr| c.is_ipv4() == from.is_ipv4();
    let known: BTreeSet<SocketAddr> = clients
        .iter()
        .take(MAX_CLIENTS)
        .filter(same)
        .copied()
        .collect();
    // With any port, so that the scope of a link's own address is kept.
    let addresses: BTreeMap<IpAddr, SocketAddr> = known.iter().map(|c| (c.ip(), *c)).collect();
    let reserved = |at: SocketAddr| {
        RESERVED.map(move |port| {
            let mut to = at;
            to.set_port(port);
            to
        })
    };
    let others = addresses
        .into_values()
        .take(MAX_ADDRESSES)
        .flat_map(reserved);
    let others: Vec<_> = others.filter(|c| !known.contains(c)).collect();
    known.into_iter().chain(others).collect()
}

/// Sends one such segment from `from` to each of `clients` of its own address family.
///
/// # Errors
/// It takes CAP_NET_RAW.
pub fn tickle(from: SocketAddr, clients: &[SocketAddr]) -> io::Result<()> {
    let mut sender = None;
    for (n, to) in with_reserved_ports(from, clients).into_iter().enumerate() {
        if n % BURST == BURST - 1 {
            // A rate; nothing waits for this thread.
            std::thread::sleep(BREATH);
        }
        // A socket for each address, which does not wait: what is sent to a host that is not there
        // stays with the socket until the host is given up, and would hold up the others.
        let socket = match &sender {
            Some((ip, socket)) if *ip == to.ip() => socket,
            _ => &sender.insert((to.ip(), raw_socket(from)?)).1,
        };
        // One that cannot be reached is not told.
        let _ = send(socket, from, to);
    }
    Ok(())
}

/// What sends segments of our own making.
fn raw_socket(from: SocketAddr) -> io::Result<Socket> {
    let socket = match from {
        // IPPROTO_RAW: the header is in what is sent.
        SocketAddr::V4(_) => Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?,
        // The kernel makes the header; it is told the source by the socket's own address.
        SocketAddr::V6(_) => {
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::TCP))?;
            socket.bind(&SocketAddr::new(from.ip(), 0).into())?;
            socket
        }
    };
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn send(socket: &Socket, from: SocketAddr, mut to: SocketAddr) -> io::Result<()> {
    let segment = segment(from, to);
    let packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => packet(from, to, &segment),
        _ => segment,
    };
    // The port of a raw socket's destination is the number of a protocol, or nothing (raw(7)).
    to.set_port(0);
    socket.send_to(&packet, &to.into()).map(drop)
}

/// A bare TCP acknowledgement.
fn segment(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend([0; 8]);
    // Header of five words, ACK, no window, checksum (below), no urgent data.
    tcp.extend([0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    let mut summed = Vec::with_capacity(60);
    for address in [from.ip(), to.ip()] {
        match address {
            IpAddr::V4(ip) => summed.extend(ip.octets()),
            IpAddr::V6(ip) => summed.extend(ip.octets()),
        }
    }
    // Protocol and length: their places differ in the two families (RFC 9293 3.1, RFC 8200 8.1),
    // which makes no difference to a sum.
    summed.extend([0, 6, 0, 20]);
    summed.extend(&tcp);
    let sum = checksum(&summed).to_be_bytes();
    tcp.splice(16..18, sum);
    tcp
}

/// It, with the header of IPv4.
fn packet(from: Ipv4Addr, to: Ipv4Addr, tcp: &[u8]) -> Vec<u8> {
    // Version 4, five words; identification and header checksum are the kernel's; do not
    // fragment; 64 hops; TCP.
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(tcp);
    packet
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(data: &[u8]) -> u16 {
    let mut sum: u32 = data
        .chunks_exact(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_nobody_reported_are_told_too() {
        let known: Vec<SocketAddr> = vec![
            "10.0.0.7:40000".parse().unwrap(),
            "10.0.0.7:700".parse().unwrap(),
            "[fe80::1%3]:700".parse().unwrap(),
        ];
        let (v4, v6) = (known[0], known[2]);
        let all = with_reserved_ports(v4, &known);
        assert_eq!(all.len(), 425, "424 reserved ones and a high one");
        let known_first = [known[1], known[0]];
        assert_eq!(all[..2], known_first, "those that are known come first");
        let all = with_reserved_ports(v6, &known);
        assert_eq!((all.len(), all[0]), (424, v6));
        let scoped = |c: &SocketAddr| matches!(c, SocketAddr::V6(c) if c.scope_id() == 3);
        assert!(all.iter().all(scoped), "an address of a link stays on it");
        assert!(with_reserved_ports(v4, &[]).is_empty());
        let many: Vec<SocketAddr> = (0..400u32)
            .map(|n| SocketAddr::new(Ipv4Addr::from(n).into(), 40_000))
            .collect();
        let all = with_reserved_ports(v4, &many);
        assert_eq!(all.len(), 400 + MAX_ADDRESSES * 424);
    }

    #[test]
    fn the_segment_verifies() {
        let from: SocketAddr = "10.0.0.10:2049".parse().unwrap();
        let to: SocketAddr = "10.0.0.7:871".parse().unwrap();
        let ip = |a: SocketAddr| match a.ip() {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let p = packet(ip(from), ip(to), &segment(from, to));
        assert_eq!(p.len(), 40);
        let mut pseudo = p[12..20].to_vec();
        pseudo.extend([0, 6, 0, 20]);
        pseudo.extend(&p[20..]);
        assert_eq!(checksum(&pseudo), 0, "a sum over its own checksum is zero");
        assert_eq!(&p[20..24], &[0x08, 0x01, 0x03, 0x67], "ports");
        assert_eq!(p[33], 0x10, "only ACK");
    }
}
