//! Changes of names, each of which must happen exactly once (invariant 9): a repetition that is
//! carried out again fails, because its file is there, or gone, already.
//!
//! One in [`LOSE`] calls loses its connection before the answer. After each event the last calls
//! are repeated, number and all, as a client would that never got the answers: they must be
//! answered as they were then.
//!
//! While a pool is full a change may be refused, and then nobody is told whether it happened: what
//! is there decides, and what did not happen is tried again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use trivet_bench::rng::Rng;
use trivet_nfs::client::nfs::{Fh, get_post, put_sattr};
use trivet_nfs::client::rpc::next_xid;
use trivet_nfs::xdr::{Dec, Enc, XdrResult};

use super::hard::{Failure, Hard};
use super::{NOSPC, Shared, nfs, split, status_of};
use crate::findings::Kind;

const PACE: Duration = Duration::from_millis(15);
/// One in so many calls loses its connection.
const LOSE: u64 = 10;
/// Old calls that are repeated after an event.
const REPLAYS: usize = 8;
/// A server keeps answers for at least two minutes.
const KEPT: Duration = Duration::from_secs(100);
/// Files that stay.
const FILES: usize = 48;

const LOOKUP: u32 = 3;
const CREATE: u32 = 8;
const MKDIR: u32 = 9;
const REMOVE: u32 = 12;
const RMDIR: u32 = 13;
const RENAME: u32 = 14;
const LINK: u32 = 15;
const READDIR: u32 = 16;
const NOENT: u32 = 2;

struct Past {
    xid: u32,
    procedure: u32,
    args: Vec<u8>,
    what: String,
    at: Instant,
}

/// See the module's head.
pub struct Names {
    shared: Arc<Shared>,
    dir: Fh,
    answered: Arc<AtomicU64>,
    hard: Hard,
    rng: Rng,
    past: VecDeque<Past>,
    /// What the directory holds, oldest first.
    files: VecDeque<String>,
    next: u64,
}

impl Names {
    /// In this directory, which is empty.
    pub fn new(shared: &Arc<Shared>, dir: Fh, answered: Arc<AtomicU64>, seed: u64) -> Names {
        Names {
            shared: shared.clone(),
            dir,
            answered,
            hard: Hard::new(shared),
            rng: Rng::new(seed),
            past: VecDeque::new(),
            files: VecDeque::new(),
            next: 0,
        }
    }

    /// Until the load ends; then the directory must hold what it should.
    pub fn run(mut self) {
        while self.shared.goes_on() {
            let done = self.step().and_then(|()| self.look());
            if let Err(failure) = done {
                self.shared.failed("names", failure);
                return;
            }
            // A rate, not a race.
            std::thread::sleep(PACE);
        }
        if let Err(failure) = self.compare() {
            self.shared.failed("listing names", failure);
        }
    }

    /// If somebody asked: repeats old calls, and lists the directory.
    fn look(&mut self) -> Result<(), Failure> {
        let asked = self.shared.asked.load(Ordering::Acquire);
        if asked == self.answered.load(Ordering::Acquire) {
            return Ok(());
        }
        for p in self.past.iter().filter(|p| p.at.elapsed() < KEPT) {
            let args = |e: &mut Enc| {
                e.raw(&p.args);
            };
            let mut d = self.hard.call_as(p.xid, nfs(p.procedure), &args)?;
            if let Err(status) = split(&mut d)? {
                let what = format!("repetition of {} {:?} later", p.what, p.at.elapsed());
                self.shared.findings.status(status, true, what);
            }
            self.shared.counts.replays.fetch_add(1, Ordering::Relaxed);
        }
        self.compare()?;
        self.answered.store(asked, Ordering::Release);
        Ok(())
    }

    fn step(&mut self) -> Result<(), Failure> {
        let n = self.next;
        self.next += 1;
        let (made, moved) = (format!("made{n}"), format!("moved{n}"));
        let dir = self.dir.clone();
        let proof = (made.as_str(), true);
        self.once(CREATE, proof, format!("exclusive CREATE {made}"), |e| {
            e.opaque(&dir).opaque(made.as_bytes()).u32(2);
            e.fixed(&n.to_be_bytes());
        })?;
        let proof = (moved.as_str(), true);
        self.once(RENAME, proof, format!("RENAME {made} {moved}"), |e| {
            e.opaque(&dir).opaque(made.as_bytes());
            e.opaque(&dir).opaque(moved.as_bytes());
        })?;
        let fh = self.find(&moved)?;
        self.not_there(&made)?;
        if let (0, Some(fh)) = (n % 4, fh) {
            let link = format!("link{n}");
            self.once(LINK, (&link, true), format!("LINK {link}"), |e| {
                e.opaque(&fh).opaque(&dir).opaque(link.as_bytes());
            })?;
            self.remove(REMOVE, &link)?;
        }
        match n % 3 {
            0 => {
                let guarded = format!("guarded{n}");
                let proof = (guarded.as_str(), true);
                self.once(CREATE, proof, format!("guarded CREATE {guarded}"), |e| {
                    e.opaque(&dir).opaque(guarded.as_bytes()).u32(1);
                    put_sattr(e, Some(0o600), None);
                })?;
                self.remove(REMOVE, &guarded)?;
            }
            1 => {
                let sub = format!("dir{n}");
                self.once(MKDIR, (&sub, true), format!("MKDIR {sub}"), |e| {
                    e.opaque(&dir).opaque(sub.as_bytes());
                    put_sattr(e, Some(0o755), None);
                })?;
                self.remove(RMDIR, &sub)?;
            }
            _ => {}
        }
        self.files.push_back(moved);
        if self.files.len() > FILES
            && let Some(oldest) = self.files.pop_front()
        {
            self.remove(REMOVE, &oldest)?;
        }
        Ok(())
    }

    fn remove(&mut self, procedure: u32, name: &str) -> Result<(), Failure> {
        let dir = self.dir.clone();
        self.once(
            procedure,
            (name, false),
            format!("removal of {name}"),
            |e| {
                e.opaque(&dir).opaque(name.as_bytes());
            },
        )
    }

    /// A call that must succeed, and be carried out once. It has happened when the name is there,
    /// or is not there any more.
    fn once(
        &mut self,
        procedure: u32,
        (name, is_there): (&str, bool),
        what: String,
        args: impl Fn(&mut Enc),
    ) -> Result<(), Failure> {
        let mut e = Enc::new();
        args(&mut e);
        let bytes = e.into_vec();
        let put = |e: &mut Enc| {
            e.raw(&bytes);
        };
        let (xid, answer) = loop {
            let (xid, mut d) = match self.rng.below(LOSE) {
                0 => self.hard.call_twice(nfs(procedure), &put)?,
                _ => {
                    let xid = next_xid();
                    (xid, self.hard.call_as(xid, nfs(procedure), &put)?)
                }
            };
            match split(&mut d)? {
                Err(status) if self.shared.no_space(status, NOSPC) => {
                    if self.present(name)? == is_there {
                        return Ok(());
                    }
                }
                answer => break (xid, answer),
            }
        };
        match answer {
            Err(status) => self.shared.findings.status(status, true, what),
            Ok(()) => {
                self.shared.counts.names.fetch_add(1, Ordering::Relaxed);
                self.past.push_back(Past {
                    xid,
                    procedure,
                    args: bytes,
                    what,
                    at: Instant::now(),
                });
                if self.past.len() > REPLAYS {
                    self.past.pop_front();
                }
            }
        }
        Ok(())
    }

    fn lookup(&mut self, name: &str) -> Result<Result<Dec, u32>, Failure> {
        let dir = self.dir.clone();
        status_of(&mut self.hard, LOOKUP, &|e| {
            e.opaque(&dir).opaque(name.as_bytes());
        })
    }

    fn present(&mut self, name: &str) -> Result<bool, Failure> {
        match self.lookup(name)? {
            Ok(_) => Ok(true),
            Err(NOENT) => Ok(false),
            Err(status) => {
                let what = format!("LOOKUP {name}");
                self.shared.findings.status(status, false, what);
                Ok(false)
            }
        }
    }

    fn find(&mut self, name: &str) -> Result<Option<Fh>, Failure> {
        match self.lookup(name)? {
            Ok(mut d) => Ok(Some(d.opaque(64).map_err(|e| Failure::Rpc(e.to_string()))?)),
            Err(status) => {
                let what = format!("LOOKUP {name}, which was made");
                self.shared.findings.status(status, true, what);
                Ok(None)
            }
        }
    }

    fn not_there(&mut self, name: &str) -> Result<(), Failure> {
        match self.lookup(name)? {
            Err(NOENT) => {}
            Err(status) => self
                .shared
                .findings
                .status(status, false, format!("LOOKUP {name}")),
            Ok(_) => {
                let words = format!("{name} is there, and was renamed");
                self.shared.findings.add(Kind::NotOnce, words);
            }
        }
        Ok(())
    }

    /// The directory holds exactly what was made and not removed.
    fn compare(&mut self) -> Result<(), Failure> {
        let Some(listed) = self.list()? else {
            return Ok(());
        };
        let expected: BTreeSet<String> = self.files.iter().cloned().collect();
        for name in expected.difference(&listed) {
            let words = format!("{name} is not listed, and was made");
            self.shared.findings.add(Kind::Lost, words);
        }
        for name in listed.difference(&expected) {
            let words = format!("{name} is listed, and was removed or never made");
            self.shared.findings.add(Kind::NotOnce, words);
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Option<BTreeSet<String>>, Failure> {
        let mut all = BTreeSet::new();
        let mut cookie = 0;
        let dir = self.dir.clone();
        loop {
            let answer = status_of(&mut self.hard, READDIR, &|e| {
                e.opaque(&dir).u64(cookie).fixed(&[0; 8]).u32(32 << 10);
            })?;
            let mut d = match answer {
                Ok(d) => d,
                Err(status) => {
                    self.shared.findings.status(status, false, "READDIR".into());
                    return Ok(None);
                }
            };
            let page = get_entries(&mut d).map_err(|e| Failure::Rpc(e.to_string()))?;
            let (names, last, end) = page;
            all.extend(names);
            match (end, last) {
                (false, Some(last)) => cookie = last,
                _ => break,
            }
        }
        all.remove(".");
        all.remove("..");
        Ok(Some(all))
    }
}

/// Names, the last cookie, and whether that was all.
fn get_entries(d: &mut Dec) -> XdrResult<(Vec<String>, Option<u64>, bool)> {
    get_post(d)?;
    d.fixed::<8>()?;
    let (mut names, mut last) = (Vec::new(), None);
    while d.bool()? {
        d.u64()?;
        names.push(String::from_utf8_lossy(&d.opaque(255)?).into_owned());
        last = Some(d.u64()?);
    }
    Ok((names, last, d.bool()?))
}
