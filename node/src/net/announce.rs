//! Telling neighbours that an address has moved: gratuitous ARP, or an unsolicited neighbour
//! advertisement (RFC 5227 section 3, RFC 4861 section 7.2.6).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrStorage, sendto, socket,
};
use socket2::{Domain, Protocol, Socket, Type};

/// Announces `address` on this interface of the calling thread's network namespace.
///
/// # Errors
/// There is no such interface, or it takes CAP_NET_RAW.
pub fn announce(interface: &str, address: IpAddr) -> io::Result<()> {
    let here = getifaddrs()?.any(|a| {
        let ip = a.address.as_ref().and_then(ip_of);
        a.interface_name == interface && ip == Some(address)
    });
    if !here {
        // It has moved on meanwhile, perhaps by another process: nobody is told otherwise.
        return Ok(());
    }
    let link = getifaddrs()?
        .filter(|a| a.interface_name == interface)
        .find_map(|a| a.address.as_ref().and_then(|a| a.as_link_addr().copied()));
    let link = link.ok_or_else(|| io::Error::other(format!("no interface {interface}")))?;
    let own = link.addr().unwrap_or_default();
    match address {
        IpAddr::V4(ip) => arp(&link, own, ip),
        IpAddr::V6(ip) => advertise(&link, own, ip),
    }
}

fn ip_of(a: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

const BROADCAST: [u8; 6] = [0xff; 6];

fn arp(link: &LinkAddr, own: [u8; 6], ip: Ipv4Addr) -> io::Result<()> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(BROADCAST);
    frame.extend(own);
    // Ethernet type ARP; then: Ethernet, IPv4, lengths 6 and 4, a request.
    frame.extend([8, 6]);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(own);
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    let raw = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // Of the address only the interface counts: the frame has its own header.
    sendto(raw.as_raw_fd(), &frame, link, MsgFlags::empty())?;
    Ok(())
}

fn advertise(link: &LinkAddr, own: [u8; 6], ip: Ipv6Addr) -> io::Result<()> {
    let index = u32::try_from(link.ifindex()).unwrap_or_default();
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_hops_v6(255)?;
    // Type 136, code 0, checksum by the kernel, flag "override", the target, and the option
    // "target link-layer address".
    let mut packet = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    packet.extend(ip.octets());
    packet.extend([2, 1]);
    packet.extend(own);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    socket.send_to(&packet, &SocketAddrV6::new(all_nodes, 0, 0, index).into())?;
    Ok(())
}
