//! Interleavings that once lost data, served stale reads or stood still: each test tells the story
//! of its bug and fails while that is there. A hand-made world of frames around the upstairs.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use common::{Fake, World, id, record};
use trivet_protocol::message::{DataState, Refusal, Reply, Request};
use trivet_protocol::{GenerationTable, Seq};
use trivet_replica::upstairs::{Effect, Submitted};

/// A member that was removed and still runs answers every question with Removed.
#[test]
fn a_removed_member_that_still_answers_keeps_the_volume_from_activating() {
    let mut w = World::new(
        &record(3, &[0, 1, 2]),
        &[&[(1, 9)], &[(1, 9)], &[(1, 9)], &[]],
    );
    w.fakes[3].removed = true;
    for i in [3, 0, 1, 2] {
        w.connect(i);
    }
    w.activate();
    w.tick(500);
    assert!(
        w.up.is_active(),
        "{} hellos to the removed one",
        w.fakes[3].seen.len()
    );
}

/// The answer to a listing that an earlier resync of the same replica had asked for.
#[test]
fn a_listing_of_an_earlier_resync_is_taken_for_the_present_ones() {
    let mut w = World::new(&record(3, &[0, 1]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    w.fakes[2].data = DataState::Mixed(Seq(1));
    for i in 0..3 {
        w.fakes[i].silent = |r| matches!(r, Request::Changed { .. });
        w.connect(i);
    }
    w.fakes[2].silent = |_| false;
    w.activate();
    w.tick(300);
    // The source works on the second page when the target's connection breaks and comes back.
    let page = |f: &Fake| {
        let last = f
            .kept
            .iter()
            .rposition(|k| matches!(k.1, Request::Changed { .. }));
        last.map(|l| f.kept[l].0)
    };
    let source = (0..2).find(|i| page(&w.fakes[*i]).is_some()).unwrap();
    let first = page(&w.fakes[source]).unwrap();
    let ranges = vec![];
    w.reply(
        source,
        first,
        &Reply::Changed {
            ranges,
            next: Some(500),
        },
    );
    w.pass();
    let second = page(&w.fakes[source]).unwrap();
    assert_ne!(first, second);
    w.lose(2);
    w.connect(2);
    w.tick(50);
    let third = page(&w.fakes[source]).unwrap();
    assert_ne!(second, third, "listed anew from the beginning");
    // Now the answer to the old question comes (pages from 500 on: nothing), and only then, after
    // the target has listed too, the one to the new question.
    w.reply(
        source,
        second,
        &Reply::Changed {
            ranges: vec![],
            next: None,
        },
    );
    w.pass();
    w.tick(50);
    let finished = w.fakes[2]
        .seen
        .iter()
        .any(|r| matches!(r, Request::FinishResync));
    assert!(
        !finished,
        "finished although blocks 0 to 500 were never listed"
    );
}

/// What a replica had made durable of a history that then lost must not count for the one that
/// was chosen instead.
#[test]
fn durable_of_a_history_that_lost_is_counted() {
    // n0 has three more entries, of which nobody else knows.
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 12)], &[(1, 9)], &[(1, 9)]]);
    w.fakes[0].silent = |r| matches!(r, Request::Fetch { .. });
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(100);
    // Leveling from n0, which goes away before it has given anything.
    w.lose(0);
    w.tick(1000);
    assert!(w.up.is_active());
    assert_eq!(w.up.last(), Seq(9));
    // n0 comes back, is cut to 9, and joins; from here on nobody syncs.
    w.connect(0);
    assert_eq!(w.fakes[0].durable, Seq(9));
    w.tick(50);
    assert_eq!(w.up.record().unwrap().in_sync.len(), 3);
    (0..3).for_each(|i| w.fakes[i].syncs = false);
    let durable = |w: &World| {
        let s = w.up.status(w.now);
        s.members.iter().find(|m| m.id == id(0)).unwrap().durable
    };
    w.submit();
    w.submit();
    // One replica, n1, syncs; two must.
    w.durable(1, 11);
    w.pass();
    assert!(
        w.up.commit() <= Seq(9),
        "commit {} with one copy; n0 is said to be durable to {}",
        w.up.commit(),
        durable(&w)
    );
}

/// While the promises are handed back for a new reign somebody else may serve and write; the
/// upstairs must not then go on for callers (a file system with caches) that know nothing of it.
#[test]
fn a_new_reign_goes_on_after_somebody_else_has_served_and_written() {
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    assert!(w.up.is_active());
    w.submit();
    w.tick(50);
    let (before, reign) = (w.up.last(), w.up.generation().number);
    w.fakes[2].fenced = Some(60);
    w.fakes[0].foreign = true;
    w.fakes[1].foreign = true;
    w.tick(3000);
    assert!(
        !(w.up.is_active() && w.up.generation().number > reign && w.up.last() > before),
        "serves on in generation {} with {} operations, {} of which somebody else wrote",
        w.up.generation().number,
        w.up.last(),
        w.up.last().0 - before.0
    );
}

/// A replica of the set whose connection works and which refuses every append (a full pool).
#[test]
fn a_replica_that_refuses_everything_on_each_new_connection_never_leaves_the_set() {
    refuses(true);
}

/// The control: passes.
#[test]
fn a_replica_that_says_nothing_leaves_the_set() {
    refuses(false);
}

fn refuses(flaps: bool) {
    let mut r = record(3, &[0, 1, 2]);
    r.min_copies = 2;
    let mut w = World::new(&r, &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    w.fakes[2].syncs = false;
    w.submit();
    for _ in 0..60 {
        // As the driver does: a refusal resets the connection, 100 ms later there is a new one.
        let table = GenerationTable::from_parts(Seq(0), vec![(1, Seq(9))]).unwrap();
        w.fakes[2].table = table;
        if flaps {
            w.reply(2, 0, &Reply::Refused(Refusal::NoSpace("pool".into())));
            w.pass();
            w.lose(2);
        }
        w.tick(100);
        if flaps {
            w.connect(2);
        }
        w.tick(50);
        w.submit();
    }
    let set = &w.up.record().unwrap().in_sync;
    assert!(
        !set.contains(&id(2)),
        "no progress for 9 s and still in the set"
    );
}

/// A connection to somebody who has no part in the volume flaps; the record is being stored.
#[test]
fn a_flapping_stranger_keeps_the_record_from_being_settled() {
    settle_slowly(true);
}

/// The control: passes.
#[test]
fn a_record_that_is_stored_slowly_is_settled() {
    settle_slowly(false);
}

fn settle_slowly(flaps: bool) {
    let mut w = World::new(
        &record(3, &[0, 1, 2]),
        &[&[(1, 9)], &[(1, 9)], &[(1, 9)], &[]],
    );
    w.fakes[3].silent = |_| true;
    for i in 0..3 {
        w.fakes[i].silent = |r| matches!(r, Request::PutRecord(_));
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    // Members take 150 ms to store a record; the stranger is there every 100 ms.
    for _ in 0..40 {
        let kept: Vec<(usize, (u64, Request))> = (0..3)
            .flat_map(|i| {
                std::mem::take(&mut w.fakes[i].kept)
                    .into_iter()
                    .map(move |k| (i, k))
            })
            .collect();
        if flaps {
            w.connect(3);
        }
        w.tick(100);
        if flaps {
            w.lose(3);
        }
        w.tick(50);
        for (i, (request, r)) in kept {
            if let Request::PutRecord(r) = r {
                w.reply(i, request, &Reply::Recorded(r.version));
                w.pass();
            }
        }
    }
    assert!(w.up.is_active(), "not active after 6 s");
}

/// Three replicas, the last of which makes nothing durable, until there is no room for more writes.
fn full_for_one_that_lags() -> (World, Seq) {
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(50);
    w.fakes[2].syncs = false;
    let mut last = Seq(0);
    let full = (0..20_000).any(|n| match w.try_submit() {
        Submitted::At(seq) => {
            last = seq;
            if n % 3000 == 0 {
                // It is time for a sync.
                w.tick(25);
            }
            false
        }
        other => matches!(other, Submitted::Full),
    });
    w.tick(25);
    assert!(full, "up to {last}");
    assert_eq!(w.up.commit(), last, "durable on two of three");
    w.effects.clear();
    (w, last)
}

fn goes_on(mut w: World) {
    let room = |e: &Effect| matches!(e, Effect::Room);
    assert!(w.effects.iter().any(room), "nobody was told");
    assert!(matches!(w.try_submit(), Submitted::At(_)));
}

/// A replica lagged until as much was kept for it as may be. When it had caught up nobody was told
/// that there was room, for everything had long been durable on two of three: all writers stood
/// still for seconds.
#[test]
fn who_waits_for_a_replica_that_lags_goes_on_when_it_has_caught_up() {
    let (mut w, last) = full_for_one_that_lags();
    w.durable(2, last.0);
    w.pass();
    goes_on(w);
}

/// The same when it leaves instead.
#[test]
fn who_waits_for_a_replica_that_lags_goes_on_when_it_has_left_the_set() {
    let (mut w, _) = full_for_one_that_lags();
    w.lose(2);
    w.tick(1000);
    assert_eq!(w.up.record().unwrap().in_sync.len(), 2);
    goes_on(w);
}

/// A replica that others were brought back from was removed: what had been asked of it was never
/// answered, and they were never brought back. (Seed 1826 of the simulation.)
#[test]
fn a_resync_whose_source_is_removed_begins_anew() {
    let set: &[&[(u64, u64)]] = &[&[(1, 9)], &[(1, 9)], &[(1, 9)], &[(1, 9)]];
    let mut w = World::new(&record(4, &[0, 1, 3]), set);
    w.fakes[2].data = DataState::Mixed(Seq(1));
    for i in 0..4 {
        w.fakes[i].silent = |r| matches!(r, Request::Changed { .. });
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    let asked = |w: &World, i: usize| {
        let kept = w.fakes[i].kept.iter();
        kept.filter(|k| matches!(k.1, Request::Changed { .. }))
            .count()
    };
    let source = [0, 1, 3].into_iter().find(|i| asked(&w, *i) > 0).unwrap();
    w.up.remove_member(w.now, id(source as u8)).unwrap();
    w.pass();
    w.tick(300);
    assert_eq!(w.up.record().unwrap().in_sync.len(), 2);
    let reset = |e: &Effect| matches!(e, Effect::Reset(l) if l.0 == 2);
    assert!(w.effects.iter().any(reset), "the resync waits for ever");
    w.lose(2);
    w.connect(2);
    w.tick(300);
    let others = (0..4).filter(|i| *i != source);
    assert!(others.map(|i| asked(&w, i)).sum::<usize>() > 0);
}
