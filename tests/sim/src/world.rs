//! The simulated world: nodes with disks, upstairs that come and go, connections, time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trivet_downstairs::checkpoint::CheckpointJob;
use trivet_downstairs::disk::Disk;
use trivet_downstairs::disk::sim::{Rng, SimDisk, Snapshot};
use trivet_downstairs::member::MemberState;
use trivet_downstairs::replica::{ConnId, Out, Replica};
use trivet_downstairs::store::{ReadJob, SyncJob};
use trivet_downstairs::{Region, Store, StoreError};
use trivet_protocol::breaks::{self, Break};
use trivet_protocol::entry::BatchOp;
use trivet_protocol::frame::{Frame, Kind};
use trivet_protocol::{
    BLOCK_BYTES, Batch, Block, MemberId, MemberInfo, MemberKind, Millis, Now, NullRecorder,
    Position, Record, RecordVersion, Seq, VolumeId,
};
use trivet_replica::upstairs::{
    ActivateOptions, Config, Effect, Limits, LinkId, Prepared, Submitted, Upstairs, WaitId,
};

use crate::model::{Model, ModelOp, Tag, Versions, apply};
use crate::{Options, Outcome};

/// Blocks in the volume.
pub const BLOCKS: u64 = 160;
const LOG_BYTES: u64 = 512 * 1024;
pub const MS: u64 = 1_000_000;
/// Faults happen until then; afterwards everything must heal.
const FAULTS_END: u64 = 14_000 * MS;
/// By then everything must be well again.
const END: u64 = 34_000 * MS;
/// Events in one world, at most: a world that spins is a failure.
const MAX_EVENTS: u64 = 3_000_000;

/// A clock that starts anywhere and drifts within the bound of the design.
#[derive(Clone, Copy)]
pub struct Clock {
    offset: u64,
    ppm: i64,
}

impl Clock {
    fn new(rng: &mut Rng) -> Clock {
        // Two clocks differ by at most 1 %.
        Clock {
            offset: rng.below(1 << 40),
            ppm: rng.below(10_000) as i64 - 5_000,
        }
    }

    fn now(&self, t: u64) -> Now {
        let drift = (i128::from(t) * i128::from(self.ppm) / 1_000_000) as i64;
        Now(self.offset + t.saturating_add_signed(drift))
    }
}

/// One machine with a member on it.
pub struct Node {
    pub disk: SimDisk,
    pub id: MemberId,
    pub replica: Option<Replica>,
    /// Goes up with each start and stop: what was under way before is void.
    pub boot: u64,
    pub clock: Clock,
    pub paused_until: u64,
    /// Syncs take up to this long.
    pub sync_nanos: u64,
    /// Its disk was lost: it never comes back by itself.
    pub lost: bool,
    pub backup: Option<(u64, Snapshot)>,
    sync: Option<SyncJob>,
    checkpoint: Option<CheckpointJob>,
    conns: Vec<u64>,
}

/// One place where an upstairs may run.
pub struct Up {
    pub core: Option<Upstairs>,
    pub incarnation: u64,
    pub clock: Clock,
    pub paused_until: u64,
    links: Vec<Option<u64>>,
    waits: BTreeMap<WaitId, Wait>,
    next_wait: u64,
    versions: Versions,
    content: Vec<Tag>,
    parked: Option<(Arc<Prepared>, ModelOp)>,
    /// The incarnation whose client runs already.
    client: u64,
    /// Flush and leave in order.
    leaving: bool,
}

enum Wait {
    Flush,
    Read { block: u64, count: u64, since: Seq },
    LeaveFlush,
}

struct Conn {
    up: usize,
    up_incarnation: u64,
    node: usize,
    boot: u64,
    open_up: bool,
    open_node: bool,
    /// A message was lost in this direction: nothing after it arrives.
    broken: [bool; 2],
    last: [u64; 2],
}

pub enum Event {
    Tick(usize, u64),
    Connect(usize, u64, usize),
    ToMember(u64, Frame),
    ToUp(u64, Frame),
    EndAtUp(u64),
    EndAtNode(u64),
    SyncDone(usize, u64),
    ReadDone(usize, u64, ConnId, u64, Box<ReadJob>),
    Checkpoint(usize, u64),
    Client(usize, u64),
    Promote(usize),
    Start(usize),
    Fault,
    Heal(usize, usize, usize),
    Fast(usize),
    Gone(usize, u64),
}

struct Queued(u64, u64, Event);
impl PartialEq for Queued {
    fn eq(&self, o: &Self) -> bool {
        (self.0, self.1) == (o.0, o.1)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, o: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Queued {
    fn cmp(&self, o: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(o.0, o.1))
    }
}

/// See the module's head.
pub struct World {
    pub rng: Rng,
    pub time: u64,
    seed: u64,
    trace: bool,
    hash: u64,
    events: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    order: u64,
    pub nodes: Vec<Node>,
    pub ups: Vec<Up>,
    conns: BTreeMap<u64, Conn>,
    next_conn: u64,
    /// cut[up][node][direction]: messages vanish.
    pub cut: Vec<Vec<[bool; 2]>>,
    /// Claims of this upstairs are held up on their way, until when and for how long.
    pub late_claims: Option<(usize, u64, u64)>,
    /// The one node whose data may be harmed for good in this world.
    pub victim: usize,
    pub harmed: bool,
    /// The victim cannot come back under its old identity.
    pub gone_for_good: bool,
    pub healing: bool,
    volume: VolumeId,
    model: Model,
    next_tag: Tag,
    violation: Option<String>,
    operations: u64,
}

impl World {
    pub fn new(options: &Options) -> World {
        let mut rng = Rng(options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let volume = VolumeId::from_bytes([7; 16]);
        let n = 3;
        let ids: Vec<_> = (0..n)
            .map(|i| MemberId::from_bytes([i as u8 + 1; 16]))
            .collect();
        let mut nodes = Vec::new();
        for id in &ids {
            let disk = SimDisk::new();
            create(&disk, volume, *id, &ids);
            nodes.push(Node {
                disk,
                id: *id,
                replica: None,
                boot: 0,
                clock: Clock::new(&mut rng),
                paused_until: 0,
                sync_nanos: 2 * MS,
                lost: false,
                backup: None,
                sync: None,
                checkpoint: None,
                conns: Vec::new(),
            });
        }
        let ups = (0..n).map(|_| Up {
            core: None,
            incarnation: 0,
            clock: Clock::new(&mut rng),
            paused_until: 0,
            links: vec![None; n],
            waits: BTreeMap::new(),
            next_wait: 0,
            versions: Versions::default(),
            content: Vec::new(),
            parked: None,
            client: 0,
            leaving: false,
        });
        let ups = ups.collect();
        let victim = rng.below(n as u64) as usize;
        World {
            rng,
            time: 0,
            seed: options.seed,
            trace: options.trace,
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            queue: BinaryHeap::new(),
            order: 0,
            nodes,
            ups,
            conns: BTreeMap::new(),
            next_conn: 1,
            cut: vec![vec![[false; 2]; n]; n],
            late_claims: None,
            victim,
            harmed: false,
            gone_for_good: false,
            healing: false,
            volume,
            model: Model::default(),
            next_tag: 1,
            violation: None,
            operations: 0,
        }
    }

    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>12.6} {}", self.time as f64 / 1e9, text());
        }
    }

    fn mix(&mut self, x: u64) {
        self.hash = (self.hash ^ x)
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(17);
    }

    pub fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Queued(time, self.order, event)));
    }

    pub fn after(&mut self, nanos: u64, event: Event) {
        self.at(self.time + nanos, event);
    }

    fn check(&mut self, result: Result<(), String>) {
        if let Err(why) = result {
            self.say(|| format!("VIOLATION {why}"));
            self.violation.get_or_insert(why);
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(mut self) -> Result<Outcome, String> {
        for node in 0..self.nodes.len() {
            self.start_node(node);
        }
        self.at(0, Event::Promote(0));
        let first = self.rng.below(400 * MS);
        self.at(first, Event::Fault);
        while let Some(Reverse(Queued(time, _, event))) = self.queue.pop() {
            self.time = self.time.max(time);
            self.events += 1;
            self.mix(time);
            if !self.healing && self.time >= FAULTS_END {
                self.heal_everything();
            }
            self.event(event);
            if let Some(why) = self.violation.take() {
                return Err(format!(
                    "{why}\n  at {:.6} s of seed {}",
                    self.time as f64 / 1e9,
                    self.seed
                ));
            }
            if self.events > MAX_EVENTS {
                return Err(format!("liveness: {MAX_EVENTS} events and no end"));
            }
            if self.time >= END || (self.healing && self.is_well()) {
                break;
            }
        }
        self.finish()
    }

    fn is_well(&self) -> bool {
        let Some(core) = self
            .ups
            .iter()
            .filter_map(|u| u.core.as_ref())
            .find(|c| c.is_active())
        else {
            return false;
        };
        let whole = self.nodes.len() - usize::from(self.gone_for_good);
        core.record()
            .is_some_and(|r| r.in_sync.len() >= whole.min(3))
            && core.record_settled()
            && core.commit() == core.last()
            && core
                .status(Now(0))
                .members
                .iter()
                .all(|m| !m.in_sync || m.durable == core.last())
            && self.time > FAULTS_END + 3_000 * MS
            && self.model.acked() as u64 == core.last().0
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Tick(up, inc) => self.tick(up, inc),
            Event::Connect(up, inc, node) => self.connect(up, inc, node),
            Event::ToMember(conn, frame) => self.deliver_to_member(conn, frame),
            Event::ToUp(conn, frame) => self.deliver_to_up(conn, frame),
            Event::EndAtUp(conn) => self.end_at_up(conn),
            Event::EndAtNode(conn) => self.end_at_node(conn),
            Event::SyncDone(node, boot) => self.sync_done(node, boot),
            Event::ReadDone(node, boot, conn, id, job) => {
                self.read_done(node, boot, conn, id, job);
            }
            Event::Checkpoint(node, boot) => self.checkpoint_step(node, boot),
            Event::Client(up, inc) => self.client(up, inc),
            Event::Promote(up) => self.promote(up),
            Event::Start(node) => self.start_node(node),
            Event::Fault => self.fault(),
            Event::Heal(up, node, direction) => self.cut[up][node][direction] = false,
            Event::Gone(up, inc) => {
                if self.ups[up].incarnation == inc {
                    self.stop_up(up);
                }
            }
            Event::Fast(node) => self.nodes[node].sync_nanos = 2 * MS,
        }
    }

    // ---- nodes ----

    pub fn start_node(&mut self, node: usize) {
        if self.nodes[node].replica.is_some() {
            return;
        }
        let ids: Vec<_> = self.nodes.iter().map(|n| n.id).collect();
        let volume = self.volume;
        let n = &mut self.nodes[node];
        if n.lost {
            if !breaks::on(Break::WipedVotes) {
                return;
            }
            // The mistake: an empty replica under the old identity.
            create(&n.disk, volume, n.id, &ids);
            n.lost = false;
        }
        n.boot += 1;
        let disk: Arc<dyn Disk> = Arc::new(n.disk.dir());
        let now = n.clock.now(self.time);
        let recorder = Arc::new(NullRecorder);
        let opened = Store::open(disk, Some((volume, n.id)), recorder.clone())
            .and_then(|(store, report)| Ok((Replica::region(store, now, recorder)?, report)));
        match opened {
            Ok((replica, report)) => {
                let end = replica.store().map(Store::end).unwrap_or_default();
                n.replica = Some(replica);
                self.say(|| format!("node {node} starts at {end:?}, tail {:?}", report.tail));
            }
            Err(e) => {
                // Only harm done to the victim, or a passing I/O error, may keep a region shut.
                self.say(|| format!("node {node} cannot start: {e}"));
                let passing = matches!(e, StoreError::Io { .. } | StoreError::NoSpace { .. });
                if passing {
                    self.after(200 * MS, Event::Start(node));
                } else if node == self.victim && self.harmed {
                    self.nodes[node].lost = true;
                    self.gone_for_good = true;
                } else {
                    self.check(Err(format!(
                        "a region that was never harmed does not open: {e}"
                    )));
                }
            }
        }
    }

    /// The process ends; its connections break a little later.
    pub fn stop_node(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if n.replica.take().is_none() {
            return;
        }
        n.boot += 1;
        n.sync = None;
        n.checkpoint = None;
        for conn in std::mem::take(&mut self.nodes[node].conns) {
            self.break_conn(conn);
        }
    }

    fn boot_ok(&self, node: usize, boot: u64) -> bool {
        self.nodes[node].boot == boot && self.nodes[node].replica.is_some()
    }

    /// Puts an event off while a node is paused. True if it was.
    fn put_off(&mut self, until: u64, event: Event) -> Option<Event> {
        if until > self.time {
            self.at(until, event);
            return None;
        }
        Some(event)
    }

    fn perform(&mut self, node: usize, outs: Vec<Out>) {
        let boot = self.nodes[node].boot;
        for out in outs {
            match out {
                Out::Send(conn, frame) => self.send(conn.0, 1, frame),
                Out::Read(conn, id, job) => {
                    let nanos = 20_000 + self.rng.below(MS);
                    self.after(nanos, Event::ReadDone(node, boot, conn, id, Box::new(job)));
                }
                Out::Close(conn, why) => {
                    self.say(|| format!("node {node} closes a connection: {why}"));
                    self.break_conn(conn.0);
                }
            }
        }
        self.drive_node(node);
        // What a daemon does with a region that trusts its disk no longer: it opens it anew.
        let store = self.nodes[node].replica.as_ref().and_then(Replica::store);
        if store.is_some_and(|s| s.poisoned().is_some()) {
            self.say(|| format!("node {node}: its region is poisoned and is opened anew"));
            self.stop_node(node);
            self.after(100 * MS, Event::Start(node));
        }
    }

    fn drive_node(&mut self, node: usize) {
        let (boot, nanos) = (self.nodes[node].boot, self.nodes[node].sync_nanos);
        let Some(replica) = &mut self.nodes[node].replica else {
            return;
        };
        if let Some(job) = replica.begin_sync() {
            self.nodes[node].sync = Some(job);
            let delay = 50_000 + self.rng.below(nanos);
            self.after(delay, Event::SyncDone(node, boot));
        }
        let Some(replica) = &mut self.nodes[node].replica else {
            return;
        };
        if let Some(job) = replica.begin_checkpoint() {
            self.nodes[node].checkpoint = Some(job);
            self.after(10_000, Event::Checkpoint(node, boot));
        }
    }

    fn sync_done(&mut self, node: usize, boot: u64) {
        let until = self.nodes[node].paused_until;
        let Some(Event::SyncDone(..)) = self.put_off(until, Event::SyncDone(node, boot)) else {
            return;
        };
        if !self.boot_ok(node, boot) {
            return;
        }
        let Some(job) = self.nodes[node].sync.take() else {
            return;
        };
        let result = job.run();
        if let Err(e) = &result {
            let e = e.to_string();
            self.say(|| format!("node {node}: {e}"));
        }
        let mut out = Vec::new();
        if let Some(r) = &mut self.nodes[node].replica {
            r.sync_done(job, result, &mut out);
        }
        self.perform(node, out);
    }

    fn read_done(&mut self, node: usize, boot: u64, conn: ConnId, id: u64, job: Box<ReadJob>) {
        let until = self.nodes[node].paused_until;
        let event = Event::ReadDone(node, boot, conn, id, job);
        let Some(Event::ReadDone(.., job)) = self.put_off(until, event) else {
            return;
        };
        if !self.boot_ok(node, boot) {
            return;
        }
        let result = job.run();
        let mut out = Vec::new();
        if let Some(r) = &mut self.nodes[node].replica {
            r.read_done(conn, id, &job, result, &mut out);
        }
        self.perform(node, out);
    }

    fn checkpoint_step(&mut self, node: usize, boot: u64) {
        use trivet_downstairs::checkpoint::Step;
        let until = self.nodes[node].paused_until;
        if self.put_off(until, Event::Checkpoint(node, boot)).is_none() {
            return;
        }
        if !self.boot_ok(node, boot) {
            return;
        }
        let Some(job) = &mut self.nodes[node].checkpoint else {
            return;
        };
        let step = job.step();
        if matches!(step, Ok(Step::More)) {
            let nanos = 50_000 + self.rng.below(2 * MS);
            self.after(nanos, Event::Checkpoint(node, boot));
            return;
        }
        let Some(job) = self.nodes[node].checkpoint.take() else {
            return;
        };
        let now = self.nodes[node].clock.now(self.time);
        let mut out = Vec::new();
        if let Some(r) = &mut self.nodes[node].replica {
            r.checkpoint_done(now, job, step, &mut out);
        }
        self.perform(node, out);
    }

    // ---- network ----

    fn connect(&mut self, up: usize, inc: u64, node: usize) {
        if self.ups[up].incarnation != inc || self.ups[up].core.is_none() {
            return;
        }
        if self.ups[up].links[node].is_some() {
            return;
        }
        let reachable = self.nodes[node].replica.is_some()
            && self.nodes[node].paused_until <= self.time
            && self.cut[up][node] == [false; 2];
        if !reachable {
            self.after(100 * MS, Event::Connect(up, inc, node));
            return;
        }
        let id = self.next_conn;
        self.next_conn += 1;
        let boot = self.nodes[node].boot;
        self.conns.insert(
            id,
            Conn {
                up,
                up_incarnation: inc,
                node,
                boot,
                open_up: true,
                open_node: true,
                broken: [false; 2],
                last: [self.time; 2],
            },
        );
        self.ups[up].links[node] = Some(id);
        self.nodes[node].conns.push(id);
        if let Some(r) = &mut self.nodes[node].replica {
            r.connected(ConnId(id));
        }
        self.with_up(up, |core, now| core.link_up(now, LinkId(node as u32)));
    }

    /// Sends in direction 0 (to the member) or 1 (to the upstairs), in order, with some delay.
    fn send(&mut self, id: u64, direction: usize, frame: Frame) {
        if self.trace && std::env::var_os("SIM_FRAMES").is_some() {
            self.show_frame(id, direction, &frame);
        }
        let Some(c) = self.conns.get_mut(&id) else {
            return;
        };
        let lossy = self.cut[c.up][c.node][direction];
        if lossy && !c.broken[direction] {
            c.broken[direction] = true;
            // Retransmissions fail for a while, then both ends give up.
            let patience = 500 * MS + self.rng.below(4_000 * MS);
            let other = patience + self.rng.below(2_000 * MS);
            self.after(patience, Event::EndAtUp(id));
            self.after(other, Event::EndAtNode(id));
        }
        let Some(c) = self.conns.get_mut(&id) else {
            return;
        };
        if c.broken[direction] {
            return;
        }
        let delay = match self.rng.below(100) {
            0 => self.rng.below(30 * MS),
            _ => 20_000 + self.rng.below(300_000),
        };
        let held_up = match self.late_claims {
            Some((up, until, nanos)) if up == c.up && self.time < until && is_claim(&frame) => {
                nanos
            }
            _ => 0,
        };
        let at = c.last[direction].max(self.time + delay + held_up) + 1;
        c.last[direction] = at;
        let event = if direction == 0 {
            Event::ToMember(id, frame)
        } else {
            Event::ToUp(id, frame)
        };
        self.at(at, event);
    }

    /// Control messages in words, for people who look for why a world failed.
    fn show_frame(&mut self, id: u64, direction: usize, frame: &Frame) {
        use trivet_protocol::message::{Reply, Request, decode};
        let Some((up, node)) = self.conns.get(&id).map(|c| (c.up, c.node)) else {
            return;
        };
        let text = match frame.header.kind {
            Kind::Request => format!("{:?}", decode::<Request>(&frame.meta)),
            Kind::Reply => format!("{:?}", decode::<Reply>(&frame.meta)),
            kind => format!("{kind:?} {}", frame.header.seq),
        };
        if text.contains("Renew") {
            return;
        }
        let arrow = if direction == 0 { "->" } else { "<-" };
        let text: String = text.chars().take(160).collect();
        let g = frame.header.generation;
        self.say(|| format!("    up {up} {arrow} node {node} {g:?}: {text}"));
    }

    /// A connection breaks: both ends notice, each in its own time; what is on its way may or may
    /// not arrive.
    pub fn break_conn(&mut self, id: u64) {
        let Some(c) = self.conns.get_mut(&id) else {
            return;
        };
        if self.rng.one_in(2) {
            c.broken = [true; 2];
        }
        let (a, b) = (self.rng.below(50 * MS), self.rng.below(50 * MS));
        self.after(a, Event::EndAtUp(id));
        self.after(b, Event::EndAtNode(id));
    }

    pub fn open_conns(&self) -> Vec<u64> {
        self.conns
            .iter()
            .filter(|(_, c)| c.open_up)
            .map(|(id, _)| *id)
            .collect()
    }

    fn end_at_up(&mut self, id: u64) {
        let Some(c) = self.conns.get_mut(&id) else {
            return;
        };
        if !c.open_up {
            return;
        }
        c.open_up = false;
        c.broken[1] = true;
        let (up, inc, node) = (c.up, c.up_incarnation, c.node);
        if self.ups[up].incarnation == inc && self.ups[up].links[node] == Some(id) {
            self.ups[up].links[node] = None;
            self.with_up(up, |core, now| core.link_down(now, LinkId(node as u32)));
            let nanos = 10 * MS + self.rng.below(100 * MS);
            self.after(nanos, Event::Connect(up, inc, node));
        }
        self.forget(id);
    }

    fn end_at_node(&mut self, id: u64) {
        let Some(c) = self.conns.get_mut(&id) else {
            return;
        };
        if !c.open_node {
            return;
        }
        c.open_node = false;
        let (node, boot) = (c.node, c.boot);
        if self.boot_ok(node, boot) {
            self.nodes[node].conns.retain(|c| *c != id);
            if let Some(r) = &mut self.nodes[node].replica {
                r.disconnected(ConnId(id));
            }
        }
        self.forget(id);
    }

    fn forget(&mut self, id: u64) {
        if self
            .conns
            .get(&id)
            .is_some_and(|c| !c.open_up && !c.open_node)
        {
            self.conns.remove(&id);
        }
    }

    fn deliver_to_member(&mut self, id: u64, frame: Frame) {
        let Some(c) = self.conns.get(&id) else { return };
        let (node, boot, open) = (c.node, c.boot, c.open_node);
        let until = self.nodes[node].paused_until;
        let Some(Event::ToMember(_, frame)) = self.put_off(until, Event::ToMember(id, frame))
        else {
            return;
        };
        if !open || !self.boot_ok(node, boot) {
            return;
        }
        let now = self.nodes[node].clock.now(self.time);
        let mut out = Vec::new();
        if let Some(r) = &mut self.nodes[node].replica {
            r.frame(now, ConnId(id), frame, &mut out);
        }
        self.perform(node, out);
    }

    fn deliver_to_up(&mut self, id: u64, frame: Frame) {
        let Some(c) = self.conns.get(&id) else { return };
        let (up, inc, node, open) = (c.up, c.up_incarnation, c.node, c.open_up);
        let until = self.ups[up].paused_until;
        let Some(Event::ToUp(_, frame)) = self.put_off(until, Event::ToUp(id, frame)) else {
            return;
        };
        if open && self.ups[up].incarnation == inc {
            self.with_up(up, |core, now| core.frame(now, LinkId(node as u32), frame));
        }
    }

    // ---- upstairs ----

    /// A new upstairs tries to become active here.
    fn promote(&mut self, up: usize) {
        if self.ups[up].core.is_some() || self.ups[up].paused_until > self.time {
            self.after(500 * MS, Event::Promote(up));
            return;
        }
        let u = &mut self.ups[up];
        u.incarnation += 1;
        u.links = vec![None; self.nodes.len()];
        u.waits.clear();
        u.parked = None;
        u.leaving = false;
        let limits = Limits {
            retain_bytes: 160 * 1024,
            window_bytes: 80 * 1024,
            record_refresh: Duration::from_millis(500),
            ..Limits::default()
        };
        let links = (0..self.nodes.len()).map(|i| format!("n{i}")).collect();
        let config = Config {
            volume: self.volume,
            node: format!("n{up}"),
            links,
            local: Some(LinkId(up as u32)),
            limits,
        };
        u.core = Some(Upstairs::new(config));
        let inc = u.incarnation;
        let options = ActivateOptions {
            claim: u128::from(self.rng.draw()) << 64 | u128::from(self.rng.draw()),
            wait_for_lease: self.rng.one_in(2) || self.healing,
            patience: Duration::from_millis(4_000),
            // After a power cut that left a torn record, with a disk lost for good, only people can
            // say that what was torn is not missed. Here it is not: nothing rots in such a world.
            accept_data_loss: self.time > FAULTS_END + 8_000 * MS && self.harmed,
        };
        self.say(|| format!("up {up} is promoted"));
        self.with_up(up, |core, now| core.activate(now, options));
        for node in 0..self.nodes.len() {
            let nanos = self.rng.below(20 * MS);
            self.after(nanos, Event::Connect(up, inc, node));
        }
        self.after(5 * MS, Event::Tick(up, inc));
    }

    /// The process ends.
    pub fn stop_up(&mut self, up: usize) {
        if self.ups[up].core.take().is_none() {
            return;
        }
        self.ups[up].incarnation += 1;
        let links = std::mem::take(&mut self.ups[up].links);
        self.ups[up].links = vec![None; self.nodes.len()];
        for conn in links.into_iter().flatten() {
            self.break_conn(conn);
        }
    }

    fn tick(&mut self, up: usize, inc: u64) {
        if self.ups[up].incarnation != inc || self.ups[up].core.is_none() {
            return;
        }
        let until = self.ups[up].paused_until;
        if self.put_off(until, Event::Tick(up, inc)).is_none() {
            return;
        }
        self.with_up(up, |core, now| core.tick(now));
        self.after(5 * MS, Event::Tick(up, inc));
    }

    fn with_up(&mut self, up: usize, f: impl FnOnce(&mut Upstairs, Now)) {
        let now = self.ups[up].clock.now(self.time);
        let Some(core) = &mut self.ups[up].core else {
            return;
        };
        f(core, now);
        self.effects(up);
    }

    fn effects(&mut self, up: usize) {
        loop {
            let Some(core) = &mut self.ups[up].core else {
                return;
            };
            let effects: Vec<Effect> = core.effects().collect();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.effect(up, effect);
            }
        }
    }

    fn effect(&mut self, up: usize, effect: Effect) {
        let generation = self.ups[up]
            .core
            .as_ref()
            .map_or(0, |c| c.generation().number);
        match effect {
            Effect::Send(link, out) => {
                if let Some(conn) = self.ups[up].links[link.index()] {
                    self.send(conn, 0, out.frame);
                }
            }
            Effect::Reset(link) => {
                if let Some(conn) = self.ups[up].links[link.index()] {
                    self.break_conn(conn);
                }
            }
            Effect::Verify(v) => {
                let good = v.check(self.volume);
                let now = self.ups[up].clock.now(self.time);
                if let Some(core) = &mut self.ups[up].core {
                    core.verified(now, v, good);
                }
            }
            Effect::Room => self.try_parked(up),
            Effect::Flushed(wait, Ok(receipt)) => {
                let table = self.ups[up].core.as_ref().map(|c| c.table().clone());
                if let Some(table) = table {
                    let upto = receipt.upto().0;
                    let result = self.model.durable(generation, &table, upto);
                    self.check(result);
                }
                if let Some(Wait::LeaveFlush) = self.ups[up].waits.remove(&wait) {
                    self.say(|| format!("up {up} hands back"));
                    let now = self.ups[up].clock.now(self.time);
                    if let Some(core) = &mut self.ups[up].core {
                        core.hand_back(now);
                    }
                    self.after_leaving(up);
                }
            }
            Effect::Flushed(wait, Err(_)) => {
                self.ups[up].waits.remove(&wait);
            }
            Effect::Read(wait, result) => self.read_answer(up, generation, wait, result),
            Effect::Activated(result) => {
                let text = format!("{result:?}");
                self.say(|| format!("up {up}: {text}"));
                match result {
                    Ok(_) => self.activated(up, generation),
                    Err(_) => self.gone(up),
                }
            }
            Effect::Notice(n) => {
                self.say(|| format!("up {up}: {n:?}"));
                if matches!(n, trivet_replica::upstairs::Notice::Deposed { .. }) {
                    self.gone(up);
                }
            }
        }
    }

    /// For people who look for why a world failed.
    fn describe_nodes(&self) {
        for (i, n) in self.nodes.iter().enumerate() {
            if let Some(r) = &n.replica {
                println!("node {i}: {}", r.describe());
            }
        }
    }

    fn after_leaving(&mut self, up: usize) {
        // The process lives on for a moment, until the members have heard.
        let nanos = 50 * MS;
        self.ups[up].leaving = true;
        let inc = self.ups[up].incarnation;
        self.after(nanos, Event::Gone(up, inc));
        let next = self.rng.below(self.ups.len() as u64) as usize;
        self.after(nanos, Event::Promote(next));
    }

    fn gone(&mut self, up: usize) {
        // The process lives on for a moment: what it hands back gets out.
        let inc = self.ups[up].incarnation;
        self.ups[up].leaving = true;
        self.after(50 * MS, Event::Gone(up, inc));
        let next = self.rng.below(self.ups.len() as u64) as usize;
        let nanos = 100 * MS + self.rng.below(500 * MS);
        self.after(nanos, Event::Promote(next));
    }

    fn activated(&mut self, up: usize, generation: u64) {
        let Some(core) = &self.ups[up].core else {
            return;
        };
        let table = core.table().clone();
        match self.model.activated(generation, &table, BLOCKS) {
            Ok(content) => {
                self.ups[up].versions = Versions::new(&content, table.end().seq);
                self.ups[up].content = content;
                let inc = self.ups[up].incarnation;
                if self.ups[up].client != inc {
                    self.ups[up].client = inc;
                    self.after(MS, Event::Client(up, inc));
                }
            }
            Err(why) => self.check(Err(why)),
        }
    }

    // ---- the workload ----

    fn client(&mut self, up: usize, inc: u64) {
        if self.ups[up].incarnation != inc || self.ups[up].leaving {
            return;
        }
        let until = self.ups[up].paused_until;
        if self.put_off(until, Event::Client(up, inc)).is_none() {
            return;
        }
        if self.ups[up].core.is_none() {
            return;
        }
        let quiet = self.time > FAULTS_END + 3_000 * MS;
        match self.rng.below(10) {
            0..5 if quiet => {}
            0..5 if self.ups[up].parked.is_none() => self.submit_random(up),
            5 | 6 => self.read_random(up),
            _ => self.flush(up, Wait::Flush),
        }
        if self.rng.one_in(1500) && !self.healing {
            self.flush(up, Wait::LeaveFlush);
        }
        let nanos = match self.rng.below(20) {
            0 => self.rng.below(60 * MS),
            _ => self.rng.below(4 * MS),
        };
        self.after(nanos, Event::Client(up, inc));
    }

    fn wait(&mut self, up: usize, wait: Wait) -> WaitId {
        let u = &mut self.ups[up];
        u.next_wait += 1;
        u.waits.insert(WaitId(u.next_wait), wait);
        WaitId(u.next_wait)
    }

    fn flush(&mut self, up: usize, kind: Wait) {
        let wait = self.wait(up, kind);
        self.with_up(up, |core, now| core.flush(now, core.last(), wait));
    }

    fn read_random(&mut self, up: usize) {
        let block = self.rng.below(BLOCKS);
        let count = 1 + self.rng.below((BLOCKS - block).min(24));
        let since = self.ups[up].core.as_ref().map_or(Seq(0), Upstairs::last);
        let wait = self.wait(
            up,
            Wait::Read {
                block,
                count,
                since,
            },
        );
        self.with_up(up, |core, now| {
            core.read(now, Block(block), count as u32, wait)
        });
    }

    fn read_answer(
        &mut self,
        up: usize,
        generation: u64,
        wait: WaitId,
        result: Result<Bytes, trivet_replica::VolumeError>,
    ) {
        let Some(Wait::Read {
            block,
            count,
            since,
        }) = self.ups[up].waits.remove(&wait)
        else {
            return;
        };
        match result {
            Ok(data) => {
                self.model.reads += 1;
                let ack = self.model.acknowledged(generation, "read");
                self.check(ack);
                for i in 0..count {
                    let at = i as usize * BLOCK_BYTES;
                    let tag = tag_of(&data[at..at + BLOCK_BYTES]);
                    let allowed = self.ups[up].versions.allowed(block + i, since, tag);
                    if allowed.is_err() && self.trace {
                        self.describe_nodes();
                        let held: Vec<_> = self
                            .nodes
                            .iter()
                            .filter_map(|n| n.replica.as_ref()?.store())
                            .map(|s| s.read(Block(block + i), 1).map(|b| tag_of(&b.data)))
                            .collect();
                        println!("since {since}, held {held:x?}");
                        println!("versions {:x?}", self.ups[up].versions.of(block + i));
                    }
                    self.check(allowed);
                }
            }
            Err(trivet_replica::VolumeError::Unreadable { block, why }) => {
                // One replica at most was harmed: another must have served.
                self.check(Err(format!("I7: block {block} unreadable: {why}")));
            }
            Err(_) => {}
        }
    }

    fn random_batch(&mut self) -> (Batch, ModelOp) {
        let mut batch = Batch::default();
        let mut op = ModelOp { parts: Vec::new() };
        for _ in 0..1 + self.rng.below(3) {
            let (long, discard) = (self.rng.one_in(8), self.rng.one_in(6));
            let most = if long { 24 } else { 4 };
            let block = self.rng.below(BLOCKS);
            let count = 1 + self.rng.below((BLOCKS - block).min(most));
            if discard {
                let count = if self.rng.one_in(4) {
                    BLOCKS - block
                } else {
                    count
                };
                batch.ops.push(BatchOp::Discard {
                    block: Block(block),
                    count,
                });
                op.parts.push((block, count, 0));
                continue;
            }
            let tag = self.next_tag;
            self.next_tag += count;
            let data: Vec<u8> = (0..count).flat_map(|i| content_of(tag + i)).collect();
            batch.ops.push(BatchOp::Write {
                block: Block(block),
                data: data.into(),
            });
            op.parts.push((block, count, tag));
        }
        (batch, op)
    }

    fn submit_random(&mut self, up: usize) {
        let (batch, op) = self.random_batch();
        let prepared = Arc::new(Prepared::new(self.volume, batch));
        self.submit(up, prepared, op);
    }

    fn submit(&mut self, up: usize, prepared: Arc<Prepared>, op: ModelOp) {
        let now = self.ups[up].clock.now(self.time);
        let Some(core) = &mut self.ups[up].core else {
            return;
        };
        let generation = core.generation().number;
        match core.submit(now, &prepared) {
            Submitted::At(seq) => {
                self.operations += 1;
                let result = self.model.ordered(generation, seq, op.clone());
                self.check(result);
                self.ups[up].versions.ordered(seq, &op);
                apply(&mut self.ups[up].content, &op);
            }
            Submitted::Full => self.ups[up].parked = Some((prepared, op)),
            Submitted::Failed(_) => {}
        }
        self.effects(up);
    }

    fn try_parked(&mut self, up: usize) {
        if let Some((prepared, op)) = self.ups[up].parked.take() {
            self.submit(up, prepared, op);
        }
    }

    // ---- the end ----

    fn heal_everything(&mut self) {
        self.healing = true;
        self.say(|| "faults end; everything must heal".into());
        for cut in self.cut.iter_mut().flatten() {
            *cut = [false; 2];
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].sync_nanos = 2 * MS;
            self.nodes[node].disk.heal();
            self.nodes[node].disk.set_capacity(None);
            self.at(self.time, Event::Start(node));
        }
        let up = self.rng.below(self.ups.len() as u64) as usize;
        self.after(500 * MS, Event::Promote(up));
    }

    fn finish(mut self) -> Result<Outcome, String> {
        let seed = self.seed;
        let fail = |why: String| Err(format!("{why}\n  at the end of seed {seed}"));
        let Some(up) = self
            .ups
            .iter()
            .position(|u| u.core.as_ref().is_some_and(Upstairs::is_active))
        else {
            self.describe_nodes();
            return fail("liveness: nobody is active although everything was healed".into());
        };
        if !self.is_well() {
            self.describe_nodes();
            let core = self.ups[up].core.as_ref();
            let status = core.map(|c| c.status(self.ups[up].clock.now(self.time)));
            return fail(format!("liveness: not redundant again: {status:#?}"));
        }
        // Every replica in sync holds, block by block, what the history says (scrub).
        let Some(core) = &self.ups[up].core else {
            return fail("gone".into());
        };
        let table = core.table().clone();
        let in_sync = core.record().map(|r| r.in_sync.clone()).unwrap_or_default();
        let content = self.model.content_of(&table, BLOCKS)?;
        for i in 0..self.nodes.len() {
            if !in_sync.contains(&self.nodes[i].id) {
                continue;
            }
            let Some(store) = self.nodes[i].replica.as_ref().and_then(Replica::store) else {
                return fail(format!("node {i} is in sync and not running"));
            };
            if self.harmed && i == self.victim {
                continue;
            }
            for (block, tag) in content.iter().enumerate() {
                let read = store
                    .read(Block(block as u64), 1)
                    .map_err(|e| e.to_string())?;
                let have = tag_of(&read.data);
                if have != *tag {
                    return fail(format!(
                        "I4: node {i} is in sync and holds {have:#x} in block {block}; {tag:#x} is due"
                    ));
                }
            }
        }
        self.mix(self.operations);
        Ok(Outcome {
            operations: self.operations,
            acks: self.model.acks,
            reads: self.model.reads,
            activations: self.model.activations,
            trace: self.hash,
        })
    }
}

fn is_claim(frame: &Frame) -> bool {
    use trivet_protocol::message::{Request, decode};
    frame.header.kind == Kind::Request && matches!(decode(&frame.meta), Ok(Request::Claim { .. }))
}

fn content_of(tag: Tag) -> impl Iterator<Item = u8> {
    tag.to_le_bytes().into_iter().cycle().take(BLOCK_BYTES)
}

fn tag_of(data: &[u8]) -> Tag {
    let mut raw = [0; 8];
    raw.copy_from_slice(&data[..8]);
    Tag::from_le_bytes(raw)
}

/// Creates the volume's region on one node.
fn create(disk: &SimDisk, volume: VolumeId, id: MemberId, ids: &[MemberId]) {
    let info = |id: &MemberId| MemberInfo {
        id: *id,
        node: format!("n{}", id.bytes()[0] - 1),
        kind: MemberKind::Replica,
        opens: 0,
        durable: Position::default(),
    };
    let record = Record {
        version: RecordVersion::default(),
        volume,
        blocks: BLOCKS,
        members: ids.iter().map(info).collect(),
        in_sync: ids.iter().copied().collect(),
        min_copies: 2,
        lease: Millis(2000),
        losses: 0,
    };
    let mut region = Region::new(volume, id, BLOCKS);
    region.extent_blocks = 64;
    region.log_bytes = LOG_BYTES;
    let dir: Arc<dyn Disk> = Arc::new(disk.dir());
    Store::create(&dir, &region).expect("a fresh simulated disk takes a region");
    let (mut store, _) =
        Store::open(dir, None, Arc::new(NullRecorder)).expect("it was just created");
    let state = MemberState::new(id, record);
    let raw = serde_json::to_vec(&state).expect("plain data");
    store
        .set_member_state(raw)
        .expect("a fresh simulated disk takes a state");
    store.close().expect("a fresh simulated disk syncs");
}
