//! `trivet init --adopt`: the volume of a `trivet up` becomes one of a cluster.
//!
//! The first host keeps all three regions at first, each under a node of its own, because a node
//! keeps one member of a volume: the host's node the first, two lodgers the others. Replicas then
//! move from the lodgers to the other hosts while the volume is served, and the lodgers go.

use std::net::SocketAddr;
use std::path::Path;

use trivet_cluster::Adoptable;
use trivet_cluster::ClusterError;
use trivet_node::config::{Config, NodeConfig, Role};

use super::Written;
use crate::error::CliError;

/// Appended to the first node's name for the other two regions.
const LODGERS: [&str; 2] = ["-b", "-c"];

pub fn failed(e: &ClusterError) -> CliError {
    CliError::failed(e).hint("`trivet up` must have ended, and its volume must be whole")
}

/// What there is to take over.
pub fn look(dir: &Path) -> Result<Adoptable, CliError> {
    Adoptable::look(dir).map_err(|e| {
        CliError::failed(e).hint("give the directory of `trivet up`, var/trivet unless told so")
    })
}

/// The names of the nodes that keep the three regions.
pub fn names(config: &Config) -> Vec<String> {
    let first = config.nodes.first().map_or("", |n| n.name.as_str());
    let lodgers = LODGERS.iter().map(|l| format!("{first}{l}"));
    [first.to_owned()].into_iter().chain(lodgers).collect()
}

/// Puts the volume's identity, its regions and the lodgers into a configuration.
pub fn into_config(adopted: &Adoptable, config: &mut Config) -> Result<(), CliError> {
    if config.nodes.len() != 3 {
        return Err(
            CliError::usage("a volume of three replicas is taken over by three hosts")
                .hint("give --node three times, the host of the regions first"),
        );
    }
    for volume in &mut config.volumes {
        volume.id = adopted.volume;
    }
    let names = names(config);
    let Some(first) = config.nodes.first_mut() else {
        return Ok(());
    };
    let mut lodgers = Vec::new();
    for (n, (name, (_, pool))) in names.iter().zip(&adopted.replicas).enumerate() {
        let pools = [("main".to_owned(), pool.clone())].into();
        if n == 0 {
            first.pools = pools;
            continue;
        }
        let beside = |a: &SocketAddr| {
            let port = u16::try_from(n).ok().and_then(|n| a.port().checked_add(n));
            port.map(|port| SocketAddr::new(a.ip(), port))
        };
        let addresses: Option<Vec<_>> = first.addresses.iter().map(beside).collect();
        lodgers.push(NodeConfig {
            name: name.clone(),
            addresses: addresses.ok_or_else(|| {
                CliError::usage("the two ports after the first node's are needed, too")
            })?,
            roles: [Role::Replica].into(),
            pools,
            key: None,
            metrics: None,
        });
    }
    config.nodes.splice(1..1, lodgers);
    Ok(())
}

/// What to do next.
pub fn text(w: &Written) -> String {
    let mut out = format!(
        "{} describes the cluster; the volume of `trivet up` is {} in it. Next:\n",
        w.config.display(),
        w.volume
    );
    let name = |key: &Path| {
        key.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let mut hosts = Vec::new();
    for key in &w.keys {
        let node = name(key);
        let key = key.display();
        if w.lodgers.contains(&node) {
            out.push_str(&format!(
                "  on the same host: `trivet serve --node {node} --key {key} --state \
                 /var/lib/trivet-{node}`, until its replica has moved\n"
            ));
            continue;
        }
        let pool = match hosts.is_empty() {
            true => String::new(),
            false => format!("`trivet pool create {}` and ", w.pool.display()),
        };
        out.push_str(&format!(
            "  on {node}: the file as /etc/trivet/trivet.toml, {key} as /etc/trivet/node.key (mode \
             600, and nowhere else), then {pool}`trivet serve --node {node}`\n"
        ));
        hosts.push(node);
    }
    out.push_str("  then, while it is served, on any of them:\n");
    for (lodger, host) in w.lodgers.iter().zip(hosts.iter().skip(1)) {
        out.push_str(&format!(
            "    trivet replica move {} {host} --from {lodger} --yes --wait\n",
            w.volume
        ));
    }
    out.push_str(&format!(
        "  and, when both have moved: end the daemons of {0}, and take their [[node]] out of the \
         file\n",
        w.lodgers.join(" and ")
    ));
    out
}
