//! What must not grow on a host while its daemon comes and goes.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::host::Host;

/// Descriptors and threads may differ by so many: connections come and go.
const SLACK: usize = 48;

/// What a host holds.
#[derive(Debug, Default)]
pub struct Holdings {
    host: String,
    links: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    /// Mount points, and how often each is mounted on.
    mounts: BTreeMap<String, usize>,
    processes: Vec<String>,
    zombies: usize,
    descriptors: usize,
    threads: usize,
}

/// What it holds now.
///
/// # Errors
/// It cannot be asked.
pub fn holdings(host: &Host) -> Result<Holdings> {
    let script = "ip -o link; echo --; ip netns list; echo --; cat /proc/mounts";
    let done = host.command(&["sh", "-c", script]).output();
    let said = done.map_err(crate::error::start("a look at a host"))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut parts = said.split("--\n");
    let mut words = |nth: usize| -> BTreeSet<String> {
        let lines = parts.next().unwrap_or_default().lines();
        let word = lines.filter_map(|l| l.split_whitespace().nth(nth));
        // An interface's name, without the number of its other end.
        word.map(|w| w.split(['@', ':']).next().unwrap_or_default().to_owned())
            .collect()
    };
    let (links, namespaces) = (words(1), words(0));
    let mut mounts = BTreeMap::new();
    for line in parts.next().unwrap_or_default().lines() {
        if let Some(at) = line.split_whitespace().nth(1) {
            *mounts.entry(at.to_owned()).or_default() += 1;
        }
    }
    let (zombies, living): (Vec<_>, Vec<_>) = host.processes().into_iter().partition(|p| p.zombie);
    let (daemon, _) = host.daemon();
    let count = |what: &str| {
        let dir = std::fs::read_dir(format!("/proc/{}/{what}", daemon.unwrap_or_default()));
        dir.map_or(0, Iterator::count)
    };
    let mut processes: Vec<String> = living.into_iter().map(|p| p.comm).collect();
    processes.sort();
    Ok(Holdings {
        host: host.name.clone(),
        links,
        namespaces,
        mounts,
        processes,
        zombies: zombies.len(),
        descriptors: count("fd"),
        threads: count("task"),
    })
}

/// What a host holds that it did not hold before, in words. `first` are all hosts as they were:
/// any of them may be the active one now, which holds more than the others.
pub fn grown(first: &[Holdings], now: &Holdings) -> Vec<String> {
    let most = |of: fn(&Holdings) -> usize| first.iter().map(of).max().unwrap_or_default();
    let Some(before) = first.iter().find(|h| h.host == now.host) else {
        return vec![format!("{} was not there", now.host)];
    };
    let mut out = Vec::new();
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            out.push(format!("{}: {what} were {a}, are {b}", now.host));
        }
    };
    let set = |s: &BTreeSet<String>| format!("{s:?}");
    differ("interfaces", set(&before.links), set(&now.links));
    differ(
        "network namespaces",
        set(&before.namespaces),
        set(&now.namespaces),
    );
    let list = |h: &Holdings| h.processes.join(" ");
    differ("processes", list(before), list(now));
    differ("zombies", "0".into(), now.zombies.to_string());
    // A host begins with copies of this machine's mounts, of which others may take theirs away.
    for (at, count) in &now.mounts {
        let was = before.mounts.get(at).copied().unwrap_or_default();
        if *count > was {
            out.push(format!(
                "{}: mounts on {at} were {was}, are {count}",
                now.host
            ));
        }
    }
    for (what, a, b) in [
        ("descriptors", most(|h| h.descriptors), now.descriptors),
        ("threads", most(|h| h.threads), now.threads),
    ] {
        if b > a + SLACK {
            out.push(format!("{}: {what} were {a}, are {b}", now.host));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_interface_is_told_and_a_few_descriptors_are_not() {
        let before = [Holdings::default()];
        let mut now = Holdings {
            descriptors: 5,
            ..Holdings::default()
        };
        assert!(grown(&before, &now).is_empty());
        now.links.insert("tvo1".into());
        now.threads = 500;
        now.mounts.insert("/mnt/left".into(), 1);
        assert_eq!(grown(&before, &now).len(), 3);
    }
}
