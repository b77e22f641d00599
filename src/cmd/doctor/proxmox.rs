//! What Proxmox VE has of the cluster: storage entries that point at its exports, and containers
//! that its hookscript drives. Read from the files in `/etc/pve`, nothing is changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use trivet_node::Config;
use trivet_node::config::Driver;

use super::Seen;
use super::export::address;
use super::finding::Finding;

const CHECK: &str = "proxmox";
/// Bytes of a file, at most.
const MOST: u64 = 1 << 20;

/// A section of `storage.cfg`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Storage {
    kind: String,
    id: String,
    /// Key and value of each line.
    lines: Vec<(String, String)>,
}

impl Storage {
    fn get(&self, key: &str) -> Option<&str> {
        let found = self.lines.iter().find(|(k, _)| k == key);
        found.map(|(_, v)| v.as_str())
    }
}

/// Looks.
pub fn look(seen: &Seen, pve: &Path) -> Vec<Finding> {
    let Some(config) = &seen.config else {
        return Vec::new();
    };
    let file = pve.join("storage.cfg");
    let storages = match read(&file) {
        Ok(text) => parse(&text),
        Err(e) => {
            return vec![Finding::bad(
                CHECK,
                format!("cannot read {}: {e}", file.display()),
                "run it on a host of the Proxmox cluster, as root; `systemctl status pve-cluster`",
            )];
        }
    };
    let mut out = entries(config, &storages);
    for (vmid, text) in containers(pve) {
        let conf = format!("/etc/trivet/ct-{vmid}.conf");
        let there = Path::new(&conf).exists();
        out.extend(container(
            config,
            &storages,
            &vmid,
            &text,
            there.then_some(&conf),
        ));
    }
    out
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MOST)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// The sections of `storage.cfg`: `KIND: ID`, then indented lines of key and value.
fn parse(text: &str) -> Vec<Storage> {
    let mut all: Vec<Storage> = Vec::new();
    for line in text.lines() {
        let words = line.trim();
        if words.is_empty() || words.starts_with('#') {
            continue;
        }
        if line.starts_with([' ', '\t']) {
            let (key, value) = words.split_once(char::is_whitespace).unwrap_or((words, ""));
            if let Some(last) = all.last_mut() {
                last.lines.push((key.into(), value.trim().into()));
            }
        } else if let Some((kind, id)) = words.split_once(':') {
            all.push(Storage {
                kind: kind.trim().into(),
                id: id.trim().into(),
                lines: Vec::new(),
            });
        }
    }
    all
}

/// The storage entries of the exports of all volumes.
fn entries(config: &Config, storages: &[Storage]) -> Vec<Finding> {
    let mut out = Vec::new();
    for v in config.volumes.iter().filter(|v| !v.exports.is_empty()) {
        // An address that moves is what an entry must have; a node's own would not follow.
        let at = address(config, v, None);
        let nodes: BTreeSet<IpAddr> = config
            .nodes
            .iter()
            .flat_map(|n| n.addresses.iter().map(|a| a.ip()))
            .collect();
        let server = |s: &&Storage| s.get("server").and_then(|s| s.parse::<IpAddr>().ok());
        let nfs = storages.iter().filter(|s| s.kind == "nfs");
        let ours: Vec<&Storage> = nfs
            .filter(|s| {
                let here = server(s).is_some_and(|ip| Some(ip) == at || nodes.contains(&ip));
                here && v.exports.iter().any(|e| s.get("export") == Some(&e.name))
            })
            .collect();
        if ours.is_empty() {
            out.push(Finding::warn(
                CHECK,
                format!("Proxmox has no storage entry for volume {}", v.name),
                format!(
                    "`trivet proxmox storage {}` prints the command that adds it",
                    v.name
                ),
            ));
        }
        for s in ours {
            out.extend(entry(s, server(&s) == at));
        }
    }
    out
}

fn entry(s: &Storage, follows: bool) -> Vec<Finding> {
    let mut out = Vec::new();
    let id = &s.id;
    let options: Vec<&str> = s.get("options").unwrap_or("").split(',').collect();
    let set = format!("`pvesm set {id} --options vers=3,proto=tcp,hard`, then unmount it once");
    if !follows {
        out.push(Finding::bad(
            CHECK,
            format!("storage {id}: its server does not follow the active node"),
            "give the volume a [volume.service] and use that address",
        ));
    }
    if !options.iter().any(|o| *o == "vers=3" || *o == "nfsvers=3") {
        out.push(Finding::warn(
            CHECK,
            format!("storage {id}: without vers=3 Proxmox probes for NFSv4, which Trivet has not"),
            set.as_str(),
        ));
    }
    if let Some(soft) = options.iter().find(|o| o.starts_with("soft")) {
        out.push(Finding::warn(
            CHECK,
            format!("storage {id}: {soft}: guests get I/O errors while the service moves"),
            set.as_str(),
        ));
    }
    if let Some(lock) = options.iter().find(|o| **o == "nolock") {
        out.push(Finding::warn(
            CHECK,
            format!("storage {id}: {lock}: a host does not see the locks of the others"),
            set.as_str(),
        ));
    }
    if s.get("disable").is_some() {
        out.push(Finding::warn(
            CHECK,
            format!("storage {id} is disabled"),
            format!("`pvesm set {id} --disable 0`"),
        ));
    }
    if out.is_empty() {
        out.push(Finding::ok(
            CHECK,
            format!("storage {id}: {}", s.get("options").unwrap_or_default()),
        ));
    }
    out
}

/// Containers of this host that our hookscript drives: number and text.
fn containers(pve: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(pve.join("lxc"));
    let mut out = Vec::new();
    for e in entries.into_iter().flatten().flatten() {
        let name = e.file_name().to_string_lossy().into_owned();
        let Some(vmid) = name.strip_suffix(".conf") else {
            continue;
        };
        if let Ok(text) = read(&e.path())
            && text.lines().any(is_hooked)
        {
            out.push((vmid.to_owned(), text));
        }
    }
    out.sort();
    out
}

fn is_hooked(line: &str) -> bool {
    line.starts_with("hookscript:") && line.contains("trivet-hookscript")
}

fn container(
    config: &Config,
    storages: &[Storage],
    vmid: &str,
    text: &str,
    conf: Option<&String>,
) -> Vec<Finding> {
    let mut out = Vec::new();
    // The part before the first snapshot is what holds now.
    let now = text.split("\n[").next().unwrap_or_default();
    let get = |key: &str| {
        let mut lines = now.lines().filter_map(|l| l.split_once(':'));
        lines.find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim())
    };
    if get("unprivileged") != Some("1") {
        out.push(Finding::warn(
            CHECK,
            format!("container {vmid} is privileged, and need not be"),
            "make it again with `unprivileged: 1`: it needs no right of the host",
        ));
    }
    let root = get("rootfs").unwrap_or_default();
    let storage = root.split(':').next().unwrap_or_default();
    let served = |s: &&Storage| {
        let export = s.get("export").unwrap_or_default();
        let exports = config.volumes.iter().flat_map(|v| &v.exports);
        s.kind == "nfs" && exports.clone().any(|e| e.name == export)
    };
    if storages.iter().filter(served).any(|s| s.id == storage) {
        out.push(Finding::bad(
            CHECK,
            format!("container {vmid}: its root lies on {storage}, which it exports itself"),
            "put the root on each host's own disk: `trivet proxmox container-root DIR`",
        ));
    }
    if !root.split(',').any(|o| o == "ro=1") {
        out.push(Finding::warn(
            CHECK,
            format!("container {vmid}: its root can be written, and would differ between hosts"),
            "add ro=1 to its rootfs; what it remembers belongs in /var/lib/trivet",
        ));
    }
    if conf.is_none() {
        out.push(Finding::bad(
            CHECK,
            format!("container {vmid}: this host has no /etc/trivet/ct-{vmid}.conf"),
            format!("`echo VOLUME=NAME >/etc/trivet/ct-{vmid}.conf` on every host"),
        ));
    }
    if config.volumes.iter().all(|v| v.driver != Driver::External) {
        out.push(Finding::bad(
            CHECK,
            format!("container {vmid} is to decide, and no volume has driver = \"external\""),
            "one decides, not two: set driver = \"external\" on all nodes",
        ));
    }
    if out.is_empty() {
        let what = format!("container {vmid}: unprivileged, read-only root, not on its own export");
        out.push(Finding::ok(CHECK, what));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::finding::Level;

    const CONFIG: &str = r#"
cluster = "t"
[[node]]
name = "a"
addresses = ["127.0.0.1:7100"]
pools = { main = "/p" }
[[volume]]
name = "vms"
id = "6450c8c8-c93f-41fe-a0cc-69e263802150"
driver = "external"
[volume.service]
address = "10.0.0.10/24"
bridge = "vmbr0"
[[volume.export]]
name = "/vms"
clients = ["127.0.0.1"]
"#;
    const STORAGE: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent iso\n\nnfs: share\n\texport \
                           /vms\n\tpath /mnt/pve/share\n\tserver 10.0.0.10\n\tcontent images\n\t\
                           options vers=3,proto=tcp,hard\n";
    const CONTAINER: &str = include_str!("../../../deploy/lxc/101.conf");

    fn of(storage: &str) -> Vec<Finding> {
        entries(&Config::parse(CONFIG).unwrap(), &parse(storage))
    }

    #[test]
    fn an_entry_is_found_by_address_and_export_and_judged() {
        assert_eq!(of(STORAGE).len(), 1);
        assert_eq!(of(STORAGE)[0].level, Level::Ok);
        for (from, to, level, says) in [
            ("10.0.0.10", "127.0.0.1", Level::Bad, "does not follow"),
            ("vers=3,", "", Level::Warn, "NFSv4"),
            ("hard", "soft", Level::Warn, "I/O errors"),
            ("hard", "hard,nolock", Level::Warn, "locks"),
            ("export /vms", "export /x", Level::Warn, "no storage entry"),
            ("content images", "disable", Level::Warn, "is disabled"),
        ] {
            let found = of(&STORAGE.replace(from, to));
            assert_eq!(found.len(), 1, "{from} {found:#?}");
            assert_eq!(found[0].level, level);
            assert!(found[0].what.contains(says), "{found:#?}");
        }
    }

    #[test]
    fn the_container_of_the_recipe_is_well_and_each_change_of_it_is_not() {
        let config = Config::parse(CONFIG).unwrap();
        let storages = parse(STORAGE);
        let conf = "x".to_owned();
        let of = |text: &str, conf| container(&config, &storages, "101", text, conf);
        assert!(CONTAINER.lines().any(is_hooked));
        let found = of(CONTAINER, Some(&conf));
        assert_eq!(found[0].level, Level::Ok, "{found:#?}");
        for (from, to, level) in [
            ("unprivileged: 1", "unprivileged: 0", Level::Warn),
            ("rootfs: trivet-root:", "rootfs: share:", Level::Bad),
            (",ro=1,shared=1,size", ",size", Level::Warn),
        ] {
            let found = of(&CONTAINER.replace(from, to), Some(&conf));
            assert_eq!(found.len(), 1, "{from} {found:#?}");
            assert_eq!(found[0].level, level);
        }
        assert_eq!(of(CONTAINER, None)[0].level, Level::Bad);
    }
}
