//! `trivet.toml`: one file, the same on all nodes.
//!
//! It says where people and things are: nodes, their addresses, keys and pools; volumes, who
//! decides about them, what is exported and at which service address. Who is a *member* of a
//! volume, and how large it is, stands in the volume's record on its members, and this file never
//! overrides that.
//!
//! Bounded: [`MAX_FILE`] bytes, [`MAX_NODES`] nodes, [`MAX_VOLUMES`] volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trivet_nfs::export::ExportSpec;
use trivet_protocol::VolumeId;
use trivet_protocol::limits::MAX_NAME;
use trivet_transport::peers::Entry;
use trivet_transport::{Identity, PeerSet, Peers, PublicKey, Role as PeerRole, Security};

use crate::error::{NodeError, Result};

/// Where it is looked for.
pub const DEFAULT_PATH: &str = "/etc/trivet/trivet.toml";
/// Bytes of the file, at most.
pub const MAX_FILE: u64 = 256 * 1024;
/// Nodes, at most.
pub const MAX_NODES: usize = 64;
/// Volumes, at most.
pub const MAX_VOLUMES: usize = 256;

/// Seconds after which a node that is not heard is given up, unless set.
pub const EVICT_AFTER: u64 = 3600;

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Keeps replicas in its pools.
    Replica,
    /// May become the active node of a volume.
    Exporter,
    /// Votes and keeps no data.
    Witness,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Its name, as people say it.
    pub name: String,
    /// Where its daemon is reached, the replication network first.
    pub addresses: Vec<SocketAddr>,
    /// What it does.
    #[serde(default = "usual_roles")]
    pub roles: BTreeSet<Role>,
    /// Its pools: name and directory.
    #[serde(default)]
    pub pools: BTreeMap<String, PathBuf>,
    /// Its public key, as `trivet key show` prints it. Without keys all addresses must be
    /// loopback ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PublicKey>,
    /// Where it answers `GET /metrics` and `GET /healthz`, to anybody who can reach it; nowhere
    /// unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

fn usual_roles() -> BTreeSet<Role> {
    [Role::Replica, Role::Exporter].into()
}

impl NodeConfig {
    /// Whether it does this.
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// Who may give commands without being a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorConfig {
    /// A name, for the log.
    pub name: String,
    /// The public key.
    pub key: PublicKey,
}

/// Who decides which node is the active one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// `trivet promote` and `trivet demote`, and nobody else.
    #[default]
    Manual,
    /// A cluster manager, through the same commands; a dead one is not replaced from here.
    External,
    /// The nodes themselves: when the lease runs out, the best placed one takes over.
    Automatic,
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Driver::Manual => "manual",
            Driver::External => "external",
            Driver::Automatic => "automatic",
        })
    }
}

/// The address that follows the active node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Address and length of the network's prefix, such as `10.0.0.10/24`.
    pub address: Net,
    /// The bridge on each node that the service's own network interface joins.
    pub bridge: String,
    /// The way out of that network, if clients are outside of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// An address with the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network's prefix.
    pub prefix: u8,
}

impl Net {
    /// Whether an address is in the network.
    pub fn contains(&self, other: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(a) => u128::from(u32::from(a)) << 96,
            IpAddr::V6(a) => u128::from(a),
        };
        let mask = u128::MAX << (128 - u32::from(self.prefix.clamp(1, 128)));
        self.ip.is_ipv4() == other.is_ipv4() && (bits(self.ip) ^ bits(other)) & mask == 0
    }
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl std::str::FromStr for Net {
    type Err = String;

    fn from_str(s: &str) -> Result<Net, String> {
        let wrong = || format!("{s:?} is not an address with a prefix length, as 10.0.0.10/24");
        let (ip, prefix) = s.split_once('/').ok_or_else(wrong)?;
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        if prefix == 0 || prefix > most || ip.is_unspecified() || ip.is_multicast() {
            return Err(wrong());
        }
        Ok(Net { ip, prefix })
    }
}

impl Serialize for Net {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Net {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Net, D::Error> {
        let s = String::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// One NFS export of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// What clients mount.
    pub name: String,
    /// The directory of the volume's file system that it shows.
    #[serde(default = "root")]
    pub directory: String,
    /// Who may, as in exports(5): `10.0.0.0/24(rw,no_root_squash)`.
    pub clients: Vec<String>,
}

fn root() -> String {
    "/".into()
}

impl From<&ExportConfig> for ExportSpec {
    fn from(e: &ExportConfig) -> ExportSpec {
        ExportSpec {
            name: e.name.clone(),
            directory: e.directory.clone(),
            clients: e.clients.clone(),
        }
    }
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: VolumeId,
    /// Who decides where it is active.
    #[serde(default)]
    pub driver: Driver,
    /// Nodes that should have it before others, the best one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<String>,
    /// Port of the NFS export.
    #[serde(default = "nfs_port")]
    pub port: u16,
    /// Directory on which the active node mounts it through FUSE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<PathBuf>,
    /// MiB per second that a resync copies at most; 200 unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync_mib: Option<u64>,
    /// The service address. Without one the export is served on all addresses of the active node,
    /// which is for trying things out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceConfig>,
    /// What is exported; nothing: no NFS.
    #[serde(default, rename = "export", skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<ExportConfig>,
}

fn nfs_port() -> u16 {
    2049
}

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the cluster.
    pub cluster: String,
    /// A command that is told of each event, through `sh -c`, as JSON on its standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<String>,
    /// Seconds after which a node that is not heard is given up, if another one can take its
    /// replicas; 0: never. [`EVICT_AFTER`] unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evict_after: Option<u64>,
    /// The nodes.
    #[serde(rename = "node")]
    pub nodes: Vec<NodeConfig>,
    /// Operators.
    #[serde(default, rename = "operator", skip_serializing_if = "Vec::is_empty")]
    pub operators: Vec<OperatorConfig>,
    /// The volumes.
    #[serde(default, rename = "volume", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeConfig>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It cannot be read, or what is wrong in it.
    pub fn load(path: &Path) -> Result<Config> {
        let io = |source| NodeError::ConfigRead {
            path: path.to_path_buf(),
            source,
        };
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|f| f.take(MAX_FILE + 1).read_to_string(&mut text))
            .map_err(io)?;
        if text.len() as u64 > MAX_FILE {
            return Err(wrong(path, format!("it is larger than {MAX_FILE} bytes")));
        }
        Config::parse(&text).map_err(|why| wrong(path, why))
    }

    /// The same of its text.
    ///
    /// # Errors
    /// What is wrong, and in which line if that is known.
    pub fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        config.check_all().map(|()| config)
    }

    /// What makes no sense in it, keys aside.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), String> {
        self.problem().map_or(Ok(()), Err)
    }

    fn check_all(&self) -> Result<(), String> {
        self.check()?;
        if let Some(n) = self.nodes.iter().find(|n| n.key.is_none())
            && self.needs_keys()
        {
            return Err(format!(
                "node {} has no key; make one with `trivet key new` and put its public form here",
                n.name
            ));
        }
        self.peers().map(drop).map_err(|e| e.to_string())
    }

    /// Whether anybody beyond this machine can reach a node, or keys are in use anyway.
    fn needs_keys(&self) -> bool {
        let mut addresses = self.nodes.iter().flat_map(|n| &n.addresses);
        addresses.any(|a| !a.ip().is_loopback()) || self.nodes.iter().any(|n| n.key.is_some())
    }

    /// Everybody who may connect.
    ///
    /// # Errors
    /// Two have the same name or key.
    pub fn peers(&self) -> trivet_transport::Result<PeerSet> {
        let nodes = self.nodes.iter().filter_map(|n| {
            let keeps = n.is(Role::Replica) || n.is(Role::Witness);
            Some(Entry {
                name: n.name.clone(),
                role: match keeps {
                    true => PeerRole::Node,
                    false => PeerRole::Exporter,
                },
                key: n.key?,
            })
        });
        let operators = self.operators.iter().map(|o| Entry {
            name: o.name.clone(),
            role: PeerRole::Operator,
            key: o.key,
        });
        PeerSet::new(nodes.chain(operators))
    }

    /// How connections of whoever has the private key in `key` are protected. The file is not
    /// looked at if no keys are in use.
    ///
    /// # Errors
    /// There is no such key.
    pub fn security(&self, key: &Path) -> Result<Security> {
        if !self.needs_keys() {
            return Ok(Security::Plain);
        }
        let identity = Identity::load(key)?;
        Ok(Security::tls(identity, Peers::new(self.peers()?))?)
    }

    /// Writes it, for people to edit; under another name first.
    ///
    /// # Errors
    /// The disk.
    pub fn save(&self, path: &Path) -> Result<()> {
        let body = toml::to_string(self).map_err(|e| wrong(path, e.to_string()))?;
        let text = format!("# A Trivet cluster: the same file on all its nodes.\n{body}");
        crate::state::write(path, text.as_bytes())
    }

    /// After how long a node that is not heard is given up, if ever.
    pub fn gives_up_after(&self) -> Option<Duration> {
        let seconds = self.evict_after.unwrap_or(EVICT_AFTER);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&NodeConfig> {
        self.nodes.iter().find(|n| n.name == name)
    }

    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Option<&VolumeConfig> {
        self.volumes.iter().find(|v| v.name == name)
    }

    fn problem(&self) -> Option<String> {
        self.problem_of_names()
            .or_else(|| self.nodes.iter().find_map(|n| self.problem_of_node(n)))
            .or_else(|| self.volumes.iter().find_map(|v| self.problem_of_volume(v)))
            .or_else(|| self.problem_of_addresses())
    }

    fn problem_of_names(&self) -> Option<String> {
        let names = |kind: &str, all: Vec<&String>| -> Option<String> {
            let mut seen = BTreeSet::new();
            all.into_iter().find_map(|n| {
                if !is_name(n) {
                    return Some(format!(
                        "{kind} {n:?}: a name has 1 to {MAX_NAME} of a-z, A-Z, 0-9, '-', '_', '.'"
                    ));
                }
                (!seen.insert(n)).then(|| format!("{kind} {n:?} is there twice"))
            })
        };
        if self.nodes.is_empty() || self.nodes.len() > MAX_NODES {
            return Some(format!(
                "{} nodes; 1 to {MAX_NODES} are possible",
                self.nodes.len()
            ));
        }
        if self.volumes.len() > MAX_VOLUMES {
            return Some(format!("more than {MAX_VOLUMES} volumes"));
        }
        names("node", self.nodes.iter().map(|n| &n.name).collect())
            .or_else(|| names("volume", self.volumes.iter().map(|v| &v.name).collect()))
            .or_else(|| {
                let ids: BTreeSet<_> = self.volumes.iter().map(|v| v.id).collect();
                (ids.len() < self.volumes.len()).then(|| "two volumes have the same id".into())
            })
    }

    fn problem_of_addresses(&self) -> Option<String> {
        let mut seen: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for n in &self.nodes {
            for a in n.addresses.iter().filter(|a| !a.ip().is_loopback()) {
                seen.insert(a.ip(), &n.name);
            }
        }
        self.volumes.iter().find_map(|v| {
            let ip = v.service.as_ref()?.address.ip;
            let other = seen.insert(ip, &v.name)?;
            Some(format!(
                "volume {}: its service address {ip} is also that of {other}",
                v.name
            ))
        })
    }

    fn problem_of_node(&self, n: &NodeConfig) -> Option<String> {
        let name = &n.name;
        if n.addresses.is_empty() {
            Some(format!("node {name} has no address"))
        } else if n.addresses.iter().any(|a| a.port() == 0) {
            Some(format!("node {name} has an address with port 0"))
        } else if n.metrics.is_some_and(|a| n.addresses.contains(&a)) {
            Some(format!("node {name}: its metrics need a port of their own"))
        } else if n.is(Role::Replica) && n.pools.is_empty() {
            Some(format!("node {name} is to keep replicas and has no pool"))
        } else {
            let relative = n.pools.iter().find(|(_, dir)| !dir.is_absolute());
            relative.map(|(pool, _)| format!("pool {pool} of node {name} is not an absolute path"))
        }
    }

    fn problem_of_volume(&self, v: &VolumeConfig) -> Option<String> {
        let name = &v.name;
        if v.resync_mib == Some(0) {
            return Some(format!("volume {name}: resync_mib is 1 or more"));
        }
        if let Some(n) = v.prefer.iter().find(|n| self.node(n).is_none()) {
            return Some(format!(
                "volume {name} prefers node {n}, which is not there"
            ));
        }
        if let Some(s) = &v.service {
            // The kernel's limit on names of interfaces.
            if s.bridge.is_empty() || s.bridge.len() > 15 || !is_name(&s.bridge) {
                return Some(format!("volume {name}: {:?} names no bridge", s.bridge));
            }
            if s.gateway
                .is_some_and(|g| g.is_ipv4() != s.address.ip.is_ipv4())
            {
                return Some(format!("volume {name}: its gateway is of another family"));
            }
            if s.gateway.is_some_and(|g| !s.address.contains(g)) {
                return Some(format!(
                    "volume {name}: its gateway is not in the network {}",
                    s.address
                ));
            }
        }
        v.exports.iter().find_map(|e| {
            let checked = ExportSpec::from(e).check();
            checked.err().map(|why| format!("volume {name}: {why}"))
        })
    }
}

fn is_name(s: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !s.is_empty() && s.len() <= MAX_NAME && s.chars().all(good)
}

fn wrong(path: &Path, why: String) -> NodeError {
    NodeError::Config {
        path: path.to_path_buf(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
cluster = "home"
[[node]]
name = "a"
addresses = ["127.0.0.1:7100"]
pools = { main = "/p/a" }
[[node]]
name = "w"
addresses = ["127.0.0.1:7101"]
roles = ["witness"]
[[volume]]
name = "vms"
id = "7d1f2a0c-5a31-4c6e-9a37-111111111111"
driver = "automatic"
prefer = ["a"]
[volume.service]
address = "10.0.0.10/24"
bridge = "vmbr0"
[[volume.export]]
name = "/vms"
clients = ["10.0.0.0/24(rw,no_root_squash)"]
"#;

    #[test]
    fn a_good_one_is_read_and_written_back_the_same() {
        let c = Config::parse(GOOD).unwrap();
        assert!(c.node("a").unwrap().is(Role::Exporter));
        assert!(!c.node("w").unwrap().is(Role::Exporter));
        let text = toml::to_string(&c).unwrap();
        assert_eq!(Config::parse(&text).unwrap(), c);
    }

    #[test]
    fn a_service_address_is_nobody_elses_and_its_gateway_is_near() {
        let with = |more: &str| Config::parse(&GOOD.replace("bridge = \"vmbr0\"", more));
        let near = "bridge = \"vmbr0\"\ngateway = \"10.0.0.1\"";
        assert!(with(near).is_ok());
        let far = with(&near.replace("10.0.0.1", "10.0.1.1")).unwrap_err();
        assert!(far.contains("not in the network"), "{far}");
        let (_, volume) = GOOD.split_once("[[volume]]").unwrap();
        let second = volume
            .replace("\"vms\"", "\"isos\"")
            .replace("111111111111", "222222222222");
        let twice = Config::parse(&format!("{GOOD}[[volume]]{second}")).unwrap_err();
        assert!(twice.contains("also that of vms"), "{twice}");
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, says) in [
            ("name = \"w\"", "name = \"a\"", "twice"),
            ("name = \"w\"", "name = \"a b\"", "a name has"),
            ("127.0.0.1:7101", "10.0.0.2:7101", "no key"),
            ("prefer = [\"a\"]", "prefer = [\"x\"]", "prefers node x"),
            ("10.0.0.10/24", "10.0.0.10/33", "prefix length"),
            ("10.0.0.10/24", "10.0.0.10", "prefix length"),
            ("\"vmbr0\"", "\"a/b\"", "names no bridge"),
            ("\"/vms\"", "\"/\"", "volume vms"),
            ("[\"10.0.0.0/24(rw,no_root_squash)\"]", "[]", "volume vms"),
            ("pools = { main = \"/p/a\" }", "", "no pool"),
            ("\"/p/a\"", "\"p/a\"", "absolute"),
            ("cluster = ", "clustre = ", "clustre"),
            ("driver = ", "resync_mib = 0\ndriver = ", "1 or more"),
            (
                "pools = { main",
                "metrics = \"127.0.0.1:7100\"\npools = { main",
                "port of their own",
            ),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let e = Config::parse(&text).unwrap_err();
            assert!(e.contains(says), "{from} -> {to}: {e}");
        }
    }
}
