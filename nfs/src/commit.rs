//! Group commit: who waits for durability, and one flush for all of them.
//!
//! Stable WRITEs, COMMITs, namespace changes and lock calls, of all files and clients, wait here
//! by the mark of their change. Few flushes run at once ([`MAX_FLUSHES`]); when one ends it
//! answers everyone it covers, and the answers of one connection leave in one system call.
//!
//! Invariants:
//! - An answer that claims durability is sent only after a flush of a mark at or above its own
//!   succeeded (invariant 3). There is no other way to be answered with success.
//! - A flush is asked for at the end of a connection's turn, so that the calls that arrived
//!   together share it; nobody waits for others to arrive.
//! - Callbacks of the file system never wait here: whatever has to ask for the next flush is
//!   the committer's own thread.
//!
//! Bounds: one entry per call in flight, which the connections' windows bound. What a crash
//! leaves behind: calls without an answer, which their clients send again.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use trivet_fs::{FsResult, Mark, Vfs};

use crate::rpc::Replier;
use crate::rpc::conn::lock;
use crate::rpc::pool::in_turn;

/// Flushes asked for at once.
const MAX_FLUSHES: usize = 3;
/// So many waiting ask for a flush without the end of the turn.
const MANY: usize = 32;

/// Called with the outcome; queues replies on the repliers it puts in the list, which are flushed
/// and dropped after all answers of this flush were given.
pub type Answer = Box<dyn FnOnce(&FsResult<()>, &mut Vec<Replier>) + Send>;

#[derive(Default)]
struct State {
    waiting: BTreeMap<(Mark, u64), Answer>,
    serial: u64,
    flushes: usize,
    asked: Mark,
    durable: Mark,
    stop: bool,
}

struct Inner {
    fs: Arc<dyn Vfs>,
    state: Mutex<State>,
    wake: Condvar,
}

/// See the module.
pub struct Committer {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// For changes to `fs`.
    ///
    /// # Errors
    /// What the system says when a thread cannot be had.
    pub fn start(fs: Arc<dyn Vfs>) -> std::io::Result<Committer> {
        let inner = Arc::new(Inner {
            fs,
            state: Mutex::default(),
            wake: Condvar::new(),
        });
        let own = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("nfs-commit".into())
            .stack_size(256 << 10)
            .spawn(move || own.run())?;
        Ok(Committer {
            inner,
            thread: Some(thread),
        })
    }

    /// Gives `answer` when everything up to `mark` is durable, or when that failed.
    pub fn wait(&self, mark: Mark, answer: Answer) {
        let mut s = lock(&self.inner.state);
        if mark <= s.durable {
            drop(s);
            return give(vec![answer], &Ok(()));
        }
        let serial = s.serial;
        s.serial += 1;
        s.waiting.insert((mark, serial), answer);
        let many = s.waiting.len() >= MANY;
        drop(s);
        if many || !in_turn() {
            self.kick();
        }
    }

    /// Like [`Committer::wait`], from a callback of the file system's, which must not ask for a
    /// flush itself: the committer's own thread does.
    pub fn wait_quietly(&self, mark: Mark, answer: Answer) {
        let mut s = lock(&self.inner.state);
        // Even if it is durable already, the answer is given by a flush: it may wait for the
        // caller's locks.
        s.durable = s.durable.min(Mark(mark.0.saturating_sub(1)));
        s.asked = s.asked.min(s.durable);
        let serial = s.serial;
        s.serial += 1;
        s.waiting.insert((mark, serial), answer);
        drop(s);
        self.inner.wake.notify_one();
    }

    /// Asks for what is waited for. Called at the end of a turn.
    pub fn kick(&self) {
        Inner::ask(&self.inner);
    }
}

impl Inner {
    /// The newest mark that is waited for and not asked for, if a flush may be asked for now.
    fn next(s: &mut State) -> Option<Mark> {
        let (&(newest, _), _) = s.waiting.last_key_value()?;
        if newest <= s.asked || s.flushes >= MAX_FLUSHES || s.stop {
            return None;
        }
        s.asked = newest;
        s.flushes += 1;
        Some(newest)
    }

    fn ask(inner: &Arc<Inner>) {
        let Some(mark) = Inner::next(&mut lock(&inner.state)) else {
            return;
        };
        let weak = Arc::downgrade(inner);
        inner
            .fs
            .flush_then(mark, Box::new(move |r| Inner::done(&weak, mark, &r)));
    }

    fn done(weak: &Weak<Inner>, mark: Mark, result: &FsResult<()>) {
        let Some(inner) = weak.upgrade() else {
            return;
        };
        let mut s = lock(&inner.state);
        s.flushes -= 1;
        let later = s.waiting.split_off(&(Mark(mark.0 + 1), 0));
        let covered = std::mem::replace(&mut s.waiting, later);
        match result {
            Ok(()) => s.durable = s.durable.max(mark),
            // What is waited for from now on asks anew.
            Err(_) => s.asked = s.durable,
        }
        let more = !s.waiting.is_empty();
        drop(s);
        if more {
            inner.wake.notify_one();
        }
        give(covered.into_values().collect(), result);
    }

    /// Asks for the next flush when one ended with others waiting.
    fn run(self: &Arc<Self>) {
        let mut s = lock(&self.state);
        while !s.stop {
            if let Some(mark) = Inner::next(&mut s) {
                drop(s);
                let weak = Arc::downgrade(self);
                self.fs
                    .flush_then(mark, Box::new(move |r| Inner::done(&weak, mark, &r)));
                s = lock(&self.state);
                continue;
            }
            s = self.wake.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Gives the answers, then sends what they queued, once per connection.
fn give(answers: Vec<Answer>, result: &FsResult<()>) {
    let mut repliers = Vec::with_capacity(answers.len());
    for answer in answers {
        answer(result, &mut repliers);
    }
    let mut sent = Vec::new();
    for r in &repliers {
        if !sent.contains(&r.conn_id()) {
            sent.push(r.conn_id());
            r.flush();
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        lock(&self.inner.state).stop = true;
        self.inner.wake.notify_all();
        if let Some(t) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = t.join();
        }
    }
}
