//! Who takes over, and when: a pure function of what was heard.
//!
//! Nothing here is a matter of safety: whatever it decides, the members grant a claim only when
//! their promises have run out (invariants 1 and 2). It is a matter of speed (no waiting for what
//! is known) and of peace (no two candidates at once): the candidates are ranked alike on all
//! nodes, and each waits its turn.

use std::collections::BTreeSet;
use std::time::Duration;

use trivet_protocol::record::read_quorum;
use trivet_protocol::{MemberId, MemberKind, Record, RecordVersion};

use crate::messages::{MemberReport, Standing};

/// A candidate of rank n waits n times this, so that one of rank n-1 is heard of first.
pub const TURN: Duration = Duration::from_millis(500);
/// A report older than this says nothing about now.
pub const FRESH: Duration = Duration::from_millis(1500);

/// A node, as far as this question goes.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name.
    pub node: String,
    /// What it is for the volume.
    pub standing: Standing,
    /// Out of service.
    pub drained: bool,
    /// The members that it keeps.
    pub members: Vec<MemberReport>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Somebody is active, or about to be.
    Leave,
    /// A claim could not succeed now, and why.
    Hopeless(String),
    /// This node's turn comes when the promises have been out for so long.
    After(Duration),
}

/// Whether `me` should claim. `heard` are the nodes with fresh reports (this one among them), in
/// the order of the configuration; `prefer` names the better ones.
pub fn decide(me: &str, heard: &[Candidate], prefer: &[String]) -> Decision {
    // Who says that it is active is believed only as far as the members bear it out: its report may
    // be older than its death.
    let busy = |c: &Candidate| matches!(c.standing, Standing::Promoting | Standing::Demoting);
    let own = |c: &Candidate| c.node == me && c.standing == Standing::Active;
    if heard.iter().any(|c| busy(c) || own(c)) {
        return Decision::Leave;
    }
    let members = || heard.iter().flat_map(|c| &c.members);
    let voters = || members().filter(|m| !m.removed);
    let Some(record) = voters().map(|m| &m.record).max_by_key(|r| r.version) else {
        return Decision::Hopeless("no member is heard".into());
    };
    if record.version == RecordVersion::default() && voters().count() < record.members.len() {
        return Decision::Hopeless("the volume is being made".into());
    }
    let free: BTreeSet<MemberId> = voters()
        .filter(|m| m.lease_left_ms == 0)
        .map(|m| m.id)
        .collect();
    if !record.is_majority(&free) {
        let held = voters().find(|m| m.lease_left_ms > 0);
        return match held {
            Some(_) => Decision::Leave,
            None => Decision::Hopeless("no majority of the members is heard".into()),
        };
    }
    let usable = members()
        .filter(|m| record.in_sync.contains(&m.id) && m.unusable.is_none() && !m.removed)
        .count();
    if usable < read_quorum(record.in_sync.len()) {
        return Decision::Hopeless("too few in-sync replicas are heard".into());
    }
    match rank(me, heard, prefer, record) {
        Some(rank) => Decision::After(TURN * u32::try_from(rank).unwrap_or(u32::MAX)),
        None => Decision::Leave,
    }
}

fn rank(me: &str, heard: &[Candidate], prefer: &[String], record: &Record) -> Option<usize> {
    let mut order: Vec<(bool, usize, usize, &str)> = heard
        .iter()
        .enumerate()
        .filter(|(_, c)| c.standing == Standing::Standby && !c.drained)
        .map(|(i, c)| {
            let near = c.members.iter().any(|m| {
                m.kind == MemberKind::Replica
                    && record.in_sync.contains(&m.id)
                    && m.unusable.is_none()
            });
            let preferred = prefer.iter().position(|p| *p == c.node);
            (!near, preferred.unwrap_or(usize::MAX), i, c.node.as_str())
        })
        .collect();
    order.sort_unstable();
    order.iter().position(|c| c.3 == me)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_protocol::{MemberInfo, Millis, Position, Seq, VolumeId};

    fn id(n: u8) -> MemberId {
        MemberId::from_bytes([n; 16])
    }

    fn record() -> Record {
        let member = |n: u8| MemberInfo {
            id: id(n),
            node: format!("n{n}"),
            kind: MemberKind::Replica,
            opens: 0,
            durable: Position::default(),
        };
        Record {
            version: RecordVersion {
                generation: 1,
                number: 1,
            },
            volume: VolumeId::from_bytes([9; 16]),
            blocks: 1,
            members: vec![member(0), member(1), member(2)],
            in_sync: [id(0), id(1), id(2)].into(),
            min_copies: 2,
            lease: Millis(2000),
            losses: 0,
        }
    }

    fn node(n: u8, lease_left_ms: u64) -> Candidate {
        Candidate {
            node: format!("n{n}"),
            standing: Standing::Standby,
            drained: false,
            members: vec![MemberReport {
                id: id(n),
                kind: MemberKind::Replica,
                promise: 0,
                holder: "n0".into(),
                lease_left_ms,
                held_for_ms: 0,
                removed: false,
                record: record(),
                durable: Seq(0),
                unusable: None,
            }],
        }
    }

    #[test]
    fn while_a_promise_runs_at_a_majority_nobody_claims() {
        let heard = [node(1, 700), node(2, 0)];
        assert_eq!(decide("n1", &heard, &[]), Decision::Leave);
        let heard = [node(0, 1), node(1, 0), node(2, 0)];
        assert_eq!(decide("n1", &heard, &[]), Decision::After(TURN));
    }

    #[test]
    fn each_candidate_waits_its_turn_and_all_agree_on_it() {
        let heard = [node(1, 0), node(2, 0)];
        assert_eq!(decide("n1", &heard, &[]), Decision::After(Duration::ZERO));
        assert_eq!(decide("n2", &heard, &[]), Decision::After(TURN));
        let prefer = ["n2".to_owned()];
        assert_eq!(decide("n1", &heard, &prefer), Decision::After(TURN));
        let mut heard = heard;
        heard[1].members[0].unusable = Some("mixed".into());
        assert!(matches!(
            decide("n1", &heard, &prefer),
            Decision::Hopeless(_)
        ));
        let heard = [node(0, 0), heard[0].clone(), heard[1].clone()];
        // A replica that is out of date is worse than one that nobody prefers.
        assert_eq!(decide("n2", &heard, &prefer), Decision::After(TURN * 2));
    }

    #[test]
    fn a_volume_that_is_being_made_is_left_alone() {
        let mut heard = [node(0, 0), node(1, 0), node(2, 0)];
        for h in &mut heard {
            h.members[0].record.version = RecordVersion::default();
        }
        assert_eq!(decide("n0", &heard, &[]), Decision::After(Duration::ZERO));
        let two = &heard[..2];
        assert!(matches!(decide("n0", two, &[]), Decision::Hopeless(_)));
    }

    #[test]
    fn without_a_majority_or_with_somebody_at_it_nothing_is_tried() {
        let alone = [node(1, 0)];
        assert!(matches!(decide("n1", &alone, &[]), Decision::Hopeless(_)));
        for busy in [Standing::Promoting, Standing::Demoting] {
            let mut heard = [node(1, 0), node(2, 0)];
            heard[1].standing = busy;
            assert_eq!(decide("n1", &heard, &[]), Decision::Leave);
        }
        // The last report of a daemon that died, after its lease was handed back.
        let mut heard = [node(0, 0), node(1, 0), node(2, 0)];
        heard[0].standing = Standing::Active;
        assert_eq!(decide("n1", &heard, &[]), Decision::After(Duration::ZERO));
        heard[1].members[0].lease_left_ms = 1900;
        heard[2].members[0].lease_left_ms = 1900;
        assert_eq!(decide("n1", &heard, &[]), Decision::Leave);
        let mut heard = [node(1, 0), node(2, 0)];
        heard[0].drained = true;
        assert_eq!(decide("n1", &heard, &[]), Decision::Leave, "drained");
        assert_eq!(decide("n2", &heard, &[]), Decision::After(Duration::ZERO));
    }
}
