//! `trivet config check`: whether the configuration makes sense, before any daemon reads it.

use clap::Subcommand;
use serde::Serialize;
use trivet_node::Config;

use super::cluster::{ClusterArgs, failed};
use crate::error::CliError;
use crate::output::{self, Format};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum ConfigCmd {
    /// Read the configuration as the daemons would, and say what is wrong in it
    Check(ClusterArgs),
}

#[derive(Debug, Serialize)]
struct Good {
    cluster: String,
    nodes: Vec<String>,
    volumes: Vec<String>,
}

/// What daemons that run now say otherwise about who decides: an automatic one beside a cluster
/// manager is one too many. Nothing, if none answers: the file may be there before them.
fn other_drivers(args: &ClusterArgs, config: &Config) -> Vec<String> {
    let Ok(seen) = args.open().and_then(|c| c.report()) else {
        return Vec::new();
    };
    let mut wrong = Vec::new();
    for n in seen.nodes.iter().filter(|n| n.trouble.is_none()) {
        for v in n.report.iter().flat_map(|r| &r.volumes) {
            let own = config.volumes.iter().find(|c| c.id == v.id);
            if let (Some(own), Some(other)) = (own, v.driver)
                && own.driver != other
            {
                wrong.push(format!(
                    "volume {}: driver = \"{}\" here, and \"{other}\" in force on {}",
                    own.name, own.driver, n.node
                ));
            }
        }
    }
    wrong
}

/// Does it.
///
/// # Errors
/// What is wrong.
pub fn run(args: &ConfigCmd, format: Format) -> Result<(), CliError> {
    let ConfigCmd::Check(args) = args;
    let config = Config::load(&args.config).map_err(|e| failed(&e))?;
    let others = other_drivers(args, &config);
    if !others.is_empty() {
        return Err(CliError::failed(others.join("; "))
            .hint("one decides about a volume: make the file the same on all nodes"));
    }
    let good = Good {
        nodes: config.nodes.iter().map(|n| n.name.clone()).collect(),
        volumes: config.volumes.iter().map(|v| v.name.clone()).collect(),
        cluster: config.cluster,
    };
    output::print(format, &good, |g| {
        format!(
            "good: cluster {}, nodes {}, volumes {}\n",
            g.cluster,
            g.nodes.join(", "),
            g.volumes.join(", ")
        )
    })
}
