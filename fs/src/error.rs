//! The one error enum of the file system.

use thiserror::Error;
use trivet_replica::volume::VolumeError;

use crate::api::Ino;

/// Why a call did not do what was asked. Unless said otherwise nothing was changed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FsError {
    /// The handle names an object that is gone for good (ESTALE).
    #[error("inode {0} is gone: the handle is stale")]
    Stale(Ino),
    /// No such name (ENOENT).
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken (EEXIST).
    #[error("the name exists already")]
    Exists,
    /// A directory was needed (ENOTDIR).
    #[error("not a directory")]
    NotDir,
    /// A directory was given where none may be (EISDIR).
    #[error("is a directory")]
    IsDir,
    /// The directory has entries (ENOTEMPTY).
    #[error("the directory is not empty")]
    NotEmpty,
    /// Mode bits or an ACL forbid it (EACCES).
    #[error("permission denied")]
    Access,
    /// Only the owner or a privileged caller may (EPERM).
    #[error("operation not permitted")]
    NotPermitted,
    /// An argument is out of its domain (EINVAL).
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// A name is longer than 255 bytes, or a symlink's target than 4095 (ENAMETOOLONG).
    #[error("name too long")]
    NameTooLong,
    /// A size or an offset beyond 2^63-1 (EFBIG).
    #[error("file too large")]
    TooBig,
    /// More links than an inode counts (EMLINK).
    #[error("too many links")]
    TooManyLinks,
    /// No room in the file system or in the pools beneath (ENOSPC).
    #[error("no space left: {0}")]
    NoSpace(&'static str),
    /// Not a symbolic link, or a kind of object that the call does not work on (EINVAL).
    #[error("the object is of the wrong kind for this call")]
    WrongKind,
    /// A guarded setattr whose guard did not match (NFS3ERR_NOT_SYNC).
    #[error("the object changed since the caller looked")]
    NotSync,
    /// No such extended attribute (ENODATA).
    #[error("no such attribute")]
    NoAttr,
    /// An attribute's value or list is larger than the caller's room (ERANGE).
    #[error("result too large for the caller's buffer")]
    Range,
    /// An attribute's value is larger than allowed (E2BIG).
    #[error("attribute value too large")]
    AttrTooBig,
    /// No data or hole at or after the offset (ENXIO).
    #[error("no such data or hole: beyond the end of the file")]
    NoSuchOffset,
    /// A conflicting lock is held (EAGAIN).
    #[error("a conflicting lock is held")]
    Locked,
    /// Too many locks, waiters or open files (ENOLCK).
    #[error("limit reached: {0}")]
    Limit(&'static str),
    /// Whoever holds the lock waits for this caller (EDEADLK).
    #[error("to wait for this lock would never end: its holder waits for the caller")]
    Deadlock,
    /// Not supported by this file system (EOPNOTSUPP).
    #[error("not supported: {0}")]
    NotSupported(&'static str),
    /// The file system is mounted read-only, or being unmounted (EROFS).
    #[error("read-only file system")]
    ReadOnly,
    /// A metadata block is damaged on every replica (EIO). `trivet fsck` names what it held.
    #[error("damaged metadata in block {block}: {why}; run fsck to learn what it held")]
    Damaged {
        /// Block of the volume.
        block: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The volume refused (EIO).
    #[error("volume: {0}")]
    Volume(VolumeError),
    /// An earlier failure made the volume's state unknown; everything is refused until remount.
    #[error("the file system stopped after an earlier failure: {0}; mount it again")]
    Stopped(String),
    /// A truncation of the file is being finished: inside this crate only, the call waits.
    #[error("busy")]
    Busy,
    /// One call would change more than a batch holds: inside this crate only, it is cut in two.
    #[error("too fragmented for one step")]
    TooWide,
    /// The volume holds no file system, or one that this program must not touch.
    #[error("cannot mount: {0}")]
    Mount(String),
}

impl From<VolumeError> for FsError {
    fn from(e: VolumeError) -> FsError {
        match e {
            VolumeError::NoSpace(_) => FsError::NoSpace("the pool beneath the volume is full"),
            other => FsError::Volume(other),
        }
    }
}

/// Result of a call.
pub type FsResult<T> = Result<T, FsError>;
