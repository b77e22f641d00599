//! NFSv3's types on the wire (RFC 1813, 2): status numbers, attributes, and the one table from
//! file-system errors to status numbers.

use trivet_fs::{Attr, Change, FileKind, FsError, Rdev, SetAttr, SetTime, Time};
use trivet_replica::VolumeError;

use crate::xdr::{Dec, Enc, XdrError, XdrResult};

/// Program number.
pub const PROGRAM: u32 = 100_003;
/// Largest READ and WRITE, in bytes.
pub const MAX_IO: u32 = 1 << 20;
/// Largest file: no offset passes this.
pub const MAX_FILE: u64 = i64::MAX as u64;

/// `nfsstat3`, without OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum Status {
    Perm = 1,
    NoEnt = 2,
    Io = 5,
    Nxio = 6,
    Acces = 13,
    Exist = 17,
    XDev = 18,
    NotDir = 20,
    IsDir = 21,
    Inval = 22,
    FBig = 27,
    NoSpc = 28,
    RoFs = 30,
    MLink = 31,
    NameTooLong = 63,
    NotEmpty = 66,
    DQuot = 69,
    Stale = 70,
    BadHandle = 10_001,
    NotSync = 10_002,
    NotSupp = 10_004,
    TooSmall = 10_005,
    ServerFault = 10_006,
    BadType = 10_007,
    Jukebox = 10_008,
}

/// What an error is to a client; `None`: nothing, because another node may be serving by now, and
/// an answer from here would be the wrong one (invariant 9).
pub fn status_of(e: &FsError) -> Option<Status> {
    Some(match e {
        FsError::Stale(_) => Status::Stale,
        FsError::NotFound => Status::NoEnt,
        FsError::Exists => Status::Exist,
        FsError::NotDir => Status::NotDir,
        FsError::IsDir => Status::IsDir,
        FsError::NotEmpty => Status::NotEmpty,
        FsError::Access => Status::Acces,
        FsError::NotPermitted => Status::Perm,
        FsError::Invalid(_) | FsError::WrongKind => Status::Inval,
        FsError::NameTooLong => Status::NameTooLong,
        FsError::TooBig => Status::FBig,
        FsError::TooManyLinks => Status::MLink,
        FsError::NoSpace(_) => Status::NoSpc,
        FsError::TooWide => Status::ServerFault,
        FsError::NotSync => Status::NotSync,
        FsError::NoSuchOffset => Status::Nxio,
        FsError::NotSupported(_) => Status::NotSupp,
        FsError::ReadOnly => Status::RoFs,
        // Too many files or locks in use: another moment may do.
        FsError::Limit(_) | FsError::Locked | FsError::Busy | FsError::Deadlock => Status::Jukebox,
        FsError::NoAttr | FsError::Range | FsError::AttrTooBig => Status::ServerFault,
        FsError::Damaged { .. } => Status::Io,
        FsError::Volume(VolumeError::NotActive(_)) | FsError::Stopped(_) => return None,
        FsError::Volume(_) => Status::Io,
        FsError::Mount(_) => return None,
    })
}

fn wire_seconds(secs: i64) -> u32 {
    secs.clamp(0, i64::from(u32::MAX)) as u32
}

/// `nfstime3`.
pub fn put_time(e: &mut Enc, t: Time) {
    e.u32(wire_seconds(t.secs)).u32(t.nanos);
}

/// `nfstime3`.
///
/// # Errors
/// [`XdrError::BadValue`] for a second or more of nanoseconds.
pub fn get_time(d: &mut Dec) -> XdrResult<Time> {
    let secs = i64::from(d.u32()?);
    match d.u32()? {
        nanos @ 0..=999_999_999 => Ok(Time { secs, nanos }),
        bad => Err(XdrError::BadValue(bad)),
    }
}

/// `ftype3`.
pub fn kind_number(k: FileKind) -> u32 {
    match k {
        FileKind::File => 1,
        FileKind::Dir => 2,
        FileKind::Block => 3,
        FileKind::Char => 4,
        FileKind::Symlink => 5,
        FileKind::Socket => 6,
        FileKind::Fifo => 7,
    }
}

/// `fattr3`.
pub fn put_attr(e: &mut Enc, fsid: u64, a: &Attr) {
    let Rdev { major, minor } = a.rdev;
    e.u32(kind_number(a.kind)).u32(a.mode & 0o7777);
    e.u32(a.nlink).u32(a.uid).u32(a.gid);
    e.u64(a.size).u64(a.used).u32(major).u32(minor);
    e.u64(fsid).u64(a.id.ino.0);
    put_time(e, a.atime);
    put_time(e, a.mtime);
    put_time(e, a.ctime);
}

/// `post_op_attr`.
pub fn put_post(e: &mut Enc, fsid: u64, a: Option<&Attr>) {
    e.bool(a.is_some());
    if let Some(a) = a {
        put_attr(e, fsid, a);
    }
}

/// `wcc_data` with both sides, which the file system took under one lock.
pub fn put_wcc(e: &mut Enc, fsid: u64, c: &Change) {
    e.bool(true).u64(c.before.size);
    put_time(e, c.before.mtime);
    put_time(e, c.before.ctime);
    put_post(e, fsid, Some(&c.after));
}

/// `wcc_data` of something that did not change, or of which only the present is known.
pub fn put_wcc_after(e: &mut Enc, fsid: u64, after: Option<&Attr>) {
    e.bool(false);
    put_post(e, fsid, after);
}

/// `sattr3`.
///
/// # Errors
/// As the items decode.
pub fn get_set_attr(d: &mut Dec) -> XdrResult<SetAttr> {
    let mut optional = || -> XdrResult<Option<u32>> { d.bool()?.then(|| d.u32()).transpose() };
    let mode = optional()?.map(|m| m & 0o7777);
    let uid = optional()?;
    let gid = optional()?;
    let size = d.bool()?.then(|| d.u64()).transpose()?;
    let mut time = || match d.u32()? {
        0 => Ok(SetTime::Keep),
        1 => Ok(SetTime::Now),
        2 => Ok(SetTime::To(get_time(d)?)),
        bad => Err(XdrError::BadValue(bad)),
    };
    Ok(SetAttr {
        mode,
        uid,
        gid,
        size,
        atime: time()?,
        mtime: time()?,
        ..SetAttr::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_volume_that_is_not_held_are_not_told() {
        let gone = FsError::Volume(VolumeError::NotActive("lease".into()));
        assert_eq!(status_of(&gone), None);
        assert_eq!(status_of(&FsError::Stopped("x".into())), None);
        let bad = FsError::Volume(VolumeError::Io("disk".into()));
        assert_eq!(status_of(&bad), Some(Status::Io));
    }

    #[test]
    fn times_outside_the_wire_s_range_are_cut_to_it() {
        let mut e = Enc::new();
        put_time(&mut e, Time { secs: -5, nanos: 7 });
        put_time(
            &mut e,
            Time {
                secs: 1 << 40,
                nanos: 8,
            },
        );
        put_time(
            &mut e,
            Time {
                secs: 3_000_000_000,
                nanos: 9,
            },
        );
        let mut d = Dec::new(e.into_vec().into());
        let mut next = || get_time(&mut d).unwrap();
        assert_eq!(next(), Time { secs: 0, nanos: 7 });
        let most = i64::from(u32::MAX);
        assert_eq!(
            next(),
            Time {
                secs: most,
                nanos: 8
            }
        );
        assert_eq!(
            next(),
            Time {
                secs: 3_000_000_000,
                nanos: 9
            }
        );
    }
}
