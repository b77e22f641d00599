//! `trivet init`: writes the configuration of a cluster and a key for each of its nodes.

mod adopt;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use trivet_node::config::{
    Config, Driver, ExportConfig, Net, NodeConfig, Role, ServiceConfig, VolumeConfig,
};
use trivet_protocol::VolumeId;
use trivet_transport::Identity;

use super::cluster::failed;
use crate::error::CliError;
use crate::output::{self, Format};

/// Port of the daemons.
const PORT: u16 = 7100;

/// Which hosts, and what for.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Name of the cluster
    #[arg(long, default_value = "trivet")]
    cluster: String,
    /// A host that keeps replicas and can be active: name and address, with the replication
    /// network's first if it has several; repeatable
    #[arg(long = "node", value_name = "NAME=ADDR[,ADDR]", required = true)]
    nodes: Vec<String>,
    /// A host that only votes, as the third of two
    #[arg(long, value_name = "NAME=ADDR[,ADDR]")]
    witness: Option<String>,
    /// A container that a cluster manager starts where the volume is to be active (`--driver
    /// external`): it exports and keeps nothing, and the hosts keep replicas alone
    #[arg(long, value_name = "NAME=ADDR[,ADDR]", conflicts_with_all = ["service", "adopt"])]
    exporter: Option<String>,
    /// Take over the volume that `trivet up` has made in this directory, on the first of three
    /// hosts; `trivet up` must have ended
    #[arg(long, value_name = "DIR", conflicts_with = "witness")]
    adopt: Option<PathBuf>,
    /// The pool's directory, on each host
    #[arg(long, value_name = "DIR", default_value = "/var/lib/trivet/pool")]
    pool: PathBuf,
    /// Name of the first volume, and of its export
    #[arg(long, default_value = "vms")]
    volume: String,
    /// The address that clients mount, with its network's prefix length
    #[arg(long, value_name = "ADDR/LEN")]
    service: Option<Net>,
    /// The bridge on each host that the service address joins
    #[arg(long, default_value = "vmbr0")]
    bridge: String,
    /// Who may mount: an address or network [default: the service address's network]
    #[arg(long, value_name = "CIDR")]
    allow: Vec<String>,
    /// Who decides which node is active
    #[arg(long, value_enum, default_value_t = DriverArg::Automatic)]
    driver: DriverArg,
    /// Where to write the configuration and the keys; it must not hold any yet
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DriverArg {
    Manual,
    External,
    Automatic,
}

#[derive(Debug, Serialize)]
struct Written {
    config: PathBuf,
    keys: Vec<PathBuf>,
    pool: PathBuf,
    volume: String,
    /// The node that is a container, if one is.
    exporter: Option<String>,
    /// Nodes on the first host that keep the other two regions until they have moved.
    lodgers: Vec<String>,
}

/// Writes it.
///
/// # Errors
/// An argument makes no sense, or something is there already.
pub fn run(args: &InitArgs, format: Format) -> Result<(), CliError> {
    if args.exporter.is_some() && args.driver != DriverArg::External {
        return Err(
            CliError::usage("an exporter is active where a cluster manager starts it")
                .hint("add --driver external, or leave --exporter out"),
        );
    }
    let file = args.out.join("trivet.toml");
    if file.exists() {
        return Err(
            CliError::failed(format_args!("{} exists already", file.display()))
                .hint("choose another --out, or edit that file"),
        );
    }
    std::fs::create_dir_all(&args.out)
        .map_err(|e| CliError::failed(format_args!("{}: {e}", args.out.display())))?;
    let adopted = args.adopt.as_deref().map(adopt::look).transpose()?;
    let mut config = Config {
        cluster: args.cluster.clone(),
        notify: None,
        evict_after: None,
        nodes: Vec::new(),
        operators: Vec::new(),
        volumes: vec![volume(args)?],
    };
    for (given, roles) in given(args) {
        config.nodes.push(node(given, roles, args)?);
    }
    if let Some(adopted) = &adopted {
        adopt::into_config(adopted, &mut config)?;
    }
    config
        .check()
        .map_err(|why| CliError::usage(format_args!("these arguments make no cluster: {why}")))?;
    let lodgers: Vec<String> = match &adopted {
        Some(adopted) => {
            let names = adopt::names(&config);
            adopted.rename(&names).map_err(|e| adopt::failed(&e))?;
            names.into_iter().skip(1).collect()
        }
        None => Vec::new(),
    };
    let mut keys = Vec::new();
    for n in &mut config.nodes {
        let path = args.out.join(format!("{}.key", n.name));
        let identity = Identity::generate().map_err(CliError::failed)?;
        identity.save_new(&path).map_err(CliError::failed)?;
        n.key = Some(identity.public());
        keys.push(path);
    }
    config.save(&file).map_err(|e| failed(&e))?;
    if let Some(adopted) = &adopted {
        adopted.finish().map_err(|e| adopt::failed(&e))?;
    }
    let written = Written {
        config: file,
        keys,
        pool: args.pool.clone(),
        volume: args.volume.clone(),
        exporter: config.nodes.iter().find_map(only_exports),
        lodgers,
    };
    match adopted {
        Some(_) => output::print(format, &written, adopt::text),
        None => output::print(format, &written, text),
    }
}

fn given(args: &InitArgs) -> Vec<(&String, BTreeSet<Role>)> {
    let host: BTreeSet<Role> = match args.exporter {
        Some(_) => [Role::Replica].into(),
        None => [Role::Replica, Role::Exporter].into(),
    };
    let data = args.nodes.iter();
    let mut all: Vec<_> = data.map(|n| (n, host.clone())).collect();
    if let Some(w) = &args.witness {
        all.push((w, [Role::Witness].into()));
    }
    if let Some(e) = &args.exporter {
        all.push((e, [Role::Exporter].into()));
    }
    all
}

/// Its name, if it keeps nothing.
fn only_exports(node: &NodeConfig) -> Option<String> {
    node.pools.is_empty().then(|| node.name.clone())
}

fn node(given: &str, roles: BTreeSet<Role>, args: &InitArgs) -> Result<NodeConfig, CliError> {
    let wrong = || {
        CliError::usage(format_args!("{given:?} is not NAME=ADDRESS"))
            .hint("write it as pve1=10.0.0.1, or pve1=10.0.0.1:7100,192.168.0.1")
    };
    let (name, addresses) = given.split_once('=').ok_or_else(wrong)?;
    let address = |a: &str| -> Option<SocketAddr> {
        let with_port = a.parse().ok();
        with_port.or_else(|| Some(SocketAddr::new(a.parse::<IpAddr>().ok()?, PORT)))
    };
    let addresses: Option<Vec<_>> = addresses.split(',').map(address).collect();
    let pool = std::path::absolute(&args.pool)
        .map_err(|e| CliError::failed(format_args!("{}: {e}", args.pool.display())))?;
    let pools = match roles.iter().all(|r| *r == Role::Exporter) {
        true => BTreeMap::new(),
        false => BTreeMap::from([("main".to_owned(), pool)]),
    };
    Ok(NodeConfig {
        name: name.to_owned(),
        addresses: addresses.ok_or_else(wrong)?,
        pools,
        roles,
        key: None,
        metrics: None,
    })
}

fn volume(args: &InitArgs) -> Result<VolumeConfig, CliError> {
    let service = args.service.map(|address| ServiceConfig {
        address,
        bridge: args.bridge.clone(),
        gateway: None,
    });
    let mut clients = args.allow.clone();
    if clients.is_empty() {
        let net = args.service.map(|s| s.to_string()).ok_or_else(|| {
            CliError::usage("nobody is allowed to mount")
                .hint("give --service, or --allow for whom it shall be")
        })?;
        clients.push(net);
    }
    let options = |c: String| match c.contains('(') {
        true => c,
        false => format!("{c}(rw,no_root_squash)"),
    };
    Ok(VolumeConfig {
        name: args.volume.clone(),
        id: VolumeId::random(),
        driver: match args.driver {
            DriverArg::Manual => Driver::Manual,
            DriverArg::External => Driver::External,
            DriverArg::Automatic => Driver::Automatic,
        },
        prefer: Vec::new(),
        port: 2049,
        mount: None,
        resync_mib: None,
        service,
        exports: vec![ExportConfig {
            name: format!("/{}", args.volume),
            directory: "/".into(),
            clients: clients.into_iter().map(options).collect(),
        }],
    })
}

fn text(w: &Written) -> String {
    let mut out = format!("{} describes the cluster; next:\n", w.config.display());
    for key in &w.keys {
        let node = key.file_stem().unwrap_or_default().to_string_lossy();
        if w.exporter.as_deref() == Some(&*node) {
            out.push_str(&format!(
                "  for the container {node}, on each host: the file as \
                 /etc/trivet/ct-VMID/trivet.toml, {} as /etc/trivet/ct-VMID/node.key\n",
                key.display()
            ));
            continue;
        }
        out.push_str(&format!(
            "  on {node}: the file as /etc/trivet/trivet.toml, {} as /etc/trivet/node.key (mode \
             600, and nowhere else), then `trivet pool create {}` and `trivet serve --node \
             {node}`\n",
            key.display(),
            w.pool.display()
        ));
    }
    out.push_str(&match w.exporter {
        Some(_) => format!(
            "  then, on any host: trivet volume create {} --size 1T; and start the container\n",
            w.volume
        ),
        None => format!(
            "  then, on any of them: trivet volume create {0} --size 1T && trivet promote {0}\n",
            w.volume
        ),
    });
    out
}
