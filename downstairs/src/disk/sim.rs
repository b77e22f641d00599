//! A disk in memory that forgets what was not synced, tears, fails and lies on command.
//!
//! Deterministic: the same calls and seeds give the same contents. One [`SimDisk`] is one
//! machine's disk; [`SimDisk::dir`] opens a directory on it. A power cut ([`SimDisk::crash`])
//! keeps of every 512-byte sector written since its last sync the old content or any of the new
//! ones, and of the names changed since the last directory sync a prefix of the changes. Handles
//! from before a crash are dead. Dropping the user's objects without a crash models a killed
//! process: the page cache stays.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, SECTOR, Space};

type Sector = [u8; SECTOR as usize];
const PAGE: u64 = 4096;

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

#[derive(Clone, Default)]
struct Inode {
    durable: BTreeMap<u64, Sector>,
    durable_size: u64,
    size: u64,
    /// Contents written since the last sync, oldest first; the last is what reads see.
    dirty: BTreeMap<u64, Vec<Sector>>,
    /// In the page cache, marked clean by a failed or lying sync, but never on the disk.
    ghost: BTreeMap<u64, Sector>,
    /// Pages given back by punching.
    holes: BTreeSet<u64>,
}

impl Inode {
    fn sector(&self, n: u64) -> Sector {
        let dirty = self.dirty.get(&n).and_then(|v| v.last());
        let found = dirty
            .or_else(|| self.ghost.get(&n))
            .or_else(|| self.durable.get(&n));
        found.copied().unwrap_or([0; SECTOR as usize])
    }

    fn write(&mut self, mut at: u64, mut buf: &[u8]) {
        self.size = self.size.max(at + buf.len() as u64);
        while !buf.is_empty() {
            let (n, off) = (at / SECTOR, (at % SECTOR) as usize);
            let now = buf.len().min(SECTOR as usize - off);
            let mut s = self.sector(n);
            self.holes.remove(&(n * SECTOR / PAGE));
            s[off..off + now].copy_from_slice(&buf[..now]);
            let versions = self.dirty.entry(n).or_default();
            // More than a few versions add nothing that a crash could tell apart.
            if versions.len() >= 6 {
                versions.remove(1);
            }
            versions.push(s);
            at += now as u64;
            buf = &buf[now..];
        }
    }

    fn read(&self, mut at: u64, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let (n, off) = (at / SECTOR, (at % SECTOR) as usize);
            let now = buf.len().min(SECTOR as usize - off);
            let (head, rest) = std::mem::take(&mut buf).split_at_mut(now);
            head.copy_from_slice(&self.sector(n)[off..off + now]);
            at += now as u64;
            buf = rest;
        }
    }

    fn sync(&mut self) {
        for (n, versions) in std::mem::take(&mut self.dirty) {
            self.ghost.remove(&n);
            if let Some(last) = versions.last() {
                self.durable.insert(n, *last);
            }
        }
        self.durable_size = self.size;
    }

    /// The kernel tried and gave up: some sectors arrived, the rest is clean and lost.
    fn sync_failed(&mut self, rng: &mut Rng) {
        for (n, versions) in std::mem::take(&mut self.dirty) {
            let Some(last) = versions.last() else {
                continue;
            };
            if rng.one_in(2) {
                self.durable.insert(n, *last);
                self.ghost.remove(&n);
            } else {
                self.ghost.insert(n, *last);
            }
        }
    }

    fn crash(&mut self, rng: &mut Rng) {
        self.ghost.clear();
        let mut tear = |old: Option<&Sector>, versions: &[Sector]| {
            let pick = rng.below(versions.len() as u64 + 1) as usize;
            match pick {
                0 => old.copied(),
                n => Some(versions[n - 1]),
            }
        };
        for (n, versions) in std::mem::take(&mut self.dirty) {
            if let Some(s) = tear(self.durable.get(&n), &versions) {
                self.durable.insert(n, s);
            }
        }
        self.size = if rng.one_in(2) {
            self.size
        } else {
            self.durable_size
        };
        self.durable_size = self.size;
    }

    fn has_page(&self, page: u64) -> bool {
        let sectors = page * (PAGE / SECTOR)..(page + 1) * (PAGE / SECTOR);
        let some = |map: &BTreeMap<u64, Sector>| map.range(sectors.clone()).next().is_some();
        let written = some(&self.durable)
            || some(&self.ghost)
            || self.dirty.range(sectors.clone()).next().is_some();
        written && !self.holes.contains(&page)
    }

    fn allocated(&self) -> u64 {
        let sectors = self
            .durable
            .keys()
            .chain(self.ghost.keys())
            .chain(self.dirty.keys());
        let pages: BTreeSet<u64> = sectors.map(|n| n * SECTOR / PAGE).collect();
        pages.difference(&self.holes).count() as u64 * PAGE
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
    inodes: BTreeMap<u64, Inode>,
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
        for inode in s.inodes.values_mut() {
            inode.crash(&mut rng);
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
        s.used = s.inodes.values().map(Inode::allocated).sum();
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
        let (n, off) = (at / SECTOR, (at % SECTOR) as usize);
        let mut sector = inode.sector(n);
        sector[off] ^= mask;
        inode.dirty.remove(&n);
        inode.ghost.remove(&n);
        inode.durable.insert(n, sector);
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
        s.inodes.insert(inode, Inode::default());
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
            let all: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
            if let Some(capacity) = s.capacity {
                let pages = at / PAGE..(at + all.len() as u64).div_ceil(PAGE);
                let more = pages.filter(|p| !i.has_page(*p)).count() as u64 * PAGE;
                if s.used + more > capacity {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                s.used += more;
            }
            i.write(at, &all);
            s.bytes_written += all.len() as u64;
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let done = self.with("sync", |s, i| {
            s.syncs += 1;
            if s.lying {
                for (n, v) in std::mem::take(&mut i.dirty) {
                    v.last().map(|last| i.ghost.insert(n, *last));
                }
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
            let (before, size) = (i.allocated(), i.size);
            let (first, end) = (at / SECTOR, (at + bytes).div_ceil(SECTOR));
            let present = |n: &u64| (first..end).contains(n);
            let touched: Vec<u64> = i
                .durable
                .keys()
                .chain(i.dirty.keys())
                .chain(i.ghost.keys())
                .copied()
                .filter(present)
                .collect();
            for n in &touched {
                let from = (n * SECTOR).max(at);
                let to = ((n + 1) * SECTOR).min(at + bytes);
                i.write(from, &vec![0; (to - from) as usize]);
            }
            let whole = at.div_ceil(PAGE)..(at + bytes) / PAGE;
            let present: Vec<u64> = touched.iter().map(|n| n * SECTOR / PAGE).collect();
            i.holes.extend(present.iter().filter(|p| whole.contains(p)));
            i.size = size;
            s.used = s.used.saturating_sub(before.saturating_sub(i.allocated()));
            Ok(())
        })
    }

    fn allocated(&self) -> io::Result<u64> {
        self.with("read", |_, i| Ok(i.allocated()))
    }
}
