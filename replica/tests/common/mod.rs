//! A hand-made world of frames around an upstairs, for tests that tell one story each.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "each test takes what it needs"
)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trivet_protocol::frame::{Frame, Header, Kind};
use trivet_protocol::message::{self, DataState, Refusal, Reply, Request, Tail, Welcome};
use trivet_protocol::{
    BLOCK_BYTES, Batch, Block, Entry, Generation, GenerationTable, MemberId, MemberInfo,
    MemberKind, Millis, Now, Position, Record, RecordVersion, Seq, VolumeId,
};
use trivet_replica::upstairs::{
    ActivateOptions, Config, Effect, Limits, LinkId, Prepared, Submitted, Upstairs,
};

pub const MS: u64 = 1_000_000;

pub fn id(i: u8) -> MemberId {
    MemberId::from_bytes([i + 1; 16])
}

pub fn volume() -> VolumeId {
    VolumeId::from_bytes([7; 16])
}

pub fn record(n: u8, set: &[u8]) -> Record {
    Record {
        version: RecordVersion {
            generation: 1,
            number: 0,
        },
        volume: volume(),
        blocks: 1000,
        members: (0..n)
            .map(|i| MemberInfo {
                id: id(i),
                node: format!("n{i}"),
                kind: MemberKind::Replica,
                opens: 0,
                durable: Position::default(),
            })
            .collect(),
        in_sync: set.iter().map(|i| id(*i)).collect(),
        min_copies: 1,
        lease: Millis(2000),
        losses: 0,
    }
}

/// A member as far as these tests need one.
pub struct Fake {
    pub id: MemberId,
    pub up: bool,
    pub record: Record,
    pub table: GenerationTable,
    pub durable: Seq,
    pub data: DataState,
    pub promise: Generation,
    pub removed: bool,
    /// Syncs are answered.
    pub syncs: bool,
    /// Promised to somebody else.
    pub fenced: Option<u64>,
    /// As soon as the promise is handed back somebody else serves, writes and hands back.
    pub foreign: bool,
    /// Requests not answered, for the test to answer.
    pub silent: fn(&Request) -> bool,
    /// Operations that its log holds no longer.
    pub not_in_log: std::ops::RangeInclusive<u64>,
    pub kind: MemberKind,
    pub opens: u64,
    /// The commit position that it was last told.
    pub commit: Seq,
    /// It answers as if under another identity.
    pub welcomes: fn(&mut Welcome),
    pub kept: Vec<(u64, Request)>,
    pub seen: Vec<Request>,
}

pub struct World {
    pub up: Upstairs,
    pub now: Now,
    pub fakes: Vec<Fake>,
    pub effects: Vec<Effect>,
}

impl World {
    pub fn new(record: &Record, rows: &[&[(u64, u64)]]) -> World {
        let n = rows.len();
        let config = Config {
            volume: volume(),
            node: "u".into(),
            links: (0..n).map(|i| format!("n{i}")).collect(),
            local: None,
            limits: Limits::default(),
        };
        let fakes = rows.iter().enumerate().map(|(i, rows)| {
            let rows: Vec<_> = rows.iter().map(|r| (r.0, Seq(r.1))).collect();
            let table = GenerationTable::from_parts(Seq(0), rows).unwrap();
            Fake {
                id: id(i as u8),
                up: true,
                record: record.clone(),
                durable: table.end().seq,
                table,
                data: DataState::Whole(Tail::Clean),
                promise: Generation::NONE,
                removed: false,
                syncs: true,
                fenced: None,
                foreign: false,
                silent: |_| false,
                not_in_log: 0..=0,
                kind: MemberKind::Replica,
                opens: 1,
                commit: Seq(0),
                welcomes: |_| {},
                kept: vec![],
                seen: vec![],
            }
        });
        World {
            up: Upstairs::new(config),
            now: Now(1000 * MS),
            fakes: fakes.collect(),
            effects: vec![],
        }
    }

    pub fn connect(&mut self, i: usize) {
        self.fakes[i].up = true;
        self.up.link_up(self.now, LinkId(i as u32));
        self.pass();
    }

    pub fn lose(&mut self, i: usize) {
        self.fakes[i].up = false;
        self.up.link_down(self.now, LinkId(i as u32));
        self.pass();
    }

    pub fn activate(&mut self) {
        self.up.activate(
            self.now,
            ActivateOptions {
                claim: 5 << 64,
                wait_for_lease: true,
                patience: Duration::from_secs(8),
                accept_data_loss: false,
            },
        );
        self.pass();
    }

    pub fn tick(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(5) {
            self.now = Now(self.now.0 + 5 * MS);
            self.up.tick(self.now);
            self.pass();
        }
    }

    pub fn reply(&mut self, i: usize, request: u64, reply: &Reply) {
        let frame = Frame {
            header: Header::new(Kind::Reply, self.fakes[i].promise, request),
            meta: message::encode(reply),
            data: vec![],
        };
        self.up.frame(self.now, LinkId(i as u32), frame);
    }

    pub fn durable(&mut self, i: usize, upto: u64) {
        let mut header = Header::new(Kind::Durable, self.fakes[i].promise, upto);
        header.aux = 1 << 40;
        let frame = Frame {
            header,
            meta: Bytes::new(),
            data: vec![],
        };
        self.up.frame(self.now, LinkId(i as u32), frame);
    }

    /// Lets members answer until nothing moves, or too much does.
    pub fn pass(&mut self) -> usize {
        for round in 0..2000 {
            let effects: Vec<Effect> = self.up.effects().collect();
            if effects.is_empty() {
                return round;
            }
            for e in effects {
                match e {
                    Effect::Send(link, out) | Effect::Renew(link, out) => {
                        self.deliver(link.0 as usize, out.frame);
                    }
                    other => self.effects.push(other),
                }
            }
        }
        2000
    }

    pub fn welcome(f: &Fake) -> Welcome {
        let mut w = Welcome {
            member: f.id,
            kind: f.kind,
            record: f.record.clone(),
            promise: f.promise,
            holder: "u".into(),
            lease_left: Millis(0),
            handed_back: false,
            held_for: Millis(0),
            data: f.data,
            table: f.table.clone(),
            durable: Position {
                generation: f.table.end().generation,
                seq: f.durable,
            },
            checkpointed: Seq(0),
            log_first: Seq(1),
            opens: f.opens,
            credit: 1 << 40,
            pool_free: 1 << 40,
            pool_size: 1 << 40,
        };
        if f.kind == MemberKind::Witness {
            w.durable = f.record.version.position();
        }
        (f.welcomes)(&mut w);
        w
    }

    fn deliver(&mut self, i: usize, frame: Frame) {
        let f = &mut self.fakes[i];
        if !f.up {
            return;
        }
        f.commit = f.commit.max(frame.header.commit);
        match frame.header.kind {
            Kind::Append => {
                f.table.extend(frame.header.aux, Seq(frame.header.seq));
            }
            Kind::Sync if f.syncs => {
                f.durable = f.table.end().seq;
                let upto = f.durable.0;
                self.durable(i, upto);
            }
            Kind::Request => {
                let request: Request = message::decode(&frame.meta).unwrap();
                f.seen.push(request.clone());
                if (f.silent)(&request) {
                    f.kept.push((frame.header.seq, request));
                    return;
                }
                let reply = match request {
                    Request::Hello { .. } if f.removed => {
                        Reply::Refused(Refusal::Removed(Box::new(f.record.clone())))
                    }
                    Request::Hello { .. } | Request::Status => Reply::Welcome(Self::welcome(f)),
                    Request::Renew if f.fenced.is_some() => Reply::Refused(Refusal::Fenced {
                        promise: Generation {
                            number: f.fenced.unwrap(),
                            claim: 1,
                        },
                        holder: "other".into(),
                    }),
                    Request::HandBack if f.foreign => {
                        f.foreign = false;
                        let end = f.table.end().seq.0;
                        (end + 1..end + 4).for_each(|s| assert!(f.table.extend(70, Seq(s))));
                        f.durable = f.table.end().seq;
                        f.promise = Generation {
                            number: 70,
                            claim: 1,
                        };
                        f.record.version = RecordVersion {
                            generation: 70,
                            number: 0,
                        };
                        Reply::Done
                    }
                    Request::Claim { .. } => {
                        f.fenced = None;
                        f.promise = frame.header.generation;
                        Reply::Granted(Self::welcome(f))
                    }
                    Request::Renew => Reply::Renewed,
                    Request::PutRecord(r) => {
                        f.record = r.clone();
                        Reply::Recorded(r.version)
                    }
                    Request::Cut(to) => {
                        f.table.cut(to);
                        f.durable = f.durable.min(to);
                        Reply::Done
                    }
                    Request::BeginResync { table, .. } => {
                        f.table = table;
                        f.durable = f.table.end().seq;
                        f.data = DataState::Mixed(Seq(1));
                        Reply::Done
                    }
                    Request::FinishResync => {
                        f.data = DataState::Whole(Tail::Clean);
                        Reply::Done
                    }
                    Request::HandBack => Reply::Done,
                    Request::Fetch { from, .. } if f.not_in_log.contains(&from.0) => {
                        Reply::Refused(Refusal::NotInLog(from))
                    }
                    Request::Fetch { from, .. } => {
                        // One at a time is allowed.
                        let generation = f.table.generation_of(from).unwrap();
                        let data = Bytes::from(vec![1; BLOCK_BYTES]);
                        let batch = Batch::write(Block(1), data);
                        let entry = Entry::new(volume(), from, generation, batch);
                        let mut header = Header::new(Kind::LogEntry, f.promise, from.0);
                        header.aux = generation;
                        let (meta, data) = (entry.encode_meta(), entry.data);
                        let (first, last) = (Seq(1), f.table.end().seq);
                        let frame = Frame { header, meta, data };
                        self.up.frame(self.now, LinkId(i as u32), frame);
                        Reply::Fetched { first, last }
                    }
                    Request::Changed { .. } => Reply::Changed {
                        ranges: vec![],
                        next: None,
                    },
                    _ => return,
                };
                self.reply(i, frame.header.seq, &reply);
            }
            _ => {}
        }
    }

    pub fn try_submit(&mut self) -> Submitted {
        let data = Bytes::from(vec![1; BLOCK_BYTES]);
        let batch = Arc::new(Prepared::new(volume(), Batch::write(Block(3), data)));
        let s = self.up.submit(self.now, &batch);
        self.pass();
        s
    }

    pub fn submit(&mut self) -> Seq {
        match self.try_submit() {
            Submitted::At(seq) => seq,
            other => panic!("{other:?}"),
        }
    }
}
