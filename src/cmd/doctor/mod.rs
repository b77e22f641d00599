//! `trivet doctor`: what is wrong here, and what to do about it. It looks, and changes nothing;
//! what it writes is a file of 256 KiB in each pool of this machine, which it removes again.
//!
//! Each file has one subject: a function that looks, and pure ones that judge what was seen. It is
//! of use without a daemon, too: what cannot be asked is said once, the rest is looked at.
//!
//! Exit code 0: all is well; 1: a warning; 2: something is bad.
//!
//! Bounded: each check by [`PATIENCE`]. One that takes longer (a disk or a mount that hangs) is
//! left behind on its thread, and is a finding.

mod cluster;
mod config;
mod disk;
mod export;
mod finding;
mod mounts;
mod network;
mod ports;
mod process;
mod proxmox;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use trivet_node::Config;
use trivet_node::messages::ClusterReport;

use self::cluster::Asked;
use self::finding::{Finding, Level};
use super::cluster::{Cluster, ClusterArgs};
use super::serve::host_name;
use crate::error::{CliError, Exit};
use crate::output::{self, Format};

/// One check takes at most this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Of what.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Name of this node in the configuration [default: the host's name, or whose address is here]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Look also at what Proxmox VE has: storage entries, containers, mounts
    #[arg(long)]
    pub proxmox: bool,
    /// Where Proxmox keeps its configuration
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/pve",
        requires = "proxmox"
    )]
    pub pve: PathBuf,
}

/// What all checks have in common.
pub struct Seen {
    /// The configuration, if it can be read.
    pub config: Option<Config>,
    /// The nodes' answers, in the order of the configuration.
    pub asked: Vec<Asked>,
    /// The nodes of the configuration that are this machine.
    pub here: Vec<String>,
}

impl Seen {
    /// All that the first node that answered has heard.
    pub fn report(&self) -> Option<&ClusterReport> {
        self.asked.iter().find_map(|a| a.said.as_ref().ok())
    }

    /// The configuration of the nodes that are this machine.
    pub fn own(&self) -> impl Iterator<Item = &trivet_node::config::NodeConfig> {
        let nodes = self.config.iter().flat_map(|c| &c.nodes);
        nodes.filter(|n| self.here.contains(&n.name))
    }
}

/// The result.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// Of this program.
    pub version: &'static str,
    /// The nodes of the configuration that are this machine.
    pub nodes: Vec<String>,
    /// The worst level.
    pub worst: Level,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
}

/// Looks, and says.
///
/// # Errors
/// Without a message, what the exit code says.
pub fn run(args: &DoctorArgs, format: Format) -> Result<(), CliError> {
    let found = diagnose(args);
    output::print(format, &found, text)?;
    match found.worst {
        Level::Ok => Ok(()),
        Level::Warn => Err(CliError::quiet(Exit::Failed)),
        Level::Bad => Err(CliError::quiet(Exit::Usage)),
    }
}

/// Looks.
pub fn diagnose(args: &DoctorArgs) -> Diagnosis {
    let mut findings = Vec::new();
    let config = config::look(&args.cluster, &mut findings);
    let cluster = config.as_ref().and_then(|_| {
        let opened = args.cluster.open();
        opened.map_err(|e| findings.push(config::no_key(&e))).ok()
    });
    let asked = cluster.as_ref().map_or(Vec::new(), cluster::ask_all);
    let here = own_nodes(args.node.as_deref(), config.as_ref());
    findings.extend(config::same(config.as_ref(), &asked));
    if let Some(config) = &config
        && here.is_empty()
    {
        findings.push(config::nobody_here(args.node.as_deref(), config));
    }
    let seen = Arc::new(Seen {
        config,
        asked,
        here,
    });
    findings.extend(all_checks(&seen, cluster, args));
    let worst = findings.iter().map(|f| f.level).max().unwrap_or(Level::Ok);
    Diagnosis {
        version: env!("CARGO_PKG_VERSION"),
        nodes: seen.here.clone(),
        worst,
        findings,
    }
}

/// Of the lines of `/proc/mounts` those of the cluster's exports, and of our own FUSE mounts.
pub fn own_mounts(config: Option<&Config>, text: &str) -> String {
    let addresses = mounts::addresses(config);
    let ours = |line: &&str| {
        let all = mounts::parse(line);
        all.iter()
            .any(|m| mounts::is_ours(m, &addresses) || m.kind.starts_with("fuse.trivet"))
    };
    let lines = text.lines().filter(ours);
    lines.map(|l| format!("{l}\n")).collect()
}

fn all_checks(
    seen: &Arc<Seen>,
    cluster: Option<Cluster>,
    args: &DoctorArgs,
) -> impl Iterator<Item = Finding> {
    let of = |f: fn(&Seen) -> Vec<Finding>| {
        let seen = seen.clone();
        move || f(&seen)
    };
    let mut running = vec![
        start("cluster", of(cluster::judge)),
        start("network", of(network::look)),
        start("ports", of(ports::look)),
        start("export", of(export::look)),
        start("mounts", of(mounts::look)),
        start("process", of(process::look)),
    ];
    if let Some(cluster) = cluster {
        let seen = seen.clone();
        running.push(start("clock", move || cluster::clocks(&cluster, &seen)));
    }
    if args.proxmox {
        let (seen, pve) = (seen.clone(), args.pve.clone());
        running.push(start("proxmox", move || proxmox::look(&seen, &pve)));
    }
    let mut findings: Vec<Finding> = running.into_iter().flat_map(Running::end).collect();
    // After the others, which would be in its way; one pool after another, for the same reason.
    for (node, pool, dir) in disk::pools(seen) {
        let check = start("disk", move || disk::look(&node, &pool, &dir));
        findings.extend(check.end());
    }
    findings.into_iter()
}

/// A check on a thread of its own.
struct Running {
    name: &'static str,
    began: Instant,
    result: Receiver<Vec<Finding>>,
}

fn start(name: &'static str, check: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Running {
    let (tell, result) = channel();
    let began = Instant::now();
    // If it cannot be started nobody tells, which the end sees. Not joined: what hangs in the
    // kernel cannot be ended.
    let _ = thread::Builder::new().name(name.into()).spawn(move || {
        let _ = tell.send(check());
    });
    Running {
        name,
        began,
        result,
    }
}

impl Running {
    fn end(self) -> Vec<Finding> {
        let left = PATIENCE.saturating_sub(self.began.elapsed());
        match self.result.recv_timeout(left) {
            Ok(findings) => findings,
            Err(mpsc::RecvTimeoutError::Timeout) => vec![Finding::bad(
                self.name,
                format!("no result within {} s", PATIENCE.as_secs()),
                "a disk or a mount hangs: `dmesg | tail`, and `ps axo pid,stat,wchan,cmd | grep ' D'`",
            )],
            Err(mpsc::RecvTimeoutError::Disconnected) => vec![Finding::bad(
                self.name,
                "this check could not be made",
                "see the message above; the other checks are not touched by it",
            )],
        }
    }
}

/// Which nodes this machine is: as was said, by its name, or by its addresses.
fn own_nodes(said: Option<&str>, config: Option<&Config>) -> Vec<String> {
    let Some(config) = config else {
        return Vec::new();
    };
    let host = host_name();
    if let Some(node) = config.node(said.unwrap_or(&host)) {
        return vec![node.name.clone()];
    }
    if said.is_some() {
        return Vec::new();
    }
    let here = |n: &&trivet_node::config::NodeConfig| {
        let mut addresses = n.addresses.iter();
        addresses.any(|a| trivet_node::host::interface(a.ip()).is_some())
    };
    let own = config.nodes.iter().filter(here);
    own.map(|n| n.name.clone()).collect()
}

fn text(d: &Diagnosis) -> String {
    let mut out = String::new();
    for f in &d.findings {
        out.push_str(&format!(
            "{:<4}  {:<8}  {}\n",
            f.level.word(),
            f.check,
            f.what
        ));
        if let Some(remedy) = &f.remedy {
            out.push_str(&format!("{:16}-> {remedy}\n", ""));
        }
    }
    let of = |level| d.findings.iter().filter(|f| f.level == level).count();
    out.push_str(&format!(
        "{} bad, {} warnings, {} ok\n",
        of(Level::Bad),
        of(Level::Warn),
        of(Level::Ok)
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_stands_beneath_what_it_is_for() {
        let findings = vec![
            Finding::ok("clock", "clocks agree"),
            Finding::bad("disk", "pool main is full", "make room"),
        ];
        let d = Diagnosis {
            version: "1",
            nodes: Vec::new(),
            worst: Level::Bad,
            findings,
        };
        assert_eq!(
            text(&d),
            "ok    clock     clocks agree\n\
             BAD   disk      pool main is full\n                -> make room\n\
             1 bad, 0 warnings, 1 ok\n"
        );
    }

    #[test]
    fn a_check_that_panics_or_hangs_is_a_finding() {
        let dead = start("disk", || std::panic::resume_unwind(Box::new(())));
        assert_eq!(dead.end()[0].level, Level::Bad);
        let hung = Running {
            name: "disk",
            // Its time is over.
            began: Instant::now().checked_sub(PATIENCE).unwrap(),
            ..start("disk", || {
                std::thread::park_timeout(Duration::from_secs(60));
                Vec::new()
            })
        };
        assert!(hung.end()[0].what.contains("no result"));
    }
}
