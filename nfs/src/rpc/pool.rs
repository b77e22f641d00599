//! The threads that serve TCP connections (docs/decisions/010-nfs-threads.md).
//!
//! A fixed set of threads waits on one epoll set. A thread that is woken for a connection takes
//! its messages and runs their calls itself, so that what is in memory is answered by the thread
//! that received it, without waking another; replies gathered on the way leave in one system call.
//!
//! Invariants:
//! - One thread at a time holds a connection's turn. A call that waits keeps its thread but not
//!   the turn: the watch thread ([`watch`]) takes it away after a millisecond or two and gives the
//!   connection to another thread. So neither other connections nor other calls of the same one
//!   stand behind it.
//! - Calls that may wait are admitted by gates ([`super::gate`]) that are smaller together than the
//!   set of threads: some thread is always left for calls that never wait.
//! - All memory that clients can occupy is counted, per connection and over all (invariant 10).
//!
//! What a crash leaves behind: nothing; clients send again what was not answered.

mod watch;

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::net::RecvFlags;

use super::conn::{Conn, ConnId, Sent, lock};
use super::record::{Progress, RecordError};
use super::{Origin, Replier};

const WAKE: u64 = u64::MAX;
const LISTENER: u64 = 1 << 63;

/// Bounds of a server; each has a default.
#[derive(Clone, Debug)]
pub struct PoolLimits {
    /// Threads that serve (8 to 1,024).
    pub threads: usize,
    /// Connections at once.
    pub connections: usize,
    /// Connections at once of addresses that no export lists.
    pub strangers: usize,
    /// Bytes of one message of a listed client.
    pub record: usize,
    /// Bytes of one message of a stranger.
    pub stranger_record: usize,
    /// Bytes of calls and replies in flight per connection; above it no more is received.
    pub connection_bytes: usize,
    /// The same over all connections. As much again is for messages of which the end has not come.
    pub total_bytes: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        PoolLimits {
            threads: 48,
            connections: 16_384,
            strangers: 256,
            record: (1 << 20) + (64 << 10),
            stranger_record: 8 << 10,
            connection_bytes: 32 << 20,
            total_bytes: 256 << 20,
        }
    }
}

/// What is counted, for status and metrics.
#[derive(Debug, Default)]
pub struct PoolCounters {
    /// Messages received.
    pub messages: AtomicU64,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections refused because of a limit.
    pub refused: AtomicU64,
    /// Connections ended because of what the client sent.
    pub ended_bad: AtomicU64,
    /// Connections ended because unfinished messages took too much memory, theirs the longest.
    pub ended_slow: AtomicU64,
    /// Turns taken from a call that waited.
    pub turns_taken: AtomicU64,
    /// Times that a connection was not received from because too much was in flight.
    pub stalls: AtomicU64,
}

/// Serves the messages of TCP connections.
pub trait Messages: Send + Sync {
    /// Handles one message. Called on the receiving thread; may reply now, later or never.
    fn message(&self, message: Bytes, replier: Replier);
    /// Whether the address is of a client that is expected; strangers get tighter limits.
    fn expected(&self, peer: SocketAddr) -> bool;
    /// The messages that arrived together have been handled: what they left to be done together
    /// is done now.
    fn turn_ended(&self);
    /// A connection ended.
    fn ended(&self, conn: &Conn);
}

/// State of one serving thread: 0 idle, else the number of the call in bits 1.., and in bit 0
/// whether the turn was taken from it.
#[derive(Debug, Default)]
struct Slot {
    state: AtomicU64,
    conn: Mutex<Option<Arc<Conn>>>,
}

pub(crate) struct Shared {
    epoll: OwnedFd,
    writers: OwnedFd,
    wake: OwnedFd,
    listeners: Vec<(TcpListener, Arc<dyn Messages>)>,
    conns: RwLock<HashMap<u64, Arc<Conn>>>,
    strangers: AtomicUsize,
    ready: Mutex<VecDeque<Arc<Conn>>>,
    stalled: Mutex<Vec<Arc<Conn>>>,
    stalled_count: AtomicUsize,
    total_bytes: AtomicUsize,
    /// Bytes of messages of which the end has not come.
    unfinished: AtomicUsize,
    slots: Vec<Slot>,
    next_conn: AtomicU64,
    stop: AtomicBool,
    start: Instant,
    limits: PoolLimits,
    counters: PoolCounters,
    watch: Mutex<Option<std::thread::Thread>>,
    watch_idle: AtomicBool,
    opened: Option<Opened>,
}

/// Told of each socket that is served: the listening ones, and connections as they come. Whoever
/// keeps a duplicate keeps the connection from being ended by the end of this process; a
/// connection that ends in order is shut down, which a duplicate does not prevent. Must not wait.
pub type Opened = Arc<dyn Fn(BorrowedFd<'_>) + Send + Sync>;

thread_local! {
    /// Connection whose replies this thread will send at the end of its turn.
    static SERVING: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// Whether this thread is inside a connection's turn, at whose end [`Messages::turn_ended`] is
/// called.
pub fn in_turn() -> bool {
    SERVING.get() != u64::MAX
}

/// Runs `f` as if outside of any turn: what it leaves to be done together is done at once, what
/// it replies is sent at once. For calls of others that a thread runs in passing.
pub fn outside_turn(f: impl FnOnce()) {
    let turn = SERVING.replace(u64::MAX);
    f();
    SERVING.set(turn);
}

impl Shared {
    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Counts `n` more bytes in flight.
    pub(crate) fn charge(&self, conn: &Conn, n: usize) {
        conn.in_flight.fetch_add(n, Ordering::AcqRel);
        self.total_bytes.fetch_add(n, Ordering::AcqRel);
    }

    /// Counts `n` bytes less, and lets connections go on that waited for that.
    pub(crate) fn discharge(&self, conn: &Conn, n: usize) {
        conn.in_flight.fetch_sub(n, Ordering::AcqRel);
        self.total_bytes.fetch_sub(n, Ordering::AcqRel);
        if self.stalled_count.load(Ordering::Acquire) > 0 {
            self.resume_stalled();
        }
    }

    fn has_room(&self, conn: &Conn, part: usize) -> bool {
        conn.in_flight.load(Ordering::Acquire) < self.limits.connection_bytes / part
            && self.total_bytes.load(Ordering::Acquire) < self.limits.total_bytes
    }

    /// Counts what a connection has sent of a message without its end; `began` if that is a new
    /// message. While all of them hold too much, the one that has kept its own longest is ended:
    /// slow, or hostile, and a client connects again and repeats its call.
    fn count_unfinished(&self, conn: &Arc<Conn>, began: bool) {
        let held = lock(&conn.input).held();
        // The sum first, see `uncount`.
        self.unfinished.fetch_add(held, Ordering::AcqRel);
        let old = conn.unfinished.swap(held, Ordering::AcqRel);
        self.uncount(old);
        if began || old == 0 {
            conn.unfinished_since
                .store(self.now_ms(), Ordering::Release);
        }
        if conn.is_closed() {
            self.forget_unfinished(conn);
        }
        while self.unfinished.load(Ordering::Acquire) > self.limits.total_bytes {
            let conns = self.conns.read().unwrap_or_else(|e| e.into_inner());
            let holds = |c: &&Arc<Conn>| {
                c.unfinished.load(Ordering::Acquire) > 0 && !c.stalled.load(Ordering::Acquire)
            };
            let since = |c: &&Arc<Conn>| (c.unfinished_since.load(Ordering::Acquire), c.id.0);
            let slowest = conns.values().filter(holds).min_by_key(since).cloned();
            drop(conns);
            let Some(slowest) = slowest else { return };
            self.counters.ended_slow.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(peer = %slowest.peer, "too many unfinished messages; the slowest ends");
            self.end(&slowest);
            self.forget_unfinished(&slowest);
        }
    }

    fn forget_unfinished(&self, conn: &Conn) {
        let old = conn.unfinished.swap(0, Ordering::AcqRel);
        self.uncount(old);
    }

    /// Whoever ends a connection may come between its count and the sum: the sum never wraps.
    fn uncount(&self, bytes: usize) {
        let less = |sum: usize| Some(sum.saturating_sub(bytes));
        // The closure never refuses.
        let _ = self
            .unfinished
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    fn stall(&self, conn: &Arc<Conn>) {
        self.counters.stalls.fetch_add(1, Ordering::Relaxed);
        let mut list = lock(&self.stalled);
        conn.stalled.store(true, Ordering::Release);
        list.push(Arc::clone(conn));
        self.stalled_count.store(list.len(), Ordering::Release);
    }

    /// Hands connections that have room again to the threads. The watch thread repeats this, so a
    /// discharge that comes just before a stall is not missed for long.
    fn resume_stalled(&self) {
        let mut list = lock(&self.stalled);
        let mut go = Vec::new();
        list.retain(|c| {
            let wait = !c.is_closed() && !self.has_room(c, 2);
            if !wait {
                c.stalled.store(false, Ordering::Release);
                go.push(Arc::clone(c));
            }
            wait
        });
        self.stalled_count.store(list.len(), Ordering::Release);
        drop(list);
        for c in go {
            self.make_ready(c);
        }
    }

    fn make_ready(&self, conn: Arc<Conn>) {
        lock(&self.ready).push_back(conn);
        // The counter cannot overflow: it counts entries of `ready`.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Sends what is queued, unless this thread does so anyway at the end of its turn.
    pub(crate) fn send_soon(&self, conn: &Arc<Conn>) {
        if SERVING.get() != conn.id.0 {
            self.send(conn);
        }
    }

    fn send(&self, conn: &Arc<Conn>) {
        let (sent, gone) = conn.send();
        if gone > 0 {
            self.discharge(conn, gone);
        }
        match sent {
            Sent::Done => {}
            Sent::Full => {
                let data = epoll::EventData::new_u64(conn.id.0);
                let flags = epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT;
                let again = epoll::modify(&self.writers, &conn.socket, data, flags)
                    .or_else(|_| epoll::add(&self.writers, &conn.socket, data, flags));
                if again.is_err() {
                    self.end(conn);
                }
            }
            Sent::Broken => self.end(conn),
        }
    }

    fn find(&self, id: u64) -> Option<Arc<Conn>> {
        let conns = self.conns.read().unwrap_or_else(|e| e.into_inner());
        conns.get(&id).cloned()
    }

    fn end(&self, conn: &Arc<Conn>) {
        if !conn.close() {
            return;
        }
        self.forget_unfinished(conn);
        // Both fail only if the socket was never added.
        let _ = epoll::delete(&self.epoll, &conn.socket);
        let _ = epoll::delete(&self.writers, &conn.socket);
        let mut conns = self.conns.write().unwrap_or_else(|e| e.into_inner());
        conns.remove(&conn.id.0);
        drop(conns);
        let messages = &self.listeners[conn.listener].1;
        if conn.stranger {
            self.strangers.fetch_sub(1, Ordering::AcqRel);
        }
        messages.ended(conn);
    }

    fn run(self: &Arc<Self>, slot: usize) {
        while !self.stop.load(Ordering::Acquire) {
            let Some(token) = wait_one(&self.epoll, None) else {
                continue;
            };
            match token {
                WAKE => {
                    // One count, one connection; more counts wake more threads. None is left if
                    // the server is stopping.
                    let mut b = [0; 8];
                    if rustix::io::read(&self.wake, &mut b).is_ok() {
                        let next = lock(&self.ready).pop_front();
                        if let Some(conn) = next {
                            self.serve_guarded(slot, &conn);
                        }
                    }
                }
                t if t & LISTENER != 0 => self.accept((t & !LISTENER) as usize),
                id => {
                    if let Some(conn) = self.find(id) {
                        self.serve_guarded(slot, &conn);
                    }
                }
            }
        }
    }

    fn serve_guarded(self: &Arc<Self>, slot: usize, conn: &Arc<Conn>) {
        if self.watch_idle.load(Ordering::Acquire)
            && let Some(t) = lock(&self.watch).as_ref()
        {
            t.unpark();
        }
        *lock(&self.slots[slot].conn) = Some(Arc::clone(conn));
        let served = catch_unwind(AssertUnwindSafe(|| self.serve(slot, conn)));
        SERVING.set(u64::MAX);
        *lock(&self.slots[slot].conn) = None;
        if served.is_err() {
            // A bug, but one client's: the others go on.
            self.slots[slot].state.store(0, Ordering::Release);
            tracing::error!(peer = %conn.peer, "a call failed inside; its connection is closed");
            self.end(conn);
            self.listeners[conn.listener].1.turn_ended();
        }
    }

    /// Takes and runs messages until none is left, the turn is lost, or too much is in flight.
    fn serve(self: &Arc<Self>, slot: usize, conn: &Arc<Conn>) {
        let messages = &self.listeners[conn.listener].1;
        let state = &self.slots[slot].state;
        SERVING.set(conn.id.0);
        let mut call = 0u64;
        loop {
            if conn.is_closed() {
                // What calls of this turn left may be for others: repetitions elsewhere.
                SERVING.set(u64::MAX);
                messages.turn_ended();
                return;
            }
            if !self.has_room(conn, 1) {
                SERVING.set(u64::MAX);
                messages.turn_ended();
                self.send(conn);
                self.stall(conn);
                return;
            }
            let next = lock(&conn.input).next(|v| {
                let room = rustix::buffer::spare_capacity(v);
                Ok(rustix::net::recv(&conn.socket, room, RecvFlags::DONTWAIT)?.0)
            });
            let message = match next {
                Ok(Progress::Record(m)) => m,
                Ok(Progress::Starved) => {
                    SERVING.set(u64::MAX);
                    self.send(conn);
                    self.count_unfinished(conn, call > 0);
                    // To ask for a flush may wait too: if it does, another thread goes on here.
                    state.store((call + 1) << 1, Ordering::Release);
                    messages.turn_ended();
                    if state.swap(0, Ordering::AcqRel) & 1 == 0 {
                        self.rearm(conn);
                    }
                    return;
                }
                Err(e) => {
                    if !matches!(e, RecordError::Closed | RecordError::Socket(_)) {
                        self.counters.ended_bad.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(peer = %conn.peer, "connection closed: {e}");
                    }
                    self.end(conn);
                    SERVING.set(u64::MAX);
                    messages.turn_ended();
                    return;
                }
            };
            self.counters.messages.fetch_add(1, Ordering::Relaxed);
            conn.last_call_ms.store(self.now_ms(), Ordering::Relaxed);
            call += 1;
            state.store(call << 1, Ordering::Release);
            let size = message.len();
            let origin = Origin::Tcp(Arc::clone(conn), Arc::clone(self));
            messages.message(message, Replier::new(origin, size));
            if state.swap(0, Ordering::AcqRel) & 1 == 1 {
                // The turn went to another thread; only what was replied here is left to send.
                SERVING.set(u64::MAX);
                messages.turn_ended();
                self.send(conn);
                return;
            }
            if conn.wants_send() {
                self.send(conn);
            }
        }
    }

    fn rearm(&self, conn: &Arc<Conn>) {
        let data = epoll::EventData::new_u64(conn.id.0);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
        if epoll::modify(&self.epoll, &conn.socket, data, flags).is_err() {
            self.end(conn);
        }
    }

    fn accept(self: &Arc<Self>, listener: usize) {
        let Some((socket, messages)) = self.listeners.get(listener) else {
            return;
        };
        // A bounded number, so that a flood of connections cannot hold the thread.
        for _ in 0..64 {
            match socket.accept() {
                Ok((stream, peer)) => {
                    if let Err(e) = self.admit(listener, messages.as_ref(), stream, peer) {
                        tracing::debug!(%peer, "connection not admitted: {e}");
                        self.counters.refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => {
                    // Out of file descriptors: the watch thread arms the listener again.
                    tracing::warn!("cannot accept connections: {e}");
                    return;
                }
            }
        }
        self.arm_listener(listener);
    }

    fn arm_listener(&self, listener: usize) {
        if let Some((socket, _)) = self.listeners.get(listener) {
            let data = epoll::EventData::new_u64(LISTENER | listener as u64);
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
            // Cannot fail for a socket that was added.
            let _ = epoll::modify(&self.epoll, socket, data, flags);
        }
    }

    fn admit(
        self: &Arc<Self>,
        listener: usize,
        messages: &dyn Messages,
        stream: std::net::TcpStream,
        peer: SocketAddr,
    ) -> io::Result<()> {
        let stranger = !messages.expected(peer);
        let count = self.conns.read().unwrap_or_else(|e| e.into_inner()).len();
        let too_many = stranger && self.strangers.load(Ordering::Acquire) >= self.limits.strangers;
        if count >= self.limits.connections || too_many {
            return Err(io::Error::other("too many connections"));
        }
        set_options(&stream)?;
        if let Some(opened) = &self.opened {
            opened(stream.as_fd());
        }
        let id = self.next_conn.fetch_add(1, Ordering::Relaxed);
        let limit = match stranger {
            true => self.limits.stranger_record,
            false => self.limits.record,
        };
        let conn = Arc::new(Conn::new(
            ConnId(id),
            stream,
            peer,
            listener,
            limit,
            stranger,
        )?);
        conn.last_call_ms.store(self.now_ms(), Ordering::Relaxed);
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        if stranger {
            self.strangers.fetch_add(1, Ordering::AcqRel);
        }
        let mut conns = self.conns.write().unwrap_or_else(|e| e.into_inner());
        conns.insert(id, Arc::clone(&conn));
        drop(conns);
        let data = epoll::EventData::new_u64(id);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
        if let Err(e) = epoll::add(&self.epoll, &conn.socket, data, flags) {
            self.end(&conn);
            return Err(e.into());
        }
        Ok(())
    }

    /// Sends for connections whose sockets were full.
    fn write_when_ready(&self) {
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: 200_000_000,
        };
        while !self.stop.load(Ordering::Acquire) {
            if let Some(id) = wait_one(&self.writers, Some(&tick))
                && let Some(conn) = self.find(id)
            {
                self.send(&conn);
            }
        }
    }
}

fn wait_one(epoll_fd: &OwnedFd, timeout: Option<&Timespec>) -> Option<u64> {
    let mut events = [epoll::Event {
        flags: epoll::EventFlags::empty(),
        data: epoll::EventData::new_u64(0),
    }];
    // An interrupted wait is simply repeated by the caller.
    let n = epoll::wait(epoll_fd, &mut events[..], timeout).unwrap_or(0);
    (n > 0).then(|| events[0].data.u64())
}

fn set_options(stream: &std::net::TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let s = socket2::SockRef::from(stream);
    let keep = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    s.set_tcp_keepalive(&keep)?;
    // A client that takes nothing for this long is gone, or must connect again.
    s.set_tcp_user_timeout(Some(Duration::from_secs(120)))
}

/// The running threads; dropping it stops them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// Serves these listening sockets.
    ///
    /// # Errors
    /// What the system says when epoll, eventfd or a thread cannot be had.
    pub fn start(
        listeners: Vec<(TcpListener, Arc<dyn Messages>)>,
        limits: PoolLimits,
        opened: Option<Opened>,
    ) -> io::Result<Pool> {
        let epoll_fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let writers = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = eventfd_flags();
        let wake = eventfd(0, flags)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll_fd, &wake, data, epoll::EventFlags::IN)?;
        for (i, (socket, _)) in listeners.iter().enumerate() {
            socket.set_nonblocking(true)?;
            if let Some(opened) = &opened {
                opened(socket.as_fd());
            }
            let data = epoll::EventData::new_u64(LISTENER | i as u64);
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
            epoll::add(&epoll_fd, socket, data, flags)?;
        }
        let threads = limits.threads.clamp(8, 1024);
        let shared = Arc::new(Shared {
            epoll: epoll_fd,
            writers,
            wake,
            listeners,
            conns: RwLock::default(),
            strangers: AtomicUsize::new(0),
            ready: Mutex::default(),
            stalled: Mutex::default(),
            stalled_count: AtomicUsize::new(0),
            total_bytes: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            slots: (0..threads).map(|_| Slot::default()).collect(),
            next_conn: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            start: Instant::now(),
            limits,
            counters: PoolCounters::default(),
            watch: Mutex::default(),
            watch_idle: AtomicBool::new(false),
            opened,
        });
        let pool = Pool {
            shared,
            threads: Mutex::default(),
        };
        for slot in 0..threads {
            pool.spawn(format!("nfs-{slot}"), move |s| s.run(slot))?;
        }
        pool.spawn("nfs-write".into(), |s| s.write_when_ready())?;
        pool.spawn("nfs-watch".into(), |s| {
            *lock(&s.watch) = Some(std::thread::current());
            s.watch();
        })?;
        Ok(pool)
    }

    fn spawn(&self, name: String, f: impl FnOnce(&Arc<Shared>) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(name)
            .stack_size(512 << 10)
            .spawn(move || f(&shared))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// The counters.
    pub fn counters(&self) -> &PoolCounters {
        &self.shared.counters
    }

    /// Bytes of calls and replies in flight.
    pub fn bytes_in_flight(&self) -> usize {
        self.shared.total_bytes.load(Ordering::Acquire)
    }

    /// The connections, each with the time since its last call.
    pub fn connections(&self) -> Vec<(SocketAddr, Duration)> {
        let now = self.shared.now_ms();
        let conns = self.shared.conns.read().unwrap_or_else(|e| e.into_inner());
        let since = |c: &Arc<Conn>| now.saturating_sub(c.last_call_ms.load(Ordering::Relaxed));
        conns
            .values()
            .map(|c| (c.peer, Duration::from_millis(since(c))))
            .collect()
    }

    /// Ends every connection and joins the threads. Replies not yet sent are dropped: to a client
    /// that is what a restart looks like.
    pub fn stop(&self) {
        if self.shared.stop.swap(true, Ordering::AcqRel) {
            return;
        }
        let conns: Vec<_> = {
            let conns = self.shared.conns.read().unwrap_or_else(|e| e.into_inner());
            conns.values().cloned().collect()
        };
        for c in &conns {
            // Reset rather than finish: a client that is told "finished" waits seconds before it
            // connects again. Errors are those of connections that are gone.
            let linger = socket2::SockRef::from(&c.socket);
            let _ = linger.set_linger(Some(Duration::ZERO));
            self.shared.end(c);
        }
        // Wakes every thread that waits, once each.
        let threads = std::mem::take(&mut *lock(&self.threads));
        let n = threads.len() as u64;
        let _ = rustix::io::write(&self.shared.wake, &n.to_ne_bytes());
        for t in threads {
            t.thread().unpark();
            // A thread that panicked has said so already.
            let _ = t.join();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}

fn eventfd_flags() -> EventfdFlags {
    EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC
}
