//! The lab: a switch, three hosts, a client, each in namespaces of its own.
//!
//! Everything is named after the lab's number and lives in one directory, which is locked as long
//! as the lab lives. Dropping the lab removes it all, on every way out that unwinds; after a
//! `kill -9` the kernel ends its processes (see [`crate::host`]), and the next lab removes what
//! else is left of labs whose lock is free.
//!
//! Addresses are the lab's own: nothing of it touches this machine's network.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::Common;
use crate::error::{LabError, Result, file};
use crate::host::Host;
use crate::sys::{ip_quietly, run, run_any};

/// Names of directories and namespaces begin so.
const PREFIX: &str = "trivet-lab-";
/// The service address, and the network's prefix length.
pub const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
const NETWORK: &str = "10.77.0";
/// Name of the volume.
pub const VOLUME: &str = "vms";

/// See the module's head.
pub struct Lab {
    id: String,
    /// Where everything is.
    pub dir: PathBuf,
    _lock: File,
    /// `n1`, `n2`, `n3`.
    pub hosts: Vec<Host>,
    /// The program under test.
    pub trivet: PathBuf,
    /// `n3` is a witness.
    witness: bool,
    keep: bool,
}

fn netns_of(id: &str, name: &str) -> String {
    format!("tvl{id}-{name}")
}

/// What this machine lacks for a lab.
pub fn lacks() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root (network namespaces)".into());
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("it needs /dev/fuse (disks that fail)".into());
    }
    let tools = [
        "ip", "nft", "unshare", "nsenter", "setpriv", "timeout", "mount",
    ];
    let missing: Vec<&str> = tools
        .into_iter()
        .filter(|t| !run_any(&["sh", "-c", &format!("command -v {t}")]).is_ok_and(|r| r.0))
        .collect();
    (!missing.is_empty()).then(|| format!("commands are missing: {}", missing.join(", ")))
}

/// Removes what labs left that were killed.
///
/// # Errors
/// The directory of temporary files cannot be read.
pub fn clear_leftovers() -> Result<()> {
    let tmp = std::env::temp_dir();
    for entry in std::fs::read_dir(&tmp).map_err(file(&tmp))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let Ok(lock) = File::open(entry.path().join("lock")) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            eprintln!("removing what lab {id} left");
            remove(id, &entry.path());
        }
    }
    Ok(())
}

fn remove(id: &str, dir: &Path) {
    for name in namespaces(id) {
        ip_quietly(&["netns", "del", &name]);
    }
    if let Err(e) = std::fs::remove_dir_all(dir) {
        eprintln!("{}: {e}", dir.display());
    }
}

/// The namespaces of a lab that are there.
fn namespaces(id: &str) -> Vec<String> {
    let (_, listed, _) = run_any(&["ip", "netns", "list"]).unwrap_or_default();
    let names = listed.lines().filter_map(|l| l.split(' ').next());
    let prefix = netns_of(id, "");
    let ours = names.filter(|n| n.starts_with(&prefix));
    ours.map(str::to_owned).collect()
}

impl Lab {
    /// Makes the network and the hosts, switched on, with a configuration from `trivet init` and
    /// empty pools.
    ///
    /// # Errors
    /// What this machine cannot do.
    pub fn new(common: &Common) -> Result<Lab> {
        if let Some(why) = lacks() {
            return Err(LabError::Unable(why));
        }
        clear_leftovers()?;
        let trivet = &common.trivet;
        let trivet = trivet.canonicalize().map_err(file(trivet))?;
        let id = std::process::id().to_string();
        let dir = std::env::temp_dir().join(format!("{PREFIX}{id}"));
        std::fs::create_dir(&dir).map_err(file(&dir))?;
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(file(&path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| file(&path)(e.into()))?;
        let mut lab = Lab {
            id,
            dir,
            _lock: lock,
            hosts: Vec::new(),
            trivet,
            witness: common.witness,
            keep: common.keep,
        };
        lab.network()?;
        lab.configure()?;
        for n in 1..=3 {
            let name = format!("n{n}");
            let netns = netns_of(&lab.id, &name);
            let host = Host::new(&name, &netns, &lab.dir, &lab.trivet, &lab.config())?;
            lab.hosts.push(host);
            lab.host(&name)?.power_on()?;
        }
        Ok(lab)
    }

    fn network(&self) -> Result<()> {
        let switch = self.netns("sw");
        run(&["ip", "netns", "add", &switch])?;
        let sw = |words: &[&str]| run(&[&["ip", "-n", &switch], words].concat());
        sw(&["link", "add", "br0", "type", "bridge"])?;
        sw(&["link", "set", "br0", "up"])?;
        for (name, last, bridge) in [
            ("n1", 11, true),
            ("n2", 12, true),
            ("n3", 13, true),
            ("c1", 21, false),
        ] {
            let netns = self.netns(name);
            run(&["ip", "netns", "add", &netns])?;
            let peer = ["peer", "name", "eth0", "netns", &netns];
            sw(&[&["link", "add", name, "type", "veth"], &peer[..]].concat())?;
            sw(&["link", "set", name, "master", "br0", "up"])?;
            let inside = |words: &[&str]| run(&[&["ip", "-n", &netns], words].concat());
            inside(&["link", "set", "lo", "up"])?;
            inside(&["link", "set", "eth0", "up"])?;
            let mut dev = "eth0";
            if bridge {
                inside(&["link", "add", "vmbr0", "type", "bridge"])?;
                inside(&["link", "set", "eth0", "master", "vmbr0"])?;
                inside(&["link", "set", "vmbr0", "up"])?;
                dev = "vmbr0";
            }
            inside(&["addr", "add", &format!("{NETWORK}.{last}/24"), "dev", dev])?;
        }
        let nft = ["ip", "netns", "exec", &switch, "nft"];
        run(&[&nft[..], &["add", "table", "bridge", "cuts"]].concat())?;
        let chain = "{ type filter hook forward priority 0; }";
        run(&[
            &nft[..],
            &["add", "chain", "bridge", "cuts", "forward", chain],
        ]
        .concat())?;
        Ok(())
    }

    fn configure(&self) -> Result<()> {
        let out = self.dir.join("cfg").display().to_string();
        let trivet = self.trivet.display().to_string();
        let mut words = vec![trivet, "init".into(), "--out".into(), out];
        for n in 1..=3 {
            let role = match self.witness && n == 3 {
                true => "--witness",
                false => "--node",
            };
            words.extend([role.into(), format!("n{n}={NETWORK}.1{n}")]);
        }
        words.extend(["--pool".into(), crate::host::POOL.into()]);
        words.extend(["--service".into(), format!("{SERVICE}/24")]);
        words.extend(["--volume".into(), VOLUME.into()]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run(&words).map(drop)
    }

    /// The cluster's configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("cfg/trivet.toml")
    }

    /// The hosts that can be active.
    pub fn exporters(&self) -> Vec<String> {
        let able = |h: &&Host| !(self.witness && h.name == "n3");
        self.hosts
            .iter()
            .filter(able)
            .map(|h| h.name.clone())
            .collect()
    }

    fn netns(&self, name: &str) -> String {
        netns_of(&self.id, name)
    }

    /// The network namespace of a host, or of the client `c1`, as a file.
    pub fn netns_file(&self, name: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(self.netns(name))
    }

    /// The host of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn host(&mut self, name: &str) -> Result<&mut Host> {
        let found = self.hosts.iter_mut().find(|h| h.name == name);
        found.ok_or_else(|| LabError::Unable(format!("there is no host {name}")))
    }

    /// Runs `trivet` with these words at the client, as an operator would with a key of a node's.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn at_client(&self, words: &[&str]) -> Result<(bool, String, String)> {
        let config = format!("TRIVET_CONFIG={}", self.config().display());
        let key = format!("TRIVET_KEY={}", self.dir.join("cfg/n1.key").display());
        let (netns, trivet) = (self.netns("c1"), self.trivet.display().to_string());
        let begin = ["ip", "netns", "exec", &netns, "env", &config, &key, &trivet];
        run_any(&[&begin[..], words].concat())
    }

    // --- faults of the network ----------------------------------------------------------------

    /// Pulls a host's cable, or plugs it in.
    ///
    /// # Errors
    /// iproute2 fails.
    pub fn cable(&self, name: &str, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        run(&["ip", "-n", &self.netns("sw"), "link", "set", name, state]).map(drop)
    }

    /// The switch loses every frame from a host, or to it, while all links look well.
    ///
    /// # Errors
    /// nft fails.
    pub fn lose(&self, name: &str, from: bool) -> Result<()> {
        let side = if from { "iifname" } else { "oifname" };
        let rule = [
            "add", "rule", "bridge", "cuts", "forward", side, name, "drop",
        ];
        self.nft(&rule)
    }

    /// The switch loses nothing any more.
    ///
    /// # Errors
    /// nft fails.
    pub fn lose_nothing(&self) -> Result<()> {
        self.nft(&["flush", "chain", "bridge", "cuts", "forward"])
    }

    fn nft(&self, words: &[&str]) -> Result<()> {
        let netns = self.netns("sw");
        run(&[&["ip", "netns", "exec", &netns, "nft"], words].concat()).map(drop)
    }

    // --- the end ------------------------------------------------------------------------------

    /// Removes everything; what is left after that, in words.
    pub fn remove(mut self) -> Vec<String> {
        let (id, dir) = (self.id.clone(), self.dir.clone());
        self.tear_down();
        let keep = self.keep;
        drop(self);
        let mut left: Vec<String> = namespaces(&id);
        left.extend(processes_of(&dir));
        left.extend(mounts_of(&dir));
        let here = dir.display().to_string();
        if !keep && dir.exists() {
            left.push(here);
        }
        left
    }

    fn tear_down(&mut self) {
        for h in &mut self.hosts {
            if let Err(e) = h.power_off() {
                eprintln!("{}: {e}", h.name);
            }
            if let Err(e) = h.disk.end() {
                eprintln!("{e}");
            }
        }
        self.hosts.clear();
        for name in namespaces(&self.id) {
            ip_quietly(&["netns", "del", &name]);
        }
        if self.keep {
            eprintln!("logs are in {}", self.dir.display());
        } else if self.dir.exists()
            && let Err(e) = std::fs::remove_dir_all(&self.dir)
        {
            eprintln!("{}: {e}", self.dir.display());
        }
    }
}

/// Mounts below this directory that any process sees, in whatever namespace.
fn mounts_of(dir: &Path) -> BTreeSet<String> {
    let here = dir.display().to_string();
    let mut left = BTreeSet::new();
    for p in crate::sys::processes() {
        // One that has just ended sees nothing any more.
        let table = std::fs::read_to_string(format!("/proc/{}/mounts", p.pid)).unwrap_or_default();
        left.extend(
            table
                .lines()
                .filter(|m| m.contains(&here))
                .map(str::to_owned),
        );
    }
    left
}

/// Processes that name this directory in their command lines.
fn processes_of(dir: &Path) -> BTreeSet<String> {
    let wanted = dir.display().to_string();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let named = |p: crate::sys::Process| {
        let raw = std::fs::read(format!("/proc/{}/cmdline", p.pid)).ok()?;
        let words = String::from_utf8_lossy(&raw).replace('\0', " ");
        (words.contains(&wanted) && p.pid != own).then(|| format!("{} {words}", p.pid))
    };
    crate::sys::processes()
        .into_iter()
        .filter_map(named)
        .collect()
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.hosts.is_empty() || self.dir.exists() && !self.keep {
            self.tear_down();
        }
    }
}
