//! Commands, processes and namespaces of this machine.
//!
//! Bounds: every command has [`PATIENCE`]; it is killed after that.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::{LabError, Result, start};

/// A command may take this long.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Bytes of what a command said that an error repeats.
const SAID: usize = 600;

/// Runs it to its end; returns what it wrote to its standard output.
///
/// # Errors
/// It cannot be started, takes too long, or fails.
pub fn run(words: &[&str]) -> Result<String> {
    let (ok, out, said) = run_any(words)?;
    match ok {
        true => Ok(out),
        false => Err(LabError::Command {
            command: words.join(" "),
            said,
        }),
    }
}

/// The same, whatever its exit status: whether it was 0, and both outputs.
///
/// # Errors
/// It cannot be started.
pub fn run_any(words: &[&str]) -> Result<(bool, String, String)> {
    let limit = PATIENCE.as_secs().to_string();
    let done = Command::new("timeout")
        .args(["-k", "2", &limit])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(start(words.join(" ")))?;
    let text = |raw: &[u8]| String::from_utf8_lossy(raw).into_owned();
    let mut said = text(&done.stderr);
    if said.trim().is_empty() {
        said = text(&done.stdout);
    }
    let mut from = said.len().saturating_sub(SAID);
    while !said.is_char_boundary(from) {
        from += 1;
    }
    let said = format!("{} ({})", said[from..].trim(), done.status);
    Ok((done.status.success(), text(&done.stdout), said))
}

/// Runs `ip`, for what need not be there.
pub fn ip_quietly(words: &[&str]) {
    // What is missing is as good as removed.
    let _ = run_any(&[&["ip"], words].concat());
}

/// Whether the user pressed Ctrl-C.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for SIGINT and SIGTERM; a second SIGINT ends the process at once (`timeout` sends
    /// SIGTERM twice).
    ///
    /// # Errors
    /// The system refuses.
    pub fn on_signals() -> Result<Stop> {
        let stop = Stop::default();
        let set = |signal| signal_hook::flag::register(signal, stop.0.clone());
        signal_hook::flag::register_conditional_shutdown(SIGINT, 130, stop.0.clone())
            .and_then(|_| set(SIGINT))
            .and_then(|_| set(SIGTERM))
            .map_err(start("listening for signals"))?;
        Ok(stop)
    }

    /// Waits.
    ///
    /// # Errors
    /// Ctrl-C.
    pub fn sleep(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            if self.0.load(Ordering::Acquire) {
                return Err(LabError::Interrupted);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            // In steps, to notice Ctrl-C; what is waited for is time itself.
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// Starts a thread inside a network namespace; sockets that it makes belong there.
///
/// # Errors
/// There is no such namespace, or no thread.
pub fn spawn_in<T: Send + 'static>(
    netns: &Path,
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<io::Result<T>>> {
    let ns = File::open(netns).map_err(start(format!("a thread in {}", netns.display())))?;
    let run = move || {
        let fd = rustix::fd::AsFd::as_fd(&ns);
        move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))?;
        Ok(f())
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(start(name))
}

/// One process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number here.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Name of its program.
    pub comm: String,
    /// A zombie: ended, and not yet waited for.
    pub zombie: bool,
}

/// All processes that are there now.
pub fn processes() -> Vec<Process> {
    let Ok(dir) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let one = |e: io::Result<std::fs::DirEntry>| -> Option<Process> {
        let pid: i32 = e.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let mut rest = stat.get(close + 2..)?.split(' ');
        let zombie = rest.next()? == "Z";
        Some(Process {
            pid,
            parent: rest.next()?.parse().ok()?,
            comm: stat.get(open + 1..close)?.to_owned(),
            zombie,
        })
    };
    dir.filter_map(one).collect()
}

/// Sends a signal; whether the process was still there.
pub fn signal(pid: i32, signal: Signal) -> bool {
    Pid::from_raw(pid).is_some_and(|p| kill_process(p, signal).is_ok())
}
