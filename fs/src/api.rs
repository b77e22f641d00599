//! What the doors (FUSE, NFS, tests) see of the file system: its types.
//! The calls are in [`crate::Vfs`].
//!
//! - Every call carries its caller's credentials; nothing is taken from the thread or process.
//! - A changing call is atomic, returns the attributes before and after it taken under one lock
//!   (what NFS calls weak cache consistency), and a [`Mark`]: where in the volume's history it
//!   will be. It is volatile until [`crate::Vfs::flush_then`] or [`crate::Vfs::flush`] says
//!   otherwise.
//! - Calls may wait for the volume (a cache miss, backpressure). Callbacks run on a thread of the
//!   volume's: they must neither block nor call anything here that can wait.
//! - Sizes and offsets are bytes, at most 2^63-1. Names are any bytes but `/` and NUL, 1 to 255.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::FsResult;

/// An inode's number; never used twice in the life of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names an object for ever, across renames, restarts and nodes. What a handle carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId {
    /// The number.
    pub ino: Ino,
    /// Checked on each use; another value is another object (ESTALE).
    pub generation: u64,
}

impl InodeId {
    /// The root directory of every file system.
    pub const ROOT: InodeId = InodeId {
        ino: Ino(1),
        generation: 1,
    };
}

/// What kind of object an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// Regular file.
    File = 1,
    /// Directory.
    Dir = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Block device.
    Block = 4,
    /// Character device.
    Char = 5,
    /// Named pipe.
    Fifo = 6,
    /// Socket.
    Socket = 7,
}

/// A device number, for block and character devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rdev {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
}

/// A point in time since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub secs: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanos: u32,
}

/// Attributes of an object at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Who.
    pub id: InodeId,
    /// What.
    pub kind: FileKind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Hard links; 0 for an object that lives only because it is open.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number (zero unless a device).
    pub rdev: Rdev,
    /// Size in bytes (directories: a figure that grows with the entries).
    pub size: u64,
    /// Bytes that it occupies on the volume.
    pub used: u64,
    /// Last access as set by `setattr`; reads do not change it.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change; strictly increases, also across nodes whose clocks disagree.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
}

/// Attributes on both sides of a change, taken under the lock that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Just before.
    pub before: Attr,
    /// Just after.
    pub after: Attr,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Creds {
    /// Effective user; 0 may do everything.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups, at most 65,536.
    pub groups: Arc<[u32]>,
    /// The door has checked permissions already (the kernel did, with `default_permissions`):
    /// only ownership of new objects and the clearing of set-id bits still depend on the ids.
    pub checked: bool,
    /// A write is to clear set-id bits (the kernel says so where it has checked the caller).
    pub kill: bool,
    /// The owner may read and write whatever the mode says, and execute permission suffices to
    /// read: what a door without an open call (NFS) needs (RFC 1813 section 4.4).
    pub stateless: bool,
}

impl Creds {
    /// The superuser.
    pub fn root() -> Creds {
        Creds {
            uid: 0,
            gid: 0,
            groups: Arc::from([]),
            checked: false,
            kill: false,
            stateless: false,
        }
    }

    /// A user with permissions checked here.
    pub fn user(uid: u32, gid: u32, groups: &[u32]) -> Creds {
        Creds {
            uid,
            gid,
            groups: Arc::from(groups),
            checked: false,
            kill: false,
            stateless: false,
        }
    }

    /// Whether the group is one of the caller's.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// Which door a call came through: a watcher is not told of changes through its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Door(pub u32);

/// Stores the answer to a non-idempotent call in the same atomic batch as its effect, so that a
/// retransmission gets it even after a crash or on another node ([`crate::Vfs::replay`]).
pub struct Replay<'a, T> {
    /// Whose cache it goes to: a client is bounded by itself and evicts only its own answers.
    pub client: u64,
    /// Names the call within its client; 1 to 64 bytes.
    pub key: &'a [u8],
    /// Makes the answer, at most 1,000 bytes, of the result. Runs under the file system's lock:
    /// must be quick and must not call back.
    pub encode: &'a dyn Fn(&T) -> Vec<u8>,
}

/// What goes with a changing call whose result is `T`.
pub struct Ctx<'a, T> {
    /// Who asks.
    pub creds: &'a Creds,
    /// Through which door.
    pub door: Door,
    /// Answer to keep, if any.
    pub replay: Option<Replay<'a, T>>,
}

impl<'a, T> Ctx<'a, T> {
    /// A call without a stored answer, through no door in particular.
    pub fn new(creds: &'a Creds) -> Ctx<'a, T> {
        Ctx {
            creds,
            door: Door::default(),
            replay: None,
        }
    }

    /// The same through `door`.
    pub fn by(creds: &'a Creds, door: Door) -> Ctx<'a, T> {
        Ctx {
            creds,
            door,
            replay: None,
        }
    }
}

/// Place of a change in the order of the file system's transactions. What carries a smaller or
/// equal mark is in the volume's history no later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(pub u64);

/// A change that was made, and where it will be in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done<T> {
    /// What came of it.
    pub value: T,
    /// Pass to [`crate::Vfs::flush_then`].
    pub mark: Mark,
}

/// How to set a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    #[default]
    Keep,
    /// The file system's clock (whoever may write may ask for it).
    Now,
    /// This time (only the owner may).
    To(Time),
}

/// Attributes to set, together and at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits, 0 to 0o7777.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size; grows by a hole.
    pub size: Option<u64>,
    /// Access time.
    pub atime: SetTime,
    /// Modification time.
    pub mtime: SetTime,
    /// Only if the ctime is still this one, else [`crate::FsError::NotSync`].
    pub guard: Option<Time>,
    /// The caller has the file open for writing: `size` needs no further permission
    /// (ftruncate).
    pub by_handle: bool,
    /// Clear set-id bits as a write by an unprivileged caller does.
    pub kill_suid: bool,
}

/// How a regular file is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateHow {
    /// Take the file that is there, if any; of `attrs` only the size then applies.
    Unchecked,
    /// Fail if the name exists.
    Guarded,
    /// Fail if the name exists, unless it was created with this very verifier; `attrs` are
    /// ignored but for the mode.
    Exclusive([u8; 8]),
}

/// Attributes of a new object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewAttr {
    /// Permission bits, before `umask`.
    pub mode: u32,
    /// Bits to clear; not used where the directory has a default ACL.
    pub umask: u32,
    /// Owner, if not the caller's (privileged callers only).
    pub uid: Option<u32>,
    /// Group likewise.
    pub gid: Option<u32>,
    /// Size of a regular file.
    pub size: Option<u64>,
    /// Access time.
    pub atime: SetTime,
    /// Modification time.
    pub mtime: SetTime,
}

/// What `mknod` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Regular file.
    File,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// Block device (privileged).
    Block(Rdev),
    /// Character device (privileged).
    Char(Rdev),
}

/// A new or found object in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// The object.
    pub attr: Attr,
    /// The directory.
    pub dir: Change,
    /// False if `Unchecked` found it there (or `Exclusive` its own earlier work).
    pub created: bool,
}

/// A removed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The directory.
    pub dir: Change,
    /// The object whose name it was, after the removal (`nlink` 0: it is going).
    pub target: Attr,
}

/// A new link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The object.
    pub attr: Attr,
    /// The directory.
    pub dir: Change,
}

/// What `rename` may do when the new name exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RenameHow {
    /// Replace it.
    #[default]
    Replace,
    /// Refuse.
    NoReplace,
    /// Exchange the two.
    Exchange,
}

/// A rename that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The directory it left.
    pub from: Change,
    /// The directory it came to (the same as `from` if it is the same).
    pub to: Change,
    /// The object, after.
    pub moved: Attr,
    /// What the new name meant before, after the change.
    pub replaced: Option<Attr>,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Bytes,
    /// The object.
    pub id: InodeId,
    /// Its kind.
    pub kind: FileKind,
    /// Pass to go on after this entry: stable for as long as the entry lives, 1 to 2^63-1. `.`
    /// has 1 and `..` has 2.
    pub cookie: u64,
    /// Attributes, if they were asked for.
    pub attr: Option<Attr>,
}

/// A piece of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirPage {
    /// Entries in cookie order, `.` and `..` first.
    pub entries: Vec<DirEntry>,
    /// Nothing comes after them.
    pub eof: bool,
    /// The directory.
    pub dir: Attr,
}

/// Content that was read.
#[derive(Clone, Debug)]
pub struct ReadOut {
    /// The bytes in order, as segments shared with the cache.
    pub data: Vec<Bytes>,
    /// The read reached the end of the file.
    pub eof: bool,
    /// The file, when it was read.
    pub attr: Attr,
}

impl ReadOut {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.data.iter().map(Bytes::len).sum()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The content in one piece; copies unless there is only one segment.
    pub fn concat(mut self) -> Bytes {
        match self.data.len() {
            0 => Bytes::new(),
            1 => self.data.remove(0),
            _ => Bytes::from(self.data.concat()),
        }
    }
}

/// Called once with what was read.
pub type ReadCallback = Box<dyn FnOnce(FsResult<ReadOut>) + Send>;
/// Called once when a flush is done.
pub type FlushCallback = Box<dyn FnOnce(FsResult<()>) + Send>;

/// Room, in bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Size.
    pub total_bytes: u64,
    /// Free: the smaller of what this file system and the pools beneath have.
    pub free_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that could still be made.
    pub free_inodes: u64,
}

bitmask! {
    /// Kinds of access, for [`crate::Vfs::access`].
    Access {
        /// Read a file, list a directory.
        READ = 4,
        /// Write a file; add and remove names in a directory.
        WRITE = 2,
        /// Execute a file, search a directory.
        EXEC = 1,
    }
}

/// How `fallocate` changes a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Give it blocks; grow the file if the range passes its end.
    Allocate,
    /// Give it blocks, leave the size.
    AllocateKeepSize,
    /// Make it a hole.
    PunchHole,
    /// Make it read as zeros, with blocks; grow the file if the range passes its end.
    ZeroRange,
    /// Make it read as zeros, leave the size.
    ZeroRangeKeepSize,
}

/// What `seek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is stored.
    Data,
    /// The next byte that is not; the end of the file counts.
    Hole,
}

/// How `set_xattr` treats an existing attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrHow {
    /// Create or replace.
    #[default]
    Set,
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
}

/// What changed, for [`Watcher`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Attributes of the object, and its content from `offset` on for `len` bytes (0: all the
    /// rest; `None`: no content).
    Inode {
        /// The object.
        id: InodeId,
        /// Range of content.
        content: Option<(u64, u64)>,
    },
    /// A name in a directory came, went or changed its meaning.
    Entry {
        /// The directory.
        dir: InodeId,
        /// The name.
        name: Bytes,
    },
}

/// Is told of changes, after they are made and before the call that made them returns, without
/// any lock held. May wait a bounded time, but not for a call into this file system.
pub trait Watcher: Send + Sync {
    /// Something changed through another door.
    fn changed(&self, event: &Event);
}
