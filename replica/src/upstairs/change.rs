//! Changes of who is a member and who is in sync: joins, and what people ask for.
//!
//! Only the active one changes the list, one member at a time, by a record that is settled on a
//! majority of the old list and of the new one. That is what keeps any two majorities of
//! neighbouring lists overlapping, so that whoever is active next hears of a settled change, and
//! either finishes or abandons one that was not.
//!
//! A change is refused before it is sent if the majority that it needs does not answer now: a
//! record that was sent cannot be taken back, and one that is not settled would end the lease.
//!
//! *Replacing* is: add the new one, outside the set; resync it; then one record puts it into the
//! set in place of the old one and takes that out of the list. Who is to replace whom is not
//! stored: a crash in between leaves a member more, out of sync or in it, to be asked for again
//! ([`Upstairs::replace_member`]) or removed.

use trivet_protocol::limits::MAX_IN_SYNC;
use trivet_protocol::{MemberId, MemberInfo, MemberKind, Now, Record};

use super::peer::Stream;
use super::{LinkId, Notice, Upstairs};

/// Why a change of the members is not possible now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Only the active node changes the list.
    #[error("the volume is not active here; run this on the active node")]
    NotActive,
    /// One change at a time.
    #[error("another change of the members is under way; try again in a moment")]
    Busy,
    /// It would break a rule.
    #[error("{why}")]
    Refused {
        /// Which, and what to do.
        why: String,
        /// It may be possible in a moment.
        passing: bool,
    },
}

fn never(why: impl Into<String>) -> ChangeError {
    let (why, passing) = (why.into(), false);
    ChangeError::Refused { why, passing }
}

fn not_now(why: impl Into<String>) -> ChangeError {
    let (why, passing) = (why.into(), true);
    ChangeError::Refused { why, passing }
}

impl Upstairs {
    /// Proposes a larger set once a replica outside has everything, or the same with it in place
    /// of one that it replaces or that makes no progress: at most three are in the set.
    pub(super) fn consider_join(&mut self, now: Now, link: LinkId) {
        let peer = self.peer(link);
        let (Some(member), true) = (peer.member, peer.flows() && self.is_active()) else {
            return;
        };
        let Some(record) = self.record.as_ref().filter(|_| self.pending.is_none()) else {
            return;
        };
        let replica = record
            .member(member)
            .is_some_and(|m| m.kind == MemberKind::Replica);
        if !replica
            || record.in_sync.contains(&member)
            || peer.durable < self.commit
            || self.stalled(now, member).is_some()
        {
            return;
        }
        let mut next = record.clone();
        // Once the old one is gone from the record, the new one waits like any other.
        let takes_over = |r: &(MemberId, MemberId)| r.1 == member && record.member(r.0).is_some();
        if let Some((old, _)) = self.replacing.filter(takes_over) {
            next.members.retain(|m| m.id != old);
            next.in_sync.remove(&old);
            if !self.level_without(old) || !self.majority_answers(&next) {
                return;
            }
            if next.in_sync.len() >= MAX_IN_SYNC {
                // The old one was out of the set, which is full: the new one waits there instead.
                next.version = self.next_version();
                return self.propose(now, next, None);
            }
        } else if next.in_sync.len() >= MAX_IN_SYNC {
            let stalled = next
                .in_sync
                .iter()
                .copied()
                .find(|m| self.stalled(now, *m).is_some());
            let Some(gone) = stalled else { return };
            next.in_sync.remove(&gone);
            if !self.level_without(gone) {
                return;
            }
        }
        next.in_sync.insert(member);
        next.version = self.next_version();
        self.propose(now, next, Some(Notice::JoinedSet { member }));
    }

    /// Whether a majority of this list takes part now.
    fn majority_answers(&self, record: &Record) -> bool {
        let answers = record.members.iter().map(|m| m.id).filter(|m| {
            self.link_of(*m)
                .is_some_and(|l| self.peer(l).granted && self.votes(l))
        });
        record.is_majority(&answers.collect())
    }

    /// Adds a member, which is connected already ([`Upstairs::add_link`]) and answers. A replica
    /// comes in outside the set; it is resynced and joins.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn add_member(&mut self, now: Now, mut info: MemberInfo) -> Result<(), ChangeError> {
        let link = self.link_of(info.id).filter(|l| self.peer(*l).granted);
        let heard = link.and_then(|l| self.peer(l).welcome.as_ref());
        let heard = heard.map(|(_, w)| (w.kind, w.opens));
        self.change(now, |record| {
            if record.member(info.id).is_some() {
                return Err(never("it is a member already"));
            }
            let Some((kind, opens)) = heard else {
                let node = &info.node;
                return Err(not_now(format!("the new member on {node} does not answer")));
            };
            if kind != info.kind {
                return Err(never(format!("what answers there is a {kind:?}")));
            }
            info.opens = info.opens.max(opens);
            record.members.push(info);
            Ok(())
        })
    }

    /// Removes a member. One that is in sync is dropped from the set by the same record, which
    /// must leave the least number of copies.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn remove_member(&mut self, now: Now, id: MemberId) -> Result<(), ChangeError> {
        let level = self.level_without(id);
        self.change(now, |record| {
            let before = record.members.len();
            record.members.retain(|m| m.id != id);
            if record.members.len() == before {
                return Err(never("it is not a member"));
            }
            let shrinks = record.in_sync.remove(&id);
            if shrinks && record.in_sync.len() < usize::from(record.min_copies) {
                return Err(never(format!(
                    "only {} in-sync copies would be left, the policy asks for {}",
                    record.in_sync.len(),
                    record.min_copies
                )));
            }
            if shrinks && !level {
                return Err(not_now(
                    "the replicas that stay are still catching up; try again",
                ));
            }
            Ok(())
        })?;
        if self.replacing.is_some_and(|(a, b)| a == id || b == id) {
            self.replacing = None;
        }
        Ok(())
    }

    /// Puts `new` in the place of `old`: adds it, and once it is level swaps it in by one record
    /// that removes `old`. If `new` is a member already (an earlier attempt was cut short), goes
    /// on from there.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn replace_member(
        &mut self,
        now: Now,
        old: MemberId,
        new: MemberInfo,
    ) -> Result<(), ChangeError> {
        let Some(record) = self.record.as_ref().filter(|_| self.is_active()) else {
            return Err(ChangeError::NotActive);
        };
        let kind = record.member(old).map(|m| m.kind);
        if kind != Some(new.kind) || old == new.id {
            let why = "what is to be replaced is not a member, or not of the same kind";
            return Err(never(why));
        }
        if self.replacing.is_some_and(|r| r != (old, new.id)) {
            return Err(ChangeError::Busy);
        }
        let id = new.id;
        if record.member(id).is_none() {
            self.add_member(now, new)?;
        }
        self.replacing = Some((old, id));
        Ok(())
    }

    /// Who is being replaced by whom, if somebody is.
    pub fn replacing(&self) -> Option<(MemberId, MemberId)> {
        self.replacing
    }

    /// Takes the next step of a replacement, as soon as it can be taken.
    pub(super) fn tick_replacing(&mut self, now: Now) {
        let (Some((old, new)), Some(record)) = (self.replacing, &self.record) else {
            return;
        };
        let Some(info) = record.member(new) else {
            // It was abandoned, or never settled.
            self.replacing = None;
            return;
        };
        if record.member(old).is_none() {
            self.replacing = None;
        } else if info.kind == MemberKind::Witness || record.in_sync.contains(&new) {
            // It may have to wait for a majority; a later tick tries again.
            let _ = self.remove_member_of_replacement(now, old);
        } else if let Some(link) = self.link_of(new) {
            self.consider_join(now, link);
        }
    }

    fn remove_member_of_replacement(&mut self, now: Now, old: MemberId) -> Result<(), ChangeError> {
        let pair = self.replacing;
        let removed = self.remove_member(now, old);
        self.replacing = pair;
        removed
    }

    /// Members that the settled record does not list any more take nothing further. Their links
    /// stay until they are taken away: whoever was not there is told when it comes back.
    pub(super) fn let_go_of_removed(&mut self) {
        let Some(record) = &self.record else { return };
        let gone: Vec<LinkId> = self
            .links()
            .filter(|l| {
                let member = self.peer(*l).member;
                member.is_some_and(|m| record.member(m).is_none())
            })
            .collect();
        for link in gone {
            let peer = self.peer_mut(link);
            peer.stream = Stream::Off;
            peer.resync = None;
            // Nothing that was asked of it for others is answered any more.
            self.resync_failed(link, "its source is no member any more".into());
        }
    }

    /// Notes that the node of a member is called something else from now on; settled like any
    /// record. Links keep the names that they were made with.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn rename_node(&mut self, now: Now, id: MemberId, node: &str) -> Result<(), ChangeError> {
        self.change(now, |record| {
            let member = record.members.iter_mut().find(|m| m.id == id);
            member.ok_or_else(|| never("it is not a member"))?.node = node.to_owned();
            Ok(())
        })
    }

    /// Enlarges the volume; settled like any record.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn grow(&mut self, now: Now, blocks: u64) -> Result<(), ChangeError> {
        self.change(now, |record| {
            if blocks < record.blocks {
                return Err(never(format!(
                    "a volume of {} blocks cannot shrink",
                    record.blocks
                )));
            }
            record.blocks = blocks;
            Ok(())
        })
    }

    /// Whether no record is under way.
    pub fn record_settled(&self) -> bool {
        self.pending.is_none()
    }

    fn change(
        &mut self,
        now: Now,
        edit: impl FnOnce(&mut Record) -> Result<(), ChangeError>,
    ) -> Result<(), ChangeError> {
        if !self.is_active() {
            return Err(ChangeError::NotActive);
        }
        let (Some(record), None) = (&self.record, &self.pending) else {
            return Err(ChangeError::Busy);
        };
        let mut next = record.clone();
        edit(&mut next)?;
        next.version = self.next_version();
        if let Some(problem) = next.problem() {
            return Err(never(problem));
        }
        if !self.majority_answers(&next) {
            let why = "no majority of the members that there would be answers now";
            return Err(not_now(why));
        }
        self.propose(now, next, None);
        Ok(())
    }
}
