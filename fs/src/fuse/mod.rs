//! The FUSE door: the file system as a mounted directory on this machine.
//!
//! Choices, and why:
//! - The kernel checks permissions (`default_permissions` and POSIX ACLs): it knows a process's
//!   groups and capabilities, a request carries only ids. What comes in counts as checked.
//! - No write-back cache: a `write` is in the file system when it returns (invariant 9's second
//!   door would otherwise miss it). Only `mmap` waits for msync or close.
//! - Names and attributes are cached by the kernel for [`TTL`]; a change through another door
//!   takes them back first, from a thread of its own (`notify`), never from a request's.
//! - A file opened with `O_DIRECT` bypasses the page cache wholly, so that its writes run side by
//!   side. The kernel drops its pages of the range before such a write, and (6.18) after a call
//!   that waits for it, but not when one given by `io_submit` or io_uring ends: what was read
//!   through the page cache meanwhile would stay there. So we have the range dropped before the
//!   answer where somebody has the file open that way, and all of it at the next opening.
//! - Set-id bits are cleared here (`HANDLE_KILLPRIV_V2`): else the kernel would ask for
//!   `security.capability` before each write.
//! - `flock` locks are the kernel's own, local to the mount: the request does not tell them from
//!   POSIX locks in the library used. POSIX and OFD locks are in the table that NFS shares.
//!
//! Not carried by the library: TMPFILE, STATX, SYNCFS, interrupts. `sync` and `syncfs` therefore
//! do not reach us: completed writes are flushed unasked (`Settings::flush_interval`).
//!
//! - Nothing leaves while the volume is not held: see `gate`.
//! - Large writes, which wait until the volume admits them, never occupy more than half of the
//!   threads: see `streams`.
//! - `O_TRUNC` is not taken along with `open` (`ATOMIC_O_TRUNC`): the kernel would send it before
//!   it looks whether the file is a running program, whose text would be gone when it refuses.
//!
//! If the process dies the mount point answers ENOTCONN; [`mount`] clears such a one away first.

mod convert;
mod door;
mod gate;
mod handles;
mod mutate;
mod notify;
mod streams;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use rustix::mount::{UnmountFlags, unmount};

use crate::Vfs;
use crate::api::Door;

pub(crate) use door::{MAX_BACKGROUND, MAX_REQUEST};
pub(crate) use notify::{MAX_INODES, MAX_NAMES};
pub(crate) use streams::MAX_PARKED;

/// How long the kernel may answer for us.
pub(crate) const TTL: Duration = Duration::from_secs(30);
/// This door's number.
pub const FUSE_DOOR: Door = Door(1);

/// What can be set.
#[derive(Clone, Debug)]
pub struct FuseOptions {
    /// What `mount` shows as the source.
    pub name: String,
    /// Threads that receive requests, 2 to 64; half of them also take large writes.
    pub threads: usize,
    /// Let other users in (as root always; else `user_allow_other` must be set).
    pub allow_other: bool,
    /// How long callers wait after the volume's lease was lost, before they get EIO and the
    /// kernel's caches are dropped.
    pub patience: Duration,
    /// Whether the connection is aborted then: another node may serve by now, and programs here
    /// must not go on with what they have mapped. The mount point is free afterwards.
    pub abort_when_lost: bool,
    /// What callers may not do through this mount.
    pub without: Vec<Without>,
}

/// Something that a mount does not allow, as in mount(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// `ro`: changing anything.
    Writing,
    /// `nosuid`: programs that run as their owner.
    Suid,
    /// `nodev`: device files.
    Dev,
    /// `noexec`: programs.
    Exec,
}

impl From<Without> for MountOption {
    fn from(without: Without) -> MountOption {
        match without {
            Without::Writing => MountOption::RO,
            Without::Suid => MountOption::NoSuid,
            Without::Dev => MountOption::NoDev,
            Without::Exec => MountOption::NoExec,
        }
    }
}

impl Default for FuseOptions {
    fn default() -> FuseOptions {
        let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
        FuseOptions {
            name: "trivet".into(),
            threads: (2 * cores).clamp(4, 16),
            allow_other: rustix::process::geteuid().is_root(),
            patience: Duration::from_secs(30),
            abort_when_lost: true,
            without: Vec::new(),
        }
    }
}

/// A mounted directory. Dropping it unmounts.
pub struct Mounted {
    session: Option<BackgroundSession>,
    path: PathBuf,
    notify: Arc<notify::Notify>,
    gate: Arc<gate::Gate>,
    streams: Arc<streams::Streams>,
}

/// Mounts a file system on a directory and serves it from threads of its own.
///
/// # Errors
/// The directory cannot be used, or the kernel refuses; the message says which.
pub fn mount(fs: Arc<dyn Vfs>, path: &Path, options: &FuseOptions) -> io::Result<Mounted> {
    clear_dead(path)?;
    if !std::fs::metadata(path)?.is_dir() {
        let what = format!("{} is not a directory", path.display());
        return Err(io::Error::new(io::ErrorKind::NotADirectory, what));
    }
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.name.clone()),
        MountOption::Subtype("trivet".into()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
    ];
    let without = |w| options.without.contains(&w);
    let root = rustix::process::geteuid().is_root();
    if root && !without(Without::Suid) {
        config.mount_options.push(MountOption::Suid);
    }
    if root && !without(Without::Dev) {
        config.mount_options.push(MountOption::Dev);
    }
    let forbidden = options.without.iter().copied().map(MountOption::from);
    config.mount_options.extend(forbidden);
    config.acl = match options.allow_other {
        true => SessionACL::All,
        false => SessionACL::Owner,
    };
    let threads = options.threads.clamp(2, 64);
    config.n_threads = Some(threads);
    config.clone_fd = true;
    let handles = Arc::new(handles::Handles::new(fs.clone()));
    let notify = notify::Notify::new(handles.clone());
    let gate = gate::Gate::new(fs.clone(), options.patience);
    let streams = Arc::new(streams::Streams::new(threads));
    let door = door::FuseDoor {
        fs: fs.clone(),
        handles,
        notify: notify.clone(),
        gate: gate.clone(),
        streams: streams.clone(),
    };
    let session = fuser::spawn_mount(door, path, &config)?;
    let mounted = Mounted {
        session: Some(session),
        path: path.to_owned(),
        notify: notify.clone(),
        gate: gate.clone(),
        streams: streams.clone(),
    };
    // From here on an error unmounts.
    if let Some(session) = &mounted.session {
        notify.start(session.notifier())?;
    }
    fs.watch(FUSE_DOOR, notify.clone());
    let abort = options.abort_when_lost.then(|| path.to_owned());
    gate.start(move || lost(&notify, &streams, abort.as_deref()))?;
    Ok(mounted)
}

/// The volume is lost for longer than anybody waits: what the kernel has cached is not to be
/// believed, and with `abort` its connection ends.
fn lost(notify: &notify::Notify, streams: &streams::Streams, abort: Option<&Path>) {
    tracing::error!("the volume is lost for too long: callers get errors");
    // Before the end: a connection that is gone takes no notice, and who has a file open reads on
    // from the kernel's pages.
    notify.forget_all();
    let Some(path) = abort else { return };
    let abort = || unmount(path, UnmountFlags::FORCE | UnmountFlags::DETACH);
    if let Err(error) = streams.end(abort) {
        // Without root there is no way to abort; what is asked of us is refused all the same.
        tracing::warn!(path = %path.display(), %error, "cannot abort the mount");
    }
}

impl Mounted {
    /// Whether the kernel still talks to us (somebody may have unmounted it by hand).
    pub fn is_alive(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|s| !s.guard.is_finished())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts; if the directory is in use, from sight at once and for its users when they let
    /// go. Returns false in that case: requests may then still come until the process ends.
    ///
    /// # Errors
    /// It could not be unmounted at all.
    pub fn unmount(mut self) -> io::Result<bool> {
        self.end()
    }

    fn end(&mut self) -> io::Result<bool> {
        self.notify.stop();
        self.gate.stop();
        let Some(session) = self.session.take() else {
            return Ok(true);
        };
        if session.guard.is_finished() {
            // Somebody has unmounted it. The library's session would, at its end, unmount whatever
            // has been mounted there since (its look at the descriptor takes an ended connection
            // for a mounted one): so it has no end, which costs one descriptor for each unmount by
            // hand, until the process ends.
            if !dead(&self.path) {
                std::mem::forget(session);
            }
            return Ok(true);
        }
        match session.umount_and_join() {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                // Its users hold pages that another node may overwrite from now on: the kernel is
                // made to end the connection, so that they get errors instead of old content.
                // Without the right to do that, its threads end with the last user.
                let forced = UnmountFlags::FORCE | UnmountFlags::DETACH;
                let abort = || unmount(&self.path, forced);
                self.streams
                    .end(abort)
                    .or_else(|_| unmount(&self.path, UnmountFlags::DETACH))?;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(path = %self.path.display(), %error, "cannot unmount");
        }
    }
}

/// Whether what is mounted on a directory is that of a daemon which died.
pub fn dead(path: &Path) -> bool {
    let gone = Some(rustix::io::Errno::NOTCONN.raw_os_error());
    std::fs::metadata(path).is_err_and(|e| e.raw_os_error() == gone)
}

/// Clears away what a daemon that died left mounted.
fn clear_dead(path: &Path) -> io::Result<()> {
    for _ in 0..8 {
        if !dead(path) {
            break;
        }
        tracing::info!(path = %path.display(), "clearing away a dead mount");
        if rustix::process::geteuid().is_root() {
            unmount(path, UnmountFlags::DETACH)?;
        } else {
            let done = std::process::Command::new("fusermount3")
                .args(["-u", "-z", "--"])
                .arg(path)
                .status()?;
            if !done.success() {
                return Err(io::Error::other("fusermount3 could not clear a dead mount"));
            }
        }
    }
    Ok(())
}
