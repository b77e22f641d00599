//! Members that come, go, lie or were rolled back: stories around the record and the claims, each
//! of a bug that was there.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use common::{World, id, record};
use trivet_protocol::message::{DataState, Refusal, Reply, Request};
use trivet_protocol::{GenerationTable, MemberInfo, MemberKind, Position, RecordVersion, Seq};
use trivet_replica::upstairs::{Effect, Notice};

fn with_witness(w: &mut World, i: usize) {
    w.fakes[i].kind = MemberKind::Witness;
    w.fakes[i].data = DataState::None;
    w.fakes[i].table = GenerationTable::default();
    w.fakes[i].durable = Seq(0);
    for f in &mut w.fakes {
        f.record.members[i].kind = MemberKind::Witness;
        f.record.in_sync.remove(&id(i as u8));
    }
}

fn handed_back(w: &World, i: usize) -> usize {
    let back = |r: &&Request| matches!(r, Request::HandBack);
    w.fakes[i].seen.iter().filter(back).count()
}

/// The best log no longer holds an entry (written in place and overwritten since) that a replica
/// which was away needs: each attempt fetched it, was refused and started over, for ever.
#[test]
fn an_entry_that_left_the_best_log_keeps_the_volume_from_activating() {
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 12)], &[(1, 11)], &[(1, 8)]]);
    w.fakes[0].not_in_log = 10..=10;
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(1000);
    assert!(w.up.is_active(), "{:?}", w.effects);
    assert_eq!(w.up.last(), Seq(12));
    // The one that lacks it was left out and comes back by a resync.
    let resynced = w.fakes[2]
        .seen
        .iter()
        .any(|r| matches!(r, Request::BeginResync { .. }));
    assert!(resynced);
    w.tick(500);
    assert_eq!(w.up.record().unwrap().in_sync.len(), 3);
}

/// A log full of what all have, which nobody had said is committed, could not take the rest: the
/// leveling waited for it for ever.
#[test]
fn leveling_says_what_a_quorum_has_durably() {
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 12)], &[(1, 12)], &[(1, 9)]]);
    w.fakes[2].syncs = false;
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(900);
    assert!(!w.up.is_active());
    assert_eq!(w.fakes[2].commit, Seq(12), "told with a renewal");
}

/// A claim was under way when the volume was handed back: its promise had to be waited out.
#[test]
fn a_claim_granted_after_the_hand_back_is_handed_back_too() {
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    w.fakes[2].silent = |r| matches!(r, Request::Claim { .. });
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(400);
    assert!(w.up.is_active());
    w.up.hand_back(w.now);
    w.pass();
    assert!(w.up.handing_back(), "a claim is under way");
    w.fakes[2].promise = w.up.generation();
    let welcome = World::welcome(&w.fakes[2]);
    let claims: Vec<u64> = w.fakes[2].kept.iter().map(|k| k.0).collect();
    assert!(!claims.is_empty());
    for claim in claims {
        w.reply(2, claim, &Reply::Granted(welcome.clone()));
        w.pass();
    }
    assert!(handed_back(&w, 2) > 0);
    assert!(!w.up.handing_back());
}

/// Deposed: what the others promised us kept them from the one who won.
#[test]
fn a_deposed_upstairs_hands_its_promises_back() {
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    w.fakes[1].fenced = Some(60);
    w.fakes[2].fenced = Some(60);
    w.tick(1000);
    assert!(!w.up.is_active());
    assert_eq!(handed_back(&w, 0), 1);
}

/// Numbers near 2^64 in an answer overflowed, or became the next generation, from which none could
/// follow.
#[test]
fn an_answer_with_impossible_numbers_is_not_believed() {
    type Lie = fn(&mut trivet_protocol::message::Welcome);
    let lies: [(&str, Lie); 6] = [
        ("promise", |w| w.promise.number = u64::MAX),
        ("record", |w| w.record.version.generation = u64::MAX),
        ("durable", |w| w.durable.seq = Seq(u64::MAX)),
        ("opens", |w| w.opens = u64::MAX),
        ("lease", |w| w.lease_left.0 = u64::MAX),
        ("mixed", |w| w.data = DataState::Mixed(Seq(u64::MAX))),
    ];
    for (what, lie) in lies {
        let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
        w.fakes[2].welcomes = lie;
        for i in 0..3 {
            w.connect(i);
        }
        w.activate();
        w.tick(600);
        assert!(w.up.is_active(), "{what}");
        assert!(w.up.generation().number < 10, "{what}");
        assert!(!w.up.takes_part(id(2)), "{what} was believed");
    }
}

/// A rolled-back witness does not know of a newer record: what it promised since is forgotten. It
/// counted for the lease, and for records, of whoever serves.
#[test]
fn a_rolled_back_witness_counts_neither_for_the_lease_nor_for_a_record() {
    let mut w = World::new(&record(3, &[0, 1]), &[&[(1, 9)], &[(1, 9)], &[]]);
    with_witness(&mut w, 2);
    let stored = Position {
        generation: 1,
        seq: Seq(0),
    };
    for i in 0..2 {
        w.fakes[i].record.members[2].durable = stored;
    }
    w.fakes[2].record.version = RecordVersion::default();
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(600);
    assert!(w.up.is_active(), "two of three are there");
    let told = |e: &Effect| match e {
        Effect::Notice(Notice::Unusable { member, .. }) => *member == id(2),
        _ => false,
    };
    assert!(w.effects.iter().any(told));
    // Now one replica goes: what is left is one replica and a witness that does not count.
    w.lose(1);
    w.tick(3000);
    assert!(!w.up.lease_valid(w.now), "a lease from one of three");
    assert_eq!(
        w.up.record().unwrap().in_sync.len(),
        2,
        "nobody settled a smaller set"
    );
}

/// Two replicas and the policy of two copies: one fences us, the other is there but its history can
/// no longer be continued from memory, and may not leave the set. The new reign waited for one of
/// them to have everything durably, which none could; callers waited for ever.
#[test]
fn a_fenced_replica_holds_up_a_new_reign_for_ever() {
    let mut r = record(3, &[0, 1]);
    r.min_copies = 2;
    let mut w = World::new(&r, &[&[(1, 9)], &[(1, 9)], &[]]);
    with_witness(&mut w, 2);
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    assert!(w.up.is_active());
    let reign = w.up.generation().number;
    // The second one comes back with a history that goes on where nobody else's does.
    w.fakes[0].syncs = false;
    w.fakes[1].syncs = false;
    w.submit();
    w.lose(1);
    w.fakes[1].data = DataState::Damaged;
    w.connect(1);
    w.fakes[0].fenced = Some(60);
    w.tick(1500);
    let waiting = w.up.generation().number == reign;
    w.tick(25_000);
    assert!(waiting);
    let over = w.up.status(w.now).stopped.is_some() || w.up.generation().number > reign;
    assert!(over, "still waiting: {:?}", w.up.status(w.now));
}

/// Another region answers where one was: what the old one had made durable is not the new one's.
#[test]
fn what_a_region_made_durable_is_counted_for_the_one_that_took_its_place() {
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    w.submit();
    w.tick(100);
    w.lose(2);
    w.fakes[2].id = id(7);
    w.fakes[2].table = GenerationTable::default();
    w.fakes[2].durable = Seq(0);
    w.connect(2);
    w.tick(50);
    let hello = w.fakes[2].seen.iter().rev().find_map(|r| match r {
        Request::Hello { member, .. } => Some(*member),
        _ => None,
    });
    assert_eq!(
        hello,
        Some(Some(id(2))),
        "asks for the one that it knew first"
    );
    // The real member refuses that; the fake one answers as whom it is.
    assert!(w.up.takes_part(id(7)), "the new one is heard");
    let members = w.up.status(w.now).members;
    let old = members.iter().find(|m| m.id == id(2)).unwrap();
    assert!(!old.up, "the old one is gone");
    let info = MemberInfo {
        id: id(7),
        node: "n2".into(),
        kind: MemberKind::Replica,
        opens: 0,
        durable: Position::default(),
    };
    let now = w.now;
    w.tick(2000);
    assert!(!w.up.record().unwrap().in_sync.contains(&id(2)));
    // Copied, but nothing of it is durable yet.
    w.fakes[2].syncs = false;
    w.up.replace_member(now, id(2), info).unwrap();
    w.pass();
    w.tick(1000);
    let joined = |w: &World| w.up.record().unwrap().in_sync.contains(&id(7));
    assert!(!joined(&w), "by what the old one had made durable");
    let last = w.up.last().0;
    w.durable(2, last);
    w.pass();
    w.tick(1000);
    let record = w.up.record().unwrap();
    assert!(
        record.member(id(2)).is_none() && record.in_sync.contains(&id(7)),
        "{record:?}"
    );
}

/// The old region is not there any more, and the server says so: the link asks who is.
#[test]
fn a_link_that_expects_the_old_region_for_ever() {
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    w.lose(2);
    w.fakes[2].id = id(7);
    w.fakes[2].silent = |r| !matches!(r, Request::Hello { member: None, .. });
    w.connect(2);
    let (request, _) = w.fakes[2].kept.remove(0);
    let refusal = Refusal::NotHere("another lives here".into());
    w.reply(2, request, &Reply::Refused(refusal));
    w.pass();
    w.tick(50);
    let asked = |r: &&Request| matches!(r, Request::Hello { member: None, .. });
    let times = w.fakes[2].seen.iter().filter(asked).count();
    assert!(times >= 2, "at the first connection, and now");
}

/// A change that no majority could settle would take the lease away for good: it is refused before
/// it is sent.
#[test]
fn a_member_more_that_leaves_no_majority_is_refused() {
    let mut w = World::new(&record(3, &[0, 1]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)], &[]]);
    w.fakes[3].id = id(3);
    for i in [0, 1, 3] {
        w.connect(i);
    }
    w.activate();
    w.tick(500);
    let info = |i: u8| MemberInfo {
        id: id(i),
        node: format!("n{i}"),
        kind: MemberKind::Replica,
        opens: 0,
        durable: Position::default(),
    };
    let now = w.now;
    let e = w.up.add_member(now, info(8)).unwrap_err();
    assert!(e.to_string().contains("does not answer"), "{e}");
    // Three of four are needed, and there.
    w.up.add_member(now, info(3)).unwrap();
    w.pass();
    w.tick(500);
    assert!(w.up.record_settled() && w.up.lease_valid(w.now));
    w.lose(3);
    let now = w.now;
    // Four members, two of them away: without one of the others one of two would be left.
    let e = w.up.remove_member(now, id(0)).unwrap_err();
    assert!(e.to_string().contains("majority"), "{e}");
}

/// The one to be replaced was out of the set, and three others were in it: the new one was put
/// there as the fourth, by a record that every member refused, for ever.
#[test]
fn a_replacement_of_one_out_of_the_set_makes_four_in_it() {
    let mut w = World::new(
        &record(4, &[0, 1, 2]),
        &[&[(1, 9)], &[(1, 9)], &[(1, 9)], &[(1, 9)], &[]],
    );
    for i in [0, 1, 2, 4] {
        w.connect(i);
    }
    w.activate();
    w.tick(500);
    let info = MemberInfo {
        id: id(4),
        node: "n4".into(),
        kind: MemberKind::Replica,
        opens: 0,
        durable: Position::default(),
    };
    let now = w.now;
    w.up.replace_member(now, id(3), info).unwrap();
    w.pass();
    w.tick(2000);
    let record = w.up.record().unwrap();
    assert!(w.up.record_settled() && record.problem().is_none());
    assert!(record.member(id(3)).is_none() && record.member(id(4)).is_some());
    assert_eq!(record.in_sync.len(), 3);
}
