//! What the commands that talk to the daemons share: which configuration, which key, which node
//! to ask.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use trivet_node::config::VolumeConfig;
use trivet_node::messages::{Answer, Ask, ClusterReport};
use trivet_node::{Config, NodeError, client};
use trivet_transport::Security;

use crate::error::CliError;

/// Reports are asked for with this patience.
const REPORT: Duration = Duration::from_secs(3);

/// How to reach the daemons.
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    /// The cluster's configuration
    #[arg(
        long,
        env = "TRIVET_CONFIG",
        value_name = "FILE",
        default_value = trivet_node::config::DEFAULT_PATH,
        global = true
    )]
    pub config: PathBuf,
    /// This node's or operator's private key, if the configuration has keys
    #[arg(
        long,
        env = "TRIVET_KEY",
        value_name = "FILE",
        default_value = "/etc/trivet/node.key",
        global = true
    )]
    pub key: PathBuf,
}

/// A configuration, and the means to ask its nodes.
pub struct Cluster {
    /// The configuration.
    pub config: Config,
    security: Security,
}

impl ClusterArgs {
    /// Reads configuration and key.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub fn open(&self) -> Result<Cluster, CliError> {
        let config = Config::load(&self.config).map_err(|e| failed(&e))?;
        let security = config.security(&self.key).map_err(|e| failed(&e))?;
        Ok(Cluster { config, security })
    }
}

impl Cluster {
    /// The volume of this name in the configuration.
    ///
    /// # Errors
    /// There is none.
    pub fn volume(&self, name: &str) -> Result<&VolumeConfig, CliError> {
        self.config.volume(name).ok_or_else(|| {
            let all = self.config.volumes.iter().map(|v| v.name.as_str());
            let all: Vec<&str> = all.collect();
            CliError::failed(format_args!("the configuration names no volume {name}"))
                .hint(format_args!("it names: {}", all.join(", ")))
        })
    }

    /// Asks one node.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    pub fn ask(&self, node: &str, ask: &Ask, patience: Duration) -> Result<Answer, CliError> {
        let (answer, _) = client::ask(&self.config, &self.security, node, ask, patience)
            .map_err(|e| failed(&e))?;
        match answer {
            Answer::Refused(why) => Err(CliError::failed(why)),
            answer => Ok(answer),
        }
    }

    /// What the first node that answers has heard of all.
    ///
    /// # Errors
    /// None answers.
    pub fn report(&self) -> Result<ClusterReport, CliError> {
        let mut said = Vec::new();
        for node in &self.config.nodes {
            match client::ask(
                &self.config,
                &self.security,
                &node.name,
                &Ask::Cluster,
                REPORT,
            ) {
                Ok((Answer::Cluster(report), _)) => return Ok(report),
                Ok(_) => said.push(format!("{} gave an answer to another question", node.name)),
                Err(e) => said.push(e.to_string()),
            }
        }
        Err(CliError::unreachable(said.join("; ")).hint("are the daemons running? (trivet serve)"))
    }
}

/// An error of a node's, for whoever typed the command.
pub fn failed(e: &NodeError) -> CliError {
    CliError::failed(e)
}
