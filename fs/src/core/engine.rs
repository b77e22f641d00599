//! How operations run and become durable: the lock, the sealing of transactions, the flush.
//!
//! Lock order: `commit`, then `core`; the small mutexes are leaves. `submit` is called with only
//! `commit` held, so that readers go on while the volume makes the writer wait.
//!
//! After the first failure that leaves the volume's state unknown everything is refused
//! ([`FsError::Stopped`]). Two refusals are not such:
//! - for want of space: the batch was not taken. It goes back into the open transaction (module
//!   `unseal`), so that later operations, deletions above all, make it smaller;
//! - because the volume is not held: whether the batch was taken is unknown, so it is kept as it
//!   is and offered again, first of all; the same blocks written twice are the same history.
//!   Whoever asked for durability gets an error, and may ask again when the volume is back. If it
//!   never is, no answer leaves any more (`Volume::holds`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use bytes::Bytes;
use trivet_protocol::limits::{MAX_BATCH_BLOCKS, MAX_BATCH_OPS};
use trivet_replica::volume::{Batch, BatchOp, Block, Receipt, Ticket, Volume, VolumeError};

use super::group::{Committer, Group, Party};
use super::txn::Txn;
use super::{Core, PageCache, Sealed};
use crate::api::{FlushCallback, Mark};
use crate::error::{FsError, FsResult};
use crate::format::page::{PAGE_BYTES, Page};
use crate::format::superblock::Superblock;
use crate::ops::Fs;

/// Pages that one operation may change, beside what it announces.
pub(crate) const META_ROOM: usize = 96;
/// A transaction with this many blocks of data is sealed by whoever made it so large.
pub(crate) const SEAL_BLOCKS: usize = 192;
/// Bytes of data that a transaction takes in before it is sealed, overwritten ones counted.
pub(crate) const SEAL_TAKEN: usize = 4 << 20;

struct PageBytes(Arc<Page>);

impl AsRef<[u8]> for PageBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0.0
    }
}

/// What flush callbacks need after the engine may be gone.
#[derive(Default)]
struct Fate {
    /// Everything up to this ticket is durable.
    durable: AtomicU64,
    stopped: OnceLock<String>,
}

impl Fate {
    fn stop(&self, why: String) -> FsError {
        tracing::error!(why, "the file system stops");
        FsError::Stopped(self.stopped.get_or_init(|| why).clone())
    }

    fn check(&self) -> FsResult<()> {
        match self.stopped.get() {
            Some(why) => Err(FsError::Stopped(why.clone())),
            None => Ok(()),
        }
    }
}

/// See the module's head.
pub(crate) struct Engine {
    pub volume: Arc<dyn Volume>,
    core: RwLock<Core>,
    /// Held while a transaction is sealed and submitted; a batch that was refused waits in it.
    commit: Mutex<Option<(u64, Batch)>>,
    submitted: Mutex<(u64, Ticket)>,
    fate: Arc<Fate>,
    group: Arc<Group>,
    committer: Committer,
}

/// Reads the superblock.
pub(crate) fn read_super(volume: &dyn Volume) -> FsResult<Superblock> {
    let mut raw = [0; PAGE_BYTES];
    volume.read(Block(0), &mut raw)?;
    Superblock::decode(&raw, volume.info().blocks)
}

impl Engine {
    pub fn new(volume: Arc<dyn Volume>, cache_bytes: usize, sb: Superblock) -> Engine {
        let cache = Arc::new(PageCache::new(cache_bytes));
        let group = Arc::<Group>::default();
        Engine {
            core: RwLock::new(Core::new(volume.clone(), cache, sb)),
            commit: Mutex::new(None),
            submitted: Mutex::new((sb.txn, volume.last_ticket())),
            fate: Arc::default(),
            committer: Committer::new(group.clone()),
            group,
            volume,
        }
    }

    fn submitted(&self) -> MutexGuard<'_, (u64, Ticket)> {
        self.submitted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for looking.
    pub fn core(&self) -> FsResult<RwLockReadGuard<'_, Core>> {
        self.fate.check()?;
        let core = self.core.read().unwrap_or_else(PoisonError::into_inner);
        self.whole(&core)?;
        Ok(core)
    }

    /// The state, for changing something that is not on the volume.
    pub fn core_mut(&self) -> FsResult<RwLockWriteGuard<'_, Core>> {
        self.fate.check()?;
        let core = self.core.write().unwrap_or_else(PoisonError::into_inner);
        self.whole(&core)?;
        Ok(core)
    }

    /// A panic in the middle of an operation leaves a savepoint behind: nothing may go on.
    fn whole(&self, core: &Core) -> FsResult<()> {
        match core.save {
            Some(_) => Err(self.fate.stop("a change ended in a panic".into())),
            None => Ok(()),
        }
    }

    /// Runs one operation that writes at most `blocks` blocks of data or frees at most as many
    /// runs. `f` may run twice (the second time after freed space was made usable).
    pub fn change<T>(
        &self,
        blocks: usize,
        mut f: impl FnMut(&mut Core) -> FsResult<T>,
    ) -> FsResult<(T, Mark)> {
        debug_assert!(blocks + META_ROOM < MAX_BATCH_BLOCKS);
        let mut again = true;
        loop {
            let mut core = self.core_mut()?;
            let room = MAX_BATCH_BLOCKS.min(MAX_BATCH_OPS) - META_ROOM - blocks;
            if core.txn.weight() > room || core.txn.taken > SEAL_TAKEN {
                drop(core);
                self.commit()?;
                continue;
            }
            core.begin();
            match f(&mut core) {
                Ok(value) => {
                    core.commit_op();
                    let mark = Mark(core.txn.id);
                    let seal = core.txn.data.blocks() >= SEAL_BLOCKS;
                    core.set_freeing(false);
                    drop(core);
                    if seal {
                        // An error here is the volume's; what was done stays done, and a flush
                        // will tell.
                        let _ = self.commit();
                    }
                    return Ok((value, mark));
                }
                Err(e) => {
                    core.rollback();
                    core.set_freeing(false);
                    let freed = !core.txn.freed.is_empty();
                    drop(core);
                    if freed && again && matches!(e, FsError::NoSpace(_)) {
                        again = false;
                        self.commit()?;
                        continue;
                    }
                    return Err(e);
                }
            }
        }
    }

    /// Seals the open transaction and submits it. Waits while the volume's queues are full.
    pub fn commit(&self) -> FsResult<()> {
        let mut waiting = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, batch)) = waiting.take() {
            self.submit(&mut waiting, id, batch)?;
        }
        let sealed = {
            let mut core = self.core_mut()?;
            core.seal()
        };
        match sealed {
            Some((id, batch)) => self.submit(&mut waiting, id, batch),
            None => Ok(()),
        }
    }

    fn submit(&self, waiting: &mut Option<(u64, Batch)>, id: u64, batch: Batch) -> FsResult<()> {
        match self.volume.submit(batch.clone()) {
            Ok(ticket) => {
                *self.submitted() = (id, ticket);
                self.core
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .sealed = None;
                Ok(())
            }
            Err(e @ VolumeError::NoSpace(_)) => {
                let mut core = self.core.write().unwrap_or_else(PoisonError::into_inner);
                if !core.unseal() {
                    *waiting = Some((id, batch));
                }
                Err(e.into())
            }
            Err(e @ VolumeError::NotActive(_)) => {
                *waiting = Some((id, batch));
                Err(e.into())
            }
            Err(e) => Err(self.fate.stop(format!("a batch was not taken: {e}"))),
        }
    }

    /// Calls `done` once everything up to `upto` is durable: at once, from this thread when nobody
    /// shares a flush, or from another.
    pub fn flush_then(&self, upto: Mark, done: FlushCallback) {
        if let Err(e) = self.fate.check() {
            return done(Err(e));
        }
        let (id, ticket) = *self.submitted();
        if upto.0 <= id && ticket.0.0 <= self.fate.durable.load(Ordering::Acquire) {
            return done(Ok(()));
        }
        if let Some(party) = self.group.enter(upto, done) {
            self.flush_party(party);
        }
    }

    /// One batch and one flush for all of them.
    pub(super) fn flush_party(&self, mut party: Party) {
        let open = party.upto.0 > self.submitted().0;
        let sealed = match open {
            true => self.commit(),
            false => Ok(()),
        };
        if let Err(e) = sealed {
            // A batch that cannot be submitted is no matter of theirs whose own batch was.
            let id = self.submitted().0;
            party.split_above(id).answer(&Err(e));
            if party.answers.is_empty() {
                return self.group.leave();
            }
        }
        let ticket = self.submitted().1;
        let (fate, group) = (self.fate.clone(), self.group.clone());
        self.volume.flush_then(
            ticket,
            Box::new(move |r: Result<Receipt, VolumeError>| {
                let result = match r {
                    Ok(receipt) => {
                        fate.durable.fetch_max(receipt.upto().0.0, Ordering::AcqRel);
                        Ok(())
                    }
                    // The history is whole; a later flush may well succeed, and covers this one.
                    Err(e @ VolumeError::NotActive(_)) => Err(e.into()),
                    Err(e) => Err(fate.stop(format!("a flush failed: {e}"))),
                };
                // First of all, so that the next batch is on its way while these are answered.
                group.leave();
                party.answer(&result);
            }),
        );
    }

    /// Lets callers share flushes from now on.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start_committer(&self, fs: Weak<Fs>) -> FsResult<()> {
        self.committer.start(fs)
    }

    /// The mark of the open transaction.
    pub fn last_mark(&self) -> Mark {
        let core = self.core.read().unwrap_or_else(PoisonError::into_inner);
        match core.txn.is_empty() {
            true => Mark(core.txn.id - 1),
            false => Mark(core.txn.id),
        }
    }
}

impl Core {
    /// Turns the open transaction into a batch and starts the next one. Pages move; nothing of
    /// them is copied but those that a reader holds.
    fn seal(&mut self) -> Option<(u64, Batch)> {
        if self.txn.is_empty() {
            return None;
        }
        let id = self.txn.id;
        let next = Txn {
            id: id + 1,
            ..Txn::default()
        };
        let txn = std::mem::replace(&mut self.txn, next);
        let mut ops = Vec::with_capacity(txn.weight());
        for (start, end) in txn.zeroed.iter().chain(txn.freed.iter()) {
            ops.push(BatchOp::Discard {
                block: Block(start),
                count: end - start,
            });
        }
        for (start, data) in txn.data.iter() {
            ops.push(BatchOp::Write {
                block: Block(start),
                data: data.clone(),
            });
        }
        let mut pages: Vec<(u64, Arc<Page>)> =
            txn.pages.into_iter().map(|(b, d)| (b, d.page)).collect();
        pages.sort_unstable_by_key(|p| p.0);
        for (block, page) in &mut pages {
            Arc::make_mut(page).seal();
            self.cache.put(*block, page.clone());
            ops.push(BatchOp::Write {
                block: Block(*block),
                data: Bytes::from_owner(PageBytes(page.clone())),
            });
        }
        if txn.super_dirty || !pages.is_empty() {
            self.sb.txn = id;
            ops.push(BatchOp::Write {
                block: Block(0),
                data: Bytes::copy_from_slice(&self.sb.encode()),
            });
        }
        self.sealed = Some(Arc::new(Sealed {
            pages: pages.into_iter().collect::<HashMap<_, _>>(),
            data: txn.data,
            zeroed: txn.zeroed,
            freed: txn.freed,
        }));
        Some((id, Batch { ops }))
    }
}
