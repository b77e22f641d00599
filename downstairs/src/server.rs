//! Serves members over TCP: one process, one port, many regions and witnesses.
//!
//! One thread per connection reads frames, applies them, and syncs when somebody waits for it and
//! no sync runs: what arrives meanwhile waits in the socket and is covered by the next sync, so
//! that concurrent flushes share one. One thread per region checkpoints.
//!
//! Who connects has proved who it is before its first frame is read; [`crate::door`] sees to that.
//! A connection that begins with a call is handed to the node's own handler and stays with it.
//!
//! Renewals of the lease come on connections of their own (`attend`), so that nothing of this can
//! keep them waiting.
//!
//! Bounds: connections, and time until the first frame ([`crate::door`]), time for a peer to take
//! an answer ([`TAKE`]), one frame per connection beyond the socket's buffer.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use trivet_protocol::frame::{Frame, Header, Kind, Versions};
use trivet_protocol::io::{FrameReader, FrameWriter, ReadError};
use trivet_protocol::message::{self, Refusal, Reply, Request};
use trivet_protocol::{Generation, MemberId, Now, Recorder, VolumeId};
use trivet_transport::call::{self, CallHandler};
use trivet_transport::{Reader, Security, TransportError, Writer};

mod attend;
mod health;
mod readers;
mod scrub;

use crate::checkpoint::{CheckpointJob, Step};
use crate::door::{Door, Greeted};
use crate::pledge::Pledge;
use crate::replica::{ConnId, Out, Replica, Settling};
use crate::store::Reopen;
use health::{Cure, Health};
use readers::Readers;
pub use readers::{MOST as READERS, PATIENCE as READ_PATIENCE};

/// A peer must take an answer within this time.
const TAKE: Duration = Duration::from_secs(10);
/// How long a checkpoint should take: a writer that finds the log full waits for its end.
const ROUND: Duration = Duration::from_millis(300);
/// How often the region's thread looks for work that nobody told it of.
const LOOK: Duration = Duration::from_millis(200);
/// Between two tries while the pool is full.
const FULL: Duration = Duration::from_millis(100);
/// From so many bytes on a checkpoint tells how fast the disk is.
const MEASURED: u64 = 1 << 20;
/// How often whoever waits for a checkpoint hears that it comes forward.
const TELL_WORK: Duration = Duration::from_millis(100);
/// Frames applied under one lock, at most.
const BATCH: usize = 64;

/// CLOCK_BOOTTIME (invariant 2).
pub fn boot_time() -> Now {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Now(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// One member while it is served.
pub struct Served {
    volume: VolumeId,
    member: MemberId,
    replica: Mutex<Replica>,
    /// The replica's promise, to be found without the replica's lock.
    pledge: RwLock<Arc<Pledge>>,
    writers: RwLock<HashMap<ConnId, Arc<Conn>>>,
    /// The checkpoint thread waits here.
    work: Condvar,
    looks: scrub::Looks,
    stop: AtomicBool,
    recorder: Arc<dyn Recorder>,
    readers: Readers,
}

struct Conn {
    writer: Writer,
    out: Mutex<FrameWriter>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under this lock is a bug that must not spread to other connections; the store
    // poisons itself on every error that matters.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Served {
    /// Makes a member ready to be served.
    pub fn new(replica: Replica, recorder: Arc<dyn Recorder>) -> Arc<Served> {
        Arc::new(Served {
            volume: replica.volume(),
            member: replica.id(),
            pledge: RwLock::new(replica.member().pledge().clone()),
            replica: Mutex::new(replica),
            writers: RwLock::default(),
            work: Condvar::new(),
            looks: scrub::Looks::default(),
            stop: AtomicBool::new(false),
            recorder,
            readers: Readers::default(),
        })
    }

    /// Its volume.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Who it is.
    pub fn member(&self) -> MemberId {
        self.member
    }

    /// Looks at it, under its lock.
    pub fn with<T>(&self, f: impl FnOnce(&mut Replica) -> T) -> T {
        f(&mut lock(&self.replica))
    }

    /// Hands frames to connections and runs jobs, until nothing is left to do.
    fn perform(&self, mut outs: Vec<Out>) {
        while !outs.is_empty() {
            let mut more = Vec::new();
            let mut touched: Vec<ConnId> = Vec::new();
            for out in outs {
                match out {
                    Out::Send(conn, frame) => {
                        if let Some(c) = self.conn(conn) {
                            lock(&c.out).push(&frame, None);
                            if !touched.contains(&conn) {
                                touched.push(conn);
                            }
                        }
                    }
                    Out::Read(conn, id, job) => {
                        let began = Instant::now();
                        let result = job.run();
                        self.recorder.time("downstairs.read", nanos(began));
                        lock(&self.replica).read_done(conn, id, &job, result, &mut more);
                    }
                    Out::Scrub(conn, id, job) => {
                        if !self.looks.add(conn, id, job) {
                            lock(&self.replica).scrub_refused(conn, id, &mut more);
                        }
                    }
                    Out::Close(conn, why) => {
                        tracing::warn!(volume = %self.volume, why, "connection closed");
                        if let Some(c) = self.conn(conn) {
                            c.close();
                        }
                    }
                }
            }
            for conn in touched {
                if let Some(c) = self.conn(conn) {
                    c.flush();
                }
            }
            outs = more;
        }
    }

    fn conn(&self, id: ConnId) -> Option<Arc<Conn>> {
        self.writers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    /// Runs syncs as long as somebody waits for one and nobody else runs it.
    fn run_syncs(&self) {
        loop {
            let Some(job) = lock(&self.replica).begin_sync() else {
                return;
            };
            let began = Instant::now();
            let result = job.run();
            self.recorder.time("downstairs.log.sync", nanos(began));
            let mut out = Vec::new();
            lock(&self.replica).sync_done(job, result, &mut out);
            self.perform(out);
        }
    }

    /// The region's own thread: checkpoints, and opening it anew when its disk had failed.
    fn run_checkpoints(&self) {
        let mut health = Health::new(Instant::now());
        // While the pool is full: not before then.
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            self.heal(&mut health);
            let job = {
                let mut replica = lock(&self.replica);
                let wait = next.saturating_duration_since(Instant::now());
                let job = wait.is_zero().then(|| replica.begin_checkpoint()).flatten();
                if job.is_none() {
                    let wait = wait.max(Duration::from_millis(10)).min(LOOK);
                    drop(self.work.wait_timeout(replica, wait));
                }
                job
            };
            if let Some(job) = job
                && !self.run_checkpoint(job)
            {
                next = Instant::now() + FULL;
            }
        }
    }

    /// Opens a region anew whose disk failed, in its time.
    fn heal(&self, health: &mut Health) {
        if !lock(&self.replica).disk_is_bad() {
            return;
        }
        let mut cure = health.failed(Instant::now());
        if cure == Cure::Reopen {
            let Some(job) = lock(&self.replica).begin_reopen() else {
                // Something of the old opening still hangs in the disk.
                return;
            };
            match self.reopen(&job) {
                Ok(()) => return health.is_back(Instant::now()),
                Err(e) => {
                    tracing::error!(volume = %self.volume, error = %e, "region not opened");
                    cure = health.still_failed(Instant::now());
                }
            }
        }
        if cure == Cure::GiveUp {
            self.recorder.count("downstairs.region.given_up", 1);
            tracing::error!(
                volume = %self.volume,
                "the disk failed {} times: its replica stays out until this process is started \
                 anew; replace the disk", health::MOST
            );
        }
    }

    fn reopen(&self, job: &Reopen) -> crate::Result<()> {
        let (store, report) = job.run()?;
        let mut out = Vec::new();
        {
            let mut replica = lock(&self.replica);
            replica.reopened(boot_time(), store, &mut out)?;
            let mut pledge = self.pledge.write().unwrap_or_else(PoisonError::into_inner);
            *pledge = replica.member().pledge().clone();
        }
        self.perform(out);
        self.recorder.count("downstairs.region.reopened", 1);
        tracing::warn!(
            volume = %self.volume,
            opens = report.opens,
            records = report.records,
            rewritten = report.rewritten,
            tail = ?report.tail,
            "region opened anew after its disk had failed"
        );
        Ok(())
    }

    /// False if the pool is full.
    fn run_checkpoint(&self, mut job: CheckpointJob) -> bool {
        let began = Instant::now();
        let mut told = began;
        let result = loop {
            match job.step() {
                Ok(Step::More) => {}
                other => break other,
            }
            if told.elapsed() >= TELL_WORK {
                told = Instant::now();
                let mut out = Vec::new();
                lock(&self.replica).still_working(&mut out);
                self.perform(out);
            }
        };
        self.recorder.time("downstairs.checkpoint", nanos(began));
        let (bytes, took) = (job.log_bytes(), began.elapsed());
        tracing::debug!(volume = %self.volume, bytes, ?took, "checkpoint");
        let mut out = Vec::new();
        let full = {
            let mut replica = lock(&self.replica);
            // A short one that went quickly says little.
            if bytes >= MEASURED || took > ROUND {
                replica.set_round_bytes(next_round(bytes, took));
            }
            replica.checkpoint_done(boot_time(), job, result, &mut out);
            replica.pool_is_full()
        };
        self.perform(out);
        self.run_syncs();
        !full
    }

    /// Moves everything committed from the log to the extent files, on the caller's thread.
    pub fn settle(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let next = lock(&self.replica).begin_settling();
            match next {
                Settling::Job(job) => {
                    // What a full pool does not take stays in the log.
                    if !self.run_checkpoint(*job) {
                        return;
                    }
                }
                Settling::Busy => thread::park_timeout(Duration::from_millis(5)),
                Settling::Settled => return,
            }
        }
    }

    /// Closes the region in order. To be called when its server is gone.
    ///
    /// # Errors
    /// The disk fails; the region is then as after a crash.
    pub fn close(&self) -> crate::Result<()> {
        lock(&self.replica).close()
    }

    fn serve(self: &Arc<Self>, id: ConnId, conn: &Arc<Conn>, first: Frame, mut reader: Frames) {
        let insert = |map: &mut HashMap<_, _>| map.insert(id, conn.clone());
        insert(&mut self.writers.write().unwrap_or_else(PoisonError::into_inner));
        lock(&self.replica).connected(id);
        let mut next = Some(first);
        while let Some(frame) = next {
            let mut out = Vec::new();
            let (sync, checkpoint) = {
                let mut replica = lock(&self.replica);
                let now = boot_time();
                replica.begin_batch();
                replica.frame(now, id, frame, &mut out);
                for _ in 0..BATCH {
                    if !reader.has_buffered_frame() {
                        break;
                    }
                    match reader.next_frame() {
                        Ok(f) => replica.frame(now, id, f, &mut out),
                        Err(_) => break,
                    }
                }
                replica.end_batch(&mut out);
                (replica.wants_sync(), replica.wants_checkpoint())
            };
            self.perform(out);
            if sync {
                self.run_syncs();
            }
            // A sync may be what a checkpoint was waiting for.
            if checkpoint || (sync && lock(&self.replica).wants_checkpoint()) {
                self.work.notify_one();
            }
            next = match reader.next_frame() {
                Ok(frame) => Some(frame),
                Err(ReadError::Closed) => None,
                Err(e) => {
                    tracing::info!(volume = %self.volume, error = %e, "connection ended");
                    None
                }
            };
        }
        lock(&self.replica).disconnected(id);
        self.writers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }

    /// Serves a connection for renewals.
    fn attend(&self, conn: &Conn, first: &Frame, mut reader: Frames) -> Result<(), String> {
        let pledge = self
            .pledge
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // Positions came with it that a checkpoint may have waited for.
        let asked = || self.work.notify_one();
        let send = |frame: &Frame| conn.send(frame);
        attend::attend(&pledge, first.header.seq, &mut reader, asked, send)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.work.notify_all();
        self.looks.end();
    }

    fn hang_up(&self) {
        let writers = self.writers.read().unwrap_or_else(PoisonError::into_inner);
        writers.values().for_each(|c| c.close());
    }
}

/// Bytes of log for the next checkpoint, so that it takes about [`ROUND`] when it is as fast as
/// this one; not more than twice as many, for the disk may have been caching.
fn next_round(bytes: u64, took: Duration) -> u64 {
    let rate = bytes as f64 / took.as_secs_f64().max(0.001);
    ((rate * ROUND.as_secs_f64()) as u64).min(2 * bytes)
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Whom a connection is for: the member that is expected, else the one that counts today.
pub fn chosen(served: &[Arc<Served>], expected: Option<MemberId>) -> Option<Arc<Served>> {
    let standing = |s: &&Arc<Served>| {
        s.with(|r| {
            let state = r.member().state();
            let listed = state.record.member(state.member).is_some();
            (!state.removed, listed, state.record.version)
        })
    };
    let named = served.iter().find(|s| Some(s.member()) == expected);
    named
        .or_else(|| served.iter().max_by_key(standing))
        .cloned()
}

type Frames = FrameReader<Reader>;

impl Conn {
    fn send(&self, frame: &Frame) -> bool {
        lock(&self.out).push(frame, None);
        self.flush()
    }

    fn flush(&self) -> bool {
        let mut out = lock(&self.out);
        let sent = out.write_with(|parts| self.writer.write(parts));
        if sent.is_err() {
            // It does not take its answers: the reader thread sees the end and cleans up.
            self.close();
        }
        sent.is_ok()
    }

    fn close(&self) {
        self.writer.shutdown();
    }
}

/// What [`Server::start`] needs.
pub struct Listen {
    /// Where; port 0 takes a free one.
    pub address: SocketAddr,
    /// How connections are protected, and who may connect.
    pub security: Security,
    /// What this side understands.
    pub versions: Versions,
    /// Answers the calls that come to the same port; `None`: they are refused.
    pub calls: Option<Arc<dyn CallHandler>>,
    /// Takes figures.
    pub recorder: Arc<dyn Recorder>,
}

impl Listen {
    /// Without TLS, on a loopback address, and without calls.
    pub fn plain(address: SocketAddr, recorder: Arc<dyn Recorder>) -> Listen {
        Listen {
            address,
            security: Security::Plain,
            versions: Versions::default(),
            calls: None,
            recorder,
        }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Stream,
    Renewals,
}

/// The listening side. Dropping it ends everything, in order.
pub struct Server {
    inner: Arc<Inner>,
    door: Door,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

struct Inner {
    /// More than one of a volume where one takes the place of another.
    members: RwLock<HashMap<VolumeId, Vec<Arc<Served>>>>,
    calls: Option<Arc<dyn CallHandler>>,
    stop: AtomicBool,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// The address is taken, not this host's, or not fit for connections without TLS.
    pub fn start(listen: Listen) -> Result<Server, TransportError> {
        let inner = Arc::new(Inner {
            members: RwLock::default(),
            calls: listen.calls,
            stop: AtomicBool::new(false),
        });
        let serving = inner.clone();
        let door = Door::open(
            listen.address,
            listen.security,
            listen.versions,
            listen.recorder,
            Box::new(move |greeted| serving.greeted(greeted)),
        )?;
        Ok(Server {
            inner,
            door,
            threads: Mutex::default(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.door.address()
    }

    /// Serves one more member.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn add(&self, served: Arc<Served>) -> io::Result<()> {
        let (checkpoints, looks) = (served.clone(), served.clone());
        let name = format!("ckpt-{:?}", served.member());
        let thread = spawn(name, move || checkpoints.run_checkpoints())?;
        lock(&self.threads).push(thread);
        let name = format!("scrub-{:?}", served.member());
        let thread = spawn(name, move || looks.run_looks())?;
        lock(&self.threads).push(thread);
        let mut members = self
            .inner
            .members
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        members.entry(served.volume()).or_default().push(served);
        Ok(())
    }

    /// Serves a member no longer: its connections end, and its own thread soon after. For one whose
    /// region is thrown away.
    pub fn remove(&self, served: &Arc<Served>) {
        let mut members = self
            .inner
            .members
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(of_volume) = members.get_mut(&served.volume()) {
            of_volume.retain(|s| s.member() != served.member());
        }
        members.retain(|_, of_volume| !of_volume.is_empty());
        drop(members);
        served.stop();
        served.hang_up();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Release);
        self.door.close();
        let members = self
            .inner
            .members
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        members.values().flatten().for_each(|m| m.stop());
        drop(members);
        for t in std::mem::take(&mut *lock(&self.threads)) {
            // A panic was reported where it happened.
            let _ = t.join();
        }
    }
}

fn spawn(name: String, f: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(f)
}

impl Inner {
    /// Serves a connection to its end, by what its first frame asks for.
    fn greeted(&self, greeted: Greeted) -> Result<(), String> {
        let Greeted {
            id,
            first,
            version,
            mut reader,
            writer,
        } = greeted;
        let mut out = FrameWriter::default();
        out.set_version(version);
        if first.header.kind == Kind::Call {
            let calls = self.calls.as_deref();
            let ended = call::serve(calls, first, &mut reader, &writer, out);
            return ended.map_err(|e| e.to_string());
        }
        writer
            .set_write_timeout(TAKE)
            .and_then(|()| reader.get_ref().set_deadline(None))
            .map_err(|e| e.to_string())?;
        let conn = Arc::new(Conn {
            writer,
            out: Mutex::new(out),
        });
        match self.wanted(&conn, &first) {
            _ if self.stop.load(Ordering::Acquire) => Ok(()),
            Ok((served, Wants::Renewals)) => served.attend(&conn, &first, reader),
            Ok((served, Wants::Stream)) => {
                served.serve(id, &conn, first, reader);
                Ok(())
            }
            Err(refusal) => {
                let why = refusal.to_string();
                let frame = Frame {
                    header: Header::new(Kind::Reply, Generation::NONE, first.header.seq),
                    meta: message::encode(&Reply::Refused(refusal)),
                    data: Vec::new(),
                };
                conn.send(&frame);
                Err(why)
            }
        }
    }

    /// The member that a first frame asks for, and what for.
    fn wanted(&self, conn: &Conn, first: &Frame) -> Result<(Arc<Served>, Wants), Refusal> {
        let request = message::decode::<Request>(&first.meta);
        let (volume, wants, who) = match request {
            Ok(Request::Hello { volume, member, .. }) if first.header.kind == Kind::Request => {
                (volume, Wants::Stream, member)
            }
            Ok(Request::Attend { volume, member }) if first.header.kind == Kind::Request => {
                (volume, Wants::Renewals, member)
            }
            _ => return Err(Refusal::BadRequest("it did not say hello".into())),
        };
        let peer = conn.writer.peer();
        if !peer.role.may_use_volumes() {
            let why =
                format!("{peer}, may call and nothing else; use a node's or an exporter's key");
            return Err(Refusal::BadRequest(why));
        }
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        let served = members.get(&volume).cloned().unwrap_or_default();
        drop(members);
        let served = chosen(&served, who);
        // Renewals are for one member; whoever else lives here is of no use for them.
        let exact = |s: &Arc<Served>| wants == Wants::Stream || who.is_none_or(|m| m == s.member());
        let served = served.filter(exact).ok_or_else(|| {
            let why = format!("volume {volume} is not on this node; look at its configuration");
            Refusal::NotHere(why)
        })?;
        Ok((served, wants))
    }
}
