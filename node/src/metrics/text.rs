//! Prometheus' text format, version 0.0.4.

use std::fmt::Write;

use super::figures::{BOUNDS, Figure, Kind};
use crate::messages::{ClusterReport, MoveKind, Report, Standing, VolumeReport};

/// Families of samples, each with its help and type once.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string does not fail.
        let _ = write!(
            self.0,
            "# HELP trivet_{name} {help}\n# TYPE trivet_{name} {kind}\n"
        );
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.0, "trivet_{name}");
        for (i, (label, text)) in labels.iter().enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{open}{label}=\"{}\"", escaped(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// A gauge of each volume for which `value` has one.
    fn of_volumes<V: std::fmt::Display>(
        &mut self,
        name: &str,
        help: &str,
        report: &Report,
        value: impl Fn(&VolumeReport) -> Option<V>,
    ) {
        self.family(name, "gauge", help);
        for v in &report.volumes {
            if let Some(value) = value(v) {
                self.sample(name, &[("volume", &v.name)], value);
            }
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// All of it: what the node knows of itself and the others, and what was counted.
pub fn page(seen: &ClusterReport, figures: &[Figure]) -> String {
    let mut page = Page::default();
    let own = seen.nodes.iter().find(|n| n.node == seen.by);
    if let Some(report) = own.and_then(|n| n.report.as_ref()) {
        node(&mut page, report, seen);
        volumes(&mut page, report);
        members(&mut page, report);
        nfs(&mut page, report);
    }
    figures.iter().for_each(|f| figure(&mut page, f));
    page.0
}

fn node(page: &mut Page, report: &Report, seen: &ClusterReport) {
    page.family("build_info", "gauge", "The running program.");
    page.sample(
        "build_info",
        &[("version", &report.version), ("node", &report.node)],
        1,
    );
    let up = seconds(report.up_ms);
    page.gauge("uptime_seconds", "For how long the daemon runs.", up);
    let drained = u8::from(report.drained);
    page.gauge("node_drained", "1 if the node is out of service.", drained);
    let problems = report.problems.len();
    page.gauge(
        "problems",
        "Regions that could not be opened, and the like; /healthz names them.",
        problems,
    );
    page.family("node_heard", "gauge", "1 if this node hears that one.");
    for n in &seen.nodes {
        let heard = n.trouble.is_none() && n.report.is_some();
        page.sample("node_heard", &[("node", &n.node)], u8::from(heard));
    }
    page.family("pool_free_bytes", "gauge", "Bytes free in a pool.");
    for p in &report.pools {
        page.sample("pool_free_bytes", &[("pool", &p.name)], p.free);
    }
    page.family("pool_size_bytes", "gauge", "Bytes of a pool in all.");
    for p in &report.pools {
        page.sample("pool_size_bytes", &[("pool", &p.name)], p.size);
    }
}

fn volumes(page: &mut Page, report: &Report) {
    page.family(
        "volume_role",
        "gauge",
        "1 for what this node is for a volume.",
    );
    for v in &report.volumes {
        for (name, standing) in [
            ("none", Standing::None),
            ("standby", Standing::Standby),
            ("promoting", Standing::Promoting),
            ("active", Standing::Active),
            ("demoting", Standing::Demoting),
        ] {
            let is = u8::from(v.role.standing == standing);
            page.sample("volume_role", &[("volume", &v.name), ("role", name)], is);
        }
    }
    page.of_volumes(
        "volume_generation",
        "The generation that holds it, or the last one that its member here promised to.",
        report,
        |v| {
            let promised = v.members.iter().map(|m| m.promise).max();
            v.active.as_ref().map(|a| a.generation).or(promised)
        },
    );
    page.of_volumes(
        "volume_lease_left_seconds",
        "How long the lease still runs, where it is active.",
        report,
        |v| Some(seconds(v.active.as_ref()?.lease_left_ms)),
    );
    page.of_volumes(
        "volume_in_sync_members",
        "Replicas that count, where it is active.",
        report,
        |v| {
            Some(
                v.active
                    .as_ref()?
                    .members
                    .iter()
                    .filter(|m| m.in_sync)
                    .count(),
            )
        },
    );
    page.of_volumes(
        "volume_failures_tolerated",
        "Replicas that can be lost now without losing data or service, where it is active.",
        report,
        |v| Some(v.active.as_ref()?.failures_tolerated),
    );
    page.of_volumes(
        "volume_diskless",
        "1 if it is active here without a replica here.",
        report,
        |v| Some(u8::from(v.active.as_ref()?.diskless)),
    );
    page.of_volumes(
        "volume_size_bytes",
        "Its size, where it is active.",
        report,
        |v| Some(v.active.as_ref()?.bytes),
    );
    page.of_volumes(
        "volume_pool_free_bytes",
        "Bytes free in the fullest pool beneath, where it is active.",
        report,
        |v| Some(v.active.as_ref()?.free),
    );
    page.of_volumes(
        "volume_nfs_connections",
        "Connections of NFS clients, where it is active.",
        report,
        |v| Some(v.active.as_ref()?.connections),
    );
    moves(page, report);
}

fn moves(page: &mut Page, report: &Report) {
    let why = |kind| match kind {
        MoveKind::Planned => "planned",
        MoveKind::Promoted => "promoted",
        MoveKind::Takeover => "takeover",
    };
    page.family(
        "volume_last_move_seconds",
        "gauge",
        "How long the last move of the active role to this node took, from its begin to its end.",
    );
    for v in &report.volumes {
        if let Some(m) = &v.role.last_move {
            let took = m.timeline.last().map_or(0.0, |(_, ms)| ms / 1000.0);
            let labels = [("volume", v.name.as_str()), ("why", why(m.why))];
            page.sample("volume_last_move_seconds", &labels, took);
        }
    }
    page.of_volumes(
        "volume_last_move_timestamp_seconds",
        "When that was, in seconds since 1970.",
        report,
        |v| Some(v.role.last_move.as_ref()?.at),
    );
}

fn members(page: &mut Page, report: &Report) {
    let active = || {
        let of = |v: &'_ VolumeReport| Some((v.name.clone(), v.active.clone()?));
        report.volumes.iter().filter_map(of)
    };
    page.family(
        "member_in_sync",
        "gauge",
        "1 if the member counts, as the active node sees it.",
    );
    for (volume, a) in active() {
        for m in &a.members {
            let labels = [("volume", volume.as_str()), ("node", m.node.as_str())];
            page.sample("member_in_sync", &labels, u8::from(m.in_sync));
        }
    }
    page.family("member_up", "gauge", "1 if the member is connected.");
    for (volume, a) in active() {
        for m in &a.members {
            let labels = [("volume", volume.as_str()), ("node", m.node.as_str())];
            page.sample("member_up", &labels, u8::from(m.up));
        }
    }
    type Pick = fn(&crate::messages::ScrubReport) -> u64;
    let families: [(&str, &str, Pick); 4] = [
        ("scrub_running", "1 while a scrub goes on.", |s| {
            u64::from(s.running)
        }),
        (
            "scrub_looked_bytes",
            "Bytes of each replica that the present or last scrub has read.",
            |s| s.looked,
        ),
        (
            "scrub_wrong_blocks",
            "Blocks of which it found a bad copy.",
            |s| s.wrong_blocks,
        ),
        (
            "scrub_left_blocks",
            "Blocks with a bad copy that it could not repair.",
            |s| s.left_blocks,
        ),
    ];
    for (name, help, pick) in families {
        page.of_volumes(name, help, report, |v| {
            Some(pick(v.active.as_ref()?.scrub.as_ref()?))
        });
    }
    page.family(
        "member_resync_left_bytes",
        "gauge",
        "Bytes that its resync has still to compare; more may be found.",
    );
    for (volume, a) in active() {
        for m in &a.members {
            let labels = [("volume", volume.as_str()), ("node", m.node.as_str())];
            let left = m.resync.map_or(0, |(done, all)| all.saturating_sub(done));
            page.sample("member_resync_left_bytes", &labels, left);
        }
    }
}

fn nfs(page: &mut Page, report: &Report) {
    let counts = || {
        let of = |v: &'_ VolumeReport| Some((v.name.clone(), v.active.as_ref()?.nfs?));
        report.volumes.iter().filter_map(of)
    };
    type Pick = fn(&crate::messages::NfsCounts) -> u64;
    let families: [(&str, &str, Pick); 5] = [
        ("nfs_calls_total", "Calls received.", |c| c.calls),
        (
            "nfs_connections_refused_total",
            "Connections refused because of a limit.",
            |c| c.refused,
        ),
        (
            "nfs_connections_ended_bad_total",
            "Connections ended because of what the client sent.",
            |c| c.ended_bad,
        ),
        (
            "nfs_stalls_total",
            "Times that a connection had to wait because too much was in flight.",
            |c| c.stalls,
        ),
        (
            "nfs_replies_held_total",
            "Replies held back because the lease had lapsed.",
            |c| c.silent,
        ),
    ];
    for (name, help, pick) in families {
        page.family(name, "counter", help);
        for (volume, c) in counts() {
            page.sample(name, &[("volume", &volume)], pick(&c));
        }
    }
}

fn figure(page: &mut Page, f: &Figure) {
    let name = f.name.replace(['.', '-'], "_");
    match f.kind {
        Kind::Counter => {
            let name = format!("{name}_total");
            page.family(&name, "counter", "Counted since the daemon started.");
            page.sample(&name, &[], f.value);
        }
        Kind::Gauge => page.gauge(&name, "As it is now.", f.value),
        Kind::Times => {
            let name = format!("{name}_seconds");
            page.family(&name, "histogram", "Latencies of one stage.");
            let bucket = format!("{name}_bucket");
            let mut below = 0;
            for (n, bound) in f.buckets.iter().zip(BOUNDS) {
                below += n;
                let le = (bound as f64 / 1e9).to_string();
                page.sample(&bucket, &[("le", &le)], below);
            }
            let all: u64 = f.buckets.iter().sum();
            page.sample(&bucket, &[("le", "+Inf")], all);
            page.sample(&format!("{name}_sum"), &[], f.value as f64 / 1e9);
            page.sample(&format!("{name}_count"), &[], all);
        }
    }
}

/// Whether this daemon does its part, and why not: what `/healthz` says.
pub fn health(report: &Report) -> (bool, Vec<String>) {
    let mut why = report.problems.clone();
    for v in &report.volumes {
        for m in v.members.iter().filter(|m| !m.removed) {
            if let Some(trouble) = &m.unusable {
                why.push(format!("volume {}: its member here: {trouble}", v.name));
            }
        }
    }
    (why.is_empty(), why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Figures;
    use trivet_protocol::Recorder;

    #[test]
    fn figures_are_written_as_prometheus_reads_them() {
        let figures = Figures::default();
        figures.count("a.errors", 3);
        figures.gauge("a.depth", 5);
        figures.time("a.sync", 20_000);
        figures.time("a.sync", 20_000_000_000);
        let seen = ClusterReport {
            by: "n".into(),
            nodes: Vec::new(),
        };
        let text = page(&seen, &figures.all());
        for line in [
            "# TYPE trivet_a_errors_total counter",
            "trivet_a_errors_total 3",
            "trivet_a_depth 5",
            "trivet_a_sync_seconds_bucket{le=\"0.00001\"} 0",
            "trivet_a_sync_seconds_bucket{le=\"0.000025\"} 1",
            "trivet_a_sync_seconds_bucket{le=\"10\"} 1",
            "trivet_a_sync_seconds_bucket{le=\"+Inf\"} 2",
            "trivet_a_sync_seconds_sum 20.00002",
            "trivet_a_sync_seconds_count 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
