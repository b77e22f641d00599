//! Nothing about files leaves while the volume is not held (invariant 2): silence, not errors.
//!
//! Every reply of a program that says so ([`super::Program::held`]) asks here, after the file
//! system was asked and just before it is queued. One that may not leave is kept until the lease
//! is back: what it says then still holds, for nobody else can have written, and the client, on
//! the same connection, would else ask again only after its minute. If the lease never comes back,
//! it never leaves; another node answers what the client asks there. Datagrams are dropped.
//!
//! Bounded: a kept reply counts as bytes in flight, above whose bounds no more calls are received.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use trivet_fs::Vfs;

use super::conn::{Conn, Payload, lock};
use super::pool::Shared;

/// How often the lease is looked at while something is kept.
const LOOK: Duration = Duration::from_millis(5);

/// A reply that may not leave yet.
struct Kept {
    conn: Arc<Conn>,
    shared: Arc<Shared>,
    head: Vec<u8>,
    payload: Option<Payload>,
    /// Bytes counted as in flight.
    bytes: usize,
}

impl Kept {
    fn leave(mut self) {
        if !self.conn.is_closed() {
            let bytes = self.conn.push(&self.head, self.payload.take());
            self.shared.charge(&self.conn, bytes);
            self.shared.send_soon(&self.conn);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.shared.discharge(&self.conn, self.bytes);
    }
}

#[derive(Default)]
struct State {
    kept: Vec<Kept>,
    stopped: bool,
}

struct Inner {
    fs: Arc<dyn Vfs>,
    state: Mutex<State>,
    wake: Condvar,
    silent: AtomicU64,
}

/// See the module's head.
pub struct Hold {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Hold {
    /// For answers from `fs`.
    ///
    /// # Errors
    /// What the system says when a thread cannot be had.
    pub fn start(fs: Arc<dyn Vfs>) -> std::io::Result<Arc<Hold>> {
        let inner = Arc::new(Inner {
            fs,
            state: Mutex::default(),
            wake: Condvar::new(),
            silent: AtomicU64::new(0),
        });
        let own = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("nfs-hold".into())
            .stack_size(256 << 10)
            .spawn(move || own.run())?;
        Ok(Arc::new(Hold {
            inner,
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Replies that could not leave at once.
    pub fn silent(&self) -> u64 {
        self.inner.silent.load(Ordering::Relaxed)
    }

    /// Whether an answer may leave now.
    pub(super) fn open(&self) -> bool {
        let open = self.inner.fs.holds();
        if !open {
            self.inner.silent.fetch_add(1, Ordering::Relaxed);
        }
        open
    }

    /// Keeps a reply until it may leave.
    pub(super) fn keep(
        &self,
        conn: &Arc<Conn>,
        shared: &Arc<Shared>,
        head: &[u8],
        payload: Option<Payload>,
    ) {
        let bytes = head.len() + payload.as_ref().map_or(0, |p| p.bytes);
        shared.charge(conn, bytes);
        let kept = Kept {
            conn: Arc::clone(conn),
            shared: Arc::clone(shared),
            head: head.to_vec(),
            payload,
            bytes,
        };
        lock(&self.inner.state).kept.push(kept);
        self.inner.wake.notify_one();
    }
}

impl Inner {
    fn run(&self) {
        let mut s = lock(&self.state);
        while !s.stopped {
            if s.kept.is_empty() {
                s = self.wake.wait(s).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let all = std::mem::take(&mut s.kept);
            drop(s);
            // Asked once more for each: a pause may come between any two.
            let (leave, stay): (Vec<Kept>, Vec<Kept>) =
                all.into_iter().partition(|_| self.fs.holds());
            leave.into_iter().for_each(Kept::leave);
            let stay: Vec<Kept> = stay.into_iter().filter(|k| !k.conn.is_closed()).collect();
            s = lock(&self.state);
            let wait = !stay.is_empty();
            s.kept.extend(stay);
            if wait && !s.stopped {
                s = self
                    .wake
                    .wait_timeout(s, LOOK)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
        s.kept.clear();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.inner.state).stopped = true;
        self.inner.wake.notify_all();
        if let Some(t) = lock(&self.thread).take()
            && t.thread().id() != std::thread::current().id()
        {
            // A thread that panicked has said so already.
            let _ = t.join();
        }
    }
}
