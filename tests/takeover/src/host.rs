//! One host of the lab: a network namespace with a bridge of its own, as on Proxmox, and inside it
//! what a host has to itself: processes, mounts and a name.
//!
//! Why a mount namespace: named network namespaces are files in `/run/netns`, and the daemon makes
//! one for its service address. Each host has a `/run` of its own, which lives as long as the host,
//! not as long as its daemon. Why a process namespace: its first process is the host; when that is
//! killed, the kernel kills everything in it, as a power cut does.
//!
//! Its pool lies on a [`Disk`] that belongs to the lab and outlives it. Whatever ends the lab ends
//! its hosts and their disks: each is told by the kernel when its parent dies.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::disk::Disk;
use crate::error::{LabError, Result, file, start};
use crate::sys::{self, processes};

/// A process is there, or gone, within this time.
const SOON: Duration = Duration::from_secs(60);
/// Where a host has its disk.
pub const DISK: &str = "/mnt";
/// Where it has its pool: on a disk of its own.
pub const POOL: &str = "/mnt/pool";

/// See the module's head.
pub struct Host {
    /// Its name.
    pub name: String,
    /// Name of its network namespace.
    pub netns: String,
    /// Its directory on this machine: its disk, and what its daemon says.
    pub dir: PathBuf,
    /// The disk of its pool.
    pub disk: Disk,
    trivet: PathBuf,
    config: PathBuf,
    running: Option<Running>,
}

struct Running {
    /// `unshare`, whose child is the first process inside.
    outer: Child,
    /// That first process.
    first: i32,
    /// `nsenter`, whose child is the daemon or its supervisor.
    serve: Option<Child>,
}

impl Host {
    /// Its network is there already; it is switched off.
    ///
    /// # Errors
    /// Its directory or its disk cannot be made.
    pub fn new(name: &str, netns: &str, dir: &Path, trivet: &Path, config: &Path) -> Result<Host> {
        let own = dir.join(name);
        std::fs::create_dir_all(own.join("disk")).map_err(file(&own))?;
        let disk = Disk::new(name, &own, &own.join("disk/pool"))?;
        Ok(Host {
            name: name.to_owned(),
            netns: netns.to_owned(),
            dir: own,
            disk,
            trivet: trivet.to_path_buf(),
            config: config.to_path_buf(),
            running: None,
        })
    }

    /// Switches it on; its daemon does not run yet.
    ///
    /// # Errors
    /// A namespace cannot be made, or the disk's process does not answer.
    pub fn power_on(&mut self) -> Result<()> {
        self.disk.command("on")?;
        let ready = self.dir.join("on");
        // Told apart from that of an earlier life.
        let _ = std::fs::remove_file(&ready);
        let script = format!(
            "mount -t tmpfs tmpfs /run && mkdir /run/netns && mount --rbind '{disk}' {DISK} && \
             hostname {name} && ip link set lo up && : >'{ready}' || exit 1; \
             while :; do sleep 1000 & wait $!; done",
            disk = self.dir.join("disk").display(),
            name = self.name,
            ready = ready.display(),
        );
        let said = self.dir.join("host.log");
        let said = std::fs::File::create(&said).map_err(file(&said))?;
        let outer = tied("nsenter")
            .arg(format!("--mount={}", self.disk.namespace().display()))
            .args(["ip", "netns", "exec", &self.netns, "unshare"])
            .args(["--mount", "--uts", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .map_err(start(format!("host {}", self.name)))?;
        let parent = i32::try_from(outer.id()).unwrap_or_default();
        self.running = Some(Running {
            outer,
            first: 0,
            serve: None,
        });
        soon(&format!("host {} comes up", self.name), || ready.exists())?;
        let first = processes().into_iter().find(|p| p.parent == parent);
        let first = first.ok_or_else(|| LabError::Late {
            what: format!("host {} comes up", self.name),
            seconds: 0,
            last: "its first process is not there".into(),
        })?;
        if let Some(r) = &mut self.running {
            r.first = first.pid;
        }
        Ok(())
    }

    /// Everything on it ends at once, as in a power cut.
    ///
    /// # Errors
    /// Something does not end.
    pub fn power_off(&mut self) -> Result<()> {
        let Some(mut r) = self.running.take() else {
            return Ok(());
        };
        sys::signal(r.first, Signal::KILL);
        if r.first == 0 {
            // It did not get as far as having one; what it became of it ends with it.
            let _ = r.outer.kill();
        }
        if let Some(serve) = &mut r.serve {
            ended(serve, "a daemon")?;
        }
        ended(&mut r.outer, "a host")
    }

    /// The same, and of what its disk had not synced about `keep` percent is left: any sectors.
    /// What was lost, in words.
    ///
    /// # Errors
    /// Something does not end, or the disk's process does not answer.
    pub fn power_cut(&mut self, seed: u64, keep: u8) -> Result<String> {
        // Ended first: nothing of it shall hear of a disk that fails.
        self.power_off()?;
        self.disk.command(&format!("cut seed={seed} keep={keep}"))
    }

    /// A command on it, as somebody would type it there.
    pub fn command(&self, words: &[&str]) -> Command {
        let first = self.running.as_ref().map_or(0, |r| r.first).to_string();
        let mut c = tied("nsenter");
        c.args(["--target", &first, "--mount", "--uts", "--net", "--pid"])
            .arg("env")
            .arg(self.env("CONFIG", &self.config))
            .arg(self.env(
                "KEY",
                &self.config.with_file_name(format!("{}.key", self.name)),
            ))
            .args(words)
            .stdin(Stdio::null());
        c
    }

    fn env(&self, what: &str, path: &Path) -> std::ffi::OsString {
        format!("TRIVET_{what}={}", path.display()).into()
    }

    /// Runs `trivet` with these words on it; returns what it says.
    ///
    /// # Errors
    /// It fails.
    pub fn trivet(&self, words: &[&str]) -> Result<String> {
        let program = self.trivet.display().to_string();
        let limit = sys::PATIENCE.as_secs().to_string();
        let all = [&["timeout", "-k", "2", &limit, &program][..], words].concat();
        let done = self.command(&all).output().map_err(start("trivet"))?;
        match done.status.success() {
            true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
            false => Err(LabError::Command {
                command: format!("trivet {} (on {})", words.join(" "), self.name),
                said: String::from_utf8_lossy(&done.stderr).trim().to_owned(),
            }),
        }
    }

    /// Where its daemon's log goes.
    pub fn log(&self) -> PathBuf {
        self.dir.join("serve.log")
    }

    /// Starts its daemon and returns when it serves its members.
    ///
    /// # Errors
    /// It ends instead; what it said.
    pub fn serve(&mut self) -> Result<()> {
        let path = self.dir.join("serve.out");
        let out = std::fs::File::create(&path).map_err(file(&path))?;
        let log = self.log();
        let err = OpenOptions::new().create(true).append(true).open(&log);
        let program = self.trivet.display().to_string();
        let state = format!("{DISK}/state");
        let mut child = self
            .command(&[&program, "serve", "--state", &state])
            .stdout(out)
            .stderr(err.map_err(file(&log))?)
            .spawn()
            .map_err(start("trivet serve"))?;
        let mut gone = false;
        let is_ready = soon(&format!("the daemon of {} is ready", self.name), || {
            gone = matches!(child.try_wait(), Ok(Some(_)));
            let said = std::fs::read_to_string(&path).unwrap_or_default();
            gone || said.contains("ready")
        });
        if let (false, Some(r)) = (gone, &mut self.running) {
            r.serve = Some(child);
        }
        is_ready?;
        match gone {
            false => Ok(()),
            true => Err(LabError::Command {
                command: format!("trivet serve (on {})", self.name),
                said: std::fs::read_to_string(&log).unwrap_or_default(),
            }),
        }
    }

    /// Its processes.
    pub fn processes(&self) -> Vec<sys::Process> {
        let Some(r) = &self.running else {
            return Vec::new();
        };
        let ns = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let Some(own) = ns(r.first) else {
            return Vec::new();
        };
        let inside = |p: &sys::Process| ns(p.pid).as_ref() == Some(&own);
        processes().into_iter().filter(inside).collect()
    }

    /// The daemon, and its supervisor if it has one.
    pub fn daemon(&self) -> (Option<i32>, Option<i32>) {
        let ours: Vec<sys::Process> = self
            .processes()
            .into_iter()
            .filter(|p| !p.zombie && is_serve(p.pid))
            .collect();
        let parent_of = |p: &sys::Process| ours.iter().find(|q| q.pid == p.parent);
        match ours.iter().find(|p| parent_of(p).is_some()) {
            Some(child) => (Some(child.pid), Some(child.parent)),
            None => (ours.first().map(|p| p.pid), None),
        }
    }

    /// Ends the daemon in order.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop_serving(&mut self) -> Result<()> {
        let (daemon, supervisor) = self.daemon();
        if let Some(pid) = supervisor.or(daemon) {
            sys::signal(pid, Signal::TERM);
        }
        self.wait_served()
    }

    /// Waits for the end of its daemon's command.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait_served(&mut self) -> Result<()> {
        match self.running.as_mut().and_then(|r| r.serve.take()) {
            Some(mut c) => ended(&mut c, "trivet serve"),
            None => Ok(()),
        }
    }
}

/// By its program and its first word: a daemon goes by other names, too (`exe`).
fn is_serve(pid: i32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    if !program.ends_with("trivet") {
        return false;
    }
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    raw.split(|b| *b == 0).any(|word| word == b"serve")
}

/// A command that the kernel kills when this process dies, and that Ctrl-C does not reach.
pub fn tied(program: &str) -> Command {
    let mut c = Command::new("setpriv");
    c.args(["--pdeathsig", "KILL", program]).process_group(0);
    c
}

/// Waits for its end.
///
/// # Errors
/// It does not end in time.
pub fn ended(child: &mut Child, what: &str) -> Result<()> {
    soon(&format!("{what} ends"), || {
        !matches!(child.try_wait(), Ok(None))
    })
}

/// Waits until it is so.
///
/// # Errors
/// It does not come about in time.
pub fn soon(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        if Instant::now() > deadline {
            return Err(LabError::Late {
                what: what.to_owned(),
                seconds: SOON.as_secs(),
                last: "it did not come about".into(),
            });
        }
        // Another process's work, of which nothing tells us.
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
