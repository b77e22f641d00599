//! A disk in memory that forgets what was not synced, tears, fails and lies on command.
//!
//! Deterministic: the same calls and seeds give the same contents. One [`SimDisk`] is one
//! machine's disk; [`SimDisk::dir`] opens a directory on it. A power cut ([`SimDisk::crash`])
//! keeps of every 512-byte sector written since its last sync the old content or any of the new
//! ones, and of the names changed since the last directory sync a prefix of the changes. Handles
//! from before a crash are dead. Dropping the user's objects without a crash models a killed
//! process: the page cache stays.

mod inode;

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, Space};
use inode::{Inode, PAGE};

/// A small deterministic random number generator (splitmix64), for tests and fault choices.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 if `n` is 0).
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw().checked_rem(n).unwrap_or(0)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone)]
enum DirOp {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

#[derive(Clone)]
struct Rule {
    action: &'static str,
    full: bool,
    name: String,
    skip: u64,
    times: u64,
}

#[derive(Clone)]
struct State {
    boot: u64,
    inodes: BTreeMap<u64, Box<Inode>>,
    next: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending: Vec<(String, DirOp)>,
    rules: Vec<Rule>,
    lying: bool,
    capacity: Option<u64>,
    used: u64,
    bytes_written: u64,
    syncs: u64,
    power: Option<u64>,
    rng: Rng,
}

fn apply(names: &mut BTreeMap<String, u64>, op: &DirOp) {
    match op {
        DirOp::Link(n, inode) => {
            names.insert(n.clone(), *inode);
        }
        DirOp::Unlink(n) => {
            names.remove(n);
        }
        DirOp::Rename(a, b) => {
            if let Some(i) = names.remove(a) {
                names.insert(b.clone(), i);
            }
        }
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |p| p.0)
}

fn eio(what: &str) -> io::Error {
    io::Error::other(format!("simulated failure of {what}"))
}

impl State {
    /// Every operation passes here: power, and rules of failure.
    fn step(&mut self, boot: u64, action: &'static str, name: &str) -> io::Result<()> {
        if boot != self.boot {
            return Err(eio("a machine that was switched off"));
        }
        if action != "read"
            && let Some(left) = self.power.as_mut()
        {
            if *left == 0 {
                return Err(eio("the power"));
            }
            *left -= 1;
        }
        for rule in &mut self.rules {
            if rule.action == action && rule.times > 0 && name.contains(&rule.name) {
                if rule.skip > 0 {
                    rule.skip -= 1;
                    continue;
                }
                rule.times -= 1;
                if rule.full {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                return Err(eio(action));
            }
        }
        Ok(())
    }

    fn dir_op(&mut self, op: DirOp, at: &str) {
        apply(&mut self.names, &op);
        self.pending.push((parent(at).to_owned(), op));
    }
}

/// See the module's head. Clones share the disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// Everything that was on a disk at one moment, page cache included (a backup taken of a running
/// machine after a sync).
#[derive(Clone)]
pub struct Snapshot(State);

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk without limits or faults.
    pub fn new() -> SimDisk {
        let state = State {
            boot: 0,
            inodes: BTreeMap::new(),
            next: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            rules: Vec::new(),
            lying: false,
            capacity: None,
            used: 0,
            bytes_written: 0,
            syncs: 0,
            power: None,
            rng: Rng(1),
        };
        SimDisk {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory on it, for the machine as it is running now.
    pub fn dir(&self) -> SimDir {
        let boot = self.lock().boot;
        SimDir {
            disk: self.clone(),
            boot,
        }
    }

    /// Cuts the power and starts again; `seed` decides what was kept.
    pub fn crash(&self, seed: u64) {
        let mut s = self.lock();
        let s = &mut *s;
        let mut rng = Rng(seed);
        s.boot += 1;
        s.power = None;
        s.rules.clear();
        // Some disks lose whatever they had not written; most something of it.
        let all = rng.one_in(4);
        for inode in s.inodes.values_mut() {
            inode.crash(&mut rng, all);
        }
        let pending = std::mem::take(&mut s.pending);
        let keep = rng.below(pending.len() as u64 + 1) as usize;
        for (_, op) in &pending[..keep] {
            apply(&mut s.durable_names, op);
        }
        s.names = s.durable_names.clone();
        let live: Vec<u64> = s.names.values().copied().collect();
        s.inodes.retain(|i, _| live.contains(i));
        s.rng = rng;
    }

    /// After this many further operations (reads apart) the power is off: everything fails until
    /// [`SimDisk::crash`].
    pub fn power_off_after(&self, operations: u64) {
        self.lock().power = Some(operations);
    }

    /// Operations (reads apart) left until the power is off, if that was asked for.
    pub fn power_left(&self) -> Option<u64> {
        self.lock().power
    }

    /// Makes the next operation `action` (`read`, `write`, `sync`, `create`, `punch`) on a file
    /// whose name contains `name` fail with EIO.
    pub fn fail_next(&self, action: &'static str, name: &str) {
        self.fail(action, name, 0, 1);
    }

    /// After `skip` such operations, makes `times` of them fail.
    pub fn fail(&self, action: &'static str, name: &str, skip: u64, times: u64) {
        let name = name.to_owned();
        self.lock().rules.push(Rule {
            action,
            full: false,
            name,
            skip,
            times,
        });
    }

    /// Makes the next write to a file whose name contains `name` find the disk full.
    pub fn fail_full(&self, name: &str) {
        self.lock().rules.push(Rule {
            action: "write",
            full: true,
            name: name.to_owned(),
            skip: 0,
            times: 1,
        });
    }

    /// Forgets all rules of failure.
    pub fn heal(&self) {
        self.lock().rules.clear();
    }

    /// From now on syncs report success and do nothing (or are honest again).
    pub fn lie(&self, lying: bool) {
        self.lock().lying = lying;
    }

    /// Limits the bytes that files may take, roughly: written pages count once until punched.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        let mut s = self.lock();
        s.capacity = bytes;
        s.used = s.inodes.values().map(|i| i.allocated()).sum();
    }

    /// Flips bits of a byte, in cache and on disk. Returns false if there is no such byte.
    pub fn flip(&self, name: &str, at: u64, mask: u8) -> bool {
        let mut s = self.lock();
        let Some(i) = s.names.get(name).copied() else {
            return false;
        };
        let Some(inode) = s.inodes.get_mut(&i) else {
            return false;
        };
        if at >= inode.size {
            return false;
        }
        inode.flip(at, mask);
        true
    }

    /// Removes everything, as a replaced disk would.
    pub fn wipe(&self) {
        let mut s = self.lock();
        s.boot += 1;
        s.inodes.clear();
        s.names.clear();
        s.durable_names.clear();
        s.pending.clear();
        s.used = 0;
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.lock().clone())
    }

    /// Puts a copy back, as a restore from a backup would; open handles die.
    pub fn restore(&self, snapshot: &Snapshot) {
        let mut s = self.lock();
        let (boot, written) = (s.boot + 1, s.bytes_written);
        *s = snapshot.0.clone();
        for inode in s.inodes.values_mut() {
            inode.sync();
        }
        s.durable_names = s.names.clone();
        s.pending.clear();
        (s.boot, s.bytes_written) = (boot, written);
    }

    /// Makes a range of a file what it was in the copy, as if what was written there since had been
    /// acknowledged and lost. Returns false if there is no such file now or was none then.
    pub fn roll_back(&self, then: &Snapshot, name: &str, from: u64, to: u64) -> bool {
        let mut s = self.lock();
        let old = then.0.names.get(name).and_then(|i| then.0.inodes.get(i));
        let now = s.names.get(name).copied();
        let (Some(old), Some(now)) = (old, now.and_then(|i| s.inodes.get_mut(&i))) else {
            return false;
        };
        let mut bytes = vec![0; to.min(now.size).saturating_sub(from) as usize];
        old.read(from, &mut bytes);
        now.write_parts(from, &[IoSlice::new(&bytes)]);
        true
    }

    /// Bytes written so far by all files.
    pub fn bytes_written(&self) -> u64 {
        self.lock().bytes_written
    }

    /// Syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Names of all files, sorted.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }
}

/// A directory of a [`SimDisk`], as one boot of the machine sees it.
#[derive(Clone)]
pub struct SimDir {
    disk: SimDisk,
    boot: u64,
}

impl SimDir {
    fn file(&self, inode: u64, name: &str) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            dir: self.clone(),
            inode,
            name: name.to_owned(),
        })
    }
}

impl Disk for SimDir {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut s = self.disk.lock();
        s.step(self.boot, "read", name)?;
        let inode = *s.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(inode, name))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut s = self.disk.lock();
        s.step(self.boot, "create", name)?;
        if s.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = s.next;
        s.next += 1;
        s.inodes.insert(inode, Box::default());
        s.dir_op(DirOp::Link(name.to_owned(), inode), name);
        Ok(self.file(inode, name))
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        // Directories exist by being used; what is simulated is the durability of file names.
        self.disk.lock().step(self.boot, "create", name)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut s = self.disk.lock();
        s.step(self.boot, "read", dir)?;
        let here = s.names.keys().filter(|n| parent(n) == dir);
        Ok(here
            .map(|n| n.rsplit('/').next().unwrap_or(n).to_owned())
            .collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut s = self.disk.lock();
        s.step(self.boot, "create", name)?;
        if !s.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        s.dir_op(DirOp::Unlink(name.to_owned()), name);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut s = self.disk.lock();
        s.step(self.boot, "create", to)?;
        if !s.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        s.dir_op(DirOp::Rename(from.to_owned(), to.to_owned()), to);
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut s = self.disk.lock();
        s.step(self.boot, "sync", dir)?;
        if s.lying {
            return Ok(());
        }
        let s = &mut *s;
        for (at, op) in std::mem::take(&mut s.pending) {
            if at == dir {
                apply(&mut s.durable_names, &op);
            } else {
                s.pending.push((at, op));
            }
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let s = self.disk.lock();
        let total = s.capacity.unwrap_or(1 << 50);
        Ok(Space {
            free: total.saturating_sub(s.used),
            copies_on_write: true,
            total,
        })
    }
}

struct SimFile {
    dir: SimDir,
    inode: u64,
    name: String,
}

impl SimFile {
    fn with<T>(
        &self,
        action: &'static str,
        f: impl FnOnce(&mut State, &mut Inode) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut s = self.dir.disk.lock();
        s.step(self.dir.boot, action, &self.name)?;
        let mut inode = s
            .inodes
            .remove(&self.inode)
            .ok_or_else(|| eio("a removed file"))?;
        let result = f(&mut s, &mut inode);
        s.inodes.insert(self.inode, inode);
        result
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.with("read", |_, i| {
            if at + buf.len() as u64 > i.size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            i.read(at, buf);
            Ok(())
        })
    }

    fn write_at(&self, parts: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        self.with("write", |s, i| {
            let len: u64 = parts.iter().map(|p| p.len() as u64).sum();
            if let Some(capacity) = s.capacity {
                let pages = at / PAGE..(at + len).div_ceil(PAGE);
                let more = pages.filter(|p| !i.has_page(*p)).count() as u64 * PAGE;
                if s.used + more > capacity {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                s.used += more;
            }
            i.write_parts(at, parts);
            s.bytes_written += len;
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let done = self.with("sync", |s, i| {
            s.syncs += 1;
            if s.lying {
                i.lie();
            } else {
                i.sync();
            }
            Ok(())
        });
        if done.is_err() {
            let mut s = self.dir.disk.lock();
            let s = &mut *s;
            if s.boot == self.dir.boot
                && s.power != Some(0)
                && let Some(i) = s.inodes.get_mut(&self.inode)
            {
                i.sync_failed(&mut s.rng);
            }
        }
        done
    }

    fn size(&self) -> io::Result<u64> {
        self.with("read", |_, i| Ok(i.size))
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.with("write", |_, i| {
            i.size = bytes;
            Ok(())
        })
    }

    fn punch_hole(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.with("punch", |s, i| {
            let before = i.allocated();
            i.punch(at, bytes);
            s.used = s.used.saturating_sub(before.saturating_sub(i.allocated()));
            Ok(())
        })
    }

    fn allocated(&self) -> io::Result<u64> {
        self.with("read", |_, i| Ok(i.allocated()))
    }
}
