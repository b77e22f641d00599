//! NFS mounts of this machine that come from an export of the cluster, and their options.

use std::collections::BTreeSet;
use std::net::IpAddr;

use trivet_node::Config;

use super::Seen;
use super::finding::Finding;

const CHECK: &str = "mounts";

/// A line of `/proc/mounts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub source: String,
    /// Where.
    pub target: String,
    /// Kind of file system.
    pub kind: String,
    /// Options, as the kernel has them in force.
    pub options: Vec<String>,
}

impl Mount {
    fn value(&self, key: &str) -> Option<&str> {
        let mut all = self.options.iter();
        all.find_map(|o| o.strip_prefix(key)?.strip_prefix('='))
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }
}

/// Reads the kernel's list.
pub fn parse(text: &str) -> Vec<Mount> {
    let one = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        Some(Mount {
            source: words.next()?,
            target: words.next()?,
            kind: words.next()?,
            options: words.next()?.split(',').map(str::to_owned).collect(),
        })
    };
    text.lines().filter_map(one).collect()
}

/// Addresses at which the cluster exports anything, or could.
pub fn addresses(config: Option<&Config>) -> BTreeSet<IpAddr> {
    let config = config.into_iter();
    let services = config
        .clone()
        .flat_map(|c| &c.volumes)
        .filter_map(|v| v.service.as_ref().map(|s| s.address.ip));
    let nodes = config.flat_map(|c| &c.nodes);
    let own = nodes.flat_map(|n| n.addresses.iter().map(|a| a.ip()));
    services.chain(own).collect()
}

/// Whether it is an NFS mount from one of these.
pub fn is_ours(m: &Mount, addresses: &BTreeSet<IpAddr>) -> bool {
    let host = m.source.rsplit_once(":/").map_or("", |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let ip = host.parse().ok().or_else(|| m.value("addr")?.parse().ok());
    m.kind.starts_with("nfs") && ip.is_some_and(|ip| addresses.contains(&ip))
}

/// Looks.
pub fn look(seen: &Seen) -> Vec<Finding> {
    let text = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let addresses = addresses(seen.config.as_ref());
    let all = parse(&text);
    let ours = all.iter().filter(|m| is_ours(m, &addresses));
    let out: Vec<Finding> = ours.flat_map(judge).collect();
    match out.is_empty() && seen.config.is_some() {
        true => vec![Finding::ok(
            CHECK,
            "this machine mounts no export of the cluster",
        )],
        false => out,
    }
}

fn judge(m: &Mount) -> Vec<Finding> {
    let name = format!("{} on {}", m.source, m.target);
    let mut out = Vec::new();
    let mut warn = |what: &str, remedy: &str| {
        out.push(Finding::warn(CHECK, format!("{name}: {what}"), remedy));
    };
    let version = m.value("vers").unwrap_or("?");
    if version != "3" {
        warn(
            &format!("NFS version {version}, and Trivet speaks 3: this is another server's"),
            "unmount it, find out who answers at that address, mount with vers=3",
        );
    }
    if m.has("soft") || m.has("softerr") {
        warn(
            "soft: while the service moves, programs and guests get I/O errors",
            "mount it with hard (in Proxmox: `pvesm set ID --options vers=3,proto=tcp,hard`)",
        );
    }
    if m.value("proto").is_some_and(|p| p.starts_with("udp")) {
        warn(
            "over UDP, which Trivet does not serve NFS on",
            "mount it with proto=tcp",
        );
    }
    if m.has("nolock")
        || m.value("local_lock")
            .is_some_and(|l| l == "all" || l == "posix")
    {
        warn(
            "locks are this machine's alone: other clients do not see them",
            "mount it without nolock, unless no other host uses the same files",
        );
    }
    if m.value("timeo")
        .and_then(|t| t.parse::<u32>().ok())
        .is_some_and(|t| t < 50)
    {
        warn(
            "timeo below 5 s: over TCP it breaks connections that only wait for a takeover",
            "leave timeo at its default of 600",
        );
    }
    if out.is_empty() {
        out.push(Finding::ok(CHECK, format!("{name}: vers=3, hard, tcp")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::finding::Level;

    const GOOD: &str = "10.0.0.10:/vms /mnt/pve/vms nfs rw,relatime,vers=3,rsize=1048576,hard,\
                        proto=tcp,timeo=600,retrans=2,sec=sys,mountaddr=10.0.0.10,mountvers=3,\
                        mountport=2049,mountproto=tcp,local_lock=none,addr=10.0.0.10 0 0\n";

    #[test]
    fn options_that_hurt_are_said_with_their_remedy() {
        let of = |from: &str, to: &str| {
            let text = GOOD.replace(from, to);
            judge(&parse(&text)[0])
        };
        assert_eq!(of("x", "x")[0].level, Level::Ok);
        for (from, to, says) in [
            (",hard,", ",soft,", "I/O errors"),
            ("vers=3,rsize", "vers=4.2,rsize", "another server"),
            ("proto=tcp,timeo", "proto=udp,timeo", "UDP"),
            ("local_lock=none", "local_lock=all", "this machine's alone"),
            ("timeo=600", "timeo=10", "below 5 s"),
        ] {
            let found = of(from, to);
            assert_eq!(found.len(), 1, "{found:#?}");
            assert_eq!(found[0].level, Level::Warn);
            assert!(found[0].what.contains(says), "{found:#?}");
        }
    }

    #[test]
    fn mounts_of_others_are_not_judged() {
        let ours: BTreeSet<IpAddr> = ["10.0.0.10".parse().unwrap()].into();
        let of = |text: &str| is_ours(&parse(text)[0], &ours);
        assert!(of(GOOD));
        assert!(!of(&GOOD.replace("10.0.0.10", "10.0.0.11")));
        assert!(
            of(&GOOD.replacen("10.0.0.10:", "share.lan:", 1)),
            "by addr="
        );
        assert!(!of("/dev/sda1 / ext4 rw 0 0\n"));
    }
}
