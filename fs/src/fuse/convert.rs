//! Between the kernel's words and ours. The one home of the error table.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::api::{Attr, Creds, FileKind, Rdev, SetTime, Time};
use crate::error::FsError;

/// The errno of an error.
pub(super) fn errno(e: &FsError) -> Errno {
    match e {
        FsError::Stale(_) => Errno::ESTALE,
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDir => Errno::ENOTDIR,
        FsError::IsDir => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::Access => Errno::EACCES,
        FsError::NotPermitted => Errno::EPERM,
        FsError::Invalid(_) | FsError::WrongKind | FsError::NotSync => Errno::EINVAL,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::TooBig => Errno::EFBIG,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::NoSpace(_) | FsError::TooWide => Errno::ENOSPC,
        FsError::NoAttr => Errno::ENODATA,
        FsError::Range => Errno::ERANGE,
        FsError::AttrTooBig => Errno::E2BIG,
        FsError::NoSuchOffset => Errno::ENXIO,
        FsError::Locked | FsError::Busy => Errno::EAGAIN,
        FsError::Limit(_) => Errno::ENOLCK,
        FsError::Deadlock => Errno::EDEADLK,
        FsError::NotSupported(_) => Errno::EOPNOTSUPP,
        FsError::ReadOnly => Errno::EROFS,
        FsError::Damaged { .. } | FsError::Volume(_) | FsError::Stopped(_) | FsError::Mount(_) => {
            Errno::EIO
        }
    }
}

fn system_time(t: Time) -> SystemTime {
    let nanos = Duration::from_nanos(t.nanos.into());
    let at = match u64::try_from(t.secs) {
        Ok(secs) => UNIX_EPOCH.checked_add(Duration::from_secs(secs) + nanos),
        Err(_) => UNIX_EPOCH
            .checked_sub(Duration::from_secs(t.secs.unsigned_abs()))
            .and_then(|t| t.checked_add(nanos)),
    };
    at.unwrap_or(UNIX_EPOCH)
}

fn time(t: SystemTime) -> Time {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => Time {
            secs: d.as_secs() as i64,
            nanos: d.subsec_nanos(),
        },
        Err(e) => {
            // Before 1970: whole seconds down, nanoseconds up.
            let d = e.duration();
            let up = d.subsec_nanos() > 0;
            Time {
                secs: -(d.as_secs() as i64) - i64::from(up),
                nanos: if up {
                    1_000_000_000 - d.subsec_nanos()
                } else {
                    0
                },
            }
        }
    }
}

/// How the kernel asks for a time to be set.
pub(super) fn set_time(t: Option<TimeOrNow>) -> SetTime {
    match t {
        None => SetTime::Keep,
        Some(TimeOrNow::Now) => SetTime::Now,
        Some(TimeOrNow::SpecificTime(t)) => SetTime::To(time(t)),
    }
}

/// Our kind as theirs.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Block => FileType::BlockDevice,
        FileKind::Char => FileType::CharDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// A device number as the kernel packs it into 32 bits.
fn pack_rdev(r: Rdev) -> u32 {
    (r.minor & 0xff) | (r.major << 8) | ((r.minor & !0xff) << 12)
}

/// And back.
pub(super) fn unpack_rdev(dev: u32) -> Rdev {
    Rdev {
        major: dev >> 8 & 0xfff,
        minor: (dev & 0xff) | (dev >> 12 & 0xfff00),
    }
}

/// Our attributes as theirs.
pub(super) fn file_attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.id.ino.0),
        size: a.size,
        blocks: a.used / 512,
        atime: system_time(a.atime),
        mtime: system_time(a.mtime),
        ctime: system_time(a.ctime),
        crtime: system_time(a.btime),
        kind: file_type(a.kind),
        perm: a.mode as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: pack_rdev(a.rdev),
        blksize: 4096,
        flags: 0,
    }
}

/// Who asks: checked by the kernel already.
pub(super) fn creds(req: &Request) -> Creds {
    Creds {
        checked: true,
        ..Creds::user(req.uid(), req.gid(), &[])
    }
}

/// The same with the caller's groups, which a request does not tell: as the kernel shows them for
/// its thread. None if that is gone or out of sight: what depends on them is refused then.
pub(super) fn creds_with_groups(req: &Request) -> Creds {
    let path = format!("/proc/{}/status", req.pid());
    let status = std::fs::read_to_string(path).unwrap_or_default();
    Creds {
        groups: groups(&status).into(),
        ..creds(req)
    }
}

fn groups(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|l| l.strip_prefix("Groups:"));
    let all = line.unwrap_or_default().split_whitespace();
    all.filter_map(|g| g.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_out_of_a_status() {
        let status = "Name:\tGroups: 7\nGid:\t1\t1\t1\t1\nGroups:\t4 24 1000 \nVmPeak: 3 kB\n";
        assert_eq!(groups(status), [4, 24, 1000]);
        assert!(groups("Groups:\t\n").is_empty() && groups("").is_empty());
    }

    #[test]
    fn times_survive_the_way_there_and_back() {
        for (secs, nanos) in [
            (0, 0),
            (1, 999_999_999),
            (-1, 1),
            (-1, 0),
            (4_000_000_000, 5),
        ] {
            let t = Time { secs, nanos };
            assert_eq!(time(system_time(t)), t);
        }
    }

    #[test]
    fn device_numbers_survive_the_way_there_and_back() {
        for (major, minor) in [(8, 1), (4095, 0xfffff), (0, 0), (259, 300)] {
            let r = Rdev { major, minor };
            assert_eq!(unpack_rdev(pack_rdev(r)), r);
        }
    }
}
