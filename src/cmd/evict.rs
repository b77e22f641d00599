//! `trivet evict`, `trivet restore`: giving up a dead node, and taking it back.

use std::time::{Duration, Instant};

use clap::Args;
use trivet_node::members::may_keep;
use trivet_node::messages::{Ask, ClusterReport};

use super::cluster::{Cluster, ClusterArgs};
use super::replica::Manner;
use super::role::confirm;
use super::status::active;
use crate::error::CliError;
use crate::output::{self, Format};

/// A question that needs no disk but to remember.
const QUICK: Duration = Duration::from_secs(30);
/// How often is looked while waiting.
const LOOK: Duration = Duration::from_millis(300);

/// Which node.
#[derive(Debug, Args)]
pub struct EvictArgs {
    #[command(flatten)]
    manner: Manner,
    /// Name of the node, which must be dead
    node: String,
}

/// Which node.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the node
    node: String,
}

/// Gives it up.
///
/// # Errors
/// Why not.
pub fn evict(args: &EvictArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.manner.cluster.open()?;
    let seen = cluster.report()?;
    let plan = plan(&cluster, &seen, &args.node)?;
    let mut what = format!("{} is given up", args.node);
    for line in &plan {
        what.push_str("; ");
        what.push_str(line);
    }
    if args.manner.dry_run {
        return output::print(format, &what, |w| format!("would: {w}\n"));
    }
    if !args.manner.yes {
        confirm(&what)?;
    }
    let ask = Ask::Evict {
        node: args.node.clone(),
        evicted: true,
    };
    cluster.ask(&seen.by, &ask, QUICK)?;
    if args.manner.wait {
        wait(&cluster, args)?;
    }
    output::print(format, &what, |w| format!("{w}\n"))
}

/// Takes it back.
///
/// # Errors
/// Why not.
pub fn restore(args: &RestoreArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    let seen = cluster.report()?;
    let ask = Ask::Evict {
        node: args.node.clone(),
        evicted: false,
    };
    cluster.ask(&seen.by, &ask, QUICK)?;
    let what = format!(
        "{} may keep replicas and be active again; what it kept of volumes that found another \
         home is thrown away when it is back",
        args.node
    );
    output::print(format, &what, |w| format!("{w}\n"))
}

/// What becomes of each volume that has a member there: one line each.
fn plan(cluster: &Cluster, seen: &ClusterReport, node: &str) -> Result<Vec<String>, CliError> {
    if cluster.config.node(node).is_none() {
        let all: Vec<&str> = cluster
            .config
            .nodes
            .iter()
            .map(|n| n.name.as_str())
            .collect();
        return Err(
            CliError::failed(format_args!("the configuration names no node {node}"))
                .hint(format_args!("there are: {}", all.join(", "))),
        );
    }
    let there = seen.nodes.iter().find(|n| n.node == node);
    if there.is_some_and(|n| n.trouble.is_none() && n.report.is_some()) {
        return Err(
            CliError::failed(format_args!("node {node} answers, so it is not given up")).hint(
                format_args!(
                    "`trivet drain {node}` has it serve nothing, `trivet replica move` has others \
                     keep what it keeps"
                ),
            ),
        );
    }
    let mut lines = Vec::new();
    for v in &cluster.config.volumes {
        let Some((_, a)) = active(seen, &v.name) else {
            lines.push(format!(
                "{} is not served now, and waits until it is",
                v.name
            ));
            continue;
        };
        let Some(gone) = a.members.iter().find(|m| m.node == node) else {
            continue;
        };
        let spare = cluster.config.nodes.iter().any(|n| {
            let up = seen
                .nodes
                .iter()
                .any(|s| s.node == n.name && s.trouble.is_none());
            let has = a.members.iter().any(|m| m.node == n.name);
            may_keep(n, gone.kind) && up && !has
        });
        lines.push(match spare {
            true => format!("another node gets the member of {} that it kept", v.name),
            false => format!(
                "no node is there to take the member of {} that it kept, which stays listed until \
                 one is",
                v.name
            ),
        });
    }
    Ok(lines)
}

fn wait(cluster: &Cluster, args: &EvictArgs) -> Result<(), CliError> {
    let deadline = Instant::now() + Duration::from_secs(args.manner.timeout);
    loop {
        let seen = cluster.report()?;
        let left = cluster.config.volumes.iter().any(|v| {
            active(&seen, &v.name)
                .is_none_or(|(_, a)| a.members.iter().any(|m| m.node == args.node))
        });
        if !left {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(CliError::failed(format_args!(
                "{} is given up, and some volume still has a member there after {} s",
                args.node, args.manner.timeout
            ))
            .hint("it goes on by itself; look at `trivet status`"));
        }
        // Nothing tells when it is there: it is asked for.
        std::thread::sleep(LOOK);
    }
}
