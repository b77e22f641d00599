//! Locks as calls: the table, its stored part, and those who wait.
//!
//! Lock order: the table's mutex, then the engine's. Callbacks run with neither held. A stored
//! lock is in the tree under its inode; its durability is the caller's to ask for (the mark).

use std::collections::HashMap;

use super::{Fs, lock};
use crate::api::{Done, Ino, InodeId, Mark};
use crate::btree;
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::format::key::{Key, Kind};
use crate::lock::table::{Delta, LockTable, Waiter};
use crate::lock::{LockCall, LockHeld, LockKind, LockOwner, LockRange, LockWait, codec};

/// Items of one transaction when many locks go at once.
const STEP: usize = 32;

/// A callback to be made once no lock is held.
type Due = (LockWait, FsResult<Mark>);

impl Core {
    /// Stores a change of the table.
    fn store_locks(&mut self, ino: Ino, delta: &Delta) -> FsResult<()> {
        let mut gone: HashMap<Vec<u8>, ()> = HashMap::new();
        gone.extend(delta.gone.iter().filter_map(codec::encode).map(|b| (b, ())));
        if !gone.is_empty() {
            let mut keys = Vec::new();
            let (a, b) = (
                Key::new(ino, Kind::Lock, 0),
                Key::new(ino, Kind::Lock, u64::MAX),
            );
            btree::scan(&*self, &a, &b, &mut |k, v| {
                if gone.remove(v).is_some() {
                    keys.push(k);
                }
                Ok(!gone.is_empty())
            })?;
            for key in keys {
                btree::remove(self, &key)?;
            }
        }
        for item in delta.new.iter().filter_map(codec::encode) {
            let key = Key::new(ino, Kind::Lock, self.sb.next_lock);
            btree::insert(self, &key, &item)?;
            self.sb.next_lock += 1;
        }
        Ok(())
    }
}

fn check_call(call: &LockCall) -> FsResult<()> {
    if call.range.start >= call.range.end {
        return Err(FsError::Invalid("a lock of no bytes"));
    }
    match &call.owner {
        LockOwner::Nlm { host, handle, .. }
            if host.len() > codec::MAX_PART || handle.len() > codec::MAX_PART =>
        {
            Err(FsError::NameTooLong)
        }
        _ => Ok(()),
    }
}

impl Fs {
    /// Reads the stored locks when mounting. Bounded by the table's limit.
    pub(super) fn load_locks(&self) -> FsResult<()> {
        // Locks live with their inode; inode 0 lists the inodes that have some.
        let mut table = lock(&self.locks);
        let core = self.engine.core()?;
        let mut inos = Vec::new();
        let (a, b) = (
            Key::new(Ino(0), Kind::Locked, 0),
            Key::new(Ino(0), Kind::Locked, u64::MAX),
        );
        btree::scan(&*core, &a, &b, &mut |k, _| {
            inos.push(Ino(k.off()));
            Ok(true)
        })?;
        for ino in inos {
            let (a, b) = (
                Key::new(ino, Kind::Lock, 0),
                Key::new(ino, Kind::Lock, u64::MAX),
            );
            btree::scan(&*core, &a, &b, &mut |_, v| {
                let new = vec![codec::decode(v)?];
                table.apply(ino, Delta { gone: vec![], new });
                Ok(true)
            })?;
        }
        Ok(())
    }

    /// What a lock call that changes nothing stands on: it may repeat one whose effect is not
    /// durable yet, and its answer must not be out before that is. Local owners end with the mount.
    fn mark_of_no_change(&self, owner: &LockOwner) -> Mark {
        match owner {
            LockOwner::Nlm { .. } => self.engine.last_mark(),
            LockOwner::Local { .. } => Mark(0),
        }
    }

    /// Applies a change to the store, then to the table; the mark is 0 if nothing is stored.
    fn apply(&self, table: &mut LockTable, ino: Ino, delta: Delta) -> FsResult<Mark> {
        let stored = |l: &LockHeld| matches!(l.owner, LockOwner::Nlm { .. });
        let mark = match delta.gone.iter().chain(&delta.new).any(stored) {
            true => {
                let (_, mark) = self.engine.change(STEP, |core| {
                    core.store_locks(ino, &delta)?;
                    core.list_locked(ino)
                })?;
                mark
            }
            false => Mark(0),
        };
        table.apply(ino, delta);
        Ok(mark)
    }

    /// Grants what has become possible.
    fn serve_waiters(&self, table: &mut LockTable, ino: Ino, due: &mut Vec<Due>) {
        while let Some(waiter) = table.next_ready(ino) {
            let granted = table
                .delta(ino, &waiter.call)
                .and_then(|delta| self.apply(table, ino, delta));
            due.push((waiter.wait, granted));
        }
    }

    pub(crate) fn do_lock_test(&self, id: InodeId, call: &LockCall) -> FsResult<Option<LockHeld>> {
        check_call(call)?;
        self.engine.core()?.inode_of(id)?;
        Ok(lock(&self.locks).conflict(id.ino, call).cloned())
    }

    pub(crate) fn do_lock(
        &self,
        id: InodeId,
        call: &LockCall,
        wait: Option<LockWait>,
    ) -> FsResult<Done<bool>> {
        check_call(call)?;
        self.engine.core()?.inode_of(id)?;
        let mut due = Vec::new();
        let result = {
            let mut table = lock(&self.locks);
            if table.conflict(id.ino, call).is_some() {
                let wait = wait.ok_or(FsError::Locked)?;
                let waiter = Waiter {
                    ino: id.ino,
                    call: call.clone(),
                    wait,
                };
                return table.wait(waiter).map(|()| Done {
                    value: false,
                    mark: Mark(0),
                });
            }
            let delta = table.delta(id.ino, call)?;
            let mark = match self.apply(&mut table, id.ino, delta)? {
                Mark(0) => self.mark_of_no_change(&call.owner),
                mark => mark,
            };
            // Giving back, or turning exclusive into shared, may let others in.
            if call.kind != LockKind::Exclusive {
                self.serve_waiters(&mut table, id.ino, &mut due);
            }
            Ok(Done { value: true, mark })
        };
        due.into_iter().for_each(|(wait, r)| wait(r));
        result
    }

    pub(crate) fn do_lock_cancel(
        &self,
        id: InodeId,
        owner: &LockOwner,
        range: LockRange,
    ) -> FsResult<Done<bool>> {
        let out = lock(&self.locks)
            .take_waiters(&|w| w.ino == id.ino && w.call.owner == *owner && w.call.range == range);
        let value = !out.is_empty();
        out.into_iter().for_each(|w| (w.wait)(Err(FsError::Locked)));
        Ok(Done {
            value,
            mark: Mark(0),
        })
    }

    pub(crate) fn do_lock_release(
        &self,
        id: Option<InodeId>,
        which: &dyn Fn(&LockOwner) -> bool,
    ) -> FsResult<Done<usize>> {
        let ino = id.map(|id| id.ino);
        let mut due: Vec<Due> = Vec::new();
        let mut value = 0;
        let mut last = Mark(0);
        {
            let mut table = lock(&self.locks);
            let waiters =
                table.take_waiters(&|w| ino.is_none_or(|i| i == w.ino) && which(&w.call.owner));
            due.extend(waiters.into_iter().map(|w| (w.wait, Err(FsError::Locked))));
            let mut by_ino: HashMap<Ino, Vec<LockHeld>> = HashMap::new();
            for (i, held) in table.list(ino) {
                if which(&held.owner) {
                    by_ino.entry(i).or_default().push(held);
                }
            }
            for (ino, held) in by_ino {
                for gone in held.chunks(STEP) {
                    value += gone.len();
                    let delta = Delta {
                        gone: gone.to_vec(),
                        new: Vec::new(),
                    };
                    last = last.max(self.apply(&mut table, ino, delta)?);
                }
                self.serve_waiters(&mut table, ino, &mut due);
            }
        }
        due.into_iter().for_each(|(wait, r)| wait(r));
        Ok(Done { value, mark: last })
    }

    /// Drops what is left of an inode that is gone.
    pub(crate) fn forget_locks(&self, ino: Ino) {
        let waiters = {
            let mut table = lock(&self.locks);
            let gone: Vec<_> = table.list(Some(ino)).into_iter().map(|l| l.1).collect();
            if !gone.is_empty() {
                let new = Vec::new();
                table.apply(ino, Delta { gone, new });
            }
            table.take_waiters(&|w| w.ino == ino)
        };
        let stale = || Err(FsError::Stale(ino));
        waiters.into_iter().for_each(|w| (w.wait)(stale()));
    }

    pub(crate) fn do_lock_list(&self, max: usize) -> Vec<(InodeId, LockHeld)> {
        let list = lock(&self.locks).list(None);
        let Ok(core) = self.engine.core() else {
            return Vec::new();
        };
        let with_id = |(ino, held): (Ino, LockHeld)| {
            let generation = core.inode(ino).ok()?.generation;
            Some((InodeId { ino, generation }, held))
        };
        list.into_iter().take(max).filter_map(with_id).collect()
    }
}

impl Core {
    /// Keeps the list of inodes with stored locks in step.
    fn list_locked(&mut self, ino: Ino) -> FsResult<()> {
        let (a, b) = (
            Key::new(ino, Kind::Lock, 0),
            Key::new(ino, Kind::Lock, u64::MAX),
        );
        let any = btree::first(&*self, &a, &b)?.is_some();
        let key = Key::new(Ino(0), Kind::Locked, ino.0);
        match any {
            true => btree::insert(self, &key, &[]),
            false => btree::remove(self, &key).map(|_| ()),
        }
    }
}
