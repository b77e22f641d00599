//! A `trivet downstairs run` as a child of this process: for measurements and tests, which want
//! to kill, stop and weigh it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::error::{ClusterError, Result};
use crate::keys::KeyFiles;

/// What the child says on its standard output, one JSON document a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Said {
    /// It serves.
    Ready {
        /// Where.
        address: SocketAddr,
        /// How many regions and witnesses.
        regions: usize,
    },
    /// After SIGUSR1: the logs are moved to the extent files.
    Settled,
}

/// A running child. Dropping it kills it.
pub struct Downstairs {
    child: Child,
    lines: BufReader<ChildStdout>,
    address: SocketAddr,
    what: String,
}

impl Downstairs {
    /// Starts `binary downstairs run` for these pools, with TLS if there are `keys`, and waits
    /// until it serves.
    ///
    /// # Errors
    /// It does not start; its own message is on standard error.
    pub fn start(
        binary: &Path,
        listen: SocketAddr,
        pools: &[PathBuf],
        keys: Option<&KeyFiles>,
    ) -> Result<Downstairs> {
        let mut command = Command::new(binary);
        command.args(["-o", "json", "downstairs", "run", "--end-with-parent"]);
        command.arg("--listen").arg(listen.to_string());
        for pool in pools {
            command.arg("--pool").arg(pool);
        }
        if let Some(keys) = keys {
            command.arg("--key").arg(&keys.key);
            command.arg("--peers").arg(&keys.peers);
        }
        let what = format!("downstairs run --listen {listen}");
        let failed = |why: String| ClusterError::Process {
            what: what.clone(),
            why,
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| failed(format!("cannot start {}: {e}", binary.display())))?;
        let Some(out) = child.stdout.take() else {
            return Err(failed("it has no standard output".into()));
        };
        let mut started = Downstairs {
            child,
            lines: BufReader::new(out),
            address: listen,
            what,
        };
        match started.next()? {
            Said::Ready { address, .. } => started.address = address,
            Said::Settled => return Err(started.failed("it spoke out of turn".into())),
        }
        Ok(started)
    }

    fn failed(&self, why: String) -> ClusterError {
        ClusterError::Process {
            what: self.what.clone(),
            why,
        }
    }

    fn next(&mut self) -> Result<Said> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err(self.failed("it ended; look at its messages above".into())),
            Ok(_) => serde_json::from_str(&line)
                .map_err(|e| self.failed(format!("it said {line:?}: {e}"))),
            Err(e) => Err(self.failed(format!("it cannot be heard: {e}"))),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            return Err(self.failed("it has no process id".into()));
        };
        kill_process(pid, signal).map_err(|e| self.failed(format!("cannot be signalled: {e}")))
    }

    /// Waits until its logs are moved to the extent files.
    ///
    /// # Errors
    /// It ended.
    pub fn settle(&mut self) -> Result<()> {
        self.signal(Signal::USR1)?;
        match self.next()? {
            Said::Settled => Ok(()),
            Said::Ready { .. } => Err(self.failed("it spoke out of turn".into())),
        }
    }

    /// Has it serve what was made ready in its pools since, and returns how much it serves now.
    ///
    /// # Errors
    /// It ended.
    pub fn rescan(&mut self) -> Result<usize> {
        self.signal(Signal::HUP)?;
        match self.next()? {
            Said::Ready { regions, .. } => Ok(regions),
            Said::Settled => Err(self.failed("it spoke out of turn".into())),
        }
    }

    /// Ends it as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it in order (SIGTERM) and waits.
    ///
    /// # Errors
    /// It did not end well.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(self.failed(format!("it ended with {status}"))),
            Err(e) => Err(self.failed(e.to_string())),
        }
    }
}

impl Drop for Downstairs {
    fn drop(&mut self) {
        self.kill();
    }
}
