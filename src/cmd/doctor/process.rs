//! The daemons that run on this machine, those in containers included: whether the memory killer
//! would take them, and whether they may wait for their own export.
//!
//! Also who has a socket, for [`super::ports`]: both are in `/proc`.

use std::collections::BTreeMap;
use std::path::Path;

use super::Seen;
use super::finding::Finding;

const CHECK: &str = "process";
/// The unit and the hookscript set -950; from here on others are taken first.
const PROTECTED: i32 = -900;
/// PF_MEMALLOC_NOIO in the flags of `/proc/PID/stat`: what PR_SET_IO_FLUSHER sets (Linux 5.6).
const IO_FLUSHER: u64 = 0x0008_0000;
/// Processes that are looked at, at most.
const MOST: usize = 100_000;

/// A daemon of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    pid: u32,
    /// `--node`, or nothing where it goes by the host's name.
    node: Option<String>,
    oom_score_adj: Option<i32>,
    io_flusher: Option<bool>,
    /// In a user namespace other than ours: a container without privileges.
    contained: bool,
}

/// Looks at all.
pub fn look(_: &Seen) -> Vec<Finding> {
    judge(&daemons(Path::new("/proc")))
}

/// The processes of `trivet serve`, parents and children.
pub fn daemons(proc: &Path) -> Vec<Daemon> {
    let own = std::fs::read_link(proc.join("self/ns/user")).ok();
    pids(proc)
        .filter_map(|pid| {
            let dir = proc.join(pid.to_string());
            let line = std::fs::read(dir.join("cmdline")).ok()?;
            let words: Vec<String> = line
                .split(|b| *b == 0)
                .map(|w| String::from_utf8_lossy(w).into_owned())
                .collect();
            let node = serves(&words)?;
            let oom = std::fs::read_to_string(dir.join("oom_score_adj")).ok();
            let stat = std::fs::read_to_string(dir.join("stat")).ok();
            Some(Daemon {
                pid,
                node,
                oom_score_adj: oom.and_then(|t| t.trim().parse().ok()),
                io_flusher: stat.and_then(|s| flags(&s)).map(|f| f & IO_FLUSHER != 0),
                contained: std::fs::read_link(dir.join("ns/user")).ok() != own,
            })
        })
        .collect()
}

fn pids(proc: &Path) -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let number = |e: std::fs::DirEntry| e.file_name().to_str()?.parse().ok();
    entries.filter_map(number).take(MOST)
}

/// Of a command line: whether it is `trivet serve`, and the node that it names.
fn serves(words: &[String]) -> Option<Option<String>> {
    let program = words.first()?.rsplit('/').next()?;
    if program != "trivet" || !words.iter().any(|w| w == "serve") {
        return None;
    }
    let at = words.iter().position(|w| w == "--node");
    let next = at.and_then(|i| words.get(i + 1)).cloned();
    let joined = words.iter().find_map(|w| w.strip_prefix("--node="));
    Some(next.or(joined.map(str::to_owned)))
}

/// The ninth field of `/proc/PID/stat`; the second is a name in brackets that may hold anything.
fn flags(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(6)?.parse().ok()
}

fn judge(all: &[Daemon]) -> Vec<Finding> {
    if all.is_empty() {
        return vec![Finding::ok(CHECK, "no `trivet serve` runs on this machine")];
    }
    let mut out = Vec::new();
    for contained in [false, true] {
        let these = || all.iter().filter(|d| d.contained == contained);
        let place = if contained { " in a container" } else { "" };
        let exposed = these().filter(|d| d.oom_score_adj.is_some_and(|s| s > PROTECTED));
        match (names(exposed), names(these())) {
            (_, None) => continue,
            (None, Some(who)) => out.push(Finding::ok(
                CHECK,
                format!("the memory killer takes others before trivet{place}: {who}"),
            )),
            (Some(who), _) => out.push(Finding::warn(
                CHECK,
                format!("short of memory, the kernel may kill trivet{place}: {who}"),
                match contained {
                    true => "its hookscript sets the score: use that of /usr/share/trivet/lxc",
                    false => "run it by its unit, which has OOMScoreAdjust=-950",
                },
            )),
        }
        let waits = these().filter(|d| d.io_flusher == Some(false));
        match names(waits) {
            None => out.push(Finding::ok(
                CHECK,
                format!("trivet{place} is an IO flusher: memory never makes it wait for itself"),
            )),
            Some(who) => out.push(Finding::warn(
                CHECK,
                format!(
                    "no IO flusher, short of memory trivet{place} may wait for its own export: {who}"
                ),
                match contained {
                    true => {
                        "only a process itself can set it, and none in an unprivileged container \
                         may: leave this host memory to spare"
                    }
                    false => "run it by its unit, which lets it set that (CAP_SYS_RESOURCE)",
                },
            )),
        }
    }
    out
}

/// Processes and the nodes that they name; nothing for none.
fn names<'a>(daemons: impl Iterator<Item = &'a Daemon>) -> Option<String> {
    let name = |d: &Daemon| match &d.node {
        Some(node) => format!("{} ({node})", d.pid),
        None => d.pid.to_string(),
    };
    let all: Vec<String> = daemons.map(name).collect();
    (!all.is_empty()).then(|| format!("process {}", all.join(", ")))
}

/// Names of the processes that have these sockets, by inode; takes root for those of others.
pub fn owners(proc: &Path, sockets: &[u64]) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    for pid in pids(proc) {
        if found.len() == sockets.len() {
            break;
        }
        let dir = proc.join(pid.to_string());
        let fds = std::fs::read_dir(dir.join("fd"));
        for fd in fds.into_iter().flatten().flatten() {
            let Ok(target) = std::fs::read_link(fd.path()) else {
                continue;
            };
            let inode = socket_of(&target.to_string_lossy());
            if let Some(inode) = inode.filter(|i| sockets.contains(i)) {
                found.insert(inode, name_of(&dir));
            }
        }
    }
    found
}

/// As it calls itself: the name of the file that runs is "exe" for a daemon that its parent started
/// out of `/proc/self/exe`.
fn name_of(dir: &Path) -> String {
    let line = std::fs::read(dir.join("cmdline")).unwrap_or_default();
    let first = line.split(|b| *b == 0).next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    // Some put what they do into their first argument: "nginx: worker".
    let word = first.split([' ', ':']).next().unwrap_or_default();
    match word.rsplit('/').next() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => std::fs::read_to_string(dir.join("comm"))
            .unwrap_or_default()
            .trim()
            .to_owned(),
    }
}

fn socket_of(target: &str) -> Option<u64> {
    let inner = target.strip_prefix("socket:[")?.strip_suffix(']')?;
    inner.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::finding::Level;

    #[test]
    fn command_lines_are_told_apart() {
        let of = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            serves(&words)
        };
        assert_eq!(of("/usr/bin/trivet serve"), Some(None));
        assert_eq!(of("trivet serve --node a"), Some(Some("a".into())));
        assert_eq!(of("trivet serve --node=a -v"), Some(Some("a".into())));
        assert_eq!(of("trivet status"), None);
        assert_eq!(of("grep trivet serve"), None);
    }

    #[test]
    fn flags_stand_behind_any_name() {
        let stat = "7 (a) b ( c) S 1 7 7 0 -1 4718848 1 2 3";
        assert_eq!(flags(stat), Some(4_718_848));
        assert_ne!(4_718_848 & IO_FLUSHER, 0);
        assert_eq!(flags("7 (x"), None);
    }

    #[test]
    fn what_protects_a_daemon_is_said_of_each() {
        let mut d = Daemon {
            pid: 7,
            node: None,
            oom_score_adj: Some(-950),
            io_flusher: Some(true),
            contained: false,
        };
        let levels = |d: &Daemon| -> Vec<Level> {
            let found = judge(std::slice::from_ref(d));
            found.iter().map(|f| f.level).collect()
        };
        assert_eq!(levels(&d), [Level::Ok, Level::Ok]);
        d.oom_score_adj = Some(0);
        d.io_flusher = Some(false);
        d.contained = true;
        assert_eq!(levels(&d), [Level::Warn, Level::Warn]);
        let found = judge(&[
            Daemon {
                pid: 8,
                ..d.clone()
            },
            d,
        ]);
        assert_eq!(found.len(), 2, "one finding for all: {found:#?}");
        assert!(found[0].what.ends_with("process 8, 7"));
    }

    #[test]
    fn the_owner_of_a_socket_is_found() {
        use std::os::fd::AsRawFd;
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let inode = socket_of(&std::fs::read_link(link).unwrap().to_string_lossy()).unwrap();
        let program = std::env::current_exe().unwrap();
        let own = program.file_name().and_then(|n| n.to_str());
        let found = owners(Path::new("/proc"), &[inode]);
        assert_eq!(found.get(&inode).map(String::as_str), own);
    }
}
