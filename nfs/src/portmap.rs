//! portmap version 2 and rpcbind versions 3 and 4 (RFC 1833): at which port a program is.
//!
//! The table is fixed: our own programs. Nobody registers here, and calls are not forwarded
//! (CALLIT is how strangers make servers attack others). So everything here is an answer from
//! memory, at once, whatever the disks do.

use std::net::{IpAddr, SocketAddr};

use crate::rpc::message::AcceptStat;
use crate::rpc::{Call, Program};
use crate::xdr::{Dec, Enc, XdrResult};

/// Program number.
pub const PROGRAM: u32 = 100_000;
/// Where clients look for it.
pub const PORT: u16 = 111;
/// Bytes of a string in an rpcbind call, at most.
const MAX_STRING: u32 = 256;

/// The transport of a mapping; numbers of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// One program at one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mapping {
    /// Program.
    pub program: u32,
    /// Version.
    pub version: u32,
    /// Transport.
    pub transport: Transport,
    /// Port.
    pub port: u16,
}

/// The program.
pub struct Portmap {
    mappings: Vec<Mapping>,
    v6: bool,
}

impl Portmap {
    /// Answers with these mappings; `v6` if they are reachable over IPv6 too.
    pub fn new(mappings: Vec<Mapping>, v6: bool) -> Portmap {
        Portmap { mappings, v6 }
    }

    fn find(&self, program: u32, version: u32, transport: Transport) -> Option<&Mapping> {
        let same = |m: &&Mapping| m.program == program && m.transport == transport;
        let exact = |m: &&Mapping| m.version == version;
        let mut all = self.mappings.iter().filter(same);
        // As rpcbind does: without that very version, another one, so that the caller learns
        // from the program itself which it has.
        all.clone().find(exact).or_else(|| all.next())
    }

    fn get_port(&self, call: Call) {
        let mut d = call.head.args.clone();
        let args = || -> XdrResult<_> { Ok((d.u32()?, d.u32()?, d.u32()?, d.u32()?)) }();
        call.with_args(args, |call, (program, version, protocol, _)| {
            let transport = match protocol {
                6 => Some(Transport::Tcp),
                17 => Some(Transport::Udp),
                _ => None,
            };
            let found = transport.and_then(|t| self.find(program, version, t));
            let port = found.map_or(0, |m| m.port);
            call.reply(|e| {
                e.u32(u32::from(port));
            });
        });
    }

    fn dump_v2(&self, e: &mut Enc) {
        for m in &self.mappings {
            e.bool(true).u32(m.program).u32(m.version);
            e.u32(m.transport as u32).u32(u32::from(m.port));
        }
        e.bool(false);
    }

    fn netids(&self, t: Transport) -> &'static [&'static str] {
        match (t, self.v6) {
            (Transport::Tcp, false) => &["tcp"],
            (Transport::Udp, false) => &["udp"],
            (Transport::Tcp, true) => &["tcp", "tcp6"],
            (Transport::Udp, true) => &["udp", "udp6"],
        }
    }

    fn dump_v4(&self, e: &mut Enc) {
        for m in &self.mappings {
            for netid in self.netids(m.transport) {
                let any: IpAddr = match netid.ends_with('6') {
                    true => std::net::Ipv6Addr::UNSPECIFIED.into(),
                    false => std::net::Ipv4Addr::UNSPECIFIED.into(),
                };
                let address = universal(SocketAddr::new(any, m.port));
                e.bool(true).u32(m.program).u32(m.version);
                e.opaque(netid.as_bytes()).opaque(address.as_bytes());
                e.opaque(b"superuser");
            }
        }
        e.bool(false);
    }

    /// GETADDR: a universal address, or an empty string.
    fn get_address(&self, call: Call, exactly: bool) {
        let args = get_binding(&mut call.head.args.clone());
        call.with_args(args, |call, b| {
            let transport = match &b.netid[..] {
                b"tcp" | b"tcp6" => Some(Transport::Tcp),
                b"udp" | b"udp6" => Some(Transport::Udp),
                // Version 3 and 4 callers may leave it out: that of the call.
                b"" => Some(Transport::Tcp),
                _ => None,
            };
            let found = transport.and_then(|t| self.find(b.program, b.version, t));
            let found = found.filter(|m| !exactly || m.version == b.version);
            let host = answer_host(call.replier.local(), &b.address);
            let address = found.map(|m| universal(SocketAddr::new(host, m.port)));
            call.reply(|e| {
                e.opaque(address.unwrap_or_default().as_bytes());
            });
        });
    }
}

struct Binding {
    program: u32,
    version: u32,
    netid: Vec<u8>,
    address: Vec<u8>,
}

/// `rpcb`.
fn get_binding(d: &mut Dec) -> XdrResult<Binding> {
    let b = Binding {
        program: d.u32()?,
        version: d.u32()?,
        netid: d.opaque(MAX_STRING)?,
        address: d.opaque(MAX_STRING)?,
    };
    d.opaque(MAX_STRING)?;
    Ok(b)
}

/// The address to name in an answer: the one that the call came to; if that is not known
/// (datagrams to a socket bound to all), the one under which the caller says it reached us.
fn answer_host(local: SocketAddr, hint: &[u8]) -> IpAddr {
    let host = crate::export::plain(local.ip());
    if !host.is_unspecified() {
        return host;
    }
    let hint = std::str::from_utf8(hint).ok().and_then(parse_universal);
    hint.map_or(host, |a| a.ip())
}

/// A universal address: `a.b.c.d.hi.lo`.
pub fn universal(a: SocketAddr) -> String {
    format!("{}.{}.{}", a.ip(), a.port() >> 8, a.port() & 0xff)
}

/// The address that a universal address stands for.
pub fn parse_universal(s: &str) -> Option<SocketAddr> {
    let (rest, low) = s.rsplit_once('.')?;
    let (host, high) = rest.rsplit_once('.')?;
    let (high, low): (u8, u8) = (high.parse().ok()?, low.parse().ok()?);
    let port = u16::from_be_bytes([high, low]);
    Some(SocketAddr::new(host.parse().ok()?, port))
}

impl Program for Portmap {
    fn number(&self) -> u32 {
        PROGRAM
    }

    fn versions(&self) -> (u32, u32) {
        (2, 4)
    }

    fn held(&self, _: u32) -> bool {
        false
    }

    fn call(&self, call: Call) {
        match (call.head.version, call.head.procedure) {
            (_, 0) => call.reply(|_| ()),
            // SET and UNSET: the table is ours alone.
            (_, 1 | 2) => call.reply(|e| {
                e.bool(false);
            }),
            (2, 3) => self.get_port(call),
            (2, 4) => call.reply(|e| self.dump_v2(e)),
            (3 | 4, 3) => self.get_address(call, false),
            (3 | 4, 4) => call.reply(|e| self.dump_v4(e)),
            (3 | 4, 6) => {
                let now = std::time::SystemTime::now();
                let since = now.duration_since(std::time::UNIX_EPOCH);
                let secs = since.map_or(0, |d| d.as_secs()) as u32;
                call.reply(|e| {
                    e.u32(secs);
                });
            }
            (4, 9) => self.get_address(call, true),
            _ => call.refuse(AcceptStat::ProcedureUnavailable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn universal_addresses_go_both_ways() {
        for (text, address) in [
            ("10.0.0.1.8.1", "10.0.0.1:2049"),
            ("0.0.0.0.0.111", "0.0.0.0:111"),
            ("::1.8.1", "[::1]:2049"),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(universal(address), text);
            assert_eq!(parse_universal(text), Some(address));
        }
        for bad in ["", "1.2", "10.0.0.1.256.1", "x.1.1"] {
            assert_eq!(parse_universal(bad), None);
        }
    }

    #[test]
    fn a_datagram_s_answer_names_the_address_that_the_caller_used() {
        let any: SocketAddr = "0.0.0.0:111".parse().unwrap();
        let host = answer_host(any, b"10.0.0.7.0.111");
        assert_eq!(host, "10.0.0.7".parse::<IpAddr>().unwrap());
        let known: SocketAddr = "[::ffff:10.0.0.8]:111".parse().unwrap();
        let host = answer_host(known, b"10.0.0.7.0.111");
        assert_eq!(host, "10.0.0.8".parse::<IpAddr>().unwrap());
    }
}
