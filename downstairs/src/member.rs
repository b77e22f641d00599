//! The member: promise, lease and record of one volume on one node (invariants 1, 2, 6, 11).
//!
//! A pure state machine: time and messages come in as arguments, and what must be durable before
//! an answer leaves is in [`MemberState`], which the caller stores whenever a method says so.
//!
//! Rules kept here:
//! - A generation number is accepted once, for one claim id; a lower number, or the same number
//!   with another id, is refused for ever (1). The promise is durable before the answer.
//! - While the promise runs nobody else's claim is accepted, and for one full lease after each
//!   start either, unless the holder handed it back durably (2). The holder counts from when it
//!   sent its request, the member from receipt plus [`drift_margin`].
//! - Records only go up in version (6). A record without this member removes it for ever, once it
//!   was listed: one that was made ready to be added is not listed until it has been.
//!
//! A crash leaves the last stored state; the running promise is forgotten, which is why a start
//! counts as a fresh promise.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use trivet_protocol::breaks::{self, Break};
use trivet_protocol::limits::MAX_GENERATION;
use trivet_protocol::message::Refusal;
use trivet_protocol::{Generation, MemberId, Millis, Now, Record, RecordVersion, Seq, VolumeId};

use crate::pledge::{Pledge, Promise};

/// What a member keeps durably. Stored as JSON inside a checksummed slot, so that a person can
/// read it with `trivet region dump`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberState {
    /// Who this is.
    pub member: MemberId,
    /// The highest generation accepted.
    pub promise: Generation,
    /// Name of the node that claimed it.
    pub holder: String,
    /// The holder gave the promise back: it runs no longer.
    pub handed_back: bool,
    /// A record without this member was seen.
    pub removed: bool,
    /// The record.
    pub record: Record,
}

impl MemberState {
    /// State of a new member: of a new volume, from the record that lists it; of one that exists,
    /// from a copy of the present record, which does not list it yet.
    pub fn new(member: MemberId, record: Record) -> MemberState {
        MemberState {
            member,
            promise: Generation::NONE,
            holder: String::new(),
            handed_back: false,
            removed: false,
            record,
        }
    }
}

/// How much longer than the holder a member counts a lease: covers clocks that drift apart by
/// up to 2 %.
pub fn drift_margin(lease: Millis) -> Duration {
    lease.duration() / 50 + Duration::from_millis(5)
}

/// Whether the state changed and must be durable before the answer leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Store {
    /// Store it first.
    First,
    /// Nothing changed.
    Unchanged,
}

/// See the module's head.
#[derive(Debug)]
pub struct Member {
    state: MemberState,
    /// The running promise, which renewals extend without asking this.
    pledge: Arc<Pledge>,
    /// When the promise was made, or this process started.
    since: Now,
}

impl Member {
    /// A member just started: an old promise counts as made now, for one full lease.
    pub fn start(state: MemberState, now: Now) -> Member {
        let running = state.promise != Generation::NONE && !state.handed_back;
        let lease = state.record.lease;
        let forgotten = breaks::on(Break::PromiseForgotten);
        let promised_until = if running && !forgotten {
            now + lease.duration() + drift_margin(lease)
        } else {
            Now::default()
        };
        let pledge = Arc::new(Pledge::new(&state, promised_until));
        Member {
            state,
            pledge,
            since: now,
        }
    }

    /// The running promise: what answers renewals.
    pub fn pledge(&self) -> &Arc<Pledge> {
        &self.pledge
    }

    /// What must be durable.
    pub fn state(&self) -> &MemberState {
        &self.state
    }

    /// Its volume.
    pub fn volume(&self) -> VolumeId {
        self.state.record.volume
    }

    /// How long the promise still runs.
    pub fn lease_left(&self, now: Now) -> Millis {
        self.pledge.lock().left(now)
    }

    /// How long ago the running promise was made.
    pub fn held_for(&self, now: Now) -> Millis {
        if self.lease_left(now) == Millis(0) {
            return Millis(0);
        }
        self.promised_for(now)
    }

    fn fenced(&self) -> Refusal {
        Refusal::Fenced {
            promise: self.state.promise,
            holder: self.state.holder.clone(),
        }
    }

    fn not_removed(&self) -> Result<(), Refusal> {
        if self.state.removed {
            return Err(Refusal::Removed(Box::new(self.state.record.clone())));
        }
        Ok(())
    }

    /// Checks a sender's generation against the promise (invariant 1).
    ///
    /// # Errors
    /// [`Refusal::Fenced`] or [`Refusal::Removed`].
    pub fn check(&self, generation: Generation) -> Result<(), Refusal> {
        self.not_removed()?;
        if generation == Generation::NONE || generation != self.state.promise {
            return Err(self.fenced());
        }
        Ok(())
    }

    /// A claim. Accepted if the number is higher than any before and no other promise runs; the
    /// same claim again is accepted again, because its first answer may have been lost.
    ///
    /// # Errors
    /// Why not.
    pub fn claim(&mut self, now: Now, g: Generation, node: &str) -> Result<Store, Refusal> {
        self.not_removed()?;
        if g.number > MAX_GENERATION {
            let why = format!("generation {} is out of range", g.number);
            return Err(Refusal::BadRequest(why));
        }
        let pledge = self.pledge.clone();
        let mut running = pledge.lock();
        let promise = self.state.promise;
        if g == promise && g != Generation::NONE && !self.state.handed_back {
            running.extend(now);
            return Ok(Store::Unchanged);
        }
        let higher = g.number > promise.number
            || breaks::on(Break::OldGenerationAccepted)
            || (breaks::on(Break::EqualGenerationAccepted) && g.number == promise.number);
        if !higher {
            return Err(self.fenced());
        }
        let left = running.left(now);
        if left > Millis(0) {
            return Err(self.leased(now, left));
        }
        self.state.promise = g;
        self.state.holder = node.to_owned();
        self.state.handed_back = false;
        self.since = now;
        running.until = Now::default();
        self.publish(&mut running, now);
        Ok(Store::First)
    }

    fn leased(&self, now: Now, left: Millis) -> Refusal {
        Refusal::Leased {
            holder: self.state.holder.clone(),
            held_for: self.promised_for(now),
            left,
        }
    }

    fn promised_for(&self, now: Now) -> Millis {
        Millis(u64::try_from(now.since(self.since).as_millis()).unwrap_or(u64::MAX))
    }

    /// What the state says holds for renewals from now on, and runs for a full lease at least.
    fn publish(&self, running: &mut Promise, now: Now) {
        running.follow(&self.state);
        running.extend(now);
    }

    /// Renews the promise: [`Pledge::renew`].
    ///
    /// # Errors
    /// As there.
    pub fn renew(&self, now: Now, g: Generation, positions: (Seq, Seq)) -> Result<(), Refusal> {
        self.pledge.renew(now, g, positions)
    }

    /// Takes a newer record from the promised generation. One that is here already is confirmed.
    ///
    /// # Errors
    /// Not from the promised one, not newer, or not believable.
    pub fn put_record(
        &mut self,
        now: Now,
        g: Generation,
        record: Record,
    ) -> Result<(RecordVersion, Store), Refusal> {
        self.check(g)?;
        if let Some(problem) = record.problem() {
            return Err(Refusal::BadRequest(format!("record refused: {problem}")));
        }
        if record.volume != self.volume() || record.blocks < self.state.record.blocks {
            return Err(Refusal::BadRequest(
                "record refused: another volume or smaller".into(),
            ));
        }
        let version = record.version;
        if version == self.state.record.version && record == self.state.record {
            return Ok((version, Store::Unchanged));
        }
        if version <= self.state.record.version {
            return Err(Refusal::BadRequest(format!(
                "record {version:?} is not newer than {:?}",
                self.state.record.version
            )));
        }
        let lists_us = |r: &Record| r.member(self.state.member).is_some();
        self.state.removed = lists_us(&self.state.record) && !lists_us(&record);
        self.state.record = record;
        // The lease may have become longer with the record: never promise less than was counted.
        self.publish(&mut self.pledge.lock(), now);
        Ok((version, Store::First))
    }

    /// Goes back to what is stored, since a change could not be. A promise that was made meanwhile
    /// runs on: that only makes others wait.
    pub fn take_back(&mut self, before: MemberState) {
        self.state = before;
        self.pledge.lock().follow(&self.state);
    }

    /// Ends the promise at once.
    ///
    /// # Errors
    /// [`Refusal::Fenced`] if it is not this holder's.
    pub fn hand_back(&mut self, g: Generation) -> Result<Store, Refusal> {
        self.check(g)?;
        self.state.handed_back = true;
        let mut running = self.pledge.lock();
        running.follow(&self.state);
        running.until = Now::default();
        Ok(Store::First)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_protocol::{MemberInfo, MemberKind, Position};

    const MS: u64 = 1_000_000;
    const NOWHERE: (Seq, Seq) = (Seq::ZERO, Seq::ZERO);

    fn g(number: u64, claim: u128) -> Generation {
        Generation { number, claim }
    }

    fn record() -> Record {
        let id = MemberId::from_bytes([1; 16]);
        let info = MemberInfo {
            id,
            node: "n1".into(),
            kind: MemberKind::Replica,
            opens: 0,
            durable: Position::default(),
        };
        Record {
            version: RecordVersion::default(),
            volume: VolumeId::from_bytes([2; 16]),
            blocks: 8,
            members: vec![info],
            in_sync: [id].into(),
            min_copies: 1,
            lease: Millis(2000),
            losses: 0,
        }
    }

    fn fresh(now: Now) -> Member {
        Member::start(
            MemberState::new(MemberId::from_bytes([1; 16]), record()),
            now,
        )
    }

    #[test]
    fn a_number_belongs_to_one_claimant_for_ever_and_across_restarts() {
        let mut m = fresh(Now(0));
        assert_eq!(m.claim(Now(0), g(3, 30), "a"), Ok(Store::First));
        assert_eq!(
            m.claim(Now(1), g(3, 30), "a"),
            Ok(Store::Unchanged),
            "answer was lost"
        );
        let late = Now(10_000 * MS);
        assert!(matches!(
            m.claim(late, g(3, 31), "b"),
            Err(Refusal::Fenced { .. })
        ));
        assert!(matches!(
            m.claim(late, g(2, 99), "b"),
            Err(Refusal::Fenced { .. })
        ));
        let mut m = Member::start(m.state().clone(), Now(0));
        assert!(matches!(
            m.claim(late, g(2, 98), "b"),
            Err(Refusal::Fenced { .. })
        ));
        assert!(m.check(g(3, 31)).is_err());
        assert!(m.check(g(3, 30)).is_ok());
    }

    #[test]
    fn a_running_promise_refuses_and_says_who_and_how_long() {
        let mut m = fresh(Now(0));
        let _ = m.claim(Now(0), g(1, 1), "a").unwrap();
        m.renew(Now(500 * MS), g(1, 1), NOWHERE).unwrap();
        let err = m.claim(Now(1000 * MS), g(2, 2), "b").unwrap_err();
        let margin = drift_margin(Millis(2000));
        let left = Millis(1500 + margin.as_millis() as u64);
        assert_eq!(
            err,
            Refusal::Leased {
                holder: "a".into(),
                held_for: Millis(1000),
                left
            }
        );
        let over = Now(2500 * MS) + margin;
        assert!(m.claim(over, g(2, 2), "b").is_ok());
        assert!(
            m.renew(over, g(1, 1), NOWHERE).is_err(),
            "the old one is fenced"
        );
    }

    #[test]
    fn a_restart_refuses_for_a_full_lease_unless_handed_back() {
        let mut m = fresh(Now(0));
        let _ = m.claim(Now(0), g(1, 1), "a").unwrap();
        let mut again = Member::start(m.state().clone(), Now(0));
        assert!(matches!(
            again.claim(Now(2000 * MS), g(2, 2), "b"),
            Err(Refusal::Leased { .. })
        ));
        assert_eq!(m.hand_back(g(1, 1)), Ok(Store::First));
        let mut again = Member::start(m.state().clone(), Now(0));
        assert!(again.claim(Now(1), g(2, 2), "b").is_ok());
        assert!(
            m.renew(Now(1), g(1, 1), NOWHERE).is_err(),
            "what was handed back is not renewed"
        );
    }

    #[test]
    fn records_only_go_up_and_removal_is_for_ever() {
        let mut m = fresh(Now(0));
        let _ = m.claim(Now(0), g(1, 1), "a").unwrap();
        let mut r = record();
        r.version = RecordVersion {
            generation: 1,
            number: 0,
        };
        assert!(m.put_record(Now(0), g(1, 1), r.clone()).is_ok());
        r.lease = Millis(3000);
        assert!(
            m.put_record(Now(0), g(1, 1), r.clone()).is_err(),
            "same version, other content"
        );
        r.version.number = 1;
        let other = MemberId::from_bytes([9; 16]);
        r.members[0].id = other;
        r.in_sync = [other].into();
        assert!(m.put_record(Now(0), g(1, 1), r).is_ok());
        assert!(matches!(m.check(g(1, 1)), Err(Refusal::Removed(_))));
        let mut again = Member::start(m.state().clone(), Now(0));
        let far = Now(99_000 * MS);
        assert!(matches!(
            again.claim(far, g(9, 9), "b"),
            Err(Refusal::Removed(_))
        ));
    }

    #[test]
    fn one_that_was_made_ready_is_not_removed_by_records_from_before_it_was_added() {
        let new = MemberId::from_bytes([5; 16]);
        let mut m = Member::start(MemberState::new(new, record()), Now(0));
        let _ = m.claim(Now(0), g(1, 1), "a").unwrap();
        let mut r = record();
        let version = |number| RecordVersion {
            generation: 1,
            number,
        };
        r.version = version(0);
        assert!(m.put_record(Now(0), g(1, 1), r.clone()).is_ok());
        assert!(m.check(g(1, 1)).is_ok(), "not listed yet is not removed");
        let mut info = r.members[0].clone();
        info.id = new;
        r.members.push(info);
        r.version = version(1);
        assert!(m.put_record(Now(0), g(1, 1), r.clone()).is_ok());
        r.members.pop();
        r.version = version(2);
        assert!(m.put_record(Now(0), g(1, 1), r).is_ok());
        assert!(matches!(m.check(g(1, 1)), Err(Refusal::Removed(_))));
    }

    #[test]
    fn a_number_from_which_none_could_follow_is_refused() {
        let mut m = fresh(Now(0));
        for number in [u64::MAX, u64::MAX - 1, MAX_GENERATION + 1] {
            let refused = m.claim(Now(0), g(number, 1), "a");
            assert!(matches!(refused, Err(Refusal::BadRequest(_))), "{number}");
        }
        assert!(m.claim(Now(0), g(7, 1), "a").is_ok());
    }
}
