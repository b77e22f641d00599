//! Interleavings that once lost data, served stale reads or stood still: each test tells the story
//! of its bug and fails while that is there. A hand-made world of frames around the upstairs.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trivet_protocol::frame::{Frame, Header, Kind};
use trivet_protocol::message::{self, DataState, Refusal, Reply, Request, Tail, Welcome};
use trivet_protocol::{
    BLOCK_BYTES, Batch, Block, Generation, GenerationTable, MemberId, MemberInfo, MemberKind,
    Millis, Now, Position, Record, RecordVersion, Seq, VolumeId,
};
use trivet_replica::upstairs::{
    ActivateOptions, Config, Effect, Limits, LinkId, Prepared, Submitted, Upstairs,
};

const MS: u64 = 1_000_000;

fn id(i: u8) -> MemberId {
    MemberId::from_bytes([i + 1; 16])
}

fn volume() -> VolumeId {
    VolumeId::from_bytes([7; 16])
}

fn record(n: u8, set: &[u8]) -> Record {
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
struct Fake {
    id: MemberId,
    up: bool,
    record: Record,
    table: GenerationTable,
    durable: Seq,
    data: DataState,
    promise: Generation,
    removed: bool,
    /// Syncs are answered.
    syncs: bool,
    /// Promised to somebody else.
    fenced: Option<u64>,
    /// As soon as the promise is handed back somebody else serves, writes and hands back.
    foreign: bool,
    /// Requests not answered, for the test to answer.
    silent: fn(&Request) -> bool,
    kept: Vec<(u64, Request)>,
    seen: Vec<Request>,
}

struct World {
    up: Upstairs,
    now: Now,
    fakes: Vec<Fake>,
    effects: Vec<Effect>,
}

impl World {
    fn new(record: &Record, rows: &[&[(u64, u64)]]) -> World {
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

    fn connect(&mut self, i: usize) {
        self.fakes[i].up = true;
        self.up.link_up(self.now, LinkId(i as u32));
        self.pass();
    }

    fn lose(&mut self, i: usize) {
        self.fakes[i].up = false;
        self.up.link_down(self.now, LinkId(i as u32));
        self.pass();
    }

    fn activate(&mut self) {
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

    fn tick(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(5) {
            self.now = Now(self.now.0 + 5 * MS);
            self.up.tick(self.now);
            self.pass();
        }
    }

    fn reply(&mut self, i: usize, request: u64, reply: &Reply) {
        let frame = Frame {
            header: Header::new(Kind::Reply, self.fakes[i].promise, request),
            meta: message::encode(reply),
            data: vec![],
        };
        self.up.frame(self.now, LinkId(i as u32), frame);
    }

    fn durable(&mut self, i: usize, upto: u64) {
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
    fn pass(&mut self) -> usize {
        for round in 0..2000 {
            let effects: Vec<Effect> = self.up.effects().collect();
            if effects.is_empty() {
                return round;
            }
            for e in effects {
                match e {
                    Effect::Send(link, out) | Effect::Renew(link, out) => {
                        self.deliver(link.0 as usize, out.frame)
                    }
                    other => self.effects.push(other),
                }
            }
        }
        2000
    }

    fn welcome(f: &Fake) -> Welcome {
        Welcome {
            member: f.id,
            kind: MemberKind::Replica,
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
            opens: 1,
            credit: 1 << 40,
            pool_free: 1 << 40,
            pool_size: 1 << 40,
        }
    }

    fn deliver(&mut self, i: usize, frame: Frame) {
        let f = &mut self.fakes[i];
        if !f.up {
            return;
        }
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

    fn submit(&mut self) -> Seq {
        let data = Bytes::from(vec![1; BLOCK_BYTES]);
        let batch = Arc::new(Prepared::new(volume(), Batch::write(Block(3), data)));
        let s = self.up.submit(self.now, &batch);
        self.pass();
        match s {
            Submitted::At(seq) => seq,
            other => panic!("{other:?}"),
        }
    }
}

/// A member that was removed and still runs answers every question with Removed.
#[test]
fn a_removed_member_that_still_answers_keeps_the_volume_from_activating() {
    let mut w = World::new(
        &record(3, &[0, 1, 2]),
        &[&[(1, 9)], &[(1, 9)], &[(1, 9)], &[]],
    );
    w.fakes[3].removed = true;
    for i in [3, 0, 1, 2] {
        w.connect(i);
    }
    w.activate();
    w.tick(500);
    assert!(
        w.up.is_active(),
        "{} hellos to the removed one",
        w.fakes[3].seen.len()
    );
}

/// The answer to a listing that an earlier resync of the same replica had asked for.
#[test]
fn a_listing_of_an_earlier_resync_is_taken_for_the_present_ones() {
    let mut w = World::new(&record(3, &[0, 1]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    w.fakes[2].data = DataState::Mixed(Seq(1));
    for i in 0..3 {
        w.fakes[i].silent = |r| matches!(r, Request::Changed { .. });
        w.connect(i);
    }
    w.fakes[2].silent = |_| false;
    w.activate();
    w.tick(300);
    // The source works on the second page when the target's connection breaks and comes back.
    let page = |f: &Fake| {
        let last = f
            .kept
            .iter()
            .rposition(|k| matches!(k.1, Request::Changed { .. }));
        last.map(|l| f.kept[l].0)
    };
    let source = (0..2).find(|i| page(&w.fakes[*i]).is_some()).unwrap();
    let first = page(&w.fakes[source]).unwrap();
    let ranges = vec![];
    w.reply(
        source,
        first,
        &Reply::Changed {
            ranges,
            next: Some(500),
        },
    );
    w.pass();
    let second = page(&w.fakes[source]).unwrap();
    assert_ne!(first, second);
    w.lose(2);
    w.connect(2);
    w.tick(50);
    let third = page(&w.fakes[source]).unwrap();
    assert_ne!(second, third, "listed anew from the beginning");
    // Now the answer to the old question comes (pages from 500 on: nothing), and only then, after
    // the target has listed too, the one to the new question.
    w.reply(
        source,
        second,
        &Reply::Changed {
            ranges: vec![],
            next: None,
        },
    );
    w.pass();
    w.tick(50);
    let finished = w.fakes[2]
        .seen
        .iter()
        .any(|r| matches!(r, Request::FinishResync));
    assert!(
        !finished,
        "finished although blocks 0 to 500 were never listed"
    );
}

/// What a replica had made durable of a history that then lost must not count for the one that
/// was chosen instead.
#[test]
fn durable_of_a_history_that_lost_is_counted() {
    // n0 has three more entries, of which nobody else knows.
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 12)], &[(1, 9)], &[(1, 9)]]);
    w.fakes[0].silent = |r| matches!(r, Request::Fetch { .. });
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(100);
    // Leveling from n0, which goes away before it has given anything.
    w.lose(0);
    w.tick(1000);
    assert!(w.up.is_active());
    assert_eq!(w.up.last(), Seq(9));
    // n0 comes back, is cut to 9, and joins; from here on nobody syncs.
    w.connect(0);
    assert_eq!(w.fakes[0].durable, Seq(9));
    w.tick(50);
    assert_eq!(w.up.record().unwrap().in_sync.len(), 3);
    (0..3).for_each(|i| w.fakes[i].syncs = false);
    let durable = |w: &World| {
        let s = w.up.status(w.now);
        s.members.iter().find(|m| m.id == id(0)).unwrap().durable
    };
    w.submit();
    w.submit();
    // One replica, n1, syncs; two must.
    w.durable(1, 11);
    w.pass();
    assert!(
        w.up.commit() <= Seq(9),
        "commit {} with one copy; n0 is said to be durable to {}",
        w.up.commit(),
        durable(&w)
    );
}

/// While the promises are handed back for a new reign somebody else may serve and write; the
/// upstairs must not then go on for callers (a file system with caches) that know nothing of it.
#[test]
fn a_new_reign_goes_on_after_somebody_else_has_served_and_written() {
    let mut w = World::new(&record(3, &[0, 1, 2]), &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    assert!(w.up.is_active());
    w.submit();
    w.tick(50);
    let (before, reign) = (w.up.last(), w.up.generation().number);
    w.fakes[2].fenced = Some(60);
    w.fakes[0].foreign = true;
    w.fakes[1].foreign = true;
    w.tick(3000);
    assert!(
        !(w.up.is_active() && w.up.generation().number > reign && w.up.last() > before),
        "serves on in generation {} with {} operations, {} of which somebody else wrote",
        w.up.generation().number,
        w.up.last(),
        w.up.last().0 - before.0
    );
}

/// A replica of the set whose connection works and which refuses every append (a full pool).
#[test]
fn a_replica_that_refuses_everything_on_each_new_connection_never_leaves_the_set() {
    refuses(true);
}

/// The control: passes.
#[test]
fn a_replica_that_says_nothing_leaves_the_set() {
    refuses(false);
}

fn refuses(flaps: bool) {
    let mut r = record(3, &[0, 1, 2]);
    r.min_copies = 2;
    let mut w = World::new(&r, &[&[(1, 9)], &[(1, 9)], &[(1, 9)]]);
    for i in 0..3 {
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    w.fakes[2].syncs = false;
    w.submit();
    for _ in 0..60 {
        // As the driver does: a refusal resets the connection, 100 ms later there is a new one.
        let table = GenerationTable::from_parts(Seq(0), vec![(1, Seq(9))]).unwrap();
        w.fakes[2].table = table;
        if flaps {
            w.reply(2, 0, &Reply::Refused(Refusal::NoSpace("pool".into())));
            w.pass();
            w.lose(2);
        }
        w.tick(100);
        if flaps {
            w.connect(2);
        }
        w.tick(50);
        w.submit();
    }
    let set = &w.up.record().unwrap().in_sync;
    assert!(
        !set.contains(&id(2)),
        "no progress for 9 s and still in the set"
    );
}

/// A connection to somebody who has no part in the volume flaps; the record is being stored.
#[test]
fn a_flapping_stranger_keeps_the_record_from_being_settled() {
    settle_slowly(true);
}

/// The control: passes.
#[test]
fn a_record_that_is_stored_slowly_is_settled() {
    settle_slowly(false);
}

fn settle_slowly(flaps: bool) {
    let mut w = World::new(
        &record(3, &[0, 1, 2]),
        &[&[(1, 9)], &[(1, 9)], &[(1, 9)], &[]],
    );
    w.fakes[3].silent = |_| true;
    for i in 0..3 {
        w.fakes[i].silent = |r| matches!(r, Request::PutRecord(_));
        w.connect(i);
    }
    w.activate();
    w.tick(300);
    // Members take 150 ms to store a record; the stranger is there every 100 ms.
    for _ in 0..40 {
        let kept: Vec<(usize, (u64, Request))> = (0..3)
            .flat_map(|i| {
                std::mem::take(&mut w.fakes[i].kept)
                    .into_iter()
                    .map(move |k| (i, k))
            })
            .collect();
        if flaps {
            w.connect(3);
        }
        w.tick(100);
        if flaps {
            w.lose(3);
        }
        w.tick(50);
        for (i, (request, r)) in kept {
            if let Request::PutRecord(r) = r {
                w.reply(i, request, &Reply::Recorded(r.version));
                w.pass();
            }
        }
    }
    assert!(w.up.is_active(), "not active after 6 s");
}
