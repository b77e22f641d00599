//! Ports of this machine: whether those that a node needs are free or its own, and what the
//! system's rpcbind has to do with it.
//!
//! With a service address the export lives in a network namespace of its own, and only the node's
//! own port matters here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use trivet_nfs::portmap::{Mapping, Transport};
use trivet_nfs::register;
use trivet_node::config::{Role, VolumeConfig};

use super::Seen;
use super::finding::Finding;
use super::process::owners;

const CHECK: &str = "ports";
/// Port of the port mapper.
const RPCBIND: u16 = 111;
/// RPC programs of an export, and their names.
const PROGRAMS: [(u32, &str); 4] = [
    (100_003, "nfs"),
    (100_005, "mountd"),
    (100_021, "nlockmgr (kernel lockd)"),
    (100_024, "status (rpc.statd)"),
];

/// Who listens at a port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listener {
    at: SocketAddr,
    /// Name of the process; none: the kernel's, or that of a user whose processes we cannot see.
    who: Option<String>,
}

/// Looks.
pub fn look(seen: &Seen) -> Vec<Finding> {
    let Some(config) = &seen.config else {
        return Vec::new();
    };
    let listeners = listeners(Path::new("/proc"));
    let mut out = Vec::new();
    for node in seen.own() {
        for address in &node.addresses {
            out.push(port(&format!("node {}", node.name), *address, &listeners));
        }
    }
    let plain = |v: &VolumeConfig| v.service.is_none() && !v.exports.is_empty();
    let exporter = seen.own().any(|n| n.is(Role::Exporter));
    if exporter {
        let exported = config.volumes.iter().filter(|v| !v.exports.is_empty());
        out.extend(exported.map(|v| export(v, &listeners)));
    }
    let needed = exporter && config.volumes.iter().any(plain);
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, RPCBIND));
    let dumped = register::dump(local).ok();
    out.extend(rpcbind(needed, dumped.as_deref(), &listeners));
    out
}

fn export(v: &VolumeConfig, listeners: &[Listener]) -> Finding {
    if v.service.is_some() {
        return Finding::ok(
            CHECK,
            format!(
                "volume {} is exported at its service address, in a namespace of its own",
                v.name
            ),
        );
    }
    let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, v.port));
    port(&format!("volume {}", v.name), all, listeners)
}

/// Whether an address may be listened on by us, or is.
fn port(what: &str, at: SocketAddr, listeners: &[Listener]) -> Finding {
    let clashes = |l: &&Listener| {
        let same = l.at.ip() == at.ip() || l.at.ip().is_unspecified() || at.ip().is_unspecified();
        l.at.port() == at.port() && same
    };
    let shown = match at.ip().is_unspecified() {
        true => format!("port {}", at.port()),
        false => at.to_string(),
    };
    let mut there = listeners.iter().filter(clashes);
    let first = there.clone().next();
    match there.find(|l| l.who.as_deref() != Some("trivet")) {
        None if first.is_some() => Finding::ok(CHECK, format!("{what}: {shown} is trivet's")),
        None => Finding::ok(CHECK, format!("{what}: {shown} is free")),
        Some(Listener { who: Some(who), .. }) => Finding::bad(
            CHECK,
            format!("{what}: {shown} is taken by {who}"),
            format!("stop {who}, or give the volume a [volume.service], the node another port"),
        ),
        Some(_) if !rustix::process::geteuid().is_root() => Finding::warn(
            CHECK,
            format!("{what}: {shown} is taken, by whom is not seen"),
            "run it again as root",
        ),
        Some(_) => Finding::bad(
            CHECK,
            format!("{what}: {shown} is taken by the kernel, or by another container"),
            "`systemctl disable --now nfs-server`, or give the volume a [volume.service]",
        ),
    }
}

/// What the port mapper of this machine means for an export without a service address.
fn rpcbind(needed: bool, dumped: Option<&[Mapping]>, listeners: &[Listener]) -> Vec<Finding> {
    let Some(mappings) = dumped else {
        return vec![Finding::ok(
            CHECK,
            "no rpcbind answers on this machine: an export brings its own",
        )];
    };
    let ours = |port: u16| {
        let mut there = listeners.iter().filter(|l| l.at.port() == port).peekable();
        there.peek().is_some() && there.all(|l| l.who.as_deref() == Some("trivet"))
    };
    if ours(RPCBIND) {
        return vec![Finding::ok(CHECK, "port 111 is trivet's")];
    }
    if !needed {
        return vec![Finding::ok(
            CHECK,
            "rpcbind answers on this machine; no export needs it or is in its way",
        )];
    }
    let mut out = Vec::new();
    for (program, name) in PROGRAMS {
        let mut held = mappings
            .iter()
            .filter(|m| m.program == program && m.transport == Transport::Tcp);
        if let Some(m) = held.find(|m| !ours(m.port)) {
            out.push(Finding::bad(
                CHECK,
                format!(
                    "RPC program {program}, {name}, is registered by another at port {}",
                    m.port
                ),
                "an export with NFS mounts of this machine beside it needs a [volume.service]",
            ));
        }
    }
    if out.is_empty() {
        let what =
            "rpcbind answers on this machine, and the programs of an export are free or ours";
        out.push(Finding::ok(CHECK, what));
    }
    out
}

fn listeners(proc: &Path) -> Vec<Listener> {
    let mut raw = Vec::new();
    for file in ["net/tcp", "net/tcp6"] {
        let text = std::fs::read_to_string(proc.join(file)).unwrap_or_default();
        raw.extend(text.lines().filter_map(listener));
    }
    let inodes: Vec<u64> = raw.iter().map(|(_, inode)| *inode).collect();
    let names = owners(proc, &inodes);
    let named = raw.into_iter().map(|(at, inode)| Listener {
        at,
        who: names.get(&inode).cloned(),
    });
    named.collect()
}

/// A line of `/proc/net/tcp` or `tcp6`, if it is that of a listener: address and inode.
fn listener(line: &str) -> Option<(SocketAddr, u64)> {
    let mut words = line.split_whitespace();
    let (_, local, _, state) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let inode = words.nth(5)?.parse().ok()?;
    if state != "0A" {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of four bytes in this machine's order.
    let word = |i: usize| {
        let hex = address.get(i * 8..i * 8 + 8)?;
        Some(u32::from_str_radix(hex, 16).ok()?.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut bytes = [0; 16];
            for (i, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(i)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some((SocketAddr::new(ip, port), inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::finding::Level;

    const NFS: &str = "   1: 00000000:0801 00000000:0000 0A 00000000:00000000 00:00000000 00000000     \
                       0        0 4711 1 0000000000000000 100 0 0 10 0";

    #[test]
    fn listeners_are_read_as_the_kernel_writes_them() {
        let (at, inode) = listener(NFS).unwrap();
        assert_eq!((at.to_string().as_str(), inode), ("0.0.0.0:2049", 4711));
        assert_eq!(listener(&NFS.replace(" 0A ", " 01 ")), None);
        assert_eq!(
            listener("  sl  local_address rem_address   st tx_queue"),
            None
        );
        let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = own.local_addr().unwrap();
        let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
        assert!(text.lines().filter_map(listener).any(|(a, _)| a == at));
    }

    fn at(at: &str, who: Option<&str>) -> Listener {
        Listener {
            at: at.parse().unwrap(),
            who: who.map(str::to_owned),
        }
    }

    #[test]
    fn a_port_is_free_ours_or_taken() {
        let own = "10.0.0.1:7100".parse().unwrap();
        let of = |l: &[Listener]| port("node a", own, l);
        assert!(of(&[]).what.ends_with("is free"));
        let ours = at("10.0.0.1:7100", Some("trivet"));
        assert!(
            of(std::slice::from_ref(&ours))
                .what
                .ends_with("is trivet's")
        );
        assert!(
            of(&[at("10.0.0.2:7100", Some("x"))])
                .what
                .ends_with("is free")
        );
        let taken = of(&[at("0.0.0.0:7100", Some("nginx"))]);
        assert_eq!(taken.level, Level::Bad);
        assert!(taken.remedy.unwrap().contains("stop nginx"));
    }

    #[test]
    fn a_lock_manager_of_the_kernel_is_in_the_way_only_of_an_export_without_an_address() {
        let lockd = [Mapping {
            program: 100_021,
            version: 4,
            transport: Transport::Tcp,
            port: 40_000,
        }];
        let there = [
            at("0.0.0.0:111", Some("rpcbind")),
            at("0.0.0.0:40000", None),
        ];
        assert_eq!(rpcbind(true, Some(&lockd), &there)[0].level, Level::Bad);
        assert_eq!(rpcbind(false, Some(&lockd), &there)[0].level, Level::Ok);
        assert_eq!(rpcbind(true, Some(&[]), &there)[0].level, Level::Ok);
        let ours = [there[0].clone(), at("0.0.0.0:40000", Some("trivet"))];
        assert_eq!(rpcbind(true, Some(&lockd), &ours)[0].level, Level::Ok);
        assert_eq!(rpcbind(true, None, &[])[0].level, Level::Ok);
    }
}
