//! The table itself: a pure structure, no clock, no I/O.
//!
//! Rules: a lock of one owner replaces that owner's earlier locks where they overlap (splitting
//! them); locks of different owners conflict where they overlap and one is exclusive; families do
//! not see each other. Waiters are served in the order in which they came, as far as possible.
//! Bounded by [`MAX_LOCKS`] and [`MAX_WAITERS`].

use std::collections::BTreeMap;

use super::{LockCall, LockFamily, LockHeld, LockKind, LockOwner, LockRange, LockWait};
use crate::api::Ino;
use crate::error::{FsError, FsResult};

/// Locks in the table, at most.
pub const MAX_LOCKS: usize = 65_536;
/// Waiters, at most.
pub const MAX_WAITERS: usize = 16_384;
/// Owners that are looked at for a cycle of waiters, at most.
pub const MAX_CHAIN: usize = 1024;

/// Someone who waits.
pub(crate) struct Waiter {
    pub ino: Ino,
    pub call: LockCall,
    pub wait: LockWait,
}

/// A change to one owner's locks of an inode, for whoever stores them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    /// Locks that are no more.
    pub gone: Vec<LockHeld>,
    /// Locks that are new.
    pub new: Vec<LockHeld>,
}

/// See the module's head.
#[derive(Default)]
pub struct LockTable {
    held: BTreeMap<Ino, Vec<LockHeld>>,
    count: usize,
    waiting: Vec<Waiter>,
}

impl LockTable {
    /// The first lock in the way of a call.
    pub fn conflict(&self, ino: Ino, call: &LockCall) -> Option<&LockHeld> {
        if call.kind == LockKind::Unlock {
            return None;
        }
        self.held.get(&ino)?.iter().find(|h| {
            h.family == call.family
                && !same_owner(&h.owner, &call.owner)
                && h.range.overlaps(&call.range)
                && (h.kind == LockKind::Exclusive || call.kind == LockKind::Exclusive)
        })
    }

    /// What granting a call, or giving back, would change.
    pub(crate) fn delta(&self, ino: Ino, call: &LockCall) -> FsResult<Delta> {
        let mut delta = Delta::default();
        let mine = |h: &&LockHeld| {
            h.family == call.family
                && same_owner(&h.owner, &call.owner)
                && h.range.overlaps(&call.range)
        };
        for h in self.held.get(&ino).into_iter().flatten().filter(mine) {
            delta.gone.push(h.clone());
            let rest = |start, end| LockHeld {
                range: LockRange { start, end },
                ..h.clone()
            };
            if h.range.start < call.range.start {
                delta.new.push(rest(h.range.start, call.range.start));
            }
            if call.range.end < h.range.end {
                delta.new.push(rest(call.range.end, h.range.end));
            }
        }
        if call.kind != LockKind::Unlock {
            delta.new.push(LockHeld {
                family: call.family,
                owner: call.owner.clone(),
                kind: call.kind,
                range: call.range,
            });
        }
        match self.count + delta.new.len() > MAX_LOCKS + delta.gone.len() {
            true => Err(FsError::Limit("too many locks")),
            false => Ok(delta),
        }
    }

    /// Applies a change.
    pub(crate) fn apply(&mut self, ino: Ino, delta: Delta) {
        let list = self.held.entry(ino).or_default();
        for gone in &delta.gone {
            if let Some(i) = list.iter().position(|h| h == gone) {
                list.remove(i);
                self.count -= 1;
            }
        }
        self.count += delta.new.len();
        list.extend(delta.new);
        if list.is_empty() {
            self.held.remove(&ino);
        }
    }

    /// Owners in the way of a call.
    fn in_the_way<'a>(&'a self, ino: Ino, call: &LockCall) -> impl Iterator<Item = &'a LockOwner> {
        let LockCall {
            family,
            owner,
            kind,
            range,
        } = call.clone();
        let held = self.held.get(&ino).into_iter().flatten();
        let conflicts = held.filter(move |h| {
            h.family == family
                && !same_owner(&h.owner, &owner)
                && h.range.overlaps(&range)
                && (h.kind == LockKind::Exclusive || kind == LockKind::Exclusive)
        });
        conflicts.map(|h| &h.owner)
    }

    /// Whether whoever is in the way of a call waits, directly or through others, for its owner.
    /// As POSIX asks for ranges; nobody does for `flock`. Looks at [`MAX_CHAIN`] owners at most.
    fn would_deadlock(&self, ino: Ino, call: &LockCall) -> bool {
        if call.family != LockFamily::Range {
            return false;
        }
        let mut seen: Vec<&LockOwner> = self.in_the_way(ino, call).collect();
        let mut next = 0;
        while let Some(owner) = seen.get(next).copied() {
            next += 1;
            let waits = |w: &&Waiter| {
                w.call.family == LockFamily::Range && same_owner(&w.call.owner, owner)
            };
            for w in self.waiting.iter().filter(waits) {
                for holder in self.in_the_way(w.ino, &w.call) {
                    if same_owner(holder, &call.owner) {
                        return true;
                    }
                    if seen.len() < MAX_CHAIN && !seen.iter().any(|s| same_owner(s, holder)) {
                        seen.push(holder);
                    }
                }
            }
        }
        false
    }

    /// Queues a waiter.
    ///
    /// # Errors
    /// [`FsError::Deadlock`], or too many wait.
    pub(crate) fn wait(&mut self, waiter: Waiter) -> FsResult<()> {
        if self.would_deadlock(waiter.ino, &waiter.call) {
            return Err(FsError::Deadlock);
        }
        if self.waiting.len() >= MAX_WAITERS {
            return Err(FsError::Limit("too many waiters for locks"));
        }
        self.waiting.push(waiter);
        Ok(())
    }

    /// The first waiter on this inode that nothing stands in the way of any more.
    pub(crate) fn next_ready(&mut self, ino: Ino) -> Option<Waiter> {
        let i = self
            .waiting
            .iter()
            .position(|w| w.ino == ino && self.conflict(ino, &w.call).is_none())?;
        Some(self.waiting.remove(i))
    }

    /// Takes out waiters for which `which` says so.
    pub(crate) fn take_waiters(&mut self, which: &dyn Fn(&Waiter) -> bool) -> Vec<Waiter> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let (out, stay) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|w| which(w));
        self.waiting = stay;
        out
    }

    /// Locks held on one inode, or on all.
    pub fn list(&self, ino: Option<Ino>) -> Vec<(Ino, LockHeld)> {
        let of = |(i, l): (&Ino, &Vec<LockHeld>)| -> Vec<(Ino, LockHeld)> {
            l.iter().map(|h| (*i, h.clone())).collect()
        };
        match ino {
            Some(ino) => self.held.get(&ino).map_or(Vec::new(), |l| of((&ino, l))),
            None => self.held.iter().flat_map(of).collect(),
        }
    }
}

/// The process id is only for show.
fn same_owner(a: &LockOwner, b: &LockOwner) -> bool {
    match (a, b) {
        (LockOwner::Local { owner: x, .. }, LockOwner::Local { owner: y, .. }) => x == y,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, seeds};

    fn call(owner: u64, kind: LockKind, start: u64, end: u64) -> LockCall {
        LockCall {
            family: LockFamily::Range,
            owner: LockOwner::Local { owner, pid: 0 },
            kind,
            range: LockRange { start, end },
        }
    }

    /// stress-ng's lockf hung for ever: two processes that each waited for what the other held.
    #[test]
    fn a_circle_of_waiters_is_refused_to_whoever_would_close_it() {
        use LockKind::Exclusive;
        let mut table = LockTable::default();
        let (a, b) = (Ino(7), Ino(8));
        for (ino, owner, start) in [(a, 1, 0), (a, 2, 10), (b, 3, 0)] {
            let take = call(owner, Exclusive, start, start + 10);
            let delta = table.delta(ino, &take).unwrap();
            table.apply(ino, delta);
        }
        let mut wait = |ino, owner, start| {
            table.wait(Waiter {
                ino,
                call: call(owner, Exclusive, start, start + 1),
                wait: Box::new(|_| {}),
            })
        };
        // 1 waits for 2, 2 for 3, and another of 1's threads waits without harm.
        wait(a, 1, 10).unwrap();
        wait(b, 2, 0).unwrap();
        wait(b, 1, 0).unwrap();
        assert!(matches!(wait(a, 3, 0), Err(FsError::Deadlock)));
        // Somebody from outside the circle may wait for it.
        wait(a, 4, 0).unwrap();
    }

    /// Given random locks and unlocks of three owners, the table equals an array of bytes.
    #[test]
    fn equals_an_array_of_bytes() {
        for seed in 1..=seeds(20) {
            let mut rng = Rng::new(seed);
            let mut table = LockTable::default();
            let mut model = [[LockKind::Unlock; 32]; 3];
            for step in 0..500 {
                let owner = rng.below(3) as usize;
                let start = rng.below(31);
                let end = start + 1 + rng.below(32 - start);
                let kind = [LockKind::Shared, LockKind::Exclusive, LockKind::Unlock]
                    [rng.below(3) as usize];
                let c = call(owner as u64, kind, start, end);
                let range = start as usize..end.min(32) as usize;
                let blocked = (0..3).filter(|o| *o != owner).any(|o| {
                    model[o][range.clone()].iter().any(|held| match kind {
                        LockKind::Exclusive => *held != LockKind::Unlock,
                        LockKind::Shared => *held == LockKind::Exclusive,
                        LockKind::Unlock => false,
                    })
                });
                let got = table.conflict(Ino(1), &c).is_some();
                assert_eq!(got, blocked, "seed {seed} step {step}");
                if !blocked {
                    let delta = table.delta(Ino(1), &c).unwrap();
                    table.apply(Ino(1), delta);
                    model[owner][range].fill(kind);
                }
                for (o, bytes) in model.iter().enumerate() {
                    for (at, want) in bytes.iter().enumerate() {
                        let at = at as u64;
                        let list = table.list(Some(Ino(1)));
                        let mut mine = list.iter().filter(|(_, h)| {
                            h.owner
                                == LockOwner::Local {
                                    owner: o as u64,
                                    pid: 0,
                                }
                                && (h.range.start..h.range.end).contains(&at)
                        });
                        let have = mine.next().map_or(LockKind::Unlock, |h| h.1.kind);
                        assert_eq!(have, *want, "seed {seed} step {step}");
                        assert!(mine.next().is_none(), "one owner, one lock per byte");
                    }
                }
            }
        }
    }
}
