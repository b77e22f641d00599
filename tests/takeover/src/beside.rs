//! Programs beside the load that use the export while things happen: real clients, as guests.
//!
//! A program is started when the volume is served and told where it is by its environment:
//! `SERVICE` and `EXPORT`; `SWITCH` and `CLIENT`, the network namespaces of the lab's switch (whose
//! bridge is `br0`) and of its client; `SCRATCH`, a directory of its own. It says
//!
//! - `ready`, in a line, when it is at work: nothing happens before;
//! - `holds NAME`, in a line before that, if it holds a write lock on the export's file NAME all
//!   along: another client tries to get it, and must not;
//! - `+` for each durable write that was acknowledged, and at no other time.
//!
//! Its standard input ends when nothing happens any more; then it looks whether all is as it should
//! be, and ends, with status 0 if it is.
//!
//! Bounded: [`READY`], [`END`]. Its processes are in a process namespace of its own and end with
//! it, and with the lab.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{LabError, Result, file, start};
use crate::findings::{Findings, Kind};
use crate::host::tied;
use crate::lab::{Lab, SERVICE, VOLUME};
use crate::load::pulse::Pulse;
use crate::sys::Stop;

/// It is at work within this time: a guest boots without hardware's help.
const READY: Duration = Duration::from_secs(180);
/// It has looked at everything, and ended, within this time.
const END: Duration = Duration::from_secs(240);
/// How often its output is looked at: the error of a pause.
const LOOK: Duration = Duration::from_millis(5);
/// Bytes of its output that a finding repeats.
const SAID: usize = 1500;

/// See the module's head.
pub struct Beside {
    /// Its file's name.
    pub name: String,
    program: Child,
    /// Its end is the program's sign to end.
    stdin: Option<ChildStdin>,
    said: PathBuf,
    /// Its durable writes.
    pub pulse: Arc<Pulse>,
    writes: Arc<AtomicU64>,
    worst: Duration,
    stop: Arc<AtomicBool>,
    counter: Option<JoinHandle<()>>,
}

impl Beside {
    /// Starts it, and waits until it is at work.
    ///
    /// # Errors
    /// It ends, or says nothing; what it said. Ctrl-C.
    pub fn start(program: &Path, lab: &Lab, seed: u64, stop: &Stop) -> Result<Beside> {
        let name = program.file_stem().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let scratch = lab.dir.join(&name);
        std::fs::create_dir_all(&scratch).map_err(file(&scratch))?;
        let said = lab.dir.join(format!("{name}.out"));
        let out = File::create(&said).map_err(file(&said))?;
        let err = out.try_clone().map_err(file(&said))?;
        let mut child = tied("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(program)
            .env("SERVICE", SERVICE.to_string())
            .env("EXPORT", format!("/{VOLUME}"))
            .env("SWITCH", lab.netns_file("sw"))
            .env("CLIENT", lab.netns_file("c1"))
            .env("SCRATCH", &scratch)
            .env("SEED", seed.to_string())
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(start(program.display().to_string()))?;
        let stdin = child.stdin.take();
        let mut beside = Beside {
            name,
            program: child,
            stdin,
            said,
            pulse: Arc::new(Pulse::new()),
            writes: Arc::default(),
            worst: Duration::ZERO,
            stop: Arc::default(),
            counter: None,
        };
        beside.until_ready(stop)?;
        beside.count()?;
        Ok(beside)
    }

    fn until_ready(&mut self, stop: &Stop) -> Result<()> {
        let deadline = Instant::now() + READY;
        while !self.words().lines().any(|l| l == "ready") {
            if matches!(self.program.try_wait(), Ok(Some(_))) {
                return Err(LabError::Command {
                    command: self.name.clone(),
                    said: self.end_of_words(),
                });
            }
            if Instant::now() > deadline {
                return Err(LabError::Late {
                    what: format!("{} is ready", self.name),
                    seconds: READY.as_secs(),
                    last: self.end_of_words(),
                });
            }
            stop.sleep(Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// Counts its writes from now on.
    fn count(&mut self) -> Result<()> {
        let mut out = File::open(&self.said).map_err(file(&self.said))?;
        // What came before it was at work is no pause.
        self.pulse = Arc::new(Pulse::new());
        let (pulse, writes) = (self.pulse.clone(), self.writes.clone());
        let stop = self.stop.clone();
        let counts = move || {
            let mut buf = [0; 4096];
            while !stop.load(Ordering::Acquire) {
                let more = out.read(&mut buf).unwrap_or_default();
                let new = buf.iter().take(more).filter(|b| **b == b'+').count();
                if new > 0 {
                    writes.fetch_add(new as u64, Ordering::Relaxed);
                    pulse.beat();
                }
                if more < buf.len() {
                    // Another process's output, of which nothing tells us.
                    std::thread::sleep(LOOK);
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("count-{}", self.name));
        let thread = thread.spawn(counts).map_err(start("counting"))?;
        self.counter = Some(thread);
        Ok(())
    }

    /// What it said, without its `+`.
    fn words(&self) -> String {
        let raw = std::fs::read(&self.said).unwrap_or_default();
        let words: Vec<u8> = raw.into_iter().filter(|b| *b != b'+').collect();
        String::from_utf8_lossy(&words).replace('\r', "")
    }

    fn end_of_words(&self) -> String {
        let words = self.words();
        let mut from = words.len().saturating_sub(SAID);
        while !words.is_char_boundary(from) {
            from += 1;
        }
        words[from..].trim().to_owned()
    }

    /// The files on which it says that it holds a lock.
    pub fn holds(&self) -> Vec<String> {
        let words = self.words();
        let held = words.lines().filter_map(|l| l.strip_prefix("holds "));
        held.map(str::to_owned).collect()
    }

    /// Pauses are measured anew from now on.
    pub fn mark(&mut self) {
        self.worst = self.worst.max(self.pulse.worst());
        self.pulse.mark();
    }

    /// Has it end, and says what it says, and what it did.
    ///
    /// # Errors
    /// Ctrl-C.
    pub fn finish(mut self, findings: &Findings, stop: &Stop) -> Result<String> {
        self.mark();
        drop(self.stdin.take());
        let deadline = Instant::now() + END;
        let status = loop {
            match self.program.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if Instant::now() < deadline => {}
                _ => break None,
            }
            stop.sleep(Duration::from_millis(50))?;
        };
        match status {
            Some(s) if s.success() => {}
            Some(s) => {
                let words = format!("{} ended with {s}: {}", self.name, self.end_of_words());
                findings.add(Kind::Beside, words);
            }
            None => {
                let words = format!("{} does not end: {}", self.name, self.end_of_words());
                findings.add(Kind::Beside, words);
            }
        }
        let words = self.words();
        let after = words.lines().skip_while(|l| *l != "ready").skip(1);
        let after: Vec<&str> = after.filter(|l| !l.is_empty()).collect();
        Ok(format!(
            "{}: {} durable writes, longest pause {:.2} s; it says:\n{}",
            self.name,
            self.writes.load(Ordering::Relaxed),
            self.worst.as_secs_f64(),
            after.join("\n")
        ))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.counter.take() {
            // It looks at the flag every few milliseconds; a panic of it has said so.
            let _ = thread.join();
        }
        if matches!(self.program.try_wait(), Ok(None)) {
            // Its first process goes with this one, and everything with that.
            let _ = self.program.kill();
            let _ = self.program.wait();
        }
    }
}
