//! The pools of this machine: whether their disks keep what they say they kept, how long that
//! takes, how much room there is, and on which file system.
//!
//! A disk whose "synced" comes faster than any flash can be written either has power-loss
//! protection or lies. Which of the two is not seen from here; what the kernel believes of it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use trivet_downstairs::pool::Pool;

use super::Seen;
use super::finding::Finding;
use super::mounts;

const CHECK: &str = "disk";
/// Bytes of the file that is written to, as the log is: written once before, so that a sync moves
/// no metadata.
const FILE: usize = 256 << 10;
const BLOCK: usize = 4096;
/// Writes with a sync each, at most, and in how long.
const WRITES: usize = 200;
const TIME: Duration = Duration::from_secs(3);
/// A median below is too good for a disk with a volatile cache, in microseconds.
const TOO_GOOD: u64 = 20;
/// A median above makes guests slow; a 99th percentile above makes them wait noticeably.
const SLOW: u64 = 5_000;
const WAITS: u64 = 50_000;
/// Of a pool's size: below the first it is time to act, below the second writes soon stop.
const LOW_PERCENT: u64 = 10;
const FULL_PERCENT: u64 = 3;

/// The pools of the nodes that are this machine: node, pool, directory.
pub fn pools(seen: &Seen) -> Vec<(String, String, PathBuf)> {
    let of = |n: &trivet_node::config::NodeConfig| {
        let own = n.pools.iter();
        own.map(|(p, dir)| (n.name.clone(), p.clone(), dir.clone()))
            .collect::<Vec<_>>()
    };
    seen.own().flat_map(of).collect()
}

/// What was seen of a pool's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Disk {
    /// Kind of file system, and its options.
    kind: String,
    options: Vec<String>,
    /// What the kernel believes: `Some(true)` if the disk has a volatile cache.
    volatile: Option<bool>,
    /// Microseconds that each write with its sync took, sorted.
    took: Vec<u64>,
}

/// Looks at one pool.
pub fn look(node: &str, name: &str, dir: &Path) -> Vec<Finding> {
    let pool = format!("pool {name} of {node} ({})", dir.display());
    if let Err(e) = Pool::open(dir) {
        return vec![Finding::bad(
            CHECK,
            format!("{pool}: {e}"),
            "mount its disk; for a new one: `trivet pool create`, then `systemctl restart trivet`",
        )];
    }
    let mut out = Vec::new();
    match rustix::fs::statvfs(dir) {
        Ok(s) => {
            let bytes = |blocks: u64| blocks.saturating_mul(s.f_frsize);
            out.push(space(&pool, bytes(s.f_bavail), bytes(s.f_blocks)));
        }
        Err(e) => out.push(broken(&pool, &e.into())),
    }
    match measure(dir) {
        Ok(took) => {
            let disk = Disk {
                took,
                ..beneath(dir)
            };
            out.extend(judge(&pool, &disk));
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => out.push(Finding::warn(
            CHECK,
            format!("{pool}: how fast it syncs is not known: {e}"),
            "run it again as root",
        )),
        Err(e) => out.push(broken(&pool, &e)),
    }
    out
}

fn broken(pool: &str, e: &io::Error) -> Finding {
    Finding::bad(
        CHECK,
        format!("{pool}: {e}"),
        "`dmesg | tail` says what the disk has; its replica can go elsewhere: `trivet replica move`",
    )
}

fn space(pool: &str, free: u64, size: u64) -> Finding {
    let gib = |b: u64| b >> 30;
    let what = format!("{pool}: {} of {} GiB free", gib(free), gib(size));
    let percent = free.saturating_mul(100) / size.max(1);
    let remedy = "make room, enlarge it, or move a replica elsewhere: `trivet replica move`";
    match percent {
        0..FULL_PERCENT => Finding::bad(CHECK, what, remedy),
        FULL_PERCENT..LOW_PERCENT => Finding::warn(CHECK, what, remedy),
        _ => Finding::ok(CHECK, what),
    }
}

/// The file that is written to, gone again whatever happens.
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody else has a use for it, and the next run has a name of its own.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes and syncs; microseconds that each took, sorted.
fn measure(dir: &Path) -> io::Result<Vec<u64>> {
    let path = dir.join(format!(".trivet-doctor-{}", std::process::id()));
    let mut options = File::options();
    let file = options.write(true).create_new(true).open(&path)?;
    let scratch = Scratch { file, path };
    scratch.file.write_all_at(&vec![1; FILE], 0)?;
    scratch.file.sync_all()?;
    let began = Instant::now();
    let mut took = Vec::with_capacity(WRITES);
    for n in 0..WRITES {
        let block = vec![n as u8; BLOCK];
        let at = (n % (FILE / BLOCK)) * BLOCK;
        let write = Instant::now();
        scratch.file.write_all_at(&block, at as u64)?;
        scratch.file.sync_data()?;
        took.push(u64::try_from(write.elapsed().as_micros()).unwrap_or(u64::MAX));
        if began.elapsed() > TIME {
            break;
        }
    }
    took.sort_unstable();
    Ok(took)
}

/// File system and disk beneath a directory, as far as the kernel tells.
fn beneath(dir: &Path) -> Disk {
    let text = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let real = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    let all = mounts::parse(&text);
    let over = all.iter().filter(|m| real.starts_with(&m.target));
    // Of those mounted over each other the last one counts.
    let mount = over.max_by_key(|m| m.target.len());
    let device = std::fs::metadata(dir).map(|m| m.dev()).unwrap_or_default();
    Disk {
        kind: mount.map(|m| m.kind.clone()).unwrap_or_default(),
        options: mount.map(|m| m.options.clone()).unwrap_or_default(),
        volatile: cache(Path::new("/sys"), device),
        took: Vec::new(),
    }
}

/// Whether the disk with this number has a volatile cache; a partition asks its disk.
fn cache(sys: &Path, device: u64) -> Option<bool> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let dir = sys.join(format!("dev/block/{major}:{minor}"));
    let dir = std::fs::canonicalize(dir).ok()?;
    let text = std::fs::read_to_string(dir.join("queue/write_cache"))
        .or_else(|_| std::fs::read_to_string(dir.join("../queue/write_cache")));
    Some(text.ok()?.trim() == "write back")
}

fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let at = sorted.len() * percent / 100;
    let at = at.min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

fn judge(pool: &str, disk: &Disk) -> Vec<Finding> {
    let mut out = Vec::new();
    let kind = disk.kind.as_str();
    if ["tmpfs", "ramfs"].contains(&kind) {
        out.push(Finding::bad(
            CHECK,
            format!("{pool}: it is on {kind}, and gone with the power"),
            "put the pool on a disk",
        ));
        return out;
    }
    if kind.starts_with("nfs") || ["cifs", "fuse.sshfs", "9p", "overlay"].contains(&kind) {
        out.push(Finding::warn(
            CHECK,
            format!("{pool}: it is on {kind}, not on a disk of this machine"),
            "put the pool on a local file system: ext4, xfs, btrfs, zfs",
        ));
    }
    let lies = ["nobarrier", "barrier=0", "nobarriers"];
    if let Some(option) = disk.options.iter().find(|o| lies.contains(&o.as_str())) {
        out.push(Finding::bad(
            CHECK,
            format!("{pool}: mounted with {option}, a sync does not reach the disk"),
            format!("remount it without {option}"),
        ));
    }
    let (median, p99) = (percentile(&disk.took, 50), percentile(&disk.took, 99));
    let cache = match disk.volatile {
        Some(true) => "volatile cache",
        Some(false) => "no volatile cache, says the kernel",
        None => "cache unknown",
    };
    let what = format!(
        "{pool}: {kind}, {cache}, 4 KiB with fdatasync {median} us, 99 % within {p99} us, n={}",
        disk.took.len()
    );
    out.push(match disk.volatile {
        Some(true) if median < TOO_GOOD => Finding::bad(
            CHECK,
            format!("{what}: too fast to be true, flushes seem to be ignored"),
            "for a virtual disk set its cache to none or writethrough, not unsafe; for a real one look \
             for power-loss protection in its data sheet",
        ),
        None if median < TOO_GOOD => Finding::warn(
            CHECK,
            format!("{what}: true only with power-loss protection"),
            "look for it in the disk's data sheet; on ZFS: `zfs get sync` must not be disabled",
        ),
        _ if median > SLOW => Finding::warn(
            CHECK,
            format!("{what}: slow, each flush of a guest waits so long"),
            "for disk images use an SSD with power-loss protection",
        ),
        _ if p99 > WAITS => Finding::warn(
            CHECK,
            format!("{what}: now and then it stands still"),
            "see what else uses the disk (`iostat -x 1`), or use one with power-loss protection",
        ),
        _ => Finding::ok(CHECK, what),
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::finding::Level;

    fn disk(median: u64, p99: u64, volatile: Option<bool>) -> Disk {
        let mut took = vec![median; 98];
        took.extend([p99, p99]);
        Disk {
            kind: "ext4".into(),
            options: vec!["rw".into()],
            volatile,
            took,
        }
    }

    fn worst(d: &Disk) -> Level {
        judge("p", d).iter().map(|f| f.level).max().unwrap()
    }

    #[test]
    fn a_disk_that_is_too_fast_is_told_from_one_that_is_protected() {
        assert_eq!(worst(&disk(8, 30, Some(true))), Level::Bad);
        assert_eq!(worst(&disk(8, 30, None)), Level::Warn);
        assert_eq!(worst(&disk(8, 30, Some(false))), Level::Ok);
        assert_eq!(worst(&disk(400, 900, Some(true))), Level::Ok);
        assert_eq!(worst(&disk(9_000, 12_000, Some(true))), Level::Warn);
        assert_eq!(worst(&disk(400, 80_000, Some(true))), Level::Warn);
    }

    #[test]
    fn what_lies_beneath_is_judged() {
        let mut d = disk(400, 900, Some(true));
        d.options.push("nobarrier".into());
        assert_eq!(worst(&d), Level::Bad);
        let on = |kind: &str| {
            let kind = kind.into();
            worst(&Disk {
                kind,
                ..disk(400, 900, None)
            })
        };
        assert_eq!(on("tmpfs"), Level::Bad);
        assert_eq!(on("nfs4"), Level::Warn);
        assert_eq!(on("xfs"), Level::Ok);
    }

    #[test]
    fn room_runs_out_in_two_steps() {
        let level = |free| space("p", free, 1000).level;
        assert_eq!(level(500), Level::Ok);
        assert_eq!(level(90), Level::Warn);
        assert_eq!(level(10), Level::Bad);
        assert_eq!(space("p", 0, 0).level, Level::Bad);
    }

    #[test]
    fn a_pool_is_measured_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let none = look("a", "main", dir.path());
        assert!(none[0].what.contains("pool.toml"), "{none:#?}");
        let pool = dir.path().join("pool");
        Pool::create(&pool).unwrap();
        let found = look("a", "main", &pool);
        assert!(found.iter().any(|f| f.what.contains("GiB free")));
        let names: Vec<_> = std::fs::read_dir(&pool).unwrap().collect();
        assert_eq!(names.len(), 1, "the id file alone: {names:?}");
        let took = measure(&pool).unwrap();
        assert!(!took.is_empty() && took.is_sorted());
    }
}
