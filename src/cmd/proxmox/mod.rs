//! `trivet proxmox`: what Proxmox VE is to be told, printed out of the cluster's configuration, and
//! the root of a container that exports.

mod root;

use std::fmt::Write;
use std::net::IpAddr;

use clap::{Args, Subcommand};
use serde::Serialize;
use trivet_node::Config;
use trivet_node::config::{Role, VolumeConfig};

use super::cluster::{ClusterArgs, failed};
use crate::error::CliError;
use crate::output::{self, Format};

/// What is asked for.
#[derive(Debug, Subcommand)]
pub enum ProxmoxCmd {
    /// The storage entry of a volume's export: the command that adds it, and its text
    Storage(StorageArgs),
    /// The read-only root of the container that exports, made in a directory
    ContainerRoot(root::RootArgs),
}

/// Of which volume.
#[derive(Debug, Args)]
pub struct StorageArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume
    volume: String,
    /// Name of the storage in Proxmox [default: the volume's name]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// The export, where the volume has several [default: the first]
    #[arg(long, value_name = "NAME")]
    export: Option<String>,
}

/// How it is to be mounted, and why so.
const OPTIONS: &[(&str, &str)] = &[
    (
        "vers=3",
        "what Trivet speaks; Proxmox then asks showmount whether the storage is online",
    ),
    (
        "proto=tcp",
        "the only one that NFS itself is served over; spares a try",
    ),
    (
        "hard",
        "guests wait through a takeover; with soft they would get I/O errors",
    ),
];

/// What may lie on it: everything that Proxmox keeps in files.
const CONTENT: &str = "images,rootdir,iso,vztmpl,backup,snippets";

#[derive(Debug, PartialEq, Serialize)]
struct Storage {
    id: String,
    server: IpAddr,
    export: String,
    content: String,
    options: String,
    command: String,
    storage_cfg: String,
}

/// Prints or makes it.
///
/// # Errors
/// The configuration has no such volume or export, or nothing that Proxmox could mount it from.
pub fn run(cmd: &ProxmoxCmd, format: Format) -> Result<(), CliError> {
    let args = match cmd {
        ProxmoxCmd::Storage(args) => args,
        ProxmoxCmd::ContainerRoot(args) => return root::run(args, format),
    };
    let config = Config::load(&args.cluster.config).map_err(|e| failed(&e))?;
    output::print(format, &storage(&config, args)?, text)
}

fn storage(config: &Config, args: &StorageArgs) -> Result<Storage, CliError> {
    let volume = config.volume(&args.volume).ok_or_else(|| {
        let all: Vec<&str> = config.volumes.iter().map(|v| v.name.as_str()).collect();
        CliError::failed(format_args!(
            "the configuration names no volume {}",
            args.volume
        ))
        .hint(format_args!("those that it names: {}", all.join(", ")))
    })?;
    let wanted = |name: &str| args.export.as_deref().is_none_or(|w| w == name);
    let export = volume.exports.iter().find(|e| wanted(&e.name));
    let export = export.ok_or_else(|| {
        CliError::failed(format_args!("volume {} has no such export", volume.name))
            .hint("give it an [[volume.export]] on all nodes, or name another one")
    })?;
    if volume.port != 2049 {
        return Err(CliError::failed(format_args!(
            "volume {} is exported on port {}, and Proxmox mounts from 2049 alone",
            volume.name, volume.port
        ))
        .hint("leave `port` out"));
    }
    let id = args.id.clone().unwrap_or_else(|| volume.name.clone());
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let letter = id.starts_with(|c: char| c.is_ascii_alphabetic());
    let ends = id.ends_with(|c: char| c.is_ascii_alphanumeric());
    if id.len() < 2 || !letter || !ends || !id.chars().all(legal) {
        return Err(
            CliError::usage(format_args!("{id:?} cannot be a storage's name in Proxmox"))
                .hint("letters, digits, `-`, `_`, `.`, a letter first: --id NAME"),
        );
    }
    let server = server(config, volume)?;
    let options: Vec<&str> = OPTIONS.iter().map(|(o, _)| *o).collect();
    let options = options.join(",");
    let path = &export.name;
    Ok(Storage {
        command: format!(
            "pvesm add nfs {id} --server {server} --export {path} --content {CONTENT} \
             --options {options}"
        ),
        storage_cfg: format!(
            "nfs: {id}\n\tpath /mnt/pve/{id}\n\tserver {server}\n\texport {path}\n\tcontent \
             {CONTENT}\n\toptions {options}\n"
        ),
        id,
        server,
        export: path.clone(),
        content: CONTENT.into(),
        options,
    })
}

/// The address that follows the active node: Trivet's, or that of the one container that moves.
fn server(config: &Config, volume: &VolumeConfig) -> Result<IpAddr, CliError> {
    if let Some(service) = &volume.service {
        return Ok(service.address.ip);
    }
    let mut exporters = config.nodes.iter().filter(|n| n.is(Role::Exporter));
    match (exporters.next(), exporters.next()) {
        (Some(only), None) if !only.is(Role::Replica) => only.addresses.first().map(|a| a.ip()),
        _ => None,
    }
    .ok_or_else(|| {
        CliError::failed(format_args!(
            "volume {} has no address that follows the active node",
            volume.name
        ))
        .hint("give it a [volume.service], or one node with only the role exporter")
    })
}

fn text(s: &Storage) -> String {
    let mut out = format!(
        "On any host of the Proxmox cluster:\n\n  {}\n\nor as text in /etc/pve/storage.cfg:\n\n{}\n",
        s.command, s.storage_cfg
    );
    for (option, why) in OPTIONS {
        // Writing into a string cannot fail.
        let _ = writeln!(out, "  {option:<10} {why}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str = r#"
cluster = "t"
[[node]]
name = "a"
addresses = ["127.0.0.1:7100"]
roles = ["replica"]
pools = { main = "/p" }
[[node]]
name = "ct"
addresses = ["127.0.0.9:7100"]
roles = ["exporter"]
"#;
    const VOLUME: &str = r#"
[[volume]]
name = "vms"
id = "6450c8c8-c93f-41fe-a0cc-69e263802150"
driver = "external"
[[volume.export]]
name = "/vms"
clients = ["127.0.0.1"]
"#;
    const SERVICE: &str = "[volume.service]\naddress = \"10.0.0.10/24\"\nbridge = \"vmbr0\"\n";

    fn of(text: &str, id: Option<&str>) -> Result<Storage, CliError> {
        let args = StorageArgs {
            cluster: ClusterArgs {
                config: "".into(),
                key: "".into(),
            },
            volume: "vms".into(),
            id: id.map(str::to_owned),
            export: None,
        };
        storage(&Config::parse(text).unwrap(), &args)
    }

    #[test]
    fn the_address_is_the_service_or_the_container() {
        let moved = of(&format!("{HOSTS}{VOLUME}"), None).unwrap();
        assert_eq!(moved.server.to_string(), "127.0.0.9");
        let own = of(&format!("{HOSTS}{VOLUME}{SERVICE}"), Some("share")).unwrap();
        assert_eq!(
            own.command,
            "pvesm add nfs share --server 10.0.0.10 --export /vms --content \
             images,rootdir,iso,vztmpl,backup,snippets --options vers=3,proto=tcp,hard"
        );
        assert!(
            own.storage_cfg
                .starts_with("nfs: share\n\tpath /mnt/pve/share\n")
        );
    }

    #[test]
    fn what_proxmox_could_not_use_is_refused() {
        let both = "[\"replica\", \"exporter\"]\npools = { main = \"/p\" }";
        let hosts = HOSTS.replace(r#"["exporter"]"#, both);
        let stays = of(&format!("{hosts}{VOLUME}"), None).unwrap_err();
        assert!(stays.to_string().contains("no address that follows"));
        let name = of(&format!("{HOSTS}{VOLUME}"), Some("1 share")).unwrap_err();
        assert!(name.to_string().contains("--id NAME"));
        let port = VOLUME.replace("driver", "port = 3049\ndriver");
        let port = of(&format!("{HOSTS}{port}"), None).unwrap_err();
        assert!(port.to_string().contains("2049 alone"));
    }
}
