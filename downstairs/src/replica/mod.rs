//! A member as it is served: the store (a witness has none), the vote, and the connections that
//! talk to them. A synchronous state machine: frames in, frames and jobs out; what takes long
//! (syncs, reads, checkpoints) is handed out as jobs and handed back.
//!
//! Kept here: every frame that touches data is checked against the promise (invariant 1); a claim
//! or record is durable before its answer leaves; a place is reported durable only with the
//! store's own word for it (invariant 3), and only to the generation that is promised now.
//!
//! Bounded by: [`PARKED`] bytes of frames per connection while the log is full, after which the
//! connection is closed; one sync and one checkpoint at a time.

use std::cell::Cell;
mod control;
mod prepare;
mod scrub;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use trivet_protocol::frame::{Frame, Header, Kind, ReadMeta};
use trivet_protocol::limits::{MAX_FETCH_BYTES, MAX_NAME, MAX_READ_BLOCKS};
use trivet_protocol::message::{self, DataState, Refusal, Reply, Request, Tail, Welcome};
use trivet_protocol::{
    Block, Entry, Generation, GenerationTable, MemberId, MemberKind, Now, Position, Recorder, Seq,
    VolumeId,
};

use crate::checkpoint::{CheckpointJob, Step};
use crate::error::{Result, StoreError};
use crate::member::{Member, MemberState, Store as Keep};
use crate::store::{Cursor, ReadJob, Reopen, ScrubJob, Store, SyncJob, Synced};
use crate::witness::Witness;
use prepare::Preparing;

/// One connection from an upstairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Bytes of frames that may wait for room in the log, per connection.
pub const PARKED: usize = 96 << 20;
/// With less room than this for new data a checkpoint does not wait for a half-full log: what was
/// discarded gives its room back only there.
const CRAMPED: u64 = 64 << 20;
/// But no more often than this.
const RELIEVE_EVERY: Duration = Duration::from_secs(1);
/// The pool is asked for its free space at most this often: each question is a system call.
const SPACE_EVERY: Duration = Duration::from_millis(20);
/// Checksums given in one answer, at most.
const MAX_SUMS: u32 = 4096;
/// Changed ranges given in one answer, at most.
const MAX_RANGES: u32 = 4096;

/// What the driver has to do.
pub enum Out {
    /// Send this.
    Send(ConnId, Frame),
    /// Run this read without the lock, then call [`Replica::read_done`].
    Read(ConnId, u64, ReadJob),
    /// Run this look at the disk without the lock and off the connections' threads, then call
    /// [`Replica::scrub_done`].
    Scrub(ConnId, u64, ScrubJob),
    /// Close the connection; why, for the log.
    Close(ConnId, String),
}

/// What is left to do until the log is in the extent files.
pub enum Settling {
    /// Run this, then call [`Replica::checkpoint_done`].
    Job(Box<CheckpointJob>),
    /// Another checkpoint runs.
    Busy,
    /// Nothing: everything committed is in place.
    Settled,
}

#[derive(Default)]
struct Conn {
    hello: bool,
    /// A frame of its stream was refused: nothing after it in the stream is taken.
    failed: bool,
    generation: Generation,
    /// New data received since the connection began, for credits.
    received: u64,
    /// When the pool was last asked for its free space, and the credit that followed.
    granted: Cell<(Now, u64)>,
    /// Its pool overwrites in place, as far as was asked.
    in_place: Cell<bool>,
    /// It wants to hear of everything durable up to here.
    sync_to: Option<Seq>,
    /// Frames that wait for room in the log, in order.
    parked: VecDeque<Frame>,
    parked_bytes: usize,
}

/// Where the member's state is kept.
enum Keeper {
    Region(Box<Store>),
    Witness(Box<Witness>),
    /// The region was closed in order; the process is about to end.
    Closed,
}

/// See the module's head.
pub struct Replica {
    keeper: Keeper,
    member: Member,
    opens: u64,
    conns: BTreeMap<ConnId, Conn>,
    /// The connection whose claim was accepted last.
    stream: Option<ConnId>,
    syncing: bool,
    sync_wanted: bool,
    checkpointing: bool,
    /// The last checkpoint found no space in the pool.
    full: bool,
    /// A resync is about to begin.
    preparing: Option<Preparing>,
    /// The pool was found nearly full.
    cramped: Cell<bool>,
    /// When a checkpoint was last begun for that reason.
    relieved: Now,
    /// When the last frame arrived.
    now: Now,
    recorder: Arc<dyn Recorder>,
}

impl Replica {
    /// A data replica that was just opened. Its member state must have been stored before.
    ///
    /// # Errors
    /// The member state is missing or damaged: the member is lost and must be replaced.
    pub fn region(store: Store, now: Now, recorder: Arc<dyn Recorder>) -> Result<Replica> {
        let state = decode_state(&store.member_state())?;
        let opens = store.opens();
        let keeper = Keeper::Region(Box::new(store));
        Ok(Self::new(keeper, state, opens, now, recorder))
    }

    /// A witness that was just opened.
    pub fn witness(
        witness: Witness,
        state: MemberState,
        now: Now,
        recorder: Arc<dyn Recorder>,
    ) -> Replica {
        let opens = witness.opens();
        let keeper = Keeper::Witness(Box::new(witness));
        Self::new(keeper, state, opens, now, recorder)
    }

    fn new(
        keeper: Keeper,
        state: MemberState,
        opens: u64,
        now: Now,
        recorder: Arc<dyn Recorder>,
    ) -> Replica {
        Replica {
            keeper,
            member: Member::start(state, now),
            opens,
            conns: BTreeMap::new(),
            stream: None,
            syncing: false,
            sync_wanted: false,
            checkpointing: false,
            full: false,
            preparing: None,
            cramped: Cell::new(false),
            relieved: Now::default(),
            now,
            recorder,
        }
    }

    /// Its volume.
    pub fn volume(&self) -> VolumeId {
        self.member.volume()
    }

    /// Who it is.
    pub fn id(&self) -> MemberId {
        self.member.state().member
    }

    /// Positions, queues and log, for people who look for why something waits.
    pub fn describe(&self) -> String {
        let parked: Vec<_> = self
            .conns
            .values()
            .map(|c| {
                let first = c
                    .parked
                    .front()
                    .map(|f| (f.header.kind, f.header.seq, f.wire_len()));
                (c.parked.len(), c.generation, first)
            })
            .collect();
        let log = self.store().map(|s| {
            let (used, size) = s.log_usage();
            format!(
                "end {:?} durable {:?} commit {} checkpointed {:?} tail {} log {used} of {size} bytes, \
                 mixed {:?}, poisoned {:?}",
                s.end(),
                s.durable(),
                s.commit(),
                s.checkpointed(),
                s.tail(),
                s.mixed(),
                s.poisoned()
            )
        });
        format!(
            "frames waiting {parked:?}, syncing {} (wanted {}), checkpointing {}, {}",
            self.syncing,
            self.sync_wanted,
            self.checkpointing,
            log.unwrap_or_else(|| "a witness".into())
        )
    }

    /// Its vote.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Its data, if it has any.
    pub fn store(&self) -> Option<&Store> {
        match &self.keeper {
            Keeper::Region(store) => Some(store),
            Keeper::Witness(_) | Keeper::Closed => None,
        }
    }

    /// Why it takes nothing more, if it does not: it has to be opened anew.
    pub fn failed(&self) -> Option<&str> {
        match &self.keeper {
            Keeper::Region(store) => store.poisoned(),
            Keeper::Witness(witness) => witness.failed(),
            Keeper::Closed => Some("it is shutting down"),
        }
    }

    /// Closes the region in order, so that the next opening finds everything synced. Everything
    /// that comes afterwards is refused.
    ///
    /// # Errors
    /// The disk fails; the region is then as after a crash.
    pub fn close(&mut self) -> Result<()> {
        let ending = "it is shutting down".to_owned();
        self.member.pledge().refuse(Some(ending));
        match std::mem::replace(&mut self.keeper, Keeper::Closed) {
            Keeper::Region(store) => store.close(),
            Keeper::Witness(_) | Keeper::Closed => Ok(()),
        }
    }

    /// What opens the region anew, if its disk failed and nothing of the old opening is under way
    /// any more. To be run without the lock; then [`Replica::reopened`].
    pub fn begin_reopen(&self) -> Option<Reopen> {
        let store = self.store()?;
        store.poisoned()?;
        (!self.syncing && !self.checkpointing).then(|| store.reopen())
    }

    /// Whether the region's disk failed.
    pub fn disk_is_bad(&self) -> bool {
        self.store().is_some_and(|s| s.poisoned().is_some())
    }

    /// The region was opened anew. All that was known besides what is on the disk is forgotten, as
    /// after a crash; whoever is connected starts over.
    ///
    /// # Errors
    /// The member's state is damaged: nothing has changed.
    pub fn reopened(&mut self, now: Now, mut store: Store, out: &mut Vec<Out>) -> Result<()> {
        let state = decode_state(&store.member_state())?;
        if let Some(old) = self.store() {
            store.succeed(old);
        }
        self.member = Member::start(state, now);
        self.opens = store.opens();
        self.keeper = Keeper::Region(Box::new(store));
        self.stream = None;
        self.sync_wanted = false;
        self.full = false;
        self.preparing = None;
        for (conn, c) in &mut self.conns {
            c.failed = true;
            c.parked.clear();
            c.parked_bytes = 0;
            c.sync_to = None;
            out.push(Out::Close(*conn, "the region was opened anew".into()));
        }
        Ok(())
    }

    fn store_mut(&mut self) -> Result<&mut Store, Refusal> {
        match &mut self.keeper {
            Keeper::Region(store) => Ok(store),
            Keeper::Witness(_) => Err(Refusal::BadRequest("a witness keeps no data".into())),
            Keeper::Closed => Err(Refusal::Unusable("it is shutting down".into())),
        }
    }

    /// What follows in a stream makes no sense once a part of it was refused.
    fn fail(&mut self, conn: ConnId, out: &mut Vec<Out>) {
        if let Some(c) = self.conns.get_mut(&conn) {
            c.failed = true;
            c.parked.clear();
            c.sync_to = None;
        }
        out.push(Out::Close(conn, "a frame of its stream was refused".into()));
    }

    fn keep_state(&mut self) -> Result<(), Refusal> {
        let state = self.member.state();
        match &mut self.keeper {
            Keeper::Region(store) => {
                let raw = serde_json::to_vec(state)
                    .map_err(|e| Refusal::Unusable(format!("its state cannot be encoded: {e}")))?;
                store.set_member_state(raw)
            }
            Keeper::Witness(witness) => witness.keep(state),
            Keeper::Closed => return Err(Refusal::Unusable("it is shutting down".into())),
        }
        .map_err(refusal)
    }

    /// Makes a change of the member durable. If that fails, it did not happen: it must not be
    /// confirmed the next time either.
    fn keep(&mut self, before: MemberState, keep: Keep) -> Result<(), Refusal> {
        if keep == Keep::Unchanged {
            return Ok(());
        }
        let kept = self.keep_state();
        self.member.pledge().stored(kept.is_ok());
        if kept.is_err() {
            self.member.take_back(before);
        }
        kept
    }

    /// A region whose disk failed renews no promise: what it last stored is not known.
    fn heed_poison(&mut self) {
        if let Some(why) = self.store().and_then(Store::poisoned) {
            self.member.pledge().refuse(Some(why.to_owned()));
        }
    }

    // ---- connections ----

    /// A connection stands.
    pub fn connected(&mut self, conn: ConnId) {
        self.conns.insert(conn, Conn::default());
    }

    /// A connection is gone.
    pub fn disconnected(&mut self, conn: ConnId) {
        self.conns.remove(&conn);
    }

    /// A frame arrived.
    pub fn frame(&mut self, now: Now, conn: ConnId, frame: Frame, out: &mut Vec<Out>) {
        let streams = self.stream == Some(conn);
        let preparing = self.prepares(conn);
        let Some(c) = self.conns.get_mut(&conn) else {
            return;
        };
        // One connection carries the stream: the one whose claim was accepted last. What an
        // earlier one still had on its way is of the past.
        if c.failed || (!streams && of_stream(&frame)) {
            self.recorder.count("downstairs.late_frames", 1);
            return;
        }
        // Frames of the ordered stream keep their order behind one that waits for room, or for the
        // jump that begins a resync. What keeps the lease alive does not wait.
        if (preparing || !c.parked.is_empty()) && in_order(&frame) {
            c.parked_bytes += frame.wire_len();
            c.parked.push_back(frame);
            if c.parked_bytes > PARKED {
                out.push(Out::Close(
                    conn,
                    "more was sent than the log has room for".into(),
                ));
            }
            return;
        }
        self.handle(now, conn, frame, out);
    }

    /// Frames that arrived together follow: what they append is written in one go by
    /// [`Replica::end_batch`], under the same lock.
    pub fn begin_batch(&mut self) {
        if let Keeper::Region(store) = &mut self.keeper {
            store.hold();
        }
    }

    /// Ends what [`Replica::begin_batch`] began.
    pub fn end_batch(&mut self, out: &mut Vec<Out>) {
        let Keeper::Region(store) = &mut self.keeper else {
            return;
        };
        if let Err(e) = store.let_go() {
            self.disk_failed(e, "the log cannot be written", out);
        }
    }

    /// Everybody connected is told; the store is poisoned.
    fn disk_failed(&mut self, e: StoreError, what: &str, out: &mut Vec<Out>) {
        tracing::error!(error = %e, what, "the region takes nothing more");
        self.heed_poison();
        let refused = Reply::Refused(refusal(e));
        let conns: Vec<_> = self.conns.keys().copied().collect();
        conns
            .into_iter()
            .for_each(|c| self.reply(c, 0, &refused, out));
    }

    fn handle(&mut self, now: Now, conn: ConnId, frame: Frame, out: &mut Vec<Out>) {
        self.now = now;
        // Whatever is not an append may read the log.
        if frame.header.kind != Kind::Append
            && let Keeper::Region(store) = &mut self.keeper
            && let Err(e) = store.write_held()
        {
            self.disk_failed(e, "the log cannot be written", out);
        }
        let result = match frame.header.kind {
            Kind::Append => self.append(conn, frame),
            Kind::Sync => self.sync_asked(conn, &frame.header, out),
            Kind::Read => self.read_asked(conn, &frame, out),
            Kind::Copy => self.copy(conn, frame),
            Kind::Request => return self.request(now, conn, &frame, out),
            kind => Err(Refusal::BadRequest(format!(
                "frame {kind:?} is not for a member"
            ))),
        };
        if let Err(refusal) = result {
            self.recorder.count("downstairs.refusals", 1);
            self.heed_poison();
            self.reply(conn, 0, &Reply::Refused(refusal), out);
            self.fail(conn, out);
        }
    }

    fn reply(&self, conn: ConnId, id: u64, reply: &Reply, out: &mut Vec<Out>) {
        let header = Header::new(Kind::Reply, self.member.state().promise, id);
        let frame = Frame {
            header,
            meta: message::encode(reply),
            data: Vec::new(),
        };
        out.push(Out::Send(conn, frame));
    }
}

/// Whether a frame must not overtake another of the stream.
fn in_order(frame: &Frame) -> bool {
    match frame.header.kind {
        Kind::Request => !matches!(
            message::decode::<Request>(&frame.meta),
            Ok(Request::Hello { .. }
                | Request::Claim { .. }
                | Request::Renew
                | Request::Status
                | Request::PutRecord(_)
                | Request::HandBack)
        ),
        _ => true,
    }
}

fn decode_state(raw: &[u8]) -> Result<MemberState> {
    let state: MemberState = serde_json::from_slice(raw)
        .map_err(|e| StoreError::corrupt("the member's state", e.to_string()))?;
    if let Some(problem) = state.record.problem() {
        return Err(StoreError::corrupt("the member's record", problem));
    }
    Ok(state)
}

fn refusal(e: StoreError) -> Refusal {
    match e {
        StoreError::NoSpace { .. } => Refusal::NoSpace(e.to_string()),
        StoreError::NotInLog(seq) => Refusal::NotInLog(seq),
        StoreError::BadSeq { .. }
        | StoreError::GenerationDown { .. }
        | StoreError::BadEntry(_)
        | StoreError::OutOfRange { .. }
        | StoreError::CutTooFar { .. }
        | StoreError::WrongState(_) => Refusal::BadRequest(e.to_string()),
        StoreError::Poisoned { .. } | StoreError::Corrupt { .. } => {
            Refusal::Unusable(e.to_string())
        }
        _ => Refusal::Disk(e.to_string()),
    }
}

/// Whether a frame changes or reads data, or depends on what did.
fn of_stream(frame: &Frame) -> bool {
    match frame.header.kind {
        Kind::Request => matches!(
            message::decode::<Request>(&frame.meta),
            Ok(Request::Cut(_)
                | Request::Fetch { .. }
                | Request::BeginResync { .. }
                | Request::FinishResync
                | Request::Changed { .. }
                | Request::Sums { .. }
                | Request::Scrub { .. })
        ),
        _ => true,
    }
}
