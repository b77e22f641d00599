//! The disk itself, without FUSE: the live tree, what is unsynced of it, the rules, the power.
//!
//! One lock around everything but waiting: operations take effect one after the other, and a cut
//! falls between two of them.

mod tree;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::names::Names;
use crate::node::{Ino, Node};
use crate::rng::Rng;
use crate::rules::{Action, Op, Rule, Rules};
use crate::unsynced::{MOST_BYTES, SECTOR, Unsynced};

/// FUSE's number of the root directory.
pub const ROOT: Ino = 1;

/// What a power cut took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutReport {
    /// Give it to `cut` again for the same choice.
    pub seed: u64,
    /// Sectors taken back, of so many that were unsynced.
    pub sectors: (u64, u64),
    /// Changes of names taken back, of so many that were unsynced.
    pub names: (u64, u64),
}

impl fmt::Display for CutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((s, sectors), (n, names)) = (self.sectors, self.names);
        write!(
            f,
            "seed={} sectors={s}/{sectors} names={n}/{names}",
            self.seed
        )
    }
}

/// See the module's head.
pub struct Disk {
    root: Arc<Node>,
    live: PathBuf,
    state: Mutex<State>,
    released: Condvar,
}

struct State {
    rules: Rules,
    nodes: HashMap<Ino, (Arc<Node>, u64)>,
    unsynced: HashMap<Ino, Unsynced>,
    names: Names,
    powered: bool,
    /// Counts cuts: a handle from before one is dead.
    epoch: u64,
    /// Counts releases.
    releases: u64,
    hanging: u64,
    rng: Rng,
}

impl Disk {
    /// Over this directory, made if missing.
    pub fn open(backing: &Path) -> io::Result<Disk> {
        std::fs::create_dir_all(backing)?;
        let live = backing.canonicalize()?.join("live");
        std::fs::create_dir_all(&live)?;
        let names = Names::new(live.with_file_name("unsynced-removed"))?;
        Ok(Disk {
            root: Arc::new(Node::open_dir(&live)?),
            live,
            state: Mutex::new(State {
                rules: Rules::default(),
                nodes: HashMap::new(),
                unsynced: HashMap::new(),
                names,
                powered: true,
                epoch: 0,
                releases: 0,
                hanging: 0,
                rng: Rng::new(1),
            }),
            released: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic here is a bug that fails the test anyway; what is half done stays visible.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- commands -------------------------------------------------------------------------

    /// Adds a rule.
    pub fn add_rule(&self, rule: Rule) -> Result<(), String> {
        self.lock().rules.add(rule)
    }

    /// Lets everything that hangs go on, and nothing hang any more.
    pub fn release(&self) {
        let mut state = self.lock();
        state.rules.remove(|a| a == Action::Hang);
        state.releases += 1;
        self.released.notify_all();
    }

    /// Forgets all rules, and releases.
    pub fn clear(&self) {
        self.lock().rules.remove(|_| true);
        self.release();
    }

    /// Cuts the power: of what is unsynced, about `keep` percent survive; from now on everything
    /// fails with EIO.
    pub fn cut(&self, seed: u64, keep: u8) -> io::Result<CutReport> {
        let mut rng = Rng::new(seed);
        let mut guard = self.lock();
        let state = &mut *guard;
        state.powered = false;
        state.epoch += 1;
        state.releases += 1;
        self.released.notify_all();
        let mut files: Vec<_> = state.unsynced.drain().collect();
        // The order of a hash map is nobody's seed.
        files.sort_by_key(|(ino, _)| *ino);
        let mut sectors = (0, 0);
        for (_, unsynced) in files {
            let (lost, all) = unsynced.cut(keep, &mut rng)?;
            sectors = (sectors.0 + lost, sectors.1 + all);
        }
        let names = state.names.cut(keep, &mut rng)?;
        Ok(CutReport {
            seed,
            sectors,
            names,
        })
    }

    /// Gives power again.
    pub fn power_on(&self) {
        self.lock().powered = true;
    }

    /// One line about it.
    pub fn status(&self) -> String {
        let state = self.lock();
        let bytes: u64 = state.unsynced.values().map(Unsynced::bytes).sum();
        format!(
            "power={} unsynced_files={} unsynced_bytes={bytes} unsynced_names={} hanging={} {}",
            if state.powered { "on" } else { "off" },
            state.unsynced.len(),
            state.names.len(),
            state.hanging,
            state.rules
        )
    }

    // --- nodes ----------------------------------------------------------------------------

    /// The node that FUSE knows by this number.
    pub fn node(&self, ino: Ino) -> io::Result<Arc<Node>> {
        if ino == ROOT {
            return Ok(Arc::clone(&self.root));
        }
        let state = self.lock();
        let node = state.nodes.get(&ino).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&node.0))
    }

    /// Looks a name up; the kernel will forget it in time.
    pub fn lookup(&self, dir: Ino, name: &OsStr) -> io::Result<Arc<Node>> {
        let dir = self.node(dir)?;
        let mut state = self.powered()?;
        let node = Arc::new(dir.child(name)?);
        let known = state.nodes.entry(node.ino).or_insert((node, 0));
        known.1 += 1;
        Ok(Arc::clone(&known.0))
    }

    /// The kernel forgets `times` lookups.
    pub fn forget(&self, ino: Ino, times: u64) {
        let mut state = self.lock();
        if let Some(known) = state.nodes.get_mut(&ino) {
            known.1 = known.1.saturating_sub(times);
            if known.1 == 0 {
                state.nodes.remove(&ino);
            }
        }
    }

    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        match state.powered {
            true => Ok(state),
            false => Err(Errno::IO.into()),
        }
    }

    /// Asks the rules about an operation, waiting where they say so. The action that is left for
    /// the operation to carry out comes back with the lock.
    fn admit(
        &self,
        op: Op,
        node: &Node,
        name: &OsStr,
    ) -> io::Result<(MutexGuard<'_, State>, Option<Action>)> {
        let place = node.place();
        let within = place.strip_prefix(&*self.live.to_string_lossy());
        let path = format!("{}/{}", within.unwrap_or(&place), name.to_string_lossy());
        let mut state = self.powered()?;
        let epoch = state.epoch;
        let mut action = state.rules.ask(op, path.trim_end_matches('/'));
        if action == Some(Action::Hang) {
            let releases = state.releases;
            state.hanging += 1;
            while state.releases == releases {
                state = self
                    .released
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.hanging -= 1;
            action = None;
        }
        match action {
            // The power went while it hung.
            _ if state.epoch != epoch || !state.powered => Err(Errno::IO.into()),
            Some(Action::Fail(e)) if op != Op::Sync => Err(e.into()),
            action => Ok((state, action)),
        }
    }

    // --- content --------------------------------------------------------------------------

    /// Opens a file: a handle is the count of cuts, so that none outlives one.
    pub fn open_file(&self, ino: Ino) -> io::Result<u64> {
        let node = self.node(ino)?;
        let (state, _) = self.admit(Op::Open, &node, OsStr::new(""))?;
        node.file()?;
        Ok(state.epoch)
    }

    fn begin(
        &self,
        op: Op,
        ino: Ino,
        handle: Option<u64>,
    ) -> io::Result<(Arc<Node>, MutexGuard<'_, State>, Option<Action>)> {
        let node = self.node(ino)?;
        let (state, action) = self.admit(op, &node, OsStr::new(""))?;
        match handle {
            Some(epoch) if epoch != state.epoch => Err(Errno::IO.into()),
            _ => Ok((node, state, action)),
        }
    }

    /// Reads up to `size` bytes.
    pub fn read(&self, ino: Ino, handle: u64, at: u64, size: usize) -> io::Result<Vec<u8>> {
        let (node, _state, _) = self.begin(Op::Read, ino, Some(handle))?;
        let file = node.file()?;
        let mut out = vec![0; size];
        let mut have = 0;
        while have < size {
            match file.read_at(&mut out[have..], at + have as u64)? {
                0 => break,
                n => have += n,
            }
        }
        out.truncate(have);
        Ok(out)
    }

    /// Writes; at the end of the file if `append`; durably if `sync`.
    pub fn write(
        &self,
        ino: Ino,
        handle: u64,
        at: u64,
        data: &[u8],
        (append, sync): (bool, bool),
    ) -> io::Result<()> {
        let (node, mut state, action) = self.begin(Op::Write, ino, Some(handle))?;
        let file = node.file()?;
        let at = if append { file.metadata()?.len() } else { at };
        let end = at + data.len() as u64;
        if action == Some(Action::Tear) {
            let mut rng = state.rng.clone();
            tear(&mut rng, at, data.len(), |from, to| {
                let (first, last) = (from as u64 + at, to as u64 + at);
                state.unsynced_of(&node)?.before_change(first, last)?;
                file.write_all_at(&data[from..to], first)
            })?;
            state.rng = rng;
            return Err(Errno::IO.into());
        }
        state.unsynced_of(&node)?.before_change(at, end)?;
        file.write_all_at(data, at)?;
        state.bound(ino)?;
        match sync {
            true => state.file_synced(ino),
            false => Ok(()),
        }
    }

    /// Cuts off or extends.
    pub fn truncate(&self, ino: Ino, handle: Option<u64>, length: u64) -> io::Result<()> {
        let (node, mut state, _) = self.begin(Op::Write, ino, handle)?;
        let file = node.file()?;
        state.data_gone(&node, length, u64::MAX)?;
        file.set_len(length)?;
        state.bound(ino)
    }

    /// Reserves, punches, zeroes.
    pub fn allocate(
        &self,
        ino: Ino,
        handle: u64,
        mode: FallocateFlags,
        from: u64,
        len: u64,
    ) -> io::Result<()> {
        let (node, mut state, _) = self.begin(Op::Alloc, ino, Some(handle))?;
        let zeroing = FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !(zeroing | FallocateFlags::KEEP_SIZE).contains(mode) {
            // Collapse and insert move sectors: nothing here could take that back.
            return Err(Errno::OPNOTSUPP.into());
        }
        let file = node.file()?;
        if mode.intersects(zeroing) {
            state.data_gone(&node, from, from.saturating_add(len))?;
        } else {
            state.unsynced_of(&node)?;
        }
        rustix::fs::fallocate(&file, mode, from, len)?;
        state.bound(ino)
    }

    /// Finds data or holes.
    pub fn seek(&self, ino: Ino, whence: SeekFrom) -> io::Result<u64> {
        let node = self.node(ino)?;
        let _state = self.powered()?;
        Ok(rustix::fs::seek(&*node.file()?, whence)?)
    }

    /// Syncs a file or a directory.
    pub fn sync(&self, ino: Ino, handle: Option<u64>) -> io::Result<()> {
        let (node, mut state, action) = self.begin(Op::Sync, ino, handle)?;
        match action {
            Some(Action::Lie) => Ok(()),
            Some(Action::Fail(e)) => {
                if let Some(unsynced) = state.unsynced.get_mut(&node.ino) {
                    unsynced.sync_failed();
                }
                Err(e.into())
            }
            _ => {
                state.names.synced(node.ino);
                state.file_synced(node.ino)
            }
        }
    }
}

impl State {
    fn unsynced_of(&mut self, node: &Node) -> io::Result<&mut Unsynced> {
        match self.unsynced.entry(node.ino) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(free) => Ok(free.insert(Unsynced::of(node.file()?)?)),
        }
    }

    /// Notes that what is in `from..to` is about to go. Holes are skipped: a range may be huge.
    fn data_gone(&mut self, node: &Node, from: u64, to: u64) -> io::Result<()> {
        let file = node.file()?;
        let to = to.min(file.metadata()?.len());
        let mut at = from;
        while at < to {
            let start = match rustix::fs::seek(&*file, SeekFrom::Data(at)) {
                Ok(start) if start < to => start,
                // No data from here on.
                Ok(_) | Err(Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            let end = rustix::fs::seek(&*file, SeekFrom::Hole(start))?.min(to);
            self.unsynced_of(node)?.before_change(start, end)?;
            at = end;
        }
        self.unsynced_of(node)?;
        Ok(())
    }

    fn file_synced(&mut self, ino: Ino) -> io::Result<()> {
        if let Some(unsynced) = self.unsynced.get_mut(&ino)
            && unsynced.synced()?
        {
            self.unsynced.remove(&ino);
        }
        Ok(())
    }

    /// Keeps what is remembered within its bound: this file's changes become durable early.
    fn bound(&mut self, ino: Ino) -> io::Result<()> {
        let bytes = |s: &State| s.unsynced.values().map(Unsynced::bytes).sum::<u64>();
        if bytes(self) > MOST_BYTES {
            self.unsynced.retain(|_, u| !u.is_removed());
            if bytes(self) > MOST_BYTES {
                self.file_synced(ino)?;
            }
        }
        Ok(())
    }
}

/// Lets about half of the sectors of `at..at + len` through, as ranges of the data.
fn tear(
    rng: &mut Rng,
    at: u64,
    len: usize,
    mut arrive: impl FnMut(usize, usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut from = 0;
    while from < len {
        let to_boundary = (SECTOR - (at + from as u64) % SECTOR) as usize;
        let to = len.min(from + to_boundary);
        if rng.percent(50) {
            arrive(from, to)?;
        }
        from = to;
    }
    Ok(())
}
