//! What each member keeps durably about its volume, and the one home of the rule who counts
//! (invariants 3, 6 and 11).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{MemberId, Millis, Position, Seq, VolumeId};
use crate::limits::{
    LEASE_RANGE_MS, MAX_GENERATION, MAX_IN_SYNC, MAX_MEMBERS, MAX_NAME, MAX_SEQ, MAX_VOLUME_BLOCKS,
};

/// Order of records: the generation number that wrote it, then a counter within that reign.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RecordVersion {
    /// Number of the generation that wrote the record; 0 for the one made at creation.
    pub generation: u64,
    /// Counts up within the generation.
    pub number: u64,
}

impl RecordVersion {
    /// As a place: what a witness, which has no history, shows to have made durable.
    pub fn position(self) -> Position {
        Position {
            generation: self.generation,
            seq: Seq(self.number),
        }
    }
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberKind {
    /// Keeps data and votes.
    Replica,
    /// Votes, keeps no data.
    Witness,
}

/// One member as the record lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Identity, minted when it was added.
    pub id: MemberId,
    /// Name of the node that hosts it (where to reach it is the configuration's business).
    pub node: String,
    /// Replica or witness.
    pub kind: MemberKind,
    /// How often its region had been opened when this record was written. A region that shows
    /// less was rolled back (design section 5) and neither votes nor counts.
    pub opens: u64,
    /// A position that it had made durable when this record was written, likewise. Of a witness:
    /// the version of a record that it had stored, see [`RecordVersion::position`].
    pub durable: Position,
}

/// The record of a volume: the one home of its membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Higher wins.
    pub version: RecordVersion,
    /// Whose record it is.
    pub volume: VolumeId,
    /// Size of the volume in blocks.
    pub blocks: u64,
    /// Everybody with a vote.
    pub members: Vec<MemberInfo>,
    /// The in-sync set; a subset of the replicas among `members`.
    pub in_sync: BTreeSet<MemberId>,
    /// The in-sync set never shrinks below this number of copies.
    pub min_copies: u8,
    /// Length of a lease.
    pub lease: Millis,
    /// Losses of completed but unflushed writes so far; part of NFS's write verifier
    /// (invariant 9).
    pub losses: u64,
}

/// Copies that must hold an operation before it counts as durable, with `n` replicas in sync
/// (the write quorum w of the design): two of three, both of two, one of one.
pub fn write_quorum(n: usize) -> usize {
    n.div_ceil(2).max(usize::from(n == 2) * 2)
}

/// In-sync replicas that must be heard so that at least one of them holds everything that was
/// acknowledged as durable: n - w + 1.
pub fn read_quorum(n: usize) -> usize {
    n - write_quorum(n) + 1
}

impl Record {
    /// Why the record cannot be believed, if it cannot: every number from disk or network is
    /// checked before use.
    pub fn problem(&self) -> Option<&'static str> {
        let ids: BTreeSet<_> = self.members.iter().map(|m| m.id).collect();
        let replicas: BTreeSet<_> = self.replicas().map(|m| m.id).collect();
        if self.members.is_empty() || self.members.len() > MAX_MEMBERS {
            Some("number of members out of range")
        } else if ids.len() != self.members.len() {
            Some("a member is listed twice")
        } else if self
            .members
            .iter()
            .any(|m| m.node.is_empty() || m.node.len() > MAX_NAME)
        {
            Some("a node name is empty or too long")
        } else if self.in_sync.is_empty() || self.in_sync.len() > MAX_IN_SYNC {
            Some("size of the in-sync set out of range")
        } else if !self.in_sync.is_subset(&replicas) {
            Some("the in-sync set names somebody who is not a replica")
        } else if self.blocks == 0 || self.blocks > MAX_VOLUME_BLOCKS {
            Some("size of the volume out of range")
        } else if !LEASE_RANGE_MS.contains(&self.lease.0) {
            Some("lease length out of range")
        } else if self.min_copies == 0 || usize::from(self.min_copies) > MAX_IN_SYNC {
            Some("least number of copies out of range")
        } else if !self.numbers_in_range() {
            Some("a generation, place or counter out of range")
        } else {
            None
        }
    }

    fn numbers_in_range(&self) -> bool {
        let version = self.version.position();
        let places = self.members.iter().map(|m| m.durable).chain([version]);
        let opens = self.members.iter().map(|m| m.opens);
        places
            .into_iter()
            .all(|p| p.generation <= MAX_GENERATION && p.seq.0 <= MAX_SEQ)
            && opens.chain([self.losses]).all(|n| n <= MAX_SEQ)
    }

    /// The members that keep data.
    pub fn replicas(&self) -> impl Iterator<Item = &MemberInfo> {
        self.members
            .iter()
            .filter(|m| m.kind == MemberKind::Replica)
    }

    /// The member with this id.
    pub fn member(&self, id: MemberId) -> Option<&MemberInfo> {
        self.members.iter().find(|m| m.id == id)
    }

    /// Whether `heard` is a majority of the members.
    pub fn is_majority(&self, heard: &BTreeSet<MemberId>) -> bool {
        let n = self
            .members
            .iter()
            .filter(|m| heard.contains(&m.id))
            .count();
        n > self.members.len() / 2
    }

    /// Whether the in-sync replicas in `heard` must include one that holds everything durable.
    pub fn can_read_all(&self, heard: &BTreeSet<MemberId>) -> bool {
        self.in_sync.intersection(heard).count() >= read_quorum(self.in_sync.len())
    }

    /// Whether fewer copies are in sync than the policy asks for. An activation may come to that;
    /// a serving upstairs never shrinks the set to it.
    pub fn below_policy(&self) -> bool {
        self.in_sync.len() < usize::from(self.min_copies)
    }

    /// The greatest value that a write quorum of the in-sync set has reached, given what each
    /// has reached (`None`: unknown, counts as nothing).
    pub fn quorum_of<T: Ord + Copy + Default>(&self, reached: impl Fn(MemberId) -> Option<T>) -> T {
        let mut all: Vec<T> = self
            .in_sync
            .iter()
            .map(|id| reached(*id).unwrap_or_default())
            .collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.get(write_quorum(all.len()).wrapping_sub(1))
            .copied()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_are_those_of_the_design() {
        // n, w, n-w+1
        for (n, w, r) in [(1, 1, 1), (2, 2, 1), (3, 2, 2)] {
            assert_eq!((write_quorum(n), read_quorum(n)), (w, r), "{n} in sync");
        }
    }

    #[test]
    fn the_quorum_position_is_the_wth_highest() {
        let ids: Vec<_> = (1..=3).map(|i| MemberId::from_bytes([i; 16])).collect();
        let mut r = sample(&ids);
        let pos = [10u64, 7, 3];
        let at = |id: MemberId| Some(pos[usize::from(id.bytes()[0]) - 1]);
        assert_eq!(r.quorum_of(at), 7);
        r.in_sync.remove(&ids[0]);
        assert_eq!(r.quorum_of(at), 3, "both of two");
        r.in_sync.remove(&ids[1]);
        assert_eq!(r.quorum_of(at), 3);
        assert_eq!(r.quorum_of(|_| None::<u64>), 0);
    }

    fn sample(ids: &[MemberId]) -> Record {
        Record {
            version: RecordVersion::default(),
            volume: VolumeId::from_bytes([7; 16]),
            blocks: 1,
            members: ids
                .iter()
                .map(|id| MemberInfo {
                    id: *id,
                    node: "n".into(),
                    kind: MemberKind::Replica,
                    opens: 0,
                    durable: Position::default(),
                })
                .collect(),
            in_sync: ids.iter().copied().collect(),
            min_copies: 2,
            lease: Millis(2000),
            losses: 0,
        }
    }
}
