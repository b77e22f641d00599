//! The disk of a host's pool: it fails, hangs and fills up on command, and it outlives its host.
//!
//! A process of the lab (this program again, as `disk`) has a mount namespace of its own. There it
//! mounts a small file system in memory, and over that `trivet-faultfs`, where the host has its
//! pool. The host's own namespace is a copy of that one: with the host its view of the disk goes,
//! and the disk itself stays, as after a power cut. Nothing of it is in this machine's mount table;
//! when the process and the host are gone, so are the mounts, whatever ended them.
//!
//! Full is really full: a file beside the pool takes all that is left of the small file system.
//! Everything else is by the rules of faultfs, given over its socket.
//!
//! Bounded: [`SIZE`] bytes of memory each.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::process::Signal;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;
use trivet_faultfs::{Client, Mounted};

use crate::error::{LabError, Result, file, start};
use crate::host::{ended, soon, tied};
use crate::sys;

/// Bytes of a disk: a region's log and its reserve take a quarter.
const SIZE: u64 = 1 << 30;
/// What the other file takes at once; it ends with less than this.
const STEP: u64 = 16 << 20;

/// See the module's head.
pub struct Disk {
    name: String,
    backing: PathBuf,
    socket: PathBuf,
    process: Child,
}

impl Disk {
    /// Makes it, empty, with its file system at `at`.
    ///
    /// # Errors
    /// FUSE, or a file system in memory, cannot be mounted here.
    pub fn new(name: &str, dir: &Path, at: &Path) -> Result<Disk> {
        let backing = dir.join("backing");
        let socket = dir.join("disk.ctl");
        for d in [&backing, at] {
            std::fs::create_dir_all(d).map_err(file(d))?;
        }
        let path = dir.join("disk.log");
        let said = File::create(&path).map_err(file(&path))?;
        let mount = format!(
            "mount -t tmpfs -o size={SIZE} tmpfs \"$1\" && exec \"$0\" disk \"$1\" \"$2\" \"$3\""
        );
        let own = std::env::current_exe().map_err(start("the disk's process"))?;
        let process = tied("unshare")
            .args(["--mount", "sh", "-c", &mount])
            .args([&own, &backing, at, &socket])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .map_err(start(format!("the disk of {name}")))?;
        let mut disk = Disk {
            name: name.to_owned(),
            backing,
            socket,
            process,
        };
        let mut gone = false;
        soon(&format!("the disk of {name} is mounted"), || {
            gone = matches!(disk.process.try_wait(), Ok(Some(_)));
            gone || Client::connect(&disk.socket).is_ok()
        })?;
        match gone {
            false => Ok(disk),
            true => Err(LabError::Command {
                command: format!("the disk of {name}"),
                said: std::fs::read_to_string(&path).unwrap_or_default(),
            }),
        }
    }

    /// The mount namespace that it is mounted in.
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/mnt", self.process.id()))
    }

    /// Gives it a command of `trivet-faultfs`; what it answers.
    ///
    /// # Errors
    /// It refuses, or is not there.
    pub fn command(&self, words: &str) -> Result<String> {
        let told = Client::connect(&self.socket).and_then(|mut c| c.command(words));
        told.map_err(file(&self.socket))
    }

    /// The file that takes its space, seen from here: through the root of its own process.
    fn other(&self) -> PathBuf {
        let within = self.backing.join("other");
        let within = within.strip_prefix("/").unwrap_or(&within);
        PathBuf::from(format!("/proc/{}/root", self.process.id())).join(within)
    }

    /// Another file takes all of its space.
    ///
    /// # Errors
    /// It cannot be written for another reason.
    pub fn fill(&self) -> Result<()> {
        let path = self.other();
        let other = OpenOptions::new().create(true).append(true).open(&path);
        let other = other.map_err(file(&path))?;
        let failed = |e: Errno| file(&path)(e.into());
        let (mut at, mut step) = (0, STEP);
        while step > 0 {
            match fallocate(&other, FallocateFlags::empty(), at, step) {
                Ok(()) => at += step,
                Err(Errno::NOSPC) if step > 4096 => step /= 2,
                Err(Errno::NOSPC) => break,
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(())
    }

    /// That file is removed.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn empty(&self) -> Result<()> {
        let path = self.other();
        std::fs::remove_file(&path).map_err(file(&path))
    }

    /// Ends it; nothing may use it any more.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&mut self) -> Result<()> {
        if let Ok(pid) = i32::try_from(self.process.id()) {
            sys::signal(pid, Signal::TERM);
        }
        ended(&mut self.process, &format!("the disk of {}", self.name))
    }
}

/// The disk's own process: serves until SIGTERM.
///
/// # Errors
/// It cannot be mounted or served; what happened.
pub fn serve(backing: &Path, at: &Path, control: &Path) -> Result<()> {
    let signals = Signals::new([SIGTERM]).map_err(start("listening for signals"))?;
    let mounted = Mounted::new(backing, at).map_err(file(at))?;
    mounted.serve_until(signals, control).map_err(file(control))
}
