//! Stories about the lease: who may answer, and until when (invariant 2).

use trivet_protocol::breaks::Break;

use super::{Flow, Kind, Story, when};
use crate::world::{Event, MS, World};

/// *A start counts as a fresh promise: nobody else is accepted for one full lease.*
///
/// A is cut off from C and goes on with B. B's process dies and is there again at once; A cannot
/// reach it for now, but its lease, counted on B's last renewal, still runs, and so it answers.
/// B takes over if B's own member has forgotten what it promised.
pub const RESTARTED_PROMISE: Kind = Kind {
    name: "restarted-promise",
    about: &[Break::PromiseForgotten],
    tell: restarted_promise,
};

fn restarted_promise(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 300),
        1 => {
            w.cut_both_ways(s.a, s.c);
            Flow::Next
        }
        2 => when(w.is_free(s.c) && !w.counts(s.b, s.c)),
        3 => when(s.passed(w, MS, 300 * MS)),
        4 => {
            w.say(|| format!("node {}: its process is killed", s.b));
            w.stop_node(s.b);
            w.isolate(s.a);
            let back = w.rng.below(20 * MS);
            w.after(back, Event::Start(s.b));
            let up = if w.rng.one_in(2) { s.b } else { s.c };
            let soon = w.rng.below(20 * MS);
            w.promote_in(up, soon);
            Flow::Next
        }
        _ if s.waited(w) > 2_600 * MS => Flow::Over,
        _ => Flow::Stay,
    }
}

/// *Nothing is answered outside of the lease.*
///
/// A's machine is cut off from the two others. Its own replica answers its reads as before. When
/// its lease has run out, B serves.
pub const LEASE_OVER: Kind = Kind {
    name: "lease-over",
    about: &[Break::ReadAfterLease],
    tell: lease_over,
};

fn lease_over(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 400),
        1 => {
            w.isolate(s.a);
            let nanos = w.rng.below(1_500 * MS);
            w.promote_in(s.b, nanos);
            Flow::Next
        }
        2 => when(w.serves(s.b) || s.waited(w) > 4_000 * MS),
        3 => when(s.passed(w, 50 * MS, 400 * MS)),
        _ => Flow::Over,
    }
}
