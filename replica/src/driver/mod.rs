//! Drives an [`Upstairs`] with real time, threads and sockets, and shows it as a [`Volume`].
//!
//! Threads: for each link one that connects and reads and one that writes when a socket is full;
//! one that makes time pass, and one that looks after the links ([`ways`]). Callers' own threads do
//! the rest: they order, send and, for reads from a replica in this process, read and verify. The
//! lease has threads of its own ([`lease`]), which never run what may wait: one that asks for
//! renewals, and for each link one that hears the answers.
//!
//! Locks: the state machine's is taken for microseconds and never held over a system call. Frames
//! are queued on their links under it, so that each stream has the state machine's order.

mod lease;
mod line;
mod link;
mod members;
mod ways;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use trivet_protocol::frame::Versions;
use trivet_protocol::{Block, Checksum, Generation, MemberId, Now, Recorder, Seq, VolumeId};
use trivet_transport::Security;

use crate::upstairs::{
    ActivateError, ActivateOptions, Config, Effect, LinkId, MAX_LINKS, Notice, Prepared, Status,
    Submitted, Upstairs, Verify, WaitId,
};
use crate::volume::{
    Admission, BLOCK_BYTES, Batch, FlushDone, ReadDone, SpaceInfo, Ticket, Volume, VolumeError,
    VolumeInfo, check_read,
};
use line::Line;
use link::Link;
pub use members::{MemberError, NewMember};
use ways::Way;

/// How often time passes for the state machine.
const TICK: Duration = Duration::from_millis(5);
/// A submission that waited longer is worth a line to whoever looks for it.
const SLOW: Duration = Duration::from_millis(300);
/// A volume is handed back unflushed if it cannot be flushed within this time.
const HAND_BACK_FLUSH: Duration = Duration::from_secs(5);
/// Members are given this long to store a hand-back.
const HAND_BACK: Duration = Duration::from_secs(1);

/// A replica in this process that can be read without a connection. It must answer `None` unless
/// it has applied everything up to `seen` of this generation.
pub trait LocalReplica: Send + Sync {
    /// Who it is.
    fn member(&self) -> MemberId;

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
    /// Who waits to be admitted, and who, perhaps admitted, for room in the window. Two, for what
    /// the first wait for is that the others get on.
    admissions: Line,
    submissions: Line,
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
    /// How long callers wait for room.
    patience: Duration,
    room: Condvar,
    /// One for each link that there may be, so that sending needs no lock to find it.
    links: Vec<Link>,
    ways: Vec<Mutex<Option<Arc<Way>>>>,
    security: Security,
    versions: Versions,
    local: Option<Arc<dyn LocalReplica>>,
    recorder: Arc<dyn Recorder>,
    notices: Mutex<mpsc::Sender<Notice>>,
    /// What the lease's threads leave to be done by the one that makes time pass.
    handed: Mutex<Vec<Todo>>,
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

impl Todo {
    fn is_empty(&self) -> bool {
        self.kick.is_empty()
            && self.reset.is_empty()
            && self.verify.is_empty()
            && self.done.is_empty()
            && !self.room
    }
}

/// An active (or activating) upstairs as a volume.
pub struct ReplicatedVolume {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// One change of the members at a time.
    changing: Mutex<()>,
}

/// What [`ReplicatedVolume::start`] needs.
pub struct Start {
    /// The state machine's part.
    pub config: Config,
    /// Where each link leads, in the order of `config.links`: addresses in the order of preference,
    /// the replication network first.
    pub addresses: Vec<Vec<SocketAddr>>,
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
        if start.addresses.len() > MAX_LINKS || start.addresses.iter().any(Vec::is_empty) {
            let why = format!("1 to {MAX_LINKS} members, each with an address, can be linked");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, why));
        }
        let nodes = start.config.links.clone();
        let upstairs = Upstairs::new(start.config);
        let patience = upstairs.lapse_patience();
        let state = State {
            upstairs,
            waiters: HashMap::new(),
            next_wait: 0,
            admissions: Line::default(),
            submissions: Line::default(),
        };
        let inner = Arc::new(Inner {
            volume,
            blocks: AtomicU64::new(0),
            held_until: AtomicU64::new(0),
            state: Mutex::new(state),
            patience,
            room: Condvar::new(),
            links: (0..MAX_LINKS).map(|_| Link::default()).collect(),
            ways: (0..MAX_LINKS).map(|_| Mutex::default()).collect(),
            security: start.security,
            versions: start.versions,
            local: start.local,
            recorder: start.recorder,
            notices: Mutex::new(notices),
            handed: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let mut threads = Vec::new();
        let links = (0..MAX_LINKS).map(LinkId::from_index);
        for ((link, addresses), node) in links.zip(start.addresses).zip(nodes) {
            inner.open_way(link, Way::new(node, addresses, false))?;
        }
        let (ticker, keeper, renewer) = (inner.clone(), inner.clone(), inner.clone());
        threads.push(spawn("time".into(), move || ticker.run_ticks())?);
        threads.push(spawn("lease".into(), move || renewer.run_renewals())?);
        threads.push(spawn("links".into(), move || keeper.look_after_links())?);
        Ok((
            ReplicatedVolume {
                inner,
                threads: Mutex::new(threads),
                changing: Mutex::default(),
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

    /// Flushes, gives the volume back and waits until the members stored that: at most 5 s for the
    /// one and 1 s for the other. Nothing works afterwards.
    ///
    /// # Errors
    /// The flush failed, or could not be done in time (fewer copies than the policy asks for, no
    /// lease): what was not flushed before may be lost.
    pub fn hand_back(&self) -> Result<(), VolumeError> {
        let (tx, rx) = mpsc::sync_channel(1);
        self.flush_then(
            self.last_ticket(),
            Box::new(move |flushed| drop(tx.try_send(flushed))),
        );
        let flushed = rx.recv_timeout(HAND_BACK_FLUSH).unwrap_or_else(|_| {
            let why = format!("no flush within {} s", HAND_BACK_FLUSH.as_secs());
            Err(VolumeError::NotActive(why))
        });
        self.inner.with(|u, now| u.hand_back(now));
        let deadline = Instant::now() + HAND_BACK;
        let mut state = self.inner.lock();
        while state.upstairs.handing_back() && Instant::now() < deadline {
            let wait = self.inner.room.wait_timeout(state, TICK);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        flushed.map(|_| ())
    }

    /// The version of the protocol that each member of a standing connection answered in.
    pub fn spoken(&self) -> BTreeMap<MemberId, u16> {
        let state = self.inner.lock();
        let links = (0..MAX_LINKS).map(LinkId::from_index);
        let on = links.filter_map(|l| {
            let spoken = self.inner.links[l.index()].spoken();
            let id = state.upstairs.member_at(l)?;
            (spoken != 0).then_some((id, spoken))
        });
        on.collect()
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
        self.inner.end_ways();
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
            upstairs,
            waiters,
            admissions,
            submissions,
            ..
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
                Effect::Renew(link, frame) => {
                    if let Some(l) = self.links.get(link.index())
                        && !l.lease.send(&frame.frame)
                        && l.push(frame)
                        && !todo.kick.contains(&link)
                    {
                        todo.kick.push(link);
                    }
                }
                Effect::Reset(link) => todo.reset.push(link),
                Effect::Verify(v) => todo.verify.push(v),
                Effect::Room => {
                    admissions.wake_first();
                    submissions.wake_first();
                    todo.room = true;
                }
                Effect::Flushed(id, result) => {
                    if let Some(Waiter::Flush(done, since)) = waiters.remove(&id) {
                        self.recorder
                            .time("replica.flush", since.elapsed().as_nanos() as u64);
                        if result.is_err() {
                            self.recorder.count("replica.flush.errors", 1);
                        }
                        todo.done.push(Box::new(move || done(result)));
                    }
                }
                Effect::Read(id, result) => {
                    if result.is_err() {
                        self.recorder.count("replica.read.errors", 1);
                    }
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
        lease::prefer();
        while !self.stopped() {
            let undurable = self.with(|u, now| {
                u.tick(now);
                u.last().0.saturating_sub(u.commit().0)
            });
            self.recorder.gauge("replica.queue.undurable", undurable);
            let handed = std::mem::take(&mut *self.handed());
            handed.into_iter().for_each(|todo| self.perform(todo));
            thread::park_timeout(TICK);
        }
    }

    fn handed(&self) -> MutexGuard<'_, Vec<Todo>> {
        // Whole at any moment.
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for renewals in time, and does nothing else.
    fn run_renewals(&self) {
        lease::prefer();
        while !self.stopped() {
            self.with_lease(|u, now| u.tick_renewals(now));
            thread::park_timeout(TICK);
        }
    }

    /// As [`Inner::with`], for threads that must not run what may wait.
    fn with_lease(&self, f: impl FnOnce(&mut Upstairs, Now)) {
        let mut state = self.lock();
        f(&mut state.upstairs, boot_time());
        let todo = self.collect(&mut state);
        drop(state);
        if !todo.is_empty() {
            self.handed().push(todo);
        }
    }

    /// Reads from the replica in this process, on the caller's thread: no hand-over, no socket.
    fn read_here(&self, block: Block, count: u32) -> Option<Bytes> {
        let local = self.local.as_ref()?;
        let (generation, seen) = {
            let state = self.lock();
            let seen = state
                .upstairs
                .local_reads_from(boot_time(), local.member())?;
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
        let began = Instant::now();
        let took = |what| {
            let nanos = began.elapsed().as_nanos() as u64;
            self.inner.recorder.time(what, nanos);
        };
        if let Some(data) = self.inner.read_here(block, count) {
            out.copy_from_slice(&data);
            took("replica.read.local");
            return Ok(());
        }
        let (tx, rx) = mpsc::sync_channel(1);
        let send: ReadDone = Box::new(move |r| drop(tx.send(r)));
        self.read_then(block, count, send);
        let data = rx
            .recv()
            .unwrap_or_else(|_| Err(VolumeError::NotActive("the volume went away".into())))?;
        out.copy_from_slice(&data);
        took("replica.read.remote");
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

    fn admit(&self, bytes: u64) -> Admission<'_> {
        let began = Instant::now();
        let admit = |u: &mut Upstairs, now| u.admit(now, bytes).then_some(());
        let (state, admitted) = self.inner.in_line(|s| &mut s.admissions, admit);
        drop(state);
        if admitted.is_none() {
            return Admission::default();
        }
        let waited = began.elapsed().as_nanos() as u64;
        self.inner.recorder.time("replica.admit", waited);
        Admission::until(move || self.inner.with(|u, now| u.admission_over(now, bytes)))
    }

    fn submit(&self, batch: Batch) -> Result<Ticket, VolumeError> {
        batch
            .check(self.inner.blocks())
            .map_err(|e| VolumeError::BadRequest(e.to_string()))?;
        let began = Instant::now();
        // Checksums are computed here, before any lock.
        let prepared = Arc::new(Prepared::new(self.inner.volume, batch));
        let submit = |u: &mut Upstairs, now| match u.submit(now, &prepared) {
            Submitted::At(seq) => Some(Ok(seq)),
            Submitted::Failed(e) => Some(Err(e)),
            Submitted::Full => None,
        };
        let (mut state, submitted) = self.inner.in_line(|s| &mut s.submissions, submit);
        let waited = began.elapsed();
        let seq = match submitted {
            Some(Ok(seq)) => seq,
            Some(Err(e)) => {
                self.inner.recorder.count("replica.submit.errors", 1);
                return Err(e);
            }
            None => {
                let status = state.upstairs.status(boot_time());
                return Err(VolumeError::NotActive(no_room(waited, &status)));
            }
        };
        if waited > SLOW {
            let status = state.upstairs.status(boot_time());
            let why = no_room(waited, &status);
            tracing::debug!(volume = %self.inner.volume, why, "a slow write");
        }
        let todo = self.inner.collect(&mut state);
        drop(state);
        self.inner.perform(todo);
        self.inner
            .recorder
            .time("replica.submit", began.elapsed().as_nanos() as u64);
        Ok(Ticket(seq))
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
