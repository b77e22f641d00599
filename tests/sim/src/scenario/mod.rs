//! Stories: worlds that are walked into the neighbourhood of one rule.
//!
//! Chance alone seldom brings about the few coincidences in which a rule of the design makes the
//! difference. A story arranges them (who holds the volume, which messages are late, whose disk
//! hesitates, who dies) and leaves the rest to the seed: how long each part takes, what the clients
//! do meanwhile, what a power cut leaves. The state machines and the checks are the same as in
//! every other world; a story only pulls the strings that [`crate::world`] has for chance, too.
//!
//! With all rules on, every story must end well. With the rule off that it is about, some seed of
//! it must fail: that is what `make mutants` shows.
//!
//! A story is a function that is called after each event, phase by phase, and says when to go on.
//! One that does not get on ([`PHASE_PATIENCE`]) is given up, and its world ends like any other.

mod claims;
mod copies;
mod disk;
mod lease;
mod records;
mod scrub;
mod stage;

use trivet_protocol::breaks::Break;

use crate::world::{MS, World};
pub use stage::Stage;

/// A phase that takes longer than this will not come to anything.
const PHASE_PATIENCE: u64 = 6_000 * MS;

/// What a phase of a story wants next.
pub enum Flow {
    /// To be called again.
    Stay,
    /// The next phase.
    Next,
    /// Nothing: it was told.
    Over,
}

/// Goes on once something holds.
fn when(holds: bool) -> Flow {
    if holds { Flow::Next } else { Flow::Stay }
}

/// One story as it is told in one world.
#[derive(Clone, Copy)]
pub struct Story {
    kind: &'static Kind,
    phase: usize,
    /// When the phase began.
    since: u64,
    /// Who holds the volume at the beginning, and the other two.
    a: usize,
    b: usize,
    c: usize,
    /// What the story notes for itself.
    note: u64,
    /// A span of time that the seed chose.
    span: u64,
}

/// A kind of story.
pub struct Kind {
    /// On the command line.
    pub name: &'static str,
    /// The rules that it is about.
    pub about: &'static [Break],
    tell: fn(&mut Story, &mut World) -> Flow,
}

/// All of them.
pub static ALL: [Kind; 16] = [
    claims::LATE_CLAIM,
    claims::RETURNING_HOLDER,
    claims::STALE_ASK,
    records::LAGGING_STAYER,
    records::RECORD_IN_FLIGHT,
    records::EARLY_JOINER,
    copies::FRESH_WIPE,
    copies::OLD_BACKUP,
    copies::LOST_WRITE,
    lease::RESTARTED_PROMISE,
    lease::LEASE_OVER,
    disk::POWER_CUT,
    disk::UNCOMMITTED_MOVED,
    disk::DISCARD_THEN_WRITE,
    scrub::LOST_EXTENT_WRITES,
    scrub::SCRUB_UNDER_WRITES,
];

/// The story with this name.
pub fn named(name: &str) -> Option<&'static Kind> {
    ALL.iter().find(|k| k.name == name)
}

/// The story that is about this rule.
pub fn about(rule: Break) -> Option<&'static Kind> {
    ALL.iter().find(|k| k.about.contains(&rule))
}

/// What the world with this seed is about, if nobody says: every other one is left to chance.
pub fn of_seed(seed: u64) -> Option<&'static Kind> {
    let turn = (seed / 2) as usize % ALL.len();
    ALL.get(turn).filter(|_| seed % 2 == 1)
}

impl Story {
    /// The beginning of a story: the seed chooses who plays whom.
    pub fn new(kind: &'static Kind, seed: u64) -> Story {
        let [a, b, c] = [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ][(seed / 3 % 6) as usize];
        Story {
            kind,
            phase: 0,
            since: 0,
            a,
            b,
            c,
            note: 0,
            span: 0,
        }
    }

    /// Who begins.
    pub fn first(&self) -> usize {
        self.a
    }

    fn waited(&self, w: &World) -> u64 {
        w.time - self.since
    }

    /// Tells as much as can be told now; false at its end.
    pub fn go_on(&mut self, w: &mut World) -> bool {
        loop {
            match (self.kind.tell)(self, w) {
                Flow::Next => {
                    self.phase += 1;
                    self.since = w.time;
                    let (name, phase) = (self.kind.name, self.phase);
                    w.say(|| format!("story {name}: part {phase}"));
                }
                Flow::Stay if self.waited(w) < PHASE_PATIENCE => return true,
                Flow::Stay => {
                    w.count("stories given up");
                    return false;
                }
                Flow::Over => {
                    w.count("stories told");
                    return false;
                }
            }
        }
    }

    // ---- parts that many stories share ----

    /// The first one serves, and has for up to so many milliseconds.
    fn warmed_up(&mut self, w: &mut World, most: u64) -> Flow {
        if self.span == 0 {
            self.span = 1 + w.rng.below(most * MS);
        }
        if !w.serves(self.a) {
            self.since = w.time;
            return Flow::Stay;
        }
        if self.waited(w) < self.span {
            return Flow::Stay;
        }
        self.span = 0;
        Flow::Next
    }

    /// A span that is chosen once per phase; whether it has passed.
    fn passed(&mut self, w: &mut World, least: u64, most: u64) -> bool {
        if self.span == 0 {
            self.span = least + 1 + w.rng.below(most - least);
        }
        let over = self.waited(w) >= self.span;
        if over {
            self.span = 0;
        }
        over
    }

    /// The holder and its whole machine are gone for the rest of the story; the others try.
    fn lose_the_holder(&mut self, w: &mut World) {
        w.stop_up(self.a);
        w.take_down(self.a);
        let up = if w.rng.one_in(2) { self.b } else { self.c };
        w.promote_in(up, 5 * MS);
    }

    /// Until somebody serves after [`Story::lose_the_holder`], and a little longer.
    fn somebody_serves(&mut self, w: &mut World) -> Flow {
        let serves = w.serves(self.b) || w.serves(self.c);
        if serves || self.waited(w) > 3_500 * MS {
            return Flow::Over;
        }
        Flow::Stay
    }
}
