//! The export as a client finds it: the port mapper at its address, MOUNT, the list of exports.
//! What Proxmox asks before it calls a storage online.

use std::net::IpAddr;
use std::time::Duration;

use trivet_nfs::client::nfs::exports;
use trivet_node::Config;
use trivet_node::config::{Role, VolumeConfig};

use super::Seen;
use super::finding::Finding;
use crate::cmd::role::holder;

const CHECK: &str = "export";
/// Each of the three steps takes at most this long.
const STEP: Duration = Duration::from_secs(4);

/// Asks for the exports of each volume.
pub fn look(seen: &Seen) -> Vec<Finding> {
    let Some(config) = &seen.config else {
        return Vec::new();
    };
    let volumes = config.volumes.iter().filter(|v| !v.exports.is_empty());
    volumes
        .map(|v| {
            let holder = seen.report().and_then(|r| holder(r, &v.name));
            let active = holder.is_some() || seen.report().is_none();
            match address(config, v, holder.as_deref()) {
                Some(at) if active => {
                    let told = exports(at, STEP).map_err(|e| e.to_string());
                    judge(v, at, told)
                }
                _ => Finding::ok(
                    CHECK,
                    format!(
                        "{} is active nowhere that is known: its export is not asked",
                        v.name
                    ),
                ),
            }
        })
        .collect()
}

/// Where the export is: what follows the active node, or that node itself.
pub fn address(config: &Config, v: &VolumeConfig, holder: Option<&str>) -> Option<IpAddr> {
    if let Some(service) = &v.service {
        return Some(service.address.ip);
    }
    let first = |n: &trivet_node::config::NodeConfig| n.addresses.first().map(|a| a.ip());
    let mut exporters = config.nodes.iter().filter(|n| n.is(Role::Exporter));
    match (
        holder.and_then(|h| config.node(h)),
        exporters.next(),
        exporters.next(),
    ) {
        (Some(node), ..) => first(node),
        (None, Some(only), None) => first(only),
        _ => None,
    }
}

fn judge(v: &VolumeConfig, at: IpAddr, told: Result<Vec<String>, String>) -> Finding {
    let names: Vec<&str> = v.exports.iter().map(|e| e.name.as_str()).collect();
    let name = &v.name;
    match told {
        Ok(told) => match names.iter().find(|n| !told.iter().any(|t| t == *n)) {
            None => Finding::ok(
                CHECK,
                format!("{name}: {at} tells its exports: {}", names.join(", ")),
            ),
            Some(missing) => Finding::bad(
                CHECK,
                format!("{name}: {at} answers, and has no export {missing}"),
                "another NFS server has this address, or the active node's file is an older one: \
                 `trivet config check`",
            ),
        },
        Err(why) => Finding::bad(
            CHECK,
            format!("{name}: {at} does not tell its exports: {why}"),
            format!(
                "as Proxmox would: `showmount -e {at}`; TCP ports 111 and {} must be open from here, \
                 and the bridge lead to clients",
                v.port
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::finding::Level;

    const TEXT: &str = r#"
cluster = "t"
[[node]]
name = "a"
addresses = ["127.0.0.1:7100"]
pools = { main = "/p" }
[[node]]
name = "b"
addresses = ["127.0.0.2:7100"]
pools = { main = "/p" }
[[volume]]
name = "vms"
id = "6450c8c8-c93f-41fe-a0cc-69e263802150"
[[volume.export]]
name = "/vms"
clients = ["127.0.0.1"]
"#;

    #[test]
    fn an_export_is_where_its_address_or_the_active_node_is() {
        let config = Config::parse(TEXT).unwrap();
        let at = |c: &Config, holder| address(c, &c.volumes[0], holder).map(|a| a.to_string());
        assert_eq!(at(&config, Some("b")), Some("127.0.0.2".into()));
        assert_eq!(at(&config, None), None);
        let service = "[volume.service]\naddress = \"10.0.0.9/24\"\nbridge = \"vmbr0\"\n";
        let config = Config::parse(&format!("{TEXT}{service}")).unwrap();
        assert_eq!(at(&config, None), Some("10.0.0.9".into()));
    }

    #[test]
    fn a_missing_export_is_bad() {
        let config = Config::parse(TEXT).unwrap();
        let of = |told| judge(&config.volumes[0], "127.0.0.1".parse().unwrap(), told).level;
        assert_eq!(of(Ok(vec!["/x".into(), "/vms".into()])), Level::Ok);
        assert_eq!(of(Ok(vec!["/x".into()])), Level::Bad);
        assert_eq!(of(Err("timed out".into())), Level::Bad);
    }
}
