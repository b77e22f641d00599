//! Processor time and disk bytes of all the processes that take part.
//!
//! This process is always one of them, and so are its descendants at the time of asking; others
//! are given by id. Work that kernel threads do on their behalf (write-back, the network's
//! softirqs on an idle core) is charged to nobody and so is not in the figures.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::BenchError;

/// Id of a process.
pub type Pid = u32;

/// Clock ticks per second in `/proc/PID/stat`: fixed at 100 in the kernel's interface.
const TICKS: u32 = 100;

fn proc_file(pid: Pid, file: &str) -> Result<String, BenchError> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path).map_err(BenchError::io(format_args!("read {path}")))
}

/// The fields of `/proc/PID/stat` after the name, which may itself hold blanks and brackets.
fn stat_fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').map_or("", |s| s.1).split_whitespace()
}

fn parent(stat: &str) -> Option<Pid> {
    stat_fields(stat).nth(1)?.parse().ok()
}

/// User and system time, with that of children that were waited for.
fn ticks(stat: &str) -> u64 {
    stat_fields(stat)
        .skip(11)
        .take(4)
        .filter_map(|f| f.parse::<u64>().ok())
        .sum()
}

/// Every descendant of `root` that lives now.
pub fn descendants(root: Pid) -> BTreeSet<Pid> {
    let mut children: Vec<(Pid, Pid)> = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|n| n.parse().ok());
        // A process may end between the listing and the reading: then it is none of ours.
        if let Some(pid) = pid
            && let Ok(stat) = proc_file(pid, "stat")
            && let Some(parent) = parent(&stat)
        {
            children.push((parent, pid));
        }
    }
    let mut found = BTreeSet::new();
    let mut open = vec![root];
    while let Some(p) = open.pop() {
        for (_, child) in children.iter().filter(|c| c.0 == p) {
            if found.insert(*child) {
                open.push(*child);
            }
        }
    }
    found
}

/// Processor time that one other process has used so far, to 10 ms.
///
/// # Errors
/// There is no such process.
pub fn cpu_of(pid: Pid) -> Result<Duration, BenchError> {
    let ticks = ticks(&proc_file(pid, "stat")?);
    Ok(Duration::from_secs(ticks) / TICKS)
}

/// Processor time of this process, of its living descendants, and of `others`.
///
/// # Errors
/// One of `others` is gone: its time would be missing from the sum.
pub fn cpu(others: &[Pid]) -> Result<Duration, BenchError> {
    let own = std::process::id();
    let now = clock_gettime(ClockId::ProcessCPUTime);
    let mut sum = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32);
    let mut all = descendants(own);
    all.extend(others);
    all.remove(&own);
    for pid in all {
        match cpu_of(pid) {
            Ok(time) => sum += time,
            Err(e) if others.contains(&pid) => return Err(e),
            Err(_) => {}
        }
    }
    Ok(sum)
}

/// Bytes that the disk beneath `path` has been sent so far, by anybody: true to the last journal
/// block, and so only of use while nobody else writes there. `None` where no one disk is beneath
/// (tmpfs, overlay, btrfs, zfs).
///
/// `write_bytes` of `/proc/PID/io` is no substitute: it counts whole folios when they become dirty,
/// and on ext4 a 4 KiB write can dirty 1 MiB.
///
/// # Errors
/// `path` cannot be looked up, or the kernel's figures cannot be read.
pub fn device_bytes(path: &Path) -> Result<Option<u64>, BenchError> {
    let meta = std::fs::metadata(path)
        .map_err(BenchError::io(format_args!("look up {}", path.display())))?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let stat = format!("/sys/dev/block/{major}:{minor}/stat");
    match std::fs::read_to_string(&stat) {
        Ok(text) => Ok(sectors_written(&text).map(|s| s * SECTOR)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(BenchError::io(format_args!("read {stat}"))(e)),
    }
}

/// Bytes per sector in the kernel's figures, whatever the disk's own size is.
const SECTOR: u64 = 512;

fn sectors_written(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_a_hostile_name_is_read() {
        let line = "12 (a) b (c) S 7 1 1 0 -1 4 0 0 0 0 150 50 3 2 20 0 1 0 9";
        assert_eq!(parent(line), Some(7));
        assert_eq!(ticks(line), 205);
        assert_eq!(parent("nonsense"), None);
    }

    #[test]
    fn own_time_grows_with_work_and_children_are_seen() {
        let before = cpu(&[]).unwrap();
        let mut x = 0u64;
        while cpu(&[]).unwrap() < before + Duration::from_millis(20) {
            x = x.wrapping_add(std::hint::black_box(1));
        }
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(descendants(std::process::id()).contains(&child.id()));
        assert!(cpu_of(child.id()).is_ok());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(
            cpu(&[child.id()]).is_err(),
            "a process that is gone is not free of charge"
        );
    }

    #[test]
    fn written_sectors_are_found_among_the_other_figures() {
        let stat = "  70701 10564 8570506 74186 249968 24163 14593352 315425 0 21316 392319\n";
        assert_eq!(sectors_written(stat), Some(14_593_352));
        assert_eq!(sectors_written("1 2 3"), None);
        assert_eq!(device_bytes(Path::new("/proc")).unwrap(), None);
        assert!(device_bytes(Path::new("/nowhere")).is_err());
    }
}
