//! The configuration and the keys: as `trivet config check` has it, and more that only a whole
//! machine can tell.

use std::os::unix::fs::PermissionsExt;

use trivet_node::Config;

use super::cluster::Asked;
use super::finding::Finding;
use crate::cmd::cluster::ClusterArgs;
use crate::error::CliError;

const CHECK: &str = "config";

/// Reads it.
pub fn look(args: &ClusterArgs, findings: &mut Vec<Finding>) -> Option<Config> {
    let at = args.config.display();
    match Config::load(&args.config) {
        Ok(config) => {
            findings.push(Finding::ok(
                CHECK,
                format!(
                    "{at}: cluster {}, {} nodes, {} volumes",
                    config.cluster,
                    config.nodes.len(),
                    config.volumes.len()
                ),
            ));
            if config.nodes.iter().any(|n| n.key.is_some()) {
                findings.extend(key_file(args));
            }
            findings.extend(config.volumes.iter().flat_map(|v| design(&config, v)));
            Some(config)
        }
        Err(e) => {
            findings.push(Finding::bad(
                CHECK,
                e.to_string(),
                "copy the file from another node, correct it, or name it: --config FILE",
            ));
            None
        }
    }
}

/// The key's file is nobody else's.
fn key_file(args: &ClusterArgs) -> Option<Finding> {
    let at = args.key.display();
    // What cannot be read is said where the key is opened.
    let mode = std::fs::metadata(&args.key).ok()?.permissions().mode();
    Some(match mode & 0o077 {
        0 => Finding::ok(CHECK, format!("{at} is its owner's alone")),
        _ => Finding::bad(
            CHECK,
            format!("{at} can be read by others (mode {:o})", mode & 0o777),
            format!("chmod 600 {at}; if others may have read it, make a new one: `trivet key new`"),
        ),
    })
}

/// The key cannot be used.
pub fn no_key(e: &CliError) -> Finding {
    let text = e.to_string();
    let what = text.strip_prefix("error: ").unwrap_or(&text).to_owned();
    Finding::bad(
        CHECK,
        format!("no daemon can be asked: {what}"),
        "run it as root, or name this node's or an operator's key: --key FILE",
    )
}

/// This machine is none of the nodes.
pub fn nobody_here(said: Option<&str>, config: &Config) -> Finding {
    let all: Vec<&str> = config.nodes.iter().map(|n| n.name.as_str()).collect();
    let all = all.join(", ");
    match said {
        Some(name) => Finding::bad(
            CHECK,
            format!("the configuration names no node {name}"),
            format!("it names: {all}"),
        ),
        None => Finding::ok(
            CHECK,
            format!("this machine is none of the nodes ({all}): its disks and ports do not matter"),
        ),
    }
}

/// What is legal and still not what anybody wants.
fn design(config: &Config, v: &trivet_node::config::VolumeConfig) -> Vec<Finding> {
    use trivet_node::config::{Driver, Role};
    let name = &v.name;
    let mut out = Vec::new();
    let exporters = config.nodes.iter().filter(|n| n.is(Role::Exporter)).count();
    if v.driver == Driver::Automatic && exporters < 2 {
        out.push(Finding::warn(
            CHECK,
            format!("volume {name}: the nodes decide, and only {exporters} may be active"),
            "give a second node the role exporter, or nobody takes over",
        ));
    }
    if v.driver == Driver::Manual {
        out.push(Finding::warn(
            CHECK,
            format!("volume {name}: driver = \"manual\", a dead active node is not replaced"),
            "driver = \"automatic\", or \"external\" with a cluster manager",
        ));
    }
    if v.exports.is_empty() && v.mount.is_none() {
        out.push(Finding::warn(
            CHECK,
            format!("volume {name} is neither exported nor mounted anywhere"),
            "give it an [[volume.export]]",
        ));
    }
    out
}

/// Whether the daemons go by the same file, as far as they tell.
pub fn same(config: Option<&Config>, asked: &[Asked]) -> Vec<Finding> {
    let Some(config) = config else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for (node, report) in asked.iter().filter_map(Asked::own) {
        for v in &config.volumes {
            let other = report.volumes.iter().find(|r| r.id == v.id);
            let driver = other.and_then(|r| r.driver);
            if let Some(driver) = driver
                && driver != v.driver
            {
                out.push(Finding::bad(
                    CHECK,
                    format!(
                        "volume {}: driver = \"{}\" here, and \"{driver}\" in force on {node}",
                        v.name, v.driver
                    ),
                    "one decides about a volume: make the file the same on all nodes",
                ));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::finding::Level;

    #[test]
    fn a_volume_that_nobody_can_take_over_is_noticed() {
        let text = r#"
cluster = "t"
[[node]]
name = "a"
addresses = ["127.0.0.1:7100"]
pools = { main = "/p" }
[[volume]]
name = "vms"
id = "6450c8c8-c93f-41fe-a0cc-69e263802150"
driver = "automatic"
"#;
        let config = Config::parse(text).unwrap();
        let found = design(&config, &config.volumes[0]);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].what.contains("only 1 may be active"));
        assert!(found[1].what.contains("neither exported"));
        let manual = text.replace("automatic", "manual");
        let config = Config::parse(&manual).unwrap();
        let found = design(&config, &config.volumes[0]);
        assert!(found[0].what.contains("is not replaced"));
        assert!(found.iter().all(|f| f.level == Level::Warn));
    }

    #[test]
    fn a_key_that_others_can_read_is_bad() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("k");
        std::fs::write(&key, "x").unwrap();
        let args = ClusterArgs {
            config: "".into(),
            key: key.clone(),
        };
        let mode = |m| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(m)).unwrap();
        mode(0o640);
        assert_eq!(key_file(&args).unwrap().level, Level::Bad);
        mode(0o600);
        assert_eq!(key_file(&args).unwrap().level, Level::Ok);
    }
}
