//! What the kernel holds of us: inodes that it knows, and open files.
//!
//! An inode that the kernel knows is referenced in the file system, so that one without a name
//! lives on for as long as somebody has it open, or stands in it. The kernel says how often it
//! was told of an inode when it forgets it; both counts are kept here. Bounded by the kernel's
//! own inode cache.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Vfs;
use crate::api::{Attr, Ino, InodeId};
use crate::error::{FsError, FsResult};

const SHARDS: usize = 16;

struct Known {
    generation: u64,
    lookups: u64,
    /// How many have it open through the page cache.
    buffered: u64,
    /// It was written past the page cache since the kernel last dropped its pages.
    bypassed: bool,
}

/// An open file that has taken locks: their owners, to be released with it.
#[derive(Default)]
struct Open {
    owners: Vec<u64>,
}

/// See the module's head.
pub(super) struct Handles {
    fs: Arc<dyn Vfs>,
    known: Vec<Mutex<HashMap<u64, Known>>>,
    open: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handles {
    pub fn new(fs: Arc<dyn Vfs>) -> Handles {
        Handles {
            fs,
            known: (0..SHARDS).map(|_| Mutex::default()).collect(),
            open: Mutex::default(),
            next: AtomicU64::new(2),
        }
    }

    fn shard(&self, ino: u64) -> MutexGuard<'_, HashMap<u64, Known>> {
        lock(&self.known[(ino % SHARDS as u64) as usize])
    }

    /// The inode behind the kernel's number.
    pub fn id(&self, ino: u64) -> FsResult<InodeId> {
        if ino == InodeId::ROOT.ino.0 {
            return Ok(InodeId::ROOT);
        }
        match self.shard(ino).get(&ino) {
            Some(k) => Ok(InodeId {
                ino: Ino(ino),
                generation: k.generation,
            }),
            None => Err(FsError::Stale(Ino(ino))),
        }
    }

    /// Whether the kernel knows an inode.
    pub fn is_known(&self, ino: u64) -> bool {
        ino == InodeId::ROOT.ino.0 || self.shard(ino).contains_key(&ino)
    }

    /// All inodes that the kernel knows.
    pub fn all(&self) -> Vec<u64> {
        let shards = self.known.iter().flat_map(|shard| {
            let inodes: Vec<u64> = lock(shard).keys().copied().collect();
            inodes
        });
        std::iter::once(InodeId::ROOT.ino.0).chain(shards).collect()
    }

    /// Notes that the kernel is about to be told of an inode; returns what to tell. From here on
    /// it gets notices of changes, so what is new to it is looked at once more: another door may
    /// have changed it after `attr` was taken, when there was nobody to notify.
    pub fn told(&self, attr: &Attr) -> FsResult<Attr> {
        let ino = attr.id.ino.0;
        if ino == InodeId::ROOT.ino.0 {
            return Ok(*attr);
        }
        {
            let mut shard = self.shard(ino);
            if let Some(k) = shard.get_mut(&ino) {
                k.lookups += 1;
                return Ok(*attr);
            }
            // Fails if it lost its last name meanwhile.
            self.fs.open_ref(attr.id)?;
            shard.insert(
                ino,
                Known {
                    generation: attr.id.generation,
                    lookups: 1,
                    buffered: 0,
                    bypassed: false,
                },
            );
        }
        self.fs
            .getattr(attr.id)
            .inspect_err(|_| self.forget(ino, 1))
    }

    /// The kernel forgets an inode that it was told of `n` times.
    pub fn forget(&self, ino: u64, n: u64) {
        let gone = {
            let mut shard = self.shard(ino);
            match shard.get_mut(&ino) {
                Some(k) if k.lookups > n => {
                    k.lookups -= n;
                    None
                }
                Some(_) => shard.remove(&ino),
                None => None,
            }
        };
        if let Some(k) = gone {
            self.fs.close_ref(InodeId {
                ino: Ino(ino),
                generation: k.generation,
            });
        }
    }

    /// It was written past the page cache; whether somebody has it open through it.
    pub fn bypassed(&self, ino: u64) -> bool {
        let mut shard = self.shard(ino);
        let known = shard.get_mut(&ino);
        known.is_some_and(|k| {
            k.bypassed = true;
            k.buffered > 0
        })
    }

    /// Forgets everything: the mount has ended.
    pub fn clear(&self) {
        for shard in &self.known {
            let all: Vec<_> = lock(shard).drain().collect();
            for (ino, k) in all {
                self.fs.close_ref(InodeId {
                    ino: Ino(ino),
                    generation: k.generation,
                });
            }
        }
        lock(&self.open).clear();
    }

    /// A new file handle, and whether the kernel may keep the pages that it has of the file.
    /// `direct` is how it was opened, which the handle says for as long as it lives: the flag of
    /// the open file may change (`fcntl`).
    pub fn open(&self, ino: u64, direct: bool) -> (u64, bool) {
        let handle = self.next.fetch_add(2, Ordering::Relaxed) | u64::from(direct);
        let mut shard = self.shard(ino);
        let keep = match shard.get_mut(&ino) {
            Some(k) if !direct => {
                k.buffered += 1;
                !std::mem::take(&mut k.bypassed)
            }
            _ => false,
        };
        (handle, keep)
    }

    /// Notes that locks were taken through a handle.
    pub fn locked(&self, handle: u64, owner: u64) {
        let mut open = lock(&self.open);
        let owners = &mut open.entry(handle).or_default().owners;
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }

    /// Closes a handle; returns the owners of locks taken through it.
    pub fn close(&self, ino: u64, handle: u64) -> Vec<u64> {
        if handle & 1 == 0
            && let Some(k) = self.shard(ino).get_mut(&ino)
        {
            k.buffered = k.buffered.saturating_sub(1);
        }
        lock(&self.open)
            .remove(&handle)
            .map_or(Vec::new(), |o| o.owners)
    }

    /// Whether any lock was ever taken here (and not closed yet).
    pub fn any_locks(&self) -> bool {
        !lock(&self.open).is_empty()
    }
}
