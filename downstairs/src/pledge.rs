//! The running promise of one member, under a small lock of its own (invariant 2).
//!
//! Renewals are answered from this alone, by the thread that received them: never behind a sync, a
//! checkpoint, a resync or a full socket. [`Member`](crate::member::Member) changes it together
//! with its durable state; what is decided on it (a claim against a running promise, a renewal
//! against a generation) is decided under one hold of the lock, so that no renewal slips in
//! between.
//!
//! While a change of the durable state could not be stored, nobody knows what a crash would leave:
//! nothing is renewed until a later change was stored, or the member was opened anew. (A failed
//! claim may be on the disk; its claimant could repeat it after a restart and be let in at once.)
//!
//! A crash leaves nothing of it: a start counts as a fresh promise.

use std::sync::{Mutex, MutexGuard, PoisonError};

use trivet_protocol::message::Refusal;
use trivet_protocol::{Generation, Millis, Now, Record, Seq};

use crate::member::{MemberState, drift_margin};

/// See the module's head.
#[derive(Debug)]
pub struct Pledge(Mutex<Promise>);

/// What is under the lock.
#[derive(Debug)]
pub(crate) struct Promise {
    pub generation: Generation,
    holder: String,
    pub handed_back: bool,
    removed: Option<Box<Record>>,
    lease: Millis,
    /// Until when nobody but the promised generation may claim.
    pub until: Now,
    /// Why nothing is renewed here, if so.
    refuses: Option<String>,
    /// A change could not be stored.
    doubtful: bool,
    /// Positions that came with the newest renewal: generation, commit, trim.
    told: Option<(Generation, Seq, Seq)>,
}

impl Promise {
    /// Lets it run for a full lease and its margin from now, at least.
    pub fn extend(&mut self, now: Now) {
        let until = now + self.lease.duration() + drift_margin(self.lease);
        self.until = self.until.max(until);
    }

    /// How long it still runs.
    pub fn left(&self, now: Now) -> Millis {
        if self.handed_back {
            Millis(0)
        } else {
            now.until(self.until)
        }
    }

    /// Takes over what the member's state says.
    pub fn follow(&mut self, state: &MemberState) {
        self.generation = state.promise;
        self.handed_back = state.handed_back;
        self.lease = state.record.lease;
        if self.holder != state.holder {
            self.holder.clone_from(&state.holder);
        }
        self.removed = state.removed.then(|| Box::new(state.record.clone()));
    }
}

impl Pledge {
    pub(crate) fn new(state: &MemberState, until: Now) -> Pledge {
        let mut promise = Promise {
            generation: Generation::NONE,
            holder: String::new(),
            handed_back: false,
            removed: None,
            lease: state.record.lease,
            until,
            refuses: None,
            doubtful: false,
            told: None,
        };
        promise.follow(state);
        Pledge(Mutex::new(promise))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Promise> {
        // Each change is whole by itself, and a promise too many only makes others wait.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the promise, also after it ran out, if nobody else has claimed. `positions`: up to
    /// where the sender knows all to be committed, and up to where no log is needed any more; kept
    /// for [`Pledge::take_told`].
    ///
    /// # Errors
    /// [`Refusal::Fenced`], also after a hand-back; [`Refusal::Removed`]; [`Refusal::Unusable`].
    pub fn renew(&self, now: Now, g: Generation, positions: (Seq, Seq)) -> Result<(), Refusal> {
        let mut p = self.lock();
        if let Some(record) = &p.removed {
            return Err(Refusal::Removed(record.clone()));
        }
        if g == Generation::NONE || g != p.generation || p.handed_back {
            return Err(Refusal::Fenced {
                promise: p.generation,
                holder: p.holder.clone(),
            });
        }
        if let Some(why) = &p.refuses {
            return Err(Refusal::Unusable(why.clone()));
        }
        if p.doubtful {
            let why = "a change of its state could not be stored";
            return Err(Refusal::Unusable(why.into()));
        }
        p.extend(now);
        p.told = Some((g, positions.0, positions.1));
        Ok(())
    }

    /// The positions that came with the newest renewal, once.
    pub fn take_told(&self) -> Option<(Generation, Seq, Seq)> {
        self.lock().told.take()
    }

    /// From now on nothing is renewed here, or again is.
    pub fn refuse(&self, why: Option<String>) {
        self.lock().refuses = why;
    }

    /// Whether a change of the durable state could be stored.
    pub(crate) fn stored(&self, well: bool) {
        self.lock().doubtful = !well;
    }
}
