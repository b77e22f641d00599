//! `trivet status`: who is active, since when, how redundant it is. Exit code 0: redundant;
//! 1: degraded; 2: something is not served; 3: no daemon answers.

use std::time::Duration;

use clap::Args;
use trivet_node::messages::{
    ActiveMember, ActiveReport, ClusterReport, Heard, MemberReport, Report, Standing, VolumeReport,
};
use trivet_protocol::MemberKind;

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
        if let Some(wanted) = &args.volume {
            cluster.volume(wanted)?;
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

/// How well a volume is, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Served, all members are well, and one can be lost.
    Redundant,
    /// Served.
    Degraded,
    /// Active nowhere.
    NotServed,
}

impl Grade {
    /// Said in one word or two.
    pub fn word(self) -> &'static str {
        match self {
            Grade::Redundant => "redundant",
            Grade::Degraded => "degraded",
            Grade::NotServed => "not served",
        }
    }
}

/// What a node says of a volume.
pub fn of<'a>(node: &'a Heard, volume: &str) -> Option<&'a VolumeReport> {
    let report = node.report.as_ref()?;
    report.volumes.iter().find(|v| v.name == volume)
}

/// What the active node says of a volume, if one is.
pub fn active<'a>(
    seen: &'a ClusterReport,
    volume: &str,
) -> Option<(&'a VolumeReport, &'a ActiveReport)> {
    let at = holder(seen, volume)?;
    let node = seen.nodes.iter().find(|n| n.node == at)?;
    let v = of(node, volume)?;
    Some((v, v.active.as_ref()?))
}

/// How well a volume is.
pub fn grade(seen: &ClusterReport, volume: &str) -> Grade {
    match active(seen, volume) {
        None => Grade::NotServed,
        Some((_, a))
            if a.failures_tolerated == 0
                || a.replacing.is_some()
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
                let state = match (evicted(seen, &n.node), r.drained) {
                    (true, _) => "up, given up (`trivet restore`)",
                    (_, true) => "drained",
                    _ => "up",
                };
                let up = duration(r.up_ms);
                t.row([n.node.clone(), state.into(), address, up, r.version.clone()]);
            }
            (_, trouble) => {
                let why = trouble.clone().unwrap_or_default();
                let gone = match evicted(seen, &n.node) {
                    true => "given up; ",
                    false => "",
                };
                t.row([n.node.clone(), format!("{gone}not heard: {why}"), address]);
            }
        }
    }
    out.push_str(&t.render());
    out.extend(mixed(seen));
    for n in &seen.nodes {
        for p in n.report.iter().flat_map(|r| &r.problems) {
            out.push_str(&format!("problem on {}: {p}\n", n.node));
        }
    }
    out
}

/// A line where not all nodes run the same version, or know the same protocol.
fn mixed(seen: &ClusterReport) -> Option<String> {
    let heard = seen.nodes.iter().filter(|n| n.trouble.is_none());
    let reports: Vec<_> = heard.filter_map(|n| n.report.as_ref()).collect();
    let of = |r: &Report| (r.version.clone(), r.protocol);
    let first = of(reports.first()?);
    if reports.iter().all(|r| of(r) == first) {
        return None;
    }
    let told = |r: &&Report| match r.protocol {
        0 => format!("{} {}", r.node, r.version),
        protocol => format!("{} {} (protocol {protocol})", r.node, r.version),
    };
    let all: Vec<String> = reports.iter().map(told).collect();
    Some(format!(
        "VERSIONS DIFFER: {}; two nodes speak the older protocol of theirs. Upgrade the others.\n",
        all.join(", ")
    ))
}

/// Whether a node was given up: the newest word of it.
fn evicted(seen: &ClusterReport, node: &str) -> bool {
    let reports = seen.nodes.iter().filter_map(|n| n.report.as_ref());
    let wishes = reports.flat_map(|r| &r.node_wishes);
    let newest = wishes.filter(|w| w.node == node).max_by_key(|w| w.number);
    newest.is_some_and(|w| w.evicted)
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
                out.push_str(
                    "  DISKLESS: the active node keeps no replica of it; all reads cross the \
                     network\n",
                );
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
            for w in &a.warnings {
                out.push_str(&format!("  WARNING: {w}\n"));
            }
            out.push_str(&scrub_line(a));
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

/// How far a scrub is, or what became of the last one.
fn scrub_line(a: &ActiveReport) -> String {
    let Some(s) = &a.scrub else {
        return String::new();
    };
    if !s.running {
        return format!("  scrub {} ago: {}\n", duration(s.ended_ms), s.outcome());
    }
    let permille = s.place.saturating_mul(1000) / s.size.max(1);
    let rate = (s.looked >> 20).saturating_mul(1000) / s.elapsed_ms.max(1);
    format!(
        "  scrub: {}.{} % of the volume, {} MiB of each replica read, {rate} MiB/s, {} blocks had \
         a bad copy, {} of them not repaired\n",
        permille / 10,
        permille % 10,
        s.looked >> 20,
        s.wrong_blocks,
        s.left_blocks
    )
}

fn members(a: &ActiveReport) -> String {
    let mut t = Table::new(&["  member", "kind", "state", "id"]);
    for m in &a.members {
        let mut state = member_state(m);
        if let Some((old, new)) = a.replacing {
            if old == m.id {
                state.push_str(", to be replaced");
            } else if new == m.id {
                state.push_str(", takes the other's place");
            }
        }
        let kind = format!("{:?}", m.kind).to_lowercase();
        t.row([format!("  {}", m.node), kind, state, m.id.to_string()]);
    }
    t.render()
}

/// How a member is, in a few words.
pub fn member_state(m: &ActiveMember) -> String {
    match (&m.trouble, m.up, m.in_sync, m.resync) {
        (_, _, _, Some((done, all))) => resync_state(m, done, all),
        (Some(why), ..) => why.clone(),
        (_, false, true, _) => "not connected (still counted)".into(),
        (_, false, ..) => "not connected".into(),
        (_, true, true, _) => "in sync".into(),
        (_, true, false, _) => match m.kind {
            MemberKind::Witness => "votes".into(),
            MemberKind::Replica => "out of date".into(),
        },
    }
}

/// How far a resync is, how fast it is, and how long it will take if it stays so.
fn resync_state(m: &ActiveMember, done: u64, all: u64) -> String {
    let mut state = format!("resync, {} of {} MiB", done >> 20, all >> 20);
    let rate = done.saturating_mul(1000) / m.resync_ms.max(1);
    if rate > 0 && all > done {
        let left = (all - done) / rate;
        state.push_str(&format!(
            ", {} MiB/s, {} left",
            rate >> 20,
            duration(left.saturating_mul(1000))
        ));
    }
    state
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

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(node: &str, version: &str, protocol: u16, trouble: Option<&str>) -> Heard {
        Heard {
            node: node.into(),
            address: None,
            age_ms: 0,
            report: Some(Report {
                node: node.into(),
                version: version.into(),
                protocol,
                up_ms: 1,
                drained: false,
                volumes: Vec::new(),
                wishes: Vec::new(),
                node_wishes: Vec::new(),
                pools: Vec::new(),
                problems: Vec::new(),
                host: None,
            }),
            trouble: trouble.map(str::to_owned),
        }
    }

    #[test]
    fn versions_that_differ_are_said_of_the_nodes_that_are_heard() {
        let said = |nodes: Vec<Heard>| {
            mixed(&ClusterReport {
                by: "a".into(),
                nodes,
            })
        };
        assert_eq!(said(Vec::new()), None);
        let (a, b) = (heard("a", "0.1.0", 1, None), heard("b", "0.2.0", 2, None));
        assert_eq!(said(vec![a.clone(), a.clone()]), None);
        let gone = heard("b", "0.2.0", 2, Some("no answer"));
        assert_eq!(said(vec![a.clone(), gone]), None);
        let told = said(vec![a.clone(), b]).unwrap_or_default();
        assert!(
            told.contains("a 0.1.0 (protocol 1), b 0.2.0 (protocol 2)"),
            "{told}"
        );
        // A node from before it was told, and one that only the protocol tells apart.
        let told = said(vec![a.clone(), heard("b", "0.1.0", 0, None)]).unwrap_or_default();
        assert!(told.contains("(protocol 1), b 0.1.0;"), "{told}");
    }
}
