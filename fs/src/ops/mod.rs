//! The file system object: its life (make, mount, close, grow) and how a call becomes an
//! operation. The calls themselves are in the modules beside this one and in `data`.
//!
//! What a crash leaves behind: a prefix of the transactions (invariant 4). Mounting reads the
//! superblock and the short lists under inode 0: inodes without a name, cut files, inodes whose
//! times may lag, kept answers. All of it is bounded by what was under way, not by the size.

pub(crate) mod acl;
mod background;
mod dir;
mod inode;
mod lazy;
mod link;
mod locks;
mod make;
mod mount;
mod perm;
mod rename;
mod reply;
mod unlink;
mod vfs;
mod xattr;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use crate::api::{Ctx, Done, Door, Event, Ino, InodeId, Watcher};
use crate::core::{Core, Engine};
use crate::error::{FsError, FsResult};

pub(crate) use dir::MAX_PAGE;
pub(crate) use lazy::MAX_LISTED as MAX_LAZY;
pub(crate) use mount::CLOSE;
pub use mount::{MkfsOptions, mkfs};
pub(crate) use reply::{CLIENTS, MAX_ANSWER, PER_CLIENT, Replies};
pub(crate) use xattr::MAX_LIST;

/// What can be set when mounting.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of metadata kept in memory.
    pub cache_bytes: usize,
    /// Changes wait at most this long before they are handed to the volume.
    pub commit_interval: Duration,
    /// Completed changes are made durable at least this often, unasked.
    pub flush_interval: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            cache_bytes: 256 << 20,
            commit_interval: Duration::from_millis(500),
            flush_interval: Duration::from_secs(4),
        }
    }
}

/// Counters per inode, hashed: a false change only costs a repeated read.
pub(crate) struct Versions(Vec<AtomicU64>);

impl Versions {
    fn new() -> Versions {
        Versions((0..4096).map(|_| AtomicU64::new(0)).collect())
    }

    fn slot(&self, ino: Ino) -> &AtomicU64 {
        &self.0[(ino.0 % self.0.len() as u64) as usize]
    }

    pub fn get(&self, ino: Ino) -> u64 {
        self.slot(ino).load(Ordering::Acquire)
    }

    pub fn bump(&self, ino: Ino) {
        self.slot(ino).fetch_add(1, Ordering::AcqRel);
    }
}

/// A mounted file system.
pub struct Fs {
    pub(crate) engine: Engine,
    pub(crate) settings: Settings,
    /// Changes when blocks are taken from a file.
    pub(crate) versions: Versions,
    /// Changes when a file's content does.
    pub(crate) contents: Versions,
    opens: Mutex<HashMap<Ino, u64>>,
    pub(crate) locks: Mutex<crate::lock::table::LockTable>,
    watchers: RwLock<Vec<(Door, Arc<dyn Watcher>)>>,
    background: background::Background,
    me: Weak<Fs>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these mutexes is whole between any two statements.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fs {
    /// Runs an operation and keeps its answer if the caller wants it kept. `on` is the inode
    /// whose unfinished truncation must be waited for.
    pub(crate) fn change<T>(
        &self,
        ctx: &Ctx<'_, T>,
        on: Option<InodeId>,
        blocks: usize,
        mut f: impl FnMut(&mut Core) -> FsResult<T>,
    ) -> FsResult<Done<T>> {
        let mut reaped = false;
        loop {
            let result = self.engine.change(blocks + 2, |core| {
                let value = f(core)?;
                if let Some(replay) = &ctx.replay {
                    core.keep_answer(replay.client, replay.key, &(replay.encode)(&value))?;
                }
                Ok(value)
            });
            match result {
                Ok((value, mark)) => return Ok(Done { value, mark }),
                Err(FsError::Busy) => match on {
                    Some(id) => self.settle(id.ino)?,
                    None => return Err(FsError::Busy),
                },
                // What was deleted but not freed yet may make room.
                Err(FsError::NoSpace(_)) if !reaped && self.reap_all()? => reaped = true,
                Err(e) => return Err(e),
            }
        }
    }

    /// Tells the watchers behind other doors.
    pub(crate) fn tell(&self, door: Door, events: &[Event]) {
        let watchers = self.watchers.read().unwrap_or_else(PoisonError::into_inner);
        for (_, watcher) in watchers.iter().filter(|w| w.0 != door) {
            events.iter().for_each(|e| watcher.changed(e));
        }
    }

    /// Whether someone holds a reference.
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        lock(&self.opens).contains_key(&ino)
    }

    fn add_watcher(&self, door: Door, watcher: Arc<dyn Watcher>) {
        self.watchers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((door, watcher));
    }

    pub(crate) fn take_ref(&self, id: InodeId) -> FsResult<()> {
        let core = self.engine.core()?;
        core.inode_of(id)?;
        *lock(&self.opens).entry(id.ino).or_default() += 1;
        Ok(())
    }

    pub(crate) fn drop_ref(&self, id: InodeId) {
        let gone = {
            let mut opens = lock(&self.opens);
            match opens.get_mut(&id.ino) {
                Some(n) if *n > 1 => {
                    *n -= 1;
                    false
                }
                Some(_) => opens.remove(&id.ino).is_some(),
                None => false,
            }
        };
        let nameless = || {
            let core = self.engine.core().ok()?;
            let inode = core.inode_of(id).ok()?;
            (inode.nlink == 0).then_some(inode.blocks)
        };
        if gone && let Some(blocks) = nameless() {
            self.reap_soon(id.ino, blocks);
        }
    }

    /// Whether it is being closed: what takes long is left to the next mount.
    pub(crate) fn is_ending(&self) -> bool {
        self.background.is_ending()
    }

    /// Frees a nameless inode now if that is quick, else in the background.
    pub(crate) fn reap_soon(&self, ino: Ino, blocks: u64) {
        if blocks > 4096 || self.reap(ino).is_err() {
            self.background.reap(ino);
        }
    }
}
