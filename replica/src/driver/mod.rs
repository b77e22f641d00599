//! Drives an [`Upstairs`] with real time, threads and sockets, and shows it as a [`Volume`].
//!
//! Threads: for each link one that connects and reads and one that writes when a socket is full;
//! one that makes time pass. Callers' own threads do the rest: they order, send and, for reads
//! from a replica in this process, read and verify.
//!
//! Locks: the state machine's is taken for microseconds and never held over a system call. Frames
//! are queued on their links under it, so that each stream has the state machine's order.

mod link;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use trivet_protocol::frame::Versions;
use trivet_protocol::io::FrameReader;
use trivet_protocol::{Block, Checksum, Generation, Now, Recorder, Seq, VolumeId};
use trivet_transport::{Connection, Expect, Security, TransportError};

use crate::upstairs::{
    ActivateError, ActivateOptions, Config, Effect, LinkId, Notice, Prepared, Status, Submitted,
    Upstairs, Verify, WaitId,
};
use crate::volume::{
    BLOCK_BYTES, Batch, FlushDone, ReadDone, SpaceInfo, Ticket, Volume, VolumeError, VolumeInfo,
    check_read,
};
use link::Link;

/// How often time passes for the state machine.
const TICK: Duration = Duration::from_millis(5);
/// A host that does not answer is given up after this long.
const CONNECT: Duration = Duration::from_millis(500);
/// One that does has this long to prove who it is; a busy machine may take a while.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(100);

/// A replica in this process that can be read without a connection. It must answer `None` unless
/// it has applied everything up to `seen` of this generation.
pub trait LocalReplica: Send + Sync {
    /// Content and checksums of a range, unverified.
    fn read_local(
        &self,
        generation: Generation,
        seen: Seq,
        block: Block,
        count: u32,
    ) -> Option<(Bytes, Vec<Checksum>)>;
}

/// CLOCK_BOOTTIME: goes on while the machine sleeps, and never jumps (invariant 2).
pub fn boot_time() -> Now {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Now(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

enum Waiter {
    Flush(FlushDone, Instant),
    Read(ReadDone),
    Activate(mpsc::SyncSender<Result<Generation, ActivateError>>),
}

struct State {
    upstairs: Upstairs,
    waiters: HashMap<WaitId, Waiter>,
    next_wait: u64,
}

impl State {
    fn wait(&mut self, waiter: Waiter) -> WaitId {
        self.next_wait += 1;
        let id = WaitId(self.next_wait);
        self.waiters.insert(id, waiter);
        id
    }
}

/// The one activation's waiter.
const ACTIVATION: WaitId = WaitId(0);

struct Inner {
    volume: VolumeId,
    /// Size in blocks, for checks without the lock; follows the record.
    blocks: AtomicU64,
    /// Until when answers may leave (CLOCK_BOOTTIME, ns); 0 while not active. Read without the
    /// lock; every event that could change it ends in [`Inner::collect`].
    held_until: AtomicU64,
    state: Mutex<State>,
    room: Condvar,
    links: Vec<Link>,
    security: Security,
    versions: Versions,
    local: Option<Arc<dyn LocalReplica>>,
    recorder: Arc<dyn Recorder>,
    notices: Mutex<mpsc::Sender<Notice>>,
    stop: AtomicBool,
}

/// What is to be done after the state machine's lock was let go.
#[derive(Default)]
struct Todo {
    kick: Vec<LinkId>,
    reset: Vec<LinkId>,
    verify: Vec<Verify>,
    done: Vec<Box<dyn FnOnce() + Send>>,
    room: bool,
}

/// An active (or activating) upstairs as a volume.
pub struct ReplicatedVolume {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What [`ReplicatedVolume::start`] needs.
pub struct Start {
    /// The state machine's part.
    pub config: Config,
    /// Where each link leads, in the order of `config.links`.
    pub addresses: Vec<SocketAddr>,
    /// How connections are protected; under TLS each link must lead to the node that it is
    /// called after.
    pub security: Security,
    /// What this side understands.
    pub versions: Versions,
    /// The replica that `config.local` leads to, if it lives in this process.
    pub local: Option<Arc<dyn LocalReplica>>,
    /// Takes figures.
    pub recorder: Arc<dyn Recorder>,
}

impl ReplicatedVolume {
    /// Starts threads and connections; nothing is claimed yet. Notices come out of the receiver.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(start: Start) -> std::io::Result<(ReplicatedVolume, mpsc::Receiver<Notice>)> {
        let (notices, receiver) = mpsc::channel();
        let volume = start.config.volume;
        let links = start.addresses.iter().map(|_| Link::default()).collect();
        let nodes = start.config.links.clone();
        let upstairs = Upstairs::new(start.config);
        let state = State {
            upstairs,
            waiters: HashMap::new(),
            next_wait: 0,
        };
        let inner = Arc::new(Inner {
            volume,
            blocks: AtomicU64::new(0),
            held_until: AtomicU64::new(0),
            state: Mutex::new(state),
            room: Condvar::new(),
            links,
            security: start.security,
            versions: start.versions,
            local: start.local,
            recorder: start.recorder,
            notices: Mutex::new(notices),
            stop: AtomicBool::new(false),
        });
        let mut threads = Vec::new();
        for (i, (addr, node)) in start.addresses.into_iter().zip(nodes).enumerate() {
            let (link, reader, writer) = (LinkId::from_index(i), inner.clone(), inner.clone());
            threads.push(spawn(format!("link-{i}"), move || {
                reader.run_link(link, addr, &Expect::Node(node))
            })?);
            threads.push(spawn(format!("link-{i}-out"), move || {
                writer.links[i].run_writer(|| writer.stopped());
            })?);
        }
        let ticker = inner.clone();
        threads.push(spawn("lease".into(), move || ticker.run_ticks())?);
        Ok((
            ReplicatedVolume {
                inner,
                threads: Mutex::new(threads),
            },
            receiver,
        ))
    }

    /// Becomes the active one. Waits, at most as long as the options say.
    ///
    /// # Errors
    /// [`ActivateError`] says who holds the volume, or whom it needs.
    pub fn activate(&self, options: ActivateOptions) -> Result<Generation, ActivateError> {
        let (tx, rx) = mpsc::sync_channel(1);
        {
            let mut state = self.inner.lock();
            if state.waiters.contains_key(&ACTIVATION) {
                return Err(ActivateError::WrongState(self.inner.volume));
            }
            state.waiters.insert(ACTIVATION, Waiter::Activate(tx));
        }
        self.inner.with(|u, now| u.activate(now, options));
        rx.recv()
            .unwrap_or(Err(ActivateError::WrongState(self.inner.volume)))
    }

    /// Flushes, gives the volume back and waits until the members stored that, at most 1 s.
    /// Nothing works afterwards.
    ///
    /// # Errors
    /// The flush failed: what was not flushed before may be lost.
    pub fn hand_back(&self) -> Result<(), VolumeError> {
        let flushed = self.flush_all();
        self.inner.with(|u, now| u.hand_back(now));
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut state = self.inner.lock();
        while state.upstairs.handing_back() && Instant::now() < deadline {
            let wait = self.inner.room.wait_timeout(state, TICK);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        flushed.map(|_| ())
    }

    /// How the volume is.
    pub fn status(&self) -> Status {
        self.inner.lock().upstairs.status(boot_time())
    }

    /// Runs something on the state machine: changes of members, of the resync rate.
    pub fn with<T>(&self, f: impl FnOnce(&mut Upstairs, Now) -> T) -> T {
        self.inner.with(f)
    }
}

impl Drop for ReplicatedVolume {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Release);
        self.inner.links.iter().for_each(Link::close);
        self.inner.room.notify_all();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for t in threads {
            // A thread that panicked was reported by the panic itself.
            let _ = t.join();
        }
    }
}

/// Why a submission waited in vain, for people.
fn no_room(waited: Duration, status: &Status) -> String {
    let members: Vec<String> = status
        .members
        .iter()
        .map(|m| {
            let up = if m.up { "up" } else { "down" };
            format!("{} {up} durable {}", m.node, m.durable)
        })
        .collect();
    format!(
        "no room in the queues for {} s: operations to {} ordered, to {} durable, lease left {} \
         ms; {}",
        waited.as_secs(),
        status.last,
        status.commit,
        status.lease_left.0,
        members.join(", ")
    )
}

fn spawn(name: String, f: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(f)
}

impl Inner {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on the state machine, then does what it asks for.
    fn with<T>(&self, f: impl FnOnce(&mut Upstairs, Now) -> T) -> T {
        let mut state = self.lock();
        let result = f(&mut state.upstairs, boot_time());
        let todo = self.collect(&mut state);
        drop(state);
        self.perform(todo);
        result
    }

    /// Turns effects into things to do; frames are queued here, under the lock, in order.
    fn collect(&self, state: &mut State) -> Todo {
        let mut todo = Todo::default();
        let State {
            upstairs, waiters, ..
        } = state;
        let blocks = upstairs.record().map_or(0, |r| r.blocks);
        self.blocks.store(blocks, Ordering::Release);
        let until = match upstairs.is_active() {
            true => upstairs.lease_until().map_or(0, |t| t.0),
            false => 0,
        };
        // Before the lock is let go and anything performed: who learns that the volume is ours
        // finds it so, and nobody finds it ours after we learnt that it is not.
        self.held_until.store(until, Ordering::Release);
        for effect in upstairs.effects() {
            match effect {
                Effect::Send(link, frame) => {
                    if let Some(l) = self.links.get(link.index())
                        && l.push(frame)
                        && !todo.kick.contains(&link)
                    {
                        todo.kick.push(link);
                    }
                }
                Effect::Reset(link) => todo.reset.push(link),
                Effect::Verify(v) => todo.verify.push(v),
                Effect::Room => todo.room = true,
                Effect::Flushed(id, result) => {
                    if let Some(Waiter::Flush(done, since)) = waiters.remove(&id) {
                        self.recorder
                            .time("replica.flush", since.elapsed().as_nanos() as u64);
                        todo.done.push(Box::new(move || done(result)));
                    }
                }
                Effect::Read(id, result) => {
                    if let Some(Waiter::Read(done)) = waiters.remove(&id) {
                        todo.done.push(Box::new(move || done(result)));
                    }
                }
                Effect::Activated(result) => {
                    if let Some(Waiter::Activate(tx)) = waiters.remove(&ACTIVATION) {
                        // Whoever started it may have gone.
                        todo.done.push(Box::new(move || drop(tx.send(result))));
                    }
                }
                Effect::Notice(notice) => {
                    self.recorder.count("replica.notices", 1);
                    let tx = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
                    // Nobody listens any more: nothing to tell.
                    let _ = tx.send(notice);
                }
            }
        }
        todo
    }

    fn perform(&self, todo: Todo) {
        for link in todo.kick {
            self.links[link.index()].kick();
        }
        for link in todo.reset {
            self.links[link.index()].close();
        }
        if todo.room {
            self.room.notify_all();
        }
        for done in todo.done {
            done();
        }
        for v in todo.verify {
            let good = v.check(self.volume);
            self.with(|u, now| u.verified(now, v, good));
        }
    }

    fn run_ticks(&self) {
        // Best effort: without the privilege the thread runs as any other.
        let _ = rustix::process::setpriority_process(None, -10);
        while !self.stopped() {
            self.with(|u, now| u.tick(now));
            thread::park_timeout(TICK);
        }
    }

    fn run_link(&self, link: LinkId, addr: SocketAddr, expect: &Expect) {
        let mut told = None;
        while !self.stopped() {
            let connected = self
                .security
                .connect_within(addr, expect, CONNECT, HANDSHAKE);
            let trouble = match connected {
                Ok(connection) => self.serve_link(link, connection),
                // It is down, and comes back by itself; the volume's status says so.
                Err(TransportError::Connect { .. }) => None,
                Err(e) => Some(e.to_string()),
            };
            // This stays until somebody does something: told once, not ten times a second.
            if let Some(why) = trouble.filter(|why| told.as_ref() != Some(why)) {
                tracing::warn!(volume = %self.volume, to = %addr, why, "no connection");
                told = Some(why);
            }
            thread::park_timeout(RECONNECT);
        }
    }

    /// To the end of the connection; returns why the member will have none.
    fn serve_link(&self, link: LinkId, connection: Connection) -> Option<String> {
        let (reader, writer) = connection.split();
        self.links[link.index()].open(writer, self.versions);
        self.with(|u, now| u.link_up(now, link));
        let mut reader = FrameReader::with_versions(reader, self.versions);
        let mut agreed = 0;
        let mut refused = None;
        while !self.stopped() {
            match reader.next_frame() {
                Ok(frame) => {
                    // The first answer settles it; the rest only repeat it.
                    if agreed == 0 {
                        agreed = reader.version();
                        self.links[link.index()].speak(agreed);
                    }
                    self.with(|u, now| u.frame(now, link, frame));
                }
                Err(e) => {
                    tracing::debug!(link = link.0, error = %e, "connection to a member ended");
                    refused = e.is_refusal().then(|| e.to_string());
                    break;
                }
            }
        }
        self.links[link.index()].close();
        self.with(|u, now| u.link_down(now, link));
        refused
    }

    /// Reads from the replica in this process, on the caller's thread: no hand-over, no socket.
    fn read_here(&self, block: Block, count: u32) -> Option<Bytes> {
        let local = self.local.as_ref()?;
        let (generation, seen) = {
            let state = self.lock();
            let seen = state.upstairs.local_reads_from(boot_time())?;
            (state.upstairs.generation(), seen)
        };
        let (data, sums) = local.read_local(generation, seen, block, count)?;
        let v = Verify {
            request: 0,
            link: LinkId(0),
            block,
            sums,
            data,
        };
        if !v.check(self.volume) {
            // The long way finds the same, asks elsewhere and repairs.
            return None;
        }
        // The last thing before the answer leaves (invariant 2).
        let state = self.lock();
        let u = &state.upstairs;
        let ours = u.is_active() && u.generation() == generation && u.lease_valid(boot_time());
        ours.then_some(v.data)
    }
}

impl Volume for ReplicatedVolume {
    fn info(&self) -> VolumeInfo {
        let state = self.inner.lock();
        let record = state.upstairs.record();
        VolumeInfo {
            id: self.inner.volume,
            blocks: record.map_or(0, |r| r.blocks),
            generation: state.upstairs.generation().number,
            losses: record.map_or(0, |r| r.losses),
        }
    }

    fn space(&self) -> SpaceInfo {
        let (free, size) = self.inner.lock().upstairs.space();
        SpaceInfo {
            free_bytes: free,
            pool_bytes: size,
        }
    }

    fn holds(&self) -> bool {
        boot_time().0 < self.inner.held_until.load(Ordering::Acquire)
    }

    fn read(&self, block: Block, out: &mut [u8]) -> Result<(), VolumeError> {
        let count = check_read(block, out.len(), self.inner.blocks())?;
        if let Some(data) = self.inner.read_here(block, count) {
            out.copy_from_slice(&data);
            return Ok(());
        }
        let (tx, rx) = mpsc::sync_channel(1);
        let send: ReadDone = Box::new(move |r| drop(tx.send(r)));
        self.read_then(block, count, send);
        let data = rx
            .recv()
            .unwrap_or_else(|_| Err(VolumeError::NotActive("the volume went away".into())))?;
        out.copy_from_slice(&data);
        Ok(())
    }

    fn read_then(&self, block: Block, count: u32, done: ReadDone) {
        let bytes = count as usize * BLOCK_BYTES;
        if let Err(e) = check_read(block, bytes, self.inner.blocks()) {
            return done(Err(e));
        }
        if let Some(data) = self.inner.read_here(block, count) {
            return done(Ok(data));
        }
        let mut state = self.inner.lock();
        let wait = state.wait(Waiter::Read(done));
        state.upstairs.read(boot_time(), block, count, wait);
        let todo = self.inner.collect(&mut state);
        drop(state);
        self.inner.perform(todo);
    }

    fn submit(&self, batch: Batch) -> Result<Ticket, VolumeError> {
        batch
            .check(self.inner.blocks())
            .map_err(|e| VolumeError::BadRequest(e.to_string()))?;
        let began = Instant::now();
        // Checksums are computed here, before any lock.
        let prepared = Arc::new(Prepared::new(self.inner.volume, batch));
        let mut state = self.inner.lock();
        let patience = state.upstairs.lapse_patience();
        loop {
            let submitted = state.upstairs.submit(boot_time(), &prepared);
            match submitted {
                Submitted::At(seq) => {
                    let todo = self.inner.collect(&mut state);
                    drop(state);
                    self.inner.perform(todo);
                    self.inner
                        .recorder
                        .time("replica.submit", began.elapsed().as_nanos() as u64);
                    return Ok(Ticket(seq));
                }
                Submitted::Failed(e) => return Err(e),
                Submitted::Full => {
                    if began.elapsed() > patience || self.inner.stopped() {
                        let status = state.upstairs.status(boot_time());
                        return Err(VolumeError::NotActive(no_room(began.elapsed(), &status)));
                    }
                    let wait = self
                        .inner
                        .room
                        .wait_timeout(state, Duration::from_millis(100));
                    state = wait.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    fn flush_then(&self, upto: Ticket, done: FlushDone) {
        let mut state = self.inner.lock();
        let wait = state.wait(Waiter::Flush(done, Instant::now()));
        state.upstairs.flush(boot_time(), upto.0, wait);
        let todo = self.inner.collect(&mut state);
        drop(state);
        self.inner.perform(todo);
    }

    fn last_ticket(&self) -> Ticket {
        Ticket(self.inner.lock().upstairs.last())
    }

    fn grow(&self, blocks: u64) -> Result<(), VolumeError> {
        let began = Instant::now();
        self.inner
            .with(|u, now| u.grow(now, blocks))
            .map_err(|e| VolumeError::BadRequest(e.to_string()))?;
        while !self.inner.lock().upstairs.record_settled() {
            if began.elapsed() > Duration::from_secs(10) {
                return Err(VolumeError::NotActive(
                    "members do not store the new size".into(),
                ));
            }
            thread::park_timeout(TICK);
        }
        Ok(())
    }
}
