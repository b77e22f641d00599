//! Stories about copies that are not what they were: wiped, old, damaged (design section 5).
//!
//! They end alike: what was acknowledged last is with A and B only; A's machine is away, and B
//! comes back as something less than it was. B and C together do not know everything, and must say
//! so, and wait for A.

use trivet_protocol::breaks::Break;

use super::stage::Late;
use super::{Flow, Kind, Story, when};
use crate::world::{MS, World};

/// *Who lost its state is lost: it does not vote, and is never silently made anew.*
///
/// A new volume: A writes, B has it, C does not yet. B's disk is replaced by an empty one, and
/// somebody makes an empty region on it, under the old identity. Nothing in the record tells yet
/// how far B had been.
pub const FRESH_WIPE: Kind = Kind {
    name: "fresh-wipe",
    about: &[Break::WipedVotes],
    tell: fresh_wipe,
};

fn fresh_wipe(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => when(w.serves(s.a)),
        1 => {
            w.hold(s.a, s.c, 0, Late::All, 1_500 * MS);
            Flow::Next
        }
        2 => {
            let ahead = w.acked() > w.end_at(s.c);
            when(s.passed(w, 10 * MS, 380 * MS) && ahead)
        }
        3 => {
            w.say(|| format!("node {} loses its disk", s.b));
            w.harm_for_good(s.b);
            w.stop_node(s.b);
            w.nodes[s.b].disk.wipe();
            w.nodes[s.b].disk.heal();
            w.nodes[s.b].lost = true;
            let nanos = w.rng.below(40 * MS);
            w.after(nanos, crate::world::Event::Start(s.b));
            s.lose_the_holder(w);
            Flow::Next
        }
        _ => s.somebody_serves(w),
    }
}

/// *Who shows less than the record knows of was rolled back, and neither votes nor counts.*
///
/// A backup of B is taken; time passes, and the record is written anew with the positions
/// reached. Then C falls behind for a moment, B is restored from the backup, and A's machine is
/// away.
pub const OLD_BACKUP: Kind = Kind {
    name: "old-backup",
    about: &[Break::RolledBackCounts],
    tell: old_backup,
};

fn old_backup(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 500),
        1 => {
            let snapshot = w.nodes[s.b].disk.snapshot();
            w.nodes[s.b].backup = Some((w.time, snapshot));
            s.note = w.end_at(s.b);
            Flow::Next
        }
        2 => {
            let id = w.nodes[s.b].id;
            let info = w.record_at(s.c).and_then(|r| r.member(id));
            when(info.is_some_and(|m| m.durable.seq.0 > s.note))
        }
        3 => when(s.passed(w, MS, 300 * MS)),
        4 => {
            w.hold(s.a, s.c, 0, Late::All, 1_500 * MS);
            Flow::Next
        }
        5 => when(w.acked() > w.end_at(s.c) && s.passed(w, MS, 400 * MS)),
        6 => {
            let Some((_, backup)) = w.nodes[s.b].backup.take() else {
                return Flow::Over;
            };
            w.say(|| format!("node {} is restored from a backup", s.b));
            w.harm_for_good(s.b);
            w.stop_node(s.b);
            w.nodes[s.b].disk.restore(&backup);
            w.blink(s.b);
            s.lose_the_holder(w);
            Flow::Next
        }
        _ => s.somebody_serves(w),
    }
}

/// *A bad record at or below what was synced is damage, not a torn tail.*
///
/// B's disk says that it synced and did not; what follows it syncs well. After a power cut B's log
/// ends, cleanly to look at, where the write was lost; but what lies behind the end shows that
/// there had been more. C had fallen behind for a moment; A's machine is away.
pub const LOST_WRITE: Kind = Kind {
    name: "lost-write",
    about: &[Break::DamageTakenForTorn],
    tell: lost_write,
};

fn lost_write(s: &mut Story, w: &mut World) -> Flow {
    let version = |w: &World| w.record_at(s.b).map_or(0, |r| r.version.number + 1);
    match s.phase {
        0 => {
            s.note = version(w);
            s.warmed_up(w, 400)
        }
        // The record was just written anew: what comes now is in none for a while.
        1 => when(version(w) > s.note),
        2 => {
            w.hold(s.a, s.c, 0, Late::All, 1_500 * MS);
            w.say(|| format!("node {}: its disk lies", s.b));
            w.harmed_at(s.b);
            w.nodes[s.b].disk.lie(true);
            s.note = w.durable_at(s.b);
            Flow::Next
        }
        3 => when(w.durable_at(s.b) > s.note),
        4 => {
            w.say(|| format!("node {}: its disk is honest again", s.b));
            w.nodes[s.b].disk.lie(false);
            s.note = w.durable_at(s.b);
            Flow::Next
        }
        5 => {
            let on = w.durable_at(s.b) > s.note + 2 && w.acked() > w.end_at(s.c);
            when(on && s.passed(w, 5 * MS, 100 * MS))
        }
        6 => {
            w.blink(s.b);
            s.lose_the_holder(w);
            Flow::Next
        }
        _ => s.somebody_serves(w),
    }
}
