//! What a node says of its host, for `trivet doctor`: its clocks, and how large a packet may be
//! towards the others. Looks only; nothing here is needed for service.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use crate::guard;
use crate::messages::HostReport;

/// The host, as it is now. `mtu` is that of the interface towards the others, see [`interface`].
pub fn report(mtu: Option<u32>) -> HostReport {
    HostReport {
        wall_ms: wall_ms(),
        boot_ms: guard::now(),
        mtu,
    }
}

/// Milliseconds of the wall clock since 1970; 0 before that.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// An interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Bytes of a packet, at most, if that can be read.
    pub mtu: Option<u32>,
}

/// The interface that has this address, in the network namespace of the caller; none if the
/// address is another host's. All of 127.0.0.0/8 is the loopback's. (Its MTU is that in `/sys`,
/// which shows the namespace of whoever mounted it.)
pub fn interface(address: IpAddr) -> Option<Interface> {
    let has = |a: &SockaddrStorage| {
        let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            .is_some_and(|ip| ip == address || (ip.is_loopback() && both_v4_loopback(ip, address)))
    };
    let mut all = getifaddrs().ok()?;
    let found = all.find(|i| i.address.as_ref().is_some_and(has))?;
    let mtu = std::fs::read_to_string(format!("/sys/class/net/{}/mtu", found.interface_name));
    Some(Interface {
        mtu: mtu.ok().and_then(|t| t.trim().parse().ok()),
        name: found.interface_name,
    })
}

fn both_v4_loopback(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() && b.is_ipv4() && a.is_loopback() && b.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_interface_that_carries_it() {
        let own = interface("127.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(own.name, "lo");
        assert_eq!(
            interface("127.9.8.7".parse().unwrap()).unwrap().name,
            "lo",
            "all of 127.0.0.0/8 is here"
        );
        // Of a range for documentation: nobody's.
        assert_eq!(interface("192.0.2.1".parse().unwrap()), None);
    }
}
