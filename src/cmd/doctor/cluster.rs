//! The daemons: who answers, which versions, how the volumes are, and whether the clocks agree.

use std::thread;
use std::time::Duration;

use trivet_node::guard;
use trivet_node::host::wall_ms;
use trivet_node::messages::{Answer, Ask, ClusterReport, HostReport, Report, Want};

use super::Seen;
use super::finding::Finding;
use crate::cmd::cluster::Cluster;
use crate::cmd::status::{Grade, active, grade};

/// A daemon that is well answers within this time.
const ANSWER: Duration = Duration::from_secs(3);
/// Between two looks at the clocks.
const BETWEEN: Duration = Duration::from_secs(2);
/// Wall clocks that differ by more are said, in milliseconds.
const APART: u64 = 1000;
/// A wall clock that moved by more against the time since boot was set, in milliseconds.
const STEP: u64 = 100;
/// Clocks that run apart faster are said, in millionths; members allow for 20,000.
const DRIFT: u64 = 10_000;

/// This machine's clocks, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    wall: u64,
    boot: u64,
}

fn now() -> Clocks {
    Clocks {
        wall: wall_ms(),
        boot: guard::now(),
    }
}

/// What a node said, and when it was asked.
#[derive(Debug)]
pub struct Asked {
    /// Its name.
    pub node: String,
    /// All that it has heard, or why it did not answer.
    pub said: Result<ClusterReport, String>,
    before: Clocks,
    after: Clocks,
}

impl Asked {
    /// What the node says of itself.
    pub fn own(&self) -> Option<(&str, &Report)> {
        let heard = self.said.as_ref().ok()?;
        let own = heard.nodes.iter().find(|n| n.node == self.node)?;
        Some((&self.node, own.report.as_ref()?))
    }

    fn host(&self) -> Option<HostReport> {
        self.own().and_then(|(_, r)| r.host)
    }
}

/// Asks all nodes at once.
pub fn ask_all(cluster: &Cluster) -> Vec<Asked> {
    thread::scope(|s| {
        let ask = |node: &str| {
            let before = now();
            let said = match cluster.ask(node, &Ask::Cluster, ANSWER) {
                Ok(Answer::Cluster(report)) => Ok(report),
                Ok(_) => Err("it answered another question".to_owned()),
                Err(e) => Err(e.to_string()),
            };
            Asked {
                node: node.to_owned(),
                said: said.map_err(|e| e.trim_start_matches("error: ").to_owned()),
                before,
                after: now(),
            }
        };
        let nodes = cluster.config.nodes.iter().map(|n| n.name.as_str());
        let threads: Vec<_> = nodes.map(|n| s.spawn(move || ask(n))).collect();
        let joined = threads.into_iter().filter_map(|t| t.join().ok());
        joined.collect()
    })
}

/// Who answers, and how everything is.
pub fn judge(seen: &Seen) -> Vec<Finding> {
    if seen.asked.is_empty() {
        return Vec::new();
    }
    let mut out = daemons(&seen.asked);
    out.extend(versions(&seen.asked, env!("CARGO_PKG_VERSION")));
    if let Some(report) = seen.report() {
        let names = seen.config.iter().flat_map(|c| &c.volumes);
        out.extend(names.flat_map(|v| volume(report, &v.name)));
        for n in &report.nodes {
            let problems = n.report.iter().flat_map(|r| &r.problems);
            out.extend(problems.map(|p| {
                Finding::bad(
                    "cluster",
                    format!("{} says: {p}", n.node),
                    "what it names must be put right there; `trivet event list` says since when",
                )
            }));
        }
    }
    out
}

fn daemons(asked: &[Asked]) -> Vec<Finding> {
    let heard_by = |node: &str| {
        let others = asked.iter().filter(|a| a.node != node);
        let hears = |a: &&Asked| {
            let said = a.said.iter().flat_map(|r| &r.nodes);
            said.filter(|n| n.node == node)
                .any(|n| n.report.is_some() && n.trouble.is_none())
        };
        others.filter(hears).map(|a| a.node.as_str()).next()
    };
    let one = |a: &Asked| match &a.said {
        Ok(_) => Finding::ok("cluster", format!("node {} answers", a.node)),
        Err(why) => match heard_by(&a.node) {
            Some(other) => Finding::bad(
                "cluster",
                format!(
                    "{other} hears node {}, and this machine does not: {why}",
                    a.node
                ),
                "the network between this machine and it: firewall, route, or a key it does not know",
            ),
            None => Finding::bad(
                "cluster",
                format!("node {} does not answer: {why}", a.node),
                "there: `systemctl status trivet` and `journalctl -u trivet -n 50`",
            ),
        },
    };
    asked.iter().map(one).collect()
}

fn versions(asked: &[Asked], own: &str) -> Option<Finding> {
    let all: Vec<(&str, &str)> = asked
        .iter()
        .filter_map(|a| a.own().map(|(n, r)| (n, r.version.as_str())))
        .collect();
    let (_, first) = all.first()?;
    if all.iter().all(|(_, v)| v == first) && *first == own {
        return Some(Finding::ok("version", format!("all that answer run {own}")));
    }
    let all: Vec<String> = all.iter().map(|(n, v)| format!("{n} {v}")).collect();
    Some(Finding::warn(
        "version",
        format!("versions differ: this program {own}, {}", all.join(", ")),
        "finish the upgrade: on each node `trivet drain N && systemctl restart trivet && trivet \
         undrain N`",
    ))
}

fn volume(seen: &ClusterReport, name: &str) -> Vec<Finding> {
    let mut out = Vec::new();
    out.push(match grade(seen, name) {
        Grade::Redundant => Finding::ok("volume", format!("{name} is served and redundant")),
        Grade::Degraded => Finding::warn(
            "volume",
            format!("{name} is served, and not as redundant as it should be"),
            format!("`trivet status {name}` says which member is missing or catching up"),
        ),
        Grade::NotServed if stopped(seen, name) => Finding::warn(
            "volume",
            format!("{name} is active nowhere, by command"),
            format!("`trivet promote {name}` when it is wanted again"),
        ),
        Grade::NotServed => Finding::bad(
            "volume",
            format!("{name} is active nowhere"),
            format!("`trivet status {name}` says who holds a promise or is missing"),
        ),
    });
    if let Some((_, a)) = active(seen, name) {
        let warn = |w: &String| {
            Finding::warn(
                "volume",
                format!("{name}: {w}"),
                format!("`trivet status {name}`"),
            )
        };
        out.extend(a.warnings.iter().map(warn));
    }
    out
}

/// Whether the newest wish that anybody knows is that it be stopped.
fn stopped(seen: &ClusterReport, name: &str) -> bool {
    let reports = || seen.nodes.iter().filter_map(|n| n.report.as_ref());
    let mut volumes = reports().flat_map(|r| &r.volumes);
    let Some(id) = volumes.find(|v| v.name == name).map(|v| v.id) else {
        return false;
    };
    let wishes = reports().flat_map(|r| &r.wishes);
    let newest = wishes.filter(|w| w.volume == id).max_by_key(|w| w.number);
    newest.is_some_and(|w| w.want == Want::Stopped)
}

/// Looks at all clocks again, after a while.
pub fn clocks(cluster: &Cluster, seen: &Seen) -> Vec<Finding> {
    let began = now();
    // So that clocks that run apart can be told from an answer that took its time.
    thread::sleep(BETWEEN);
    let again = ask_all(cluster);
    let mut out = vec![step(began, now())];
    for (a, b) in seen.asked.iter().zip(&again) {
        out.extend(apart(b));
        out.extend(drift(a, b));
    }
    out
}

/// Whether this machine's wall clock was set while time passed.
fn step(before: Clocks, after: Clocks) -> Finding {
    let wall = after.wall.abs_diff(before.wall);
    let boot = after.boot.abs_diff(before.boot);
    let back = after.wall < before.wall;
    match wall.abs_diff(boot) {
        0..=STEP if !back => Finding::ok("clock", "this machine's clock goes steadily"),
        by => Finding::warn(
            "clock",
            format!("this machine's clock was set by {by} ms within {boot} ms"),
            "let chrony or systemd-timesyncd slew it; leases do not depend on it, times of files do",
        ),
    }
}

/// Whether a node's wall clock is that of this machine.
fn apart(a: &Asked) -> Option<Finding> {
    let host = a.host()?;
    // It was read somewhere between the two.
    let early = a.before.wall.saturating_sub(host.wall_ms);
    let late = host.wall_ms.saturating_sub(a.after.wall);
    let node = &a.node;
    Some(match early.max(late) {
        0..=APART => Finding::ok("clock", format!("node {node} has this machine's time")),
        by => Finding::warn(
            "clock",
            format!("the clock of node {node} is {by} ms away from this machine's"),
            "run chrony or systemd-timesyncd on all nodes: after a move, times of files would jump",
        ),
    })
}

/// Whether the clocks that leases are counted by run at the same speed.
fn drift(a: &Asked, b: &Asked) -> Option<Finding> {
    let (first, second) = (a.host()?, b.host()?);
    let there = second.boot_ms.checked_sub(first.boot_ms)?;
    // Bounds of what passed here between the two readings.
    let least = b.before.boot.saturating_sub(a.after.boot);
    let most = b.after.boot.saturating_sub(a.before.boot);
    let off = least.saturating_sub(there).max(there.saturating_sub(most));
    let parts = off.saturating_mul(1_000_000) / most.max(1);
    (parts > DRIFT).then(|| {
        Finding::bad(
            "clock",
            format!(
                "the time since boot of node {} runs {parts} millionths off this machine's",
                a.node
            ),
            "leases allow for 20000: look at the clock source (`dmesg | grep -i clocksource`)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::finding::Level;
    use trivet_node::messages::Heard;

    fn at(ms: u64) -> Clocks {
        Clocks {
            wall: 1_000_000 + ms,
            boot: ms,
        }
    }

    fn report(node: &str, version: &str, host: Option<HostReport>) -> Heard {
        Heard {
            node: node.into(),
            address: None,
            age_ms: 0,
            report: Some(Report {
                node: node.into(),
                version: version.into(),
                protocol: 1,
                up_ms: 1,
                drained: false,
                volumes: Vec::new(),
                wishes: Vec::new(),
                node_wishes: Vec::new(),
                pools: Vec::new(),
                problems: Vec::new(),
                host,
            }),
            trouble: None,
        }
    }

    /// Node `n`, asked at `ms` for 10 ms, with a clock that is `ahead` and a boot time of `boot`.
    fn asked(n: &str, version: &str, ms: u64, ahead: i64, boot: u64) -> Asked {
        let host = HostReport {
            wall_ms: (1_000_000 + ms + 5).saturating_add_signed(ahead),
            boot_ms: boot,
            mtu: None,
        };
        Asked {
            node: n.into(),
            said: Ok(ClusterReport {
                by: n.into(),
                nodes: vec![report(n, version, Some(host))],
            }),
            before: at(ms),
            after: at(ms + 10),
        }
    }

    #[test]
    fn clocks_that_differ_are_told_from_slow_answers() {
        let level = |ahead| apart(&asked("a", "1", 0, ahead, 0)).unwrap().level;
        assert_eq!(level(0), Level::Ok);
        assert_eq!(level(900), Level::Ok);
        assert_eq!(level(1100), Level::Warn);
        assert_eq!(level(-1100), Level::Warn);
        let first = asked("a", "1", 0, 0, 70_000);
        let even = asked("a", "1", 2000, 0, 72_000);
        assert_eq!(drift(&first, &even), None);
        // 2.3 s there, 2 s here, of which 10 ms may have been lost on either way.
        let fast = asked("a", "1", 2000, 0, 72_300);
        assert_eq!(drift(&first, &fast).unwrap().level, Level::Bad);
        assert_eq!(drift(&first, &asked("a", "1", 2000, 0, 72_010)), None);
    }

    #[test]
    fn a_clock_that_was_set_is_noticed() {
        assert_eq!(step(at(0), at(2000)).level, Level::Ok);
        let set = Clocks {
            wall: 1_003_000,
            boot: 2000,
        };
        assert_eq!(step(at(0), set).level, Level::Warn);
        let back = Clocks {
            wall: 999_999,
            boot: 2,
        };
        assert_eq!(step(at(0), back).level, Level::Warn);
    }

    #[test]
    fn versions_differ_until_all_are_upgraded() {
        let two = [asked("a", "1", 0, 0, 0), asked("b", "1", 0, 0, 0)];
        assert_eq!(versions(&two, "1").unwrap().level, Level::Ok);
        assert_eq!(versions(&two, "2").unwrap().level, Level::Warn);
        let mixed = [asked("a", "1", 0, 0, 0), asked("b", "2", 0, 0, 0)];
        assert!(versions(&mixed, "1").unwrap().what.contains("b 2"));
        assert_eq!(versions(&[], "1"), None);
    }

    #[test]
    fn a_node_that_only_this_machine_does_not_hear_is_a_matter_of_the_network() {
        let mut a = asked("a", "1", 0, 0, 0);
        let Ok(heard) = &mut a.said else { return };
        heard.nodes.push(report("b", "1", None));
        let b = Asked {
            node: "b".into(),
            said: Err("timed out".into()),
            before: at(0),
            after: at(1),
        };
        let found = daemons(&[a, b]);
        assert_eq!(found[0].level, Level::Ok);
        assert!(found[1].what.starts_with("a hears node b"), "{found:#?}");
    }
}
