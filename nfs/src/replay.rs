//! Calls that must have their effect once, however often the client repeats them.
//!
//! A repetition carries the same number (xid), procedure and arguments, from the same address;
//! port and connection may differ, because a client reconnects. It is
//! - joined to the first, while that one runs;
//! - answered with what was answered then, from the file system, which stores the answer in the
//!   same batch as the effect: so also after a restart or on another node (invariant 9).
//!
//! Bounds: entries here are calls in flight; [`MAX_JOINED`] repetitions each. What is stored is
//! bounded by the file system per client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use trivet_fs::Vfs;

use crate::export::plain;
use crate::rpc::conn::lock;
use crate::rpc::{Call, Replier};
use crate::xdr::Enc;

/// Repetitions of one running call that are remembered; more are dropped.
const MAX_JOINED: usize = 8;

/// Names a call within its client.
pub type CallKey = [u8; 16];

/// A client, by its address: for all its connections and ports.
pub fn client_of(address: IpAddr) -> u64 {
    let hash = match plain(address) {
        IpAddr::V4(a) => blake3::hash(&a.octets()),
        IpAddr::V6(a) => blake3::hash(&a.octets()),
    };
    let mut word = [0; 8];
    word.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_be_bytes(word)
}

fn key_of(call: &Call) -> CallKey {
    let hash = blake3::hash(call.head.args.rest());
    let mut key = [0; 16];
    key[..4].copy_from_slice(&call.head.xid.to_be_bytes());
    key[4..8].copy_from_slice(&call.head.procedure.to_be_bytes());
    key[8..].copy_from_slice(&hash.as_bytes()[..8]);
    key
}

/// Counters, for status and metrics.
#[derive(Debug, Default)]
pub struct ReplayCounters {
    /// Repetitions joined to a running call.
    pub joined: AtomicU64,
    /// Repetitions answered from the store.
    pub answered: AtomicU64,
}

/// The running calls.
pub struct Replays {
    fs: Arc<dyn Vfs>,
    running: Mutex<HashMap<(u64, CallKey), Vec<Replier>>>,
    /// What happened.
    pub counters: ReplayCounters,
}

/// A call that is run here and now, and nowhere else.
pub struct Once {
    replays: Arc<Replays>,
    /// The client.
    pub client: u64,
    /// The call.
    pub key: CallKey,
    /// Head and way back; taken by [`Once::finish`].
    call: Option<Call>,
}

impl Replays {
    /// Answers are stored in `fs`.
    pub fn new(fs: Arc<dyn Vfs>) -> Arc<Replays> {
        Arc::new(Replays {
            fs,
            running: Mutex::default(),
            counters: ReplayCounters::default(),
        })
    }

    /// Lets a call run unless it is a repetition; those are taken care of here.
    pub fn begin(self: &Arc<Self>, call: Call) -> Option<Once> {
        let client = client_of(call.replier.peer().ip());
        let key = key_of(&call);
        {
            let mut running = lock(&self.running);
            if let Some(joined) = running.get_mut(&(client, key)) {
                self.counters.joined.fetch_add(1, Ordering::Relaxed);
                if joined.len() < MAX_JOINED {
                    joined.push(call.replier);
                }
                return None;
            }
            running.insert((client, key), Vec::new());
        }
        let once = Once {
            replays: Arc::clone(self),
            client,
            key,
            call: Some(call),
        };
        match self.fs.replay(client, &key) {
            Ok(Some(answer)) => {
                self.counters.answered.fetch_add(1, Ordering::Relaxed);
                once.finish_now(&answer);
                None
            }
            Ok(None) => Some(once),
            // The store cannot be read: to run the call could do it twice. Silence; the client
            // asks again.
            Err(e) => {
                tracing::warn!("stored answers cannot be read: {e}");
                None
            }
        }
    }
}

impl Once {
    /// Whether the connections of the caller and of all who repeated the call have ended, so that
    /// a call not yet begun is not to begin. It is no longer running then: whoever repeats it from
    /// now on begins anew.
    pub fn is_deserted(&mut self) -> bool {
        let Some(call) = &self.call else {
            return true;
        };
        if !call.replier.is_gone() {
            return false;
        }
        let mut running = lock(&self.replays.running);
        let joined = running.get(&(self.client, self.key));
        if joined.is_some_and(|all| all.iter().any(|r| !r.is_gone())) {
            return false;
        }
        running.remove(&(self.client, self.key));
        self.call = None;
        true
    }

    /// Answers the call and its repetitions with these results; the repliers go to `queued`, to
    /// be flushed by the caller.
    pub fn finish(mut self, results: &[u8], queued: &mut Vec<Replier>) {
        let Some(call) = self.call.take() else {
            return;
        };
        let mut e = call.success();
        e.raw(results);
        let joined = lock(&self.replays.running).remove(&(self.client, self.key));
        for replier in std::iter::once(call.replier).chain(joined.into_iter().flatten()) {
            replier.queue(e.bytes(), None);
            queued.push(replier);
        }
    }

    /// The same, sent at once.
    pub fn finish_now(self, results: &[u8]) {
        let mut queued = Vec::new();
        self.finish(results, &mut queued);
        queued.iter().for_each(Replier::flush);
    }

    /// Answers a call that failed without effect, and keeps the answer in memory.
    pub fn fail(self, status: &Enc) {
        let answer = Bytes::copy_from_slice(status.bytes());
        self.replays.fs.keep_reply(self.client, &self.key, answer);
        self.finish_now(status.bytes());
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        // Dropped without an answer: silence for its repetitions too.
        if self.call.is_some() {
            lock(&self.replays.running).remove(&(self.client, self.key));
        }
    }
}
