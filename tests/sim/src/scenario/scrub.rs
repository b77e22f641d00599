//! Stories about scrubs (design section 5, invariant 7).

use trivet_downstairs::extent::layout::Layout;
use trivet_protocol::breaks::Break;

use super::{Flow, Kind, Story, when};
use crate::world::{MS, Wait, World};

/// *What most replicas hold is right.*
///
/// B's disk acknowledged writes to its extent files, and lost them: what it has there is old, and
/// matches its own checksums. A scrub finds it and puts it right.
pub const LOST_EXTENT_WRITES: Kind = Kind {
    name: "lost-extent-writes",
    about: &[Break::ScrubBelievesAnybody],
    tell: lost_extent_writes,
};

fn lost_extent_writes(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 300),
        1 => when(w.moved_to(s.b) > 0),
        2 => {
            let snapshot = w.nodes[s.b].disk.snapshot();
            w.nodes[s.b].backup = Some((w.time, snapshot));
            s.note = w.moved_to(s.b);
            Flow::Next
        }
        3 => when(w.moved_to(s.b) > s.note && s.passed(w, MS, 300 * MS)),
        // Its own replica answers A's reads: nobody looks at B's old content, but the scrub.
        4 if w.moves_out(s.b) => Flow::Stay,
        4 => {
            let Some((_, then)) = w.nodes[s.b].backup.take() else {
                return Flow::Over;
            };
            w.say(|| {
                format!(
                    "node {}: what was written to its extents lately is lost",
                    s.b
                )
            });
            w.harmed_at(s.b);
            let layout = Layout::new(crate::world::EXTENT_BLOCKS);
            let disk = w.nodes[s.b].disk.clone();
            for name in disk.names().iter().filter(|n| n.starts_with("e/")) {
                let headers = layout.second_header_at();
                disk.roll_back(&then, name, layout.group_at(0), headers);
                disk.roll_back(&then, name, layout.data_at, layout.file_bytes());
            }
            w.scrub(s.a);
            Flow::Next
        }
        _ => when_scrubbed(s, w),
    }
}

/// *A range that changed while it was read says nothing.*
///
/// A serves and writes on and on, all over the volume, while it scrubs; B's disk takes its time
/// over it, and meanwhile B's log moves to its extents.
pub const SCRUB_UNDER_WRITES: Kind = Kind {
    name: "scrub-under-writes",
    about: &[Break::OvertakenLookCounts],
    tell: scrub_under_writes,
};

fn scrub_under_writes(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 300),
        1 => {
            w.slow_looks(s.b);
            w.scrub(s.a);
            Flow::Next
        }
        2 if w.scrub_of(s.a).is_some_and(|s| s.running) => {
            if s.passed(w, 1, MS) {
                let (block, count) = (w.rng.below(150), 1 + w.rng.below(3));
                w.write(s.a, block, count);
                w.flush(s.a, Wait::Flush);
            }
            Flow::Stay
        }
        _ => when_scrubbed(s, w),
    }
}

/// Until the scrub is over, which must have put everything right.
fn when_scrubbed(s: &mut Story, w: &mut World) -> Flow {
    match w.scrub_of(s.a) {
        Some(scrub) if scrub.running => Flow::Stay,
        Some(scrub) => {
            let good = scrub.left == 0 && scrub.repaired == scrub.wrong;
            let why = || format!("I7: a scrub with nothing in its way: {scrub:?}");
            w.expect(good, why);
            Flow::Over
        }
        None => Flow::Over,
    }
}
