//! A disk that fails on command: a pass-through FUSE file system over a backing directory, used
//! as a pool's directory in tests with real processes.
//!
//! What programs see is `BACKING/live`, changed at once. Beside it the file system remembers how
//! to take back whatever has not been synced: a **power cut** takes back a random part of it, at
//! 512-byte granularity, from a seed that is printed. On command it also gives EIO or ENOSPC,
//! hangs, tears a write, or lies about a sync ([`rules`]).
//!
//! The model is that of POSIX and no kinder: `fsync` of a file makes its content and length
//! durable, not its name; a name is durable when its directory was synced. Unsynced names are
//! lost last first, as a journal loses them. After a sync that failed on command, what it should
//! have synced is never made durable by a later one, as on Linux. Modes, owners and times are
//! durable at once; extended attributes and mmap do not exist; `syncfs` never reaches a FUSE file
//! system. A real full disk is had by putting the backing directory on a small one.
//!
//! Bounded: [`unsynced::MOST_BYTES`] of content to take back and [`names::MOST`] names are
//! remembered; beyond that the oldest become durable, as a kernel's write-back does. The
//! control's lines are at most [`control::LONGEST_LINE`] bytes. After a crash of this process the
//! backing directory holds what programs saw last, in `live`.

pub mod control;
mod disk;
mod fuse;
pub mod names;
mod node;
mod rng;
pub mod rules;
pub mod unsynced;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use signal_hook::iterator::Signals;

pub use control::{Client, Control};
pub use disk::CutReport;

/// A mounted file system, in this process; unmounted when dropped.
pub struct Mounted {
    control: Control,
    session: Option<fuser::BackgroundSession>,
    mountpoint: PathBuf,
}

impl Mounted {
    /// Mounts the file system over `backing` (made if missing) at `mountpoint`.
    ///
    /// # Errors
    /// The directories cannot be used, or FUSE cannot be mounted here.
    pub fn new(backing: &Path, mountpoint: &Path) -> std::io::Result<Mounted> {
        let disk = Arc::new(disk::Disk::open(backing)?);
        let session = fuse::spawn(Arc::clone(&disk), mountpoint)?;
        Ok(Mounted {
            control: Control::new(disk),
            session: Some(session),
            mountpoint: mountpoint.to_owned(),
        })
    }

    /// Where commands are given.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Takes commands at `socket` until one of `signals` comes; then it is unmounted.
    ///
    /// # Errors
    /// The socket cannot be made, used or removed.
    pub fn serve_until(self, mut signals: Signals, socket: &Path) -> std::io::Result<()> {
        let (serving, at) = (self.control.clone(), socket.to_owned());
        let wake = signals.handle();
        let server = std::thread::spawn(move || {
            let served = serving.serve(&at);
            wake.close();
            served
        });
        let signalled = signals.forever().next().is_some();
        drop(self);
        if signalled {
            // The server is in the middle of nothing: its socket is all that is left of it.
            return std::fs::remove_file(socket);
        }
        let bad = |_| std::io::Error::other("the thread that serves commands ended badly");
        server.join().map_err(bad)?
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever hangs would keep the session from ending.
        self.control.release();
        if let Some(session) = self.session.take()
            && let Err(e) = session.umount_and_join()
        {
            eprintln!("faultfs: cannot unmount {}: {e}", self.mountpoint.display());
        }
    }
}

/// Says that a test could not run on this machine, and why: on standard error, past the test
/// runner's capture, and in the list that `make test` prints at its end (`tests/README.md`).
///
/// # Errors
/// Neither can be written; a test that cannot say so must not pass.
pub fn skipped(test: &str, why: &str) -> std::io::Result<()> {
    let line = format!("{test}: {}\n", why.replace('\n', " "));
    std::io::stderr().write_all(format!("skipped: {line}").as_bytes())?;
    match std::env::var_os("TRIVET_SKIPS") {
        Some(list) => {
            let mut list = std::fs::File::options()
                .append(true)
                .create(true)
                .open(list)?;
            list.write_all(line.as_bytes())
        }
        None => Ok(()),
    }
}
