//! How tests give commands: directly, in the process that mounted the file system, or from
//! another one through a Unix socket, one line each; `ok ...` or `error ...` comes back.
//!
//! ```text
//! fail OP[,OP] ERRNO [path=PART] [after=N] [count=N]    OP: read write sync alloc name open
//! hang OP[,OP] [path=PART] [after=N] [count=N]          until release
//! tear [path=PART] [after=N] [count=N]                  writes arrive in part, with EIO
//! lie [path=PART] [after=N] [count=N]                   syncs do nothing and report success
//! release | clear | status
//! cut [seed=N] [keep=PERCENT]                           power cut; all fails until: on
//! on
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use crate::disk::{CutReport, Disk};
use crate::rules::Rule;

/// Bytes of one command, at most.
pub const LONGEST_LINE: u64 = 4096;

/// Gives commands to a file system in this process.
#[derive(Clone)]
pub struct Control {
    disk: Arc<Disk>,
}

impl Control {
    pub(crate) fn new(disk: Arc<Disk>) -> Control {
        Control { disk }
    }

    /// Adds a rule, in the words of the module's head.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn rule(&self, words: &str) -> Result<(), String> {
        self.disk.add_rule(words.parse::<Rule>()?)
    }

    /// Lets everything that hangs go on.
    pub fn release(&self) {
        self.disk.release();
    }

    /// Forgets all rules.
    pub fn clear(&self) {
        self.disk.clear();
    }

    /// Cuts the power; about `keep` percent of what is unsynced survive. Kill the programs that
    /// use the disk before [`Control::power_on`]: their handles are dead.
    ///
    /// # Errors
    /// The backing directory fails by itself.
    pub fn cut(&self, seed: u64, keep: u8) -> io::Result<CutReport> {
        self.disk.cut(seed, keep)
    }

    /// Ends a power cut.
    pub fn power_on(&self) {
        self.disk.power_on();
    }

    /// Power, what is unsynced, who hangs, rules: one line.
    pub fn status(&self) -> String {
        self.disk.status()
    }

    /// Carries out one line.
    ///
    /// # Errors
    /// What is wrong with it, or went wrong.
    pub fn command(&self, line: &str) -> Result<String, String> {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("release") => self.release(),
            Some("clear") => self.clear(),
            Some("on") => self.power_on(),
            Some("status") => return Ok(self.status()),
            Some("cut") => {
                let (seed, keep) = parse_cut(words)?;
                let report = self.cut(seed, keep).map_err(|e| e.to_string())?;
                return Ok(report.to_string());
            }
            _ => self.rule(line)?,
        }
        Ok(String::new())
    }

    /// Serves commands on a socket, for ever.
    ///
    /// # Errors
    /// The socket cannot be made or fails.
    pub fn serve(&self, socket: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(socket)?;
        for connection in listener.incoming() {
            let connection = connection?;
            // One at a time: commands are short, and tests have one thread that gives them.
            if let Err(e) = self.serve_one(&connection) {
                eprintln!("faultfs: control connection: {e}");
            }
        }
        Ok(())
    }

    fn serve_one(&self, connection: &UnixStream) -> io::Result<()> {
        let mut lines = BufReader::new(connection);
        let mut line = String::new();
        while lines.by_ref().take(LONGEST_LINE).read_line(&mut line)? > 0 {
            let answer = match self.command(line.trim()) {
                Ok(text) => format!("ok {text}"),
                Err(text) => format!("error {text}"),
            };
            writeln!(&*connection, "{}", answer.trim_end())?;
            line.clear();
        }
        Ok(())
    }
}

fn parse_cut<'a>(words: impl Iterator<Item = &'a str>) -> Result<(u64, u8), String> {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    let (mut seed, mut keep) = (random, 50);
    for word in words {
        let wrong = || format!("{word}: seed=N and keep=0..100 are possible");
        match word.split_once('=') {
            Some(("seed", v)) => seed = v.parse().map_err(|_| wrong())?,
            Some(("keep", v)) => keep = v.parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        }
    }
    if keep > 100 {
        return Err(format!("keep={keep}: 0 to 100 are possible"));
    }
    Ok((seed, keep))
}

/// Gives commands to a file system in another process.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to its socket.
    ///
    /// # Errors
    /// Nobody serves there.
    pub fn connect(socket: &Path) -> io::Result<Client> {
        let stream = BufReader::new(UnixStream::connect(socket)?);
        Ok(Client { stream })
    }

    /// Gives one command, returns the answer without its `ok`.
    ///
    /// # Errors
    /// The command was refused, or the connection failed.
    pub fn command(&mut self, line: &str) -> io::Result<String> {
        writeln!(self.stream.get_mut(), "{line}")?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        match answer
            .trim_end()
            .split_once(' ')
            .unwrap_or((answer.trim_end(), ""))
        {
            ("ok", text) => Ok(text.to_owned()),
            (_, text) => Err(io::Error::other(format!("{line}: {text}"))),
        }
    }
}
