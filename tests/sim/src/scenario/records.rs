//! Stories about the record: who is counted while the in-sync set changes (invariants 3 and 6).
//!
//! They end alike: the holder's machine is lost, the other two lose power for a moment at most, and
//! one of them takes over. What was acknowledged must be there.

use trivet_protocol::breaks::Break;

use super::stage::Late;
use super::{Flow, Kind, Story, when};
use crate::world::{MS, World};

/// *Before a smaller set is proposed, those that stay are durable up to the commit position.*
///
/// A and B are ahead: C's disk is slow, though it gets on. B falls away, and A proposes to go on
/// with itself and C. The record reaches C, whose sync is still under way. A's machine is lost,
/// and C loses power with what it had not synced. B is back, but the record says that C alone
/// (of A and C) knows everything. If A had not waited for C, C does not.
pub const LAGGING_STAYER: Kind = Kind {
    name: "lagging-stayer",
    about: &[Break::ShrinkBeforeLevel],
    tell: lagging_stayer,
};

fn lagging_stayer(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 300),
        1 => {
            w.freeze(s.c);
            Flow::Next
        }
        2 => when(w.acked() > w.durable_at(s.c) + 4 && s.passed(w, 5 * MS, 60 * MS)),
        3 => {
            s.note = w.durable_at(s.c);
            if w.rng.one_in(2) {
                w.take_down(s.b);
            } else {
                w.cut_both_ways(s.a, s.b);
            }
            Flow::Next
        }
        // One sync of C, begun before, comes to its end: it gets on.
        4 => {
            if s.passed(w, 250 * MS, 500 * MS) {
                w.let_one_pass(s.c);
                return Flow::Next;
            }
            Flow::Stay
        }
        5 => when(w.durable_at(s.c) > s.note || s.waited(w) > 20 * MS),
        6 => when(!w.counts(s.c, s.b) || s.waited(w) > 600 * MS),
        7 => {
            w.blink(s.c);
            w.uncut(s.a, s.b);
            w.bring_back(s.b);
            s.lose_the_holder(w);
            Flow::Next
        }
        _ => s.somebody_serves(w),
    }
}

/// *From the moment a record is sent until it is settled, the old set and the new one count.*
///
/// B stands still for as long as makes A propose to go on with C only, and comes back at that very
/// moment. C has stored the record; the answers are on their way. C's disk hesitates, B's does not:
/// A and B have what was written meanwhile, which is the quorum of the old set, not of the new. A's
/// machine is lost, C loses power. The record at C says that C knows everything.
pub const RECORD_IN_FLIGHT: Kind = Kind {
    name: "record-in-flight",
    about: &[Break::RecordCountedOnce],
    tell: record_in_flight,
};

fn record_in_flight(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 300),
        1 => {
            let still = 615 * MS + w.rng.below(100 * MS);
            w.say(|| format!("node {} stands still", s.b));
            w.nodes[s.b].paused_until = w.time + still;
            // Something for it to be late with; more would fill the memory.
            w.quiet(s.a);
            w.write(s.a, 0, 1);
            s.note = w.time;
            Flow::Next
        }
        2 => when(s.passed(w, 520 * MS, 570 * MS)),
        3 => {
            w.freeze(s.c);
            w.wake_client(s.a);
            Flow::Next
        }
        4 => when(w.time > s.note + 590 * MS),
        5 => {
            w.hold(s.a, s.a, 1, Late::Recorded, 300 * MS);
            w.hold(s.a, s.c, 1, Late::Recorded, 300 * MS);
            Flow::Next
        }
        6 => {
            let recorded = !w.counts(s.c, s.b);
            let lost = recorded && w.acked() > w.durable_at(s.c);
            when(lost || w.time > s.note + 780 * MS)
        }
        7 => {
            w.blink(s.c);
            s.lose_the_holder(w);
            Flow::Next
        }
        _ => s.somebody_serves(w),
    }
}

/// *A replica outside the set is never counted.*
///
/// C was away and is out of the set. It is back and catches up; nothing reaches B meanwhile. What
/// A and C have is no quorum of A and B. At that moment A's machine is lost, and C loses power. The
/// record says that B knows everything.
pub const EARLY_JOINER: Kind = Kind {
    name: "early-joiner",
    about: &[Break::OutOfSyncCounted],
    tell: early_joiner,
};

fn early_joiner(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 300),
        1 => {
            w.take_down(s.c);
            if w.rng.one_in(2) {
                w.quiet(s.a);
            }
            Flow::Next
        }
        2 => when(!w.counts(s.a, s.c) && w.core(s.a).is_some_and(|c| c.record_settled())),
        3 => when(s.passed(w, MS, 100 * MS)),
        4 => {
            w.bring_back(s.c);
            w.hold(s.a, s.b, 0, Late::All, 1_500 * MS);
            w.wake_client(s.a);
            Flow::Next
        }
        5 => {
            let joined = w.counts(s.a, s.c);
            when(w.acked() > w.end_at(s.b) || joined || s.waited(w) > 500 * MS)
        }
        6 => {
            w.blink(s.c);
            s.lose_the_holder(w);
            Flow::Next
        }
        _ => s.somebody_serves(w),
    }
}
