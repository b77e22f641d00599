//! What a member must not do with frames that come late, behind a refusal, or twice: each test
//! tells the story of its bug and fails while that is there.
//! `cargo test -p trivet-downstairs --features sim --test faults_of_a_stream`
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]
#![cfg(feature = "sim")]

use std::sync::Arc;

use bytes::Bytes;
use trivet_downstairs::checkpoint::Step;
use trivet_downstairs::disk::Disk;
use trivet_downstairs::disk::sim::SimDisk;
use trivet_downstairs::member::MemberState;
use trivet_downstairs::replica::{ConnId, Out, Replica};
use trivet_downstairs::{Region, Store};
use trivet_protocol::frame::{Frame, Header, Kind, ReadMeta};
use trivet_protocol::message::{self, Refusal, Reply, Request};
use trivet_protocol::{
    BLOCK_BYTES, Batch, Block, Entry, Generation, GenerationTable, MemberId, MemberInfo,
    MemberKind, Millis, Now, NullRecorder, Position, Record, RecordVersion, Seq, VolumeId,
};

const G: Generation = Generation {
    number: 1,
    claim: 9,
};

fn volume() -> VolumeId {
    VolumeId::from_bytes([7; 16])
}

fn id() -> MemberId {
    MemberId::from_bytes([3; 16])
}

fn record() -> Record {
    Record {
        version: RecordVersion::default(),
        volume: volume(),
        blocks: 1000,
        members: vec![MemberInfo {
            id: id(),
            node: "n".into(),
            kind: MemberKind::Replica,
            opens: 0,
            durable: Position::default(),
        }],
        in_sync: [id()].into(),
        min_copies: 1,
        lease: Millis(2000),
        losses: 0,
    }
}

fn open(disk: &SimDisk) -> Replica {
    let (store, _) = Store::open(Arc::new(disk.dir()), None, Arc::new(NullRecorder)).unwrap();
    Replica::region(store, Now(0), Arc::new(NullRecorder)).unwrap()
}

fn replica(disk: &SimDisk) -> Replica {
    replica_with_log(disk, 256 * 1024)
}

fn replica_with_log(disk: &SimDisk, log_bytes: u64) -> Replica {
    let mut r = Region::new(volume(), id(), 1000);
    (r.extent_blocks, r.log_bytes) = (64, log_bytes);
    let dir: Arc<dyn Disk> = Arc::new(disk.dir());
    Store::create(&dir, &r).unwrap();
    let (mut store, _) = Store::open(dir, None, Arc::new(NullRecorder)).unwrap();
    let state = MemberState::new(id(), record());
    store
        .set_member_state(serde_json::to_vec(&state).unwrap())
        .unwrap();
    Replica::region(store, Now(0), Arc::new(NullRecorder)).unwrap()
}

fn ask(r: &mut Replica, conn: u64, g: Generation, request: &Request) -> Reply {
    let frame = Frame {
        header: Header::new(Kind::Request, g, 77),
        meta: message::encode(request),
        data: vec![],
    };
    let mut out = vec![];
    r.frame(Now(1), ConnId(conn), frame, &mut out);
    replies(&out).pop().unwrap()
}

fn replies(out: &[Out]) -> Vec<Reply> {
    out.iter()
        .filter_map(|o| match o {
            Out::Send(_, f) if f.header.kind == Kind::Reply => {
                Some(message::decode::<Reply>(&f.meta).unwrap())
            }
            _ => None,
        })
        .collect()
}

fn hello(r: &mut Replica, conn: u64) {
    r.connected(ConnId(conn));
    let h = Request::Hello {
        volume: volume(),
        member: None,
        node: "u".into(),
    };
    assert!(matches!(
        ask(r, conn, Generation::NONE, &h),
        Reply::Welcome(_)
    ));
}

fn claim(r: &mut Replica, conn: u64, g: Generation) -> Reply {
    ask(r, conn, g, &Request::Claim { node: "u".into() })
}

fn data_frame(kind: Kind, seq: u64, block: u64, fill: u8) -> Frame {
    long_frame(kind, seq, block, 1, fill)
}

fn long_frame(kind: Kind, seq: u64, block: u64, count: usize, fill: u8) -> Frame {
    let data = Bytes::from(vec![fill; count * BLOCK_BYTES]);
    let e = Entry::new(volume(), Seq(seq), 1, Batch::write(Block(block), data));
    let mut header = Header::new(kind, G, seq);
    header.aux = 1;
    Frame {
        header,
        meta: e.encode_meta(),
        data: e.data,
    }
}

fn send(r: &mut Replica, conn: u64, frame: Frame) -> Vec<Out> {
    let mut out = vec![];
    r.frame(Now(1), ConnId(conn), frame, &mut out);
    out
}

/// Given an upstairs that has sent more than the log takes, with its question for a sync behind
/// that; when what the log did take has been synced; then it must hear so. It was told in answer to
/// the question alone, which waited for room, which waited for a checkpoint, which waited for the
/// commit position, which waited for the answer: for ever, where nothing older was in the log.
#[test]
fn what_a_full_log_has_taken_is_reported_durable_although_the_question_waits() {
    let disk = SimDisk::new();
    let mut r = replica(&disk);
    hello(&mut r, 1);
    assert!(matches!(claim(&mut r, 1, G), Reply::Granted(_)));
    for seq in 1..=12 {
        send(&mut r, 1, long_frame(Kind::Append, seq, seq * 9, 8, 1));
    }
    let sync = Frame {
        header: Header::new(Kind::Sync, G, 12),
        meta: Bytes::new(),
        data: vec![],
    };
    assert!(
        send(&mut r, 1, sync).is_empty(),
        "it waits behind what does not fit"
    );
    let job = r.begin_sync().unwrap();
    let (result, mut out) = (job.run(), vec![]);
    r.sync_done(job, result, &mut out);
    let durable = |o: &Out| match o {
        Out::Send(_, f) if f.header.kind == Kind::Durable => Some(f.header.seq),
        _ => None,
    };
    let told: Vec<u64> = out.iter().filter_map(durable).collect();
    assert!(matches!(told[..], [1..12]), "{told:?}");
}

/// Given a connection that its upstairs has given up, with a copy still in the member's socket
/// buffer; when the upstairs (same generation) has claimed on a new connection and overwritten
/// the block there; then the copy must not be taken.
#[test]
fn a_copy_of_an_earlier_connection_overwrites_a_newer_write() {
    let mut r = replica(&SimDisk::new());
    hello(&mut r, 1);
    assert!(matches!(claim(&mut r, 1, G), Reply::Granted(_)));
    assert!(send(&mut r, 1, data_frame(Kind::Append, 1, 5, 0x11)).is_empty());
    hello(&mut r, 2);
    assert!(matches!(claim(&mut r, 2, G), Reply::Granted(_)));
    assert!(send(&mut r, 2, data_frame(Kind::Append, 2, 5, 0x22)).is_empty());
    send(&mut r, 1, data_frame(Kind::Copy, 1, 5, 0x11));
    let read = r.store().unwrap().read(Block(5), 1).unwrap();
    assert_eq!(read.data[0], 0x22, "the newer write is gone");
}

/// Likewise: a Cut that waited on the old connection takes back what the new one was told is
/// durable.
#[test]
fn a_cut_of_an_earlier_connection_takes_back_what_was_reported_durable() {
    let mut r = replica(&SimDisk::new());
    hello(&mut r, 1);
    assert!(matches!(claim(&mut r, 1, G), Reply::Granted(_)));
    hello(&mut r, 2);
    assert!(matches!(claim(&mut r, 2, G), Reply::Granted(_)));
    send(&mut r, 2, data_frame(Kind::Append, 1, 5, 0x22));
    send(&mut r, 2, Frame::bare(Kind::Sync, G, 1));
    let job = r.begin_sync().unwrap();
    let done = job.run();
    let mut out = vec![];
    r.sync_done(job, done, &mut out);
    assert!(out.iter().any(|o| matches!(o, Out::Send(ConnId(2), f)
        if f.header.kind == Kind::Durable && f.header.seq == 1)));
    let cut = Frame {
        header: Header::new(Kind::Request, G, 78),
        meta: message::encode(&Request::Cut(Seq::ZERO)),
        data: vec![],
    };
    // Nobody waits for an answer on a connection of the past.
    assert!(send(&mut r, 1, cut).is_empty());
    assert_eq!(r.store().unwrap().end().seq, Seq(1), "durable, and cut off");
}

/// Given a disk that is full for a moment (copy-on-write pool) when a claim is stored; when the
/// claim is sent again; then it must not be granted without having been stored.
#[test]
fn a_claim_refused_for_want_of_space_is_granted_the_second_time_without_being_stored() {
    let disk = SimDisk::new();
    let mut r = replica(&disk);
    hello(&mut r, 1);
    disk.fail_full("head");
    assert!(matches!(
        claim(&mut r, 1, G),
        Reply::Refused(Refusal::NoSpace(_))
    ));
    let second = claim(&mut r, 1, G);
    drop(r);
    disk.crash(1);
    let r = open(&disk);
    let stored = r.member().state().promise;
    if matches!(second, Reply::Granted(_)) {
        assert_eq!(stored, G, "granted, and forgotten by a power cut");
    }
}

/// The same with a record: Recorded is said of one that was never stored.
#[test]
fn a_record_refused_for_want_of_space_is_confirmed_the_second_time_without_being_stored() {
    let disk = SimDisk::new();
    let mut r = replica(&disk);
    hello(&mut r, 1);
    assert!(matches!(claim(&mut r, 1, G), Reply::Granted(_)));
    let mut rec = record();
    rec.version = RecordVersion {
        generation: 1,
        number: 0,
    };
    disk.fail_full("head");
    let put = Request::PutRecord(rec.clone());
    assert!(matches!(ask(&mut r, 1, G, &put), Reply::Refused(_)));
    let second = ask(&mut r, 1, G, &put);
    drop(r);
    disk.crash(1);
    let r = open(&disk);
    if matches!(second, Reply::Recorded(_)) {
        assert_eq!(
            r.member().state().record.version,
            rec.version,
            "confirmed, not there"
        );
    }
}

/// Given an append that was refused (here: it does not follow, as after a refused BeginResync),
/// when the Sync behind it is handled, then syncing must come to an end: the server's thread
/// loops in `run_syncs` as long as one is wanted.
#[test]
fn a_sync_beyond_the_end_is_run_for_ever() {
    let mut r = replica(&SimDisk::new());
    hello(&mut r, 1);
    assert!(matches!(claim(&mut r, 1, G), Reply::Granted(_)));
    send(&mut r, 1, data_frame(Kind::Append, 1000, 5, 0x11));
    send(&mut r, 1, Frame::bare(Kind::Sync, G, 1000));
    for _ in 0..1000 {
        let Some(job) = r.begin_sync() else { return };
        let done = job.run();
        r.sync_done(job, done, &mut vec![]);
    }
    panic!("still wants a sync after 1000 of them");
}

/// Given an append that a full pool keeps from its place, when a read of the same stream follows,
/// then it must not be answered with the content before: the append goes through the log.
#[test]
fn a_read_behind_an_append_to_a_full_pool_is_answered_with_what_was_before() {
    let disk = SimDisk::new();
    let mut r = replica(&disk);
    hello(&mut r, 1);
    assert!(matches!(claim(&mut r, 1, G), Reply::Granted(_)));
    send(&mut r, 1, data_frame(Kind::Append, 1, 5, 0x11));
    disk.fail_full("e/");
    let said = replies(&send(&mut r, 1, long_frame(Kind::Append, 2, 64, 16, 0x33)));
    assert!(said.is_empty(), "{said:?}");
    let mut frame = Frame::bare(Kind::Read, G, 50);
    frame.meta = ReadMeta {
        block: 64,
        count: 1,
    }
    .encode();
    let mut answered = false;
    for o in send(&mut r, 1, frame) {
        if let Out::Read(conn, id, job) = o {
            let (result, mut out) = (job.run(), vec![]);
            r.read_done(conn, id, &job, result, &mut out);
            for o in out {
                if let Out::Send(_, f) = o
                    && f.header.kind == Kind::ReadOk
                {
                    assert_eq!(f.contiguous_data()[0], 0x33, "old content was served");
                    answered = true;
                }
            }
        }
    }
    assert!(answered);
}

/// Whoever asked for all of the log at once was given all of it at once, in memory.
#[test]
fn a_fetch_gives_a_bounded_part_whatever_it_asks_for() {
    let disk = SimDisk::new();
    let mut r = replica_with_log(&disk, 32 << 20);
    hello(&mut r, 1);
    assert!(matches!(claim(&mut r, 1, G), Reply::Granted(_)));
    // Overwrites of the same blocks: they go through the log.
    for seq in 1..=14 {
        let data = Bytes::from(vec![seq as u8; 255 * BLOCK_BYTES]);
        let entry = Entry::new(volume(), Seq(seq), 1, Batch::write(Block(0), data));
        let mut header = Header::new(Kind::Append, G, seq);
        header.aux = 1;
        let frame = Frame {
            header,
            meta: entry.encode_meta(),
            data: entry.data,
        };
        let mut out = vec![];
        r.frame(Now(1), ConnId(1), frame, &mut out);
        assert!(replies(&out).is_empty());
    }
    let from = Seq(2);
    let max_bytes = u32::MAX;
    let frame = Frame {
        header: Header::new(Kind::Request, G, 77),
        meta: message::encode(&Request::Fetch { from, max_bytes }),
        data: vec![],
    };
    let mut out = vec![];
    r.frame(Now(1), ConnId(1), frame, &mut out);
    let given: usize = out
        .iter()
        .map(|o| match o {
            Out::Send(_, f) if f.header.kind == Kind::LogEntry => f.data_len(),
            _ => 0,
        })
        .sum();
    let bound = trivet_protocol::limits::MAX_FETCH_BYTES as usize;
    assert!(given > 0 && given <= bound + (1 << 20), "{given} bytes");
    assert!(matches!(replies(&out).pop(), Some(Reply::Fetched { .. })));
}

/// Runs what a server's threads would run: syncs and checkpoints, until there are none.
fn run_jobs(r: &mut Replica) -> Vec<Reply> {
    let mut out = vec![];
    for _ in 0..100 {
        let mut idle = true;
        if let Some(job) = r.begin_sync() {
            let done = job.run();
            r.sync_done(job, done, &mut out);
            idle = false;
        }
        if let Some(mut job) = r.begin_checkpoint() {
            let done = loop {
                match job.step() {
                    Ok(Step::More) => {}
                    other => break other,
                }
            };
            r.checkpoint_done(Now(1), job, done, &mut out);
            idle = false;
        }
        if idle {
            break;
        }
    }
    replies(&out)
}

/// A region with operations 1 to 3 that is told to go on from 9, with `common` shared.
fn begin_resync(r: &mut Replica, common: Seq) -> Vec<Reply> {
    let mut table = GenerationTable::default();
    assert!((1..=9).all(|seq| table.extend(1, Seq(seq))));
    let frame = Frame {
        header: Header::new(Kind::Request, G, 78),
        meta: message::encode(&Request::BeginResync { common, table }),
        data: vec![],
    };
    let mut said = replies(&send(r, 1, frame));
    said.extend(run_jobs(r));
    said
}

fn with_three_operations() -> Replica {
    let mut r = replica_with_log(&SimDisk::new(), 1 << 20);
    hello(&mut r, 1);
    assert!(matches!(claim(&mut r, 1, G), Reply::Granted(_)));
    for seq in 1..=3 {
        send(&mut r, 1, data_frame(Kind::Append, seq, seq * 100, 0x11));
    }
    r
}

fn listed(r: &mut Replica, since: Seq) -> u64 {
    let (cursor, max) = (0, 1000);
    match ask(r, 1, G, &Request::Changed { since, cursor, max }) {
        Reply::Changed { ranges, next: None } => ranges.iter().map(|r| u64::from(r.1)).sum(),
        other => panic!("{other:?}"),
    }
}

/// A region took its own jump for a gap in what it knows, and listed the whole volume: what had
/// been away for a second was compared for as long as the volume was large.
#[test]
fn a_region_that_is_brought_back_lists_what_it_changed_and_not_the_volume() {
    let mut r = with_three_operations();
    assert_eq!(begin_resync(&mut r, Seq(2)), [Reply::Done]);
    assert_eq!(
        listed(&mut r, Seq(2)),
        0,
        "the third operation was taken back"
    );
    let group = 30;
    assert!((1..=group).contains(&listed(&mut r, Seq(1))));
}

/// After a jump nobody knows what changed here before it: asked to go on from there all the same,
/// the region says no, and at its next greeting that all must be compared; then, and as a source,
/// it lists all that it has.
#[test]
fn a_region_that_jumped_is_compared_whole_when_less_is_common() {
    let mut r = with_three_operations();
    assert_eq!(begin_resync(&mut r, Seq(2)), [Reply::Done]);
    send(&mut r, 1, Frame::bare(Kind::Sync, G, 9));
    run_jobs(&mut r);
    let finished = ask(&mut r, 1, G, &Request::FinishResync);
    assert_eq!(finished, Reply::Done);
    assert_eq!(listed(&mut r, Seq(4)), 1000, "a source that cannot tell");

    let said = begin_resync(&mut r, Seq(4));
    assert!(
        matches!(&said[..], [Reply::Refused(Refusal::Unusable(_))]),
        "{said:?}"
    );
    hello(&mut r, 1);
    assert!(matches!(claim(&mut r, 1, G), Reply::Granted(_)));
    assert_eq!(begin_resync(&mut r, Seq::ZERO), [Reply::Done]);
    let all = listed(&mut r, Seq::ZERO);
    assert!((3..1000).contains(&all), "{all} listed");
}
