//! Calls from the server to its clients: NLM_GRANTED, and the answers to the `_MSG` forms.
//!
//! The client's port is asked of its own rpcbind each time (it changes when the client restarts),
//! TCP before UDP. One thread makes the calls, in order; a client that does not answer costs it at
//! most [`TIMEOUT`] per try.
//!
//! Bounds: [`MAX_QUEUE`] calls wait; more are dropped, which a client heals by asking again (Linux
//! does so every 30 s). What a crash leaves behind: waiters whose clients ask again.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::types::{PROGRAM, VERSION};
use crate::client::rpc::{ClientError, RpcClient, call_udp};
use crate::portmap;
use crate::rpc::conn::lock;
use crate::xdr::Dec;

/// Calls that wait, at most.
const MAX_QUEUE: usize = 4096;
/// For a connection or an answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Between tries.
const AGAIN: Duration = Duration::from_secs(3);
/// Tries of a call that wants an answer.
const TRIES: u32 = 5;

/// What becomes of a call: the client's answer, or none.
pub type Outcome = Box<dyn FnOnce(Option<Dec>) + Send>;

/// A call to a client.
pub struct Callback {
    /// The client.
    pub to: IpAddr,
    /// Procedure of NLM.
    pub procedure: u32,
    /// Encoded arguments.
    pub args: Vec<u8>,
    /// Who wants to know; `None`: one try, no answer expected.
    pub outcome: Option<Outcome>,
}

struct Entry {
    call: Callback,
    tries: u32,
    due: Instant,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    stop: bool,
}

struct Inner {
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// The thread that makes the calls; dropping it ends it.
pub struct Callbacks {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Callbacks {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the system says when it cannot be had.
    pub fn start() -> std::io::Result<Callbacks> {
        let inner = Arc::new(Inner {
            queue: Mutex::default(),
            wake: Condvar::new(),
        });
        let own = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("nlm-callback".into())
            .stack_size(256 << 10)
            .spawn(move || own.run())?;
        Ok(Callbacks {
            inner,
            thread: Some(thread),
        })
    }

    /// Queues a call. Never waits.
    pub fn call(&self, call: Callback) {
        let mut q = lock(&self.inner.queue);
        if q.entries.len() >= MAX_QUEUE {
            tracing::warn!(client = %call.to, "too many NLM call-backs wait; one is dropped");
            return;
        }
        q.entries.push_back(Entry {
            call,
            tries: 0,
            due: Instant::now(),
        });
        drop(q);
        self.inner.wake.notify_one();
    }
}

impl Inner {
    fn run(&self) {
        while let Some(mut entry) = self.next() {
            let answer = reach(&entry.call);
            entry.tries += 1;
            let Some(outcome) = entry.call.outcome.take() else {
                continue;
            };
            match answer {
                Ok(d) => outcome(Some(d)),
                Err(e) if entry.tries >= TRIES => {
                    tracing::warn!(client = %entry.call.to, "NLM call-back failed: {e}");
                    outcome(None);
                }
                Err(_) => {
                    entry.call.outcome = Some(outcome);
                    entry.due = Instant::now() + AGAIN;
                    lock(&self.queue).entries.push_back(entry);
                }
            }
        }
    }

    /// The next call that is due; `None` at the end.
    fn next(&self) -> Option<Entry> {
        let mut q = lock(&self.queue);
        loop {
            if q.stop {
                return None;
            }
            let now = Instant::now();
            if let Some(n) = q.entries.iter().position(|e| e.due <= now) {
                return q.entries.remove(n);
            }
            let until = q.entries.iter().map(|e| e.due - now).min();
            let wait = until.unwrap_or(Duration::from_secs(3600));
            let woken = self.wake.wait_timeout(q, wait);
            q = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Finds the client's lock manager and calls it.
fn reach(call: &Callback) -> Result<Dec, ClientError> {
    let rpcbind = SocketAddr::new(call.to, portmap::PORT);
    let port_of = |protocol: u32| -> Result<u16, ClientError> {
        let ask = |e: &mut crate::xdr::Enc| {
            e.u32(PROGRAM).u32(VERSION).u32(protocol).u32(0);
        };
        let what = (portmap::PROGRAM, 2, 3);
        let tcp = RpcClient::connect(rpcbind, TIMEOUT, false).and_then(|mut c| c.call(what, ask));
        let mut d = tcp.or_else(|_| call_udp(rpcbind, TIMEOUT, what, ask))?;
        Ok(d.u32()? as u16)
    };
    let what = (PROGRAM, VERSION, call.procedure);
    let args = |e: &mut crate::xdr::Enc| {
        e.raw(&call.args);
    };
    match port_of(6)? {
        0 => match port_of(17)? {
            0 => Err(ClientError::Refused(1)),
            port => call_udp(SocketAddr::new(call.to, port), TIMEOUT, what, args),
        },
        port => {
            // Linux takes call-backs only from ports below 1024.
            let to = SocketAddr::new(call.to, port);
            let client = RpcClient::connect(to, TIMEOUT, true)
                .or_else(|_| RpcClient::connect(to, TIMEOUT, false));
            client?.call(what, args)
        }
    }
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        lock(&self.inner.queue).stop = true;
        self.inner.wake.notify_all();
        if let Some(t) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = t.join();
        }
    }
}
