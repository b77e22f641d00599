//! The simulated world: nodes with disks, upstairs that come and go, connections, time.

use std::cmp::Reverse;
mod changes;
mod client;
mod net;
mod nodes;
mod scrub;
mod ups;

use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trivet_downstairs::checkpoint::CheckpointJob;
use trivet_downstairs::disk::Disk;
use trivet_downstairs::disk::sim::{Rng, SimDisk, Snapshot};
use trivet_downstairs::member::MemberState;
use trivet_downstairs::replica::{ConnId, Out, Replica};
use trivet_downstairs::store::{ReadJob, ScrubJob, SyncJob, Synced};
use trivet_downstairs::{Region, Store, StoreError, Witness};
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

use self::changes::Change;
use crate::coverage::Coverage;
use crate::model::{Model, ModelOp, Tag, Versions, apply};
use crate::scenario::{Stage, Story};
use crate::{Options, Outcome};

/// Blocks in the volume.
pub const BLOCKS: u64 = 160;
/// Blocks of an extent file.
pub const EXTENT_BLOCKS: u32 = 64;
const LOG_BYTES: u64 = 512 * 1024;
pub const MS: u64 = 1_000_000;
/// Faults happen until then; afterwards everything must heal.
const FAULTS_END: u64 = 14_000 * MS;
/// So long after the faults have ended everything must be well again.
const PATIENCE: u64 = 20_000 * MS;
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

    pub fn now(&self, t: u64) -> Now {
        let drift = (i128::from(t) * i128::from(self.ppm) / 1_000_000) as i64;
        Now(self.offset + t.saturating_add_signed(drift))
    }
}

/// One machine with a member on it.
pub struct Node {
    pub disk: SimDisk,
    pub id: MemberId,
    pub kind: MemberKind,
    /// No member lives here yet.
    pub spare: bool,
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
    sync: Option<SyncUnderWay>,
    checkpoint: Option<CheckpointJob>,
    conns: Vec<u64>,
}

/// A sync, and what came of it if it ran already: it may cover nothing that was written after it
/// began, or everything up to its end.
struct SyncUnderWay {
    job: SyncJob,
    ran: Option<Result<Synced, StoreError>>,
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

pub enum Wait {
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
    ScrubDone(usize, u64, ConnId, u64, Box<ScrubJob>),
    Scrub(usize, u64),
    Checkpoint(usize, u64),
    Client(usize, u64),
    Promote(usize),
    Start(usize),
    Fault,
    Heal(usize, usize, usize),
    Fast(usize),
    Gone(usize, u64),
    Change(Change, u64),
    Nemesis,
    /// A story may go on; see [`crate::scenario`].
    Story,
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
    /// Some read of a disk failed.
    pub reads_failed: bool,
    /// Who began the last scrub.
    scrubbed_by: Option<(usize, u64)>,
    pub healing: bool,
    /// Faults happen until then.
    pub faults_end: u64,
    /// Clients write on for so long after the faults have ended.
    pub settle: u64,
    pub stage: Stage,
    pub coverage: Coverage,
    volume: VolumeId,
    /// The record that the volume was created with.
    first: Record,
    /// Members are added, removed and replaced in this world.
    pub changing: bool,
    next_member: u8,
    pub model: Model,
    next_tag: Tag,
    violation: Option<String>,
    operations: u64,
}

impl World {
    pub fn new(options: &Options) -> World {
        // Mixed: the generator counts, so that seeds as they are would give neighbouring worlds the
        // same numbers, one further on.
        let mut rng = Rng(Rng(options.seed).draw());
        let volume = VolumeId::from_bytes([7; 16]);
        // Three replicas, or two and a witness; in some worlds members change, with nodes to spare.
        // Stories are told of three replicas.
        let kind = options.about.of_seed(options.seed);
        let shape = if kind.is_some() { 9 } else { rng.below(10) };
        let (witness, changing) = (matches!(shape, 0..3), matches!(shape, 2..7));
        let (members, n) = (3, if changing { 5 } else { 3 });
        let first = first_record(volume, members, witness);
        let mut nodes = Vec::new();
        for i in 0..n {
            let disk = SimDisk::new();
            let (id, kind) = match first.members.get(i) {
                Some(m) => (m.id, m.kind),
                None => (MemberId::from_bytes([0xee; 16]), MemberKind::Replica),
            };
            let spare = i >= members;
            if !spare {
                create(&disk, id, kind, &first);
            }
            nodes.push(Node {
                disk,
                id,
                kind,
                spare,
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
        let ups = (0..members).map(|_| Up {
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
        let victim = if witness { 2 } else { rng.below(3) as usize };
        let story = kind.map(|kind| Story::new(kind, options.seed));
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
            cut: vec![vec![[false; 2]; n]; members],
            late_claims: None,
            victim,
            harmed: false,
            gone_for_good: false,
            reads_failed: false,
            scrubbed_by: None,
            healing: false,
            faults_end: FAULTS_END,
            settle: 3_000 * MS,
            stage: Stage::of(story),
            coverage: Coverage::default(),
            volume,
            first,
            changing,
            next_member: 0x80,
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

    pub fn check(&mut self, result: Result<(), String>) {
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
        match &self.stage.story {
            Some(story) => {
                self.at(0, Event::Promote(story.first()));
                self.at(0, Event::Story);
            }
            None => {
                self.at(0, Event::Promote(0));
                let first = self.rng.below(400 * MS);
                self.at(first, Event::Fault);
                if self.changing {
                    let first = self.rng.below(1_500 * MS);
                    self.at(first, Event::Nemesis);
                }
            }
        }
        while let Some(Reverse(Queued(time, _, event))) = self.queue.pop() {
            self.time = self.time.max(time);
            self.events += 1;
            self.mix(time);
            if !self.healing && self.time >= self.faults_end {
                self.heal_everything();
            }
            self.event(event);
            self.tell();
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
            let well = self.healing && self.is_well();
            if self.time >= self.faults_end + PATIENCE || (well && self.last_scrub()) {
                break;
            }
        }
        self.finish()
    }

    /// Who serves.
    fn active(&self) -> Option<usize> {
        let serves = |u: &Up| u.core.as_ref().is_some_and(Upstairs::is_active);
        self.ups.iter().position(serves)
    }

    fn is_well(&self) -> bool {
        let core = self.active().and_then(|up| self.ups[up].core.as_ref());
        let Some(core) = core else {
            return false;
        };
        let whole = |r: &Record| r.replicas().filter(|m| self.can_be_whole(m.id)).count();
        core.record()
            .is_some_and(|r| r.in_sync.len() >= whole(r).min(3))
            && core.record_settled()
            && core.commit() == core.last()
            && core
                .status(Now(0))
                .members
                .iter()
                .all(|m| !m.in_sync || m.durable == core.last())
            && self.time > self.faults_end + self.settle
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
            Event::ScrubDone(node, boot, conn, id, job) => {
                self.scrub_done(node, boot, conn, id, job);
            }
            Event::Scrub(up, inc) => {
                if self.ups[up].incarnation == inc {
                    self.scrub(up);
                }
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
            Event::Change(change, until) => self.change(change, until),
            Event::Nemesis => self.nemesis(),
            Event::Fast(node) => self.nodes[node].sync_nanos = 2 * MS,
            Event::Story if self.stage.story.is_some() => self.after(5 * MS, Event::Story),
            Event::Story => {}
        }
    }

    // ---- the end ----

    fn heal_everything(&mut self) {
        self.healing = true;
        self.stage = Stage::default();
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
        let Some(up) = self.active() else {
            self.describe_nodes();
            return fail("liveness: nobody is active although everything was healed".into());
        };
        if !self.is_well() {
            self.describe_nodes();
            let core = self.ups[up].core.as_ref();
            let status = core.map(|c| c.status(self.ups[up].clock.now(self.time)));
            return fail(format!("liveness: not redundant again: {status:#?}"));
        }
        if let Err(why) = self.last_scrub_is_good(up) {
            return fail(why);
        }
        // Every replica in sync holds, block by block, what the history says; also where it had
        // been harmed, after the scrub.
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
            coverage: self.coverage,
        })
    }
}

fn is_claim(frame: &Frame) -> bool {
    use trivet_protocol::message::{Request, decode};
    frame.header.kind == Kind::Request && matches!(decode(&frame.meta), Ok(Request::Claim { .. }))
}

/// Blocks of these many tags in order.
fn content_of(tag: Tag, count: u64) -> Vec<u8> {
    let mut data = vec![0; count as usize * BLOCK_BYTES];
    for (i, block) in data.chunks_exact_mut(BLOCK_BYTES).enumerate() {
        let tag = (tag + i as u64).to_le_bytes();
        block
            .chunks_exact_mut(8)
            .for_each(|c| c.copy_from_slice(&tag));
    }
    data
}

fn tag_of(data: &[u8]) -> Tag {
    let mut raw = [0; 8];
    raw.copy_from_slice(&data[..8]);
    Tag::from_le_bytes(raw)
}

fn first_record(volume: VolumeId, members: usize, witness: bool) -> Record {
    let info = |i: usize| MemberInfo {
        id: MemberId::from_bytes([i as u8 + 1; 16]),
        node: format!("n{i}"),
        kind: match witness && i == members - 1 {
            true => MemberKind::Witness,
            false => MemberKind::Replica,
        },
        opens: 0,
        durable: Position::default(),
    };
    let members: Vec<_> = (0..members).map(info).collect();
    let replicas = members.iter().filter(|m| m.kind == MemberKind::Replica);
    Record {
        version: RecordVersion::default(),
        volume,
        blocks: BLOCKS,
        in_sync: replicas.map(|m| m.id).collect(),
        members,
        min_copies: if witness { 1 } else { 2 },
        lease: Millis(2000),
        losses: 0,
    }
}

/// Creates a region or a witness on one node, with a copy of a record.
fn create(disk: &SimDisk, id: MemberId, kind: MemberKind, record: &Record) {
    let dir: Arc<dyn Disk> = Arc::new(disk.dir());
    let state = MemberState::new(id, record.clone());
    if kind == MemberKind::Witness {
        Witness::create(&*dir, &state).expect("a fresh simulated disk takes a witness");
        return;
    }
    let mut region = Region::new(record.volume, id, record.blocks);
    region.extent_blocks = EXTENT_BLOCKS;
    region.log_bytes = LOG_BYTES;
    Store::create(&dir, &region).expect("a fresh simulated disk takes a region");
    let (mut store, _) =
        Store::open(dir, None, Arc::new(NullRecorder)).expect("it was just created");
    let raw = serde_json::to_vec(&state).expect("plain data");
    store
        .set_member_state(raw)
        .expect("a fresh simulated disk takes a state");
    store.close().expect("a fresh simulated disk syncs");
}
