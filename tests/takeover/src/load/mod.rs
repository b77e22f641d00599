//! Load, as NFS clients with hard mounts make it, and the knowledge of what was acknowledged.
//!
//! - [`writer`]: 4 KiB durable writes, each to a block of its own file, read back now and then;
//! - [`unstable`]: unstable writes and COMMIT, repeated when the verifier says so;
//! - [`names`]: files made, renamed, linked and removed, exactly once each;
//! - [`growth`]: a file that grows and is cut off, for which there must be space;
//! - [`locks`]: locks that are held all along, and tried by another owner;
//! - [`sweep`]: reads everything and compares with what was acknowledged.
//!
//! Threads run in the namespace of the host that they play. Bounded: one call at a time each.

pub mod blocks;
pub mod growth;
pub mod hard;
pub mod locks;
pub mod names;
pub mod pulse;
pub mod reigns;
pub mod sweep;
pub mod unstable;
pub mod writer;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use trivet_nfs::client::nfs::{Fh, NfsClient, Url};
use trivet_nfs::nfs3::types::PROGRAM;
use trivet_nfs::xdr::{Dec, Enc};

use crate::error::{LabError, Result};
use crate::findings::{Findings, Kind};
use crate::sys::{Stop, spawn_in};
use blocks::Ledger;
use hard::{Failure, Hard};
use pulse::Pulse;
use reigns::Reigns;

/// Writers of the client.
const WRITERS: usize = 4;
/// Blocks of each file.
const BLOCKS: u64 = 64;
/// Between two tries of what needs space and finds none.
const SCARCE_PACE: Duration = Duration::from_millis(100);
/// NFS3ERR_NOSPC.
pub const NOSPC: u32 = 28;
/// Everybody has done what was asked of them, and ends, within this time of a healthy cluster.
const DONE: Duration = Duration::from_secs(70);

/// What is counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Durable writes acknowledged.
    pub writes: AtomicU64,
    /// Blocks read and compared.
    pub reads: AtomicU64,
    /// Changes of names acknowledged.
    pub names: AtomicU64,
    /// Old calls repeated after an event.
    pub replays: AtomicU64,
    /// Locks taken, tried and given back.
    pub locks: AtomicU64,
    /// COMMITs whose verifier told that data had to be sent again.
    pub resent: AtomicU64,
    /// Calls that were refused while a pool was full.
    pub no_space: AtomicU64,
    /// Connections that ended.
    pub reconnects: AtomicU64,
    /// Connections refused: a client met a host without a server.
    pub refused: AtomicU64,
    /// Connections that could not be made for another reason.
    pub unreachable: AtomicU64,
}

impl Counts {
    fn failed_connect(&self, e: &std::io::Error) {
        let counter = match e.kind() {
            std::io::ErrorKind::ConnectionRefused => &self.refused,
            _ => &self.unreachable,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What all threads share.
pub struct Shared {
    /// Where the export is.
    pub server: SocketAddr,
    /// Give up at once.
    pub stop: AtomicBool,
    /// End in order.
    pub ending: AtomicBool,
    /// Times that everybody was asked to look whether all is as it was.
    pub asked: AtomicU64,
    /// A pool is full, or was until just now: what needs space may be refused.
    scarce: AtomicBool,
    /// When a call was refused last for that.
    refused: Mutex<Instant>,
    /// What is wrong.
    pub findings: Arc<Findings>,
    /// What is counted.
    pub counts: Counts,
    /// The order of reigns.
    pub reigns: Reigns,
}

impl Shared {
    /// Whether to begin another step.
    pub fn goes_on(&self) -> bool {
        !self.ending.load(Ordering::Acquire) && !self.stop.load(Ordering::Acquire)
    }

    /// Whether `status` is what a call may be answered with for lack of space, at a time when it
    /// may. Whether it was carried out is not known then (it may be durable later), and its caller
    /// comes again after [`SCARCE_PACE`].
    pub fn no_space(&self, status: u32, refusal: u32) -> bool {
        let legitimate = status == refusal && self.scarce.load(Ordering::Acquire);
        if legitimate {
            self.counts.no_space.fetch_add(1, Ordering::Relaxed);
            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            // A rate, not a race.
            std::thread::sleep(SCARCE_PACE);
        }
        legitimate
    }

    /// A failure of a call; `Stopped` is none.
    pub fn failed(&self, what: &str, failure: Failure) {
        if let Failure::Rpc(why) = failure {
            self.findings.add(Kind::Answer, format!("{what}: {why}"));
        }
    }
}

/// An NFS procedure.
pub fn nfs(procedure: u32) -> hard::What {
    (PROGRAM, 3, procedure)
}

/// A call whose answer begins with a status; what follows an OK, or the status.
///
/// # Errors
/// [`Failure`].
pub fn status_of(
    hard: &mut Hard,
    procedure: u32,
    args: &dyn Fn(&mut Enc),
) -> std::result::Result<std::result::Result<Dec, u32>, Failure> {
    let mut d = hard.call(nfs(procedure), args)?;
    split(&mut d).map(|s| s.map(|()| d))
}

/// The status of an answer.
///
/// # Errors
/// There is none.
pub fn split(d: &mut Dec) -> std::result::Result<std::result::Result<(), u32>, Failure> {
    match d.u32() {
        Ok(0) => Ok(Ok(())),
        Ok(status) => Ok(Err(status)),
        Err(e) => Err(Failure::Rpc(e.to_string())),
    }
}

struct Worker {
    thread: JoinHandle<std::io::Result<()>>,
    /// Answers [`Shared::asked`].
    answered: Option<Arc<AtomicU64>>,
    name: String,
}

/// The load of a run.
pub struct Load {
    shared: Arc<Shared>,
    ledgers: Vec<Arc<Ledger>>,
    pulses: Vec<Arc<Pulse>>,
    workers: Vec<Worker>,
    client: PathBuf,
}

impl Load {
    /// Mounts `export` at `server`, makes the files, and starts: all of it in the client's
    /// namespace, and one writer in each of `others`.
    ///
    /// # Errors
    /// The export cannot be mounted, or a thread not started.
    pub fn start(
        server: IpAddr,
        export: &str,
        client: &Path,
        others: &[(String, PathBuf)],
        findings: &Arc<Findings>,
        seed: u64,
    ) -> Result<Load> {
        let url = Url {
            host: server,
            nfs_port: None,
            mount_port: None,
            path: export.to_owned(),
        };
        let mut names: Vec<String> = (0..WRITERS).map(|n| format!("sync{n}")).collect();
        names.push("unstable".into());
        names.extend(others.iter().map(|(n, _)| format!("of-{n}")));
        let made = spawn_in(client, "mount", move || prepare(&url, &names))?;
        let Ok(Ok(made)) = made.join() else {
            return Err(LabError::Load("no thread in the client's namespace".into()));
        };
        let (at, ledgers, [dir, lock_file, grown]) = made.map_err(LabError::Load)?;
        let shared = Arc::new(Shared {
            server: at,
            stop: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            scarce: AtomicBool::new(false),
            refused: Mutex::new(Instant::now()),
            findings: findings.clone(),
            counts: Counts::default(),
            reigns: Reigns::default(),
        });
        let mut load = Load {
            shared,
            ledgers,
            pulses: Vec::new(),
            workers: Vec::new(),
            client: client.to_path_buf(),
        };
        load.start_writers(others, seed)?;
        load.start_others(dir, lock_file, seed)?;
        let g = growth::Growth::new(&load.shared, grown);
        load.worker(client, "growth", None, move || g.run())?;
        Ok(load)
    }

    fn start_writers(&mut self, others: &[(String, PathBuf)], seed: u64) -> Result<()> {
        for n in 0..WRITERS {
            let pulse = Arc::new(Pulse::new());
            self.pulses.push(pulse.clone());
            let w = writer::Writer::new(&self.shared, &self.ledgers[n], pulse, seed + n as u64);
            let client = self.client.clone();
            self.worker(&client, &format!("sync{n}"), None, move || w.run())?;
        }
        for (n, (name, netns)) in others.iter().enumerate() {
            // On a node that is cut off it waits: its pauses are not the client's.
            let pulse = Arc::new(Pulse::new());
            let ledger = &self.ledgers[WRITERS + 1 + n];
            let seed = seed + 100 + n as u64;
            let w = writer::Writer::new(&self.shared, ledger, pulse, seed).on_a_host();
            self.worker(netns, &format!("of-{name}"), None, move || w.run())?;
        }
        Ok(())
    }

    fn start_others(&mut self, dir: Fh, lock_file: Fh, seed: u64) -> Result<()> {
        let client = self.client.clone();
        let u = unstable::Unstable::new(&self.shared, &self.ledgers[WRITERS], seed + 50);
        self.worker(&client, "unstable", None, move || u.run())?;
        let answered = Arc::new(AtomicU64::new(0));
        let n = names::Names::new(&self.shared, dir, answered.clone(), seed + 51);
        self.worker(&client, "names", Some(answered), move || n.run())?;
        let answered = Arc::new(AtomicU64::new(0));
        let l = locks::Locks::new(&self.shared, lock_file, answered.clone());
        self.worker(&client, "locks", Some(answered), move || l.run())?;
        let answered = Arc::new(AtomicU64::new(0));
        let s = sweep::Sweep::new(&self.shared, self.ledgers.clone(), answered.clone());
        self.worker(&client, "sweep", Some(answered), move || s.run())
    }

    fn worker(
        &mut self,
        netns: &Path,
        name: &str,
        answered: Option<Arc<AtomicU64>>,
        f: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        self.workers.push(Worker {
            thread: spawn_in(netns, name, f)?,
            answered,
            name: name.to_owned(),
        });
        Ok(())
    }

    /// From now on another client tries to get the lock that somebody holds on this file of the
    /// export's root, and must not.
    ///
    /// # Errors
    /// There is no such file, or no thread.
    pub fn contend(&mut self, server: IpAddr, export: &str, name: &str) -> Result<()> {
        let url = Url {
            host: server,
            nfs_port: None,
            mount_port: None,
            path: export.to_owned(),
        };
        let of = name.to_owned();
        let find = move || {
            let mut c = NfsClient::mount(&url, true)?;
            let root = c.root.clone();
            c.lookup(&root, of.as_bytes()).map(|(fh, _)| fh)
        };
        let found = spawn_in(&self.client, "find", find)?.join();
        let Ok(Ok(found)) = found else {
            return Err(LabError::Load("no thread in the client's namespace".into()));
        };
        let fh = found.map_err(|e| LabError::Load(format!("{name}: {e}")))?;
        let l = locks::Locks::new(&self.shared, fh, Arc::default());
        let client = self.client.clone();
        self.worker(&client, "contender", None, move || l.contend())
    }

    /// From now on pauses are measured anew.
    pub fn mark(&self) {
        self.pulses.iter().for_each(|p| p.mark());
    }

    /// The longest time between two acknowledged durable writes of one stream, since the mark.
    pub fn pause(&self) -> Duration {
        let all = self.pulses.iter().map(|p| p.worst());
        all.max().unwrap_or_default()
    }

    /// Whether every stream of the client had an acknowledgement after `since`.
    pub fn alive_since(&self, since: Instant) -> bool {
        self.pulses.iter().all(|p| p.last() > since)
    }

    /// A pool is full from now on, or no more: what needs space may be refused in between.
    pub fn scarce(&self, is: bool) {
        self.shared.scarce.store(is, Ordering::Release);
    }

    /// How long ago the last call was refused for lack of space, or `since` was if that is later.
    pub fn quiet_since(&self, since: Instant) -> Duration {
        let last = self.shared.refused.lock();
        let last = *last.unwrap_or_else(PoisonError::into_inner);
        last.max(since).elapsed()
    }

    /// Calls refused for lack of space so far.
    pub fn refused(&self) -> u64 {
        self.shared.counts.no_space.load(Ordering::Relaxed)
    }

    /// Has everybody look whether all is as it was: old calls repeated, locks tried, every block
    /// read. What is wrong goes to the findings; so does somebody who does not come to an end.
    ///
    /// # Errors
    /// Ctrl-C.
    pub fn look(&self, stop: &Stop, after: &str) -> Result<()> {
        let asked = self.shared.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let deadline = Instant::now() + DONE;
        for w in &self.workers {
            let Some(answered) = &w.answered else {
                continue;
            };
            while answered.load(Ordering::Acquire) < asked {
                if Instant::now() > deadline || w.thread.is_finished() {
                    let words = format!("after {after}: {} has not come to an end", w.name);
                    self.shared.findings.add(Kind::NotWhole, words);
                    return Ok(());
                }
                stop.sleep(Duration::from_millis(20))?;
            }
        }
        Ok(())
    }

    /// Ends the load in order, and compares everything once more.
    ///
    /// # Errors
    /// Ctrl-C.
    pub fn finish(mut self, stop: &Stop) -> Result<Arc<Shared>> {
        self.shared.ending.store(true, Ordering::Release);
        let deadline = Instant::now() + DONE;
        for w in std::mem::take(&mut self.workers) {
            while !w.thread.is_finished() && Instant::now() < deadline {
                stop.sleep(Duration::from_millis(20))?;
            }
            if !w.thread.is_finished() {
                let words = format!("at the end: {} still waits for an answer", w.name);
                self.shared.findings.add(Kind::NotWhole, words);
            } else if !matches!(w.thread.join(), Ok(Ok(()))) {
                let words = format!("{} came to a bad end", w.name);
                self.shared.findings.add(Kind::Answer, words);
            }
        }
        let (shared, ledgers) = (self.shared.clone(), self.ledgers.clone());
        let last = spawn_in(&self.client, "last look", move || {
            sweep::exactly(&shared, &ledgers);
        })?;
        while !last.is_finished() && Instant::now() < deadline {
            stop.sleep(Duration::from_millis(20))?;
        }
        if !last.is_finished() {
            let words = "the last look has not come to an end".to_owned();
            self.shared.findings.add(Kind::NotWhole, words);
        }
        Ok(self.shared.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

/// Where; the files; the directory of names, the file of locks, the one that grows.
type Made = (SocketAddr, Vec<Arc<Ledger>>, [Fh; 3]);

/// Mounts, and makes what the workers work on.
fn prepare(url: &Url, files: &[String]) -> std::result::Result<Made, String> {
    let failed = |e: trivet_nfs::client::nfs::NfsClientError| e.to_string();
    let mut c = NfsClient::mount(url, true).map_err(failed)?;
    let root = c.root.clone();
    let at = c.rpc.socket().peer_addr().map_err(|e| e.to_string())?;
    let mut ledgers = Vec::new();
    for (n, name) in files.iter().enumerate() {
        let fh = c.create(&root, name.as_bytes(), None).map_err(failed)?;
        ledgers.push(Arc::new(Ledger::new(n as u64, name, fh, BLOCKS)));
    }
    let dir = c.mkdir(&root, b"names").map_err(failed)?;
    let lock_file = c.create(&root, b"locked", None).map_err(failed)?;
    let grown = c.create(&root, b"grown", None).map_err(failed)?;
    Ok((at, ledgers, [dir, lock_file, grown]))
}
