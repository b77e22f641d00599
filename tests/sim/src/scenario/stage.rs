//! What a story can see of a world, and the strings that it pulls.

use trivet_protocol::Record;
use trivet_protocol::frame::{Frame, Kind};
use trivet_protocol::message::{Reply, decode};
use trivet_replica::upstairs::Upstairs;

use super::Story;
use crate::world::{Event, MS, Wait, World};

/// Frames that are to be late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// All.
    All,
    /// Answers that a record was stored.
    Recorded,
}

/// Frames of one link in one direction that stay on their way until some time.
#[derive(Clone, Copy, Debug)]
struct Hold {
    up: usize,
    node: usize,
    direction: usize,
    what: Late,
    until: u64,
}

/// The strings of a story.
#[derive(Default)]
pub struct Stage {
    /// The story, while it is told.
    pub story: Option<Story>,
    holds: Vec<Hold>,
    /// Syncs of these nodes do not end.
    frozen: Vec<usize>,
    /// But for the next one of this node.
    pass: Option<usize>,
    /// These nodes stay down.
    down: Vec<usize>,
    /// Clients on these upstairs do nothing by themselves.
    quiet: Vec<usize>,
    /// This node reads slowly what a scrub wants to know.
    slow_looks: Option<usize>,
}

impl Stage {
    /// When a frame that is sent now may arrive.
    pub fn held_until(&self, up: usize, node: usize, direction: usize, frame: &Frame) -> u64 {
        let late = |h: &&Hold| (h.up, h.node, h.direction) == (up, node, direction);
        let matching = |h: &&Hold| h.what == Late::All || is_recorded(frame);
        let holds = self.holds.iter().filter(late).filter(matching);
        holds.map(|h| h.until).max().unwrap_or(0)
    }

    /// Syncs do not end there now.
    pub fn is_frozen(&self, node: usize) -> bool {
        self.frozen.contains(&node)
    }

    /// Whether a sync may end there now.
    pub fn may_pass(&mut self, node: usize) -> bool {
        !self.is_frozen(node) || self.pass.take_if(|n| *n == node).is_some()
    }

    /// It takes its time over what a scrub wants to know.
    pub fn is_slow_to_look(&self, node: usize) -> bool {
        self.slow_looks == Some(node)
    }

    /// It stays down.
    pub fn is_down(&self, node: usize) -> bool {
        self.down.contains(&node)
    }

    /// Its client waits.
    pub fn is_quiet(&self, up: usize) -> bool {
        self.quiet.contains(&up)
    }

    /// Set for this story.
    pub fn of(story: Option<Story>) -> Stage {
        Stage {
            story,
            ..Stage::default()
        }
    }

    /// The story is over: nothing is held any more, but who is down stays so until all heals.
    fn let_go(&mut self) {
        self.story = None;
        self.holds.clear();
        self.frozen.clear();
        self.quiet.clear();
        self.slow_looks = None;
    }
}

fn is_recorded(frame: &Frame) -> bool {
    frame.header.kind == Kind::Reply && matches!(decode(&frame.meta), Ok(Reply::Recorded(_)))
}

impl World {
    /// Goes on with the story, if there is one; called after each event.
    pub fn tell(&mut self) {
        let Some(mut story) = self.stage.story.take() else {
            return;
        };
        if !self.healing && story.go_on(self) {
            self.stage.story = Some(story);
            return;
        }
        self.stage.let_go();
        if self.healing {
            return;
        }
        self.say(|| "the story is over".into());
        // Half of the worlds heal now, the others see some more.
        let more = match self.rng.one_in(2) {
            true => 0,
            false => self.rng.below(3_000 * MS),
        };
        self.faults_end = self.time + 20 * MS + more;
        self.settle = 1_000 * MS;
        if more > 0 {
            self.at(self.time, Event::Fault);
        }
        self.at(self.faults_end, Event::Story);
    }

    // ---- what is to be seen ----

    pub(super) fn core(&self, up: usize) -> Option<&Upstairs> {
        self.ups[up].core.as_ref()
    }

    /// It serves.
    pub(super) fn serves(&self, up: usize) -> bool {
        self.core(up).is_some_and(Upstairs::is_active)
    }

    /// Places acknowledged as durable.
    pub(super) fn acked(&self) -> u64 {
        self.model.acked() as u64
    }

    /// Places that this node has in its log or extents.
    pub(super) fn end_at(&self, node: usize) -> u64 {
        let store = self.nodes[node].replica.as_ref().and_then(|r| r.store());
        store.map_or(0, |s| s.end().seq.0)
    }

    /// Places that this node has durably.
    pub(super) fn durable_at(&self, node: usize) -> u64 {
        let store = self.nodes[node].replica.as_ref().and_then(|r| r.store());
        store.map_or(0, |s| s.durable().seq.0)
    }

    /// The place up to which this node's log was moved to its extents.
    pub(super) fn moved_to(&self, node: usize) -> u64 {
        let store = self.nodes[node].replica.as_ref().and_then(|r| r.store());
        store.map_or(0, |s| s.checkpointed().seq.0)
    }

    /// A story's own demand.
    pub(super) fn expect(&mut self, holds: bool, why: impl FnOnce() -> String) {
        if !holds {
            self.check(Err(why()));
        }
    }

    /// The record that this node keeps.
    pub(super) fn record_at(&self, node: usize) -> Option<&Record> {
        let replica = self.nodes[node].replica.as_ref()?;
        Some(&replica.member().state().record)
    }

    /// Whether the record at one node counts another as in sync.
    pub(super) fn counts(&self, node: usize, other: usize) -> bool {
        let id = self.nodes[other].id;
        self.record_at(node)
            .is_some_and(|r| r.in_sync.contains(&id))
    }

    /// Whether nobody is promised anything at this node.
    pub(super) fn is_free(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        let now = n.clock.now(self.time);
        let left = n.replica.as_ref().map(|r| r.member().lease_left(now).0);
        left == Some(0)
    }

    // ---- strings ----

    /// Frames on a link stay on their way for so long. Direction 0 leads to the node.
    pub(super) fn hold(&mut self, up: usize, node: usize, direction: usize, what: Late, ns: u64) {
        self.say(|| format!("up {up} - node {node}: {what:?} late by {} ms", ns / MS));
        self.stage.holds.push(Hold {
            up,
            node,
            direction,
            what,
            until: self.time + ns,
        });
    }

    /// From now on syncs end nowhere else than before.
    pub(super) fn freeze(&mut self, node: usize) {
        self.say(|| format!("node {node}: its syncs hang"));
        self.stage.frozen.push(node);
    }

    /// One sync of this node ends, then they hang again.
    pub(super) fn let_one_pass(&mut self, node: usize) {
        self.say(|| format!("node {node}: one sync ends"));
        self.stage.pass = Some(node);
    }

    pub(super) fn quiet(&mut self, up: usize) {
        self.stage.quiet.push(up);
    }

    pub(super) fn slow_looks(&mut self, node: usize) {
        self.stage.slow_looks = Some(node);
    }

    pub(super) fn wake_client(&mut self, up: usize) {
        self.stage.quiet.retain(|u| *u != up);
    }

    /// The process ends and stays away until everything heals; its disk keeps what it has.
    pub(super) fn take_down(&mut self, node: usize) {
        self.say(|| format!("node {node} goes away"));
        self.stage.down.push(node);
        self.stop_node(node);
    }

    /// Who was taken down may start again.
    pub(super) fn bring_back(&mut self, node: usize) {
        self.stage.down.retain(|n| *n != node);
        self.at(self.time, Event::Start(node));
    }

    /// Power is lost and comes back.
    pub(super) fn blink(&mut self, node: usize) {
        self.say(|| format!("node {node} loses power for a moment"));
        self.stop_node(node);
        let seed = self.rng.draw();
        self.nodes[node].disk.crash(seed);
        let nanos = self.rng.below(30 * MS);
        self.after(nanos, Event::Start(node));
    }

    pub(super) fn promote_in(&mut self, up: usize, nanos: u64) {
        self.after(nanos, Event::Promote(up));
    }

    /// Flushes, then hands the volume back.
    pub(super) fn leave(&mut self, up: usize) {
        self.flush(up, Wait::LeaveFlush);
    }

    pub(super) fn cut_both_ways(&mut self, up: usize, node: usize) {
        self.say(|| format!("link up {up} - node {node} is cut"));
        self.cut[up][node] = [true; 2];
    }

    /// A whole machine is cut off: its upstairs from the other members, its member from the others.
    pub(super) fn isolate(&mut self, machine: usize) {
        for other in (0..self.ups.len()).filter(|o| *o != machine) {
            self.cut_both_ways(machine, other);
            self.cut_both_ways(other, machine);
        }
    }

    /// What [`World::isolate`] cut is whole again.
    pub(super) fn rejoin(&mut self, machine: usize) {
        for other in (0..self.ups.len()).filter(|o| *o != machine) {
            self.uncut(machine, other);
            self.uncut(other, machine);
        }
    }

    pub(super) fn uncut(&mut self, up: usize, node: usize) {
        self.say(|| format!("link up {up} - node {node} is whole"));
        self.cut[up][node] = [false; 2];
    }
}
