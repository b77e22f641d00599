//! Exports: which part of the file system which clients may use, and as whom.
//!
//! Invariants:
//! - An export without a client list does not exist: [`ExportSpec::check`] refuses it. `/` is no
//!   export's name (Proxmox does not list it).
//! - Every call is checked, not only MNT: the rule that counts is the one with the longest prefix
//!   that matches the caller's address at that moment, so a reload takes effect at once.
//! - An export's number, which handles carry, depends on its name alone: the same on every node,
//!   after every restart and reload.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use trivet_fs::Creds;

use crate::rpc::message::{Credential, SysCredential};

/// Exports of one server, at most.
pub const MAX_EXPORTS: usize = 1024;
/// Clients of one export, at most.
pub const MAX_CLIENTS: usize = 1024;
/// Bytes of an export's name, at most (MNTPATHLEN of RFC 1813 is 1,024).
pub const MAX_PATH: usize = 1024;

/// Why an export cannot be served.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ExportError {
    /// The name.
    #[error(
        "export {0:?}: a name starts with '/', is not \"/\" alone, does not end in '/', holds no \
         blank, \"//\", \".\" or \"..\" and has at most {MAX_PATH} bytes"
    )]
    BadName(String),
    /// The directory.
    #[error("export {0:?}: the directory {1:?} is not an absolute path without . and ..")]
    BadDirectory(String, String),
    /// Nobody may use it.
    #[error("export {0:?} has no client list; name the addresses that may use it")]
    NoClients(String),
    /// Two of the same name, or whose names have the same number.
    #[error("export {0:?} clashes with {1:?}; rename one of them")]
    Clash(String, String),
    /// More than the limits.
    #[error("too many exports ({MAX_EXPORTS}) or clients of one ({MAX_CLIENTS})")]
    TooMany,
    /// A client.
    #[error(
        "client {0:?}: {1}; write ADDRESS[/PREFIX][(rw,ro,root_squash,no_root_squash,all_squash,\
         anonuid=N,anongid=N,secure,insecure)]"
    )]
    BadClient(String, String),
}

/// A network: an address and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    address: IpAddr,
    prefix: u8,
}

impl Net {
    /// Whether it holds the address, which must be [`plain`].
    pub fn contains(&self, a: IpAddr) -> bool {
        match (self.address, a) {
            (IpAddr::V4(n), IpAddr::V4(a)) => {
                let shift = 32 - u32::from(self.prefix);
                (n.to_bits() ^ a.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(n), IpAddr::V6(a)) => {
                let shift = 128 - u32::from(self.prefix);
                (n.to_bits() ^ a.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Net {
    type Err = String;

    fn from_str(s: &str) -> Result<Net, String> {
        let (address, prefix) = match s.split_once('/') {
            Some((a, p)) => (a, Some(p)),
            None => (s, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("{address:?} is not an IP address"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(p) => p
                .parse()
                .ok()
                .filter(|p| *p <= most)
                .ok_or_else(|| format!("{p:?} is not a prefix length up to {most}"))?,
        };
        Ok(Net { address, prefix })
    }
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        match self.prefix == whole {
            true => write!(f, "{}", self.address),
            false => write!(f, "{}/{}", self.address, self.prefix),
        }
    }
}

/// Whose rights a caller has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Squash {
    /// His own, root's too.
    None,
    /// His own, but root is nobody.
    Root,
    /// Nobody's.
    All,
}

/// What one client, or network of clients, may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRule {
    /// Who.
    pub net: Net,
    /// Changes are refused.
    pub read_only: bool,
    /// As whom.
    pub squash: Squash,
    /// Who nobody is: user and group.
    pub anonymous: (u32, u32),
    /// Only from ports below 1024.
    pub secure: bool,
}

impl FromStr for ClientRule {
    type Err = ExportError;

    /// As in exports(5), with its defaults: `ro,root_squash,secure`, nobody is 65534.
    fn from_str(s: &str) -> Result<ClientRule, ExportError> {
        let bad = |why: String| ExportError::BadClient(s.to_owned(), why);
        let (net, options) = match s.trim().split_once('(') {
            Some((n, o)) => {
                let o = o.strip_suffix(')');
                (n, o.ok_or_else(|| bad("a ')' is missing".into()))?)
            }
            None => (s.trim(), ""),
        };
        let mut rule = ClientRule {
            net: net.trim().parse().map_err(bad)?,
            read_only: true,
            squash: Squash::Root,
            anonymous: (65534, 65534),
            secure: true,
        };
        let options = options.split(',').map(str::trim).filter(|o| !o.is_empty());
        for option in options {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let id = || {
                let id = value.parse();
                id.map_err(|_| bad(format!("{value:?} is not a number")))
            };
            match key {
                "rw" => rule.read_only = false,
                "ro" => rule.read_only = true,
                "root_squash" => rule.squash = Squash::Root,
                "no_root_squash" => rule.squash = Squash::None,
                "all_squash" => rule.squash = Squash::All,
                "anonuid" => rule.anonymous.0 = id()?,
                "anongid" => rule.anonymous.1 = id()?,
                "secure" => rule.secure = true,
                "insecure" => rule.secure = false,
                _ => return Err(bad(format!("unknown option {option:?}"))),
            }
        }
        Ok(rule)
    }
}

/// An export as it is written in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportSpec {
    /// Its name: what clients mount.
    pub name: String,
    /// The directory of the file system that it shows; all of it if absent.
    #[serde(default = "whole")]
    pub directory: String,
    /// Who may use it, each as in exports(5): `10.0.0.0/24(rw,no_root_squash)`.
    pub clients: Vec<String>,
}

fn whole() -> String {
    "/".into()
}

/// A checked export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Number in handles.
    pub id: u32,
    /// Name.
    pub name: String,
    /// Components of the path of its directory.
    pub directory: Vec<String>,
    /// Who may use it.
    pub clients: Vec<ClientRule>,
}

impl ExportSpec {
    /// Checks it.
    ///
    /// # Errors
    /// [`ExportError`] says what is wrong with it.
    pub fn check(&self) -> Result<Export, ExportError> {
        let parts = |p: &str| -> Option<Vec<String>> {
            let rest = p.strip_prefix('/')?;
            let parts = rest.split('/').filter(|c| !c.is_empty());
            let parts: Vec<String> = parts.map(str::to_owned).collect();
            let dots = parts.iter().any(|c| c == "." || c == "..");
            (!dots && !p.contains('\0')).then_some(parts)
        };
        let name = &self.name;
        let good = name.len() > 1
            && name.len() <= MAX_PATH
            && !name.ends_with('/')
            && !name.contains("//")
            && !name.chars().any(|c| c.is_whitespace() || c.is_control())
            && parts(name).is_some();
        if !good {
            return Err(ExportError::BadName(name.clone()));
        }
        let directory = parts(&self.directory)
            .ok_or_else(|| ExportError::BadDirectory(name.clone(), self.directory.clone()))?;
        if self.clients.is_empty() {
            return Err(ExportError::NoClients(name.clone()));
        }
        if self.clients.len() > MAX_CLIENTS {
            return Err(ExportError::TooMany);
        }
        let clients = self.clients.iter().map(|c| c.parse());
        Ok(Export {
            id: crc32c::crc32c(name.as_bytes()),
            name: name.clone(),
            directory,
            clients: clients.collect::<Result<_, _>>()?,
        })
    }
}

impl Export {
    /// The rule for an address, if any: of those that match, the most specific.
    pub fn rule(&self, peer: IpAddr) -> Option<&ClientRule> {
        let matching = self.clients.iter().filter(|c| c.net.contains(peer));
        matching.max_by_key(|c| c.net.prefix)
    }
}

/// Why a caller is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such export (any more).
    NoExport,
    /// The address is not in the export's list.
    NotListed,
    /// The export asks for a port below 1024.
    HighPort,
}

/// A caller who was let in.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// As whom.
    pub creds: Creds,
    /// Changes are refused.
    pub read_only: bool,
}

#[derive(Debug, Default)]
struct Table {
    exports: Vec<Arc<Export>>,
    by_id: HashMap<u32, Arc<Export>>,
}

/// The exports in force; replaced as a whole by a reload.
#[derive(Debug, Default)]
pub struct Exports {
    table: RwLock<Table>,
    /// Calls refused because of their address or port.
    pub refused: AtomicU64,
}

impl Exports {
    /// Checks and takes these exports.
    ///
    /// # Errors
    /// [`ExportError`]: nothing was changed then.
    pub fn new(specs: &[ExportSpec]) -> Result<Exports, ExportError> {
        let exports = Exports::default();
        exports.reload(specs)?;
        Ok(exports)
    }

    /// Replaces all exports by these.
    ///
    /// # Errors
    /// [`ExportError`]: nothing was changed then.
    pub fn reload(&self, specs: &[ExportSpec]) -> Result<(), ExportError> {
        if specs.len() > MAX_EXPORTS {
            return Err(ExportError::TooMany);
        }
        let mut table = Table::default();
        for spec in specs {
            let export = Arc::new(spec.check()?);
            if let Some(other) = table.by_id.insert(export.id, Arc::clone(&export)) {
                let clash = ExportError::Clash(export.name.clone(), other.name.clone());
                return Err(clash);
            }
            table.exports.push(export);
        }
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
        Ok(())
    }

    fn table(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, in the order of the configuration.
    pub fn list(&self) -> Vec<Arc<Export>> {
        self.table().exports.clone()
    }

    /// The export with this number.
    pub fn by_id(&self, id: u32) -> Option<Arc<Export>> {
        self.table().by_id.get(&id).cloned()
    }

    /// Whether any export lists the address.
    pub fn lists(&self, peer: SocketAddr) -> bool {
        let ip = plain(peer.ip());
        self.table().exports.iter().any(|e| e.rule(ip).is_some())
    }

    /// Checks a call by `peer` on the export with number `id`.
    ///
    /// # Errors
    /// [`Refusal`], which is counted.
    pub fn admit(&self, id: u32, peer: SocketAddr, cred: &Credential) -> Result<Admitted, Refusal> {
        let table = self.table();
        let admitted = match table.by_id.get(&id) {
            Some(export) => admit(export, peer, cred),
            None => Err(Refusal::NoExport),
        };
        if admitted.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }
}

/// Checks a call by `peer` on `export`.
///
/// # Errors
/// [`Refusal`].
pub fn admit(export: &Export, peer: SocketAddr, cred: &Credential) -> Result<Admitted, Refusal> {
    let rule = export.rule(plain(peer.ip())).ok_or(Refusal::NotListed)?;
    if rule.secure && peer.port() >= 1024 {
        return Err(Refusal::HighPort);
    }
    Ok(Admitted {
        creds: squashed(rule, cred),
        read_only: rule.read_only,
    })
}

fn squashed(rule: &ClientRule, cred: &Credential) -> Creds {
    static NO_GROUPS: OnceLock<Arc<[u32]>> = OnceLock::new();
    let (uid, gid) = rule.anonymous;
    let no_groups = || Arc::clone(NO_GROUPS.get_or_init(|| Arc::from([])));
    let creds = |uid, gid, groups| Creds {
        uid,
        gid,
        groups,
        checked: false,
        kill: false,
        stateless: true,
    };
    let sys = match cred {
        Credential::Sys(sys) if rule.squash != Squash::All => sys,
        _ => return creds(uid, gid, no_groups()),
    };
    let group = |g: u32| match (rule.squash, g) {
        (Squash::Root, 0) => gid,
        _ => g,
    };
    let SysCredential {
        uid: who,
        gid: primary,
        groups,
        ..
    } = sys;
    let groups = match groups.is_empty() {
        true => no_groups(),
        false => groups.iter().map(|g| group(*g)).collect(),
    };
    match (rule.squash, *who) {
        (Squash::Root, 0) => creds(uid, gid, no_groups()),
        (_, who) => creds(who, group(*primary), groups),
    }
}

/// An IPv4 address that came in IPv6's clothes, without them.
pub fn plain(a: IpAddr) -> IpAddr {
    match a {
        IpAddr::V6(v6) => unmapped(v6),
        v4 => v4,
    }
}

fn unmapped(a: Ipv6Addr) -> IpAddr {
    a.to_ipv4_mapped().map_or(IpAddr::V6(a), IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, clients: &[&str]) -> ExportSpec {
        ExportSpec {
            name: name.into(),
            directory: "/".into(),
            clients: clients.iter().map(|c| (*c).into()).collect(),
        }
    }

    fn sys(uid: u32, gid: u32, groups: &[u32]) -> Credential {
        Credential::Sys(SysCredential {
            machine: b"m".to_vec(),
            uid,
            gid,
            groups: groups.to_vec(),
        })
    }

    fn peer(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    #[test]
    fn names_that_clients_cannot_use_are_refused() {
        for bad in ["", "/", "x", "/a/", "/a b", "/a/../b", "//a", "/a\n", "/."] {
            let e = spec(bad, &["10.0.0.1"]).check().unwrap_err();
            assert_eq!(e, ExportError::BadName(bad.into()));
        }
        assert!(spec("/srv/vm", &["10.0.0.1"]).check().is_ok());
        let e = spec("/a", &[]).check().unwrap_err();
        assert_eq!(e, ExportError::NoClients("/a".into()));
    }

    #[test]
    fn the_most_specific_rule_counts() {
        let rules = [
            "10.0.0.0/8(rw,insecure)",
            "10.1.0.0/16(ro,insecure)",
            "10.1.2.3(rw)",
        ];
        let exports = Exports::new(&[spec("/a", &rules)]).unwrap();
        let id = exports.list()[0].id;
        let read_only = |p: &str| {
            let admitted = exports.admit(id, peer(p), &sys(0, 0, &[]));
            admitted.map(|a| a.read_only)
        };
        assert_eq!(read_only("10.9.9.9:2000"), Ok(false));
        assert_eq!(read_only("[::ffff:10.1.9.9]:2000"), Ok(true));
        assert_eq!(read_only("10.1.2.3:2000"), Err(Refusal::HighPort));
        assert_eq!(read_only("10.1.2.3:1023"), Ok(false));
        assert_eq!(read_only("11.1.2.3:700"), Err(Refusal::NotListed));
        assert_eq!(read_only("[fe80::1]:700"), Err(Refusal::NotListed));
        assert_eq!(exports.refused.load(Ordering::Relaxed), 3);
        assert!(exports.lists(peer("10.0.0.1:1")) && !exports.lists(peer("9.0.0.1:1")));
    }

    #[test]
    fn squashing_maps_users_and_groups() {
        let of = |options: &str, cred: &Credential| {
            let export = spec("/a", &[&format!("0.0.0.0/0(insecure,{options})")]);
            let admitted = admit(&export.check().unwrap(), peer("1.2.3.4:5"), cred).unwrap();
            (
                admitted.creds.uid,
                admitted.creds.gid,
                admitted.creds.groups.to_vec(),
            )
        };
        let root = sys(0, 0, &[0, 5]);
        let user = sys(7, 0, &[0, 5]);
        assert_eq!(of("no_root_squash", &root), (0, 0, vec![0, 5]));
        assert_eq!(of("root_squash", &root), (65534, 65534, vec![]));
        assert_eq!(of("root_squash,anongid=9", &user), (7, 9, vec![9, 5]));
        assert_eq!(of("all_squash,anonuid=0,anongid=0", &user), (0, 0, vec![]));
        assert_eq!(
            of("no_root_squash", &Credential::None),
            (65534, 65534, vec![])
        );
    }

    #[test]
    fn a_reload_with_a_mistake_changes_nothing() {
        let exports = Exports::new(&[spec("/a", &["10.0.0.1"])]).unwrap();
        assert!(exports.reload(&[spec("/b", &["10.0.0.1/33"])]).is_err());
        assert!(exports.reload(&[spec("/b", &["1.1.1.1(rx)"])]).is_err());
        let twice = [spec("/b", &["10.0.0.1"]), spec("/b", &["10.0.0.2"])];
        assert!(matches!(
            exports.reload(&twice),
            Err(ExportError::Clash(..))
        ));
        assert_eq!(exports.list()[0].name, "/a");
        exports.reload(&[spec("/b", &["::/0"])]).unwrap();
        assert_eq!(exports.list()[0].name, "/b");
    }
}
