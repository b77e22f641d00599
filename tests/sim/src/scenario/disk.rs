//! Stories about what is on the disk of one replica, and when (design section 5).

use trivet_protocol::breaks::Break;

use super::stage::Late;
use super::{Flow, Kind, Story, when};
use crate::world::{MS, Wait, World};

/// *What is called durable was synced.*
///
/// A writes and is told that it is durable. The power of all three fails at once.
pub const POWER_CUT: Kind = Kind {
    name: "power-cut",
    about: &[Break::SyncSkipped],
    tell: power_cut,
};

fn power_cut(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 700),
        1 => {
            w.stop_up(s.a);
            for node in 0..w.nodes.len() {
                w.blink(node);
            }
            let up = w.rng.below(w.ups.len() as u64) as usize;
            w.promote_in(up, 30 * MS);
            Flow::Next
        }
        _ if s.waited(w) > 3_500 * MS => Flow::Over,
        _ if (0..w.ups.len()).any(|u| w.serves(u)) => Flow::Over,
        _ => Flow::Stay,
    }
}

/// *Only what is committed is moved out of the log, so that a history that lost can be cut off.*
///
/// A writes on, but nothing reaches B and C: only A's own replica has it. Its log is half full, so
/// it makes room. In the middle of that its machine dies. B goes on without what A had written,
/// and writes something else. A's replica comes back, is cut back to what is common, and joins.
pub const UNCOMMITTED_MOVED: Kind = Kind {
    name: "uncommitted-moved",
    about: &[Break::UncommittedCheckpointed],
    tell: uncommitted_moved,
};

fn uncommitted_moved(s: &mut Story, w: &mut World) -> Flow {
    let used = |w: &World| {
        let store = w.nodes[s.a].replica.as_ref().and_then(|r| r.store());
        store.map_or(0, |s| s.log_usage().0)
    };
    match s.phase {
        0 => s.warmed_up(w, 50),
        1 => {
            w.quiet(s.a);
            Flow::Next
        }
        // What A may write without an answer fills the log to its half from here.
        2 if used(w) > 190 * 1024 && !w.moves_out(s.a) => {
            for node in [s.b, s.c] {
                w.hold(s.a, node, 0, Late::All, 1_500 * MS);
            }
            s.note = w.acked();
            Flow::Next
        }
        2 | 3 if w.moves_out(s.a) => when(s.phase == 3),
        2 | 3 => {
            if s.passed(w, MS, 2 * MS) {
                s.since = w.time;
                let block = w.rng.below(40);
                w.write(s.a, block, 3);
                w.flush(s.a, Wait::Flush);
            }
            Flow::Stay
        }
        4 => when(s.passed(w, 1, 6 * MS) || !w.moves_out(s.a)),
        5 => {
            // Little is written meanwhile, so that memory is enough to bring A's replica back.
            w.quiet(s.b);
            w.quiet(s.c);
            s.lose_the_holder(w);
            Flow::Next
        }
        6 => when(w.serves(s.b) || w.serves(s.c)),
        7 => {
            let up = if w.serves(s.b) { s.b } else { s.c };
            for _ in 0..1 + w.rng.below(3) {
                let (block, count) = (w.rng.below(150), 1 + w.rng.below(3));
                w.write(up, block, count);
            }
            w.flush(up, Wait::Flush);
            Flow::Next
        }
        8 => when(s.passed(w, 20 * MS, 400 * MS)),
        9 => {
            w.bring_back(s.a);
            Flow::Next
        }
        // Its member keeps its promise to A for one more lease.
        _ if w.counts(s.b, s.a) || s.waited(w) > 2_600 * MS => Flow::Over,
        _ => Flow::Stay,
    }
}

/// *A block is written in place only when nothing in the log has still to be done to it.*
///
/// A range is written, discarded, and written again in one go, over and over, while replicas empty
/// their logs. New data that goes straight to its place must not be punched out by the discard
/// before it.
pub const DISCARD_THEN_WRITE: Kind = Kind {
    name: "discard-then-write",
    about: &[Break::DiscardPunchedLate],
    tell: discard_then_write,
};

fn discard_then_write(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 100),
        1 => {
            s.note = w.time + 300 * MS + w.rng.below(1_500 * MS);
            Flow::Next
        }
        2 => {
            if w.time > s.note {
                return Flow::Next;
            }
            if s.passed(w, MS, 12 * MS) {
                s.since = w.time;
                let range = w.rng.below(6);
                if w.rng.one_in(3) {
                    w.discard(s.a, range * 24, 24);
                } else {
                    w.discard(s.a, range * 24, 24);
                    if w.rng.one_in(2) {
                        w.flush(s.a, Wait::Flush);
                    }
                    w.write(s.a, range * 24, 24);
                }
            }
            Flow::Stay
        }
        _ => {
            for range in 0..6 {
                w.read(s.a, range * 24, 24);
            }
            Flow::Over
        }
    }
}
