//! Stories about claims: numbers that belong to one claimant, and what counts of the answers.

use trivet_protocol::breaks::Break;

use super::{Flow, Kind, Story, when};
use crate::world::{MS, World};

/// *A number is accepted once; a lower one never again (invariant 1).*
///
/// A hands back. B and C both see that nobody holds the volume and claim the same next number; B's
/// claims are late. C serves with that number, and hands back; in some worlds A serves once more.
/// Now B's claims arrive, while no promise runs: the number was C's. Accepted, they make B serve
/// with a number that had another writer. (Where C wrote anything, its record differs from B's of
/// the same version, and members refuse that; so in half of the worlds it does not.)
pub const LATE_CLAIM: Kind = Kind {
    name: "late-claim",
    about: &[Break::EqualGenerationAccepted],
    tell: late_claim,
};

fn late_claim(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 200),
        1 => {
            w.leave(s.a);
            // Less than what an attempt waits for answers to its claims.
            let late = 450 * MS + w.rng.below(850 * MS);
            s.note = w.rng.below(4);
            if w.rng.one_in(2) {
                w.quiet(s.c);
            }
            w.late_claims = Some((s.b, w.time + 3_000 * MS, late));
            Flow::Next
        }
        2 => {
            if w.serves(s.a) || !s.passed(w, 50 * MS, 120 * MS) {
                return Flow::Stay;
            }
            w.promote_in(s.b, 0);
            let gap = 22 * MS + w.rng.below(6 * MS);
            w.promote_in(s.c, gap);
            Flow::Next
        }
        3 => when(w.serves(s.c)),
        4 => {
            if !s.passed(w, MS, 60 * MS) {
                return Flow::Stay;
            }
            w.leave(s.c);
            if s.note > 0 {
                s.phase += 2;
            }
            Flow::Next
        }
        5 => {
            if w.serves(s.c) {
                return Flow::Stay;
            }
            w.promote_in(s.a, 5 * MS);
            Flow::Next
        }
        6 => {
            if !w.serves(s.a) {
                return Flow::Stay;
            }
            if !s.passed(w, MS, 40 * MS) {
                return Flow::Stay;
            }
            w.leave(s.a);
            Flow::Next
        }
        _ if w.serves(s.b) || s.waited(w) > 1_500 * MS => Flow::Over,
        _ => Flow::Stay,
    }
}

/// *A lower number is refused, for ever (invariant 1).*
///
/// A's machine is cut off from the others for longer than its lease. B serves, and hands back. The
/// cut heals, and A, which knows of nothing, connects anew and asks that its claim be accepted
/// there, too. With two promises it would go on serving from what it has.
pub const RETURNING_HOLDER: Kind = Kind {
    name: "returning-holder",
    about: &[Break::OldGenerationAccepted],
    tell: returning_holder,
};

fn returning_holder(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 300),
        1 => {
            w.isolate(s.a);
            w.promote_in(s.b, 1_900 * MS);
            Flow::Next
        }
        2 => when(w.serves(s.b)),
        3 => when(s.passed(w, MS, 300 * MS)),
        4 => {
            w.leave(s.b);
            Flow::Next
        }
        // Nothing that A said before may be on its way any more.
        5 => when(!w.serves(s.b) && !w.connected(s.a, s.b) && !w.connected(s.a, s.c)),
        6 => {
            w.rejoin(s.a);
            Flow::Next
        }
        _ if s.waited(w) > 500 * MS => Flow::Over,
        _ => Flow::Stay,
    }
}

/// *What counts are the positions in the answers to the claim (design section 6, activation).*
///
/// A stands still for longer than its lease. B asks: nobody holds the volume; here is what we
/// have. B claims, but the claims are late. A goes on, renews (nobody has claimed yet), writes,
/// is told that it is durable, and hands back. B's claims arrive and are accepted. Whoever goes on
/// from what was said before the claim, and cuts back who has more, loses what A had written.
pub const STALE_ASK: Kind = Kind {
    name: "stale-ask",
    about: &[Break::PositionsFromAsk],
    tell: stale_ask,
};

fn stale_ask(s: &mut Story, w: &mut World) -> Flow {
    match s.phase {
        0 => s.warmed_up(w, 250),
        1 => {
            w.quiet(s.a);
            Flow::Next
        }
        // Everything is durable everywhere, and everybody knows.
        2 => when(s.passed(w, 60 * MS, 120 * MS)),
        3 => {
            let still = 2_135 * MS + w.rng.below(30 * MS);
            w.say(|| "the holder stands still".into());
            w.ups[s.a].paused_until = w.time + still;
            let late = 60 * MS + w.rng.below(500 * MS);
            w.late_claims = Some((s.b, w.time + 4_000 * MS, late));
            w.promote_in(s.b, 2_080 * MS);
            Flow::Next
        }
        4 => {
            let awake = w.ups[s.a].paused_until <= w.time;
            let now = w.ups[s.a].clock.now(w.time);
            let holds = w.core(s.a).is_some_and(|c| c.lease_valid(now));
            if !awake || !w.serves(s.a) || !holds {
                return Flow::Stay;
            }
            for _ in 0..1 + w.rng.below(3) {
                w.submit_random(s.a);
            }
            w.leave(s.a);
            Flow::Next
        }
        _ if w.serves(s.b) || s.waited(w) > 2_000 * MS => Flow::Over,
        _ => Flow::Stay,
    }
}
