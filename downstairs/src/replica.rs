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
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use trivet_protocol::frame::{Frame, Header, Kind, ReadMeta};
use trivet_protocol::limits::MAX_READ_BLOCKS;
use trivet_protocol::message::{self, DataState, Refusal, Reply, Request, Tail, Welcome};
use trivet_protocol::{
    Block, Entry, Generation, GenerationTable, MemberId, MemberKind, Now, Position, Recorder, Seq,
    VolumeId,
};

use crate::checkpoint::{CheckpointJob, Step};
use crate::error::{Result, StoreError};
use crate::member::{Member, MemberState, Store as Keep};
use crate::slots::SlotFile;
use crate::store::{Cursor, ReadJob, Store, SyncJob, Synced};

/// One connection from an upstairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Bytes of frames that may wait for room in the log, per connection.
pub const PARKED: usize = 96 << 20;
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
    generation: Generation,
    /// New data received since the connection began, for credits.
    received: u64,
    /// When the pool was last asked for its free space, and the credit that followed.
    granted: Cell<(Now, u64)>,
    /// It wants to hear of everything durable up to here.
    sync_to: Option<Seq>,
    /// Frames that wait for room in the log, in order.
    parked: VecDeque<Frame>,
    parked_bytes: usize,
}

/// Where the member's state is kept.
enum Keeper {
    Region(Box<Store>),
    Witness(SlotFile),
    /// The region was closed in order; the process is about to end.
    Closed,
}

/// See the module's head.
pub struct Replica {
    keeper: Keeper,
    member: Member,
    opens: u64,
    conns: BTreeMap<ConnId, Conn>,
    syncing: bool,
    sync_wanted: bool,
    checkpointing: bool,
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
    ///
    /// # Errors
    /// Its state is damaged.
    pub fn witness(
        file: SlotFile,
        state: &[u8],
        now: Now,
        recorder: Arc<dyn Recorder>,
    ) -> Result<Replica> {
        Ok(Self::new(
            Keeper::Witness(file),
            decode_state(state)?,
            0,
            now,
            recorder,
        ))
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
            syncing: false,
            sync_wanted: false,
            checkpointing: false,
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
                s.end(), s.durable(), s.commit(), s.checkpointed(), s.tail(), s.mixed(), s.poisoned()
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

    /// Closes the region in order, so that the next opening finds everything synced. Everything
    /// that comes afterwards is refused.
    ///
    /// # Errors
    /// The disk fails; the region is then as after a crash.
    pub fn close(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.keeper, Keeper::Closed) {
            Keeper::Region(store) => store.close(),
            Keeper::Witness(_) | Keeper::Closed => Ok(()),
        }
    }

    fn store_mut(&mut self) -> Result<&mut Store, Refusal> {
        match &mut self.keeper {
            Keeper::Region(store) => Ok(store),
            Keeper::Witness(_) => Err(Refusal::BadRequest("a witness keeps no data".into())),
            Keeper::Closed => Err(Refusal::Unusable("it is shutting down".into())),
        }
    }

    fn keep_state(&mut self) -> Result<(), Refusal> {
        let raw = serde_json::to_vec(self.member.state())
            .map_err(|e| Refusal::Unusable(format!("its state cannot be encoded: {e}")))?;
        match &mut self.keeper {
            Keeper::Region(store) => store.set_member_state(raw),
            Keeper::Witness(file) => file.write(&raw),
            Keeper::Closed => return Err(Refusal::Unusable("it is shutting down".into())),
        }
        .map_err(refusal)
    }

    fn keep(&mut self, keep: Keep) -> Result<(), Refusal> {
        match keep {
            Keep::First => self.keep_state(),
            Keep::Unchanged => Ok(()),
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
        let Some(c) = self.conns.get_mut(&conn) else {
            return;
        };
        // Frames of the ordered stream keep their order behind one that waits for room. What
        // keeps the lease alive does not wait.
        if !c.parked.is_empty() && in_order(&frame) {
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
            self.reply(conn, 0, &Reply::Refused(refusal), out);
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

    // ---- the ordered stream ----

    fn append(&mut self, conn: ConnId, frame: Frame) -> Result<(), Refusal> {
        self.member.check(frame.header.generation)?;
        let header = frame.header;
        let store = self.store_mut()?;
        let data = frame.contiguous_data();
        let len = data.len() as u64;
        let entry = Entry::decode(
            Seq(header.seq),
            header.aux,
            &frame.meta,
            data,
            store.blocks(),
        )
        .map_err(|e| Refusal::BadRequest(e.to_string()))?;
        if entry.seq == store.end().seq.next() {
            // It follows: the stream is in line with what is here, so its positions count, also
            // while this very entry waits for the room that they may give.
            store.set_commit(header.commit);
            store.set_trim(header.trim);
            self.in_line(conn, header.generation);
        }
        match self.store_mut()?.append(&entry) {
            Ok(()) => {}
            Err(StoreError::LogFull { .. }) => {
                self.park(conn, frame);
                return Ok(());
            }
            Err(e) => return Err(refusal(e)),
        }
        if let Some(c) = self.conns.get_mut(&conn) {
            c.received += len;
        }
        Ok(())
    }

    fn in_line(&mut self, conn: ConnId, generation: Generation) {
        if let Some(c) = self.conns.get_mut(&conn) {
            c.generation = generation;
        }
    }

    fn park(&mut self, conn: ConnId, frame: Frame) {
        self.recorder.count("downstairs.log.full", 1);
        // Only what is synced can be moved out of the log; copies are synced for no other reason.
        self.sync_wanted = true;
        if let Some(c) = self.conns.get_mut(&conn) {
            c.parked_bytes += frame.wire_len();
            c.parked.push_front(frame);
        }
    }

    fn copy(&mut self, conn: ConnId, frame: Frame) -> Result<(), Refusal> {
        self.member.check(frame.header.generation)?;
        let store = self.store_mut()?;
        let data = frame.contiguous_data();
        let entry = Entry::decode(store.end().seq, 0, &frame.meta, data, store.blocks())
            .map_err(|e| Refusal::BadRequest(e.to_string()))?;
        match store.copy_in(entry) {
            Err(StoreError::LogFull { .. }) => {
                self.park(conn, frame);
                Ok(())
            }
            other => other.map_err(refusal),
        }
    }

    fn sync_asked(
        &mut self,
        conn: ConnId,
        header: &Header,
        out: &mut Vec<Out>,
    ) -> Result<(), Refusal> {
        self.member.check(header.generation)?;
        let store = self.store_mut()?;
        store.set_commit(header.commit);
        store.set_trim(header.trim);
        let durable = store.durable().seq;
        let Some(c) = self.conns.get_mut(&conn) else {
            return Ok(());
        };
        c.generation = header.generation;
        if durable >= Seq(header.seq) {
            self.say_durable(conn, durable, out);
        } else {
            c.sync_to = Some(Seq(header.seq));
            self.sync_wanted = true;
        }
        Ok(())
    }

    fn say_durable(&self, conn: ConnId, durable: Seq, out: &mut Vec<Out>) {
        let mut header = Header::new(Kind::Durable, self.member.state().promise, durable.0);
        header.aux = self.credit(conn);
        out.push(Out::Send(
            conn,
            Frame {
                header,
                meta: Bytes::new(),
                data: Vec::new(),
            },
        ));
    }

    fn credit(&self, conn: ConnId) -> u64 {
        let Some(c) = self.conns.get(&conn) else {
            return 0;
        };
        let (asked, granted) = c.granted.get();
        if asked != Now::default() && self.now.since(asked) < SPACE_EVERY {
            return granted;
        }
        let free = self.store().and_then(|s| s.free_space().ok());
        let granted = c.received.saturating_add(free.map_or(0, |s| s.free));
        c.granted.set((self.now, granted));
        granted
    }

    /// Whether [`Replica::begin_sync`] would give a job.
    pub fn wants_sync(&self) -> bool {
        self.sync_wanted && !self.syncing
    }

    /// Whether a checkpoint is due.
    pub fn wants_checkpoint(&self) -> bool {
        let due = self.store().is_some_and(Store::wants_checkpoint);
        !self.checkpointing && (due || self.conns.values().any(|c| !c.parked.is_empty()))
    }

    /// A sync that somebody waits for, if none runs. To be run without the lock and handed to
    /// [`Replica::sync_done`].
    pub fn begin_sync(&mut self) -> Option<SyncJob> {
        if self.syncing || !self.sync_wanted {
            return None;
        }
        let Keeper::Region(store) = &mut self.keeper else {
            return None;
        };
        let job = store.begin_sync().ok()?;
        self.sync_wanted = false;
        self.syncing = true;
        Some(job)
    }

    /// A sync ended.
    pub fn sync_done(&mut self, job: SyncJob, result: Result<Synced>, out: &mut Vec<Out>) {
        self.syncing = false;
        let Keeper::Region(store) = &mut self.keeper else {
            return;
        };
        let upto = match store.finish_sync(job, result) {
            Ok(upto) => upto,
            Err(e) => {
                tracing::error!(error = %e, "a sync failed; the region takes nothing more");
                let refused = Reply::Refused(Refusal::Disk(e.to_string()));
                let conns: Vec<_> = self.conns.keys().copied().collect();
                conns
                    .into_iter()
                    .for_each(|c| self.reply(c, 0, &refused, out));
                return;
            }
        };
        let promise = self.member.state().promise;
        let mut tell = Vec::new();
        for (id, c) in &mut self.conns {
            let Some(wanted) = c.sync_to else { continue };
            if c.generation == promise {
                tell.push(*id);
            }
            if wanted <= upto {
                c.sync_to = None;
            } else {
                // More was asked for meanwhile.
                self.sync_wanted = true;
            }
        }
        tell.into_iter()
            .for_each(|c| self.say_durable(c, upto, out));
    }

    /// A checkpoint, if one is needed and none runs. To be stepped without the lock and handed to
    /// [`Replica::checkpoint_done`].
    pub fn begin_checkpoint(&mut self) -> Option<CheckpointJob> {
        if !self.wants_checkpoint() {
            return None;
        }
        let Keeper::Region(store) = &mut self.keeper else {
            return None;
        };
        let job = store.begin_checkpoint().ok().flatten()?;
        self.checkpointing = true;
        Some(job)
    }

    /// As [`Replica::begin_checkpoint`], also where the log is not half full yet.
    pub fn begin_settling(&mut self) -> Settling {
        if self.checkpointing {
            return Settling::Busy;
        }
        let Keeper::Region(store) = &mut self.keeper else {
            return Settling::Settled;
        };
        match store.begin_checkpoint() {
            Ok(Some(job)) => {
                self.checkpointing = true;
                Settling::Job(Box::new(job))
            }
            // A poisoned store settles nothing more.
            Ok(None) | Err(_) => Settling::Settled,
        }
    }

    /// A checkpoint ended; frames that waited for room go on.
    pub fn checkpoint_done(
        &mut self,
        now: Now,
        job: CheckpointJob,
        result: Result<Step>,
        out: &mut Vec<Out>,
    ) {
        self.checkpointing = false;
        let Keeper::Region(store) = &mut self.keeper else {
            return;
        };
        if let Err(e) = store.finish_checkpoint(job, result) {
            tracing::error!(error = %e, "a checkpoint failed; the region takes nothing more");
            let refused = Reply::Refused(refusal(e));
            let conns: Vec<_> = self.conns.keys().copied().collect();
            conns
                .into_iter()
                .for_each(|c| self.reply(c, 0, &refused, out));
            return;
        }
        self.unpark(now, out);
    }

    /// Tries again what waited for room in the log.
    pub fn unpark(&mut self, now: Now, out: &mut Vec<Out>) {
        for conn in self.conns.keys().copied().collect::<Vec<_>>() {
            let Some(c) = self.conns.get_mut(&conn) else {
                continue;
            };
            let mut frames = std::mem::take(&mut c.parked);
            c.parked_bytes = 0;
            while let Some(frame) = frames.pop_front() {
                self.handle(now, conn, frame, out);
                let Some(c) = self.conns.get_mut(&conn) else {
                    break;
                };
                if !c.parked.is_empty() {
                    // Full again: the rest stays behind the one that was put back.
                    c.parked_bytes += frames.iter().map(Frame::wire_len).sum::<usize>();
                    c.parked.append(&mut frames);
                }
            }
        }
    }

    // ---- reads ----

    fn read_asked(
        &mut self,
        conn: ConnId,
        frame: &Frame,
        out: &mut Vec<Out>,
    ) -> Result<(), Refusal> {
        let id = frame.header.seq;
        let planned = self.plan_read(frame);
        match planned {
            Ok(job) => out.push(Out::Read(conn, id, job)),
            Err(refusal) => self.reply(conn, id, &Reply::Refused(refusal), out),
        }
        Ok(())
    }

    fn plan_read(&mut self, frame: &Frame) -> Result<ReadJob, Refusal> {
        self.member.check(frame.header.generation)?;
        let bad = || Refusal::BadRequest("a read of no, or of too many blocks".into());
        let r = ReadMeta::decode(&frame.meta).ok_or_else(bad)?;
        if r.count == 0 || r.count > MAX_READ_BLOCKS {
            return Err(bad());
        }
        let store = self.store_mut()?;
        if store.mixed().is_some() || store.damaged() {
            return Err(Refusal::Unusable("its data is not of one moment".into()));
        }
        store.begin_read(Block(r.block), r.count).map_err(refusal)
    }

    /// A read was run; one that the log overtook meanwhile is run again here, under the lock.
    pub fn read_done(
        &mut self,
        conn: ConnId,
        id: u64,
        job: &ReadJob,
        result: Result<crate::store::Blocks>,
        out: &mut Vec<Out>,
    ) {
        let Some(store) = self.store() else { return };
        let result = if store.still_valid(job) && result.is_ok() {
            result
        } else {
            // Planned anew: what it looked for has moved.
            let (block, count) = job.asked();
            store.read(block, count)
        };
        match result {
            Ok(blocks) => {
                let mut sums = BytesMut::with_capacity(blocks.sums.len() * 16);
                blocks.sums.iter().for_each(|s| sums.put_slice(&s.0));
                let header = Header::new(Kind::ReadOk, self.member.state().promise, id);
                let data = vec![Bytes::from(blocks.data)];
                out.push(Out::Send(
                    conn,
                    Frame {
                        header,
                        meta: sums.freeze(),
                        data,
                    },
                ));
            }
            Err(e) => self.reply(conn, id, &Reply::Refused(refusal(e)), out),
        }
    }

    // ---- control ----

    fn request(&mut self, now: Now, conn: ConnId, frame: &Frame, out: &mut Vec<Out>) {
        let id = frame.header.seq;
        let request = match message::decode::<Request>(&frame.meta) {
            Ok(request) => request,
            Err(why) => return out.push(Out::Close(conn, why)),
        };
        let greeted = self.conns.get(&conn).is_some_and(|c| c.hello);
        if !greeted && !matches!(request, Request::Hello { .. }) {
            return out.push(Out::Close(conn, "it did not say hello first".into()));
        }
        let header = &frame.header;
        let reply = self.answer(now, conn, header, request, out);
        let reply = reply.unwrap_or_else(Reply::Refused);
        self.reply(conn, id, &reply, out);
    }

    fn answer(
        &mut self,
        now: Now,
        conn: ConnId,
        header: &Header,
        request: Request,
        out: &mut Vec<Out>,
    ) -> Result<Reply, Refusal> {
        let (id, g, positions) = (header.seq, header.generation, (header.commit, header.trim));
        match request {
            Request::Hello { volume, member, .. } => self.hello(now, conn, volume, member),
            Request::Status => self.welcome(now, conn).map(Reply::Welcome),
            Request::Claim { node } => {
                self.usable()?;
                let keep = self.member.claim(now, g, &node)?;
                self.keep(keep)?;
                self.drop_fenced();
                self.recorder.count("downstairs.claims", 1);
                self.welcome(now, conn).map(Reply::Granted)
            }
            Request::Renew => {
                self.member.renew(now, g)?;
                self.heed_positions(conn, g, positions);
                Ok(Reply::Renewed)
            }
            Request::PutRecord(record) => {
                let (blocks, in_set) = (record.blocks, record.in_sync.contains(&self.id()));
                let (version, keep) = self.member.put_record(now, g, record)?;
                self.keep(keep)?;
                let in_line = self.conns.get(&conn).is_some_and(|c| c.generation == g);
                if let Keeper::Region(store) = &mut self.keeper {
                    store.grow(blocks).map_err(refusal)?;
                    if in_set && in_line {
                        // Whoever counts us, with this stream, knows where our log ends.
                        store.settle_tail().map_err(refusal)?;
                    }
                }
                Ok(Reply::Recorded(version))
            }
            Request::HandBack => {
                let keep = self.member.hand_back(g)?;
                self.keep(keep)?;
                Ok(Reply::Done)
            }
            Request::Cut(to) => {
                self.member.check(g)?;
                let store = self.store_mut()?;
                store.cut(to).map_err(refusal)?;
                if store.mixed().is_some() {
                    let why = "blocks that a resync had copied went with the cut";
                    return Err(Refusal::Unusable(why.into()));
                }
                Ok(Reply::Done)
            }
            Request::Fetch { from, max_bytes } => {
                self.member.check(g)?;
                self.fetch(conn, id, from, max_bytes, out)
            }
            Request::BeginResync { common, table } => {
                self.member.check(g)?;
                self.begin_resync(common, table)
            }
            Request::FinishResync => {
                self.member.check(g)?;
                let store = self.store_mut()?;
                store.set_commit(positions.0);
                store.sync().map_err(refusal)?;
                store.finish_resync().map_err(refusal)?;
                Ok(Reply::Done)
            }
            Request::Changed { since, cursor, max } => {
                self.member.check(g)?;
                let max = max.clamp(1, MAX_RANGES) as usize;
                let store = self.store_mut()?;
                let (groups, next) = store
                    .changed_since(since, Cursor(cursor), max)
                    .map_err(refusal)?;
                let ranges = joined(groups.iter().map(|g| (g.block, g.count)));
                Ok(Reply::Changed {
                    ranges,
                    next: next.map(|c| c.0),
                })
            }
            Request::Sums { block, count } => {
                self.member.check(g)?;
                if count == 0 || count > MAX_SUMS {
                    return Err(Refusal::BadRequest(format!("{count} checksums asked for")));
                }
                let sums = self.store_mut()?.checksums(Block(block), count);
                sums.map(Reply::Sums).map_err(refusal)
            }
        }
    }

    /// What waits for room and belongs to another generation is refused by now: it must not stand
    /// in the way of what the promised one sends on the same connection.
    fn drop_fenced(&mut self) {
        let promise = self.member.state().promise;
        for c in self.conns.values_mut() {
            c.parked.retain(|f| f.header.generation == promise);
            c.parked_bytes = c.parked.iter().map(Frame::wire_len).sum();
        }
    }

    /// Positions that come with a renewal count only on a connection whose stream is in line:
    /// before that, what is here may be of a history that lost. They keep the log emptying while
    /// the stream itself waits for room.
    fn heed_positions(&mut self, conn: ConnId, g: Generation, (commit, trim): (Seq, Seq)) {
        let in_line = self.conns.get(&conn).is_some_and(|c| c.generation == g);
        if let (true, Keeper::Region(store)) = (in_line, &mut self.keeper) {
            store.set_commit(commit);
            store.set_trim(trim);
        }
    }

    fn hello(
        &mut self,
        now: Now,
        conn: ConnId,
        volume: VolumeId,
        member: Option<MemberId>,
    ) -> Result<Reply, Refusal> {
        if volume != self.volume() {
            return Err(Refusal::NotHere(format!(
                "volume {volume} is not on this node"
            )));
        }
        if let Some(expected) = member.filter(|m| *m != self.id()) {
            return Err(Refusal::NotHere(format!(
                "member {} lives here, not {expected}; it was replaced",
                self.id()
            )));
        }
        if let Some(c) = self.conns.get_mut(&conn) {
            c.hello = true;
        }
        self.usable()?;
        self.welcome(now, conn).map(Reply::Welcome)
    }

    /// A member whose disk failed answers nothing that would count.
    fn usable(&self) -> Result<(), Refusal> {
        match self.store().and_then(Store::poisoned) {
            Some(why) => Err(Refusal::Unusable(why.to_owned())),
            None => Ok(()),
        }
    }

    fn welcome(&self, now: Now, conn: ConnId) -> Result<Welcome, Refusal> {
        let state = self.member.state();
        if state.removed {
            return Err(Refusal::Removed(Box::new(state.record.clone())));
        }
        let space = self
            .store()
            .and_then(|s| s.free_space().ok())
            .unwrap_or_default();
        let table = self.store().map(|s| s.generation_table().clone());
        Ok(Welcome {
            member: state.member,
            kind: match self.keeper {
                Keeper::Region(_) | Keeper::Closed => MemberKind::Replica,
                Keeper::Witness(_) => MemberKind::Witness,
            },
            record: state.record.clone(),
            promise: state.promise,
            holder: state.holder.clone(),
            lease_left: self.member.lease_left(now),
            handed_back: state.handed_back,
            held_for: self.member.held_for(now),
            data: self.data_state(),
            table: table.unwrap_or_default(),
            durable: self.store().map_or(Position::default(), Store::durable),
            checkpointed: self.store().map_or(Seq::ZERO, |s| s.checkpointed().seq),
            log_first: self.store().map_or(Seq::ZERO, |s| s.tail().next()),
            opens: self.opens,
            credit: self.credit(conn),
            pool_free: space.free,
            pool_size: space.total,
        })
    }

    fn data_state(&self) -> DataState {
        let Some(store) = self.store() else {
            return DataState::None;
        };
        if let Some(common) = store.mixed() {
            DataState::Mixed(common.unwrap_or(Seq::ZERO))
        } else if store.damaged() {
            DataState::Damaged
        } else if store.unsure() {
            DataState::Whole(Tail::Unsure)
        } else {
            DataState::Whole(Tail::Clean)
        }
    }

    fn fetch(
        &mut self,
        conn: ConnId,
        id: u64,
        from: Seq,
        max_bytes: u32,
        out: &mut Vec<Out>,
    ) -> Result<Reply, Refusal> {
        let promise = self.member.state().promise;
        let store = self.store_mut()?;
        let entries = store
            .entries_from(from, max_bytes as usize)
            .map_err(refusal)?;
        let (first, last) = (store.tail().next(), store.end().seq);
        for entry in entries {
            let mut header = Header::new(Kind::LogEntry, promise, entry.seq.0);
            header.aux = entry.generation;
            header.commit = Seq(id);
            let frame = Frame {
                header,
                meta: entry.encode_meta(),
                data: entry.data,
            };
            out.push(Out::Send(conn, frame));
        }
        Ok(Reply::Fetched { first, last })
    }

    fn begin_resync(&mut self, common: Seq, table: GenerationTable) -> Result<Reply, Refusal> {
        // What was read from the network as parts is checked as a whole before it is believed.
        let table = GenerationTable::from_parts(table.floor(), table.rows().to_vec())
            .ok_or_else(|| Refusal::BadRequest("a generation table that cannot be".into()))?;
        if self.checkpointing || self.syncing {
            return Err(Refusal::BadRequest(
                "busy with a checkpoint or sync; ask again".into(),
            ));
        }
        let store = self.store_mut()?;
        prepare_resync(store, common, table).map_err(refusal)?;
        Ok(Reply::Done)
    }
}

/// Empties the log of what is common, marks the region mixed and jumps to the peer's position.
fn prepare_resync(store: &mut Store, common: Seq, table: GenerationTable) -> Result<()> {
    if store.mixed().is_none()
        && common < store.end().seq
        && common >= store.checkpointed().seq.max(store.commit())
        && common > Seq::ZERO
    {
        store.cut(common)?;
    }
    store.mark_mixed((common > Seq::ZERO).then_some(common))?;
    // Everything here is common with the peer, or will be compared: nothing of it can be lost by
    // moving it to the extents now.
    store.set_commit(store.end().seq);
    store.sync()?;
    while store.checkpoint_now()? {}
    store.adopt(table)
}

/// Neighbouring ranges as one, while they stay within what one job compares.
fn joined(ranges: impl Iterator<Item = (u64, u32)>) -> Vec<(u64, u32)> {
    let mut out: Vec<(u64, u32)> = Vec::new();
    for (block, count) in ranges {
        match out.last_mut() {
            Some((b, n)) if *b + u64::from(*n) == block && *n < (1 << 20) => *n += count,
            _ => out.push((block, count)),
        }
    }
    out
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
        StoreError::BadSeq { .. }
        | StoreError::GenerationDown { .. }
        | StoreError::BadEntry(_)
        | StoreError::OutOfRange { .. }
        | StoreError::CutTooFar { .. }
        | StoreError::NotInLog(_)
        | StoreError::WrongState(_) => Refusal::BadRequest(e.to_string()),
        StoreError::Poisoned { .. } | StoreError::Corrupt { .. } => {
            Refusal::Unusable(e.to_string())
        }
        _ => Refusal::Disk(e.to_string()),
    }
}
