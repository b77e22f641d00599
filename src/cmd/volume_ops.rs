//! `trivet volume list`, `resize`, `delete` in a cluster.
//!
//! A deletion cut short leaves a volume that too few members know to be served, and the same
//! command again throws the rest away.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use trivet_node::messages::{Answer, Ask, ClusterReport, Demote};
use trivet_protocol::VolumeId;

use super::cluster::{Cluster, ClusterArgs};
use super::role::{confirm, holder};
use super::status::{active, grade, of};
use crate::error::CliError;
use crate::output::{self, Format, Table};
use crate::size::Size;

/// Disks may have much to throw away.
const DELETE: Duration = Duration::from_secs(300);
/// The members store a new size, and the file system its own, within this time.
const RESIZE: Duration = Duration::from_secs(60);

/// Which cluster.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Which, to what.
#[derive(Debug, Args)]
pub struct ResizeArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume
    volume: String,
    /// Its new size, such as 2T, or +500G for so much more; nothing shrinks
    size: String,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Which.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume
    volume: String,
    /// Go on although nodes that keep it do not answer; what they have stays on their disks
    #[arg(long)]
    leave_behind: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    volume: String,
    id: VolumeId,
    state: &'static str,
    active_on: Option<String>,
    bytes: Option<u64>,
    free: Option<u64>,
    members: Vec<String>,
    driver: String,
}

/// Shows them.
///
/// # Errors
/// No daemon answers.
pub fn list(args: &ListArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    let seen = cluster.report()?;
    let row = |v: &trivet_node::config::VolumeConfig| {
        let a = active(&seen, &v.name).map(|(_, a)| a);
        Row {
            volume: v.name.clone(),
            id: v.id,
            state: match kept_by(&seen, &v.name).is_empty() {
                true => "not made",
                false => grade(&seen, &v.name).word(),
            },
            active_on: holder(&seen, &v.name),
            bytes: a.map(|a| a.bytes).or_else(|| size(&seen, &v.name)),
            free: a.map(|a| a.free),
            members: kept_by(&seen, &v.name).into_iter().collect(),
            driver: v.driver.to_string(),
        }
    };
    let rows: Vec<Row> = cluster.config.volumes.iter().map(row).collect();
    output::print(format, &rows, |rows| {
        let titles = [
            "volume",
            "GiB",
            "pool free GiB",
            "state",
            "active on",
            "members",
            "driver",
        ];
        let mut t = Table::new(&titles);
        let gib = |b: Option<u64>| {
            b.map_or("-".into(), |b| {
                format!("{:.1}", b as f64 / f64::from(1 << 30))
            })
        };
        for r in rows {
            t.row([
                r.volume.clone(),
                gib(r.bytes),
                gib(r.free),
                r.state.to_owned(),
                r.active_on.clone().unwrap_or("-".into()),
                r.members.join(","),
                r.driver.clone(),
            ]);
        }
        t.render()
    })
}

/// The nodes that keep a member of it, by the newest record that is heard, and those that say so.
fn kept_by(seen: &ClusterReport, volume: &str) -> BTreeSet<String> {
    let mut nodes = BTreeSet::new();
    let mut newest = None;
    for n in &seen.nodes {
        let members = of(n, volume).map(|v| v.members.as_slice());
        for m in members.unwrap_or_default().iter().filter(|m| !m.removed) {
            nodes.insert(n.node.clone());
            if newest.is_none_or(|r: &trivet_protocol::Record| r.version < m.record.version) {
                newest = Some(&m.record);
            }
        }
    }
    nodes.extend(
        newest
            .iter()
            .flat_map(|r| &r.members)
            .map(|m| m.node.clone()),
    );
    nodes
}

fn size(seen: &ClusterReport, volume: &str) -> Option<u64> {
    let members = seen.nodes.iter().filter_map(|n| of(n, volume));
    let records = members.flat_map(|v| &v.members).map(|m| &m.record);
    let newest = records.max_by_key(|r| r.version)?;
    Some(newest.blocks * trivet_protocol::BLOCK_BYTES as u64)
}

/// Enlarges one.
///
/// # Errors
/// Why not.
pub fn resize(args: &ResizeArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    let seen = cluster.report()?;
    let read = |s: &str| s.parse::<Size>().map(Size::bytes).map_err(CliError::usage);
    let Some((_, now)) = active(&seen, &args.volume) else {
        return Err(
            CliError::failed(format_args!("{} is not served now", args.volume))
                .hint("it is enlarged while it is in use: `trivet promote` it first"),
        );
    };
    let bytes = match args.size.strip_prefix('+') {
        Some(more) => now.bytes.saturating_add(read(more)?),
        None => read(&args.size)?,
    };
    if bytes < now.bytes {
        return Err(CliError::usage(format_args!(
            "{} has {} bytes and does not shrink to {bytes}",
            args.volume, now.bytes
        ))
        .hint("copy its files to a smaller volume instead"));
    }
    if args.dry_run {
        return output::print(format, &bytes, |b| {
            format!(
                "would: enlarge {} from {} to {b} bytes\n",
                args.volume, now.bytes
            )
        });
    }
    let at = holder(&seen, &args.volume).unwrap_or_else(|| seen.by.clone());
    let volume = args.volume.clone();
    match cluster.ask(&at, &Ask::Resize { volume, bytes }, RESIZE)? {
        Answer::Resized(bytes) => output::print(format, &bytes, |b| {
            format!("{} has {b} bytes now, file system included\n", args.volume)
        }),
        _ => Err(CliError::failed("an answer to another question")),
    }
}

/// Throws one away.
///
/// # Errors
/// It is in use, or a node refuses.
pub fn delete(args: &DeleteArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    let name = &args.volume;
    let id = cluster.volume(name)?.id;
    let seen = cluster.report()?;
    if let Some(at) = holder(&seen, name) {
        return Err(
            CliError::failed(format_args!("{name} is in use: active on {at}"))
                .hint(format_args!("end that first: trivet demote {name}")),
        );
    }
    let nodes = kept_by(&seen, name);
    if nodes.is_empty() {
        return Err(
            CliError::failed(format_args!("no node keeps anything of {name}"))
                .hint("take it out of the configuration, if it is to go"),
        );
    }
    let (heard, silent): (Vec<&String>, Vec<&String>) = nodes.iter().partition(|n| {
        let at = seen.nodes.iter().find(|s| s.node == **n);
        at.is_some_and(|s| s.trouble.is_none() && s.report.is_some())
    });
    if !silent.is_empty() && !args.leave_behind {
        return Err(CliError::failed(format_args!(
            "{name} is also kept by nodes that do not answer: {}",
            list_of(&silent)
        ))
        .hint("start them, or give --leave-behind and clear their disks by hand"));
    }
    ask_all(&cluster, id, &heard, true)?;
    let what = format!(
        "{name} and ALL that is in it is thrown away, on {}, for good",
        list_of(&heard)
    );
    if args.dry_run {
        return output::print(format, &what, |w| format!("would: {w}\n"));
    }
    if !args.yes {
        confirm(&what)?;
    }
    // So that no agent takes it up meanwhile. It is active nowhere, and is told to stay so: that
    // it was not is no news.
    let stop = Ask::Demote(Demote {
        volume: name.clone(),
        elsewhere: false,
    });
    for node in &heard {
        let _ = cluster.ask(node, &stop, RESIZE);
    }
    ask_all(&cluster, id, &heard, false)?;
    output::print(format, &what, |_| {
        let mut said = format!(
            "{name} is gone from {}; take its [[volume]] out of the configuration on all nodes (a \
             new one needs a new id)\n",
            list_of(&heard)
        );
        if !silent.is_empty() {
            said.push_str(&format!(
                "what {} has of it stays: POOL/{id} there, to be removed by hand\n",
                list_of(&silent)
            ));
        }
        said
    })
}

fn list_of(nodes: &[&String]) -> String {
    let names: Vec<&str> = nodes.iter().map(|n| n.as_str()).collect();
    names.join(", ")
}

fn ask_all(
    cluster: &Cluster,
    volume: VolumeId,
    nodes: &[&String],
    dry_run: bool,
) -> Result<(), CliError> {
    let ask = Ask::DeleteMember { volume, dry_run };
    nodes
        .iter()
        .try_for_each(|n| cluster.ask(n, &ask, DELETE).map(drop))
}
