//! `trivet status`: who is active, since when, how redundant it is. Exit code 0: redundant;
//! 1: degraded; 2: something is not served; 3: no daemon answers.

use std::time::Duration;

use clap::Args;
use trivet_node::messages::{
    ActiveReport, ClusterReport, Heard, MemberReport, Standing, VolumeReport,
};

use super::cluster::ClusterArgs;
use super::role::holder;
use crate::error::{CliError, Exit};
use crate::output::{self, Format, Table};

/// Of what.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Only this volume
    volume: Option<String>,
    /// Again and again, every second
    #[arg(short, long)]
    watch: bool,
}

/// Shows it.
///
/// # Errors
/// No daemon answers; or, without a message, what the exit code says.
pub fn run(args: &StatusArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    loop {
        let seen = cluster.report()?;
        let names: Vec<&str> = cluster
            .config
            .volumes
            .iter()
            .map(|v| v.name.as_str())
            .filter(|v| args.volume.as_deref().is_none_or(|wanted| wanted == *v))
            .collect();
        if let (Some(wanted), true) = (&args.volume, names.is_empty()) {
            return Err(CliError::failed(format_args!(
                "the configuration names no volume {wanted}"
            )));
        }
        output::print(format, &seen, |s| text(s, &names))?;
        if !args.watch {
            let worst = names.iter().map(|v| grade(&seen, v)).max();
            return match worst {
                None | Some(Grade::Redundant) => Ok(()),
                Some(Grade::Degraded) => Err(CliError::quiet(Exit::Failed)),
                Some(Grade::NotServed) => Err(CliError::quiet(Exit::Usage)),
            };
        }
        // For the person who watches.
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    Redundant,
    Degraded,
    NotServed,
}

fn of<'a>(node: &'a Heard, volume: &str) -> Option<&'a VolumeReport> {
    let report = node.report.as_ref()?;
    report.volumes.iter().find(|v| v.name == volume)
}

fn active<'a>(
    seen: &'a ClusterReport,
    volume: &str,
) -> Option<(&'a VolumeReport, &'a ActiveReport)> {
    let at = holder(seen, volume)?;
    let node = seen.nodes.iter().find(|n| n.node == at)?;
    let v = of(node, volume)?;
    Some((v, v.active.as_ref()?))
}

fn grade(seen: &ClusterReport, volume: &str) -> Grade {
    match active(seen, volume) {
        None => Grade::NotServed,
        Some((_, a))
            if a.failures_tolerated == 0
                || a.members.iter().any(|m| m.trouble.is_some() || !m.up) =>
        {
            Grade::Degraded
        }
        Some(_) => Grade::Redundant,
    }
}

fn text(seen: &ClusterReport, volumes: &[&str]) -> String {
    let mut out = String::new();
    for volume in volumes {
        out.push_str(&volume_text(seen, volume));
        out.push('\n');
    }
    let mut t = Table::new(&["node", "state", "address", "up", "version"]);
    for n in &seen.nodes {
        let address = n.address.map_or("-".into(), |a| a.to_string());
        match (&n.report, &n.trouble) {
            (Some(r), None) => {
                let state = if r.drained { "drained" } else { "up" };
                let up = duration(r.up_ms);
                t.row([n.node.clone(), state.into(), address, up, r.version.clone()]);
            }
            (_, trouble) => {
                let why = trouble.clone().unwrap_or_default();
                t.row([n.node.clone(), format!("not heard: {why}"), address]);
            }
        }
    }
    out.push_str(&t.render());
    for n in &seen.nodes {
        for p in n.report.iter().flat_map(|r| &r.problems) {
            out.push_str(&format!("problem on {}: {p}\n", n.node));
        }
    }
    out
}

fn volume_text(seen: &ClusterReport, volume: &str) -> String {
    let mut out = String::new();
    match active(seen, volume) {
        Some((v, a)) => {
            let at = holder(seen, volume).unwrap_or_default();
            out.push_str(&format!(
                "{volume}: active on {at} for {}, generation {}, lease {} ms, {} NFS connections\n",
                duration(v.role.for_ms),
                a.generation,
                a.lease_left_ms,
                a.connections
            ));
            out.push_str(&format!(
                "  {} GiB, {:.1} GiB free beneath; {}\n",
                a.bytes >> 30,
                a.free as f64 / f64::from(1 << 30),
                match a.failures_tolerated {
                    0 => "NO replica can be lost now without losing service or data".into(),
                    n => format!("{n} replica can be lost now"),
                }
            ));
            if a.diskless {
                out.push_str("  DISKLESS: the active node keeps no replica of it; all reads cross the network\n");
            }
            if let Some(m) = &v.role.last_move {
                let steps: Vec<String> = m
                    .timeline
                    .iter()
                    .map(|(what, ms)| format!("{what} {ms} ms"))
                    .collect();
                out.push_str(&format!(
                    "  last move ({:?}): {}\n",
                    m.why,
                    steps.join(", ")
                ));
            }
            out.push_str(&members(a));
        }
        None => {
            out.push_str(&format!("{volume}: NOT SERVED\n"));
            out.push_str(&promises(seen, volume));
        }
    }
    for n in &seen.nodes {
        if let Some(v) = of(n, volume)
            && let Some(trouble) = &v.role.trouble
            && v.role.standing != Standing::Active
        {
            out.push_str(&format!("  {}: {trouble}\n", n.node));
        }
    }
    out
}

fn members(a: &ActiveReport) -> String {
    let mut t = Table::new(&["  member", "kind", "state", "id"]);
    for m in &a.members {
        let state = match (&m.trouble, m.up, m.in_sync, m.resync) {
            (_, _, _, Some((done, all))) => {
                format!("resync, {} of {} MiB", done >> 20, all >> 20)
            }
            (Some(why), ..) => why.clone(),
            (_, false, true, _) => "not connected (still counted)".into(),
            (_, false, ..) => "not connected".into(),
            (_, true, true, _) => "in sync".into(),
            (_, true, false, _) => match m.kind {
                trivet_protocol::MemberKind::Witness => "votes".into(),
                trivet_protocol::MemberKind::Replica => "out of date".into(),
            },
        };
        let kind = format!("{:?}", m.kind).to_lowercase();
        t.row([format!("  {}", m.node), kind, state, m.id.to_string()]);
    }
    t.render()
}

/// What the members say where nobody is active.
fn promises(seen: &ClusterReport, volume: &str) -> String {
    let mut out = String::new();
    for n in &seen.nodes {
        let members = of(n, volume)
            .map(|v| v.members.as_slice())
            .unwrap_or_default();
        for m in members {
            out.push_str(&format!("  member on {}: {}\n", n.node, promise(m)));
        }
    }
    out
}

fn promise(m: &MemberReport) -> String {
    let data = m.unusable.clone().unwrap_or_else(|| "whole".into());
    match m.lease_left_ms {
        0 => format!("{data}, promised to nobody"),
        left => format!(
            "{data}, held by {} for {}, for {left} ms more",
            m.holder,
            duration(m.held_for_ms)
        ),
    }
}

fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..86400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86400, s / 3600 % 24),
    }
}
