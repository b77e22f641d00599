//! Who counts: the record, changes of it, and the commit position (invariants 3 and 6).
//!
//! From the moment a new record is sent until a majority of members stored it, an
//! acknowledgement needs the quorum of the old set *and* of the new one. There is no taking back,
//! only a later record. Before a smaller set is proposed, every replica that stays is durable up
//! to the commit position.

use std::collections::BTreeSet;

use trivet_protocol::breaks::{self, Break};
use trivet_protocol::message::{DataState, Request, Tail, Welcome};
use trivet_protocol::{MemberId, MemberInfo, MemberKind, Now, Record, RecordVersion, Seq};

use super::{Ask, LinkId, Notice, Phase, Upstairs};

/// Said of a replica that was restored from a backup or a snapshot.
pub(super) const ROLLED_BACK: &str = "it was rolled back: it shows less than it had made durable";

/// A record that was sent and is not settled yet.
#[derive(Debug)]
pub struct Pending {
    /// The record.
    pub record: Record,
    /// Members that stored it.
    pub acks: BTreeSet<MemberId>,
    /// The list of members changes: majorities of both lists are needed.
    pub changes_members: bool,
    /// What people are told once it is settled.
    notice: Option<Notice>,
}

impl Upstairs {
    /// The members that count for durability now: the settled set, and the pending one.
    pub(super) fn all_sets(&self) -> impl Iterator<Item = MemberId> + use<'_> {
        let settled = self.record.iter().flat_map(|r| r.in_sync.iter().copied());
        let pending = self
            .pending
            .iter()
            .flat_map(|p| p.record.in_sync.iter().copied());
        let both: BTreeSet<MemberId> = settled.chain(pending).collect();
        both.into_iter()
    }

    fn in_set(&self, member: MemberId) -> bool {
        self.all_sets().any(|m| m == member)
    }

    /// The greatest place that is durable on a write quorum of every set that counts.
    pub(super) fn durable_position(&self) -> Seq {
        let reached = |id: MemberId| {
            let peer = self.peer(self.link_of(id)?);
            (peer.unusable.is_none()).then_some(peer.durable)
        };
        let Some(record) = &self.record else {
            return Seq::ZERO;
        };
        if breaks::on(Break::OutOfSyncCounted) {
            let mut all: Vec<Seq> = self.peers.iter().map(|p| p.durable).collect();
            all.sort_unstable();
            return all.into_iter().rev().nth(1).unwrap_or_default();
        }
        let settled = record.quorum_of(reached);
        match &self.pending {
            Some(p) if !breaks::on(Break::RecordCountedOnce) => {
                settled.min(p.record.quorum_of(reached))
            }
            _ => settled,
        }
    }

    /// Fewer copies are in sync than the policy asks for: writes are taken, and committed on those
    /// that there are, but no flush is answered until another replica has joined.
    pub(super) fn below_policy(&self) -> bool {
        let pending = self.pending.as_ref().map(|p| &p.record);
        [self.record.as_ref(), pending]
            .into_iter()
            .flatten()
            .any(Record::below_policy)
    }

    /// The newest record, settled or not: what members that join late are given.
    fn newest_record(&self) -> Option<&Record> {
        self.pending
            .as_ref()
            .map(|p| &p.record)
            .or(self.record.as_ref())
    }

    /// Whether what is heard here counts as a vote: one that was rolled back shows less than it had
    /// promised, and may have promised to others what it does not know of any more.
    pub(super) fn votes(&self, link: LinkId) -> bool {
        self.peer(link).unusable != Some(ROLLED_BACK)
    }

    /// Finds the rolled back among those that accepted the claim: neither their promise nor their
    /// word for a record counts in this reign.
    pub(super) fn note_rolled_back(&mut self) {
        let Some(record) = self.record.clone() else {
            return;
        };
        for link in self.links() {
            let Some((_, w)) = self.peer(link).welcome.clone() else {
                continue;
            };
            let info = record.member(w.member);
            if info.is_some_and(|m| self.unusable(m, &w) == Some(ROLLED_BACK)) {
                self.mark_unusable(link, w.member, ROLLED_BACK);
            }
        }
    }

    /// Sends a record to every member of the old list and of the new.
    pub(super) fn propose(&mut self, now: Now, mut record: Record, notice: Option<Notice>) {
        // Members would refuse it, and it could not be taken back: it must not be sent.
        if let Some(problem) = record.problem() {
            debug_assert!(false, "a record that nobody would store: {problem}");
            return;
        }
        self.last_record = now;
        for info in &mut record.members {
            let Some(link) = self.link_of(info.id) else {
                continue;
            };
            let peer = self.peer(link);
            if let Some((_, w)) = &peer.welcome {
                info.opens = info.opens.max(w.opens);
            }
            if let (MemberKind::Witness, Some(version)) = (info.kind, peer.recorded) {
                info.durable = info.durable.max(version.position());
            }
            if peer.unusable.is_none() && record.in_sync.contains(&info.id) {
                // Only what is committed: what is above may still be cut off by a successor.
                let seq = peer.durable.min(self.commit);
                if let Some(generation) = self.history.table().generation_of(seq) {
                    info.durable = info
                        .durable
                        .max(trivet_protocol::Position { generation, seq });
                }
            }
        }
        let old = self.record.as_ref();
        let ids = |r: &Record| r.members.iter().map(|m| m.id).collect::<BTreeSet<_>>();
        let changes_members = old.is_some_and(|old| ids(old) != ids(&record));
        let acks = BTreeSet::new();
        self.pending = Some(Pending {
            record,
            acks,
            changes_members,
            notice,
        });
        for link in self.links() {
            if self.peer(link).granted && self.votes(link) {
                self.put_record(now, link);
            }
        }
    }

    pub(super) fn put_record(&mut self, now: Now, link: LinkId) {
        if let Some(record) = self.newest_record().cloned() {
            self.ask(now, link, Ask::PutRecord, &Request::PutRecord(record));
        }
    }

    pub(super) fn on_recorded(&mut self, now: Now, link: LinkId, version: RecordVersion) {
        let votes = self.votes(link);
        let peer = self.peer_mut(link);
        peer.recorded = peer.recorded.max(Some(version));
        let (Some(member), Some(pending)) = (peer.member, &mut self.pending) else {
            return;
        };
        if pending.record.version != version || !votes {
            return;
        }
        pending.acks.insert(member);
        let settled = pending.record.is_majority(&pending.acks)
            && (!pending.changes_members
                || self
                    .record
                    .as_ref()
                    .is_none_or(|old| old.is_majority(&pending.acks)));
        if settled {
            self.settled(now);
        }
    }

    fn settled(&mut self, now: Now) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        self.record = Some(pending.record);
        self.let_go_of_removed();
        if let Some(notice) = pending.notice {
            self.notice(notice);
        }
        if matches!(self.phase, Phase::Activating(_)) {
            self.activated(now);
        }
        let single = self.record.as_ref().is_some_and(|r| r.in_sync.len() == 1);
        if single && !self.single_copy_told {
            self.notice(Notice::SingleCopy);
        }
        self.single_copy_told = single;
        self.advance(now);
        self.answer_flushes(now);
        self.release_history();
        for link in self.links() {
            self.consider_join(now, link);
            self.consider_resync(now, link);
        }
    }

    pub(super) fn next_version(&self) -> RecordVersion {
        let newest = self.newest_record().map(|r| r.version).unwrap_or_default();
        if newest.generation == self.generation.number {
            RecordVersion {
                number: newest.number + 1,
                ..newest
            }
        } else {
            RecordVersion {
                generation: self.generation.number,
                number: 0,
            }
        }
    }

    /// A replica that has accepted our claim while we are active: bring it in line.
    pub(super) fn integrate(&mut self, now: Now, link: LinkId, w: &Welcome) {
        let info = self.record.as_ref().and_then(|r| r.member(w.member));
        let info = info.cloned();
        let unusable = info.as_ref().and_then(|i| self.unusable(i, w));
        if unusable == Some(ROLLED_BACK) {
            // It is not made to look well by being given the newest record, either.
            return self.mark_unusable(link, w.member, ROLLED_BACK);
        }
        self.put_record(now, link);
        let Some(info) = info else { return };
        if info.kind == MemberKind::Witness {
            self.peer_mut(link).unusable = None;
            return;
        }
        if let Some(why) = unusable {
            return self.mark_unusable(link, w.member, why);
        }
        self.peer_mut(link).unusable = None;
        self.peer_mut(link).mixed = matches!(w.data, DataState::Mixed(_));
        if self.start_stream(now, link, w) {
            return;
        }
        // Its history cannot be continued from memory. In the set it cannot stay.
        self.consider_resync(now, link);
    }

    /// Whether a replica's data can be counted at all (design section 5): lost, rolled back,
    /// damaged.
    pub(super) fn unusable(&self, info: &MemberInfo, w: &Welcome) -> Option<&'static str> {
        if info.kind == MemberKind::Witness {
            let back = w.opens < info.opens || w.durable < info.durable;
            return (back && !breaks::on(Break::RolledBackCounts)).then_some(ROLLED_BACK);
        }
        if w.data == DataState::Damaged {
            // Outside the set it is no matter: it is compared whole and rebuilt.
            return self
                .record
                .as_ref()
                .is_none_or(|r| r.in_sync.contains(&w.member))
                .then_some("its log is damaged below what was synced");
        }
        let whole = matches!(w.data, DataState::Whole(_));
        let short = whole && w.durable < info.durable;
        // A log that ends in something unreadable lost its end to damage; one that ends well, or
        // a region opened fewer times than is known, is an old copy.
        let damaged = short && w.data == DataState::Whole(Tail::Unsure);
        let rolled_back = w.opens < info.opens || (short && !damaged);
        if rolled_back && !breaks::on(Break::RolledBackCounts) {
            return Some(ROLLED_BACK);
        }
        let in_record = self
            .record
            .as_ref()
            .is_none_or(|r| r.in_sync.contains(&w.member));
        if damaged && in_record && !breaks::on(Break::DamageTakenForTorn) {
            return Some("it lost the end of its log, which it had made durable");
        }
        // What it told us is durable must be there in the history that we continue.
        let link = self.link_of(w.member)?;
        let counted = self.peer(link).durable;
        let reaches = match w.data {
            DataState::Whole(_) => self
                .history
                .table()
                .common(&w.table)
                .is_none_or(|c| c >= counted),
            _ => true,
        };
        let in_set = self.in_set(w.member);
        if in_set && self.is_active() && !reaches && !breaks::on(Break::RolledBackCounts) {
            return Some("it lost what it had made durable");
        }
        if in_set && matches!(w.data, DataState::Mixed(_)) {
            return Some("it is in the middle of a resync though it was in sync");
        }
        None
    }

    /// What made a replica unusable in the set may not matter outside of it.
    pub(super) fn judge_again(&mut self, link: LinkId) {
        let peer = self.peer(link);
        let (Some(_), Some((_, w))) = (peer.unusable, &peer.welcome) else {
            return;
        };
        let Some(info) = self.record.as_ref().and_then(|r| r.member(w.member)) else {
            return;
        };
        if !self.in_set(w.member) && self.unusable(info, w).is_none() {
            self.peer_mut(link).unusable = None;
        }
    }

    pub(super) fn mark_unusable(&mut self, link: LinkId, member: MemberId, why: &'static str) {
        if self.peer(link).unusable.is_none() {
            self.notice(Notice::Unusable { member, why });
        }
        self.peer_mut(link).unusable = Some(why);
    }

    pub(super) fn tick_membership(&mut self, now: Now) {
        let last = self.last();
        for peer in &mut self.peers {
            if peer.up && peer.granted && peer.durable >= last {
                peer.progress = now;
            }
        }
        self.claim_late_ones(now);
        self.reset_hung(now);
        if self.pending.is_none() {
            self.consider_shrink(now);
        }
        if self.pending.is_none() {
            self.tick_replacing(now);
        }
        if self.pending.is_none() {
            self.refresh_record(now);
        }
    }

    /// Writes the positions reached and the openings seen into a new record from time to time, so
    /// that a replica restored from a backup is recognised (design section 5).
    fn refresh_record(&mut self, now: Now) {
        let Some(record) = &self.record else { return };
        let due = now.since(self.last_record) >= self.config.limits.record_refresh;
        let known = |m: &MemberInfo| {
            let peer = self.link_of(m.id).map(|l| self.peer(l));
            let opens = peer
                .and_then(|p| p.welcome.as_ref())
                .map_or(0, |(_, w)| w.opens);
            let behind = record.in_sync.contains(&m.id) && m.durable.seq < self.commit;
            let recorded = peer.and_then(|p| p.recorded).unwrap_or_default();
            let newer = m.kind == MemberKind::Witness && recorded.generation > m.durable.generation;
            opens > m.opens || behind || newer
        };
        if !due || !record.members.iter().any(known) {
            return;
        }
        let mut next = record.clone();
        next.version = self.next_version();
        self.propose(now, next, None);
    }

    /// Why a replica of the set makes no progress, if it makes none.
    pub(super) fn stalled(&self, now: Now, member: MemberId) -> Option<&'static str> {
        let bound = self.config.limits.stall;
        let Some(link) = self.link_of(member) else {
            let began = self.active_since();
            return (now.since(began) > bound).then_some("it was not heard of");
        };
        let peer = self.peer(link);
        if let Some(why) = peer.unusable {
            return Some(why);
        }
        let quiet = now.since(peer.progress.max(self.serving_since)) > bound;
        match peer.up {
            false if quiet => Some("it cannot be reached"),
            true if !peer.granted && quiet => Some("it does not take part"),
            true if peer.granted && peer.stream == super::peer::Stream::Off => {
                Some("its history cannot be continued from memory")
            }
            true if peer.durable < peer.sync_sent.max(peer.sent) && quiet => {
                Some("it makes no progress")
            }
            _ => None,
        }
    }

    fn consider_shrink(&mut self, now: Now) {
        let Some(record) = self.record.clone() else {
            return;
        };
        if record.in_sync.len() <= usize::from(record.min_copies) {
            return;
        }
        let stalled: Vec<_> = record
            .in_sync
            .iter()
            .filter_map(|m| Some((*m, self.stalled(now, *m)?)))
            .collect();
        // Where those that would stay make no progress either (a disk that all share, our own
        // network), a smaller set would help nobody.
        let [(member, why)] = stalled[..] else {
            return;
        };
        let mut smaller = record;
        smaller.in_sync.remove(&member);
        let level = self.level_without(member);
        if !level && !breaks::on(Break::ShrinkBeforeLevel) {
            // The others are being synced all the time: a later tick finds them level.
            return;
        }
        smaller.version = self.next_version();
        self.propose(now, smaller, Some(Notice::LeftSet { member, why }));
    }

    /// Whether every replica of the set but this one is durable up to the commit position.
    pub(super) fn level_without(&self, gone: MemberId) -> bool {
        self.record
            .iter()
            .flat_map(|r| r.in_sync.iter())
            .filter(|m| **m != gone)
            .all(|m| {
                self.link_of(*m).is_some_and(|l| {
                    let peer = self.peer(l);
                    peer.unusable.is_none() && peer.durable >= self.commit
                })
            })
    }

    pub(super) fn on_removed(&mut self, now: Now, link: LinkId, record: Record) {
        // A newer record than ours: we are told of it, and start over if still activating.
        let why = format!("removed from the volume by record {:?}", record.version);
        self.peer_mut(link).refused = Some(why);
        self.activation_saw_record(now, &record);
    }
}
