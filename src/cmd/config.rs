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

/// Does it.
///
/// # Errors
/// What is wrong.
pub fn run(args: &ConfigCmd, format: Format) -> Result<(), CliError> {
    let ConfigCmd::Check(args) = args;
    let config = Config::load(&args.config).map_err(|e| failed(&e))?;
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
