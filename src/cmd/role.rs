//! `trivet promote`, `demote`, `drain`, `undrain`: moving the active role by command.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use trivet_node::config::Driver;
use trivet_node::messages::{Answer, Ask, ClusterReport, Demote, Move, Promote, Standing};

use super::cluster::{Cluster, ClusterArgs};
use crate::error::CliError;
use crate::output::{self, Format};

/// Beyond what a command may take itself.
const SLACK: Duration = Duration::from_secs(45);

/// Which volume, to where.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume
    volume: String,
    /// The node that shall be active [default: this host, if it is one, else the best placed]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Wait for the lease of a node that died, rather than refuse
    #[arg(long)]
    wait: bool,
    /// Seconds to wait, in all
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
    /// Serve although replicas that may hold acknowledged data cannot be heard: what was only
    /// there is lost
    #[arg(long)]
    accept_data_loss: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Which volume.
#[derive(Debug, Args)]
pub struct DemoteArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume
    volume: String,
    /// Let another node take it over, rather than stop the service
    #[arg(long)]
    elsewhere: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Which node.
#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the node
    node: String,
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub fn promote(args: &PromoteArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    let seen = cluster.report()?;
    let holder = holder(&seen, &args.volume);
    let node = match &args.node {
        Some(node) => node.clone(),
        None => best(&cluster, &seen, &args.volume)?,
    };
    let what = match &holder {
        Some(h) if *h == node => format!("{} is active on {node} already", args.volume),
        Some(h) => format!(
            "{} is active on {h}; it is moved to {node}, and clients pause for a moment",
            args.volume
        ),
        None => format!("{} becomes active on {node}", args.volume),
    };
    if args.dry_run {
        return output::print(format, &what, |w| format!("would: {w}\n"));
    }
    let moves = holder.is_some_and(|h| h != node);
    let managed = managed(&cluster, &args.volume);
    if (moves || args.accept_data_loss || managed.is_some()) && !args.yes {
        let mut what = what;
        what.push_str(managed.unwrap_or_default());
        if args.accept_data_loss {
            what.push_str("; writes that only the missing replicas have are LOST");
        }
        confirm(&what)?;
    }
    let ask = Ask::Promote(Promote {
        volume: args.volume.clone(),
        node: node.clone(),
        take: moves,
        wait: args.wait || moves,
        timeout_ms: args.timeout.saturating_mul(1000),
        accept_data_loss: args.accept_data_loss,
    });
    let patience = Duration::from_secs(args.timeout) + SLACK;
    match cluster.ask(&node, &ask, patience)? {
        Answer::Promoted(done) => output::print(format, &done, |m| moved(&args.volume, m)),
        _ => Err(CliError::failed("an answer to another question")),
    }
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub fn demote(args: &DemoteArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    let seen = cluster.report()?;
    let holder = holder(&seen, &args.volume);
    let at = holder.clone().unwrap_or_else(|| seen.by.clone());
    let what = match args.elsewhere {
        true => format!("{} moves from {at} to another node", args.volume),
        false => format!(
            "{} stops being served; clients wait until it is promoted again",
            args.volume
        ),
    };
    if args.dry_run {
        return output::print(format, &what, |w| format!("would: {w}\n"));
    }
    if !args.yes {
        let more = managed(&cluster, &args.volume).unwrap_or_default();
        confirm(&format!("{what}{more}"))?;
    }
    let ask = Ask::Demote(Demote {
        volume: args.volume.clone(),
        elsewhere: args.elsewhere,
    });
    match cluster.ask(&at, &ask, SLACK)? {
        Answer::Promoted(done) => output::print(format, &done, |m| moved(&args.volume, m)),
        Answer::Demoted { .. } => output::print(format, &what, |_| {
            format!("{} is active nowhere\n", args.volume)
        }),
        _ => Err(CliError::failed("an answer to another question")),
    }
}

/// Takes a node out of service, or back in.
///
/// # Errors
/// Why it was not done.
pub fn drain(args: &DrainArgs, drained: bool, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    let ask = Ask::Drain {
        node: args.node.clone(),
        drained,
    };
    cluster.ask(&args.node, &ask, SLACK)?;
    let said = match drained {
        true => "is active for nothing, and takes nothing over, until `trivet undrain`",
        false => "may take over again",
    };
    output::print(format, &said, |s| format!("{} {s}\n", args.node))
}

/// What is to be known before a volume is moved by hand about which a cluster manager decides.
fn managed(cluster: &Cluster, volume: &str) -> Option<&'static str> {
    let volume = cluster.config.volume(volume)?;
    (volume.driver == Driver::External)
        .then_some("; its cluster manager (driver = \"external\") may undo that")
}

/// Where a volume is active.
pub fn holder(seen: &ClusterReport, volume: &str) -> Option<String> {
    let active = |n: &&trivet_node::messages::Heard| {
        let fresh = n.trouble.is_none();
        let volumes = n.report.iter().flat_map(|r| &r.volumes);
        fresh
            && volumes
                .into_iter()
                .any(|v| v.name == volume && v.role.standing == Standing::Active)
    };
    seen.nodes.iter().find(active).map(|n| n.node.clone())
}

/// Where a volume had better be: preferred nodes first, then those with a replica of their own.
fn best(cluster: &Cluster, seen: &ClusterReport, volume: &str) -> Result<String, CliError> {
    let prefer = cluster.volume(volume)?.prefer.clone();
    if let Some(holder) = holder(seen, volume) {
        return Ok(holder);
    }
    let able = seen.nodes.iter().filter_map(|n| {
        let report = n.report.as_ref().filter(|_| n.trouble.is_none())?;
        let v = report.volumes.iter().find(|v| v.name == volume)?;
        let good = v.role.standing == Standing::Standby && !report.drained;
        let diskless = v.members.iter().all(|m| m.unusable.is_some());
        let place = prefer.iter().position(|p| *p == n.node);
        good.then(|| (diskless, place.unwrap_or(usize::MAX), n.node.clone()))
    });
    able.min().map(|b| b.2).ok_or_else(|| {
        CliError::failed(format_args!(
            "no node that answers can be active for {volume}"
        ))
        .hint("look at `trivet status`")
    })
}

fn moved(volume: &str, m: &Move) -> String {
    let mut out = format!(
        "{volume} is active on {}, generation {}\n",
        m.node, m.generation
    );
    for (what, ms) in &m.timeline {
        out.push_str(&format!("  {ms:>8.1} ms  {what}\n"));
    }
    out
}

/// Asks the person at the terminal.
pub fn confirm(what: &str) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(
            CliError::failed(format_args!("not done: {what}")).hint("confirm it with --yes")
        );
    }
    let mut err = std::io::stderr().lock();
    write!(err, "{what}. Go on? [y/N] ")
        .and_then(|()| err.flush())
        .map_err(|e| CliError::output(&e))?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|e| CliError::failed(format_args!("cannot read the answer: {e}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::failed("nothing was done")),
    }
}
