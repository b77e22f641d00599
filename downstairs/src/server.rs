//! Serves members over TCP: one process, one port, many regions and witnesses.
//!
//! One thread per connection reads frames, applies them, and syncs when somebody waits for it and
//! no sync runs: what arrives meanwhile waits in the socket and is covered by the next sync, so
//! that concurrent flushes share one. One thread per region checkpoints.
//!
//! Who connects has proved who it is before its first frame is read; [`crate::door`] sees to that.
//! A connection that begins with a call is handed to the node's own handler and stays with it.
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

use bytes::Bytes;
use trivet_protocol::frame::{Frame, Header, Kind, Versions};
use trivet_protocol::io::{FrameReader, FrameWriter, ReadError};
use trivet_protocol::message::{self, Refusal, Reply, Request};
use trivet_protocol::{Block, Checksum, Generation, MemberId, Now, Recorder, Seq, VolumeId};
use trivet_transport::call::{self, CallHandler};
use trivet_transport::{Reader, Security, TransportError, Writer};

use crate::checkpoint::CheckpointJob;
use crate::door::{Door, Greeted};
use crate::replica::{ConnId, Out, Replica, Settling};

/// A peer must take an answer within this time.
const TAKE: Duration = Duration::from_secs(10);
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
    writers: RwLock<HashMap<ConnId, Arc<Conn>>>,
    /// The checkpoint thread waits here.
    work: Condvar,
    stop: AtomicBool,
    recorder: Arc<dyn Recorder>,
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
            replica: Mutex::new(replica),
            writers: RwLock::default(),
            work: Condvar::new(),
            stop: AtomicBool::new(false),
            recorder,
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

    /// A read on the caller's own thread, for an upstairs in this process: `None` unless
    /// everything up to `seen` of this very generation was applied.
    pub fn read_local(
        &self,
        generation: Generation,
        seen: Seq,
        block: Block,
        count: u32,
    ) -> Option<(Bytes, Vec<Checksum>)> {
        let job = {
            let replica = lock(&self.replica);
            let store = replica.store()?;
            let ours = replica.member().check(generation).is_ok();
            if !ours || store.end().seq < seen || store.mixed().is_some() || store.damaged() {
                return None;
            }
            store.begin_read(block, count).ok()?
        };
        let blocks = job.run().ok()?;
        let valid = lock(&self.replica).store()?.still_valid(&job);
        valid.then(|| (Bytes::from(blocks.data), blocks.sums))
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

    fn run_checkpoints(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let job = {
                let mut replica = lock(&self.replica);
                match replica.begin_checkpoint() {
                    Some(job) => Some(job),
                    None => {
                        let wait = self.work.wait_timeout(replica, Duration::from_millis(200));
                        replica = wait.unwrap_or_else(PoisonError::into_inner).0;
                        replica.begin_checkpoint()
                    }
                }
            };
            if let Some(job) = job {
                self.run_checkpoint(job);
            }
        }
    }

    fn run_checkpoint(&self, mut job: CheckpointJob) {
        let began = Instant::now();
        let result = job.run();
        self.recorder.time("downstairs.checkpoint", nanos(began));
        let mut out = Vec::new();
        lock(&self.replica).checkpoint_done(boot_time(), job, result, &mut out);
        self.perform(out);
        self.run_syncs();
    }

    /// Moves everything committed from the log to the extent files, on the caller's thread.
    pub fn settle(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let next = lock(&self.replica).begin_settling();
            match next {
                Settling::Job(job) => self.run_checkpoint(*job),
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

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.work.notify_all();
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

type Frames = FrameReader<Reader>;

impl Conn {
    fn flush(&self) {
        let mut out = lock(&self.out);
        let sent = out.write_with(|parts| self.writer.write(parts));
        if sent.is_err() {
            // It does not take its answers: the reader thread sees the end and cleans up.
            self.close();
        }
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

/// The listening side. Dropping it ends everything, in order.
pub struct Server {
    inner: Arc<Inner>,
    door: Door,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

struct Inner {
    members: RwLock<HashMap<VolumeId, Arc<Served>>>,
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
        let checkpoints = served.clone();
        let name = format!("ckpt-{:?}", served.member());
        let thread = spawn(name, move || checkpoints.run_checkpoints())?;
        lock(&self.threads).push(thread);
        let mut members = self
            .inner
            .members
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        members.insert(served.volume(), served);
        Ok(())
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
        members.values().for_each(|m| m.stop());
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
            Ok(served) => {
                if !self.stop.load(Ordering::Acquire) {
                    served.serve(id, &conn, first, reader);
                }
                Ok(())
            }
            Err(refusal) => {
                let why = refusal.to_string();
                let frame = Frame {
                    header: Header::new(Kind::Reply, Generation::NONE, first.header.seq),
                    meta: message::encode(&Reply::Refused(refusal)),
                    data: Vec::new(),
                };
                lock(&conn.out).push(&frame, None);
                conn.flush();
                Err(why)
            }
        }
    }

    /// The member that a hello asks for.
    fn wanted(&self, conn: &Conn, hello: &Frame) -> Result<Arc<Served>, Refusal> {
        let volume = match message::decode::<Request>(&hello.meta) {
            Ok(Request::Hello { volume, .. }) if hello.header.kind == Kind::Request => volume,
            _ => return Err(Refusal::BadRequest("it did not say hello".into())),
        };
        let peer = conn.writer.peer();
        if !peer.role.may_use_volumes() {
            let why =
                format!("{peer}, may call and nothing else; use a node's or an exporter's key");
            return Err(Refusal::BadRequest(why));
        }
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.get(&volume).cloned().ok_or_else(|| {
            let why = format!("volume {volume} is not on this node; look at its configuration");
            Refusal::NotHere(why)
        })
    }
}
